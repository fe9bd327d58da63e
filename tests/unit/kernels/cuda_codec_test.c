/* cuda_codec_test.c: the wire codecs of the CUDA kernels, on the stand-in: the CPU's own bytes, and
 * the CPU's own elements from them. */
#include "kernels/codec.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "tests/unit/kernels/cuda_support.h"

static const int64_t shapes[][2] = {{1, 1},   {3, 7},    {2, 31},  {5, 33},   {3, 127}, {2, 128},
                                    {5, 129}, {4, 1000}, {9, 384}, {2, 4099}, {17, 8}};
enum { N_SHAPES = 11, AROUND = 16, PATTERN = 0x5a };

/* Magnitudes over many powers of two; a tile of zeros, a tiny one, one with an infinity or NaN. */
static box wild(rng *r, int64_t rows, int64_t cols, lam_dtype dtype) {
  static const double odd[] = {0, 0x1p-120, INFINITY, -INFINITY, NAN};
  box b = box_random(r, rows, cols, dtype, any_form(r));
  const int range = dtype == LAM_F16 ? 12 : 60;
  for (int64_t i = 0; i < rows; i++)
    for (int64_t tile = 0; tile < cols; tile += LAM_CODEC_TILE) {
      const int scale = (int)rng_int(r, -range, range), kind = (int)rng_int(r, 0, 9);
      for (int64_t j = tile; j < cols && j < tile + LAM_CODEC_TILE; j++) {
        set(b.m, i, j, ldexp(get(b.m, i, j), scale - (int)rng_int(r, 0, 12)));
        if (kind < 2) set(b.m, i, j, odd[kind]);
      }
      if (kind >= 2 && kind < 5) set(b.m, i, tile + (cols - tile) / 2, odd[kind]);
    }
  return b;
}

static void check_codec(rng *r, int codec, lam_dtype from, lam_dtype to, int64_t rows,
                        int64_t cols) {
  const uint64_t bytes = (uint64_t)(rows * lam_codec_line_bytes(codec, cols)),
                 all = bytes + 2 * AROUND;
  /* wherever a host puts it: at any byte, but bf16 at its own size */
  const uint64_t at = (uint64_t)rng_int(r, 0, 7) * (codec == LAM_CODEC_BF16 ? 2 : 1);
  unsigned char *want = malloc(bytes + 1), *got = malloc(all);
  memset(got, PATTERN, all);
  box x = wild(r, rows, cols, from);
  box y = box_new(rows, cols, to, any_form(r)), cpu = box_copy(&y);
  CHECK_OK(lam_device_encode(&lam_device_cpu, workers(ALONE), codec, x.m, want, NULL));
  CHECK_OK(lam_device_decode(&lam_device_cpu, workers(ALONE), codec, want, cpu.m, NULL));
  card_begin();
  unsigned char *coded = bytes_to_card(got, all);
  const lam_matrix yc = to_card(&y);
  CHECK_OK(lam_device_encode(&card, NULL, codec, to_card(&x), coded + at, stream));
  CHECK_OK(lam_device_decode(&card, NULL, codec, coded + at, yc, stream));
  bytes_from_card(got, coded, all);
  from_card(&y, yc);
  card_end();
  NOTE("%s of %s, to %s, %lld x %lld at byte %d", lam_codec_find(codec)->name, lam_dtype_name(from),
       lam_dtype_name(to), (long long)rows, (long long)cols, (int)at);
  CHECK_SAME_BITS(got + at, want, bytes);
  for (uint64_t i = 0; i < all; i++)
    if ((i < at || i >= at + bytes) && !CHECK_EQ(got[i], PATTERN)) break;
  check_same(y.m, cpu.m);
  check_around(&y, "y");
  free(want), free(got), box_free(&x), box_free(&y), box_free(&cpu);
}

TEST(cuda_codec, writes_and_reads_the_bytes_that_the_cpu_does) {
  rng r = {seed()};
  for (int codec = 1; codec < LAM_N_CODECS; codec++)
    for (int s = 0; s < N_SHAPES; s++) FOR_EACH(from, LAM_F32, LAM_BF16, LAM_F16) {
        const lam_dtype to = any_float(&r);
        check_codec(&r, codec, (lam_dtype)from, to, shapes[s][0], shapes[s][1]);
      }
}

TEST(cuda_codec, covers_more_rows_than_a_grid_has) {
  rng r = {seed()};
  check_codec(&r, LAM_CODEC_F8E4M3, LAM_BF16, LAM_BF16, 4099, 264);
  check_codec(&r, LAM_CODEC_INT8, LAM_BF16, LAM_F32, 70000, 3);
}

TEST(cuda_codec, comes_back_within_its_declared_bound_as_f16) {
  rng r = {seed()};
  for (int codec = LAM_CODEC_F8E4M3; codec < LAM_N_CODECS; codec++) {
    box x = box_random(&r, 5, 300, LAM_F16, any_form(&r)),
        y = box_new(5, 300, LAM_F16, any_form(&r));
    unsigned char room[5 * 400] = {0};
    card_begin();
    void *coded = bytes_to_card(room, sizeof room);
    const lam_matrix yc = to_card(&y);
    CHECK_OK(lam_device_encode(&card, NULL, codec, to_card(&x), coded, stream));
    CHECK_OK(lam_device_decode(&card, NULL, codec, coded, yc, stream));
    from_card(&y, yc);
    card_end();
    for (int at = 0; at < 1500; at++) {
      const double in = get(x.m, at / 300, at % 300), out = get(y.m, at / 300, at % 300);
      if (!CHECK(fabs(out - in) <= lam_codec_bound(codec, in, 1) + 0x1p-11)) break;
    }
    check_around(&y, "y");
    box_free(&x), box_free(&y);
  }
}

TEST(cuda_codec, refuses_what_is_no_codec) {
  const lam_matrix x = {&stream, 1, 1, 1, 1, LAM_F32, false};
  CHECK_STATUS(lam_device_encode(&card, NULL, 0, x, &stream, NULL), LAM_INVALID_ARGUMENT);
  CHECK_STATUS(lam_device_decode(&card, NULL, 9, &stream, x, NULL), LAM_INVALID_ARGUMENT);
}
