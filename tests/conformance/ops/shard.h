/* shard.h: one rank's side of a problem: its tensors, its call, its results.
 * Leaves whole operands to problem.c. */
#ifndef LAMELLA_TESTS_OPS_SHARD_H
#define LAMELLA_TESTS_OPS_SHARD_H

#include "tests/conformance/ops/problem.h"
#include "tests/place.h"

double bf16_value(float v); /* v rounded to bf16 */
double f16_value(float v);
num *copy_numbers(const num *a, int64_t n);
int row_attrs(uint32_t op, char names[16][16]);
int64_t along_size(const problem *pr); /* of the dimension that ALONG operands are split along */
const char *problem_text(const problem *pr); /* of this thread, until its next use */

/* False where the call itself failed. marks [8]: a hash of each output that is whole on every
 * rank. The ranks meet there before and after the call. */
bool shard_run(const problem *pr, lam_context *ctx, lam_group *g, int rank, rng *r,
               meeting_place *all, uint64_t *marks);

#endif
