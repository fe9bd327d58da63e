/* standin_driver.c: a driver of CUDA's for tests in JAX's place: the calls that JAX's handlers and
 * lamella.jax make of one, over the stand-in for CUDA's runtime on which the CUDA device in the same
 * object runs; and the stand-in itself, as emulated_*.
 *
 * Invariant: as the driver, what makes something refuses a thread without a current context, and here
 * so does what destroys an event; a context is a device's number and one more.
 * Leaves all else, queues above all, to tests/standin. What runs so is emulated. */
#include <cuda_runtime_api.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>

#include "tests/standin/standin.h"

#define EXPORT __attribute__((visibility("default")))
enum { MOST = 8, NO_CONTEXT = 201 };

static _Thread_local int before[MOST], depth; /* the runtime's device, to be put back */
static atomic_bool astray; /* nobody looks at how cuEventDestroy_v2 ends: a report does */

EXPORT int cuInit(unsigned flags);
int cuInit(unsigned flags) { return (int)flags; }

EXPORT int cuDevicePrimaryCtxRetain(void **out, int device);
int cuDevicePrimaryCtxRetain(void **out, int device) {
  int n;
  if (cudaGetDeviceCount(&n) != cudaSuccess || device < 0 || device >= n) return 101;
  *out = (void *)(uintptr_t)(device + 1);
  return 0;
}

EXPORT int cuCtxPushCurrent_v2(void *context);
int cuCtxPushCurrent_v2(void *context) {
  if (depth == MOST || !context) return NO_CONTEXT;
  cudaGetDevice(&before[depth++]);
  return (int)cudaSetDevice((int)(uintptr_t)context - 1);
}

EXPORT int cuCtxPopCurrent_v2(void **out);
int cuCtxPopCurrent_v2(void **out) {
  int device;
  if (!depth) return NO_CONTEXT;
  cudaGetDevice(&device);
  *out = (void *)(uintptr_t)(device + 1);
  return (int)cudaSetDevice(before[--depth]);
}

EXPORT int cuStreamCreate(cudaStream_t *out, unsigned flags);
int cuStreamCreate(cudaStream_t *out, unsigned flags) {
  return depth ? (int)cudaStreamCreateWithFlags(out, flags) : NO_CONTEXT;
}

EXPORT int cuStreamSynchronize(cudaStream_t stream);
int cuStreamSynchronize(cudaStream_t stream) { return (int)cudaStreamSynchronize(stream); }

EXPORT int cuStreamWaitEvent(cudaStream_t stream, cudaEvent_t event, unsigned flags);
int cuStreamWaitEvent(cudaStream_t stream, cudaEvent_t event, unsigned flags) {
  return (int)cudaStreamWaitEvent(stream, event, flags);
}

EXPORT int cuEventCreate(cudaEvent_t *out, unsigned flags);
int cuEventCreate(cudaEvent_t *out, unsigned flags) {
  return depth ? (int)cudaEventCreateWithFlags(out, flags) : NO_CONTEXT;
}

EXPORT int cuEventRecord(cudaEvent_t event, cudaStream_t stream);
int cuEventRecord(cudaEvent_t event, cudaStream_t stream) {
  return (int)cudaEventRecord(event, stream);
}

EXPORT int cuEventQuery(cudaEvent_t event);
int cuEventQuery(cudaEvent_t event) { return (int)cudaEventQuery(event); }

EXPORT int cuEventDestroy_v2(cudaEvent_t event);
int cuEventDestroy_v2(cudaEvent_t event) {
  if (!depth) atomic_store(&astray, true);
  return depth ? (int)cudaEventDestroy(event) : NO_CONTEXT;
}

EXPORT int cuMemcpyDtoDAsync_v2(uint64_t to, uint64_t from, size_t n, cudaStream_t stream);
int cuMemcpyDtoDAsync_v2(uint64_t to, uint64_t from, size_t n, cudaStream_t stream) {
  if (!depth) return NO_CONTEXT;
  return (int)cudaMemcpyAsync((void *)(uintptr_t)to, (const void *)(uintptr_t)from, n,
                              cudaMemcpyDeviceToDevice, stream);
}

EXPORT int cuPointerGetAttribute(void *out, int attribute, uint64_t memory);
int cuPointerGetAttribute(void *out, int attribute, uint64_t memory) {
  struct cudaPointerAttributes found;
  if (attribute != 9 /* CU_POINTER_ATTRIBUTE_DEVICE_ORDINAL */) return 1;
  const int e = (int)cudaPointerGetAttributes(&found, (const void *)(uintptr_t)memory);
  if (e == 0) *(int *)out = found.device;
  return e;
}

EXPORT int cuMemsetD32Async(uint64_t at, unsigned value, size_t n, cudaStream_t stream);
int cuMemsetD32Async(uint64_t at, unsigned value, size_t n, cudaStream_t stream) {
  if (value != 0) return 1; /* all that is asked for */
  return (int)cudaMemsetAsync((void *)(uintptr_t)at, 0, 4 * n, stream);
}

/* -- what JAX would do -- */

EXPORT int cuMemAlloc_v2(uint64_t *out, size_t n);
int cuMemAlloc_v2(uint64_t *out, size_t n) {
  void *p = NULL;
  const int e = depth ? (int)cudaMalloc(&p, n) : NO_CONTEXT;
  *out = (uint64_t)(uintptr_t)p;
  return e;
}

EXPORT int cuMemsetD8Async(uint64_t at, unsigned char value, size_t n, cudaStream_t stream);
int cuMemsetD8Async(uint64_t at, unsigned char value, size_t n, cudaStream_t stream) {
  if (!depth) return NO_CONTEXT;
  return (int)cudaMemsetAsync((void *)(uintptr_t)at, value, n, stream);
}

/* -- the stand-in -- */

EXPORT void emulated_seed(uint64_t chance);
void emulated_seed(uint64_t chance) { standin_seed(chance); }

EXPORT void emulated_read(uint64_t at, void *out, size_t n);
void emulated_read(uint64_t at, void *out, size_t n) {
  standin_peek((const void *)(uintptr_t)at, out, n);
}

EXPORT void emulated_write(uint64_t at, const void *from, size_t n);
void emulated_write(uint64_t at, const void *from, size_t n) {
  standin_poke((void *)(uintptr_t)at, from, n);
}

EXPORT const char *emulated_reports(void);
const char *emulated_reports(void) {
  if (atomic_load(&astray)) return "cuEventDestroy_v2: no context is current";
  return standin_n_reports() ? standin_reports() : "";
}
