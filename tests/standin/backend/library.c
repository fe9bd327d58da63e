/* library.c: the stand-ins for cuBLASLt and NCCL in the place of those that kernels/cuda/library.c
 * opens. */
#include "kernels/cuda/host.h"

static const lam_cublaslt api = {
#define LAM_CUBLASLT(name, since, what_for) .name = name,
#include "kernels/cuda/calls.def"
};

lam_status lam_cublaslt_open(const lam_cublaslt **out) {
  *out = &api;
  return LAM_OK;
}

const lam_cublaslt *lam_cublaslt_here(void) { return &api; }

static const lam_nccl_calls nccl = {
#define LAM_NCCL(name, since, what_for) .name = name,
#include "kernels/cuda/calls.def"
};

lam_status lam_nccl_open(const lam_nccl_calls **out) {
  *out = &nccl;
  return LAM_OK;
}

const lam_nccl_calls *lam_nccl_here(void) { return &nccl; }
