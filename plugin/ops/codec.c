/* codec.c: activations in fewer bits: coded to send or keep, and decoded.
 * Invariant: what comes back is within the bound that the codec declares (lamella.h).
 * Leaves formats and arithmetic to kernels/. */
#include "kernels/codec.h"

#include <inttypes.h>

#include "plugin/ops/rows.h"

lam_status lam_op_codec_check(const lam_op_call *call, lam_dtype t) {
  if (!lam_codec_find(call->attr.codec))
    return lam_fail(LAM_INVALID_ARGUMENT, "%s: codec is %" PRId64 ", expected 1 to %d", call->name,
                    call->attr.codec, LAM_N_CODECS - 1);
  if (t != LAM_F32 && t != LAM_BF16 && t != LAM_F16)
    return lam_fail(LAM_INVALID_ARGUMENT, "%s: codec %s is for f32, bf16 and f16, found %s",
                    call->name, lam_codec_find(call->attr.codec)->name, lam_dtype_name(t));
  return LAM_OK;
}

uint64_t lam_op_coded_bytes(const lam_op_call *call, lam_matrix m) {
  if (!lam_codec_find(call->attr.codec)) return 0;
  return lam_elements_bytes(m.rows, lam_codec_line_bytes((int)call->attr.codec, m.cols), LAM_U8);
}

/* Bytes may lie anywhere, but bf16 is read and written as such. */
static lam_status check_coded(const lam_op_call *call, lam_matrix coded) {
  if (call->attr.codec == LAM_CODEC_BF16 && (uintptr_t)coded.data % sizeof(uint16_t))
    return lam_fail(LAM_INVALID_ARGUMENT,
                    "%s: coded is at an odd address, codec bf16 needs an even", call->name);
  return lam_op_contiguous(call, "coded", coded);
}

lam_status lam_op_codec_pack_run(const lam_op_call *call) {
  LAM_TRY(lam_op_codec_check(call, call->in[0].dtype));
  LAM_TRY(check_coded(call, call->out[0]));
  return lam_device_encode(call->device, call->workers, (int)call->attr.codec, call->in[0],
                           call->out[0].data, call->stream);
}

lam_status lam_op_codec_unpack_run(const lam_op_call *call) {
  const lam_matrix coded = call->in[0], y = call->out[0];
  LAM_TRY(lam_op_codec_check(call, y.dtype));
  if (coded.dtype != LAM_U8)
    return lam_fail(LAM_INVALID_ARGUMENT, "%s: coded is %s, expected u8", call->name,
                    lam_dtype_name(coded.dtype));
  LAM_TRY(lam_op_agree(call, "coded's last dimension", coded.cols, "what a line of cols takes",
                       lam_codec_line_bytes((int)call->attr.codec, y.cols)));
  LAM_TRY(check_coded(call, coded));
  return lam_device_decode(call->device, call->workers, (int)call->attr.codec, coded.data, y,
                           call->stream);
}
