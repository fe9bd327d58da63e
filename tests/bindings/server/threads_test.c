/* threads_test.c: many threads of a server call at once, on its own pool and memory, and two models
 * in it know nothing of each other.
 * Leaves memory that is not the context's to memory_test.c, forks to fork_test.c. */
#include <signal.h>
#include <stdlib.h>

#include "tests/bindings/server/server.h"
#include "tests/distributed/await.h"

enum { CLIENTS = 4, REQUESTS = 12 };

typedef struct server {
  lam_context *models[2];
  const weights *weights[2];
  pthread_barrier_t all_there;
  int tasks; /* what the process should have while all are there; 0: not looked at */
} server;

static void client(int rank, int size, void *arg) {
  server *s = arg;
  rng r = {seed() + (uint64_t)rank};
  (void)size;
  pthread_barrier_wait(&s->all_there);
  for (int i = 0; i < REQUESTS; i++) {
    const int model = (int)rng_int(&r, 0, 1);
    request_run(s->models[model], s->weights[model], &r, i % 3 ? rng_int(&r, 1, MOST_TOKENS) : 1);
  }
  pthread_barrier_wait(&s->all_there);
  if (s->tasks) CHECK_EQ(count_tasks(), s->tasks);
  pthread_barrier_wait(&s->all_there);
}

static void serve(lam_context *a, lam_context *b, int tasks) {
  server s = {.models = {a, b}, .tasks = tasks};
  weights *first = weights_make(seed()), *second = a == b ? first : weights_make(seed() + 1);
  s.weights[0] = first, s.weights[1] = second;
  pthread_barrier_init(&s.all_there, NULL, CLIENTS);
  run_threads(CLIENTS, client, &s);
  pthread_barrier_destroy(&s.all_there);
  if (second != first) free(second);
  free(first);
}

TEST(server, many_threads_share_a_model) {
  model_host h = {.pool = NULL};
  lam_context *ctx = model_context(&h);
  serve(ctx, ctx, 0);
  lam_context_destroy(ctx);
  CHECK_EQ(h.bytes, 0);
}

TEST(server, many_threads_share_two_models_and_the_hosts_pool) {
  pool p;
  pool_open(&p);
  model_host first = {.pool = &p}, second = {.pool = &p};
  lam_context *a = model_context(&first), *b = model_context(&second);
  serve(a, b, 0);
  CHECK(p.sections >= CLIENTS * REQUESTS && p.pieces > p.sections);
  lam_context_destroy(a), lam_context_destroy(b);
  CHECK_EQ(first.bytes, 0);
  CHECK_EQ(second.bytes, 0);
  pool_close(&p);
}

/* In a process of its own: an OpenMP team that another test started would stay. */
static void on_the_pool_alone(int rank, int size, void *arg) {
  pool p;
  (void)rank, (void)size, (void)arg;
  CHECK_EQ(count_tasks(), 1);
  pool_open(&p);
  model_host h = {.pool = &p};
  lam_context *ctx = model_context(&h);
  serve(ctx, ctx, 1 + POOL_THREADS + CLIENTS);
  /* a thread is counted for a moment after it was joined */
  const int64_t start = await_start();
  while (count_tasks() > 1 + POOL_THREADS && await_more(start)) continue;
  CHECK_EQ(count_tasks(), 1 + POOL_THREADS);
  CHECK(p.sections > 0 && p.by_pool > 0);
  lam_context_destroy(ctx);
  pool_close(&p);
}

TEST(server, lamella_starts_no_thread_beside_the_hosts_pool) {
  if (getenv("LAMELLA_SANITIZER")) SKIP("sanitizers have threads of their own");
  run_processes(1, on_the_pool_alone, NULL);
}

/* -- two models -- */

typedef struct runner {
  lam_context *ctx;
  weights *w;
  _Atomic bool stop;
  _Atomic int n;
} runner;

static void *run_until_told(void *arg) {
  runner *run = arg;
  rng r = {seed() + 7};
  while (!run->stop) {
    request_run(run->ctx, run->w, &r, 1 + run->n % 4);
    run->n++;
  }
  return NULL;
}

static lam_context_stats stats_of(lam_context *ctx) {
  lam_context_stats stats = LAM_CONTEXT_STATS_INIT;
  CHECK_OK(lam_context_get_stats(ctx, &stats));
  return stats;
}

/* A model comes, serves and goes, over and over, while another one serves. */
TEST(server, a_model_ends_while_another_runs) {
  model_host stays = {.pool = NULL};
  runner run = {.ctx = model_context(&stays), .w = weights_make(seed())};
  rng r = {seed()};
  pthread_t thread;
  REQUIRE(pthread_create(&thread, NULL, run_until_told, &run) == 0);
  for (int i = 0; i < 10 || run.n < 10; i++) {
    model_host goes = {.pool = NULL};
    lam_context *ctx = model_context(&goes);
    request_run(ctx, run.w, &r, rng_int(&r, 1, MOST_TOKENS));
    CHECK_EQ(stats_of(ctx).bytes, goes.bytes);
    CHECK_EQ(stats_of(ctx).allocations, goes.allocations);
    CHECK(goes.bytes > 0);
    lam_context_destroy(ctx);
    CHECK_EQ(goes.bytes, 0);
  }
  run.stop = true;
  pthread_join(thread, NULL);
  CHECK_EQ(stats_of(run.ctx).bytes, stays.bytes);
  lam_context_destroy(run.ctx);
  CHECK_EQ(stays.bytes, 0);
  free(run.w);
}

/* What one model holds is the same whatever another one did meanwhile. */
TEST(server, models_count_apart) {
  model_host first = {.pool = NULL}, second = {.pool = NULL};
  lam_context *a = model_context(&first), *b = model_context(&second);
  weights *w = weights_make(seed());
  rng r = {seed()};
  request_run(a, w, &r, 2);
  const lam_context_stats before = stats_of(a);
  request_run(b, w, &r, MOST_TOKENS);
  const lam_context_stats after = stats_of(a);
  CHECK_SAME_BITS(&before, &after, sizeof before);
  CHECK(stats_of(b).bytes > before.bytes);
  lam_context_destroy(a), lam_context_destroy(b);
  free(w);
}

/* Each with a group of two ranks, which are threads. */
typedef struct two_models {
  lam_context *ctx[2];
  lam_group_id id[2];
  pthread_barrier_t first_has_ended;
} two_models;

static void rank_of_a_model(int thread, int size, void *arg) {
  two_models *m = arg;
  const int model = thread / 2;
  lam_group_desc desc = LAM_GROUP_DESC_INIT;
  lam_group_info info = LAM_GROUP_INFO_INIT;
  lam_group *g = NULL;
  float sum = 0;
  (void)size;
  desc.rank = thread % 2, desc.size = 2, desc.id = m->id[model];
  CHECK_OK(lam_group_create(m->ctx[model], &desc, &g));
  for (int i = 0; i < 20; i++) CHECK_OK(sum_ones(lam_group_handle(g), &sum));
  if (model == 0) {
    if (thread == 0) lam_group_poison(g, LAM_CANCELLED, "the model is taken away");
    while (sum_ones(lam_group_handle(g), &sum) == LAM_OK) continue;
    CHECK_STR(lam_last_error(), "the model is taken away");
    lam_group_destroy(g);
    g = NULL;
  }
  pthread_barrier_wait(&m->first_has_ended);
  if (!g) return;
  for (int i = 0; i < 20; i++) CHECK_OK(sum_ones(lam_group_handle(g), &sum));
  CHECK_EQ(sum, 2);
  CHECK_OK(lam_group_get_info(g, &info));
  CHECK_EQ(info.poison, LAM_OK);
  lam_group_destroy(g);
}

TEST(server, what_ends_a_models_group_leaves_anothers_alone) {
  model_host first = {.pool = NULL}, second = {.pool = NULL};
  two_models m = {.ctx = {model_context(&first), model_context(&second)}};
  for (int i = 0; i < 2; i++) REQUIRE_OK(lam_group_id_create(&m.id[i]));
  pthread_barrier_init(&m.first_has_ended, NULL, 4);
  run_threads(4, rank_of_a_model, &m);
  pthread_barrier_destroy(&m.first_has_ended);
  for (int i = 0; i < 2; i++) {
    CHECK_EQ(stats_of(m.ctx[i]).arena_bytes, 0);
    lam_context_destroy(m.ctx[i]);
  }
  CHECK_EQ(first.bytes + second.bytes, 0);
}

/* -- signals -- */

typedef struct dispositions {
  struct sigaction actions[NSIG];
  sigset_t mask;
} dispositions;

static void look_at_signals(dispositions *d) {
  memset(d, 0, sizeof *d);
  for (int i = 1; i < NSIG; i++) sigaction(i, NULL, &d->actions[i]);
  pthread_sigmask(SIG_BLOCK, NULL, &d->mask);
}

/* The structs have room that nobody writes. */
static bool same_set(const sigset_t *a, const sigset_t *b) {
  int n = 0;
  for (int i = 1; i < NSIG; i++) n += sigismember(a, i) != sigismember(b, i);
  return n == 0;
}

static bool same_action(const struct sigaction *a, const struct sigaction *b) {
  return a->sa_handler == b->sa_handler && a->sa_flags == b->sa_flags &&
         same_set(&a->sa_mask, &b->sa_mask);
}

static void rank_of_a_group(int rank, int size, void *id) {
  lam_group_desc desc = LAM_GROUP_DESC_INIT;
  lam_group *g = NULL;
  desc.rank = rank, desc.size = size;
  memcpy(&desc.id, id, sizeof desc.id);
  REQUIRE_OK(lam_group_create(NULL, &desc, &g));
  CHECK_OK(lam_group_warmup(g));
  lam_group_destroy(g);
}

static lam_status nothing(void *user, const lam_stage_io *io) {
  (void)user, (void)io;
  return LAM_OK;
}

static void run_a_pipeline(void) {
  lam_schedule *s = NULL;
  lam_pipeline *p = NULL;
  lam_stage stage = LAM_STAGE_INIT;
  lam_pipeline_desc desc = LAM_PIPELINE_DESC_INIT;
  REQUIRE_OK(lam_schedule_build("1f1b", 1, 1, 2, &s));
  stage.forward = nothing;
  desc.schedule = s, desc.stages = &stage, desc.n_stages = 1;
  desc.flags = LAM_PIPELINE_FORWARD_ONLY;
  if (CHECK_OK(lam_pipeline_create(NULL, &desc, &p))) CHECK_OK(lam_pipeline_run(p, 0, NULL));
  lam_pipeline_destroy(p);
  lam_schedule_destroy(s);
}

TEST(server, signals_are_the_hosts) {
  dispositions before, after;
  lam_group_id id;
  weights *w = weights_make(seed());
  rng r = {seed()};
  look_at_signals(&before);
  request_run(NULL, w, &r, MOST_TOKENS);
  CHECK_OK(lam_group_id_create(&id));
  run_threads(2, rank_of_a_group, &id);
  run_a_pipeline();
  look_at_signals(&after);
  for (int i = 1; i < NSIG; i++)
    if (!same_action(&before.actions[i], &after.actions[i]))
      check_fail(CHECK_AT, "signal %d has another action than before", i);
  CHECK(same_set(&before.mask, &after.mask));
  free(w);
}
