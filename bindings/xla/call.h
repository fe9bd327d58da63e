/* call.h: one operator's call as XLA makes it.
 * Invariant: never throws, never aborts; an error is XLA's to free. Leaves names to handlers.c. */
#ifndef LAMELLA_BINDINGS_XLA_CALL_H
#define LAMELLA_BINDINGS_XLA_CALL_H

#include "bindings/xla/ffi.h"

xla_error *xla_call_run(uint32_t op, xla_frame *frame); /* NULL: it went well */

#endif
