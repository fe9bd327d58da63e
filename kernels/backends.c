/* backends.c: which devices, instruction sets and libraries are in this binary: the only place that
 * asks the preprocessor what it is built for; and the device that is in a shared object of its own.
 * Invariant: a table that is in the binary can be named without running anything of it; what is
 * opened is opened once, when the first tensor on it arrives, and stays.
 * Leaves to the tables whether this machine has what they need. */
#include <dlfcn.h>
#include <pthread.h>
#include <stdio.h>
#include <string.h>

#include "kernels/backend.h"
#include "kernels/cpu/cpu.h"
#include "kernels/cpu/forks.h"
#include "kernels/cpu/lanes.h"

#ifndef LAM_PLAIN_GEMM
#define LAM_PLAIN_GEMM 0 /* 1: no matrix library, no OpenMP: sanitizers see all there is */
#endif

/* -- devices that are in this binary -- */

static const lam_device *const devices[] = {&lam_device_cpu};
const lam_device *lam_device_forced = NULL;

const lam_device *lam_device_find(int32_t device_type) {
  if (lam_device_forced && lam_device_forced->device_type == device_type) return lam_device_forced;
  for (size_t i = 0; i < sizeof devices / sizeof *devices; i++)
    if (devices[i]->device_type == device_type) return devices[i];
  return NULL;
}

/* -- devices in shared objects of their own -- */

enum { CUDA = 2 /* kDLCUDA */ };
static const char object_name[] = "liblamella_cuda.so.0";

static const lam_device *cuda;
static lam_status cuda_status;
static char cuda_text[LAM_MESSAGE_BYTES];

static lam_status fail_here(lam_status code, const char *text) {
  return lam_fail(code, "%s", text);
}
static const lam_backend_host host = {.fail = fail_here, .last_error = lam_last_error};

/* Beside this library; else as the loader finds it. */
static void *open_object(void) {
  char path[4096];
  Dl_info own;
  const char *slash = dladdr(object_name, &own) ? strrchr(own.dli_fname, '/') : NULL;
  const int folder = slash ? (int)(slash - own.dli_fname) + 1 : 0;
  if (folder && snprintf(path, sizeof path, "%.*s%s", folder, own.dli_fname, object_name) <
                    (int)sizeof path) {
    void *object = dlopen(path, RTLD_NOW | RTLD_LOCAL);
    if (object) return object;
  }
  return dlopen(object_name, RTLD_NOW | RTLD_LOCAL);
}

static lam_status open_backend(const lam_backend **out) {
  lam_backend_get_fn *get = NULL;
  lam_forks_wait();
  void *object = open_object();
  const char *why = object ? NULL : dlerror();
  if (object) *(void **)&get = dlsym(object, "lam_backend_get");
  lam_forks_go_on();
  if (!object)
    return lam_fail(LAM_UNAVAILABLE, "%s could not be opened: %s", object_name, why ? why : "");
  *out = get ? get(LAM_BACKEND_VERSION, &host) : NULL;
  return *out ? LAM_OK
              : lam_fail(LAM_UNAVAILABLE, "%s is of another version of Lamella", object_name);
}

/* The driver may start programs, so forks do not wait for it. */
static void open_cuda(void) {
  const lam_backend *backend = NULL;
  cuda_status = open_backend(&backend);
  if (cuda_status == LAM_OK) cuda_status = backend->open();
  if (cuda_status == LAM_OK)
    cuda = backend->device;
  else
    snprintf(cuda_text, sizeof cuda_text, "%s", lam_last_error());
}

lam_status lam_device_open(int32_t device_type, const lam_device **out) {
  static pthread_once_t once = PTHREAD_ONCE_INIT;
  *out = lam_device_find(device_type);
  if (*out || device_type != CUDA) return LAM_OK;
  pthread_once(&once, open_cuda);
  *out = cuda;
  return cuda ? LAM_OK : lam_fail(cuda_status, "%s", cuda_text);
}

/* -- loops and libraries -- */

static const lam_lanes *const lanes[] = {
#if defined(__x86_64__)
    &lam_lanes_avx512_bf16,
    &lam_lanes_avx512,
    &lam_lanes_avx2,
#endif
    &lam_lanes_c,
};

const lam_lanes *const *lam_lanes_all(int *n) {
  *n = (int)(sizeof lanes / sizeof *lanes);
  return lanes;
}

#if LAM_PLAIN_GEMM
const lam_library *lam_gemm_library(void) { return NULL; }
#else
extern const lam_library lam_library_onednn;
const lam_library *lam_gemm_library(void) { return &lam_library_onednn; }
#endif
