/* pack.c: a weight as an opaque uint8 tensor in the layout its products like best.
 * Leaves the layout, its header and its refusal on another machine to kernels/. */
#include "plugin/ops/rows.h"

#include <inttypes.h>

/* w [N, K] -> packed [R, cols] bytes, R = N (side 0, forward) or K (side 1, dgrad) */
lam_status lam_op_pack_weight_run(const lam_op_call *call) {
  const lam_matrix w = call->in[0], packed = call->out[0];
  const int64_t side = call->attr.side;
  int64_t cols;
  if (side != 0 && side != 1)
    return lam_fail(LAM_INVALID_ARGUMENT,
                    "%s: side is %" PRId64
                    ", expected 0 (forward) or 1"
                    " (dgrad)",
                    call->name, side);
  if (!call->device->gemm || !call->device->gemm->pack)
    return lam_fail(LAM_UNIMPLEMENTED,
                    "%s: w: it lies on %s, where plain weights are read as fast: pass w itself",
                    call->name, call->device->name);
  LAM_TRY(lam_device_packed_cols(call->device, w.dtype, w.rows, w.cols, (int)side, &cols));
  LAM_TRY(lam_op_agree(call, "cols", packed.cols, "what lam_packed_size tells", cols));
  LAM_TRY(lam_op_contiguous(call, "packed", packed));
  return lam_device_pack(call->device, call->workers, w, (int)side, packed.data, cols,
                         call->stream);
}
