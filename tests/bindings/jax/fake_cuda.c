/* fake_cuda.c: libcuda.so.1's two functions for frame_test: all memory is device 3's, and the host's
 * own. Leaves everything else of a driver out. */
#include <stdint.h>
#include <stddef.h>

#define EXPORT __attribute__((visibility("default")))

EXPORT int cuPointerGetAttribute(void *out, int attribute, uint64_t memory);
EXPORT int cuPointerGetAttribute(void *out, int attribute, uint64_t memory) {
  if (attribute != 9 || !memory) return 1;
  *(int *)out = 3;
  return 0;
}

EXPORT int cuMemsetD32Async(uint64_t memory, unsigned value, size_t n, void *stream);
EXPORT int cuMemsetD32Async(uint64_t memory, unsigned value, size_t n, void *stream) {
  if (!stream) return 1;
  for (size_t i = 0; i < n; i++) ((unsigned *)(uintptr_t)memory)[i] = value;
  return 0;
}
