/* context.c: threads, memory and hooks of one model.
 * Invariant: every byte a context holds went through lam_context_alloc and is in its counts.
 * Leaves scratch blocks to scratch.c, how OpenMP threads run to kernels/cpu/parallel. */
#include "plugin/core/context_impl.h"

#include <pthread.h>
#include <sched.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>

#include "kernels/cpu/parallel.h"
#include "plugin/core/struct.h"

#define ALIGNMENT 64
#define MOST_THREADS 4096

/* -- memory -- */

static void *plain_alloc(void *user, uint64_t bytes, uint64_t alignment) {
  (void)user;
  return bytes > SIZE_MAX - alignment
             ? NULL
             : aligned_alloc(alignment, (bytes + alignment - 1) / alignment * alignment);
}

static void plain_free(void *user, void *p, uint64_t bytes) {
  (void)user;
  (void)bytes;
  free(p);
}

static void raise_peak(lam_context *ctx, uint64_t bytes) {
  uint64_t peak = atomic_load_explicit(&ctx->peak_bytes, memory_order_relaxed);
  while (bytes > peak && !atomic_compare_exchange_weak(&ctx->peak_bytes, &peak, bytes)) continue;
}

void *lam_context_alloc(lam_context *ctx, uint64_t bytes) {
  void *p = ctx->hooks.alloc(ctx->hooks.user, bytes, ALIGNMENT);
  if (!p) return NULL;
  atomic_fetch_add(&ctx->allocations, 1);
  raise_peak(ctx, atomic_fetch_add(&ctx->bytes, bytes) + bytes);
  return p;
}

void lam_context_free(lam_context *ctx, void *p, uint64_t bytes) {
  if (!p) return;
  ctx->hooks.free(ctx->hooks.user, p, bytes);
  atomic_fetch_sub(&ctx->bytes, bytes);
}

void lam_context_count_arena(lam_context *ctx, int64_t bytes) {
  atomic_fetch_add(&ctx->arena_bytes, (uint64_t)bytes);
}

/* -- threads -- */

/* A pool of the host's may use every CPU we may run on; without one, OpenMP decides. */
static int default_threads(bool own_pool) {
  cpu_set_t usable;
  if (!own_pool) return lam_cpu_host_threads();
  return sched_getaffinity(0, sizeof usable, &usable) == 0 ? CPU_COUNT(&usable) : 1;
}

static void spread(void *context, int64_t n, void (*fn)(void *arg, int64_t i), void *arg) {
  lam_context *ctx = context;
  if (n > 1 && ctx->hooks.parallel_for)
    ctx->hooks.parallel_for(ctx->hooks.user, n, fn, arg);
  else
    lam_cpu_parallel_for(ctx->workers.n_threads, n, fn, arg);
}

static void *worker_alloc(void *context, uint64_t bytes) {
  return lam_context_alloc(context, bytes);
}
static void worker_free(void *context, void *p, uint64_t bytes) {
  lam_context_free(context, p, bytes);
}
static void *worker_borrow(void *context, uint64_t bytes) {
  return lam_context_borrow(context, bytes);
}
static void worker_give_back(void *context, void *p) { lam_context_give_back(context, p); }

/* -- life -- */

static void context_init(lam_context *ctx, const lam_context_desc *desc) {
  ctx->hooks = *desc;
  if (!desc->alloc) {
    ctx->hooks.alloc = plain_alloc;
    ctx->hooks.free = plain_free;
  }
  const int threads = desc->threads ? desc->threads : default_threads(desc->parallel_for != NULL);
  ctx->workers = (lam_workers){
      .context = ctx,
      .n_threads = threads < 1              ? 1
                   : threads < MOST_THREADS ? threads
                                            : MOST_THREADS,
      .parallel_for = spread,
      .alloc = worker_alloc,
      .free = worker_free,
      .borrow = worker_borrow,
      .give_back = worker_give_back,
      .own_pool = desc->parallel_for != NULL,
  };
}

static lam_status check_desc(const lam_context_desc *desc) {
  LAM_TRY(lam_struct_check("lam_context_create", "lam_context_desc", desc, sizeof *desc));
  if (desc->threads < 0 || desc->threads > MOST_THREADS)
    return lam_fail(LAM_INVALID_ARGUMENT, "lam_context_create: threads is %d, expected 0 to %d",
                    desc->threads, MOST_THREADS);
  if (desc->tf32 < 0 || desc->tf32 > 1 || desc->reserved)
    return lam_fail(LAM_INVALID_ARGUMENT,
                    "lam_context_create: tf32 is %d, expected 0 or 1, and reserved 0", desc->tf32);
  if (!desc->alloc != !desc->free)
    return lam_fail(LAM_INVALID_ARGUMENT,
                    "lam_context_create: %s is NULL, expected both alloc and free or neither",
                    desc->alloc ? "free" : "alloc");
  return LAM_OK;
}

lam_status lam_context_create(const lam_context_desc *desc, lam_context **out_ctx) {
  const lam_context_desc defaults = LAM_CONTEXT_DESC_INIT;
  if (!out_ctx) return lam_fail(LAM_INVALID_ARGUMENT, "lam_context_create: out_ctx is NULL");
  *out_ctx = NULL;
  if (desc) LAM_TRY(check_desc(desc));

  lam_context *ctx = calloc(1, sizeof *ctx);
  if (!ctx) return lam_fail(LAM_RESOURCE_EXHAUSTED, "lam_context_create: no memory");
  context_init(ctx, desc ? desc : &defaults);
  *out_ctx = ctx;
  return LAM_OK;
}

void lam_context_destroy(lam_context *ctx) {
  if (!ctx) return;
  lam_scratch_clear(ctx);
  free(ctx);
}

static lam_context the_default;
static atomic_bool default_is_made;

static void init_default(void) {
  const lam_context_desc defaults = LAM_CONTEXT_DESC_INIT;
  context_init(&the_default, &defaults);
  atomic_store_explicit(&default_is_made, true, memory_order_release);
}

lam_context *lam_context_default(void) {
  static pthread_once_t once = PTHREAD_ONCE_INIT;
  if (!atomic_load_explicit(&default_is_made, memory_order_acquire)) /* the way of every call */
    pthread_once(&once, init_default);
  return &the_default;
}

/* -- what others ask of it -- */

const lam_workers *lam_context_workers(lam_context *ctx) { return &ctx->workers; }

lam_status lam_context_get_stats(const lam_context *ctx, lam_context_stats *out_stats) {
  LAM_TRY(
      lam_struct_check("lam_context_get_stats", "lam_context_stats", out_stats, sizeof *out_stats));
  if (!ctx) ctx = lam_context_default();
  out_stats->allocations = atomic_load(&ctx->allocations);
  out_stats->bytes = atomic_load(&ctx->bytes);
  out_stats->peak_bytes = atomic_load(&ctx->peak_bytes);
  out_stats->arena_bytes = atomic_load(&ctx->arena_bytes);
  return LAM_OK;
}

bool lam_context_tf32(const lam_context *ctx) { return ctx->hooks.tf32 != 0; }

bool lam_context_should_stop(lam_context *ctx) {
  return ctx->hooks.should_stop && ctx->hooks.should_stop(ctx->hooks.user) != 0;
}

void lam_context_log(lam_context *ctx, int level, const char *format, ...) {
  char line[LAM_MESSAGE_BYTES];
  if (!ctx->hooks.log) return;
  va_list args;
  va_start(args, format);
  vsnprintf(line, sizeof line, format, args);
  va_end(args);
  ctx->hooks.log(ctx->hooks.user, level, line);
}
