/* library.c: opens cuBLASLt when the first product needs it.
 *
 * The copy that is in the process already is taken first: two would each keep workspaces and
 * kernels. It is never closed.
 * Invariant: lam_cublaslt_open gives a library of CUDA 13 with every function found, or says what is
 * missing.
 * Leaves how hosts' own copies get into the process to the hosts. */
#include <dlfcn.h>
#include <pthread.h>
#include <stdio.h>
#include <string.h>

#include "kernels/cuda/host.h"

static const char soname[] = "libcublasLt.so.13";

static lam_cublaslt api;
static void *library;
static const char *missing; /* a function that was not found */
static char why[256];       /* the loader's words */

/* A pointer to a function from dlsym, as POSIX spells it. */
static void find(const char *name, void *function) {
  *(void **)function = dlsym(library, name);
  if (!*(void **)function) missing = name;
}

static void open_once(void) {
  library = dlopen(soname, RTLD_LAZY | RTLD_LOCAL | RTLD_NOLOAD);
  if (!library) library = dlopen(soname, RTLD_LAZY | RTLD_LOCAL);
  if (!library) {
    const char *text = dlerror();
    snprintf(why, sizeof why, "%s", text ? text : soname);
    return;
  }
#define LAM_CUBLASLT(name, since, what_for) find(#name, &api.name);
#include "kernels/cuda/calls.def"
}

lam_status lam_cublaslt_open(const lam_cublaslt **out) {
  static pthread_once_t once = PTHREAD_ONCE_INIT;
  pthread_once(&once, open_once);
  *out = &api;
  if (!library) return lam_fail(LAM_UNAVAILABLE, "cuda: cuBLASLt could not be opened: %s", why);
  if (missing) return lam_fail(LAM_UNAVAILABLE, "cuda: %s has no %s", soname, missing);
  return LAM_OK;
}

const lam_cublaslt *lam_cublaslt_here(void) { return &api; }
