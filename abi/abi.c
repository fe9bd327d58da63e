/* abi.c: the exported functions that only check their arguments and forward, and the table of them
 * all.
 * Invariant: nothing below this file sees a struct whose size was not judged, or a NULL where none
 * is allowed.
 * Leaves contexts, groups, schedules and pipelines to their own folders, which define their
 * exported functions. */
#include "plugin/core/dispatch.h"
#include "plugin/core/row.h"
#include "plugin/core/struct.h"

uint32_t lam_version(void) {
  return LAM_VERSION_MAJOR << 16 | LAM_VERSION_MINOR << 8 | LAM_VERSION_PATCH;
}

lam_status lam_run(lam_context *ctx, const lam_call *call) {
  LAM_TRY(lam_struct_check("lam_run", "lam_call", call, sizeof *call));
  return lam_dispatch_run(ctx, call);
}

lam_status lam_infer(lam_context *ctx, const lam_call *call, lam_inferred *out) {
  LAM_TRY(lam_struct_check("lam_infer", "lam_call", call, sizeof *call));
  LAM_TRY(lam_struct_check("lam_infer", "lam_inferred", out, sizeof *out));
  return lam_dispatch_infer(ctx, call, out);
}

lam_status lam_op_find(const char *name, uint32_t *out_op) {
  if (!name || !out_op)
    return lam_fail(LAM_INVALID_ARGUMENT, "lam_op_find: %s is NULL", name ? "out_op" : "name");
  *out_op = 0;
  return lam_row_find_name(name, out_op);
}

const char *lam_op_row(uint32_t op) { return lam_row_words(op); }

lam_status lam_packed_size(lam_context *ctx, DLDataType dtype, int64_t n, int64_t k, int32_t side,
                           int64_t *out_cols) {
  lam_dtype t;
  (void)ctx; /* the packing is the device's; contexts share it */
  if (!out_cols) return lam_fail(LAM_INVALID_ARGUMENT, "lam_packed_size: out_cols is NULL");
  *out_cols = 0;
  if (!lam_dtype_from_dlpack(dtype, &t) || (t != LAM_F32 && t != LAM_BF16))
    return lam_fail(LAM_INVALID_ARGUMENT,
                    "lam_packed_size: dtype: found code %d with %d bits, expected f32 or bf16",
                    dtype.code, dtype.bits);
  if (n < 0 || k < 0 || n > INT32_MAX || k > INT32_MAX)
    return lam_fail(LAM_INVALID_ARGUMENT,
                    "lam_packed_size: found [%lld, %lld], expected 0 to 2^31 - 1 each",
                    (long long)n, (long long)k);
  if (side != 0 && side != 1)
    return lam_fail(LAM_INVALID_ARGUMENT, "lam_packed_size: side is %d, expected 0 or 1", side);
  return lam_device_packed_cols(&lam_device_cpu, t, n, k, side, out_cols);
}

/* -- the table -- */

static const lam_api table = {
    .struct_size = sizeof(lam_api),
#define LAM_FUNCTION(result, name, arguments) .name = lam_##name,
#include "abi/lamella_api.def"
#undef LAM_FUNCTION
};

const lam_api *lam_get_api(uint32_t major) { return major == LAM_VERSION_MAJOR ? &table : NULL; }
