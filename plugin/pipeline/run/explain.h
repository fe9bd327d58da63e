/* explain.h: a step of all ranks, taken apart; for explain.c, which does it, and explain_text.c,
 * which says it.
 * Invariant: times are nanoseconds, in doubles, so that a rank's row is one kind of number.
 * Leaves what a rank measures to report.c. */
#ifndef LAMELLA_PLUGIN_PIPELINE_RUN_EXPLAIN_H
#define LAMELLA_PLUGIN_PIPELINE_RUN_EXPLAIN_H

#include "plugin/pipeline/run/runtime.h"

typedef struct lam_rank_part {
  double start, step, n_actions; /* start by the rank's own clock; 0 = no step yet */
  double first, last;            /* first action's start, last one's end, since start */
  double work, waiting;
  double late; /* started so long after the first rank did */
} lam_rank_part;

enum { LAM_PART_F, LAM_PART_I, LAM_PART_W, LAM_PART_B, LAM_PART_PAIR, LAM_PART_REDUCE, LAM_PARTS };
typedef struct lam_stage_part {
  double ns[LAM_PARTS], n[LAM_PARTS]; /* time and number of calls */
  double first_layer, n_layers;
} lam_stage_part;

enum { LAM_COSTS = 5 }; /* F, I, W, pair, reduction */
typedef struct lam_explanation {
  const lam_schedule *s;
  void *own;
  unsigned char *rows;
  lam_stage_part *stages; /* [n_stages] */
  double *costs;          /* [LAM_COSTS][n_stages], means of the step */
  double step, predicted_step, level_step;
  lam_rank_time *predicted, *level; /* [n_ranks]; level: with all stages alike */
  lam_idle *ranks;                  /* [n_ranks] */
} lam_explanation;

/* A table, and one line for each rank that waits long. Returns the whole text's length. */
uint64_t lam_explain_text(const lam_pipeline *p, const lam_explanation *x, char *buf,
                          uint64_t room);

#endif
