/* cuda_norm_test.c: the root mean square norm of the CUDA kernels, on the stand-in, against double
 * precision: rows that a part of a warp, several warps or no block's registers hold. */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "tests/unit/kernels/cuda_support.h"

static const int64_t shapes[][2] = {{1, 1},    {70, 7},   {33, 31},  {9, 64},   {17, 256}, {3, 257},
                                    {5, 1000}, {2, 1024}, {3, 4099}, {2, 8192}, {2, 16392}};
enum { N_SHAPES = 11 };
#define EPS 1e-3f

static lam_dtype one_of(rng *r, lam_dtype t) { return rng_int(r, 0, 1) ? LAM_F32 : t; }

static double root_of(lam_matrix x, int64_t row) {
  double squares = 0;
  for (int64_t j = 0; j < x.cols; j++) squares += get(x, row, j) * get(x, row, j);
  return 1 / sqrt(squares / (double)x.cols + (double)EPS);
}

static void norm_of(lam_matrix x, lam_matrix g, double *want) {
  for (int64_t i = 0; i < x.rows; i++) {
    const double r = root_of(x, i);
    for (int64_t j = 0; j < x.cols; j++) want[i * x.cols + j] = get(x, i, j) * r * get(g, 0, j);
  }
}

static void check_norm(rng *r, int64_t rows, int64_t cols, lam_dtype t, bool in_place) {
  box x = box_random(r, rows, cols, t, any_form(r)),
      g = box_random(r, 1, cols, one_of(r, t), BY_ROWS);
  box y = in_place ? box_copy(&x) : box_new(rows, cols, t, any_form(r));
  double *want = calloc((size_t)(rows * cols), sizeof *want);
  norm_of(x.m, g.m, want);
  card_begin();
  const lam_matrix xc = to_card(&x), yc = in_place ? xc : to_card(&y);
  CHECK_OK(lam_device_rmsnorm(&card, NULL, xc, to_card(&g), EPS, yc, stream));
  from_card(&y, yc);
  card_end();
  NOTE("%s %lld x %lld, in place %d", lam_dtype_name(t), (long long)rows, (long long)cols,
       in_place);
  check_matrix(y.m, want, 1.01 * rounding_of(t) + 1e-6, 1e-6);
  check_around(&y, "y");
  free(want), box_free(&x), box_free(&g), box_free(&y);
}

TEST(cuda_rmsnorm, is_right_for_rows_of_every_length) {
  rng r = {seed()};
  for (int s = 0; s < N_SHAPES; s++) FOR_EACH(t, LAM_F32, LAM_BF16, LAM_F16)
  FOR_EACH(in_place, 0, 1) check_norm(&r, shapes[s][0], shapes[s][1], (lam_dtype)t, in_place);
}

TEST(cuda_rmsnorm, keeps_a_nan_to_its_row) {
  rng r = {seed()};
  box x = box_random(&r, 9, 40, LAM_BF16, BY_ROWS), g = box_random(&r, 1, 40, LAM_BF16, BY_ROWS);
  set(x.m, 4, 17, NAN);
  card_begin();
  const lam_matrix xc = to_card(&x);
  CHECK_OK(lam_device_rmsnorm(&card, NULL, xc, to_card(&g), EPS, xc, stream));
  from_card(&x, xc);
  card_end();
  for (int at = 0; at < 360; at++) CHECK_EQ(isnan(get(x.m, at / 40, at % 40)), at / 40 == 4);
  box_free(&x), box_free(&g);
}

/* -- a sum with its norm -- */

enum { MOST_PARTS = 11 };

static void check_add(rng *r, int n, bool residual, int64_t rows, int64_t cols, lam_dtype t) {
  box parts[MOST_PARTS], g = box_random(r, 1, cols, one_of(r, t), BY_ROWS);
  box sum = box_random(r, rows, cols, t, any_form(r)), y = box_new(rows, cols, t, any_form(r));
  double *want_sum = calloc((size_t)(rows * cols), sizeof(double)),
         *want = calloc((size_t)(rows * cols), sizeof(double));
  const form f = any_form(r);
  for (int i = 0; i < n; i++) parts[i] = box_random(r, rows, cols, one_of(r, t), f);
  for (int64_t at = 0; at < rows * cols; at++) {
    for (int i = 0; i < n; i++) want_sum[at] += get(parts[i].m, at / cols, at % cols);
    if (residual) want_sum[at] += get(sum.m, at / cols, at % cols); /* sum is residual */
  }
  card_begin();
  lam_matrix on_card[MOST_PARTS];
  const lam_matrix sum_c = to_card(&sum), y_c = to_card(&y), none = {0};
  for (int i = 0; i < n; i++) on_card[i] = to_card(&parts[i]);
  CHECK_OK(lam_device_add_rmsnorm(&card, NULL, on_card, n, residual ? sum_c : none, to_card(&g),
                                  EPS, sum_c, y_c, stream));
  from_card(&sum, sum_c), from_card(&y, y_c);
  card_end();
  NOTE("%d parts, residual %d, %s %lld x %lld", n, residual, lam_dtype_name(t), (long long)rows,
       (long long)cols);
  check_matrix(sum.m, want_sum, 1.01 * rounding_of(t), n * n * 0x1p-23);
  norm_of(sum.m, g.m, want); /* of what was rounded */
  check_matrix(y.m, want, 1.01 * rounding_of(t) + 1e-6, 1e-6);
  check_around(&sum, "sum"), check_around(&y, "y");
  for (int i = 0; i < n; i++) box_free(&parts[i]);
  free(want), free(want_sum), box_free(&g), box_free(&sum), box_free(&y);
}

TEST(cuda_add_rmsnorm, norms_what_the_sum_was_rounded_to) {
  rng r = {seed()};
  for (int s = 0; s < N_SHAPES; s++) FOR_EACH(t, LAM_F32, LAM_BF16, LAM_F16)
  FOR_EACH(n, 1, 2, 4)
  check_add(&r, n, rng_int(&r, 0, 1), shapes[s][0], shapes[s][1], (lam_dtype)t);
  FOR_EACH(n, 8, 9, 11) check_add(&r, n, true, 3, 100, LAM_BF16);
}

/* -- gradients -- */

typedef struct wanted {
  double *dx, *dg;
} wanted;

static wanted gradients_of(lam_matrix dy, lam_matrix x, lam_matrix g, const box *dg,
                           bool accumulate) {
  wanted w = {calloc((size_t)(x.rows * x.cols + 1), sizeof(double)),
              calloc((size_t)x.cols, sizeof(double))};
  for (int64_t j = 0; j < x.cols && accumulate; j++) w.dg[j] = get(dg->m, 0, j);
  for (int64_t i = 0; i < x.rows; i++) {
    const double r = root_of(x, i);
    double mean = 0;
    for (int64_t j = 0; j < x.cols; j++)
      mean += get(dy, i, j) * get(x, i, j) * get(g, 0, j) / (double)x.cols;
    for (int64_t j = 0; j < x.cols; j++) {
      w.dx[i * x.cols + j] = r * (get(g, 0, j) * get(dy, i, j) - get(x, i, j) * r * r * mean);
      w.dg[j] += get(dy, i, j) * get(x, i, j) * r;
    }
  }
  return w;
}

static void check_bwd(rng *r, int64_t rows, int64_t cols, lam_dtype t, bool with_dx, bool with_dg) {
  box dy = box_random(r, rows, cols, t, any_form(r)), x = box_random(r, rows, cols, t, any_form(r));
  box g = box_random(r, 1, cols, one_of(r, t), BY_ROWS), dx = box_new(rows, cols, t, any_form(r));
  box dg = box_random(r, 1, cols, one_of(r, t), BY_ROWS), again = box_copy(&dg);
  const bool accumulate = rng_int(r, 0, 1);
  wanted w = gradients_of(dy.m, x.m, g.m, &dg, accumulate);
  for (int i = 0; i < 2; i++) { /* blocks run in another order each time */
    card_begin();
    const lam_matrix none = {0}, dx_c = to_card(&dx), dg_c = to_card(i ? &again : &dg);
    CHECK_OK(lam_device_rmsnorm_bwd(&card, NULL, to_card(&dy), to_card(&x), to_card(&g), EPS,
                                    with_dx ? dx_c : none, with_dg ? dg_c : none, accumulate,
                                    stream));
    from_card(&dx, dx_c), from_card(i ? &again : &dg, dg_c);
    card_end();
  }
  NOTE("%s %lld x %lld, accumulate %d", lam_dtype_name(t), (long long)rows, (long long)cols,
       accumulate);
  if (with_dx) check_matrix(dx.m, w.dx, 1.01 * rounding_of(t) + 2e-6, 4e-6);
  if (with_dg)
    check_matrix(dg.m, w.dg, 1.01 * rounding_of(dg.m.dtype) + 2e-6, (double)(rows + 1) * 1e-6);
  check_same(dg.m, again.m);
  check_around(&dx, "dx"), check_around(&dg, "dg");
  free(w.dx), free(w.dg), box_free(&dy), box_free(&x), box_free(&g), box_free(&dx), box_free(&dg),
      box_free(&again);
}

TEST(cuda_rmsnorm_bwd, is_right_and_the_same_in_any_order_of_blocks) {
  rng r = {seed()};
  for (int s = 0; s < N_SHAPES; s++) FOR_EACH(t, LAM_F32, LAM_BF16, LAM_F16)
  check_bwd(&r, shapes[s][0], shapes[s][1], (lam_dtype)t, true, true);
  check_bwd(&r, 5, 300, LAM_BF16, true, false);
  check_bwd(&r, 5, 300, LAM_BF16, false, true);
  check_bwd(&r, 0, 30, LAM_F32, true, true);
}

TEST(cuda_rmsnorm_bwd, teams_take_several_rows_where_there_are_many) {
  rng r = {seed()};
  check_bwd(&r, 400, 2056, LAM_BF16, true, true); /* 1,000 and more blocks would be too many */
  check_bwd(&r, 70000, 3, LAM_F32, true, true);
  check_bwd(&r, 1100, 520, LAM_F32, true, true);
}
