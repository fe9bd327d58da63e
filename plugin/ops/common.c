/* common.c: agreement of sizes, scratch and copies for the operators.
 * Invariant: a failure that peers could wait for has poisoned their world before the call returns.
 * Leaves shares to shares.c, what goes over the group to gather.c and sum.c. */
#include "plugin/ops/common.h"

#include <inttypes.h>

const lam_matrix lam_op_absent = {0};

lam_status lam_op_disagree(const lam_op_call *call, const char *what, int64_t found,
                           const char *why, int64_t expected) {
  return lam_fail(LAM_INVALID_ARGUMENT, "%s: %s is %" PRId64 ", expected %" PRId64 ": %s",
                  call->name, what, found, expected, why);
}

bool lam_matrix_contiguous(lam_matrix m) {
  return (m.col_stride == 1 || m.cols <= 1) && (m.row_stride == m.cols || m.rows <= 1);
}

lam_status lam_op_contiguous(const lam_op_call *call, const char *name, lam_matrix m) {
  if (lam_matrix_contiguous(m) || m.rows == 0 || m.cols == 0) return LAM_OK;
  return lam_fail(LAM_INVALID_ARGUMENT,
                  "%s: %s: rows of %" PRId64 " elements are %" PRId64
                  " apart; what peers write into must be contiguous",
                  call->name, name, m.cols, m.row_stride);
}

static lam_status open_scratch(const lam_op_call *call, uint64_t need, char *near,
                               lam_scratch *out) {
  if (call->device->order)
    return lam_scratch_open_queued(call->device, call->stream, call->scratch, call->scratch_bytes,
                                   need, out);
  if (call->scratch || lam_scratch_bytes(need) > LAM_NEAR_BYTES)
    return lam_scratch_open(call->ctx, call->scratch, call->scratch_bytes, need, out);
  *out = (lam_scratch){.data = near, .bytes = LAM_NEAR_BYTES};
  return LAM_OK;
}

lam_status lam_op_with_scratch(const lam_op_call *call, lam_op_needs_fn needs, lam_op_body body) {
  lam_group *g = lam_op_peers(call);
  const uint64_t announced = g ? g->sequence : 0;
  _Alignas(64) char near[LAM_NEAR_BYTES];
  lam_scratch scratch;
  lam_op_needs need = {0, 1};
  if (needs) needs(call, &need);
  LAM_TRY(open_scratch(call, need.scratch_bytes, near, &scratch));
  const lam_status status = body(call, &scratch);
  if (scratch.data != near) lam_scratch_close(&scratch);
  if (status == LAM_OK || !g || g->sequence == announced || g->poison != LAM_OK) return status;
  return lam_group_end(g, NULL, status);
}

lam_matrix lam_op_take(lam_scratch *s, int64_t rows, int64_t cols, lam_dtype t) {
  void *data = lam_scratch_take(s, lam_elements_bytes(rows, cols, t));
  return (lam_matrix){data, rows, cols, cols, 1, t, false};
}

lam_status lam_op_product_queued(const lam_op_call *call, const lam_gemm *g) {
  lam_gemm own = *g;
  lam_gemm_more more = {0};
  if (g->more) more = *g->more;
  if (call->group) more.spares = call->group->busy_sms;
  more.tf32 = lam_context_tf32(call->ctx) || call->flags & LAM_CALL_TF32;
  own.more = &more;
  return lam_device_gemm(call->device, call->workers, &own, call->stream);
}

lam_status lam_op_product_fused(const lam_op_call *call, const lam_gemm *g, bool *out_done) {
  *out_done = lam_device_fuses(call->device, g);
  return *out_done ? lam_op_product(call, g) : LAM_OK;
}

/* As bytes, so that a copy needs to know no dtype. Last dimensions are contiguous. */
static lam_matrix as_bytes(lam_matrix m) {
  const int64_t bytes = lam_dtype_bytes(m.dtype);
  return (lam_matrix){m.data, m.rows, m.cols * bytes, m.row_stride * bytes, 1, LAM_U8, false};
}

lam_status lam_op_copy(const lam_op_call *call, lam_matrix from, lam_matrix to) {
  if (from.data == to.data || from.rows == 0 || from.cols == 0) return LAM_OK;
  return lam_device_copy(call->device, call->workers, as_bytes(from), as_bytes(to), call->stream);
}

uint64_t lam_op_compact_bytes(lam_matrix m) {
  return lam_matrix_contiguous(m) ? 0 : lam_elements_bytes(m.rows, m.cols, m.dtype);
}

lam_status lam_op_compact(const lam_op_call *call, lam_scratch *s, lam_matrix m, lam_matrix *out) {
  *out = m;
  if (lam_matrix_contiguous(m)) return LAM_OK;
  *out = lam_op_take(s, m.rows, m.cols, m.dtype);
  return lam_op_copy(call, m, *out);
}
