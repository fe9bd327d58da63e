/* tiles.c: how many chunks pay.
 *
 * In n chunks the products of one run beside the sum of the one before:
 *     product 0 | product 1, sum 0 | ... | product n-1, sum n-2 | sum n-1
 * so it takes product + (n - 1) max(product, sum) + sum, of a chunk each. A product takes whole
 * waves: every multiprocessor one tile at a time. Tried are 2, 4, 8 and as many as ranks, of whole
 * tiles of rows, where each fills the card at least once; one where none takes less.
 * Invariant: sizes and figures alone decide, in one order: every rank computes the same.
 * Leaves figures to the device's table of them. */
#include "plugin/ops/tiles.h"

static int64_t cuts(int64_t n, int64_t of) { return (n + of - 1) / of; }

/* Along the line through two steps, the last two beyond them; shorter than the first: as that. */
static int64_t moved_ns(const lam_pace_step *at, int64_t bytes) {
  int i = 1;
  if (bytes <= at[0].bytes) return at[0].ns;
  while (i + 1 < LAM_PACE_STEPS && at[i + 1].bytes > 0 && at[i].bytes < bytes) i++;
  const lam_pace_step a = at[i - 1], b = at[i];
  return a.ns +
         (int64_t)((double)(bytes - a.bytes) * (double)(b.ns - a.ns) / (double)(b.bytes - a.bytes));
}

static int64_t tiles_of(const lam_tile_work *w, const lam_pace *p, int i, int64_t rows) {
  return cuts(rows, p->tile_rows) * cuts(w->product[i].n, p->tile_cols);
}

static int64_t products_ns(const lam_tile_work *w, const lam_pace *p, int64_t rows) {
  int64_t ns = 0;
  for (int i = 0; i < w->n_products; i++) {
    const int64_t waves = cuts(tiles_of(w, p, i, rows), p->n_sms);
    const double wave = 2.0 * p->tile_rows * p->tile_cols * (double)w->product[i].k * p->n_sms;
    ns +=
        p->launch_ns + (int64_t)((double)waves * wave / (double)p->product_flops_per_ns[w->dtype]);
  }
  return ns;
}

/* What a rank sends, and receives, of so many rows; whole: that all have in the end. */
static int64_t travel_ns(const lam_tile_work *w, const lam_group_pace *pace, int size,
                         int64_t rows) {
  const int64_t bytes = rows * w->moved_cols * w->moved_bytes / size * (size - 1);
  return pace->card.launch_ns + moved_ns(pace->way, w->one_way ? bytes : 2 * bytes);
}

/* Rows of the largest of n chunks. */
static int64_t chunk_of(const lam_tile_work *w, const lam_pace *p, int n) {
  return cuts(cuts(w->rows, p->tile_rows), n) * p->tile_rows;
}

/* The smallest of n chunks but the last, whose rows may end within a tile, is a wave at least. */
static bool fills(const lam_tile_work *w, const lam_pace *p, int n) {
  const int64_t rows = w->rows / p->tile_rows / n * p->tile_rows;
  return rows > 0 && tiles_of(w, p, w->n_products - 1, rows) >= p->n_sms;
}

static int64_t time_of(const lam_tile_work *w, const lam_group_pace *pace, int size, int n) {
  const int64_t rows = n == 1 ? w->rows : chunk_of(w, &pace->card, n);
  const int64_t product = products_ns(w, &pace->card, rows);
  const int64_t travel = travel_ns(w, pace, size, rows);
  return product + (n - 1) * (product > travel ? product : travel) + travel;
}

static bool has_pace(const lam_tile_work *w, const lam_group_pace *pace) {
  return w->rows > 0 && pace->card.product_flops_per_ns[w->dtype] > 0 && pace->card.n_sms > 0;
}

static lam_tiles settle(lam_tiles t) {
  t.reason = t.other == 0 ? LAM_TILES_WAVE : t.ns < t.whole_ns ? LAM_TILES_PAY : LAM_TILES_COST;
  t.n = t.reason == LAM_TILES_PAY ? t.other : 1;
  return t;
}

lam_tiles lam_tiles_choose(const lam_tile_work *w, const lam_group_pace *pace, int size) {
  const int tries[] = {2, 4, 8, size};
  lam_tiles t = {.n = 1, .reason = LAM_TILES_NO_PACE};
  if (!has_pace(w, pace)) return t;
  t.whole_ns = time_of(w, pace, size, 1);
  for (int i = 0; i < 4; i++) {
    if (!fills(w, &pace->card, tries[i])) continue;
    const int64_t ns = time_of(w, pace, size, tries[i]);
    if (t.other == 0 || ns < t.ns) t.other = tries[i], t.ns = ns;
  }
  return settle(t);
}

/* The own rows wait for nobody: their product runs beside the first that come. */
lam_tiles lam_tiles_by_source(const lam_tile_work *w, const lam_group_pace *pace, int size) {
  lam_tiles t = {.n = 1, .reason = LAM_TILES_NO_PACE};
  if (!has_pace(w, pace)) return t;
  const int64_t rows = w->rows / size;
  const int64_t product = products_ns(w, &pace->card, rows);
  const int64_t travel =
      pace->card.launch_ns + moved_ns(pace->way, rows * w->moved_cols * w->moved_bytes);
  t.whole_ns = products_ns(w, &pace->card, w->rows) + travel_ns(w, pace, size, w->rows);
  t.ns = product + (size - 1) * (product > travel ? product : travel);
  if (fills(w, &pace->card, size)) t.other = size;
  return settle(t);
}
