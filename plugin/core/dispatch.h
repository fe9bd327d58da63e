/* dispatch.h: a lam_call, checked against its row, becomes a lam_op_call and runs.
 * Invariant: nothing is written, announced to peers or allocated before every check has passed.
 * Leaves struct_size and NULL arguments to abi/abi.c, arithmetic to the operators. */
#ifndef LAMELLA_PLUGIN_CORE_DISPATCH_H
#define LAMELLA_PLUGIN_CORE_DISPATCH_H

#include "plugin/core/context.h"

lam_status lam_dispatch_run(lam_context *ctx, const lam_call *call);
lam_status lam_dispatch_infer(lam_context *ctx, const lam_call *call, lam_inferred *out);

#endif
