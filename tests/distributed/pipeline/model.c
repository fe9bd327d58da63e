/* model.c: see model.h. Stage functions check everything that the runtime promises of their io. */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "tests/distributed/pipeline/model.h"
#include "tests/place.h"

int model_rows(const model *m, int micro) {
  return m->varies ? (micro * 5 + 2) % (m->rows + 1) : m->rows;
}

/* -- arithmetic, shared with the reference; x [rows, width], w [width, width] -- */

static void fill_input(const model *m, int64_t step, int micro, double *x) {
  rng r = {m->seed * 1000003 + (uint64_t)step * 1009 + (uint64_t)micro};
  for (int i = 0; i < model_rows(m, micro) * m->width; i++) x[i] = rng_float(&r);
}

static void forward_math(const model *m, int micro, const double *w, const double *x, double *y) {
  const int n = m->width;
  for (int r = 0; r < model_rows(m, micro); r++)
    for (int o = 0; o < n; o++) {
      double sum = 0;
      for (int i = 0; i < n; i++) sum += x[r * n + i] * w[o * n + i];
      y[r * n + o] = tanh(sum);
    }
}

/* dz = dy (1 - y^2) */
static void dz_math(const model *m, int micro, const double *dy, const double *y, double *dz) {
  for (int i = 0; i < model_rows(m, micro) * m->width; i++) dz[i] = dy[i] * (1 - y[i] * y[i]);
}

static void input_math(const model *m, int micro, const double *w, const double *dz, double *dx) {
  const int n = m->width;
  for (int r = 0; r < model_rows(m, micro); r++)
    for (int i = 0; i < n; i++) {
      double sum = 0;
      for (int o = 0; o < n; o++) sum += dz[r * n + o] * w[o * n + i];
      dx[r * n + i] = sum;
    }
}

static void weight_math(const model *m, int micro, const double *dz, const double *x, double *dw) {
  const int n = m->width;
  for (int r = 0; r < model_rows(m, micro); r++)
    for (int o = 0; o < n; o++)
      for (int i = 0; i < n; i++) dw[o * n + i] += dz[r * n + o] * x[r * n + i];
}

static double loss_math(const model *m, int micro, const double *y) { /* so dy = y */
  double sum = 0;
  for (int i = 0; i < model_rows(m, micro) * m->width; i++) sum += y[i] * y[i] / 2;
  return sum;
}

static void fill_weights(const model *m, int stage, double *w) {
  rng r = {m->seed + 77 * (uint64_t)stage + 1};
  for (int i = 0; i < m->width * m->width; i++) w[i] = rng_float(&r);
}

/* -- stages -- */

static double *doubles(size_t n) { return calloc(n ? n : 1, sizeof(double)); }

model_stage *model_stage_create(const model *m, int number, model_stage **all) {
  model_stage *s = all[number] = calloc(1, sizeof *s);
  const size_t n = (size_t)m->width * (size_t)m->width, rows = (size_t)m->rows * (size_t)m->width;
  *s = (model_stage){.m = m, .all = all, .number = number, .w = doubles(n), .dw = doubles(n)};
  s->from = doubles(rows), s->to = doubles(rows);
  s->numbers = calloc((size_t)m->rows + 1, sizeof *s->numbers);
  fill_weights(m, number, s->w);
  for (int i = 0; i < m->n_micro; i++) {
    s->x[i] = doubles(rows);
    s->y[i] = doubles(rows);
    s->dz[i] = doubles(rows);
  }
  return s;
}

void model_stage_destroy(model_stage *s) {
  for (int i = 0; i < s->m->n_micro; i++) free(s->x[i]), free(s->y[i]), free(s->dz[i]);
  free(s->from), free(s->to), free(s->numbers);
  free(s->w);
  free(s->dw);
  free(s);
}

static int n_tensors(const model *m) { return m->three_tensors ? 3 : 1; }

/* What the tally of a message says: who made it, for which micro-batch. */
static float mark(int stage, int kind, int micro) {
  return (float)(100 * stage + 10 * kind + 1000 * micro);
}

static void check_view(const DLTensor *t, int rows, int dtype_bits) {
  CHECK_EQ(t->shape[0], rows);
  CHECK_EQ((uintptr_t)t->data % 64, 0);
  CHECK_EQ(t->dtype.bits, dtype_bits);
  CHECK_EQ(t->device.device_type, place_device_type());
  CHECK(t->byte_offset == 0 && t->strides == NULL);
}

/* Where a device has the tensors, the stages compute on the host all the same. */
static void fetch(void *host, const void *from, size_t bytes) {
  place_read(host, from, bytes);
  place_finish();
}

static void put(void *to, const void *host, size_t bytes) {
  place_write(to, host, bytes);
  place_finish(); /* the host's memory may change */
}

static void check_inputs(const model_stage *s, const lam_stage_io *io, int from, int kind) {
  const int rows = model_rows(s->m, io->micro);
  check_view(&io->in[0], rows, 64);
  if (io->n_in < 3) return;
  check_view(&io->in[1], rows, 64);
  check_view(&io->in[2], 3, 32);
  float tally[3];
  fetch(s->numbers, io->in[1].data, (size_t)rows * sizeof *s->numbers);
  fetch(tally, io->in[2].data, sizeof tally);
  for (int r = 0; r < rows; r++) CHECK_EQ(s->numbers[r], 1000 * io->micro + r);
  for (int i = 0; i < 3; i++) CHECK(tally[i] == mark(from, kind, io->micro));
}

/* Writes everything but out[0]'s data. */
static void fill_outputs(const model_stage *s, const lam_stage_io *io, int kind) {
  const int rows = model_rows(s->m, io->micro);
  check_view(&io->out[0], s->m->rows, 64); /* the slot's capacity */
  io->out[0].shape[0] = rows;
  if (io->n_out < 3) return;
  check_view(&io->out[1], s->m->rows, 64);
  io->out[1].shape[0] = rows;
  float tally[3];
  for (int r = 0; r < rows; r++) s->numbers[r] = 1000 * io->micro + r;
  for (int i = 0; i < 3; i++) tally[i] = mark(s->number, kind, io->micro);
  put(io->out[1].data, s->numbers, (size_t)rows * sizeof *s->numbers);
  put(io->out[2].data, tally, sizeof tally);
}

static lam_status enter(model_stage *s, const lam_stage_io *io, int kind) {
  const bool first = s->number == 0, last = s->number == s->m->n_stages - 1,
             forward = kind == LAM_KIND_F;
  const int n = n_tensors(s->m);
  CHECK_EQ(io->struct_size, sizeof *io);
  CHECK_EQ(io->stage, s->number);
  CHECK(io->micro >= 0 && io->micro < s->m->n_micro);
  if (kind != LAM_KIND_W) { /* its io is empty; but as a part of a B it is the B's */
    CHECK_EQ(io->n_in, (forward ? first : last) ? 0 : n);
    CHECK_EQ(io->n_out, (forward ? last : first) ? 0 : n);
  }
  CHECK_EQ(io->loss != NULL, last);
  s->calls[kind]++;
  if (s->m->on_call) s->m->on_call(io, kind);
  const bool fails =
      s->m->fail_stage == s->number && s->m->fail_micro == io->micro && s->m->fail_kind == kind;
  return fails ? LAM_FAILED_PRECONDITION : LAM_OK;
}

static size_t rows_bytes(const model_stage *s, int micro) {
  return (size_t)(model_rows(s->m, micro) * s->m->width) * sizeof(double);
}

static lam_status forward(void *user, const lam_stage_io *io) {
  model_stage *s = user;
  const int micro = io->micro;
  const size_t bytes = rows_bytes(s, micro);
  LAM_TRY(enter(s, io, LAM_KIND_F));
  s->kept[micro] = NULL;
  if (io->n_in) {
    check_inputs(s, io, s->number - 1, LAM_KIND_F);
    if (s->m->keeps) s->kept[micro] = io->in[0].data;
    fetch(s->x[micro], io->in[0].data, bytes);
  } else {
    fill_input(s->m, io->step, micro, s->x[micro]);
  }
  forward_math(s->m, micro, s->w, s->x[micro], s->y[micro]);
  if (io->loss) *io->loss += loss_math(s->m, micro, s->y[micro]);
  if (io->n_out) {
    fill_outputs(s, io, LAM_KIND_F);
    put(io->out[0].data, s->y[micro], bytes);
  }
  return LAM_OK;
}

static void give_input_gradient(model_stage *s, const lam_stage_io *io) {
  const size_t bytes = rows_bytes(s, io->micro);
  const double *dy = io->n_in ? s->from : s->y[io->micro];
  if (io->n_in) {
    check_inputs(s, io, s->number + 1, LAM_KIND_I);
    fetch(s->from, io->in[0].data, bytes);
  }
  dz_math(s->m, io->micro, dy, s->y[io->micro], s->dz[io->micro]);
  if (!io->n_out) return;
  fill_outputs(s, io, LAM_KIND_I);
  input_math(s->m, io->micro, s->w, s->dz[io->micro], s->to);
  put(io->out[0].data, s->to, bytes);
}

/* An input that is kept in its slot is read there again. */
static void add_weight_gradient(model_stage *s, int micro) {
  if (s->kept[micro]) fetch(s->x[micro], s->kept[micro], rows_bytes(s, micro));
  weight_math(s->m, micro, s->dz[micro], s->x[micro], s->dw);
}

static lam_status backward(void *user, const lam_stage_io *io) {
  LAM_TRY(enter(user, io, LAM_KIND_B));
  give_input_gradient(user, io);
  add_weight_gradient(user, io->micro);
  return LAM_OK;
}

static lam_status backward_input(void *user, const lam_stage_io *io) {
  LAM_TRY(enter(user, io, LAM_KIND_I));
  give_input_gradient(user, io);
  return LAM_OK;
}

static lam_status backward_weight(void *user, const lam_stage_io *io) {
  model_stage *s = user;
  LAM_TRY(enter(s, io, LAM_KIND_W));
  add_weight_gradient(s, io->micro);
  return LAM_OK;
}

static lam_status backward_any(model_stage *s, const lam_stage_io *io) {
  if (s->m->functions & MODEL_WHOLE) return backward(s, io);
  LAM_TRY(backward_input(s, io));
  return backward_weight(s, io);
}

/* Called with the forward's stage. */
static lam_status forward_backward(void *user, const lam_stage_io *f, const lam_stage_io *b) {
  model_stage *s = user;
  s->pairs++;
  LAM_TRY(forward(s, f));
  return backward_any(s->all[b->stage], b);
}

static lam_status reduce_grad(void *user, const lam_stage_io *io) {
  model_stage *s = user;
  CHECK_EQ(io->micro, -1);
  CHECK(io->n_in == 0 && io->n_out == 0);
  s->reduced++;
  return LAM_OK;
}

lam_stage model_stage_functions(model_stage *s) {
  lam_stage f = LAM_STAGE_INIT;
  const unsigned has = s->m->functions;
  f.flags = s->m->keeps ? LAM_STAGE_KEEPS_INPUT : 0;
  f.user = s;
  f.forward = forward;
  if (has & MODEL_WHOLE) f.backward = backward;
  if (has & MODEL_SPLIT) f.backward_input = backward_input, f.backward_weight = backward_weight;
  if (has & MODEL_FUSED) f.forward_backward = forward_backward;
  f.reduce_grad = reduce_grad;
  return f;
}

void model_edges(const model *m, lam_edge *edges, lam_shape *shapes) {
  const DLDataType f64 = {kDLFloat, 64, 1}, i64 = {kDLInt, 64, 1}, f32 = {kDLFloat, 32, 1};
  for (int e = 0; e < m->n_stages - 1; e++) {
    shapes[3 * e] = (lam_shape){2, f64, {m->rows, m->width}};
    shapes[3 * e + 1] = (lam_shape){1, i64, {m->rows}};
    shapes[3 * e + 2] = (lam_shape){1, f32, {3}};
    edges[e] = (lam_edge)LAM_EDGE_INIT;
    edges[e].n_tensors = (uint32_t)n_tensors(m);
    edges[e].tensors = &shapes[3 * e];
  }
}

/* -- the reference -- */

static void reference_micro(const model *m, model_stage *const *all, int64_t step, int micro) {
  double *dx = doubles((size_t)(m->rows * m->width));
  fill_input(m, step, micro, all[0]->x[micro]);
  for (int i = 0; i < m->n_stages; i++) {
    forward_math(m, micro, all[i]->w, all[i]->x[micro], all[i]->y[micro]);
    if (i + 1 < m->n_stages)
      memcpy(all[i + 1]->x[micro], all[i]->y[micro], (size_t)(m->rows * m->width) * sizeof(double));
  }
  for (int i = m->n_stages - 1; i >= 0; i--) {
    const double *dy = i == m->n_stages - 1 ? all[i]->y[micro] : dx;
    dz_math(m, micro, dy, all[i]->y[micro], all[i]->dz[micro]);
    input_math(m, micro, all[i]->w, all[i]->dz[micro], dx);
  }
  free(dx);
}

void model_reference(const model *m, const lam_schedule *s, int64_t step, double **dw,
                     double *loss) {
  model_stage *all[MODEL_STAGES_MAX] = {0};
  const int weight_kind = m->functions & MODEL_SPLIT ? LAM_KIND_W : LAM_KIND_I;
  for (int i = 0; i < m->n_stages; i++) model_stage_create(m, i, all);
  for (int i = 0; i < m->n_micro; i++) reference_micro(m, all, step, i);
  *loss = 0;
  for (int64_t i = 0; i < s->first[s->n_ranks]; i++) {
    const lam_action *a = &s->actions[i];
    if (a->kind == LAM_KIND_F && a->stage == m->n_stages - 1)
      *loss += loss_math(m, a->micro, all[a->stage]->y[a->micro]);
    if (a->kind != LAM_KIND_B && a->kind != weight_kind) continue;
    weight_math(m, a->micro, all[a->stage]->dz[a->micro], all[a->stage]->x[a->micro], dw[a->stage]);
  }
  for (int i = 0; i < m->n_stages; i++) model_stage_destroy(all[i]);
}
