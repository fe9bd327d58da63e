/* fork_test.c: servers that fork workers: before and after they used Lamella, and while other
 * threads use it.
 *
 * A child has its parent's contexts, which work, and its parent's groups, which say that they are
 * the parent's. What the host's callbacks need in a child, such as threads, is the host's to bring.
 * Invariant: a parent's group goes on whatever a child did. */
#include <dlfcn.h>
#include <stdlib.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include "tests/bindings/server/server.h"

enum { CHILD_S = 60 };

/* Whether fn's checks hold in a forked child, which ends; one that hangs is killed by its alarm. */
static void in_child(void (*fn)(void *arg), void *arg) {
  int status = -1;
  const pid_t child = fork();
  if (child == 0) {
    alarm(CHILD_S);
    fn(arg);
    syscall(SYS_exit_group, 0); /* _exit looks for threads that were not joined: the parent's are */
  }
  CHECK_EQ(waitpid(child, &status, 0), child);
  if (status) check_fail(CHECK_AT, "the child ended with status %d", status);
}

/* -- the first use -- */

enum { MOST_ROWS = 200, K = 24, N = 48 };

/* A product of a shape that is new, more often than not. */
static void multiply_some_rows(rng *r) {
  static float x[MOST_ROWS * K], w[N * K];
  float y[MOST_ROWS * N];
  const int64_t rows = rng_int(r, 9, MOST_ROWS), n = rng_int(r, 1, N);
  host_tensor hx, hw, hy;
  HOST(&hx, x, F32, rows, K), HOST(&hw, w, F32, n, K), HOST(&hy, y, F32, rows, n);
  lam_call call = LAM_CALL_INIT;
  call.op = LAM_OP_linear;
  call.inputs = (const DLTensor *[]){&hx.t, &hw.t}, call.n_inputs = 2;
  call.outputs = (DLTensor *[]){&hy.t}, call.n_outputs = 1;
  CHECK_OK(lam_run(NULL, &call));
}

static void multiply_a_few(void *r) {
  for (int i = 0; i < 4; i++) multiply_some_rows(r);
}

static void *multiply_once(void *arg) {
  rng r = {seed()};
  pthread_barrier_wait(arg);
  multiply_some_rows(&r);
  return NULL;
}

static void fork_at_first_use(int rank, int size, void *arg) {
  pthread_barrier_t both;
  pthread_t thread;
  rng r = {seed() + 1};
  (void)rank, (void)size, (void)arg;
  CHECK(dlopen("libdnnl.so.2", RTLD_LAZY | RTLD_NOLOAD) == NULL); /* this is the first use */
  pthread_barrier_init(&both, NULL, 2);
  REQUIRE(pthread_create(&thread, NULL, multiply_once, &both) == 0);
  pthread_barrier_wait(&both);
  for (int i = 0; i < 3; i++) in_child(multiply_a_few, &r);
  pthread_join(thread, NULL);
  pthread_barrier_destroy(&both);
}

/* In processes that have opened nothing yet. */
TEST(fork, a_child_opens_what_another_thread_was_opening) {
  if (getenv("LAMELLA_SANITIZER"))
    SKIP("a sanitizer build opens nothing, and its pthread_once does not know of forks");
  for (int i = 0; i < 10; i++) run_processes(1, fork_at_first_use, NULL);
}

/* -- contexts -- */

static void run_in_child(void *ctx) {
  weights *w = weights_make(seed());
  rng r = {seed()};
  for (int tokens = 1; tokens <= MOST_TOKENS; tokens += 13) request_run(ctx, w, &r, tokens);
  free(w);
}

TEST(fork, contexts_work_in_children) {
  lam_context_desc desc = LAM_CONTEXT_DESC_INIT;
  lam_context *two = NULL;
  desc.threads = 2;
  REQUIRE_OK(lam_context_create(&desc, &two));
  in_child(run_in_child, two); /* before it was used */
  run_in_child(two);
  run_in_child(NULL);
  in_child(run_in_child, two);
  in_child(run_in_child, NULL);
  run_in_child(two); /* and the parent's works on */
  lam_context_destroy(two);
}

/* -- groups -- */

typedef struct meeting {
  lam_group_id id;
  lam_context *ctx;
} meeting;

static lam_group *join(const meeting *m, int rank, int size) {
  lam_group_desc desc = LAM_GROUP_DESC_INIT;
  lam_group *g = NULL;
  desc.rank = rank, desc.size = size, desc.deadline_ms = 20000, desc.id = m->id;
  CHECK_OK(lam_group_create(m->ctx, &desc, &g));
  return g;
}

static void worker(int rank, int size, void *arg) {
  float sum = 0;
  lam_group *g = join(arg, rank, size);
  if (g) CHECK_OK(sum_ones(lam_group_handle(g), &sum));
  CHECK_EQ(sum, size);
  run_in_child(((meeting *)arg)->ctx);
  lam_group_destroy(g);
}

/* A pre-forking server: it loads and tries its model, then forks the ranks that serve it. */
TEST(fork, workers_of_a_server_that_used_lamella_make_a_group) {
  meeting m;
  REQUIRE_OK(lam_group_id_create(&m.id));
  REQUIRE_OK(lam_context_create(NULL, &m.ctx));
  run_in_child(m.ctx);
  run_processes(2, worker, &m);
  run_in_child(m.ctx);
  lam_context_destroy(m.ctx);
}

static void use_the_parents_group(void *group) {
  float sum = 0;
  meeting own = {.ctx = NULL};
  CHECK_STATUS(sum_ones(lam_group_handle(group), &sum), LAM_FAILED_PRECONDITION);
  CHECK_CONTAINS(lam_last_error(), "it belongs to the process that forked this one");
  CHECK_EQ(sum, 0);
  lam_group_destroy(group);
  CHECK_OK(lam_group_id_create(&own.id));
  lam_group *alone = join(&own, 0, 1);
  if (alone) CHECK_OK(sum_ones(lam_group_handle(alone), &sum));
  CHECK_EQ(sum, 1);
  lam_group_destroy(alone);
}

static void rank_that_forks(int rank, int size, void *arg) {
  float sum = 0;
  lam_group *g = join(arg, rank, size);
  REQUIRE(g != NULL);
  CHECK_OK(sum_ones(lam_group_handle(g), &sum));
  in_child(use_the_parents_group, g);
  for (int i = 0; i < 5; i++) CHECK_OK(sum_ones(lam_group_handle(g), &sum));
  CHECK_EQ(sum, size);
  lam_group_destroy(g);
}

TEST(fork, a_parents_group_is_refused_in_a_child_and_goes_on) {
  meeting m = {.ctx = NULL};
  REQUIRE_OK(lam_group_id_create(&m.id));
  run_processes(2, rank_that_forks, &m);
  REQUIRE_OK(lam_group_id_create(&m.id));
  run_threads(2, rank_that_forks, &m); /* ranks that are threads: each is in the other's child */
}

/* -- while other threads are in calls -- */

static _Atomic bool enough;
static _Atomic int n_multiplied;

static void *multiply_until_enough(void *arg) {
  rng r = {seed() + (uint64_t)(uintptr_t)arg};
  while (!enough) {
    multiply_some_rows(&r);
    n_multiplied++;
  }
  return NULL;
}

/* Products are made by a library with locks of its own. */
TEST(fork, a_child_makes_products_whatever_other_threads_were_making) {
  pthread_t threads[2];
  rng r = {seed() + 99};
  for (int i = 0; i < 2; i++)
    REQUIRE(pthread_create(&threads[i], NULL, multiply_until_enough, (void *)(uintptr_t)i) == 0);
  for (int i = 0; i < 80 || n_multiplied < 100; i++) {
    in_child(multiply_a_few, &r);
    rng_next(&r);
  }
  enough = true;
  for (int i = 0; i < 2; i++) pthread_join(threads[i], NULL);
}

typedef struct busy {
  int64_t handles[2];
  _Atomic bool stop;
  _Atomic int n;
} busy;

/* Looks up one group and then the other, and now and then makes one, as fast as it can. */
static void *keep_locks_busy(void *arg) {
  busy *b = arg;
  meeting m = {.ctx = NULL};
  CHECK_OK(lam_group_id_create(&m.id));
  while (!b->stop) {
    for (int i = 0; i < 2000; i++) CHECK_OK(lam_group_use(b->handles[i % 2], 0));
    lam_group_destroy(join(&m, 0, 1));
    b->n++;
  }
  return NULL;
}

static void make_a_group(void *arg) {
  float sum = 0;
  meeting m = {.ctx = NULL};
  (void)arg;
  CHECK_OK(lam_group_id_create(&m.id));
  lam_group *g = join(&m, 0, 1);
  if (g) CHECK_OK(sum_ones(lam_group_handle(g), &sum));
  lam_group_destroy(g);
}

TEST(fork, a_child_meets_no_lock_that_another_thread_held) {
  meeting m[2] = {{.ctx = NULL}, {.ctx = NULL}};
  lam_group *g[2] = {NULL, NULL};
  pthread_t threads[2];
  busy b = {.n = 0};
  for (int i = 0; i < 2; i++) {
    REQUIRE_OK(lam_group_id_create(&m[i].id));
    g[i] = join(&m[i], 0, 1);
    b.handles[i] = lam_group_handle(g[i]);
  }
  for (int i = 0; i < 2; i++) REQUIRE(pthread_create(&threads[i], NULL, keep_locks_busy, &b) == 0);
  for (int i = 0; i < 40 || b.n < 4; i++) in_child(make_a_group, NULL);
  b.stop = true;
  for (int i = 0; i < 2; i++) pthread_join(threads[i], NULL);
  lam_group_destroy(g[0]), lam_group_destroy(g[1]);
}
