/* dispatch_test.c: a call that is wrong anywhere is refused in words that name the place, and
 * writes nothing. */
#include "plugin/core/context.h"
#include "tests/unit/core/host.h"

/* linear: x [2, 3]  w [4, 3]  b [4]  y [2, 4]  aux [2, 4] */
typedef struct linear {
  float x_data[6], w_data[12], b_data[4], y_data[8], aux_data[8];
  host_tensor x, w, b, y, aux;
  const DLTensor *in[6];
  DLTensor *out[3];
  lam_attr attrs[4];
  lam_call call;
} linear;

static void linear_make(linear *l) {
  memset(l, 0, sizeof *l);
  for (int i = 0; i < 6; i++) l->x_data[i] = (float)i;
  for (int i = 0; i < 12; i++) l->w_data[i] = (float)(i % 3 == i / 3);
  for (int i = 0; i < 4; i++) l->b_data[i] = 10;
  for (int i = 0; i < 8; i++) l->y_data[i] = l->aux_data[i] = -1;
  HOST(&l->x, l->x_data, F32, 2, 3);
  HOST(&l->w, l->w_data, F32, 4, 3);
  HOST(&l->b, l->b_data, F32, 4);
  HOST(&l->y, l->y_data, F32, 2, 4);
  HOST(&l->aux, l->aux_data, F32, 2, 4);
  l->in[0] = &l->x.t, l->in[1] = &l->w.t, l->in[2] = &l->b.t;
  l->out[0] = &l->y.t;
  l->call = (lam_call)LAM_CALL_INIT;
  l->call.op = LAM_OP_linear;
  l->call.inputs = l->in, l->call.outputs = l->out, l->call.attrs = l->attrs;
  l->call.n_inputs = 3, l->call.n_outputs = 1;
}

static int is_untouched(const linear *l) {
  for (int i = 0; i < 8; i++)
    if (l->y_data[i] != -1 || l->aux_data[i] != -1) return 0;
  return 1;
}

#define CHECK_LINEAR_REFUSED(l, words) \
  (CHECK_REFUSED(lam_run(NULL, &(l)->call), words), CHECK(is_untouched(l)))

TEST(call, a_right_one_runs) {
  linear l;
  linear_make(&l);
  CHECK_OK(lam_run(NULL, &l.call));
  const double want[] = {10, 11, 12, 10, 13, 14, 15, 10};
  CHECK_CLOSE(l.y_data, want, 8, 0, 0);
}

TEST(call, its_struct_is_checked_first) {
  linear l;
  linear_make(&l);
  l.call.struct_size = 0;
  CHECK_LINEAR_REFUSED(
      &l, "lam_run: lam_call: struct_size is 0, expected 72 (its _INIT macro sets it)");
  CHECK_REFUSED(lam_run(NULL, NULL), "lam_run: lam_call is NULL");
  lam_inferred inferred = LAM_INFERRED_INIT;
  CHECK_REFUSED(lam_infer(NULL, NULL, &inferred), "lam_infer: lam_call is NULL");
  l.call.struct_size = sizeof l.call;
  CHECK_REFUSED(lam_infer(NULL, &l.call, NULL), "lam_infer: lam_inferred is NULL");
}

TEST(call, an_unknown_operator_is_refused) {
  linear l;
  linear_make(&l);
  l.call.op = 5;
  CHECK_STATUS(lam_run(NULL, &l.call), LAM_NOT_FOUND);
  CHECK_STR(lam_last_error(), "lam_call: op is 5, which is no operator of this library");
  l.call.op = UINT32_MAX;
  CHECK_STATUS(lam_run(NULL, &l.call), LAM_NOT_FOUND);
}

TEST(call, counts_and_arrays_are_checked) {
  linear l;
  linear_make(&l);
  l.call.n_inputs = 6;
  CHECK_LINEAR_REFUSED(&l, "linear: inputs: found 6, expected at most 5");
  l.call.n_inputs = 3, l.call.inputs = NULL;
  CHECK_LINEAR_REFUSED(&l, "linear: inputs: the array is NULL, its count is 3");
  linear_make(&l);
  l.call.n_outputs = 3;
  CHECK_LINEAR_REFUSED(&l, "linear: outputs: found 3, expected at most 2");
  linear_make(&l);
  l.call.n_attrs = 4;
  CHECK_LINEAR_REFUSED(&l, "linear: attributes: found 4, expected at most 3");
  linear_make(&l);
  l.call.n_attrs = 1, l.call.attrs = NULL;
  CHECK_LINEAR_REFUSED(&l, "linear: attributes: the array is NULL, its count is 1");
  linear_make(&l);
  l.call.flags = 16;
  CHECK_LINEAR_REFUSED(&l, "linear: flags: found 0x10, expected 0 or 0x1");
}

TEST(call, missing_tensors_are_named) {
  linear l;
  linear_make(&l);
  l.in[1] = NULL;
  CHECK_LINEAR_REFUSED(&l, "linear: w: found NULL, expected a tensor");
  l.call.n_inputs = 0;
  CHECK_LINEAR_REFUSED(&l, "linear: x: found NULL, expected a tensor");
  linear_make(&l);
  l.call.n_outputs = 0;
  CHECK_LINEAR_REFUSED(&l, "linear: y: found NULL, expected a tensor");
}

TEST(call, dtypes_must_fit_the_first_input) {
  linear l;
  linear_make(&l);
  l.x.t.dtype = I32;
  CHECK_LINEAR_REFUSED(&l, "linear: x: found i32, expected f32 or bf16");
  linear_make(&l);
  l.w.t.dtype = BF16;
  CHECK_LINEAR_REFUSED(&l, "linear: w: found bf16, expected f32 as x");
  linear_make(&l);
  l.b.t.dtype = BF16;
  CHECK_LINEAR_REFUSED(&l, "linear: b: found bf16, expected f32");
  linear_make(&l);
  l.x.t.dtype = l.w.t.dtype = BF16, l.b.t.dtype = I32;
  CHECK_LINEAR_REFUSED(&l, "linear: b: found i32, expected bf16 as x, or f32");
  linear_make(&l);
  l.in[3] = &l.b.t, l.call.n_inputs = 4;
  CHECK_LINEAR_REFUSED(&l,
                       "linear: sx: found a scale, expected none: scales are for fp8, x is f32");
}

TEST(call, every_tensor_is_on_one_device) {
  linear l;
  linear_make(&l);
  l.x.t.device.device_type = kDLCUDA; /* the CUDA device is in a file that is not beside this test */
  CHECK_STATUS(lam_run(NULL, &l.call), LAM_UNAVAILABLE);
  CHECK_CONTAINS(lam_last_error(), "linear: x: it lies on cuda:0: liblamella_cuda.so.0 could not be "
                                   "opened: ");
  CHECK(is_untouched(&l));
  l.x.t.device.device_type = (DLDeviceType)99;
  CHECK_LINEAR_REFUSED(&l,
                       "linear: x: it lies on device type 99:0, which this build does not support");
  linear_make(&l);
  l.w.t.device.device_type = kDLCUDA, l.w.t.device.device_id = 1;
  CHECK_LINEAR_REFUSED(&l, "linear: w: it lies on cuda:1, x on cpu:0");
  linear_make(&l);
  l.y.t.device.device_id = 1;
  CHECK_LINEAR_REFUSED(&l, "linear: y: it lies on cpu:1, x on cpu:0");
}

TEST(call, weights_biases_and_tokens_have_their_dimensions) {
  linear l;
  linear_make(&l);
  HOST(&l.w, l.w_data, F32, 4, 1, 3);
  CHECK_LINEAR_REFUSED(&l, "linear: w: found 3 dimensions, expected 2: [N, K]");
  linear_make(&l);
  HOST(&l.b, l.b_data, F32, 1, 4);
  CHECK_LINEAR_REFUSED(&l, "linear: b: found 2 dimensions, expected 1: [N]");
  linear_make(&l);
  l.call.op = LAM_OP_send_activation, l.call.n_inputs = 2;
  l.in[1] = &l.b.t;
  CHECK_LINEAR_REFUSED(&l, "send_activation: token: found 4 elements, expected 1");
  l.b.t.dtype = I32;
  CHECK_LINEAR_REFUSED(&l, "send_activation: token: found i32, expected f32");
  linear_make(&l);
  l.x.t.ndim = 0;
  CHECK_LINEAR_REFUSED(&l, "linear: x: found 0 dimensions, its shape rule takes dimension 0");
}

TEST(call, malformed_tensors_are_named) {
  linear l;
  linear_make(&l);
  l.w.strides[1] = 2, l.w.strides[0] = 6;
  CHECK_LINEAR_REFUSED(&l, "linear: w: stride 1 is 2, expected 1 here or in the dimension before");
  linear_make(&l);
  l.y.strides[0] = 0;
  CHECK_LINEAR_REFUSED(
      &l, "linear: y: stride 0 is 0: its 2 elements are one in memory; make it contiguous");
}

TEST(call, attributes_have_types_and_ranges) {
  linear l;
  linear_make(&l);
  l.call.n_attrs = 3;
  l.attrs[0] = lam_attr_s("gelo");
  CHECK_LINEAR_REFUSED(
      &l, "linear: act: found 'gelo', expected one of '' gelu gelu_tanh silu relu relu2");
  l.attrs[0] = lam_attr_i(1);
  CHECK_LINEAR_REFUSED(&l, "linear: act: found an int, expected a string");
  l.attrs[0].type = 77;
  CHECK_LINEAR_REFUSED(&l, "linear: act: found type 77, which is no LAM_ATTR_ type");
  l.attrs[0] = (lam_attr){LAM_ATTR_STRING, 3, {0}};
  CHECK_LINEAR_REFUSED(&l, "linear: act: its pointer is NULL, its count is 3");
  l.attrs[0] = lam_attr_default(), l.attrs[1] = lam_attr_i(2);
  CHECK_LINEAR_REFUSED(&l, "linear: save: found 2, expected 0 to 1");
  l.attrs[1] = lam_attr_f(1);
  CHECK_LINEAR_REFUSED(&l, "linear: save: found a double, expected an int");
  l.attrs[1] = lam_attr_i(0), l.attrs[2] = lam_attr_i(77);
  CHECK_LINEAR_REFUSED(&l, "linear: dtype: found 77, which is no known code | bits << 8");
  l.attrs[2] = lam_attr_i(4 | 16 << 8);
  CHECK_LINEAR_REFUSED(&l, "linear: dtype: found bf16, expected f32 as x");
  l.attrs[2] = lam_attr_i(2 | 32 << 8);
  CHECK_OK(lam_run(NULL, &l.call));
}

TEST(call, lists_of_ints_are_checked) {
  linear l;
  linear_make(&l);
  const int64_t dims[9] = {2, -1, 0, 0, 0, 0, 0, 0, 0};
  host_tensor token;
  float zero = 0;
  HOST(&token, &zero, F32, 1);
  l.call.op = LAM_OP_recv_activation, l.in[0] = &token.t, l.call.n_inputs = 1, l.call.n_attrs = 5;
  lam_attr attrs[5] = {{0, 0, {0}}};
  l.call.attrs = attrs;
  attrs[4] = lam_attr_ints(dims, 9);
  CHECK_LINEAR_REFUSED(&l, "recv_activation: shape: found 9 dimensions, expected at most 8");
  attrs[4] = lam_attr_ints(dims, 2);
  CHECK_LINEAR_REFUSED(&l, "recv_activation: shape: dimension 1 is -1, expected at least 0");
}

TEST(call, an_unknown_group_is_refused) {
  linear l;
  linear_make(&l);
  l.call.op = LAM_OP_linear_row, l.call.n_attrs = 1;
  l.attrs[0] = lam_attr_i(12345678);
  CHECK(lam_run(NULL, &l.call) != LAM_OK);
  CHECK_CONTAINS(lam_last_error(), "linear_row: group: ");
  CHECK(is_untouched(&l));
  l.attrs[0] = lam_attr_i(-1);
  CHECK_LINEAR_REFUSED(&l, "linear_row: group: found -1, expected 0 to 9223372036854775807");
}

TEST(call, outputs_must_be_as_the_row_says) {
  linear l;
  linear_make(&l);
  HOST(&l.y, l.y_data, F32, 1, 8);
  CHECK_LINEAR_REFUSED(&l, "linear: y: found [1, 8] f32, expected [2, 4] f32");
  HOST(&l.y, l.y_data, BF16, 2, 4);
  CHECK_LINEAR_REFUSED(&l, "linear: y: found [2, 4] bf16, expected [2, 4] f32");
  HOST(&l.y, l.y_data, F32, 8);
  CHECK_LINEAR_REFUSED(&l, "linear: y: found [8] f32, expected [2, 4] f32");
  linear_make(&l);
  l.call.n_outputs = 2, l.out[1] = &l.aux.t;
  CHECK_LINEAR_REFUSED(&l, "linear: aux: found a tensor, expected none with these attributes");
  l.call.n_attrs = 2, l.attrs[1] = lam_attr_i(1), l.out[1] = NULL;
  CHECK_LINEAR_REFUSED(&l, "linear: aux: found NULL, expected a tensor");
  l.out[1] = &l.aux.t;
  CHECK_OK(lam_run(NULL, &l.call));
}

TEST(call, weight_gradients_may_be_f32) {
  linear l;
  linear_make(&l);
  l.call.op = LAM_OP_linear_wgrad; /* dy [2, 4] as x, x [2, 3] as w, dw [4, 3] */
  HOST(&l.y, l.y_data, BF16, 2, 4);
  HOST(&l.x, l.x_data, BF16, 2, 3);
  HOST(&l.aux, l.aux_data, I32, 2, 4);
  l.in[0] = &l.y.t, l.in[1] = &l.x.t, l.out[0] = &l.aux.t, l.call.n_inputs = 2;
  CHECK_LINEAR_REFUSED(&l, "linear_wgrad: dw: found [2, 4] i32, expected [4, 3] bf16 or f32");
  HOST(&l.w, l.w_data, F32, 4, 3);
  l.out[0] = &l.w.t;
  CHECK_OK(lam_run(NULL, &l.call));
}

TEST(call, outputs_share_no_memory) {
  linear l;
  linear_make(&l);
  l.y.t.data = l.w_data + 4;
  CHECK_LINEAR_REFUSED(&l, "linear: y: its memory overlaps that of w");
  linear_make(&l);
  l.call.n_outputs = 2, l.call.n_attrs = 2, l.attrs[1] = lam_attr_i(1);
  l.out[1] = &l.aux.t, l.aux.t.data = l.y_data;
  CHECK_LINEAR_REFUSED(&l, "linear: aux: its memory overlaps that of y");
}

TEST(call, a_row_that_allows_it_works_in_place) {
  linear l;
  linear_make(&l);
  l.call.op = LAM_OP_all_reduce, l.call.n_inputs = 1, l.out[0] = &l.x.t;
  CHECK_OK(lam_run(NULL, &l.call));
  CHECK_EQ(l.x_data[5], 5);
  HOST(&l.y, l.x_data + 1, F32, 1, 3);
  HOST(&l.x, l.x_data, F32, 1, 3);
  l.out[0] = &l.y.t;
  CHECK_LINEAR_REFUSED(&l, "all_reduce: y: its memory overlaps that of x");
  l.out[0] = &l.x.t;
  FOR_EACH(op, LAM_OP_all_reduce, LAM_OP_broadcast, LAM_OP_reduce, LAM_OP_copy_to_group) {
    l.call.op = (uint32_t)op;
    CHECK_OK(lam_run(NULL, &l.call));
  }
  l.call.op = LAM_OP_all_gather;
  CHECK_LINEAR_REFUSED(&l, "all_gather: y: its memory overlaps that of x");
}

TEST(call, bytes_that_are_no_packed_weight_are_refused) {
  linear l;
  linear_make(&l);
  _Alignas(64) uint8_t junk[4 * 256] = {1};
  HOST(&l.w, junk, U8, 4, 256);
  CHECK(lam_run(NULL, &l.call) != LAM_OK);
  CHECK_CONTAINS(lam_last_error(), "linear: w: ");
  CHECK(is_untouched(&l));
  HOST(&l.w, junk + 1, U8, 3, 256);
  CHECK_LINEAR_REFUSED(&l, "linear: w: a packed weight must be aligned to 64 bytes");
  HOST(&l.w, junk, U8, 4, 200);
  l.w.strides[0] = 256;
  CHECK_LINEAR_REFUSED(&l, "linear: w: a packed weight must be contiguous");
}

TEST(call, a_packed_weight_is_taken_for_the_side_it_was_packed_for) {
  linear l;
  linear_make(&l);
  _Alignas(64) static uint8_t packed[1 << 16];
  int64_t cols;
  host_tensor p;
  REQUIRE_OK(lam_packed_size(NULL, F32, 4, 3, 0, &cols));
  REQUIRE(4 * cols <= (int64_t)sizeof packed);
  HOST(&p, packed, U8, 4, cols);
  lam_attr attrs[] = {lam_attr_i(0), lam_attr_i(cols)};
  const DLTensor *in[] = {&l.w.t};
  DLTensor *out[] = {&p.t};
  const lam_call pack = {
      sizeof pack, LAM_OP_pack_weight, in, out, attrs, 1, 1, 2, 0, NULL, NULL, 0};
  REQUIRE_OK(lam_run(NULL, &pack));

  l.in[1] = &p.t;
  CHECK_OK(lam_run(NULL, &l.call));
  CHECK_EQ(l.y_data[6], 15);
  linear_make(&l);
  l.in[1] = &p.t;
  l.call.op = LAM_OP_linear_dgrad, l.call.n_inputs = 2;
  CHECK_LINEAR_REFUSED(&l, "linear_dgrad: w: it was packed for side 0, expected side 1");
}

TEST(call, empty_tensors_run) {
  linear l;
  linear_make(&l);
  HOST(&l.x, NULL, F32, 0, 3);
  HOST(&l.y, NULL, F32, 0, 4);
  CHECK_OK(lam_run(NULL, &l.call));
  HOST(&l.x, NULL, F32, 2, 0); /* K = 0: y is the bias */
  HOST(&l.w, NULL, F32, 4, 0);
  HOST(&l.y, l.y_data, F32, 2, 4);
  CHECK_OK(lam_run(NULL, &l.call));
  CHECK_EQ(l.y_data[7], 10);
}

/* -- inference -- */

TEST(infer, needs_no_data_and_gives_every_output) {
  linear l;
  lam_shape shapes[2];
  lam_inferred inferred = LAM_INFERRED_INIT;
  linear_make(&l);
  l.x.t.data = l.w.t.data = l.b.t.data = NULL;
  l.call.n_outputs = 0, l.call.outputs = NULL;
  inferred.outputs = shapes, inferred.n_outputs = 2;
  CHECK_OK(lam_infer(NULL, &l.call, &inferred));
  CHECK_EQ(inferred.n_outputs, 2);
  CHECK_EQ(inferred.n_chunks, 1);
  CHECK_EQ(inferred.capturable, 0);
  CHECK_EQ(shapes[0].ndim, 2);
  CHECK_EQ(shapes[0].dims[0], 2);
  CHECK_EQ(shapes[0].dims[1], 4);
  CHECK_EQ(shapes[0].dtype.bits, 32);
  CHECK_EQ(shapes[1].ndim, -1);
  l.call.n_attrs = 2, l.attrs[1] = lam_attr_i(1);
  CHECK_OK(lam_infer(NULL, &l.call, &inferred));
  CHECK_EQ(shapes[1].ndim, 2);
}

TEST(infer, room_is_checked_and_may_be_nothing) {
  linear l;
  lam_shape shape;
  lam_inferred inferred = LAM_INFERRED_INIT;
  linear_make(&l);
  CHECK_OK(lam_infer(NULL, &l.call, &inferred));
  CHECK_EQ(inferred.n_outputs, 2);
  inferred.outputs = &shape, inferred.n_outputs = 1;
  CHECK_REFUSED(lam_infer(NULL, &l.call, &inferred), "lam_infer: room for 1 outputs, linear has 2");
}

TEST(infer, a_size_that_overflows_is_refused) {
  linear l;
  lam_inferred inferred = LAM_INFERRED_INIT;
  linear_make(&l);
  HOST(&l.x, NULL, F32, 1ll << 40, 3);
  HOST(&l.w, NULL, F32, 1ll << 30, 3);
  CHECK_REFUSED(lam_infer(NULL, &l.call, &inferred), "linear: y: its size in bytes would overflow");
}

/* -- the rest of abi.c -- */

TEST(ops, are_found_by_name_and_told_as_text) {
  uint32_t op = 1;
  CHECK_OK(lam_op_find("act_bwd", &op));
  CHECK_EQ(op, 35);
  CHECK_STR(lam_op_row(op), "35 act_bwd | dy aux | dz | act:s | dz: as aux | PURE");
  CHECK_STATUS(lam_op_find("conv", &op), LAM_NOT_FOUND);
  CHECK_STR(lam_last_error(), "lam_op_find: no operator is called 'conv'");
  CHECK_EQ(op, 0);
  CHECK_REFUSED(lam_op_find(NULL, &op), "lam_op_find: name is NULL");
  CHECK(lam_op_row(2) == NULL);
}

TEST(packed_size, wrong_arguments_are_refused) {
  int64_t cols = 7;
  CHECK_REFUSED(lam_packed_size(NULL, F32, 4, 3, 0, NULL), "lam_packed_size: out_cols is NULL");
  CHECK_REFUSED(lam_packed_size(NULL, I32, 4, 3, 0, &cols),
                "lam_packed_size: dtype: found code 0 with 32 bits, expected f32 or bf16");
  CHECK_REFUSED(lam_packed_size(NULL, F32, -4, 3, 0, &cols),
                "lam_packed_size: found [-4, 3], expected 0 to 2^31 - 1 each");
  CHECK_REFUSED(lam_packed_size(NULL, F32, 4, 3, 2, &cols),
                "lam_packed_size: side is 2, expected 0 or 1");
  CHECK_EQ(cols, 0);
}

TEST(api, the_table_is_of_one_major_version) {
  const lam_api *api = lam_get_api(LAM_VERSION_MAJOR);
  REQUIRE(api != NULL);
  CHECK_EQ(api->struct_size, sizeof *api);
  CHECK(api->run == lam_run);
  CHECK(api->foreign_destroy == lam_foreign_destroy);
  CHECK_EQ(api->version(), LAM_VERSION_MAJOR << 16 | LAM_VERSION_MINOR << 8 | LAM_VERSION_PATCH);
  CHECK(lam_get_api(LAM_VERSION_MAJOR + 1) == NULL);
}
