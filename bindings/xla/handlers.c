/* handlers.c: two exported FFI handlers for each row of the operator table: lam_xla_<name> for the
 * platform "cpu", lam_xla_cuda_<name> for "CUDA".
 * Invariant: the list is the table's own. Leaves the call to call.c. */
#include "abi/lamella.h"

#include "bindings/xla/call.h"

#define LAM_OP(id, name, inputs, outputs, attributes, shapes, effect)  \
  LAM_API xla_handler lam_xla_##name, lam_xla_cuda_##name;             \
  xla_error *lam_xla_##name(xla_frame *frame) {                        \
    return xla_call_run(id, XLA_PLATFORM_CPU, frame);                  \
  }                                                                    \
  xla_error *lam_xla_cuda_##name(xla_frame *frame) {                   \
    return xla_call_run(id, XLA_PLATFORM_CUDA, frame);                 \
  }
#include "abi/lamella_ops.def"
#undef LAM_OP
