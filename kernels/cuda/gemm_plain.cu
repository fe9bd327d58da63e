/* gemm_plain.cu: the product, for operands that cuBLASLt does not take: odd strides, mixed dtypes,
 * fp8 in sizes that it has not, K = 0.
 *
 * The ladder: one thread an element -> tiles of a and b in shared memory, each thread 4 x 4 elements
 * of d in registers. No tensor cores: predicted to reach 8-15 TFLOP/s on an H100, a sixtieth of
 * cuBLASLt: right everywhere, fast nowhere.
 * Invariant: f32 inside, k in order: an element's bits depend on its row of a and of b alone.
 * Leaves bias, aux and activation to epilogue.cuh, z and sums to gemm.c. */
#include "kernels/cuda/epilogue.cuh"

enum { TILE = 64, DEPTH = 16, SIDE = 16, EACH = TILE / SIDE, THREADS = SIDE * SIDE };

typedef struct plain_gemm {
  lam_view a, b;
  lam_epilogue then;
  int64_t m, n, k;
} plain_gemm;

/* Rows [row, row + TILE) and columns [k, k + DEPTH) of x [rows, depth], as tile[k][row], 0 outside.
 * Neighbouring threads read neighbours in memory. */
LAM_DEVICE void load_tile(const lam_view &x, int64_t row, int64_t rows, int64_t k, int64_t depth,
                          float (*tile)[TILE + 1]) {
  for (int i = threadIdx.x; i < TILE * DEPTH; i += THREADS) {
    const bool along_k = x.col_stride == 1;
    const int r = along_k ? i / DEPTH : i % TILE, c = along_k ? i % DEPTH : i / TILE;
    const bool inside = row + r < rows && k + c < depth;
    tile[c][r] = inside ? lam_view_get(x, row + r, k + c) : 0.0f;
  }
}

LAM_DEVICE void add_products(const float (*a)[TILE + 1], const float (*b)[TILE + 1], int row,
                             int col, float (*sum)[EACH]) {
  for (int k = 0; k < DEPTH; k++)
    for (int i = 0; i < EACH; i++)
      for (int j = 0; j < EACH; j++)
        sum[i][j] = fmaf(a[k][row + i * SIDE], b[k][col + j * SIDE], sum[i][j]);
}

LAM_DEVICE void store_sums(const plain_gemm &p, int64_t row, int64_t col, float (*sum)[EACH]) {
  for (int i = 0; i < EACH; i++)
    for (int j = 0; j < EACH; j++) {
      const int64_t r = row + i * SIDE, c = col + j * SIDE;
      if (r < p.m && c < p.n) lam_epilogue_store(p.then, r, c, sum[i][j]);
    }
}

static __global__ void __launch_bounds__(THREADS) multiply(plain_gemm p) {
  __shared__ float a[DEPTH][TILE + 1], b[DEPTH][TILE + 1];
  const int row = threadIdx.x / SIDE, col = threadIdx.x % SIDE;
  const int64_t n0 = (int64_t)blockIdx.x * TILE;
  for (int64_t m0 = (int64_t)blockIdx.y * TILE; m0 < p.m; m0 += (int64_t)gridDim.y * TILE) {
    float sum[EACH][EACH] = {};
    for (int64_t k = 0; k < p.k; k += DEPTH) {
      load_tile(p.a, m0, p.m, k, p.k, a);
      load_tile(p.b, n0, p.n, k, p.k, b);
      __syncthreads();
      add_products(a, b, row, col, sum);
      __syncthreads();
    }
    store_sums(p, m0 + row, n0 + col, sum);
  }
}

extern "C" lam_status lam_cuda_gemm_plain_run(const lam_gemm *g, void *stream) {
  const plain_gemm p = {lam_view_of(g->a), lam_view_of(g->b), lam_epilogue_of(g),
                        g->d.rows,         g->d.cols,         g->a.cols};
  const dim3 grid((unsigned)lam_cuda_cuts(p.n, TILE),
                  (unsigned)lam_cuda_least(lam_cuda_cuts(p.m, TILE), LAM_GRID_Y));
  return lam_cuda_launch(multiply, grid, dim3(THREADS), 0, stream, p, "gemm_plain");
}
