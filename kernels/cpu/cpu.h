/* cpu.h: what the files of the CPU device share.
 * Invariant: everything here may be called by many threads at once.
 * Leaves the inner loops to lanes.h and OpenMP to parallel.h. */
#ifndef LAMELLA_KERNELS_CPU_CPU_H
#define LAMELLA_KERNELS_CPU_CPU_H

#include "kernels/device.h"

/* -- cutting work (work.c) -- */

/* fn(arg, 0..n-1) over the workers; in turn where there is one piece or one worker. */
void lam_cpu_spread(const lam_workers *w, int64_t n, void (*fn)(void *arg, int64_t i), void *arg);

/* Calls fn for pieces of rows that together cover rows x cols, spread over the workers where that
 * pays. */
typedef void (*lam_piece_fn)(void *arg, int64_t row, int64_t col, int64_t n);
void lam_cpu_each_piece(const lam_workers *w, int64_t rows, int64_t cols, lam_piece_fn fn,
                        void *arg);
/* The same with whole rows only: col 0, n = cols. fn is called for rows without columns, too. */
void lam_cpu_each_row(const lam_workers *w, int64_t rows, int64_t cols, lam_piece_fn fn, void *arg);

/* Scratch as the workers lend it. NULL when there is none, with a message written; giving NULL back
 * does nothing. */
void *lam_cpu_borrow(const lam_workers *w, uint64_t bytes);
static inline void lam_cpu_give_back(const lam_workers *w, void *p) {
  if (p) w->give_back(w->context, p);
}

/* -- products -- */

/* How the rows of a packed matrix [N, K] lie; the numbers are part of the packed format.
 * ROWS: one after another, as in a plain matrix. The others: blocks of so many rows; in each,
 * blocks of 16 f32 or 32 bf16 along K; a pair of bf16 stays together. */
typedef enum lam_weight_layout {
  LAM_LAYOUT_ROWS = 0,
  LAM_LAYOUT_64 = 1,
  LAM_LAYOUT_48 = 2,
  LAM_LAYOUT_32 = 3,
  LAM_LAYOUT_16 = 4,
  LAM_N_LAYOUTS
} lam_weight_layout;
uint64_t lam_layout_bytes(lam_weight_layout layout, lam_dtype dtype, int64_t n, int64_t k);

/* A library of matrix products, opened when first used. */
typedef struct lam_library {
  void *(*open)(void);               /* its handle; NULL: not on this machine */
  const char *(*describe)(void);     /* "oneDNN 2.6.3 avx512_core_bf16" */
  uint32_t (*instruction_set)(void); /* a number that packed data depends on */
  bool (*takes)(const lam_gemm *g);  /* strides and dtypes it can work on; d by rows, no aux */
  lam_status (*run)(const lam_workers *w, const lam_gemm *g, lam_weight_layout b_layout);
  /* what it likes best for b [N, K] */
  lam_weight_layout (*layout)(lam_dtype dtype, int64_t n, int64_t k);
  lam_status (*pack)(const lam_workers *w, lam_matrix b, lam_weight_layout layout, void *data);
} lam_library;

const lam_library *lam_gemm_library(void); /* in this binary (backends.c); NULL: none */
const lam_library *lam_gemm_library_here(void); /* NULL also where it cannot be opened */

lam_status lam_gemm_run(const lam_workers *w, const lam_gemm *g, void *stream);
bool lam_gemv_takes(const lam_gemm *g); /* few rows of a, b plain */
lam_status lam_gemv_run(const lam_workers *w, const lam_gemm *g);
lam_status lam_gemm_plain_run(const lam_workers *w, const lam_gemm *g); /* any strides, b plain */

lam_status lam_pack_cols(lam_dtype dtype, int64_t n, int64_t k, int side, int64_t *out_cols);
lam_status lam_pack_run(const lam_workers *w, lam_matrix weight, int side, void *packed,
                        int64_t cols, void *stream);
lam_status lam_pack_open(const void *packed, uint64_t bytes, int *side, lam_dtype *dtype,
                         int64_t *n, int64_t *k);
/* The layout of packed data that lam_pack_open accepted, and where it begins. */
lam_weight_layout lam_pack_layout(const void *packed, void **out_data);

/* -- vectors -- */

lam_status lam_act_run(const lam_workers *w, lam_act act, bool gated, lam_matrix z, lam_matrix y,
                       void *stream);
lam_status lam_act_bwd_again_run(const lam_workers *w, lam_act act, bool gated, lam_matrix dy,
                                 lam_matrix z, lam_matrix dz, void *stream);
lam_status lam_act_bwd_run(const lam_workers *w, lam_act act, bool gated, lam_matrix dy,
                           lam_matrix z, lam_matrix dz, void *stream);
lam_status lam_sum_run(const lam_workers *w, const lam_matrix *parts, int n, lam_matrix bias,
                       lam_matrix residual, lam_matrix y, void *stream);
lam_status lam_column_sum_run(const lam_workers *w, lam_matrix dy, lam_matrix db, bool accumulate,
                              void *stream);
lam_status lam_encode_run(const lam_workers *w, int codec, lam_matrix x, void *coded,
                          void *stream);
lam_status lam_decode_run(const lam_workers *w, int codec, const void *coded, lam_matrix y,
                          void *stream);
lam_status lam_copy_run(const lam_workers *w, lam_matrix from, lam_matrix to, void *stream);

/* -- vocabulary -- */

lam_status lam_find_outside_run(const lam_workers *w, lam_matrix ids, int64_t total,
                                const int64_t *ignored, lam_outside *out, void *stream);
lam_status lam_gather_run(const lam_workers *w, lam_matrix weight, lam_matrix ids, int64_t first,
                          lam_matrix y, void *stream);
lam_status lam_scatter_run(const lam_workers *w, lam_matrix dy, lam_matrix ids, int64_t first,
                           int64_t *links, lam_matrix dw, bool accumulate, void *stream);
lam_status lam_softmax_parts_run(const lam_workers *w, lam_matrix logits, lam_matrix targets,
                                 int64_t first, lam_softmax_part *parts, void *stream);
lam_status lam_cross_entropy_run(const lam_workers *w, const lam_softmax_part *parts, int n_parts,
                                 lam_matrix targets, int64_t ignore, lam_matrix loss,
                                 lam_matrix lse, void *stream);
lam_status lam_cross_entropy_bwd_run(const lam_workers *w, lam_matrix dloss, lam_matrix logits,
                                     lam_matrix targets, lam_matrix lse, int64_t first,
                                     int64_t ignore, lam_matrix dlogits, void *stream);

/* -- norms -- */

lam_status lam_rmsnorm_run(const lam_workers *w, lam_matrix x, lam_matrix g, float eps,
                           lam_matrix y, void *stream);
lam_status lam_rmsnorm_bwd_run(const lam_workers *w, lam_matrix dy, lam_matrix x, lam_matrix g,
                               float eps, lam_matrix dx, lam_matrix dg, bool accumulate,
                               void *stream);
lam_status lam_add_rmsnorm_run(const lam_workers *w, const lam_matrix *parts, int n,
                               lam_matrix residual, lam_matrix g, float eps, lam_matrix sum,
                               lam_matrix y, void *stream);

/* Element i of T indices, or of T values, counted row by row. */
static inline int64_t lam_place_of(lam_matrix m, int64_t i) {
  return i / m.cols * m.row_stride + i % m.cols * m.col_stride;
}
static inline int64_t lam_index_at(lam_matrix m, int64_t i) {
  const int64_t at = lam_place_of(m, i);
  return m.dtype == LAM_I32 ? ((const int32_t *)m.data)[at] : ((const int64_t *)m.data)[at];
}
static inline float *lam_value_at(lam_matrix m, int64_t i) {
  return (float *)m.data + lam_place_of(m, i);
}

static inline int64_t lam_cuts(int64_t n, int64_t piece) { return (n + piece - 1) / piece; }
static inline int64_t lam_round_up(int64_t n, int64_t unit) { return lam_cuts(n, unit) * unit; }
static inline int64_t lam_least(int64_t a, int64_t b) { return a < b ? a : b; }
static inline bool lam_is_float(lam_dtype t) { return t == LAM_F32 || t == LAM_BF16; }

#endif
