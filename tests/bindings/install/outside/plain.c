/* plain.c: a C11 program of somebody else's, built with what pkg-config says. */
#include <lamella.h>
#include <stdio.h>

int main(void) {
  float x[] = {1, 2}, w[] = {3, -1, 0, 4}, y[2] = {0};
  int64_t one_by_two[] = {1, 2}, two_by_two[] = {2, 2};
  DLTensor tx = {x, {kDLCPU, 0}, 2, {kDLFloat, 32, 1}, one_by_two, NULL, 0}, tw = tx, ty = tx;
  tw.data = w, tw.shape = two_by_two, ty.data = y;
  const DLTensor *inputs[] = {&tx, &tw};
  DLTensor *outputs[] = {&ty};
  lam_call call = LAM_CALL_INIT;
  call.op = LAM_OP_linear;
  call.inputs = inputs, call.n_inputs = 2;
  call.outputs = outputs, call.n_outputs = 1;
  if (lam_run(NULL, &call) != LAM_OK) return fprintf(stderr, "%s\n", lam_last_error()), 1;
  printf("%g %g\n", (double)y[0], (double)y[1]);
  return 0;
}
