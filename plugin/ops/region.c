/* region.c: Megatron-LM's six regions: collectives, or this rank's own slice, along the last
 * dimension (group) or the first (sequence). reduce_from_group is all_reduce itself (table.c).
 * Invariant: what needs no peer announces nothing. Leaves the rest to collective.c. */
#include "plugin/ops/rows.h"

lam_status lam_op_copy_to_group_run(const lam_op_call *call) {
  return lam_op_copy(call, call->in[0], call->out[0]);
}

static lam_status gather_along(const lam_op_call *call, int64_t dim) {
  lam_op_call along = *call;
  along.attr.dim = dim;
  return lam_op_all_gather_run(&along);
}

lam_status lam_op_gather_from_group_run(const lam_op_call *call) {
  return gather_along(call, call->in_tensor[0]->ndim - 1);
}

lam_status lam_op_gather_sequence_run(const lam_op_call *call) { return gather_along(call, 0); }

/* x [T, n] -> y [T, n_r] */
lam_status lam_op_scatter_to_group_run(const lam_op_call *call) {
  const lam_matrix x = call->in[0];
  lam_shares columns;
  LAM_TRY(lam_shares_from_whole(call, "x's last dimension", x.cols, &columns));
  return lam_op_copy(
      call, lam_matrix_cols(x, lam_shares_begin(&columns, call), lam_shares_own(&columns, call)),
      call->out[0]);
}

/* x [S, ...] -> y [S_r, ...]; a vector's first dimension is its last */
lam_status lam_op_scatter_sequence_run(const lam_op_call *call) {
  const DLTensor *t = call->in_tensor[0];
  const lam_matrix x = call->in[0];
  lam_shares rows;
  if (t->ndim < 2) return lam_op_scatter_to_group_run(call);
  LAM_TRY(lam_shares_from_whole(call, "x's first dimension", t->shape[0], &rows));
  const int64_t inner = lam_seq_inner(t);
  return lam_op_copy(call,
                     lam_matrix_rows(x, lam_shares_begin(&rows, call) * inner,
                                     lam_shares_own(&rows, call) * inner),
                     call->out[0]);
}
