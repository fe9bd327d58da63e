/* device.c: the way into a device: every slot is called from here and nowhere else.
 *
 * Invariant: a slot is entered only past enter(): so a missing cell, an injected fault and a traced
 * call are alike for all devices and slots.
 * Leaves checks of users' tensors to plugin/core; operands that do not fit together are a bug of
 * ours, which a host lives through. */
#include "kernels/device.h"

#include <string.h>

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

static inline bool same_count(lam_matrix values, int64_t n) {
  return values.rows * values.cols == n;
}

/* -- order -- */

lam_status lam_device_enter(const lam_device *d, int32_t device_id, int32_t *out_was) {
  *out_was = 0;
  if (!d->order) return LAM_OK;
  LAM_TRY(enter(d, d->order->enter, "enter", true));
  return d->order->enter(device_id, out_was);
}

void lam_device_leave(const lam_device *d, int32_t was) {
  if (d->order && d->order->leave) d->order->leave(was);
}

lam_status lam_device_alloc(const lam_device *d, const lam_workers *w, uint64_t bytes, void **out) {
  *out = NULL;
  LAM_TRY(enter(d, d->memory->alloc, "alloc", true));
  return d->memory->alloc(w, bytes, out);
}

void lam_device_free(const lam_device *d, const lam_workers *w, void *p, uint64_t bytes) {
  if (p) d->memory->free(w, p, bytes);
}

lam_status lam_device_borrow(const lam_device *d, uint64_t bytes, void *stream, void **out) {
  *out = NULL;
  LAM_TRY(enter(d, d->order && d->order->borrow, "borrow", true));
  return d->order->borrow(bytes, stream, out);
}

void lam_device_give_back(const lam_device *d, void *p, void *stream) {
  if (p) d->order->give_back(p, stream);
}

lam_status lam_device_capturing(const lam_device *d, void *stream, bool *out) {
  *out = false;
  if (!d->order) return LAM_OK;
  LAM_TRY(enter(d, d->order->capturing, "capturing", true));
  return d->order->capturing(stream, out);
}

lam_status lam_device_finish(const lam_device *d, void *stream) {
  if (!d->order) return LAM_OK;
  LAM_TRY(enter(d, d->order->finish, "finish", true));
  return d->order->finish(stream);
}

lam_status lam_device_mark(const lam_device *d, void **mark, void *stream) {
  LAM_TRY(enter(d, d->order && d->order->mark, "mark", true));
  return d->order->mark(mark, stream);
}

lam_status lam_device_elapsed(const lam_device *d, void *first, void *last, int64_t *out_ns) {
  *out_ns = 0;
  LAM_TRY(enter(d, d->order && d->order->elapsed, "elapsed", true));
  return d->order->elapsed(first, last, out_ns);
}

void lam_device_unmark(const lam_device *d, void *mark) {
  if (mark) d->order->unmark(mark);
}

lam_status lam_device_pace(const lam_device *d, lam_pace *out) {
  memset(out, 0, sizeof *out); /* compared as bytes */
  LAM_TRY(enter(d, d->pace, "pace", true));
  return d->pace(out);
}

static lam_status copy_here(const void *from, void *to, uint64_t bytes) {
  if (bytes) memcpy(to, from, bytes);
  return LAM_OK;
}

lam_status lam_device_read(const lam_device *d, const void *device, void *host, uint64_t bytes,
                           void *stream) {
  if (!d->order) return copy_here(device, host, bytes);
  LAM_TRY(enter(d, d->order->read, "read", true));
  return d->order->read(device, host, bytes, stream);
}

lam_status lam_device_write(const lam_device *d, const void *host, void *device, uint64_t bytes,
                            void *stream) {
  if (!d->order) return copy_here(host, device, bytes);
  LAM_TRY(enter(d, d->order->write, "write", true));
  return d->order->write(host, device, bytes, stream);
}

/* -- products -- */

static bool fuses(const lam_device *d, const lam_gemm *g) {
  return d->gemm->fuses && d->gemm->fuses(g);
}

static bool more_fits(const lam_device *d, const lam_gemm *g) {
  const lam_gemm_more *m = g->more;
  const bool plain = !lam_matrix_here(g->bias) && !lam_matrix_here(g->aux) && !g->accumulate &&
                     g->act == LAM_ACT_NONE;
  const bool z = lam_matrix_here(m->z), sum = lam_matrix_here(m->column_sum);
  if (z && !(plain && same_shape(m->z, g->d))) return false;
  if (sum && (g->accumulate || !same_count(m->column_sum, g->d.cols))) return false;
  if (lam_matrix_here(m->a_sum) && !same_count(m->a_sum, g->a.rows)) return false;
  return !(z || sum || lam_matrix_here(m->a_sum)) || fuses(d, g);
}

bool lam_device_fuses(const lam_device *d, const lam_gemm *g) { return d->gemm && fuses(d, g); }

lam_status lam_device_gemm(const lam_device *d, const lam_workers *w, const lam_gemm *g,
                           void *stream) {
  const bool fits = (!g->more || (d->gemm && more_fits(d, g))) && g->a.cols == g->b.cols &&
                    g->d.rows == g->a.rows && g->d.cols == g->b.rows &&
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

lam_status lam_device_act_bwd_again(const lam_device *d, const lam_workers *w, lam_act act,
                                    bool gated, lam_matrix dy, lam_matrix z, lam_matrix dz,
                                    void *stream) {
  const bool fits = same_shape(z, dz) && z.rows == dy.rows && z.cols == dy.cols * (gated ? 2 : 1);
  if (!d->vector || !d->vector->act_bwd_again) {
    LAM_TRY(lam_device_act_bwd(d, w, act, gated, dy, z, dz, stream));
    return lam_device_act(d, w, act, gated, z, dy, stream);
  }
  LAM_TRY(enter(d, true, "act_bwd_again", fits));
  return d->vector->act_bwd_again(w, act, gated, dy, z, dz, stream);
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

lam_status lam_device_quantize(const lam_device *d, const lam_workers *w, lam_matrix x,
                               lam_matrix y, lam_matrix scale, void *stream) {
  const bool fits = same_shape(x, y) && same_count(scale, 1) && lam_dtype_is_f8(y.dtype);
  LAM_TRY(enter(d, d->vector && d->vector->quantize, "quantize", fits));
  return d->vector->quantize(w, x, y, scale, stream);
}

/* -- vocabulary -- */

lam_status lam_device_find_outside(const lam_device *d, const lam_workers *w, lam_matrix ids,
                                   int64_t total, const int64_t *ignored, lam_outside *out,
                                   void *stream) {
  const bool fits = total >= 0;
  LAM_TRY(enter(d, d->vocab && d->vocab->find_outside, "find_outside", fits));
  return d->vocab->find_outside(w, ids, total, ignored, out, stream);
}

lam_status lam_device_mark_outside(const lam_device *d, const lam_workers *w, lam_matrix ids,
                                   int64_t total, const int64_t *ignored, lam_matrix y,
                                   void *stream) {
  const bool fits = total >= 0 && (same_count(ids, y.rows) || same_count(ids, y.rows * y.cols));
  LAM_TRY(enter(d, d->vocab && d->vocab->mark_outside, "mark_outside", fits));
  return d->vocab->mark_outside(w, ids, total, ignored, y, stream);
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

/* -- norms -- */

static inline bool norm_fits(lam_matrix x, lam_matrix g, lam_matrix y) {
  return same_shape(x, y) && same_count(g, x.cols);
}

lam_status lam_device_rmsnorm(const lam_device *d, const lam_workers *w, lam_matrix x, lam_matrix g,
                              float eps, lam_matrix y, void *stream) {
  LAM_TRY(enter(d, d->norm && d->norm->rmsnorm, "rmsnorm", norm_fits(x, g, y)));
  return d->norm->rmsnorm(w, x, g, eps, y, stream);
}

lam_status lam_device_rmsnorm_bwd(const lam_device *d, const lam_workers *w, lam_matrix dy,
                                  lam_matrix x, lam_matrix g, float eps, lam_matrix dx,
                                  lam_matrix dg, bool accumulate, void *stream) {
  const bool fits = norm_fits(dy, g, x) && (!lam_matrix_here(dx) || same_shape(dx, x)) &&
                    (!lam_matrix_here(dg) || same_count(dg, x.cols));
  LAM_TRY(enter(d, d->norm && d->norm->rmsnorm_bwd, "rmsnorm_bwd", fits));
  return d->norm->rmsnorm_bwd(w, dy, x, g, eps, dx, dg, accumulate, stream);
}

lam_status lam_device_add_rmsnorm(const lam_device *d, const lam_workers *w,
                                  const lam_matrix *parts, int n, lam_matrix residual, lam_matrix g,
                                  float eps, lam_matrix sum, lam_matrix y, void *stream) {
  const bool fits = n > 0 && same_shape(parts[0], sum) && same_shape(parts[n - 1], sum) &&
                    (!lam_matrix_here(residual) || same_shape(residual, sum)) &&
                    norm_fits(sum, g, y);
  LAM_TRY(enter(d, d->norm && d->norm->add_rmsnorm, "add_rmsnorm", fits));
  return d->norm->add_rmsnorm(w, parts, n, residual, g, eps, sum, y, stream);
}
