/* comm_test.c: the parts under groups that need no ranks: sums of arrays, shares as blocks,
 * announcements, wire headers. */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "plugin/comm/comm.h"
#include "tests/check.h"

/* ---- Sums ------------------------------------------------------------------------------------ */

static uint16_t bf16_of(float f) { /* exact for what the tests hand in */
  uint32_t bits;
  memcpy(&bits, &f, sizeof bits);
  return (uint16_t)(bits >> 16);
}

static uint16_t bf16_sum(uint16_t a, uint16_t b) {
  uint16_t y = 0;
  lam_add(LAM_BF16, (const void *[]){&a, &b}, 2, 1, &y);
  return y;
}

TEST(add, bf16_is_rounded_once_to_the_nearest_even) {
  CHECK_EQ(bf16_sum(bf16_of(1), bf16_of(0x1p-8f)), bf16_of(1)); /* a tie: down to even */
  CHECK_EQ(bf16_sum(bf16_of(1 + 0x1p-7f), bf16_of(0x1p-8f)),
           bf16_of(1 + 0x1p-6f)); /* a tie: up to even */
  CHECK_EQ(bf16_sum(bf16_of(1), bf16_of(0x1.8p-8f)), bf16_of(1 + 0x1p-7f));
  CHECK_EQ(bf16_sum(bf16_of(1), bf16_of(-1)), bf16_of(0));
  CHECK_EQ(bf16_sum(0x8000, 0x8000), 0x8000); /* -0 + -0 */
  const uint16_t third[3] = {bf16_of(1), bf16_of(0x1p-8f),
                             bf16_of(0x1p-8f)}; /* rounded in between, 1 */
  uint16_t y = 0;
  lam_add(LAM_BF16, (const void *[]){&third[0], &third[1], &third[2]}, 3, 1, &y);
  CHECK_EQ(y, bf16_of(1 + 0x1p-7f));
}

TEST(add, bf16_keeps_nan_and_infinity) {
  CHECK_EQ(bf16_sum(0x7f80, bf16_of(1)), 0x7f80);
  CHECK_EQ(bf16_sum(0x7f7f, 0x7f7f), 0x7f80); /* the largest twice */
  FOR_EACH(nan, 0x7f81, 0x7fff, 0xffff, 0x7fc0) {
    const uint16_t y = bf16_sum((uint16_t)nan, bf16_of(1));
    CHECK((y & 0x7f80) == 0x7f80 && (y & 0x7f) != 0);
  }
  const uint16_t y = bf16_sum(0x7f80, 0xff80);
  CHECK((y & 0x7f80) == 0x7f80 && (y & 0x7f) != 0);
}

TEST(add, any_length_and_place_adds_only_what_it_should) {
  enum { MOST = 300, PARTS = 5 };
  static float x[PARTS][MOST + 8], y[MOST + 8];
  rng r = {seed()};
  for (int n = 0; n < MOST; n += 1 + n / 40) FOR_EACH(off, 0, 1, 3) {
      const void *parts[PARTS];
      for (int p = 0; p < PARTS; p++) {
        for (int i = 0; i < MOST; i++) x[p][i + off] = rng_float(&r);
        parts[p] = x[p] + off;
      }
      for (int i = 0; i < MOST + 8; i++) y[i] = 42;
      lam_add(LAM_F32, parts, PARTS, n, y + off);
      for (int i = 0; i < n; i++) {
        float want = x[0][i + off];
        for (int p = 1; p < PARTS; p++) want += x[p][i + off];
        if (y[i + off] != want && !CHECK(y[i + off] == want)) return;
      }
      if (off > 0) CHECK(y[off - 1] == 42);
      CHECK(y[n + off] == 42);
    }
}

TEST(add, integers_wrap_around) {
  const int32_t a[2] = {INT32_MAX, -5}, b[2] = {1, 5};
  int32_t y[2];
  lam_add(LAM_I32, (const void *[]){a, b}, 2, 2, y);
  CHECK_EQ(y[0], INT32_MIN);
  CHECK_EQ(y[1], 0);
  const int64_t c = INT64_MIN, d = -1;
  int64_t z = 0;
  lam_add(LAM_I64, (const void *[]){&c, &d}, 2, 1, &z);
  CHECK(z == INT64_MAX);
}

TEST(add, says_which_dtypes_it_has) {
  FOR_EACH(t, LAM_F32, LAM_BF16, LAM_F64, LAM_I32, LAM_I64) CHECK(lam_add_supported((lam_dtype)t));
  FOR_EACH(t, LAM_F16, LAM_F8E4M3, LAM_F8E5M2, LAM_U8) CHECK(!lam_add_supported((lam_dtype)t));
}

/* ---- Blocks ---------------------------------------------------------------------------------- */

TEST(blocks, pieces_of_any_length_make_the_share) {
  enum { OUTER = 4, TOTAL = 9, INNER = 3 };
  const int64_t first[] = {0, 2, 2, 9};
  const lam_parts parts = {OUTER, INNER, first, LAM_BF16};
  uint16_t whole[OUTER * TOTAL * INNER], again[OUTER * TOTAL * INNER], share[OUTER * 7 * INNER];
  for (int i = 0; i < OUTER * TOTAL * INNER; i++) whole[i] = (uint16_t)(i * 31);
  for (int piece = 1; piece < 60; piece++) {
    memset(again, 0, sizeof again);
    for (int r = 0; r < 3; r++) {
      const lam_blocks b = lam_parts_of(&parts, r, 3);
      const int64_t bytes = b.count * b.bytes;
      CHECK_EQ(bytes, OUTER * (first[r + 1] - first[r]) * INNER * 2);
      for (int64_t at = 0; at < bytes; at += piece)
        lam_blocks_take(&b, whole, at, piece < bytes - at ? piece : bytes - at, (char *)share + at);
      for (int64_t at = 0; at < bytes; at += piece)
        lam_blocks_put(&b, again, at, piece < bytes - at ? piece : bytes - at, (char *)share + at);
    }
    if (!CHECK_SAME_BITS(again, whole, sizeof whole)) return;
  }
}

/* ---- Announcements --------------------------------------------------------------------------- */

TEST(announce, a_mismatch_names_both_sides) {
  const lam_comm_op a = {.op = LAM_OP_all_reduce, .dtype = LAM_F32, .ndim = 1, .dims = {33}};
  const lam_comm_op b = {.op = LAM_OP_linear_row, .dtype = LAM_BF16, .ndim = 2, .dims = {64, 128}};
  CHECK_STATUS(lam_comm_compare((const lam_comm_op *[]){&a, &a, &b}, 3), LAM_MISMATCH);
  CHECK_STR(lam_last_error(),
            "rank 2 called linear_row bf16 [64, 128], rank 0 all_reduce f32 [33]");
  CHECK_OK(lam_comm_compare((const lam_comm_op *[]){&a, &a}, 2));
}

TEST(announce, any_field_that_differs_is_a_mismatch) {
  const lam_comm_op a = {.op = LAM_OP_all_reduce,
                         .dtype = LAM_F32,
                         .ndim = 2,
                         .dims = {3, 4},
                         .extra = 1,
                         .sequence = 9};
  for (size_t byte = 0; byte < sizeof a; byte++) {
    lam_comm_op b = a;
    ((unsigned char *)&b)[byte] ^= 1;
    CHECK_STATUS(lam_comm_compare((const lam_comm_op *[]){&a, &b}, 2), LAM_MISMATCH);
    CHECK_CONTAINS(lam_last_error(), "rank 1 called");
  }
}

/* ---- Wire headers ---------------------------------------------------------------------------- */

TEST(wire, any_flipped_bit_is_found) {
  lam_wire w = {.kind = 1,
                .ndim = 2,
                .step = 3,
                .item = 4,
                .bytes = 100,
                .shape = {5, 5},
                .edge = 2,
                .micro = 7};
  _Static_assert(sizeof w == 128, "a header is 128 bytes");
  lam_wire_seal(&w, 6);
  CHECK_OK(lam_wire_verify(&w, 1, 6, 100));
  CHECK_STATUS(lam_wire_verify(&w, 1, 7, 100), LAM_MISMATCH);
  CHECK_CONTAINS(lam_last_error(), "number 6, expected 7");
  CHECK_STATUS(lam_wire_verify(&w, 1, 6, 99), LAM_MISMATCH);
  CHECK_CONTAINS(lam_last_error(), "rank 1 sent 100 bytes, room is for 99");
  for (int bit = 0; bit < 8 * (int)sizeof w; bit++) {
    lam_wire torn = w;
    ((unsigned char *)&torn)[bit / 8] ^= (unsigned char)(1 << bit % 8);
    CHECK_STATUS(lam_wire_verify(&torn, 1, 6, 100), LAM_INTERNAL);
  }
}
