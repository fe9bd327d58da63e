/* gemm.c: which path a product takes.
 *
 *   few rows of a                     gemv.cu: bound by memory, each weight read once
 *   what cuBLASLt takes               with as much of what follows the product as its epilogues
 *                                     have; the rest in a pass of our own
 *   fp8 with K not innermost          the same, of operands that were turned
 *   the rest                          gemm_plain.cu: odd strides, K = 0, mixed dtypes
 *
 * Invariant: every shape, stride and dtype that device.h allows has a path, and on each of them a
 * product and its bias are rounded once, together. A NaN stays one: so cuBLASLt's relu, which may
 * make 0 of it, is not used.
 * Leaves products themselves to those files, and algorithms to algos.c. */
#include <string.h>

#include "kernels/cuda/host.h"

/* What follows a product. */
enum { BIAS = 1, ACT = 2, AUX = 4, Z = 8, COLUMN_SUM = 16, A_SUM = 32 };

static const lam_gemm_more nothing_more;

static const lam_gemm_more *more_of(const lam_gemm *g) { return g->more ? g->more : &nothing_more; }

static bool has(lam_matrix m) { return lam_matrix_here(m); }

static int wishes_of(const lam_gemm *g) {
  const lam_gemm_more *m = more_of(g);
  return (has(g->bias) ? BIAS : 0) | (g->act != LAM_ACT_NONE ? ACT : 0) | (has(g->aux) ? AUX : 0) |
         (has(m->z) ? Z : 0) | (has(m->column_sum) ? COLUMN_SUM : 0) | (has(m->a_sum) ? A_SUM : 0);
}

static bool is_f8(lam_dtype t) { return t == LAM_F8E4M3 || t == LAM_F8E5M2; }
static bool is_by_rows(lam_matrix m) { return m.col_stride == 1 && m.row_stride >= m.cols; }
static bool is_by_cols(lam_matrix m) { return m.row_stride == 1 && m.col_stride >= m.rows; }

/* Strides of a dimension of at most one element mean nothing; give them values that say "by rows". */
static void set_plain_strides(lam_matrix *m) {
  if (!has(*m)) return;
  if (m->cols <= 1) m->col_stride = 1;
  if (m->rows <= 1) m->row_stride = m->col_stride == 1 && m->cols > 0 ? m->cols : 1;
}

/* log2 of the largest power of two, up to 256, that divides an address. */
static uint8_t align_of(const void *p) {
  uint8_t n = 0;
  while (n < 8 && ((uintptr_t)p >> n & 1) == 0) n++;
  return n;
}

/* -- what cuBLASLt's epilogues take -- */

static bool is_vector_for(lam_matrix v, lam_dtype dtype) {
  const int64_t stride = v.rows > 1 ? v.row_stride : v.col_stride;
  return v.dtype == dtype && (stride == 1 || v.rows * v.cols == 1) && align_of(v.data) >= 4;
}

/* Biases come in d's dtype, under fp8 in bf16 where d is f32. */
static lam_dtype bias_dtype(const lam_gemm *g) {
  return is_f8(g->a.dtype) && g->d.dtype == LAM_F32 ? LAM_BF16 : g->d.dtype;
}

static bool is_aux_for(const lam_gemm *g, lam_matrix aux) {
  return aux.dtype == g->d.dtype && is_by_rows(aux) && aux.row_stride % 8 == 0 &&
         align_of(aux.data) >= 4;
}

/* Which of the wishes cuBLASLt may fulfil with the product; its heuristics have the last word. */
static int fusible(const lam_gemm *g, int wishes) {
  const lam_gemm_more *m = more_of(g);
  int can = 0;
  if (is_by_cols(g->d) && !is_by_rows(g->d)) /* d^T is asked for: only sums of a fit */
    return wishes & A_SUM && is_vector_for(m->a_sum, g->d.dtype) ? A_SUM : 0;
  if (wishes & BIAS && is_vector_for(g->bias, bias_dtype(g))) can |= BIAS;
  const bool z_first = !(wishes & BIAS) || can & BIAS;
  if (wishes & ACT && g->act == LAM_ACT_GELU_TANH && z_first) {
    if (!(wishes & AUX)) can |= ACT;
    if (wishes & AUX && is_aux_for(g, g->aux)) can |= ACT | AUX;
  }
  if (wishes & Z && m->z_act == LAM_ACT_GELU_TANH && is_aux_for(g, m->z)) can |= Z;
  if (can & Z && wishes & COLUMN_SUM && is_vector_for(m->column_sum, g->d.dtype)) can |= COLUMN_SUM;
  if (wishes == A_SUM && is_vector_for(m->a_sum, g->d.dtype)) can |= A_SUM;
  return can;
}

static const struct {
  int fused;
  cublasLtEpilogue_t epilogue;
} epilogues[] = {
    {0, CUBLASLT_EPILOGUE_DEFAULT},
    {BIAS, CUBLASLT_EPILOGUE_BIAS},
    {ACT, CUBLASLT_EPILOGUE_GELU},
    {ACT | BIAS, CUBLASLT_EPILOGUE_GELU_BIAS},
    {ACT | AUX, CUBLASLT_EPILOGUE_GELU_AUX},
    {ACT | AUX | BIAS, CUBLASLT_EPILOGUE_GELU_AUX_BIAS},
    {Z, CUBLASLT_EPILOGUE_DGELU},
    {Z | COLUMN_SUM, CUBLASLT_EPILOGUE_DGELU_BGRAD},
    {A_SUM, CUBLASLT_EPILOGUE_BGRADB},
};

static uint32_t epilogue_of(int fused, bool is_swapped) {
  if (fused == A_SUM && is_swapped) return CUBLASLT_EPILOGUE_BGRADA;
  for (size_t i = 0; i < sizeof epilogues / sizeof *epilogues; i++)
    if (epilogues[i].fused == fused) return epilogues[i].epilogue;
  return CUBLASLT_EPILOGUE_DEFAULT;
}

/* -- asking cuBLASLt -- */

static bool takes_dtypes(const lam_gemm *g) {
  const lam_dtype a = g->a.dtype, b = g->b.dtype, d = g->d.dtype;
  if (is_f8(a) && is_f8(b)) return d == LAM_F32 || d == LAM_BF16 || d == LAM_F16;
  return a == b && !is_f8(a) && (d == a || d == LAM_F32);
}

static bool takes_operand(lam_matrix m) { return is_by_rows(m) || is_by_cols(m); }

static bool takes(const lam_gemm *g) {
  return takes_dtypes(g) && takes_operand(g->d) && g->a.cols > 0 && takes_operand(g->a) &&
         takes_operand(g->b);
}

static int64_t stride_of(lam_matrix m, bool by_cols) {
  return by_cols ? m.col_stride : m.row_stride;
}

/* x's columns side by side only where its rows are not. */
static bool by_cols(lam_matrix m) { return !is_by_rows(m); }

/* The matrix and the vector that an epilogue reads or writes. */
static lam_matrix aux_for(const lam_gemm *g, int fused) {
  const lam_matrix none = {0};
  return fused & AUX ? g->aux : fused & Z ? more_of(g)->z : none;
}

static lam_matrix vector_for(const lam_gemm *g, int fused) {
  const lam_matrix none = {0};
  if (fused & BIAS) return g->bias;
  if (fused & COLUMN_SUM) return more_of(g)->column_sum;
  return fused & A_SUM ? more_of(g)->a_sum : none;
}

/* How many multiprocessors a product is to take; 0: all. */
static uint32_t sm_target(const lam_cuda_card *card, int32_t spares) {
  return spares > 0 && spares < card->n_sms ? (uint32_t)(card->n_sms - spares) : 0;
}

/* d = a b^T by rows, or, asked for as d^T = b a^T, by columns. */
static lam_status ask(const lam_cuda_card *card, const lam_gemm *g, lam_matrix d, int fused,
                      void *stream, bool *out_refused) {
  const lam_gemm_more *m = more_of(g);
  const bool swap = !is_by_rows(d);
  const lam_matrix a = swap ? g->b : g->a, b = swap ? g->a : g->b;
  const lam_matrix a_scale = swap ? m->b_scale : m->a_scale,
                   b_scale = swap ? m->a_scale : m->b_scale;
  const lam_matrix aux = aux_for(g, fused), vector = vector_for(g, fused);
  lam_product_shape s;
  memset(&s, 0, sizeof s);
  s.m = a.rows, s.n = b.rows, s.k = a.cols;
  s.a_by_cols = by_cols(a), s.a_stride = stride_of(a, s.a_by_cols);
  s.b_by_cols = by_cols(b), s.b_stride = stride_of(b, s.b_by_cols);
  s.d_stride = stride_of(d, swap);
  s.aux_stride = has(aux) ? aux.row_stride : 0;
  s.epilogue = epilogue_of(fused, swap);
  s.sm_target = sm_target(card, m->spares);
  s.a_dtype = (uint8_t)a.dtype, s.b_dtype = (uint8_t)b.dtype, s.d_dtype = (uint8_t)d.dtype;
  s.aux_dtype = (uint8_t)aux.dtype, s.vector_dtype = (uint8_t)vector.dtype;
  s.accumulate = g->accumulate, s.tf32 = m->tf32 && a.dtype == LAM_F32;
  s.a_align = align_of(a.data), s.b_align = align_of(b.data), s.d_align = align_of(d.data);
  s.aux_align = has(aux) ? align_of(aux.data) : 0;
  s.vector_align = has(vector) ? align_of(vector.data) : 0;
  s.scales = (uint8_t)((has(a_scale) ? 1 : 0) | (has(b_scale) ? 2 : 0));
  s.card = (uint8_t)card->id;
  const lam_product_places at = {.a = a.data,
                                 .b = b.data,
                                 .a_scale = a_scale.data,
                                 .b_scale = b_scale.data,
                                 .d = d.data,
                                 .aux = aux.data,
                                 .vector = vector.data};
  return lam_product_run(card, &s, &at, stream, out_refused);
}

/* -- what is left after it -- */

static lam_status sum_columns(const lam_workers *w, const lam_gemm *g, int left, void *stream) {
  const lam_gemm_more *m = more_of(g);
  if (left & COLUMN_SUM) LAM_TRY(lam_cuda_column_sum_run(w, g->d, m->column_sum, false, stream));
  if (left & A_SUM)
    LAM_TRY(lam_cuda_column_sum_run(w, lam_matrix_transposed(g->a), m->a_sum, false, stream));
  return LAM_OK;
}

/* z: where the product lies: d, aux, or memory of its own. */
static lam_status finish(const lam_gemm *g, lam_matrix z, int left, void *stream) {
  const lam_matrix none = {0};
  const bool lacks_aux = left & AUX && (left & BIAS || z.data != g->aux.data);
  if (left & (BIAS | ACT | AUX))
    LAM_TRY(lam_cuda_bias_act_run(z, left & BIAS ? g->bias : none,
                                  left & ACT ? g->act : LAM_ACT_NONE, lacks_aux ? g->aux : none,
                                  g->d, stream));
  if (!(left & Z)) return LAM_OK;
  return lam_cuda_act_bwd_run(NULL, more_of(g)->z_act, false, g->d, more_of(g)->z, g->d, stream);
}

/* -- paths -- */

/* An aux that no epilogue writes takes the product itself: one pass less. */
static lam_matrix target_of(const lam_gemm *g, int left) {
  const bool fits = left & AUX && is_by_rows(g->aux) && is_by_rows(g->d);
  return fits && g->aux.dtype == g->d.dtype ? g->aux : g->d;
}

static lam_status run_narrow(const lam_cuda_card *card, const lam_gemm *g, int fused, int left,
                             void *stream, bool *out_refused) {
  const lam_matrix target = target_of(g, left);
  LAM_TRY(ask(card, g, target, fused, stream, out_refused));
  return *out_refused ? LAM_OK : finish(g, target, left, stream);
}

static lam_gemm rows_of(const lam_gemm *g, int64_t first, int64_t n) {
  lam_gemm some = *g;
  some.a = lam_matrix_rows(g->a, first, n);
  some.d = lam_matrix_rows(g->d, first, n);
  if (has(g->aux)) some.aux = lam_matrix_rows(g->aux, first, n);
  return some;
}

/* How many rows of f32 stay in a large card's second-level cache; whole blocks of a product. */
static int64_t wide_rows(int64_t rows, int64_t stride) {
  enum { BYTES = 32 << 20, BLOCK = 128 };
  const int64_t fit = BYTES / 4 / stride / BLOCK * BLOCK;
  return rows < BLOCK || rows < fit ? rows : fit < BLOCK ? BLOCK : fit;
}

/* A bias that no epilogue takes, and d not f32: the product goes to memory of its own in f32, some
 * rows at a time, so that its sum with the bias is rounded once. */
static lam_status run_wide(const lam_cuda_card *card, const lam_gemm *g, int left, void *stream,
                           bool *out_refused) {
  const int64_t stride = (g->d.cols + 7) / 8 * 8, most = wide_rows(g->d.rows, stride);
  lam_matrix sums = {NULL, most, g->d.cols, stride, 1, LAM_F32, false};
  lam_status status = lam_cuda_borrow((uint64_t)(most * stride * 4), stream, &sums.data);
  *out_refused = g->accumulate;
  for (int64_t i = 0; i < g->d.rows && status == LAM_OK && !*out_refused; i += most) {
    const lam_gemm some = rows_of(g, i, g->d.rows - i < most ? g->d.rows - i : most);
    sums.rows = some.d.rows;
    status = ask(card, &some, sums, 0, stream, out_refused);
    if (status == LAM_OK && !*out_refused) status = finish(&some, sums, left, stream);
  }
  lam_cuda_give_back(sums.data, stream);
  return status;
}

/* As much as may be fused; where that is refused the bias alone, then nothing. */
static lam_status run_library(const lam_workers *w, const lam_gemm *g, void *stream,
                              bool *out_refused) {
  const lam_cuda_card *card;
  const int wishes = wishes_of(g), most = fusible(g, wishes);
  const int tries[] = {most, most & BIAS, 0};
  LAM_TRY(lam_cuda_card_for_products(stream, &card));
  for (int i = 0; i < 3; i++) {
    if (i > 0 && tries[i] == tries[i - 1]) continue;
    const bool wide = wishes & ~tries[i] & BIAS && g->d.dtype != LAM_F32; /* nothing is fused */
    const int left = wide ? wishes : wishes & ~tries[i];
    LAM_TRY(wide ? run_wide(card, g, left, stream, out_refused)
                 : run_narrow(card, g, tries[i], left, stream, out_refused));
    if (!*out_refused) return sum_columns(w, g, left, stream);
  }
  return LAM_OK;
}

/* A copy of x by rows, in scratch; x itself where it lies so. */
static lam_status turn(const lam_workers *w, lam_matrix *x, void *stream, void **out_scratch) {
  const lam_matrix from = *x;
  *out_scratch = NULL;
  if (is_by_rows(from)) return LAM_OK;
  x->row_stride = (from.cols + 15) / 16 * 16;
  x->col_stride = 1;
  const uint64_t bytes = (uint64_t)(from.rows * x->row_stride * lam_dtype_bytes(from.dtype));
  LAM_TRY(lam_cuda_borrow(bytes, stream, out_scratch));
  x->data = *out_scratch;
  return lam_cuda_copy_run(w, from, *x, stream);
}

/* cuBLASLt takes fp8 with K innermost only. Turning reads and writes the operands once, which is
 * little beside a product. */
static lam_status run_f8(const lam_workers *w, const lam_gemm *g, void *stream, bool *out_refused) {
  lam_gemm turned = *g;
  void *a = NULL, *b = NULL;
  lam_status status = turn(w, &turned.a, stream, &a);
  if (status == LAM_OK) status = turn(w, &turned.b, stream, &b);
  if (status == LAM_OK) status = run_library(w, &turned, stream, out_refused);
  lam_cuda_give_back(b, stream);
  lam_cuda_give_back(a, stream);
  return status;
}

static lam_status run_plain(const lam_workers *w, const lam_gemm *g, void *stream) {
  const int left = wishes_of(g) & ~(BIAS | ACT | AUX);
  LAM_TRY(lam_cuda_gemm_plain_run(g, stream));
  LAM_TRY(finish(g, g->d, left, stream));
  return sum_columns(w, g, left, stream);
}

static lam_status check(const lam_gemm *g) {
  const lam_cuda_card *card;
  if (g->a.dtype > LAM_F8E5M2 || g->b.dtype > LAM_F8E5M2 || g->d.dtype > LAM_F16 || g->b.packed)
    return lam_fail(LAM_UNIMPLEMENTED, "cuda gemm: %s times %s gives %s%s",
                    lam_dtype_name(g->a.dtype), lam_dtype_name(g->b.dtype),
                    lam_dtype_name(g->d.dtype), g->b.packed ? ", packed" : "");
  if (!is_f8(g->a.dtype) && !is_f8(g->b.dtype)) return LAM_OK;
  LAM_TRY(lam_cuda_card_here(&card));
  if (card->sm >= 89) return LAM_OK;
  return lam_fail(LAM_UNIMPLEMENTED, "cuda gemm: %s needs sm_89 or newer, %s is sm_%d",
                  lam_dtype_name(is_f8(g->a.dtype) ? g->a.dtype : g->b.dtype), card->name,
                  card->sm);
}

/* The scale of fp8 elements is not in their sum. */
bool lam_cuda_gemm_fuses(const lam_gemm *g) {
  return !has(more_of(g)->a_sum) || !is_f8(g->a.dtype);
}

lam_status lam_cuda_gemm_run(const lam_workers *w, const lam_gemm *call, void *stream) {
  lam_gemm g = *call;
  lam_gemm_more more = *more_of(call);
  bool refused = true;
  lam_matrix *const views[] = {&g.a, &g.b, &g.d, &g.aux, &more.z};
  for (int i = 0; i < 5; i++) set_plain_strides(views[i]);
  g.more = &more;
  if (g.d.rows <= 0 || g.d.cols <= 0) return sum_columns(w, &g, wishes_of(&g), stream);
  LAM_TRY(check(&g));
  if (lam_cuda_gemv_takes(&g)) return lam_cuda_gemv_run(&g, stream);
  lam_status (*const library)(const lam_workers *, const lam_gemm *, void *, bool *) =
      is_f8(g.a.dtype) ? run_f8 : run_library;
  if (takes(&g)) LAM_TRY(library(w, &g, stream, &refused));
  return refused ? run_plain(w, &g, stream) : LAM_OK;
}
