/* norm.c: RMSNorm with the residual sum before it, plain sums, and the embedding: all that walks
 * over rows of the hidden size.
 *
 * Invariant: arithmetic is f32 whatever the matrices hold, one rounding per stored element. The
 * gradient of y = x r g with r = (mean(x^2) + eps)^-1/2 is dx = r (dy g - x r mean(dy g x r)). */
#include "bindings/cli/demo/demo.h"
#include "bindings/cli/demo/rows.h"

static void add_row(const float *a, const float *b, int64_t n, float *sum) {
#pragma omp simd
  for (int64_t i = 0; i < n; i++) sum[i] = a[i] + b[i];
}

static float dot_row(const float *a, const float *b, int64_t n) {
  float sum = 0;
#pragma omp simd reduction(+ : sum)
  for (int64_t i = 0; i < n; i++) sum += a[i] * b[i];
  return sum;
}

void add(matrix a, matrix b, matrix sum) {
#pragma omp parallel for
  for (int64_t t = 0; t < a.rows; t++) {
    float room_a[MAX_ROW], room_b[MAX_ROW], room_sum[MAX_ROW];
    float *to = row_open(sum, t, room_sum);
    add_row(row_load(a, t, room_a), row_load(b, t, room_b), a.cols, to);
    row_store(sum, t, to);
  }
}

void norm_forward(matrix x, matrix add, const float *gain, matrix sum, matrix y, float *r) {
  const int64_t n = x.cols;
#pragma omp parallel for
  for (int64_t t = 0; t < x.rows; t++) {
    float room_x[MAX_ROW], room_add[MAX_ROW], room_sum[MAX_ROW], room_y[MAX_ROW];
    const float *row = row_load(x, t, room_x);
    if (add.data) {
      float *to = row_open(sum, t, room_sum);
      add_row(row, row_load(add, t, room_add), n, to);
      row_store(sum, t, to);
      row = row_load(sum, t, room_x); /* as stored: the backward will see it rounded too */
    }
    const float scale = r[t] = norm_scale(dot_row(row, row, n), n);
    float *to = row_open(y, t, room_y);
#pragma omp simd
    for (int64_t i = 0; i < n; i++) to[i] = row[i] * scale * gain[i];
    row_store(y, t, to);
  }
}

void norm_backward(matrix d_y, matrix x, const float *gain, const float *r, matrix d_sum,
                   matrix d_x, float *d_gain) {
  const int64_t n = x.cols;
#pragma omp parallel for reduction(+ : d_gain[:n])
  for (int64_t t = 0; t < x.rows; t++) {
    float room_dy[MAX_ROW], room_x[MAX_ROW], room_sum[MAX_ROW], room_dx[MAX_ROW];
    const float *dy = row_load(d_y, t, room_dy), *row = row_load(x, t, room_x);
    const float *through = d_sum.data ? row_load(d_sum, t, room_sum) : NULL;
    float *to = row_open(d_x, t, room_dx), scale = r[t], mean = 0;
#pragma omp simd reduction(+ : mean)
    for (int64_t i = 0; i < n; i++) mean += dy[i] * gain[i] * row[i];
    mean *= scale * scale / (float)n;
#pragma omp simd
    for (int64_t i = 0; i < n; i++) {
      d_gain[i] += dy[i] * row[i] * scale;
      to[i] = norm_gradient(dy[i], gain[i], row[i], scale, mean) + (through ? through[i] : 0);
    }
    row_store(d_x, t, to);
  }
}

void embed_forward(const uint8_t *tokens, int sequence, const float *embedding,
                   const float *position, matrix x) {
#pragma omp parallel for
  for (int64_t t = 0; t < x.rows; t++) {
    float room[MAX_ROW], *to = row_open(x, t, room);
    add_row(embedding + tokens[t] * x.cols, position + t % sequence * x.cols, x.cols, to);
    row_store(x, t, to);
  }
}

/* In token order on one thread, as two tokens may be the same. */
void embed_backward(const uint8_t *tokens, int sequence, matrix d_x, float *d_embedding,
                    float *d_position) {
  for (int64_t t = 0; t < d_x.rows; t++) {
    float room[MAX_ROW];
    const float *row = row_load(d_x, t, room);
    float *token = d_embedding + tokens[t] * d_x.cols,
          *place = d_position + t % sequence * d_x.cols;
    add_row(token, row, d_x.cols, token);
    add_row(place, row, d_x.cols, place);
  }
}
