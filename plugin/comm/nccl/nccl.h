/* nccl.h: groups on NCCL: what the files of nccl/ share.
 *
 * Ranks meet, announce, compare and hear of failures over a group of the shm engine: the control
 * channel, and the way of operands in the host's memory. What lies on a device goes over links
 * (kernels/nccl.h): one of all ranks for collectives, and one for each (neighbour, direction) for
 * transfers, all made and used once when the group is made, in one order.
 * Invariant: an operation is queued on a link only when all its ranks have announced the same; the host
 * waits for hosts alone, never for the device. A thread of the process watches all groups: what does not
 * come within its deadline on the device is aborted, on every rank, and poisons the group.
 * Leaves NCCL's calls to the device. */
#ifndef LAMELLA_PLUGIN_COMM_NCCL_NCCL_H
#define LAMELLA_PLUGIN_COMM_NCCL_NCCL_H

#include <pthread.h>
#include <sys/types.h>

#include "kernels/nccl.h"
#include "plugin/comm/comm.h"

enum {
  NCCL_SUMS = 4,      /* partial sums under way */
  NCCL_BOXES = 32,    /* messages under way that were copied for their sender */
  NCCL_ALL_EDGES = 8, /* up to so many ranks each has an edge to each; else to its neighbours */
  NCCL_EDGE_CTAS = 2, /* blocks of a transfer's kernel: products need the rest */
  NCCL_ALL_CTAS = 16, /* of a collective's, which a product beside it leaves room for; to be measured */
  NCCL_SCRAP_BYTES = 256
};
enum { NCCL_TO, NCCL_FROM };

typedef struct nccl_link {
  lam_link *link; /* NULL: there is none */
  uint64_t used;  /* operations queued, that of its making among them */
  /* the watch's */
  uint64_t ended; /* operations it has seen end */
  int64_t since;  /* when that last changed, or nothing waited for a peer */
} nccl_link;

typedef struct nccl_box { /* a message's copy, until it is sent */
  void *data;
  uint64_t bytes, number;
} nccl_box;

typedef struct nccl_parked nccl_parked; /* messages that came before they were asked for */

typedef struct nccl_edge { /* to or from a neighbour */
  nccl_link link;
  lam_channel *notes; /* what comes over the link, in its order; from host to host */
  int peer, n_boxes, n_holds;
  nccl_box boxes[NCCL_BOXES];
  nccl_parked *parked;
} nccl_edge;

typedef struct nccl_chunk {
  void *data;
  uint64_t number;
} nccl_chunk;

typedef struct lam_nccl {
  struct lam_nccl *next; /* that is watched */
  lam_group *g;
  const lam_device *device;
  int32_t device_id;
  pid_t process;
  pthread_mutex_t lock; /* links and the next two: this rank's thread and the watch */
  bool over;            /* its links are aborted */
  bool is_failing;      /* this rank's thread ends the group: it knows more than the watch */
  uint32_t deadline_ms; /* of what was queued last */
  void *scrap;          /* what links are tried with */
  nccl_link all;
  nccl_edge *edges[LAM_GROUP_RANKS][2]; /* by peer; NCCL_TO, NCCL_FROM */
  uint32_t taken, finished;
  nccl_chunk chunks[NCCL_SUMS];
  lam_group_pace pace;
  int aside; /* operations under way beside products */
} lam_nccl;

/* -- meet.c -- */

/* Makes g->nccl with all its links. comm: the host's own, or NULL; gpu: as lam_group_desc has it. All
 * ranks fail alike. */
lam_status lam_nccl_meet(lam_group *g, void *comm, uint32_t gpu);
lam_status lam_nccl_warm(lam_group *g);
/* f on each link, until one says no; in the same order on all ranks. */
lam_status lam_nccl_each_link(lam_nccl *n, lam_status (*f)(lam_nccl *n, nccl_link *k));

/* -- run.c -- */

lam_status lam_nccl_prepare(lam_group *g);
/* Queues `count` operations as one on a link, after what `after` says; number: for join. */
lam_status lam_nccl_start(lam_nccl *n, nccl_link *k, const lam_link_op *ops, int count,
                          lam_link_after after, uint64_t *out_number);
lam_status lam_nccl_join(lam_nccl *n, nccl_link *k, uint64_t number, void *stream);
/* The same of a collective that is not joined at once: products queued meanwhile run beside it. */
lam_status lam_nccl_start_aside(lam_group *g, const lam_link_op *ops, int count,
                                uint64_t *out_number);
lam_status lam_nccl_join_aside(lam_group *g, uint64_t number);
/* What comes next for `hold` waits for what the stream was given so far. */
lam_status lam_nccl_hold(lam_nccl *n, nccl_link *k, int hold, void *stream);
/* A collective: start and join. */
lam_status lam_nccl_run(lam_group *g, const lam_link_op *ops, int count);
/* Until NCCL has ended its last call on the link. */
lam_status lam_nccl_settle(lam_nccl *n, nccl_link *k);
/* Until all that was queued on it is done: for when a group is made and unmade. */
lam_status lam_nccl_drain(lam_nccl *n, nccl_link *k);
void lam_nccl_end(lam_group *g); /* from any thread */
void lam_nccl_leave(lam_group *g);
/* What ended the group, where something did. */
lam_status lam_nccl_check(const lam_nccl *n);

/* -- watch.c -- */

lam_status lam_nccl_watch(lam_nccl *n);
void lam_nccl_unwatch(lam_nccl *n);

/* -- cells, by file: collectives.c, sums.c, edges.c, channels.c -- */

lam_status lam_nccl_all_reduce(lam_group *g, const void *x, void *y, int64_t n, lam_dtype t);
lam_status lam_nccl_all_gather(lam_group *g, const lam_parts *p, const void *mine, void *whole);
lam_status lam_nccl_gather_start(lam_group *g, const lam_parts *p, const void *mine, void *whole,
                                 lam_gather *x);
lam_status lam_nccl_gather_wait(lam_group *g, const lam_gather *x, int step);
lam_status lam_nccl_reduce_scatter(lam_group *g, const lam_parts *p, const void *whole, void *mine);
lam_status lam_nccl_broadcast(lam_group *g, const void *x, void *y, uint64_t bytes, int root);
lam_status lam_nccl_reduce(lam_group *g, const void *x, void *y, int64_t n, lam_dtype t, int root);
lam_status lam_nccl_partial(lam_group *g, int64_t rows, int64_t cols, lam_sum *s);
lam_status lam_nccl_sum_start(lam_group *g, lam_sum *s);
lam_status lam_nccl_sum_finish(lam_group *g, lam_sum *s);
lam_status lam_nccl_send(lam_group *g, int peer, int kind, const lam_wire *header,
                         const void *data);
lam_status lam_nccl_recv(lam_group *g, int peer, int kind, lam_wire *header, void *data,
                         uint64_t room);
lam_status lam_nccl_channel_open(lam_group *g, int peer, bool sender, uint64_t key, int depth,
                                 uint64_t bytes, lam_channel **out);
lam_status lam_nccl_channel_acquire(lam_channel *c, void **out_slot);
lam_status lam_nccl_channel_push(lam_channel *c, const lam_wire *header);
lam_status lam_nccl_channel_pull(lam_channel *c, lam_wire *out_header, const void **out_data);
lam_status lam_nccl_channel_release(lam_channel *c);
void lam_nccl_channel_close(lam_channel *c);

/* -- edges.c, for channels -- */

/* Tells the receiver what comes next over the edge; the message itself is queued. */
typedef struct nccl_note {
  uint64_t key, bytes;
  lam_wire wire;
} nccl_note;
/* Where a message of a key is: here, parked, or next on the link. */
typedef struct nccl_arrival {
  nccl_note note;
  nccl_parked *parked; /* NULL: it is next */
} nccl_arrival;
lam_status lam_nccl_edge_of(lam_group *g, int peer, int way, nccl_edge **out);
int lam_nccl_edge_holds(nccl_edge *e, int n); /* the first of n; -1: so many are not left */
lam_status lam_nccl_tell(lam_group *g, nccl_edge *e, const nccl_note *note);
lam_status lam_nccl_await(lam_group *g, nccl_edge *e, uint64_t key, nccl_arrival *out);
/* Into `to`, before what g's stream is given next; `hold` as lam_link_after has it. */
lam_status lam_nccl_land(lam_group *g, nccl_edge *e, nccl_arrival *a, void *to, int hold);
void lam_nccl_edge_free(lam_nccl *n, nccl_edge *e);

#endif
