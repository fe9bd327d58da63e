/* ops_bench.c: the ffn at tp=2, two processes of one thread each, against oneDNN's own time for
 * its two gemms on packed weights with both cores.
 *
 *   ops_bench [rounds] [filter] [chunks]     default: 7 rounds, all cases, chunks chosen by size
 *
 * Peer and ours take turns in every round, so that a noisy machine disturbs them alike. Prints
 * `name median us spread`; a peer's line is followed by those that compare with it.
 * Invariant: who is not measured sleeps. Leaves goals to who reads the lines. */
#include <dnnl.h>
#include <sched.h>
#include <semaphore.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "abi/lamella.h"
#include "tests/bench/spread.h"

enum { H = 4096, F = 11008, MOST_ROUNDS = 101, P = 2 };
enum { PEER, PACKED, PLAIN, UNCHUNKED, N_WAYS }; /* unchunked: packed, its sum after all of it */
static const char *const ways[N_WAYS] = {"onednn", "packed", "plain", "unchunked"};
static const int64_t sizes[] = {512, 64, 8, 1};
enum { N_SIZES = sizeof sizes / sizeof *sizes };

typedef struct task { /* shared by all processes; filled by the parent before it posts */
  sem_t go[P], done;
  int m, way, calls, bf16;
  double us[P];
} task;

static void die(const char *what) {
  fprintf(stderr, "ops_bench: %s: %s\n", what, lam_last_error());
  exit(1);
}

static void must(lam_status s, const char *what) {
  if (s != LAM_OK) die(what);
}

static double now_us(void) {
  struct timespec t;
  clock_gettime(CLOCK_MONOTONIC, &t);
  return (double)t.tv_sec * 1e6 + (double)t.tv_nsec * 1e-3;
}

/* In [-1/64, 1/64): any numbers do, but zeros would make products cheaper. */
static void *random_data(int64_t n, int bf16) {
  static uint64_t state = 1;
  unsigned char *data = aligned_alloc(64, (size_t)(n * (bf16 ? 2 : 4) + 63) / 64 * 64);
  if (!data) die("out of memory");
  for (int64_t i = 0; i < n; i++) {
    state = state * 6364136223846793005u + 1442695040888963407u;
    const float x = (float)(state >> 40) * 0x1p-29f - 0x1p-6f;
    uint32_t bits;
    memcpy(&bits, &x, 4);
    const uint16_t half = (uint16_t)(bits >> 16);
    memcpy(data + i * (bf16 ? 2 : 4), bf16 ? (void *)&half : (void *)&bits, bf16 ? 2 : 4);
  }
  return data;
}

/* -- ours: one rank -- */

typedef struct tensor {
  DLTensor dl;
  int64_t shape[2];
} tensor;

static void tensor_init(tensor *t, void *data, int64_t rows, int64_t cols, DLDataType type) {
  *t = (tensor){{data, {kDLCPU, 0}, 2, type, t->shape, NULL, 0}, {rows, cols}};
}

typedef struct rank {
  lam_context *ctx;
  lam_group *g;
  DLDataType type;
  tensor w1, w2, packed1, packed2;
  void *x, *y;
  int64_t chunks;
} rank;

static void pack(rank *r, tensor *w, tensor *packed) {
  int64_t cols;
  must(lam_packed_size(r->ctx, r->type, w->shape[0], w->shape[1], 0, &cols), "packed_size");
  void *data = aligned_alloc(64, (size_t)(w->shape[0] * cols + 63) / 64 * 64);
  tensor_init(packed, data, w->shape[0], cols, (DLDataType){kDLUInt, 8, 1});
  const DLTensor *in = &w->dl;
  DLTensor *out = &packed->dl;
  const lam_attr attrs[] = {lam_attr_i(0), lam_attr_i(cols)};
  lam_call call = LAM_CALL_INIT;
  call.op = LAM_OP_pack_weight;
  call.inputs = &in, call.outputs = &out, call.attrs = attrs;
  call.n_inputs = call.n_outputs = 1, call.n_attrs = 2;
  must(lam_run(r->ctx, &call), "pack_weight");
}

static void rank_init(rank *r, int me, const lam_group_id *id, int bf16) {
  lam_context_desc desc = LAM_CONTEXT_DESC_INIT;
  lam_group_desc group = LAM_GROUP_DESC_INIT;
  desc.threads = 1;
  must(lam_context_create(&desc, &r->ctx), "context");
  group.rank = me, group.size = P, group.id = *id;
  must(lam_group_create(r->ctx, &group, &r->g), "group");
  r->type = (DLDataType){bf16 ? kDLBfloat : kDLFloat, bf16 ? 16 : 32, 1};
  tensor_init(&r->w1, random_data((int64_t)F / P * H, bf16), F / P, H, r->type);
  tensor_init(&r->w2, random_data((int64_t)H * F / P, bf16), H, F / P, r->type);
  pack(r, &r->w1, &r->packed1);
  pack(r, &r->w2, &r->packed2);
  r->x = random_data(sizes[0] * H, bf16);
  r->y = random_data(sizes[0] * H, bf16);
}

static void run_ffn(rank *r, const task *t) {
  tensor x, y;
  tensor_init(&x, r->x, t->m, H, r->type);
  tensor_init(&y, r->y, t->m, H, r->type);
  const int packed = t->way != PLAIN;
  const DLTensor *inputs[] = {&x.dl, packed ? &r->packed1.dl : &r->w1.dl, NULL,
                              packed ? &r->packed2.dl : &r->w2.dl};
  DLTensor *outputs[] = {&y.dl};
  const lam_attr attrs[] = {lam_attr_i(lam_group_handle(r->g)),
                            lam_attr_s("gelu"),
                            lam_attr_i(0),
                            lam_attr_i(0),
                            lam_attr_i(0),
                            lam_attr_i(t->way == UNCHUNKED ? 1 : r->chunks)};
  lam_call call = LAM_CALL_INIT;
  call.op = LAM_OP_ffn;
  call.inputs = inputs, call.outputs = outputs, call.attrs = attrs;
  call.n_inputs = 4, call.n_outputs = 1, call.n_attrs = 6;
  for (int i = 0; i < t->calls; i++) must(lam_run(r->ctx, &call), "ffn");
}

static void pin(int cpu) {
  cpu_set_t set;
  CPU_ZERO(&set);
  CPU_SET(cpu, &set);
  sched_setaffinity(0, sizeof set, &set);
}

static void serve(task *t, int me, const lam_group_id *id, int64_t chunks) {
  rank r = {.chunks = chunks};
  prctl(PR_SET_PDEATHSIG, SIGKILL);
  pin(me);
  sem_wait(&t->go[me]);
  rank_init(&r, me, id, t->bf16);
  for (;;) {
    sem_post(&t->done);
    sem_wait(&t->go[me]);
    if (t->calls == 0) _exit(0);
    const double start = now_us();
    run_ffn(&r, t);
    t->us[me] = (now_us() - start) / t->calls;
  }
}

/* -- the peer: both gemms on weights it packed itself, made and bound once -- */

typedef struct gemm {
  dnnl_primitive_t primitive;
  dnnl_memory_t a, b, d;
} gemm;

static dnnl_engine_t engine;
static dnnl_stream_t stream;

#define OK(call) \
  if ((call) != dnnl_success) die("oneDNN: " #call)

static void pack_for_peer(gemm *g, void *w, int64_t n, int64_t k, dnnl_data_type_t type,
                          const dnnl_memory_desc_t *to) {
  dnnl_memory_desc_t from;
  dnnl_primitive_desc_t pd;
  dnnl_primitive_t reorder;
  dnnl_memory_t plain;
  OK(dnnl_memory_desc_init_by_strides(&from, 2, (dnnl_dims_t){k, n}, type, (dnnl_dims_t){1, k}));
  OK(dnnl_memory_create(&plain, &from, engine, w));
  OK(dnnl_memory_create(&g->b, to, engine, DNNL_MEMORY_ALLOCATE));
  OK(dnnl_reorder_primitive_desc_create(&pd, &from, engine, to, engine, NULL));
  OK(dnnl_primitive_create(&reorder, pd));
  const dnnl_exec_arg_t args[] = {{DNNL_ARG_FROM, plain}, {DNNL_ARG_TO, g->b}};
  OK(dnnl_primitive_execute(reorder, stream, 2, args));
  dnnl_primitive_destroy(reorder);
  dnnl_primitive_desc_destroy(pd);
  dnnl_memory_destroy(plain);
}

static gemm gemm_make(void *a, void *w, void *d, int64_t m, int64_t n, int64_t k, int bf16) {
  const dnnl_data_type_t type = bf16 ? dnnl_bf16 : dnnl_f32;
  gemm g;
  dnnl_memory_desc_t am, bm, dm;
  dnnl_matmul_desc_t matmul;
  dnnl_primitive_desc_t pd;
  OK(dnnl_memory_desc_init_by_tag(&am, 2, (dnnl_dims_t){m, k}, type, dnnl_ab));
  OK(dnnl_memory_desc_init_by_tag(&bm, 2, (dnnl_dims_t){k, n}, type, dnnl_format_tag_any));
  OK(dnnl_memory_desc_init_by_tag(&dm, 2, (dnnl_dims_t){m, n}, type, dnnl_ab));
  OK(dnnl_matmul_desc_init(&matmul, &am, &bm, NULL, &dm));
  OK(dnnl_primitive_desc_create(&pd, &matmul, NULL, engine, NULL));
  OK(dnnl_primitive_create(&g.primitive, pd));
  OK(dnnl_memory_create(&g.a, &am, engine, a));
  OK(dnnl_memory_create(&g.d, &dm, engine, d));
  pack_for_peer(&g, w, n, k, type, dnnl_primitive_desc_query_md(pd, dnnl_query_weights_md, 0));
  dnnl_primitive_desc_destroy(pd);
  return g;
}

static void gemm_run(const gemm *g) {
  const dnnl_exec_arg_t args[] = {
      {DNNL_ARG_SRC, g->a}, {DNNL_ARG_WEIGHTS, g->b}, {DNNL_ARG_DST, g->d}};
  OK(dnnl_primitive_execute(g->primitive, stream, 3, args));
}

static void gemm_free(gemm *g) {
  dnnl_primitive_destroy(g->primitive);
  dnnl_memory_destroy(g->a);
  dnnl_memory_destroy(g->b);
  dnnl_memory_destroy(g->d);
}

/* -- rounds -- */

/* Both ranks start together; the slower one's time counts. */
static double run_ours(task *t) {
  for (int r = 0; r < P; r++) sem_post(&t->go[r]);
  for (int r = 0; r < P; r++) sem_wait(&t->done);
  return t->us[0] > t->us[1] ? t->us[0] : t->us[1];
}

static double run_peer(const gemm *up, const gemm *down, int calls) {
  const double start = now_us();
  for (int i = 0; i < calls; i++) {
    gemm_run(up);
    gemm_run(down);
  }
  const double us = (now_us() - start) / calls;
  usleep(20000); /* OpenMP's threads go to sleep */
  return us;
}

/* The median of the rounds' ratios to the peer is steadier than a ratio of medians. */
static void print_case(const task *t, double times[][MOST_ROUNDS], int way, int rounds) {
  double sorted[MOST_ROUNDS];
  memcpy(sorted, times[way], sizeof(double) * (size_t)rounds);
  printf("ffn_%s_m%d_%s %.1f us", t->bf16 ? "bf16" : "f32", t->m, ways[way],
         median_of(sorted, rounds));
  end_line(sorted, rounds);
}

static void run_case(task *t, const gemm *up, const gemm *down, int rounds) {
  static double times[N_WAYS][MOST_ROUNDS];
  const int n_ways = t->m < 512 ? UNCHUNKED : N_WAYS; /* fewer rows are one chunk anyway */
  for (int i = -1; i < rounds; i++) /* the first round warms up */
    for (int way = 0; way < n_ways; way++) {
      t->way = way;
      t->calls = t->m >= 64 ? 2 : 10;
      const double us = way == PEER ? run_peer(up, down, t->calls) : run_ours(t);
      if (i >= 0) times[way][i] = us;
    }
  for (int way = 0; way < n_ways; way++) print_case(t, times, way, rounds);
}

static void run_dtype(task *t, int bf16, int rounds) {
  void *x = random_data(sizes[0] * H, bf16), *h = random_data(sizes[0] * F, bf16);
  void *y = random_data(sizes[0] * H, bf16);
  void *w1 = random_data((int64_t)F * H, bf16), *w2 = random_data((int64_t)H * F, bf16);
  for (int i = 0; i < N_SIZES; i++) {
    gemm up = gemm_make(x, w1, h, sizes[i], F, H, bf16);
    gemm down = gemm_make(h, w2, y, sizes[i], H, F, bf16);
    t->m = (int)sizes[i];
    run_case(t, &up, &down, rounds);
    gemm_free(&up);
    gemm_free(&down);
  }
  free(x), free(h), free(y), free(w1), free(w2);
}

static void bench(int bf16, int rounds, int64_t chunks) {
  task *t = mmap(NULL, sizeof *t, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
  lam_group_id id;
  must(lam_group_id_create(&id), "id");
  sem_init(&t->done, 1, 0);
  t->bf16 = bf16;
  for (int r = 0; r < P; r++) {
    sem_init(&t->go[r], 1, 0);
    if (fork() == 0) serve(t, r, &id, chunks);
  }
  for (int r = 0; r < P; r++) sem_post(&t->go[r]);
  for (int r = 0; r < P; r++) sem_wait(&t->done);
  run_dtype(t, bf16, rounds);
  t->calls = 0;
  for (int r = 0; r < P; r++) sem_post(&t->go[r]);
  for (int r = 0; r < P; r++) wait(NULL);
}

/* A process a dtype: ranks are forked before oneDNN makes its threads. */
int main(int argc, char **argv) {
  const int rounds = argc > 1 ? atoi(argv[1]) : 7;
  const char *only = argc > 2 ? argv[2] : "";
  const int64_t chunks = argc > 3 ? atoll(argv[3]) : 0;
  if (rounds < 1 || rounds > MOST_ROUNDS)
    return fprintf(stderr, "ops_bench [1..%d rounds] [bf16|f32] [chunks]\n", MOST_ROUNDS), 1;
  for (int bf16 = 1; bf16 >= 0; bf16--) {
    if (*only && strcmp(only, bf16 ? "bf16" : "f32") != 0) continue;
    const pid_t child = fork();
    if (child == 0) {
      OK(dnnl_engine_create(&engine, dnnl_cpu, 0));
      OK(dnnl_stream_create(&stream, engine, dnnl_stream_default_flags));
      bench(bf16, rounds, chunks);
      _exit(0);
    }
    int status = 0;
    if (waitpid(child, &status, 0) != child || status != 0) return 1;
  }
  return 0;
}
