/* emulated_test.c: every row of the operator table alone on the CUDA device, whose runtime, products
 * and card are the stand-in's: emulated, not run on a GPU.
 * Leaves ranks together to the tests that have peers there. */
#include <stdlib.h>

#include "kernels/cuda/host.h"
#include "tests/conformance/ops/problem.h"

enum { PROBLEMS = 12, TURNS = 3 }; /* per row, dtype and turn */

static int n_on_card, n_elsewhere;

static lam_status count(const lam_device *d, const char *slot) {
  (void)slot;
  ++*(d == &lam_device_cuda ? &n_on_card : &n_elsewhere);
  return LAM_OK;
}

/* Before any test: place.h asks once. */
__attribute__((constructor)) static void take_the_card(void) {
  setenv("LAMELLA_TEST_DEVICE", "cuda", 1);
  lam_device_forced = &lam_device_cuda;
  lam_device_on_call = count; /* one rank: one thread at a time */
}

static void run_row(uint32_t op, bool bf16, int turn) {
  static problem problems[PROBLEMS];
  ranks all = {.p = 1, .open = open_shm};
  rng r = {seed() + op * 8 + (uint64_t)turn * 2 + bf16};
  const int n = tries(PROBLEMS);
  for (int i = 0; i < n; i++) problem_make(&problems[i], &r, op, 1, bf16, i + turn);
  problems_run(&all, problems, n);
  for (int i = 0; i < n; i++) problem_free(&problems[i]);
}

TEST(emulated, every_row_equals_its_reference_alone) {
  for (uint32_t op = 0; op < LAM_OP_END_; op++) {
    const reference *ref = reference_find(op);
    if (!ref || !ref->run) continue;
    FOR_EACH(bf16, 0, 1) for (int turn = 0; turn < TURNS; turn++) run_row(op, bf16, turn);
  }
  CHECK(n_on_card > 0);
  CHECK_EQ(n_elsewhere, 0);
}
