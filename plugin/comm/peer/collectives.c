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

static lam_status run_gather(lam_group *g, const lam_parts *p, const void *mine, void *whole) {
  lam_peer_gather gather = {.mine = mine, .whole = whole};
  for (int r = 0; r < g->size; r++) {
    const lam_blocks b = lam_parts_of(p, r, g->size);
    gather.bytes[r] = b.bytes;
    gather.count[r] = b.count;
    gather.offset[r] = b.offset;
    gather.stride = b.stride;
  }
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
