/* losses.h: rank 1, a process, is killed or stopped somewhere in an operation on a device, or in a step of
 * a pipeline; the others are checked to end with one error, soon, whatever their device was doing, which
 * names it where it died, and to keep nothing of the group.
 * Invariant: CUDA is used in the children alone: the caller's process never touches it. */
#ifndef LAMELLA_TESTS_DISTRIBUTED_MOVES_LOSSES_H_
#define LAMELLA_TESTS_DISTRIBUTED_MOVES_LOSSES_H_

#include "tests/distributed/moves/moves.h"

typedef struct loss {
  const char *engine; /* NULL: by locality */
  int signal;
  uint32_t deadline_ms; /* once one may be lost */
  lam_status expected;
} loss;

/* For moves first, first + every, ... in turn, each with processes of its own. */
void lose_in_moves(const loss *l, int ranks, int first, int every);

#endif
