/* linear.c: a linear layer, whole or with its out features split over the ranks of a group.
 *
 * Column split: every rank holds some rows of w; outputs stay split for the next layer, or are
 * gathered. Its input gradient is a sum over the ranks. `linear` is the same with nobody else
 * there.
 * Invariant: alone, a product goes straight into the caller's memory: no scratch, no copy.
 * Leaves the row split to linear_row.c, sums to sum.c, sequence splits to gather.c. */
#include "plugin/ops/rows.h"

/* x [T, K]  w [N_r, K]  b [N_r]?  y [T, N_r], gathered [T, N]  aux [T, N_r]?  seq: x [T_r, K] */

static bool gathers(const lam_op_call *call) { return call->attr.gather && lam_op_peers(call); }

/* x's rows are multiplied as they come from the ranks that have them. */
static bool by_source(const lam_op_call *call) {
  return !gathers(call) && lam_chunks_by_source(call, lam_seq_gathered_rows(call, 0),
                                                call->in[0].cols, call->in[0].cols);
}

static lam_status multiply_rows(const lam_op_call *call, const void *user, int64_t first,
                                int64_t n) {
  lam_gemm g = *(const lam_gemm *)user;
  if (n == g.a.rows) return lam_op_product(call, &g);
  g.a = lam_matrix_rows(g.a, first, n);
  g.d = lam_matrix_rows(g.d, first, n);
  if (lam_matrix_here(g.aux)) g.aux = lam_matrix_rows(g.aux, first, n);
  return lam_op_product(call, &g);
}

static lam_status multiply(const lam_op_call *call, lam_scratch *s) {
  lam_shares columns;
  lam_coming x;
  lam_gemm g = lam_op_gemm(&call->in[0], &call->in[1], &call->in[2], &call->out[0]);
  g.aux = call->out[1];
  g.act = (lam_act)call->attr.act;
  lam_gemm_more scales;
  if (lam_dtype_is_f8(g.a.dtype)) scales = lam_op_scales(call, 3, 4), g.more = &scales;
  LAM_TRY(lam_shares_from_own(call, "w's rows", g.b.rows, &columns));
  if (!call->attr.seq && !gathers(call)) return lam_op_product(call, &g);
  LAM_TRY(lam_seq_gather_start(call, 0, by_source(call), s, &x));
  g.a = x.whole;
  if (!gathers(call))
    return lam_seq_gather_finish(call, &x, lam_seq_gather_each(call, &x, multiply_rows, &g));
  LAM_TRY(lam_seq_gather_finish(call, &x, LAM_OK));
  return lam_columns_product(call, s, &columns, &g);
}

static lam_status check_forward(const lam_op_call *call) {
  const lam_matrix x = call->in[0], w = call->in[1], b = call->in[2];
  LAM_TRY(lam_op_agree(call, "x's last dimension", x.cols, "w's in features", w.cols));
  if (lam_matrix_here(b)) LAM_TRY(lam_op_agree(call, "b's length", b.cols, "w's rows", w.rows));
  if (gathers(call)) LAM_TRY(lam_op_contiguous(call, "y", call->out[0]));
  return lam_seq_check_share(call, "x", call->in_tensor[0]);
}

void lam_op_linear_col_needs(const lam_op_call *call, lam_op_needs *out) {
  *out = (lam_op_needs){lam_seq_gather_bytes(call, 0), 1};
  if (by_source(call)) out->n_chunks = (uint32_t)lam_op_size(call);
  if (!gathers(call)) return;
  const int64_t rows = lam_seq_gathered_rows(call, 0);
  out->scratch_bytes += lam_columns_product_bytes(call, rows, call->in[1].rows);
  out->n_chunks = (uint32_t)lam_chunks_asked(call, rows, 1).n;
}

lam_status lam_op_linear_col_run(const lam_op_call *call) {
  LAM_TRY(check_forward(call));
  return lam_op_with_scratch(call, lam_op_linear_col_needs, multiply);
}

/* -- gradients: dy [T, N_r]  dx [T, K] (seq: [T_r, K])  dw [N_r, K]  db [N_r]? -- */

static lam_status dgrad_part(const lam_part_sum *s, int64_t first, const lam_matrix *bias,
                             const lam_matrix *d) {
  const lam_matrix *w = s->user, turned = lam_matrix_transposed(*w);
  lam_matrix room;
  const lam_matrix *dy = lam_op_rows(&s->call->in[0], first, d->rows, &room);
  lam_gemm g = lam_op_gemm(dy, &turned, bias, d);
  lam_gemm_more scales;
  if (lam_dtype_is_f8(dy->dtype)) scales = lam_op_scales(s->call, 2, 3), g.more = &scales;
  return lam_op_product(s->call, &g);
}

static lam_part_sum dgrad_sum(const lam_op_call *call, const lam_matrix *w) {
  return (lam_part_sum){.call = call,
                        .part = dgrad_part,
                        .user = w,
                        .y_tensor = call->out_tensor[0],
                        .bias = &lam_op_absent,
                        .y = &call->out[0],
                        .chunks = lam_chunks_for_sum(call, call->in[0].rows, w->cols)};
}

static lam_status check_dgrad(const lam_op_call *call, lam_matrix w) {
  LAM_TRY(lam_op_agree(call, "dy's last dimension", call->in[0].cols, "w's rows", w.rows));
  return lam_seq_check_whole(call, "dy", call->in_tensor[0]);
}

static lam_status check_wgrad(const lam_op_call *call) {
  LAM_TRY(lam_seq_check_whole(call, "dy", call->in_tensor[0]));
  LAM_TRY(lam_seq_check_share(call, "x", call->in_tensor[1]));
  return lam_op_agree(call, "the number of rows of dy", call->in[0].rows, "that of x",
                      lam_seq_gathered_rows(call, 1));
}

static lam_status dgrad(const lam_op_call *call, lam_scratch *s) {
  const lam_part_sum sum = dgrad_sum(call, &call->in[1]);
  (void)s;
  return lam_part_sum_run(&sum);
}

void lam_op_linear_col_dgrad_needs(const lam_op_call *call, lam_op_needs *out) {
  *out =
      (lam_op_needs){0, (uint32_t)lam_chunks_for_sum(call, call->in[0].rows, call->in[1].cols).n};
}

lam_status lam_op_linear_col_dgrad_run(const lam_op_call *call) {
  LAM_TRY(check_dgrad(call, call->in[1]));
  return lam_op_with_scratch(call, NULL, dgrad);
}

static lam_status wgrad(const lam_op_call *call, lam_scratch *s) {
  lam_matrix x;
  LAM_TRY(lam_seq_gather(call, 1, s, &x));
  return lam_op_wgrad(call, call->in[0], x, call->out[0], call->out[1]);
}

void lam_op_linear_col_wgrad_needs(const lam_op_call *call, lam_op_needs *out) {
  *out = (lam_op_needs){lam_seq_gather_bytes(call, 1), 1};
}

lam_status lam_op_linear_col_wgrad_run(const lam_op_call *call) {
  LAM_TRY(check_wgrad(call));
  return lam_op_with_scratch(call, lam_op_linear_col_wgrad_needs, wgrad);
}

/* Both: x is gathered beside the input gradient's products, and their sum travels beside the weight
 * gradient's. dy x w */
static lam_status both(const lam_op_call *call, lam_scratch *s) {
  const lam_part_sum sum = dgrad_sum(call, &call->in[2]);
  lam_sum last;
  lam_coming x;
  LAM_TRY(lam_seq_gather_start(call, 1, false, s, &x));
  LAM_TRY(lam_seq_gather_finish(call, &x, lam_part_sum_start(&sum, &last)));
  LAM_TRY(lam_op_wgrad(call, call->in[0], x.whole, call->out[1], call->out[2]));
  return lam_part_sum_finish(&sum, &last);
}

void lam_op_linear_col_bwd_needs(const lam_op_call *call, lam_op_needs *out) {
  *out = (lam_op_needs){lam_seq_gather_bytes(call, 1),
                        (uint32_t)lam_chunks_for_sum(call, call->in[0].rows, call->in[2].cols).n};
}

lam_status lam_op_linear_col_bwd_run(const lam_op_call *call) {
  LAM_TRY(check_dgrad(call, call->in[2]));
  LAM_TRY(check_wgrad(call));
  return lam_op_with_scratch(call, lam_op_linear_col_bwd_needs, both);
}

/* -- dz = dy * act'(aux) -- */

lam_status lam_op_act_bwd_run(const lam_op_call *call) {
  const lam_matrix dy = call->in[0], aux = call->in[1];
  LAM_TRY(lam_op_agree(call, "aux's last dimension", aux.cols, "dy's", dy.cols));
  LAM_TRY(lam_op_agree(call, "aux's number of rows", aux.rows, "dy's", dy.rows));
  return lam_device_act_bwd(call->device, call->workers, (lam_act)call->attr.act, false, dy, aux,
                            call->out[0], call->stream);
}
