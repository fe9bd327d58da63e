/* cuda_vocab_test.c: rows by index and the cross entropy of the CUDA kernels, on the stand-in: the
 * CPU's own bits where both only move or add, else double precision. */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "tests/unit/kernels/cuda_support.h"

enum { V = 13, FIRST = 4, IGNORE = -100, MOST = 1200 };

/* -- indices: a matrix with gaps, of either width -- */

typedef struct indices {
  lam_matrix m;
  int64_t at[MOST], memory[3 * MOST];
} indices;

static void make_indices(rng *r, indices *x, int64_t n, int64_t lo, int64_t hi) {
  const int64_t cols = n % 2 ? n : n / 2, step = cols + 3;
  const lam_dtype t = rng_int(r, 0, 1) ? LAM_I32 : LAM_I64;
  x->m = (lam_matrix){x->memory, n ? n / cols : 0, cols, step, 1, t, false};
  for (int64_t i = 0; i < n; i++) {
    const int64_t at = i / cols * step + i % cols;
    x->at[i] = rng_int(r, lo, hi);
    if (t == LAM_I64)
      x->memory[at] = x->at[i];
    else
      ((int32_t *)x->memory)[at] = (int32_t)x->at[i];
  }
}

static lam_matrix indices_to_card(const indices *x) {
  lam_matrix m = x->m;
  m.data = bytes_to_card(x->memory, sizeof x->memory);
  return m;
}

/* T values, f32, by two rows where it can be. */
static lam_matrix values_to_card(const float *v, int64_t n) {
  const int64_t cols = n % 2 ? n : n / 2;
  return (lam_matrix){
      bytes_to_card(v, (uint64_t)n * sizeof *v), n / cols, cols, cols, 1, LAM_F32, false};
}

/* -- rows -- */

static const int64_t widths[] = {1, 7, 31, 33, 64, 1000, 4099};

static void check_gather(rng *r, lam_dtype t, int64_t width, int64_t n) {
  box w = box_random(r, V, width, t, any_form(r)), y = box_random(r, n, width, t, any_form(r));
  indices *ids = malloc(sizeof *ids);
  make_indices(r, ids, n, -2, FIRST + V + 3);
  card_begin();
  const lam_matrix yc = to_card(&y);
  CHECK_OK(lam_device_gather(&card, NULL, to_card(&w), indices_to_card(ids), FIRST, yc, stream));
  from_card(&y, yc);
  card_end();
  NOTE("%s, %lld rows of %lld", lam_dtype_name(t), (long long)n, (long long)width);
  for (int64_t at = 0; at < n * width; at++) {
    const int64_t row = ids->at[at / width] - FIRST, j = at % width;
    const double want = row >= 0 && row < V ? get(w.m, row, j) : 0;
    if (!CHECK(get(y.m, at / width, j) == want)) break;
  }
  check_around(&y, "y");
  free(ids), box_free(&w), box_free(&y);
}

TEST(cuda_gather, takes_rows_that_are_here_and_zeros) {
  rng r = {seed()};
  for (int w = 0; w < 7; w++)
    for (int t = 0; t < 5; t++)
      check_gather(&r, (lam_dtype)floats[t], widths[w], rng_int(&r, 1, 40));
}

static void check_scatter(rng *r, lam_dtype from, lam_dtype to, int64_t width, int64_t n,
                          bool accumulate) {
  box dy = box_random(r, n, width, from, any_form(r)),
      dw = box_random(r, V, width, to, any_form(r));
  box cpu = box_copy(&dw);
  indices *ids = malloc(sizeof *ids);
  int64_t *links = malloc(sizeof(int64_t) * (size_t)(V + n));
  make_indices(r, ids, n, 0, FIRST + V + 3);
  CHECK_OK(lam_device_scatter(&lam_device_cpu, workers(ALONE), dy.m, ids->m, FIRST, links, cpu.m,
                              accumulate, NULL));
  memset(links, 0x5a, sizeof(int64_t) * (size_t)(V + n));
  card_begin();
  const lam_matrix dwc = to_card(&dw);
  int64_t *links_c = bytes_to_card(links, sizeof(int64_t) * (uint64_t)(V + n));
  CHECK_OK(lam_device_scatter(&card, NULL, to_card(&dy), indices_to_card(ids), FIRST, links_c, dwc,
                              accumulate, stream));
  from_card(&dw, dwc);
  card_end();
  NOTE("%s into %s, %lld rows of %lld, accumulate %d", lam_dtype_name(from), lam_dtype_name(to),
       (long long)n, (long long)width, accumulate);
  check_same(dw.m, cpu.m);
  check_around(&dw, "dw");
  free(ids), free(links), box_free(&dy), box_free(&dw), box_free(&cpu);
}

TEST(cuda_scatter, sums_the_rows_of_each_index_as_the_cpu_does) {
  rng r = {seed()};
  for (int w = 0; w < 7; w++) FOR_EACH(from, LAM_F32, LAM_BF16)
  FOR_EACH(to, LAM_F32, LAM_BF16)
  FOR_EACH(acc, 0, 1)
  check_scatter(&r, (lam_dtype)from, (lam_dtype)to, widths[w], rng_int(&r, 1, 60), acc);
}

TEST(cuda_scatter, chains_tokens_over_many_blocks) {
  rng r = {seed()};
  FOR_EACH(n, 255, 256, 257, 513, 1200) check_scatter(&r, LAM_BF16, LAM_F32, 9, n, false);
}

TEST(cuda_scatter, of_no_tokens_clears_or_leaves) {
  rng r = {seed()};
  FOR_EACH(acc, 0, 1) check_scatter(&r, LAM_F32, LAM_F32, 20, 0, acc);
}

/* -- cross entropy: columns in two or three parts -- */

typedef struct entropy {
  int64_t n, cols;
  box logits;
  indices targets;
  double lse[64], loss[64];
  float dloss[64];
} entropy;

static void reference(entropy *e) {
  for (int64_t i = 0; i < e->n; i++) {
    double max = -INFINITY, sum = 0;
    for (int64_t j = 0; j < e->cols; j++) max = fmax(max, get(e->logits.m, i, j));
    for (int64_t j = 0; j < e->cols; j++) sum += exp(get(e->logits.m, i, j) - max);
    e->lse[i] = max + log(sum);
    const int64_t t = e->targets.at[i];
    e->loss[i] = t == IGNORE ? 0 : e->lse[i] - get(e->logits.m, i, t);
  }
}

static entropy *make_entropy(rng *r, int64_t n, int64_t cols, lam_dtype t) {
  entropy *e = malloc(sizeof *e);
  e->n = n, e->cols = cols;
  e->logits = box_random(r, n, cols, t, any_form(r));
  for (int64_t i = 0; i < n; i++)
    for (int64_t j = 0; j < cols; j++) set(e->logits.m, i, j, 20 * get(e->logits.m, i, j));
  make_indices(r, &e->targets, n, 0, cols - 1);
  for (int64_t i = 0; i < n; i++) e->dloss[i] = rng_float(r);
  if (n > 2) { /* one that does not count */
    const int64_t width = e->targets.m.cols, at = 2 / width * e->targets.m.row_stride + 2 % width;
    e->targets.at[2] = IGNORE;
    if (e->targets.m.dtype == LAM_I64)
      e->targets.memory[at] = IGNORE;
    else
      ((int32_t *)e->targets.memory)[at] = IGNORE;
  }
  reference(e);
  return e;
}

/* From all the parts, as their holders would have it: loss and lse. */
static void losses_on_card(const entropy *e, lam_matrix logits, lam_matrix targets, int n_parts,
                           lam_matrix loss, lam_matrix lse) {
  const uint64_t bytes = (uint64_t)(n_parts * e->n) * sizeof(lam_softmax_part);
  void *zeros = calloc(1, bytes);
  lam_softmax_part *parts = bytes_to_card(zeros, bytes);
  for (int p = 0; p < n_parts; p++) {
    const int64_t first = e->cols * p / n_parts, next = e->cols * (p + 1) / n_parts;
    CHECK_OK(lam_device_softmax_parts(&card, NULL, lam_matrix_cols(logits, first, next - first),
                                      targets, first, parts + p * e->n, stream));
  }
  CHECK_OK(
      lam_device_cross_entropy(&card, NULL, parts, n_parts, targets, IGNORE, loss, lse, stream));
  free(zeros);
}

static void check_gradient(const entropy *e, box *d) {
  double *want = malloc(sizeof(double) * (size_t)(e->n * e->cols));
  for (int64_t at = 0; at < e->n * e->cols; at++) {
    const int64_t i = at / e->cols, j = at % e->cols;
    const double p = exp(get(e->logits.m, i, j) - e->lse[i]) - (j == e->targets.at[i]);
    want[at] = e->targets.at[i] == IGNORE ? 0 : (double)e->dloss[i] * p;
  }
  /* lse is near 20, so that its own rounding is 1e-6 of each e^(logit - lse) */
  check_matrix(d->m, want, 1.01 * rounding_of(d->m.dtype) + 4e-6, 4e-6);
  check_around(d, "dlogits");
  free(want);
}

static void check_entropy(rng *r, int64_t n, int64_t cols, lam_dtype t, int n_parts) {
  entropy *e = make_entropy(r, n, cols, t);
  const float zeros[64] = {0};
  float loss[64], lse[64];
  box d = box_copy(&e->logits); /* in place */
  card_begin();
  const lam_matrix targets = indices_to_card(&e->targets), logits = to_card(&d);
  const lam_matrix loss_c = values_to_card(zeros, n), lse_c = values_to_card(zeros, n);
  losses_on_card(e, logits, targets, n_parts, loss_c, lse_c);
  CHECK_OK(lam_device_cross_entropy_bwd(&card, NULL, values_to_card(e->dloss, n), logits, targets,
                                        lse_c, 0, IGNORE, logits, stream));
  bytes_from_card(loss, loss_c.data, (uint64_t)n * sizeof *loss);
  bytes_from_card(lse, lse_c.data, (uint64_t)n * sizeof *lse);
  from_card(&d, logits);
  card_end();
  NOTE("%s %lld x %lld in %d parts", lam_dtype_name(t), (long long)n, (long long)cols, n_parts);
  CHECK_CLOSE(lse, e->lse, n, 1e-6, 4e-6);
  CHECK_CLOSE(loss, e->loss, n, 1e-6, 6e-6);
  check_gradient(e, &d);
  box_free(&d), box_free(&e->logits), free(e);
}

TEST(cuda_cross_entropy, is_right_for_rows_of_every_length_and_any_parts) {
  rng r = {seed()};
  static const int64_t cols[] = {3, 7, 31, 33, 256, 1000, 4099};
  for (int c = 0; c < 7; c++) FOR_EACH(t, LAM_F32, LAM_BF16, LAM_F16)
  FOR_EACH(parts, 1, 2, 3) check_entropy(&r, rng_int(&r, 1, 30), cols[c], (lam_dtype)t, parts);
}

TEST(cuda_cross_entropy, takes_rows_of_256k) {
  rng r = {seed()};
  check_entropy(&r, 3, 262144, LAM_BF16, 1);
}

/* The whole of one row of logits in two parts. */
static void one_row(const float *row, int n, int64_t target, float *out_loss, float *out_lse) {
  entropy e = {.n = 1, .cols = n};
  const float zero = 0;
  card_begin();
  const lam_matrix logits = {
      bytes_to_card(row, (uint64_t)n * sizeof *row), 1, n, n, 1, LAM_F32, false};
  const lam_matrix targets = {bytes_to_card(&target, sizeof target), 1, 1, 1, 1, LAM_I64, false};
  const lam_matrix loss = values_to_card(&zero, 1), lse = values_to_card(&zero, 1);
  losses_on_card(&e, logits, targets, 2, loss, lse);
  bytes_from_card(out_loss, loss.data, sizeof *out_loss);
  bytes_from_card(out_lse, lse.data, sizeof *out_lse);
  card_end();
}

TEST(cuda_cross_entropy, of_infinite_logits_is_what_it_is_on_the_cpu) {
  const float nothing[] = {-INFINITY, -INFINITY, -INFINITY, -INFINITY},
              one[] = {-INFINITY, 2, -INFINITY, -INFINITY};
  const float great[] = {1e38f, -1e38f, 1, 2}, nan[] = {0, NAN, 1, 2};
  float loss, lse;
  one_row(nothing, 4, 1, &loss, &lse);
  CHECK(lse == -INFINITY);
  one_row(one, 4, 1, &loss, &lse);
  CHECK(lse == 2 && loss == 0);
  one_row(great, 4, 1, &loss, &lse);
  CHECK(lse == 1e38f && loss == 2e38f);
  one_row(nan, 4, 3, &loss, &lse);
  CHECK(isnan(loss) && isnan(lse));
}
