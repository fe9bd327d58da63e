/* layer.h: stages that call Lamella's own rows in f32, and one process that calls the same rows for
 * one whole micro-batch after the other: with the same threads the gradients have the same bits, as
 * linear_wgrad adds each micro-batch to what is there.
 *
 * A stage is y = x w^T + b of width LAYER_WIDTH; the last one's loss is y^2 / 2, so that its
 * gradient is y.
 * Invariant: on a device (tests/place.h) everything is queued on the thread's stream; only making,
 * filling and destroying a layer waits.
 * Leaves schedules and groups to the tests. */
#ifndef LAMELLA_TESTS_DISTRIBUTED_PIPELINE_LAYER_H_
#define LAMELLA_TESTS_DISTRIBUTED_PIPELINE_LAYER_H_

#include <stdbool.h>

#include "abi/lamella.h"
#include "tests/check.h"

enum { LAYER_ROWS = 33, LAYER_WIDTH = 64, LAYER_MICROS = 7, LAYERS_MAX = 8, LAYER_STEPS = 2 };
enum {
  LAYER_X = LAYER_ROWS * LAYER_WIDTH,
  LAYER_W = LAYER_WIDTH * LAYER_WIDTH,
  LAYER_ALL = LAYER_W + LAYER_WIDTH /* w, then b */
};

/* Its numbers lie in one piece where the test's device has them: w and b, their gradients, x and dy
 * of each micro-batch, and the data of the first layer. */
typedef struct layer {
  lam_context *ctx;
  int number;
  float *w, *dw, *x[LAYER_MICROS], *dy[LAYER_MICROS], *data[LAYER_STEPS][LAYER_MICROS];
} layer;

layer *layer_create(lam_context *ctx, int number);
/* The first layer's data of `step` become those of step `as`. */
void layer_fill_step(const layer *l, int step, int as);
void layer_destroy(layer *l, float *dw); /* [LAYER_ALL], its gradients, which are read first */
/* Gradients are one process's to the bit; of ranks with a card each, which time their products each
 * for itself and may choose other algorithms, within rounding. */
void layer_check(const float *got, const float *want);
lam_stage layer_stage(layer *l, bool splits);

/* Forward and backward of n layers, a micro-batch after the other. */
void layers_run(layer **all, int n, int64_t step);

lam_context *context_of(int threads);
/* LAMELLA_TEST_ENGINE is the group's engine; LAMELLA_TEST_CARDS=each gives each rank a card. */
lam_group *join_threads(lam_context *ctx, const lam_group_id *id, int rank, int size);
/* A pipeline of layers where the tensors of tests lie, on the thread's stream. */
void open_layers(lam_context *ctx, lam_group *g, const lam_schedule *s, uint32_t flags,
                 const lam_stage *stages, int n_stages, lam_pipeline **out);

#endif
