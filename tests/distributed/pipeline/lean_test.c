/* lean_test.c: a step after the first allocates nothing, whatever the schedule, sums of weights
 * that stages share included. Allocations are counted by this program's own malloc, in threads
 * that ask for it.
 * Leaves system calls to report_test.c. */
#include <stdlib.h>

#include "tests/distributed/pipeline/worker.h"

void *__libc_malloc(size_t bytes);
void *__libc_calloc(size_t n, size_t bytes);
void *__libc_realloc(void *p, size_t bytes);
void *__libc_memalign(size_t alignment, size_t bytes);

static _Thread_local int n_allocations;

void *malloc(size_t bytes) {
  n_allocations++;
  return __libc_malloc(bytes);
}
void *calloc(size_t n, size_t bytes) {
  n_allocations++;
  return __libc_calloc(n, bytes);
}
void *realloc(void *p, size_t bytes) {
  n_allocations++;
  return __libc_realloc(p, bytes);
}
void *aligned_alloc(size_t alignment, size_t bytes) {
  n_allocations++;
  return __libc_memalign(alignment, bytes);
}

TEST(pipeline_lean, an_allocation_is_counted) {
  const int before = n_allocations;
  void *volatile p = malloc(10);
  CHECK_EQ(n_allocations, before + 1);
  free(p);
}

static void count_step(const worker *k, int step) {
  lam_context_stats before = LAM_CONTEXT_STATS_INIT, after = LAM_CONTEXT_STATS_INIT;
  CHECK_OK(lam_context_get_stats(k->ctx, &before));
  const int allocations = n_allocations;
  const lam_status status = lam_pipeline_run(k->pipeline, step, NULL);
  const int during = n_allocations - allocations;
  CHECK_OK(status);
  CHECK_OK(lam_context_get_stats(k->ctx, &after));
  CHECK_EQ(during, 0);
  CHECK_EQ(after.allocations, before.allocations);
}

static void count_steps(int rank, int size, void *arg) {
  worker k;
  REQUIRE_OK(worker_open(&k, arg, rank, size));
  CHECK_OK(lam_pipeline_run(k.pipeline, 0, NULL));
  for (int step = 1; step < 3; step++) count_step(&k, step);
  worker_close(&k);
}

/* The ends' weights are shared: by two ranks, or by the one that holds both. */
static void count_tied_steps(int rank, int size, void *arg) {
  enum { N = 50 };
  const setup *at = arg;
  const int last = at->s->n_stages - 1;
  const int32_t ends[] = {0, last};
  const bool holds = at->s->rank_of_stage[0] == rank || at->s->rank_of_stage[last] == rank;
  float gradient[N] = {0};
  lam_tied t = LAM_TIED_INIT;
  worker k;
  t.stages = ends, t.n_stages = 2;
  t.shape = (lam_shape){1, {kDLFloat, 32, 1}, {N}};
  t.gradient = holds ? gradient : NULL;
  worker_prepare(&k, at, rank, size);
  k.desc.tied = &t, k.desc.n_tied = 1;
  REQUIRE_OK(worker_start(&k));
  CHECK_OK(lam_pipeline_run(k.pipeline, 0, NULL));
  for (int step = 1; step < 3; step++) count_step(&k, step);
  worker_close(&k);
}

TEST(pipeline_lean, sums_of_shared_weights_allocate_nothing) {
  static const struct {
    const char *name;
    int p, v;
  } rows[] = {{"1f1b", 2, 1}, {"zb-h1", 3, 1}, {"interleaved", 2, 2}, {"zbv", 2, 2}};
  for (int i = 0; i < 4; i++) {
    lam_schedule *s = NULL;
    NOTE("%s p=%d v=%d", rows[i].name, rows[i].p, rows[i].v);
    REQUIRE_OK(lam_schedule_build(rows[i].name, rows[i].p, rows[i].v, 6, &s));
    setup at = {.m = small_model(rows[i].p * rows[i].v, 6), .s = s};
    CHECK_OK(lam_group_id_create(&at.id));
    run_threads(rows[i].p, count_tied_steps, &at);
    lam_schedule_destroy(s);
  }
}

static void run_lean(const char *name, int p, int v, unsigned functions) {
  lam_schedule *s = NULL;
  if (lam_schedule_build(name, p, v, 6, &s)) return;
  NOTE("%s p=%d v=%d", name, p, v);
  setup at = {.m = small_model(p * v, 6), .s = s};
  at.m.functions = functions;
  at.m.three_tensors = at.m.varies = at.m.keeps = true;
  CHECK_OK(lam_group_id_create(&at.id));
  run_threads(p, count_steps, &at);
  lam_schedule_destroy(s);
}

TEST(pipeline_lean, a_step_allocates_nothing_for_any_schedule) {
  const char *name;
  for (int i = 0; (name = lam_schedule_name(i)); i++)
    FOR_EACH(p, 1, 2, 3)
    FOR_EACH(v, 1, 2) FOR_EACH(split, 0, 1)
        run_lean(name, p, v, split ? MODEL_SPLIT | MODEL_FUSED : MODEL_WHOLE);
}
