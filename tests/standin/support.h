/* support.h: what the stand-in's own tests begin and end with.
 * Invariant: a test ends without reports that it did not read. Leaves checks to check.h. */
#ifndef LAMELLA_TESTS_STANDIN_SUPPORT_H
#define LAMELLA_TESTS_STANDIN_SUPPORT_H

#include <cuda_runtime_api.h>

#include "tests/check.h"
#include "tests/standin/standin.h"

#define CHECK_CUDA(expr) CHECK_EQ((expr), cudaSuccess)
#define REQUIRE_CUDA(expr)         \
  do {                             \
    if (!CHECK_CUDA(expr)) return; \
  } while (0)

static inline cudaStream_t new_stream(void) {
  cudaStream_t s = NULL;
  CHECK_CUDA(cudaStreamCreateWithFlags(&s, cudaStreamNonBlocking));
  return s;
}

static inline cudaEvent_t new_event(void) {
  cudaEvent_t e = NULL;
  CHECK_CUDA(cudaEventCreateWithFlags(&e, cudaEventDisableTiming));
  return e;
}

/* Device memory that holds this; host NULL: poison. */
static inline void *device_copy(const void *host, size_t bytes) {
  void *p = NULL;
  CHECK_CUDA(cudaMalloc(&p, bytes));
  if (host) standin_poke(p, host, bytes);
  return p;
}

static inline void begin(uint64_t chance) {
  standin_reset();
  standin_seed(chance);
}

static inline void end(void) {
  CHECK_STR(standin_reports(), "");
  standin_reset();
}

/* Ends a test in which this was said. */
static inline void end_with(const char *said) {
  CHECK_CONTAINS(standin_reports(), said);
  standin_forget_reports();
  end();
}

#endif
