/* row.h: the rows of lamella_ops.def, read once into structs.
 *
 * Invariant: a row that lam_row_find gives is whole: names known, attributes mapped to
 * lam_op_attrs, shape rules compiled. lam_rows_check says what is wrong with the table; a test
 * calls it, so that a bad row never ships.
 * Leaves running shape programs to shape.c, calls to dispatch.c. */
#ifndef LAMELLA_PLUGIN_CORE_ROW_H
#define LAMELLA_PLUGIN_CORE_ROW_H

#include "plugin/core/attrs.h"
#include "plugin/core/shape.h"

#define LAM_MAX_ATTRS 12
#define LAM_NAME_BYTES 8

/* What a tensor is, told by its name. */
typedef enum lam_role {
  LAM_ROLE_ACTIVATION, /* [..., n] */
  LAM_ROLE_WEIGHT,     /* [N, K], either dimension contiguous; as an input also packed */
  LAM_ROLE_BIAS,       /* [N]: a bias, or a norm's gain */
  LAM_ROLE_SCALE,      /* f32 [1], for fp8 */
  LAM_ROLE_TOKEN,      /* f32 [1] */
  LAM_ROLE_PACKED,     /* uint8 [R, cols], written by pack_weight */
  LAM_ROLE_INDEX,      /* [...] of int32 or int64 */
  LAM_ROLE_VALUE,      /* [...] of f32: one number per token */
} lam_role;

typedef struct lam_row_tensor {
  char name[LAM_NAME_BYTES];
  lam_role role;
  bool optional, accumulated, any_dtype, in_place; /* marks ? + * ~ */
  int ndim;                                        /* what its role wants; -1 = any */
  lam_shape_rule shape;                            /* outputs only */
} lam_row_tensor;

typedef struct lam_row_attr {
  char name[LAM_NAME_BYTES];
  const lam_attr_field *field;
} lam_row_attr;

typedef struct lam_row lam_row;
struct lam_row {
  uint32_t id;
  const char *name;
  int n_in, n_out, n_attrs;
  int n_unscaled; /* inputs up to the last that is no scale: only fp8 calls look behind them */
  bool communicates;
  bool scaled;    /* it takes scales, and so fp8 */
  int packed_side; /* which packing its weights want: rows that start from dy want 1 */
  int leader; /* the input that gives the dtype: the first activation or weight, else the first */
  lam_row_tensor in[LAM_MAX_INPUTS], out[LAM_MAX_OUTPUTS];
  lam_row_attr attrs[LAM_MAX_ATTRS];
  lam_op_attrs standard; /* every attribute's default */
  lam_shape_code code[LAM_ROW_CODE];
  int n_code;
};

/* The strings of one LAM_OP, parsed. On failure the message names row, part and position. */
typedef struct lam_row_text {
  uint32_t id;
  const char *name, *inputs, *outputs, *attributes, *shapes, *effect;
} lam_row_text;
lam_status lam_row_parse(const lam_row_text *text, lam_row *out);

const lam_row *lam_row_find(uint32_t op); /* NULL: no such operator */
lam_status lam_rows_check(void);          /* the whole table; the first error found */
lam_status lam_row_find_name(const char *name, uint32_t *out_op);
const char *lam_row_words(uint32_t op); /* the row as text, or NULL */

#endif
