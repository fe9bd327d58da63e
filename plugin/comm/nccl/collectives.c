/* collectives.c: sums and gathers by NCCL.
 *
 * Even shares that lie one after another are NCCL's own operation; uneven ones a broadcast from, or a sum
 * to, each rank, all in one kernel; shares that lie in strips go through scratch in which they do not.
 * Invariant: which of these it is follows from what all ranks announced alike.
 * Leaves how ranks' numbers are summed, and in which order, to NCCL. */
#include "plugin/comm/nccl/nccl.h"

static int64_t share(const lam_parts *p, int rank) { /* elements */
  return p->outer * (p->first[rank + 1] - p->first[rank]) * p->inner;
}

static bool is_even(const lam_group *g, const lam_parts *p) {
  for (int r = 1; r < g->size; r++)
    if (share(p, r) != share(p, 0)) return false;
  return true;
}

lam_status lam_nccl_all_reduce(lam_group *g, const void *x, void *y, int64_t n, lam_dtype t) {
  const lam_link_op op = {.what = LAM_LINK_SUM, .x = x, .y = y, .n = n, .dtype = t};
  return lam_nccl_run(g, &op, n > 0);
}

lam_status lam_nccl_reduce(lam_group *g, const void *x, void *y, int64_t n, lam_dtype t, int root) {
  const lam_link_op op = {
      .what = LAM_LINK_SUM_TO, .peer = root, .x = x, .y = y, .n = n, .dtype = t};
  return lam_nccl_run(g, &op, n > 0);
}

lam_status lam_nccl_broadcast(lam_group *g, const void *x, void *y, uint64_t bytes, int root) {
  const lam_link_op op = {.what = LAM_LINK_BROADCAST,
                          .peer = root,
                          .x = g->rank == root ? x : y,
                          .y = y,
                          .n = (int64_t)bytes,
                          .dtype = LAM_U8};
  return lam_nccl_run(g, &op, bytes > 0);
}

/* ---- Shares that lie one after another: of rank r from the sum of those before ------------------ */

/* Into ops, of room for each rank; how many they are. */
static int gather_ops(const lam_group *g, const lam_parts *p, const void *mine, void *whole,
                      lam_link_op *ops) {
  const int64_t size = lam_dtype_bytes(p->dtype);
  char *at = whole;
  int n = 0;
  ops[0] = (lam_link_op){
      .what = LAM_LINK_GATHER, .x = mine, .y = whole, .n = share(p, 0) * size, .dtype = LAM_U8};
  if (is_even(g, p)) return share(p, 0) > 0;
  for (int r = 0; r < g->size; at += share(p, r++) * size)
    if (share(p, r) > 0)
      ops[n++] = (lam_link_op){.what = LAM_LINK_BROADCAST,
                               .peer = r,
                               .x = r == g->rank ? mine : at,
                               .y = at,
                               .n = share(p, r) * size,
                               .dtype = LAM_U8};
  return n;
}

static lam_status gather_dense(lam_group *g, const lam_parts *p, const void *mine, void *whole) {
  lam_link_op ops[LAM_GROUP_RANKS];
  return lam_nccl_run(g, ops, gather_ops(g, p, mine, whole, ops));
}

static lam_status scatter_dense(lam_group *g, const lam_parts *p, const void *whole, void *mine) {
  const int64_t size = lam_dtype_bytes(p->dtype);
  lam_link_op ops[LAM_GROUP_RANKS] = {
      {.what = LAM_LINK_SUM_SHARES, .x = whole, .y = mine, .n = share(p, 0), .dtype = p->dtype}};
  if (is_even(g, p)) return lam_nccl_run(g, ops, share(p, 0) > 0);
  const char *at = whole;
  int n = 0;
  for (int r = 0; r < g->size; at += share(p, r++) * size)
    if (share(p, r) > 0)
      ops[n++] = (lam_link_op){.what = LAM_LINK_SUM_TO,
                               .peer = r,
                               .x = at,
                               .y = r == g->rank ? mine : NULL,
                               .n = share(p, r),
                               .dtype = p->dtype};
  return lam_nccl_run(g, ops, n);
}

/* ---- Gathers beside products ------------------------------------------------------------------- */

/* From the rank `step` further on, and to the one as far back: every link of every rank is at work. */
static int step_ops(const lam_group *g, const lam_parts *p, const void *mine, char *whole, int step,
                    lam_link_op *ops) {
  const int from = (g->rank + step) % g->size, to = (g->rank - step + g->size) % g->size;
  const int64_t size = lam_dtype_bytes(p->dtype);
  int n = 0;
  if (share(p, g->rank) > 0)
    ops[n++] = (lam_link_op){.what = LAM_LINK_SEND,
                             .peer = to,
                             .x = mine,
                             .n = share(p, g->rank) * size,
                             .dtype = LAM_U8};
  if (share(p, from) > 0)
    ops[n++] = (lam_link_op){.what = LAM_LINK_RECV,
                             .peer = from,
                             .y = whole + p->first[from] * p->inner * size,
                             .n = share(p, from) * size,
                             .dtype = LAM_U8};
  return n;
}

/* A step without a byte is queued all the same: what waits for it waits for those before. */
lam_status lam_nccl_gather_start(lam_group *g, const lam_parts *p, const void *mine, void *whole,
                                 lam_gather *x) {
  const int steps = x->by_source ? g->size - 1 : 1;
  lam_link_op ops[LAM_GROUP_RANKS];
  x->is_aside = true;
  for (int i = 0; i < steps; i++) {
    const int n = x->by_source ? step_ops(g, p, mine, whole, i + 1, ops)
                               : gather_ops(g, p, mine, whole, ops);
    LAM_TRY(lam_nccl_start_aside(g, ops, n, &x->number[i]));
  }
  return LAM_OK;
}

lam_status lam_nccl_gather_wait(lam_group *g, const lam_gather *x, int step) {
  return lam_nccl_join_aside(g, x->number[step - 1]);
}

/* ---- Strips ------------------------------------------------------------------------------------ */

static bool lies_dense(const lam_parts *p) { return p->outer == 1; }

static lam_matrix strips(const void *data, int64_t rows, int64_t cols, int64_t stride,
                         lam_dtype t) {
  return (lam_matrix){.data = (void *)(uintptr_t)data,
                      .rows = rows,
                      .cols = cols,
                      .row_stride = stride,
                      .col_stride = 1,
                      .dtype = t};
}

/* Each rank's share between the whole and `dense`, where shares lie one after another. */
static lam_status copy_shares(const lam_group *g, const lam_parts *p, const void *whole,
                              void *dense, bool to_dense) {
  const int64_t size = lam_dtype_bytes(p->dtype), line = p->first[g->size] * p->inner;
  char *at = dense;
  for (int r = 0; r < g->size; at += share(p, r++) * size) {
    const int64_t first = p->first[r] * p->inner, cols = p->first[r + 1] * p->inner - first;
    const lam_matrix a = strips((const char *)whole + first * size, p->outer, cols, line, p->dtype);
    const lam_matrix b = strips(at, p->outer, cols, cols, p->dtype);
    if (cols == 0 || p->outer == 0) continue;
    LAM_TRY(lam_device_copy(g->device, lam_context_workers(g->ctx), to_dense ? a : b,
                            to_dense ? b : a, g->stream));
  }
  return LAM_OK;
}

static lam_status borrow_whole(const lam_group *g, const lam_parts *p, void **out) {
  const int64_t n = p->outer * p->first[g->size] * p->inner;
  return lam_device_borrow(g->device, (uint64_t)(n * lam_dtype_bytes(p->dtype)), g->stream, out);
}

lam_status lam_nccl_all_gather(lam_group *g, const lam_parts *p, const void *mine, void *whole) {
  void *dense = NULL;
  if (lies_dense(p)) return gather_dense(g, p, mine, whole);
  LAM_TRY(borrow_whole(g, p, &dense));
  lam_status status = gather_dense(g, p, mine, dense);
  if (status == LAM_OK) status = copy_shares(g, p, whole, dense, false);
  lam_device_give_back(g->device, dense, g->stream);
  return status;
}

lam_status lam_nccl_reduce_scatter(lam_group *g, const lam_parts *p, const void *whole,
                                   void *mine) {
  void *dense = NULL;
  if (lies_dense(p)) return scatter_dense(g, p, whole, mine);
  LAM_TRY(borrow_whole(g, p, &dense));
  lam_status status = copy_shares(g, p, whole, dense, true);
  if (status == LAM_OK) status = scatter_dense(g, p, dense, mine);
  lam_device_give_back(g->device, dense, g->stream);
  return status;
}
