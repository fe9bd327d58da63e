/* model.h: a toy model for pipeline tests: a chain of y = tanh(x W^T) stages in double precision,
 * and what each of its stages must end up with, computed by one process.
 *
 * Every number a stage computes comes from the same loops in the same order as the reference's, so
 * gradients must be equal to the last bit: a lost, doubled or misplaced message cannot hide in a
 * tolerance.
 * Leaves schedules and groups to worker.h and the tests. */
#ifndef LAMELLA_TESTS_DISTRIBUTED_PIPELINE_MODEL_H_
#define LAMELLA_TESTS_DISTRIBUTED_PIPELINE_MODEL_H_

#include <stdbool.h>

#include "plugin/pipeline/schedule/schedule.h"
#include "tests/check.h"

enum { MODEL_STAGES_MAX = 16, MODEL_MICRO_MAX = 24 };

/* Which functions its stages have beside the forward. */
enum { MODEL_WHOLE = 1, MODEL_SPLIT = 2, MODEL_FUSED = 4 };

typedef struct model {
  int n_stages, n_micro, rows, width;    /* rows: of the largest micro-batch */
  bool varies;                           /* micro-batches have from 0 to `rows` rows */
  bool three_tensors;                    /* row numbers (i64) and a tally (f32) cross as well */
  bool keeps;                            /* stages use LAM_STAGE_KEEPS_INPUT */
  unsigned functions;
  uint64_t seed;
  int fail_stage, fail_micro, fail_kind; /* the function that says no; fail_stage -1: none */
  /* Before a stage function works; may be NULL. */
  void (*on_call)(const lam_stage_io *io, int kind);
} model;

/* One stage's weights and what it saves; `m` is borrowed. */
typedef struct model_stage {
  const model *m;
  struct model_stage **all;              /* this rank's, by number: a fused pair works on two */
  int number;
  double *w, *dw;                        /* [width, width] */
  double *x[MODEL_MICRO_MAX], *y[MODEL_MICRO_MAX], *dz[MODEL_MICRO_MAX];
  double *from, *to;                     /* [rows, width]: what crosses an edge, on the host */
  int64_t *numbers;                      /* [rows], likewise */
  const void *kept[MODEL_MICRO_MAX];     /* with keeps: the input in its slot, wherever that is */
  int calls[4], pairs, reduced;          /* calls by kind */
} model_stage;

int model_rows(const model *m, int micro);
model_stage *model_stage_create(const model *m, int number, model_stage **all); /* into all[] */
void model_stage_destroy(model_stage *s);
lam_stage model_stage_functions(model_stage *s);
void model_edges(const model *m, lam_edge *edges, lam_shape *shapes); /* shapes [n_edges, 3] */

/* The gradients of all stages [n_stages][width * width] and the loss of one step; weight gradients
 * are summed in the order in which `s` runs each stage. */
void model_reference(const model *m, const lam_schedule *s, int64_t step, double **dw,
                     double *loss);

#endif
