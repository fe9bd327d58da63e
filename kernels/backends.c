/* backends.c: which devices, instruction sets and libraries are in this binary: the only place that
 * asks the preprocessor what it is built for.
 * Invariant: a table that is in the binary can be named without running anything of it.
 * Leaves to the tables whether this machine has what they need. */
#include "kernels/cpu/cpu.h"
#include "kernels/cpu/lanes.h"

#ifndef LAM_PLAIN_GEMM
#define LAM_PLAIN_GEMM 0 /* 1: no matrix library, no OpenMP: sanitizers see all there is */
#endif

static const lam_device *const devices[] = {&lam_device_cpu};
const lam_device *lam_device_forced = NULL;

const lam_device *lam_device_find(int32_t device_type) {
  if (lam_device_forced && lam_device_forced->device_type == device_type) return lam_device_forced;
  for (size_t i = 0; i < sizeof devices / sizeof *devices; i++)
    if (devices[i]->device_type == device_type) return devices[i];
  return NULL;
}

static const lam_lanes *const lanes[] = {
#if defined(__x86_64__)
    &lam_lanes_avx512_bf16,
    &lam_lanes_avx512,
    &lam_lanes_avx2,
#endif
    &lam_lanes_c,
};

const lam_lanes *const *lam_lanes_all(int *n) {
  *n = (int)(sizeof lanes / sizeof *lanes);
  return lanes;
}

#if LAM_PLAIN_GEMM
const lam_library *lam_gemm_library(void) { return NULL; }
#else
extern const lam_library lam_library_onednn;
const lam_library *lam_gemm_library(void) { return &lam_library_onednn; }
#endif
