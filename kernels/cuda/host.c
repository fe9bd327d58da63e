/* host.c: where liblamella_cuda.so.0 begins, and where its messages go.
 *
 * Invariant: lam_backend_get is the only symbol that leaves the object; everything that fails in it
 * writes its message in liblamella.so, on the thread that called.
 * Leaves the device to device.c. */
#include <stdarg.h>
#include <stdio.h>
#include <string.h>

#include "kernels/backend.h"
#include "kernels/cuda/host.h"

static const lam_backend_host *host;

const char *lam_last_error(void) { return host->last_error(); }

lam_status lam_fail(lam_status code, const char *format, ...) {
  char text[LAM_MESSAGE_BYTES];
  va_list args;
  va_start(args, format);
  vsnprintf(text, sizeof text, format, args);
  va_end(args);
  return host->fail(code, text);
}

lam_status lam_fail_within(lam_status code, const char *format, ...) {
  char outer[LAM_MESSAGE_BYTES / 2];
  va_list args;
  va_start(args, format);
  vsnprintf(outer, sizeof outer, format, args);
  va_end(args);
  return lam_fail(code, "%s: %s", outer, lam_last_error());
}

static const lam_backend cuda = {.device = &lam_device_cuda, .open = lam_cuda_open};

__attribute__((visibility("default"))) const lam_backend *lam_backend_get(
    uint32_t version, const lam_backend_host *of) {
  if (version != LAM_BACKEND_VERSION) return NULL;
  host = of;
  return &cuda;
}
