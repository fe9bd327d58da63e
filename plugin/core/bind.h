/* bind.h: the arguments of one call, one after the other, checked and turned into what operators
 * take.
 * Invariant: after lam_bind_call every field of `op` that the row has is set, but for the outputs;
 * lam_bind_outputs sets those, lam_bind_shapes says what they should be.
 * Leaves choosing and running the operator to dispatch.c. */
#ifndef LAMELLA_PLUGIN_CORE_BIND_H
#define LAMELLA_PLUGIN_CORE_BIND_H

#include "plugin/core/row.h"

typedef struct lam_binding {
  const lam_row *row;
  const lam_call *call;
  bool data;       /* false: pointers are not looked at (lam_infer) */
  lam_dtype first; /* the dtype of the row's leader */
  DLDevice place;  /* where the first input lies */
  lam_shape shapes[LAM_MAX_OUTPUTS];
  lam_reach in_reach[LAM_MAX_INPUTS], out_reach[LAM_MAX_OUTPUTS]; /* of those that are there */
  lam_op_call op;
} lam_binding;

/* Once it is bound, the call holds its group until it is closed. */
lam_status lam_bind_call(lam_binding *b, lam_context *ctx, const lam_call *call, bool data);
void lam_bind_close(lam_binding *b);
lam_status lam_bind_shapes(lam_binding *b);
lam_status lam_bind_outputs(lam_binding *b);
lam_status lam_bind_inferred(lam_binding *b); /* outputs as they would be, without memory */

/* bind_dtypes.c: input i's dtype; all scales of an fp8 call; attribute dtype, where it is given. */
lam_status lam_bind_dtype(const lam_binding *b, int i, lam_dtype t);
lam_status lam_bind_scales(const lam_binding *b);
lam_status lam_bind_result_dtype(const lam_binding *b);

/* A tensor must lie where the first input does; elsewhere says where it was found. */
static inline bool lam_bind_is_here(const lam_binding *b, DLDevice d) {
  return d.device_type == b->place.device_type && d.device_id == b->place.device_id;
}
lam_status lam_bind_elsewhere(const lam_binding *b, lam_who who, DLDevice device);

#endif
