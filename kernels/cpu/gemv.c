/* gemv.c: products of a few rows with plain weights: decode. Every weight is read once, as fast as
 * memory gives them.
 *
 *   rows of b contiguous    -> dot: some rows of b at once, each a stream; sums in registers
 *   columns of b contiguous -> axpy: along n, eight rows deep; sums in the first-level cache
 *
 * One core of Zen 4, 1 x 11008 x 4096, bf16 / f32: rows 4.3 / 7.9 ms (20-23 GB/s), columns 5.2 /
 * 10.0 ms; oneDNN takes 6.9 / 12.4 ms, 12.4 / 16.5 ms, and 6.0 / 13.5 ms on weights it packed.
 * Invariant: an element's sum runs over k in an order that K alone fixes.
 * Leaves more rows, and anything packed, to gemm.c. */
#include <string.h>

#include "kernels/cpu/cpu.h"
#include "kernels/cpu/lanes.h"

enum {
  DOT_COLS = 96, /* whole groups of 8, 6, 4 or 3 rows */
  AXPY_SUMS = 8192, /* of all rows of a */
  AXPY_COLS = 2048, /* at most; a page of bf16 */
  TASK_BYTES = 256 * 1024
};

typedef struct gemv {
  const lam_lanes *lanes;
  const lam_gemm *g;
  const lam_dot *dot; /* NULL: axpy */
  void *x;            /* a, contiguous, in the dtype that the loop takes */
  int64_t ldx, step, cols_per_task;
} gemv;

static bool by_rows(lam_matrix b) { return b.col_stride == 1 || b.cols <= 1; }

bool lam_gemv_takes(const lam_gemm *g) {
  const lam_matrix a = g->a, b = g->b;
  return a.rows <= LAM_FEW_ROWS && !b.packed && a.dtype == b.dtype && lam_is_float(b.dtype) &&
         lam_is_float(g->d.dtype) && (by_rows(b) || b.row_stride == 1 || b.rows <= 1);
}

/* What follows the product of columns [col, col + n): y [m, ld] goes to d. */
static void finish(const gemv *v, const float *y, int64_t ld, int64_t col, int64_t n) {
  const lam_gemm *g = v->g;
  for (int64_t i = 0; i < g->a.rows; i++) {
    const lam_finish f = {.bias = lam_line_of_vector(g->bias, col),
                          .aux = lam_line_at(g->aux, i, col),
                          .d = lam_line_at(g->d, i, col),
                          .act = g->act,
                          .accumulate = g->accumulate};
    v->lanes->finish(y + i * ld, &f, n);
  }
}

static void dot_cols(const gemv *v, int64_t col, int64_t n) {
  const lam_matrix b = v->g->b;
  float y[LAM_FEW_ROWS][DOT_COLS];
  v->dot->run((int)v->g->a.rows, v->x, v->ldx, lam_line_at(b, col, 0).data, b.row_stride, b.cols, n,
              y[0], DOT_COLS);
  finish(v, y[0], DOT_COLS, col, n);
}

static void axpy_cols(const gemv *v, int64_t col, int64_t n) {
  const lam_matrix b = v->g->b;
  float y[AXPY_SUMS];
  memset(y, 0, sizeof *y * (size_t)(v->g->a.rows * v->step));
  (b.dtype == LAM_F32 ? v->lanes->axpy_f32 : v->lanes->axpy_bf16)(
      (int)v->g->a.rows, v->x, v->ldx, lam_line_at(b, col, 0).data, b.col_stride, b.cols, n, y,
      v->step);
  finish(v, y, v->step, col, n);
}

static void run_task(void *arg, int64_t task) {
  const gemv *v = arg;
  const int64_t first = task * v->cols_per_task,
                last = lam_least(v->g->b.rows, first + v->cols_per_task);
  for (int64_t col = first; col < last; col += v->step)
    (v->dot ? dot_cols : axpy_cols)(v, col, lam_least(v->step, last - col));
}

/* a as the loops want it: contiguous, padded with zeros up to whole steps. */
static void *take_x(const lam_workers *w, const lam_lanes *lanes, lam_matrix a, lam_dtype dtype,
                    int64_t ld) {
  const int64_t bytes = lam_dtype_bytes(dtype);
  char *x = lam_cpu_borrow(w, (uint64_t)(a.rows * ld * bytes));
  for (int64_t i = 0; x && i < a.rows; i++) {
    char *row = x + i * ld * bytes;
    lanes->copy(lam_line_at(a, i, 0), (lam_line){row, 1, dtype}, a.cols);
    memset(row + a.cols * bytes, 0, (size_t)((ld - a.cols) * bytes));
  }
  return x;
}

/* Wide pieces, for they are read in turn from rows that lie far apart; as many for each thread. */
static int64_t axpy_step(const lam_workers *w, const lam_gemm *g) {
  enum { LINE = 64 }; /* elements */
  const int64_t most = lam_least(AXPY_COLS, AXPY_SUMS / g->a.rows);
  const int64_t cols = lam_cuts(g->b.rows, w->n_threads);
  if (w->n_threads == 1) return most;
  return lam_least(most, lam_round_up(lam_cuts(cols, lam_cuts(cols, most)), LINE));
}

lam_status lam_gemv_run(const lam_workers *w, const lam_gemm *g) {
  const lam_lanes *lanes = lam_lanes_pick();
  const int64_t row_bytes = g->b.cols * lam_dtype_bytes(g->b.dtype) + 1;
  gemv v = {.lanes = lanes, .g = g};
  if (by_rows(g->b)) v.dot = g->b.dtype == LAM_F32 ? &lanes->dot_f32 : &lanes->dot_bf16;

  v.step = v.dot ? DOT_COLS : axpy_step(w, g);
  v.ldx = v.dot ? lam_round_up(g->b.cols, v.dot->k_step) : g->b.cols;
  v.x = take_x(w, lanes, g->a, v.dot ? v.dot->x_dtype : LAM_F32, v.ldx);
  if (!v.x) return LAM_RESOURCE_EXHAUSTED;
  v.cols_per_task = v.dot ? lam_round_up(lam_cuts(TASK_BYTES, row_bytes), v.step) : v.step;
  lam_cpu_spread(w, lam_cuts(g->b.rows, v.cols_per_task), run_task, &v);
  lam_cpu_give_back(w, v.x);
  return LAM_OK;
}
