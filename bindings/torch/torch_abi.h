/* torch_abi.h: libtorch's stable C layer, declared by ourselves and found at run time.
 *
 * Nothing here is linked or compiled against torch, so one build serves every torch from 2.10 on.
 * Invariant: after lam_torch_open has said LAM_OK every function with `since` 0 is there.
 * Leaves what is done with tensors to call.c, registration to register.c. */
#ifndef LAMELLA_BINDINGS_TORCH_TORCH_ABI_H
#define LAMELLA_BINDINGS_TORCH_TORCH_ABI_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "abi/lamella.h"

/* What the handles point to is torch's. */
typedef struct lam_torch_tensor_ *lam_torch_tensor;
typedef struct lam_torch_string_ *lam_torch_string;
typedef struct lam_torch_list_ *lam_torch_list;
typedef struct lam_torch_library_ *lam_torch_library;
/* Arguments lie on the stack, owned by the kernel, and results replace them from 0 on. */
typedef void (*lam_torch_kernel)(uint64_t *stack, uint64_t n_in, uint64_t n_out);

typedef struct lam_torch_abi {
#define LAM_TORCH(since, result, name, arguments) result(*name) arguments;
#include "bindings/torch/torch_abi.def"
#undef LAM_TORCH
  void (*delete_cell)(void *); /* C++'s operator delete: what freed an optional before 2.13 */
} lam_torch_abi;

extern lam_torch_abi lam_torch;

#define LAM_TORCH_BUILT_FOR (2ull << 56 | 10ull << 48) /* whose calling rules the kernels follow */

/* Finds the functions in the libtorch that this process has loaded; NULL, or what is wrong. */
const char *lam_torch_open(void);

#endif
