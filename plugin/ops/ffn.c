/* ffn.c: a feed-forward block whose hidden features are split over the ranks of a group: both
 * products in one call, one sum.
 *
 * Every rank holds some rows of w1 and the same columns of w2, so the hidden activations never
 * leave it. Rows go in chunks: the hidden part of one chunk is all that scratch holds.
 * Invariant: the pre-activation is written where it was asked for, and nowhere else unless gated.
 * Leaves the gradients to ffn_grad.c, sums to sum.c. */
#include "plugin/ops/rows.h"

/* x [T, K]  w1 [F_r, K]  b1 [F_r]?  w2 [N, F_r]  b2 [N]?  y [T, N]  aux [T, F_r]?
 * gated: w1 [2 F_r, K], b1 and aux alike: gate first, then up.  seq: x [T_r, K], y [T_r, N] */
typedef struct ffn {
  lam_matrix x;         /* all rows */
  lam_matrix h, z;      /* scratch, one chunk: act(z), and z where gated without aux */
  lam_matrix h8, scale; /* fp8: h again, and its scale */
  bool has_h;           /* h and z have all rows, and were made before */
} ffn;

static bool is_f8(const lam_op_call *call) { return lam_dtype_is_f8(call->in[0].dtype); }

/* h = act(x w1^T + b1), or act(gate) * up */
static lam_status hidden(const lam_op_call *call, const lam_matrix *x, const lam_matrix *h,
                         const lam_matrix *aux, const lam_matrix *z) {
  lam_gemm_more scales;
  const lam_act act = (lam_act)call->attr.act;
  const lam_matrix *up = lam_matrix_here(*aux) ? aux : z;
  lam_gemm g = lam_op_gemm(x, &call->in[1], &call->in[2], call->attr.gated ? up : h);
  if (lam_dtype_is_f8(x->dtype)) scales = lam_op_scales(call, 5, 6), g.more = &scales;
  if (!call->attr.gated) {
    g.aux = *aux;
    g.act = act;
    return lam_op_product(call, &g);
  }
  LAM_TRY(lam_op_product(call, &g));
  return lam_device_act(call->device, call->workers, act, true, *up, *h, call->stream);
}

/* fp8: h to fp8 with its own scale, for each chunk, then through w2. */
static __attribute__((noinline)) lam_status through_w2_in_f8(const lam_op_call *call, const ffn *f,
                                                             const lam_matrix *h,
                                                             const lam_matrix *bias,
                                                             const lam_matrix *d) {
  const lam_gemm_more scales = {.a_scale = f->scale, .b_scale = call->in[7]};
  const lam_matrix h8 = lam_matrix_rows(f->h8, 0, h->rows);
  lam_gemm g = lam_op_gemm(&h8, &call->in[3], bias, d);
  g.more = &scales;
  LAM_TRY(lam_device_quantize(call->device, call->workers, *h, h8, f->scale, call->stream));
  return lam_op_product(call, &g);
}

static lam_status through_w2(const lam_op_call *call, const ffn *f, const lam_matrix *h,
                             const lam_matrix *bias, const lam_matrix *d) {
  if (is_f8(call)) return through_w2_in_f8(call, f, h, bias, d);
  const lam_gemm g = lam_op_gemm(h, &call->in[3], bias, d);
  return lam_op_product(call, &g);
}

/* Rows of h as x's come from the ranks that have them. */
static lam_status hidden_rows(const lam_op_call *call, const void *user, int64_t first, int64_t n) {
  const ffn *f = user;
  lam_matrix room[4];
  return hidden(
      call, lam_op_rows(&f->x, first, n, &room[0]), lam_op_rows(&f->h, first, n, &room[1]),
      lam_op_rows(&call->out[1], first, n, &room[2]), lam_op_rows(&f->z, first, n, &room[3]));
}

static lam_status ffn_part(const lam_part_sum *s, int64_t first, const lam_matrix *bias,
                           const lam_matrix *d) {
  const ffn *f = s->user;
  const int64_t n = d->rows;
  lam_matrix room[4];
  if (f->has_h) return through_w2(s->call, f, lam_op_rows(&f->h, first, n, &room[0]), bias, d);
  const lam_matrix *h = lam_op_rows(&f->h, 0, n, &room[0]);
  LAM_TRY(hidden(s->call, lam_op_rows(&f->x, first, n, &room[1]), h,
                 lam_op_rows(&s->call->out[1], first, n, &room[2]),
                 lam_op_rows(&f->z, 0, n, &room[3])));
  return through_w2(s->call, f, h, bias, d);
}

/* All rows at once, with nobody to sum with. */
static lam_status ffn_alone(const lam_op_call *call, const ffn *f) {
  LAM_TRY(hidden(call, &call->in[0], &f->h, &call->out[1], &f->z));
  return through_w2(call, f, &f->h, &call->in[4], &call->out[0]);
}

/* From w1, whose rows are known even where lam_infer cannot look into a packed weight. */
static int64_t hidden_cols(const lam_op_call *call) {
  return call->attr.gated ? call->in[1].rows / 2 : call->in[1].rows;
}

static bool needs_z(const lam_op_call *call) { return call->attr.gated && !call->attr.save; }

static int64_t z_cols(const lam_op_call *call) { return needs_z(call) ? call->in[1].rows : 0; }

/* What is between the two products: as x, where that is fp8 as aux would be. */
static lam_dtype hidden_dtype(const lam_op_call *call) {
  if (!is_f8(call)) return call->in[0].dtype;
  return call->attr.dtype >= 0 ? (lam_dtype)call->attr.dtype : LAM_BF16;
}

static lam_chunks chunks_of(const lam_op_call *call) {
  return lam_chunks_for_ffn(call, lam_seq_gathered_rows(call, 0), call->in[3].rows);
}

/* x's rows come from the ranks that have them, and go through w1 as they do: then all of h is made
 * before the sum is begun, whose chunks are of all ranks at a time. */
static bool by_source(const lam_op_call *call) {
  const int64_t cols = call->in[0].cols;
  if (!call->device->order) return false;
  return lam_chunks_by_source(call, lam_seq_gathered_rows(call, 0), cols, 4 * cols);
}

static lam_status gather_x(const lam_op_call *call, lam_scratch *s, ffn *f) {
  lam_coming x;
  LAM_TRY(lam_seq_gather_start(call, 0, f->has_h, s, &x));
  f->x = x.whole;
  return lam_seq_gather_finish(call, &x,
                               f->has_h ? lam_seq_gather_each(call, &x, hidden_rows, f) : LAM_OK);
}

static lam_status forward(const lam_op_call *call, lam_scratch *s) {
  ffn f; /* not cleared: 8 ns */
  f.has_h = by_source(call);
  const lam_chunks chunks = chunks_of(call);
  const int64_t most = f.has_h ? chunks.rows : lam_chunk_most_rows(chunks);
  f.h = lam_op_take(s, most, hidden_cols(call), hidden_dtype(call));
  f.z = lam_op_absent;
  if (needs_z(call)) f.z = lam_op_take(s, most, z_cols(call), f.h.dtype);
  if (is_f8(call)) f.h8 = lam_op_take(s, most, hidden_cols(call), LAM_F8E4M3);
  if (is_f8(call)) f.scale = lam_op_take(s, 1, 1, LAM_F32);
  if (chunks.n == 1 && !lam_op_peers(call)) return ffn_alone(call, &f);
  LAM_TRY(gather_x(call, s, &f));

  const lam_part_sum sum = {.call = call,
                            .part = ffn_part,
                            .user = &f,
                            .y_tensor = call->out_tensor[0],
                            .bias = &call->in[4],
                            .y = &call->out[0],
                            .chunks = chunks};
  return lam_part_sum_run(&sum);
}

static lam_status check(const lam_op_call *call) {
  const lam_matrix x = call->in[0], w1 = call->in[1], b1 = call->in[2];
  const lam_matrix w2 = call->in[3], b2 = call->in[4];
  LAM_TRY(lam_op_agree(call, "x's last dimension", x.cols, "w1's in features", w1.cols));
  LAM_TRY(lam_op_ffn_check_weights(call, w1, w2));
  if (lam_matrix_here(b1))
    LAM_TRY(lam_op_agree(call, "b1's length", b1.cols, "w1's rows", w1.rows));
  if (lam_matrix_here(b2))
    LAM_TRY(lam_op_agree(call, "b2's length", b2.cols, "w2's rows", w2.rows));
  return lam_seq_check_share(call, "x", call->in_tensor[0]);
}

lam_status lam_op_ffn_check_weights(const lam_op_call *call, lam_matrix w1, lam_matrix w2) {
  return call->attr.gated
             ? lam_op_agree(call, "the number of w1's rows", w1.rows,
                            "twice w2's in features (gated)", 2 * w2.cols)
             : lam_op_agree(call, "the number of w1's rows", w1.rows, "w2's in features", w2.cols);
}

void lam_op_ffn_needs(const lam_op_call *call, lam_op_needs *out) {
  const bool whole = by_source(call);
  const lam_chunks chunks = chunks_of(call);
  const int64_t most = whole ? chunks.rows : lam_chunk_most_rows(chunks);
  *out = (lam_op_needs){
      lam_seq_gather_bytes(call, 0) +
          lam_elements_bytes(most, hidden_cols(call) + z_cols(call), hidden_dtype(call)),
      (uint32_t)chunks.n};
  if (is_f8(call))
    out->scratch_bytes += lam_elements_bytes(most, hidden_cols(call), LAM_F8E4M3) + sizeof(float);
}

/* Few rows, nobody to sum with: no plan is made, and what is between the products lies on the
 * stack. That saves a small call 6 of 98 ns. */
static bool is_small(const lam_op_call *call) {
  const lam_matrix *x = &call->in[0];
  return lam_chunks_are_one(call, x->rows) && !lam_op_peers(call) && !call->attr.gated &&
         !call->scratch && !is_f8(call) &&
         lam_elements_bytes(x->rows, hidden_cols(call), x->dtype) <= LAM_NEAR_BYTES;
}

static lam_status forward_small(const lam_op_call *call) {
  _Alignas(64) char near[LAM_NEAR_BYTES];
  const int64_t rows = call->in[0].rows, cols = hidden_cols(call);
  ffn f; /* the rest is for fp8 and peers */
  f.h = (lam_matrix){near, rows, cols, cols, 1, call->in[0].dtype, false};
  f.z = lam_op_absent;
  return ffn_alone(call, &f);
}

lam_status lam_op_ffn_run(const lam_op_call *call) {
  LAM_TRY(check(call));
  if (is_small(call)) return forward_small(call);
  return lam_op_with_scratch(call, lam_op_ffn_needs, forward);
}
