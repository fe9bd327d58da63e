/* call.h: one operator's call as XLA makes it.
 * Invariant: never throws, never aborts; an error is XLA's to free. Leaves names to handlers.c. */
#ifndef LAMELLA_BINDINGS_XLA_CALL_H
#define LAMELLA_BINDINGS_XLA_CALL_H

#include "bindings/xla/ffi.h"

typedef enum xla_platform { XLA_PLATFORM_CPU, XLA_PLATFORM_CUDA } xla_platform;

/* NULL: it went well. */
xla_error *xla_call_run(uint32_t op, xla_platform platform, xla_frame *frame);

#endif
