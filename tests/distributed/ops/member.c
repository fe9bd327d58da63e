/* member.c: a rank of a small group and its calls. */
#include "tests/distributed/ops/member.h"

#include <string.h>

lam_status member_join(member *m, const lam_group_id *id, int rank, int size) {
  lam_context_desc context = LAM_CONTEXT_DESC_INIT;
  lam_group_desc desc = LAM_GROUP_DESC_INIT;
  *m = (member){.rank = rank, .size = size};
  context.threads = 1;
  desc.rank = rank;
  desc.size = size;
  desc.deadline_ms = desc.first_deadline_ms = 20000;
  desc.id = *id;
  const lam_status status = lam_context_create(&context, &m->ctx);
  return status == LAM_OK ? lam_group_create(m->ctx, &desc, &m->g) : status;
}

void member_leave(member *m) {
  lam_group_destroy(m->g);
  lam_context_destroy(m->ctx);
}

void tensor_make(tensor *t, void *data, DLDataType type, const int64_t *dims) {
  int n = 0;
  memset(t, 0, sizeof *t);
  for (; dims[n] >= 0; n++) t->shape[n] = dims[n];
  for (int i = n - 1; i >= 0; i--) t->strides[i] = i < n - 1 ? t->strides[i + 1] * dims[i + 1] : 1;
  t->dl = (DLTensor){data, {kDLCPU, 0}, n, type, t->shape, t->strides, 0};
}

/* What is left NULL or default at the end of a list is not handed over. */
lam_status member_run(const member *m, uint32_t op, const DLTensor *const in[8],
                      DLTensor *const out[8], const lam_attr attrs[12]) {
  lam_attr all[13] = {lam_attr_i(lam_group_handle(m->g))};
  lam_call call = LAM_CALL_INIT;
  call.op = op;
  call.inputs = in;
  call.outputs = out;
  call.attrs = all;
  for (uint32_t i = 0; i < 8; i++) {
    if (in[i]) call.n_inputs = i + 1;
    if (out[i]) call.n_outputs = i + 1;
  }
  for (uint32_t i = 0; i < 12; i++)
    if (attrs[i].type != LAM_ATTR_DEFAULT) call.n_attrs = i + 1;
  call.n_attrs++;
  memcpy(all + 1, attrs, 12 * sizeof *attrs);
  return lam_run(m->ctx, &call);
}
