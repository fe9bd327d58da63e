/* chunks.c: how many chunks of rows a product that is summed over the group is cut into: the second
 * level of tiling.
 *
 * Invariant: the choice follows from attributes, sizes and figures that all ranks have alike, never
 * from one rank's own share of the features.
 * Leaves the chunks' work to sum.c, what a choice is worth on a device to tiles.c. */
#include <stdarg.h>
#include <stdio.h>

#include "plugin/ops/common.h"

/* ffn, H = 4096, one core, thread time against one chunk: chunks of 256 rows cost nothing at 512
 * rows and save 4 % at 2048, as the hidden part stays in cache; chunks of 128 rows cost 1 % with
 * packed weights and 5 % with plain ones, of 64 rows 3 % and 16 %. So LAM_ROWS_THAT_PAY. */
#define MOST_CHUNKS 65536

static __attribute__((format(printf, 2, 3))) void say(const lam_op_call *call, const char *format,
                                                      ...) {
  va_list args;
  if (!call->why) return;
  va_start(args, format);
  (void)vsnprintf(call->why, LAM_WHY_BYTES, format, args);
  va_end(args);
}

/* Whole tiles of rows, where there are as many. */
static int unit_of(const lam_op_call *call, int64_t rows, int64_t n) {
  enum { TILE_ROWS = 128 };
  return call->device->order && rows / TILE_ROWS >= n ? TILE_ROWS : 1;
}

lam_chunks lam_chunks_asked(const lam_op_call *call, int64_t rows, int64_t otherwise) {
  const int64_t asked = call->attr.chunks > 0 ? call->attr.chunks : otherwise;
  const int64_t most = rows < MOST_CHUNKS ? rows : MOST_CHUNKS;
  const int64_t n = asked < most ? asked : most;
  if (call->attr.chunks > 0) say(call, "attribute chunks is %lld", (long long)call->attr.chunks);
  return (lam_chunks){rows, n > 1 ? (int)n : 1, unit_of(call, rows, n)};
}

static lam_chunks by_rows(const lam_op_call *call, int64_t rows) {
  say(call, "%d rows or more each", LAM_ROWS_THAT_PAY);
  return lam_chunks_asked(call, rows, rows / LAM_ROWS_THAT_PAY);
}

/* ---- On a device ----------------------------------------------------------------------------- */

/* Why nothing can be said of a call's chunks but that it is not cut; NULL: the figures decide. */
static const char *reason_for_one(const lam_op_call *call) {
  const lam_group *g = lam_op_peers(call);
  if (!g) return "one rank has nobody to sum or gather with";
  if (!g->pace) return "the ranks have not met on this device yet: their first call is not cut";
  return g->pace->why_not;
}

static void say_times(const lam_op_call *call, const lam_tiles *t, const char *what) {
  say(call, "%s: %lld us in 1, %lld us in %d", what, (long long)t->whole_ns / 1000,
      (long long)t->ns / 1000, t->other);
}

static void say_tiles(const lam_op_call *call, const lam_tile_work *w, const lam_tiles *t) {
  const lam_pace *p = &call->group->pace->card;
  if (t->reason == LAM_TILES_PAY) say_times(call, t, "by the figures of this card");
  if (t->reason == LAM_TILES_COST) say_times(call, t, "more would take longer");
  if (t->reason == LAM_TILES_WAVE)
    say(call, "chunks of these %lld rows would be less than a wave: %d tiles of %d x %d",
        (long long)w->rows, p->n_sms, p->tile_rows, p->tile_cols);
  if (t->reason == LAM_TILES_NO_PACE)
    say(call, "there are no figures of %s products", lam_dtype_name(w->dtype));
}

static lam_chunks by_figures(const lam_op_call *call, const lam_tile_work *w) {
  const char *one = reason_for_one(call);
  if (one) {
    say(call, "%s", one);
    return (lam_chunks){w->rows, 1, 1};
  }
  const lam_tiles t = lam_tiles_choose(w, call->group->pace, lam_op_size(call));
  say_tiles(call, w, &t);
  return (lam_chunks){w->rows, t.n, call->group->pace->card.tile_rows};
}

static lam_chunks on_device(const lam_op_call *call, const lam_tile_work *w) {
  return call->attr.chunks > 0 ? lam_chunks_asked(call, w->rows, 1) : by_figures(call, w);
}

/* How much of a dimension that is split is one rank's, as all would guess: by attribute total,
 * where it is given; a rank's own share is not known to the others. */
static int64_t share_of(const lam_op_call *call, int64_t otherwise) {
  const int64_t total = call->attr.total ? call->attr.total : otherwise;
  return (total + lam_op_size(call) - 1) / lam_op_size(call);
}

static lam_tile_work summed(const lam_op_call *call, int64_t rows, int64_t cols) {
  return (lam_tile_work){.rows = rows,
                         .moved_cols = cols,
                         .moved_bytes = sizeof(float),
                         .one_way = call->attr.seq != 0,
                         .dtype = call->in[0].dtype};
}

static __attribute__((noinline)) lam_chunks for_sum_on_device(const lam_op_call *call, int64_t rows,
                                                              int64_t cols) {
  lam_tile_work w = summed(call, rows, cols);
  w.n_products = 1;
  w.product[0].n = cols, w.product[0].k = share_of(call, cols);
  return on_device(call, &w);
}

/* An ffn's hidden features are each rank's own to know: most have four times the outer ones. */
static __attribute__((noinline)) lam_chunks for_ffn_on_device(const lam_op_call *call, int64_t rows,
                                                              int64_t cols) {
  const int64_t hidden = (4 * cols + lam_op_size(call) - 1) / lam_op_size(call);
  lam_tile_work w = summed(call, rows, cols);
  w.n_products = 2;
  w.product[0].n = hidden, w.product[0].k = cols;
  w.product[1].n = cols, w.product[1].k = hidden;
  return on_device(call, &w);
}

/* ---- Rows from the ranks that have them -------------------------------------------------------- */

static bool pays_by_source(const lam_op_call *call, int64_t rows, int64_t cols, int64_t results) {
  const lam_tile_work w = {.rows = rows,
                           .n_products = 1,
                           .product = {{.n = share_of(call, results), .k = cols}},
                           .moved_cols = cols,
                           .moved_bytes = lam_dtype_bytes(call->in[0].dtype),
                           .one_way = true,
                           .dtype = call->in[0].dtype};
  const char *one = reason_for_one(call);
  if (one) {
    say(call, "%s", one);
    return false;
  }
  const lam_tiles t = lam_tiles_by_source(&w, call->group->pace, lam_op_size(call));
  say_tiles(call, &w, &t);
  return t.n > 1;
}

bool lam_chunks_study_source(const lam_op_call *call, int64_t rows, int64_t cols, int64_t results) {
  if (call->attr.chunks > 0) return call->attr.chunks > 1;
  return pays_by_source(call, rows, cols, results);
}

/* ---- Both ------------------------------------------------------------------------------------ */

lam_chunks lam_chunks_study_ffn(const lam_op_call *call, int64_t rows, int64_t cols) {
  return call->device->order ? for_ffn_on_device(call, rows, cols) : by_rows(call, rows);
}

lam_chunks lam_chunks_study_sum(const lam_op_call *call, int64_t rows, int64_t cols) {
  if (call->device->order) return for_sum_on_device(call, rows, cols);
  if (lam_op_peers(call)) return by_rows(call, rows);
  say(call, "one rank has nobody to sum with");
  return lam_chunks_asked(call, rows, 1);
}
