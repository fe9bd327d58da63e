/* call_bench.c: what a call costs above its kernel. y [1, 1] = x [1, 1] w [1, 1], through lam_run
 * and through the device's gemm alone, in turn; what is left is finding the row, checking three
 * tensors, shapes, memory and attributes, and the operator's own steps.
 * Prints `name figure unit spread`: the median of rounds, and the width of their middle half over it.
 * Invariant: both sides are measured in the same round. Leaves the gemm itself to kernels_bench.c. */
#include <stdio.h>
#include <stdlib.h>
#include <time.h>

#include "plugin/core/context.h"

enum { ROUNDS = 1001, CALLS = 200 }; /* rounds shorter than a time slice */

static float x = 2, w = 3, y;
static int64_t shape[] = {1, 1}, strides[] = {1, 1};

static double now_ns(void) {
  struct timespec t;
  clock_gettime(CLOCK_MONOTONIC, &t);
  return 1e9 * (double)t.tv_sec + (double)t.tv_nsec;
}

static int by_size(const void *a, const void *b) {
  const double d = *(const double *)a - *(const double *)b;
  return (d > 0) - (d < 0);
}

static void print(const char *name, double *rounds) {
  qsort(rounds, ROUNDS, sizeof *rounds, by_size);
  const double median = rounds[ROUNDS / 2];
  printf("%s %.1f ns %.2f\n", name, median, (rounds[ROUNDS * 3 / 4] - rounds[ROUNDS / 4]) / median);
}

static double time_gemm(void) {
  const lam_workers *workers = lam_context_workers(lam_context_default());
  const lam_matrix a = {&x, 1, 1, 1, 1, LAM_F32, false}, b = {&w, 1, 1, 1, 1, LAM_F32, false};
  const lam_gemm g = {.a = a, .b = b, .d = {&y, 1, 1, 1, 1, LAM_F32, false}};
  const double begin = now_ns();
  for (int i = 0; i < CALLS; i++)
    if (lam_device_gemm(&lam_device_cpu, workers, &g, NULL)) exit(1);
  return (now_ns() - begin) / CALLS;
}

static double time_call(const lam_call *call) {
  const double begin = now_ns();
  for (int i = 0; i < CALLS; i++)
    if (lam_run(NULL, call)) {
      fprintf(stderr, "%s\n", lam_last_error());
      exit(1);
    }
  return (now_ns() - begin) / CALLS;
}

int main(void) {
  DLTensor tx = {&x, {kDLCPU, 0}, 2, {kDLFloat, 32, 1}, shape, strides, 0}, tw = tx, ty = tx;
  tw.data = &w, ty.data = &y;
  const DLTensor *in[] = {&tx, &tw};
  DLTensor *out[] = {&ty};
  const lam_call linear = {sizeof linear, LAM_OP_linear, in, out, NULL, 2, 1, 0, 0, NULL, NULL, 0};
  const lam_call row = {sizeof row, LAM_OP_linear_row, in, out, NULL, 2, 1, 0, 0, NULL, NULL, 0};
  double gemm[ROUNDS], above_linear[ROUNDS], above_row[ROUNDS];

  time_gemm(), time_call(&linear), time_call(&row);
  for (int i = 0; i < ROUNDS; i++) {
    gemm[i] = time_gemm();
    above_linear[i] = time_call(&linear) - gemm[i];
    above_row[i] = time_call(&row) - gemm[i];
  }
  print("gemm_1x1x1", gemm);
  print("above_linear", above_linear);
  print("above_linear_row_tp1", above_row);
  return 0;
}
