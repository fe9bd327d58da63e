/* target.c: a library that knows nothing of Lamella, whose functions the tests run as stages. */
#include <stdint.h>
#include <string.h>

#define EXPORT __attribute__((visibility("default")))

/* y[i] = a * x[i] */
EXPORT int target_scale(const float *x, int64_t n, float a, float *y) {
  for (int64_t i = 0; i < n; i++) y[i] = a * x[i];
  return 0;
}

/* *loss += sum of x[i] */
EXPORT void target_sum(const float *x, int64_t n, double *loss) {
  for (int64_t i = 0; i < n; i++) *loss += x[i];
}

EXPORT int target_fail(int32_t code) { return code; }
EXPORT int64_t target_fail_wide(void) { return INT64_C(1) << 40; }

/* Says back what it was called with, one of each type, more of them than there are registers. */
typedef struct heard {
  const void *p[6];
  int32_t i32[6];
  int64_t i64[6];
  float f32[6];
  double f64[6];
  char text[32];
  int64_t ints[3];
} heard;

EXPORT int target_hear(heard *h, int32_t micro, int32_t stage, int64_t step, const void *in,
                       const void *out, int64_t dim0, int32_t dim1, int64_t numel, float f0,
                       double d0, float f1, double d1, float f2, double d2, float f3, double d3,
                       float f4, double d4, float f5, double d5, const char *text,
                       const int64_t *ints, const void *user, int32_t last) {
  *h = (heard){.p = {in, out, user},
               .i32 = {micro, stage, dim1, last},
               .i64 = {step, dim0, numel},
               .f32 = {f0, f1, f2, f3, f4, f5},
               .f64 = {d0, d1, d2, d3, d4, d5}};
  strncpy(h->text, text, sizeof h->text - 1);
  memcpy(h->ints, ints, sizeof h->ints);
  return 0;
}

/* A layer y = x w^T of width n, that remembers its inputs by micro-batch. */
typedef struct target_layer {
  int64_t n;
  double *w, *dw; /* [n, n] */
  double *saved;  /* [micro-batches, rows, n] */
  int64_t rows;
} target_layer;

static double *saved_of(const target_layer *l, int32_t micro) {
  return l->saved + micro * l->rows * l->n;
}

EXPORT int target_layer_forward(target_layer *l, int32_t micro, const double *x, double *y) {
  memcpy(saved_of(l, micro), x, (size_t)(l->rows * l->n) * sizeof *x);
  for (int64_t r = 0; r < l->rows; r++)
    for (int64_t o = 0; o < l->n; o++) {
      y[r * l->n + o] = 0;
      for (int64_t i = 0; i < l->n; i++) y[r * l->n + o] += x[r * l->n + i] * l->w[o * l->n + i];
    }
  return 0;
}

EXPORT int target_layer_backward(target_layer *l, int32_t micro, const double *dy, double *dx) {
  const double *x = saved_of(l, micro);
  for (int64_t i = 0; i < l->rows * l->n; i++) dx[i] = 0;
  for (int64_t r = 0; r < l->rows; r++)
    for (int64_t o = 0; o < l->n; o++)
      for (int64_t i = 0; i < l->n; i++) {
        dx[r * l->n + i] += dy[r * l->n + o] * l->w[o * l->n + i];
        l->dw[o * l->n + i] += dy[r * l->n + o] * x[r * l->n + i];
      }
  return 0;
}

/* The data of a micro-batch, and the end of it all: loss = sum of y^2 / 2, so dy = y. */
EXPORT void target_data(int64_t step, int32_t micro, int64_t numel, double *x) {
  for (int64_t i = 0; i < numel; i++)
    x[i] = (double)((step * 31 + micro * 7 + i * 3) % 17) / 16 - 0.5;
}

EXPORT int target_loss_forward(target_layer *l, int32_t micro, const double *y, double *loss) {
  memcpy(saved_of(l, micro), y, (size_t)(l->rows * l->n) * sizeof *y);
  for (int64_t i = 0; i < l->rows * l->n; i++) *loss += y[i] * y[i] / 2;
  return 0;
}

EXPORT int target_loss_backward(target_layer *l, int32_t micro, double *dy) {
  memcpy(dy, saved_of(l, micro), (size_t)(l->rows * l->n) * sizeof *dy);
  return micro == 3 && l->rows == 1; /* fails when a test asks for it */
}
EXPORT void target_nothing(void) {}
