/* math_test.c: the scalar functions over the whole of f32, in steps, against libm in double
 * precision. */
#include "kernels/math.h"

#include <math.h>

#include "tests/unit/kernels/support.h"

typedef float (*function)(float);

static float exp_of(float x) { return lam_exp(x); }
static float log_of(float x) { return lam_log(x); }
static float gelu(float x) { return lam_gelu(x); }
static float gelu_grad(float x) { return lam_gelu_grad(x); }
static float gelu_tanh(float x) { return lam_gelu_tanh(x); }
static float gelu_tanh_grad(float x) { return lam_gelu_tanh_grad(x); }
static float silu(float x) { return lam_silu(x); }
static float silu_grad(float x) { return lam_silu_grad(x); }

/* The largest error over a step through all finite floats, in units of `unit(x, want)`. */
static double worst_of(function f, double (*want)(double), double (*unit)(double x, double want),
                       float *at) {
  double worst = 0;
  for (uint64_t bits = 0; bits < 0xff800000u; bits += 977) {
    const float x = lam_f32_of_bits((uint32_t)bits);
    const double expected = want((double)x);
    if (!isfinite(x) || !(fabs(expected) <= 3.4e38)) continue;
    const double error = fabs((double)f(x) - expected) / unit((double)x, expected);
    if (!(error <= worst)) worst = error, *at = x;
  }
  return worst;
}

static double ulp(double x, double want) {
  int e;
  (void)x;
  frexp(want, &e);
  return ldexp(1, (e < -125 ? -125 : e) - 24);
}

static double of_argument(double x, double want) { return (1 + fabs(x) + fabs(want)) * 0x1p-24; }

/* Where lam_log is defined; 0 and infinity are at the ends of the range. */
static double log_want(double x) { return x < 0x1p-126 ? NAN : log(x); }
static double gelu_want(double x) { return act_of(LAM_ACT_GELU, x); }
static double gelu_tanh_want(double x) { return x < -1e3 ? 0 : act_of(LAM_ACT_GELU_TANH, x); }
static double silu_want(double x) { return act_of(LAM_ACT_SILU, x); }
static double gelu_grad_want(double x) { return act_grad_of(LAM_ACT_GELU, x); }
static double gelu_tanh_grad_want(double x) {
  return fabs(x) > 1e3 ? x > 0 : act_grad_of(LAM_ACT_GELU_TANH, x);
}
static double silu_grad_want(double x) { return act_grad_of(LAM_ACT_SILU, x); }

TEST(math, errors_stay_in_their_bounds_over_all_floats) {
  static const struct {
    const char *name;
    function f;
    double (*want)(double);
    double (*unit)(double, double);
    double bound;
  } cases[] = {
      {"exp", exp_of, exp, ulp, 1.2},
      {"log", log_of, log_want, ulp, 2},
      {"gelu", gelu, gelu_want, of_argument, 2},
      {"gelu'", gelu_grad, gelu_grad_want, of_argument, 4},
      {"gelu_tanh", gelu_tanh, gelu_tanh_want, of_argument, 2},
      {"gelu_tanh'", gelu_tanh_grad, gelu_tanh_grad_want, of_argument, 6},
      {"silu", silu, silu_want, of_argument, 2},
      {"silu'", silu_grad, silu_grad_want, of_argument, 2},
  };
  for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
    float at = 0;
    const double worst = worst_of(cases[i].f, cases[i].want, cases[i].unit, &at);
    NOTE("%s: %.3g units at %.9g", cases[i].name, worst, (double)at);
    CHECK(worst <= cases[i].bound);
  }
}

/* The tail of the normal distribution keeps its digits, where 1 + erf(x) would have lost them. */
TEST(math, small_probabilities_keep_their_digits) {
  for (float x = -9; x < -1; x += 0.01f) {
    float density;
    const double want = 0.5 * erfc(-(double)x * M_SQRT1_2);
    CHECK(fabs((double)lam_normal(x, &density) - want) <= 3e-6 * want);
  }
}

TEST(math, ends_of_the_range) {
  CHECK(lam_exp(-INFINITY) == 0 && lam_exp(INFINITY) == INFINITY && lam_exp(-200) == 0 &&
        lam_exp(200) == INFINITY);
  CHECK(lam_exp(0) == 1 && isnan(lam_exp(NAN)));
  CHECK(lam_log(0) == -INFINITY && lam_log(INFINITY) == INFINITY && isnan(lam_log(NAN)) &&
        lam_log(1) == 0);
  CHECK(lam_gelu_grad(INFINITY) == 1 && lam_gelu_grad(-INFINITY) == 0 && isnan(lam_gelu_grad(NAN)));
  CHECK(lam_gelu_tanh_grad(INFINITY) == 1 && lam_gelu_tanh_grad(-INFINITY) == 0 &&
        isnan(lam_gelu_tanh_grad(NAN)));
  CHECK(lam_silu_grad(INFINITY) == 1 && lam_silu_grad(-INFINITY) == 0 && isnan(lam_silu_grad(NAN)));
}

/* As the format is defined: sign, 5 bits of exponent, 10 of fraction. */
static double f16_value(int code) {
  const int exponent = code >> 10, fraction = code & 0x3ff;
  return exponent == 0 ? ldexp(fraction, -24) : ldexp(1024 + fraction, exponent - 25);
}

TEST(math, f16_rounds_to_nearest_even_and_comes_back) {
  for (int code = 0; code < 0x7c00; code++) { /* each value, each middle, and beside them */
    const float a = (float)f16_value(code), middle = (float)((a + f16_value(code + 1)) / 2);
    CHECK_EQ(lam_f16_of_f32(a), code);
    CHECK_EQ(lam_f16_of_f32(-a), code | 0x8000);
    CHECK_EQ(lam_f16_of_f32(middle), code + code % 2);
    CHECK_EQ(lam_f16_of_f32(nextafterf(middle, 0)), code);
    CHECK_EQ(lam_f16_of_f32(nextafterf(middle, INFINITY)), code + 1);
    CHECK(lam_f32_of_f16((uint16_t)code) == a && lam_f32_of_f16((uint16_t)(code | 0x8000)) == -a);
  }
  CHECK_EQ(lam_f16_of_f32(1e9f), 0x7c00);
  CHECK_EQ(lam_f16_of_f32(-INFINITY), 0xfc00);
  CHECK(isinf(lam_f32_of_f16(0xfc00)) && lam_f32_of_f16(0xfc00) < 0);
  for (int code = 0x7c01; code < 0x8000; code++) CHECK(isnan(lam_f32_of_f16((uint16_t)code)));
  CHECK((lam_f16_of_f32(NAN) & 0x7e00) == 0x7e00 &&
        lam_f16_of_f32(lam_f32_of_bits(0xff800001u)) == 0xfe00);
}
