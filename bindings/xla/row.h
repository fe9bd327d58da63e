/* row.h: a row of the operator table as XLA passes it: how many buffers, which may be absent, which
 * attribute stands where.
 * Invariant: rows are read once, from the library's own words (lam_op_row), and never change.
 * Leaves types and ranges of attributes to the library. */
#ifndef LAMELLA_BINDINGS_XLA_ROW_H
#define LAMELLA_BINDINGS_XLA_ROW_H

#include <stdbool.h>
#include <stddef.h>
#include "abi/lamella.h"

#define XLA_MAX_TENSORS 16
#define XLA_MAX_ATTRS 16

typedef struct xla_word { /* in the row's words, without a NUL */
  const char *ptr;
  size_t len;
} xla_word;

typedef struct xla_row {
  const char *words;
  int n_in, n_out, n_attrs;
  bool in_optional[XLA_MAX_TENSORS], out_optional[XLA_MAX_TENSORS];
  bool communicates,
      own_token; /* a communicating row without a token gets one as its last tensor */
  int group;     /* where its group stands among the attributes; -1 = it has none */
  xla_word attrs[XLA_MAX_ATTRS];
} xla_row;

const xla_row *xla_row_find(uint32_t op); /* NULL: no such operator */

#endif
