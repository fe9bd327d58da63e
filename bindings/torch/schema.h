/* schema.h: rows of the operator table as torch sees them.
 *
 * Arguments are the row's inputs (`?` becomes Tensor?), then its attributes but `acc` (a result is
 * always a new tensor), then one int for each optional output whose shape rule does not decide
 * whether it is there: 1 = wanted. Results are the row's outputs, in order; one that is absent is
 * a tensor of size 0. Where no result may be absent, the overload `out` takes tensors for them, by
 * the name of the output (out_ before it where an input has that name), and gives those.
 * Leaves shapes to lam_infer, calls to call.c. */
#ifndef LAMELLA_BINDINGS_TORCH_SCHEMA_H
#define LAMELLA_BINDINGS_TORCH_SCHEMA_H

#include <stdbool.h>
#include <stdint.h>

#define LAM_TORCH_MAX_TENSORS 8
#define LAM_TORCH_MAX_ATTRS 12
#define LAM_TORCH_SCHEMA 512 /* bytes */

typedef struct lam_torch_row {
  uint32_t id;
  const char *name;
  int n_in, n_out, n_attrs;
  bool optional[LAM_TORCH_MAX_TENSORS]; /* inputs */
  bool weight[LAM_TORCH_MAX_TENSORS];   /* inputs that may have either dimension contiguous */
  bool asked[LAM_TORCH_MAX_TENSORS];    /* outputs that an argument asks for */
  char attr_type[LAM_TORCH_MAX_ATTRS];  /* i, f, s or I; 0 = acc, which torch does not see */
  char schema[LAM_TORCH_SCHEMA];
  char into[LAM_TORCH_SCHEMA]; /* the schema of the overload `out`; "" where there is none */
} lam_torch_row;

/* The row's strings, as in lamella_ops.def. False: the row is beyond the limits above. */
bool lam_torch_row_read(uint32_t id, const char *name, const char *inputs, const char *outputs,
                        const char *attributes, const char *shapes, lam_torch_row *out);

#endif
