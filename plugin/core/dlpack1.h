/* dlpack1.h: what DLPack 1.x adds to the 0.6 that Debian ships, under names of our own, so that a
 * newer dlpack.h may stand beside it in one translation unit.
 * Invariant: layouts are those of DLPack 1.x, which promises them (up to `flags`) over all later
 * majors. */
#ifndef LAMELLA_PLUGIN_CORE_DLPACK1_H
#define LAMELLA_PLUGIN_CORE_DLPACK1_H

#include <dlpack/dlpack.h>
#include <stddef.h>
#include <stdint.h>

#define LAM_DLPACK_MAJOR 1u

#define LAM_DLPACK_READ_ONLY 1u
#define LAM_DLPACK_IS_COPIED 2u
#define LAM_DLPACK_SUBBYTE_PADDED 4u
#define LAM_DLPACK_KNOWN_FLAGS 7u

typedef struct lam_dlpack_version {
  uint32_t major, minor;
} lam_dlpack_version;

struct DLManagedTensorVersioned;
typedef struct lam_dlpack_versioned { /* DLManagedTensorVersioned */
  lam_dlpack_version version;
  void *manager_ctx;
  void (*deleter)(struct DLManagedTensorVersioned *self);
  uint64_t flags;
  DLTensor dl_tensor;
} lam_dlpack_versioned;

_Static_assert(sizeof(DLDeviceType) == 4, "DLDeviceType is int32_t in C++");
_Static_assert(sizeof(DLTensor) == 48 && offsetof(DLTensor, byte_offset) == 40,
               "DLTensor's layout");
_Static_assert(offsetof(lam_dlpack_versioned, flags) == 24 &&
                   offsetof(lam_dlpack_versioned, dl_tensor) == 32,
               "DLManagedTensorVersioned's layout");

/* dtype codes; 0.6 names the first few only */
enum {
  LAM_DL_INT = 0,
  LAM_DL_UINT = 1,
  LAM_DL_FLOAT = 2,
  LAM_DL_BFLOAT = 4,
  LAM_DL_FLOAT8_E4M3FN = 10,
  LAM_DL_FLOAT8_E5M2 = 12,
};

#endif
