/* times_test.c: what a step on a device reports: times between marks on its stream, of the list's
 * actions in its order, that add up; of a captured step, the host's. Of all ranks a picture is drawn,
 * with its messages and the way that each took.
 * Leaves what is a wait, and what is not, to tests/distributed/pipeline/report_test.c. */
#include <cuda_runtime_api.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "plugin/pipeline/schedule/schedule.h"
#include "tests/distributed/pipeline/layer.h"
#include "tests/place.h"

enum { EVENTS = 8 * LAYER_MICROS * 4 };
#define CHECK_CUDA(expr) CHECK_EQ((expr), cudaSuccess)

typedef struct told { /* by a rank */
  lam_event events[EVENTS];
  uint64_t n_events;
  lam_carrier by[2 * LAYERS_MAX];
  int n_by;
} told;

typedef struct run {
  const lam_schedule *s;
  lam_group_id id;
  told ranks[4];
} run;

static lam_pipeline_report report_of(const lam_pipeline *p, lam_event *events) {
  lam_pipeline_report r = LAM_PIPELINE_REPORT_INIT;
  r.events = events, r.n_events = EVENTS;
  CHECK_OK(lam_pipeline_get_report(p, &r));
  CHECK_EQ(r.step_time, r.busy + r.warm_up + r.waiting + r.drain + r.overhead);
  CHECK(r.n_events <= EVENTS && r.overhead >= 0);
  return r;
}

/* Work in the list's order, and nothing at the same time; waits in between. */
static void check_events(const run *r, int rank, const lam_pipeline_report *got) {
  const lam_action *next = r->s->actions + r->s->first[rank];
  int64_t busy = 0, at = 0;
  for (uint64_t i = 0; i < got->n_events; i++) {
    const lam_event *e = &got->events[i];
    CHECK(e->start >= at && e->end >= e->start);
    at = e->end;
    if (e->kind == LAM_KIND_WAIT) continue;
    CHECK(e->kind == next->kind && e->stage == next->stage && e->micro == next->micro);
    busy += e->end - e->start;
    next++;
  }
  CHECK_EQ(busy, got->busy);
  CHECK_EQ(next - r->s->actions, r->s->first[rank + 1]);
}

static void tell(const run *r, told *t, const lam_pipeline *p, const lam_event *events,
                 uint64_t n) {
  memcpy(t->events, events, n * sizeof *events);
  t->n_events = n;
  for (int i = 0; i < 2 * (r->s->n_stages - 1); i++) {
    const int kind = i % 2 ? LAM_KIND_I : LAM_KIND_F;
    lam_edge_info edge = LAM_EDGE_INFO_INIT;
    if (lam_pipeline_get_edge(p, i / 2, kind, &edge) == LAM_OK && edge.peer >= 0)
      t->by[t->n_by++] = (lam_carrier){i / 2, kind, edge.path};
  }
}

static void step_and_report(run *r, int rank, lam_pipeline *p) {
  lam_event events[EVENTS], again[EVENTS];
  CHECK_OK(lam_pipeline_run(p, 0, NULL));
  const lam_pipeline_report first = report_of(p, events);
  CHECK_EQ(first.device_times, 1);
  CHECK(first.step_time > 0 && first.busy > 0);
  check_events(r, rank, &first);
  tell(r, &r->ranks[rank], p, events, first.n_events);
  const lam_pipeline_report second = report_of(p, again); /* the same step, read once */
  CHECK_EQ(second.step_time, first.step_time);
  CHECK_EQ(second.n_events, first.n_events);
  CHECK_SAME_BITS(again, events, first.n_events * sizeof *events);
}

static void capture_and_report(const run *r, int rank, lam_pipeline *p) {
  lam_event events[EVENTS];
  cudaGraph_t graph = NULL;
  CHECK_CUDA(cudaStreamBeginCapture(place_stream(), cudaStreamCaptureModeThreadLocal));
  CHECK_OK(lam_pipeline_run(p, 1, NULL));
  const lam_pipeline_report got = report_of(p, events);
  CHECK_CUDA(cudaStreamEndCapture(place_stream(), &graph));
  CHECK_EQ(got.device_times, 0);
  check_events(r, rank, &got);
  CHECK_CUDA(cudaGraphDestroy(graph));
}

static void run_rank(int rank, int size, void *arg) {
  run *r = arg;
  layer *own[LAYERS_MAX];
  lam_stage stages[LAYERS_MAX];
  float dw[LAYER_ALL];
  lam_pipeline *p = NULL;
  lam_explained all = LAM_EXPLAINED_INIT;
  lam_context *ctx = context_of(1);
  lam_group *g = join_threads(ctx, &r->id, rank, size);
  int n = 0;
  for (int i = 0; i < r->s->n_stages; i++)
    if (r->s->rank_of_stage[i] == rank)
      own[n] = layer_create(ctx, i), stages[n] = layer_stage(own[n], true), n++;
  open_layers(ctx, g, r->s, 0, stages, n, &p);
  step_and_report(r, rank, p);
  CHECK_OK(lam_pipeline_explain(p, &all));
  CHECK(all.step > 0 && all.predicted_step > 0);
  capture_and_report(r, rank, p);
  for (int i = 0; i < n; i++) layer_destroy(own[i], dw);
  lam_pipeline_destroy(p);
  lam_group_destroy(g);
  lam_context_destroy(ctx);
}

static char *drawn(const lam_event *e, uint64_t n, const lam_carrier *by, uint64_t n_by,
                   const char *format) {
  uint64_t bytes = 0;
  CHECK_OK(lam_events_draw_messages(e, n, by, n_by, format, NULL, 0, &bytes));
  char *text = calloc(1, bytes + 1);
  CHECK_OK(lam_events_draw_messages(e, n, by, n_by, format, text, bytes + 1, NULL));
  return text;
}

static void keep(const char *folder, const char *name, const char *text) {
  char path[4096];
  snprintf(path, sizeof path, "%s/%s", folder, name);
  FILE *f = fopen(path, "w");
  if (CHECK(f != NULL)) CHECK(fputs(text, f) >= 0 && fclose(f) == 0);
}

static int occurrences(const char *text, const char *part) {
  int n = 0;
  for (const char *at = text; (at = strstr(at, part)); at += strlen(part)) n++;
  return n;
}

/* Of all ranks; kept where TEST_UNDECLARED_OUTPUTS_DIR says. All stages lie apart: each message is there. */
static void check_picture(const run *r, int size) {
  const char *folder = getenv("TEST_UNDECLARED_OUTPUTS_DIR");
  static struct {
    lam_event events[4 * EVENTS];
    lam_carrier by[8 * LAYERS_MAX];
  } all;
  uint64_t n = 0;
  uint64_t n_by = 0;
  for (int i = 0; i < size; i++) {
    const told *t = &r->ranks[i];
    memcpy(&all.events[n], t->events, t->n_events * sizeof *t->events);
    memcpy(&all.by[n_by], t->by, (size_t)t->n_by * sizeof *t->by);
    n += t->n_events, n_by += (uint64_t)t->n_by;
  }
  char *trace = drawn(all.events, n, all.by, n_by, "perfetto"),
       *picture = drawn(all.events, n, all.by, n_by, "svg");
  const int messages = 2 * (r->s->n_stages - 1) * LAYER_MICROS;
  CHECK_EQ(occurrences(trace, "\"ph\":\"s\",\"id\""), messages);
  CHECK_EQ(occurrences(trace, "\"path\":\"threads\""), 2 * messages);
  CHECK_CONTAINS(picture, "lines: messages, by threads<");
  if (folder) keep(folder, "step.json", trace), keep(folder, "step.svg", picture);
  free(trace);
  free(picture);
}

TEST(times, of_a_step_are_the_devices_and_add_up) {
  if (place_is_host()) SKIP("the host's own clock is report_test's");
  FOR_EACH(p, 1, 2, 4) {
    static run r;
    lam_schedule *s = NULL;
    memset(&r, 0, sizeof r);
    NOTE("p=%d", p);
    REQUIRE_OK(lam_schedule_build("interleaved-zb", p, 2, LAYER_MICROS, &s));
    r.s = s;
    CHECK_OK(lam_group_id_create(&r.id));
    run_threads(p, run_rank, &r);
    if (p > 1) check_picture(&r, p);
    lam_schedule_destroy(s);
  }
}
