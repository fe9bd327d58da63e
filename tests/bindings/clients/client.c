/* client.c: a host in C11: y = silu(x w^T) through inference and run, a refusal, and a tensor as
 * its producer hands it over. */
#include "client.h"

static DLTensor tensor(float *data, int64_t *shape, int32_t ndim) {
  DLTensor t = {data, {kDLCPU, 0}, ndim, {kDLFloat, 32, 1}, shape, NULL, 0};
  return t;
}

#ifdef DLPACK_MAJOR_VERSION
static int versioned_tensors_are_borrowed(float *data, int64_t *shape) {
  DLManagedTensorVersioned t = {
      {1, 3}, NULL, NULL, DLPACK_FLAG_BITMASK_READ_ONLY, tensor(data, shape, 2)};
  const DLTensor *view = NULL;
  EXPECT(lam_tensor_view(&t, 0, &view) == LAM_OK && view == &t.dl_tensor);
  EXPECT(lam_tensor_view(&t, 1, &view) == LAM_INVALID_ARGUMENT && view == NULL);
  return 0;
}
#endif

static int runs_an_operator(void) {
  float x[2] = {1, 2}, w[2] = {3, -1}, y[1] = {0};
  int64_t one_by_two[] = {1, 2}, one_by_one[] = {1, 1};
  DLTensor tx = tensor(x, one_by_two, 2), tw = tensor(w, one_by_two, 2),
           ty = tensor(y, one_by_one, 2);
  const DLTensor *inputs[] = {&tx, &tw};
  DLTensor *outputs[] = {&ty};
  const lam_attr attrs[] = {lam_attr_s("relu"), lam_attr_default(), lam_attr_i(0)};
  lam_call call = LAM_CALL_INIT;
  EXPECT(lam_op_find("linear", &call.op) == LAM_OK && call.op == LAM_OP_linear);
  call.inputs = inputs, call.n_inputs = 2;
  call.outputs = outputs, call.n_outputs = 1;
  call.attrs = attrs, call.n_attrs = 3;

  lam_shape shapes[2];
  lam_inferred inferred = LAM_INFERRED_INIT;
  inferred.outputs = shapes, inferred.n_outputs = 2;
  EXPECT(lam_infer(NULL, &call, &inferred) == LAM_OK);
  EXPECT(shapes[0].ndim == 2 && shapes[0].dims[1] == 1 && shapes[1].ndim == -1);
  EXPECT(lam_run(NULL, &call) == LAM_OK && y[0] == 1);

  ty.shape = one_by_two;
  EXPECT(lam_run(NULL, &call) == LAM_INVALID_ARGUMENT);
  EXPECT(!strcmp(lam_last_error(), "linear: y: found [1, 2] f32, expected [1, 1] f32"));
#ifdef DLPACK_MAJOR_VERSION
  return versioned_tensors_are_borrowed(x, one_by_two);
#else
  return 0;
#endif
}

int main(void) {
  if (initializers_set_the_size()) return 1;
  EXPECT(lam_version() >> 16 == LAM_VERSION_MAJOR);
  EXPECT(!strcmp(lam_status_name(LAM_PEER_DEAD), "PEER_DEAD"));
  return runs_an_operator();
}
