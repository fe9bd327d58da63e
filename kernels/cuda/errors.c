/* errors.c: CUDA's and cuBLAS's statuses as Lamella's.
 *
 * An error may also be one that work queued earlier, by whomever, ended with: the line says CUDA's
 * own name for it.
 * Invariant: CUDA's per-thread last error is taken back, so that no other library finds ours. */
#include <stdio.h>

#include "kernels/cuda/host.h"

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

static lam_status code_of(cudaError_t error) {
  for (size_t i = 0; i < sizeof codes / sizeof *codes; i++)
    if (codes[i].error == error) return codes[i].code;
  return LAM_INTERNAL;
}

lam_status lam_cuda_status(cudaError_t error, const char *what) {
  if (error == cudaSuccess) return LAM_OK;
  (void)cudaGetLastError();
  if (lam_cuda_is_forked())
    return lam_fail(LAM_FAILED_PRECONDITION,
                    "cuda: could not %s: this process was forked from one that uses CUDA, which "
                    "CUDA does not support: start it anew (spawn)",
                    what);
  return lam_fail(code_of(error), "cuda: could not %s: %s (%s)", what, cudaGetErrorString(error),
                  cudaGetErrorName(error));
}

lam_status lam_cublas_status(cublasStatus_t status, const char *what) {
  if (status == CUBLAS_STATUS_SUCCESS) return LAM_OK;
  /* The product may have failed for what a kernel before it did: then CUDA knows it. */
  const cudaError_t behind = cudaGetLastError();
  if (behind != cudaSuccess) return lam_cuda_status(behind, what);
  const lam_status code = status == CUBLAS_STATUS_ALLOC_FAILED    ? LAM_RESOURCE_EXHAUSTED
                          : status == CUBLAS_STATUS_NOT_SUPPORTED ? LAM_UNIMPLEMENTED
                                                                  : LAM_INTERNAL;
  return lam_fail(code, "cuda: cuBLASLt could not %s: %s", what,
                  lam_cublaslt_here()->cublasLtGetStatusName(status));
}
