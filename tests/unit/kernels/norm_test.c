/* norm_test.c: the root mean square norm, its gradients and the sum with its norm against double
 * precision, for every dtype, stride and set of loops. */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "kernels/cpu/cpu.h"
#include "tests/unit/kernels/support.h"

static const lam_matrix none = {0};
static const int64_t sizes[][2] = {{1, 1}, {3, 63}, {2, 64}, {65, 65}, {130, 129}, {2, 9001}};
enum { N_SIZES = sizeof sizes / sizeof *sizes };

static form any_form(rng *r) { return (form)rng_int(r, 0, N_FORMS - 1); }

static double *room(int64_t n) {
  double *p = calloc((size_t)n + 1, sizeof *p);
  if (!p) abort();
  return p;
}

static double root_of(lam_matrix x, int64_t row, double eps) {
  double squares = 0;
  for (int64_t j = 0; j < x.cols; j++) squares += get(x, row, j) * get(x, row, j);
  return 1 / sqrt(squares / (double)x.cols + eps);
}

static void norm_of(lam_matrix x, lam_matrix g, double eps, double *want) {
  for (int64_t row = 0; row < x.rows; row++) {
    const double root = root_of(x, row, eps);
    for (int64_t col = 0; col < x.cols; col++) *want++ = get(x, row, col) * root * get(g, 0, col);
  }
}

/* What a test of one size takes: the gradient's dtype is g's. */
typedef struct kind {
  int64_t rows, cols;
  lam_dtype dtype, g_dtype;
  float eps;
} kind;

static void note(const char *what, kind k) {
  NOTE("%s %s %s g %s [%lld, %lld]", lam_lanes_pick()->name, what, lam_dtype_name(k.dtype),
       lam_dtype_name(k.g_dtype), (long long)k.rows, (long long)k.cols);
}

static void check_norm(rng *r, crew c, kind k) {
  box x = box_random(r, k.rows, k.cols, k.dtype, any_form(r)),
      g = box_random(r, 1, k.cols, k.g_dtype, BY_ROWS),
      y = box_new(k.rows, k.cols, k.dtype, any_form(r));
  double *want = room(k.rows * k.cols);
  note("rmsnorm", k);
  norm_of(x.m, g.m, k.eps, want);
  CHECK_OK(lam_device_rmsnorm(&lam_device_cpu, workers(c), x.m, g.m, k.eps, y.m, NULL));
  check_matrix(y.m, want, 1.01 * rounding_of(k.dtype) + 1e-6, 1e-7);
  check_around(&y, "y");
  free(want), box_free(&x), box_free(&g), box_free(&y);
}

/* dx [T, N] and dg [N], + what dg was. terms: the sum of the absolute values behind each dg. */
static void gradients_of(lam_matrix dy, lam_matrix x, lam_matrix g, double eps, double *dx,
                         double *dg, double *terms) {
  for (int64_t t = 0; t < x.rows; t++) {
    const double r = root_of(x, t, eps);
    double mean = 0;
    for (int64_t j = 0; j < x.cols; j++) mean += get(dy, t, j) * get(g, 0, j) * get(x, t, j);
    mean /= (double)x.cols;
    for (int64_t j = 0; j < x.cols; j++) {
      const double term = get(dy, t, j) * get(x, t, j) * r;
      dx[t * x.cols + j] = r * get(g, 0, j) * get(dy, t, j) - get(x, t, j) * r * r * r * mean;
      dg[j] += term;
      terms[j] += fabs(term);
    }
  }
}

static double most(const double *of, int64_t n) {
  double m = 0;
  for (int64_t i = 0; i < n; i++) m = fabs(of[i]) > m ? fabs(of[i]) : m;
  return m;
}

static void check_gradients(rng *r, crew c, kind k) {
  box dy = box_random(r, k.rows, k.cols, k.dtype, any_form(r)),
      x = box_random(r, k.rows, k.cols, k.dtype, any_form(r)),
      g = box_random(r, 1, k.cols, k.g_dtype, BY_ROWS),
      dx = box_new(k.rows, k.cols, k.dtype, any_form(r)),
      dg = box_random(r, 1, k.cols, k.g_dtype, BY_ROWS);
  double *want = room(k.rows * k.cols), *want_dg = room(k.cols), *terms = room(k.cols);
  const bool add = rng_int(r, 0, 1);
  note(add ? "rmsnorm_bwd, added" : "rmsnorm_bwd", k);
  for (int64_t j = 0; j < k.cols; j++) want_dg[j] = add ? get(dg.m, 0, j) : 0;
  gradients_of(dy.m, x.m, g.m, k.eps, want, want_dg, terms);
  CHECK_OK(lam_device_rmsnorm_bwd(&lam_device_cpu, workers(c), dy.m, x.m, g.m, k.eps, dx.m, dg.m,
                                  add, NULL));
  check_matrix(dx.m, want, 1.01 * rounding_of(k.dtype), 2e-6 * (1 + most(want, k.rows * k.cols)));
  check_matrix(dg.m, want_dg, 1.01 * rounding_of(k.g_dtype), 2e-6 * (1 + most(terms, k.cols)));
  check_around(&dx, "dx"), check_around(&dg, "dg");
  free(want), free(want_dg), free(terms);
  box_free(&dy), box_free(&x), box_free(&g), box_free(&dx), box_free(&dg);
}

/* The norm is of the sum as it was rounded: the same bits as of two calls. */
static void check_sum_and_norm(rng *r, crew c, kind k) {
  box a = box_random(r, k.rows, k.cols, LAM_F32, BY_ROWS),
      b = box_random(r, k.rows, k.cols, LAM_F32, BY_ROWS),
      res = box_random(r, k.rows, k.cols, k.dtype, any_form(r)),
      g = box_random(r, 1, k.cols, k.g_dtype, BY_ROWS),
      sum = box_new(k.rows, k.cols, k.dtype, any_form(r)),
      y = box_new(k.rows, k.cols, k.dtype, any_form(r));
  box sum2 = box_copy(&sum), y2 = box_copy(&y);
  const lam_matrix parts[] = {a.m, b.m};
  const bool in_place = rng_int(r, 0, 1);
  note("add_rmsnorm", k);
  CHECK_OK(lam_device_sum(&lam_device_cpu, workers(c), parts, 2, none, res.m, sum2.m, NULL));
  CHECK_OK(lam_device_rmsnorm(&lam_device_cpu, workers(c), sum2.m, g.m, k.eps, y2.m, NULL));
  const lam_matrix to = in_place ? res.m : sum.m;
  CHECK_OK(lam_device_add_rmsnorm(&lam_device_cpu, workers(c), parts, 2, res.m, g.m, k.eps, to, y.m,
                                  NULL));
  check_same(to, sum2.m), check_same(y.m, y2.m);
  check_around(&sum, "sum"), check_around(&y, "y");
  box_free(&a), box_free(&b), box_free(&res), box_free(&g), box_free(&sum), box_free(&y);
  box_free(&sum2), box_free(&y2);
}

static void for_all(void (*body)(rng *r, crew c, kind k)) {
  for (int i = 0; (lam_lanes_forced = lanes_here(i)) != NULL; i++) FOR_EACH(c, ALONE, TWO_OPENMP) {
      rng r = {seed()};
      FOR_EACH(dtype, LAM_F32, LAM_BF16) for (int s = 0; s < N_SIZES; s++) {
        const kind k = {sizes[s][0], sizes[s][1], (lam_dtype)dtype,
                        rng_int(&r, 0, 1) ? LAM_F32 : (lam_dtype)dtype, 1e-5f};
        body(&r, (crew)c, k);
      }
    }
}

TEST(norm, matches_double_precision) { for_all(check_norm); }
TEST(norm, gradients_match_double_precision) { for_all(check_gradients); }
TEST(norm, of_a_sum_has_the_bits_of_two_calls) { for_all(check_sum_and_norm); }

TEST(norm, rows_of_zeros_are_zeros) {
  float zeros[7] = {0}, g[7], y[7];
  for (int i = 0; i < 7; i++) g[i] = 3, y[i] = 9;
  const lam_matrix x = {zeros, 1, 7, 7, 1, LAM_F32, false}, gain = {g, 1, 7, 7, 1, LAM_F32, false},
                   out = {y, 1, 7, 7, 1, LAM_F32, false};
  CHECK_OK(lam_device_rmsnorm(&lam_device_cpu, workers(ALONE), x, gain, 1e-6f, out, NULL));
  for (int i = 0; i < 7; i++) CHECK_EQ(y[i] == 0, 1);
}

TEST(norm, gradient_of_no_rows_is_zero_or_what_was_there) {
  FOR_EACH(add, 0, 1) {
    float g[5] = {1, 2, 3, 4, 5}, dg[5] = {7, 7, 7, 7, 7};
    const lam_matrix empty = {NULL, 0, 5, 5, 1, LAM_F32, false},
                     gain = {g, 1, 5, 5, 1, LAM_F32, false}, out = {dg, 1, 5, 5, 1, LAM_F32, false};
    CHECK_OK(lam_device_rmsnorm_bwd(&lam_device_cpu, workers(ALONE), empty, empty, gain, 1e-6f,
                                    empty, out, add, NULL));
    for (int i = 0; i < 5; i++) CHECK_EQ(dg[i] == (add ? 7 : 0), 1);
  }
}

/* The order of the sum over rows is the shape's, not the workers'. */
TEST(norm, any_number_of_workers_gives_the_same_bits) {
  rng r = {seed()};
  box dy = box_random(&r, 301, 1031, LAM_F32, BY_ROWS),
      x = box_random(&r, 301, 1031, LAM_F32, BY_ROWS),
      g = box_random(&r, 1, 1031, LAM_F32, BY_ROWS), one = box_new(1, 1031, LAM_F32, BY_ROWS),
      two = box_new(1, 1031, LAM_F32, BY_ROWS);
  CHECK_OK(lam_device_rmsnorm_bwd(&lam_device_cpu, workers(ALONE), dy.m, x.m, g.m, 1e-5f, none,
                                  one.m, false, NULL));
  CHECK_OK(lam_device_rmsnorm_bwd(&lam_device_cpu, workers(TWO_OPENMP), dy.m, x.m, g.m, 1e-5f, none,
                                  two.m, false, NULL));
  check_same(one.m, two.m);
  box_free(&dy), box_free(&x), box_free(&g), box_free(&one), box_free(&two);
}
