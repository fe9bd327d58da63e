/* kernel.cuh: what all CUDA kernels share: their launch, the cutting of a matrix into pieces,
 * reductions in a fixed order, words that kernels on other streams and cards wait for.
 *
 * One source for two compilers. nvcc makes device code of it. For the stand-in, a C++ compiler
 * reads tests/standin/kernel_shim.h first, which gives threadIdx, __syncthreads, __shfl_xor_sync
 * and so on to threads that are fibers; only what asks for __CUDACC__ or __CUDA_ARCH__ differs.
 * Invariant: a kernel's result depends on its operands alone, not on the grid's order or the card.
 * Leaves elements in memory to vec.cuh, which elements a kernel takes to each .cu file. */
#ifndef LAMELLA_KERNELS_CUDA_KERNEL_CUH
#define LAMELLA_KERNELS_CUDA_KERNEL_CUH

#include "kernels/cuda/vec.cuh"

/* -- launch -- */

/* A call of the runtime that failed. */
static inline lam_status lam_cuda_refused(cudaError_t error, const char *name, const char *what) {
  if (error == cudaSuccess) return LAM_OK;
  (void)cudaGetLastError(); /* or the next call of another library would find it */
  return lam_fail(lam_cuda_code(error), "cuda %s: %s: %s", name, what, cudaGetErrorString(error));
}

/* Queues kernel(args) on the stream; an empty grid is nothing to do. */
template <class A>
static lam_status lam_cuda_launch(void (*kernel)(A), dim3 grid, dim3 block, size_t shared,
                                  void *stream, const A &args, const char *name) {
  if (grid.x == 0 || grid.y == 0 || grid.z == 0) return LAM_OK;
#ifdef __CUDACC__
  void *parameters[] = {const_cast<A *>(&args)};
  const cudaError_t error =
      cudaLaunchKernel((const void *)kernel, grid, block, parameters, shared, (cudaStream_t)stream);
#else
  const cudaError_t error =
      standin_launch(name, grid, block, shared, (cudaStream_t)stream, [=] { kernel(args); });
#endif
  return lam_cuda_refused(error, name, "the kernel was not launched");
}

static inline lam_status lam_cuda_copy_bytes(const void *from, void *to, uint64_t bytes,
                                             void *stream) {
  const cudaError_t error =
      cudaMemcpyAsync(to, from, bytes, cudaMemcpyDeviceToDevice, (cudaStream_t)stream);
  return lam_cuda_refused(error, "copy", "the copy was not queued");
}

/* The block's dynamic shared memory, 16-byte aligned. */
LAM_DEVICE void *lam_cuda_shared(void) {
#ifdef __CUDACC__
  extern __shared__ __align__(16) unsigned char lam_cuda_shared_bytes[];
  return lam_cuda_shared_bytes;
#else
  return standin_shared();
#endif
}

static inline int64_t lam_cuda_cuts(int64_t n, int64_t piece) { return (n + piece - 1) / piece; }
static inline int64_t lam_cuda_least(int64_t a, int64_t b) { return a < b ? a : b; }
static inline int64_t lam_cuda_most(int64_t a, int64_t b) { return a > b ? a : b; }

/* -- a matrix in pieces of eight columns -- */

template <class F>
struct lam_pieces {
  int64_t rows, cols;
  F each; /* each(row, col, n): n <= 8 columns from col on, a multiple of 8. F::BLOCKS: how many
           * blocks an SM should hold; as many as the registers of sm_90 allow without a spill */
};

template <class F>
__global__ void __launch_bounds__(256, F::BLOCKS) lam_cuda_each(lam_pieces<F> p) {
  const int64_t col = ((int64_t)blockIdx.x * blockDim.x + threadIdx.x) * LAM_VEC;
  const int64_t step = (int64_t)gridDim.y * blockDim.y;
  if (col >= p.cols) return;
  const int n = p.cols - col < LAM_VEC ? (int)(p.cols - col) : LAM_VEC;
  for (int64_t row = (int64_t)blockIdx.y * blockDim.y + threadIdx.y; row < p.rows; row += step)
    p.each(row, col, n);
}

/* 256 threads over rows x pieces. As wide as leaves at most an eighth of the threads idle. */
static inline dim3 lam_cuda_block(int64_t pieces) {
  unsigned width = 256;
  while (width > 32 && lam_cuda_cuts(pieces, width) * width > pieces + pieces / 8) width /= 2;
  while (width > 1 && pieces <= width / 2) width /= 2;
  return dim3(width, 256 / width);
}

enum { LAM_GRID_Y = 4096 }; /* blocks in y: a block takes further rows in turn */

template <class F>
static lam_status lam_cuda_each_piece(int64_t rows, int64_t cols, const F &each, void *stream,
                                      const char *name) {
  const lam_pieces<F> p = {rows, cols, each};
  if (rows <= 0 || cols <= 0) return LAM_OK;
  const int64_t pieces = lam_cuda_cuts(cols, LAM_VEC);
  const dim3 block = lam_cuda_block(pieces);
  const dim3 grid((unsigned)lam_cuda_cuts(pieces, block.x),
                  (unsigned)lam_cuda_least(lam_cuda_cuts(rows, block.y), LAM_GRID_Y));
  return lam_cuda_launch(lam_cuda_each<F>, grid, block, 0, stream, p, name);
}

/* -- reductions: every thread of the warp or block gets the result, always added in one order -- */

struct lam_plus {
  static __device__ inline float of(float a, float b) { return a + b; }
  static __device__ inline float none(void) { return 0.0f; }
};
struct lam_greater { /* NaN aside */
  static __device__ inline float of(float a, float b) { return b > a ? b : a; }
  static __device__ inline float none(void) { return lam_f32_of_bits(0xff800000u); }
};

template <class Op>
LAM_DEVICE float lam_warp_reduce(float x) {
  for (int lane = 16; lane > 0; lane /= 2) x = Op::of(x, __shfl_xor_sync(0xffffffffu, x, lane));
  return x;
}

/* shared: 32 floats. All threads of a block of whole warps come here. */
template <class Op>
LAM_DEVICE float lam_block_reduce(float x, float *shared) {
  const int thread = threadIdx.x + blockDim.x * threadIdx.y, lane = thread % 32;
  const int n_warps = (blockDim.x * blockDim.y + 31) / 32;
  x = lam_warp_reduce<Op>(x);
  if (n_warps == 1) return x;
  __syncthreads(); /* what was there is no longer read */
  if (lane == 0) shared[thread / 32] = x;
  __syncthreads();
  return lam_warp_reduce<Op>(lane < n_warps ? shared[lane] : Op::none());
}

/* -- words that kernels elsewhere write -- */

#ifdef __CUDACC__
LAM_DEVICE uint32_t lam_cuda_load_acquire(const uint32_t *p) {
  uint32_t v;
  asm volatile("ld.acquire.sys.u32 %0, [%1];" : "=r"(v) : "l"(p) : "memory");
  return v;
}
LAM_DEVICE void lam_cuda_store_release(uint32_t *p, uint32_t v) {
  asm volatile("st.release.sys.u32 [%0], %1;" ::"l"(p), "r"(v) : "memory");
}
LAM_DEVICE void lam_cuda_spin(void) { __nanosleep(32); }
LAM_DEVICE uint64_t lam_cuda_now_ns(void) {
  uint64_t ns;
  asm volatile("mov.u64 %0, %%globaltimer;" : "=l"(ns));
  return ns;
}
#else
LAM_DEVICE uint32_t lam_cuda_load_acquire(const uint32_t *p) {
  return __atomic_load_n(p, __ATOMIC_ACQUIRE);
}
LAM_DEVICE void lam_cuda_store_release(uint32_t *p, uint32_t v) {
  __atomic_store_n(p, v, __ATOMIC_RELEASE);
}
LAM_DEVICE void lam_cuda_spin(void) { standin_yield(); }
LAM_DEVICE uint64_t lam_cuda_now_ns(void) { return standin_now_ns(); }
#endif

#endif
