/* moves.h: one call of each kind by which a group moves what lies on a device, and a whole step of a
 * pipeline: what tests of bad luck do until it strikes.
 *
 *   mover_open(&m, ctx, g); while (mover_run(&m, &moves[i]) == LAM_OK) mover_wait(); mover_close(&m);
 *
 * Ranks are threads or processes, and tensors lie where tests/place.h has them.
 * Invariant: all ranks of a group run the same moves in the same order; a move queues, and waits for no
 * stream. Leaves what comes out of a move to the tests of its operation. */
#ifndef LAMELLA_TESTS_DISTRIBUTED_MOVES_MOVES_H_
#define LAMELLA_TESTS_DISTRIBUTED_MOVES_MOVES_H_

#include "plugin/comm/group.h"
#include "tests/distributed/pipeline/layer.h"

typedef struct mover {
  lam_group *g;
  lam_context *ctx;       /* the group's */
  float *x, *y;           /* on the device */
  lam_channel *to, *from; /* the next rank, the previous one */
  /* a pipeline of a layer on each rank, once a step was asked for */
  lam_schedule *schedule;
  layer *own;
  lam_pipeline *pipeline;
  int64_t step;
} mover;

typedef struct move {
  const char *name;
  lam_status (*run)(mover *m); /* for mover_run */
} move;

extern const move moves[];
extern const int n_moves;

void mover_open(mover *m, lam_context *ctx, lam_group *g);
lam_status mover_run(mover *m, const move *what);
void mover_wait(void);      /* for the thread's stream, whatever became of it */
void mover_close(mover *m); /* and the group */

#endif
