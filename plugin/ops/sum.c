/* sum.c: partial products summed over the group, chunk by chunk.
 *
 * While the sum of one chunk travels, the next is multiplied:
 *     multiply 0, start 0; multiply 1, start 1, finish 0; multiply 2, start 2, finish 1; ...
 * Invariant: partial sums stay float32; bias and rounding come once, with the sum; at most two
 * chunks are under way. Leaves the product to the caller, how a sum travels to comm/. */
#include <string.h>

#include "plugin/ops/common.h"

/* Rows [first, first + n) that lie in `keep`, as rows of the chunk: where they start and how
 * many. */
static int64_t overlap(lam_row_range keep, int64_t first, int64_t n, int64_t *out_start) {
  const int64_t begin = keep.first > first ? keep.first : first;
  const int64_t keep_end = keep.first + keep.n, end = keep_end < first + n ? keep_end : first + n;
  *out_start = begin < end ? begin - first : 0;
  return begin < end ? end - begin : 0;
}

/* y's rows that come out of chunk i. */
static void place_sum(const lam_part_sum *s, int i, lam_sum *sum) {
  const lam_row_range all = {0, s->chunks.rows, s->chunks.rows};
  const lam_row_range keep = s->call->attr.seq ? lam_seq_rows(s->call, s->y_tensor) : all;
  const int64_t first = lam_chunk_first(s->chunks, i), n = lam_chunk_rows(s->chunks, i);
  const int64_t kept = overlap(keep, first, n, &sum->y_first);
  const int64_t at = kept ? first + sum->y_first - keep.first : 0;
  sum->y = lam_matrix_rows(*s->y, at, kept);
  sum->bias = *s->bias;
  sum->scatter = s->call->attr.seq != 0;
  sum->whole = keep.whole, sum->unit = lam_seq_inner(s->y_tensor), sum->at = first;
}

static void place_norm(const lam_part_sum *s, int i, lam_sum *sum) {
  const int64_t first = lam_chunk_first(s->chunks, i), n = lam_chunk_rows(s->chunks, i);
  sum->residual = lam_matrix_rows(*s->residual, first, n);
  sum->normed = lam_matrix_rows(*s->normed, first, n);
  sum->gain = *s->gain;
  sum->eps = (float)s->call->attr.eps;
}

static lam_status start_chunk(const lam_part_sum *s, int i, lam_sum *sum) {
  lam_group *g = s->call->group;
  *sum = (lam_sum){0};
  place_sum(s, i, sum);
  if (s->gain) place_norm(s, i, sum);
  const int64_t first = lam_chunk_first(s->chunks, i), n = lam_chunk_rows(s->chunks, i);
  if (s->own) sum->own = lam_matrix_rows(*s->own, first, n);
  LAM_TRY(lam_group_partial(g, n, s->y->cols, sum));
  if (!s->own || sum->part.data != sum->own.data)
    LAM_TRY(s->part(s, first, &lam_op_absent, &sum->part));
  return lam_group_sum_start(g, sum);
}

/* A norm's eps, which all ranks must have alike. */
static int64_t norm_extra(const lam_part_sum *s) {
  const float eps = (float)s->call->attr.eps;
  uint32_t bits;
  memcpy(&bits, &eps, sizeof bits);
  return s->gain ? (int64_t)bits << 32 : 0;
}

/* extra tells apart calls that cut differently, and keeping all rows from keeping own ones. */
static lam_status announce(const lam_part_sum *s) {
  const int64_t seq = s->call->attr.seq;
  const lam_comm_op op = lam_op_announcement(s->call, s->y_tensor, s->y->dtype, seq ? 0 : -1, seq,
                                             seq ? -s->chunks.n : s->chunks.n + norm_extra(s));
  return lam_group_begin_sums(s->call->group, &op);
}

static lam_status multiply_alone(const lam_part_sum *s) {
  if (s->chunks.n == 1) return s->part(s, 0, s->bias, s->y);
  for (int i = 0; i < s->chunks.n; i++) {
    const int64_t first = lam_chunk_first(s->chunks, i), n = lam_chunk_rows(s->chunks, i);
    const lam_matrix y = lam_matrix_rows(*s->y, first, n);
    LAM_TRY(s->part(s, first, s->bias, &y));
  }
  return LAM_OK;
}

lam_status lam_part_sum_start(const lam_part_sum *s, lam_sum *last) {
  if (!lam_op_peers(s->call)) return multiply_alone(s);
  LAM_TRY(announce(s));
  LAM_TRY(start_chunk(s, 0, last));
  for (int i = 1; i < s->chunks.n; i++) {
    lam_sum next;
    LAM_TRY(start_chunk(s, i, &next));
    LAM_TRY(lam_group_sum_finish(s->call->group, last));
    *last = next;
  }
  return LAM_OK;
}

lam_status lam_part_sum_finish(const lam_part_sum *s, lam_sum *last) {
  return lam_op_peers(s->call) ? lam_group_sum_finish(s->call->group, last) : LAM_OK;
}

lam_status lam_part_sum_run(const lam_part_sum *s) {
  lam_sum last;
  LAM_TRY(lam_part_sum_start(s, &last));
  return lam_part_sum_finish(s, &last);
}
