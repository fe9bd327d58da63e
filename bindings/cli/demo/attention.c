/* attention.c: causal attention of some heads, forward and backward, in tiles that stay in the
 * cache.
 *
 * qkv [T, 3A]: a row holds the token's queries of all heads here, then keys, then values. Each
 * (sequence, head) pair is on its own: its q, k, v are copied to f32, queries are taken BLOCK at a
 * time against the keys up to them. The backward does not keep probabilities: it makes them again
 * from the scores and each query's lse (their log sum exp).
 * Invariant: one inner loop, `tile`, does all the products; sequence and head size are multiples
 * of 32. */
#include <math.h>

#include "bindings/cli/demo/demo.h"
#include "bindings/cli/demo/rows.h"
#include "bindings/cli/demo/vector.h"

#ifdef _OPENMP
#include <omp.h>
static int thread_number(void) { return omp_get_thread_num(); }
#else
static int thread_number(void) { return 0; }
#endif

static const float UNSEEN = -1e30f; /* the score of a key that comes after its query */
enum { TILE_COLS = LANES, TILE_ROWS = 16, BLOCK = 16 };

/* A view of f32 numbers with any strides, so that transposing is swapping them. */
typedef struct view {
  float *at;
  int64_t row, col;
} view;

static view rows_of(float *at, int64_t row) { return (view){at, row, 1}; }
static view turned(view v) { return (view){v.at, v.col, v.row}; }
static view moved(view v, int64_t rows) { return (view){v.at + rows * v.row, v.row, v.col}; }

/* c [16, 16] (+)= a [16, depth] b [depth, 16]; rows of b and c lie together. */
static inline void tile(view a, view b, view c, int64_t depth, bool accumulate) {
  lanes sum[TILE_ROWS] = {0};
  for (int64_t k = 0; k < depth; k++) {
    const lanes row = *lanes_at(b.at + k * b.row);
    for (int i = 0; i < TILE_ROWS; i++) sum[i] += a.at[i * a.row + k * a.col] * row;
  }
  for (int i = 0; i < TILE_ROWS; i++) {
    lanes *to = lanes_at(c.at + i * c.row);
    if (accumulate) sum[i] += *to;
    *to = sum[i];
  }
}

static void product(view a, view b, view c, int64_t rows, int64_t cols, int64_t depth,
                    bool accumulate) {
  for (int64_t j = 0; j < cols; j += TILE_COLS)
    for (int64_t i = 0; i < rows; i += TILE_ROWS)
      tile(moved(a, i), (view){b.at + j, b.row, 1}, (view){c.at + i * c.row + j, c.row, 1}, depth,
           accumulate);
}

/* What one (sequence, head) pair needs: n = sequence, d = head size. */
typedef struct room {
  view q, k, v, o;         /* [n, d] */
  view k_turned, v_turned; /* [d, n] */
  view d_q, d_k, d_v, d_o; /* [n, d] */
  view p,
      d_p; /* [BLOCK, n] probabilities of one block of queries, and the gradient of its scores */
} room;

enum { MATRICES = 10 };

int64_t attention_room_floats(int sequence, int head_size, int threads) {
  return threads * (int64_t)sequence * (MATRICES * head_size + 2 * BLOCK);
}

static room room_of(float *all, int64_t n, int64_t d) {
  float *at = all + thread_number() * attention_room_floats((int)n, (int)d, 1);
  room r;
  view *wide[] = {&r.q, &r.k, &r.v, &r.o, &r.d_q, &r.d_k, &r.d_v, &r.d_o};
  for (int i = 0; i < 8; i++, at += n * d) *wide[i] = rows_of(at, d);
  view *high[] = {&r.k_turned, &r.v_turned};
  for (int i = 0; i < 2; i++, at += n * d) *high[i] = rows_of(at, n);
  r.p = rows_of(at, n);
  r.d_p = rows_of(at + BLOCK * n, n);
  return r;
}

/* -- a head's columns of a matrix, to f32 and back -- */

/* Rows lie far apart, so no processor guesses the next ones: the head that comes after this one is
 * fetched meanwhile. It is 2 % of a bf16 step. */
static void copy_in(matrix from, int64_t first_row, int64_t first_col, int64_t n, int64_t d,
                    view to) {
  enum { LINE = 64 };
  const int64_t bytes = d * from.bits / 8;
  for (int64_t t = 0; t < n; t++) {
    const char *row = (const char *)from.data + ((first_row + t) * from.cols + first_col) * from.bits / 8;
    for (int64_t i = 0; i < bytes; i += LINE) __builtin_prefetch(row + bytes + i);
    if (from.bits == 16)
      read_bf16((const uint16_t *)(const void *)row, d, to.at + t * to.row);
    else
      memcpy(to.at + t * to.row, row, (size_t)bytes);
  }
}

static void copy_out(view from, int64_t n, int64_t d, matrix to, int64_t first_row,
                     int64_t first_col) {
  for (int64_t t = 0; t < n; t++) {
    const int64_t at = (first_row + t) * to.cols + first_col;
    if (to.bits == 16)
      write_bf16(from.at + t * from.row, d, (uint16_t *)to.data + at);
    else
      memcpy((float *)to.data + at, from.at + t * from.row, (size_t)d * 4);
  }
}

/* Four rows and columns at a time, so that both sides are touched in whole pieces. */
static void turn(view from, int64_t n, int64_t d, view to) {
  for (int64_t t = 0; t < n; t += 4)
    for (int64_t j = 0; j < d; j += 4) {
      const float *at = from.at + t * from.row + j;
      const four a = *four_at(at), b = *four_at(at + from.row);
      const four c = *four_at(at + 2 * from.row), e = *four_at(at + 3 * from.row);
      for (int i = 0; i < 4; i++)
        *four_at(to.at + (j + i) * to.row + t) = (four){a[i], b[i], c[i], e[i]};
    }
}

/* -- one query's row of `width` scores, of which it may see the first n -- */

/* Scores to probabilities, 0 beyond n; gives the log of the sum of exp. */
static float softmax(float *row, int64_t n, int64_t width, float scale) {
  lanes highest = lanes_of(UNSEEN), sum = {0};
  for (int64_t j = n; j < width; j++) row[j] = UNSEEN;
  for (int64_t j = 0; j < width; j += LANES) highest = larger(highest, *lanes_at(row + j));
  const float top = lanes_highest(highest);
  for (int64_t j = 0; j < width; j += LANES)
    sum += *lanes_at(row + j) = lanes_exp((*lanes_at(row + j) - top) * scale);
  const float total = lanes_sum(sum), share = 1 / total;
  for (int64_t j = 0; j < width; j += LANES) *lanes_at(row + j) *= share;
  return logf(total) + top * scale;
}

/* The probabilities again from scores and lse, and in d_p's place
 * d score = p (d p - sum of p d p) scale. */
static void softmax_backward(float *row, float *d_p, int64_t n, int64_t width, float scale,
                             float lse, float sum) {
  for (int64_t j = n; j < width; j++) row[j] = UNSEEN;
  for (int64_t j = 0; j < width; j += LANES) {
    const lanes x = *lanes_at(row + j) * scale - lse;
    const lanes p = *lanes_at(row + j) = lanes_exp(smaller(x, lanes_of(0)));
    *lanes_at(d_p + j) = p * (*lanes_at(d_p + j) - sum) * scale;
  }
}

/* -- one (sequence, head) pair -- */

static void forward_one(room r, int64_t n, int64_t d, float *lse) {
  const float scale = 1 / sqrtf((float)d);
  turn(r.k, n, d, r.k_turned);
  for (int64_t i = 0; i < n; i += BLOCK) {
    const int64_t width = i + BLOCK; /* the keys that this block's queries may see */
    product(moved(r.q, i), r.k_turned, r.p, BLOCK, width, d, false);
    for (int64_t t = 0; t < BLOCK; t++)
      lse[i + t] = softmax(r.p.at + t * r.p.row, i + t + 1, width, scale);
    product(r.p, r.v, moved(r.o, i), BLOCK, d, width, false);
  }
}

static float dot(const float *a, const float *b, int64_t n) {
  float sum = 0;
#pragma omp simd reduction(+ : sum)
  for (int64_t i = 0; i < n; i++) sum += a[i] * b[i];
  return sum;
}

static void backward_one(room r, int64_t n, int64_t d, const float *lse) {
  const float scale = 1 / sqrtf((float)d);
  turn(r.k, n, d, r.k_turned);
  turn(r.v, n, d, r.v_turned);
  memset(r.d_k.at, 0, (size_t)(n * d) * 4);
  memset(r.d_v.at, 0, (size_t)(n * d) * 4);
  for (int64_t i = 0; i < n; i += BLOCK) {
    const int64_t width = i + BLOCK;
    const view q = moved(r.q, i), d_o = moved(r.d_o, i);
    product(q, r.k_turned, r.p, BLOCK, width, d, false);
    product(d_o, r.v_turned, r.d_p, BLOCK, width, d, false);
    for (int64_t t = 0; t < BLOCK; t++) {
      float *p = r.p.at + t * r.p.row, *d_p = r.d_p.at + t * r.d_p.row;
      const float sum = dot(d_o.at + t * d_o.row, r.o.at + (i + t) * r.o.row, d); /* of p d p */
      softmax_backward(p, d_p, i + t + 1, width, scale, lse[i + t], sum);
    }
    product(r.d_p, r.k, moved(r.d_q, i), BLOCK, d, width, false);
    product(turned(r.d_p), q, r.d_k, width, d, BLOCK, true);
    product(turned(r.p), d_o, r.d_v, width, d, BLOCK, true);
  }
}

void attention_forward(matrix qkv, int sequence, int heads, float *all, matrix o, float *lse) {
  const int64_t n = sequence, a = o.cols, d = a / heads;
#pragma omp parallel for
  for (int64_t pair = 0; pair < o.rows / n * heads; pair++) {
    const int64_t first = pair / heads * n, head = pair % heads;
    const room r = room_of(all, n, d);
    copy_in(qkv, first, head * d, n, d, r.q);
    copy_in(qkv, first, a + head * d, n, d, r.k);
    copy_in(qkv, first, 2 * a + head * d, n, d, r.v);
    forward_one(r, n, d, lse + head * o.rows + first);
    copy_out(r.o, n, d, o, first, head * d);
  }
}

void attention_backward(matrix qkv, int sequence, int heads, float *all, matrix o, const float *lse,
                        matrix d_o, matrix d_qkv) {
  const int64_t n = sequence, a = o.cols, d = a / heads;
#pragma omp parallel for
  for (int64_t pair = 0; pair < o.rows / n * heads; pair++) {
    const int64_t first = pair / heads * n, head = pair % heads;
    const room r = room_of(all, n, d);
    const view *in[] = {&r.q, &r.k, &r.v}, *out[] = {&r.d_q, &r.d_k, &r.d_v};
    for (int i = 0; i < 3; i++) copy_in(qkv, first, i * a + head * d, n, d, *in[i]);
    copy_in(o, first, head * d, n, d, r.o);
    copy_in(d_o, first, head * d, n, d, r.d_o);
    backward_one(r, n, d, lse + head * o.rows + first);
    for (int i = 0; i < 3; i++) copy_out(*out[i], n, d, d_qkv, first, i * a + head * d);
  }
}
