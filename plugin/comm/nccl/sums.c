/* sums.c: sums of partial products over NCCL: the second level of tiling.
 *
 * A product writes its f32 part into scratch. When it starts, NCCL sums it where it lies, on the link's
 * stream, beside the next chunk's product; to finish is to let the stream wait for that, add the bias or
 * the residual and round, once.
 * Invariant: parts are summed in f32, whatever y is; in the order of the calls, on all ranks.
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

/* All of it, where a rank keeps some of its rows alone, too: a chunk's rows may all be one rank's. */
lam_status lam_nccl_sum_start(lam_group *g, lam_sum *s) {
  const lam_link_op op = {.what = LAM_LINK_SUM,
                          .x = s->part.data,
                          .y = s->part.data,
                          .n = s->part.rows * s->part.cols,
                          .dtype = LAM_F32};
  const lam_link_after after = {g->stream, -1};
  if (is_empty(s)) return LAM_OK;
  return lam_nccl_start(g->nccl, &g->nccl->all, &op, 1, after, &g->nccl->chunks[s->slot].number);
}

lam_status lam_nccl_sum_finish(lam_group *g, lam_sum *s) {
  lam_nccl *n = g->nccl;
  nccl_chunk *c = &n->chunks[s->slot];
  if (!is_empty(s)) LAM_TRY(lam_nccl_join(n, &n->all, c->number, g->stream));
  const lam_matrix mine = lam_matrix_rows(s->part, s->y_first, s->y.rows);
  if (s->y.rows > 0)
    LAM_TRY(lam_device_sum(g->device, lam_context_workers(g->ctx), &mine, 1, s->bias, s->residual,
                           s->y, g->stream));
  lam_device_give_back(g->device, c->data, g->stream);
  c->data = NULL;
  n->finished++;
  return LAM_OK;
}
