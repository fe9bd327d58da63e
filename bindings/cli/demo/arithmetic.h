/* arithmetic.h: what is computed for one number, the same on the host and in a kernel.
 *
 * Invariant: plain functions of their arguments, in C and in CUDA C. Leaves loops, and which thread
 * takes what, to norm.c, adamw.c, data.c and to cuda.cu. */
#ifndef LAMELLA_DEMO_ARITHMETIC_H_
#define LAMELLA_DEMO_ARITHMETIC_H_

#include <math.h>
#include <stdint.h>
#include <string.h>

#ifdef __CUDACC__
#define SHARED __host__ __device__ static inline
#else
#define SHARED static inline
#endif

/* -- bf16: rounded to nearest, ties to even -- */

SHARED float from_bf16(uint16_t b) {
  const uint32_t bits = (uint32_t)b << 16;
  float f;
  memcpy(&f, &bits, 4);
  return f;
}

SHARED uint16_t to_bf16(float f) {
  uint32_t bits;
  memcpy(&bits, &f, 4);
  return f == f ? (uint16_t)((bits + 0x7fff + (bits >> 16 & 1)) >> 16) : (uint16_t)0x7fc0;
}

/* -- where a sequence of a micro-batch begins in the text -- */

/* Scatters (a, b) evenly: splitmix64's finish over a mixture of both. */
SHARED uint64_t hash(uint64_t a, uint64_t b) {
  uint64_t z = a * 0x9e3779b97f4a7c15u + b + 0x2545f4914f6cdd1du;
  z = (z ^ z >> 30) * 0xbf58476d1ce4e5b9u;
  z = (z ^ z >> 27) * 0x94d049bb133111ebu;
  return z ^ z >> 31;
}

/* batch: of the whole training; starts: how many places there are to begin at. */
SHARED uint64_t text_start(uint64_t seed, int64_t batch, int i, int64_t starts) {
  return hash(seed, (uint64_t)batch * 256 + (uint64_t)i) % (uint64_t)starts;
}

/* -- norm -- */

/* 1 / root mean square of n numbers, from the sum of their squares. */
SHARED float norm_scale(float squares, int64_t n) {
  return 1 / sqrtf(squares / (float)n + 1e-5f);
}

/* The gradient through y = x r gain; mean: r^2 / n times the sum of dy gain x. */
SHARED float norm_gradient(float dy, float gain, float x, float r, float mean) {
  return r * (dy * gain - x * mean);
}

/* -- AdamW -- */

typedef struct adamw {
  float rate, beta1, beta2, epsilon, decay;
  float unbias1, unbias2; /* 1 / (1 - beta^step) */
} adamw;

/* The weight after a step with gradient g; the moments are updated. */
SHARED float adamw_weight(adamw a, float w, float g, float *m, float *v) {
  *m = a.beta1 * *m + (1 - a.beta1) * g;
  *v = a.beta2 * *v + (1 - a.beta2) * g * g;
  return w - a.rate * (*m * a.unbias1 / (sqrtf(*v * a.unbias2) + a.epsilon) + a.decay * w);
}

#endif
