/* call.c: one operator of Lamella on the demo's matrices; and the demo's own messages.
 *
 * Invariant: a matrix becomes a DLTensor for the length of one call; Lamella keeps none of them. */
#include <stdarg.h>
#include <stdio.h>

#include "bindings/cli/demo/demo.h"

static _Thread_local char own_message[512];

lam_status fail(lam_status code, const char *format, ...) {
  va_list arguments;
  va_start(arguments, format);
  vsnprintf(own_message, sizeof own_message, format, arguments);
  va_end(arguments);
  return code;
}

const char *error_text(void) { return *own_message ? own_message : lam_last_error(); }

DLDataType matrix_dtype(matrix m) {
  DLDataType f32 = {kDLFloat, 32, 1}, bf16 = {kDLBfloat, 16, 1};
  return m.bits == 16 ? bf16 : f32;
}

enum { MAX_TENSORS = 8 };
typedef struct tensors {
  DLTensor tensor[MAX_TENSORS];
  int64_t shape[MAX_TENSORS][2];
  DLTensor *list[MAX_TENSORS];
} tensors;

static void describe(const matrix *m, int n, const device *at, tensors *out) {
  for (int i = 0; i < n; i++) {
    const bool vector = m[i].rows == VECTOR;
    out->shape[i][0] = vector ? m[i].cols : m[i].rows;
    out->shape[i][1] = m[i].cols;
    out->tensor[i] = (DLTensor){.data = m[i].data,
                                .device = {(DLDeviceType)at->type, at->id},
                                .ndim = vector ? 1 : 2,
                                .dtype = matrix_dtype(m[i]),
                                .shape = out->shape[i]};
    out->list[i] = m[i].data ? &out->tensor[i] : NULL;
  }
}

static lam_status call_at(const device *at, lam_context *ctx, uint32_t op, const matrix *in,
                          int n_in, const matrix *out, int n_out, const lam_attr *attrs,
                          int n_attrs) {
  tensors inputs, outputs;
  describe(in, n_in, at, &inputs);
  describe(out, n_out, at, &outputs);
  lam_call call = LAM_CALL_INIT;
  call.op = op;
  call.inputs = (const DLTensor *const *)inputs.list;
  call.outputs = outputs.list;
  call.attrs = attrs;
  call.n_inputs = (uint32_t)n_in;
  call.n_outputs = (uint32_t)n_out;
  call.n_attrs = (uint32_t)n_attrs;
  call.stream = at->stream;
  return lam_run(ctx, &call);
}

lam_status call_op(lam_context *ctx, uint32_t op, const matrix *in, int n_in, const matrix *out,
                   int n_out, const lam_attr *attrs, int n_attrs) {
  return call_at(here, ctx, op, in, n_in, out, n_out, attrs, n_attrs);
}

lam_status call_host_op(lam_context *ctx, uint32_t op, const matrix *in, int n_in,
                        const matrix *out, int n_out, const lam_attr *attrs, int n_attrs) {
  return call_at(&device_host, ctx, op, in, n_in, out, n_out, attrs, n_attrs);
}
