/* lanes.h: the inner loops of the CPU device, as one table per instruction set.
 *
 * A line is a row of elements in memory; every loop takes lines of f32 or bf16, works in f32 and
 * rounds once, at the store.
 * Invariant: what an element becomes depends on its own operands only, not on its place in a line
 * or on how a line was cut, so that any split over workers gives the same bits.
 * Leaves the cutting, the threads and all larger blocking to the callers in this folder. */
#ifndef LAMELLA_KERNELS_CPU_LANES_H
#define LAMELLA_KERNELS_CPU_LANES_H

#include "kernels/device.h"

enum {
  LAM_FEW_ROWS = 8, /* the most rows of x that the `dot` and `axpy` loops take */
  LAM_LANES_BLOCK = 64
};

/* n elements, `stride` apart. Absent: data NULL. */
typedef struct lam_line {
  void *data;
  int64_t stride;
  lam_dtype dtype;
} lam_line;

/* What follows a product: d = act(product + bias) (+ d where accumulate); aux, where present, gets
 * product + bias. */
typedef struct lam_finish {
  lam_line bias, aux, d;
  lam_act act;
  bool accumulate;
} lam_finish;

/* Products of m <= LAM_FEW_ROWS rows of x with rows of weights:
 * y[i][j] = sum over k of x[i][k] w[j][k].
 * x is contiguous, of dtype x_dtype; each row is padded with zeros to a multiple of k_step. */
typedef struct lam_dot {
  lam_dtype x_dtype;
  int k_step;
  void (*run)(int m, const void *x, int64_t ldx, const void *w, int64_t ldw, int64_t k, int64_t n,
              float *y, int64_t ldy);
} lam_dot;

typedef struct lam_lanes {
  const char *name;
  bool (*is_here)(void); /* this processor has the instructions */

  void (*copy)(lam_line from, lam_line to, int64_t n);
  /* y = act(z), or act(z) * up where up is present */
  void (*act)(lam_act act, lam_line z, lam_line up, lam_line y, int64_t n);
  /* dz = dy act'(z); with `up` (then also dup): dz = dy up act'(z), dup = dy act(z). Where y is
   * present, it is what act gives: it may be dy. */
  void (*act_bwd)(lam_act act, lam_line dy, lam_line z, lam_line up, lam_line dz, lam_line dup,
                  lam_line y, int64_t n);
  /* y = parts[0] + parts[1] + ... + bias + residual at [row, col...] of each */
  void (*sum)(const lam_matrix *parts, int n_parts, lam_line bias, lam_line residual, int64_t row,
              int64_t col, lam_line y, int64_t n);
  /* total += x; total has room for whole blocks of LAM_LANES_BLOCK, whose rest stays as it was */
  void (*add)(lam_line x, float *total, int64_t n);
  void (*finish)(const float *product, const lam_finish *f, int64_t n);

  /* The largest of n elements, NaN aside; -infinity of none. */
  float (*max)(lam_line x, int64_t n);
  /* The sum of e^(x - shift), in an order that n alone decides. */
  float (*exp_sum)(lam_line x, float shift, int64_t n);
  /* y = scale e^(x - shift) */
  void (*exp)(lam_line x, float shift, float scale, lam_line y, int64_t n);

  /* The sum of a b c (c may be absent), in an order that n alone decides. */
  float (*product_sum)(lam_line a, lam_line b, lam_line c, int64_t n);
  /* y = x by g */
  void (*scale)(lam_line x, float by, lam_line g, lam_line y, int64_t n);
  /* dx = dy g by - x less */
  void (*scale_less)(lam_line dy, lam_line g, float by, lam_line x, float less, lam_line dx,
                     int64_t n);
  /* total += a b by; total has room as for add */
  void (*add_product)(lam_line a, lam_line b, float by, float *total, int64_t n);

  /* A line in a codec with tiles (codec.h): to and from its scales and its bytes, both wherever. */
  void (*encode)(int codec, lam_line x, int64_t n, void *scales, void *bytes);
  void (*decode)(int codec, const void *scales, const void *bytes, lam_line y, int64_t n);

  lam_dot dot_f32, dot_bf16;
  /* y[i][j] += sum over k of x[i][k] w[k][j], j < n: weights whose rows run along n. x f32. */
  void (*axpy_f32)(int m, const float *x, int64_t ldx, const void *w, int64_t ldw, int64_t k,
                   int64_t n, float *y, int64_t ldy);
  void (*axpy_bf16)(int m, const float *x, int64_t ldx, const void *w, int64_t ldw, int64_t k,
                    int64_t n, float *y, int64_t ldy);

  /* One tile of the plain gemm: c [tile_rows, tile_cols] += a b,
   * from panels a [k][tile_rows] and b [k][tile_cols]. */
  int tile_rows, tile_cols;
  void (*tile)(int64_t k, const float *a, const float *b, float *c, int64_t ldc);
} lam_lanes;

const lam_lanes *lam_lanes_pick(void);    /* the best that this processor has */
extern const lam_lanes *lam_lanes_forced; /* taken in its place where set: for tests */
/* Every table in this binary, best first; the last one always runs. */
const lam_lanes *const *lam_lanes_all(int *n);

extern const lam_lanes lam_lanes_avx512_bf16, lam_lanes_avx512, lam_lanes_avx2, lam_lanes_c;

static inline lam_line lam_line_at(lam_matrix m, int64_t row, int64_t col) {
  if (m.data == NULL) return (lam_line){NULL, 0, m.dtype};
  const int64_t at = row * m.row_stride + col * m.col_stride;
  return (lam_line){(char *)m.data + at * lam_dtype_bytes(m.dtype), m.col_stride, m.dtype};
}

/* A vector, held as [1, N] or as [N, 1]. */
static inline lam_line lam_line_of_vector(lam_matrix m, int64_t at) {
  if (m.rows > 1 && m.cols == 1) m = lam_matrix_transposed(m);
  return lam_line_at(m, 0, at);
}

#endif
