/* torch_abi.c: looks libtorch's functions up, in the copy that the process has loaded already.
 * Invariant: nothing is loaded here. Leaves reporting what is missing to register.c. */
#include "bindings/torch/torch_abi.h"

#include <dlfcn.h>
#include <stdio.h>
#include <string.h>

lam_torch_abi lam_torch;

static const struct {
  const char *name;
  size_t at;
  int since;
} wanted[] = {
#define LAM_TORCH(since, result, name, arguments) {#name, offsetof(lam_torch_abi, name), since},
#include "bindings/torch/torch_abi.def"
#undef LAM_TORCH
};

static void set(size_t at, void *address) {
  memcpy((char *)&lam_torch + at, &address, sizeof address);
}

const char *lam_torch_open(void) {
  static char error[160];
  void *torch = dlopen("libtorch_cpu.so", RTLD_LAZY | RTLD_NOLOAD);
  void *cuda = dlopen("libtorch_cuda.so", RTLD_LAZY | RTLD_NOLOAD);
  if (!torch) return "no libtorch_cpu.so is loaded: import torch first";

  for (size_t i = 0; i < sizeof wanted / sizeof *wanted; i++) {
    void *library = wanted[i].since == 1 ? cuda : torch;
    void *address = library ? dlsym(library, wanted[i].name) : NULL;
    set(wanted[i].at, address);
    if (address || wanted[i].since) continue;
    snprintf(error, sizeof error, "this torch has no %s: torch 2.10 or newer is needed",
             wanted[i].name);
    return error;
  }
  set(offsetof(lam_torch_abi, delete_cell), dlsym(torch, "_ZdlPv"));
  if (!lam_torch.torch_delete_stable_ivalue && !lam_torch.delete_cell)
    return "this torch brings no C++ library that could free its optionals";
  return NULL;
}
