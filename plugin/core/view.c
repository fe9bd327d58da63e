/* view.c: a tensor as a producer hands it over, with the version and flags that a bare DLTensor
 * does not show.
 * Invariant: of a tensor whose major version is not known, nothing but its deleter is read.
 * Leaves ownership with the caller: a view borrows; and what the DLTensor says to dispatch. */
#include "plugin/core/dlpack1.h"
#include "plugin/core/tensor.h"

#define ROLE_OUTPUT 1u

static lam_status check_args(const char *who, const void *t, uint32_t role, const DLTensor **out) {
  if (!out) return lam_fail(LAM_INVALID_ARGUMENT, "%s: out is NULL", who);
  *out = NULL;
  if (!t) return lam_fail(LAM_INVALID_ARGUMENT, "%s: t is NULL", who);
  if (role > ROLE_OUTPUT)
    return lam_fail(LAM_INVALID_ARGUMENT, "%s: role is %u, expected 0 (input) or 1 (output)", who,
                    role);
  return LAM_OK;
}

static lam_status check_flags(uint64_t flags, uint32_t role) {
  const unsigned long long unknown = flags & ~(uint64_t)LAM_DLPACK_KNOWN_FLAGS;
  if (flags & LAM_DLPACK_SUBBYTE_PADDED)
    return lam_fail(LAM_INVALID_ARGUMENT,
                    "lam_tensor_view: padded sub-byte elements are not supported");
  if (role != ROLE_OUTPUT) return LAM_OK;
  if (flags & LAM_DLPACK_READ_ONLY)
    return lam_fail(LAM_INVALID_ARGUMENT,
                    "lam_tensor_view: found a read-only tensor, expected one to write to");
  if (unknown)
    return lam_fail(
        LAM_INVALID_ARGUMENT,
        "lam_tensor_view: flags 0x%llx are not known, as an output it may not have them", unknown);
  return LAM_OK;
}

lam_status lam_tensor_view(struct DLManagedTensorVersioned *t, uint32_t role,
                           const DLTensor **out) {
  LAM_TRY(check_args("lam_tensor_view", t, role, out));
  const lam_dlpack_versioned *v = (const lam_dlpack_versioned *)t;
  if (v->version.major != LAM_DLPACK_MAJOR) {
    const unsigned major = v->version.major;
    if (v->deleter) v->deleter(t);
    return lam_fail(
        LAM_INVALID_ARGUMENT,
        "lam_tensor_view: DLPack major version is %u, expected %u; the tensor was released", major,
        LAM_DLPACK_MAJOR);
  }
  LAM_TRY(check_flags(v->flags, role));
  *out = &v->dl_tensor;
  return LAM_OK;
}

lam_status lam_tensor_view_legacy(DLManagedTensor *t, uint32_t role, const DLTensor **out) {
  LAM_TRY(check_args("lam_tensor_view_legacy", t, role, out));
  *out = &t->dl_tensor;
  return LAM_OK;
}
