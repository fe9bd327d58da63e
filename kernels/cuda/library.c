/* library.c: opens cuBLASLt when the first product needs it, and NCCL when the first group does.
 *
 * The copy that is in the process already is taken first: two would each keep workspaces, kernels and
 * communicators. None is ever closed.
 * Invariant: what is given is a library with every function of calls.def found, or a line says what is
 * missing.
 * Leaves how hosts' own copies get into the process to the hosts, which NCCL is new enough to nccl.c. */
#include <dlfcn.h>
#include <pthread.h>
#include <stdio.h>
#include <string.h>

#include "kernels/cuda/host.h"

typedef struct library {
  const char *name, *soname;
  void *object;
  const char *missing; /* a function that was not found */
  char why[256];       /* the loader's words */
} library;

static library cublaslt = {.name = "cuBLASLt", .soname = "libcublasLt.so.13"};
static library nccl = {.name = "NCCL", .soname = "libnccl.so.2"};
static lam_cublaslt cublaslt_api;
static lam_nccl_calls nccl_api;

/* A pointer to a function from dlsym, as POSIX spells it. */
static void find(library *l, const char *name, void *function) {
  *(void **)function = l->object ? dlsym(l->object, name) : NULL;
  if (!*(void **)function) l->missing = name;
}

static void open_object(library *l) {
  l->object = dlopen(l->soname, RTLD_LAZY | RTLD_LOCAL | RTLD_NOLOAD);
  if (!l->object) l->object = dlopen(l->soname, RTLD_LAZY | RTLD_LOCAL);
  const char *text = l->object ? NULL : dlerror();
  snprintf(l->why, sizeof l->why, "%s", text ? text : l->soname);
}

static lam_status opened(const library *l) {
  if (!l->object)
    return lam_fail(LAM_UNAVAILABLE, "cuda: %s could not be opened: %s", l->name, l->why);
  if (l->missing) return lam_fail(LAM_UNAVAILABLE, "cuda: %s has no %s", l->soname, l->missing);
  return LAM_OK;
}

static void open_cublaslt(void) {
  open_object(&cublaslt);
#define LAM_CUBLASLT(name, since, what_for) find(&cublaslt, #name, &cublaslt_api.name);
#include "kernels/cuda/calls.def"
}

lam_status lam_cublaslt_open(const lam_cublaslt **out) {
  static pthread_once_t once = PTHREAD_ONCE_INIT;
  pthread_once(&once, open_cublaslt);
  *out = &cublaslt_api;
  return opened(&cublaslt);
}

const lam_cublaslt *lam_cublaslt_here(void) { return &cublaslt_api; }

static void open_nccl(void) {
  open_object(&nccl);
#define LAM_NCCL(name, since, what_for) find(&nccl, #name, &nccl_api.name);
#include "kernels/cuda/calls.def"
}

/* One that is too old may lack some; nccl.c says of its version. */
lam_status lam_nccl_open(const lam_nccl_calls **out) {
  static pthread_once_t once = PTHREAD_ONCE_INIT;
  pthread_once(&once, open_nccl);
  *out = &nccl_api;
  int version = 0;
  if (nccl.object && nccl_api.ncclGetVersion && nccl_api.ncclGetVersion(&version) == ncclSuccess &&
      version < NCCL_LEAST_VERSION)
    return LAM_OK;
  return opened(&nccl);
}

const lam_nccl_calls *lam_nccl_here(void) { return &nccl_api; }
