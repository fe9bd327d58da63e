/* call_loop.c: the same row many times over from C, for a bench in Python to measure its host's call
 * against.
 * Invariant: nothing is in the loop but lam_run. Leaves attributes at their defaults. */
#include <time.h>

#include "abi/lamella.h"

enum { MAX_INPUTS = 8 };
#define SCALAR(at) \
  { at, {kDLCPU, 0}, 2, {kDLFloat, 32, 1}, one, one, 0 }

static int64_t now_ns(void) {
  struct timespec t;
  clock_gettime(CLOCK_MONOTONIC, &t);
  return (int64_t)t.tv_sec * 1000000000 + t.tv_nsec;
}

/* `calls` calls of an operator whose tensors are all f32 [1, 1]; an input at NULL is absent. The time
 * of one in ns, or -1 where lam_last_error says why. */
LAM_API double call_loop(uint32_t op, float *const *inputs, uint32_t n_inputs, float *output,
                         int64_t calls);
double call_loop(uint32_t op, float *const *inputs, uint32_t n_inputs, float *output,
                 int64_t calls) {
  int64_t one[] = {1, 1};
  DLTensor tensors[MAX_INPUTS], y = SCALAR(output);
  const DLTensor *in[MAX_INPUTS];
  DLTensor *out[] = {&y};
  lam_call call = LAM_CALL_INIT;
  for (uint32_t i = 0; i < n_inputs; i++) {
    tensors[i] = (DLTensor)SCALAR(inputs[i]);
    in[i] = inputs[i] ? &tensors[i] : NULL;
  }
  call.op = op;
  call.inputs = in;
  call.n_inputs = n_inputs;
  call.outputs = out;
  call.n_outputs = 1;

  const int64_t begin = now_ns();
  for (int64_t i = 0; i < calls; i++)
    if (lam_run(NULL, &call) != LAM_OK) return -1;
  return (double)(now_ns() - begin) / (double)calls;
}
