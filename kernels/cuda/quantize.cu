/* quantize.cu: a matrix as fp8 with one scale, found on the card.
 *
 * Two passes: the largest magnitude, by an atomic maximum of one number a block (magnitudes as bits
 * are in the order of integers), then the codes. Floor, bf16 [8192, 28672] at 3.0 TB/s on an H100
 * (predicted, not measured): 2 + 3 bytes an element, 391 us.
 * Invariant: scale and codes follow from the elements alone, in whatever order blocks come.
 * Leaves elements in memory to kernel.cuh. */
#include "kernels/cuda/kernel.cuh"

enum { THREADS = 256, BLOCKS = 1024 }; /* some eight blocks for each SM of a large card */

typedef struct magnitudes {
  lam_view x;
  int64_t rows, cols;
  unsigned *most; /* the bits of the largest */
} magnitudes;

/* A block takes every gridDim.x-th row; NaN aside. */
static __global__ void __launch_bounds__(THREADS) largest(magnitudes m) {
  float most = 0.0f;
  for (int64_t row = blockIdx.x; row < m.rows; row += gridDim.x)
    for (int64_t col = (int64_t)threadIdx.x * LAM_VEC; col < m.cols; col += THREADS * LAM_VEC) {
      const int n = m.cols - col < LAM_VEC ? (int)(m.cols - col) : LAM_VEC;
      const lam_vec v = lam_vec_load(m.x, row, col, n);
      for (int i = 0; i < LAM_VEC; i++) most = lam_greater::of(most, fabsf(v.at[i]));
    }
  most = lam_block_reduce<lam_greater>(most, (float *)lam_cuda_shared());
  if (threadIdx.x == 0) atomicMax(m.most, lam_bits_of_f32(most));
}

struct code_piece {
  enum { BLOCKS = 5 };
  lam_view x, y;
  const unsigned *most;
  float *scale, largest; /* largest: of y's dtype */

  __device__ void operator()(int64_t row, int64_t col, int n) const {
    const float found = lam_f32_of_bits(*most), by = found > 0.0f ? found / largest : 1.0f;
    lam_vec v = lam_vec_load(x, row, col, n);
    for (int i = 0; i < LAM_VEC; i++) v.at[i] /= by;
    lam_vec_store(y, row, col, n, v);
    if (row == 0 && col == 0) *scale = by;
  }
};

struct unit_scale { /* of nothing */
  enum { BLOCKS = 6 };
  float *scale;
  __device__ void operator()(int64_t, int64_t, int) const { *scale = 1.0f; }
};

static lam_status find_and_code(lam_matrix x, lam_matrix y, float *scale, unsigned *most,
                                void *stream) {
  const cudaError_t error = cudaMemsetAsync(most, 0, sizeof *most, (cudaStream_t)stream);
  LAM_TRY(lam_cuda_refused(error, "quantize", "the maximum was not cleared"));
  const magnitudes m = {lam_view_of(x), x.rows, x.cols, most};
  const dim3 grid((unsigned)lam_cuda_least(x.rows, BLOCKS));
  LAM_TRY(lam_cuda_launch(largest, grid, dim3(THREADS), 32 * sizeof(float), stream, m, "quantize"));
  const code_piece piece = {lam_view_of(x), lam_view_of(y), most, scale,
                            y.dtype == LAM_F8E4M3 ? 448.0f : 57344.0f};
  return lam_cuda_each_piece(x.rows, x.cols, piece, stream, "quantize");
}

extern "C" lam_status lam_cuda_quantize_run(const lam_workers *w, lam_matrix x, lam_matrix y,
                                            lam_matrix scale, void *stream) {
  void *most;
  (void)w;
  if (!lam_cuda_is_float(x.dtype) || (y.dtype != LAM_F8E4M3 && y.dtype != LAM_F8E5M2))
    return lam_fail(LAM_UNIMPLEMENTED, "cuda quantize: from dtype number %d to number %d, no fp8",
                    (int)x.dtype, (int)y.dtype);
  const unit_scale unit = {(float *)scale.data};
  if (x.rows <= 0 || x.cols <= 0) return lam_cuda_each_piece(1, 1, unit, stream, "quantize");
  LAM_TRY(lam_cuda_borrow(sizeof(unsigned), stream, &most));
  const lam_status status = find_and_code(x, y, (float *)scale.data, (unsigned *)most, stream);
  lam_cuda_give_back(most, stream);
  return status;
}
