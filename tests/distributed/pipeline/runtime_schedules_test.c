/* runtime_schedules_test.c: every schedule that has a name runs, and gives the gradients of one
 * process that takes one micro-batch after the other, to the last bit; a table that sums in
 * another order is refused.
 * Leaves tables written by hand to pipeline_test.c, proofs and bubbles to the schedule's tests. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "tests/distributed/pipeline/worker.h"
#include "tests/place.h"

enum { STEPS = 2 };

typedef struct run {
  setup at;
  double *dw[MODEL_STAGES_MAX]; /* one process's, of all steps */
  double loss[STEPS];
} run;

static void run_rank(int rank, int size, void *arg) {
  const run *r = arg;
  const bool has_last = r->at.s->rank_of_stage[r->at.m.n_stages - 1] == rank;
  worker k;
  REQUIRE_OK(worker_open(&k, &r->at, rank, size));
  for (int step = 0; step < STEPS; step++) {
    double loss = -1;
    if (!CHECK_OK(lam_pipeline_run(k.pipeline, step, &loss))) break;
    CHECK(loss == (has_last ? r->loss[step] : 0));
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

/* Stage after stage, micro-batch after micro-batch, in one list. */
static void run_reference(run *r) {
  model whole = r->at.m;
  lam_schedule *one = NULL;
  whole.functions = MODEL_WHOLE;
  REQUIRE_OK(lam_schedule_build("layerwise", whole.n_stages, 1, whole.n_micro, &one));
  for (int i = 0; i < whole.n_stages; i++)
    r->dw[i] = calloc((size_t)(whole.width * whole.width), sizeof(double));
  for (int step = 0; step < STEPS; step++)
    model_reference(&whole, one, step, r->dw, &r->loss[step]);
  lam_schedule_destroy(one);
}

static void run_schedule(const lam_schedule *s, model m, bool processes) {
  run r = {.at = {.m = m, .s = s}};
  run_reference(&r);
  CHECK_OK(lam_group_id_create(&r.at.id));
  (processes ? run_processes : run_threads)(s->n_ranks, run_rank, &r);
  for (int i = 0; i < m.n_stages; i++) free(r.dw[i]);
}

/* NULL where the schedule is not for these sizes. */
static lam_schedule *try_build(const char *name, int p, int v, int m) {
  lam_schedule *s = NULL;
  const lam_status status = lam_schedule_build(name, p, v, m, &s);
  CHECK(status == LAM_OK || status == LAM_INVALID_ARGUMENT);
  NOTE("%s p=%d v=%d m=%d", name, p, v, m);
  return s;
}

static const unsigned abilities[] = {
    MODEL_WHOLE, MODEL_SPLIT, MODEL_WHOLE | MODEL_SPLIT | MODEL_FUSED, MODEL_WHOLE | MODEL_FUSED};

static model draw_model(rng *r, const lam_schedule *s) {
  model m = small_model(s->n_stages, s->n_micro);
  m.keeps = rng_int(r, 0, 1);
  m.varies = rng_int(r, 0, 1);
  m.three_tensors = rng_int(r, 0, 1);
  m.functions = abilities[rng_int(r, 0, 3)];
  return m;
}

/* Every name, p = 1 to 3, v = 1 and 2, and m below, at and above the number of ranks, also where it
 * is no multiple of it. Returns how many there were. */
static int run_all(const char *name, bool processes) {
  rng r = {seed()};
  int n = 0;
  FOR_EACH(p, 1, 2, 3) FOR_EACH(v, 1, 2) FOR_EACH(m, 1, 2, 5, 7) {
    lam_schedule *s = processes && m != 5 + 2 * (p == 3) ? NULL : try_build(name, p, v, m);
    if (!s) continue;
    run_schedule(s, draw_model(&r, s), processes);
    lam_schedule_destroy(s);
    n++;
  }
  return n;
}

TEST(runtime_schedules, every_one_gives_the_gradients_of_one_process) {
  const char *name;
  for (int i = 0; (name = lam_schedule_name(i)); i++)
    CHECK(run_all(name, false) > (strcmp(name, "dualpipev") ? 11 : 5));
}

TEST(runtime_schedules, and_so_with_a_process_for_each_rank) {
  const char *name;
  if (!place_is_host()) SKIP("a device belongs to the process that opened it");
  for (int i = 0; (name = lam_schedule_name(i)); i++) CHECK(run_all(name, true) >= 3);
}

/* p = 2 and a V mix activations and gradients between the same two ranks. */
TEST(runtime_schedules, what_a_stage_can_do_changes_no_gradient) {
  const char *name;
  for (int i = 0; (name = lam_schedule_name(i)); i++)
    for (size_t a = 0; a < sizeof abilities / sizeof *abilities; a++)
      FOR_EACH(v, 1, 2) FOR_EACH(keeps, 0, 1) {
        lam_schedule *s = try_build(name, 2, v, 6);
        if (!s) continue;
        model m = small_model(s->n_stages, 6);
        m.functions = abilities[a], m.keeps = keeps, m.varies = true;
        run_schedule(s, m, false);
        lam_schedule_destroy(s);
      }
}

/* p = 2: 7 micro-batches are few, 8 are many. */
TEST(runtime_schedules, auto_runs_what_was_chosen) {
  FOR_EACH(m, 7, 8) FOR_EACH(v, 1, 2) {
    lam_schedule *s = try_build("auto", 2, v, m);
    REQUIRE(s != NULL);
    CHECK_EQ(s->n_stages, m == 8 ? 2 : 2 * v);
    model d = small_model(s->n_stages, m);
    d.functions = MODEL_SPLIT;
    run_schedule(s, d, false);
    lam_schedule_destroy(s);
  }
}

/* -- the order of sums -- */

static lam_status open_alone(const char *text, unsigned functions, uint32_t flags) {
  lam_schedule *s = parse(text);
  setup at = {.m = small_model(s->n_stages, s->n_micro), .s = s, .flags = flags};
  worker k;
  at.m.functions = functions;
  const lam_status status = worker_open(&k, &at, 0, 1);
  worker_close(&k);
  lam_schedule_destroy(s);
  return status;
}

TEST(runtime_schedules, sums_in_another_order_are_refused_unless_they_are_asked_for) {
  static const char whole[] = "0F0 0F1 0B1 0B0", split[] = "0F0 0F1 0I0 0I1 0W1 0W0",
                    inputs[] = "0F0 0F1 0I1 0I0 0W0 0W1";
  CHECK_STATUS(open_alone(whole, MODEL_WHOLE, 0), LAM_FAILED_PRECONDITION);
  CHECK_CONTAINS(lam_last_error(),
                 "0B1 adds to the weight gradients of stage 0 before micro-batch "
                 "0 does");
  CHECK_STATUS(open_alone(split, MODEL_SPLIT, 0), LAM_FAILED_PRECONDITION);
  CHECK_CONTAINS(lam_last_error(), "0W1 adds");
  CHECK_OK(open_alone(split, MODEL_WHOLE, 0)); /* I does it all, in order */
  CHECK_STATUS(open_alone(inputs, MODEL_WHOLE, 0), LAM_FAILED_PRECONDITION);
  CHECK_OK(open_alone(inputs, MODEL_SPLIT, 0));
  CHECK_OK(open_alone(whole, MODEL_WHOLE, LAM_PIPELINE_ANY_ORDER));
  CHECK_OK(open_alone(whole, MODEL_WHOLE, LAM_PIPELINE_FORWARD_ONLY));
}

static const char out_of_order[] = "0F0 0F1 0B0 0B1\n1F0 1F1 1B1 1B0\n";

static void be_refused(int rank, int size, void *arg) {
  worker k;
  CHECK_STATUS(worker_open(&k, arg, rank, size), LAM_FAILED_PRECONDITION);
  CHECK_CONTAINS(lam_last_error(), "1B1 adds");
  worker_close(&k);
}

TEST(runtime_schedules, a_refusal_reaches_every_rank) {
  lam_schedule *s = parse(out_of_order);
  setup at = {.m = small_model(2, 2), .s = s};
  CHECK_OK(lam_group_id_create(&at.id));
  run_threads(2, be_refused, &at);
  lam_schedule_destroy(s);
}

/* -- reductions that a table places -- */

TEST(runtime_schedules, a_table_says_when_gradients_are_reduced) {
  lam_schedule *s = parse("0F0 0F1 1F0 1F1 1B0 1B1 1REDUCE_GRAD 0B0 0B1");
  run r = {.at = {.m = small_model(2, 2), .s = s}};
  run_reference(&r);
  worker k;
  lam_event events[16];
  lam_pipeline_report report = LAM_PIPELINE_REPORT_INIT;
  REQUIRE_OK(worker_open(&k, &r.at, 0, 1));
  CHECK_OK(lam_pipeline_run(k.pipeline, 0, NULL));
  CHECK(k.all[0]->reduced == 1 && k.all[1]->reduced == 1); /* once, by the list or after it */
  report.events = events, report.n_events = 16;
  CHECK_OK(lam_pipeline_get_report(k.pipeline, &report));
  CHECK_EQ(report.n_events, 9);
  CHECK(events[6].kind == LAM_KIND_REDUCE_GRAD && events[6].stage == 1 && events[6].micro == -1);
  worker_close(&k);
  for (int i = 0; i < 2; i++) free(r.dw[i]);
  lam_schedule_destroy(s);
}

/* -- what a stage cannot do is named -- */

typedef struct said {
  int n;
  char lines[4][512];
} said;

static void keep_line(void *user, int32_t level, const char *line) {
  said *s = user;
  (void)level;
  if (s->n < 4) snprintf(s->lines[s->n], sizeof s->lines[0], "%s", line);
  s->n++;
}

typedef struct one_whole { /* ranks of which one, or all (-1), cannot split */
  setup at;
  int which;
  const char *bubble;
} one_whole;

static void hear_of_split(int rank, int size, void *arg) {
  const one_whole *o = arg;
  said log = {0};
  setup at = o->at;
  worker k;
  at.hooks = (lam_context_desc)LAM_CONTEXT_DESC_INIT;
  at.hooks.user = &log, at.hooks.log = keep_line;
  const bool whole = o->which < 0 || o->which == rank;
  at.m.functions = whole ? MODEL_WHOLE : MODEL_SPLIT;
  REQUIRE_OK(worker_open(&k, &at, rank, size));
  CHECK_EQ(log.n, whole ? 1 : 0);
  if (whole) CHECK_CONTAINS(log.lines[0], "cannot split its backward");
  if (whole) CHECK_CONTAINS(log.lines[0], o->bubble);
  worker_close(&k);
}

/* p 4, m 8, F = I = W: 27 units, or with B in one 33, of which 24 are work. Where stage 1 alone
 * cannot split it is 29, where stage 3 cannot 31. */
TEST(runtime_schedules, the_bubble_lost_is_that_of_all_ranks_that_cannot_split) {
  static const struct {
    int which;
    const char *bubble;
  } rows[] = {{-1, "the bubble is 27.3 % instead of 11.1 %"},
              {1, "the bubble is 17.2 % instead of 11.1 %"},
              {3, "the bubble is 22.6 % instead of 11.1 %"}};
  lam_schedule *s = build("zb-h1", 4, 8);
  for (int i = 0; i < 3; i++) {
    one_whole o = {.at = {.m = small_model(4, 8), .s = s}, .which = rows[i].which};
    o.bubble = rows[i].bubble;
    CHECK_OK(lam_group_id_create(&o.at.id));
    run_threads(4, hear_of_split, &o);
  }
  lam_schedule_destroy(s);
}

TEST(runtime_schedules, fall_backs_are_named_with_the_bubble_they_cost) {
  lam_schedule *s = NULL;
  said log = {0};
  REQUIRE_OK(lam_schedule_build("dualpipev", 1, 2, 2, &s));
  setup at = {.m = small_model(2, 2), .s = s, .hooks = LAM_CONTEXT_DESC_INIT};
  at.hooks.user = &log, at.hooks.log = keep_line;
  worker k;
  REQUIRE_OK(worker_open(&k, &at, 0, 1));
  CHECK_EQ(log.n, 2);
  char both[1100];
  snprintf(both, sizeof both, "%s\n%s", log.lines[0], log.lines[1]);
  CHECK_CONTAINS(both, "cannot split its backward");
  CHECK_CONTAINS(both, "the bubble is 0.0 % instead of 0.0 %"); /* one rank never waits */
  CHECK_CONTAINS(both, "fused pairs run one after the other");
  worker_close(&k);
  at.m.functions = MODEL_WHOLE | MODEL_SPLIT | MODEL_FUSED;
  REQUIRE_OK(worker_open(&k, &at, 0, 1));
  CHECK_EQ(log.n, 2);
  worker_close(&k);
  lam_schedule_destroy(s);
}
