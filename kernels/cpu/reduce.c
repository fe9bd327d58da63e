/* reduce.c: sums over parts and over rows.
 *
 * Invariant: the order of every sum is fixed by the shape: parts in their order, then bias, then
 * residual; rows in blocks of ROW_BLOCK, each summed by itself first. So all ranks, and any number
 * of workers, get the same bits.
 * Leaves the loops to lanes.h, the cutting to work.c. */
#include <string.h>

#include "kernels/cpu/cpu.h"
#include "kernels/cpu/lanes.h"

static lam_status refuse(const char *who, const char *what, lam_dtype dtype) {
  return lam_fail(LAM_UNIMPLEMENTED, "cpu %s: %s is %s, the CPU has f32 and bf16", who, what,
                  lam_dtype_name(dtype));
}

typedef struct sum_call {
  const lam_lanes *lanes;
  const lam_matrix *parts;
  int n_parts;
  lam_matrix bias, residual, y;
} sum_call;

static void sum_piece(void *arg, int64_t row, int64_t col, int64_t n) {
  const sum_call *c = arg;
  c->lanes->sum(c->parts, c->n_parts, lam_line_of_vector(c->bias, col),
                lam_line_at(c->residual, row, col), row, col, lam_line_at(c->y, row, col), n);
}

lam_status lam_sum_run(const lam_workers *w, const lam_matrix *parts, int n, lam_matrix bias,
                       lam_matrix residual, lam_matrix y, void *stream) {
  (void)stream;
  if (n < 1) return lam_fail(LAM_INVALID_ARGUMENT, "cpu sum: %d parts, at least 1 is needed", n);
  for (int i = 0; i < n; i++)
    if (!lam_is_float(parts[i].dtype)) return refuse("sum", "a part", parts[i].dtype);
  if (!lam_is_float(y.dtype)) return refuse("sum", "y", y.dtype);
  if (lam_matrix_here(bias) && !lam_is_float(bias.dtype))
    return refuse("sum", "the bias", bias.dtype);
  if (lam_matrix_here(residual) && !lam_is_float(residual.dtype))
    return refuse("sum", "the residual", residual.dtype);
  sum_call c = {lam_lanes_pick(), parts, n, bias, residual, y};
  lam_cpu_each_piece(w, y.rows, y.cols, sum_piece, &c);
  return LAM_OK;
}

/* -- over rows -- */

enum { COL_BLOCK = 512, ROW_BLOCK = 64 };

typedef struct column_call {
  const lam_lanes *lanes;
  lam_matrix dy, db;
  bool accumulate;
} column_call;

static void sum_columns(void *arg, int64_t block) {
  const column_call *c = arg;
  const int64_t col = block * COL_BLOCK, n = lam_least(COL_BLOCK, c->dy.cols - col);
  float total[COL_BLOCK] = {0}, some[COL_BLOCK];
  for (int64_t row = 0; row < c->dy.rows; row++) {
    if (row % ROW_BLOCK == 0) memset(some, 0, sizeof some);
    c->lanes->add(lam_line_at(c->dy, row, col), some, n);
    if (row % ROW_BLOCK == ROW_BLOCK - 1 || row == c->dy.rows - 1)
      c->lanes->add((lam_line){some, 1, LAM_F32}, total, n);
  }
  const lam_finish f = {.d = lam_line_of_vector(c->db, col), .accumulate = c->accumulate};
  c->lanes->finish(total, &f, n);
}

lam_status lam_column_sum_run(const lam_workers *w, lam_matrix dy, lam_matrix db, bool accumulate,
                              void *stream) {
  (void)stream;
  if (!lam_is_float(dy.dtype)) return refuse("column_sum", "dy", dy.dtype);
  if (!lam_is_float(db.dtype)) return refuse("column_sum", "db", db.dtype);
  column_call c = {lam_lanes_pick(), dy, db, accumulate};
  lam_cpu_spread(w, lam_cuts(dy.cols, COL_BLOCK), sum_columns, &c);
  return LAM_OK;
}
