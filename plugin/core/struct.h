/* struct.h: the rule of every public struct, in one place.
 * A caller built for an older library hands in fewer bytes, one built for a newer library more;
 * what this library does not know must be zero, so that nothing a caller asks for is silently
 * ignored. Leaves fields to their users. */
#ifndef LAMELLA_PLUGIN_CORE_STRUCT_H
#define LAMELLA_PLUGIN_CORE_STRUCT_H

#include "abi/status.h"

/* who: the function ("lam_run"); name: the struct ("lam_call"); s: starts with its struct_size;
 * known: this library's size. */
lam_status lam_struct_check(const char *who, const char *name, const void *s, uint32_t known);

#endif
