/* linear_row.c: a linear layer whose in features are split over the ranks of a group.
 *
 * Every rank holds some columns of w and multiplies its columns of x (split=1: they are all it has;
 * split=0: x is whole and it takes them); the partial products are summed.
 * Invariant: bias comes once, with the sum, and nothing is summed in the gradients.
 * Leaves sums to sum.c, sequence splits and gathered columns to gather.c. */
#include "plugin/ops/rows.h"

/* x [T, K_r], split=0: [T, K]  w [N, K_r]  b [N]?  y [T, N], seq: [T_r, N] */

/* This rank's columns of x, input `i`. */
static lam_status own_columns(const lam_op_call *call, int i, lam_matrix *out) {
  lam_shares columns;
  const int64_t cols = call->in[i].cols;
  *out = call->in[i];
  if (call->attr.split) return lam_shares_from_own(call, "x's last dimension", cols, &columns);
  LAM_TRY(lam_shares_from_whole(call, "x's last dimension", cols, &columns));
  if (lam_op_peers(call))
    *out = lam_matrix_cols(*out, lam_shares_begin(&columns, call), lam_shares_own(&columns, call));
  return LAM_OK;
}

static lam_status forward_part(const lam_part_sum *s, int64_t first, const lam_matrix *bias,
                               const lam_matrix *d) {
  lam_matrix room;
  const lam_matrix *x = lam_op_rows(s->user, first, d->rows, &room);
  lam_gemm g = lam_op_gemm(x, &s->call->in[1], bias, d);
  lam_gemm_more scales;
  if (lam_dtype_is_f8(x->dtype)) scales = lam_op_scales(s->call, 3, 4), g.more = &scales;
  return lam_op_product(s->call, &g);
}

static lam_status forward(const lam_op_call *call, lam_scratch *s) {
  const lam_matrix w = call->in[1];
  lam_matrix x;
  (void)s;
  LAM_TRY(own_columns(call, 0, &x));
  LAM_TRY(lam_op_agree(call, "this rank's share of x's last dimension", x.cols, "w's in features",
                       w.cols));
  const lam_part_sum sum = {.call = call,
                            .part = forward_part,
                            .user = &x,
                            .y_tensor = call->out_tensor[0],
                            .bias = &call->in[2],
                            .y = &call->out[0],
                            .chunks = lam_chunks_for_sum(call, x.rows, w.rows)};
  return lam_part_sum_run(&sum);
}

void lam_op_linear_row_needs(const lam_op_call *call, lam_op_needs *out) {
  *out =
      (lam_op_needs){0, (uint32_t)lam_chunks_for_sum(call, call->in[0].rows, call->in[1].rows).n};
}

lam_status lam_op_linear_row_run(const lam_op_call *call) {
  const lam_matrix w = call->in[1], b = call->in[2];
  if (lam_matrix_here(b)) LAM_TRY(lam_op_agree(call, "b's length", b.cols, "w's rows", w.rows));
  LAM_TRY(lam_seq_check_whole(call, "x", call->in_tensor[0]));
  return lam_op_with_scratch(call, NULL, forward);
}

/* -- gradients: dy [T, N], seq: [T_r, N]  dx as x  dw [N, K_r]  db [N]? -- */

static bool gathers(const lam_op_call *call) { return !call->attr.split && lam_op_peers(call); }

/* dy's rows are multiplied as they come from the ranks that have them. */
static bool by_source(const lam_op_call *call) {
  return !gathers(call) && lam_chunks_by_source(call, lam_seq_gathered_rows(call, 0),
                                                call->in[0].cols, call->in[0].cols);
}

static lam_status dgrad_rows(const lam_op_call *call, const void *user, int64_t first, int64_t n) {
  lam_gemm g = *(const lam_gemm *)user;
  if (n == g.a.rows) return lam_op_product(call, &g);
  g.a = lam_matrix_rows(g.a, first, n);
  g.d = lam_matrix_rows(g.d, first, n);
  return lam_op_product(call, &g);
}

/* out: dy whole, for the weight gradient. */
static lam_status dgrad_of(const lam_op_call *call, lam_scratch *s, lam_matrix w,
                           lam_matrix *out_dy) {
  lam_gemm g = {.b = lam_matrix_transposed(w), .d = call->out[0]};
  lam_shares columns;
  lam_coming dy;
  LAM_TRY(lam_shares_from_own(call, "w's in features", w.cols, &columns));
  LAM_TRY(lam_seq_gather_start(call, 0, by_source(call), s, &dy));
  *out_dy = g.a = dy.whole;
  if (!gathers(call))
    return lam_seq_gather_finish(call, &dy, lam_seq_gather_each(call, &dy, dgrad_rows, &g));
  LAM_TRY(lam_seq_gather_finish(call, &dy, LAM_OK));
  return lam_columns_product(call, s, &columns, &g);
}

static uint64_t dgrad_bytes(const lam_op_call *call, lam_matrix w) {
  return gathers(call) ? lam_columns_product_bytes(call, lam_seq_gathered_rows(call, 0), w.cols)
                       : 0;
}

static lam_status check_dgrad(const lam_op_call *call, lam_matrix w) {
  lam_shares columns;
  LAM_TRY(lam_op_agree(call, "dy's last dimension", call->in[0].cols, "w's rows", w.rows));
  LAM_TRY(lam_shares_from_own(call, "w's in features", w.cols, &columns));
  if (gathers(call)) LAM_TRY(lam_op_contiguous(call, "dx", call->out[0]));
  return lam_seq_check_share(call, "dy", call->in_tensor[0]);
}

static lam_status check_wgrad(const lam_op_call *call) {
  LAM_TRY(lam_seq_check_share(call, "dy", call->in_tensor[0]));
  LAM_TRY(lam_seq_check_whole(call, "x", call->in_tensor[1]));
  return lam_op_agree(call, "the number of rows of x", call->in[1].rows, "that of dy",
                      lam_seq_gathered_rows(call, 0));
}

static lam_status dgrad(const lam_op_call *call, lam_scratch *s) {
  lam_matrix dy;
  return dgrad_of(call, s, call->in[1], &dy);
}

static uint32_t dgrad_chunks(const lam_op_call *call) {
  if (by_source(call)) return (uint32_t)lam_op_size(call);
  return gathers(call) ? (uint32_t)lam_chunks_asked(call, lam_seq_gathered_rows(call, 0), 1).n : 1;
}

void lam_op_linear_row_dgrad_needs(const lam_op_call *call, lam_op_needs *out) {
  *out = (lam_op_needs){lam_seq_gather_bytes(call, 0) + dgrad_bytes(call, call->in[1]),
                        dgrad_chunks(call)};
}

lam_status lam_op_linear_row_dgrad_run(const lam_op_call *call) {
  LAM_TRY(check_dgrad(call, call->in[1]));
  return lam_op_with_scratch(call, lam_op_linear_row_dgrad_needs, dgrad);
}

static lam_status wgrad(const lam_op_call *call, lam_scratch *s) {
  lam_matrix dy, x;
  LAM_TRY(own_columns(call, 1, &x));
  LAM_TRY(lam_seq_gather(call, 0, s, &dy));
  return lam_op_wgrad(call, dy, x, call->out[0], call->out[1]);
}

void lam_op_linear_row_wgrad_needs(const lam_op_call *call, lam_op_needs *out) {
  *out = (lam_op_needs){lam_seq_gather_bytes(call, 0), 1};
}

lam_status lam_op_linear_row_wgrad_run(const lam_op_call *call) {
  LAM_TRY(check_wgrad(call));
  return lam_op_with_scratch(call, lam_op_linear_row_wgrad_needs, wgrad);
}

/* Both, from one gathered dy. dy x w */
static lam_status both(const lam_op_call *call, lam_scratch *s) {
  lam_matrix dy, x;
  LAM_TRY(own_columns(call, 1, &x));
  LAM_TRY(lam_op_agree(call, "this rank's share of x's last dimension", x.cols, "w's in features",
                       call->in[2].cols));
  LAM_TRY(dgrad_of(call, s, call->in[2], &dy));
  return lam_op_wgrad(call, dy, x, call->out[1], call->out[2]);
}

void lam_op_linear_row_bwd_needs(const lam_op_call *call, lam_op_needs *out) {
  *out = (lam_op_needs){lam_seq_gather_bytes(call, 0) + dgrad_bytes(call, call->in[2]),
                        dgrad_chunks(call)};
}

lam_status lam_op_linear_row_bwd_run(const lam_op_call *call) {
  LAM_TRY(check_dgrad(call, call->in[2]));
  LAM_TRY(check_wgrad(call));
  return lam_op_with_scratch(call, lam_op_linear_row_bwd_needs, both);
}
