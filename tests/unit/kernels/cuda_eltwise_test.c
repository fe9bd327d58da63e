/* cuda_eltwise_test.c: activations and copies of the CUDA kernels, on the stand-in, against double
 * precision, for every dtype, stride and odd size. */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "tests/unit/kernels/cuda_support.h"

static const int64_t shapes[][2] = {{1, 1},  {3, 7},    {2, 31},  {5, 33},
                                    {4, 64}, {3, 1000}, {1, 4099}};
enum { N_SHAPES = 7, LONG_ROWS = 300 };

/* fp8 has steps below its smallest normal number. */
static double step_of(lam_dtype t) {
  return t == LAM_F8E4M3 ? 0x1p-10 : t == LAM_F8E5M2 ? 0x1p-17 : t == LAM_F16 ? 0x1p-25 : 0;
}

static void stretch(box *b, double by) { /* where activations are curved */
  for (int64_t i = 0; i < b->m.rows; i++)
    for (int64_t j = 0; j < b->m.cols; j++) set(b->m, i, j, by * get(b->m, i, j));
}

typedef struct kind {
  lam_act act;
  bool gated;
  lam_dtype z, y;
  form z_form, y_form;
  int64_t rows, cols;
} kind;

static void check_act(rng *r, kind k) {
  box z = box_random(r, k.rows, k.cols * (k.gated ? 2 : 1), k.z, k.z_form);
  box y = box_new(k.rows, k.cols, k.y, k.y_form);
  double *want = calloc((size_t)(k.rows * k.cols), sizeof *want);
  stretch(&z, 6);
  for (int64_t at = 0; at < k.rows * k.cols; at++) {
    const int64_t i = at / k.cols, j = at % k.cols;
    want[at] = act_of(k.act, get(z.m, i, j)) * (k.gated ? get(z.m, i, k.cols + j) : 1);
  }
  card_begin();
  const lam_matrix zc = to_card(&z), yc = to_card(&y);
  CHECK_OK(lam_device_act(&card, NULL, k.act, k.gated, zc, yc, stream));
  from_card(&y, yc);
  NOTE("act %d gated %d, %s form %d -> %s form %d, %lld x %lld", k.act, k.gated,
       lam_dtype_name(k.z), k.z_form, lam_dtype_name(k.y), k.y_form, (long long)k.rows,
       (long long)k.cols);
  check_matrix(y.m, want, 1.01 * rounding_of(k.y) + 4e-7, 4e-7 * 36 + step_of(k.y));
  check_around(&y, "y");
  card_end();
  free(want), box_free(&z), box_free(&y);
}

static kind any_kind(rng *r, int act, int gated, int shape) {
  return (kind){(lam_act)act, gated != 0,  any_float(r),     any_float(r),
                any_form(r),  any_form(r), shapes[shape][0], shapes[shape][1]};
}

TEST(cuda_act, is_right_for_every_activation_dtype_and_stride) {
  rng r = {seed()};
  for (int act = 0; act < LAM_N_ACTS; act++) FOR_EACH(gated, 0, 1)
  for (int s = 0; s < N_SHAPES; s++) check_act(&r, any_kind(&r, act, gated, s));
}

TEST(cuda_act, reads_and_writes_whole_vectors_and_fp8) {
  rng r = {seed()};
  for (int from = 0; from < 3; from++)
    for (int to = 0; to < 5; to++) FOR_EACH(f, BY_ROWS, ROWS_APART) {
        check_act(&r, (kind){LAM_ACT_SILU, true, (lam_dtype)floats[from], (lam_dtype)floats[to],
                             (form)f, (form)f, 3, 264});
        check_act(&r, (kind){LAM_ACT_GELU, false, (lam_dtype)floats[from], (lam_dtype)floats[to],
                             (form)f, BY_ROWS, 3, 77});
      }
}

TEST(cuda_act, covers_more_rows_than_a_grid_has) {
  rng r = {seed()};
  check_act(&r, (kind){LAM_ACT_RELU, false, LAM_F32, LAM_BF16, BY_ROWS, BY_ROWS, 4100, 1800});
}

TEST(cuda_act, of_nothing_is_nothing) {
  const lam_matrix none = {NULL, 0, 8, 8, 1, LAM_F32, false},
                   thin = {NULL, 8, 0, 0, 1, LAM_F32, false};
  card_begin();
  CHECK_OK(lam_device_act(&card, NULL, LAM_ACT_GELU, false, none, none, stream));
  CHECK_OK(lam_device_act(&card, NULL, LAM_ACT_GELU, true, thin, thin, stream));
  CHECK_OK(lam_device_copy(&card, NULL, thin, thin, stream));
  card_end();
}

TEST(cuda_act, of_nan_and_infinity_is_what_it_is_on_the_cpu) {
  const float ends[] = {NAN, INFINITY, -INFINITY, 1e30f, -1e30f, -0.0f, 0};
  for (int act = 0; act < LAM_N_ACTS; act++) FOR_EACH(t, LAM_F32, LAM_BF16) {
      box z = box_new(2, 16, (lam_dtype)t, BY_ROWS), y = box_new(2, 16, (lam_dtype)t, BY_ROWS);
      box want = box_copy(&y);
      for (int i = 0; i < 32; i++) set(z.m, i / 16, i % 16, (double)ends[i % 7]);
      card_begin();
      const lam_matrix zc = to_card(&z), yc = to_card(&y);
      CHECK_OK(lam_device_act(&card, NULL, (lam_act)act, false, zc, yc, stream));
      from_card(&y, yc);
      CHECK_OK(
          lam_device_act(&lam_device_cpu, workers(ALONE), (lam_act)act, false, z.m, want.m, NULL));
      for (int i = 0; i < 32; i++) {
        const double a = get(y.m, i / 16, i % 16), b = get(want.m, i / 16, i % 16);
        CHECK(a == b || (isnan(a) && isnan(b)));
      }
      card_end();
      box_free(&z), box_free(&y), box_free(&want);
    }
}

/* -- derivatives -- */

/* again: dy becomes act(z), as a pass of its own would make it. */
static void check_act_bwd(rng *r, kind k, bool again) {
  const int64_t wide = k.cols * (k.gated ? 2 : 1);
  box z = box_random(r, k.rows, wide, k.z, k.z_form),
      dy = box_random(r, k.rows, k.cols, k.z, k.y_form);
  box dz = box_new(k.rows, wide, k.y, any_form(r));
  double *want = calloc((size_t)(k.rows * wide), sizeof *want);
  stretch(&z, 6);
  for (int64_t i = 0; i < k.rows; i++)
    for (int64_t j = 0; j < k.cols; j++) {
      const double g = get(dy.m, i, j), x = get(z.m, i, j);
      const double up = k.gated ? get(z.m, i, k.cols + j) : 1;
      want[i * wide + j] = g * up * act_grad_of(k.act, x);
      if (k.gated) want[i * wide + k.cols + j] = g * act_of(k.act, x);
    }
  box y = box_copy(&dy);
  card_begin();
  const lam_matrix dyc = to_card(&dy), zc = to_card(&z), dzc = to_card(&dz), yc = to_card(&y);
  if (again) {
    CHECK_OK(lam_device_act(&card, NULL, k.act, k.gated, zc, yc, stream));
    CHECK_OK(lam_device_act_bwd_again(&card, NULL, k.act, k.gated, dyc, zc, dzc, stream));
  } else {
    CHECK_OK(lam_device_act_bwd(&card, NULL, k.act, k.gated, dyc, zc, dzc, stream));
  }
  from_card(&dz, dzc), from_card(&y, yc), from_card(&dy, dyc);
  NOTE("act %d gated %d, %s form %d, %s, %lld x %lld", k.act, k.gated, lam_dtype_name(k.z),
       k.z_form, lam_dtype_name(k.y), (long long)k.rows, (long long)k.cols);
  check_matrix(dz.m, want, 1.01 * rounding_of(k.y) + 4e-7, 4e-7 * 36 + step_of(k.y));
  check_around(&dz, "dz"), check_around(&dy, "dy");
  check_same(dy.m, y.m);
  card_end();
  free(want), box_free(&z), box_free(&dy), box_free(&dz), box_free(&y);
}

TEST(cuda_act_bwd, is_right_for_every_activation_dtype_and_stride) {
  rng r = {seed()};
  for (int act = 0; act < LAM_N_ACTS; act++) FOR_EACH(gated, 0, 1)
  FOR_EACH(again, 0, 1)
  for (int s = 0; s < N_SHAPES; s++) check_act_bwd(&r, any_kind(&r, act, gated, s), again);
}

/* -- copies -- */

static void check_copy(rng *r, lam_dtype from, lam_dtype to, form a, form b, int64_t rows,
                       int64_t cols) {
  box x = box_random(r, rows, cols, from, a), y = box_new(rows, cols, to, b), want = box_copy(&y);
  for (int64_t i = 0; i < rows; i++)
    for (int64_t j = 0; j < cols; j++) set(want.m, i, j, get(x.m, i, j));
  card_begin();
  const lam_matrix xc = to_card(&x), yc = to_card(&y);
  CHECK_OK(lam_device_copy(&card, NULL, xc, yc, stream));
  from_card(&y, yc);
  NOTE("%s form %d -> %s form %d, %lld x %lld", lam_dtype_name(from), a, lam_dtype_name(to), b,
       (long long)rows, (long long)cols);
  check_same(y.m, want.m);
  check_around(&y, "y");
  card_end();
  box_free(&x), box_free(&y), box_free(&want);
}

TEST(cuda_copy, converts_and_transposes_between_all_strides) {
  rng r = {seed()};
  for (int a = 0; a < N_FORMS; a++)
    for (int b = 0; b < N_FORMS; b++)
      for (int i = 0; i < 5; i++) {
        const int64_t rows = rng_int(&r, 1, 70), cols = rng_int(&r, 1, 70);
        check_copy(&r, (lam_dtype)floats[i], (lam_dtype)floats[i], (form)a, (form)b, rows, cols);
        check_copy(&r, (lam_dtype)floats[i], any_float(&r), (form)a, (form)b, 64, 40);
      }
}

TEST(cuda_copy, keeps_all_bits_of_what_is_no_float) {
  FOR_EACH(t, LAM_I64, LAM_I32, LAM_U8, LAM_F64, LAM_BF16) FOR_EACH(turned, 0, 1) {
    const int64_t n = 37, bytes = lam_dtype_bytes((lam_dtype)t);
    unsigned char from[37 * 37 * 8], to[sizeof from];
    rng r = {seed()};
    for (size_t i = 0; i < sizeof from; i++) from[i] = (unsigned char)rng_next(&r);
    card_begin();
    lam_matrix x = {bytes_to_card(from, sizeof from), n, n, n, 1, (lam_dtype)t, false};
    lam_matrix y = {bytes_to_card(to, sizeof to), n, n, n, 1, (lam_dtype)t, false};
    if (turned) y = lam_matrix_transposed(y);
    CHECK_OK(lam_device_copy(&card, NULL, x, y, stream));
    bytes_from_card(to, y.data, sizeof to);
    for (int64_t at = 0; at < n * n; at++) {
      const int64_t there = turned ? at % n * n + at / n : at;
      if (!CHECK(memcmp(from + at * bytes, to + there * bytes, (size_t)bytes) == 0)) break;
    }
    card_end();
  }
}

TEST(cuda_copy, refuses_to_convert_what_is_no_float) {
  const lam_matrix x = {&stream, 1, 1, 1, 1, LAM_I32, false},
                   y = {&stream, 1, 1, 1, 1, LAM_F32, false};
  CHECK_STATUS(lam_device_copy(&card, NULL, x, y, NULL), LAM_UNIMPLEMENTED);
}
