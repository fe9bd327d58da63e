/* support.h: matrices of every kind of stride, workers of every kind, and products in double
 * precision to compare with.
 *
 * Invariant: all memory around a matrix's elements holds a pattern; check_around finds a write
 * beside them.
 * Leaves what is compared, and how closely, to the tests. */
#ifndef LAMELLA_TESTS_UNIT_KERNELS_SUPPORT_H
#define LAMELLA_TESTS_UNIT_KERNELS_SUPPORT_H

#include "kernels/cpu/lanes.h"
#include "kernels/device.h"
#include "tests/check.h"

/* How a matrix lies in memory: by rows or by columns, close together or with gaps between, at an
 * offset; or by rows with gaps, each at a multiple of 16 elements. */
typedef enum form { BY_ROWS, ROWS_WITH_GAPS, BY_COLS, COLS_WITH_GAPS, ROWS_APART, N_FORMS } form;

typedef struct box {
  lam_matrix m;
  unsigned char *memory;
  uint64_t bytes;
} box;

/* Zeros, or random numbers in [-1, 1) as dtype has them, in the pattern. */
box box_new(int64_t rows, int64_t cols, lam_dtype dtype, form f);
box box_random(rng *r, int64_t rows, int64_t cols, lam_dtype dtype, form f);
box box_copy(const box *from);
void box_free(box *b);
void check_around(const box *b, const char *what);

double get(lam_matrix m, int64_t row, int64_t col);
void set(lam_matrix m, int64_t row, int64_t col, double v);

/* Elements of `got` against `want` [rows * cols]: |got - want| <= atol + rtol |want|. */
void check_matrix(lam_matrix got, const double *want, double rtol, double atol);
void check_same(lam_matrix a, lam_matrix b);

typedef enum crew { ALONE, TWO_OPENMP, TWO_POOL, N_CREWS } crew;
const lam_workers *workers(crew c); /* TWO_POOL: threads of our own, as a host's pool */

/* The i-th table that this processor can run; NULL past the last. */
const lam_lanes *lanes_here(int i);

double act_of(lam_act act, double x);
double act_grad_of(lam_act act, double x);

/* want = act(a b^T + bias) + before; z, where not NULL, the pre-activation; bias and before may be
 * absent. */
void product_of(const lam_gemm *g, const double *before, double *want, double *z);
double product_tolerance(const lam_gemm *g); /* absolute, for operands in [-1, 1) */
double rounding_of(lam_dtype t);             /* relative, half a unit in the last place */

#endif
