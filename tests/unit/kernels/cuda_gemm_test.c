/* cuda_gemm_test.c: the CUDA device's products, on the stand-in, against double precision: any
 * strides, sizes, dtypes and alignments, with all that may follow. Emulated: nothing of this ran on a
 * GPU.
 *
 * Leaves which algorithm runs to cuda_algos_test.c, scratch to cuda_order_test.c. */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "tests/unit/kernels/far.h"

/* One product and everything it touches, here and on the device. */
typedef struct kind {
  int64_t m, n, k;
  lam_dtype dtype, b_dtype, d_dtype, bias_dtype, sum_dtype;
  form a, b, d;
  lam_act act;
  uint64_t shift; /* bytes by which all operands are off their alignment */
  int scales;     /* 1: a's, 2: b's */
  bool bias, aux, accumulate, z, column_sum, a_sum, tf32;
} kind;

enum { A, B, BIAS, D, AUX, Z, COLUMN_SUM, A_SUM, A_SCALE, B_SCALE, N_OPERANDS };

typedef struct problem {
  kind q;
  box boxes[N_OPERANDS];
  far fars[N_OPERANDS];
  double *want, *z, *column_sum, *a_sum;
} problem;

static double *numbers(int64_t n) {
  double *p = calloc((size_t)n + 1, sizeof *p);
  if (!p) abort();
  return p;
}

static void make_boxes(rng *r, problem *p) {
  const kind *q = &p->q;
  box *b = p->boxes;
  b[A] = box_random(r, q->m, q->k, q->dtype, q->a);
  b[B] = box_random(r, q->n, q->k, q->b_dtype, q->b);
  b[D] = box_random(r, q->m, q->n, q->d_dtype, q->d);
  if (q->bias) b[BIAS] = box_random(r, 1, q->n, q->bias_dtype, BY_ROWS);
  if (q->aux) b[AUX] = box_random(r, q->m, q->n, q->d_dtype, q->d);
  if (q->z) b[Z] = box_random(r, q->m, q->n, q->d_dtype, q->d);
  if (q->column_sum) b[COLUMN_SUM] = box_random(r, 1, q->n, q->sum_dtype, BY_ROWS);
  if (q->a_sum) b[A_SUM] = box_random(r, 1, q->m, q->sum_dtype, BY_ROWS);
  if (q->scales & 1) b[A_SCALE] = box_random(r, 1, 1, LAM_F32, BY_ROWS);
  if (q->scales & 2) b[B_SCALE] = box_random(r, 1, 1, LAM_F32, BY_ROWS);
}

static lam_gemm_more more_of(const problem *p, bool near) {
#define AT(i) (near ? p->boxes[i].m : p->fars[i].m)
  return (lam_gemm_more){.a_scale = AT(A_SCALE),
                         .b_scale = AT(B_SCALE),
                         .z = AT(Z),
                         .z_act = p->q.act,
                         .column_sum = AT(COLUMN_SUM),
                         .a_sum = AT(A_SUM),
                         .tf32 = p->q.tf32};
}

static lam_gemm gemm_of(const problem *p, bool near, const lam_gemm_more *more) {
  return (lam_gemm){.a = AT(A),
                    .b = AT(B),
                    .bias = AT(BIAS),
                    .d = AT(D),
                    .aux = AT(AUX),
                    .act = p->q.z ? LAM_ACT_NONE : p->q.act,
                    .accumulate = p->q.accumulate,
                    .more = more};
#undef AT
}

static double scale_of(const problem *p) {
  const double a = p->q.scales & 1 ? get(p->boxes[A_SCALE].m, 0, 0) : 1;
  return a * (p->q.scales & 2 ? get(p->boxes[B_SCALE].m, 0, 0) : 1);
}

/* want, z and the sums, from what the boxes hold now. */
static void compute(problem *p) {
  const kind *q = &p->q;
  const lam_gemm bare = {.a = p->boxes[A].m, .b = p->boxes[B].m, .d = p->boxes[D].m};
  product_of(&bare, NULL, p->z, NULL);
  for (int64_t i = 0; i < q->m * q->n; i++) {
    const int64_t row = i / q->n, col = i % q->n;
    p->z[i] = p->z[i] * scale_of(p) + (q->bias ? get(p->boxes[BIAS].m, 0, col) : 0);
    const double before = q->accumulate ? get(p->boxes[D].m, row, col) : 0;
    p->want[i] = q->z ? p->z[i] * act_grad_of(q->act, get(p->boxes[Z].m, row, col))
                      : act_of(q->act, p->z[i]) + before;
    p->column_sum[col] += p->want[i];
  }
  for (int64_t i = 0; i < q->m; i++)
    for (int64_t k = 0; k < q->k; k++) p->a_sum[i] += get(p->boxes[A].m, i, k);
}

static problem make_problem(rng *r, kind q, void *stream) {
  problem p = {.q = q};
  make_boxes(r, &p);
  p.want = numbers(q.m * q.n), p.z = numbers(q.m * q.n);
  p.column_sum = numbers(q.n), p.a_sum = numbers(q.m);
  compute(&p);
  for (int i = 0; i < N_OPERANDS; i++)
    p.fars[i] = far_of(p.boxes[i], i < A_SCALE ? q.shift : 0, stream);
  return p;
}

static void free_problem(problem *p) {
  for (int i = 0; i < N_OPERANDS; i++) far_free(&p->fars[i]), box_free(&p->boxes[i]);
  free(p->want), free(p->z), free(p->column_sum), free(p->a_sum);
}

static double largest(const double *p, int64_t n) {
  double most = 1;
  for (int64_t i = 0; i < n; i++) most = fmax(most, fabs(p[i]));
  return most;
}

/* How often d is rounded: f32 with every step; else once, and again in a pass of act, or z's. */
static int roundings(const kind *q) {
  return q->d_dtype == LAM_F32 ? 3 : q->act != LAM_ACT_NONE ? 2 : 1;
}

static void check_sums(problem *p, double atol) {
  const kind *q = &p->q;
  const double u = rounding_of(q->sum_dtype);
  if (q->column_sum) {
    check_matrix(p->boxes[COLUMN_SUM].m, p->column_sum, 2 * u, atol * sqrt((double)q->m) + 2 * u);
    check_around(&p->boxes[COLUMN_SUM], "column_sum");
  }
  if (q->a_sum) {
    check_matrix(p->boxes[A_SUM].m, p->a_sum, 2 * u, 1e-5 * sqrt((double)q->k) + u);
    check_around(&p->boxes[A_SUM], "a_sum");
  }
}

static void check_problem(problem *p) {
  static const int written[] = {D, AUX, COLUMN_SUM, A_SUM};
  const kind *q = &p->q;
  for (int i = 0; i < 4; i++) far_fetch(&p->fars[written[i]], NULL);
  lam_gemm g = gemm_of(p, true, NULL);
  const double one = largest(p->z, q->m * q->n), u = rounding_of(q->d_dtype);
  const double rtol = 1.01 * u * roundings(q), before_act = u * one * (roundings(q) - 1);
  const double tf32 = q->tf32 ? 0x1p-10 * sqrt((double)q->k + 1) : 0;
  const double atol = product_tolerance(&g) + tf32 + (q->d_dtype == LAM_F16 ? 0x1p-25 : 0);
  const double steep = q->act == LAM_ACT_NONE ? 1 : q->act == LAM_ACT_RELU2 ? 2 * one : 1.2;
  check_matrix(p->boxes[D].m, p->want, rtol, steep * (atol + before_act));
  check_around(&p->boxes[D], "d");
  if (q->aux) check_matrix(p->boxes[AUX].m, p->z, q->d_dtype == LAM_F32 ? rtol : 1.01 * u, atol);
  if (q->aux) check_around(&p->boxes[AUX], "aux");
  check_sums(p, atol + 5 * u * one);
}

static void note(const kind *q) {
  NOTE(
      "%s x %s m=%lld n=%lld k=%lld -> %s, forms %d %d %d, act %d bias %d (%s) aux %d accumulate "
      "%d "
      "z %d sums %d %d (%s) scales %d tf32 %d shift %llu",
      lam_dtype_name(q->dtype), lam_dtype_name(q->b_dtype), (long long)q->m, (long long)q->n,
      (long long)q->k, lam_dtype_name(q->d_dtype), q->a, q->b, q->d, q->act, q->bias,
      lam_dtype_name(q->bias_dtype), q->aux, q->accumulate, q->z, q->column_sum, q->a_sum,
      lam_dtype_name(q->sum_dtype), q->scales, q->tf32, (unsigned long long)q->shift);
}

static lam_status run(const problem *p, void *stream) {
  const lam_gemm_more more = more_of(p, false);
  const lam_gemm g = gemm_of(p, false, &more);
  return lam_device_gemm(CUDA, workers(ALONE), &g, stream);
}

/* Nothing is known from the tests before. */
__attribute__((constructor)) static void keep_no_algorithms(void) {
  setenv("LAMELLA_ALGORITHMS", "/dev/null/nowhere", 1);
}

/* Twice: algorithms are timed in the first call. */
static void run_kind(rng *r, kind q) {
  standin_seed(rng_next(r));
  void *stream = stream_new();
  note(&q);
  problem p = make_problem(r, q, stream);
  box before = box_copy(&p.boxes[D]);
  for (int time = 0; time < 2; time++) {
    memcpy(p.boxes[D].memory, before.memory, before.bytes);
    far_write(&p.fars[D], stream);
    if (CHECK_OK(run(&p, stream)) && CHECK_OK(CUDA->order->finish(stream))) check_problem(&p);
  }
  box_free(&before);
  free_problem(&p);
  stream_drop(stream);
}

/* One of a sweep. */
static void try_kind(rng *r, kind q) {
  if (!is_spared(r)) run_kind(r, q);
}

static const struct {
  lam_dtype in, out, bias;
} dtypes[] = {{LAM_F32, LAM_F32, LAM_F32},  {LAM_BF16, LAM_BF16, LAM_BF16},
              {LAM_BF16, LAM_F32, LAM_F32}, {LAM_BF16, LAM_BF16, LAM_F32},
              {LAM_F16, LAM_F16, LAM_F16},  {LAM_F16, LAM_F32, LAM_F16}};
enum { N_DTYPES = sizeof dtypes / sizeof *dtypes };

static kind kind_of(int64_t m, int64_t n, int64_t k, int t) {
  return (kind){.m = m,
                .n = n,
                .k = k,
                .dtype = dtypes[t].in,
                .b_dtype = dtypes[t].in,
                .d_dtype = dtypes[t].out,
                .bias_dtype = dtypes[t].bias,
                .sum_dtype = dtypes[t].out};
}

TEST(cuda_gemm, sizes_that_fit_no_block) {
  static const int64_t sizes[][3] = {{1, 1, 1},    {1, 3, 17},   {2, 40, 256}, {3, 17, 33},
                                     {4, 70, 520}, {8, 65, 129}, {17, 1, 129}, {33, 129, 3},
                                     {64, 64, 64}, {65, 65, 257}};
  rng r = {seed()};
  for (size_t s = 0; s < sizeof sizes / sizeof *sizes; s++)
    for (int t = 0; t < N_DTYPES; t++) {
      kind q = kind_of(sizes[s][0], sizes[s][1], sizes[s][2], t);
      q.bias = s % 2 == 0;
      try_kind(&r, q);
    }
}

TEST(cuda_gemm, every_stride_of_every_operand) {
  rng r = {seed()};
  for (int forms = 0; forms < N_FORMS * N_FORMS * N_FORMS; forms++) {
    kind q = kind_of(34, 40, 48, forms % N_DTYPES);
    q.a = forms % N_FORMS, q.b = forms / N_FORMS % N_FORMS, q.d = forms / N_FORMS / N_FORMS;
    try_kind(&r, q);
  }
}

TEST(cuda_gemm, every_activation_with_and_without_aux) {
  rng r = {seed()};
  FOR_EACH(m, 2, 32)
  for (int act = 0; act < LAM_N_ACTS; act++)
    for (int t = 0; t < N_DTYPES; t++) FOR_EACH(aux, 0, 1) {
        kind q = kind_of(m, 40, 48, t);
        q.bias = act % 2, q.act = (lam_act)act, q.aux = aux;
        q.d = aux && t % 2 ? ROWS_WITH_GAPS : BY_ROWS;
        try_kind(&r, q);
      }
}

/* Neither is an epilogue's there, though each alone would be. */
TEST(cuda_gemm, a_bias_of_another_dtype_and_the_sum_of_a_come_beside_any_form_of_d) {
  rng r = {seed()};
  for (int d = 0; d < N_FORMS; d++) {
    kind q = kind_of(40, 48, 64, 3);
    q.bias = q.a_sum = true, q.a = q.b = BY_COLS, q.d = (form)d;
    run_kind(&r, q);
  }
}

/* No epilogue takes it, and there are more rows than go at once. */
TEST(cuda_gemm, an_f32_bias_under_many_bf16_rows_is_rounded_once_with_its_product) {
  rng r = {seed()};
  kind q = kind_of(130, 65544, 3, 3);
  q.bias = true;
  void *stream = stream_new();
  problem p = make_problem(&r, q, stream);
  if (CHECK_OK(run(&p, stream)) && CHECK_OK(CUDA->order->finish(stream))) check_problem(&p);
  free_problem(&p);
  stream_drop(stream);
}

TEST(cuda_gemm, accumulates_into_what_was_there) {
  rng r = {seed()};
  FOR_EACH(m, 3, 64)
  for (int t = 0; t < N_DTYPES; t++)
    for (int d = 0; d < N_FORMS; d++) {
      kind q = kind_of(m, 72, 80, t);
      q.a = BY_COLS, q.b = BY_COLS, q.d = (form)d, q.accumulate = true;
      try_kind(&r, q);
    }
}

TEST(cuda_gemm, no_k_gives_the_bias_and_no_rows_or_columns_give_nothing) {
  rng r = {seed()};
  for (int t = 0; t < N_DTYPES; t++) {
    kind q = kind_of(19, 21, 0, t);
    q.bias = true;
    run_kind(&r, q);
    q.bias = false, q.accumulate = true;
    run_kind(&r, q);
    run_kind(&r, kind_of(0, 7, 5, t));
    run_kind(&r, kind_of(7, 0, 5, t));
  }
}

TEST(cuda_gemm, backward_through_an_activation_with_the_bias_gradient) {
  rng r = {seed()};
  for (int act = 1; act < LAM_N_ACTS; act++)
    for (int t = 0; t < N_DTYPES; t++) FOR_EACH(form_of_d, BY_ROWS, ROWS_WITH_GAPS, BY_COLS) {
        kind q = kind_of(40, 48, 64, t);
        q.act = (lam_act)act, q.z = true, q.column_sum = (act + t) % 3 > 0, q.d = (form)form_of_d;
        q.b = BY_COLS;
        if (act % 2) q.sum_dtype = LAM_F32;
        try_kind(&r, q);
      }
}

TEST(cuda_gemm, a_weight_gradient_with_the_bias_gradient) {
  rng r = {seed()};
  for (int t = 0; t < N_DTYPES; t++)
    FOR_EACH(accumulate, 0, 1) FOR_EACH(d, BY_ROWS, BY_COLS) FOR_EACH(m, 3, 48) {
      kind q = kind_of(m, 64, 80, t);
      q.a = q.b = BY_COLS, q.d = (form)d, q.accumulate = accumulate, q.a_sum = true;
      try_kind(&r, q);
      q.sum_dtype = LAM_F32;
      try_kind(&r, q);
    }
}

TEST(cuda_gemm, views_off_their_alignment) {
  rng r = {seed()};
  FOR_EACH(shift, 4, 8, 16, 32)
  for (int t = 0; t < N_DTYPES; t++) {
    kind q = kind_of(24, 40, 48, t);
    q.shift = (uint64_t)shift, q.bias = true, q.act = LAM_ACT_GELU_TANH, q.aux = shift != 8;
    try_kind(&r, q);
    q.m = 2;
    try_kind(&r, q);
  }
}

TEST(cuda_gemm, fp8_with_scales_in_every_form) {
  static const lam_dtype outs[] = {LAM_BF16, LAM_F16, LAM_F32};
  rng r = {seed()};
  for (int i = 0; i < 60; i++) {
    kind q = kind_of(i % 3 ? 32 : 3, 48, i % 4 ? 64 : 50, 0);
    q.dtype = i % 5 == 4 ? LAM_F8E5M2 : LAM_F8E4M3,
    q.b_dtype = i % 7 == 6 ? LAM_F8E5M2 : LAM_F8E4M3;
    q.d_dtype = outs[i % 3], q.bias_dtype = i % 2 ? LAM_BF16 : q.d_dtype, q.bias = i % 2;
    q.scales = i / 2 % 4, q.a = rng_int(&r, 0, N_FORMS - 1), q.b = rng_int(&r, 0, N_FORMS - 1);
    q.act = i % 4 == 1 ? LAM_ACT_GELU_TANH : LAM_ACT_NONE;
    try_kind(&r, q);
  }
}

TEST(cuda_gemm, fp8_that_lies_the_other_way_is_turned_for_cublaslt) {
  rng r = {seed()};
  kind q = kind_of(32, 48, 64, 0);
  q.dtype = q.b_dtype = LAM_F8E4M3, q.d_dtype = LAM_BF16, q.a = q.b = BY_COLS;
  const int64_t before = standin_count().matmuls;
  run_kind(&r, q);
  CHECK(standin_count().matmuls >= before + 2);
}

TEST(cuda_gemm, tf32_by_choice) {
  rng r = {seed()};
  kind q = kind_of(32, 48, 64, 0);
  q.tf32 = true;
  run_kind(&r, q);
  q.m = 1;
  run_kind(&r, q);
}

TEST(cuda_gemm, whatever_else_chance_thinks_of) {
  rng r = {seed()};
  for (int i = 0; i < 100; i++) {
    kind q = kind_of(rng_int(&r, 1, 80), rng_int(&r, 1, 100), rng_int(&r, 1, 120),
                     (int)rng_int(&r, 0, N_DTYPES - 1));
    const int what = (int)rng_int(&r, 0, 3);
    q.a = rng_int(&r, 0, 3), q.b = rng_int(&r, 0, 3), q.d = rng_int(&r, 0, 3);
    q.bias = what < 2 && rng_int(&r, 0, 1);
    q.act = what == 1 || what == 3 ? rng_int(&r, 1, 5) : LAM_ACT_NONE;
    q.aux = what == 1 && rng_int(&r, 0, 1);
    q.accumulate = what == 2;
    q.z = what == 3, q.column_sum = what == 3 && rng_int(&r, 0, 1),
    q.a_sum = rng_int(&r, 0, 2) == 0;
    q.shift = rng_int(&r, 0, 1) ? 0 : (uint64_t)(4 << rng_int(&r, 0, 3));
    try_kind(&r, q);
  }
}

/* -- what goes wrong -- */

static void check_fails_once(standin_fault what, int64_t nth, lam_status code) {
  rng r = {seed()};
  void *stream = stream_new();
  kind q = kind_of(34, 40, 48, 1);
  q.act = LAM_ACT_SILU; /* a product and a pass */
  problem p = make_problem(&r, q, stream);
  CHECK_OK(run(&p, stream));
  standin_fail_nth(what, nth);
  CHECK_STATUS(run(&p, stream), code);
  CHECK_CONTAINS(lam_last_error(), "cuda");
  CHECK(strchr(lam_last_error(), '\n') == NULL);
  standin_fail_nth(what, 0);
  CHECK_OK(run(&p, stream));
  CHECK_OK(CUDA->order->finish(stream));
  check_problem(&p);
  free_problem(&p);
  stream_drop(stream);
}

TEST(cuda_gemm, a_product_that_fails_is_one_line_and_the_next_one_runs) {
  check_fails_once(STANDIN_MATMUL, 1, LAM_INTERNAL);
}

TEST(cuda_gemm, a_kernel_that_is_not_launched_is_one_line_and_the_next_call_runs) {
  check_fails_once(STANDIN_LAUNCH, 1, LAM_RESOURCE_EXHAUSTED);
}

TEST(cuda_gemm, a_call_whose_kind_is_known_allocates_and_waits_for_nothing) {
  rng r = {seed()};
  void *stream = stream_new();
  problem p = make_problem(&r, kind_of(34, 40, 48, 1), stream);
  CHECK_OK(run(&p, stream));
  const standin_counts before = standin_count();
  for (int i = 0; i < 10; i++) CHECK_OK(run(&p, stream));
  const standin_counts after = standin_count();
  CHECK_EQ(after.allocs, before.allocs);
  CHECK_EQ(after.syncs, before.syncs);
  CHECK_EQ(after.heuristics, before.heuristics);
  CHECK_EQ(after.matmuls, before.matmuls + 10);
  CHECK_OK(CUDA->order->finish(stream));
  free_problem(&p);
  stream_drop(stream);
}

/* No memory for timing is no failure: the first algorithm that is named is taken. */
TEST(cuda_gemm, without_memory_for_timing_a_product_still_runs) {
  rng r = {seed()};
  void *stream = stream_new();
  kind q = kind_of(50, 56, 72, 2);
  q.accumulate = true;
  problem p = make_problem(&r, q, stream);
  standin_fail_nth(STANDIN_ALLOC, 1);
  CHECK_OK(run(&p, stream));
  standin_fail_nth(STANDIN_ALLOC, 0);
  CHECK_OK(CUDA->order->finish(stream));
  check_problem(&p);
  free_problem(&p);
  stream_drop(stream);
}

TEST(cuda_gemm, packed_weights_are_refused_by_the_devices_name) {
  int64_t cols = 0;
  CHECK_STATUS(lam_device_packed_cols(CUDA, LAM_BF16, 8, 8, 0, &cols), LAM_UNIMPLEMENTED);
  CHECK_CONTAINS(lam_last_error(), "cuda has no");
}
