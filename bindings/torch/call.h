/* call.h: one call of an operator, from torch's stack of arguments to its stack of results. */
#ifndef LAMELLA_BINDINGS_TORCH_CALL_H
#define LAMELLA_BINDINGS_TORCH_CALL_H

#include "bindings/torch/schema.h"

/* The lam_torch_kernel of a row, or, into its last arguments, of its overload `out`. A failure
 * becomes torch's exception, with Lamella's message. */
void lam_torch_run(const lam_torch_row *row, uint64_t *stack, bool into);

#endif
