/* cuda_support.c: see cuda_support.h. */
#include "tests/unit/kernels/cuda_support.h"

#include <stdlib.h>

#include "kernels/cuda/cuda.h"
#include "tests/standin/standin.h"

void *stream;

static const lam_device_memory memory = {.copy = lam_cuda_copy_run};
static const lam_device_vector vector = {.act = lam_cuda_act_run,
                                         .act_bwd = lam_cuda_act_bwd_run,
                                         .act_bwd_again = lam_cuda_act_bwd_again_run,
                                         .sum = lam_cuda_sum_run,
                                         .column_sum = lam_cuda_column_sum_run,
                                         .encode = lam_cuda_encode_run,
                                         .decode = lam_cuda_decode_run,
                                         .quantize = lam_cuda_quantize_run};
static const lam_device_vocab vocab = {.mark_outside = lam_cuda_mark_outside_run,
                                       .gather = lam_cuda_gather_run,
                                       .scatter = lam_cuda_scatter_run,
                                       .softmax_parts = lam_cuda_softmax_parts_run,
                                       .cross_entropy = lam_cuda_cross_entropy_run,
                                       .cross_entropy_bwd = lam_cuda_cross_entropy_bwd_run};
static const lam_device_norm norm = {.rmsnorm = lam_cuda_rmsnorm_run,
                                     .rmsnorm_bwd = lam_cuda_rmsnorm_bwd_run,
                                     .add_rmsnorm = lam_cuda_add_rmsnorm_run};
const lam_device card = {.name = "card",
                         .device_type = 2,
                         .memory = &memory,
                         .vector = &vector,
                         .vocab = &vocab,
                         .norm = &norm};

/* -- what kernels borrow: new each time, so that what one left there cannot help the next -- */

static int n_borrowed;

lam_status lam_cuda_borrow(uint64_t bytes, void *on, void **out) {
  CHECK(on == stream);
  n_borrowed++;
  if (cudaMallocAsync(out, bytes, (cudaStream_t)on) == cudaSuccess) return LAM_OK;
  return lam_fail(LAM_RESOURCE_EXHAUSTED, "card: %llu bytes", (unsigned long long)bytes);
}

void lam_cuda_give_back(void *p, void *on) {
  n_borrowed--;
  CHECK_EQ(cudaFreeAsync(p, (cudaStream_t)on), cudaSuccess);
}

void card_begin(void) {
  static uint64_t chance;
  cudaStream_t s;
  standin_reset();
  standin_seed(seed() + chance++);
  CHECK_EQ(cudaStreamCreateWithFlags(&s, cudaStreamNonBlocking), cudaSuccess);
  stream = s;
}

void card_end(void) {
  CHECK_EQ(cudaStreamSynchronize((cudaStream_t)stream), cudaSuccess);
  CHECK_STR(standin_reports(), "");
  CHECK_EQ(n_borrowed, 0);
  standin_reset();
}

void *bytes_to_card(const void *bytes, uint64_t n) {
  void *p = NULL;
  if (cudaMalloc(&p, n) != cudaSuccess) abort();
  standin_poke(p, bytes, n);
  return p;
}

void bytes_from_card(void *bytes, const void *on_card, uint64_t n) {
  CHECK_EQ(cudaStreamSynchronize((cudaStream_t)stream), cudaSuccess);
  standin_peek(on_card, bytes, n);
}

static uint64_t offset_of(const box *b) {
  return (uint64_t)((unsigned char *)b->m.data - b->memory);
}

lam_matrix to_card(const box *b) {
  lam_matrix m = b->m;
  m.data = (char *)bytes_to_card(b->memory, b->bytes) + offset_of(b);
  return m;
}

void from_card(box *b, lam_matrix on_card) {
  bytes_from_card(b->memory, (char *)on_card.data - offset_of(b), b->bytes);
}

lam_dtype any_float(rng *r) { return (lam_dtype)floats[rng_int(r, 0, 2)]; }
form any_form(rng *r) { return (form)rng_int(r, 0, N_FORMS - 1); }
