/* rows_schedules_test.c: stages that call Lamella's own rows in f32 (layer.h), under every
 * schedule, have the gradients of one process that takes one whole micro-batch after the other, to
 * the last bit.
 * Leaves a toy in plain loops, and shapes that vary, to runtime_schedules_test.c. */
#include <stdlib.h>
#include <string.h>

#include "plugin/pipeline/schedule/schedule.h"
#include "tests/distributed/pipeline/layer.h"
#include "tests/place.h"

static void reference(int n, int threads, float (*dw)[LAYER_ALL]) {
  layer *all[LAYERS_MAX];
  lam_context *ctx = context_of(threads);
  for (int i = 0; i < n; i++) all[i] = layer_create(ctx, i);
  for (int step = 0; step < LAYER_STEPS; step++) layers_run(all, n, step);
  for (int i = 0; i < n; i++) layer_destroy(all[i], dw[i]);
  lam_context_destroy(ctx);
}

/* -- ranks -- */

typedef struct run {
  const lam_schedule *s;
  lam_group_id id;
  int threads;
  bool splits;
  uint32_t flags;
  int n_differ; /* of a run alone: stages whose gradients have other bits */
  float dw[LAYERS_MAX][LAYER_ALL];
} run;

static void run_rank(int rank, int size, void *arg) {
  run *r = arg;
  layer *own[LAYERS_MAX];
  lam_stage stages[LAYERS_MAX];
  lam_pipeline *pipeline = NULL;
  lam_context *ctx = context_of(r->threads);
  lam_group *g = join_threads(ctx, &r->id, rank, size);
  int n = 0;
  for (int i = 0; i < r->s->n_stages; i++)
    if (r->s->rank_of_stage[i] == rank)
      own[n] = layer_create(ctx, i), stages[n] = layer_stage(own[n], r->splits), n++;
  open_layers(ctx, g, r->s, r->flags, stages, n, &pipeline);
  for (int step = 0; step < LAYER_STEPS; step++) CHECK_OK(lam_pipeline_run(pipeline, step, NULL));
  for (int i = 0; i < n; i++) {
    float got[LAYER_ALL];
    const float *want = r->dw[own[i]->number];
    layer_destroy(own[i], got);
    if (r->flags)
      r->n_differ += memcmp(got, want, sizeof got) != 0;
    else
      layer_check(got, want);
  }
  lam_pipeline_destroy(pipeline);
  lam_group_destroy(g);
  lam_context_destroy(ctx);
}

/* -- tests -- */

static bool run_schedule(const char *name, int p, int v, int threads, bool splits) {
  lam_schedule *s = NULL;
  if (lam_schedule_build(name, p, v, LAYER_MICROS, &s)) return false;
  NOTE("%s p=%d v=%d threads=%d splits=%d", name, p, v, threads, splits);
  static run r;
  r = (run){.s = s, .threads = threads, .splits = splits};
  reference(s->n_stages, threads, r.dw);
  CHECK_OK(lam_group_id_create(&r.id));
  run_threads(p, run_rank, &r);
  lam_schedule_destroy(s);
  return true;
}

/* A device has no use for threads; whether stages split goes by the seed there. */
static bool is_tried(int p, int threads, int splits) {
  const char *most = getenv("LAMELLA_TEST_RANKS");
  if (place_is_host()) return p < 4;
  if (most && p > atoi(most)) return false;
  return p != 3 && threads == 1 && splits == (int)((seed() + (uint64_t)p / 2) % 2);
}

TEST(rows_schedules, f32_gradients_are_those_of_one_process) {
  const char *name;
  for (int i = 0; (name = lam_schedule_name(i)); i++)
    FOR_EACH(p, 2, 3, 4) FOR_EACH(threads, 1, 2) FOR_EACH(splits, 0, 1) {
      int n = 0;
      if (!is_tried(p, threads, splits)) continue;
      FOR_EACH(v, 1, 2) n += run_schedule(name, p, v, threads, splits);
      CHECK(n > 0 || (p == 4 && strcmp(name, "dualpipev") == 0)); /* 7 micro-batches are too few */
    }
}

/* That the bits tell: the same sums in another order are others. */
TEST(rows_schedules, another_order_of_micro_batches_gives_other_bits) {
  static const char backwards[] = "0F0 0F1 0F2 0F3 0F4 0F5 0F6 0B6 0B5 0B4 0B3 0B2 0B1 0B0";
  static run r;
  lam_schedule *s = NULL;
  REQUIRE_OK(lam_schedule_parse(backwards, strlen(backwards), &s));
  r = (run){.s = s, .threads = 1, .flags = LAM_PIPELINE_ANY_ORDER};
  reference(1, 1, r.dw);
  run_threads(1, run_rank, &r);
  CHECK_EQ(r.n_differ, 1);
  lam_schedule_destroy(s);
}
