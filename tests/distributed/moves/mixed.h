/* mixed.h: operations of all kinds over two groups, in a random order that all ranks agree on, with random
 * shares, sizes from nothing to some KiB, and dtypes; each is checked, element by element.
 *
 * Elements are small whole numbers, so that every sum is exact in every dtype, in any order. A batch of
 * operations is queued without waiting for any of them; then all are checked.
 * Invariant: what is done follows from the chance alone: it is the same on all ranks.
 * Leaves groups, and where tensors lie (tests/place.h), to the caller. */
#ifndef LAMELLA_TESTS_DISTRIBUTED_MOVES_MIXED_H_
#define LAMELLA_TESTS_DISTRIBUTED_MOVES_MIXED_H_

#include "plugin/comm/group.h"

/* Both groups have all of this thread's peers, in any order. */
void mixed_run(lam_group *a, lam_group *b, uint64_t chance, int n_operations);

#endif
