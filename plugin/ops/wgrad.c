/* wgrad.c: the gradients of a weight and its bias. They are this rank's own: nothing is summed over
 * the group. Leaves making operands whole to the operators. */
#include "plugin/ops/common.h"

lam_status lam_op_weight_grad(const lam_op_call *call, lam_matrix dy, lam_matrix x, lam_matrix dw,
                              bool add) {
  const lam_gemm g = {
      .a = lam_matrix_transposed(dy), .b = lam_matrix_transposed(x), .d = dw, .accumulate = add};
  return lam_op_product(call, &g);
}

lam_status lam_op_bias_grad(const lam_op_call *call, lam_matrix dy, lam_matrix db) {
  if (!lam_matrix_here(db)) return LAM_OK;
  return lam_device_column_sum(call->device, call->workers, dy, db, call->attr.acc != 0,
                               call->stream);
}

lam_status lam_op_wgrad(const lam_op_call *call, lam_matrix dy, lam_matrix x, lam_matrix dw,
                        lam_matrix db) {
  LAM_TRY(lam_op_weight_grad(call, dy, x, dw, call->attr.acc != 0));
  return lam_op_bias_grad(call, dy, db);
}
