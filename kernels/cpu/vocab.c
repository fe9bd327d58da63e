/* vocab.c: rows of a vocabulary by index: taken out, and summed back in.
 *
 * Invariant: a row's sum runs over its tokens in their order, whatever the number of workers; it is
 * rounded once.
 * Leaves the loops to lanes.h, the cutting to work.c, the cross entropy to cross_entropy.c. */
#include <string.h>

#include "kernels/cpu/cpu.h"
#include "kernels/cpu/lanes.h"

lam_status lam_find_outside_run(const lam_workers *w, lam_matrix ids, int64_t total,
                                const int64_t *ignored, lam_outside *out, void *stream) {
  const int64_t n = ids.rows * ids.cols;
  (void)w, (void)stream;
  *out = (lam_outside){-1, 0};
  for (int64_t i = 0; i < n; i++) {
    const int64_t id = lam_index_at(ids, i);
    if ((uint64_t)id < (uint64_t)total || (ignored && id == *ignored)) continue;
    *out = (lam_outside){i, id};
    return LAM_OK;
  }
  return LAM_OK;
}

typedef struct rows_call {
  const lam_lanes *lanes;
  lam_matrix weight, ids, y; /* weight [n, K]  y [T, K] */
  int64_t first;
  const int64_t *head, *next; /* scatter: a row's first token, a token's next; -1: none */
  bool accumulate;
} rows_call;

static lam_status check(const char *who, lam_matrix m) {
  if (lam_is_float(m.dtype)) return LAM_OK;
  return lam_fail(LAM_UNIMPLEMENTED, "cpu %s: rows of %s, the CPU has f32 and bf16", who,
                  lam_dtype_name(m.dtype));
}

static void clear(const rows_call *c, lam_line y, int64_t n) {
  static const float zero = 0.0f;
  c->lanes->copy((lam_line){(void *)&zero, 0, LAM_F32}, y, n);
}

/* One dtype: as bytes where elements lie close together. */
static void move(const rows_call *c, lam_line from, lam_line to, int64_t n) {
  if (from.stride == 1 && to.stride == 1)
    memcpy(to.data, from.data, (size_t)(n * lam_dtype_bytes(to.dtype)));
  else
    c->lanes->copy(from, to, n);
}

static void gather_piece(void *arg, int64_t row, int64_t col, int64_t n) {
  const rows_call *c = arg;
  const int64_t from = lam_index_at(c->ids, row) - c->first;
  const lam_line y = lam_line_at(c->y, row, col);
  if (from >= 0 && from < c->weight.rows)
    move(c, lam_line_at(c->weight, from, col), y, n);
  else
    clear(c, y, n);
}

lam_status lam_gather_run(const lam_workers *w, lam_matrix weight, lam_matrix ids, int64_t first,
                          lam_matrix y, void *stream) {
  (void)stream;
  LAM_TRY(check("gather", weight));
  rows_call c = {.lanes = lam_lanes_pick(), .weight = weight, .ids = ids, .y = y, .first = first};
  lam_cpu_each_piece(w, y.rows, y.cols, gather_piece, &c);
  return LAM_OK;
}

/* From the last token to the first, so that a row's chain runs from the first to the last. */
static void chain(lam_matrix ids, int64_t first, int64_t n_rows, int64_t *head, int64_t *next) {
  for (int64_t row = 0; row < n_rows; row++) head[row] = -1;
  for (int64_t t = ids.rows * ids.cols - 1; t >= 0; t--) {
    const int64_t row = lam_index_at(ids, t) - first;
    if (row < 0 || row >= n_rows) continue;
    next[t] = head[row];
    head[row] = t;
  }
}

enum { COL_BLOCK = 512 };

static void sum_tokens(const rows_call *c, int64_t row, int64_t col, int64_t n) {
  float total[COL_BLOCK] = {0};
  for (int64_t t = c->head[row]; t >= 0; t = c->next[t])
    c->lanes->add(lam_line_at(c->y, t, col), total, n);
  const lam_finish f = {.d = lam_line_at(c->weight, row, col), .accumulate = c->accumulate};
  c->lanes->finish(total, &f, n);
}

static void scatter_piece(void *arg, int64_t row, int64_t col, int64_t n) {
  const rows_call *c = arg;
  if (c->head[row] < 0) {
    if (!c->accumulate) clear(c, lam_line_at(c->weight, row, col), n);
    return;
  }
  for (int64_t at = 0; at < n; at += COL_BLOCK)
    sum_tokens(c, row, col + at, lam_least(COL_BLOCK, n - at));
}

lam_status lam_scatter_run(const lam_workers *w, lam_matrix dy, lam_matrix ids, int64_t first,
                           int64_t *links, lam_matrix dw, bool accumulate, void *stream) {
  (void)stream;
  LAM_TRY(check("scatter", dy));
  LAM_TRY(check("scatter", dw));
  int64_t *next = links + dw.rows;
  chain(ids, first, dw.rows, links, next);
  rows_call c = {.lanes = lam_lanes_pick(),
                 .weight = dw,
                 .ids = ids,
                 .y = dy,
                 .first = first,
                 .head = links,
                 .next = next,
                 .accumulate = accumulate};
  lam_cpu_each_piece(w, dw.rows, dw.cols, scatter_piece, &c);
  return LAM_OK;
}
