/* vector.h: sixteen f32 numbers at a time, in the vector types of gcc and clang, for the loops
 * that they do not find by themselves: products in registers, and exp. One AVX-512 register, or
 * two of AVX2, or four of SSE.
 *
 * Invariant: rows that are walked in lanes are multiples of 16 long; every such row in the demo is
 * a multiple of 32. */
#ifndef LAMELLA_DEMO_VECTOR_H_
#define LAMELLA_DEMO_VECTOR_H_

#include <stdint.h>

enum { LANES = 16 };
typedef float lanes __attribute__((vector_size(64), aligned(4), may_alias));
typedef int32_t int_lanes __attribute__((vector_size(64), aligned(4), may_alias));

static inline lanes *lanes_at(const float *p) { return (lanes *)(uintptr_t)p; }
static inline lanes lanes_of(float x) { return x - (lanes){0}; }

/* a where the condition holds, else b. */
static inline lanes pick(int_lanes condition, lanes a, lanes b) {
  return (lanes)((condition & (int_lanes)a) | (~condition & (int_lanes)b));
}

static inline lanes larger(lanes a, lanes b) { return pick(a > b, a, b); }
static inline lanes smaller(lanes a, lanes b) { return pick(a < b, a, b); }

/* Across the lanes: quarter by quarter first, then the four that are left. */
typedef float four __attribute__((vector_size(16), aligned(4), may_alias));
typedef int32_t int_four __attribute__((vector_size(16), aligned(4), may_alias));

static inline four *four_at(const float *p) { return (four *)(uintptr_t)p; }

static inline float lanes_sum(lanes v) {
  const four *part = (const four *)&v;
  const four sum = (part[0] + part[1]) + (part[2] + part[3]);
  return (sum[0] + sum[1]) + (sum[2] + sum[3]);
}

static inline four larger_four(four a, four b) {
  const int_four first = a > b;
  return (four)((first & (int_four)a) | (~first & (int_four)b));
}

static inline float lanes_highest(lanes v) {
  const four *part = (const four *)&v;
  const four high = larger_four(larger_four(part[0], part[1]), larger_four(part[2], part[3]));
  const float a = high[0] > high[1] ? high[0] : high[1], b = high[2] > high[3] ? high[2] : high[3];
  return a > b ? a : b;
}

/* e^x within 2e-7 (relative) for x <= 0; 0 below -87. As 2^n 2^f: 2^n from the exponent bits, 2^f,
 * |f| <= 1/2, by its series. */
static inline lanes lanes_exp(lanes x) {
  const int_lanes in_range = x > lanes_of(-87);
  const lanes y = pick(in_range, x, lanes_of(0)) * 1.44269504f;
  const int_lanes n =
      __builtin_convertvector(y - 0.5f, int_lanes); /* y <= 0: cutting off rounds to nearest */
  const lanes f = y - __builtin_convertvector(n, lanes);
  lanes p = lanes_of(1.5403530e-4f);
  p = p * f + 1.3333558e-3f;
  p = p * f + 9.6181291e-3f;
  p = p * f + 5.5504109e-2f;
  p = p * f + 2.4022651e-1f;
  p = p * f + 6.9314718e-1f;
  p = p * f + 1.0f;
  const lanes power = (lanes)((n + 127) << 23);
  return pick(in_range, p * power, lanes_of(0));
}

#endif
