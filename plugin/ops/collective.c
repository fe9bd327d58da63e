/* collective.c: the collectives, each over one dimension or over whole tensors.
 * Invariant: peers see contiguous memory: an input that is not is copied, an output must be.
 * Leaves algorithms to the engines of comm/. */
#include "plugin/ops/rows.h"

#include <inttypes.h>

void lam_op_collective_needs(const lam_op_call *call, lam_op_needs *out) {
  *out = (lam_op_needs){lam_op_peers(call) ? lam_op_compact_bytes(call->in[0]) : 0, 1};
}

/* x as peers may see it. */
static lam_status mine(const lam_op_call *call, lam_scratch *s, lam_matrix *out) {
  return lam_op_compact(call, s, call->in[0], out);
}

/* Alone, what goes out is what came in. */
static lam_status run_or_copy(const lam_op_call *call, lam_op_body body) {
  if (!lam_op_peers(call)) return lam_op_copy(call, call->in[0], call->out[0]);
  LAM_TRY(lam_op_contiguous(call, "y", call->out[0]));
  return lam_op_with_scratch(call, lam_op_collective_needs, body);
}

static lam_comm_op same_on_all(const lam_op_call *call, int64_t extra) {
  return lam_op_announcement(call, call->in_tensor[0], call->in[0].dtype, -1, 0, extra);
}

/* -- whole tensors -- */

static lam_status all_reduce(const lam_op_call *call, lam_scratch *s) {
  const lam_comm_op op = same_on_all(call, 0);
  lam_matrix x;
  LAM_TRY(mine(call, s, &x));
  return lam_group_all_reduce(call->group, &op, x.data, call->out[0].data, x.rows * x.cols,
                              x.dtype);
}

lam_status lam_op_all_reduce_run(const lam_op_call *call) { return run_or_copy(call, all_reduce); }

static lam_status check_root(const lam_op_call *call) {
  if (call->attr.root >= 0 && call->attr.root < lam_op_size(call)) return LAM_OK;
  return lam_fail(LAM_INVALID_ARGUMENT, "%s: root is %" PRId64 ", expected 0 to %d", call->name,
                  call->attr.root, lam_op_size(call) - 1);
}

static lam_status broadcast(const lam_op_call *call, lam_scratch *s) {
  const lam_comm_op op = same_on_all(call, call->attr.root);
  lam_matrix x;
  LAM_TRY(mine(call, s, &x));
  return lam_group_broadcast(call->group, &op, x.data, call->out[0].data,
                             lam_elements_bytes(x.rows, x.cols, x.dtype), (int)call->attr.root);
}

lam_status lam_op_broadcast_run(const lam_op_call *call) {
  LAM_TRY(check_root(call));
  return run_or_copy(call, broadcast);
}

static lam_status reduce(const lam_op_call *call, lam_scratch *s) {
  const lam_comm_op op = same_on_all(call, call->attr.root);
  lam_matrix x;
  LAM_TRY(mine(call, s, &x));
  return lam_group_reduce(call->group, &op, x.data, call->out[0].data, x.rows * x.cols, x.dtype,
                          (int)call->attr.root);
}

lam_status lam_op_reduce_run(const lam_op_call *call) {
  LAM_TRY(check_root(call));
  return run_or_copy(call, reduce);
}

/* -- along a dimension -- */

static lam_status check_dim(const lam_op_call *call) {
  const int ndim = call->in_tensor[0]->ndim;
  if (call->attr.dim >= 0 && call->attr.dim < ndim) return LAM_OK;
  return lam_fail(LAM_INVALID_ARGUMENT,
                  "%s: dim is %" PRId64 ", expected 0 to %d: x has %d dimensions", call->name,
                  call->attr.dim, ndim - 1, ndim);
}

/* t seen as [outer, its dimension dim, inner] */
static lam_parts parts_along(const DLTensor *t, int64_t dim, lam_dtype dtype,
                             const lam_shares *shares) {
  lam_parts parts = {1, 1, shares->first, dtype};
  for (int i = 0; i < dim; i++) parts.outer *= t->shape[i];
  for (int i = (int)dim + 1; i < t->ndim; i++) parts.inner *= t->shape[i];
  return parts;
}

static lam_status gather(const lam_op_call *call, lam_scratch *s) {
  const DLTensor *t = call->in_tensor[0];
  const int64_t dim = call->attr.dim;
  lam_shares shares;
  lam_matrix x;
  LAM_TRY(lam_shares_from_own(call, "x's split dimension", t->shape[dim], &shares));
  LAM_TRY(mine(call, s, &x));
  const lam_parts parts = parts_along(t, dim, x.dtype, &shares);
  const lam_comm_op op =
      lam_op_announcement(call, t, x.dtype, (int)dim, lam_shares_whole(&shares, call), dim);
  return lam_group_all_gather(call->group, &op, &parts, x.data, call->out[0].data);
}

lam_status lam_op_all_gather_run(const lam_op_call *call) {
  lam_shares shares; /* alone, too, total says how long y is */
  LAM_TRY(check_dim(call));
  LAM_TRY(lam_shares_from_own(call, "x's split dimension",
                              call->in_tensor[0]->shape[call->attr.dim], &shares));
  return run_or_copy(call, gather);
}

static lam_status reduce_scatter(const lam_op_call *call, lam_scratch *s) {
  const DLTensor *t = call->in_tensor[0];
  const int64_t dim = call->attr.dim;
  lam_shares shares;
  lam_matrix x;
  LAM_TRY(lam_shares_from_whole(call, "x's split dimension", t->shape[dim], &shares));
  LAM_TRY(mine(call, s, &x));
  const lam_parts parts = parts_along(t, dim, x.dtype, &shares);
  const lam_comm_op op = same_on_all(call, dim);
  return lam_group_reduce_scatter(call->group, &op, &parts, x.data, call->out[0].data);
}

lam_status lam_op_reduce_scatter_run(const lam_op_call *call) {
  LAM_TRY(check_dim(call));
  return run_or_copy(call, reduce_scatter);
}
