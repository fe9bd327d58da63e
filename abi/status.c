/* status.c: the thread's last message and the names of the codes.
 * Invariant: lam_fail allocates nothing, so it works when memory is gone.
 * Leaves codes and reasons themselves to lamella.h. */
#include "abi/status.h"

#include <stdarg.h>
#include <stdio.h>
#include <string.h>

static _Thread_local char last_error[LAM_MESSAGE_BYTES];

const char *lam_last_error(void) { return last_error; }

lam_status lam_fail(lam_status code, const char *format, ...) {
  char text[sizeof last_error]; /* an argument may be the last message itself */
  va_list args;
  va_start(args, format);
  vsnprintf(text, sizeof text, format, args);
  va_end(args);
  strcpy(last_error, text);
  return code;
}

lam_status lam_fail_within(lam_status code, const char *format, ...) {
  char outer[LAM_MESSAGE_BYTES];
  va_list args;
  va_start(args, format);
  vsnprintf(outer, sizeof outer - 2, format, args); /* room for ": " */
  va_end(args);
  strcat(outer, ": ");
  const size_t n = strlen(outer), room = sizeof last_error - n - 1;
  memmove(last_error + n, last_error, room);
  memcpy(last_error, outer, n);
  last_error[sizeof last_error - 1] = 0;
  return code;
}

static const struct {
  lam_status code;
  const char *name;
} names[] = {
    {LAM_OK, "OK"},
    {LAM_CANCELLED, "CANCELLED"},
    {LAM_INVALID_ARGUMENT, "INVALID_ARGUMENT"},
    {LAM_DEADLINE_EXCEEDED, "DEADLINE_EXCEEDED"},
    {LAM_NOT_FOUND, "NOT_FOUND"},
    {LAM_RESOURCE_EXHAUSTED, "RESOURCE_EXHAUSTED"},
    {LAM_FAILED_PRECONDITION, "FAILED_PRECONDITION"},
    {LAM_UNIMPLEMENTED, "UNIMPLEMENTED"},
    {LAM_INTERNAL, "INTERNAL"},
    {LAM_UNAVAILABLE, "UNAVAILABLE"},
    {LAM_MISMATCH, "MISMATCH"},
    {LAM_PEER_DEAD, "PEER_DEAD"},
    {LAM_PEER_STALLED, "PEER_STALLED"},
    {LAM_WOULD_BLOCK, "WOULD_BLOCK"},
    {LAM_POISONED, "POISONED"},
    {LAM_INTERRUPTED, "INTERRUPTED"},
};

const char *lam_status_name(lam_status s) {
  for (size_t i = 0; i < sizeof names / sizeof names[0]; i++)
    if (names[i].code == s) return names[i].name;
  return "UNKNOWN";
}
