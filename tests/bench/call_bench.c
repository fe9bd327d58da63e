/* call_bench.c: what a call costs above its kernel. y [1, 1] = x [1, 1] w [1, 1], through
 * lam_run and through the device's gemm alone, in turn; what is left is finding the row,
 * checking tensors, shapes, memory and attributes, and the operator's own steps.
 *
 *   call_bench [rounds]
 *
 * Prints `name figure unit spread`: the median of rounds (spread.h).
 * Invariant: both sides are measured in the same round. Leaves the gemm itself to
 * kernels_bench.c. */
#include <stdio.h>
#include <stdlib.h>
#include <time.h>

#include "plugin/core/context.h"
#include "tests/bench/spread.h"

enum { MOST_ROUNDS = 1001, CALLS = 200 }; /* rounds shorter than a time slice */

static int64_t shape[] = {1, 1}, strides[] = {1, 1};
static float x = 2, w1 = 3, w2 = 5, y;
#define SCALAR(at) \
  { at, {kDLCPU, 0}, 2, {kDLFloat, 32, 1}, shape, strides, 0 }
static DLTensor tx = SCALAR(&x), tw1 = SCALAR(&w1), tw2 = SCALAR(&w2), ty = SCALAR(&y);

static const DLTensor *const in[] = {&tx, &tw1}, *const ffn_in[] = {&tx, &tw1, NULL, &tw2};
static DLTensor *const out[] = {&ty};

/* All that the row has, as hosts give them. The group, of one rank, comes first. */
#define INT(value)             \
  {                            \
    LAM_ATTR_INT, 0, { value } \
  }
#define NO_ACT                \
  {                           \
    LAM_ATTR_STRING, 0, { 0 } \
  }
static lam_attr col_attrs[] = {INT(0), NO_ACT, INT(0), INT(0), INT(0),
                               INT(1), INT(1), INT(0), INT(0)};
static lam_attr split_attrs[] = {INT(0), INT(1), INT(0), INT(1), INT(1), INT(0), INT(0)};
static lam_attr whole_attrs[] = {INT(0), INT(0), INT(0), INT(1), INT(1), INT(0), INT(0)};
static lam_attr ffn_attrs[] = {INT(0), NO_ACT, INT(0), INT(0), INT(0), INT(0), INT(0)};

#define COUNT(array) (sizeof(array) / sizeof *(array))
#define CALL(op, in, attrs, n_attrs) \
  { sizeof(lam_call), op, in, out, attrs, COUNT(in), 1, n_attrs, 0, NULL, NULL, 0 }
static const struct {
  const char *name;
  int products; /* in its kernel */
  lam_call call;
} rows[] = {
    {"above_linear", 1, CALL(LAM_OP_linear, in, NULL, 0)},
    {"above_linear_row_tp1", 1, CALL(LAM_OP_linear_row, in, NULL, 0)},
    {"above_linear_col_group_of_1", 1, CALL(LAM_OP_linear_col, in, col_attrs, COUNT(col_attrs))},
    {"above_linear_row_group_of_1", 1,
     CALL(LAM_OP_linear_row, in, split_attrs, COUNT(split_attrs))},
    {"above_linear_row_whole_x_group_of_1", 1,
     CALL(LAM_OP_linear_row, in, whole_attrs, COUNT(whole_attrs))},
    {"above_ffn_group_of_1", 2, CALL(LAM_OP_ffn, ffn_in, ffn_attrs, COUNT(ffn_attrs))},
};
enum { N_ROWS = COUNT(rows) };

static void must(lam_status s) {
  if (s == LAM_OK) return;
  fprintf(stderr, "call_bench: %s\n", lam_last_error());
  exit(1);
}

static void join_group_of_1(void) {
  lam_group_desc desc = LAM_GROUP_DESC_INIT;
  lam_group *g;
  desc.size = 1;
  must(lam_group_id_create(&desc.id));
  must(lam_group_create(NULL, &desc, &g));
  lam_attr *const attrs[] = {col_attrs, split_attrs, whole_attrs, ffn_attrs};
  for (size_t i = 0; i < COUNT(attrs); i++) attrs[i]->v.i = lam_group_handle(g);
}

static double now_ns(void) {
  struct timespec t;
  clock_gettime(CLOCK_MONOTONIC, &t);
  return 1e9 * (double)t.tv_sec + (double)t.tv_nsec;
}

static void print(const char *name, double *times, int n) {
  printf("%s %.1f ns", name, median_of(times, n));
  end_line(times, n);
}

/* A row's kernel: one product, or two of which the second reads what the first wrote. */
static double time_kernel(int products) {
  static float h;
  const lam_workers *workers = lam_context_workers(lam_context_default());
#define VIEW(at) \
  { at, 1, 1, 1, 1, LAM_F32, false }
  const lam_gemm one = {.a = VIEW(&x), .b = VIEW(&w1), .d = VIEW(products == 1 ? &y : &h)};
  const lam_gemm two = {.a = VIEW(&h), .b = VIEW(&w2), .d = VIEW(&y)};
  const double begin = now_ns();
  for (int i = 0; i < CALLS; i++) {
    must(lam_device_gemm(&lam_device_cpu, workers, &one, NULL));
    if (products == 2) must(lam_device_gemm(&lam_device_cpu, workers, &two, NULL));
  }
  return (now_ns() - begin) / CALLS;
}

static double time_call(const lam_call *call) {
  const double begin = now_ns();
  for (int i = 0; i < CALLS; i++) must(lam_run(NULL, call));
  return (now_ns() - begin) / CALLS;
}

int main(int argc, char **argv) {
  static double kernel[3][MOST_ROUNDS], above[N_ROWS][MOST_ROUNDS];
  const int n = argc > 1 ? atoi(argv[1]) : MOST_ROUNDS;
  if (n < 1 || n > MOST_ROUNDS) return fprintf(stderr, "call_bench [1..%d]\n", MOST_ROUNDS), 1;
  join_group_of_1();

  for (int i = -1; i < n; i++) { /* the first round warms up */
    const int at = i < 0 ? 0 : i;
    for (int products = 1; products <= 2; products++) kernel[products][at] = time_kernel(products);
    for (int r = 0; r < N_ROWS; r++)
      above[r][at] = time_call(&rows[r].call) - kernel[rows[r].products][at];
  }
  print("gemm_1x1x1", kernel[1], n);
  print("two_gemms_1x1x1", kernel[2], n);
  for (int r = 0; r < N_ROWS; r++) print(rows[r].name, above[r], n);
  return 0;
}
