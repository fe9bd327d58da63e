/* bind.c: a call's inputs, attributes, group and context.
 * Invariant: the row's leader decides the dtype, the first input the device; everything else is
 * held against them.
 * Leaves dtypes to bind_dtypes.c, outputs to bind_outputs.c. */
#include "plugin/core/bind.h"

static lam_who who_input(const lam_binding *b, int i) {
  return (lam_who){b->row->name, b->row->in[i].name};
}

/* -- counts -- */

static lam_status wrong_count(const lam_row *row, const char *what, uint32_t given, int most) {
  const lam_who who = {row->name, what};
  if (given > (uint32_t)most) return lam_refuse(who, "found %u, expected at most %d", given, most);
  return lam_refuse(who, "the array is NULL, its count is %u", given);
}

static bool count_fits(uint32_t given, int most, const void *array) {
  return given <= (uint32_t)most && (array || given == 0);
}

static lam_status check_counts(const lam_row *row, const lam_call *call) {
  if (!count_fits(call->n_inputs, row->n_in, call->inputs))
    return wrong_count(row, "inputs", call->n_inputs, row->n_in);
  if (!count_fits(call->n_outputs, row->n_out, call->outputs))
    return wrong_count(row, "outputs", call->n_outputs, row->n_out);
  if (!count_fits(call->n_attrs, row->n_attrs, call->attrs))
    return wrong_count(row, "attributes", call->n_attrs, row->n_attrs);
  if (call->flags & ~LAM_CALL_TF32)
    return lam_refuse((lam_who){row->name, "flags"}, "found 0x%x, expected 0 or 0x%x", call->flags,
                      LAM_CALL_TF32);
  return LAM_OK;
}

/* -- layouts -- */

static lam_status wrong_ndim(lam_who who, const lam_row_tensor *in, const DLTensor *t) {
  static const char *const words[] = {
      [LAM_ROLE_WEIGHT] = "2: [N, K]",    [LAM_ROLE_BIAS] = "1: [N]",
      [LAM_ROLE_SCALE] = "1: [1]",        [LAM_ROLE_TOKEN] = "1: [1]",
      [LAM_ROLE_PACKED] = "2: [R, cols]",
  };
  return lam_refuse(who, "found %d dimensions, expected %s", t->ndim, words[in->role]);
}

/* What pack_weight wrote: its header says what the weight was. Without data only the side that was
 * asked for is known. */
static lam_status bind_packed(const lam_binding *b, lam_who who, const DLTensor *t, lam_matrix *m) {
  int side = b->row->packed_side;
  int64_t n = side ? 0 : m->rows, k = side ? m->rows : 0;
  lam_dtype dtype = b->first;
  if (m->col_stride != 1 || (m->row_stride != m->cols && m->rows > 1))
    return lam_refuse(who, "a packed weight must be contiguous");
  if (!b->op.device->gemm || !b->op.device->gemm->packed_open)
    return lam_refuse(who, "it is packed, and there are no packed weights on %s",
                      b->op.device->name);
  if (b->data) {
    if ((uintptr_t)m->data % 64)
      return lam_refuse(who, "a packed weight must be aligned to 64 bytes");
    const lam_status s = lam_device_packed_open(
        b->op.device, m->data, (uint64_t)(m->rows * m->cols), &side, &dtype, &n, &k);
    if (s != LAM_OK) return lam_fail_within(s, "%s: %s", who.op, who.arg);
  }
  if (side != b->row->packed_side)
    return lam_refuse(who, "it was packed for side %d, expected side %d", side,
                      b->row->packed_side);
  if (dtype != b->first)
    return lam_refuse(who, "it was packed from %s, expected %s", lam_dtype_name(dtype),
                      lam_dtype_name(b->first));
  if (t->shape[0] != (side ? k : n))
    return lam_refuse(who, "found %lld rows, its header says [%lld, %lld]", (long long)t->shape[0],
                      (long long)n, (long long)k);
  m->rows = n;
  m->cols = k;
  m->dtype = dtype;
  m->packed = true;
  return LAM_OK;
}

lam_status lam_bind_elsewhere(const lam_binding *b, lam_who who, DLDevice device) {
  char here[32], there[32];
  return lam_refuse(who, "it lies on %s, %s on %s", lam_device_text(device, here),
                    b->row->in[0].name, lam_device_text(b->place, there));
}

/* What most tensors are, so that the rules need not be asked. */
static inline bool is_plain_dtype(const lam_binding *b, int i, lam_role role, lam_dtype t) {
  if (role >= LAM_ROLE_SCALE || t != b->first) return false;
  return i != b->row->leader || (t <= LAM_BF16 && lam_device_computes(b->op.device, t));
}

static lam_status bind_input(lam_binding *b, int i, const DLTensor *t) {
  const lam_row_tensor *in = &b->row->in[i];
  const lam_who who = who_input(b, i);
  lam_matrix *m = &b->op.in[i];
  LAM_TRY(lam_tensor_matrix(who, t, b->data, in->role == LAM_ROLE_WEIGHT, m, &b->in_reach[i]));
  b->op.in_tensor[i] = t;
  if (i == b->row->leader) b->first = m->dtype;
  if (!is_plain_dtype(b, i, in->role, m->dtype)) LAM_TRY(lam_bind_dtype(b, i, m->dtype));
  if (!lam_bind_is_here(b, t->device)) return lam_bind_elsewhere(b, who, t->device);
  if (in->ndim >= 0 && in->ndim != t->ndim) return wrong_ndim(who, in, t);
  if ((in->role == LAM_ROLE_TOKEN || in->role == LAM_ROLE_SCALE) && t->shape[0] != 1)
    return lam_refuse(who, "found %lld elements, expected 1", (long long)t->shape[0]);
  return in->role == LAM_ROLE_WEIGHT && m->dtype == LAM_U8 ? bind_packed(b, who, t, m) : LAM_OK;
}

/* A device that is in a shared object of its own. */
static lam_status open_place(lam_binding *b, const DLTensor *t) {
  char text[32];
  const lam_status s = lam_device_open((int32_t)t->device.device_type, &b->op.device);
  if (s != LAM_OK)
    return lam_fail_within(s, "%s: %s: it lies on %s", b->row->name, b->row->in[0].name,
                           lam_device_text(t->device, text));
  if (b->op.device) return LAM_OK;
  return lam_refuse(who_input(b, 0), "it lies on %s, which this build does not support",
                    lam_device_text(t->device, text));
}

/* The first input's device, before anything is held against it. */
static lam_status bind_place(lam_binding *b) {
  const DLTensor *t = b->call->n_inputs ? b->call->inputs[0] : NULL;
  if (!t) return lam_refuse(who_input(b, 0), "found NULL, expected a tensor");
  b->place = t->device;
  b->op.device = lam_device_find((int32_t)t->device.device_type);
  return b->op.device ? LAM_OK : open_place(b, t);
}

static lam_status bind_absent(lam_binding *b, int i) {
  if (!b->row->in[i].optional) return lam_refuse(who_input(b, i), "found NULL, expected a tensor");
  b->op.in_tensor[i] = NULL;
  b->op.in[i] = (lam_matrix){0};
  return LAM_OK;
}

static lam_status bind_inputs(lam_binding *b) {
  const int given = (int)b->call->n_inputs;
  LAM_TRY(bind_place(b));
  for (int i = 0; i < given; i++) {
    const DLTensor *t = b->call->inputs[i];
    LAM_TRY(t ? bind_input(b, i, t) : bind_absent(b, i));
  }
  const bool f8 = b->row->scaled && lam_dtype_is_f8(b->first);
  const int n = f8 ? b->row->n_in : b->row->n_unscaled;
  for (int i = given; i < n; i++) LAM_TRY(bind_absent(b, i));
  return f8 ? lam_bind_scales(b) : LAM_OK;
}

/* -- attributes, group, context -- */

static lam_status bind_attrs(lam_binding *b) {
  b->op.attr = b->row->standard;
  for (uint32_t i = 0; i < b->call->n_attrs; i++) {
    const lam_row_attr *a = &b->row->attrs[i];
    const lam_attr *given = &b->call->attrs[i];
    if (lam_attr_bind_plain(a->field, given, &b->op.attr)) continue;
    LAM_TRY(lam_attr_bind((lam_who){b->row->name, a->name}, a->field, given, &b->op.attr));
  }
  return LAM_OK;
}

/* The last that may fail: from here on the group is the binding's to leave. */
static lam_status bind_group(lam_binding *b) {
  b->op.group = NULL;
  if (b->op.attr.group == 0) return LAM_OK;
  const lam_status s = lam_group_enter(b->op.attr.group, &b->op.group);
  if (s != LAM_OK) return lam_fail_within(s, "%s: group", b->row->name);
  return LAM_OK;
}

static void bind_context(lam_binding *b, lam_context *ctx) {
  if (!ctx) ctx = b->op.group ? b->op.group->ctx : lam_context_default();
  b->op.ctx = ctx;
  b->op.workers = lam_context_workers(ctx);
}

lam_status lam_bind_call(lam_binding *b, lam_context *ctx, const lam_call *call, bool data) {
  b->call = call;
  b->data = data;
  b->row = lam_row_find(call->op);
  if (!b->row)
    return lam_fail(LAM_NOT_FOUND, "lam_call: op is %u, which is no operator of this library",
                    call->op);
  LAM_TRY(check_counts(b->row, call));
  b->op.op = call->op;
  b->op.name = b->row->name;
  b->op.stream = call->stream;
  b->op.scratch = call->scratch;
  b->op.scratch_bytes = call->scratch_bytes;
  b->op.flags = call->flags;
  b->op.why = NULL;
  LAM_TRY(bind_inputs(b));
  LAM_TRY(bind_attrs(b));
  LAM_TRY(bind_group(b));
  bind_context(b, ctx);
  return LAM_OK;
}

void lam_bind_close(lam_binding *b) {
  if (b->op.group) lam_group_leave(b->op.group);
}
