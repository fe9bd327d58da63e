/* ops.h: what dispatch hands an operator: checked views in the row's order, attributes by name, the
 * group, the device.
 *
 * Invariant: everything here was checked by plugin/core: counts, dtypes, device, layout, overlap,
 * output shapes. An operator still checks what only it knows, sizes that must agree between inputs,
 * and says so with lam_fail.
 * Leaves sums and transfers to comm/, products and elementwise work to kernels/. */
#ifndef LAMELLA_PLUGIN_OPS_OPS_H
#define LAMELLA_PLUGIN_OPS_OPS_H

#include "plugin/comm/group.h"

#define LAM_MAX_INPUTS 8
#define LAM_MAX_OUTPUTS 8

typedef struct lam_op_attrs { /* one field per attribute name of lamella_ops.def */
  int64_t group;              /* the handle; lam_op_call has the group */
  int64_t act;                /* lam_act */
  int64_t save, gather, seq, total, unit, chunks, split, acc, gated;
  int64_t dim, root, peer, kind, tag, codec, side, cols, ignore;
  int64_t dtype; /* lam_dtype, or -1 = as the first input */
  double eps;
  const int64_t *shape; /* recv_activation */
  int32_t n_shape;
} lam_op_attrs;

typedef struct lam_op_call {
  uint32_t op;
  const char *name;
  lam_context *ctx;
  const lam_workers *workers;
  const lam_device *device;
  lam_group *group; /* NULL: none; size 1 is treated alike */
  lam_op_attrs attr;
  const DLTensor *in_tensor[LAM_MAX_INPUTS]; /* as handed over; NULL = absent */
  DLTensor *out_tensor[LAM_MAX_OUTPUTS];
  lam_matrix in[LAM_MAX_INPUTS]; /* leading dimensions flattened: [T, last]; 1-D is [1, n] */
  lam_matrix out[LAM_MAX_OUTPUTS];
  void *stream;
  void *scratch; /* the caller's, or NULL */
  uint64_t scratch_bytes;
  uint32_t flags; /* LAM_CALL_... */
  char *why; /* NULL, or where it is said why the call is cut into so many chunks; lam_infer's */
} lam_op_call;

typedef lam_status (*lam_op_fn)(const lam_op_call *call);

/* Scratch an operator needs for a call of these shapes, and how many row chunks it would use. Also
 * asked by lam_infer: then there is no data, no output tensor, and sizes were not held against each
 * other. */
typedef struct lam_op_needs {
  uint64_t scratch_bytes;
  uint32_t n_chunks;
} lam_op_needs;
typedef void (*lam_op_needs_fn)(const lam_op_call *call, lam_op_needs *out);

/* Filled by each operator's file; one entry per row, found by id. */
typedef struct lam_op_entry {
  uint32_t op;
  lam_op_fn run;
  lam_op_needs_fn needs; /* NULL: no scratch, one chunk */
} lam_op_entry;
const lam_op_entry *lam_op_entry_find(uint32_t op); /* plugin/ops/table.c */

#endif
