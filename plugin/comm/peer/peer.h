/* peer.h: groups whose operands lie on a device: what the files of peer/ share.
 *
 * The group's engine stays the way by which ranks meet, announce, compare, wait for each other's
 * hosts and hear of failures. Data goes one of three ways:
 *
 *   threads  ranks of one process: kernels read the peers' device memory by its pointers
 *   ipc      ranks of several processes: the same, over memory that each rank shows the others
 *   host     where that cannot be: through pinned memory and the engine
 *
 * All that is read by others is memory of the group's own (lanes, boxes), so what the host allocates,
 * pooled or not, is never shown. Which way is found out at the group's first collective on a device,
 * and agreed on by all; transfers before that ask each other in pairs, and go through the host as
 * long as there is no answer.
 * Invariant: a kernel that waits for peers is queued only when every peer's host has announced the
 * same and is about to queue its own: so nobody waits for what may never come, and no call that the
 * driver makes wait for running kernels (to load one, to free memory) stands between them.
 * Leaves kernels and streams to the device, which operations go this way to calls.c. */
#ifndef LAMELLA_PLUGIN_COMM_PEER_PEER_H
#define LAMELLA_PLUGIN_COMM_PEER_PEER_H

#include <stdatomic.h>
#include <sys/types.h>

#include "kernels/peer.h"
#include "plugin/comm/comm.h"

/* From so many bytes on a sum or gather goes aside; to be measured: two events cost some 2 us. For tests
 * to set. */
extern int64_t lam_peer_aside_from;
enum { PEER_SUMS = 4, PEER_KINDS = 2, PEER_WHY = 160 };

typedef enum peer_way { PEER_UNSETTLED, PEER_THREADS, PEER_IPC, PEER_HOST } peer_way;

/* What a rank shows the others, in the engine's page. The first words are its line's. */
typedef struct peer_shown {
  uint32_t words[LAM_WORDS];
  _Atomic uint32_t offered; /* `probe` is there, for others to try */
  lam_peer_handle probe;
  _Atomic uint32_t reaches[LAM_PEERS]; /* this rank the memory of that one: PEER_UNKNOWN, ... */
  _Atomic uint64_t taken[LAM_PEERS][PEER_KINDS]; /* messages of that rank whose copy is queued here */
} peer_shown;
_Static_assert(sizeof(peer_shown) <= LAM_SHOWN_BYTES, "a page holds it");
enum { PEER_UNKNOWN, PEER_YES, PEER_NO };

static inline peer_shown *peer_shown_of(const lam_group *g, int rank) {
  return g->engine->shown(g, rank);
}

typedef struct peer_chunk { /* a partial sum under way */
  void *data;
  bool aside;   /* its kernel is on the side stream, and `stream` does not wait for it yet */
} peer_chunk;

/* Memory of this rank's that others may read; freed when all have left the group. */
typedef struct peer_memory {
  struct peer_memory *next;
  void *data;
} peer_memory;

/* Memory of another process, opened once. */
typedef struct peer_map {
  struct peer_map *next;
  int rank;
  const void *there; /* where its owner sees it */
  void *here;
} peer_map;

/* Where memory of another rank's is found: `there`, or by the handle. */
typedef struct peer_place {
  const void *there;
  int32_t device_id; /* there */
  int32_t shown;
  lam_peer_handle handle;
} peer_place;

/* A channel's, one after another in one piece of memory. */
typedef struct peer_slots {
  struct peer_slots *next;
  int peer, depth;
  uint64_t stride;
  char *memory;
} peer_slots;

typedef struct peer_edge peer_edge; /* boxes.c */
typedef struct edge_box edge_box;

/* Between open and close of a transfer in place. */
typedef struct peer_message {
  int peer, kind;
  lam_wire wire;
  peer_edge *edge;
  edge_box *box;
} peer_message;
typedef struct peer_receipt {
  int peer, kind;
  lam_peer_box box;
  void *scratch; /* in place of the box */
} peer_receipt;

typedef struct lam_peer {
  const lam_device *device;
  int32_t device_id;
  pid_t process; /* a forked child leaves all of this alone */
  lam_peer_line *line;
  _Atomic int way; /* peer_way */
  char why[PEER_WHY];
  bool among_processes, alone; /* alone: no other thread's rank is on this card */
  lam_peers peers;
  uint32_t taken, finished;
  peer_chunk chunks[PEER_SUMS];
  peer_memory *memory;
  peer_map *maps;
  peer_edge *edges; /* this rank sends over */
  peer_slots *slots; /* of channels that this rank sends over */
  peer_message sending;
  peer_receipt receiving;
  lam_group_pace pace;
  int gathers; /* steps of a gather that are queued aside, up to which `stream` may not have waited */
  int waited;
  void *pinned;
  uint64_t pinned_bytes;
  lam_peer_watch *watch; /* of the processes of other ranks */
} lam_peer;

/* This rank's own, made at its first operation on a device. */
lam_status lam_peer_of(lam_group *g, lam_peer **out);
/* Is this thread's device the group's, may its stream be used? Before a transfer. */
lam_status lam_peer_begin(lam_group *g, lam_peer **out);
/* Before what waits for the stream. */
lam_status lam_peer_refuse_capture(const lam_group *g);
/* All kernels that were put aside come before what is queued next. */
lam_status lam_peer_come_back(lam_group *g);
void lam_peer_tell_busy(lam_group *g);
static inline uint32_t lam_peer_deadline(const lam_group *g) {
  return g->sequence <= 1 ? g->first_deadline_ms : g->deadline_ms;
}

/* meet.c: all ranks at once */
lam_status lam_peer_meet(lam_group *g);

/* reach.c: who reaches whose memory */
lam_status lam_peer_offer(lam_group *g);  /* something to try */
void lam_peer_try_offers(lam_group *g);   /* what others have offered so far */
bool lam_peer_goes_by_host(lam_group *g, int peer); /* what this rank sends there now */
lam_status lam_peer_place_of(const lam_peer *p, void *data, peer_place *out);
lam_status lam_peer_find(lam_group *g, int rank, const peer_place *at, void **out);
/* Of memory that a peer has sent from: where it opens no more since that died, LAM_PEER_DEAD. */
lam_status lam_peer_find_sent(lam_group *g, int rank, const peer_place *at, void **out);
void lam_peer_unmap_all(lam_peer *p);

/* kept.c: memory, until the last of its readers has gone */
lam_status lam_peer_memory_new(lam_peer *p, uint64_t bytes, void **out);
void lam_peer_memory_drop(lam_peer *p, const void *data); /* that nobody else knows; NULL: nothing */
void lam_peer_memory_leave(lam_group *g);

/* by_host.c */
lam_status lam_peer_pinned(lam_peer *p, uint64_t bytes, void **out); /* one at a time */
lam_status lam_peer_down(lam_group *g, const void *from, void *to, uint64_t bytes); /* waits */
lam_status lam_peer_up(lam_group *g, const void *from, void *to, uint64_t bytes);   /* waits */

/* boxes.c: places for messages in their sender's memory */
enum { PEER_BOXES = 64, PEER_BOX_HEAD = 256 /* a box's words, before its data */ };
struct edge_box {
  lam_peer_box box;
  uint64_t bytes;
  uint64_t last; /* messages up to the last that was in it */
  peer_place place;
};
struct peer_edge {
  peer_edge *next;
  int peer, kind, n;
  uint64_t bytes, sent;
  edge_box boxes[PEER_BOXES];
};
/* One that holds so much, and will be empty in time. */
lam_status lam_peer_box_for(lam_group *g, int peer, int kind, uint64_t bytes, peer_edge **out_edge,
                            edge_box **out);
lam_status lam_peer_box_use(const lam_group *g, int peer, const lam_peer_box *box, int what,
                            bool first, void *data, uint64_t bytes);
lam_peer_box lam_peer_box_at(void *memory);
/* Until other processes have read what was sent to them, or a second is over. */
void lam_peer_await_readers(lam_group *g);
void lam_peer_edges_free(lam_peer *p);

/* -- cells, by file: collectives.c, sums.c, transfer.c, channel.c -- */

lam_status lam_peer_all_reduce(lam_group *g, const void *x, void *y, int64_t n, lam_dtype t);
lam_status lam_peer_all_gather(lam_group *g, const lam_parts *p, const void *mine, void *whole);
lam_status lam_peer_gather_start(lam_group *g, const lam_parts *p, const void *mine, void *whole,
                                 lam_gather *x);
lam_status lam_peer_gather_wait(lam_group *g, const lam_gather *x, int step);
lam_status lam_peer_reduce_scatter(lam_group *g, const lam_parts *p, const void *whole, void *mine);
lam_status lam_peer_broadcast(lam_group *g, const void *x, void *y, uint64_t bytes, int root);
lam_status lam_peer_reduce(lam_group *g, const void *x, void *y, int64_t n, lam_dtype t, int root);
lam_status lam_peer_partial(lam_group *g, int64_t rows, int64_t cols, lam_sum *s);
lam_status lam_peer_sum_start(lam_group *g, lam_sum *s);
lam_status lam_peer_sum_finish(lam_group *g, lam_sum *s);
void lam_peer_sum_drop(lam_group *g, const lam_sum *s); /* the chunk's memory, in stream order */
lam_status lam_peer_send(lam_group *g, int peer, int kind, const lam_wire *header,
                         const void *data);
lam_status lam_peer_recv(lam_group *g, int peer, int kind, lam_wire *header, void *data,
                         uint64_t room);
lam_status lam_peer_channel_open(lam_group *g, int peer, bool sender, uint64_t key, int depth,
                                 uint64_t bytes, lam_channel **out);
lam_status lam_peer_channel_acquire(lam_channel *c, void **out_slot);
lam_status lam_peer_channel_push(lam_channel *c, const lam_wire *header);
lam_status lam_peer_channel_pull(lam_channel *c, lam_wire *out_header, const void **out_data);
lam_status lam_peer_channel_release(lam_channel *c);
void lam_peer_channel_close(lam_channel *c);

#endif
