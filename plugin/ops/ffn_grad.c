/* ffn_grad.c: the gradients of a feed-forward block: for its input, for its weights, or for both.
 *
 * dz = act'(aux) * (dy w2), dx = the sum over ranks of dz w1; dw1 = dz^T x, dw2 = dy^T act(aux).
 * Invariant: one sum, that of dx; everything else is this rank's own.
 * Leaves the sum to sum.c, products of weight gradients to wgrad.c. */
#include "plugin/ops/rows.h"

/* dy [T, N], seq: [T_r, N]  aux, dz [T, F_r], gated [T, 2 F_r]  w1, w2 as in ffn.c
 * dx [T, K], seq: [T_r, K] */
typedef struct ffn_grad {
  lam_matrix dy, aux, w1, w2, dz; /* all rows */
  lam_matrix dh;                  /* [chunk's rows, F_r]: dy w2, scratch */
  lam_matrix db1;                 /* dz's rows summed, where it can be had beside dz; or absent */
  bool *has_db1;                  /* it was */
  bool keeps_h;                   /* dh has all rows, and becomes act(aux) */
  bool has_dz;                    /* all of dz was made before */
} ffn_grad;

/* dz = (dy w2) act'(aux), and db1, in one product where the device can. */
static lam_status dz_in_one(const lam_op_call *call, const ffn_grad *f, const lam_gemm *through_w2,
                            lam_matrix aux, lam_matrix dz, bool *out_done) {
  lam_gemm g = *through_w2;
  lam_gemm_more more = {.z = aux, .z_act = (lam_act)call->attr.act, .column_sum = f->db1};
  *out_done = false;
  if (!call->device->order || call->attr.gated) return LAM_OK;
  g.d = dz;
  g.more = &more;
  LAM_TRY(lam_op_product_fused(call, &g, out_done));
  if (lam_matrix_here(f->db1)) *f->has_db1 = *out_done;
  if (*out_done || !lam_matrix_here(f->db1)) return LAM_OK;
  more.column_sum = lam_op_absent;
  return lam_op_product_fused(call, &g, out_done);
}

static lam_status dz_rows(const lam_op_call *call, const void *user, int64_t first, int64_t n) {
  const ffn_grad *f = user;
  const lam_matrix dh = lam_matrix_rows(f->dh, f->keeps_h ? first : 0, n);
  const lam_matrix dz = lam_matrix_rows(f->dz, first, n), w2 = lam_matrix_transposed(f->w2);
  lam_matrix room;
  const lam_matrix *dy = lam_op_rows(&f->dy, first, n, &room);
  const lam_gemm through_w2 = lam_op_gemm(dy, &w2, &lam_op_absent, &dh);
  const lam_matrix aux = lam_matrix_rows(f->aux, first, n);
  bool done;
  LAM_TRY(dz_in_one(call, f, &through_w2, aux, dz, &done));
  if (done) return LAM_OK;
  LAM_TRY(lam_op_product(call, &through_w2));
  return (f->keeps_h ? lam_device_act_bwd_again : lam_device_act_bwd)(
      call->device, call->workers, (lam_act)call->attr.act, call->attr.gated != 0, dh, aux, dz,
      call->stream);
}

static lam_status dgrad_part(const lam_part_sum *s, int64_t first, const lam_matrix *bias,
                             const lam_matrix *d) {
  const ffn_grad *f = s->user;
  const lam_matrix dz = lam_matrix_rows(f->dz, first, d->rows);
  const lam_matrix w1 = lam_matrix_transposed(f->w1);
  const lam_gemm through_w1 = lam_op_gemm(&dz, &w1, bias, d);
  if (!f->has_dz) LAM_TRY(dz_rows(s->call, f, first, d->rows));
  return lam_op_product(s->call, &through_w1);
}

static lam_chunks chunks_of(const lam_op_call *call, lam_matrix aux, lam_matrix w1) {
  return lam_chunks_for_ffn(call, aux.rows, w1.cols);
}

/* dy's rows come from the ranks that have them, and give dz as they do, before dx's sum is
 * begun. */
static bool by_source(const lam_op_call *call, lam_matrix aux) {
  return lam_chunks_by_source(call, aux.rows, call->in[0].cols, 4 * call->in[0].cols);
}

/* Rows that dh needs: of a chunk, or of the largest share. */
static int64_t rows_of_dh(const lam_op_call *call, lam_matrix aux, lam_matrix w1) {
  const int64_t most = lam_chunk_most_rows(chunks_of(call, aux, w1));
  if (!call->device->order || !call->attr.seq) return most;
  const int64_t share =
      (aux.rows / call->attr.seq) * lam_share_begin(call->attr.seq, 1, 1, lam_op_size(call));
  return share > most ? share : most;
}

static lam_status gather_dy(const lam_op_call *call, lam_scratch *s, ffn_grad *f) {
  lam_coming dy;
  f->has_dz = by_source(call, f->aux);
  LAM_TRY(lam_seq_gather_start(call, 0, f->has_dz, s, &dy));
  f->dy = dy.whole;
  return lam_seq_gather_finish(call, &dy,
                               f->has_dz ? lam_seq_gather_each(call, &dy, dz_rows, f) : LAM_OK);
}

static lam_part_sum dgrad_sum(const lam_op_call *call, const ffn_grad *f) {
  return (lam_part_sum){.call = call,
                        .part = dgrad_part,
                        .user = f,
                        .y_tensor = call->out_tensor[0],
                        .bias = &lam_op_absent,
                        .y = &call->out[0],
                        .chunks = chunks_of(call, f->aux, f->w1)};
}

static lam_status check_dgrad(const lam_op_call *call, lam_matrix aux, lam_matrix w1,
                              lam_matrix w2) {
  LAM_TRY(lam_op_agree(call, "dy's last dimension", call->in[0].cols, "w2's rows", w2.rows));
  LAM_TRY(lam_op_ffn_check_weights(call, w1, w2));
  LAM_TRY(lam_op_agree(call, "aux's last dimension", aux.cols, "w1's rows", w1.rows));
  LAM_TRY(lam_seq_check_share(call, "dy", call->in_tensor[0]));
  return lam_op_agree(call, "aux's number of rows", aux.rows, "that of the whole dy",
                      lam_seq_gathered_rows(call, 0));
}

/* -- for the input: dy aux w1 w2 -> dx dz -- */

static lam_status dgrad(const lam_op_call *call, lam_scratch *s) {
  ffn_grad f = {.aux = call->in[1], .w1 = call->in[2], .w2 = call->in[3], .dz = call->out[1]};
  const lam_part_sum sum = dgrad_sum(call, &f);
  f.dh = lam_op_take(s, rows_of_dh(call, f.aux, f.w1), f.w2.cols, f.aux.dtype);
  LAM_TRY(gather_dy(call, s, &f));
  return lam_part_sum_run(&sum);
}

void lam_op_ffn_dgrad_needs(const lam_op_call *call, lam_op_needs *out) {
  const lam_chunks chunks = chunks_of(call, call->in[1], call->in[2]);
  *out = (lam_op_needs){
      lam_seq_gather_bytes(call, 0) + lam_elements_bytes(rows_of_dh(call, call->in[1], call->in[2]),
                                                         call->in[3].cols, call->in[1].dtype),
      (uint32_t)chunks.n};
}

lam_status lam_op_ffn_dgrad_run(const lam_op_call *call) {
  LAM_TRY(check_dgrad(call, call->in[1], call->in[2], call->in[3]));
  return lam_op_with_scratch(call, lam_op_ffn_dgrad_needs, dgrad);
}

/* -- for the weights: dy x aux dz -> dw1 db1? dw2 db2? -- */

static int64_t hidden_cols(const lam_op_call *call, lam_matrix aux) {
  return call->attr.gated ? aux.cols / 2 : aux.cols;
}

/* act(aux) is made again in chunks of 512 rows and more, which cost nothing: two cores, H = 1024,
 * F = 2816, T = 512 and 2048, against one chunk: 512 rows -2 to 0 %, 256 rows 1 to 4 %, 128 rows 0
 * to 6 %. A dw2 of bf16 gets it whole, for it is rounded once; so do devices that queue work. */
#define ROWS_OF_H 512
static lam_chunks chunks_of_h(const lam_op_call *call, lam_matrix aux, lam_matrix dw2) {
  const bool whole = dw2.dtype != LAM_F32 || call->device->order;
  const int64_t n = whole ? 1 : aux.rows / ROWS_OF_H;
  return (lam_chunks){aux.rows, n > 1 ? (int)n : 1, 1};
}

/* Rows [first, first + part.rows) of act(aux). */
static lam_status hidden_rows(const lam_op_call *call, lam_matrix aux, int64_t first,
                              lam_matrix part) {
  return lam_device_act(call->device, call->workers, (lam_act)call->attr.act, call->attr.gated != 0,
                        lam_matrix_rows(aux, first, part.rows), part, call->stream);
}

/* dw2 (+)= dy^T act(aux), db2 (+)= the sum of dy's rows; act(aux) goes to dh's memory */
static lam_status wgrad_of_w2(const lam_op_call *call, const ffn_grad *f, lam_matrix dw2,
                              lam_matrix db2) {
  const lam_chunks chunks = chunks_of_h(call, f->aux, dw2);
  if (chunks.n == 1) {
    const lam_matrix h = lam_matrix_rows(f->dh, 0, f->aux.rows);
    if (!f->keeps_h) LAM_TRY(hidden_rows(call, f->aux, 0, h));
    return lam_op_wgrad(call, f->dy, h, dw2, db2);
  }
  for (int i = 0; i < chunks.n; i++) {
    const int64_t first = lam_chunk_first(chunks, i), n = lam_chunk_rows(chunks, i);
    const lam_matrix h = lam_matrix_rows(f->dh, 0, n);
    LAM_TRY(hidden_rows(call, f->aux, first, h));
    LAM_TRY(lam_op_weight_grad(call, lam_matrix_rows(f->dy, first, n), h, dw2,
                               i > 0 || call->attr.acc));
  }
  return lam_op_bias_grad(call, f->dy, db2);
}

/* d: outputs dw1, db1, dw2, db2 */
static lam_status wgrad_of(const lam_op_call *call, const ffn_grad *f, lam_matrix x,
                           const lam_matrix *d) {
  LAM_TRY(lam_op_wgrad(call, f->dz, x, d[0], *f->has_db1 ? lam_op_absent : d[1]));
  return wgrad_of_w2(call, f, d[2], d[3]);
}

static lam_status check_wgrad(const lam_op_call *call, lam_matrix aux) {
  LAM_TRY(lam_seq_check_share(call, "dy", call->in_tensor[0]));
  LAM_TRY(lam_seq_check_share(call, "x", call->in_tensor[1]));
  LAM_TRY(lam_op_agree(call, "the number of rows of the whole dy", lam_seq_gathered_rows(call, 0),
                       "that of aux", aux.rows));
  LAM_TRY(lam_op_agree(call, "the number of rows of the whole x", lam_seq_gathered_rows(call, 1),
                       "that of aux", aux.rows));
  if (call->attr.gated)
    LAM_TRY(lam_op_agree(call, "aux's columns, modulo 2", aux.cols % 2, "they are gate and up", 0));
  return LAM_OK;
}

static lam_status wgrad(const lam_op_call *call, lam_scratch *s) {
  bool has_db1 = false;
  ffn_grad f = {.aux = call->in[2], .dz = call->in[3], .has_db1 = &has_db1};
  const int64_t most = lam_chunk_most_rows(chunks_of_h(call, f.aux, call->out[2]));
  lam_matrix x;
  f.dh = lam_op_take(s, most, hidden_cols(call, f.aux), f.aux.dtype);
  LAM_TRY(lam_seq_gather(call, 0, s, &f.dy));
  LAM_TRY(lam_seq_gather(call, 1, s, &x));
  return wgrad_of(call, &f, x, call->out);
}

void lam_op_ffn_wgrad_needs(const lam_op_call *call, lam_op_needs *out) {
  const lam_matrix aux = call->in[2];
  const int64_t most = lam_chunk_most_rows(chunks_of_h(call, aux, call->out[2]));
  *out = (lam_op_needs){lam_seq_gather_bytes(call, 0) + lam_seq_gather_bytes(call, 1) +
                            lam_elements_bytes(most, hidden_cols(call, aux), aux.dtype),
                        1};
}

lam_status lam_op_ffn_wgrad_run(const lam_op_call *call) {
  const lam_matrix aux = call->in[2], dz = call->in[3];
  LAM_TRY(check_wgrad(call, aux));
  LAM_TRY(lam_op_agree(call, "dz's last dimension", dz.cols, "aux's", aux.cols));
  LAM_TRY(lam_op_agree(call, "dz's number of rows", dz.rows, "aux's", aux.rows));
  return lam_op_with_scratch(call, lam_op_ffn_wgrad_needs, wgrad);
}

/* -- both: dy x aux w1 w2 -> dx dw1 db1? dw2 db2?; x is gathered beside dx's products, and their
 * sum travels beside the weights'. One scratch matrix is dh first, then h; where it has room for
 * all rows, h is made beside dz: the demo's bf16 step takes 1.2 % less. -- */

static int64_t rows_of_scratch(const lam_op_call *call, lam_matrix aux) {
  const int64_t dh = rows_of_dh(call, aux, call->in[3]);
  const int64_t h = lam_chunk_most_rows(chunks_of_h(call, aux, call->out[3]));
  return dh > h ? dh : h;
}

static lam_status both(const lam_op_call *call, lam_scratch *s) {
  bool has_db1 = false;
  ffn_grad f = {.aux = call->in[2], .w1 = call->in[3], .w2 = call->in[4], .has_db1 = &has_db1};
  const lam_part_sum sum = dgrad_sum(call, &f);
  lam_sum last;
  lam_coming x;
  f.keeps_h = chunks_of_h(call, f.aux, call->out[3]).n == 1 && !call->device->order;
  f.dz = lam_op_take(s, f.aux.rows, f.aux.cols, f.aux.dtype);
  f.dh = lam_op_take(s, rows_of_scratch(call, f.aux), f.w2.cols, f.aux.dtype);
  LAM_TRY(gather_dy(call, s, &f));
  LAM_TRY(lam_seq_gather_start(call, 1, false, s, &x));

  if (sum.chunks.n == 1 && !f.has_dz && !call->attr.acc) f.db1 = call->out[2];
  LAM_TRY(lam_seq_gather_finish(call, &x, lam_part_sum_start(&sum, &last)));
  LAM_TRY(wgrad_of(call, &f, x.whole, call->out + 1));
  return lam_part_sum_finish(&sum, &last);
}

void lam_op_ffn_bwd_needs(const lam_op_call *call, lam_op_needs *out) {
  const lam_matrix aux = call->in[2];
  *out = (lam_op_needs){
      lam_seq_gather_bytes(call, 0) + lam_seq_gather_bytes(call, 1) +
          lam_elements_bytes(aux.rows, aux.cols, aux.dtype) +
          lam_elements_bytes(rows_of_scratch(call, aux), call->in[4].cols, aux.dtype),
      (uint32_t)chunks_of(call, aux, call->in[3]).n};
}

lam_status lam_op_ffn_bwd_run(const lam_op_call *call) {
  const lam_matrix aux = call->in[2];
  LAM_TRY(check_dgrad(call, aux, call->in[3], call->in[4]));
  LAM_TRY(check_wgrad(call, aux));
  return lam_op_with_scratch(call, lam_op_ffn_bwd_needs, both);
}
