/* peers_test.c: ranks as threads of one process that share a card: what their collectives give,
 * through the library's calls, in any order in which a card may run them. */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "tests/distributed/peers/cards.h"

enum { CHANCES = 5 };

static float value(int rank, int64_t i) {
  rng r = {seed() + (uint64_t)rank * 7919u + (uint64_t)i * 104729u};
  return rng_float(&r);
}

static void reduce_once(rank *r, int64_t n) {
  float *x = malloc((size_t)n * 4), *y = malloc((size_t)n * 4);
  for (int64_t i = 0; i < n; i++) x[i] = value(r->rank, i);
  void *dx = to_card(r, x, (uint64_t)n * 4), *dy = to_card(r, NULL, (uint64_t)n * 4);
  CHECK_OK(call(r, LAM_OP_all_reduce, LAM_F32, dx, n, dy, n));
  from_card(r, y, dy, (uint64_t)n * 4);
  for (int64_t i = 0; i < n; i++) {
    float want = value(0, i);
    for (int k = 1; k < r->size; k++) want += value(k, i);
    if (y[i] != want && !CHECK(y[i] == want)) break;
  }
  free(x);
  free(y);
}

static void reduce(rank *r) {
  FOR_EACH(n, 1, 7, 1000, 70001) reduce_once(r, n);
}

TEST(peers, all_reduce_sums_in_rank_order_on_the_card) {
  FOR_EACH(p, 2, 4)
  for (uint64_t k = 0; k < CHANCES; k++) on_cards(&(world){.chance = seed() + k}, p, reduce, NULL);
}
