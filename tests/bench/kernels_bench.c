/* kernels_bench.c: the CPU device's products against oneDNN called directly, and its vector work in
 * GB/s.
 *
 *   kernels_bench [threads] [rounds]      default: what OpenMP takes, 9
 *
 * Both sides take turns in every round, so that a noisy machine disturbs them alike; figures are
 * medians. The peer runs on weights that it packed itself, made and bound once: its own best case.
 * Invariant: nothing here decides pass or fail. Leaves goals to the reader. */
#include <dnnl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "kernels/cpu/cpu.h"
#include "kernels/cpu/lanes.h"
#include "kernels/cpu/parallel.h"
#include "plugin/core/context.h"
#include "tests/bench/spread.h"

enum { ROUNDS_MAX = 101, REPEATS_BELOW_NS = 2000000 };

static int n_threads, n_rounds;

static void die(const char *what) {
  fprintf(stderr, "kernels_bench: %s: %s\n", what, lam_last_error());
  exit(1);
}

static void *must(void *p) {
  if (!p) die("out of memory");
  return p;
}

static double now(void) {
  struct timespec t;
  clock_gettime(CLOCK_MONOTONIC, &t);
  return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

/* -- workers, and matrices of random numbers -- */

/* In [-1, 1), from Knuth's 64-bit linear congruence: any numbers do, but zeros would make products
 * cheaper. */
static float random_float(void) {
  static uint64_t state = 1;
  state = state * 6364136223846793005u + 1442695040888963407u;
  return (float)(state >> 40) * 0x1p-23f - 1.0f;
}

static lam_matrix random_matrix(int64_t rows, int64_t cols, lam_dtype dtype) {
  const size_t bytes = (size_t)(rows * cols * lam_dtype_bytes(dtype));
  lam_matrix m = {
      must(aligned_alloc(64, (bytes + 63) / 64 * 64)), rows, cols, cols, 1, dtype, false};
  for (int64_t i = 0; i < rows * cols; i++) {
    const float x = random_float();
    uint32_t bits;
    memcpy(&bits, &x, sizeof bits);
    if (dtype == LAM_F32)
      ((float *)m.data)[i] = x;
    else
      ((uint16_t *)m.data)[i] = (uint16_t)(bits >> 16);
  }
  return m;
}

/* -- the peer -- */

typedef struct peer {
  dnnl_engine_t engine;
  dnnl_stream_t stream;
  dnnl_primitive_t primitive;
  dnnl_memory_t a, b, d;
  void *b_data;
} peer;

static void ok(dnnl_status_t status, const char *what) {
  if (status == dnnl_success) return;
  fprintf(stderr, "kernels_bench: oneDNN: %s gave %d\n", what, (int)status);
  exit(1);
}
#define OK(call) ok(call, #call)

static dnnl_data_type_t type_of(lam_dtype t) { return t == LAM_F32 ? dnnl_f32 : dnnl_bf16; }

static void pack_for_peer(peer *p, lam_matrix w, const dnnl_memory_desc_t *to) {
  dnnl_memory_desc_t from;
  dnnl_primitive_desc_t pd;
  dnnl_primitive_t reorder;
  dnnl_memory_t plain;
  OK(dnnl_memory_desc_init_by_strides(&from, 2, (dnnl_dims_t){w.cols, w.rows}, type_of(w.dtype),
                                      (dnnl_dims_t){1, w.cols}));
  OK(dnnl_memory_create(&plain, &from, p->engine, w.data));
  p->b_data = must(aligned_alloc(64, (dnnl_memory_desc_get_size(to) + 63) / 64 * 64));
  OK(dnnl_memory_create(&p->b, to, p->engine, p->b_data));
  OK(dnnl_reorder_primitive_desc_create(&pd, &from, p->engine, to, p->engine, NULL));
  OK(dnnl_primitive_create(&reorder, pd));
  const dnnl_exec_arg_t args[] = {{DNNL_ARG_FROM, plain}, {DNNL_ARG_TO, p->b}};
  OK(dnnl_primitive_execute(reorder, p->stream, 2, args));
  dnnl_primitive_destroy(reorder);
  dnnl_primitive_desc_destroy(pd);
  dnnl_memory_destroy(plain);
}

static peer make_peer(lam_matrix a, lam_matrix w, lam_matrix d) {
  peer p = {0};
  dnnl_memory_desc_t am, bm, dm;
  dnnl_matmul_desc_t matmul;
  dnnl_primitive_desc_t pd;
  OK(dnnl_engine_create(&p.engine, dnnl_cpu, 0));
  OK(dnnl_stream_create(&p.stream, p.engine, dnnl_stream_default_flags));
  OK(dnnl_memory_desc_init_by_tag(&am, 2, (dnnl_dims_t){a.rows, a.cols}, type_of(a.dtype),
                                  dnnl_ab));
  OK(dnnl_memory_desc_init_by_tag(&bm, 2, (dnnl_dims_t){w.cols, w.rows}, type_of(w.dtype),
                                  dnnl_format_tag_any));
  OK(dnnl_memory_desc_init_by_tag(&dm, 2, (dnnl_dims_t){d.rows, d.cols}, type_of(d.dtype),
                                  dnnl_ab));
  OK(dnnl_matmul_desc_init(&matmul, &am, &bm, NULL, &dm));
  OK(dnnl_primitive_desc_create(&pd, &matmul, NULL, p.engine, NULL));
  OK(dnnl_primitive_create(&p.primitive, pd));
  OK(dnnl_memory_create(&p.a, &am, p.engine, a.data));
  OK(dnnl_memory_create(&p.d, &dm, p.engine, d.data));
  pack_for_peer(&p, w, dnnl_primitive_desc_query_md(pd, dnnl_query_weights_md, 0));
  dnnl_primitive_desc_destroy(pd);
  return p;
}

static void free_peer(peer *p) {
  dnnl_primitive_destroy(p->primitive);
  dnnl_memory_destroy(p->a);
  dnnl_memory_destroy(p->b);
  dnnl_memory_destroy(p->d);
  dnnl_stream_destroy(p->stream);
  dnnl_engine_destroy(p->engine);
  free(p->b_data);
}

static void run_peer(void *arg) {
  peer *p = arg;
  const dnnl_exec_arg_t args[] = {
      {DNNL_ARG_SRC, p->a}, {DNNL_ARG_WEIGHTS, p->b}, {DNNL_ARG_DST, p->d}};
  OK(dnnl_primitive_execute(p->primitive, p->stream, 3, args));
}

/* -- ours -- */

static lam_workers workers;

typedef struct product {
  lam_gemm g;
  lam_status (*run)(const lam_workers *w, const lam_gemm *g);
} product;

static lam_status run_device(const lam_workers *w, const lam_gemm *g) {
  return lam_device_gemm(&lam_device_cpu, w, g, NULL);
}

static void run_product(void *arg) {
  const product *p = arg;
  if (p->run(&workers, &p->g) != LAM_OK) die("gemm");
}

static lam_matrix packed(lam_matrix w) {
  int64_t cols = 0;
  if (lam_device_packed_cols(&lam_device_cpu, w.dtype, w.rows, w.cols, 0, &cols) != LAM_OK)
    die("packed_cols");
  lam_matrix p = w;
  p.packed = true;
  p.data = must(aligned_alloc(64, (size_t)lam_round_up(w.rows * cols, 64)));
  if (lam_device_pack(&lam_device_cpu, &workers, w, 0, p.data, cols, NULL) != LAM_OK) die("pack");
  return p;
}

/* -- rounds -- */

typedef struct contestant {
  const char *name;
  void (*run)(void *arg);
  void *arg;
  double times[ROUNDS_MAX];
} contestant;

static void measure(contestant *c, int n) {
  int repeats = 1;
  for (int i = 0; i < n; i++) c[i].run(c[i].arg);
  const double start = now();
  c[0].run(c[0].arg);
  const double once = now() - start;
  if (once * 1e9 < REPEATS_BELOW_NS) repeats = (int)(REPEATS_BELOW_NS * 1e-9 / once) + 1;
  for (int round = 0; round < n_rounds; round++)
    for (int i = 0; i < n; i++) {
      const double t = now();
      for (int r = 0; r < repeats; r++) c[i].run(c[i].arg);
      c[i].times[round] = (now() - t) / repeats;
    }
}

static void compare_products(int64_t m, int64_t n, int64_t k, lam_dtype dtype) {
  const lam_matrix a = random_matrix(m, k, dtype), w = random_matrix(n, k, dtype),
                   d = random_matrix(m, n, dtype);
  lam_matrix w_packed = packed(w), w_cols = random_matrix(k, n, dtype);
  peer p = make_peer(a, w, d);
  product with_packed = {{.a = a, .b = w_packed, .d = d}, run_device};
  product with_plain = {{.a = a, .b = w, .d = d}, run_device};
  product with_cols = {{.a = a, .b = lam_matrix_transposed(w_cols), .d = d}, run_device};
  product in_c = {{.a = a, .b = w, .d = d}, lam_gemm_plain_run};
  contestant c[] = {{.name = "onednn", .run = run_peer, .arg = &p},
                    {.name = "packed", .run = run_product, .arg = &with_packed},
                    {.name = "plain", .run = run_product, .arg = &with_plain},
                    {.name = "plain_cols", .run = run_product, .arg = &with_cols},
                    {.name = "plain_c", .run = run_product, .arg = &in_c}};
  const int count = m > LAM_FEW_ROWS ? 5 : 4;
  measure(c, count);
  for (int i = 0; i < count; i++) {
    printf("gemm_%s_%lldx%lldx%lld/%s %.2f us", lam_dtype_name(dtype), (long long)m, (long long)n,
           (long long)k, c[i].name, median_of(c[i].times, n_rounds) * 1e6);
    end_line(c[i].times, n_rounds);
  }
  free_peer(&p);
  free(a.data), free(w.data), free(d.data), free(w_packed.data), free(w_cols.data);
}

/* -- vector work -- */

typedef struct vector_call {
  lam_act act;
  bool gated, backward;
  lam_matrix z, y, dy, dz, parts[2];
} vector_call;

static void run_act(void *arg) {
  const vector_call *v = arg;
  if (lam_device_act(&lam_device_cpu, &workers, v->act, v->gated, v->z, v->y, NULL) != LAM_OK)
    die("act");
}

static void run_act_bwd(void *arg) {
  const vector_call *v = arg;
  if (lam_device_act_bwd(&lam_device_cpu, &workers, v->act, v->gated, v->dy, v->z, v->dz, NULL) !=
      LAM_OK)
    die("act_bwd");
}

static void run_sum(void *arg) {
  const vector_call *v = arg;
  const lam_matrix none = {0};
  if (lam_device_sum(&lam_device_cpu, &workers, v->parts, 2, none, none, v->y, NULL) != LAM_OK)
    die("sum");
}

static void run_column_sum(void *arg) {
  const vector_call *v = arg;
  lam_matrix db = lam_matrix_rows(v->parts[0], 0, 1);
  if (lam_device_column_sum(&lam_device_cpu, &workers, v->dy, db, false, NULL) != LAM_OK)
    die("column_sum");
}

static void run_memcpy(void *arg) {
  const vector_call *v = arg;
  if (lam_device_copy(&lam_device_cpu, &workers, v->dy, v->y, NULL) != LAM_OK) die("copy");
}

static void compare_vectors(int64_t rows, int64_t cols, lam_dtype dtype) {
  static const char *const names[] = {"none", "gelu", "gelu_tanh", "silu", "relu", "relu2"};
  const double element = lam_dtype_bytes(dtype), n = (double)(rows * cols);
  vector_call v = {
      .gated = false,
      .z = random_matrix(rows, cols, dtype),
      .y = random_matrix(rows, cols, dtype),
      .dy = random_matrix(rows, cols, dtype),
      .dz = random_matrix(rows, cols, dtype),
      .parts = {random_matrix(rows, cols, LAM_F32), random_matrix(rows, cols, LAM_F32)}};
  contestant c[] = {{.name = "copy", .run = run_memcpy, .arg = &v},
                    {.name = "act", .run = run_act, .arg = &v},
                    {.name = "act_bwd", .run = run_act_bwd, .arg = &v},
                    {.name = "sum_of_two_f32", .run = run_sum, .arg = &v},
                    {.name = "column_sum", .run = run_column_sum, .arg = &v}};
  const double bytes[] = {2 * element, 2 * element, 3 * element, 8 + element, element};
  for (int act = LAM_ACT_GELU; act < LAM_N_ACTS; act++) {
    const int count = act == LAM_ACT_GELU ? 5 : 3;
    v.act = (lam_act)act;
    measure(c, count);
    for (int i = 0; i < count; i++) {
      printf("%s_%s_%s %.1f GB/s", c[i].name, names[act], lam_dtype_name(dtype),
             1e-9 * n * bytes[i] / median_of(c[i].times, n_rounds));
      end_line(c[i].times, n_rounds);
    }
  }
  free(v.z.data), free(v.y.data), free(v.dy.data), free(v.dz.data), free(v.parts[0].data),
      free(v.parts[1].data);
}

/* -- vocabulary -- */

typedef struct vocab_call {
  lam_matrix w, x, ids, logits, dlogits, loss, lse;
  lam_softmax_part *parts;
  int64_t *links;
} vocab_call;

static void run_gather(void *arg) {
  const vocab_call *v = arg;
  if (lam_device_gather(&lam_device_cpu, &workers, v->w, v->ids, 0, v->x, NULL) != LAM_OK)
    die("gather");
}

static void run_scatter(void *arg) {
  const vocab_call *v = arg;
  if (lam_device_scatter(&lam_device_cpu, &workers, v->x, v->ids, 0, v->links, v->w, true, NULL) !=
      LAM_OK)
    die("scatter");
}

static void run_cross_entropy(void *arg) {
  const vocab_call *v = arg;
  if (lam_device_softmax_parts(&lam_device_cpu, &workers, v->logits, v->ids, 0, v->parts, NULL) !=
          LAM_OK ||
      lam_device_cross_entropy(&lam_device_cpu, &workers, v->parts, 1, v->ids, -100, v->loss,
                               v->lse, NULL) != LAM_OK)
    die("cross_entropy");
}

static void run_cross_entropy_bwd(void *arg) {
  const vocab_call *v = arg;
  if (lam_device_cross_entropy_bwd(&lam_device_cpu, &workers, v->loss, v->logits, v->ids, v->lse, 0,
                                   -100, v->dlogits, NULL) != LAM_OK)
    die("cross_entropy_bwd");
}

/* T tokens of K features, vocabulary of V: the bytes of the rows that are read and written. */
static void compare_vocabulary(int64_t T, int64_t K, int64_t V, lam_dtype dtype) {
  const double element = lam_dtype_bytes(dtype), row = element * (double)(T * K),
               scores = element * (double)(T * V);
  vocab_call v = {.w = random_matrix(V, K, dtype),
                  .x = random_matrix(T, K, dtype),
                  .ids = random_matrix(1, T, LAM_F32),
                  .logits = random_matrix(T, V, dtype),
                  .dlogits = random_matrix(T, V, dtype),
                  .loss = random_matrix(1, T, LAM_F32),
                  .lse = random_matrix(1, T, LAM_F32),
                  .parts = must(calloc((size_t)T, sizeof *v.parts)),
                  .links = must(calloc((size_t)(V + T), sizeof *v.links))};
  v.ids.dtype = LAM_I32;
  for (int64_t t = 0; t < T; t++) ((int32_t *)v.ids.data)[t] = (int32_t)(t * 7919 % V);
  contestant c[] = {{.name = "gather", .run = run_gather, .arg = &v},
                    {.name = "scatter", .run = run_scatter, .arg = &v},
                    {.name = "cross_entropy", .run = run_cross_entropy, .arg = &v},
                    {.name = "cross_entropy_bwd", .run = run_cross_entropy_bwd, .arg = &v}};
  const double bytes[] = {2 * row, 3 * row, scores, 2 * scores};
  measure(c, 4);
  for (int i = 0; i < 4; i++) {
    printf("%s_%s %.1f GB/s", c[i].name, lam_dtype_name(dtype),
           1e-9 * bytes[i] / median_of(c[i].times, n_rounds));
    end_line(c[i].times, n_rounds);
  }
  free(v.w.data), free(v.x.data), free(v.ids.data), free(v.logits.data), free(v.dlogits.data);
  free(v.loss.data), free(v.lse.data), free(v.parts), free(v.links);
}

int main(int argc, char **argv) {
  n_threads = argc > 1 ? atoi(argv[1]) : lam_cpu_host_threads();
  n_rounds = argc > 2 ? atoi(argv[2]) : 9;
  if (n_threads < 1 || n_rounds < 1 || n_rounds > ROUNDS_MAX)
    return fprintf(stderr, "kernels_bench [threads] [rounds]\n"), 1;
  lam_cpu_set_team(n_threads);
  lam_context_desc desc = LAM_CONTEXT_DESC_INIT;
  lam_context *context = NULL;
  desc.threads = n_threads;
  if (lam_context_create(&desc, &context)) return fprintf(stderr, "%s\n", lam_last_error()), 1;
  workers = *lam_context_workers(context);
  printf("# %s, %d threads, medians of %d rounds\n", lam_device_cpu.describe(), n_threads,
         n_rounds);
  static const lam_dtype dtypes[] = {LAM_BF16, LAM_F32};
  static const int64_t rows[] = {512, 64, 8, 1};
  for (int t = 0; t < 2; t++)
    for (int i = 0; i < 4; i++) {
      compare_products(rows[i], 11008, 4096, dtypes[t]);
      compare_products(rows[i], 4096, 11008, dtypes[t]);
    }
  for (int t = 0; t < 2; t++) compare_vectors(512, 11008, dtypes[t]);
  for (int t = 0; t < 2; t++) compare_vocabulary(512, 4096, 49152, dtypes[t]);
  return 0;
}
