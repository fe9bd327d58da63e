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
  int64_t least, most;
  lam_status (*set)(lam_who who, const lam_attr_field *f, const lam_attr *given, void *to);
};

const lam_attr_field *lam_attr_field_find(const char *name); /* NULL: no such attribute */
lam_status lam_attr_bind(lam_who who, const lam_attr_field *f, const lam_attr *given,
                         lam_op_attrs *out);

#endif
