/* handlers.c: one exported FFI handler for each row of the operator table, lam_xla_<name>.
 * Invariant: the list is the table's own. Leaves the call to call.c. */
#include "abi/lamella.h"

#include "bindings/xla/call.h"

#define LAM_OP(id, name, inputs, outputs, attributes, shapes, effect) \
  LAM_API xla_handler lam_xla_##name;                                 \
  xla_error *lam_xla_##name(xla_frame *frame) { return xla_call_run(id, frame); }
#include "abi/lamella_ops.def"
#undef LAM_OP
