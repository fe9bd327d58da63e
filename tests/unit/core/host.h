/* host.h: a host's tensors and calls, small enough to write down in a test.
 * Invariant: a host_tensor's DLTensor points into itself, so it must not be copied.
 * Leaves memory to the test. */
#ifndef LAMELLA_TESTS_UNIT_CORE_HOST_H_
#define LAMELLA_TESTS_UNIT_CORE_HOST_H_

#include <stdint.h>
#include <string.h>

#include "abi/lamella.h"
#include "tests/check.h"

static const DLDataType F32 = {2, 32, 1}, BF16 = {4, 16, 1}, I32 = {0, 32, 1}, U8 = {1, 8, 1};

typedef struct host_tensor {
  DLTensor t;
  int64_t shape[10], strides[10];
} host_tensor;

/* Contiguous; dims end with -1. */
#define HOST(h, data, dtype, ...) host_make(h, data, dtype, (const int64_t[]){__VA_ARGS__, -1})

static inline void host_make(host_tensor *h, void *data, DLDataType dtype, const int64_t *dims) {
  int n = 0;
  int64_t step = 1;
  while (dims[n] >= 0) n++;
  memset(h, 0, sizeof *h);
  for (int i = n - 1; i >= 0; i--) {
    h->shape[i] = dims[i];
    h->strides[i] = step;
    step *= dims[i];
  }
  h->t = (DLTensor){data, {kDLCPU, 0}, n, dtype, h->shape, h->strides, 0};
}

/* The call was refused as a wrong argument, in exactly these words. */
#define CHECK_REFUSED(expr, words) \
  (CHECK_EQ(expr, LAM_INVALID_ARGUMENT), CHECK_STR(lam_last_error(), words))

#endif
