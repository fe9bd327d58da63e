/* emulated_test.c: whole calls on the CUDA device of the stand-in: f16 and fp8 against double
 * precision, no hidden wait or allocation, and calls that are captured and run again. Emulated, not
 * run on a GPU.
 * Leaves f32 and bf16 to tests/conformance/ops. */
#include <cuda_runtime_api.h>
#include <math.h>

#include "plugin/core/tensor.h"
#include "tests/unit/core/host.h"
#include "tests/unit/kernels/far.h"

enum { MOST = 8 };

typedef struct operand {
  far there;
  DLTensor t;
  int64_t shape[2], strides[2];
} operand;

static void *stream;
static operand operands[2 * MOST];
static int n_operands;

/* [rows, cols], or with rows 0 a vector; random, or poisoned where it is a result. */
static operand *make(rng *r, int64_t rows, int64_t cols, lam_dtype t) {
  operand *o = &operands[n_operands++];
  const int64_t n = rows ? rows : 1;
  box near = r ? box_random(r, n, cols, t, BY_ROWS) : box_new(n, cols, t, BY_ROWS);
  for (int64_t i = 0; !r && i < n * cols; i++) set(near.m, i / cols, i % cols, NAN);
  o->there = far_of(near, 0, stream);
  o->shape[0] = rows ? rows : cols, o->shape[1] = cols;
  o->strides[0] = rows ? cols : 1, o->strides[1] = 1;
  o->t = (DLTensor){o->there.m.data,
                    {(DLDeviceType)2, 0},
                    rows ? 2 : 1,
                    lam_dtype_to_dlpack(t),
                    o->shape,
                    o->strides,
                    0};
  return o;
}

static void begin(void) {
  n_operands = 0;
  stream = stream_new();
  lam_device_forced = &lam_device_cuda;
}

static void end(void) {
  for (int i = 0; i < n_operands; i++) {
    box_free(&operands[i].there.near);
    far_free(&operands[i].there);
  }
  stream_drop(stream);
  lam_device_forced = NULL;
  CHECK_EQ(standin_n_reports(), 0);
}

typedef struct call {
  const DLTensor *in[MOST];
  DLTensor *out[MOST];
  lam_attr attrs[MOST];
  lam_call call;
} call;

static lam_status run(call *c, uint32_t op) {
  c->call = (lam_call)LAM_CALL_INIT;
  c->call.op = op;
  c->call.inputs = c->in, c->call.outputs = c->out, c->call.attrs = c->attrs;
  for (int i = 0; i < MOST; i++) {
    if (c->in[i]) c->call.n_inputs = (uint32_t)i + 1;
    if (c->out[i]) c->call.n_outputs = (uint32_t)i + 1;
    if (c->attrs[i].type) c->call.n_attrs = (uint32_t)i + 1;
  }
  c->call.stream = stream;
  return lam_run(NULL, &c->call);
}

static double value(const operand *o, int64_t row, int64_t col) {
  return get(o->there.near.m, row, col);
}

/* -- f16 and fp8: a [m, k], b [n, k] as the product sees them -- */

typedef double (*element_fn)(const operand *o, int64_t i, int64_t k);
static double by_rows(const operand *o, int64_t i, int64_t k) { return value(o, i, k); }
static double by_cols(const operand *o, int64_t i, int64_t k) { return value(o, k, i); }

static void check_product(operand *y, const operand *a, element_fn at_a, const operand *b,
                          element_fn at_b, int64_t k, double scale, const operand *bias) {
  far_fetch(&y->there, stream);
  const lam_matrix m = y->there.near.m;
  for (int64_t i = 0; i < m.rows * m.cols; i++) {
    double want = 0, size = 0;
    for (int64_t j = 0; j < k; j++) {
      const double term = at_a(a, i / m.cols, j) * at_b(b, i % m.cols, j) * scale;
      want += term, size += fabs(term);
    }
    if (bias) want += value(bias, 0, i % m.cols);
    const double off = 1.01 * rounding_of(m.dtype) * fabs(want) + (double)(k + 8) * 0x1p-24 * size;
    if (!CHECK(fabs(get(m, i / m.cols, i % m.cols) - want) <= off + 1e-6)) return;
  }
}

typedef struct kind {
  int64_t T, K, N;
  lam_dtype x, w, y;
} kind;

static bool is_f8(kind k) { return lam_dtype_is_f8(k.x); }

static operand *scale_make(rng *r, kind k) { return is_f8(k) ? make(r, 0, 1, LAM_F32) : NULL; }
static double scale_of(const operand *a, const operand *b) {
  return a ? value(a, 0, 0) * value(b, 0, 0) : 1;
}
static DLTensor *tensor_of(operand *o) { return o ? &o->t : NULL; }

static lam_attr dtype_attr(kind k) {
  const DLDataType t = lam_dtype_to_dlpack(k.y);
  return lam_attr_i(t.code | t.bits << 8);
}

static void check_forward(rng *r, kind k, uint32_t op, int dtype_at) {
  begin();
  operand *x = make(r, k.T, k.K, k.x), *w = make(r, k.N, k.K, k.w), *b = make(r, 0, k.N, LAM_F32);
  operand *sx = scale_make(r, k), *sw = scale_make(r, k), *y = make(NULL, k.T, k.N, k.y);
  call c = {.in = {&x->t, &w->t, &b->t, tensor_of(sx), tensor_of(sw)}, .out = {&y->t}};
  c.attrs[dtype_at] = dtype_attr(k);
  NOTE("op %u %s %s %s [%d %d %d]", op, lam_dtype_name(k.x), lam_dtype_name(k.w),
       lam_dtype_name(k.y), (int)k.T, (int)k.K, (int)k.N);
  CHECK_OK(run(&c, op));
  check_product(y, x, by_rows, w, by_rows, k.K, scale_of(sx, sw), b);
  end();
}

/* dx [T, K] = dy [T, N] w */
static void check_dgrad(rng *r, kind k) {
  begin();
  operand *dy = make(r, k.T, k.N, k.x), *w = make(r, k.N, k.K, k.w);
  operand *sdy = scale_make(r, k), *sw = scale_make(r, k);
  operand *dx = make(NULL, k.T, k.K, is_f8(k) ? LAM_BF16 : k.x);
  call c = {.in = {&dy->t, &w->t, tensor_of(sdy), tensor_of(sw)}, .out = {&dx->t}};
  CHECK_OK(run(&c, LAM_OP_linear_dgrad));
  check_product(dx, dy, by_rows, w, by_cols, k.N, scale_of(sdy, sw), NULL);
  end();
}

/* dw [N, K] = dy^T x, in f32 */
static void check_wgrad(rng *r, kind k) {
  begin();
  operand *dy = make(r, k.T, k.N, k.x), *x = make(r, k.T, k.K, k.w);
  operand *sdy = scale_make(r, k), *sx = scale_make(r, k), *dw = make(NULL, k.N, k.K, LAM_F32);
  call c = {.in = {&dy->t, &x->t, tensor_of(sdy), tensor_of(sx)}, .out = {&dw->t}};
  CHECK_OK(run(&c, LAM_OP_linear_wgrad));
  check_product(dw, dy, by_cols, x, by_cols, k.T, scale_of(sdy, sx), NULL);
  end();
}

static const lam_dtype dtypes[][3] = {{LAM_F16, LAM_F16, LAM_F16},
                                      {LAM_F16, LAM_F16, LAM_F32},
                                      {LAM_F8E4M3, LAM_F8E4M3, LAM_BF16},
                                      {LAM_F8E4M3, LAM_F8E4M3, LAM_F32},
                                      {LAM_F8E5M2, LAM_F8E4M3, LAM_F16}};
static const int64_t sizes[][3] = {{1, 64, 16}, {16, 48, 32}, {5, 7, 3}, {33, 80, 17}};

TEST(emulated, linear_layers_of_f16_and_fp8_and_their_gradients) {
  rng r = {seed()};
  for (size_t t = 0; t < sizeof dtypes / sizeof *dtypes; t++)
    for (size_t s = 0; s < sizeof sizes / sizeof *sizes; s++) {
      const kind k = {sizes[s][0],  sizes[s][1],  sizes[s][2],
                      dtypes[t][0], dtypes[t][1], dtypes[t][2]};
      check_forward(&r, k, LAM_OP_linear, 2);
      check_forward(&r, k, LAM_OP_linear_row, 6);
      check_dgrad(&r, k);
      check_wgrad(&r, k);
    }
}

/* -- ffn: x w1 b1 w2 b2 -> y -- */

enum { T = 19, K = 24, F = 40, N = 16 };

typedef struct ffn {
  operand *x, *w1, *b1, *w2, *b2, *scales[3], *y;
  call c;
} ffn;

static void ffn_make(rng *r, ffn *f, lam_dtype t, lam_dtype y) {
  *f = (ffn){make(r, T, K, t),       make(r, F, K, t), make(r, 0, F, LAM_F32), make(r, N, F, t),
             make(r, 0, N, LAM_F32), {NULL},           make(NULL, T, N, y),    {.attrs = {{0}}}};
  for (int i = 0; i < 3 && lam_dtype_is_f8(t); i++) f->scales[i] = make(r, 0, 1, LAM_F32);
  const operand *in[] = {f->x,  f->w1,        f->b1,        f->w2,
                         f->b2, f->scales[0], f->scales[1], f->scales[2]};
  for (int i = 0; i < 8; i++) f->c.in[i] = in[i] ? &in[i]->t : NULL;
  f->c.out[0] = &f->y->t;
  f->c.attrs[1] = lam_attr_s("silu");
}

TEST(emulated, an_ffn_of_fp8_is_near_its_own_in_double_precision) {
  rng r = {seed()};
  ffn f;
  begin();
  ffn_make(&r, &f, LAM_F8E4M3, LAM_BF16);
  CHECK_OK(run(&f.c, LAM_OP_ffn));
  far_fetch(&f.y->there, stream);
  const double s1 = scale_of(f.scales[0], f.scales[1]), s2 = value(f.scales[2], 0, 0);
  for (int i = 0; i < T * N; i++) {
    double want = value(f.b2, 0, i % N), size = fabs(want);
    for (int j = 0; j < F; j++) {
      double z = value(f.b1, 0, j);
      for (int k = 0; k < K; k++) z += value(f.x, i / N, k) * value(f.w1, j, k) * s1;
      const double term = act_of(LAM_ACT_SILU, z) * value(f.w2, i % N, j) * s2;
      want += term, size += fabs(term);
    }
    if (!CHECK(fabs(value(f.y, i / N, i % N) - want) <= size / 16 + 1e-3)) break;
  }
  end();
}

/* -- order -- */

TEST(emulated, a_call_neither_waits_nor_allocates_once_its_shape_is_known) {
  rng r = {seed()};
  ffn f;
  begin();
  ffn_make(&r, &f, LAM_BF16, LAM_BF16);
  CHECK_OK(run(&f.c, LAM_OP_ffn));
  CHECK_OK(CUDA->order->finish(stream));
  const standin_counts before = standin_count();
  for (int i = 0; i < 3; i++) CHECK_OK(run(&f.c, LAM_OP_ffn));
  CHECK_EQ(standin_count().syncs, before.syncs);
  CHECK_EQ(standin_count().allocs, before.allocs);
  end();
}

/* What a call costs beside its products and kernels: one question for the device; with scratch, two
 * for the stream and an event. */
static int64_t asked_beside_work(call *c, uint32_t op) {
  CHECK_OK(run(c, op)); /* what is chosen once, and scratch */
  const standin_counts was = standin_count();
  CHECK_OK(run(c, op));
  const standin_counts is = standin_count();
  return is.calls - was.calls - (is.matmuls - was.matmuls) - (is.launches - was.launches);
}

TEST(emulated, a_call_asks_cuda_for_no_more_than_its_device_its_stream_and_an_event) {
  rng r = {seed()};
  for (int i = 0; i < 8; i++) {
    begin();
    standin_seed(rng_next(&r));
    operand *x = make(&r, 32, 64, LAM_BF16), *w1 = make(&r, 48, 64, LAM_BF16),
            *b1 = make(&r, 0, 48, LAM_BF16), *w2 = make(&r, 40, 48, LAM_BF16),
            *h = make(NULL, 32, 48, LAM_BF16), *y = make(NULL, 32, 40, LAM_BF16);
    call linear = {.in = {&x->t, &w1->t, &b1->t}, .out = {&h->t}};
    call both = {.in = {&x->t, &w1->t, &b1->t, &w2->t}, .out = {&y->t}};
    linear.attrs[0] = both.attrs[1] = lam_attr_s("gelu_tanh");
    const int64_t asked = asked_beside_work(&linear, LAM_OP_linear);
    CHECK(asked == 1 || asked == 4); /* as the algorithm has a workspace or not */
    CHECK_EQ(asked_beside_work(&both, LAM_OP_ffn), 4);
    CHECK_OK(CUDA->order->finish(stream));
    end();
  }
}

TEST(emulated, weights_are_not_packed_and_the_caller_is_told_what_to_pass) {
  rng r = {seed()};
  begin();
  operand *w = make(&r, 16, 64, LAM_BF16), *packed = make(NULL, 16, 256, LAM_F8E4M3);
  packed->t.dtype = (DLDataType){kDLUInt, 8, 1};
  call c = {.in = {&w->t}, .out = {&packed->t}, .attrs = {lam_attr_i(0), lam_attr_i(256)}};
  CHECK_STATUS(run(&c, LAM_OP_pack_weight), LAM_UNIMPLEMENTED);
  CHECK_STR(lam_last_error(),
            "pack_weight: w: it lies on cuda, where plain weights are read as fast: "
            "pass w itself");
  end();
}

static void poison(operand *o) {
  const lam_matrix m = o->there.near.m;
  for (int64_t i = 0; i < m.rows * m.cols; i++) set(m, i / m.cols, i % m.cols, NAN);
  far_write(&o->there, stream);
}

TEST(emulated, a_captured_call_runs_again_with_the_same_result) {
  FOR_EACH(t, LAM_BF16, LAM_F8E4M3) {
    rng r = {seed()};
    ffn f;
    cudaGraph_t graph;
    cudaGraphExec_t again;
    lam_inferred inferred = LAM_INFERRED_INIT;
    begin();
    ffn_make(&r, &f, (lam_dtype)t, LAM_BF16);
    CHECK_OK(run(&f.c, LAM_OP_ffn)); /* choices are made, scratch is there */
    CHECK_OK(lam_infer(NULL, &f.c.call, &inferred));
    CHECK_EQ(inferred.capturable, 1);
    far_fetch(&f.y->there, stream);
    box want = box_copy(&f.y->there.near);

    CHECK_EQ(cudaStreamBeginCapture(stream, cudaStreamCaptureModeThreadLocal), cudaSuccess);
    CHECK_OK(run(&f.c, LAM_OP_ffn));
    CHECK_EQ(cudaStreamEndCapture(stream, &graph), cudaSuccess);
    CHECK_EQ(cudaGraphInstantiate(&again, graph, 0), cudaSuccess);
    poison(f.y);
    CHECK_EQ(cudaGraphLaunch(again, stream), cudaSuccess);
    far_fetch(&f.y->there, stream);
    check_same(f.y->there.near.m, want.m);
    CHECK_EQ(cudaGraphExecDestroy(again), cudaSuccess);
    CHECK_EQ(cudaGraphDestroy(graph), cudaSuccess);
    box_free(&want);
    end();
  }
}
