/* cuda.c: a GPU as the demo's device: its memory, its one stream, and its table.
 *
 * Workers are processes. They take the machine's GPUs in turn, and share one where there are fewer;
 * how activations and sums then travel is Lamella's own choice (CUDA IPC, or through the host).
 * Invariant: nothing waits for the GPU but read, write, finish, loss and close, and CUDA itself
 * where memory is taken and given back. Leaves the loops to cuda.cu. */
#include <cuda_runtime_api.h>

#include "bindings/cli/demo/cuda.h"
#include "bindings/cli/demo/demo.h"

static cudaStream_t stream;
static float *losses; /* [tokens] of each row, times its share of the step's */
static int64_t n_losses;

static lam_status refused(cudaError_t error, const char *what) {
  if (error == cudaSuccess) return LAM_OK;
  return fail(LAM_UNAVAILABLE, "--device cuda: %s: %s", what, cudaGetErrorString(error));
}

static lam_status gpu_finish(void) {
  const cudaError_t error = cudaStreamSynchronize(stream);
  if (cuda_failed()) return fail(LAM_UNAVAILABLE, "--device cuda: %s", cuda_failed());
  return refused(error, "the step's work");
}

/* -- memory -- */

static void *gpu_take(uint64_t bytes) {
  void *p = NULL;
  if (cudaMalloc(&p, bytes ? bytes : 1) != cudaSuccess) return NULL;
  cuda_note(cudaMemsetAsync(p, 0, bytes ? bytes : 1, stream), "zeros");
  memory_count((int64_t)bytes);
  return p;
}

static void gpu_give(void *p, uint64_t bytes) {
  if (!p) return;
  memory_count(-(int64_t)bytes);
  cudaFree(p);
}

static void gpu_copy(const void *from, void *to, uint64_t bytes) {
  cuda_note(cudaMemcpyAsync(to, from, bytes, cudaMemcpyDeviceToDevice, stream), "copy");
}

static lam_status gpu_read(const void *there, void *to, uint64_t bytes) {
  TRY(refused(cudaMemcpyAsync(to, there, bytes, cudaMemcpyDeviceToHost, stream), "read"));
  return gpu_finish();
}

static lam_status gpu_write(const void *from, void *there, uint64_t bytes) {
  TRY(refused(cudaMemcpyAsync(there, from, bytes, cudaMemcpyHostToDevice, stream), "write"));
  return gpu_finish();
}

/* -- opening -- */

static lam_status gpu_open(const options *o, int rank) {
  int n = 0;
  TRY(refused(cudaGetDeviceCount(&n), "no GPU can be used"));
  if (n == 0) return fail(LAM_UNAVAILABLE, "--device cuda: this machine has no GPU");
  device_cuda.id = rank % n;
  TRY(refused(cudaSetDevice(device_cuda.id), "the GPU cannot be used"));
  TRY(refused(cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking), "no stream"));
  device_cuda.stream = stream;
  cuda_use(stream);
  n_losses = o->tokens;
  losses = gpu_take((uint64_t)n_losses * 4);
  return losses ? gpu_finish() : fail(LAM_RESOURCE_EXHAUSTED, "--device cuda: no memory");
}

static void gpu_close(void) {
  gpu_give(losses, (uint64_t)n_losses * 4);
  if (stream) cudaStreamDestroy(stream);
  losses = NULL, stream = NULL;
  here = &device_host;
}

/* -- what takes more than its kernel -- */

static lam_status gpu_loss(double *inout) {
  const uint64_t bytes = (uint64_t)n_losses * 4;
  float *rows = memory_take(bytes);
  lam_status status = rows ? gpu_read(losses, rows, bytes)
                           : fail(LAM_RESOURCE_EXHAUSTED, "no memory for the losses of rows");
  for (int64_t t = 0; status == LAM_OK && t < n_losses; t++) *inout += rows[t];
  memory_give(rows, bytes);
  TRY(status);
  return refused(cudaMemsetAsync(losses, 0, bytes, stream), "zeros");
}

static void gpu_cross_entropy(matrix logits, const uint8_t *targets, float scale, double share,
                              double *loss) {
  (void)loss;
  cuda_cross_entropy(logits, targets, scale, (float)(share / (double)logits.rows), losses);
}

static void gpu_batch(const text *t, const options *o, int64_t step, int micro, uint8_t *tokens,
                      uint8_t *targets) {
  const cuda_text of = {.bytes = t->there,
                        .n = t->n,
                        .seed = (uint64_t)o->seed,
                        .batch = step * MAX_MICRO + micro,
                        .sequence = o->sequence,
                        .sequences = o->sequences};
  cuda_batch(of, tokens, targets);
}

device device_cuda = {
    .name = "cuda",
    .type = kDLCUDA,
    .open = gpu_open,
    .close = gpu_close,
    .take = gpu_take,
    .give = gpu_give,
    .copy = gpu_copy,
    .read = gpu_read,
    .write = gpu_write,
    .finish = gpu_finish,
    .loss = gpu_loss,
    .batch = gpu_batch,
    .norm_forward = cuda_norm_forward,
    .norm_backward = cuda_norm_backward,
    .add = cuda_add,
    .embed_forward = cuda_embed_forward,
    .embed_backward = cuda_embed_backward,
    .attention_forward = cuda_attention_forward,
    .attention_backward = cuda_attention_backward,
    .cross_entropy = gpu_cross_entropy,
    .adamw = cuda_adamw,
};
