/* layer.c: see layer.h. */
#include "tests/distributed/pipeline/layer.h"

#include <stdlib.h>
#include <string.h>

#include "tests/place.h"

enum {
  ROWS = LAYER_ROWS,
  WIDTH = LAYER_WIDTH,
  MICROS = LAYER_MICROS,
  STEPS = LAYER_STEPS,
  X = LAYER_X,
  W = LAYER_W,
  ALL = LAYER_ALL
};
enum { NUMBERS = 2 * ALL + 2 * MICROS * X + STEPS * MICROS * X };

static void fill(float *out, int n, int what) {
  rng r = {seed() + 1009 * (uint64_t)what};
  for (int i = 0; i < n; i++) out[i] = rng_float(&r) / 4;
}

static void fill_layer(const layer *l) {
  float *host = calloc(NUMBERS, sizeof *host);
  fill(host, ALL, l->number);
  place_write(l->w, host, NUMBERS * sizeof *host);
  place_finish();
  free(host);
  for (int step = 0; step < STEPS && l->number == 0; step++) layer_fill_step(l, step, step);
}

void layer_fill_step(const layer *l, int step, int as) {
  enum { N = MICROS * X };
  float *host = calloc(N, sizeof *host);
  for (int i = 0; i < MICROS; i++) fill(host + i * X, X, 100 + as * MICROS + i);
  place_write(l->data[step][0], host, N * sizeof *host);
  place_finish();
  free(host);
}

layer *layer_create(lam_context *ctx, int number) {
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

void layer_destroy(layer *l, float *dw) {
  place_read(dw, l->dw, ALL * sizeof *dw);
  place_finish();
  place_free(l->w);
  free(l);
}

static bool has_cards(void) { return getenv("LAMELLA_TEST_CARDS") != NULL; }

void layer_check(const float *got, const float *want) {
  double exact[ALL];
  if (!has_cards()) {
    CHECK_SAME_BITS(got, want, ALL * sizeof *got);
    return;
  }
  for (int i = 0; i < ALL; i++) exact[i] = want[i];
  CHECK_CLOSE(got, exact, ALL, 1e-4, 1e-4);
}

static DLTensor tensor_of(const float *data, int32_t ndim) {
  static int64_t rows[] = {ROWS, WIDTH}, weights[] = {WIDTH, WIDTH}, bias[] = {WIDTH};
  DLTensor t = {.data = (void *)(uintptr_t)data, .dtype = {kDLFloat, 32, 1}};
  t.device.device_type = (DLDeviceType)place_device_type(), t.device.device_id = place_device_id();
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

static void run_micro(layer **all, int n, int64_t step, int micro) {
  CHECK_OK(copy_rows(all[0]->data[step][micro], all[0]->x[micro]));
  for (int i = 0; i < n; i++)
    CHECK_OK(forward_row(all[i], all[i]->x[micro],
                         i + 1 < n ? all[i + 1]->x[micro] : all[i]->dy[micro]));
  for (int i = n - 1; i >= 0; i--) {
    if (i) CHECK_OK(dgrad_row(all[i], all[i]->dy[micro], all[i - 1]->dy[micro]));
    CHECK_OK(wgrad_row(all[i], micro));
  }
}

void layers_run(layer **all, int n, int64_t step) {
  for (int micro = 0; micro < MICROS; micro++) run_micro(all, n, step, micro);
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

lam_stage layer_stage(layer *l, bool splits) {
  lam_stage f = LAM_STAGE_INIT;
  f.user = l, f.forward = forward, f.backward = backward;
  if (splits) f.backward_input = backward_input, f.backward_weight = backward_weight;
  return f;
}

/* -- pipelines of them -- */

lam_context *context_of(int threads) {
  lam_context_desc d = LAM_CONTEXT_DESC_INIT;
  lam_context *ctx = NULL;
  d.threads = threads;
  CHECK_OK(lam_context_create(&d, &ctx));
  return ctx;
}

lam_group *join_threads(lam_context *ctx, const lam_group_id *id, int rank, int size) {
  lam_group_desc d = LAM_GROUP_DESC_INIT;
  lam_group *g = NULL;
  d.rank = rank, d.size = size, d.id = *id;
  d.engine = getenv("LAMELLA_TEST_ENGINE");
  if (has_cards()) place_take(rank);
  if (size > 1) CHECK_OK(lam_group_create(ctx, &d, &g));
  return g;
}

void open_layers(lam_context *ctx, lam_group *g, const lam_schedule *s, uint32_t flags,
                 const lam_stage *stages, int n_stages, lam_pipeline **out) {
  static const lam_shape shape = {2, {kDLFloat, 32, 1}, {ROWS, WIDTH}};
  lam_schedule_info info = LAM_SCHEDULE_INFO_INIT;
  lam_edge edges[LAYERS_MAX];
  lam_pipeline_desc d = LAM_PIPELINE_DESC_INIT;
  CHECK_OK(lam_schedule_check(s, &info));
  for (int e = 0; e < LAYERS_MAX; e++) edges[e] = (lam_edge){sizeof *edges, 1, &shape, 0, 0};
  d.group = g, d.schedule = s, d.flags = flags;
  d.stages = stages, d.n_stages = (uint32_t)n_stages;
  d.edges = edges, d.n_edges = (uint32_t)(info.n_stages - 1);
  d.device_type = place_device_type(), d.device_id = place_device_id(), d.stream = place_stream();
  CHECK_OK(lam_pipeline_create(ctx, &d, out));
}
