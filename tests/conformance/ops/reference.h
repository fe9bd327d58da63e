/* reference.h: what every row of the operator table means, in double precision, written without the
 * library: whole operands in, whole results out, and where each rank's part of them lies.
 *
 * A number carries a bound of how far the library's may be from it: inputs are exact; a sum of n
 * products is off by at most n 2^-24 times the sum of their magnitudes, whatever its order; a
 * rounding by half a unit of its dtype. So tolerances follow from K and dtype, and rounding twice
 * is caught.
 * Invariant: no use of the library. Leaves making problems and comparing results to problem.c. */
#ifndef LAMELLA_TESTS_OPS_REFERENCE_H
#define LAMELLA_TESTS_OPS_REFERENCE_H

#include <stdbool.h>
#include <stdint.h>

typedef struct num {
  double v, e; /* value; how far off the library may be */
} num;

typedef enum ref_act { ACT_NONE, ACT_GELU, ACT_GELU_TANH, ACT_SILU, ACT_RELU, ACT_RELU2 } ref_act;
enum { N_ACTS = 6 };

double ref_act_of(ref_act act, double z);
double ref_act_slope(ref_act act, double z);

/* How an operand lies over the ranks. Features: the dimension that the operator splits. */
typedef enum lies {
  WHOLE,    /* all of it on every rank */
  FIRST,    /* features are its first dimension */
  LAST,     /* features are its last dimension */
  SEQ,      /* its first dimension is split where attribute seq is set, else whole */
  GATHERED, /* LAST, or WHOLE with attribute gather */
  COLUMNS,  /* LAST with attribute split, else WHOLE */
  PARTS,    /* every rank has another whole one */
  ALONG,    /* split along attribute dim */
} lies;

/* dims: letters of T (tokens: S and B), K, N, F, G (F, or 2 F where gated); one letter: a
 * vector; "T" alone: one number per token. */
typedef struct operand {
  const char *dims;
  lies lies;
  unsigned marks;
} operand;
#define BIAS 1u         /* may be absent */
#define SAVED 2u        /* there with attribute save only */
#define WEIGHT 4u       /* may be transposed or, as an input, packed */
#define ADDED 8u        /* attribute acc adds to it */
#define INDEX 16u       /* indices below N, i32 or i64 */
#define VALUE 32u       /* f32, whatever the others are */
#define MAY_IGNORE 64u  /* an index may be the one that attribute ignore names */
#define PLAIN_ONLY 128u /* a weight that is never packed */
#define GAIN 256u       /* of the others' dtype, or f32 */

typedef struct problem {
  uint32_t op;
  int p, ndim; /* ndim: of tensors with T: 2 [S, n], 3 [S, B, n] */
  int64_t S, B, K, N, F;
  bool bf16, f16; /* of 16 bits; and these are f16's, not bf16's */
  bool bias, bias_f32, out_f32, grad_f32, packed, ids_i64;
  bool in_steps; /* a device may round what act is given: it may have a pass of its own */
  int64_t act, save, gather, split, acc, gated, dim, root, seq, total, unit, chunks, ignore;
  double eps;
  num *in[8], *out[8]; /* whole; PARTS: one after the other */
  num *old[8];         /* what lies in outputs that are added to */
} problem;

typedef struct reference {
  uint32_t op;
  operand in[8], out[8];          /* dims NULL: no more */
  void (*run)(const problem *pr); /* NULL: the row is tested apart */
  const char *apart;              /* where */
} reference;

const reference *reference_find(uint32_t op); /* NULL: the row has none */

int64_t ref_size(const problem *pr, char letter);
int64_t ref_count(const problem *pr, const operand *o); /* elements of the whole; PARTS: of one */

#endif
