/* device.c: the way into a device: every slot is called from here and nowhere else.
 *
 * Invariant: a slot is entered only past enter(): so a missing cell, an injected fault and a traced
 * call are alike for all devices and slots.
 * Leaves checks of users' tensors to plugin/core; operands that do not fit together are a bug of
 * ours, which a host lives through. */
#include "kernels/device.h"

static const struct {
  const char *name;
  int bytes;
} dtypes[LAM_N_DTYPES] = {
    [LAM_F32] = {"f32", 4},       [LAM_BF16] = {"bf16", 2},     [LAM_F16] = {"f16", 2},
    [LAM_F8E4M3] = {"f8e4m3", 1}, [LAM_F8E5M2] = {"f8e5m2", 1}, [LAM_F64] = {"f64", 8},
    [LAM_I32] = {"i32", 4},       [LAM_I64] = {"i64", 8},       [LAM_U8] = {"u8", 1},
};

int lam_dtype_bytes(lam_dtype t) { return dtypes[t].bytes; }
const char *lam_dtype_name(lam_dtype t) {
  return (unsigned)t < LAM_N_DTYPES ? dtypes[t].name : "an unknown dtype";
}

lam_matrix lam_matrix_rows(lam_matrix m, int64_t first, int64_t n) {
  m.data = (char *)m.data + first * m.row_stride * lam_dtype_bytes(m.dtype);
  m.rows = n;
  return m;
}

lam_matrix lam_matrix_cols(lam_matrix m, int64_t first, int64_t n) {
  return lam_matrix_transposed(lam_matrix_rows(lam_matrix_transposed(m), first, n));
}

/* -- the one door -- */

lam_device_hook lam_device_on_call = NULL;

static lam_status enter(const lam_device *d, bool has_slot, const char *slot, bool fits) {
  if (!has_slot) return lam_fail(LAM_UNIMPLEMENTED, "%s has no %s", d->name, slot);
  if (!fits)
    return lam_fail(LAM_INTERNAL, "%s %s: its operands do not fit together", d->name, slot);
  return lam_device_on_call ? lam_device_on_call(d, slot) : LAM_OK;
}

static inline bool same_shape(lam_matrix a, lam_matrix b) {
  return a.rows == b.rows && a.cols == b.cols;
}

lam_status lam_device_gemm(const lam_device *d, const lam_workers *w, const lam_gemm *g,
                           void *stream) {
  const bool fits = g->a.cols == g->b.cols && g->d.rows == g->a.rows && g->d.cols == g->b.rows &&
                    (!lam_matrix_here(g->aux) || same_shape(g->aux, g->d)) &&
                    (!g->accumulate || (g->act == LAM_ACT_NONE && !lam_matrix_here(g->aux)));
  LAM_TRY(enter(d, d->gemm && d->gemm->run, "gemm", fits));
  return d->gemm->run(w, g, stream);
}

lam_status lam_device_copy(const lam_device *d, const lam_workers *w, lam_matrix from,
                           lam_matrix to, void *stream) {
  const bool fits = same_shape(from, to) && !from.packed && !to.packed;
  LAM_TRY(enter(d, d->memory && d->memory->copy, "copy", fits));
  return d->memory->copy(w, from, to, stream);
}

lam_status lam_device_pack(const lam_device *d, const lam_workers *w, lam_matrix weight, int side,
                           void *packed, int64_t cols, void *stream) {
  const bool fits = (w && !weight.packed && (side == 0 || side == 1));
  LAM_TRY(enter(d, d->gemm && d->gemm->pack, "pack", fits));
  return d->gemm->pack(w, weight, side, packed, cols, stream);
}

lam_status lam_device_packed_cols(const lam_device *d, lam_dtype dtype, int64_t n, int64_t k,
                                  int side, int64_t *out_cols) {
  *out_cols = 0;
  LAM_TRY(enter(d, d->gemm && d->gemm->packed_cols, "packed_cols", true));
  return d->gemm->packed_cols(dtype, n, k, side, out_cols);
}

lam_status lam_device_packed_open(const lam_device *d, const void *packed, uint64_t bytes,
                                  int *side, lam_dtype *dtype, int64_t *n, int64_t *k) {
  LAM_TRY(enter(d, d->gemm && d->gemm->packed_open, "packed_open", true));
  return d->gemm->packed_open(packed, bytes, side, dtype, n, k);
}

lam_status lam_device_act(const lam_device *d, const lam_workers *w, lam_act act, bool gated,
                          lam_matrix z, lam_matrix y, void *stream) {
  const bool fits = z.rows == y.rows && z.cols == y.cols * (gated ? 2 : 1);
  LAM_TRY(enter(d, d->vector && d->vector->act, "act", fits));
  return d->vector->act(w, act, gated, z, y, stream);
}

lam_status lam_device_act_bwd(const lam_device *d, const lam_workers *w, lam_act act, bool gated,
                              lam_matrix dy, lam_matrix z, lam_matrix dz, void *stream) {
  const bool fits = same_shape(z, dz) && z.rows == dy.rows && z.cols == dy.cols * (gated ? 2 : 1);
  LAM_TRY(enter(d, d->vector && d->vector->act_bwd, "act_bwd", fits));
  return d->vector->act_bwd(w, act, gated, dy, z, dz, stream);
}

lam_status lam_device_sum(const lam_device *d, const lam_workers *w, const lam_matrix *parts, int n,
                          lam_matrix bias, lam_matrix residual, lam_matrix y, void *stream) {
  const bool fits = n > 0 && same_shape(parts[0], y) && same_shape(parts[n - 1], y) &&
                    (!lam_matrix_here(residual) || same_shape(residual, y));
  LAM_TRY(enter(d, d->vector && d->vector->sum, "sum", fits));
  return d->vector->sum(w, parts, n, bias, residual, y, stream);
}

lam_status lam_device_column_sum(const lam_device *d, const lam_workers *w, lam_matrix dy,
                                 lam_matrix db, bool accumulate, void *stream) {
  const bool fits = db.rows * db.cols == dy.cols;
  LAM_TRY(enter(d, d->vector && d->vector->column_sum, "column_sum", fits));
  return d->vector->column_sum(w, dy, db, accumulate, stream);
}

lam_status lam_device_encode(const lam_device *d, const lam_workers *w, int codec, lam_matrix x,
                             void *coded, void *stream) {
  const bool fits = !x.packed;
  LAM_TRY(enter(d, d->vector && d->vector->encode, "encode", fits));
  return d->vector->encode(w, codec, x, coded, stream);
}

lam_status lam_device_decode(const lam_device *d, const lam_workers *w, int codec,
                             const void *coded, lam_matrix y, void *stream) {
  const bool fits = !y.packed;
  LAM_TRY(enter(d, d->vector && d->vector->decode, "decode", fits));
  return d->vector->decode(w, codec, coded, y, stream);
}

/* -- vocabulary -- */

static inline bool same_count(lam_matrix per_token, int64_t n) {
  return per_token.rows * per_token.cols == n;
}

lam_status lam_device_find_outside(const lam_device *d, const lam_workers *w, lam_matrix ids,
                                   int64_t total, const int64_t *ignored, lam_outside *out,
                                   void *stream) {
  const bool fits = total >= 0;
  LAM_TRY(enter(d, d->vocab && d->vocab->find_outside, "find_outside", fits));
  return d->vocab->find_outside(w, ids, total, ignored, out, stream);
}

lam_status lam_device_gather(const lam_device *d, const lam_workers *w, lam_matrix weight,
                             lam_matrix ids, int64_t first, lam_matrix y, void *stream) {
  const bool fits = weight.cols == y.cols && weight.dtype == y.dtype && same_count(ids, y.rows);
  LAM_TRY(enter(d, d->vocab && d->vocab->gather, "gather", fits));
  return d->vocab->gather(w, weight, ids, first, y, stream);
}

lam_status lam_device_scatter(const lam_device *d, const lam_workers *w, lam_matrix dy,
                              lam_matrix ids, int64_t first, int64_t *links, lam_matrix dw,
                              bool accumulate, void *stream) {
  const bool fits = dy.cols == dw.cols && same_count(ids, dy.rows);
  LAM_TRY(enter(d, d->vocab && d->vocab->scatter, "scatter", fits));
  return d->vocab->scatter(w, dy, ids, first, links, dw, accumulate, stream);
}

lam_status lam_device_softmax_parts(const lam_device *d, const lam_workers *w, lam_matrix logits,
                                    lam_matrix targets, int64_t first, lam_softmax_part *parts,
                                    void *stream) {
  const bool fits = same_count(targets, logits.rows);
  LAM_TRY(enter(d, d->vocab && d->vocab->softmax_parts, "softmax_parts", fits));
  return d->vocab->softmax_parts(w, logits, targets, first, parts, stream);
}

lam_status lam_device_cross_entropy(const lam_device *d, const lam_workers *w,
                                    const lam_softmax_part *parts, int n_parts, lam_matrix targets,
                                    int64_t ignore, lam_matrix loss, lam_matrix lse, void *stream) {
  const bool fits = n_parts > 0 && same_count(targets, loss.rows * loss.cols) &&
                    same_count(lse, loss.rows * loss.cols);
  LAM_TRY(enter(d, d->vocab && d->vocab->cross_entropy, "cross_entropy", fits));
  return d->vocab->cross_entropy(w, parts, n_parts, targets, ignore, loss, lse, stream);
}

lam_status lam_device_cross_entropy_bwd(const lam_device *d, const lam_workers *w, lam_matrix dloss,
                                        lam_matrix logits, lam_matrix targets, lam_matrix lse,
                                        int64_t first, int64_t ignore, lam_matrix dlogits,
                                        void *stream) {
  const bool fits = same_shape(logits, dlogits) && same_count(dloss, logits.rows) &&
                    same_count(targets, logits.rows) && same_count(lse, logits.rows);
  LAM_TRY(enter(d, d->vocab && d->vocab->cross_entropy_bwd, "cross_entropy_bwd", fits));
  return d->vocab->cross_entropy_bwd(w, dloss, logits, targets, lse, first, ignore, dlogits,
                                     stream);
}
