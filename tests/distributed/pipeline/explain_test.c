/* explain_test.c: idle time of all ranks, explained: parts that add up, the slow stage by name, and
 * what a simulation with the step's own times foretells.
 * The timed waits in stages are their work; nothing here depends on how exact they are.
 * Leaves what one rank says of itself to report_test.c. */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "tests/distributed/await.h"
#include "tests/distributed/pipeline/worker.h"

enum { RANKS_MAX = 4, TEXT = 4096, MS = 1000000 };

typedef struct told {
  lam_explained is;
  lam_idle ranks[RANKS_MAX];
  char text[TEXT];
} told;

static lam_status ask(const worker *k, told *t) {
  *t = (told){.is = LAM_EXPLAINED_INIT};
  t->is.ranks = t->ranks, t->is.n_ranks = RANKS_MAX;
  t->is.text = t->text, t->is.text_bytes = TEXT;
  return lam_pipeline_explain(k->pipeline, &t->is);
}

static void check_sums(const told *t, int n_ranks) {
  CHECK_EQ(t->is.n_ranks, n_ranks);
  CHECK_EQ(t->is.text_bytes, strlen(t->text));
  for (int r = 0; r < n_ranks; r++) {
    const lam_idle *i = &t->ranks[r];
    const double sum = i->work + i->warm_up + i->drain + i->waiting + i->imbalance + i->other;
    CHECK(fabs(sum - t->is.step) <= 1e-9 * t->is.step);
    CHECK(i->work > 0 && i->warm_up >= 0 && i->drain >= 0 && i->waiting >= 0 && i->imbalance >= 0);
    CHECK(i->other >= -1); /* a nanosecond of rounding */
    CHECK(i->predicted >= 0 && i->predicted <= t->is.predicted_step);
  }
  CHECK(t->is.metering > 0);
}

/* -- whatever the schedule -- */

/* The table's cells are the numbers, to the digit that is shown: "   0     60.1%     ...". */
static void check_table(const told *t, int n_ranks) {
  const char *head = strchr(t->text, '\n');
  REQUIRE(head != NULL);
  CHECK(!strncmp(head + 1,
                 "rank      work   warm-up     drain   waiting imbalance     other  predicted  "
                 "waits most on\n",
                 91));
  const char *line = strchr(head + 1, '\n');
  for (int r = 0; r < n_ranks && line; r++, line = strchr(line + 1, '\n')) {
    const lam_idle *i = &t->ranks[r];
    const double of_step[] = {i->work, i->warm_up, i->drain, i->waiting, i->imbalance, i->other};
    char want[256];
    int n = snprintf(want, sizeof want, "%4d", r);
    for (int c = 0; c < 6; c++)
      n += snprintf(want + n, sizeof want - (size_t)n, " %8.1f%%", 100 * of_step[c] / t->is.step);
    n += snprintf(want + n, sizeof want - (size_t)n, " %9.1f%%",
                  100 * i->predicted / t->is.predicted_step);
    if (i->worst_edge >= 0)
      n += snprintf(want + n, sizeof want - (size_t)n, "  %d->%d %s %.1f%%", i->worst_edge,
                    i->worst_edge + 1, i->worst_kind == LAM_KIND_F ? "forward" : "backward",
                    100 * i->worst / t->is.step);
    snprintf(want + n, sizeof want - (size_t)n, "\n");
    CHECK(!strncmp(line + 1, want, strlen(want)));
  }
}

static void explain_steps(int rank, int size, void *arg) {
  const setup *at = arg;
  worker k;
  told t;
  REQUIRE_OK(worker_open(&k, at, rank, size));
  CHECK_STATUS(ask(&k, &t), LAM_FAILED_PRECONDITION);
  CHECK_CONTAINS(lam_last_error(), "rank 0 has run no step yet");
  for (int step = 0; step < 2; step++) {
    CHECK_OK(lam_pipeline_run(k.pipeline, step, NULL));
    REQUIRE_OK(ask(&k, &t));
    check_sums(&t, size);
    check_table(&t, size);
    CHECK_CONTAINS(t.text, step ? "step 1 took" : "step 0 took");
  }
  worker_close(&k);
}

TEST(pipeline_explain, parts_add_up_to_the_step_for_every_schedule) {
  const char *name;
  for (int i = 0; (name = lam_schedule_name(i)); i++) FOR_EACH(p, 1, 2, 3)
  FOR_EACH(v, 1, 2) FOR_EACH(functions, MODEL_WHOLE, MODEL_SPLIT | MODEL_FUSED) {
    lam_schedule *s = NULL;
    if (lam_schedule_build(name, p, v, 6, &s)) continue;
    NOTE("%s p=%d v=%d", name, p, v);
    setup at = {.m = small_model(p * v, 6), .s = s};
    at.m.functions = (unsigned)functions;
    CHECK_OK(lam_group_id_create(&at.id));
    run_threads(p, explain_steps, &at);
    lam_schedule_destroy(s);
  }
}

/* -- a slow stage -- */

/* A rank that begins late warms up less: rank 0 begins once all the others wait for it. */
static _Atomic int tids[RANKS_MAX];
static void begin_in_order(int rank, int size) {
  tids[rank] = gettid();
  for (int r = 1; rank == 0 && r < size; r++) await_state(&tids[r], 'S');
}

static void slow_second_stage(const lam_stage_io *io, int kind) {
  usleep((io->stage == 1 ? 12000 : 3000) * (kind == LAM_KIND_B ? 2 : 1));
}

static void blame(int rank, int size, void *arg) {
  const setup *at = arg;
  worker k;
  told t;
  worker_prepare(&k, at, rank, size);
  k.stages[0].first_layer = (uint32_t)(4 * rank), k.stages[0].n_layers = 4;
  REQUIRE_OK(worker_start(&k));
  begin_in_order(rank, size);
  CHECK_OK(lam_pipeline_run(k.pipeline, 0, NULL));
  REQUIRE_OK(ask(&k, &t));
  check_sums(&t, size);
  CHECK(t.ranks[1].imbalance < t.ranks[0].imbalance && t.ranks[1].imbalance < t.ranks[2].imbalance);
  CHECK(t.ranks[2].drain >= 15 * MS); /* stage 1's and 0's last backward */
  CHECK(t.ranks[2].warm_up >= 15 * MS);
  CHECK_EQ(t.ranks[2].worst_edge, 1);
  CHECK_EQ(t.ranks[2].worst_kind, LAM_KIND_F);
  CHECK_EQ(t.ranks[0].worst_edge, 0);
  CHECK_EQ(t.ranks[0].worst_kind, LAM_KIND_I);
  CHECK(t.is.level_step < t.is.predicted_step);
  CHECK_CONTAINS(t.text, "% on edge 1->2 forward: stage 1 is ");
  CHECK_CONTAINS(t.text, "% on edge 0->1 backward: stage 1 is ");
  CHECK_CONTAINS(t.text, " x slower than the others; move layer ");
  CHECK(strstr(t.text, "move layer 4 to stage 0") || strstr(t.text, "move layer 7 to stage 2"));
  worker_close(&k);
}

/* Runs fn as the ranks of a schedule, which ends with it, one stage a rank. */
static void explain(lam_schedule *s, uint32_t flags,
                    void (*on_call)(const lam_stage_io *io, int kind),
                    void (*fn)(int rank, int size, void *arg)) {
  setup at = {.m = small_model(s->n_stages, s->n_micro), .s = s, .flags = flags};
  at.m.on_call = on_call;
  for (int r = 0; r < RANKS_MAX; r++) tids[r] = 0;
  CHECK_OK(lam_group_id_create(&at.id));
  run_threads(s->n_ranks, fn, &at);
  lam_schedule_destroy(s);
}

TEST(pipeline_explain, a_slow_stage_is_blamed_with_the_layer_to_move) {
  explain(build("1f1b", 3, 6), 0, slow_second_stage, blame);
}

/* -- all alike -- */

static void alike(const lam_stage_io *io, int kind) {
  (void)io;
  usleep(kind == LAM_KIND_B ? 8000 : 4000);
}

static void find_the_bubble(int rank, int size, void *arg) {
  worker k;
  told t;
  REQUIRE_OK(worker_open(&k, arg, rank, size));
  CHECK_OK(lam_pipeline_run(k.pipeline, 0, NULL));
  REQUIRE_OK(ask(&k, &t));
  check_sums(&t, size);
  /* (p - 1) of (m + p - 1), however long the stages really took */
  CHECK_CONTAINS(t.text, "with all stages alike: 20.0 %");
  CHECK(t.ranks[0].predicted > 0);
  worker_close(&k);
}

TEST(pipeline_explain, predicts_the_bubble_of_stages_that_are_alike) {
  explain(build("1f1b", 2, 4), 0, alike, find_the_bubble);
}

/* -- forwards alone -- */

static void one_slow_forward(const lam_stage_io *io, int kind) {
  CHECK_EQ(kind, LAM_KIND_F);
  usleep(io->stage == 1 ? 12000 : 4000);
}

static void explain_forwards(int rank, int size, void *arg) {
  worker k;
  told t;
  REQUIRE_OK(worker_open(&k, arg, rank, size));
  begin_in_order(rank, size);
  CHECK_OK(lam_pipeline_run(k.pipeline, 0, NULL));
  REQUIRE_OK(ask(&k, &t));
  check_sums(&t, size);
  check_table(&t, size);
  CHECK(t.ranks[2].warm_up >= 15 * MS);
  CHECK(t.ranks[0].drain >= 15 * MS); /* stages 1 and 2 of the last micro-batch */
  CHECK_EQ(t.ranks[2].worst_edge, 1);
  CHECK_EQ(t.ranks[2].worst_kind, LAM_KIND_F);
  CHECK(t.ranks[2].imbalance > t.ranks[1].imbalance);
  CHECK_CONTAINS(t.text, "% on edge 1->2 forward: stage 1 is ");
  /* p + m - 1 forwards, m of them a rank's own, however long they took */
  CHECK_CONTAINS(t.text, "with all stages alike: 33.3 %");
  CHECK(t.is.level_step < t.is.predicted_step && t.is.predicted_step < 1.5 * t.is.step);
  worker_close(&k);
}

/* Whatever the table's backwards would wait for: layerwise's forwards for all of them. */
TEST(pipeline_explain, forwards_alone_are_predicted_without_backwards) {
  FOR_EACH(i, 0, 1)
  explain(build(i ? "layerwise" : "zb-h1", 3, 4), LAM_PIPELINE_FORWARD_ONLY, one_slow_forward,
          explain_forwards);
}

/* -- what cannot be -- */

TEST(pipeline_explain, what_cannot_be_explained_is_refused) {
  lam_schedule *s = build("gpipe", 1, 2);
  setup at = {.m = small_model(1, 2), .s = s};
  worker k;
  told t = {.is = LAM_EXPLAINED_INIT};
  REQUIRE_OK(worker_open(&k, &at, 0, 1));
  CHECK_OK(lam_pipeline_run(k.pipeline, 0, NULL));
  CHECK_STATUS(lam_pipeline_explain(NULL, &t.is), LAM_INVALID_ARGUMENT);
  t.is.struct_size = 4;
  CHECK_STATUS(lam_pipeline_explain(k.pipeline, &t.is), LAM_INVALID_ARGUMENT);
  worker_close(&k);
  lam_schedule_destroy(s);
}
