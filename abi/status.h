/* status.h: how every layer fails. The first to know writes the message with lam_fail; everyone
 * else passes it on with LAM_TRY.
 * Invariant: a status other than LAM_OK that leaves a function was written by lam_fail on this
 * thread.
 * Leaves keeping a message on a handle (work that fails later) to the handle's owner. */
#ifndef LAMELLA_ABI_STATUS_H
#define LAMELLA_ABI_STATUS_H

#include "abi/lamella.h"

#define LAM_MESSAGE_BYTES 512

/* Writes this thread's message and returns `code`. Never LAM_OK. */
lam_status lam_fail(lam_status code, const char *format, ...) __attribute__((format(printf, 2, 3)));

/* Puts "context: " before this thread's message, when a layer above knows what the first one could
 * not. Returns `code`. */
lam_status lam_fail_within(lam_status code, const char *format, ...)
    __attribute__((format(printf, 2, 3)));

#define LAM_TRY(expr)                              \
  do {                                             \
    const lam_status try_status_ = (expr);         \
    if (try_status_ != LAM_OK) return try_status_; \
  } while (0)

#endif
