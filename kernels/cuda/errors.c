/* errors.c: CUDA's and cuBLAS's statuses as Lamella's.
 *
 * An error may also be one that work queued earlier, by whomever, ended with: the line says CUDA's
 * own name for it.
 * Invariant: CUDA's per-thread last error is taken back, so that no other library finds ours. */
#include <stdio.h>

#include "kernels/cuda/host.h"

lam_status lam_cuda_status(cudaError_t error, const char *what) {
  if (error == cudaSuccess) return LAM_OK;
  (void)cudaGetLastError();
  if (lam_cuda_is_forked())
    return lam_fail(LAM_FAILED_PRECONDITION,
                    "cuda: could not %s: this process was forked from one that uses CUDA, which "
                    "CUDA does not support: start it anew (spawn)",
                    what);
  return lam_fail(lam_cuda_code(error), "cuda: could not %s: %s (%s)", what,
                  cudaGetErrorString(error), cudaGetErrorName(error));
}

lam_status lam_cublas_status(cublasStatus_t status, const char *what) {
  if (status == CUBLAS_STATUS_SUCCESS) return LAM_OK;
  /* The device may be lost: then the runtime says so of any call, and cuBLASLt does not. */
  size_t unused, total;
  const cudaError_t behind = cudaMemGetInfo(&unused, &total);
  if (behind != cudaSuccess) return lam_cuda_status(behind, what);
  const lam_status code = status == CUBLAS_STATUS_ALLOC_FAILED    ? LAM_RESOURCE_EXHAUSTED
                          : status == CUBLAS_STATUS_NOT_SUPPORTED ? LAM_UNIMPLEMENTED
                                                                  : LAM_INTERNAL;
  return lam_fail(code, "cuda: cuBLASLt could not %s: %s", what,
                  lam_cublaslt_here()->cublasLtGetStatusName(status));
}
