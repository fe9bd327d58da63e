/* cuda_reduce_test.c: sums of the CUDA kernels, on the stand-in: over parts with the CPU's own
 * bits, over rows against double precision. */
#include <math.h>
#include <stdlib.h>

#include "tests/unit/kernels/cuda_support.h"

static const int64_t shapes[][2] = {{1, 1},  {3, 7},    {2, 31},  {5, 33},
                                    {4, 64}, {3, 1000}, {1, 4099}};
enum { N_SHAPES = 7, MOST_PARTS = 70 };

typedef struct problem {
  box parts[MOST_PARTS], bias, residual, y;
  int n;
} problem;

static lam_dtype one_of(rng *r, lam_dtype t) { return rng_int(r, 0, 1) ? LAM_F32 : t; }

static problem make_problem(rng *r, int n, lam_dtype t, int64_t rows, int64_t cols) {
  problem p = {.n = n, .y = box_new(rows, cols, t, any_form(r))};
  const form f = any_form(r);
  for (int i = 0; i < n; i++) p.parts[i] = box_random(r, rows, cols, one_of(r, t), f);
  if (rng_int(r, 0, 1))
    p.bias = box_random(r, 1, cols, one_of(r, t), rng_int(r, 0, 1) ? BY_ROWS : BY_COLS);
  if (rng_int(r, 0, 1)) p.residual = box_random(r, rows, cols, t, any_form(r));
  if (p.bias.memory && rng_int(r, 0, 1)) p.bias.m = lam_matrix_transposed(p.bias.m);
  return p;
}

static void sum_on_card(problem *p) {
  lam_matrix parts[MOST_PARTS], bias = {0}, residual = {0};
  card_begin();
  for (int i = 0; i < p->n; i++) parts[i] = to_card(&p->parts[i]);
  if (p->bias.memory) bias = to_card(&p->bias);
  if (p->residual.memory) residual = to_card(&p->residual);
  const lam_matrix y = to_card(&p->y);
  CHECK_OK(lam_device_sum(&card, NULL, parts, p->n, bias, residual, y, stream));
  from_card(&p->y, y);
  card_end();
}

static double bias_at(const problem *p, int64_t col) {
  const lam_matrix b = p->bias.m;
  return !p->bias.memory ? 0 : b.rows == 1 ? get(b, 0, col) : get(b, col, 0);
}

static void check_sum(rng *r, int n, lam_dtype t, int64_t rows, int64_t cols) {
  problem p = make_problem(r, n, t, rows, cols);
  double *want = calloc((size_t)(rows * cols), sizeof *want);
  for (int64_t at = 0; at < rows * cols; at++) {
    want[at] = bias_at(&p, at % cols);
    for (int i = 0; i < n; i++) want[at] += get(p.parts[i].m, at / cols, at % cols);
    if (p.residual.memory) want[at] += get(p.residual.m, at / cols, at % cols);
  }
  sum_on_card(&p);
  NOTE("%d parts, %s, %lld x %lld", n, lam_dtype_name(t), (long long)rows, (long long)cols);
  check_matrix(p.y.m, want, 1.01 * rounding_of(t), n * n * 0x1p-24 + 0x1p-25);
  check_around(&p.y, "y");
  if (t == LAM_F32 || t == LAM_BF16) {
    box cpu = box_copy(&p.y);
    lam_matrix parts[MOST_PARTS];
    for (int i = 0; i < n; i++) parts[i] = p.parts[i].m;
    CHECK_OK(lam_device_sum(&lam_device_cpu, workers(ALONE), parts, n, p.bias.m, p.residual.m,
                            cpu.m, NULL));
    check_same(p.y.m, cpu.m);
    box_free(&cpu);
  }
  for (int i = 0; i < n; i++) box_free(&p.parts[i]);
  free(want), box_free(&p.bias), box_free(&p.residual), box_free(&p.y);
}

TEST(cuda_sum, adds_parts_bias_and_residual_in_order) {
  rng r = {seed()};
  FOR_EACH(n, 1, 2, 3, 5)
  FOR_EACH(t, LAM_F32, LAM_BF16, LAM_F16)
  for (int s = 0; s < N_SHAPES; s++) check_sum(&r, n, (lam_dtype)t, shapes[s][0], shapes[s][1]);
}

TEST(cuda_sum, takes_more_parts_than_a_kernel_has_room_for) {
  rng r = {seed()};
  FOR_EACH(n, 32, 33, 63, 64, 70) check_sum(&r, n, rng_int(&r, 0, 1) ? LAM_BF16 : LAM_F32, 3, 37);
}

TEST(cuda_sum, may_write_over_a_part_and_the_residual) {
  rng r = {seed()};
  box a = box_random(&r, 5, 100, LAM_BF16, BY_ROWS), b = box_random(&r, 5, 100, LAM_BF16, BY_ROWS);
  double want[500];
  for (int at = 0; at < 500; at++)
    want[at] = 2 * get(a.m, at / 100, at % 100) + get(b.m, at / 100, at % 100);
  card_begin();
  const lam_matrix parts[] = {to_card(&a), to_card(&b)}, none = {0};
  CHECK_OK(lam_device_sum(&card, NULL, parts, 2, none, parts[0], parts[0], stream));
  from_card(&a, parts[0]);
  card_end();
  check_matrix(a.m, want, 1.01 * 0x1p-8, 0x1p-20);
  box_free(&a), box_free(&b);
}

/* -- over rows -- */

static void check_columns(rng *r, int64_t rows, int64_t cols, lam_dtype from, lam_dtype to,
                          bool accumulate) {
  box x = box_random(r, rows, cols, from, any_form(r));
  box first = box_random(r, 1, cols, to, BY_ROWS), again = box_copy(&first);
  double *want = calloc((size_t)cols, sizeof *want);
  for (int64_t j = 0; j < cols; j++) {
    if (accumulate) want[j] = get(first.m, 0, j);
    for (int64_t i = 0; i < rows; i++) want[j] += get(x.m, i, j);
  }
  box *const both[] = {&first, &again}; /* blocks run in another order each time */
  for (int i = 0; i < 2; i++) {
    card_begin();
    const lam_matrix xc = to_card(&x), y = to_card(both[i]);
    CHECK_OK(lam_device_column_sum(&card, NULL, xc, i ? lam_matrix_transposed(y) : y, accumulate,
                                   stream));
    from_card(both[i], y);
    card_end();
  }
  NOTE("%s %lld x %lld into %s, accumulate %d", lam_dtype_name(from), (long long)rows,
       (long long)cols, lam_dtype_name(to), accumulate);
  check_matrix(first.m, want, 1.01 * rounding_of(to), (double)(rows + 1) * 0x1p-22);
  check_same(first.m, again.m);
  check_around(&first, "db");
  free(want), box_free(&x), box_free(&first), box_free(&again);
}

TEST(cuda_column_sum, is_right_and_the_same_in_any_order_of_blocks) {
  rng r = {seed()};
  static const int64_t sizes[][2] = {{1, 1},    {7, 31},     {128, 33}, {129, 8},
                                     {1000, 7}, {300, 1000}, {2, 4099}, {4099, 9}};
  for (int s = 0; s < 8; s++) FOR_EACH(acc, 0, 1)
  FOR_EACH(t, LAM_F32, LAM_BF16, LAM_F16)
  check_columns(&r, sizes[s][0], sizes[s][1], (lam_dtype)t, one_of(&r, (lam_dtype)t), acc);
}

TEST(cuda_column_sum, of_no_rows_is_zero_or_what_was_there) {
  rng r = {seed()};
  FOR_EACH(acc, 0, 1) check_columns(&r, 0, 13, LAM_F32, LAM_F32, acc);
}
