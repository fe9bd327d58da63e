/* lt.h: what the files of the stand-in for cuBLASLt share.
 *
 * Invariant: a problem that lt_rules.c lets pass can be computed by lt_run.c; matrices are as
 * cuBLASLt has them, by columns unless they say otherwise.
 * Leaves descriptors and calls to lt.c. */
#ifndef LAMELLA_TESTS_STANDIN_LT_H
#define LAMELLA_TESTS_STANDIN_LT_H

#include <cublasLt.h>

#include "tests/standin/inside.h"

#pragma GCC visibility push(hidden)

typedef struct lt_layout {
  int32_t type, order;
  uint64_t rows, cols;
  int64_t ld;
  int32_t batch;
} lt_layout;

typedef struct lt_desc {
  int32_t compute, scale_type, transa, transb, bias_type, aux_type, sm_target, pointer_mode;
  uint32_t epilogue;
  int64_t aux_ld;
  int8_t fast_accum;
  void *bias, *aux;
  const void *a_scale, *b_scale;
} lt_desc;

typedef struct lt_preference {
  uint64_t workspace;
  uint32_t search, reductions;
  uint32_t align[4]; /* of A, B, C, D */
} lt_preference;

typedef struct lt_problem {
  lt_desc desc;
  lt_layout a, b, c, d;
  uint64_t m, n, k;
} lt_problem;

enum { LT_F8_FROM_SM = 89 };

int lt_bytes(int32_t type); /* of an element; 0: not here */
bool lt_is_f8(int32_t type);
/* Does the epilogue have this part? */
bool lt_has_bias(uint32_t epilogue);
bool lt_has_gelu(uint32_t epilogue);
bool lt_has_dgelu(uint32_t epilogue);
bool lt_has_aux(uint32_t epilogue);
bool lt_has_sum(uint32_t epilogue); /* of columns of D, or of K in A or B: to the bias pointer */
int32_t lt_bias_type(const lt_problem *p);

/* Sizes that fit, and all that no algorithm takes. */
cublasStatus_t lt_check(lt_problem *p);
/* Those that can do it, as (id, workspace); ids are 1 .. 3 */
typedef struct lt_choice {
  int id;
  uint64_t workspace;
} lt_choice;
int lt_choices(const lt_problem *p, const lt_preference *pref, lt_choice out[3]);
cublasStatus_t lt_check_choice(const lt_problem *p, int id, uint64_t *out_workspace);
/* The alignment in bytes that the algorithm asks of A, B, C, D. */
unsigned lt_alignment(int id, int32_t type);

typedef struct lt_operands {
  float alpha, beta;
  const void *a, *b, *c;
  void *d, *workspace;
} lt_operands;

/* Queues it: all was checked. */
cudaError_t lt_queue(si_stream *s, const lt_problem *p, const lt_operands *o, int id);
/* Do the operands lie where the device reaches them? A report where not. */
cudaError_t lt_check_places(const lt_problem *p, const lt_operands *o, int id, int device,
                            const char *who);

#pragma GCC visibility pop

#endif
