/* bench.c: how fast the demo's training step is on this machine, as lines `name figure unit` from
 * rank 0.
 *
 * One worker: beside the step, the time of the same products alone, called one after the other on
 * the same weights: what they cannot share in is what the demo's own loops cost. A pipeline:
 * beside the step what the simulator predicts for it.
 * Invariant: both are measured in turn, several times; a line is the median. */
#include <stdio.h>
#include <stdlib.h>

#include "bindings/cli/demo/demo.h"

enum { ROUNDS = 7 };

static void say(const worker *w, const char *name, double figure, const char *unit) {
  if (w->rank == 0) emit("%s %.6g %s\n", name, figure, unit);
}

/* -- the products alone -- */

typedef struct
    operands { /* input, output, input's gradient [T, widest]; a gradient of the largest weight */
  matrix x, y, d_x;
  float *d_w;
} operands;

static lam_status three_products(const worker *w, const param *p, const operands *o) {
  const int64_t t = w->o->tokens;
  const matrix x = matrix_at(o->x.data, t, p->w.cols, p->w.bits),
               y = matrix_at(o->y.data, t, p->w.rows, p->w.bits);
  const matrix d_x = matrix_at(o->d_x.data, t, p->w.cols, p->w.bits),
               d_w = matrix_at(o->d_w, p->w.rows, p->w.cols, 32);
  TRY(call_op(w->ctx, LAM_OP_linear, IN(x, p->w), OUT(y), NULL, 0));
  TRY(call_op(w->ctx, LAM_OP_linear_dgrad, IN(y, p->w), OUT(d_x), NULL, 0));
  return call_op(w->ctx, LAM_OP_linear_wgrad, IN(y, x), OUT(d_w), NULL, 0);
}

static bool is_product(const model *m, int i) {
  const int kind = i % N_LAYER_PARAMS;
  if (i < m->n_layers * N_LAYER_PARAMS) return kind != NORM1 && kind != NORM2;
  return &m->params[i] == m->head;
}

static lam_status products_of_step(worker *w, const operands *o) {
  for (int micro = 0; micro < w->o->micro_batches; micro++)
    for (int i = 0; i < w->model.n_params; i++)
      if (is_product(&w->model, i)) TRY(three_products(w, &w->model.params[i], o));
  return LAM_OK;
}

static lam_status open_operands(const worker *w, operands *o) {
  int64_t widest = VOCAB, largest = 0;
  for (int i = 0; i < w->model.n_params; i++) {
    const param *p = &w->model.params[i];
    if (p->w.rows > widest) widest = p->w.rows;
    if (p->w.cols > widest) widest = p->w.cols;
    if (param_size(p) > largest) largest = param_size(p);
  }
  matrix *all[] = {&o->x, &o->y, &o->d_x};
  for (int i = 0; i < 3; i++) {
    *all[i] = matrix_at(NULL, w->o->tokens, widest, w->o->bits);
    all[i]->data = calloc(1, matrix_bytes(*all[i]));
  }
  o->d_w = calloc((size_t)largest, 4);
  if (!o->x.data || !o->y.data || !o->d_x.data || !o->d_w)
    return fail(LAM_RESOURCE_EXHAUSTED, "no memory for the products");
  uint16_t *x =
      o->x.data; /* any small numbers: 0x3f80 is the upper half of 1.0 in f32, and 1.0 in bf16 */
  for (uint64_t i = 0; i < matrix_bytes(o->x) / 2; i++)
    x[i] = (uint16_t)(0x3f80 + hash(1, i) % 128);
  return LAM_OK;
}

static void close_operands(operands *o) {
  free(o->x.data);
  free(o->y.data);
  free(o->d_x.data);
  free(o->d_w);
}

/* -- rounds -- */

typedef struct rounds {
  double step[ROUNDS], pipeline[ROUNDS], products[ROUNDS];
} rounds;

static lam_status one_round(worker *w, line *l, const operands *o, int64_t step, double *times) {
  const int64_t began = now_ns();
  TRY(lam_pipeline_run(l->pipeline, step, NULL));
  const int64_t ran = now_ns();
  for (int i = 0; i < w->model.n_params; i++)
    adamw_step(&w->model.params[i], adamw_at(step, 1000), step);
  const int64_t stepped = now_ns();
  if (w->size == 1) TRY(products_of_step(w, o));
  times[0] = (double)(stepped - began) * 1e-6;
  times[1] = (double)(ran - began) * 1e-6;
  times[2] = (double)(now_ns() - stepped) * 1e-6;
  return LAM_OK;
}

static lam_status run_rounds(worker *w, line *l, const operands *o, rounds *out) {
  TRY(line_open(w, w->o->schedule, l));
  for (int i = -2; i < ROUNDS; i++) {
    double times[3];
    TRY(one_round(w, l, o, i + 2, times));
    if (i >= 0) out->step[i] = times[0], out->pipeline[i] = times[1], out->products[i] = times[2];
  }
  return LAM_OK;
}

lam_status bench(worker *w) {
  operands o = {0};
  rounds r;
  line l = {0};
  lam_status status = open_operands(w, &o);
  if (status == LAM_OK) status = run_rounds(w, &l, &o, &r);
  line_close(&l);
  close_operands(&o);
  TRY(status);

  const double step = median(r.step, ROUNDS);
  say(w, "step", step, "ms");
  say(w, "pipeline", median(r.pipeline, ROUNDS), "ms");
  say(w, "tokens_per_second", (double)w->o->tokens * w->o->micro_batches / step * 1e3, "1/s");
  if (w->size == 1) say(w, "products_alone", median(r.products, ROUNDS), "ms");
  if (w->size == 1) say(w, "products_share", median(r.products, ROUNDS) / step, "1");
  say(w, "peak_bytes", (double)memory_peak(), "B");
  say(w, "predicted_bytes", (double)memory_predict(w->o, w->index, w->part), "B");
  return w->o->pp > 1 ? observe(w, w->o->schedule) : LAM_OK;
}
