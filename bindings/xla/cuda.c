/* cuda.c: two functions of libcuda.so.1, if the process has it.
 * Invariant: looked up once; types are the driver's, a result of 0 is success.
 * Leaves what they are needed for to call.c. */
#include "bindings/xla/cuda.h"

#include <dlfcn.h>
#include <pthread.h>
#include <stddef.h>

#define POINTER_ATTRIBUTE_DEVICE_ORDINAL 9 /* CU_POINTER_ATTRIBUTE_DEVICE_ORDINAL */

static struct {
  int (*get_attribute)(void *out, int attribute, uint64_t memory);    /* cuPointerGetAttribute */
  int (*set)(uint64_t memory, unsigned value, size_t n, void *stream); /* cuMemsetD32Async */
} driver;

static void find_driver(void) {
  void *lib = dlopen("libcuda.so.1", RTLD_NOW | RTLD_NOLOAD);
  if (!lib) return;
  *(void **)&driver.get_attribute = dlsym(lib, "cuPointerGetAttribute");
  *(void **)&driver.set = dlsym(lib, "cuMemsetD32Async");
}

static void look(void) {
  static pthread_once_t once = PTHREAD_ONCE_INIT;
  pthread_once(&once, find_driver);
}

int32_t xla_cuda_device_of(const void *memory) {
  int ordinal = 0;
  look();
  if (!driver.get_attribute || !memory) return 0;
  const uint64_t at = (uint64_t)(uintptr_t)memory;
  return driver.get_attribute(&ordinal, POINTER_ATTRIBUTE_DEVICE_ORDINAL, at) == 0 ? ordinal : 0;
}

bool xla_cuda_clear(void *word, void *stream) {
  look();
  return driver.set && driver.set((uint64_t)(uintptr_t)word, 0, 1, stream) == 0;
}
