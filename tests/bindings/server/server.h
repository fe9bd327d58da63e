/* server.h: what a server brings along: a thread pool, an allocator that counts, and requests to a
 * feed-forward block, checked against sums in double precision.
 * Invariant: a pool starts its threads when it opens and no other; any number of threads may call
 * it at once. Leaves what is checked of Lamella to the tests. */
#ifndef LAMELLA_TESTS_SERVER_H_
#define LAMELLA_TESTS_SERVER_H_

#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>

#include "tests/unit/core/host.h"

enum { POOL_THREADS = 2, MOST_TOKENS = 40, HIDDEN = 96, FFN = 1600 };

/* One call of parallel_for: its caller waits until no piece is left. */
typedef struct job {
  void (*fn)(void *arg, int64_t i);
  void *arg;
  int64_t n, next, left;
  struct job *after;
} job;

typedef struct pool {
  pthread_mutex_t lock;
  pthread_cond_t news;
  job *jobs; /* with pieces that nobody took yet */
  bool closing;
  pthread_t threads[POOL_THREADS];
  _Atomic int64_t sections, pieces, by_pool; /* so far; pieces that the pool's own threads ran */
} pool;

void pool_open(pool *p);
void pool_close(pool *p);
void pool_run(pool *p, int64_t n, void (*fn)(void *arg, int64_t i), void *arg);

/* A model's part of the server: `user` of its context. */
typedef struct model_host {
  pool *pool; /* NULL: none */
  _Atomic int64_t allocations, bytes, peak_bytes;
} model_host;

/* A context with this allocator and, where it has one, this pool. Without a pool: one thread. */
lam_context *model_context(model_host *h);

/* One request: y = relu(x w1^T) w2^T of `tokens` rows. Weights are the same for one seed. */
typedef struct weights {
  float w1[FFN * HIDDEN], w2[HIDDEN * FFN];
} weights;
weights *weights_make(uint64_t of);
/* Runs it in f32 with tokens drawn from r, and compares. */
void request_run(lam_context *ctx, const weights *w, rng *r, int64_t tokens);

/* An all_reduce of a one: the ranks of a group. */
lam_status sum_ones(int64_t handle, float *sum);

int count_tasks(void); /* threads of this process, as the kernel counts them */

#endif
