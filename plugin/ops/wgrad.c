/* wgrad.c: the gradients of a weight and its bias. They are this rank's own: nothing is summed over
 * the group.
 * Invariant: where a device sums dy's rows beside its product, the result is as of two calls.
 * Leaves making operands whole to the operators. */
#include "plugin/ops/common.h"

static lam_gemm weight_product(lam_matrix dy, lam_matrix x, lam_matrix dw, bool add) {
  return (lam_gemm){
      .a = lam_matrix_transposed(dy), .b = lam_matrix_transposed(x), .d = dw, .accumulate = add};
}

/* fp8 comes with row linear_wgrad alone: dy x sdy sx. */
static lam_gemm_more scales_of(const lam_op_call *call, lam_matrix dy) {
  return lam_dtype_is_f8(dy.dtype) ? lam_op_scales(call, 2, 3) : (lam_gemm_more){.tf32 = false};
}

lam_status lam_op_weight_grad(const lam_op_call *call, lam_matrix dy, lam_matrix x, lam_matrix dw,
                              bool add) {
  lam_gemm g = weight_product(dy, x, dw, add);
  lam_gemm_more scales;
  if (lam_dtype_is_f8(dy.dtype)) scales = scales_of(call, dy), g.more = &scales;
  return lam_op_product(call, &g);
}

lam_status lam_op_bias_grad(const lam_op_call *call, lam_matrix dy, lam_matrix db) {
  if (!lam_matrix_here(db)) return LAM_OK;
  if (lam_dtype_is_f8(dy.dtype))
    return lam_fail(LAM_UNIMPLEMENTED, "%s: db: dy is %s here; sum what dy was made of", call->name,
                    lam_dtype_name(dy.dtype));
  return lam_device_column_sum(call->device, call->workers, dy, db, call->attr.acc != 0,
                               call->stream);
}

/* Both in one product, where the device can; a sum is overwritten there, never added to. */
static lam_status both_in_one(const lam_op_call *call, lam_matrix dy, lam_matrix x, lam_matrix dw,
                              lam_matrix db, bool *out_done) {
  *out_done = false;
  if (!call->device->order || call->attr.acc || !lam_matrix_here(db)) return LAM_OK;
  lam_gemm g = weight_product(dy, x, dw, false);
  lam_gemm_more more = scales_of(call, dy);
  more.a_sum = db;
  g.more = &more;
  return lam_op_product_fused(call, &g, out_done);
}

lam_status lam_op_wgrad(const lam_op_call *call, lam_matrix dy, lam_matrix x, lam_matrix dw,
                        lam_matrix db) {
  bool done;
  LAM_TRY(both_in_one(call, dy, x, dw, db, &done));
  if (done) return LAM_OK;
  LAM_TRY(lam_op_bias_grad(call, dy, db));
  return lam_op_weight_grad(call, dy, x, dw, call->attr.acc != 0);
}
