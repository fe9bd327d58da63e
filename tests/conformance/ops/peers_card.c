/* peers_card.c: put beside the tests of operators, runs them on the stand-in's CUDA device. */
#include <stdlib.h>

#include "kernels/cuda/host.h"
#include "tests/check.h"
#include "tests/standin/standin.h"

/* Before any test: place.h asks once. */
__attribute__((constructor)) static void take_the_card(void) {
  setenv("LAMELLA_TEST_DEVICE", "cuda", 1);
  standin_seed(seed());
  lam_device_forced = &lam_device_cuda;
}
