/* sums.c: sums of partial products over NCCL: the second level of tiling.
 *
 * A product writes its f32 part into scratch. When it starts, NCCL sums it where it lies, on the link's
 * stream, beside the next chunk's product; to finish is to let the stream wait for that, add the bias or
 * the residual and round, once. Where each rank keeps its own rows alone, nobody is sent those of others:
 * even shares are a reduce-scatter, others a sum to each rank that has rows in the chunk, in one kernel.
 * Invariant: parts are summed in f32, whatever y is; in the order of the calls, on all ranks; whose rows
 * are whose follows from what all announced alike.
 * Leaves bias, residual and rounding to the device. */
#include "plugin/comm/nccl/nccl.h"

lam_status lam_nccl_partial(lam_group *g, int64_t rows, int64_t cols, lam_sum *s) {
  lam_nccl *n = g->nccl;
  if (n->taken - n->finished >= NCCL_SUMS)
    return lam_fail(LAM_FAILED_PRECONDITION,
                    "partial sums: %d chunks are under way, finish one first", NCCL_SUMS);
  s->slot = (int)(n->taken % NCCL_SUMS);
  LAM_TRY(lam_device_borrow(g->device, (uint64_t)(rows * cols) * sizeof(float), g->stream,
                            &n->chunks[s->slot].data));
  s->part = (lam_matrix){.data = n->chunks[s->slot].data,
                         .rows = rows,
                         .cols = cols,
                         .row_stride = cols,
                         .col_stride = 1,
                         .dtype = LAM_F32};
  n->taken++;
  return LAM_OK;
}

static bool is_empty(const lam_sum *s) { return s->part.rows == 0 || s->part.cols == 0; }

/* The chunk's row at which a rank's own begin; rank == size gives where the last one's end. */
static int64_t own_begin(const lam_group *g, const lam_sum *s, int rank) {
  const int64_t at = lam_share_begin(s->whole, s->unit, rank, g->size) - s->at;
  return at < 0 ? 0 : at < s->part.rows ? at : s->part.rows;
}

static int64_t own_rows(const lam_group *g, const lam_sum *s, int rank) {
  return own_begin(g, s, rank + 1) - own_begin(g, s, rank);
}

/* A sum of some of the part's rows, in their place. */
static lam_link_op sum_of_rows(lam_link_what what, const lam_sum *s, int64_t first, int64_t n) {
  float *at = (float *)s->part.data + first * s->part.cols;
  return (lam_link_op){.what = what, .x = at, .y = at, .n = n * s->part.cols, .dtype = LAM_F32};
}

/* One for each rank that has rows of its own in the chunk; or one for all, where they are as many. */
static int sums_to_owners(const lam_group *g, const lam_sum *s, lam_link_op *ops) {
  int n = 0;
  bool is_even = true;
  for (int r = 0; r < g->size; r++) {
    const int64_t rows = own_rows(g, s, r);
    is_even = is_even && rows == own_rows(g, s, 0);
    if (rows == 0) continue;
    ops[n] = sum_of_rows(LAM_LINK_SUM_TO, s, own_begin(g, s, r), rows);
    ops[n++].peer = r;
  }
  if (!is_even) return n;
  void *own = ops[g->rank].y;
  ops[0] = sum_of_rows(LAM_LINK_SUM_SHARES, s, 0, own_rows(g, s, 0));
  ops[0].y = own;
  return 1;
}

lam_status lam_nccl_sum_start(lam_group *g, lam_sum *s) {
  lam_link_op ops[LAM_GROUP_RANKS];
  if (is_empty(s)) return LAM_OK;
  ops[0] = sum_of_rows(LAM_LINK_SUM, s, 0, s->part.rows);
  const int n = s->scatter ? sums_to_owners(g, s, ops) : 1;
  return lam_nccl_start_aside(g, ops, n, &g->nccl->chunks[s->slot].number);
}

lam_status lam_nccl_sum_finish(lam_group *g, lam_sum *s) {
  lam_nccl *n = g->nccl;
  nccl_chunk *c = &n->chunks[s->slot];
  if (!is_empty(s)) LAM_TRY(lam_nccl_join_aside(g, c->number));
  const lam_matrix mine = lam_matrix_rows(s->part, s->y_first, s->y.rows);
  if (s->y.rows > 0)
    LAM_TRY(lam_device_sum(g->device, lam_context_workers(g->ctx), &mine, 1, s->bias, s->residual,
                           s->y, g->stream));
  lam_device_give_back(g->device, c->data, g->stream);
  c->data = NULL;
  n->finished++;
  return LAM_OK;
}
