/* pipeline_test.c: pipelines that run: whatever the schedule, gradients and loss are those of one
 * process, to the last bit.
 * Leaves pipelines that fail to failure_test.c, what a step reports to report_test.c. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "tests/check.h"
#include "tests/distributed/await.h"
#include "tests/distributed/pipeline/worker.h"
#include "tests/place.h"

enum { STEPS = 3 };

typedef struct run {
  setup at;
  double *dw[MODEL_STAGES_MAX]; /* the reference's, of all steps */
  double loss[STEPS];
} run;

static int has_last(const run *r, int rank) {
  return r->at.s->rank_of_stage[r->at.m.n_stages - 1] == rank;
}

static _Atomic int rank0_tid, rank0_steps; /* that it has begun; ranks are threads */

static void train_rank(int rank, int size, void *arg) {
  const run *r = arg;
  worker k;
  REQUIRE_OK(worker_open(&k, &r->at, rank, size));
  for (int step = 0; step < STEPS; step++) {
    double loss = -1;
    if (rank == 0) {
      rank0_tid = gettid();
      rank0_steps = step + 1;
    }
    if (!CHECK_OK(lam_pipeline_run(k.pipeline, step, &loss))) break;
    CHECK(loss == (has_last(r, rank) ? r->loss[step] : 0));
  }
  for (int i = 0; i < r->at.m.n_stages; i++) {
    if (!k.all[i]) continue;
    CHECK_SAME_BITS(k.all[i]->dw, r->dw[i],
                    sizeof(double) * (size_t)(r->at.m.width * r->at.m.width));
    CHECK_EQ(k.all[i]->calls[LAM_KIND_F], STEPS * r->at.m.n_micro);
    CHECK_EQ(k.all[i]->reduced, STEPS);
  }
  worker_close(&k);
}

static bool over_callbacks; /* instead of shm */

/* Runs a schedule with ranks as threads; every rank compares its own stages with the reference. */
static void train(const model *m, const lam_schedule *s) {
  run r = {.at = {.m = *m, .s = s, .flags = LAM_PIPELINE_ANY_ORDER}}; /* so has the reference */
  REQUIRE(s != NULL);
  r.at.m.n_stages = s->n_stages, r.at.m.n_micro = s->n_micro;
  for (int i = 0; i < s->n_stages; i++)
    r.dw[i] = calloc((size_t)(m->width * m->width), sizeof(double));
  for (int step = 0; step < STEPS; step++) model_reference(&r.at.m, s, step, r.dw, &r.loss[step]);
  CHECK_OK(lam_group_id_create(&r.at.id));
  if (over_callbacks) r.at.mail = mail_create();
  rank0_steps = 0;
  run_threads(s->n_ranks, train_rank, &r);
  if (over_callbacks) mail_destroy(r.at.mail);
  for (int i = 0; i < s->n_stages; i++) free(r.dw[i]);
}

static void train_text(const char *text, model m) {
  NOTE("%s", text);
  lam_schedule *s = parse(text);
  train(&m, s);
  lam_schedule_destroy(s);
}

static const char *const names[] = {"layerwise", "gpipe", "1f1b"};

TEST(pipeline, gradients_are_those_of_one_process) {
  rng r = {seed()};
  for (int name = 0; name < 3; name++) FOR_EACH(p, 1, 2, 3, 4) {
      for (int round = 0; round < 3; round++) {
        const int m = (int)rng_int(&r, 1, 7);
        NOTE("%s p=%d m=%d", names[name], p, m);
        const model mo = small_model(p, m);
        lam_schedule *s = build(names[name], p, m);
        train(&mo, s);
        lam_schedule_destroy(s);
      }
    }
}

TEST(pipeline, several_tensors_cross_an_edge) {
  model m = small_model(3, 4);
  m.three_tensors = true;
  lam_schedule *s = build("1f1b", 3, 4);
  train(&m, s);
  m.varies = true;
  train(&m, s);
  lam_schedule_destroy(s);
}

TEST(pipeline, shapes_vary_per_micro_batch) {
  for (int name = 0; name < 3; name++) {
    lam_schedule *s = build(names[name], 3, 6);
    model m = small_model(3, 6);
    m.varies = true;
    m.rows = 7;
    m.keeps = name == 1;
    train(&m, s);
    lam_schedule_destroy(s);
  }
}

TEST(pipeline, inputs_stay_where_a_stage_keeps_them) {
  for (int name = 0; name < 3; name++) FOR_EACH(p, 1, 2, 4) {
      lam_schedule *s = build(names[name], p, 6);
      model m = small_model(p, 6);
      m.keeps = true;
      train(&m, s);
      lam_schedule_destroy(s);
    }
}

/* Before 1W0, when stage 1 has sent all that rank 0 waits for: until rank 0 is in its next step, as
 * far as it gets. */
static void await_rank0s_next_step(const lam_stage_io *io, int kind) {
  if (io->stage != 1 || kind != LAM_KIND_W || io->micro != 0 || io->step + 1 == STEPS) return;
  await_count(&rank0_steps, (int)io->step + 2);
  await_state(&rank0_tid, 'S');
}

/* Rank 0 is in its next step while rank 1 still reads this one's inputs. */
TEST(pipeline, kept_inputs_outlive_the_senders_step) {
  model m = small_model(2, 4);
  m.keeps = true;
  m.functions = MODEL_SPLIT;
  m.on_call = await_rank0s_next_step;
  train_text(
      "0F0 0F1 0F2 0F3 0I0 0W0 0I1 0W1 0I2 0W2 0I3 0W3\n"
      "1F0 1I0 1F1 1I1 1F2 1I2 1F3 1I3 1W0 1W1 1W2 1W3\n",
      m);
  train_text(
      "0F0 0F1 0I0 0W0 0F2 0I1 0W1 0F3 0I2 0W2 0I3 0W3\n"
      "1F0 1I0 1F1 1I1 1W1 1F2 1I2 1F3 1I3 1W3 1W2 1W0\n",
      m);
}

TEST(pipeline, messages_larger_than_a_megabyte) {
  model m = small_model(2, 3);
  m.rows = 20000; /* 1.28 MB */
  m.width = 8;
  m.keeps = true;
  lam_schedule *s = build("1f1b", 2, 3);
  train(&m, s);
  lam_schedule_destroy(s);
}

/* The timed wait is the stage's work, of another length each time. */
static void work_a_little(const lam_stage_io *io, int kind) {
  usleep((useconds_t)((io->stage * 7 + io->micro * 5 + kind * 3) % 11 * 50));
}

TEST(pipeline, late_stages_only_take_time) {
  model m = small_model(4, 6);
  m.on_call = work_a_little;
  lam_schedule *s = build("1f1b", 4, 6);
  train(&m, s);
  lam_schedule_destroy(s);
}

static const char split_by_hand[] =
    "rank 0: 0F0 0F1 0I0 0F2 0W0 0I1 0I2 0W1 0W2\n"
    "rank 1: 1F0 1I0 1F1 1I1 1W0 1F2 1I2 1W2 1W1\n";

TEST(pipeline, input_and_weight_gradients_apart) {
  model m = small_model(2, 3);
  FOR_EACH(functions, MODEL_SPLIT, MODEL_WHOLE | MODEL_SPLIT, MODEL_WHOLE) {
    m.functions = (unsigned)functions;
    FOR_EACH(keeps, 0, 1) {
      m.keeps = keeps;
      train_text(split_by_hand, m);
    }
  }
}

TEST(pipeline, a_stage_that_only_splits_does_both_for_a_whole_backward) {
  lam_schedule *s = build("1f1b", 3, 4);
  model m = small_model(3, 4);
  m.functions = MODEL_SPLIT;
  train(&m, s);
  lam_schedule_destroy(s);
}

/* Stages 0 and 3 on rank 0, 1 and 2 on rank 1: both kinds cross between two ranks in both
 * directions, and the edge in the middle stays where it is. */
static const char v_placement[] =
    "0F0 0F1 3F0 3B0 0F2 3F1 3B1 0B0 3F2 3B2 0B1 0B2\n"
    "1F0 2F0 1F1 2F1 2B0 1B0 1F2 2F2 2B1 1B1 2B2 1B2\n";

TEST(pipeline, v_placement_mixes_activations_and_gradients) {
  model m = small_model(4, 3);
  FOR_EACH(keeps, 0, 1) {
    m.keeps = keeps;
    m.three_tensors = m.varies = true;
    train_text(v_placement, m);
    m.rows = 20000, m.width = 8,
    m.three_tensors = m.varies = false; /* nothing relies on messages being small */
    train_text(v_placement, m);
    m = small_model(4, 3);
  }
}

static const char fused[] =
    "rank 0: 0F0 0F1 3F0 (0F2;3B0)OVERLAP_F_B (3F1;0B0)OVERLAP_F_B 3B1 (3F2;0B1) 3B2 0B2\n"
    "rank 1: 1F0 2F0 1F1 2F1 (1F2;2B0) (2F2;1B0) 2B1 1B1 2B2 1B2\n";

TEST(pipeline, fused_pairs_run_together_or_one_after_the_other) {
  model m = small_model(4, 3);
  FOR_EACH(functions, MODEL_WHOLE, MODEL_WHOLE | MODEL_FUSED, MODEL_SPLIT | MODEL_FUSED,
           MODEL_SPLIT) {
    FOR_EACH(keeps, 0, 1) {
      m.functions = (unsigned)functions;
      m.keeps = keeps;
      train_text(fused, m);
    }
  }
}

TEST(pipeline, a_receiver_may_use_messages_in_another_order_than_they_come) {
  model m = small_model(2, 3);
  FOR_EACH(keeps, 0, 1) {
    m.keeps = keeps;
    train_text("0F0 0F1 0F2 0B0 0B1 0B2\n1F2 1F0 1B0 1F1 1B1 1B2\n", m);
    train_text("0F0 0F1 0F2 0B2 0B0 0B1\n1F1 1F0 1B1 1F2 1B0 1B2\n", m);
  }
}

TEST(pipeline, a_lowered_schedule_runs_as_the_one_it_came_from) {
  lam_schedule *s = build("1f1b", 3, 5), *lowered = NULL;
  REQUIRE_OK(lam_schedule_lower(s, &lowered));
  const model m = small_model(3, 5);
  train(&m, lowered);
  lam_schedule_destroy(lowered);
  lam_schedule_destroy(s);
}

static void be_refused(int rank, int size, void *arg) {
  worker k;
  CHECK_STATUS(worker_open(&k, arg, rank, size), LAM_UNIMPLEMENTED);
  CHECK_CONTAINS(lam_last_error(), "the engine callback moves the host's memory only");
  worker_close(&k);
}

TEST(pipeline, a_device_is_refused_where_messages_go_by_the_host) {
  if (place_is_host()) SKIP("tensors are the host's");
  lam_schedule *s = build("1f1b", 2, 2);
  setup at = {.m = small_model(2, 2), .s = s, .mail = mail_create()};
  CHECK_OK(lam_group_id_create(&at.id));
  run_threads(2, be_refused, &at);
  mail_destroy(at.mail);
  lam_schedule_destroy(s);
}

TEST(pipeline, the_hosts_own_communication_carries_it_as_well) {
  if (!place_is_host()) SKIP("the host's functions are given its own memory");
  lam_schedule *s = build("1f1b", 3, 5);
  model m = small_model(3, 5);
  over_callbacks = true;
  FOR_EACH(keeps, 0, 1) {
    m.keeps = m.varies = keeps;
    m.three_tensors = true;
    train(&m, s);
    train_text(v_placement, m);
    train_text(fused, m);
    train_text("0F0 0F1 0F2 0B2 0B0 0B1\n1F1 1F0 1B1 1F2 1B0 1B2\n", m);
  }
  over_callbacks = false;
  lam_schedule_destroy(s);
}

/* -- any schedule that can run at all -- */

typedef struct draw {
  int p, stages, micro;
  int rank_of[MODEL_STAGES_MAX];
  uint8_t f[MODEL_STAGES_MAX][MODEL_MICRO_MAX], i[MODEL_STAGES_MAX][MODEL_MICRO_MAX],
      w[MODEL_STAGES_MAX][MODEL_MICRO_MAX];
  char lists[4][4096];
} draw;

/* Does one action whose inputs are there, at random; the order of all of them is a schedule
 * without deadlock. */
static void draw_action(draw *d, rng *r) {
  const int s = (int)rng_int(r, 0, d->stages - 1), m = (int)rng_int(r, 0, d->micro - 1);
  const char *kind = NULL;
  if (!d->f[s][m]) {
    if (s == 0 || d->f[s - 1][m]) kind = "F", d->f[s][m] = 1;
  } else if (!d->i[s][m]) {
    if (s < d->stages - 1 && !d->i[s + 1][m]) return;
    d->i[s][m] = 1;
    kind = rng_int(r, 0, 1) ? "I" : "B";
    if (*kind == 'B') d->w[s][m] = 1;
  } else if (!d->w[s][m]) {
    kind = "W", d->w[s][m] = 1;
  }
  if (!kind) return;
  char *list = d->lists[d->rank_of[s]];
  sprintf(list + strlen(list), " %d%s%d", s, kind, m);
}

static void draw_schedule(rng *r, char *text) {
  draw d = {.p = (int)rng_int(r, 1, 4)};
  d.stages = d.p * (int)rng_int(r, 1, 3);
  d.micro = (int)rng_int(r, 1, 6);
  for (int s = 0; s < d.stages; s++) d.rank_of[s] = s < d.p ? s : (int)rng_int(r, 0, d.p - 1);
  for (int left = d.stages * d.micro; left > 0;) {
    draw_action(&d, r);
    left = 0;
    for (int s = 0; s < d.stages; s++)
      for (int m = 0; m < d.micro; m++) left += !d.w[s][m];
  }
  *text = 0;
  for (int k = 0; k < d.p; k++) sprintf(text + strlen(text), "rank %d:%s\n", k, d.lists[k]);
}

TEST(pipeline, any_order_that_can_run_gives_the_same_gradients) {
  rng r = {seed()};
  for (int round = 0; round < 25; round++) {
    char text[4 * 4096 + 64];
    draw_schedule(&r, text);
    model m = small_model(0, 0);
    m.keeps = rng_int(&r, 0, 1);
    m.varies = rng_int(&r, 0, 1);
    m.three_tensors = rng_int(&r, 0, 1);
    m.functions = (unsigned)rng_int(&r, 1, 3);
    over_callbacks = rng_int(&r, 0, 3) == 0 && place_is_host();
    train_text(text, m);
  }
  over_callbacks = false;
}

/* -- forward only -- */

static void infer_rank(int rank, int size, void *arg) {
  const run *r = arg;
  worker k;
  REQUIRE_OK(worker_open(&k, &r->at, rank, size));
  for (int step = 0; step < STEPS; step++) {
    double loss = -1;
    if (!CHECK_OK(lam_pipeline_run(k.pipeline, step, &loss))) break;
    CHECK(loss == (has_last(r, rank) ? r->loss[step] : 0));
  }
  for (int i = 0; i < r->at.m.n_stages; i++)
    if (k.all[i])
      CHECK(k.all[i]->calls[LAM_KIND_F] == STEPS * r->at.m.n_micro &&
            k.all[i]->calls[LAM_KIND_B] == 0);
  worker_close(&k);
}

TEST(pipeline, forward_only_runs_the_forwards) {
  FOR_EACH(p, 1, 2, 4) {
    lam_schedule *s = build("1f1b", p, 5);
    run r = {.at = {.m = small_model(p, 5), .s = s, .flags = LAM_PIPELINE_FORWARD_ONLY}};
    r.at.m.functions = 0; /* no backward functions at all */
    r.at.m.keeps = true;
    double *dw[MODEL_STAGES_MAX];
    for (int i = 0; i < p; i++)
      dw[i] = calloc((size_t)(r.at.m.width * r.at.m.width), sizeof(double));
    for (int step = 0; step < STEPS; step++) model_reference(&r.at.m, s, step, dw, &r.loss[step]);
    CHECK_OK(lam_group_id_create(&r.at.id));
    run_threads(p, infer_rank, &r);
    for (int i = 0; i < p; i++) free(dw[i]);
    lam_schedule_destroy(s);
  }
}

TEST(pipeline, ranks_may_be_processes) {
  if (!place_is_host()) SKIP("a device belongs to the process that opened it");
  lam_schedule *s = build("1f1b", 3, 5);
  run r = {.at = {.m = small_model(3, 5), .s = s}};
  for (int i = 0; i < 3; i++)
    r.dw[i] = calloc((size_t)(r.at.m.width * r.at.m.width), sizeof(double));
  for (int step = 0; step < STEPS; step++) model_reference(&r.at.m, s, step, r.dw, &r.loss[step]);
  CHECK_OK(lam_group_id_create(&r.at.id));
  run_processes(3, train_rank, &r);
  for (int i = 0; i < 3; i++) free(r.dw[i]);
  lam_schedule_destroy(s);
}
