/* math.h: the scalar arithmetic of all devices: bf16, f16, fp8, exp, the normal distribution,
 * activations and their derivatives.
 *
 * Invariant: no branch on data, no call into libm, no table: a loop over any of these functions
 * becomes vector code, and every element gets the same bits whichever lane it falls in. NaN in
 * gives NaN out. An includer may first set LAM_INLINE (how to inline: say, __device__), and, where
 * the machine has its own, LAM_FMA, and what activations use: LAM_EXP and LAM_RECIPROCAL.
 * Leaves loops, types in memory and rounding of results to each device. */
#ifndef LAMELLA_KERNELS_MATH_H
#define LAMELLA_KERNELS_MATH_H

#include <stdint.h>
#include <string.h>

#ifndef LAM_INLINE
#define LAM_INLINE static inline __attribute__((always_inline, unused))
#endif
#ifndef LAM_FMA
#define LAM_FMA(a, b, c) ((a) * (b) + (c))
#endif
#ifndef LAM_EXP
#define LAM_EXP(x) lam_exp(x)
#endif
#ifndef LAM_RECIPROCAL
#define LAM_RECIPROCAL(x) (1.0f / (x))
#endif

LAM_INLINE uint32_t lam_bits_of_f32(float x) {
  uint32_t bits;
  memcpy(&bits, &x, sizeof bits);
  return bits;
}

LAM_INLINE float lam_f32_of_bits(uint32_t bits) {
  float x;
  memcpy(&x, &bits, sizeof x);
  return x;
}

LAM_INLINE float lam_f32_of_bf16(uint16_t h) { return lam_f32_of_bits((uint32_t)h << 16); }

/* Round to nearest, ties to even. A NaN keeps its sign and becomes quiet, since its low bits alone
 * may carry it. */
LAM_INLINE uint16_t lam_bf16_of_f32(float x) {
  const uint32_t bits = lam_bits_of_f32(x);
  const uint32_t rounded = (bits + 0x7fffu + (bits >> 16 & 1u)) >> 16;
  const uint32_t quiet = bits >> 16 | 0x40u;
  return (uint16_t)(x != x ? quiet : rounded);
}

/* f16: to the nearest, ties to even, beyond its range to infinity. Below the smallest normal number,
 * adding a half, whose unit in the last place is f16's smallest step, rounds to steps. */
LAM_INLINE uint16_t lam_f16_of_f32(float x) {
  const uint32_t sign = lam_bits_of_f32(x) >> 16 & 0x8000u;
  const uint32_t quiet = 0x7e00u | (lam_bits_of_f32(x) >> 13 & 0x1ffu);
  float v = lam_f32_of_bits(lam_bits_of_f32(x) & 0x7fffffffu);
  v = v > 65536.0f ? 65536.0f : v;
  const uint32_t bits = lam_bits_of_f32(v);
  const uint32_t normal = ((bits + 0xfffu + (bits >> 13 & 1u)) >> 13) - (112u << 10);
  const uint32_t below = lam_bits_of_f32(v + 0.5f) - lam_bits_of_f32(0.5f);
  const uint32_t code = v < 0x1p-14f ? below : normal;
  return (uint16_t)(sign | (x != x ? quiet : code));
}

LAM_INLINE float lam_f32_of_f16(uint16_t h) {
  const uint32_t sign = (uint32_t)(h & 0x8000u) << 16, magnitude = h & 0x7fffu;
  const uint32_t normal = (magnitude << 13) + (112u << 23);
  const uint32_t below = lam_bits_of_f32((float)(int32_t)magnitude * 0x1p-24f);
  const uint32_t quiet = (uint32_t)(magnitude > 0x7c00u) << 22;
  const uint32_t special = 0x7f800000u | magnitude << 13 | quiet;
  uint32_t bits = magnitude < 0x400u ? below : normal;
  bits = magnitude >= 0x7c00u ? special : bits;
  return lam_f32_of_bits(sign | bits);
}

/* fp8 (Micikevicius et al. 2022): `fraction` bits of it, exponents biased by `bias`. To the
 * nearest, ties to even; beyond `most`, the largest finite value, to it; a NaN to 0x7f. Below the
 * smallest normal number, adding a float whose unit in the last place is fp8's smallest step rounds
 * to steps. */
LAM_INLINE uint8_t lam_f8_of_f32(float x, int fraction, int bias, float most) {
  const uint32_t sign = lam_bits_of_f32(x) >> 24 & 0x80u;
  const float least = lam_f32_of_bits((uint32_t)(127 + 1 - bias) << 23);
  const float steps = lam_f32_of_bits((uint32_t)(127 + 24 - bias - fraction) << 23);
  float v = lam_f32_of_bits(lam_bits_of_f32(x) & 0x7fffffffu);
  v = v > most ? most : v;
  const uint32_t bits = lam_bits_of_f32(v);
  const int shift = 23 - fraction;
  const uint32_t half = (1u << (shift - 1)) - 1u + (bits >> shift & 1u);
  const uint32_t normal = ((bits + half) >> shift) - ((uint32_t)(127 - bias) << fraction);
  const uint32_t below = lam_bits_of_f32(v + steps) - lam_bits_of_f32(steps);
  const uint32_t code = v < least ? below : normal;
  return (uint8_t)(sign | (x != x ? 0x7fu : code));
}

LAM_INLINE float lam_f32_of_f8(uint8_t code, int fraction, int bias, uint32_t first_special) {
  const uint32_t sign = (uint32_t)(code & 0x80u) << 24, magnitude = code & 0x7fu;
  const float step = lam_f32_of_bits((uint32_t)(127 + 1 - bias - fraction) << 23);
  const uint32_t normal = (magnitude << (23 - fraction)) + ((uint32_t)(127 - bias) << 23);
  const uint32_t below = lam_bits_of_f32((float)(int32_t)magnitude * step);
  const uint32_t special = 0x7f800000u | (magnitude != 0x7cu || first_special == 0x7fu) << 22;
  uint32_t bits = magnitude < 1u << fraction ? below : normal;
  bits = magnitude >= first_special ? special : bits;
  return lam_f32_of_bits(sign | bits);
}

/* e4m3 has no infinity and one NaN; e5m2 has 0x7c and 0x7d to 0x7f. */
LAM_INLINE uint8_t lam_f8e4m3_of_f32(float x) { return lam_f8_of_f32(x, 3, 7, 448.0f); }
LAM_INLINE uint8_t lam_f8e5m2_of_f32(float x) { return lam_f8_of_f32(x, 2, 15, 57344.0f); }
LAM_INLINE float lam_f32_of_f8e4m3(uint8_t c) { return lam_f32_of_f8(c, 3, 7, 0x7fu); }
LAM_INLINE float lam_f32_of_f8e5m2(uint8_t c) { return lam_f32_of_f8(c, 2, 15, 0x7cu); }

/* To the nearest integer in [-127, 127], ties to even, two's complement; a NaN to 0. */
LAM_INLINE uint8_t lam_i8_of_f32(float x) {
  x = x != x ? 0.0f : x;
  x = x > 127.0f ? 127.0f : x;
  x = x < -127.0f ? -127.0f : x;
  return (uint8_t)lam_bits_of_f32(x + 0x1.8p+23f);
}
LAM_INLINE float lam_f32_of_i8(uint8_t code) { return (float)(int32_t)(int8_t)code; }

/* 2^k for k in [-126, 127]. */
LAM_INLINE float lam_exp2_of_int(int32_t k) { return lam_f32_of_bits((uint32_t)(k + 127) << 23); }

/* e^x within 1.1 ulp. x = k ln 2 + r, |r| <= ln 2 / 2, ln 2 in two parts (Cody, Waite). e^r = 1 + r
 * + r^2 q(r), where q is our own minimax fit (Remez; relative error 3.1e-9). Adding 1.5 * 2^23
 * leaves k in the low bits of the sum. */
LAM_INLINE float lam_exp(float x) {
  x = x < -104.0f ? -104.0f : x; /* e^-104 rounds to 0 */
  x = x > 89.0f ? 89.0f : x;     /* e^89 is infinite */
  const float shifted = LAM_FMA(x, 0x1.715476p+0f, 0x1.8p+23f);
  const float n = shifted - 0x1.8p+23f;
  const int32_t k = (int32_t)(lam_bits_of_f32(shifted) - 0x4b400000u);
  const float r = LAM_FMA(n, -0x1.0bfbe8p-15f, LAM_FMA(n, -0x1.62ep-1f, x));
  float q = 0.00138145988918f;
  q = LAM_FMA(q, r, 0.00836871680656f);
  q = LAM_FMA(q, r, 0.0416683880325f);
  q = LAM_FMA(q, r, 0.166665206325f);
  q = LAM_FMA(q, r, 0.499999934479f);
  const float e = LAM_FMA(q * r, r, r) + 1.0f;
  const int32_t half = k >> 1; /* two steps, for results below 2^-126 and above 2^127 */
  return e * lam_exp2_of_int(half) * lam_exp2_of_int(k - half);
}

/* ln x within 2 ulp, for 0, infinity and what is not below 2^-126. x = 2^k m, m between 1/sqrt 2
 * and sqrt 2; ln m = 2 artanh(s), s = (m - 1) / (m + 1), by five terms of its series (s^2 <
 * 0.03). */
LAM_INLINE float lam_log(float x) {
  const int32_t k = (int32_t)(lam_bits_of_f32(x) - 0x3f3504f3u) >> 23;
  const float f = lam_f32_of_bits(lam_bits_of_f32(x) - ((uint32_t)k << 23)) - 1.0f;
  const float s = f / (2.0f + f), z = s * s;
  float q = 0.111111111111f;
  q = LAM_FMA(q, z, 0.142857142857f);
  q = LAM_FMA(q, z, 0.2f);
  q = LAM_FMA(q, z, 0.333333333333f);
  const float n = (float)k, ln_m = 2.0f * LAM_FMA(q * z, s, s);
  const float y = LAM_FMA(n, 0x1.62ep-1f, LAM_FMA(n, 0x1.0bfbe8p-15f, ln_m));
  const float infinite = lam_f32_of_bits(0x7f800000u);
  return x == 0.0f ? -infinite : x < infinite ? y : x;
}

LAM_INLINE float lam_sigmoid(float x) { return LAM_RECIPROCAL(1.0f + LAM_EXP(-x)); }

/* The standard normal distribution: its cumulative probability and, times sqrt(2 pi), its density
 * e^(-x^2/2). Below zero, P(x) = e^(-x^2/2) g(-x) with g(u) = erfcx(u / sqrt 2) / 2, fitted (Remez,
 * relative error 3.2e-8) by a polynomial in t = 1 / (1 + 0.35 u): erfc's classic form (Hastings
 * 1955), so that small probabilities keep their digits. */
LAM_INLINE float lam_normal(float x, float *density) {
  const float u = x < 0.0f ? -x : x;
  const float t = LAM_RECIPROCAL(LAM_FMA(0.35f, u, 1.0f));
  float g = -0.0291459155263f;
  g = LAM_FMA(g, t, 0.143971628273f);
  g = LAM_FMA(g, t, -0.255714115879f);
  g = LAM_FMA(g, t, 0.159174008662f);
  g = LAM_FMA(g, t, -0.0231097355142f);
  g = LAM_FMA(g, t, 0.105507964031f);
  g = LAM_FMA(g, t, 0.119832877212f);
  g = LAM_FMA(g, t, 0.13986186843f);
  g = LAM_FMA(g, t, 0.139621404365f);
  const float e = LAM_EXP(-0.5f * u * u);
  const float tail = e * (g * t);
  *density = e;
  return x < 0.0f ? tail : 1.0f - tail;
}

/* -- activations and their derivatives -- */

/* Far out every derivative is 0 or 1 in f32; a bounded argument keeps infinity times 0 out of it.
 * NaN passes. */
LAM_INLINE float lam_bounded(float x, float bound) {
  x = x > bound ? bound : x;
  return x < -bound ? -bound : x;
}

LAM_INLINE float lam_identity(float x) { return x; }
LAM_INLINE float lam_identity_grad(float x) { return x != x ? x : 1.0f; }

LAM_INLINE float lam_gelu(float x) {
  float density;
  return x * lam_normal(x, &density);
}

LAM_INLINE float lam_gelu_grad(float x) {
  float density;
  x = lam_bounded(x, 32.0f);
  const float p = lam_normal(x, &density);
  return LAM_FMA(x * 0.398942280401f, density, p);
}

/* x/2 (1 + tanh(sqrt(2/pi) (x + 0.044715 x^3))) = x sigmoid(a x + b x^3) */
#define LAM_GELU_TANH_A 1.595769121606f
#define LAM_GELU_TANH_B 0.0713548162726f

LAM_INLINE float lam_gelu_tanh_sigmoid(float x) {
  return lam_sigmoid(x * LAM_FMA(LAM_GELU_TANH_B, x * x, LAM_GELU_TANH_A));
}

LAM_INLINE float lam_gelu_tanh(float x) { return x * lam_gelu_tanh_sigmoid(x); }

LAM_INLINE float lam_gelu_tanh_grad(float x) {
  x = lam_bounded(x, 32.0f);
  const float s = lam_gelu_tanh_sigmoid(x);
  const float slope = LAM_FMA(3.0f * LAM_GELU_TANH_B, x * x, LAM_GELU_TANH_A);
  return LAM_FMA(x * slope, s * (1.0f - s), s);
}

LAM_INLINE float lam_silu(float x) { return x * lam_sigmoid(x); }

LAM_INLINE float lam_silu_grad(float x) {
  const float s = lam_sigmoid(x); /* of x itself, so that it is shared with lam_silu(x) */
  x = lam_bounded(x, 128.0f);
  return LAM_FMA(x, s * (1.0f - s), s);
}

LAM_INLINE float lam_relu(float x) { return x < 0.0f ? 0.0f : x; }
LAM_INLINE float lam_relu_grad(float x) { return x <= 0.0f ? 0.0f : x != x ? x : 1.0f; }

LAM_INLINE float lam_relu2(float x) { return lam_relu(x) * lam_relu(x); }
LAM_INLINE float lam_relu2_grad(float x) { return 2.0f * lam_relu(x); }

#endif
