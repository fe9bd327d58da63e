/* backend.h: what a device in a shared object of its own and liblamella.so know of each other.
 *
 * Invariant: the object sees no symbol of liblamella.so and the reverse: all they share is what
 * lam_backend_get hands over, the types of device.h and lam_status.
 * Leaves finding the object to backends.c. */
#ifndef LAMELLA_KERNELS_BACKEND_H
#define LAMELLA_KERNELS_BACKEND_H

#include "kernels/device.h"

/* Both sides are built from one tree: any other backend is refused. The sizes tell of most changes
 * in device.h; the first number of the rest. */
#define LAM_BACKEND_VERSION                          \
  (1u << 24 | (uint32_t)(sizeof(lam_device) << 12) | \
   (uint32_t)(sizeof(lam_gemm) + sizeof(lam_gemm_more)))

typedef struct lam_backend_host { /* lives as long as the process */
  /* Writes this thread's message and returns code: where the backend's own lam_fail ends. */
  lam_status (*fail)(lam_status code, const char *text);
  const char *(*last_error)(void);
} lam_backend_host;

typedef struct lam_backend {
  const lam_device *device;
  lam_status (*open)(void); /* what the device needs of the machine, found; once, before any slot */
} lam_backend;

/* The one symbol of a backend; NULL: another version. */
typedef const lam_backend *lam_backend_get_fn(uint32_t version, const lam_backend_host *host);
extern lam_backend_get_fn lam_backend_get;

#endif
