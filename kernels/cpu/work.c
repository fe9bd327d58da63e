/* work.c: cutting work into pieces for the workers.
 * Invariant: pieces depend on the shape alone, never on the number of workers.
 * Leaves running the pieces, and memory for them, to the context. */
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

/* -- scratch -- */

void *lam_cpu_borrow(const lam_workers *w, uint64_t bytes) {
  void *p = w->borrow(w->context, bytes);
  if (!p)
    lam_fail(LAM_RESOURCE_EXHAUSTED, "kernels: %llu bytes of scratch memory could not be had",
             (unsigned long long)bytes);
  return p;
}
