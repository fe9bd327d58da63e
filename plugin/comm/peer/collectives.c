/* collectives.c: sums and gathers over peers' device memory, each one kernel.
 * Invariant: all ranks derive the same form and the same steps from what they announced alike.
 * Leaves that form to the device. */
#include "plugin/comm/peer/peer.h"

static lam_status run_sum(lam_group *g, const lam_peer_sum *s) {
  LAM_TRY(lam_peer_come_back(g));
  return lam_peer_sum_run(g->device, &g->peer->peers, s, g->stream);
}

static lam_matrix matrix(const void *data, int64_t rows, int64_t cols, lam_dtype t) {
  if (rows == 0 || cols == 0) return (lam_matrix){0};
  return (lam_matrix){.data = (void *)(uintptr_t)data,
                      .rows = rows,
                      .cols = cols,
                      .row_stride = cols,
                      .col_stride = 1,
                      .dtype = t};
}

lam_status lam_peer_all_reduce(lam_group *g, const void *x, void *y, int64_t n, lam_dtype t) {
  const lam_peer_sum s = {.x = matrix(x, 1, n, t), .y = matrix(y, 1, n, t), .whole = true};
  return run_sum(g, &s);
}

lam_status lam_peer_reduce(lam_group *g, const void *x, void *y, int64_t n, lam_dtype t, int root) {
  lam_peer_sum s = {.x = matrix(x, 1, n, t)};
  if (g->rank == root) s.y = matrix(y, 1, n, t);
  return run_sum(g, &s);
}

/* Shares are columns of the whole, seen as [outer, total x inner]. */
lam_status lam_peer_reduce_scatter(lam_group *g, const lam_parts *p, const void *whole,
                                   void *mine) {
  const int64_t first = p->first[g->rank], own = p->first[g->rank + 1] - first;
  const lam_peer_sum s = {.x = matrix(whole, p->outer, p->first[g->size] * p->inner, p->dtype),
                          .y = matrix(mine, p->outer, own * p->inner, p->dtype),
                          .y_col = first * p->inner};
  return run_sum(g, &s);
}

static lam_peer_gather gather_of(const lam_group *g, const lam_parts *p, const void *mine,
                                 void *whole) {
  lam_peer_gather gather = {.mine = mine, .whole = whole};
  for (int r = 0; r < g->size; r++) {
    const lam_blocks b = lam_parts_of(p, r, g->size);
    gather.bytes[r] = b.bytes;
    gather.count[r] = b.count;
    gather.offset[r] = b.offset;
    gather.stride = b.stride;
  }
  return gather;
}

static lam_status run_gather(lam_group *g, const lam_parts *p, const void *mine, void *whole) {
  const lam_peer_gather gather = gather_of(g, p, mine, whole);
  LAM_TRY(lam_peer_come_back(g));
  return lam_peer_gather_run(g->device, &g->peer->peers, &gather, g->stream);
}

lam_status lam_peer_all_gather(lam_group *g, const lam_parts *p, const void *mine, void *whole) {
  return run_gather(g, p, mine, whole);
}

/* All of it is the root's share. */
lam_status lam_peer_broadcast(lam_group *g, const void *x, void *y, uint64_t bytes, int root) {
  int64_t first[LAM_PEERS + 1];
  for (int r = 0; r <= g->size; r++) first[r] = r > root ? (int64_t)bytes : 0;
  const lam_parts parts = {.outer = 1, .inner = 1, .first = first, .dtype = LAM_U8};
  return run_gather(g, &parts, x, y);
}

/* -- beside what is queued next: on the side stream, step by step -- */

static lam_status queue_steps(lam_group *g, const lam_peer_gather *gather, int steps, void *side) {
  const lam_peer *p = g->peer;
  lam_peer_gather one = *gather;
  for (int i = 0; i < steps; i++) {
    one.step = steps > 1 || gather->step ? i + 1 : 0;
    LAM_TRY(lam_peer_gather_run(g->device, &p->peers, &one, side));
    LAM_TRY(p->device->peer->forked(p->line, PEER_SUMS + i, side));
  }
  return LAM_OK;
}

lam_status lam_peer_gather_start(lam_group *g, const lam_parts *p, const void *mine, void *whole,
                                 lam_gather *x) {
  void *side = NULL;
  lam_peer *own = g->peer;
  lam_peer_gather gather = gather_of(g, p, mine, whole);
  const int64_t bytes = p->first[g->size] * p->inner * lam_dtype_bytes(p->dtype);
  if (bytes < lam_peer_aside_from) return run_gather(g, p, mine, whole);
  LAM_TRY(lam_peer_come_back(g));
  LAM_TRY(own->device->peer->fork(own->line, PEER_SUMS, g->stream, &side));
  gather.step = x->by_source;
  own->gathers = x->by_source ? g->size - 1 : 1;
  own->waited = 0;
  x->is_aside = true;
  LAM_TRY(queue_steps(g, &gather, own->gathers, side));
  lam_peer_tell_busy(g);
  return LAM_OK;
}

/* The side stream's later steps come after its earlier ones. */
lam_status lam_peer_gather_wait(lam_group *g, const lam_gather *x, int step) {
  lam_peer *own = g->peer;
  (void)x;
  if (step <= own->waited) return LAM_OK;
  own->waited = step;
  lam_peer_tell_busy(g);
  return own->device->peer->join(own->line, PEER_SUMS + step - 1, g->stream);
}
