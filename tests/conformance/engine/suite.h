/* suite.h: one suite for every engine. A test is a function that each rank runs on an open
 * group; on_every_engine runs it with each engine for 1, 2, 3 and 4 ranks. What an engine cannot
 * do it lists in engines.c, with a sentence why.
 * Leaves how ranks are started and meet to engines.c. */
#ifndef LAMELLA_TESTS_CONFORMANCE_ENGINE_SUITE_H_
#define LAMELLA_TESTS_CONFORMANCE_ENGINE_SUITE_H_

#include "plugin/comm/group.h"
#include "tests/check.h"

typedef void (*suite_fn)(lam_group *g);

/* claim: the test's name, as engines list it. Groups of fewer than min_ranks ranks are left out. */
void on_every_engine(const char *claim, int min_ranks, suite_fn fn);

extern const char *suite_only; /* one engine alone, by its name; NULL: all that need no card */
extern void (*suite_take_card)(int rank); /* this thread's device becomes the rank's own; or NULL */
extern int suite_most;         /* ranks: 4 */

/* ---- Data that every rank can make for every rank -------------------------------------------- */
enum { MAX_RANKS = 8 };
float value_of(uint64_t of, int rank, int64_t i); /* in [-1, 1); `of` names the operand */
void fill(void *x, lam_dtype t, int64_t n, uint64_t of, int rank); /* integers: in [-1000, 1000) */
double stored(const void *x, lam_dtype t, int64_t i);
double element_of(lam_dtype t, uint64_t of, int rank, int64_t i); /* as its dtype holds it */
/* got[i] is the sum over p ranks of element first + i of operand `of`, within what the dtype's
 * roundings allow. */
void check_sums(const void *got, lam_dtype t, int64_t first, int64_t n, uint64_t of, int p);
/* Every rank holds the same bytes as rank 0. */
void check_same_everywhere(lam_group *g, const void *x, uint64_t bytes);

lam_comm_op op_of(uint32_t op, lam_dtype t, int64_t n);

#endif
