/* kernel.cuh: what all CUDA kernels share: their launch, elements in memory as float, reductions in
 * a fixed order, words that kernels on other streams and cards wait for.
 *
 * One source for two compilers. nvcc makes device code of it. For the stand-in, a C++ compiler
 * reads tests/standin/kernel_shim.h first, which gives threadIdx, __syncthreads, __shfl_xor_sync
 * and so on to threads that are fibers, and the functions standin_launch, standin_shared and
 * standin_yield; only what stands under `#ifdef __CUDACC__` differs.
 * Invariant: a kernel's result depends on its operands alone, not on the grid's order or the card.
 * Leaves which elements a kernel takes to each .cu file. */
#ifndef LAMELLA_KERNELS_CUDA_KERNEL_CUH
#define LAMELLA_KERNELS_CUDA_KERNEL_CUH

#include <math.h>

#include "kernels/cuda/cuda.h"

#define LAM_INLINE static __host__ __device__ inline __attribute__((always_inline, unused))
#define LAM_FMA(a, b, c) fmaf(a, b, c)
#include "kernels/math.h"

#ifdef __CUDACC__
#include <cuda_fp16.h>
#endif

#define LAM_DEVICE static __device__ inline __attribute__((unused))

/* -- launch -- */

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
  if (error == cudaSuccess) return LAM_OK;
  (void)cudaGetLastError(); /* or the next call of another library would find it */
  return lam_fail(LAM_INTERNAL, "cuda %s: the kernel was not launched: %s", name,
                  cudaGetErrorString(error));
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

/* -- elements in memory -- */

enum { LAM_VEC = 8 }; /* elements that a thread takes at once */

/* A matrix as kernels see it. wide: eight elements from a column that is a multiple of eight may
 * be taken in accesses of 16 bytes (fp8: 8). */
typedef struct lam_view {
  char *data;
  int64_t row_stride, col_stride; /* in elements */
  int32_t dtype;
  bool wide;
} lam_view;

LAM_INLINE int lam_cuda_bytes(int dtype) {
  return dtype == LAM_F32 ? 4 : dtype == LAM_BF16 || dtype == LAM_F16 ? 2 : 1;
}

static inline bool lam_cuda_is_float(lam_dtype t) { return t <= LAM_F8E5M2; }

static inline lam_view lam_view_of(lam_matrix m) {
  const int64_t bytes = lam_cuda_bytes(m.dtype), unit = bytes == 1 ? 8 : 16;
  const bool wide = m.col_stride == 1 && (uintptr_t)m.data % unit == 0 &&
                    (m.rows <= 1 || m.row_stride * bytes % unit == 0);
  const lam_view v = {(char *)m.data, m.row_stride, m.col_stride, m.dtype, wide};
  return v;
}

/* A vector, held as [1, N] or as [N, 1]: the same for every row. */
static inline lam_view lam_view_of_vector(lam_matrix m) {
  if (m.rows > 1 && m.cols == 1) m = lam_matrix_transposed(m);
  m.rows = 1;
  lam_view v = lam_view_of(m);
  v.row_stride = 0;
  return v;
}

LAM_DEVICE char *lam_view_at(const lam_view &m, int64_t row, int64_t col) {
  return m.data + (row * m.row_stride + col * m.col_stride) * lam_cuda_bytes(m.dtype);
}

/* Hardware's own conversions where it has them: the same bits as math.h's, NaNs' payloads aside. */
LAM_DEVICE float lam_of_f16(uint16_t h) {
#ifdef __CUDACC__
  return __half2float(__ushort_as_half(h));
#else
  return lam_f32_of_f16(h);
#endif
}

LAM_DEVICE uint16_t lam_to_f16(float x) {
#ifdef __CUDACC__
  return __half_as_ushort(__float2half_rn(x));
#else
  return lam_f16_of_f32(x);
#endif
}

LAM_DEVICE uint32_t lam_to_bf16_pair(float low, float high) {
#if defined(__CUDA_ARCH__)
  uint32_t pair;
  asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(pair) : "f"(high), "f"(low));
  return pair;
#else
  return lam_bf16_of_f32(low) | (uint32_t)lam_bf16_of_f32(high) << 16;
#endif
}

LAM_DEVICE uint32_t lam_to_e4m3_pair(float low, float high) {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 890
  uint16_t pair;
  asm("cvt.rn.satfinite.e4m3x2.f32 %0, %1, %2;" : "=h"(pair) : "f"(high), "f"(low));
  return pair;
#else
  return lam_f8e4m3_of_f32(low) | (uint32_t)lam_f8e4m3_of_f32(high) << 8;
#endif
}

LAM_DEVICE uint32_t lam_to_e5m2_pair(float low, float high) {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 890
  uint16_t pair;
  asm("cvt.rn.satfinite.e5m2x2.f32 %0, %1, %2;" : "=h"(pair) : "f"(high), "f"(low));
  return pair;
#else
  return lam_f8e5m2_of_f32(low) | (uint32_t)lam_f8e5m2_of_f32(high) << 8;
#endif
}

/* Two codes, the low one first, through f16, which holds every value of either format. */
LAM_DEVICE void lam_of_e4m3_pair(uint32_t codes, float *v) {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 890
  uint32_t halves;
  asm("cvt.rn.f16x2.e4m3x2 %0, %1;" : "=r"(halves) : "h"((uint16_t)codes));
  v[0] = lam_of_f16((uint16_t)halves), v[1] = lam_of_f16((uint16_t)(halves >> 16));
#else
  v[0] = lam_f32_of_f8e4m3((uint8_t)codes), v[1] = lam_f32_of_f8e4m3((uint8_t)(codes >> 8));
#endif
}

/* e5m2 is the upper half of an f16. */
LAM_DEVICE void lam_of_e5m2_pair(uint32_t codes, float *v) {
  v[0] = lam_of_f16((uint16_t)(codes << 8)), v[1] = lam_of_f16((uint16_t)(codes & 0xff00u));
}

LAM_DEVICE float lam_element(const void *p, int dtype) {
  float v[2];
  switch (dtype) {
    case LAM_F32:
      return *(const float *)p;
    case LAM_BF16:
      return lam_f32_of_bf16(*(const uint16_t *)p);
    case LAM_F16:
      return lam_of_f16(*(const uint16_t *)p);
    case LAM_F8E4M3:
      lam_of_e4m3_pair(*(const uint8_t *)p, v);
      return v[0];
    default:
      lam_of_e5m2_pair(*(const uint8_t *)p, v);
      return v[0];
  }
}

LAM_DEVICE void lam_element_set(void *p, int dtype, float x) {
  switch (dtype) {
    case LAM_F32:
      *(float *)p = x;
      return;
    case LAM_BF16:
      *(uint16_t *)p = (uint16_t)lam_to_bf16_pair(x, 0.0f);
      return;
    case LAM_F16:
      *(uint16_t *)p = lam_to_f16(x);
      return;
    case LAM_F8E4M3:
      *(uint8_t *)p = (uint8_t)lam_to_e4m3_pair(x, 0.0f);
      return;
    default:
      *(uint8_t *)p = (uint8_t)lam_to_e5m2_pair(x, 0.0f);
      return;
  }
}

LAM_DEVICE float lam_view_get(const lam_view &m, int64_t row, int64_t col) {
  return lam_element(lam_view_at(m, row, col), m.dtype);
}

/* -- eight elements at once -- */

typedef struct lam_vec {
  float at[LAM_VEC];
} lam_vec;

/* Eight elements as they lie in memory: asked for, not yet looked at, so that a thread can have
 * several on their way. */
typedef struct lam_raw {
  uint4 low, high;
  int32_t dtype;
} lam_raw;

/* Of any strides and alignment, or n < 8 of them: the rest is 0. */
LAM_DEVICE lam_raw lam_raw_of_elements(const lam_view &m, int64_t row, int64_t col, int n) {
  uint32_t v[LAM_VEC];
  for (int i = 0; i < LAM_VEC; i++)
    v[i] = i < n ? lam_bits_of_f32(lam_view_get(m, row, col + i)) : 0u;
  const lam_raw raw = {{v[0], v[1], v[2], v[3]}, {v[4], v[5], v[6], v[7]}, LAM_F32};
  return raw;
}

/* n <= 8 elements of a row from `col` on, which is a multiple of 8. */
LAM_DEVICE lam_raw lam_vec_ask(const lam_view &m, int64_t row, int64_t col, int n) {
  if (!m.wide || n < LAM_VEC) return lam_raw_of_elements(m, row, col, n);
  const int bytes = lam_cuda_bytes(m.dtype);
  const char *p = lam_view_at(m, row, col);
  lam_raw raw = {{0, 0, 0, 0}, {0, 0, 0, 0}, m.dtype};
  if (bytes >= 2) {
    raw.low = *(const uint4 *)p;
    if (bytes == 4) raw.high = ((const uint4 *)p)[1];
  } else {
    const uint2 half = *(const uint2 *)p;
    raw.low.x = half.x, raw.low.y = half.y;
  }
  return raw;
}

LAM_DEVICE lam_vec lam_vec_of(const lam_raw &raw) {
  const uint32_t w[LAM_VEC] = {raw.low.x,  raw.low.y,  raw.low.z,  raw.low.w,
                               raw.high.x, raw.high.y, raw.high.z, raw.high.w};
  lam_vec v;
  if (raw.dtype == LAM_BF16) {
    for (int i = 0; i < LAM_VEC; i++)
      v.at[i] = lam_f32_of_bits(i % 2 ? w[i / 2] & 0xffff0000u : w[i / 2] << 16);
  } else if (raw.dtype == LAM_F32) {
    for (int i = 0; i < LAM_VEC; i++) v.at[i] = lam_f32_of_bits(w[i]);
  } else if (raw.dtype == LAM_F16) {
    for (int i = 0; i < LAM_VEC; i++) v.at[i] = lam_of_f16((uint16_t)(w[i / 2] >> 16 * (i % 2)));
  } else if (raw.dtype == LAM_F8E4M3) {
    for (int i = 0; i < LAM_VEC; i += 2) lam_of_e4m3_pair(w[i / 4] >> 8 * (i % 4), v.at + i);
  } else {
    for (int i = 0; i < LAM_VEC; i += 2)
      lam_of_e5m2_pair(w[i / 4] >> 8 * (i % 4) & 0xffffu, v.at + i);
  }
  return v;
}

LAM_DEVICE lam_vec lam_vec_load(const lam_view &m, int64_t row, int64_t col, int n) {
  return lam_vec_of(lam_vec_ask(m, row, col, n));
}

/* Eight fp8 codes. */
template <uint32_t pair(float, float)>
LAM_DEVICE uint2 lam_f8_of_vec(const lam_vec &v) {
  const uint2 codes = {pair(v.at[0], v.at[1]) | pair(v.at[2], v.at[3]) << 16,
                       pair(v.at[4], v.at[5]) | pair(v.at[6], v.at[7]) << 16};
  return codes;
}

LAM_DEVICE uint32_t lam_to_f16_pair(float low, float high) {
  return lam_to_f16(low) | (uint32_t)lam_to_f16(high) << 16;
}

template <uint32_t pair(float, float)>
LAM_DEVICE uint4 lam_halves_of_vec(const lam_vec &v) {
  const uint4 halves = {pair(v.at[0], v.at[1]), pair(v.at[2], v.at[3]), pair(v.at[4], v.at[5]),
                        pair(v.at[6], v.at[7])};
  return halves;
}

LAM_DEVICE void lam_vec_store(const lam_view &m, int64_t row, int64_t col, int n,
                              const lam_vec &v) {
  char *p = lam_view_at(m, row, col);
  if (!m.wide || n < LAM_VEC) {
    for (int i = 0; i < LAM_VEC; i++)
      if (i < n) lam_element_set(lam_view_at(m, row, col + i), m.dtype, v.at[i]);
  } else if (m.dtype == LAM_BF16) {
    *(uint4 *)p = lam_halves_of_vec<lam_to_bf16_pair>(v);
  } else if (m.dtype == LAM_F32) {
    ((float4 *)p)[0] = {v.at[0], v.at[1], v.at[2], v.at[3]};
    ((float4 *)p)[1] = {v.at[4], v.at[5], v.at[6], v.at[7]};
  } else if (m.dtype == LAM_F16) {
    *(uint4 *)p = lam_halves_of_vec<lam_to_f16_pair>(v);
  } else if (m.dtype == LAM_F8E4M3) {
    *(uint2 *)p = lam_f8_of_vec<lam_to_e4m3_pair>(v);
  } else {
    *(uint2 *)p = lam_f8_of_vec<lam_to_e5m2_pair>(v);
  }
}

/* -- a matrix in pieces of eight columns -- */

template <class F>
struct lam_pieces {
  int64_t rows, cols;
  F each; /* each(row, col, n): n <= 8 columns from col on, a multiple of 8 */
};

template <class F>
__global__ void __launch_bounds__(256) lam_cuda_each(lam_pieces<F> p) {
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

enum { LAM_GRID_Y = 65535 }; /* the most blocks in y */

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
