/* kernel_shim.h: makes a .cu file C++17, so that its kernels run, as written, on the CPU.
 *
 * Each thread of a block is a fiber. Fibers run one after another, in an order drawn from the seed,
 * up to where they meet: __syncthreads, or a shuffle or vote of the lanes in its mask. What not all
 * reach is a report. Blocks run in any order; a block that waits (lam_cuda_spin) lets other blocks
 * and other streams' kernels go on.
 *
 * What a kernel must know:
 * - dynamic shared memory is standin_shared(), for C++ has no `extern __shared__`;
 * - static __shared__ arrays are poisoned for every block, and kept apart for blocks that wait; but
 *   gcc 12 leaves those inside templates out: a template that spins uses dynamic shared memory;
 * - PTX goes under #ifdef __CUDACC__; beside it standin_yield() stands for "wait a little",
 *   standin_now_ns() for the global timer;
 * - atomics and fences are those of the CPU: stronger than the card's. */
#ifndef LAMELLA_TESTS_STANDIN_KERNEL_SHIM_H
#define LAMELLA_TESTS_STANDIN_KERNEL_SHIM_H

#ifdef __cplusplus
#include <cmath>
#include <cstdint>
#include <cstring>
#include <type_traits>

#include <cuda_runtime_api.h>

/* The toolkit's own headers, before their words change meaning below. */
#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_fp8.h>
#include <vector_functions.h>

#undef __global__
#undef __device__
#undef __host__
#undef __shared__
#undef __constant__
#undef __forceinline__
#undef __noinline__
#undef __launch_bounds__
#define __global__
#define __device__
#define __host__
#define __constant__ static
#define __forceinline__ inline __attribute__((always_inline))
#define __launch_bounds__(...)
#define __shared__ static __attribute__((section("standin_static_shared")))

extern "C" {
typedef struct standin_place {
  uint3 thread, block;
  dim3 block_dim, grid_dim;
} standin_place;
extern const standin_place *standin_here; /* of the fiber that runs */

typedef struct standin_section { /* where an object's static shared arrays lie */
  char *start, *stop;
} standin_section;

typedef enum standin_vote { STANDIN_SHFL, STANDIN_BALLOT, STANDIN_SYNCWARP } standin_vote;

void standin_barrier(const char *file, int line);
/* Meets the lanes of `mask`; gives what lane `from` brought (SHFL), or who brought other than 0. */
uint64_t standin_meet(standin_vote kind, uint32_t mask, uint64_t brought, int from, int width,
                      const char *file, int line);
void standin_yield(void);
uint64_t standin_now_ns(void);
void *standin_shared(void); /* the block's dynamic shared memory */
cudaError_t standin_launch_kernel(const char *name, dim3 grid, dim3 block, size_t shared,
                                  cudaStream_t stream, void (*run)(const void *), const void *args,
                                  size_t bytes, standin_section section);
extern char __start_standin_static_shared[] __attribute__((weak, visibility("hidden")));
extern char __stop_standin_static_shared[] __attribute__((weak, visibility("hidden")));
}

/* run() for each thread of the grid, in the stream's order; it holds its arguments by value. */
template <class F>
inline cudaError_t standin_launch(const char *name, dim3 grid, dim3 block, size_t shared,
                                  cudaStream_t stream, const F &run) {
  static_assert(std::is_trivially_copyable<F>::value, "a kernel's arguments are bytes");
  F copy(run);
#if defined(__has_builtin)
#if __has_builtin(__builtin_clear_padding)
  __builtin_clear_padding(&copy); /* what lies between arguments may look like an address */
#endif
#endif
  return standin_launch_kernel(
      name, grid, block, shared, stream, [](const void *f) { (*static_cast<const F *>(f))(); },
      &copy, sizeof copy, {__start_standin_static_shared, __stop_standin_static_shared});
}

#define threadIdx (standin_here->thread)
#define blockIdx (standin_here->block)
#define blockDim (standin_here->block_dim)
#define gridDim (standin_here->grid_dim)
#define warpSize 32

/* -- where threads meet -- */

#define __syncthreads() standin_barrier(__FILE__, __LINE__)
#define __syncwarp(...) \
  standin_meet(STANDIN_SYNCWARP, standin_mask(__VA_ARGS__), 0, 0, 32, __FILE__, __LINE__)
#define __shfl_sync(mask, value, ...) \
  standin_shfl(__FILE__, __LINE__, mask, value, standin_to_lane{}, __VA_ARGS__)
#define __shfl_xor_sync(mask, value, ...) \
  standin_shfl(__FILE__, __LINE__, mask, value, standin_to_xor{}, __VA_ARGS__)
#define __shfl_up_sync(mask, value, ...) \
  standin_shfl(__FILE__, __LINE__, mask, value, standin_to_up{}, __VA_ARGS__)
#define __shfl_down_sync(mask, value, ...) \
  standin_shfl(__FILE__, __LINE__, mask, value, standin_to_down{}, __VA_ARGS__)
#define __ballot_sync(mask, holds) \
  ((unsigned)standin_meet(STANDIN_BALLOT, mask, !!(holds), 0, 32, __FILE__, __LINE__))
#define __any_sync(mask, holds) (__ballot_sync(mask, holds) != 0)
#define __all_sync(mask, holds) (__ballot_sync(mask, !(holds)) == 0)
#define __nanosleep(ns) ((void)(ns), standin_yield())

static inline uint32_t standin_mask(uint32_t mask = 0xffffffffu) { return mask; }

static inline int standin_lane() {
  const standin_place *h = standin_here;
  return (int)((h->thread.x + h->block_dim.x * (h->thread.y + h->block_dim.y * h->thread.z)) % 32);
}

/* Which lane to read, within groups of `width`; its own where that would leave the group. */
struct standin_to_lane {
  int operator()(int lane, int width, int arg) const {
    return (lane & ~(width - 1)) | (arg & (width - 1));
  }
};
struct standin_to_xor {
  int operator()(int lane, int width, int arg) const {
    const int from = lane ^ arg;
    return (from & ~(width - 1)) > (lane & ~(width - 1)) ? lane : from;
  }
};
struct standin_to_up {
  int operator()(int lane, int width, int arg) const {
    return lane - arg < (lane & ~(width - 1)) ? lane : lane - arg;
  }
};
struct standin_to_down {
  int operator()(int lane, int width, int arg) const {
    return lane + arg > (lane | (width - 1)) ? lane : lane + arg;
  }
};

template <class T, class To>
inline T standin_shfl(const char *file, int line, uint32_t mask, T value, To to, int arg,
                      int width = 32) {
  static_assert(sizeof value <= 8 && std::is_trivially_copyable<T>::value, "at most 8 bytes");
  uint64_t bits = 0;
  std::memcpy(&bits, &value, sizeof value);
  bits = standin_meet(STANDIN_SHFL, mask, bits, to(standin_lane(), width, arg), width, file, line);
  std::memcpy(&value, &bits, sizeof value);
  return value;
}

/* -- memory: one CPU's order is stronger than any that a kernel may ask for -- */

static inline void __threadfence() { __atomic_thread_fence(__ATOMIC_SEQ_CST); }
static inline void __threadfence_block() { __atomic_thread_fence(__ATOMIC_SEQ_CST); }
static inline void __threadfence_system() { __atomic_thread_fence(__ATOMIC_SEQ_CST); }

template <class T>
static inline T __ldg(const T *p) {
  return *p;
}

template <class T, class F>
static inline T standin_atomic(T *p, F f) { /* gives what was there */
  T was, now;
  __atomic_load(p, &was, __ATOMIC_SEQ_CST);
  do now = f(was);
  while (!__atomic_compare_exchange(p, &was, &now, false, __ATOMIC_SEQ_CST, __ATOMIC_SEQ_CST));
  return was;
}

#define STANDIN_ATOMIC(name, expr)                                              \
  template <class T>                                                            \
  static inline T name(T *p, typename std::common_type<T>::type v) {            \
    return standin_atomic(p, [v](T was) -> T { return (void)was, (T)(expr); }); \
  }
STANDIN_ATOMIC(atomicAdd, was + v)
STANDIN_ATOMIC(atomicSub, was - v)
STANDIN_ATOMIC(atomicMax, was > v ? was : v)
STANDIN_ATOMIC(atomicMin, was < v ? was : v)
STANDIN_ATOMIC(atomicOr, was | v)
STANDIN_ATOMIC(atomicAnd, was &v)
STANDIN_ATOMIC(atomicExch, v)
STANDIN_ATOMIC(atomicInc, was >= v ? 0 : was + 1)
#undef STANDIN_ATOMIC
template <class T>
static inline T atomicCAS(T *p, typename std::common_type<T>::type expected,
                          typename std::common_type<T>::type v) {
  return standin_atomic(p, [=](T was) { return was == expected ? v : was; });
}

/* -- arithmetic -- */

template <class To, class From>
static inline To standin_bits(From from) {
  static_assert(sizeof(To) == sizeof(From), "as wide");
  To to;
  std::memcpy(&to, &from, sizeof to);
  return to;
}
static inline unsigned __float_as_uint(float x) { return standin_bits<unsigned>(x); }
static inline int __float_as_int(float x) { return standin_bits<int>(x); }
static inline float __uint_as_float(unsigned x) { return standin_bits<float>(x); }
static inline float __int_as_float(int x) { return standin_bits<float>(x); }

static inline float rsqrtf(float x) { return 1.0f / sqrtf(x); }
static inline float __frsqrt_rn(float x) { return 1.0f / sqrtf(x); }
static inline float __fsqrt_rn(float x) { return sqrtf(x); }
static inline float __frcp_rn(float x) { return 1.0f / x; }
static inline float __fdividef(float a, float b) { return a / b; }
static inline float __fdiv_rn(float a, float b) { return a / b; }
static inline float __fmaf_rn(float a, float b, float c) { return fmaf(a, b, c); }
static inline float __fadd_rn(float a, float b) { return a + b; }
static inline float __fsub_rn(float a, float b) { return a - b; }
static inline float __fmul_rn(float a, float b) { return a * b; }
static inline float standin_expf(float x) { return expf(x); }
static inline float standin_logf(float x) { return logf(x); }
static inline float standin_log2f(float x) { return log2f(x); }
#define __expf standin_expf /* glibc has the names for itself */
#define __logf standin_logf
#define __log2f standin_log2f
static inline float __saturatef(float x) { return x > 0.0f ? (x < 1.0f ? x : 1.0f) : 0.0f; }
static inline int __popc(unsigned x) { return __builtin_popcount(x); }
static inline int __clz(int x) { return x ? __builtin_clz((unsigned)x) : 32; }
static inline int __ffs(int x) { return __builtin_ffs(x); }
static inline unsigned __umulhi(unsigned a, unsigned b) {
  return (unsigned)((uint64_t)a * b >> 32);
}
static inline int __float2int_rn(float x) { return (int)rintf(x); }
static inline float __int2float_rn(int x) { return (float)x; }

template <class T>
static inline T min(T a, T b) {
  return b < a ? b : a;
}
template <class T>
static inline T max(T a, T b) {
  return a < b ? b : a;
}

#endif
#endif
