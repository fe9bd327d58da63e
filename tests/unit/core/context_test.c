/* context_test.c: contexts count their memory, scratch is kept and never shared, hooks are called.
 * */
#include "plugin/core/context.h"

#include <stdatomic.h>
#include <stdlib.h>

#include "tests/unit/core/host.h"

typedef struct host {
  _Atomic int n_alloc, n_free, n_parallel, n_log;
  int refuse; /* give no memory */
  int stop;
  char line[64];
} host;

static void *host_alloc(void *user, uint64_t bytes, uint64_t alignment) {
  host *h = user;
  if (h->refuse) return NULL;
  atomic_fetch_add(&h->n_alloc, 1);
  return aligned_alloc(alignment, (bytes + alignment - 1) / alignment * alignment);
}

static void host_free(void *user, void *p, uint64_t bytes) {
  (void)bytes;
  atomic_fetch_add(&((host *)user)->n_free, 1);
  free(p);
}

static void host_parallel_for(void *user, int64_t n, void (*fn)(void *arg, int64_t i), void *arg) {
  atomic_fetch_add(&((host *)user)->n_parallel, 1);
  for (int64_t i = n - 1; i >= 0; i--) fn(arg, i);
}

static int32_t host_should_stop(void *user) { return ((host *)user)->stop; }

static void host_log(void *user, int32_t level, const char *line) {
  host *h = user;
  h->n_log += level;
  strcpy(h->line, line);
}

static lam_context *context_of(host *h) {
  lam_context_desc desc = LAM_CONTEXT_DESC_INIT;
  lam_context *ctx = NULL;
  desc.threads = 3;
  desc.user = h;
  desc.alloc = host_alloc;
  desc.free = host_free;
  desc.parallel_for = host_parallel_for;
  desc.should_stop = host_should_stop;
  desc.log = host_log;
  CHECK_OK(lam_context_create(&desc, &ctx));
  return ctx;
}

static lam_context_stats stats_of(const lam_context *ctx) {
  lam_context_stats s = LAM_CONTEXT_STATS_INIT;
  CHECK_OK(lam_context_get_stats(ctx, &s));
  return s;
}

/* -- life -- */

TEST(context, wrong_descriptions_are_refused) {
  lam_context_desc desc = LAM_CONTEXT_DESC_INIT;
  lam_context *ctx = (lam_context *)&desc;
  desc.threads = -1;
  CHECK_REFUSED(lam_context_create(&desc, &ctx),
                "lam_context_create: threads is -1, expected 0 to 4096");
  CHECK(ctx == NULL);
  desc.threads = 0;
  desc.tf32 = 2;
  CHECK_REFUSED(lam_context_create(&desc, &ctx),
                "lam_context_create: tf32 is 2, expected 0 or 1, and reserved 0");
  desc.tf32 = 1;
  desc.alloc = host_alloc;
  CHECK_REFUSED(lam_context_create(&desc, &ctx),
                "lam_context_create: free is NULL, expected both alloc and free or neither");
  desc.struct_size--;
  CHECK_REFUSED(lam_context_create(&desc, &ctx),
                "lam_context_create: lam_context_desc: struct_size is 63, expected 64 (its _INIT "
                "macro sets it)");
  CHECK_REFUSED(lam_context_create(NULL, NULL), "lam_context_create: out_ctx is NULL");
}

TEST(context, the_default_one_is_always_there) {
  lam_context *ctx = lam_context_default();
  CHECK(ctx != NULL);
  CHECK(ctx == lam_context_default());
  CHECK(lam_context_workers(ctx)->n_threads >= 1);
  CHECK(!lam_context_workers(ctx)->own_pool);
  lam_context_destroy(NULL);
}

TEST(context, memory_is_the_hosts_and_counted) {
  host h = {0};
  lam_context *ctx = context_of(&h);
  void *a = lam_context_alloc(ctx, 100), *b = lam_context_alloc(ctx, 1000);
  CHECK_EQ((uintptr_t)a % 64, 0);
  CHECK_EQ(stats_of(ctx).bytes, 1100);
  lam_context_free(ctx, b, 1000);
  CHECK_EQ(stats_of(ctx).bytes, 100);
  CHECK_EQ(stats_of(ctx).peak_bytes, 1100);
  CHECK_EQ(stats_of(ctx).allocations, 2);
  lam_context_free(ctx, a, 100);
  lam_context_count_arena(ctx, 4096);
  lam_context_count_arena(ctx, -1024);
  CHECK_EQ(stats_of(ctx).arena_bytes, 3072);
  lam_context_destroy(ctx);
  CHECK_EQ(h.n_alloc, 2);
  CHECK_EQ(h.n_free, 2);
}

TEST(context, more_memory_than_there_is_gives_none) {
  lam_context *ctx = lam_context_default();
  const uint64_t before = stats_of(ctx).bytes;
  CHECK(lam_context_alloc(ctx, UINT64_MAX - 3) == NULL);
  CHECK_EQ(stats_of(ctx).bytes, before);
}

static void mark(void *arg, int64_t i) { ((char *)arg)[i]++; }

TEST(context, work_goes_to_the_hosts_pool) {
  host h = {0};
  char done[5] = {0};
  lam_context *ctx = context_of(&h);
  const lam_workers *w = lam_context_workers(ctx);
  CHECK_EQ(w->n_threads, 3);
  CHECK(w->own_pool);
  w->parallel_for(w->context, 5, mark, done);
  CHECK_SAME_BITS(done, "\1\1\1\1\1", 5);
  CHECK_EQ(h.n_parallel, 1);
  w->parallel_for(w->context, 1, mark, done); /* not worth a pool */
  CHECK_EQ(h.n_parallel, 1);
  CHECK_EQ(done[0], 2);
  lam_context_destroy(ctx);
}

TEST(context, without_a_pool_every_index_runs_once) {
  char done[100] = {0};
  const lam_workers *w = lam_context_workers(lam_context_default());
  w->parallel_for(w->context, 100, mark, done);
  for (int i = 0; i < 100; i++) CHECK_EQ(done[i], 1);
}

TEST(context, stopping_and_logging_ask_the_host) {
  host h = {0};
  lam_context *ctx = context_of(&h);
  CHECK(!lam_context_should_stop(ctx));
  h.stop = 7;
  CHECK(lam_context_should_stop(ctx));
  lam_context_log(ctx, 2, "rank %d is late", 3);
  CHECK_STR(h.line, "rank 3 is late");
  CHECK_EQ(h.n_log, 2);
  CHECK(!lam_context_should_stop(lam_context_default()));
  lam_context_log(lam_context_default(), 2, "nobody listens");
  lam_context_destroy(ctx);
}

/* -- scratch -- */

TEST(scratch, is_kept_between_calls) {
  host h = {0};
  lam_context *ctx = context_of(&h);
  lam_scratch s;
  void *first = NULL;
  for (int i = 0; i < 3; i++) {
    REQUIRE_OK(lam_scratch_open(ctx, NULL, 0, 1000, &s));
    if (i == 0) first = s.data;
    CHECK(s.data == first);
    lam_scratch_close(&s);
  }
  CHECK_EQ(h.n_alloc, 1);
  REQUIRE_OK(lam_scratch_open(ctx, NULL, 0, 100000, &s)); /* grows */
  lam_scratch_close(&s);
  REQUIRE_OK(lam_scratch_open(ctx, NULL, 0, 50000, &s)); /* and does not shrink */
  lam_scratch_close(&s);
  CHECK_EQ(h.n_alloc, 2);
  lam_context_destroy(ctx);
  CHECK_EQ(h.n_free, 2);
}

TEST(scratch, pieces_are_aligned_and_apart) {
  lam_scratch s;
  REQUIRE_OK(lam_scratch_open(lam_context_default(), NULL, 0, 15 * 3, &s));
  char *last = NULL;
  for (int i = 0; i < LAM_SCRATCH_PIECES; i++) {
    char *p = lam_scratch_take(&s, 3);
    CHECK_EQ((uintptr_t)p % 64, 0);
    CHECK(p + 3 <= (char *)s.data + s.bytes);
    CHECK(p != last);
    memset(p, 1, 3);
    last = p;
  }
  lam_scratch_close(&s);
}

TEST(scratch, one_inside_another_is_other_memory_and_kept_too) {
  host h = {0};
  lam_context *ctx = context_of(&h);
  for (int i = 0; i < 4; i++) {
    lam_scratch outer, inner;
    REQUIRE_OK(lam_scratch_open(ctx, NULL, 0, 512, &outer));
    REQUIRE_OK(lam_scratch_open(ctx, NULL, 0, 256, &inner));
    CHECK(outer.data != inner.data);
    lam_scratch_close(&inner);
    lam_scratch_close(&outer);
  }
  CHECK_EQ(h.n_alloc, 2);
  lam_context_destroy(ctx);
}

TEST(scratch, the_callers_own_memory_is_used_at_any_alignment) {
  _Alignas(64) char own[4096];
  lam_scratch s;
  const uint64_t need = lam_scratch_bytes(1000);
  REQUIRE_OK(lam_scratch_open(lam_context_default(), own + 1, need, 1000, &s));
  char *p = lam_scratch_take(&s, 1000);
  CHECK_EQ((uintptr_t)p % 64, 0);
  CHECK(p >= own + 1 && p + 1000 <= own + 1 + need);
  lam_scratch_close(&s);
  CHECK_REFUSED(lam_scratch_open(lam_context_default(), own, 999, 1000, &s),
                "scratch: found 999 bytes, expected at least 2024 (lam_infer tells)");
  CHECK_OK(
      lam_scratch_open(lam_context_default(), own, 0, 0, &s)); /* nothing needed, nothing asked */
}

TEST(scratch, no_memory_is_said_and_survived) {
  host h = {.refuse = 1};
  lam_context *ctx = context_of(&h);
  lam_scratch s;
  CHECK_STATUS(lam_scratch_open(ctx, NULL, 0, 1000, &s), LAM_RESOURCE_EXHAUSTED);
  CHECK_STR(lam_last_error(), "scratch: no memory for 2024 bytes");
  lam_scratch_close(&s);
  h.refuse = 0;
  CHECK_OK(lam_scratch_open(ctx, NULL, 0, 1000, &s));
  lam_scratch_close(&s);
  lam_context_destroy(ctx);
}

static void hammer(int rank, int size, void *arg) {
  lam_context *ctx = arg;
  rng r = {seed() + (uint64_t)rank};
  (void)size;
  for (int i = 0; i < 2000; i++) {
    lam_scratch s;
    const uint64_t need = (uint64_t)rng_int(&r, 1, 3000);
    REQUIRE_OK(lam_scratch_open(ctx, NULL, 0, need, &s));
    unsigned char *p = lam_scratch_take(&s, need);
    memset(p, rank, need);
    for (uint64_t k = 0; k < need; k += 97)
      if (p[k] != rank) check_fail(CHECK_AT, "another thread wrote to this thread's scratch");
    lam_scratch_close(&s);
  }
}

TEST(scratch, threads_never_share_a_block) {
  host h = {0};
  lam_context *ctx = context_of(&h);
  run_threads(4, hammer, ctx);
  const int before = h.n_alloc;
  for (int i = 0; i < 10; i++) {
    lam_scratch s;
    REQUIRE_OK(lam_scratch_open(ctx, NULL, 0, 16, &s));
    lam_scratch_close(&s);
  }
  CHECK_EQ(h.n_alloc, before);
  lam_context_destroy(ctx);
  CHECK_EQ(h.n_alloc, h.n_free);
}
