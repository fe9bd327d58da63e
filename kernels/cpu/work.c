/* work.c: cutting work into pieces for the workers, and each thread's own memory.
 *
 * Invariant: pieces depend on the shape alone, never on the number of workers; a thread's memory is
 * freed when it ends.
 * Leaves running the pieces to the context's parallel_for. */
#include <pthread.h>
#include <stdatomic.h>
#include <stdlib.h>

#include "kernels/cpu/cpu.h"

void lam_cpu_spread(const lam_workers *w, int64_t n, void (*fn)(void *arg, int64_t i), void *arg) {
  if (n > 1 && w->n_threads > 1) {
    w->parallel_for(w->context, n, fn, arg);
    return;
  }
  for (int64_t i = 0; i < n; i++) fn(arg, i);
}

/* -- pieces of rows -- */

enum {
  PIECE_MAX = 8192,
  TASK_ELEMENTS = 32768 /* about 10 us of work, as starting a team takes 1-3 us */
};

typedef struct pieces {
  lam_piece_fn fn;
  void *arg;
  int64_t rows, cols, width, rows_per_task, cuts_per_row; /* width of a piece */
} pieces;

static void run_pieces(void *arg, int64_t task) {
  const pieces *p = arg;
  const int64_t first = task / p->cuts_per_row * p->rows_per_task;
  const int64_t col = task % p->cuts_per_row * p->width;
  const int64_t last = lam_least(p->rows, first + p->rows_per_task),
                n = lam_least(p->width, p->cols - col);
  for (int64_t row = first; row < last; row++) p->fn(p->arg, row, col, n);
}

void lam_cpu_each_piece(const lam_workers *w, int64_t rows, int64_t cols, lam_piece_fn fn,
                        void *arg) {
  if (rows <= 0 || cols <= 0) return;
  const int64_t per_task = TASK_ELEMENTS / lam_least(cols, PIECE_MAX);
  pieces p = {fn, arg, rows, cols, PIECE_MAX, per_task, lam_cuts(cols, PIECE_MAX)};
  lam_cpu_spread(w, lam_cuts(rows, per_task) * p.cuts_per_row, run_pieces, &p);
}

void lam_cpu_each_row(const lam_workers *w, int64_t rows, int64_t cols, lam_piece_fn fn,
                      void *arg) {
  const int64_t per_task = TASK_ELEMENTS / lam_least(cols + 1, TASK_ELEMENTS);
  pieces p = {fn, arg, rows, cols, cols, per_task, 1};
  lam_cpu_spread(w, lam_cuts(rows, per_task), run_pieces, &p);
}

/* -- a thread's memory -- */

typedef struct block {
  void *data;
  uint64_t bytes;
} block;

static _Thread_local block mine[LAM_N_SCRATCH_USES];
static _Atomic int64_t bytes_held;
static pthread_key_t at_thread_end;

static void give_back(block *b) {
  free(b->data);
  atomic_fetch_sub(&bytes_held, (int64_t)b->bytes);
  *b = (block){NULL, 0};
}

static void give_back_all(void *blocks) {
  for (int i = 0; i < LAM_N_SCRATCH_USES; i++) give_back((block *)blocks + i);
}

static void make_key(void) { pthread_key_create(&at_thread_end, give_back_all); }

static bool grow(block *b, uint64_t bytes) {
  static pthread_once_t once = PTHREAD_ONCE_INIT;
  pthread_once(&once, make_key);
  pthread_setspecific(at_thread_end, mine);
  give_back(b);
  bytes = (bytes + 4095) / 4096 * 4096;
  if (posix_memalign(&b->data, 64, bytes) != 0) {
    b->data = NULL;
    return false;
  }
  b->bytes = bytes;
  atomic_fetch_add(&bytes_held, (int64_t)bytes);
  return true;
}

void *lam_cpu_scratch(lam_scratch_use use, uint64_t bytes) {
  block *b = &mine[use];
  if (b->bytes >= bytes && b->data) return b->data;
  if (grow(b, bytes)) return b->data;
  lam_fail(LAM_RESOURCE_EXHAUSTED, "kernels: %llu bytes of scratch memory could not be had",
           (unsigned long long)bytes);
  return NULL;
}

int64_t lam_cpu_scratch_bytes(void) { return atomic_load(&bytes_held); }
