/* vector_test.c: activations, sums and copies against double precision, for every dtype, stride and
 * set of loops. */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "kernels/cpu/cpu.h"
#include "kernels/math.h"
#include "tests/unit/kernels/support.h"

static const lam_matrix none = {0};
static const int64_t sizes[][2] = {{1, 1}, {3, 63}, {2, 64}, {5, 65}, {17, 129}, {2, 9001}};
enum { N_SIZES = sizeof sizes / sizeof *sizes };

/* A form by rows for most, since one by columns of the longest takes no other code. */
static form any_form(rng *r) { return (form)rng_int(r, 0, N_FORMS - 1); }

static void stretch(lam_matrix m, double factor) {
  for (int64_t i = 0; i < m.rows; i++)
    for (int64_t j = 0; j < m.cols; j++) set(m, i, j, factor * get(m, i, j));
}

static double *room(int64_t n) {
  double *p = calloc((size_t)n + 1, sizeof *p);
  if (!p) abort();
  return p;
}

/* Calls body for every set of loops, by one worker and by two. */
static void for_all_loops(void (*body)(rng *r, crew c)) {
  for (int i = 0; (lam_lanes_forced = lanes_here(i)) != NULL; i++) FOR_EACH(c, ALONE, TWO_OPENMP) {
      rng r = {seed()};
      body(&r, (crew)c);
    }
}

/* -- activations -- */

static void check_act(rng *r, crew c, lam_act act, bool gated, lam_dtype dtype, int64_t rows,
                      int64_t cols) {
  box z = box_random(r, rows, gated ? 2 * cols : cols, dtype, any_form(r)),
      y = box_new(rows, cols, dtype, any_form(r));
  double *want = room(rows * cols);
  stretch(z.m, 8);
  NOTE("%s act %d gated %d %s [%lld, %lld]", lam_lanes_pick()->name, act, gated,
       lam_dtype_name(dtype), (long long)rows, (long long)cols);
  for (int64_t i = 0; i < rows * cols; i++) {
    const int64_t row = i / cols, col = i % cols;
    want[i] = act_of(act, get(z.m, row, col)) * (gated ? get(z.m, row, cols + col) : 1);
  }
  CHECK_OK(lam_device_act(&lam_device_cpu, workers(c), act, gated, z.m, y.m, NULL));
  check_matrix(y.m, want, 1.01 * rounding_of(dtype) + 1e-6, 1e-6);
  check_around(&y, "y");
  free(want), box_free(&z), box_free(&y);
}

static void check_act_bwd(rng *r, crew c, lam_act act, bool gated, lam_dtype dtype, int64_t rows,
                          int64_t cols) {
  const int64_t z_cols = gated ? 2 * cols : cols;
  box dy = box_random(r, rows, cols, dtype, any_form(r)),
      z = box_random(r, rows, z_cols, dtype, any_form(r));
  box dz = box_new(rows, z_cols, dtype, any_form(r));
  double *want = room(rows * z_cols);
  stretch(z.m, 8);
  NOTE("%s act_bwd %d gated %d %s [%lld, %lld]", lam_lanes_pick()->name, act, gated,
       lam_dtype_name(dtype), (long long)rows, (long long)cols);
  for (int64_t row = 0; row < rows; row++)
    for (int64_t col = 0; col < cols; col++) {
      const double g = get(dy.m, row, col), x = get(z.m, row, col),
                   up = gated ? get(z.m, row, cols + col) : 1;
      want[row * z_cols + col] = g * up * act_grad_of(act, x);
      if (gated) want[row * z_cols + cols + col] = g * act_of(act, x);
    }
  CHECK_OK(lam_device_act_bwd(&lam_device_cpu, workers(c), act, gated, dy.m, z.m, dz.m, NULL));
  check_matrix(dz.m, want, 1.01 * rounding_of(dtype) + 1e-6, 8e-6);
  check_around(&dz, "dz");
  free(want), box_free(&dy), box_free(&z), box_free(&dz);
}

/* Both results have the bits of the two passes; y stands where dy stood. */
static void check_act_bwd_again(rng *r, crew c, lam_act act, bool gated, lam_dtype dtype,
                                int64_t rows, int64_t cols) {
  const int64_t z_cols = gated ? 2 * cols : cols;
  box dy = box_random(r, rows, cols, dtype, any_form(r)),
      z = box_random(r, rows, z_cols, dtype, any_form(r));
  box dz = box_new(rows, z_cols, dtype, any_form(r)), y = box_new(rows, cols, dtype, any_form(r)),
      same_dz = box_new(rows, z_cols, dtype, any_form(r));
  NOTE("%s act_bwd_again %d gated %d %s [%lld, %lld]", lam_lanes_pick()->name, act, gated,
       lam_dtype_name(dtype), (long long)rows, (long long)cols);
  CHECK_OK(lam_device_act(&lam_device_cpu, workers(c), act, gated, z.m, y.m, NULL));
  CHECK_OK(lam_device_act_bwd(&lam_device_cpu, workers(c), act, gated, dy.m, z.m, dz.m, NULL));
  CHECK_OK(lam_device_act_bwd_again(&lam_device_cpu, workers(c), act, gated, dy.m, z.m, same_dz.m,
                                    NULL));
  check_same(same_dz.m, dz.m);
  check_same(dy.m, y.m);
  check_around(&dy, "dy"), check_around(&same_dz, "dz");
  box_free(&dy), box_free(&z), box_free(&dz), box_free(&y), box_free(&same_dz);
}

static void check_all_acts(rng *r, crew c) {
  for (int s = 0; s < N_SIZES; s++)
    for (int act = 0; act < LAM_N_ACTS; act++)
      FOR_EACH(gated, 0, 1) FOR_EACH(dtype, LAM_F32, LAM_BF16) {
        if (is_spared(r)) continue;
        check_act(r, c, (lam_act)act, gated, (lam_dtype)dtype, sizes[s][0], sizes[s][1]);
        check_act_bwd(r, c, (lam_act)act, gated, (lam_dtype)dtype, sizes[s][0], sizes[s][1]);
        check_act_bwd_again(r, c, (lam_act)act, gated, (lam_dtype)dtype, sizes[s][0], sizes[s][1]);
      }
}
TEST(act, every_activation_and_derivative_plain_and_gated) { for_all_loops(check_all_acts); }

static void check_in_place(rng *r, crew c) {
  FOR_EACH(dtype, LAM_F32, LAM_BF16) {
    box z = box_random(r, 40, 333, (lam_dtype)dtype, ROWS_WITH_GAPS),
        y = box_new(40, 333, (lam_dtype)dtype, ROWS_WITH_GAPS);
    CHECK_OK(lam_device_act(&lam_device_cpu, workers(c), LAM_ACT_GELU, false, z.m, y.m, NULL));
    CHECK_OK(lam_device_act(&lam_device_cpu, workers(c), LAM_ACT_GELU, false, z.m, z.m, NULL));
    check_same(z.m, y.m);
    box_free(&z), box_free(&y);
  }
}
TEST(act, may_work_in_place) { for_all_loops(check_in_place); }

static void check_not_numbers(rng *r, crew c) {
  (void)r;
  for (int act = 0; act < LAM_N_ACTS; act++) FOR_EACH(dtype, LAM_F32, LAM_BF16) {
      box z = box_new(1, 70, (lam_dtype)dtype, BY_ROWS),
          y = box_new(1, 70, (lam_dtype)dtype, BY_ROWS);
      box dy = box_new(1, 70, (lam_dtype)dtype, BY_ROWS);
      NOTE("%s act %d %s", lam_lanes_pick()->name, act, lam_dtype_name((lam_dtype)dtype));
      for (int64_t j = 0; j < 70; j++) set(dy.m, 0, j, 1);
      set(z.m, 0, 3, (double)NAN), set(z.m, 0, 66, (double)NAN), set(z.m, 0, 5, (double)INFINITY),
          set(z.m, 0, 6, 1e30);
      CHECK_OK(lam_device_act(&lam_device_cpu, workers(c), (lam_act)act, false, z.m, y.m, NULL));
      CHECK(isnan(get(y.m, 0, 3)) && isnan(get(y.m, 0, 66)) && get(y.m, 0, 5) == (double)INFINITY &&
            get(y.m, 0, 4) == 0);
      CHECK_OK(lam_device_act_bwd(&lam_device_cpu, workers(c), (lam_act)act, false, dy.m, z.m, y.m,
                                  NULL));
      CHECK(isnan(get(y.m, 0, 3)) && isnan(get(y.m, 0, 66)));
      if (act != LAM_ACT_RELU2) CHECK(get(y.m, 0, 5) == 1 && get(y.m, 0, 6) == 1);
      box_free(&z), box_free(&y), box_free(&dy);
    }
}
TEST(act, keeps_what_is_not_a_number_and_infinity) { for_all_loops(check_not_numbers); }

/* -- sums -- */

typedef struct sum_case {
  box parts[4], bias, residual, y;
  lam_matrix views[4];
  int n;
} sum_case;

static sum_case make_sum(rng *r, int n, lam_dtype part, lam_dtype out, int64_t rows, int64_t cols,
                         bool extras) {
  sum_case s = {.n = n, .y = box_new(rows, cols, out, any_form(r))};
  const form f = any_form(r);
  for (int i = 0; i < n; i++)
    s.parts[i] = box_random(r, rows, cols, part, f), s.views[i] = s.parts[i].m;
  if (extras)
    s.bias = box_random(r, 1, cols, out, BY_ROWS),
    s.residual = box_random(r, rows, cols, out, any_form(r));
  return s;
}

static void free_sum(sum_case *s) {
  for (int i = 0; i < s->n; i++) box_free(&s->parts[i]);
  box_free(&s->bias), box_free(&s->residual), box_free(&s->y);
}

/* In f32 and in the promised order, every bit is known. */
static float sum_in_order(const sum_case *s, int64_t row, int64_t col) {
  float v = (float)get(s->views[0], row, col);
  for (int i = 1; i < s->n; i++) v += (float)get(s->views[i], row, col);
  if (lam_matrix_here(s->bias.m)) v += (float)get(s->bias.m, 0, col);
  if (lam_matrix_here(s->residual.m)) v += (float)get(s->residual.m, row, col);
  return v;
}

static void check_sums(rng *r, crew c) {
  for (int size = 0; size < N_SIZES; size++)
    FOR_EACH(n, 1, 2, 4) FOR_EACH(dtypes, 0, 1, 2) FOR_EACH(extras, 0, 1) {
      const lam_dtype part = dtypes == 2 ? LAM_BF16 : LAM_F32, out = dtypes ? LAM_BF16 : LAM_F32;
      sum_case s = make_sum(r, n, part, out, sizes[size][0], sizes[size][1], extras);
      box want = box_copy(&s.y);
      NOTE("%s n=%d %s -> %s extras %d", lam_lanes_pick()->name, n, lam_dtype_name(part),
           lam_dtype_name(out), extras);
      CHECK_OK(lam_device_sum(&lam_device_cpu, workers(c), s.views, n, s.bias.m, s.residual.m,
                              s.y.m, NULL));
      for (int64_t i = 0; i < want.m.rows; i++)
        for (int64_t j = 0; j < want.m.cols; j++) set(want.m, i, j, (double)sum_in_order(&s, i, j));
      check_same(s.y.m, want.m);
      check_around(&s.y, "y");
      box_free(&want), free_sum(&s);
    }
}
TEST(sum, parts_in_order_then_bias_then_residual_rounded_once) { for_all_loops(check_sums); }

static void check_column_sums(rng *r, crew c) {
  FOR_EACH(rows, 0, 1, 63, 200)
  FOR_EACH(cols, 1, 64, 300) FOR_EACH(accumulate, 0, 1) FOR_EACH(dtypes, 0, 1, 2) {
    const lam_dtype in = dtypes ? LAM_BF16 : LAM_F32, out = dtypes == 1 ? LAM_BF16 : LAM_F32;
    box dy = box_random(r, rows, cols, in, any_form(r)), db = box_random(r, 1, cols, out, BY_ROWS);
    double *want = room(cols);
    NOTE("%s [%d, %d] %s -> %s accumulate %d", lam_lanes_pick()->name, rows, cols,
         lam_dtype_name(in), lam_dtype_name(out), accumulate);
    for (int j = 0; j < cols; j++) {
      if (accumulate) want[j] = get(db.m, 0, j);
      for (int i = 0; i < rows; i++) want[j] += get(dy.m, i, j);
    }
    CHECK_OK(lam_device_column_sum(&lam_device_cpu, workers(c), dy.m, db.m, accumulate, NULL));
    check_matrix(db.m, want, 1.01 * rounding_of(out), 0x1p-23 * (rows + 8));
    check_around(&db, "db");
    free(want), box_free(&dy), box_free(&db);
  }
}
TEST(column_sum, adds_up_rows_over_what_was_there_or_not) { for_all_loops(check_column_sums); }

TEST(column_sum, gives_the_same_bits_by_any_number_of_workers) {
  rng r = {seed()};
  box dy = box_random(&r, 777, 1000, LAM_F32, BY_ROWS), one = box_new(1, 1000, LAM_F32, BY_ROWS);
  box two = box_copy(&one);
  CHECK_OK(lam_device_column_sum(&lam_device_cpu, workers(ALONE), dy.m, one.m, false, NULL));
  CHECK_OK(lam_device_column_sum(&lam_device_cpu, workers(TWO_POOL), dy.m, two.m, false, NULL));
  check_same(one.m, two.m);
  box_free(&dy), box_free(&one), box_free(&two);
}

/* -- copies -- */

static void check_copies(rng *r, crew c) {
  for (int s = 0; s < N_SIZES; s++)
    for (int forms = 0; forms < N_FORMS * N_FORMS; forms++)
      FOR_EACH(from, LAM_F32, LAM_BF16) FOR_EACH(to, LAM_F32, LAM_BF16) {
        if (is_spared(r)) continue;
        box x = box_random(r, sizes[s][0], sizes[s][1], (lam_dtype)from, forms % N_FORMS);
        box y = box_new(sizes[s][0], sizes[s][1], (lam_dtype)to, forms / N_FORMS),
            want = box_copy(&y);
        NOTE("%s %s -> %s forms %d", lam_lanes_pick()->name, lam_dtype_name((lam_dtype)from),
             lam_dtype_name((lam_dtype)to), forms);
        CHECK_OK(lam_device_copy(&lam_device_cpu, workers(c), x.m, y.m, NULL));
        for (int64_t i = 0; i < y.m.rows; i++)
          for (int64_t j = 0; j < y.m.cols; j++) set(want.m, i, j, get(x.m, i, j));
        check_same(y.m, want.m);
        check_around(&y, "y");
        box_free(&x), box_free(&y), box_free(&want);
      }
}
TEST(copy, any_strides_and_conversion) { for_all_loops(check_copies); }

TEST(copy, moves_any_dtype_as_it_is) {
  rng r = {seed()};
  for (int dtype = 0; dtype < LAM_N_DTYPES; dtype++) {
    unsigned char from[7 * 8 * 8], to[7 * 8 * 8];
    const size_t bytes = (size_t)lam_dtype_bytes((lam_dtype)dtype);
    for (size_t i = 0; i < sizeof from; i++) from[i] = (unsigned char)rng_next(&r);
    const lam_matrix x = {from, 7, 8, 8, 1, (lam_dtype)dtype, false},
                     y = {to, 7, 8, 1, 7, (lam_dtype)dtype, false};
    CHECK_OK(lam_device_copy(&lam_device_cpu, workers(ALONE), x, y, NULL));
    for (size_t i = 0; i < 7; i++)
      for (size_t j = 0; j < 8; j++)
        CHECK_SAME_BITS(from + (i * 8 + j) * bytes, to + (i + 7 * j) * bytes, bytes);
  }
}

TEST(copy, refuses_conversions_it_does_not_have) {
  float data[4] = {0};
  const lam_matrix f32 = {data, 1, 2, 2, 1, LAM_F32, false},
                   i32 = {data, 1, 2, 2, 1, LAM_I32, false};
  CHECK_STATUS(lam_device_copy(&lam_device_cpu, workers(ALONE), f32, i32, NULL), LAM_UNIMPLEMENTED);
  CHECK_CONTAINS(lam_last_error(), "i32");
  CHECK_STATUS(lam_device_sum(&lam_device_cpu, workers(ALONE), &i32, 1, none, none, f32, NULL),
               LAM_UNIMPLEMENTED);
  CHECK_CONTAINS(lam_last_error(), "a part is i32");
}

/* Every bf16 there is goes to f32 and back unharmed; halves round to even; NaNs stay NaNs. */
static void check_rounding(rng *r, crew c) {
  (void)r;
  static uint16_t in[65536], out[65536];
  static float wide[65536];
  for (int i = 0; i < 65536; i++) in[i] = (uint16_t)i;
  const lam_matrix x = {in, 1, 65536, 65536, 1, LAM_BF16, false},
                   y = {out, 1, 65536, 65536, 1, LAM_BF16, false};
  const lam_matrix f = {wide, 1, 65536, 65536, 1, LAM_F32, false};
  CHECK_OK(lam_device_copy(&lam_device_cpu, workers(c), x, f, NULL));
  CHECK_OK(lam_device_copy(&lam_device_cpu, workers(c), f, y, NULL));
  for (int i = 0; i < 65536; i++) {
    const bool is_nan = (i & 0x7f80) == 0x7f80 && (i & 0x7f);
    if (is_nan ? out[i] != (i | 0x40) : out[i] != i)
      check_fail(CHECK_AT, "0x%04x became 0x%04x", i, out[i]);
  }
  const uint32_t bits[] = {0x3f808000, 0x3f818000, 0x3f808001, 0x7f800001,
                           0x7f7fffff, 0x00000001, 0xff800000};
  const uint16_t want[] = {0x3f80, 0x3f82, 0x3f81, 0x7fc0, 0x7f80, 0x0000, 0xff80};
  memcpy(wide, bits, sizeof bits);
  CHECK_OK(lam_device_copy(&lam_device_cpu, workers(c), lam_matrix_cols(f, 0, 7),
                           lam_matrix_cols(y, 0, 7), NULL));
  CHECK_SAME_BITS(out, want, sizeof want);
}
TEST(copy, rounds_f32_to_bf16_to_nearest_even) { for_all_loops(check_rounding); }
