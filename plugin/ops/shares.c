/* shares.c: where each rank's part of a split dimension lies, and what ranks tell each other of it.
 * Invariant: the same on every rank. Leaves the uneven rule itself to plugin/core/shard. */
#include "plugin/ops/common.h"

#include <inttypes.h>

static lam_status share_out(const lam_op_call *call, const char *what, int64_t total,
                            lam_shares *out) {
  const int64_t unit = call->attr.unit ? call->attr.unit : 1;
  if (total < 0 || unit < 0 || !lam_share_fits(total, unit))
    return lam_fail(LAM_INVALID_ARGUMENT,
                    "%s: %s: total %" PRId64 " in units of %" PRId64 " does not come out even",
                    call->name, what, total, unit);
  lam_share(total, unit, lam_op_size(call), out->first);
  return LAM_OK;
}

lam_status lam_shares_from_own(const lam_op_call *call, const char *what, int64_t own,
                               lam_shares *out) {
  if (call->attr.total == 0) {
    for (int r = 0; r <= lam_op_size(call); r++) out->first[r] = r * own;
    return LAM_OK;
  }
  LAM_TRY(share_out(call, what, call->attr.total, out));
  return lam_op_agree(call, what, own, "this rank's share of total by unit",
                      lam_shares_own(out, call));
}

lam_status lam_shares_from_whole(const lam_op_call *call, const char *what, int64_t whole,
                                 lam_shares *out) {
  if (call->attr.total)
    LAM_TRY(lam_op_agree(call, what, whole, "attribute total", call->attr.total));
  return share_out(call, what, whole, out);
}

lam_comm_op lam_op_announcement(const lam_op_call *call, const DLTensor *t, lam_dtype dtype,
                                int dim, int64_t whole, int64_t extra) {
  lam_comm_op op = {.op = call->op, .dtype = (uint16_t)dtype, .ndim = (uint16_t)t->ndim};
  for (int i = 0; i < t->ndim; i++) op.dims[i] = i == dim ? whole : t->shape[i];
  op.extra = extra;
  return op;
}
