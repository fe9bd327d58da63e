/* add.c: sums of arrays in a fixed order: what every all-reduce spends its arithmetic on.
 *
 * The ladder: a plain loop (vectorised by nobody at -O2: 2 GB/s) -> vectors of 64 bytes,
 * compiled three times: as AVX-512 one instruction each, as AVX2 two, else four; picked once.
 * Nothing more pays: memory is the limit.
 * Invariant: element i is added in the order of the parts, bf16 in f32 with one rounding, so
 * every rank gets the same bits.
 * Leaves bias, residual and row strides to the device's sum. */
#include <stdatomic.h>
#include <string.h>

#include "plugin/comm/comm.h"

enum { STEP = 64 }; /* bytes */
typedef float vf32 __attribute__((vector_size(64)));
typedef uint32_t vu32 __attribute__((vector_size(64)));
typedef double vf64 __attribute__((vector_size(64)));
typedef uint64_t vu64 __attribute__((vector_size(64)));
/* The same in memory, wherever they lie. */
typedef float mem_f32 __attribute__((vector_size(64), aligned(1), may_alias));
typedef uint32_t mem_u32 __attribute__((vector_size(64), aligned(1), may_alias));
typedef double mem_f64 __attribute__((vector_size(64), aligned(1), may_alias));
typedef uint64_t mem_u64 __attribute__((vector_size(64), aligned(1), may_alias));

#define ALWAYS_INLINE static inline __attribute__((always_inline))

/* A step adds the 64 bytes of all parts at byte `at`. */
ALWAYS_INLINE void step_f32(const void *const *parts, int n_parts, size_t at, void *y) {
  vf32 sum = *(const mem_f32 *)((const char *)parts[0] + at);
  for (int p = 1; p < n_parts; p++) sum += *(const mem_f32 *)((const char *)parts[p] + at);
  *(mem_f32 *)((char *)y + at) = sum;
}
ALWAYS_INLINE void step_f64(const void *const *parts, int n_parts, size_t at, void *y) {
  vf64 sum = *(const mem_f64 *)((const char *)parts[0] + at);
  for (int p = 1; p < n_parts; p++) sum += *(const mem_f64 *)((const char *)parts[p] + at);
  *(mem_f64 *)((char *)y + at) = sum;
}
/* Integers wrap around: unsigned. */
ALWAYS_INLINE void step_i32(const void *const *parts, int n_parts, size_t at, void *y) {
  vu32 sum = *(const mem_u32 *)((const char *)parts[0] + at);
  for (int p = 1; p < n_parts; p++) sum += *(const mem_u32 *)((const char *)parts[p] + at);
  *(mem_u32 *)((char *)y + at) = sum;
}
ALWAYS_INLINE void step_i64(const void *const *parts, int n_parts, size_t at, void *y) {
  vu64 sum = *(const mem_u64 *)((const char *)parts[0] + at);
  for (int p = 1; p < n_parts; p++) sum += *(const mem_u64 *)((const char *)parts[p] + at);
  *(mem_u64 *)((char *)y + at) = sum;
}

/* Two bf16 lie in 32 bits: the odd ones are floats as they are, but for the even ones below
 * them. */
ALWAYS_INLINE void add_bf16(const void *from, vf32 *even, vf32 *odd) {
  const vu32 both = *(const mem_u32 *)from;
  *even += (vf32)(both << 16);
  *odd += (vf32)(both & 0xffff0000);
}
/* The upper 16 bits, to the nearest, ties to even; a NaN stays one (quiet). */
ALWAYS_INLINE void round_bf16(const vf32 *sum, vu32 *upper) {
  const vu32 bits = (vu32)*sum, is_nan = (vu32)(*sum != *sum);
  const vu32 rounded = bits + 0x7fff + ((bits >> 16) & 1);
  *upper = (rounded & ~is_nan) | ((bits | 0x400000) & is_nan);
}
ALWAYS_INLINE void step_bf16(const void *const *parts, int n_parts, size_t at, void *y) {
  const vu32 first = *(const mem_u32 *)((const char *)parts[0] + at);
  vf32 even = (vf32)(first << 16), odd = (vf32)(first & 0xffff0000);
  for (int p = 1; p < n_parts; p++) add_bf16((const char *)parts[p] + at, &even, &odd);
  vu32 low, high;
  round_bf16(&even, &low);
  round_bf16(&odd, &high);
  *(mem_u32 *)((char *)y + at) = (low >> 16) | (high & 0xffff0000);
}

typedef void step_fn(const void *const *parts, int n_parts, size_t at, void *y);

/* The last step, which is not a whole one, goes through copies of what is left. */
ALWAYS_INLINE void add_tail(step_fn *step, const void *const *parts, int n_parts, size_t at,
                            size_t bytes, void *y) {
  unsigned char rest[LAM_GROUP_RANKS][STEP], sum[STEP];
  const void *rests[LAM_GROUP_RANKS];
  rests[0] = memcpy(rest[0], (const char *)parts[0] + at, bytes);
  for (int p = 1; p < n_parts; p++) rests[p] = memcpy(rest[p], (const char *)parts[p] + at, bytes);
  step(rests, n_parts, 0, sum);
  memcpy((char *)y + at, sum, bytes);
}

ALWAYS_INLINE void add_steps(step_fn *step, const void *const *parts, int n_parts, size_t bytes,
                             void *y) {
  size_t at = 0;
  if (n_parts == 2)
    for (; at + STEP <= bytes; at += STEP) step(parts, 2, at, y);
  else
    for (; at + STEP <= bytes; at += STEP) step(parts, n_parts, at, y);
  if (at < bytes) add_tail(step, parts, n_parts, at, bytes - at, y);
}

ALWAYS_INLINE void add_any(lam_dtype t, const void *const *parts, int n_parts, size_t n, void *y) {
  switch (t) {
    case LAM_F32:
      add_steps(step_f32, parts, n_parts, n * 4, y);
      break;
    case LAM_BF16:
      add_steps(step_bf16, parts, n_parts, n * 2, y);
      break;
    case LAM_F64:
      add_steps(step_f64, parts, n_parts, n * 8, y);
      break;
    case LAM_I32:
      add_steps(step_i32, parts, n_parts, n * 4, y);
      break;
    case LAM_I64:
      add_steps(step_i64, parts, n_parts, n * 8, y);
      break;
    default:
      break; /* lam_add_supported says no */
  }
}

typedef void add_fn(lam_dtype t, const void *const *parts, int n_parts, size_t n, void *y);
static void add_plain(lam_dtype t, const void *const *parts, int n_parts, size_t n, void *y) {
  add_any(t, parts, n_parts, n, y);
}

#if defined(__x86_64__)
__attribute__((target("avx2"))) static void add_avx2(lam_dtype t, const void *const *parts,
                                                     int n_parts, size_t n, void *y) {
  add_any(t, parts, n_parts, n, y);
}
__attribute__((target("avx512f,avx512bw,avx512vl"))) static void add_avx512(
    lam_dtype t, const void *const *parts, int n_parts, size_t n, void *y) {
  add_any(t, parts, n_parts, n, y);
}
static add_fn *pick(void) {
  if (__builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512vl")) return add_avx512;
  return __builtin_cpu_supports("avx2") ? add_avx2 : add_plain;
}
#else
static add_fn *pick(void) { return add_plain; }
#endif

bool lam_add_supported(lam_dtype t) {
  return t == LAM_F32 || t == LAM_BF16 || t == LAM_F64 || t == LAM_I32 || t == LAM_I64;
}

void lam_add(lam_dtype t, const void *const *parts, int n_parts, int64_t n, void *y) {
  static _Atomic(add_fn *) add;
  add_fn *f = atomic_load_explicit(&add, memory_order_relaxed);
  if (!f) atomic_store_explicit(&add, f = pick(), memory_order_relaxed);
  f(t, parts, n_parts, (size_t)n, y);
}
