/* shm_test.c: the parts of the shared-memory engine that need no ranks: copies that peers read
 * next. */
#include <stdlib.h>
#include <string.h>

#include "plugin/comm/shm/shm.h"
#include "tests/check.h"

/* ---- Copies ---------------------------------------------------------------------------------- */

enum { MOST = 70000, AROUND = 64 };

/* to + at is filled from from + off, and nothing else is written. */
static void fill_once(lam_world *w, int64_t bytes, int at, int off) {
  static _Alignas(64) unsigned char from[MOST + 2 * AROUND], to[MOST + 2 * AROUND],
      want[MOST + 2 * AROUND];
  rng r = {seed() + (uint64_t)bytes};
  NOTE("%lld bytes, from %d to %d", (long long)bytes, off, at);
  for (int64_t i = 0; i < bytes; i++) from[off + i] = (unsigned char)rng_next(&r);
  memset(to, 42, sizeof to);
  memset(want, 42, sizeof want);
  memcpy(want + at, from + off, (size_t)bytes);
  lam_shm_fill(w, to + at, from + off, bytes);
  CHECK_SAME_BITS(to, want, sizeof want);
}

static void fill_sizes(lam_world *w) {
  rng r = {seed()};
  FOR_EACH(bytes, 0, 1, 63, 4095, 4096, 4097, 4159, 16383, 16384, 16385, 65536, MOST)
  FOR_EACH(at, 0, 1, 15, 63) fill_once(w, bytes, at, (int)rng_int(&r, 0, AROUND));
}

TEST(fill, copies_any_size_to_any_place) { fill_sizes(&(lam_world){0}); }

TEST(fill, streams_any_size_to_any_place_while_peers_are_far) {
  lam_world w = {.probe_at = INT64_MAX};
  CHECK(shm_peers_are_far(&w));
  fill_sizes(&w);
  CHECK(w.probe_at == INT64_MAX && w.slow_fills == 0); /* no copy was plain, so none was timed */
}

TEST(fill, tries_plain_copies_again_when_their_time_has_come) {
  lam_world w = {.probe_at = 1};
  fill_once(&w, MOST, 0, 0);
  CHECK(w.probe_at == 0); /* one slow copy is not enough */
}
