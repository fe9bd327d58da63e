/* vocab_test.c: rows by index and the cross entropy against double precision, for every dtype,
 * stride and set of loops; and what a softmax does at the ends of the range. */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "tests/unit/kernels/support.h"

#define CPU &lam_device_cpu
enum { V = 13, T = 29, FIRST = 4, IGNORE = -100 }; /* rows FIRST .. FIRST + V - 1 are here */

static form any_form(rng *r) { return (form)rng_int(r, 0, N_FORMS - 1); }

/* Calls body for every set of loops, by one worker and by two. */
static void for_all_loops(void (*body)(rng *r, crew c)) {
  for (int i = 0; (lam_lanes_forced = lanes_here(i)) != NULL; i++) FOR_EACH(c, ALONE, TWO_OPENMP) {
      rng r = {seed()};
      NOTE("%s, crew %d", lam_lanes_pick()->name, c);
      body(&r, (crew)c);
    }
}

/* -- indices: a matrix [rows, cols] with gaps, of either width -- */

typedef struct indices {
  lam_matrix m;
  int64_t at[64]; /* what they are */
  int64_t memory[128];
} indices;

static void make_indices(indices *x, int64_t n, lam_dtype t, const int64_t *values) {
  const int64_t cols = n % 2 ? n : n / 2, step = cols + 3;
  x->m = (lam_matrix){x->memory, n / cols, cols, step, 1, t, false};
  for (int64_t i = 0; i < n; i++) {
    const int64_t at = i / cols * step + i % cols;
    x->at[i] = values[i];
    if (t == LAM_I64)
      x->memory[at] = values[i];
    else
      ((int32_t *)x->memory)[at] = (int32_t)values[i];
  }
}

/* Some of rows that are here, before them and after them; many of them twice. */
static void random_indices(rng *r, indices *x, int64_t n) {
  int64_t values[64];
  for (int64_t i = 0; i < n; i++) values[i] = rng_int(r, 0, FIRST + V + 3);
  make_indices(x, n, rng_int(r, 0, 1) ? LAM_I32 : LAM_I64, values);
}

static bool is_here(int64_t id) { return id >= FIRST && id < FIRST + V; }

TEST(indices, outside_of_their_range_are_found) {
  static const int64_t values[] = {0, 9, IGNORE, 3, 10, -1};
  static const int64_t ignored[] = {IGNORE, 10, -1};
  static const lam_outside want[] = {{4, 10}, {2, IGNORE}, {2, IGNORE}};
  FOR_EACH(t, LAM_I32, LAM_I64) {
    indices x;
    lam_outside found;
    make_indices(&x, 6, (lam_dtype)t, values);
    for (int i = 0; i < 3; i++) {
      CHECK_OK(lam_device_find_outside(CPU, workers(ALONE), x.m, 10, &ignored[i], &found, NULL));
      CHECK_EQ(found.at, want[i].at);
      CHECK_EQ(found.value, want[i].value);
    }
    CHECK_OK(lam_device_find_outside(CPU, workers(ALONE), x.m, 10, NULL, &found, NULL));
    CHECK_EQ(found.at, 2);
    x.m = lam_matrix_rows(x.m, 0, 1);
    x.m = lam_matrix_cols(x.m, 0, 2);
    CHECK_OK(lam_device_find_outside(CPU, workers(ALONE), x.m, 10, NULL, &found, NULL));
    CHECK_EQ(found.at, -1);
  }
}

TEST(indices, beyond_32_bits_are_not_cut_short) {
  const int64_t far = ((int64_t)1 << 32) + 3;
  indices x;
  lam_outside found;
  make_indices(&x, 1, LAM_I64, &far);
  CHECK_OK(lam_device_find_outside(CPU, workers(ALONE), x.m, 10, NULL, &found, NULL));
  CHECK(found.at == 0 && found.value == far);
}

/* -- rows -- */

static const int64_t widths[] = {1, 63, 64, 515, 9001};

static void check_gather(rng *r, crew c) {
  for (int i = 0; i < 5; i++) FOR_EACH(t, LAM_F32, LAM_BF16) {
      box w = box_random(r, V, widths[i], (lam_dtype)t, any_form(r));
      box y = box_random(r, T, widths[i], (lam_dtype)t, any_form(r)), want = box_copy(&y);
      indices ids;
      random_indices(r, &ids, T);
      for (int64_t row = 0; row < T; row++)
        for (int64_t j = 0; j < widths[i]; j++)
          set(want.m, row, j, is_here(ids.at[row]) ? get(w.m, ids.at[row] - FIRST, j) : 0);
      CHECK_OK(lam_device_gather(CPU, workers(c), w.m, ids.m, FIRST, y.m, NULL));
      check_same(y.m, want.m);
      check_around(&y, "y");
      box_free(&w), box_free(&y), box_free(&want);
    }
}
TEST(gather, takes_rows_that_are_here_and_zeros) { for_all_loops(check_gather); }

static void check_one_scatter(rng *r, crew c, int64_t width, lam_dtype from, lam_dtype to,
                              bool accumulate) {
  box dy = box_random(r, T, width, from, any_form(r)),
      dw = box_random(r, V, width, to, any_form(r));
  double *want = calloc((size_t)(V * width), sizeof *want);
  int64_t links[V + T];
  indices ids;
  random_indices(r, &ids, T);
  for (int64_t i = 0; i < V * width; i++) {
    if (accumulate) want[i] = get(dw.m, i / width, i % width);
    for (int64_t t = 0; t < T; t++)
      if (ids.at[t] - FIRST == i / width) want[i] += get(dy.m, t, i % width);
    if (!accumulate) set(dw.m, i / width, i % width, NAN); /* overwritten, whatever was there */
  }
  NOTE("%lld columns, %s into %s, accumulate %d", (long long)width, lam_dtype_name(from),
       lam_dtype_name(to), accumulate);
  CHECK_OK(lam_device_scatter(CPU, workers(c), dy.m, ids.m, FIRST, links, dw.m, accumulate, NULL));
  check_matrix(dw.m, want, 1.01 * rounding_of(to), T * 0x1p-22);
  check_around(&dw, "dw");
  free(want), box_free(&dy), box_free(&dw);
}

static void check_scatter(rng *r, crew c) {
  for (int i = 0; i < 5; i++) FOR_EACH(from, LAM_F32, LAM_BF16)
  FOR_EACH(to, LAM_F32, LAM_BF16)
  FOR_EACH(acc, 0, 1) check_one_scatter(r, c, widths[i], (lam_dtype)from, (lam_dtype)to, acc);
}
TEST(scatter, sums_the_rows_of_each_index_and_rounds_once) { for_all_loops(check_scatter); }

TEST(scatter, gives_the_same_bits_for_any_number_of_workers) {
  rng r = {seed()};
  int64_t links[V + T];
  indices ids;
  random_indices(&r, &ids, T);
  box dy = box_random(&r, T, 20000, LAM_F32, BY_ROWS);
  box one = box_new(V, 20000, LAM_F32, BY_ROWS), more = box_copy(&one);
  CHECK_OK(lam_device_scatter(CPU, workers(ALONE), dy.m, ids.m, FIRST, links, one.m, false, NULL));
  FOR_EACH(c, TWO_OPENMP, TWO_POOL) {
    CHECK_OK(
        lam_device_scatter(CPU, workers((crew)c), dy.m, ids.m, FIRST, links, more.m, false, NULL));
    check_same(one.m, more.m);
  }
  box_free(&dy), box_free(&one), box_free(&more);
}

/* -- cross entropy -- */

enum { MOST_PARTS = 4 };

typedef struct entropy {
  box logits, loss, lse;
  indices targets;
  lam_softmax_part parts[MOST_PARTS * T];
} entropy;

static void stretch(lam_matrix m, double factor) {
  for (int64_t i = 0; i < m.rows; i++)
    for (int64_t j = 0; j < m.cols; j++) set(m, i, j, factor * get(m, i, j));
}

static void make_entropy(rng *r, entropy *e, int64_t n, lam_dtype t, double factor) {
  int64_t values[T];
  for (int i = 0; i < T; i++) values[i] = i % 7 == 3 ? IGNORE : rng_int(r, 0, n - 1);
  e->logits = box_random(r, T, n, t, any_form(r));
  e->loss = box_new(1, T, LAM_F32, BY_ROWS), e->lse = box_new(1, T, LAM_F32, BY_ROWS);
  make_indices(&e->targets, T, r->state % 2 ? LAM_I32 : LAM_I64, values);
  stretch(e->logits.m, factor);
}

static void free_entropy(entropy *e) {
  box_free(&e->logits), box_free(&e->loss), box_free(&e->lse);
}

/* The vocabulary in n parts: the first has none of it where there is more than one. */
static void run_entropy(entropy *e, crew c, int n) {
  int64_t first = 0;
  for (int i = 0; i < n; i++) {
    const int64_t end = n == 1 ? e->logits.m.cols : e->logits.m.cols * i / (n - 1);
    CHECK_OK(lam_device_softmax_parts(CPU, workers(c),
                                      lam_matrix_cols(e->logits.m, first, end - first),
                                      e->targets.m, first, e->parts + i * T, NULL));
    first = end;
  }
  CHECK_OK(lam_device_cross_entropy(CPU, workers(c), e->parts, n, e->targets.m, IGNORE, e->loss.m,
                                    e->lse.m, NULL));
}

static double lse_of(lam_matrix logits, int64_t row) {
  double most = -INFINITY, sum = 0;
  for (int64_t j = 0; j < logits.cols; j++) most = fmax(most, get(logits, row, j));
  for (int64_t j = 0; j < logits.cols; j++) sum += exp(get(logits, row, j) - most);
  return most + log(sum);
}

static void check_entropy(rng *r, crew c, int64_t n, lam_dtype t, double factor, int n_parts) {
  entropy e;
  double lse[T], loss[T];
  make_entropy(r, &e, n, t, factor);
  for (int i = 0; i < T; i++) {
    const int64_t target = e.targets.at[i];
    lse[i] = lse_of(e.logits.m, i);
    loss[i] = target == IGNORE ? 0 : lse[i] - get(e.logits.m, i, target);
  }
  NOTE("%lld logits of %s to %g in %d parts", (long long)n, lam_dtype_name(t), factor, n_parts);
  run_entropy(&e, c, n_parts);
  check_matrix(e.lse.m, lse, 1e-6, 1e-6);
  check_matrix(e.loss.m, loss, 1e-6, 2e-6);
  for (int i = 0; i < T; i++)
    if (e.targets.at[i] == IGNORE) CHECK(get(e.loss.m, 0, i) == 0);
  free_entropy(&e);
}

static void check_entropies(rng *r, crew c) {
  static const int64_t n[] = {1, 2, 63, 515, 9001};
  for (int i = 0; i < 5; i++) FOR_EACH(t, LAM_F32, LAM_BF16)
  FOR_EACH(factor, 0, 5, 1000)
  FOR_EACH(parts, 1, 2, 4)
  if (!is_spared(r)) check_entropy(r, c, n[i], (lam_dtype)t, factor, parts);
}
TEST(cross_entropy, is_that_of_the_whole_from_any_parts) { for_all_loops(check_entropies); }

TEST(cross_entropy, gives_the_same_bits_for_any_number_of_workers) {
  rng r = {seed()};
  entropy e;
  make_entropy(&r, &e, 9001, LAM_F32, 5);
  run_entropy(&e, ALONE, 3);
  box loss = box_copy(&e.loss), lse = box_copy(&e.lse);
  FOR_EACH(c, TWO_OPENMP, TWO_POOL) {
    run_entropy(&e, (crew)c, 3);
    check_same(e.loss.m, loss.m);
    check_same(e.lse.m, lse.m);
  }
  free_entropy(&e), box_free(&loss), box_free(&lse);
}

/* Masked logits count as nothing, a NaN spoils its own token and no other. */
static void check_ends(rng *r, crew c) {
  FOR_EACH(parts, 1, 3) {
    entropy e;
    make_entropy(r, &e, 200, LAM_F32, 1);
    for (int64_t j = 0; j < 200; j++) {
      if (j != e.targets.at[0]) set(e.logits.m, 0, j, -INFINITY); /* the target alone is left */
      set(e.logits.m, 1, j, -INFINITY);
    }
    set(e.logits.m, 2, 150, NAN);
    set(e.logits.m, 4, e.targets.at[4], -INFINITY);
    run_entropy(&e, c, parts);
    CHECK(get(e.loss.m, 0, 0) == 0 && get(e.lse.m, 0, 0) == get(e.logits.m, 0, e.targets.at[0]));
    CHECK(get(e.lse.m, 0, 1) == -INFINITY);
    CHECK(isnan(get(e.lse.m, 0, 2)) && isnan(get(e.loss.m, 0, 2)));
    CHECK(get(e.loss.m, 0, 4) == INFINITY && isfinite(get(e.lse.m, 0, 4)));
    for (int i = 5; i < T; i++) CHECK(isfinite(get(e.loss.m, 0, i)));
    free_entropy(&e);
  }
}
TEST(cross_entropy, bears_infinities_and_keeps_a_nan_to_its_token) { for_all_loops(check_ends); }

static void check_gradient(rng *r, crew c, int64_t n, lam_dtype t, bool in_place) {
  entropy e;
  make_entropy(r, &e, n, t, 5);
  box dloss = box_random(r, 1, T, LAM_F32, BY_ROWS), d = box_new(T, n, t, any_form(r));
  double *want = calloc((size_t)(T * n), sizeof *want);
  run_entropy(&e, c, 1);
  for (int64_t i = 0; i < T * n; i++) {
    const int64_t row = i / n, target = e.targets.at[row];
    const double p = exp(get(e.logits.m, row, i % n) - get(e.lse.m, 0, row));
    want[i] = target == IGNORE ? 0 : get(dloss.m, 0, row) * (p - (target == i % n));
  }
  set(e.logits.m, 3, n / 2, NAN); /* of a token that is ignored */
  const lam_matrix to = in_place ? e.logits.m : d.m;
  NOTE("%lld logits of %s, in place %d", (long long)n, lam_dtype_name(t), in_place);
  const int64_t half = n / 2; /* two parts, as two ranks have them */
  CHECK_OK(lam_device_cross_entropy_bwd(CPU, workers(c), dloss.m,
                                        lam_matrix_cols(e.logits.m, 0, half), e.targets.m, e.lse.m,
                                        0, IGNORE, lam_matrix_cols(to, 0, half), NULL));
  CHECK_OK(lam_device_cross_entropy_bwd(
      CPU, workers(c), dloss.m, lam_matrix_cols(e.logits.m, half, n - half), e.targets.m, e.lse.m,
      half, IGNORE, lam_matrix_cols(to, half, n - half), NULL));
  check_matrix(to, want, 1.01 * rounding_of(t) + 3e-6, 1e-6);
  check_around(in_place ? &e.logits : &d, "dlogits");
  free(want), box_free(&dloss), box_free(&d), free_entropy(&e);
}

static void check_gradients(rng *r, crew c) {
  static const int64_t n[] = {1, 2, 63, 515, 9001};
  for (int i = 0; i < 5; i++) FOR_EACH(t, LAM_F32, LAM_BF16)
  FOR_EACH(in_place, 0, 1) check_gradient(r, c, n[i], (lam_dtype)t, in_place);
}
TEST(cross_entropy, gradient_is_that_of_its_loss_in_place_or_apart) {
  for_all_loops(check_gradients);
}

TEST(vocabulary, of_other_dtypes_is_refused) {
  double data[4] = {0};
  int64_t id = 0;
  lam_softmax_part part;
  const lam_matrix f64 = {data, 1, 4, 4, 1, LAM_F64, false},
                   ids = {&id, 1, 1, 1, 1, LAM_I64, false};
  CHECK_STATUS(lam_device_gather(CPU, workers(ALONE), f64, ids, 0, f64, NULL), LAM_UNIMPLEMENTED);
  CHECK_STR(lam_last_error(), "cpu gather: rows of f64, the CPU has f32 and bf16");
  CHECK_STATUS(lam_device_softmax_parts(CPU, workers(ALONE), f64, ids, 0, &part, NULL),
               LAM_UNIMPLEMENTED);
  CHECK_STR(lam_last_error(), "cpu softmax_parts: logits are f64, the CPU has f32 and bf16");
}
