/* peer.h: groups whose operands lie on a device: what the files of peer/ share.
 *
 * The group's engine stays the way by which ranks meet, announce, compare, wait for each other's
 * hosts and hear of failures. What moves data is one kernel for each operation and rank, which reads
 * the peers' device memory (kernels/peer.h). Ranks are threads of one process; what they know of each
 * other's memory they tell once, at the group's first such operation.
 * Invariant: a kernel that waits for peers is queued only when every peer's host has announced the
 * same and is about to queue its own: so nobody waits for what may never come, and no call that the
 * driver makes wait for running kernels (to load one, to free memory) stands between them.
 * Leaves kernels and streams to the device, which operations go this way to calls.c. */
#ifndef LAMELLA_PLUGIN_COMM_PEER_PEER_H
#define LAMELLA_PLUGIN_COMM_PEER_PEER_H

#include <stdatomic.h>

#include "kernels/peer.h"
#include "plugin/comm/comm.h"

enum { PEER_SUMS = 4 };

/* What all ranks of a group use, until the last of them leaves. */
typedef struct peer_shared {
  const lam_device *device;
  _Atomic int users;
  int size;
  struct {
    lam_peer_line *line;
    void *lanes;
    int32_t device_id;
  } of[LAM_PEERS];
} peer_shared;

typedef struct peer_chunk { /* a partial sum under way */
  void *data;
  bool aside;   /* its kernel is on the side stream, and `stream` does not wait for it yet */
} peer_chunk;

typedef struct lam_peer {
  const lam_device *device;
  int32_t device_id;
  lam_peer_line *line;
  peer_shared *shared; /* NULL: no collective yet; then the line is this rank's alone */
  lam_peers peers;
  bool alone; /* no other rank is on this card */
  uint32_t taken, finished;
  peer_chunk chunks[PEER_SUMS];
} lam_peer;

/* This rank's own, made at its first operation on a device. */
lam_status lam_peer_of(lam_group *g, lam_peer **out);
/* All kernels that were put aside come before what is queued next. */
lam_status lam_peer_come_back(lam_group *g);
static inline uint32_t lam_peer_deadline(const lam_group *g) {
  return g->sequence <= 1 ? g->first_deadline_ms : g->deadline_ms;
}

/* -- cells, by file: collectives.c, sums.c, boxes.c -- */

lam_status lam_peer_all_reduce(lam_group *g, const void *x, void *y, int64_t n, lam_dtype t);
lam_status lam_peer_all_gather(lam_group *g, const lam_parts *p, const void *mine, void *whole);
lam_status lam_peer_reduce_scatter(lam_group *g, const lam_parts *p, const void *whole, void *mine);
lam_status lam_peer_broadcast(lam_group *g, const void *x, void *y, uint64_t bytes, int root);
lam_status lam_peer_reduce(lam_group *g, const void *x, void *y, int64_t n, lam_dtype t, int root);
lam_status lam_peer_partial(lam_group *g, int64_t rows, int64_t cols, lam_sum *s);
lam_status lam_peer_sum_start(lam_group *g, lam_sum *s);
lam_status lam_peer_sum_finish(lam_group *g, lam_sum *s);
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
void lam_peer_edges_leave(const lam_group *g);

#endif
