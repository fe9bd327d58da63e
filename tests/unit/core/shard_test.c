/* shard_test.c: the uneven rule, and the size rule of public structs. */
#include "plugin/core/shard.h"

#include "plugin/core/struct.h"
#include "tests/unit/core/host.h"

TEST(share, covers_everything_once_with_larger_shares_first) {
  rng r = {seed()};
  for (int i = 0; i < 2000; i++) {
    const int size = (int)rng_int(&r, 1, 9);
    const int64_t unit = rng_int(&r, 1, 5), total = unit * rng_int(&r, 0, 40);
    int64_t first[10];
    NOTE("total %lld unit %lld size %d", (long long)total, (long long)unit, size);
    lam_share(total, unit, size, first);
    CHECK_EQ(first[0], 0);
    CHECK_EQ(first[size], total);
    for (int k = 0; k < size; k++) {
      const int64_t mine = first[k + 1] - first[k];
      CHECK_EQ(mine % unit, 0);
      CHECK_EQ(mine, unit * (total / unit / size + (k < total / unit % size)));
    }
  }
}

TEST(shard, a_rank_owns_one_piece_or_one_of_each_half) {
  lam_shard_info s = LAM_SHARD_INFO_INIT;
  CHECK_OK(lam_shard(10, 1, 0, 1, 4, &s)); /* shares 3 3 2 2 */
  CHECK_EQ(s.n_pieces, 1);
  CHECK_EQ(s.pieces[0].begin, 3);
  CHECK_EQ(s.pieces[0].end, 6);
  CHECK_OK(lam_shard(12, 4, 1, 1, 2, &s)); /* heads of 4: 2 and 1; [gate | up] of 24 */
  CHECK_EQ(s.n_pieces, 2);
  CHECK_EQ(s.pieces[0].begin, 8);
  CHECK_EQ(s.pieces[0].end, 12);
  CHECK_EQ(s.pieces[1].begin, 20);
  CHECK_EQ(s.pieces[1].end, 24);
  CHECK_OK(lam_shard(2, 0, 0, 3, 4, &s)); /* nothing left for the last rank */
  CHECK_EQ(s.pieces[0].begin, 2);
  CHECK_EQ(s.pieces[0].end, 2);
}

TEST(shard, wrong_numbers_are_refused) {
  lam_shard_info s = LAM_SHARD_INFO_INIT;
  CHECK_REFUSED(lam_shard(8, 1, 0, 0, 0, &s), "lam_shard: size is 0, expected at least 1");
  CHECK_REFUSED(lam_shard(8, 1, 0, 2, 2, &s), "lam_shard: rank is 2, expected 0 to 1");
  CHECK_REFUSED(lam_shard(8, 1, 2, 0, 2, &s), "lam_shard: gated is 2, expected 0 or 1");
  CHECK_REFUSED(lam_shard(-8, 1, 0, 0, 2, &s),
                "lam_shard: total is -8 and unit 1, expected neither negative nor over 2^62");
  CHECK_REFUSED(lam_shard(10, 4, 0, 0, 2, &s),
                "lam_shard: total is 10, expected a multiple of unit 4");
  CHECK_REFUSED(lam_shard(8, 1, 0, 0, 2, NULL), "lam_shard: lam_shard_info is NULL");
  CHECK_EQ(s.n_pieces, 0);
}

/* -- struct_size -- */

typedef struct grown { /* lam_shard_info as a newer library might have it */
  lam_shard_info now;
  uint64_t later;
} grown;

TEST(structs, a_size_that_is_too_small_or_absurd_is_refused) {
  lam_shard_info s = LAM_SHARD_INFO_INIT;
  s.struct_size = 8;
  CHECK_REFUSED(
      lam_struct_check("lam_shard", "lam_shard_info", &s, sizeof s),
      "lam_shard: lam_shard_info: struct_size is 8, expected 40 (its _INIT macro sets it)");
  s.struct_size = 0xffffffff;
  CHECK_REFUSED(lam_struct_check("lam_shard", "lam_shard_info", &s, sizeof s),
                "lam_shard: lam_shard_info: struct_size is 4294967295, expected 40 (its _INIT "
                "macro sets it)");
}

TEST(structs, what_the_library_does_not_know_must_be_zero) {
  grown g = {.now = LAM_SHARD_INFO_INIT};
  g.now.struct_size = sizeof g;
  CHECK_OK(lam_struct_check("lam_shard", "lam_shard_info", &g, sizeof g.now));
  CHECK_OK(lam_shard(10, 1, 0, 0, 4, &g.now));
  CHECK_EQ(g.now.struct_size, sizeof g);
  g.later = 1ull << 32;
  CHECK_STATUS(lam_shard(10, 1, 0, 0, 4, &g.now), LAM_UNIMPLEMENTED);
  CHECK_STR(lam_last_error(),
            "lam_shard: lam_shard_info: byte 44 is not zero, and this library knows only 40: it is "
            "older than the caller");
}
