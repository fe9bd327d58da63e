/* test_kernels.h: small kernels that the stand-in's own tests launch. */
#ifndef LAMELLA_TESTS_STANDIN_TEST_KERNELS_H
#define LAMELLA_TESTS_STANDIN_TEST_KERNELS_H

#include <cuda_runtime_api.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

/* y[i] = x[i] + add, for n of them in blocks of 64 */
cudaError_t test_add(const float *x, float add, float *y, int n, cudaStream_t stream);
/* y[block] = sum over a row of 256: shuffles, then static shared memory and two barriers */
cudaError_t test_sum_rows(const float *x, float *y, int rows, cudaStream_t stream);
/* The same, over dynamic shared memory. */
cudaError_t test_sum_rows_dynamic(const float *x, float *y, int rows, cudaStream_t stream);
/* y[i] = x[255 - i] by shared memory: wrong without the barrier, which `barrier` 0 leaves out */
cudaError_t test_reverse(const float *x, float *y, int barrier, cudaStream_t stream);
/* One warp: what each kind of shuffle and vote gives, 32 of each after another. */
cudaError_t test_warp(uint32_t *out, cudaStream_t stream);
/* Ways to go wrong: what not all threads come to. */
typedef enum test_divergence {
  TEST_HALF_AT_BARRIER,
  TEST_TWO_BARRIERS,
  TEST_HALF_AT_SHUFFLE,
  TEST_LANE_RETURNED
} test_divergence;
cudaError_t test_diverge(test_divergence how, float *y, cudaStream_t stream);
/* n blocks: each adds 1 to *flag, then waits until it is `until`, then writes what it kept in
 * shared memory meanwhile: out[block] = first + block. */
cudaError_t test_meet(uint32_t *flag, uint32_t until, uint32_t first, uint32_t *out, int blocks,
                      size_t shared, cudaStream_t stream);
/* Writes one float `at` elements after y. */
cudaError_t test_stray(float *y, int64_t at, cudaStream_t stream);
/* **table = 1 */
cudaError_t test_through(float **table, cudaStream_t stream);
/* Four floats at once. */
cudaError_t test_wide(float *y, cudaStream_t stream);
/* Each thread adds 1. */
cudaError_t test_counts(uint32_t *count, int blocks, int threads, cudaStream_t stream);
cudaError_t test_past_dynamic(float *y, cudaStream_t stream);

#ifdef __cplusplus
}
#endif

#endif
