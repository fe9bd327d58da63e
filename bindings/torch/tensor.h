/* tensor.h: torch's tensors as DLTensors, and new ones.
 * Every function gives NULL, or what went wrong. Leaves who owns a handle to call.c. */
#ifndef LAMELLA_BINDINGS_TORCH_TENSOR_H
#define LAMELLA_BINDINGS_TORCH_TENSOR_H

#include "bindings/torch/torch_abi.h"

#define LAM_TORCH_MAX_DIMS 8

/* Asks torch for its numbers of dtypes and devices, once, after lam_torch_open. */
void lam_torch_learn_numbers(void);

/* Borrows data, shape and strides of t as they are. Another device than CPU or CUDA is refused. */
const char *lam_torch_view(lam_torch_tensor t, DLTensor *out);

/* A new contiguous tensor; *view shows it, with dims, which are borrowed. */
const char *lam_torch_empty(DLDevice device, DLDataType dtype, int32_t ndim, const int64_t *dims,
                            lam_torch_tensor *out, DLTensor *view);

/* *t becomes a contiguous copy, which *view then shows. */
const char *lam_torch_copy(lam_torch_tensor *t, DLTensor *view);

/* Whether the library reads such a tensor where it lies; one without elements it always does. */
bool lam_torch_readable(const DLTensor *t, bool weight);
bool lam_torch_has_elements(const DLTensor *t);

/* The stream that torch's work on this device goes to: NULL on CPU. */
const char *lam_torch_stream(DLDevice device, void **out);

#endif
