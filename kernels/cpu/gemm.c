/* gemm.c: which path a product takes.
 *
 *   packed b                          the library, in the layout that the weight was packed in
 *   at most 8 rows of a               gemv.c: bound by memory, each weight read once
 *   what the library takes            the library; with aux, or an activation that it has not, a
 *                                     second pass follows over rows that are still in the cache
 *   the rest                          gemm_plain.c: odd strides, K = 0, no library
 *
 * Invariant: every shape and stride that device.h allows has a path. Leaves products themselves to
 * those files. */
#include "kernels/cpu/cpu.h"

/* Strides of a dimension of at most one element mean nothing; give them values that say "by rows"
 * or "by columns". */
static void set_plain_strides(lam_matrix *m) {
  if (m->packed || !lam_matrix_here(*m)) return;
  if (m->cols <= 1) m->col_stride = 1;
  if (m->rows > 1) return;
  m->row_stride = m->col_stride == 1 && m->cols > 0 ? m->cols : 1;
}

static bool has_plain_strides(const lam_matrix *m) {
  if (m->packed || (!m->data && m->rows == 0)) return true;
  if (m->cols <= 1 && m->col_stride != 1) return false;
  return m->rows > 1 || m->row_stride == (m->col_stride == 1 && m->cols > 0 ? m->cols : 1);
}

static bool is_by_cols(lam_matrix m) { return m.col_stride != 1 && m.row_stride == 1; }

/* d^T = b a^T: a weight gradient whose weight is stored [K, N]. */
static lam_gemm transposed(const lam_gemm *g) {
  return (lam_gemm){.a = g->b,
                    .b = g->a,
                    .d = lam_matrix_transposed(g->d),
                    .act = g->act,
                    .accumulate = g->accumulate};
}

static bool has(lam_matrix m) { return lam_matrix_here(m); }

/* The product with its bias, for rows [row, row + n) into d: the first of two passes. */
static lam_gemm first_pass(const lam_gemm *g, int64_t row, int64_t n, lam_matrix d) {
  return (lam_gemm){
      .a = lam_matrix_rows(g->a, row, n), .b = g->b, .bias = g->bias, .d = d};
}

/* The first pass goes to aux, to d where it is f32, or else to scratch memory, so that what is
 * rounded is the activation's result alone. */
static bool needs_scratch(const lam_gemm *g) { return !has(g->aux) && g->d.dtype != LAM_F32; }

static lam_matrix between_passes(const lam_gemm *g, int64_t row, int64_t n, void *scratch) {
  const int64_t cols = g->d.cols;
  if (needs_scratch(g)) return (lam_matrix){scratch, n, cols, cols, 1, LAM_F32, false};
  return lam_matrix_rows(has(g->aux) ? g->aux : g->d, row, n);
}

/* The product with its bias, then the activation, for `step` rows at a time. */
static lam_status run_two_passes(const lam_workers *w, const lam_gemm *g, lam_weight_layout layout,
                                 int64_t step, void *scratch) {
  for (int64_t row = 0; row < g->d.rows; row += step) {
    const lam_matrix d = lam_matrix_rows(g->d, row, lam_least(step, g->d.rows - row));
    const lam_matrix z = between_passes(g, row, d.rows, scratch);
    const lam_gemm part = first_pass(g, row, d.rows, z);
    LAM_TRY(lam_gemm_library()->run(w, &part, layout));
    LAM_TRY(lam_act_run(w, g->act, false, z, d, NULL));
  }
  return LAM_OK;
}

/* One pass where the library also applies the activation; two where aux is wanted, or an activation
 * that the library has not. The second pass finds its rows in the cache, yet 128 rows and more cost
 * the product under 3 %. */
static lam_status run_library(const lam_workers *w, const lam_gemm *g, lam_weight_layout layout) {
  enum { LEAST_ROWS = 128, CACHE_BYTES = 4 << 20 };
  if (lam_gemm_library()->takes(g)) return lam_gemm_library()->run(w, g, layout);
  const int64_t bytes = g->d.rows * g->d.cols * lam_dtype_bytes(g->d.dtype);
  const int64_t n_parts = lam_least(lam_cuts(bytes, CACHE_BYTES), lam_cuts(g->d.rows, LEAST_ROWS));
  const int64_t step = lam_cuts(g->d.rows, n_parts);
  const uint64_t scratch_bytes = (uint64_t)(step * g->d.cols) * sizeof(float);
  void *scratch = needs_scratch(g) ? lam_cpu_borrow(w, scratch_bytes) : NULL;
  if (needs_scratch(g) && !scratch) return LAM_RESOURCE_EXHAUSTED;
  const lam_status status = run_two_passes(w, g, layout, step, scratch);
  lam_cpu_give_back(w, scratch);
  return status;
}

static bool library_can(const lam_gemm *g) {
  const lam_gemm whole = first_pass(g, 0, g->d.rows, has(g->aux) ? g->aux : g->d);
  const lam_library *library = lam_gemm_library_here();
  return library && (library->takes(g) || (!g->accumulate && library->takes(&whole)));
}

static lam_status run_plain_b(const lam_workers *w, const lam_gemm *g) {
  if (lam_gemv_takes(g)) return lam_gemv_run(w, g);
  return library_can(g) ? run_library(w, g, LAM_LAYOUT_ROWS) : lam_gemm_plain_run(w, g);
}

/* Packed blocks: only the library reads them. */
static lam_status run_blocks(const lam_workers *w, const lam_gemm *g, lam_weight_layout layout) {
  if (library_can(g)) return run_library(w, g, layout);
  return lam_fail(LAM_UNIMPLEMENTED,
                  "cpu gemm: packed weights need rows of aux, and a bias, that are contiguous");
}

static lam_status add_or_copy(const lam_workers *w, const lam_gemm *g, lam_matrix rows) {
  const lam_matrix none = {0};
  if (!g->accumulate) return lam_copy_run(w, rows, g->d, NULL);
  return lam_sum_run(w, (lam_matrix[]){g->d, rows}, 2, none, none, g->d, NULL);
}

/* The library writes rows; a d of columns gets them from scratch memory. */
static lam_status run_by_rows(const lam_workers *w, const lam_gemm *g, lam_weight_layout layout) {
  lam_gemm part = *g;
  part.accumulate = false;
  part.d.dtype = LAM_F32; /* d is rounded once */
  part.d.row_stride = g->d.cols;
  part.d.col_stride = 1;
  part.d.data = lam_cpu_borrow(w, (uint64_t)(g->d.rows * g->d.cols) * sizeof(float));
  if (!part.d.data) return LAM_RESOURCE_EXHAUSTED;
  lam_status status = run_blocks(w, &part, layout);
  if (status == LAM_OK) status = add_or_copy(w, g, part.d);
  lam_cpu_give_back(w, part.d.data);
  return status;
}

static lam_status run_packed_b(const lam_workers *w, lam_gemm *g) {
  const lam_weight_layout layout = lam_pack_layout(g->b.data, &g->b.data);
  if (layout == LAM_LAYOUT_ROWS) {
    g->b.packed = false;
    g->b.row_stride = g->b.cols;
    g->b.col_stride = 1;
    return run_plain_b(w, g);
  }
  return is_by_cols(g->d) && !has(g->aux) ? run_by_rows(w, g, layout) : run_blocks(w, g, layout);
}

/* Nothing to correct: then the caller's own views do, for views are slow to copy: 20 ns. */
static bool is_ready(const lam_gemm *g) {
  const lam_matrix *const views[] = {&g->a, &g->b, &g->d, &g->aux};
  for (int i = 0; i < 4; i++)
    if (!has_plain_strides(views[i])) return false;
  return g->d.col_stride == 1 && g->a.cols > 0 && !g->b.packed;
}

lam_status lam_gemm_run(const lam_workers *w, const lam_gemm *call, void *stream) {
  (void)stream;
  if (call->d.rows <= 0 || call->d.cols <= 0) return LAM_OK;
  if (is_ready(call)) return run_plain_b(w, call);
  lam_gemm g = *call;
  lam_matrix *const views[] = {&g.a, &g.b, &g.d, &g.aux};
  for (int i = 0; i < 4; i++) set_plain_strides(views[i]);
  if (is_by_cols(g.d) && !g.b.packed && !has(g.bias) && !has(g.aux)) g = transposed(&g);
  if (g.a.cols == 0) return lam_gemm_plain_run(w, &g);
  return g.b.packed ? run_packed_b(w, &g) : run_plain_b(w, &g);
}
