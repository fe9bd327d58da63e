/* foreign.h: what a foreign function's signature says once it is read, for foreign.c and
 * foreign_parse.c.
 * Invariant: a parsed signature holds no unknown name and no type its name cannot have; tensor
 * numbers and dimensions are checked when called, as only then the tensors are there. */
#ifndef LAMELLA_PLUGIN_PIPELINE_RUN_FOREIGN_H
#define LAMELLA_PLUGIN_PIPELINE_RUN_FOREIGN_H

#include <stdbool.h>
#include <stddef.h>

#include "abi/status.h"

#define LAM_FOREIGN_MAX_ARGS 32

typedef enum lam_foreign_type {
  LAM_FOREIGN_P,
  LAM_FOREIGN_I32,
  LAM_FOREIGN_I64,
  LAM_FOREIGN_F32,
  LAM_FOREIGN_F64,
  LAM_FOREIGN_VOID,
  LAM_FOREIGN_N_TYPES
} lam_foreign_type;
extern const char *const lam_foreign_type_names[LAM_FOREIGN_N_TYPES];

typedef enum lam_foreign_source { /* where an argument's value comes from */
                                  LAM_FOREIGN_DATA,
                                  LAM_FOREIGN_DIM,
                                  LAM_FOREIGN_NUMEL, /* of a tensor */
                                  LAM_FOREIGN_MICRO,
                                  LAM_FOREIGN_STAGE,
                                  LAM_FOREIGN_STEP,
                                  LAM_FOREIGN_USER,
                                  LAM_FOREIGN_LOSS,
                                  LAM_FOREIGN_STREAM,
                                  LAM_FOREIGN_VALUE /* given at create */
} lam_foreign_source;

typedef struct lam_foreign_arg {
  lam_foreign_type type;
  lam_foreign_source source;
  bool of_output; /* DATA, DIM, NUMEL: of out<index>, else in<index> */
  int index;      /* tensor, or value */
  int dim;        /* DIM */
  int column;     /* of its first character in the signature, from 1 */
  int width;      /* characters, for messages */
} lam_foreign_arg;

typedef struct lam_foreign_signature {
  lam_foreign_arg args[LAM_FOREIGN_MAX_ARGS];
  int n_args;
  lam_foreign_type result;
} lam_foreign_signature;

/* Fails naming the column (from 1) where the text stops making sense. */
lam_status lam_foreign_parse(const char *text, lam_foreign_signature *out);

#endif
