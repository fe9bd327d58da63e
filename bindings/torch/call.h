/* call.h: one call of an operator, from torch's stack of arguments to its stack of results. */
#ifndef LAMELLA_BINDINGS_TORCH_CALL_H
#define LAMELLA_BINDINGS_TORCH_CALL_H

#include "abi/lamella.h"
#include "bindings/torch/schema.h"

/* The lam_torch_kernel of a row, or, into its last arguments, of its overload `out`. A failure
 * becomes torch's exception, with Lamella's message. */
void lam_torch_run(const lam_torch_row *row, uint64_t *stack, bool into);

/* Who knows whether torch's f32 products on CUDA may be tf32 now; asked for each call of f32 there.
 * NULL, as at first: they may not. */
LAM_API void lamella_torch_ask_tf32(int (*ask)(void));

#endif
