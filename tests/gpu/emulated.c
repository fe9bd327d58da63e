/* emulated.c: linked into a test, has it find the CUDA device on the stand-in, and use it.
 * Invariant: what passes so is emulated: it did not run on a GPU. */
#include <stdlib.h>

#include "kernels/cuda/host.h"
#include "tests/standin/standin.h"

__attribute__((constructor)) static void emulate(void) {
  const char *seed = getenv("LAMELLA_TEST_SEED");
  standin_seed(seed ? strtoull(seed, NULL, 0) : 1);
  setenv("LAMELLA_TEST_DEVICE", "cuda", 0);
  if (getenv("LAMELLA_TEST_ENGINE")) standin_devices(4); /* a card for each rank */
  lam_device_forced = &lam_device_cuda;
}
