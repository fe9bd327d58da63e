/* math_test.c: the demo's own arithmetic against plain formulas in double: values directly,
 * gradients by finite differences of the double formula, so that nothing of the code under test
 * stands on both sides.
 *
 * Invariant: a gradient is tested as d (sum of c * output) / d input with random c, every element
 * of every input. */
#include <math.h>
#include <stdlib.h>

#include "bindings/cli/demo/demo.h"
#include "tests/check.h"

/* Memory that lives as long as the program, for tests that build many arrays. */
static void *take(int64_t bytes) {
  static void *taken[512];
  static int n;
  return taken[n++] = calloc(1, (size_t)bytes);
}

static float *numbers(rng *r, int64_t n, float size) {
  float *x = take(n * 4);
  for (int64_t i = 0; i < n; i++) x[i] = rng_float(r) * size;
  return x;
}

static double *doubles(const float *x, int64_t n) {
  double *d = take(n * 8);
  for (int64_t i = 0; i < n; i++) d[i] = x[i];
  return d;
}

/* To bf16, cut off and not rounded: which numbers they are does not matter. */
static uint16_t *halves(const float *x, int64_t n) {
  uint16_t *h = take(n * 2);
  for (int64_t i = 0; i < n; i++) h[i] = (uint16_t)(((const uint32_t *)x)[i] >> 16);
  return h;
}

static float *floats_of(const uint16_t *h, int64_t n) {
  float *x = take(n * 4);
  for (int64_t i = 0; i < n; i++) ((uint32_t *)x)[i] = (uint32_t)h[i] << 16;
  return x;
}

/* Gradient of f in x by central differences. */
typedef double (*scalar_fn)(const void *problem);
static double *differences(scalar_fn f, const void *problem, double *x, int64_t n) {
  double *d = take(n * 8);
  for (int64_t i = 0; i < n; i++) {
    const double kept = x[i], step = 1e-5;
    x[i] = kept + step;
    const double up = f(problem);
    x[i] = kept - step;
    d[i] = (up - f(problem)) / (2 * step);
    x[i] = kept;
  }
  return d;
}

/* -- RMSNorm -- */

typedef struct norm_problem {
  int64_t rows, n;
  double *x, *gain, *c;
} norm_problem;

static double norm_sum(const void *problem) {
  const norm_problem *p = problem;
  double sum = 0;
  for (int64_t t = 0; t < p->rows; t++) {
    const double *x = p->x + t * p->n;
    double squares = 0;
    for (int64_t i = 0; i < p->n; i++) squares += x[i] * x[i];
    for (int64_t i = 0; i < p->n; i++)
      sum += p->c[t * p->n + i] * x[i] / sqrt(squares / (double)p->n + 1e-5) * p->gain[i];
  }
  return sum;
}

TEST(norm, gradients_are_those_of_the_formula) {
  rng r = {seed()};
  const int64_t rows = 5, n = 64;
  float *x = numbers(&r, rows * n, 2), *gain = numbers(&r, n, 1), *c = numbers(&r, rows * n, 1);
  float *y = take(rows * n * 4), *d_x = take(rows * n * 4), *d_gain = take(n * 4), scale[5];
  norm_problem p = {rows, n, doubles(x, rows * n), doubles(gain, n), doubles(c, rows * n)};
  const matrix mx = matrix_at(x, rows, n, 32), my = matrix_at(y, rows, n, 32),
               mc = matrix_at(c, rows, n, 32);

  norm_forward(mx, ABSENT, gain, ABSENT, my, scale);
  double sum = 0;
  for (int64_t i = 0; i < rows * n; i++) sum += (double)c[i] * y[i];
  CHECK(fabs(sum - norm_sum(&p)) < 1e-4);

  norm_backward(mc, mx, gain, scale, ABSENT, matrix_at(d_x, rows, n, 32), d_gain);
  CHECK_CLOSE(d_x, differences(norm_sum, &p, p.x, rows * n), rows * n, 1e-4, 1e-5);
  CHECK_CLOSE(d_gain, differences(norm_sum, &p, p.gain, n), n, 1e-4, 1e-5);
}

TEST(norm, residual_joins_before_the_norm_and_its_gradient_after) {
  rng r = {seed()};
  const int64_t rows = 3, n = 32;
  float *x = numbers(&r, rows * n, 1), *y = numbers(&r, rows * n, 1), *gain = numbers(&r, n, 1),
        *d = numbers(&r, rows * n, 1);
  float sum[96], plain[96], joined[96], d_plain[96], d_joined[96], r1[3], r2[3], d_gain[32] = {0};
  const matrix mx = matrix_at(x, rows, n, 32), mr = matrix_at(y, rows, n, 32),
               ms = matrix_at(sum, rows, n, 32);
  add(mx, mr, ms);
  norm_forward(ms, ABSENT, gain, ABSENT, matrix_at(plain, rows, n, 32), r1);
  norm_forward(mx, mr, gain, ms, matrix_at(joined, rows, n, 32), r2);
  CHECK_SAME_BITS(plain, joined, sizeof plain);

  const matrix md = matrix_at(d, rows, n, 32);
  norm_backward(md, ms, gain, r1, ABSENT, matrix_at(d_plain, rows, n, 32), d_gain);
  norm_backward(md, ms, gain, r1, mr, matrix_at(d_joined, rows, n, 32), d_gain);
  for (int i = 0; i < 96; i++) d_plain[i] += y[i];
  double *want = doubles(d_plain, 96);
  CHECK_CLOSE(d_joined, want, 96, 1e-6, 1e-6);
}

/* -- attention -- */

typedef struct attention_problem {
  int64_t sequences, n, heads, d;
  double *qkv, *c; /* [sequences n, 3 heads d], [sequences n, heads d] */
} attention_problem;

UNWATCHED static double row_of_attention(const attention_problem *p, int64_t s, int64_t head, int64_t i) {
  const int64_t a = p->heads * p->d, width = 3 * a;
  const double *base = p->qkv + s * p->n * width + head * p->d, *q = base + i * width;
  double score[256], sum = 0, out = 0;
  for (int64_t j = 0; j <= i; j++) {
    score[j] = 0;
    for (int64_t k = 0; k < p->d; k++) score[j] += q[k] * base[j * width + a + k];
    sum += score[j] = exp(score[j] / sqrt((double)p->d));
  }
  for (int64_t j = 0; j <= i; j++)
    for (int64_t k = 0; k < p->d; k++)
      out +=
          p->c[(s * p->n + i) * a + head * p->d + k] * score[j] / sum * base[j * width + 2 * a + k];
  return out;
}

static double attention_sum(const void *problem) {
  const attention_problem *p = problem;
  double sum = 0;
  for (int64_t s = 0; s < p->sequences; s++)
    for (int64_t head = 0; head < p->heads; head++)
      for (int64_t i = 0; i < p->n; i++) sum += row_of_attention(p, s, head, i);
  return sum;
}

static void check_attention(int sequences, int n, int heads, int d, int bits) {
  rng r = {seed()};
  NOTE("sequences=%d n=%d heads=%d d=%d bits=%d", sequences, n, heads, d, bits);
  const int64_t rows = sequences * n, a = heads * d;
  float *qkv = numbers(&r, rows * 3 * a, 2), *c = numbers(&r, rows * a, 1);
  void *in = qkv, *d_o = c, *o = take(rows * a * 4), *d_in = take(rows * 3 * a * 4);
  if (bits == 16) {
    in = halves(qkv, rows * 3 * a), qkv = floats_of(in, rows * 3 * a);
    d_o = halves(c, rows * a), c = floats_of(d_o, rows * a);
  }
  float *room = take(attention_room_floats(n, d, 8) * 4), *lse = take(heads * rows * 4);
  attention_problem p = {sequences, n, heads, d, doubles(qkv, rows * 3 * a), doubles(c, rows * a)};
  const matrix mi = matrix_at(in, rows, 3 * a, bits), mo = matrix_at(o, rows, a, bits);

  attention_forward(mi, n, heads, room, mo, lse);
  const float *out = bits == 16 ? floats_of(o, rows * a) : o;
  double sum = 0;
  for (int64_t i = 0; i < rows * a; i++) sum += (double)c[i] * out[i];
  CHECK(fabs(sum - attention_sum(&p)) < (bits == 16 ? 1.0 : 1e-3));

  attention_backward(mi, n, heads, room, mo, lse, matrix_at(d_o, rows, a, bits),
                     matrix_at(d_in, rows, 3 * a, bits));
  const float *got = bits == 16 ? floats_of(d_in, rows * 3 * a) : d_in;
  const double *want = differences(attention_sum, &p, p.qkv, rows * 3 * a);
  CHECK_CLOSE(got, want, rows * 3 * a, bits == 16 ? 1e-2 : 1e-4, bits == 16 ? 5e-3 : 2e-5);
}

TEST(attention, gradients_are_those_of_the_formula) {
  check_attention(1, 32, 1, 32, 32);
  check_attention(1, 64, 1, 32, 32);
}

TEST(attention, bf16_is_within_its_rounding) { check_attention(1, 32, 1, 32, 16); }

/* Each pair alone must give what all together give: no head or sequence leaks into another. */
TEST(attention, heads_and_sequences_do_not_mix) {
  rng r = {seed()};
  enum { N = 64, D = 64, HEADS = 3, SEQUENCES = 2, A = HEADS * D, ROWS = SEQUENCES * N };
  float *qkv = numbers(&r, ROWS * 3 * A, 2), *o = take(ROWS * A * 4), *alone = take(N * D * 4),
        *one = take(N * 3 * D * 4);
  float *room = take(attention_room_floats(N, D, 8) * 4), lse[HEADS * ROWS];
  attention_forward(matrix_at(qkv, ROWS, 3 * A, 32), N, HEADS, room, matrix_at(o, ROWS, A, 32),
                    lse);
  for (int s = 0; s < SEQUENCES; s++)
    for (int head = 0; head < HEADS; head++) {
      for (int t = 0; t < N; t++)
        for (int k = 0; k < 3 * D; k++)
          one[t * 3 * D + k] = qkv[(s * N + t) * 3 * A + k / D * A + head * D + k % D];
      attention_forward(matrix_at(one, N, 3 * D, 32), N, 1, room, matrix_at(alone, N, D, 32), lse);
      for (int t = 0; t < N; t++)
        CHECK_SAME_BITS(alone + t * D, o + (s * N + t) * A + head * D, D * 4);
    }
}

/* -- cross entropy -- */

typedef struct loss_problem {
  int64_t rows;
  double *logits;
  const uint8_t *targets;
} loss_problem;

static double loss_mean(const void *problem) {
  const loss_problem *p = problem;
  double loss = 0;
  for (int64_t t = 0; t < p->rows; t++) {
    double sum = 0;
    for (int i = 0; i < VOCAB; i++) sum += exp(p->logits[t * VOCAB + i]);
    loss += log(sum) - p->logits[t * VOCAB + p->targets[t]];
  }
  return loss / (double)p->rows;
}

TEST(loss, value_and_gradient_are_those_of_the_formula) {
  rng r = {seed()};
  const int64_t rows = 3;
  float *logits = numbers(&r, rows * VOCAB, 8);
  const uint8_t targets[3] = {0, 255, 77};
  loss_problem p = {rows, doubles(logits, rows * VOCAB), targets};
  const double want = loss_mean(&p), *gradient = differences(loss_mean, &p, p.logits, rows * VOCAB);
  CHECK(fabs(cross_entropy(matrix_at(logits, rows, VOCAB, 32), targets, 1.0f / 3) - want) < 1e-5);
  CHECK_CLOSE(logits, gradient, rows * VOCAB, 1e-4, 1e-6);
}

TEST(loss, far_off_logits_stay_finite) {
  float logits[VOCAB] = {0};
  logits[3] = 300;
  logits[4] = -300;
  const uint8_t target = 4;
  const double loss = cross_entropy(matrix_at(logits, 1, VOCAB, 32), &target, 1);
  CHECK(fabs(loss - 600) < 1e-3);
  CHECK(logits[3] > 0.999f && logits[4] < -0.999f);
}

/* -- embedding -- */

TEST(embedding, gradient_goes_to_the_token_and_the_place_it_came_from) {
  enum { ROWS = 6, H = 32, SEQUENCE = 3 };
  rng r = {seed()};
  const uint8_t tokens[ROWS] = {7, 7, 255, 0, 7, 1};
  float *table = numbers(&r, VOCAB * H, 1), *place = numbers(&r, SEQUENCE * H, 1),
        *d = numbers(&r, ROWS * H, 1), x[ROWS * H];
  float *d_table = take(VOCAB * H * 4), *d_place = take(SEQUENCE * H * 4);
  embed_forward(tokens, SEQUENCE, table, place, matrix_at(x, ROWS, H, 32));
  embed_backward(tokens, SEQUENCE, matrix_at(d, ROWS, H, 32), d_table, d_place);
  for (int i = 0; i < H; i++) {
    CHECK(x[4 * H + i] == table[7 * H + i] + place[1 * H + i]);
    CHECK(fabsf(d_table[7 * H + i] - (d[i] + d[H + i] + d[4 * H + i])) < 1e-6f);
    CHECK(fabsf(d_place[2 * H + i] - (d[2 * H + i] + d[5 * H + i])) < 1e-6f);
    CHECK(d_table[9 * H + i] == 0);
  }
}

/* -- AdamW -- */

TEST(adamw, three_steps_are_those_of_the_formula) {
  enum { N = 50 };
  rng r = {seed()};
  const adamw a = {.rate = 0.01f, .beta1 = 0.9f, .beta2 = 0.95f, .epsilon = 1e-8f, .decay = 0.1f};
  float *w = numbers(&r, N, 1), *grad = take(N * 4), m[N] = {0}, v[N] = {0};
  double *want = doubles(w, N), wm[N] = {0}, wv[N] = {0};
  param p = {
      .deviation = 1, .w = matrix_at(w, 1, N, 32), .master = w, .grad = grad, .m = m, .v = v};
  for (int step = 0; step < 3; step++) {
    for (int i = 0; i < N; i++) {
      const double g = grad[i] = rng_float(&r);
      wm[i] = 0.9 * wm[i] + 0.1 * g;
      wv[i] = 0.95 * wv[i] + 0.05 * g * g;
      const double mean = wm[i] / (1 - pow(0.9, step + 1)),
                   square = wv[i] / (1 - pow(0.95, step + 1));
      want[i] -= 0.01 * (mean / (sqrt(square) + 1e-8) + 0.1 * want[i]);
    }
    adamw_step(&p, a, step);
    for (int i = 0; i < N; i++) CHECK(grad[i] == 0);
  }
  CHECK_CLOSE(w, want, N, 1e-5, 1e-6);
}

TEST(adamw, bf16_weights_are_rounded_from_the_master) {
  float master[4] = {1, 1 + 1.0f / 256, 1 + 3.0f / 256, -2.00001f}, grad[4] = {0}, m[4] = {0},
        v[4] = {0};
  uint16_t w[4] = {0};
  param p = {
      .deviation = 1, .w = matrix_at(w, 1, 4, 16), .master = master, .grad = grad, .m = m, .v = v};
  const adamw still = {.rate = 0, .beta1 = 0.9f, .beta2 = 0.95f, .epsilon = 1e-8f};
  adamw_step(&p, still, 0);
  const uint16_t want[4] = {0x3f80, 0x3f80, 0x3f82, 0xc000}; /* ties go to even */
  CHECK_SAME_BITS(w, want, sizeof w);
}
