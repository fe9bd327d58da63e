/* fake_cuda.c: two functions of libcuda.so.1 for frame_test.
 * Invariant: all memory is device 3's, and the host's own. Leaves out all else of a driver. */
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
