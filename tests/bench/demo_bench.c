/* demo_bench.c: the demo's training step beside the same products called straight through
 * oneDNN's C API: one process, by turns. Takes the demo's options, and so has its sizes.
 *
 *   demo_bench [options of lamella_demo]     one worker
 *
 * The products alone are those of the step, in its order: for each micro-batch forward through all
 * weights, then back through all for the input's gradient and the weight's. Weights are those that
 * the demo trains, plain [N, K]; weight gradients are added to, in f32. Activations are one block
 * that stays in the cache, and nothing lies between two products: more than a step could have.
 * Prints `name figure unit`: medians of the rounds' times, and of their ratio.
 * Invariant: both run with the demo's number of threads. Leaves goals to who reads the lines. */
#include <dnnl.h>
#include <stdio.h>
#include <stdlib.h>

#include "bindings/cli/demo/demo.h"

enum { ROUNDS = 9, WARM = 2, MOST_PRODUCTS = 3 * (MAX_LAYERS * N_LAYER_PARAMS + 1) };
enum { FORWARD, DGRAD, WGRAD, N_KINDS };

static dnnl_engine_t engine;
static dnnl_stream_t stream;

#define OK(call) \
  if ((call) != dnnl_success) fprintf(stderr, "demo_bench: %s\n", #call), exit(1)

/* -- one product: d [m, n] = a [m, k] b [k, n], each plain, by rows or by columns -- */

typedef struct operand {
  void *data;
  int64_t rows, cols;
  bool by_cols;
  int bits;
} operand;

typedef struct product {
  dnnl_primitive_t primitive;
  dnnl_memory_t a, b, d;
} product;

static operand by_rows(matrix m) { return (operand){m.data, m.rows, m.cols, false, m.bits}; }
static operand turned(matrix m) { return (operand){m.data, m.cols, m.rows, true, m.bits}; }

static dnnl_memory_desc_t describe(operand o) {
  const dnnl_dims_t shape = {o.rows, o.cols};
  const dnnl_dims_t strides = {o.by_cols ? 1 : o.cols, o.by_cols ? o.rows : 1};
  dnnl_memory_desc_t md;
  OK(dnnl_memory_desc_init_by_strides(&md, 2, shape, o.bits == 16 ? dnnl_bf16 : dnnl_f32, strides));
  return md;
}

static dnnl_primitive_attr_t attributes(bool accumulate) {
  dnnl_primitive_attr_t attr;
  dnnl_post_ops_t ops;
  OK(dnnl_primitive_attr_create(&attr));
  OK(dnnl_post_ops_create(&ops));
  if (accumulate) OK(dnnl_post_ops_append_sum(ops, 1.0f));
  OK(dnnl_primitive_attr_set_post_ops(attr, ops));
  dnnl_post_ops_destroy(ops);
  return attr;
}

static product product_make(operand a, operand b, operand d, bool accumulate) {
  const dnnl_memory_desc_t am = describe(a), bm = describe(b), dm = describe(d);
  dnnl_primitive_attr_t attr = attributes(accumulate);
  dnnl_matmul_desc_t matmul;
  dnnl_primitive_desc_t pd;
  product p;
  OK(dnnl_matmul_desc_init(&matmul, &am, &bm, NULL, &dm));
  OK(dnnl_primitive_desc_create(&pd, &matmul, attr, engine, NULL));
  OK(dnnl_primitive_create(&p.primitive, pd));
  OK(dnnl_memory_create(&p.a, &am, engine, a.data));
  OK(dnnl_memory_create(&p.b, &bm, engine, b.data));
  OK(dnnl_memory_create(&p.d, &dm, engine, d.data));
  dnnl_primitive_desc_destroy(pd);
  dnnl_primitive_attr_destroy(attr);
  return p;
}

static void product_run(const product *p) {
  const dnnl_exec_arg_t args[] = {
      {DNNL_ARG_SRC, p->a}, {DNNL_ARG_WEIGHTS, p->b}, {DNNL_ARG_DST, p->d}};
  OK(dnnl_primitive_execute(p->primitive, stream, 3, args));
}

static void product_free(product *p) {
  dnnl_primitive_destroy(p->primitive);
  dnnl_memory_destroy(p->a);
  dnnl_memory_destroy(p->b);
  dnnl_memory_destroy(p->d);
}

/* -- the products of one micro-batch -- */

typedef struct peer {
  int n_weights;
  product of[N_KINDS][MOST_PRODUCTS / N_KINDS]; /* [kind][weight] */
  void *x, *y, *d_x; /* [T, widest] each */
  float *grads;      /* of all weights, one after the other */
} peer;

static bool is_product(const model *m, int i) {
  const int kind = i % N_LAYER_PARAMS;
  if (i < m->n_layers * N_LAYER_PARAMS) return kind != NORM1 && kind != NORM2;
  return &m->params[i] == m->head;
}

static void *take(int64_t bytes) {
  void *p = memory_take((uint64_t)bytes);
  if (!p) fprintf(stderr, "demo_bench: out of memory\n"), exit(1);
  return p;
}

/* Any small numbers do, but zeros would make products cheaper: both halves of an f32 are a bf16
 * in [1/64, 1/32). */
static void *block(int64_t bytes) {
  uint16_t *data = take(bytes);
  for (int64_t i = 0; i < bytes / 2; i++) data[i] = (uint16_t)(0x3c80 + hash(1, (uint64_t)i) % 128);
  return data;
}

/* y [T, N] = x [T, K] w^T;  d_x = y w;  grad [N, K] += y^T x, with y in its gradient's place */
static void add_weight(peer *p, int64_t t, matrix w, float *grad) {
  const matrix x = matrix_at(p->x, t, w.cols, w.bits), y = matrix_at(p->y, t, w.rows, w.bits);
  const matrix d_x = matrix_at(p->d_x, t, w.cols, w.bits);
  const matrix d_w = matrix_at(grad, w.rows, w.cols, 32);
  const int i = p->n_weights++;
  p->of[FORWARD][i] = product_make(by_rows(x), turned(w), by_rows(y), false);
  p->of[DGRAD][i] = product_make(by_rows(y), by_rows(w), by_rows(d_x), false);
  p->of[WGRAD][i] = product_make(turned(y), by_rows(x), by_rows(d_w), true);
}

static peer *peer_open(const worker *w) {
  peer *p = take(sizeof *p);
  int64_t widest = VOCAB, weights = 0;
  for (int i = 0; i < w->models[0].n_params; i++) {
    const matrix m = w->models[0].params[i].w;
    widest = m.rows > widest ? m.rows : widest;
    widest = m.cols > widest ? m.cols : widest;
    weights += m.rows * m.cols;
  }
  const int64_t bytes = w->o->tokens * widest * w->o->bits / 8;
  p->x = block(bytes), p->y = block(bytes), p->d_x = block(bytes);
  float *grad = p->grads = take(weights * 4);
  for (int i = 0; i < w->models[0].n_params; i++) {
    const param *of = &w->models[0].params[i];
    if (!is_product(&w->models[0], i)) continue;
    add_weight(p, w->o->tokens, of->w, grad);
    grad += param_size(of);
  }
  return p;
}

static void peer_close(peer *p) { /* memory goes with the process */
  for (int kind = 0; kind < N_KINDS; kind++)
    for (int i = 0; i < p->n_weights; i++) product_free(&p->of[kind][i]);
}

static void peer_step(const peer *p, int micro_batches) {
  for (int micro = 0; micro < micro_batches; micro++) {
    for (int i = 0; i < p->n_weights; i++) product_run(&p->of[FORWARD][i]);
    for (int i = p->n_weights - 1; i >= 0; i--) {
      product_run(&p->of[DGRAD][i]);
      product_run(&p->of[WGRAD][i]);
    }
  }
}

/* -- rounds -- */

typedef struct figures {
  double step[ROUNDS], alone[ROUNDS], share[ROUNDS];
} figures;

static lam_status run_rounds(worker *w, line *l, const peer *p, figures *out) {
  for (int i = -WARM; i < ROUNDS; i++) {
    const int64_t began = now_ns();
    int64_t ran;
    TRY(bench_step(w, l, i + WARM, &ran));
    const int64_t stepped = now_ns();
    peer_step(p, w->o->micro_batches);
    if (i < 0) continue;
    out->step[i] = (double)(stepped - began) * 1e-6;
    out->alone[i] = (double)(now_ns() - stepped) * 1e-6;
    out->share[i] = out->alone[i] / out->step[i];
  }
  return LAM_OK;
}

static lam_status bench_worker(worker *w) {
  figures f;
  line l = {0};
  peer *p = peer_open(w);
  lam_status status = line_open(w, w->o->schedule, &l);
  if (status == LAM_OK) status = run_rounds(w, &l, p, &f);
  line_close(&l);
  peer_close(p);
  TRY(status);
  const double step = median(f.step, ROUNDS), alone = median(f.alone, ROUNDS);
  const double tokens = (double)w->o->tokens * w->o->micro_batches;
  printf("step %.4f ms\nonednn_alone %.4f ms\nshare %.4f 1\n", step, alone,
         median(f.share, ROUNDS));
  printf("step_rate %.1f tokens/s\nonednn_rate %.1f tokens/s\n", tokens / step * 1e3,
         tokens / alone * 1e3);
  return LAM_OK;
}

int main(int argc, char **argv) {
  options o;
  worker w = {0};
  lam_status status = options_parse(argc, argv, &o);
  if (status == LAM_OK) status = worker_open(&o, &w);
  if (status == LAM_OK) {
    OK(dnnl_engine_create(&engine, dnnl_cpu, 0));
    OK(dnnl_stream_create(&stream, engine, dnnl_stream_default_flags));
    status = bench_worker(&w);
  }
  worker_close(&w);
  if (status != LAM_OK) fprintf(stderr, "demo_bench: %s\n", error_text());
  return status != LAM_OK;
}
