/* tiles_test.c: how many chunks pay, of figures that can be computed by hand: a card of two
 * multiprocessors that multiplies one element in half a nanosecond, and a way that moves a byte in
 * one, after a microsecond. */
#include "plugin/ops/tiles.h"

#include "tests/check.h"

static const lam_group_pace pace = {.card = {.n_sms = 2,
                                             .tile_rows = 128,
                                             .tile_cols = 256,
                                             .product_flops_per_ns = {[LAM_F32] = 1}},
                                    .way = {{1, 1001}, {1001, 2001}}};

enum { WAVE = 2 * 128 * 256 * 2, START = 1000 }; /* ns, of k = 1 */

/* [rows, 256], summed over two ranks: as many bytes go out as there are in the part. */
static lam_tile_work summed(int64_t rows) {
  return (lam_tile_work){.rows = rows,
                         .n_products = 1,
                         .product = {{.n = 256, .k = 1}},
                         .moved_cols = 256,
                         .moved_bytes = 4,
                         .dtype = LAM_F32};
}

TEST(tiles, hide_what_moves_behind_products_where_that_is_shorter) {
  const lam_tile_work w = summed(512);
  const lam_tiles t = lam_tiles_choose(&w, &pace, 2);
  CHECK_EQ(t.n, 2); /* a quarter of the rows would leave one multiprocessor idle */
  CHECK_EQ(t.reason, LAM_TILES_PAY);
  CHECK_EQ(t.whole_ns, 2 * WAVE + START + 512 * 1024);
  CHECK_EQ(t.ns, WAVE + 2 * (START + 256 * 1024)); /* moving takes longer than a product */
}

TEST(tiles, are_one_where_less_would_not_fill_the_card) {
  const lam_tile_work w = summed(511); /* half: one whole tile of rows, for two multiprocessors */
  const lam_tiles t = lam_tiles_choose(&w, &pace, 2);
  CHECK_EQ(t.n, 1);
  CHECK_EQ(t.reason, LAM_TILES_WAVE);
}

TEST(tiles, are_one_where_more_would_take_longer) {
  lam_group_pace slow = pace;
  const lam_tile_work w = summed(512);
  slow.card.launch_ns = 200000; /* of each product, and of each sum */
  const lam_tiles t = lam_tiles_choose(&w, &slow, 2);
  CHECK_EQ(t.n, 1);
  CHECK_EQ(t.reason, LAM_TILES_COST);
  CHECK_EQ(t.other, 2);
  CHECK(t.ns >= t.whole_ns);
}

TEST(tiles, are_one_where_there_are_no_figures) {
  lam_tile_work w = summed(512);
  w.dtype = LAM_F8E4M3;
  CHECK_EQ(lam_tiles_choose(&w, &pace, 2).reason, LAM_TILES_NO_PACE);
  w = summed(0);
  CHECK_EQ(lam_tiles_choose(&w, &pace, 2).n, 1);
}

/* Rows [1024, 64] of f32, a quarter from each rank. */
TEST(tiles, of_gathered_rows_are_as_many_as_ranks_or_one) {
  lam_tile_work w = {.rows = 1024,
                     .n_products = 1,
                     .product = {{.n = 256, .k = 64}},
                     .moved_cols = 64,
                     .moved_bytes = 4,
                     .one_way = true,
                     .dtype = LAM_F32};
  const lam_tiles t = lam_tiles_by_source(&w, &pace, 4);
  CHECK_EQ(t.n, 4);
  CHECK_EQ(t.whole_ns, 4 * 64 * WAVE + START + 768 * 256);
  CHECK_EQ(t.ns, 4 * 64 * WAVE); /* the first rows are the own ones, all others hide behind them */
  w.rows = 512;                  /* a quarter is one tile */
  CHECK_EQ(lam_tiles_by_source(&w, &pace, 4).n, 1);
}
