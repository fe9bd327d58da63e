/* worker.h: one rank of a pipeline over the toy model: its stages, context, group and pipeline,
 * opened and closed together.
 * On a device (tests/place.h) its slots are there, and its stages move what they need.
 * Leaves what is run on it to the tests. */
#ifndef LAMELLA_TESTS_DISTRIBUTED_PIPELINE_WORKER_H_
#define LAMELLA_TESTS_DISTRIBUTED_PIPELINE_WORKER_H_

#include "tests/distributed/pipeline/mail.h"
#include "tests/distributed/pipeline/model.h"

typedef struct setup {             /* what all ranks are given */
  model m;
  const lam_schedule *s;
  lam_group_id id;
  uint32_t flags;                  /* of the pipeline */
  uint32_t deadline_ms, first_deadline_ms;
  lam_context_desc hooks;          /* struct_size 0: none */
  mail *mail;                      /* NULL: shm; else groups are made from callbacks over it */
} setup;

typedef struct worker {
  model_stage *all[MODEL_STAGES_MAX]; /* by number; NULL: another rank's */
  lam_stage stages[MODEL_STAGES_MAX];
  lam_edge edges[MODEL_STAGES_MAX];
  lam_shape shapes[3 * MODEL_STAGES_MAX];
  int n_stages;
  lam_context *ctx;
  lam_group *group;                /* NULL for one rank */
  mail_rank post;
  lam_pipeline_desc desc;
  lam_pipeline *pipeline;
} worker;

/* Everything but the pipeline, which worker_start makes from w->desc; worker_open is both. Close
 * takes what there is. */
void worker_prepare(worker *w, const setup *at, int rank, int size);
lam_status worker_start(worker *w);
lam_status worker_open(worker *w, const setup *at, int rank, int size);
void worker_close(worker *w);      /* checks that the pipeline gave back all memory it took */

model small_model(int n_stages, int n_micro);
lam_schedule *build(const char *name, int p, int m);
lam_schedule *parse(const char *text);
double seconds_now(void);

#endif
