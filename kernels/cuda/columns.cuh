/* columns.cuh: the sum of a matrix's rows.
 *
 * Rows are cut into slabs, each summed by the blocks of one row of the grid; slabs are summed by
 * the same kernel once more. Floor: the matrix, read once; slabs hold at least SLAB rows, so what
 * they add is at most a 32nd of bf16 rows. dy of bf16 [8192, 28672] at 3.0 TB/s: 157 us
 * (predicted).
 * Invariant: slabs, and the order of the sum within them, follow from the shape alone.
 * Leaves elements in memory to vec.cuh. */
#ifndef LAMELLA_KERNELS_CUDA_COLUMNS_CUH
#define LAMELLA_KERNELS_CUDA_COLUMNS_CUH

#include "kernels/cuda/kernel.cuh"

enum {
  LAM_COLUMN_BLOCKS = 1024, /* some eight blocks for each SM of a large card */
  LAM_SLAB = 128,           /* the fewest rows of a slab */
  LAM_COLUMN_WIDTH = 32,    /* threads of a block: along a row, and rows at once */
  LAM_COLUMN_ROWS = 8
};

typedef struct lam_columns {
  lam_view x, y; /* y: slab s of x goes to its row s */
  int64_t rows, cols, slab;
  bool accumulate;
} lam_columns;

/* Thread (i, r) adds rows r, r + 8, ... of the slab, then thread (i, 0) those eight sums. */
static __global__ void __launch_bounds__(LAM_COLUMN_WIDTH *LAM_COLUMN_ROWS)
    lam_cuda_sum_columns(lam_columns c) {
  lam_vec *const sums = (lam_vec *)lam_cuda_shared();
  const int64_t col = ((int64_t)blockIdx.x * LAM_COLUMN_WIDTH + threadIdx.x) * LAM_VEC;
  const int64_t first = blockIdx.y * c.slab;
  const int64_t last = first + c.slab < c.rows ? first + c.slab : c.rows;
  const int n = col >= c.cols ? 0 : c.cols - col < LAM_VEC ? (int)(c.cols - col) : LAM_VEC;
  lam_vec v = {{0}};
  if (n > 0 && first + threadIdx.y < last) {
    lam_raw next = lam_vec_ask(c.x, first + threadIdx.y, col, n);
    for (int64_t row = first + threadIdx.y; row < last; row += LAM_COLUMN_ROWS) {
      const lam_raw one = next; /* while it is added, the next is on its way */
      if (row + LAM_COLUMN_ROWS < last) next = lam_vec_ask(c.x, row + LAM_COLUMN_ROWS, col, n);
      v = lam_vec_plus(v, lam_vec_of(one, c.x.dtype));
    }
  }
  sums[threadIdx.y * LAM_COLUMN_WIDTH + threadIdx.x] = v;
  __syncthreads();
  if (threadIdx.y > 0 || n == 0) return;
  for (int r = 1; r < LAM_COLUMN_ROWS; r++)
    v = lam_vec_plus(v, sums[r * LAM_COLUMN_WIDTH + threadIdx.x]);
  if (c.accumulate) v = lam_vec_plus(v, lam_vec_load(c.y, blockIdx.y, col, n));
  lam_vec_store(c.y, blockIdx.y, col, n, v);
}

static inline lam_status lam_cuda_columns_once(lam_matrix x, lam_view y, int64_t slab,
                                               bool accumulate, void *stream, const char *name) {
  const lam_columns c = {lam_view_of(x), y, x.rows, x.cols, slab, accumulate};
  const int64_t width = LAM_COLUMN_WIDTH * LAM_VEC, slabs = lam_cuda_cuts(x.rows, slab);
  const dim3 grid((unsigned)lam_cuda_cuts(x.cols, width), (unsigned)(slabs > 0 ? slabs : 1));
  return lam_cuda_launch(lam_cuda_sum_columns, grid, dim3(LAM_COLUMN_WIDTH, LAM_COLUMN_ROWS),
                         sizeof(lam_vec) * LAM_COLUMN_WIDTH * LAM_COLUMN_ROWS, stream, c, name);
}

/* y [1, N] (+)= the sum of the rows of x [T, N] */
static inline lam_status lam_cuda_columns_sum(lam_matrix x, lam_matrix y, bool accumulate,
                                              void *stream, const char *name) {
  const int64_t across = lam_cuda_cuts(x.cols, LAM_COLUMN_WIDTH * LAM_VEC);
  if (x.cols <= 0) return LAM_OK;
  const int64_t slab =
      lam_cuda_most(LAM_SLAB, lam_cuda_cuts(x.rows, lam_cuda_cuts(LAM_COLUMN_BLOCKS, across)));
  const int64_t slabs = lam_cuda_cuts(x.rows, slab);
  if (slabs <= 1)
    return lam_cuda_columns_once(x, lam_view_of_vector(y), slab, accumulate, stream, name);
  void *memory;
  LAM_TRY(lam_cuda_borrow((uint64_t)(slabs * x.cols) * sizeof(float), stream, &memory));
  const lam_matrix part = {memory, slabs, x.cols, x.cols, 1, LAM_F32, false};
  lam_status status = lam_cuda_columns_once(x, lam_view_of(part), slab, false, stream, name);
  if (status == LAM_OK)
    status = lam_cuda_columns_once(part, lam_view_of_vector(y), slabs, accumulate, stream, name);
  lam_cuda_give_back(memory, stream);
  return status;
}

#endif
