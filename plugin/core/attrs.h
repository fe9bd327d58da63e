/* attrs.h: a call's attributes by name, type and range, into lam_op_attrs.
 * Invariant: a value that reaches an operator is in its field's range, or the default of the row.
 * Leaves numbers that depend on tensors or on the group to shape rules and operators. */
#ifndef LAMELLA_PLUGIN_CORE_ATTRS_H
#define LAMELLA_PLUGIN_CORE_ATTRS_H

#include "plugin/core/tensor.h"
#include "plugin/ops/ops.h"

typedef struct lam_attr_field lam_attr_field;
struct lam_attr_field { /* one attribute name of the operator table */
  const char *name;
  char type;       /* i f s I, as in the table */
  uint16_t offset; /* in lam_op_attrs */
  int64_t least, most; /* least > most: no int is stored as it is */
  /* NULL: an int in that range */
  lam_status (*set)(lam_who who, const lam_attr_field *f, const lam_attr *given, void *to);
};

const lam_attr_field *lam_attr_field_find(const char *name); /* NULL: no such attribute */
lam_status lam_attr_bind(lam_who who, const lam_attr_field *f, const lam_attr *given,
                         lam_op_attrs *out);

/* act "", dtype 0: the default. */
static inline bool lam_attr_is_nothing(const lam_attr_field *f, const lam_attr *given) {
  if (given->type == LAM_ATTR_INT) return f->type == 'i' && given->v.i == 0;
  return given->type == LAM_ATTR_STRING && f->type == 's' && given->n == 0;
}

/* Most attributes are good ints, or nothing: 2 to 3 ns less each than the careful way, which has
 * the same result. */
static inline bool lam_attr_bind_plain(const lam_attr_field *f, const lam_attr *given,
                                       lam_op_attrs *out) {
  const int64_t v = given->v.i;
  if (given->type != LAM_ATTR_INT || v < f->least || v > f->most)
    return f->set && lam_attr_is_nothing(f, given);
  *(int64_t *)((char *)out + f->offset) = v;
  return true;
}

#endif
