/* device.c: the CUDA device's tables.
 * Invariant: a slot with a stream queues its work there and returns; results are there once the
 * stream has come so far.
 * Leaves each slot to the file of its name. */
#include "kernels/cuda/host.h"
#include "kernels/cuda/peer.h"

/* The host may wait: nothing of a call is here. */
static lam_status cuda_alloc(const lam_workers *w, uint64_t bytes, void **out) {
  (void)w;
  *out = NULL;
  return bytes ? lam_cuda_status(cudaMalloc(out, bytes), "have device memory") : LAM_OK;
}

static void cuda_free(const lam_workers *w, void *p, uint64_t bytes) {
  (void)w, (void)bytes;
  if (p && cudaFree(p) != cudaSuccess) (void)cudaGetLastError();
}

static const lam_device_memory memory = {
    .alloc = cuda_alloc, .free = cuda_free, .copy = lam_cuda_copy_run};

static const lam_device_order order = {
    .enter = lam_cuda_enter,
    .leave = lam_cuda_leave,
    .borrow = lam_cuda_borrow,
    .give_back = lam_cuda_give_back,
    .capturing = lam_cuda_capturing,
    .finish = lam_cuda_finish,
    .read = lam_cuda_read,
    .write = lam_cuda_write,
    .mark = lam_cuda_mark,
    .elapsed = lam_cuda_elapsed,
    .unmark = lam_cuda_unmark,
};

static const lam_device_gemm_table gemm = {
    .run = lam_cuda_gemm_run,
    .fuses = lam_cuda_gemm_fuses,
    .packed_cols = NULL, /* unsupported, as are the next two: cuBLASLt reads plain rows as fast */
    .pack = NULL,
    .packed_open = NULL,
};

static const lam_device_vector vector = {
    .act = lam_cuda_act_run,
    .act_bwd = lam_cuda_act_bwd_run,
    .act_bwd_again = lam_cuda_act_bwd_again_run,
    .sum = lam_cuda_sum_run,
    .column_sum = lam_cuda_column_sum_run,
    .encode = lam_cuda_encode_run,
    .decode = lam_cuda_decode_run,
    .quantize = lam_cuda_quantize_run,
};

static const lam_device_vocab vocab = {
    .find_outside = NULL, /* unsupported: the host would wait */
    .mark_outside = lam_cuda_mark_outside_run,
    .gather = lam_cuda_gather_run,
    .scatter = lam_cuda_scatter_run,
    .softmax_parts = lam_cuda_softmax_parts_run,
    .cross_entropy = lam_cuda_cross_entropy_run,
    .cross_entropy_bwd = lam_cuda_cross_entropy_bwd_run,
};

static const lam_device_norm norm = {
    .rmsnorm = lam_cuda_rmsnorm_run,
    .rmsnorm_bwd = lam_cuda_rmsnorm_bwd_run,
    .add_rmsnorm = lam_cuda_add_rmsnorm_run,
};

const lam_device lam_device_cuda = {
    .name = "cuda",
    .device_type = 2, /* kDLCUDA */
    .computes =
        1u << LAM_F32 | 1u << LAM_BF16 | 1u << LAM_F16 | 1u << LAM_F8E4M3 | 1u << LAM_F8E5M2,
    .memory = &memory,
    .order = &order,
    .gemm = &gemm,
    .vector = &vector,
    .vocab = &vocab,
    .norm = &norm,
    .peer = &lam_cuda_peer,
    .nccl = &lam_cuda_nccl,
    .pace = lam_cuda_pace,
    .describe = lam_cuda_describe,
};
