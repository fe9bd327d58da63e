/* moves.c: see moves.h. */
#include "tests/distributed/moves/moves.h"

#include <string.h>

#include "plugin/core/shard.h"
#include "tests/place.h"

enum { N = 3000, COLS = 30, SLOT_BYTES = 4000, DEPTH = 2 };

static lam_status on_device(mover *m, lam_status (*f)(mover *m)) {
  m->g->device = place_device();
  m->g->stream = place_stream();
  const lam_status status = f(m);
  m->g->device = NULL;
  return status;
}

static lam_comm_op op_of(uint32_t op, int64_t n) {
  return (lam_comm_op){.op = op, .dtype = LAM_F32, .ndim = 1, .dims = {n}};
}

/* -- collectives -- */

static lam_status sum_of(mover *m, int64_t n) {
  const lam_comm_op op = op_of(LAM_OP_all_reduce, n);
  return lam_group_all_reduce(m->g, &op, m->x, m->y, n, LAM_F32);
}
static lam_status small_sum(mover *m) { return sum_of(m, 16); }
static lam_status large_sum(mover *m) { return sum_of(m, N); }

static lam_parts parts_of(const lam_group *g, int64_t n, int64_t *first) {
  lam_share(n, 1, g->size, first);
  return (lam_parts){1, 1, first, LAM_F32};
}

static lam_status gather_of(mover *m, int64_t n) {
  int64_t first[9];
  const lam_comm_op op = op_of(LAM_OP_all_gather, n);
  const lam_parts p = parts_of(m->g, n, first);
  return lam_group_all_gather(m->g, &op, &p, m->x, m->y);
}
static lam_status even_gather(mover *m) { return gather_of(m, 500 * m->g->size); }
static lam_status uneven_gather(mover *m) { return gather_of(m, 500 * m->g->size + 1); }

static lam_status scatter_of(mover *m, int64_t n) {
  int64_t first[9];
  const lam_comm_op op = op_of(LAM_OP_reduce_scatter, n);
  const lam_parts p = parts_of(m->g, n, first);
  return lam_group_reduce_scatter(m->g, &op, &p, m->x, m->y);
}
static lam_status even_scatter(mover *m) { return scatter_of(m, 500 * m->g->size); }
static lam_status uneven_scatter(mover *m) { return scatter_of(m, 500 * m->g->size + 1); }

static lam_status hand_out(mover *m) {
  const lam_comm_op op = op_of(LAM_OP_broadcast, N);
  return lam_group_broadcast(m->g, &op, m->x, m->y, N * sizeof(float), 1);
}
static lam_status collect(mover *m) {
  const lam_comm_op op = op_of(LAM_OP_reduce, N);
  return lam_group_reduce(m->g, &op, m->x, m->y, N, LAM_F32, 0);
}

/* -- sums of products' parts, two chunks under way -- */

static lam_status start_chunk(mover *m, bool scatter, int64_t at, lam_sum *s) {
  int64_t first[9];
  const int64_t rows = N / COLS / 2;
  lam_share(2 * rows, 1, m->g->size, first);
  const int64_t begin = first[m->g->rank] - at, end = first[m->g->rank + 1] - at;
  const int64_t from = !scatter || begin < 0 ? 0 : begin < rows ? begin : rows;
  const int64_t to = !scatter || end > rows ? rows : end > from ? end : from;
  *s = (lam_sum){.y = {m->y, to - from, COLS, COLS, 1, LAM_F32, false},
                 .y_first = from,
                 .scatter = scatter,
                 .whole = 2 * rows,
                 .at = at};
  LAM_TRY(lam_group_partial(m->g, rows, COLS, s));
  const lam_matrix x = {m->x, rows, COLS, COLS, 1, LAM_F32, false};
  LAM_TRY(lam_device_copy(m->g->device, NULL, x, s->part, m->g->stream));
  return lam_group_sum_start(m->g, s);
}

static lam_status products(mover *m, bool scatter) {
  lam_sum a, b;
  const lam_comm_op op = op_of(LAM_OP_linear_row, N);
  LAM_TRY(lam_group_begin_sums(m->g, &op));
  LAM_TRY(start_chunk(m, scatter, 0, &a));
  LAM_TRY(start_chunk(m, scatter, N / COLS / 2, &b));
  LAM_TRY(lam_group_sum_finish(m->g, &a));
  return lam_group_sum_finish(m->g, &b);
}
static lam_status sum_of_products(mover *m) { return products(m, false); }
static lam_status scattered_products(mover *m) { return products(m, true); }

/* -- messages, around the ring -- */

static int beside(const lam_group *g, int by) { return (g->rank + by + g->size) % g->size; }

/* Two kinds, received in the other order. */
static lam_status pass_on(mover *m) {
  lam_wire h = {.bytes = N * sizeof(float), .dtype = LAM_F32, .ndim = 1, .shape = {N}}, got;
  FOR_EACH(kind, 0, 1) LAM_TRY(lam_group_send(m->g, beside(m->g, 1), kind, &h, m->x));
  FOR_EACH(kind, 1, 0)
  LAM_TRY(lam_group_recv(m->g, beside(m->g, -1), kind, &got, m->y, N * sizeof(float)));
  return LAM_OK;
}

static lam_status through_a_channel(mover *m) {
  void *slot = NULL;
  const void *got = NULL;
  lam_wire h = {.bytes = SLOT_BYTES};
  LAM_TRY(lam_channel_acquire(m->to, &slot));
  const lam_matrix x = {m->x, 1, SLOT_BYTES, SLOT_BYTES, 1, LAM_U8, false};
  const lam_matrix y = {slot, 1, SLOT_BYTES, SLOT_BYTES, 1, LAM_U8, false};
  LAM_TRY(lam_device_copy(m->g->device, NULL, x, y, m->g->stream));
  LAM_TRY(lam_channel_push(m->to, &h));
  LAM_TRY(lam_channel_pull(m->from, &h, &got));
  return lam_channel_release(m->from);
}

/* -- a pipeline -- */

static _Thread_local lam_stage_fn forward_of_layers; /* a rank is a thread */

/* Its data are those of steps 0 and 1, in turn. */
static lam_status forward(void *user, const lam_stage_io *io) {
  lam_stage_io as = *io;
  as.step %= LAYER_STEPS;
  return forward_of_layers(user, &as);
}

static void open_pipeline(mover *m) {
  m->own = layer_create(m->ctx, m->g->rank);
  lam_stage stage = layer_stage(m->own, false);
  forward_of_layers = stage.forward;
  stage.forward = forward;
  CHECK_OK(lam_schedule_build("1f1b", m->g->size, 1, LAYER_MICROS, &m->schedule));
  open_layers(m->ctx, m->g, m->schedule, 0, &stage, 1, &m->pipeline);
}

static lam_status whole_step(mover *m) {
  m->g->device = NULL; /* it says itself where its tensors lie */
  if (!m->pipeline) open_pipeline(m);
  return lam_pipeline_run(m->pipeline, m->step++, NULL);
}

/* -- all of them -- */

const move moves[] = {
    {"small all_reduce", small_sum},
    {"large all_reduce", large_sum},
    {"all_gather of even shares", even_gather},
    {"all_gather of uneven shares", uneven_gather},
    {"reduce_scatter of even shares", even_scatter},
    {"reduce_scatter of uneven shares", uneven_scatter},
    {"broadcast", hand_out},
    {"reduce", collect},
    {"partial sums", sum_of_products},
    {"scattered partial sums", scattered_products},
    {"messages", pass_on},
    {"a channel", through_a_channel},
    {"a step of a pipeline", whole_step},
};
const int n_moves = sizeof moves / sizeof *moves;

/* -- life -- */

static lam_status open_channels(mover *m) {
  const int next = beside(m->g, 1), previous = beside(m->g, -1);
  LAM_TRY(lam_channel_open(m->g, next, true, (uint64_t)m->g->rank, DEPTH, SLOT_BYTES, &m->to));
  return lam_channel_open(m->g, previous, false, (uint64_t)previous, DEPTH, SLOT_BYTES, &m->from);
}

void mover_open(mover *m, lam_context *ctx, lam_group *g) {
  float zeros[N] = {0};
  *m = (mover){.g = g, .ctx = ctx};
  m->x = place_alloc(2 * N * sizeof *m->x);
  m->y = m->x + N;
  place_write(m->x, zeros, sizeof zeros);
  place_finish();
  CHECK_OK(on_device(m, open_channels));
}

lam_status mover_run(mover *m, const move *what) { return on_device(m, what->run); }

void mover_wait(void) {
  if (!place_is_host()) (void)place_device()->order->finish(place_stream());
}

void mover_close(mover *m) {
  float gradients[LAYER_ALL];
  lam_pipeline_destroy(m->pipeline);
  lam_channel_close(m->to);
  lam_channel_close(m->from);
  lam_group_destroy(m->g);
  if (m->own) layer_destroy(m->own, gradients);
  lam_schedule_destroy(m->schedule);
  place_free(m->x);
}
