/* replay_test.c: what is captured once and replayed a thousand times has the same bits every time: layers
 * that end in a sum over their group, whole and in chunks, and a whole step of a pipeline. Results are
 * poisoned before each replay.
 * Leaves replays with other data to graph_test.c. */
#include <cuda_runtime_api.h>
#include <stdlib.h>
#include <string.h>

#include "plugin/pipeline/schedule/schedule.h"
#include "tests/distributed/pipeline/layer.h"
#include "tests/place.h"

enum { REPLAYS = 1000, RANKS = 2, MICROS = 2 };
#define CHECK_CUDA(expr) CHECK_EQ((expr), cudaSuccess)

static lam_group_id id;
static meeting_place meeting;

static void begin_capture(void) {
  CHECK_CUDA(cudaStreamBeginCapture(place_stream(), cudaStreamCaptureModeThreadLocal));
}

static cudaGraphExec_t end_capture(void) {
  cudaGraph_t graph = NULL;
  cudaGraphExec_t exec = NULL;
  CHECK_CUDA(cudaStreamEndCapture(place_stream(), &graph));
  CHECK_CUDA(cudaGraphInstantiate(&exec, graph, 0));
  CHECK_CUDA(cudaGraphDestroy(graph));
  return exec;
}

/* Results on the device, what they are given before each time, and what the calls themselves gave. */
typedef struct results {
  float *at, called[LAYER_ALL];
  int n, before;
} results;

static void poison(const results *r) {
  CHECK_CUDA(cudaMemsetAsync(r->at, r->before, (size_t)r->n * sizeof *r->at, place_stream()));
}

static void keep_called(results *r) {
  place_read(r->called, r->at, (size_t)r->n * sizeof *r->at);
  place_finish();
}

/* No rank makes or gives up memory while another's graph waits for it. */
static void replay(cudaGraphExec_t exec, const results *r) {
  float got[LAYER_ALL];
  const size_t bytes = (size_t)r->n * sizeof *r->at;
  bool same = true;
  meet(&meeting);
  for (int i = 0; i < REPLAYS && same; i++) {
    NOTE("replay %d", i);
    poison(r);
    CHECK_CUDA(cudaGraphLaunch(exec, place_stream()));
    place_read(got, r->at, bytes);
    place_finish();
    same = CHECK_SAME_BITS(got, r->called, bytes);
  }
  meet(&meeting);
  CHECK_CUDA(cudaGraphExecDestroy(exec));
}

/* ---- Rows -------------------------------------------------------------------------------------- */

enum { T = 6, IN = 8, F = 12, OUT = 10 }; /* of one rank */
enum { X = T * IN, W1 = F * IN, W2 = OUT * F, W = OUT * IN, B = OUT, Y = T * OUT, ALL = 3 * Y };

/* One piece of memory: x, w1, w2, w and b, then the results: of ffn, linear_row, and linear_row whose rows
 * are shared out in chunks. */
typedef struct rows {
  lam_context *ctx;
  lam_group *g;
  float *x, *w1, *w2, *w, *b, *y;
} rows;

static void fill_rows(rows *r, int rank) {
  enum { N = X + W1 + W2 + W + B };
  float host[N];
  rng chance = {seed() + (uint64_t)rank};
  for (int i = 0; i < N; i++) host[i] = rng_float(&chance);
  r->x = place_alloc((N + ALL) * sizeof *host);
  r->w1 = r->x + X, r->w2 = r->w1 + W1, r->w = r->w2 + W2, r->b = r->w + W, r->y = r->b + B;
  place_write(r->x, host, sizeof host);
  place_finish();
}

typedef struct matrix {
  DLTensor t;
  int64_t shape[2];
} matrix;

static const DLTensor *matrix_at(matrix *m, float *data, int64_t n_rows, int64_t n_cols) {
  m->shape[0] = n_rows ? n_rows : n_cols, m->shape[1] = n_cols;
  m->t = (DLTensor){.data = data, .ndim = n_rows ? 2 : 1, .dtype = {kDLFloat, 32, 1}};
  m->t.shape = m->shape;
  m->t.device.device_type = (DLDeviceType)place_device_type();
  m->t.device.device_id = place_device_id();
  return &m->t;
}

static void call(const rows *r, uint32_t op, const DLTensor *const *in, uint32_t n_in, matrix *y,
                 const lam_attr *attrs, uint32_t n_attrs) {
  DLTensor *out[] = {&y->t};
  lam_call c = LAM_CALL_INIT;
  c.op = op;
  c.inputs = in, c.n_inputs = n_in;
  c.outputs = out, c.n_outputs = 1;
  c.attrs = attrs, c.n_attrs = n_attrs;
  c.stream = place_stream();
  CHECK_OK(lam_run(r->ctx, &c));
}

static void queue_ffn(const rows *r) {
  matrix x, w1, w2, y;
  const lam_attr attrs[] = {lam_attr_i(lam_group_handle(r->g)), lam_attr_s("gelu")};
  const DLTensor *in[] = {matrix_at(&x, r->x, T, IN), matrix_at(&w1, r->w1, F, IN), NULL,
                          matrix_at(&w2, r->w2, OUT, F)};
  (void)matrix_at(&y, r->y, T, OUT);
  call(r, LAM_OP_ffn, in, 4, &y, attrs, 2);
}

static void queue_row(const rows *r, int64_t seq, int64_t chunks, float *to) {
  matrix x, w, b, y;
  const lam_attr none = {0};
  const lam_attr attrs[] = {
      lam_attr_i(lam_group_handle(r->g)), none, lam_attr_i(seq), none, none, lam_attr_i(chunks)};
  const DLTensor *in[] = {matrix_at(&x, r->x, T, IN), matrix_at(&w, r->w, OUT, IN),
                          matrix_at(&b, r->b, 0, OUT)};
  (void)matrix_at(&y, to, seq ? T / RANKS : T, OUT);
  call(r, LAM_OP_linear_row, in, 3, &y, attrs, 6);
}

static void queue_rows(const rows *r) {
  queue_ffn(r);
  queue_row(r, 0, 1, r->y + Y);
  queue_row(r, T, 2, r->y + 2 * Y);
}

static void run_rows(int rank, int size, void *arg) {
  (void)arg;
  lam_context *ctx = context_of(1);
  rows r = {.ctx = ctx, .g = join_threads(ctx, &id, rank, size)};
  fill_rows(&r, rank);
  results y = {.at = r.y, .n = ALL - Y / 2, .before = 0xff};
  queue_rows(&r);
  keep_called(&y);
  begin_capture();
  queue_rows(&r);
  replay(end_capture(), &y);
  lam_group_destroy(r.g);
  place_free(r.x);
  lam_context_destroy(ctx);
}

TEST(replay, of_layers_with_their_sums_gives_the_same_bits_a_thousand_times) {
  if (place_is_host()) SKIP("the host's memory has no graphs");
  CHECK_OK(lam_group_id_create(&id));
  meet_at(&meeting, RANKS);
  run_threads(RANKS, run_rows, NULL);
}

/* ---- A pipeline's step --------------------------------------------------------------------------- */

static void run_step(int rank, int size, void *arg) {
  float dw[LAYER_ALL];
  lam_pipeline *p = NULL;
  lam_context *ctx = context_of(1);
  lam_group *g = join_threads(ctx, &id, rank, size);
  layer *own = layer_create(ctx, rank);
  const lam_stage stage = layer_stage(own, false);
  open_layers(ctx, g, arg, 0, &stage, 1, &p);
  results gradients = {.at = own->dw, .n = LAYER_ALL, .before = 0}; /* they are added to that */
  CHECK_OK(lam_pipeline_run(p, 0, NULL));
  poison(&gradients);
  CHECK_OK(lam_pipeline_run(p, 1, NULL));
  keep_called(&gradients);
  begin_capture();
  CHECK_OK(lam_pipeline_run(p, 1, NULL));
  replay(end_capture(), &gradients);
  layer_destroy(own, dw);
  lam_pipeline_destroy(p);
  lam_group_destroy(g);
  lam_context_destroy(ctx);
}

TEST(replay, of_a_pipelines_step_gives_the_same_bits_a_thousand_times) {
  const char *engine = getenv("LAMELLA_TEST_ENGINE");
  lam_schedule *s = NULL;
  if (place_is_host()) SKIP("the host's memory has no graphs");
  if (engine && strcmp(engine, "nccl") == 0) SKIP("transfers over NCCL are not captured");
  REQUIRE_OK(lam_schedule_build("1f1b", RANKS, 1, MICROS, &s));
  CHECK_OK(lam_group_id_create(&id));
  meet_at(&meeting, RANKS);
  run_threads(RANKS, run_step, s);
  lam_schedule_destroy(s);
}
