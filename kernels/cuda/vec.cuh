/* vec.cuh: elements in memory as float: one of any dtype, or eight at once.
 *
 * A thread takes eight elements: of 2 bytes they are one access of 16 bytes, of f32 two. What is
 * not aligned so, has a stride or is fewer than eight goes one by one, through the same functions.
 * Invariant: one rounding, to nearest even, by the card where it can and else by math.h: the same
 * bits, NaNs' payloads aside.
 * Leaves which elements a kernel takes to each .cu file. */
#ifndef LAMELLA_KERNELS_CUDA_VEC_CUH
#define LAMELLA_KERNELS_CUDA_VEC_CUH

#include <math.h>

#include "kernels/cuda/cuda.h"

#define LAM_INLINE static __device__ inline __attribute__((always_inline, unused))
#define LAM_FMA(a, b, c) fmaf(a, b, c)
#define LAM_EXP(x) __expf(x) /* within 2 + 1.2 |x| units in the last place */
#define LAM_RECIPROCAL(x) __fdividef(1.0f, x)
#include "kernels/math.h"

#ifdef __CUDACC__
#include <cuda_fp16.h>
#endif

#ifdef __CUDACC__
#define LAM_ROLLED _Pragma("unroll 1")
#define LAM_UNROLLED _Pragma("unroll")
#else
#define LAM_ROLLED
#define LAM_UNROLLED
#endif
#define LAM_DEVICE static __device__ inline __attribute__((unused))

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

static __host__ __device__ inline int lam_cuda_bytes(int dtype) {
  if (dtype == LAM_BF16 || dtype == LAM_F16) return 2;
  if (dtype == LAM_F32 || dtype == LAM_I32) return 4;
  return dtype == LAM_F64 || dtype == LAM_I64 ? 8 : 1;
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
    case LAM_F32: return *(const float *)p;
    case LAM_BF16: return lam_f32_of_bf16(*(const uint16_t *)p);
    case LAM_F16: return lam_of_f16(*(const uint16_t *)p);
    case LAM_F8E4M3: lam_of_e4m3_pair(*(const uint8_t *)p, v); return v[0];
    default: lam_of_e5m2_pair(*(const uint8_t *)p, v); return v[0];
  }
}

LAM_DEVICE void lam_element_set(void *p, int dtype, float x) {
  switch (dtype) {
    case LAM_F32: *(float *)p = x; return;
    case LAM_BF16: *(uint16_t *)p = (uint16_t)lam_to_bf16_pair(x, 0.0f); return;
    case LAM_F16: *(uint16_t *)p = lam_to_f16(x); return;
    case LAM_F8E4M3: *(uint8_t *)p = (uint8_t)lam_to_e4m3_pair(x, 0.0f); return;
    default: *(uint8_t *)p = (uint8_t)lam_to_e5m2_pair(x, 0.0f); return;
  }
}

LAM_DEVICE float lam_view_get(const lam_view &m, int64_t row, int64_t col) {
  return lam_element(lam_view_at(m, row, col), m.dtype);
}

/* -- eight elements at once -- */

typedef struct lam_vec {
  float at[LAM_VEC];
} lam_vec;

/* Eight elements of some dtype as they lie in memory: asked for, not yet looked at, so that a
 * thread can have several on their way. Only f32 has a high half. */
typedef struct lam_raw {
  uint4 low, high;
} lam_raw;

LAM_DEVICE lam_vec lam_vec_of(const lam_raw &raw, int dtype) {
  const uint32_t w[LAM_VEC] = {raw.low.x,  raw.low.y,  raw.low.z,  raw.low.w,
                               raw.high.x, raw.high.y, raw.high.z, raw.high.w};
  lam_vec v;
  if (dtype == LAM_BF16) {
    for (int i = 0; i < LAM_VEC; i++)
      v.at[i] = lam_f32_of_bits(i % 2 ? w[i / 2] & 0xffff0000u : w[i / 2] << 16);
  } else if (dtype == LAM_F32) {
    for (int i = 0; i < LAM_VEC; i++) v.at[i] = lam_f32_of_bits(w[i]);
  } else if (dtype == LAM_F16) {
    for (int i = 0; i < LAM_VEC; i++) v.at[i] = lam_of_f16((uint16_t)(w[i / 2] >> 16 * (i % 2)));
  } else if (dtype == LAM_F8E4M3) {
    for (int i = 0; i < LAM_VEC; i += 2) lam_of_e4m3_pair(w[i / 4] >> 8 * (i % 4), v.at + i);
  } else {
    for (int i = 0; i < LAM_VEC; i += 2)
      lam_of_e5m2_pair(w[i / 4] >> 8 * (i % 4) & 0xffffu, v.at + i);
  }
  return v;
}

LAM_DEVICE uint32_t lam_to_f16_pair(float low, float high) {
  return lam_to_f16(low) | (uint32_t)lam_to_f16(high) << 16;
}

template <uint32_t pair(float, float)>
LAM_DEVICE uint4 lam_halves_of(const lam_vec &v) {
  const uint4 halves = {pair(v.at[0], v.at[1]), pair(v.at[2], v.at[3]), pair(v.at[4], v.at[5]),
                        pair(v.at[6], v.at[7])};
  return halves;
}

template <uint32_t pair(float, float)>
LAM_DEVICE uint4 lam_codes_of(const lam_vec &v) {
  const uint4 codes = {pair(v.at[0], v.at[1]) | pair(v.at[2], v.at[3]) << 16,
                       pair(v.at[4], v.at[5]) | pair(v.at[6], v.at[7]) << 16, 0, 0};
  return codes;
}

LAM_DEVICE uint4 lam_words_of(const float *v) {
  const uint4 words = {lam_bits_of_f32(v[0]), lam_bits_of_f32(v[1]), lam_bits_of_f32(v[2]),
                       lam_bits_of_f32(v[3])};
  return words;
}

/* Rounded to a dtype. */
LAM_DEVICE lam_raw lam_raw_of(const lam_vec &v, int dtype) {
  lam_raw raw = {{0, 0, 0, 0}, {0, 0, 0, 0}};
  switch (dtype) {
    case LAM_F32: raw.low = lam_words_of(v.at), raw.high = lam_words_of(v.at + 4); return raw;
    case LAM_BF16: raw.low = lam_halves_of<lam_to_bf16_pair>(v); return raw;
    case LAM_F16: raw.low = lam_halves_of<lam_to_f16_pair>(v); return raw;
    case LAM_F8E4M3: raw.low = lam_codes_of<lam_to_e4m3_pair>(v); return raw;
    default: raw.low = lam_codes_of<lam_to_e5m2_pair>(v); return raw;
  }
}

/* Of any strides and alignment, or n < 8 of them: the rest is 0. One by one: unrolled, this path
 * would take half as many registers again from all kernels. */
LAM_DEVICE lam_raw lam_ask_each(const lam_view &m, int64_t row, int64_t col, int n) {
  lam_vec v = {{0}};
  LAM_ROLLED
  for (int i = 0; i < n; i++) {
    const float x = lam_view_get(m, row, col + i);
    LAM_UNROLLED
    for (int j = 0; j < LAM_VEC; j++) v.at[j] = j == i ? x : v.at[j];
  }
  return lam_raw_of(v, m.dtype);
}

LAM_DEVICE void lam_store_each(const lam_view &m, int64_t row, int64_t col, int n,
                               const lam_vec &v) {
  LAM_ROLLED
  for (int i = 0; i < n; i++) {
    float x = v.at[0];
    LAM_UNROLLED
    for (int j = 1; j < LAM_VEC; j++) x = j == i ? v.at[j] : x;
    lam_element_set(lam_view_at(m, row, col + i), m.dtype, x);
  }
}

/* n <= 8 elements of a row from `col` on, which is a multiple of 8. */
LAM_DEVICE lam_raw lam_vec_ask(const lam_view &m, int64_t row, int64_t col, int n) {
  if (!m.wide || n < LAM_VEC) return lam_ask_each(m, row, col, n);
  const int bytes = lam_cuda_bytes(m.dtype);
  const char *p = lam_view_at(m, row, col);
  lam_raw raw = {{0, 0, 0, 0}, {0, 0, 0, 0}};
  if (bytes == 1) {
    const uint2 half = *(const uint2 *)p;
    raw.low.x = half.x, raw.low.y = half.y;
  } else {
    raw.low = *(const uint4 *)p;
    if (bytes == 4) raw.high = ((const uint4 *)p)[1];
  }
  return raw;
}

LAM_DEVICE void lam_vec_store(const lam_view &m, int64_t row, int64_t col, int n,
                              const lam_vec &v) {
  if (!m.wide || n < LAM_VEC) {
    lam_store_each(m, row, col, n, v);
    return;
  }
  const lam_raw raw = lam_raw_of(v, m.dtype);
  const int bytes = lam_cuda_bytes(m.dtype);
  char *p = lam_view_at(m, row, col);
  if (bytes == 1) {
    *(uint2 *)p = {raw.low.x, raw.low.y};
  } else {
    *(uint4 *)p = raw.low;
    if (bytes == 4) ((uint4 *)p)[1] = raw.high;
  }
}

LAM_DEVICE lam_vec lam_vec_load(const lam_view &m, int64_t row, int64_t col, int n) {
  return lam_vec_of(lam_vec_ask(m, row, col, n), m.dtype);
}

LAM_DEVICE lam_vec lam_vec_plus(lam_vec a, const lam_vec &b) {
  for (int i = 0; i < LAM_VEC; i++) a.at[i] += b.at[i];
  return a;
}

/* -- elements as they are, NaNs with all their bits: T has an element's size -- */

template <class T>
struct alignas(sizeof(T) == 1 ? 8 : 16) lam_eight {
  T at[LAM_VEC];
};

/* n <= 8 elements of row `from_row` to the same columns of row `to_row` */
template <class T>
LAM_DEVICE void lam_move(const lam_view &from, int64_t from_row, const lam_view &to, int64_t to_row,
                         int64_t col, int n) {
  const T *const a = (const T *)lam_view_at(from, from_row, col);
  T *const b = (T *)lam_view_at(to, to_row, col);
  if (from.wide && to.wide && n == LAM_VEC)
    *(lam_eight<T> *)b = *(const lam_eight<T> *)a;
  else
    for (int i = 0; i < n; i++) b[i * to.col_stride] = a[i * from.col_stride];
}

template <class T>
LAM_DEVICE void lam_fill(const lam_view &to, int64_t row, int64_t col, int n, T x) {
  T *const b = (T *)lam_view_at(to, row, col);
  const lam_eight<T> eight = {{x, x, x, x, x, x, x, x}};
  if (to.wide && n == LAM_VEC)
    *(lam_eight<T> *)b = eight;
  else
    for (int i = 0; i < n; i++) b[i * to.col_stride] = x;
}

#endif
