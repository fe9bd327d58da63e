/* codec_test.c: fp8 and int8 against tables in double precision, and what comes back out of each
 * codec against the bound it declares. */
#include "kernels/codec.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "kernels/math.h"
#include "tests/unit/kernels/support.h"

/* ---- One number ------------------------------------------------------------------------------ */

typedef struct format {
  int fraction, bias, finite; /* codes 0 .. finite are finite */
  uint8_t (*encode)(float);
  float (*decode)(uint8_t);
} format;

static uint8_t e4m3(float x) { return lam_f8e4m3_of_f32(x); }
static uint8_t e5m2(float x) { return lam_f8e5m2_of_f32(x); }
static float of_e4m3(uint8_t c) { return lam_f32_of_f8e4m3(c); }
static float of_e5m2(uint8_t c) { return lam_f32_of_f8e5m2(c); }
static const format formats[] = {{3, 7, 0x7e, e4m3, of_e4m3}, {2, 15, 0x7b, e5m2, of_e5m2}};

/* As the format is defined: sign, exponent, fraction. */
static double value_of(const format *f, int code) {
  const int exponent = code >> f->fraction, fraction = code & ((1 << f->fraction) - 1);
  if (exponent == 0) return ldexp(fraction, 1 - f->bias - f->fraction);
  return ldexp((1 << f->fraction) + fraction, exponent - f->bias - f->fraction);
}

TEST(fp8, decodes_as_the_format_is_defined) {
  FOR_EACH(i, 0, 1) {
    const format *f = &formats[i];
    for (int code = 0; code <= f->finite; code++) {
      CHECK_EQ(f->decode((uint8_t)code), value_of(f, code));
      CHECK_EQ(f->decode((uint8_t)(code | 0x80)), -value_of(f, code));
    }
  }
  CHECK(isnan(of_e4m3(0x7f)) && isnan(of_e4m3(0xff)));
  CHECK(isinf(of_e5m2(0x7c)) && of_e5m2(0xfc) < 0 && isnan(of_e5m2(0x7d)) && isnan(of_e5m2(0xff)));
}

/* The nearest code by looking at all; of two as near, the even one. */
static int nearest(const format *f, double x) {
  int best = 0;
  x = fmin(x, value_of(f, f->finite));
  for (int code = 1; code <= f->finite; code++) {
    const double closer = fabs(x - value_of(f, best)) - fabs(x - value_of(f, code));
    if (closer > 0 || (closer == 0 && code % 2 == 0)) best = code;
  }
  return best;
}

static void check_encode(const format *f, float x) {
  const int code = f->encode(x), want = nearest(f, fabs((double)x)) | (signbit(x) ? 0x80 : 0);
  if (code != want) NOTE("x %a", (double)x);
  CHECK_EQ(code, want);
}

TEST(fp8, encodes_to_the_nearest_and_ties_to_even) {
  rng r = {seed()};
  FOR_EACH(i, 0, 1) {
    const format *f = &formats[i];
    for (int code = 0; code < f->finite; code++) { /* each value, each middle, and beside them */
      const float a = (float)value_of(f, code), b = (float)value_of(f, code + 1);
      FOR_EACH(k, 0, 1, 2)
      check_encode(f, k == 0 ? a : k == 1 ? (a + b) / 2 : nextafterf((a + b) / 2, b));
      check_encode(f, -nextafterf((a + b) / 2, a));
    }
    for (int k = 0; k < 20000; k++)
      check_encode(f, (float)ldexp(rng_float(&r), (int)rng_int(&r, -30, 18)));
    check_encode(f, 1e30f);
    check_encode(f, INFINITY); /* saturates */
    check_encode(f, -0.0f);
    CHECK_EQ(f->encode(NAN) & 0x7f, 0x7f);
  }
}

TEST(int8, rounds_to_even_and_saturates) {
  const float in[] = {0, 0.5f, 1.5f, 2.5f, -0.5f, -1.5f, 126.5f, 127.4f, 1e9f, -1e9f, NAN};
  const int want[] = {0, 0, 2, 2, 0, -2, 126, 127, 127, -127, 0};
  for (int i = 0; i < 11; i++) CHECK_EQ(lam_f32_of_i8(lam_i8_of_f32(in[i])), want[i]);
}

/* ---- Lines ----------------------------------------------------------------------------------- */

/* Magnitudes over many powers of two; a tile of zeros, a tiny one, now and then. */
static box wild(rng *r, int64_t rows, int64_t cols, lam_dtype dtype) {
  box b = box_random(r, rows, cols, dtype, (form)rng_int(r, 0, N_FORMS - 1));
  const int range = dtype == LAM_F16 ? 12 : 60;
  for (int64_t i = 0; i < rows; i++)
    for (int64_t tile = 0; tile < cols; tile += LAM_CODEC_TILE) {
      const int scale = (int)rng_int(r, -range, range), spread = (int)rng_int(r, 0, 20);
      const bool zero = rng_int(r, 0, 9) == 0, tiny = rng_int(r, 0, 9) == 0;
      for (int64_t j = tile; j < cols && j < tile + LAM_CODEC_TILE; j++) {
        const int exponent = tiny ? -125 : scale - (int)rng_int(r, 0, spread);
        set(b.m, i, j, zero ? 0 : ldexp(get(b.m, i, j), exponent));
      }
    }
  return b;
}

static double largest_of(lam_matrix x, int64_t row, int64_t col) {
  const int64_t first = col / LAM_CODEC_TILE * LAM_CODEC_TILE;
  double largest = 0;
  for (int64_t j = first; j < x.cols && j < first + LAM_CODEC_TILE; j++)
    largest = fmax(largest, fabs(get(x, row, j)));
  return largest;
}

static bool check_bounds(int codec, lam_matrix x, lam_matrix y) {
  for (int64_t i = 0; i < x.rows; i++)
    for (int64_t j = 0; j < x.cols; j++) {
      const double in = get(x, i, j), out = get(y, i, j);
      const double least = y.dtype == LAM_F16 ? 0x1p-25 : 0x1p-134;
      const double stored = rounding_of(y.dtype) * fabs(out) + least;
      const double bound = lam_codec_bound(codec, in, largest_of(x, i, j)) + 1.01 * stored;
      if (fabs(out - in) <= bound) continue;
      NOTE("codec %s at %lld, %lld: %a came back as %a", lam_codec_find(codec)->name, (long long)i,
           (long long)j, in, out);
      return CHECK(fabs(out - in) <= bound);
    }
  return true;
}

static void round_trip(rng *r, crew c, int codec, lam_dtype from, lam_dtype to, int64_t rows,
                       int64_t cols) {
  box x = wild(r, rows, cols, from), y = box_new(rows, cols, to, (form)rng_int(r, 0, N_FORMS - 1));
  const int64_t bytes = rows * lam_codec_line_bytes(codec, cols);
  unsigned char *coded = malloc((size_t)bytes + 16);
  memset(coded + bytes, 0x5a, 16);
  CHECK_OK(lam_device_encode(&lam_device_cpu, workers(c), codec, x.m, coded, NULL));
  for (int i = 0; i < 16; i++) CHECK_EQ(coded[bytes + i], 0x5a);
  CHECK_OK(lam_device_decode(&lam_device_cpu, workers(c), codec, coded, y.m, NULL));
  check_bounds(codec, x.m, y.m);
  check_around(&y, "y");
  free(coded), box_free(&x), box_free(&y);
}

static const int64_t shapes[][2] = {{1, 1}, {3, 127}, {2, 128}, {5, 129}, {4, 300}, {2, 9001}};

TEST(codec, comes_back_within_its_declared_bound) {
  rng r = {seed()};
  for (int l = 0; (lam_lanes_forced = lanes_here(l)) != NULL; l++)
    for (int codec = 1; codec < LAM_N_CODECS; codec++)
      for (int s = 0; s < 6; s++) FOR_EACH(c, ALONE, TWO_OPENMP) {
          const lam_dtype from = (lam_dtype)rng_int(&r, LAM_F32, LAM_F16);
          const lam_dtype to =
              (lam_dtype)rng_int(&r, LAM_F32, from == LAM_F16 ? LAM_F16 : LAM_BF16);
          NOTE("%s", lam_lanes_pick()->name);
          round_trip(&r, (crew)c, codec, from, to, shapes[s][0], shapes[s][1]);
        }
  lam_lanes_forced = NULL;
}

TEST(codec, writes_the_same_bytes_with_every_set_of_loops) {
  rng r = {seed()};
  box x = wild(&r, 7, 1000, LAM_F32);
  for (int codec = 1; codec < LAM_N_CODECS; codec++) {
    const size_t bytes = (size_t)(7 * lam_codec_line_bytes(codec, 1000));
    unsigned char *first = malloc(bytes), *other = malloc(bytes);
    lam_lanes_forced = lanes_here(0);
    CHECK_OK(lam_device_encode(&lam_device_cpu, workers(ALONE), codec, x.m, first, NULL));
    for (int l = 1; (lam_lanes_forced = lanes_here(l)) != NULL; l++) {
      CHECK_OK(lam_device_encode(&lam_device_cpu, workers(TWO_OPENMP), codec, x.m, other, NULL));
      CHECK(memcmp(first, other, bytes) == 0);
    }
    free(first), free(other);
  }
  box_free(&x);
}

static const struct {
  int codec, n;
  uint8_t bytes[10];
} golden[] = {
    /* of 1, -2, 0.5, 448, 0 */
    {LAM_CODEC_BF16, 10, {0x80, 0x3f, 0x00, 0xc0, 0x00, 0x3f, 0xe0, 0x43, 0x00, 0x00}},
    {LAM_CODEC_F8E4M3, 9, {0x00, 0x00, 0x80, 0x3f, 0x38, 0xc0, 0x30, 0x7e, 0x00}},
    {LAM_CODEC_F8E5M2, 9, {0x00, 0x00, 0x00, 0x3c, 0x58, 0xdc, 0x54, 0x7b, 0x00}},
    {LAM_CODEC_INT8, 9, {0x87, 0xc3, 0x61, 0x40, 0x00, 0xff, 0x00, 0x7f, 0x00}},
};

TEST(codec, writes_these_bytes_for_any_dtype) {
  static const double in[] = {1, -2, 0.5, 448, 0};
  for (int g = 0; g < 4; g++) FOR_EACH(dtype, LAM_F32, LAM_BF16, LAM_F16) {
      box x = box_new(1, 5, (lam_dtype)dtype, BY_ROWS);
      _Alignas(8) uint8_t coded[16];
      for (int j = 0; j < 5; j++) set(x.m, 0, j, in[j]);
      NOTE("codec %s of %s", lam_codec_find(golden[g].codec)->name,
           lam_dtype_name((lam_dtype)dtype));
      CHECK_EQ(lam_codec_line_bytes(golden[g].codec, 5), golden[g].n);
      CHECK_OK(
          lam_device_encode(&lam_device_cpu, workers(ALONE), golden[g].codec, x.m, coded, NULL));
      CHECK_SAME_BITS(coded, golden[g].bytes, (size_t)golden[g].n);
      box_free(&x);
    }
}

TEST(codec, an_infinity_or_nan_makes_its_tile_nan_and_no_other) {
  for (int codec = LAM_CODEC_F8E4M3; codec < LAM_N_CODECS; codec++) FOR_EACH(bad, 0, 1) {
      box x = box_new(1, 300, LAM_F32, BY_ROWS), y = box_new(1, 300, LAM_F32, BY_ROWS);
      unsigned char coded[600];
      for (int j = 0; j < 300; j++) set(x.m, 0, j, j % 7);
      set(x.m, 0, 130, bad ? NAN : -INFINITY);
      CHECK_OK(lam_device_encode(&lam_device_cpu, workers(ALONE), codec, x.m, coded, NULL));
      CHECK_OK(lam_device_decode(&lam_device_cpu, workers(ALONE), codec, coded, y.m, NULL));
      for (int j = 0; j < 300; j++) CHECK_EQ(isnan(get(y.m, 0, j)), j / LAM_CODEC_TILE == 1);
      box_free(&x), box_free(&y);
    }
}

/* What infinity times 0 is, and the sign of a product that is 0, differ between machines. */
TEST(codec, codes_of_tiles_without_a_scale_are_zero) {
  for (int codec = LAM_CODEC_F8E4M3; codec < LAM_N_CODECS; codec++) FOR_EACH(kind, 0, 1, 2) {
      const double odd[] = {NAN, -INFINITY, -0x1p-120};
      box x = box_new(1, 128, LAM_F32, BY_ROWS);
      unsigned char coded[132];
      for (int j = 0; j < 128; j++) set(x.m, 0, j, kind == 2 ? odd[2] : -j);
      set(x.m, 0, 5, odd[kind]);
      CHECK_OK(lam_device_encode(&lam_device_cpu, workers(ALONE), codec, x.m, coded, NULL));
      for (int j = 0; j < 128; j++) CHECK_EQ(coded[4 + j], 0);
      box_free(&x);
    }
}
