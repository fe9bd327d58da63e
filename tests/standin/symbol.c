/* symbol.c: the stand-in's calls by name, as the real libraries' are found by dlsym.
 * Invariant: every call of calls.def is here: one that the stand-in lacks does not link. */
#include <cublasLt.h>
#include <cuda_runtime_api.h>
#include <string.h>

#include "kernels/cuda/nccl_calls.h"
#include "tests/standin/standin.h"

typedef void (*function)(void);

static const struct {
  const char *name;
  function call;
} calls[] = {
#define LAM_CUDART(name, since, what_for) {#name, (function)name},
#define LAM_CUBLASLT(name, since, what_for) {#name, (function)name},
#define LAM_NCCL(name, since, what_for) {#name, (function)name},
#include "kernels/cuda/calls.def"
};

void *standin_symbol(const char *name) {
  void *p = NULL;
  for (size_t i = 0; i < sizeof calls / sizeof *calls; i++)
    if (strcmp(calls[i].name, name) == 0) memcpy(&p, &calls[i].call, sizeof p);
  return p;
}
