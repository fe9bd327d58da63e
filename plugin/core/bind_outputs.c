/* bind_outputs.c: what a call's outputs should be, and whether they are.
 * Invariant: an output that passes may be written whole without touching any other tensor of the
 * call, except where its row says it may be an input's own memory.
 * Leaves shape rules to shape_run.c. */
#include "plugin/core/bind.h"

static lam_who who_output(const lam_binding *b, int i) {
  return (lam_who){b->row->name, b->row->out[i].name};
}

lam_status lam_bind_shapes(lam_binding *b) {
  const lam_group *g = b->op.group;
  const lam_shape_env env = {
      .in = b->op.in_tensor,
      .attrs = &b->op.attr,
      .rank = g ? g->rank : 0,
      .size = g ? g->size : 1,
  };
  for (int i = 0; i < b->row->n_out; i++) {
    LAM_TRY(lam_shape_run(b->row, i, &env, &b->shapes[i]));
    const lam_row_tensor *out = &b->row->out[i];
    if (b->op.attr.dtype >= 0 && out->shape.dtype_rule == LAM_AS_ATTR && !out->any_dtype)
      LAM_TRY(lam_bind_result_dtype(b));
  }
  return LAM_OK;
}

/* -- presence, shape, dtype -- */

static lam_status check_presence(const lam_binding *b, int i, const DLTensor *t) {
  const lam_row_tensor *out = &b->row->out[i];
  const bool wanted = b->shapes[i].ndim >= 0,
             free_choice = out->optional && !out->shape.may_be_none;
  if (t && !wanted)
    return lam_refuse(who_output(b, i), "found a tensor, expected none with these attributes");
  if (!t && wanted && !free_choice)
    return lam_refuse(who_output(b, i), "found NULL, expected a tensor");
  return LAM_OK;
}

static bool same_dtype(DLDataType a, DLDataType b) {
  return a.code == b.code && a.bits == b.bits && a.lanes == b.lanes;
}

static bool is_f32(DLDataType t) { return t.code == 2 && t.bits == 32; }

static bool shape_fits(const lam_row_tensor *out, const lam_shape *want, const DLTensor *t) {
  if (t->ndim != want->ndim) return false;
  for (int i = 0; i < t->ndim; i++)
    if (t->shape[i] != want->dims[i]) return false;
  return same_dtype(t->dtype, want->dtype) || (out->accumulated && is_f32(t->dtype));
}

static lam_status wrong_shape(const lam_binding *b, int i, const DLTensor *t) {
  char found[LAM_SHAPE_TEXT], expected[LAM_SHAPE_TEXT];
  const lam_shape *want = &b->shapes[i];
  return lam_refuse(who_output(b, i), "found %s, expected %s%s",
                    lam_shape_text(t->shape, t->ndim, t->dtype, found),
                    lam_shape_text(want->dims, want->ndim, want->dtype, expected),
                    b->row->out[i].accumulated && !is_f32(want->dtype) ? " or f32" : "");
}

/* -- memory -- */

static bool same_view(const lam_matrix *a, const lam_matrix *b) {
  return a->data == b->data && a->row_stride == b->row_stride && a->col_stride == b->col_stride;
}

/* A packed weight is one run of bytes; what its rows and columns say is of the weight it was. */
static bool meets_input(const lam_binding *b, int i, int j) {
  if (!b->op.in_tensor[j] || !lam_reach_meets(&b->out_reach[i], &b->in_reach[j])) return false;
  return b->op.in[j].packed || lam_matrices_meet(&b->op.out[i], &b->op.in[j]);
}

static bool meets_output(const lam_binding *b, int i, int j) {
  if (!b->op.out_tensor[j] || !lam_reach_meets(&b->out_reach[i], &b->out_reach[j])) return false;
  return lam_matrices_meet(&b->op.out[i], &b->op.out[j]);
}

static lam_status check_overlap(const lam_binding *b, int i) {
  const lam_row_tensor *out = &b->row->out[i];
  for (int j = 0; j < (int)b->call->n_inputs; j++) {
    if (!meets_input(b, i, j)) continue;
    if (out->in_place && out->shape.as == j && same_view(&b->op.out[i], &b->op.in[j])) continue;
    return lam_refuse(who_output(b, i), "its memory overlaps that of %s", b->row->in[j].name);
  }
  for (int j = 0; j < i; j++)
    if (meets_output(b, i, j))
      return lam_refuse(who_output(b, i), "its memory overlaps that of %s", b->row->out[j].name);
  return LAM_OK;
}

static lam_status bind_output(lam_binding *b, int i, const DLTensor *t) {
  const lam_who who = who_output(b, i);
  const bool either = b->row->out[i].role == LAM_ROLE_WEIGHT;
  LAM_TRY(lam_tensor_matrix(who, t, true, either, &b->op.out[i], &b->out_reach[i]));
  if (!shape_fits(&b->row->out[i], &b->shapes[i], t)) return wrong_shape(b, i, t);
  if (!lam_bind_is_here(b, t->device)) return lam_bind_elsewhere(b, who, t->device);
  return check_overlap(b, i);
}

lam_status lam_bind_outputs(lam_binding *b) {
  for (int i = 0; i < b->row->n_out; i++) {
    DLTensor *t = (uint32_t)i < b->call->n_outputs ? b->call->outputs[i] : NULL;
    b->op.out_tensor[i] = t;
    LAM_TRY(check_presence(b, i, t));
    if (t)
      LAM_TRY(bind_output(b, i, t));
    else
      b->op.out[i] = (lam_matrix){0};
  }
  return LAM_OK;
}

/* -- lam_infer: contiguous outputs that are nowhere -- */

static bool size_fits(const lam_shape *s) {
  int64_t n = 8;
  for (int i = 0; i < s->ndim; i++)
    if (__builtin_mul_overflow(n, s->dims[i], &n)) return false;
  return true;
}

static lam_matrix inferred_matrix(const lam_shape *s) {
  lam_dtype dtype = LAM_F32;
  lam_dtype_from_dlpack(s->dtype, &dtype);
  const int64_t cols = s->ndim > 0 ? s->dims[s->ndim - 1] : 1;
  int64_t rows = 1;
  for (int i = 0; i < s->ndim - 1; i++) rows *= s->dims[i];
  return (lam_matrix){NULL, rows, cols, cols ? cols : 1, 1, dtype, false};
}

lam_status lam_bind_inferred(lam_binding *b) {
  for (int i = 0; i < b->row->n_out; i++) {
    b->op.out_tensor[i] = NULL;
    b->op.out[i] = (lam_matrix){0};
    if (b->shapes[i].ndim < 0) continue;
    if (!size_fits(&b->shapes[i]))
      return lam_refuse(who_output(b, i), "its size in bytes would overflow");
    b->op.out[i] = inferred_matrix(&b->shapes[i]);
  }
  return LAM_OK;
}
