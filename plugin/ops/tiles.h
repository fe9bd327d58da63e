/* tiles.h: how many chunks pay where sums run beside products: the second level of tiling, on
 * devices that queue their work.
 *
 * Invariant: a pure function of what all ranks have alike.
 * Leaves who asks, and what is cut, to chunks.c. */
#ifndef LAMELLA_PLUGIN_OPS_TILES_H
#define LAMELLA_PLUGIN_OPS_TILES_H

#include "plugin/comm/group.h"

/* What is cut by rows: products one after another, the last one's results [rows, n] then summed, in
 * f32, or an operand [rows, k] gathered before the first. */
typedef struct lam_tile_work {
  int64_t rows;
  int n_products;
  struct {
    int64_t n, k; /* of one rank, as all ranks would guess it */
  } product[2];
  int64_t moved_cols; /* of what is summed or gathered */
  int moved_bytes;    /* an element's */
  bool one_way;       /* gathered, or summed to shares; else summed to all */
  lam_dtype dtype;    /* of the products' factors */
} lam_tile_work;

typedef enum lam_tile_reason {
  LAM_TILES_PAY,
  LAM_TILES_COST, /* more would take longer */
  LAM_TILES_WAVE, /* half of the rows would not fill the card */
  LAM_TILES_NO_PACE
} lam_tile_reason;

typedef struct lam_tiles {
  int n;
  lam_tile_reason reason;
  int64_t ns, whole_ns; /* in n chunks, or in the best number above 1; in one */
  int other;            /* that best number */
} lam_tiles;

lam_tiles lam_tiles_choose(const lam_tile_work *w, const lam_group_pace *pace, int size);
/* Whether gathered rows are best multiplied as they come from each of `size` ranks: n is size or
 * 1. */
lam_tiles lam_tiles_by_source(const lam_tile_work *w, const lam_group_pace *pace, int size);

#endif
