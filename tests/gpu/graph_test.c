/* graph_test.c: a whole step of a pipeline, captured once on each rank and replayed with other
 * data, sums the gradients that one process does, to the last bit; calls go on as ever after it.
 * Leaves what a graph may hold to the device, graphs of collectives to tests/distributed/peers. */
#include <cuda_runtime_api.h>
#include <string.h>

#include "plugin/pipeline/schedule/schedule.h"
#include "tests/distributed/pipeline/layer.h"
#include "tests/place.h"

enum { REPLAYS = 5 };
#define CHECK_CUDA(expr) CHECK_EQ((expr), cudaSuccess)

typedef struct run {
  const lam_schedule *s;
  lam_group_id id;
  bool splits;
  meeting_place meeting;
  float dw[LAYERS_MAX][LAYER_ALL];
} run;

/* Step 0, then step 1 with the data of steps 1, 2, ...: the last one is not replayed but called. */
static void reference(run *r) {
  layer *all[LAYERS_MAX];
  lam_context *ctx = context_of(1);
  const int n = r->s->n_stages;
  for (int i = 0; i < n; i++) all[i] = layer_create(ctx, i);
  layers_run(all, n, 0);
  for (int as = 1; as <= REPLAYS + 1; as++) {
    layer_fill_step(all[0], 1, as);
    layers_run(all, n, 1);
  }
  for (int i = 0; i < n; i++) layer_destroy(all[i], r->dw[i]);
  lam_context_destroy(ctx);
}

static cudaGraphExec_t capture_step(lam_pipeline *p) {
  cudaGraph_t graph = NULL;
  cudaGraphExec_t exec = NULL;
  CHECK_CUDA(cudaStreamBeginCapture(place_stream(), cudaStreamCaptureModeThreadLocal));
  CHECK_OK(lam_pipeline_run(p, 1, NULL));
  CHECK_CUDA(cudaStreamEndCapture(place_stream(), &graph));
  CHECK_CUDA(cudaGraphInstantiate(&exec, graph, 0));
  CHECK_CUDA(cudaGraphDestroy(graph));
  return exec;
}

static void check_capturable(const lam_pipeline *p) {
  lam_pipeline_report report = LAM_PIPELINE_REPORT_INIT;
  CHECK_OK(lam_pipeline_get_report(p, &report));
  CHECK_EQ(report.capturable, 1);
}

/* No rank makes or gives up memory while another's graph waits for it. */
static void replay(run *r, lam_pipeline *p, const layer *first) {
  CHECK_OK(lam_pipeline_run(p, 0, NULL));
  cudaGraphExec_t exec = capture_step(p);
  meet(&r->meeting);
  for (int as = 1; as <= REPLAYS + 1; as++) {
    if (first->number == 0) layer_fill_step(first, 1, as);
    if (as <= REPLAYS)
      CHECK_CUDA(cudaGraphLaunch(exec, place_stream()));
    else
      CHECK_OK(lam_pipeline_run(p, 1, NULL));
  }
  place_finish();
  meet(&r->meeting);
  CHECK_CUDA(cudaGraphExecDestroy(exec));
}

static void run_rank(int rank, int size, void *arg) {
  run *r = arg;
  layer *own[LAYERS_MAX];
  lam_stage stages[LAYERS_MAX];
  lam_pipeline *p = NULL;
  lam_context *ctx = context_of(1);
  lam_group *g = join_threads(ctx, &r->id, rank, size);
  int n = 0;
  for (int i = 0; i < r->s->n_stages; i++)
    if (r->s->rank_of_stage[i] == rank)
      own[n] = layer_create(ctx, i), stages[n] = layer_stage(own[n], r->splits), n++;
  open_layers(ctx, g, r->s, 0, stages, n, &p);
  check_capturable(p);
  replay(r, p, own[0]);
  for (int i = 0; i < n; i++) {
    float got[LAYER_ALL];
    const float *want = r->dw[own[i]->number];
    layer_destroy(own[i], got);
    layer_check(got, want);
  }
  lam_pipeline_destroy(p);
  lam_group_destroy(g);
  lam_context_destroy(ctx);
}

static void run_schedule(const char *name, int p, int v, bool splits) {
  static run r;
  lam_schedule *s = NULL;
  NOTE("%s p=%d v=%d splits=%d", name, p, v, splits);
  REQUIRE_OK(lam_schedule_build(name, p, v, LAYER_MICROS, &s));
  r = (run){.s = s, .splits = splits};
  reference(&r);
  CHECK_OK(lam_group_id_create(&r.id));
  meet_at(&r.meeting, p);
  run_threads(p, run_rank, &r);
  lam_schedule_destroy(s);
}

TEST(graph, a_step_of_one_rank_replays_with_other_data) {
  if (place_is_host()) SKIP("the host's memory has no graphs");
  run_schedule("1f1b", 1, 1, false);
  run_schedule("zbv", 1, 2, true);
}

TEST(graph, a_step_of_ranks_that_wait_for_each_other_replays_too) {
  if (place_is_host()) SKIP("the host's memory has no graphs");
  run_schedule("1f1b", 2, 1, false);
  run_schedule("zbv", 2, 2, true);
  run_schedule("zb-h1", 4, 1, true);
}
