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

enum { ROWS = 33, WIDTH = 64, MICROS = 7, STAGES_MAX = 6, STEPS = 2 };
enum { X = ROWS * WIDTH, W = WIDTH * WIDTH, ALL = W + WIDTH }; /* ALL: w, then b */

/* -- a layer, by the library's rows -- */

typedef struct layer {
  lam_context *ctx;
  int number;
  float w[ALL], dw[ALL];
  float x[MICROS][X], dy[MICROS][X];
} layer;

static void fill(float *out, int n, int what) {
  rng r = {seed() + 1009 * (uint64_t)what};
  for (int i = 0; i < n; i++) out[i] = rng_float(&r) / 4;
}

static void fill_input(float *x, int64_t step, int micro) {
  fill(x, X, 100 + (int)step * MICROS + micro);
}

static layer *layer_create(lam_context *ctx, int number) {
  layer *l = calloc(1, sizeof *l);
  l->ctx = ctx, l->number = number;
  fill(l->w, ALL, number);
  return l;
}

static DLTensor tensor_of(const float *data, int32_t ndim) {
  static int64_t rows[] = {ROWS, WIDTH}, weights[] = {WIDTH, WIDTH}, bias[] = {WIDTH};
  DLTensor t = {.data = (void *)(uintptr_t)data, .device = {kDLCPU, 0}, .dtype = {kDLFloat, 32, 1}};
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
  return lam_run(l->ctx, &call);
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
  fill_input(all[0]->x[micro], step, micro);
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
    memcpy(dw[i], all[i]->dw, sizeof dw[i]);
    free(all[i]);
  }
  lam_context_destroy(ctx);
}

/* -- stages -- */

static lam_status forward(void *user, const lam_stage_io *io) {
  layer *l = user;
  float *x = l->x[io->micro];
  if (io->n_in)
    memcpy(x, io->in[0].data, X * sizeof *x);
  else
    fill_input(x, io->step, io->micro);
  return forward_row(l, x, io->n_out ? io->out[0].data : l->dy[io->micro]);
}

static lam_status backward_input(void *user, const lam_stage_io *io) {
  layer *l = user;
  if (io->n_in) memcpy(l->dy[io->micro], io->in[0].data, X * sizeof(float));
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
    const float *want = r->dw[own[i]->number];
    if (r->flags)
      r->n_differ += memcmp(own[i]->dw, want, sizeof own[i]->dw) != 0;
    else
      CHECK_SAME_BITS(own[i]->dw, want, sizeof own[i]->dw);
    free(own[i]);
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

TEST(rows_schedules, f32_gradients_are_those_of_one_process) {
  const char *name;
  for (int i = 0; (name = lam_schedule_name(i)); i++)
    FOR_EACH(p, 2, 3) FOR_EACH(threads, 1, 2) FOR_EACH(splits, 0, 1) {
      int n = 0;
      FOR_EACH(v, 1, 2) n += run_schedule(name, p, v, threads, splits);
      CHECK(n > 0);
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
