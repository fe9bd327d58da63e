/* struct.c: struct_size, checked.
 * Invariant: reads at most struct_size bytes, and none past the first four before struct_size was
 * judged.
 * Leaves fields to their users. */
#include "plugin/core/struct.h"

#include <stddef.h>

#define LARGEST \
  4096u /* no struct of ours comes near: a larger size is memory that was never initialised */

lam_status lam_struct_check(const char *who, const char *name, const void *s, uint32_t known) {
  if (!s) return lam_fail(LAM_INVALID_ARGUMENT, "%s: %s is NULL", who, name);
  const uint32_t size = *(const uint32_t *)s;
  if (size == known) return LAM_OK;
  if (size < known || size > LARGEST)
    return lam_fail(LAM_INVALID_ARGUMENT,
                    "%s: %s: struct_size is %u, expected %u (its _INIT macro sets it)", who, name,
                    size, known);
  for (uint32_t i = known; i < size; i++)
    if (((const uint8_t *)s)[i])
      return lam_fail(LAM_UNIMPLEMENTED,
                      "%s: %s: byte %u is not zero, and this library knows only %u: it is older "
                      "than the caller",
                      who, name, i, known);
  return LAM_OK;
}
