/* problem.h: problems for the operators: made by chance, cut over ranks, run through lam_run,
 * compared with the reference.
 *
 * Ranks are threads; each has its own context and tensors, laid out by chance: NULL strides,
 * offsets, padded rows, transposed or packed weights. Around every output lie bytes that must not
 * change.
 * Leaves what a row means to reference.c. */
#ifndef LAMELLA_TESTS_OPS_PROBLEM_H
#define LAMELLA_TESTS_OPS_PROBLEM_H

#include "abi/lamella.h"
#include "tests/check.h"
#include "tests/conformance/ops/reference.h"

/* How a run's group is made: the same problems run over every engine. */
typedef struct ranks ranks;
typedef lam_status (*open_group_fn)(const ranks *all, lam_context *ctx, int rank,
                                    lam_group **out_group);
struct ranks {
  int p;
  open_group_fn open;
  lam_group_id id;
};
/* LAMELLA_TEST_ENGINE: another engine in its place, whose ranks have a card each. */
lam_status open_shm(const ranks *all, lam_context *ctx, int rank, lam_group **out_group);
lam_status open_callbacks(const ranks *all, lam_context *ctx, int rank, lam_group **out_group);

bool row_has(uint32_t op, const char *attr);

/* A random problem of the row, with its reference results. `turn` cycles through what must be
 * covered: activations, numbers of chunks. */
enum { F32_BITS, BF16_BITS, F16_BITS }; /* f16: on devices that compute it */
void problem_make(problem *pr, rng *r, uint32_t op, int p, int bits, int turn);
void problem_free(problem *pr);
/* Allocates operands at random and computes results, for a problem whose sizes and attributes are
 * set. */
void problem_fill(problem *pr, rng *r);

/* Runs all n on the ranks, and checks every output on every rank. */
void problems_run(ranks *all, problem *problems, int n);

#endif
