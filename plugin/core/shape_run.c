/* shape_run.c: runs the steps of a shape rule for one call.
 * Invariant: reads only inputs that dispatch has checked (weights have two dimensions); writes at
 * most LAM_MAX_DIMS dimensions, none negative.
 * Leaves comparing the result with the outputs that were given to dispatch.c. */
#include "plugin/core/row.h"
#include "plugin/core/shard.h"

typedef struct machine {
  const lam_row *row;
  const lam_shape_env *env;
  int output;
  int64_t stack[LAM_SHAPE_DEPTH];
  int top;
  lam_shape *out;
} machine;

static void push(machine *m, int64_t value) { m->stack[m->top++] = value; }
static int64_t pop(machine *m) { return m->stack[--m->top]; }

static lam_who who(const machine *m) {
  return (lam_who){m->row->name, m->row->out[m->output].name};
}

static lam_status too_many_dims(const machine *m) {
  return lam_refuse(who(m), "it would have more than %d dimensions", LAM_MAX_DIMS);
}

static lam_status emit(machine *m, int64_t dim) {
  if (dim < 0)
    return lam_refuse(who(m), "its dimension %d would be %lld", m->out->ndim, (long long)dim);
  if (m->out->ndim == LAM_MAX_DIMS) return too_many_dims(m);
  m->out->dims[m->out->ndim++] = dim;
  return LAM_OK;
}

static lam_status no_dim(const machine *m, int input, int64_t index) {
  return lam_refuse((lam_who){m->row->name, m->row->in[input].name},
                    "found %d dimensions, its shape rule takes dimension %lld",
                    m->env->in[input]->ndim, (long long)index);
}

static lam_status run_dim(machine *m, int input) {
  const DLTensor *t = m->env->in[input];
  const int64_t index = pop(m), i = index < 0 ? index + t->ndim : index;
  if (i < 0 || i >= t->ndim) return no_dim(m, input, index);
  push(m, t->shape[i]);
  return LAM_OK;
}

static lam_status slice(machine *m, int input, int64_t first, int64_t last) {
  const DLTensor *t = m->env->in[input];
  const int64_t end = last == LAM_SHAPE_OPEN_END ? t->ndim : last < 0 ? last + t->ndim : last;
  if (first < 0 || first > end || end > t->ndim)
    return no_dim(m, input, first > end || first < 0 ? first : last - 1);
  if (m->out->ndim + end - first > LAM_MAX_DIMS) return too_many_dims(m);
  int ndim = m->out->ndim; /* not counted in memory: 2 ns */
  for (int64_t i = first; i < end; i++) m->out->dims[ndim++] = t->shape[i];
  m->out->ndim = ndim;
  return LAM_OK;
}

static lam_status run_slice(machine *m, int input) {
  const int64_t last = pop(m), first = pop(m);
  return slice(m, input, first, last);
}

static lam_status run_copy(machine *m, int input) { return slice(m, input, 0, LAM_SHAPE_OPEN_END); }

static lam_status run_ints(machine *m) {
  const lam_op_attrs *a = m->env->attrs;
  for (int i = 0; i < a->n_shape; i++) LAM_TRY(emit(m, a->shape[i]));
  return LAM_OK;
}

static lam_status run_share(machine *m) {
  const int64_t unit = pop(m), total = pop(m);
  if (!lam_share_fits(total, unit))
    return lam_refuse(who(m), "%lld elements are shared out, expected a multiple of unit %lld",
                      (long long)total, (long long)unit);
  const int rank = m->env->rank, size = m->env->size;
  push(m, lam_share_begin(total, unit, rank + 1, size) - lam_share_begin(total, unit, rank, size));
  return LAM_OK;
}

static lam_status run_pieces(machine *m) {
  const int64_t piece = pop(m), whole = pop(m);
  if (piece <= 0 || whole < 0)
    return lam_refuse(who(m), "its shape takes pieces of %lld of %lld", (long long)piece,
                      (long long)whole);
  push(m, whole / piece + (whole % piece != 0));
  return LAM_OK;
}

static lam_status run_arithmetic(machine *m, lam_shape_step step) {
  const int64_t b = pop(m), a = pop(m);
  int64_t c = 0;
  bool bad = false;
  if (step == LAM_SHAPE_ADD) bad = __builtin_add_overflow(a, b, &c);
  if (step == LAM_SHAPE_SUB) bad = __builtin_sub_overflow(a, b, &c);
  if (step == LAM_SHAPE_MUL) bad = __builtin_mul_overflow(a, b, &c);
  if (step == LAM_SHAPE_DIV) {
    bad = b <= 0 || a % b != 0;
    if (!bad) c = a / b;
  }
  if (bad)
    return lam_refuse(who(m), "its shape takes %lld %c %lld, which is no whole number in range",
                      (long long)a, "+-*/"[step - LAM_SHAPE_ADD], (long long)b);
  push(m, c);
  return LAM_OK;
}

static int64_t weight_cols(const DLTensor *w) {
  const bool packed =
      w->dtype.code == 1 && w->dtype.bits == 8; /* [R, cols]: R is what it was packed for */
  return packed ? w->shape[0] : w->shape[1];
}

static int64_t attr_at(const lam_shape_env *env, int offset) {
  return *(const int64_t *)((const char *)env->attrs + offset);
}

/* The call's dtype; where operands are fp8, attribute dtype, or bf16. */
static DLDataType calls_dtype(const lam_row *row, const lam_shape_env *env, DLDataType first) {
  if (first.bits != 8 || !row->scaled) return first;
  return lam_dtype_to_dlpack(env->attrs->dtype >= 0 ? (lam_dtype)env->attrs->dtype : LAM_BF16);
}

static DLDataType result_dtype(const lam_row *row, const lam_shape_rule *rule,
                               const lam_shape_env *env) {
  const int64_t attr = env->attrs->dtype;
  const DLDataType first = env->in[row->leader]->dtype;
  if (rule->dtype_rule == LAM_AS_INPUT) return env->in[rule->as]->dtype;
  if (rule->dtype_rule == LAM_AS_NAMED) return lam_dtype_to_dlpack(rule->dtype);
  if (rule->dtype_rule == LAM_AS_ATTR && attr >= 0) return lam_dtype_to_dlpack((lam_dtype)attr);
  return calls_dtype(row, env, first);
}

static lam_status run_steps(const lam_row *row, int output, const lam_shape_env *env,
                            lam_shape *out) {
  const lam_shape_rule *rule = &row->out[output].shape;
  machine m; /* its stack need not be cleared */
  m.row = row;
  m.env = env;
  m.output = output;
  m.top = 0;
  m.out = out;
  out->ndim = 0;
  out->dtype = result_dtype(row, rule, env);

  for (const lam_shape_code *c = row->code + rule->first;; c++) {
    switch ((lam_shape_step)c->step) {
      case LAM_SHAPE_END:
        return LAM_OK;
      case LAM_SHAPE_NUMBER:
        push(&m, c->value);
        break;
      case LAM_SHAPE_ATTR:
        push(&m, attr_at(env, c->at));
        break;
      case LAM_SHAPE_ROWS:
        push(&m, env->in[c->input]->shape[0]);
        break;
      case LAM_SHAPE_COLS:
        push(&m, weight_cols(env->in[c->input]));
        break;
      case LAM_SHAPE_SIZE:
        push(&m, env->size);
        break;
      case LAM_SHAPE_DIM:
        LAM_TRY(run_dim(&m, c->input));
        break;
      case LAM_SHAPE_SHARE:
        LAM_TRY(run_share(&m));
        break;
      case LAM_SHAPE_PIECES:
        LAM_TRY(run_pieces(&m));
        break;
      case LAM_SHAPE_EMIT:
        LAM_TRY(emit(&m, pop(&m)));
        break;
      case LAM_SHAPE_EMIT_ROWS:
        LAM_TRY(emit(&m, env->in[c->input]->shape[0]));
        break;
      case LAM_SHAPE_SLICE:
        LAM_TRY(run_slice(&m, c->input));
        break;
      case LAM_SHAPE_SLICE_AT:
        LAM_TRY(slice(&m, c->input, (int16_t)c->value, c->value >> 16));
        break;
      case LAM_SHAPE_INTS:
        LAM_TRY(run_ints(&m));
        break;
      case LAM_SHAPE_COPY:
        LAM_TRY(run_copy(&m, c->input));
        break;
      case LAM_SHAPE_NONE:
        out->ndim = -1;
        break;
      case LAM_SHAPE_JUMP:
        c = row->code + c->value - 1;
        break;
      case LAM_SHAPE_JUMP_IF_0:
        if (pop(&m) == 0) c = row->code + c->value - 1;
        break;
      case LAM_SHAPE_UNLESS:
        if (attr_at(env, c->at) == 0) c = row->code + c->value - 1;
        break;
      default:
        LAM_TRY(run_arithmetic(&m, (lam_shape_step)c->step));
    }
  }
}

lam_status lam_shape_run(const lam_row *row, int output, const lam_shape_env *env, lam_shape *out) {
  const int16_t only_if = row->out[output].shape.only_if;
  if (only_if < 0 || attr_at(env, only_if) != 0) return run_steps(row, output, env, out);
  *out = (lam_shape){.ndim = -1, .dtype = env->in[0]->dtype};
  return LAM_OK;
}
