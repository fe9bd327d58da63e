/* test_kernels.cu: small kernels that the stand-in's own tests launch.
 * Invariant: but for those that say so, they would run on a real card as they stand.
 * Leaves what must come out of them to the tests. */
#include "tests/standin/test_kernels.h"

/* -- plain -- */

struct add_args {
  const float *x;
  float add;
  float *y;
  int n;
};

static __global__ void add_kernel(add_args a) {
  const int i = (int)(blockIdx.x * blockDim.x + threadIdx.x);
  if (i < a.n) a.y[i] = a.x[i] + a.add;
}

template <class A>
static cudaError_t launch(void (*kernel)(A), int grid, int block, size_t shared,
                          cudaStream_t stream, const A &a, const char *name) {
  return standin_launch(name, dim3((unsigned)grid), dim3((unsigned)block), shared, stream,
                        [=] { kernel(a); });
}

extern "C" cudaError_t test_add(const float *x, float add, float *y, int n, cudaStream_t stream) {
  return launch(add_kernel, (n + 63) / 64, 64, 0, stream, add_args{x, add, y, n}, "add");
}

struct count_args {
  uint32_t *count;
};

static __global__ void count_kernel(count_args a) { atomicAdd(a.count, 1); }

extern "C" cudaError_t test_counts(uint32_t *count, int blocks, int threads, cudaStream_t stream) {
  return launch(count_kernel, blocks, threads, 0, stream, count_args{count}, "count");
}

struct stray_args {
  float *y;
  int64_t at;
};

static __global__ void stray_kernel(stray_args a) { a.y[a.at] = 1.0f; }

extern "C" cudaError_t test_stray(float *y, int64_t at, cudaStream_t stream) {
  return launch(stray_kernel, 1, 1, 0, stream, stray_args{y, at}, "stray");
}

struct through_args {
  float **table;
};

static __global__ void through_kernel(through_args a) { **a.table = 1.0f; }

extern "C" cudaError_t test_through(float **table, cudaStream_t stream) {
  return launch(through_kernel, 1, 1, 0, stream, through_args{table}, "through");
}

struct wide_args {
  float4 *y;
};

static __global__ void wide_kernel(wide_args a) { *a.y = float4{1, 2, 3, 4}; }

extern "C" cudaError_t test_wide(float *y, cudaStream_t stream) {
  return launch(wide_kernel, 1, 1, 0, stream, wide_args{reinterpret_cast<float4 *>(y)}, "wide");
}

/* -- threads that meet -- */

struct rows_args {
  const float *x;
  float *y;
};

static __device__ float warp_sum(float v) {
  for (int lane = 16; lane > 0; lane /= 2) v += __shfl_xor_sync(0xffffffffu, v, lane);
  return v;
}

static __device__ float block_sum(float v, float *parts) {
  v = warp_sum(v);
  if (threadIdx.x % 32 == 0) parts[threadIdx.x / 32] = v;
  __syncthreads();
  v = threadIdx.x < 8 ? parts[threadIdx.x] : 0.0f;
  __syncthreads();
  return threadIdx.x < 32 ? warp_sum(v) : 0.0f;
}

static __global__ void sum_kernel(rows_args a) {
  __shared__ float parts[8];
  const float sum = block_sum(a.x[blockIdx.x * 256 + threadIdx.x], parts);
  if (threadIdx.x == 0) a.y[blockIdx.x] = sum;
}

static __global__ void sum_dynamic_kernel(rows_args a) {
  const float sum =
      block_sum(a.x[blockIdx.x * 256 + threadIdx.x], static_cast<float *>(standin_shared()));
  if (threadIdx.x == 0) a.y[blockIdx.x] = sum;
}

extern "C" cudaError_t test_sum_rows(const float *x, float *y, int rows, cudaStream_t stream) {
  return launch(sum_kernel, rows, 256, 0, stream, rows_args{x, y}, "sum_rows");
}

extern "C" cudaError_t test_sum_rows_dynamic(const float *x, float *y, int rows,
                                             cudaStream_t stream) {
  return launch(sum_dynamic_kernel, rows, 256, 8 * sizeof(float), stream, rows_args{x, y},
                "sum_rows_dynamic");
}

struct reverse_args {
  const float *x;
  float *y;
  int barrier;
};

static __global__ void reverse_kernel(reverse_args a) {
  __shared__ float all[256];
  all[threadIdx.x] = a.x[threadIdx.x];
  if (a.barrier) __syncthreads();
  a.y[threadIdx.x] = all[255 - threadIdx.x];
}

extern "C" cudaError_t test_reverse(const float *x, float *y, int barrier, cudaStream_t stream) {
  return launch(reverse_kernel, 1, 256, 0, stream, reverse_args{x, y, barrier}, "reverse");
}

struct warp_args {
  uint32_t *out;
};

static __global__ void warp_kernel(warp_args a) {
  const uint32_t lane = threadIdx.x, all = 0xffffffffu;
  uint32_t *out = a.out + lane;
  out[0] = __shfl_sync(all, lane, 5);
  out[32] = __shfl_xor_sync(all, lane, 3);
  out[64] = __shfl_down_sync(all, lane, 4);
  out[96] = __shfl_up_sync(all, lane, 4);
  out[128] = __shfl_down_sync(all, lane, 2, 8);
  out[160] = __ballot_sync(all, lane % 3 == 0);
  out[192] = (uint32_t)__any_sync(all, lane == 7) + 2u * (uint32_t)__all_sync(all, lane < 31);
  if (lane < 16) /* half a warp by itself */
    out[224] = __shfl_xor_sync(0x0000ffffu, lane, 8);
  else
    out[224] = 100 + __shfl_xor_sync(0xffff0000u, lane, 1);
}

extern "C" cudaError_t test_warp(uint32_t *out, cudaStream_t stream) {
  return launch(warp_kernel, 1, 32, 0, stream, warp_args{out}, "warp");
}

/* -- wrong on purpose -- */

struct diverge_args {
  test_divergence how;
  float *y;
};

static __global__ void diverge_kernel(diverge_args a) {
  const bool first = threadIdx.x < 32;
  float v = 1.0f;
  switch (a.how) {
    case TEST_HALF_AT_BARRIER:
      if (first) __syncthreads();
      break;
    case TEST_TWO_BARRIERS:
      if (first)
        __syncthreads();
      else
        __syncthreads();
      break;
    case TEST_HALF_AT_SHUFFLE:
      if (threadIdx.x % 2 == 0) v = __shfl_xor_sync(0xffffffffu, v, 2);
      break;
    case TEST_LANE_RETURNED:
      if (threadIdx.x == 5) return;
      v = __shfl_xor_sync(0xffffffffu, v, 1);
      break;
  }
  a.y[threadIdx.x] = v;
}

extern "C" cudaError_t test_diverge(test_divergence how, float *y, cudaStream_t stream) {
  return launch(diverge_kernel, 1, 64, 0, stream, diverge_args{how, y}, "diverge");
}

static __global__ void past_dynamic_kernel(rows_args a) {
  float *shared = static_cast<float *>(standin_shared());
  shared[4] = 1.0f; /* of 4 */
  a.y[0] = shared[4];
}

extern "C" cudaError_t test_past_dynamic(float *y, cudaStream_t stream) {
  return launch(past_dynamic_kernel, 1, 1, 4 * sizeof(float), stream, rows_args{y, y}, "past");
}

/* -- kernels that wait -- */

struct meet_args {
  uint32_t *flag;
  uint32_t until, first;
  uint32_t *out;
};

static __global__ void meet_kernel(meet_args a) {
  __shared__ uint32_t kept[32];
  kept[threadIdx.x] = a.first + blockIdx.x;
  __syncthreads();
  if (threadIdx.x == 0) {
    atomicAdd(a.flag, 1);
    while (__atomic_load_n(a.flag, __ATOMIC_ACQUIRE) < a.until) standin_yield();
  }
  __syncthreads();
  if (threadIdx.x == 31) a.out[blockIdx.x] = kept[7];
}

extern "C" cudaError_t test_meet(uint32_t *flag, uint32_t until, uint32_t first, uint32_t *out,
                                 int blocks, size_t shared, cudaStream_t stream) {
  return launch(meet_kernel, blocks, 32, shared, stream, meet_args{flag, until, first, out},
                "meet");
}
