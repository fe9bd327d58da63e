/* queued.c: the device of queued.h: an order table that counts, and products in the plainest loops.
 * Leaves right answers to its callers: they compare. */
#include "tests/unit/core/queued.h"

#include <math.h>
#include <stdlib.h>

#include "kernels/math.h"

struct queued_seen seen;

static lam_status q_enter(int32_t device_id, int32_t *out_was) {
  if (seen.enter_fails != LAM_OK) return lam_fail(seen.enter_fails, "queued: no driver");
  seen.entered++;
  seen.device_id = device_id;
  *out_was = 5;
  return LAM_OK;
}

static void q_leave(int32_t was) { seen.left += was == 5; }

static lam_status q_borrow(uint64_t bytes, void *stream, void **out) {
  if (seen.borrow_fails != LAM_OK) return lam_fail(seen.borrow_fails, "queued: captured");
  seen.borrowed++;
  seen.stream = stream;
  *out = aligned_alloc(256, (bytes + 255) / 256 * 256);
  return LAM_OK;
}

static void q_give_back(void *p, void *stream) {
  seen.given_back += stream == seen.stream;
  free(p);
}

static lam_status q_capturing(void *stream, bool *out) {
  (void)stream;
  *out = false;
  return LAM_OK;
}

static const lam_device_order order = {
    .enter = q_enter,
    .leave = q_leave,
    .borrow = q_borrow,
    .give_back = q_give_back,
    .capturing = q_capturing,
};

static lam_status count_outside(const lam_workers *w, lam_matrix ids, int64_t total,
                                const int64_t *ignored, lam_outside *out, void *stream) {
  seen.outside++;
  return lam_device_cpu.vocab->find_outside(w, ids, total, ignored, out, stream);
}

/* Ours as a kernel would: what is marked is what find_outside finds, row by row. */
static lam_status mark_outside(const lam_workers *w, lam_matrix ids, int64_t total,
                               const int64_t *ignored, lam_matrix y, void *stream) {
  const bool rows = y.rows == ids.rows * ids.cols;
  seen.marked++;
  for (int64_t i = 0; i < ids.rows * ids.cols; i++) {
    lam_outside found;
    const int64_t col = i % ids.cols;
    const lam_matrix id = lam_matrix_cols(lam_matrix_rows(ids, i / ids.cols, 1), col, 1);
    LAM_TRY(lam_device_cpu.vocab->find_outside(w, id, total, ignored, &found, stream));
    if (found.at < 0) continue;
    const int64_t first = rows ? i * y.row_stride : i / y.cols * y.row_stride + i % y.cols;
    for (int64_t j = 0; j < (rows ? y.cols : 1); j++) ((float *)y.data)[first + j] = NAN;
  }
  return LAM_OK;
}

/* -- its products: any dtype, with all that may be asked of them -- */

float element_at(lam_matrix m, int64_t row, int64_t col) {
  const char *p =
      (const char *)m.data + (row * m.row_stride + col * m.col_stride) * lam_dtype_bytes(m.dtype);
  uint16_t h;
  memcpy(&h, p, 2 * (lam_dtype_bytes(m.dtype) > 1));
  switch (m.dtype) {
    case LAM_F32:
      return *(const float *)p;
    case LAM_BF16:
      return lam_f32_of_bf16(h);
    case LAM_F16:
      return lam_f32_of_f16(h);
    case LAM_F8E4M3:
      return lam_f32_of_f8e4m3(*(const uint8_t *)p);
    default:
      return lam_f32_of_f8e5m2(*(const uint8_t *)p);
  }
}

void element_put(lam_matrix m, int64_t row, int64_t col, float v) {
  char *p = (char *)m.data + (row * m.row_stride + col * m.col_stride) * lam_dtype_bytes(m.dtype);
  const uint16_t h = m.dtype == LAM_F16 ? lam_f16_of_f32(v) : lam_bf16_of_f32(v);
  if (m.dtype == LAM_F32)
    *(float *)p = v;
  else if (lam_dtype_bytes(m.dtype) == 2)
    memcpy(p, &h, 2);
  else
    *(uint8_t *)p = m.dtype == LAM_F8E4M3 ? lam_f8e4m3_of_f32(v) : lam_f8e5m2_of_f32(v);
}

static float scale_of(lam_matrix scale) {
  return lam_matrix_here(scale) ? element_at(scale, 0, 0) : 1;
}

static float element(const lam_gemm *g, const lam_gemm_more *m, int64_t i, int64_t j) {
  float v = 0;
  for (int64_t k = 0; k < g->a.cols; k++) v += element_at(g->a, i, k) * element_at(g->b, j, k);
  v *= scale_of(m->a_scale) * scale_of(m->b_scale);
  if (lam_matrix_here(g->bias)) v += element_at(g->bias, 0, j);
  if (lam_matrix_here(g->aux)) element_put(g->aux, i, j, v);
  if (g->act == LAM_ACT_GELU) v = lam_gelu(v);
  if (lam_matrix_here(m->z)) v *= lam_gelu_grad(element_at(m->z, i, j));
  return g->accumulate ? v + element_at(g->d, i, j) : v;
}

static void put_sums(const lam_gemm *g, const lam_gemm_more *m) {
  for (int64_t j = 0; lam_matrix_here(m->column_sum) && j < g->d.cols; j++) {
    float sum = 0;
    for (int64_t i = 0; i < g->d.rows; i++) sum += element_at(g->d, i, j);
    element_put(m->column_sum, 0, j, sum);
  }
  for (int64_t i = 0; lam_matrix_here(m->a_sum) && i < g->a.rows; i++) {
    float sum = 0;
    for (int64_t k = 0; k < g->a.cols; k++) sum += element_at(g->a, i, k);
    element_put(m->a_sum, 0, i, sum * scale_of(m->a_scale));
  }
}

static lam_status q_gemm(const lam_workers *w, const lam_gemm *g, void *stream) {
  const lam_gemm_more nothing = {0}, *m = g->more ? g->more : &nothing;
  (void)w, (void)stream;
  seen.products++;
  seen.tf32 += m->tf32;
  seen.z += lam_matrix_here(m->z);
  seen.column_sums += lam_matrix_here(m->column_sum);
  seen.a_sums += lam_matrix_here(m->a_sum);
  for (int64_t i = 0; i < g->d.rows; i++)
    for (int64_t j = 0; j < g->d.cols; j++) element_put(g->d, i, j, element(g, m, i, j));
  put_sums(g, m);
  return LAM_OK;
}

bool fuses_z, fuses_sums;
static bool q_fuses(const lam_gemm *g) {
  const bool sums = lam_matrix_here(g->more->column_sum) || lam_matrix_here(g->more->a_sum);
  return (fuses_z || !lam_matrix_here(g->more->z)) && (fuses_sums || !sums);
}

static lam_status q_quantize(const lam_workers *w, lam_matrix x, lam_matrix y, lam_matrix scale,
                             void *stream) {
  float most = 0;
  (void)w, (void)stream;
  seen.quantized++;
  for (int64_t i = 0; i < x.rows * x.cols; i++) {
    const float v = fabsf(element_at(x, i / x.cols, i % x.cols));
    most = v > most ? v : most;
  }
  element_put(scale, 0, 0, most > 0 ? most / 448 : 1);
  for (int64_t i = 0; i < x.rows * x.cols; i++)
    element_put(y, i / x.cols, i % x.cols,
                element_at(x, i / x.cols, i % x.cols) / element_at(scale, 0, 0));
  return LAM_OK;
}

static lam_device_vocab vocab;
static lam_device_vector vector;
lam_device_gemm_table queued_gemm;
lam_device queued;

void make_queued(void) {
  memset(&seen, 0, sizeof seen);
  vocab = *lam_device_cpu.vocab;
  vocab.find_outside = count_outside;
  vocab.mark_outside = mark_outside;
  vector = *lam_device_cpu.vector;
  vector.quantize = q_quantize;
  queued_gemm = *lam_device_cpu.gemm;
  fuses_z = fuses_sums = false;
  queued = lam_device_cpu;
  queued.name = "queued";
  queued.device_type = 2; /* kDLCUDA */
  queued.order = &order;
  queued.gemm = &queued_gemm;
  queued.vector = &vector;
  queued.vocab = &vocab;
  lam_device_forced = &queued;
}

void make_computing(void) {
  make_queued();
  queued_gemm.run = q_gemm;
  queued_gemm.fuses = q_fuses;
  queued.computes =
      1u << LAM_F32 | 1u << LAM_BF16 | 1u << LAM_F16 | 1u << LAM_F8E4M3 | 1u << LAM_F8E5M2;
}

void check_queued(void) {
  CHECK_EQ(seen.entered, seen.left);
  CHECK_EQ(seen.borrowed, seen.given_back);
  lam_device_forced = NULL;
}
