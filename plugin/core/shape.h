/* shape.h: the shape rules of lamella_ops.def (its opening comment is the grammar), compiled and
 * run.
 *
 * A rule becomes a few steps of a stack machine: values are pushed, dimensions emitted, choices
 * jump.
 * Invariant: a compiled rule stays inside its stack and names only inputs and attributes of its
 * row; what depends on the call (a dimension that is not there, a total that no unit divides) is
 * refused when it runs.
 * Leaves rows to row.c, checks of the tensors it reads to dispatch.c. */
#ifndef LAMELLA_PLUGIN_CORE_SHAPE_H
#define LAMELLA_PLUGIN_CORE_SHAPE_H

#include "kernels/device.h"
#include "plugin/core/tensor.h"

#define LAM_ROW_CODE 160             /* steps of all of a row's rules together */
#define LAM_SHAPE_DEPTH 8            /* values on the stack */
#define LAM_SHAPE_OPEN_END INT16_MAX /* x[a:] */

typedef enum lam_shape_step {
  LAM_SHAPE_END,
  LAM_SHAPE_NUMBER, /* push value */
  LAM_SHAPE_ATTR,   /* push the attribute at `at` */
  LAM_SHAPE_DIM,    /* pop i, push input[i] */
  LAM_SHAPE_ROWS,   /* push N(input) */
  LAM_SHAPE_COLS,   /* push K(input) */
  LAM_SHAPE_SIZE,   /* push the group's size */
  LAM_SHAPE_SHARE,  /* pop unit and total, push this rank's share */
  LAM_SHAPE_PIECES, /* pop b and a, push how many pieces of b cover a */
  LAM_SHAPE_ADD,    /* pop b and a, push a + b; so the next three */
  LAM_SHAPE_SUB,
  LAM_SHAPE_MUL,
  LAM_SHAPE_DIV,
  LAM_SHAPE_EMIT,      /* pop a dimension of the output */
  LAM_SHAPE_EMIT_ROWS, /* emit N(input): most rules end with it */
  LAM_SHAPE_SLICE,     /* pop end and begin, emit input[begin:end] */
  LAM_SHAPE_SLICE_AT,  /* the same with two numbers: begin and end are the halves of value */
  LAM_SHAPE_INTS,      /* emit the attribute `shape` */
  LAM_SHAPE_COPY,      /* emit all of input's dimensions */
  LAM_SHAPE_NONE,      /* the output is absent */
  LAM_SHAPE_JUMP,      /* go to `value` */
  LAM_SHAPE_JUMP_IF_0, /* pop, go to `value` if 0 */
  LAM_SHAPE_UNLESS,    /* go to `value` if the attribute at `at` is 0 */
  LAM_SHAPE_N_STEPS
} lam_shape_step;

typedef struct lam_shape_code {
  uint8_t step;  /* lam_shape_step */
  uint8_t input; /* which input, where the step names one */
  uint16_t at;   /* an attribute's place in lam_op_attrs */
  int32_t value; /* a number, or a jump's target */
} lam_shape_code;

typedef enum lam_dtype_rule {
  LAM_AS_FIRST,
  LAM_AS_INPUT,
  LAM_AS_ATTR,
  LAM_AS_NAMED
} lam_dtype_rule;

typedef struct lam_shape_rule {
  uint16_t first;   /* where its steps begin in the row's code */
  bool may_be_none; /* the rule decides whether the output is there, not the caller */
  int8_t as;        /* the input of `as x`, or -1 */
  int16_t only_if;  /* {$attr?..:none}: where attr lies in lam_op_attrs; -1 = no such rule */
  lam_dtype_rule dtype_rule;
  lam_dtype dtype; /* LAM_AS_NAMED */
} lam_shape_rule;

struct lam_row;
struct lam_op_attrs;

/* Compiles all of a row's rules into its code; names and attributes of the row are there already.
 * */
lam_status lam_shapes_compile(const char *text, struct lam_row *row);

/* What a rule needs to know of a call. */
typedef struct lam_shape_env {
  const DLTensor *const *in; /* the row's inputs; those a rule names are there */
  const struct lam_op_attrs *attrs;
  int rank, size;
} lam_shape_env;

/* ndim -1: the output is absent. */
lam_status lam_shape_run(const struct lam_row *row, int output, const lam_shape_env *env,
                         lam_shape *out);

#endif
