/* library.c: the stand-in for cuBLASLt in the place of the one that kernels/cuda/library.c opens. */
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
