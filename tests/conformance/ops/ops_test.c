/* ops_test.c: every row of the operator table against its reference, for any number of ranks,
 * shares, layouts and chunks.
 * Leaves the rows' meaning to reference.c, random problems to problem.c. */
#include <stdlib.h>
#include <string.h>

#include "tests/conformance/ops/problem.h"

enum { PROBLEMS = 40 }; /* per row, dtype and number of ranks */

TEST(table, every_row_has_a_reference) {
  for (uint32_t op = 0; op < LAM_OP_END_; op++) {
    NOTE("%s", lam_op_row(op));
    if (lam_op_row(op)) CHECK(reference_find(op) != NULL);
    if (!lam_op_row(op)) CHECK(reference_find(op) == NULL);
  }
}

static void run_random(ranks *all, uint32_t op, bool bf16) {
  static problem problems[PROBLEMS];
  rng r = {seed() + op * 8 + (uint64_t)all->p * 2 + bf16};
  for (int i = 0; i < PROBLEMS; i++) problem_make(&problems[i], &r, op, all->p, bf16, i);
  problems_run(all, problems, PROBLEMS);
  for (int i = 0; i < PROBLEMS; i++) problem_free(&problems[i]);
}

static void run_row(uint32_t op) {
  FOR_EACH(p, 1, 2, 3, 4) {
    ranks all = {.p = p, .open = open_shm};
    run_random(&all, op, false);
    run_random(&all, op, true);
  }
}

/* One test a row, so that a failure names it. */
#define ROW_TEST(name) \
  TEST(name, equals_its_reference_for_1_to_4_ranks) { run_row(LAM_OP_##name); }

ROW_TEST(all_reduce)
ROW_TEST(all_gather)
ROW_TEST(reduce_scatter)
ROW_TEST(broadcast)
ROW_TEST(reduce)
ROW_TEST(copy_to_group)
ROW_TEST(reduce_from_group)
ROW_TEST(gather_from_group)
ROW_TEST(scatter_to_group)
ROW_TEST(gather_sequence)
ROW_TEST(scatter_sequence)
ROW_TEST(linear)
ROW_TEST(linear_dgrad)
ROW_TEST(linear_wgrad)
ROW_TEST(act_bwd)
ROW_TEST(linear_col)
ROW_TEST(linear_col_dgrad)
ROW_TEST(linear_col_wgrad)
ROW_TEST(linear_col_bwd)
ROW_TEST(linear_row)
ROW_TEST(linear_row_dgrad)
ROW_TEST(linear_row_wgrad)
ROW_TEST(linear_row_bwd)
ROW_TEST(ffn)
ROW_TEST(ffn_dgrad)
ROW_TEST(ffn_wgrad)
ROW_TEST(ffn_bwd)
