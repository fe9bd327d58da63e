/* tensor.h: from a host's DLTensor to a lam_matrix, through every check; DLTensor stops here.
 *
 * Invariant: what comes out of lam_tensor_matrix can be read (or written) as it says without
 * reaching outside of what the DLTensor describes, and no size computed from it overflows.
 * Leaves which dtypes, shapes and overlaps a call wants to dispatch.c. */
#ifndef LAMELLA_PLUGIN_CORE_TENSOR_H
#define LAMELLA_PLUGIN_CORE_TENSOR_H

#include "kernels/device.h"

#define LAM_MAX_DIMS 8

/* Which argument of which call is spoken of: messages begin "op: arg: ". */
typedef struct lam_who {
  const char *op, *arg;
} lam_who;
lam_status lam_refuse(lam_who who, const char *format, ...)
    __attribute__((format(printf, 2, 3), cold));

bool lam_dtype_from_dlpack(DLDataType t, lam_dtype *out);
DLDataType lam_dtype_to_dlpack(lam_dtype t);

/* From a matrix's first byte to its last: most matrices are told apart by this alone. */
typedef struct lam_reach {
  const char *begin, *end;
} lam_reach;

/* Most tensors: f32 or bf16, one or two dimensions, contiguous rows, no offset, sizes so far from
 * any limit that nothing needs counting. Whatever is not so at a glance is studied, which has the
 * same result. Measured: 7 of 28 ns a tensor. */
bool lam_tensor_glance(const DLTensor *t, lam_matrix *out, lam_reach *out_reach);
lam_status lam_tensor_study(lam_who who, const DLTensor *t, bool data, bool either, lam_matrix *out,
                            lam_reach *out_reach);
/* Checks all that needs no knowledge of the call (dimensions, dtype, strides, offset, data) and
 * gives the view: [..., n] as [T, n], a vector as [1, n]. The last dimension must be contiguous;
 * with `either`, for weights, it or the one before. Rows must not overlap. With `data` false
 * pointers are not looked at (lam_infer) and the view has none. */
static inline lam_status lam_tensor_matrix(lam_who who, const DLTensor *t, bool data, bool either,
                                           lam_matrix *out, lam_reach *out_reach) {
  if (data && lam_tensor_glance(t, out, out_reach)) return LAM_OK;
  return lam_tensor_study(who, t, data, either, out, out_reach);
}

/* Whether two matrices share a byte. Passed by address: a view that was just written is slow to
 * copy (its words are still on their way to memory). */
bool lam_matrices_meet(const lam_matrix *a, const lam_matrix *b);

static inline bool lam_reach_meets(const lam_reach *a, const lam_reach *b) {
  return a->begin < b->end && b->begin < a->end;
}

/* "[3, 4] f32" in buf. */
#define LAM_SHAPE_TEXT 160
const char *lam_shape_text(const int64_t *dims, int ndim, DLDataType dtype,
                           char buf[LAM_SHAPE_TEXT]);
const char *lam_device_text(DLDevice device, char buf[32]); /* "cuda:0" */

#endif
