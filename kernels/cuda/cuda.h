/* cuda.h: what the files of the CUDA device share. C, and valid C++ for the .cu files.
 *
 * Invariant: every function with a stream queues its work there and returns: none allocates, waits
 * or looks at device memory.
 * Leaves what only device code needs to kernel.cuh. */
#ifndef LAMELLA_KERNELS_CUDA_CUDA_H
#define LAMELLA_KERNELS_CUDA_CUDA_H

#include <cuda_runtime_api.h>

#ifdef __cplusplus
extern "C" {
#endif

#include "kernels/codec.h"

/* -- errors -- */

/* The status that an error of CUDA's is; LAM_INTERNAL for most. */
static inline lam_status lam_cuda_code(cudaError_t error) {
  static const struct {
    cudaError_t error;
    lam_status code;
  } codes[] = {
      {cudaErrorMemoryAllocation, LAM_RESOURCE_EXHAUSTED},
      {cudaErrorLaunchOutOfResources, LAM_RESOURCE_EXHAUSTED},
      {cudaErrorNoDevice, LAM_UNAVAILABLE},
      {cudaErrorInsufficientDriver, LAM_UNAVAILABLE},
      {cudaErrorSystemDriverMismatch, LAM_UNAVAILABLE},
      {cudaErrorSystemNotReady, LAM_UNAVAILABLE},
      {cudaErrorDevicesUnavailable, LAM_UNAVAILABLE},
      {cudaErrorDeviceUninitialized, LAM_UNAVAILABLE},
      {cudaErrorContextIsDestroyed, LAM_UNAVAILABLE},
      {cudaErrorECCUncorrectable, LAM_UNAVAILABLE},
      {cudaErrorHardwareStackError, LAM_UNAVAILABLE},
      {cudaErrorNvlinkUncorrectable, LAM_UNAVAILABLE},
      {cudaErrorCudartUnloading, LAM_UNAVAILABLE},
      {cudaErrorInvalidDevice, LAM_INVALID_ARGUMENT},
      {cudaErrorStreamCaptureUnsupported, LAM_FAILED_PRECONDITION},
      {cudaErrorStreamCaptureInvalidated, LAM_FAILED_PRECONDITION},
      {cudaErrorStreamCaptureIsolation, LAM_FAILED_PRECONDITION},
      {cudaErrorStreamCaptureImplicit, LAM_FAILED_PRECONDITION},
      {cudaErrorStreamCaptureWrongThread, LAM_FAILED_PRECONDITION},
  };
  for (size_t i = 0; i < sizeof codes / sizeof *codes; i++)
    if (codes[i].error == error) return codes[i].code;
  return LAM_INTERNAL;
}

/* -- memory for queued work -- */

/* 256-byte aligned device memory for what is queued on `stream` until it is given back there. */
lam_status lam_cuda_borrow(uint64_t bytes, void *stream, void **out);
void lam_cuda_give_back(void *p, void *stream);

/* -- products (gemm_plain.cu, gemv.cu) -- */

/* All but z and sums. */
lam_status lam_cuda_gemm_plain_run(const lam_gemm *g, void *stream);
/* Few rows of a, K innermost and aligned to 16 bytes, without z and sums. */
bool lam_cuda_gemv_takes(const lam_gemm *g);
lam_status lam_cuda_gemv_run(const lam_gemm *g, void *stream);

/* -- vectors: the slots of device.h (eltwise.cu, reduce.cu, codec.cu, norm.cu) -- */

lam_status lam_cuda_act_run(const lam_workers *w, lam_act act, bool gated, lam_matrix z,
                            lam_matrix y, void *stream);
/* y = act(z + bias), aux = z + bias, each rounded once; bias and aux may be absent. */
lam_status lam_cuda_bias_act_run(lam_matrix z, lam_matrix bias, lam_act act, lam_matrix aux,
                                 lam_matrix y, void *stream);
lam_status lam_cuda_act_bwd_run(const lam_workers *w, lam_act act, bool gated, lam_matrix dy,
                                lam_matrix z, lam_matrix dz, void *stream);
lam_status lam_cuda_act_bwd_again_run(const lam_workers *w, lam_act act, bool gated, lam_matrix dy,
                                      lam_matrix z, lam_matrix dz, void *stream);
lam_status lam_cuda_copy_run(const lam_workers *w, lam_matrix from, lam_matrix to, void *stream);
lam_status lam_cuda_sum_run(const lam_workers *w, const lam_matrix *parts, int n, lam_matrix bias,
                            lam_matrix residual, lam_matrix y, void *stream);
lam_status lam_cuda_column_sum_run(const lam_workers *w, lam_matrix dy, lam_matrix db,
                                   bool accumulate, void *stream);
lam_status lam_cuda_encode_run(const lam_workers *w, int codec, lam_matrix x, void *coded,
                               void *stream);
lam_status lam_cuda_decode_run(const lam_workers *w, int codec, const void *coded, lam_matrix y,
                               void *stream);

lam_status lam_cuda_quantize_run(const lam_workers *w, lam_matrix x, lam_matrix y, lam_matrix scale,
                                 void *stream);

lam_status lam_cuda_rmsnorm_run(const lam_workers *w, lam_matrix x, lam_matrix g, float eps,
                                lam_matrix y, void *stream);
lam_status lam_cuda_rmsnorm_bwd_run(const lam_workers *w, lam_matrix dy, lam_matrix x, lam_matrix g,
                                    float eps, lam_matrix dx, lam_matrix dg, bool accumulate,
                                    void *stream);
lam_status lam_cuda_add_rmsnorm_run(const lam_workers *w, const lam_matrix *parts, int n,
                                    lam_matrix residual, lam_matrix g, float eps, lam_matrix sum,
                                    lam_matrix y, void *stream);

/* -- vocabulary: the slots of device.h (vocab.cu, mark.cu, cross_entropy.cu) -- */

lam_status lam_cuda_mark_outside_run(const lam_workers *w, lam_matrix ids, int64_t total,
                                     const int64_t *ignored, lam_matrix y, void *stream);
lam_status lam_cuda_gather_run(const lam_workers *w, lam_matrix weight, lam_matrix ids,
                               int64_t first, lam_matrix y, void *stream);
lam_status lam_cuda_scatter_run(const lam_workers *w, lam_matrix dy, lam_matrix ids, int64_t first,
                                int64_t *links, lam_matrix dw, bool accumulate, void *stream);
lam_status lam_cuda_softmax_parts_run(const lam_workers *w, lam_matrix logits, lam_matrix targets,
                                      int64_t first, lam_softmax_part *parts, void *stream);
lam_status lam_cuda_cross_entropy_run(const lam_workers *w, const lam_softmax_part *parts,
                                      int n_parts, lam_matrix targets, int64_t ignore,
                                      lam_matrix loss, lam_matrix lse, void *stream);
lam_status lam_cuda_cross_entropy_bwd_run(const lam_workers *w, lam_matrix dloss, lam_matrix logits,
                                          lam_matrix targets, lam_matrix lse, int64_t first,
                                          int64_t ignore, lam_matrix dlogits, void *stream);

#ifdef __cplusplus
}
#endif

#endif
