/* profile_test.c: layers measured by running them: in which order, how often, what comes
 * of it, and what is refused. Layers wait for a given time on the clock, so a measured time is at
 * least that. */
#include <stdbool.h>
#include <string.h>
#include <time.h>

#include "abi/lamella.h"
#include "tests/check.h"

typedef struct spy {
  int64_t wait_ns[3]; /* forward, backward or its first half, second half */
  int calls[3];
  char order[64];
  int64_t rows[8]; /* the shape that each call found */
  lam_status fails;
} spy;

static int64_t now_ns(void) {
  struct timespec t;
  clock_gettime(CLOCK_MONOTONIC, &t);
  return t.tv_sec * 1000000000 + t.tv_nsec;
}

static lam_status called(spy *s, int part, const lam_stage_io *io) {
  const int64_t until = now_ns() + s->wait_ns[part];
  while (now_ns() < until) continue;
  s->order[strlen(s->order)] = "FIW"[part];
  if (part == 0 && s->calls[0] < 8) s->rows[s->calls[0]] = io->out[0].shape[0];
  if (part == 0) io->out[0].shape[0] = 1; /* lowered, as a stage may */
  s->calls[part]++;
  return s->fails;
}
static lam_status forward(void *user, const lam_stage_io *io) { return called(user, 0, io); }
static lam_status backward(void *user, const lam_stage_io *io) { return called(user, 1, io); }
static lam_status weight(void *user, const lam_stage_io *io) { return called(user, 2, io); }

enum { ROWS = 5 };
typedef struct sample {
  int64_t shape[2];
  float data[ROWS * 2];
  DLTensor tensor;
  lam_stage_io io;
} sample;

static void sample_init(sample *s) {
  memset(s, 0, sizeof *s);
  s->shape[0] = ROWS, s->shape[1] = 2;
  s->tensor = (DLTensor){.data = s->data, .ndim = 2, .dtype = {kDLFloat, 32, 1}, .shape = s->shape};
  s->io = (lam_stage_io){.struct_size = sizeof s->io, .n_in = 1, .n_out = 1};
  s->io.in = s->io.out = &s->tensor;
}

static lam_stage stage_of(spy *s, bool splits) {
  lam_stage is = LAM_STAGE_INIT;
  is.user = s, is.forward = forward;
  if (splits)
    is.backward_input = backward, is.backward_weight = weight;
  else
    is.backward = backward;
  return is;
}

TEST(profile, gives_each_layers_times_and_runs_them_in_order) {
  spy spies[2] = {{.wait_ns = {40000, 80000, 20000}}, {.wait_ns = {10000, 90000, 0}}};
  const lam_stage stages[2] = {stage_of(&spies[0], true), stage_of(&spies[1], false)};
  sample samples[2];
  lam_layer layers[2];
  for (int i = 0; i < 2; i++) sample_init(&samples[i]);
  memset(layers, 0, sizeof layers);
  layers[0].cut_time = 7, layers[0].static_bytes = 9;
  const lam_stage_io f[2] = {samples[0].io, samples[1].io};
  lam_profile_desc d = LAM_PROFILE_DESC_INIT;
  d.n_layers = 2, d.layers = stages, d.forward = d.backward = f;
  d.rounds = 4, d.warm_up = 1;
  REQUIRE_OK(lam_layers_profile(&d, layers));
  CHECK(layers[0].forward >= 40000 && layers[0].backward_input >= 80000);
  CHECK(layers[0].backward_weight >= 20000);
  CHECK(layers[1].forward >= 10000 && layers[1].backward_input >= 90000);
  CHECK(layers[1].backward_weight == 0);
  CHECK(layers[0].cut_time == 7 && layers[0].static_bytes == 9);
  CHECK_STR(spies[0].order, "FIWFIWFIWFIWFIW");
  CHECK_STR(spies[1].order, "FIFIFIFIFI");
  for (int i = 0; i < 5; i++) CHECK_EQ(spies[0].rows[i], ROWS);
  CHECK_EQ(samples[0].shape[0], ROWS);
}

TEST(profile, a_layer_that_fails_or_lacks_a_function_is_named) {
  spy s = {.fails = LAM_UNAVAILABLE};
  lam_stage stage = stage_of(&s, true);
  sample one;
  lam_layer layer;
  sample_init(&one);
  memset(&layer, 0, sizeof layer);
  lam_profile_desc d = LAM_PROFILE_DESC_INIT;
  d.n_layers = 1, d.layers = &stage, d.forward = d.backward = &one.io;
  CHECK_STATUS(lam_layers_profile(&d, &layer), LAM_UNAVAILABLE);
  CHECK_CONTAINS(lam_last_error(), "layers[0]: forward failed");
  CHECK_EQ(s.calls[0], 1);
  stage.backward_weight = NULL;
  CHECK_STATUS(lam_layers_profile(&d, &layer), LAM_INVALID_ARGUMENT);
  CHECK_CONTAINS(lam_last_error(), "layers[0] has no backward function");
  stage.struct_size = 8;
  CHECK_STATUS(lam_layers_profile(&d, &layer), LAM_INVALID_ARGUMENT);
  d.forward = NULL;
  CHECK_STATUS(lam_layers_profile(&d, &layer), LAM_INVALID_ARGUMENT);
  CHECK_CONTAINS(lam_last_error(), "forward is NULL");
}
