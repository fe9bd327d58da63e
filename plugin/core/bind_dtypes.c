/* bind_dtypes.c: which dtypes the inputs of a call may have: one rule per role.
 * Invariant: the row's leader decides; what it may be, the device. fp8 goes where a row takes scales,
 * and there every scale is given.
 * Leaves outputs to bind_outputs.c. */
#include <stdio.h>

#include "plugin/core/bind.h"

static lam_who who_input(const lam_binding *b, int i) {
  return (lam_who){b->row->name, b->row->in[i].name};
}

static const char *leader_name(const lam_binding *b) { return b->row->in[b->row->leader].name; }

static lam_status wrong_dtype(lam_who who, lam_dtype found, const char *expected) {
  return lam_refuse(who, "found %s, expected %s", lam_dtype_name(found), expected);
}

static bool row_computes(const lam_binding *b, lam_dtype t) {
  return lam_device_computes(b->op.device, t) && (b->row->scaled || !lam_dtype_is_f8(t));
}

/* "f32, bf16 or f16" */
static const char *computed_text(const lam_binding *b, char *text, size_t room) {
  int left = 0;
  size_t n = 0;
  for (int t = 0; t < LAM_N_DTYPES; t++) left += row_computes(b, (lam_dtype)t);
  text[0] = 0;
  for (int t = 0; t < LAM_N_DTYPES && n < room; t++) {
    if (!row_computes(b, (lam_dtype)t)) continue;
    left--;
    n += (size_t)snprintf(text + n, room - n, "%s%s", lam_dtype_name((lam_dtype)t),
                          left > 1 ? ", "
                          : left   ? " or "
                                   : "");
  }
  return text;
}

static lam_status check_leader(const lam_binding *b, lam_dtype t) {
  const lam_row_tensor *in = &b->row->in[b->row->leader];
  const lam_who who = who_input(b, b->row->leader);
  char expected[80];
  if (in->role == LAM_ROLE_TOKEN) return t == LAM_F32 ? LAM_OK : wrong_dtype(who, t, "f32");
  if (in->any_dtype || row_computes(b, t)) return LAM_OK;
  return wrong_dtype(who, t, computed_text(b, expected, sizeof expected));
}

/* fp8's bias is added to what is not fp8 any more. */
static lam_status check_bias(const lam_binding *b, lam_who who, lam_dtype t) {
  if (t == LAM_F32 || (t == b->first && !lam_dtype_is_f8(t))) return LAM_OK;
  if (lam_dtype_is_f8(b->first)) {
    if (t == LAM_BF16 || t == LAM_F16) return LAM_OK;
    return lam_refuse(who, "found %s, expected f32, bf16 or f16: %s is %s", lam_dtype_name(t),
                      leader_name(b), lam_dtype_name(b->first));
  }
  if (b->first == LAM_F32) return wrong_dtype(who, t, "f32");
  return lam_refuse(who, "found %s, expected %s as %s, or f32", lam_dtype_name(t),
                    lam_dtype_name(b->first), leader_name(b));
}

static lam_status check_scale(const lam_binding *b, lam_who who, lam_dtype t) {
  if (lam_dtype_is_f8(b->first)) return t == LAM_F32 ? LAM_OK : wrong_dtype(who, t, "f32");
  return lam_refuse(who, "found a scale, expected none: scales are for fp8, %s is %s",
                    leader_name(b), lam_dtype_name(b->first));
}

/* Of two fp8 factors one may be e4m3, the other e5m2. */
static lam_status check_as_leader(const lam_binding *b, lam_who who, lam_dtype t) {
  if (t == b->first) return LAM_OK;
  if (lam_dtype_is_f8(b->first))
    return lam_dtype_is_f8(t) ? LAM_OK : wrong_dtype(who, t, "f8e4m3 or f8e5m2");
  return lam_refuse(who, "found %s, expected %s as %s", lam_dtype_name(t), lam_dtype_name(b->first),
                    leader_name(b));
}

lam_status lam_bind_dtype(const lam_binding *b, int i, lam_dtype t) {
  const lam_who who = who_input(b, i);
  if (i == b->row->leader) return check_leader(b, t);
  switch (b->row->in[i].role) {
    case LAM_ROLE_SCALE:
      return check_scale(b, who, t);
    case LAM_ROLE_INDEX:
      return t == LAM_I32 || t == LAM_I64 ? LAM_OK : wrong_dtype(who, t, "i32 or i64");
    case LAM_ROLE_VALUE:
    case LAM_ROLE_TOKEN:
      return t == LAM_F32 ? LAM_OK : wrong_dtype(who, t, "f32");
    case LAM_ROLE_BIAS:
      return check_bias(b, who, t);
    case LAM_ROLE_WEIGHT:
      return t == LAM_U8 ? LAM_OK : check_as_leader(b, who, t);
    default:
      return check_as_leader(b, who, t);
  }
}

lam_status lam_bind_scales(const lam_binding *b) {
  for (int i = 0; i < b->row->n_in; i++)
    if (b->row->in[i].role == LAM_ROLE_SCALE && !b->op.in_tensor[i])
      return lam_refuse(who_input(b, i), "found NULL, expected f32 [1]: %s is %s", leader_name(b),
                        lam_dtype_name(b->first));
  return LAM_OK;
}

/* Computed in f32, a result is rounded to the leader's dtype, or not at all; fp8's to what is
 * asked for. */
lam_status lam_bind_result_dtype(const lam_binding *b) {
  const int64_t asked = b->op.attr.dtype;
  const lam_who who = {b->row->name, "dtype"};
  if (asked == LAM_F32) return LAM_OK;
  if (lam_dtype_is_f8(b->first))
    return asked == LAM_BF16 || asked == LAM_F16
               ? LAM_OK
               : wrong_dtype(who, (lam_dtype)asked, "bf16, f16 or f32");
  if (asked == (int64_t)b->first) return LAM_OK;
  return lam_refuse(who, "found %s, expected %s as %s%s", lam_dtype_name((lam_dtype)asked),
                    lam_dtype_name(b->first), leader_name(b),
                    b->first == LAM_F32 ? "" : ", or f32");
}
