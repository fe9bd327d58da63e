/* threads_test.c: large products run on the threads that the host allows, and on no others.
 * Each case is a process of its own: a team, once started, stays. Leaves who takes which share to
 * the kernels' tests. */
#include <dirent.h>
#include <stdlib.h>

#include "tests/unit/core/host.h"

enum { K = 96, N = 1536, MOST_ROWS = 64 };

/* A pool of one thread, which counts what it is asked for. */
typedef struct pool {
  int n_calls;
  int64_t n_pieces;
} pool;

static void run_in_pool(void *user, int64_t n, void (*fn)(void *arg, int64_t i), void *arg) {
  pool *p = user;
  p->n_calls++;
  p->n_pieces += n;
  for (int64_t i = n - 1; i >= 0; i--) fn(arg, i);
}

static int count_threads(void) {
  int n = 0;
  DIR *d = opendir("/proc/self/task");
  for (const struct dirent *e; d && (e = readdir(d));) n += e->d_name[0] != '.';
  if (d) closedir(d);
  return n;
}

/* y = x w^T, checked against sums in double precision. */
static void multiply(lam_context *ctx, int64_t rows) {
  static float x[MOST_ROWS * K], w[N * K], y[MOST_ROWS * N];
  static double want[MOST_ROWS * N];
  rng r = {seed()};
  host_tensor hx, hw, hy;
  for (int i = 0; i < MOST_ROWS * K; i++) x[i] = rng_float(&r);
  for (int i = 0; i < N * K; i++) w[i] = rng_float(&r);
  for (int64_t i = 0; i < rows * N; i++) {
    want[i] = 0;
    for (int64_t k = 0; k < K; k++) want[i] += (double)x[i / N * K + k] * w[i % N * K + k];
  }
  HOST(&hx, x, F32, rows, K), HOST(&hw, w, F32, N, K), HOST(&hy, y, F32, rows, N);
  lam_call call = LAM_CALL_INIT;
  call.op = LAM_OP_linear;
  call.inputs = (const DLTensor *[]){&hx.t, &hw.t}, call.n_inputs = 2;
  call.outputs = (DLTensor *[]){&hy.t}, call.n_outputs = 1;
  CHECK_OK(lam_run(ctx, &call));
  CHECK_CLOSE(y, want, rows * N, 0, K * 0x1p-22);
}

static void multiply_on(int threads, pool *p, int64_t rows) {
  lam_context_desc desc = LAM_CONTEXT_DESC_INIT;
  lam_context *ctx = NULL;
  desc.threads = threads, desc.user = p;
  if (p) desc.parallel_for = run_in_pool;
  REQUIRE_OK(lam_context_create(&desc, &ctx));
  multiply(ctx, rows);
  lam_context_destroy(ctx);
}

static void one_thread(int rank, int size, void *arg) {
  (void)rank, (void)size, (void)arg;
  CHECK_EQ(count_threads(), 1);
  FOR_EACH(rows, MOST_ROWS, 4, 1) multiply_on(1, NULL, rows);
  CHECK_EQ(count_threads(), 1);
}

TEST(threads, one_is_one) { run_processes(1, one_thread, NULL); }

static void two_threads(int rank, int size, void *arg) {
  (void)rank, (void)size, (void)arg;
  multiply_on(2, NULL, MOST_ROWS);
  CHECK_EQ(count_threads(), 2);
}

TEST(threads, two_are_two) { run_processes(1, two_threads, NULL); }

static void as_openmp_says(int rank, int size, void *arg) {
  (void)rank, (void)size;
  CHECK_EQ(setenv("OMP_NUM_THREADS", arg, 1), 0); /* read when OpenMP is opened, by the product */
  multiply_on(0, NULL, MOST_ROWS);
  CHECK_EQ(count_threads(), atoi(arg));
}

TEST(threads, where_none_are_given_the_hosts_openmp_decides) {
  run_processes(1, as_openmp_says, "1");
  run_processes(1, as_openmp_says, "3");
}

static void hosts_pool(int rank, int size, void *arg) {
  (void)rank, (void)size, (void)arg;
  FOR_EACH(rows, MOST_ROWS, 4) { /* a product of the library, and one of plain rows */
    pool p = {0};
    NOTE("%d rows", rows);
    multiply_on(3, &p, rows);
    CHECK(p.n_calls > 0);
    CHECK(p.n_pieces > p.n_calls); /* more than one thread could share */
  }
  CHECK_EQ(count_threads(), 1); /* all the work went there */
}

TEST(threads, a_hosts_pool_gets_all_the_work) { run_processes(1, hosts_pool, NULL); }
