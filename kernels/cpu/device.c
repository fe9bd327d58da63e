/* device.c: the CPU device's tables, and the choices made once per process.
 * Invariant: a stream is NULL: what a slot was asked for is there when it returns.
 * Leaves each slot to the file of its name. */
#include "kernels/device.h"

#include <pthread.h>
#include <stdio.h>

#include "kernels/cpu/cpu.h"
#include "kernels/cpu/lanes.h"

static const lam_lanes *picked_lanes;
const lam_lanes *lam_lanes_forced = NULL;

static void pick_lanes(void) {
  int n = 0;
  const lam_lanes *const *all = lam_lanes_all(&n);
  for (int i = n - 1; i >= 0; i--)
    if (all[i]->is_here()) picked_lanes = all[i];
}

const lam_lanes *lam_lanes_pick(void) {
  static pthread_once_t once = PTHREAD_ONCE_INIT;
  pthread_once(&once, pick_lanes);
  return lam_lanes_forced ? lam_lanes_forced : picked_lanes;
}

static void *open_library(void) {
  const lam_library *library = lam_gemm_library();
  return library ? library->open() : NULL;
}

const lam_library *lam_gemm_library_here(void) {
  return open_library() ? lam_gemm_library() : NULL;
}

static const char *describe(void) {
  static _Thread_local char text[160];
  const lam_library *library = lam_gemm_library_here();
  snprintf(text, sizeof text, "%s, own loops: %s", library ? library->describe() : "plain C",
           lam_lanes_pick()->name);
  return text;
}

static lam_status cpu_alloc(const lam_workers *w, uint64_t bytes, void **out) {
  *out = w->alloc(w->context, bytes);
  if (*out || bytes == 0) return LAM_OK;
  return lam_fail(LAM_RESOURCE_EXHAUSTED, "cpu: %llu bytes could not be had",
                  (unsigned long long)bytes);
}

static void cpu_free(const lam_workers *w, void *p, uint64_t bytes) {
  if (p) w->free(w->context, p, bytes);
}

static const lam_device_memory memory = {
    .alloc = cpu_alloc, .free = cpu_free, .copy = lam_copy_run};

static const lam_device_gemm_table gemm = {
    .run = lam_gemm_run,
    .fuses = NULL, /* unsupported: a second pass costs less than its own code would */
    .packed_cols = lam_pack_cols,
    .pack = lam_pack_run,
    .packed_open = lam_pack_open,
};

static const lam_device_vector vector = {
    .act = lam_act_run,
    .act_bwd = lam_act_bwd_run,
    .act_bwd_again = lam_act_bwd_again_run,
    .sum = lam_sum_run,
    .column_sum = lam_column_sum_run,
    .encode = lam_encode_run,
    .decode = lam_decode_run,
    .quantize = NULL, /* unsupported: the CPU has no products of fp8 */
};

static const lam_device_vocab vocab = {
    .find_outside = lam_find_outside_run,
    .mark_outside = NULL, /* unsupported: an index that is outside was found before */
    .gather = lam_gather_run,
    .scatter = lam_scatter_run,
    .softmax_parts = lam_softmax_parts_run,
    .cross_entropy = lam_cross_entropy_run,
    .cross_entropy_bwd = lam_cross_entropy_bwd_run,
};

static const lam_device_norm norm = {
    .rmsnorm = lam_rmsnorm_run,
    .rmsnorm_bwd = lam_rmsnorm_bwd_run,
    .add_rmsnorm = lam_add_rmsnorm_run,
};

const lam_device lam_device_cpu = {
    .name = "cpu",
    .device_type = 1, /* kDLCPU */
    .computes = 1u << LAM_F32 | 1u << LAM_BF16,
    .memory = &memory,
    .order = NULL, /* nothing is queued */
    .gemm = &gemm,
    .vector = &vector,
    .vocab = &vocab,
    .norm = &norm,
    .peer = NULL, /* unsupported: engines read peers' memory themselves */
    .describe = describe,
};
