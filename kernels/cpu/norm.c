/* norm.c: the root mean square norm, its gradients, and a sum with its norm.
 *
 * Invariant: a row's result depends on that row alone; the gradient of g sums rows in blocks of
 * ROW_BLOCK, each by itself first. So any number of workers, and all ranks, get the same bits.
 * Leaves the loops to lanes.h, the cutting to work.c. */
#include <math.h>
#include <string.h>

#include "kernels/cpu/cpu.h"
#include "kernels/cpu/lanes.h"

static lam_status check(const char *who, const lam_matrix *ms, int n) {
  for (int i = 0; i < n; i++)
    if (lam_matrix_here(ms[i]) && !lam_is_float(ms[i].dtype))
      return lam_fail(LAM_UNIMPLEMENTED, "cpu %s: operand %d is %s, the CPU has f32 and bf16", who,
                      i, lam_dtype_name(ms[i].dtype));
  return LAM_OK;
}

typedef struct norm_call {
  const lam_lanes *lanes;
  lam_matrix dy, x, g, y; /* dy, x, y [T, N]  g [1, N]; backward: y is dx */
  float eps;
  float *roots; /* [T]: r of each row */
  lam_matrix dg;
  bool accumulate;
  const lam_matrix *parts; /* a sum, written to x, comes first */
  int n_parts;
  lam_matrix residual;
} norm_call;

static float root_of(const norm_call *c, lam_line x, int64_t n) {
  const lam_line none = {NULL, 0, LAM_F32};
  const float squares = c->lanes->product_sum(x, x, none, n);
  return 1.0f / sqrtf(squares / (float)n + c->eps);
}

static void norm_row(void *arg, int64_t row, int64_t col, int64_t n) {
  const norm_call *c = arg;
  const lam_line x = lam_line_at(c->x, row, col);
  if (n == 0) return;
  c->lanes->scale(x, root_of(c, x, n), lam_line_of_vector(c->g, col), lam_line_at(c->y, row, col),
                  n);
}

lam_status lam_rmsnorm_run(const lam_workers *w, lam_matrix x, lam_matrix g, float eps,
                           lam_matrix y, void *stream) {
  (void)stream;
  LAM_TRY(check("rmsnorm", (lam_matrix[]){x, g, y}, 3));
  norm_call c = {.lanes = lam_lanes_pick(), .x = x, .g = g, .y = y, .eps = eps};
  lam_cpu_each_row(w, x.rows, x.cols, norm_row, &c);
  return LAM_OK;
}

static void sum_and_norm_row(void *arg, int64_t row, int64_t col, int64_t n) {
  const norm_call *c = arg;
  const lam_line no_bias = {NULL, 0, LAM_F32};
  c->lanes->sum(c->parts, c->n_parts, no_bias, lam_line_at(c->residual, row, col), row, col,
                lam_line_at(c->x, row, col), n);
  norm_row(arg, row, col, n);
}

lam_status lam_add_rmsnorm_run(const lam_workers *w, const lam_matrix *parts, int n,
                               lam_matrix residual, lam_matrix g, float eps, lam_matrix sum,
                               lam_matrix y, void *stream) {
  (void)stream;
  LAM_TRY(check("add_rmsnorm", parts, n));
  LAM_TRY(check("add_rmsnorm", (lam_matrix[]){residual, g, sum, y}, 4));
  norm_call c = {.lanes = lam_lanes_pick(),
                 .x = sum,
                 .g = g,
                 .y = y,
                 .eps = eps,
                 .parts = parts,
                 .n_parts = n,
                 .residual = residual};
  lam_cpu_each_row(w, sum.rows, sum.cols, sum_and_norm_row, &c);
  return LAM_OK;
}

/* -- gradients -- */

/* roots[row], and dx where it is wanted */
static void bwd_row(void *arg, int64_t row, int64_t col, int64_t n) {
  const norm_call *c = arg;
  if (n == 0) return;
  const lam_line dy = lam_line_at(c->dy, row, col), x = lam_line_at(c->x, row, col);
  const lam_line g = lam_line_of_vector(c->g, col);
  const float r = root_of(c, x, n);
  c->roots[row] = r;
  if (!lam_matrix_here(c->y)) return;
  const float mean = c->lanes->product_sum(dy, x, g, n) / (float)n;
  c->lanes->scale_less(dy, g, r, x, r * r * r * mean, lam_line_at(c->y, row, col), n);
}

enum { COL_BLOCK = 512, ROW_BLOCK = 64 };

static void sum_columns(void *arg, int64_t block) {
  const norm_call *c = arg;
  const int64_t col = block * COL_BLOCK, n = lam_least(COL_BLOCK, c->x.cols - col);
  float total[COL_BLOCK] = {0}, some[COL_BLOCK];
  for (int64_t row = 0; row < c->x.rows; row++) {
    if (row % ROW_BLOCK == 0) memset(some, 0, sizeof some);
    c->lanes->add_product(lam_line_at(c->dy, row, col), lam_line_at(c->x, row, col), c->roots[row],
                          some, n);
    if (row % ROW_BLOCK == ROW_BLOCK - 1 || row == c->x.rows - 1)
      c->lanes->add((lam_line){some, 1, LAM_F32}, total, n);
  }
  const lam_finish f = {.d = lam_line_of_vector(c->dg, col), .accumulate = c->accumulate};
  c->lanes->finish(total, &f, n);
}

lam_status lam_rmsnorm_bwd_run(const lam_workers *w, lam_matrix dy, lam_matrix x, lam_matrix g,
                               float eps, lam_matrix dx, lam_matrix dg, bool accumulate,
                               void *stream) {
  (void)stream;
  LAM_TRY(check("rmsnorm_bwd", (lam_matrix[]){dy, x, g, dx, dg}, 5));
  norm_call c = {.lanes = lam_lanes_pick(),
                 .dy = dy,
                 .x = x,
                 .g = g,
                 .y = dx,
                 .eps = eps,
                 .dg = dg,
                 .accumulate = accumulate};
  c.roots = lam_cpu_borrow(w, (uint64_t)(x.rows + 1) * sizeof(float));
  if (!c.roots) return LAM_RESOURCE_EXHAUSTED;
  lam_cpu_each_row(w, x.rows, x.cols, bwd_row, &c);
  if (lam_matrix_here(dg)) lam_cpu_spread(w, lam_cuts(x.cols, COL_BLOCK), sum_columns, &c);
  lam_cpu_give_back(w, c.roots);
  return LAM_OK;
}
