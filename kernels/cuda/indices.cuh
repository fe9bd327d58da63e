/* indices.cuh: indices and values per token, and rows that move as they are.
 *
 * Invariant: element i of T is counted row by row, whatever the matrix's strides.
 * Leaves ranges of indices to the kernels. */
#ifndef LAMELLA_KERNELS_CUDA_INDICES_CUH
#define LAMELLA_KERNELS_CUDA_INDICES_CUH

#include "kernels/cuda/kernel.cuh"

/* T indices (i32 or i64) or values (f32). */
typedef struct lam_indices {
  char *data;
  int64_t cols, row_stride, col_stride;
  bool longs;
} lam_indices;

static inline lam_indices lam_indices_of(lam_matrix m) {
  const lam_indices x = {(char *)m.data, m.cols, m.row_stride, m.col_stride, m.dtype == LAM_I64};
  return x;
}

LAM_DEVICE int64_t lam_place_of(const lam_indices &x, int64_t i) {
  return i / x.cols * x.row_stride + i % x.cols * x.col_stride;
}
LAM_DEVICE int64_t lam_index_at(const lam_indices &x, int64_t i) {
  const int64_t at = lam_place_of(x, i);
  return x.longs ? ((const int64_t *)x.data)[at] : ((const int32_t *)x.data)[at];
}
LAM_DEVICE float *lam_value_at(const lam_indices &x, int64_t i) {
  return (float *)x.data + lam_place_of(x, i);
}

#endif
