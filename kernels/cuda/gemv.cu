/* gemv.cu: products with few rows of a, as when a model writes word by word: bound by reading b
 * once.
 *
 * The ladder: one thread an element of d -> a warp reads rows of b in pieces of 16 bytes, two rows at
 * a time, so that a's pieces serve twice -> where d has too few columns to fill the card, several
 * warps share the rows' K and add up in shared memory. Predicted, not measured: 0.85 of a device
 * copy's bandwidth from N K = 16 Mi elements of bf16 on.
 * Invariant: f32 inside; K is added up in an order that shapes alone decide, so a call gives the same
 * bits every time.
 * Leaves bias, aux and activation to epilogue.cuh, z and sums to gemm.c. */
#include "kernels/cuda/epilogue.cuh"

#ifdef __CUDACC__
#define UNROLLED _Pragma("unroll")
#else
#define UNROLLED
#endif

enum { WARPS = 8, COLS = 2, MOST_ROWS = 4, FULL_WARPS = 132 * 16 };

typedef struct few_rows {
  lam_view a, b;
  lam_epilogue then;
  int64_t n, k;
  int32_t warps; /* that share a row's K */
} few_rows;

/* This lane's part of COLS columns of d, from `col` on. */
template <int ROWS>
LAM_DEVICE void add_products(const few_rows &p, int64_t col, int part, float (*sum)[COLS]) {
  const int lane = threadIdx.x % 32;
  for (int64_t k = (part * 32 + lane) * (int64_t)LAM_VEC; k < p.k; k += p.warps * 32 * LAM_VEC) {
    const int n = p.k - k < LAM_VEC ? (int)(p.k - k) : LAM_VEC;
    lam_vec b[COLS];
    UNROLLED for (int j = 0; j < COLS; j++) b[j] =
        lam_vec_load(p.b, col + j < p.n ? col + j : col, k, n);
    UNROLLED for (int i = 0; i < ROWS; i++) {
      const lam_vec a = lam_vec_load(p.a, i, k, n);
      UNROLLED for (int j = 0; j < COLS; j++) UNROLLED for (int v = 0; v < LAM_VEC; v++) sum[i][j] =
          fmaf(a.at[v], b[j].at[v], sum[i][j]);
    }
  }
}

template <int ROWS>
static __global__ void __launch_bounds__(WARPS * 32) multiply(few_rows p) {
  __shared__ float parts[WARPS][ROWS * COLS];
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32, part = warp % p.warps;
  const int64_t col = ((int64_t)blockIdx.x * (WARPS / p.warps) + warp / p.warps) * COLS;
  float sum[ROWS][COLS] = {};
  if (col < p.n) add_products<ROWS>(p, col, part, sum);
  UNROLLED for (int i = 0; i < ROWS; i++) UNROLLED for (int j = 0; j < COLS; j++) {
    const float all = lam_warp_reduce<lam_plus>(sum[i][j]);
    if (lane == 0) parts[warp][i * COLS + j] = all;
  }
  __syncthreads();
  if (part != 0 || lane >= ROWS * COLS || col + lane % COLS >= p.n) return;
  float total = 0.0f;
  for (int i = 0; i < p.warps; i++) total += parts[warp + i][lane];
  lam_epilogue_store(p.then, lane / COLS, col + lane % COLS, total);
}

/* As many warps for a row's K as fill the card, each with at least one piece to read. */
static int warps_for(int64_t n, int64_t k) {
  int warps = 1;
  while (warps < WARPS && lam_cuda_cuts(n, COLS) * warps < FULL_WARPS &&
         k >= 2 * warps * 32 * LAM_VEC)
    warps *= 2;
  return warps;
}

static bool is_wide(lam_matrix m) { return lam_view_of(m).wide; }

extern "C" bool lam_cuda_gemv_takes(const lam_gemm *g) {
  const lam_gemm_more *m = g->more;
  const bool more =
      m && (lam_matrix_here(m->z) || lam_matrix_here(m->column_sum) || lam_matrix_here(m->a_sum));
  return g->d.rows <= MOST_ROWS && g->a.cols > 0 && is_wide(g->a) && is_wide(g->b) && !more;
}

extern "C" lam_status lam_cuda_gemv_run(const lam_gemm *g, void *stream) {
  static void (*const kernels[MOST_ROWS])(few_rows) = {multiply<1>, multiply<2>, multiply<3>,
                                                       multiply<4>};
  few_rows p = {};
  p.a = lam_view_of(g->a), p.b = lam_view_of(g->b), p.then = lam_epilogue_of(g);
  p.n = g->d.cols, p.k = g->a.cols;
  p.warps = warps_for(p.n, p.k);
  const int64_t columns_a_block = WARPS / p.warps * COLS;
  const dim3 grid((unsigned)lam_cuda_cuts(p.n, columns_a_block));
  return lam_cuda_launch(kernels[g->d.rows - 1], grid, dim3(WARPS * 32), 0, stream, p, "gemv");
}
