/* member.h: a rank of a small group, and calls short enough to write down in a test.
 * Invariant: a tensor's DLTensor points into itself, so it must not be copied. Leaves memory to
 * tests. */
#ifndef LAMELLA_TESTS_DISTRIBUTED_OPS_MEMBER_H_
#define LAMELLA_TESTS_DISTRIBUTED_OPS_MEMBER_H_

#include "abi/lamella.h"
#include "tests/check.h"

typedef struct member {
  lam_context *ctx;
  lam_group *g;
  int rank, size;
} member;

/* Opens this rank's side of the group named by id; the deadline is a few seconds. */
lam_status member_join(member *m, const lam_group_id *id, int rank, int size);
void member_leave(member *m);

typedef struct tensor {
  DLTensor dl;
  int64_t shape[3], strides[3];
} tensor;

static const DLDataType f32 = {kDLFloat, 32, 1}, bf16 = {kDLBfloat, 16, 1};

/* Contiguous; dims end with -1: TENSOR(&x, data, f32, 3, 4) */
#define TENSOR(t, data, type, ...) tensor_make(t, data, type, (const int64_t[]){__VA_ARGS__, -1})
void tensor_make(tensor *t, void *data, DLDataType type, const int64_t *dims);

#define LIST(...) \
  { __VA_ARGS__ }
/* RUN(m, linear_row, LIST(&x.dl, &w.dl), LIST(&y.dl), LIST(attr, attr, ...)) */
#define RUN(m, name, ins, outs, attributes)                                             \
  member_run(m, LAM_OP_##name, (const DLTensor *const[8])ins, (DLTensor *const[8])outs, \
             (const lam_attr[12])attributes)
/* The first attribute is always the member's group: it is put in front. */
lam_status member_run(const member *m, uint32_t op, const DLTensor *const in[8],
                      DLTensor *const out[8], const lam_attr attrs[12]);

#endif
