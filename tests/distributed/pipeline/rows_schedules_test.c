/* rows_schedules_test.c: stages that call Lamella's own rows in f32, under every schedule, have
 * the gradients of one process that takes one whole micro-batch after the other, to the last
 * bit: with the same threads, linear_wgrad adds each micro-batch to what is there.
 *
 * A stage is y = x w^T + b of width WIDTH; the last one's loss is y^2 / 2, so that its gradient
 * is y.
 * Leaves a toy in plain loops, and shapes that vary, to runtime_schedules_test.c. */
#include <stdlib.h>
#include <string.h>

#include "abi/lamella.h"
#include "plugin/pipeline/schedule/schedule.h"
#include "tests/check.h"
#include "tests/place.h"

enum { ROWS = 33, WIDTH = 64, MICROS = 7, STAGES_MAX = 8, STEPS = 2 };
enum { X = ROWS * WIDTH, W = WIDTH * WIDTH, ALL = W + WIDTH }; /* ALL: w, then b */

/* -- a layer, by the library's rows -- */

/* Its numbers lie in one piece where the test's device has them: w and b, their gradients, x and dy of
 * each micro-batch, and the data of the first layer. */
typedef struct layer {
  lam_context *ctx;
  int number;
  float *w, *dw, *x[MICROS], *dy[MICROS], *data[STEPS][MICROS];
} layer;
enum { NUMBERS = 2 * ALL + 2 * MICROS * X + STEPS * MICROS * X };

static void fill(float *out, int n, int what) {
  rng r = {seed() + 1009 * (uint64_t)what};
  for (int i = 0; i < n; i++) out[i] = rng_float(&r) / 4;
}

static void fill_layer(const layer *l) {
  float *host = calloc(NUMBERS, sizeof *host), *data = host + (l->data[0][0] - l->w);
  fill(host, ALL, l->number);
  for (int i = 0; i < STEPS * MICROS && l->number == 0; i++) fill(data + i * X, X, 100 + i);
  place_write(l->w, host, NUMBERS * sizeof *host);
  place_finish();
  free(host);
}

static layer *layer_create(lam_context *ctx, int number) {
  layer *l = calloc(1, sizeof *l);
  float *at = place_alloc(NUMBERS * sizeof *at);
  l->ctx = ctx, l->number = number;
  l->w = at, at += ALL;
  l->dw = at, at += ALL;
  for (int i = 0; i < MICROS; i++) l->x[i] = at, l->dy[i] = at + X, at += 2 * X;
  for (int i = 0; i < STEPS * MICROS; i++) l->data[i / MICROS][i % MICROS] = at, at += X;
  fill_layer(l);
  return l;
}

/* Its gradients are read first. */
static void layer_destroy(layer *l, float *dw) {
  place_read(dw, l->dw, ALL * sizeof *dw);
  place_finish();
  place_free(l->w);
  free(l);
}

static DLTensor tensor_of(const float *data, int32_t ndim) {
  static int64_t rows[] = {ROWS, WIDTH}, weights[] = {WIDTH, WIDTH}, bias[] = {WIDTH};
  DLTensor t = {.data = (void *)(uintptr_t)data, .dtype = {kDLFloat, 32, 1}};
  t.device.device_type = (DLDeviceType)place_device_type();
  t.ndim = ndim == 1 ? 1 : 2;
  t.shape = ndim == 1 ? bias : ndim == 2 ? weights : rows;
  return t;
}
static DLTensor rows_of(const float *data) { return tensor_of(data, 3); }
static DLTensor weight_of(const float *data) { return tensor_of(data, 2); }
static DLTensor bias_of(const float *data) { return tensor_of(data, 1); }

static lam_status run_row(const layer *l, uint32_t op, const DLTensor *in, uint32_t n_in,
                          DLTensor *out, uint32_t n_out, const lam_attr *acc) {
  const DLTensor *inputs[] = {&in[0], &in[1], &in[2]};
  DLTensor *outputs[] = {&out[0], &out[1]};
  lam_call call = LAM_CALL_INIT;
  call.op = op;
  call.inputs = inputs, call.n_inputs = n_in;
  call.outputs = outputs, call.n_outputs = n_out;
  call.attrs = acc, call.n_attrs = acc ? 1 : 0;
  call.stream = place_stream();
  return lam_run(l->ctx, &call);
}

/* Rows of one tensor into another, in the stream's order. */
static lam_status copy_rows(const float *from, float *to) {
  const lam_matrix x = {(void *)(uintptr_t)from, ROWS, WIDTH, WIDTH, 1, LAM_F32, false};
  const lam_matrix y = {to, ROWS, WIDTH, WIDTH, 1, LAM_F32, false};
  const lam_device *d = place_device();
  if (d) return lam_device_copy(d, NULL, x, y, place_stream());
  memcpy(to, from, X * sizeof *to);
  return LAM_OK;
}

static lam_status forward_row(const layer *l, const float *x, float *y) {
  const DLTensor in[] = {rows_of(x), weight_of(l->w), bias_of(l->w + W)};
  DLTensor out[2] = {rows_of(y)};
  return run_row(l, LAM_OP_linear, in, 3, out, 1, NULL);
}

static lam_status dgrad_row(const layer *l, const float *dy, float *dx) {
  const DLTensor in[3] = {rows_of(dy), weight_of(l->w)};
  DLTensor out[2] = {rows_of(dx)};
  return run_row(l, LAM_OP_linear_dgrad, in, 2, out, 1, NULL);
}

static lam_status wgrad_row(layer *l, int micro) {
  const lam_attr acc = lam_attr_i(1);
  const DLTensor in[3] = {rows_of(l->dy[micro]), rows_of(l->x[micro])};
  DLTensor out[2] = {weight_of(l->dw), bias_of(l->dw + W)};
  return run_row(l, LAM_OP_linear_wgrad, in, 2, out, 2, &acc);
}

/* -- one process: each micro-batch forward and backward through all layers -- */

static void run_whole(layer **all, int n, int64_t step, int micro) {
  CHECK_OK(copy_rows(all[0]->data[step][micro], all[0]->x[micro]));
  for (int i = 0; i < n; i++)
    CHECK_OK(forward_row(all[i], all[i]->x[micro],
                         i + 1 < n ? all[i + 1]->x[micro] : all[i]->dy[micro]));
  for (int i = n - 1; i >= 0; i--) {
    if (i) CHECK_OK(dgrad_row(all[i], all[i]->dy[micro], all[i - 1]->dy[micro]));
    CHECK_OK(wgrad_row(all[i], micro));
  }
}

static lam_context *context_of(int threads) {
  lam_context_desc d = LAM_CONTEXT_DESC_INIT;
  lam_context *ctx = NULL;
  d.threads = threads;
  CHECK_OK(lam_context_create(&d, &ctx));
  return ctx;
}

static void reference(int n, int threads, float (*dw)[ALL]) {
  layer *all[STAGES_MAX];
  lam_context *ctx = context_of(threads);
  for (int i = 0; i < n; i++) all[i] = layer_create(ctx, i);
  for (int step = 0; step < STEPS; step++)
    for (int micro = 0; micro < MICROS; micro++) run_whole(all, n, step, micro);
  for (int i = 0; i < n; i++) {
    layer_destroy(all[i], dw[i]);
  }
  lam_context_destroy(ctx);
}

/* -- stages -- */

static lam_status forward(void *user, const lam_stage_io *io) {
  layer *l = user;
  float *x = l->x[io->micro];
  LAM_TRY(copy_rows(io->n_in ? io->in[0].data : l->data[io->step][io->micro], x));
  return forward_row(l, x, io->n_out ? io->out[0].data : l->dy[io->micro]);
}

static lam_status backward_input(void *user, const lam_stage_io *io) {
  layer *l = user;
  if (io->n_in) LAM_TRY(copy_rows(io->in[0].data, l->dy[io->micro]));
  return io->n_out ? dgrad_row(l, l->dy[io->micro], io->out[0].data) : LAM_OK;
}

static lam_status backward_weight(void *user, const lam_stage_io *io) {
  return wgrad_row(user, io->micro);
}

static lam_status backward(void *user, const lam_stage_io *io) {
  const lam_status status = backward_input(user, io);
  return status ? status : backward_weight(user, io);
}

/* -- ranks -- */

typedef struct run {
  const lam_schedule *s;
  lam_group_id id;
  int threads;
  bool splits;
  uint32_t flags;
  int n_differ; /* of a run alone: stages whose gradients have other bits */
  float dw[STAGES_MAX][ALL];
} run;

static lam_stage stage_of(const run *r, layer *l) {
  lam_stage f = LAM_STAGE_INIT;
  f.user = l, f.forward = forward, f.backward = backward;
  if (r->splits) f.backward_input = backward_input, f.backward_weight = backward_weight;
  return f;
}

static void open_pipeline(const run *r, lam_context *ctx, lam_group *g, const lam_stage *stages,
                          int n_stages, lam_pipeline **out) {
  static const lam_shape shape = {2, {kDLFloat, 32, 1}, {ROWS, WIDTH}};
  lam_edge edges[STAGES_MAX];
  lam_pipeline_desc d = LAM_PIPELINE_DESC_INIT;
  for (int e = 0; e < STAGES_MAX; e++) edges[e] = (lam_edge){sizeof *edges, 1, &shape, 0, 0};
  d.group = g, d.schedule = r->s, d.flags = r->flags;
  d.stages = stages, d.n_stages = (uint32_t)n_stages;
  d.edges = edges, d.n_edges = (uint32_t)(r->s->n_stages - 1);
  d.device_type = place_device_type(), d.stream = place_stream();
  CHECK_OK(lam_pipeline_create(ctx, &d, out));
}

static lam_group *join(lam_context *ctx, const run *r, int rank, int size) {
  lam_group_desc d = LAM_GROUP_DESC_INIT;
  lam_group *g = NULL;
  d.rank = rank, d.size = size, d.id = r->id;
  if (size > 1) CHECK_OK(lam_group_create(ctx, &d, &g));
  return g;
}

static void run_rank(int rank, int size, void *arg) {
  run *r = arg;
  layer *own[STAGES_MAX];
  lam_stage stages[STAGES_MAX];
  lam_pipeline *pipeline = NULL;
  lam_context *ctx = context_of(r->threads);
  lam_group *g = join(ctx, r, rank, size);
  int n = 0;
  for (int i = 0; i < r->s->n_stages; i++)
    if (r->s->rank_of_stage[i] == rank)
      own[n] = layer_create(ctx, i), stages[n] = stage_of(r, own[n]), n++;
  open_pipeline(r, ctx, g, stages, n, &pipeline);
  for (int step = 0; step < STEPS; step++) CHECK_OK(lam_pipeline_run(pipeline, step, NULL));
  for (int i = 0; i < n; i++) {
    float got[ALL];
    const float *want = r->dw[own[i]->number];
    layer_destroy(own[i], got);
    if (r->flags)
      r->n_differ += memcmp(got, want, sizeof got) != 0;
    else
      CHECK_SAME_BITS(got, want, sizeof got);
  }
  lam_pipeline_destroy(pipeline);
  lam_group_destroy(g);
  lam_context_destroy(ctx);
}

/* -- tests -- */

static bool run_schedule(const char *name, int p, int v, int threads, bool splits) {
  lam_schedule *s = NULL;
  if (lam_schedule_build(name, p, v, MICROS, &s)) return false;
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
  if (place_is_host()) return p < 4;
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
