/* foreign.c: any C symbol as a stage function, called through libffi with no shim.
 *
 * A signature binds each C argument to a field of the stage's io or to a value given at create. A
 * handle is never written after create, so any number of stages and threads may share one.
 * Invariant: the symbol is called only when every argument could be made; else the call fails
 * naming the argument.
 * Leaves the grammar to foreign_parse.c, and to the caller that the declared types are the
 * symbol's real ones. */
#include "plugin/pipeline/run/foreign.h"

#include <dlfcn.h>
#include <errno.h>
#include <ffi.h>
#include <float.h>
#include <inttypes.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

typedef union slot { /* one C argument, where libffi reads it */
  void *p;
  int32_t i32;
  int64_t i64;
  float f32;
  double f64;
} slot;

struct lam_foreign {
  lam_foreign_signature signature;
  slot given[LAM_FOREIGN_MAX_ARGS]; /* of arguments with source VALUE, ready to be passed */
  ffi_cif cif;
  ffi_type *types[LAM_FOREIGN_MAX_ARGS];
  void (*function)(void);
  void *library;       /* from dlopen, or NULL */
  char *symbol, *text; /* for messages */
  void **copies;       /* strings and integer lists behind `given` addresses */
  uint32_t n_copies;
};

static ffi_type *const ffi_types[LAM_FOREIGN_N_TYPES] = {&ffi_type_pointer, &ffi_type_sint32,
                                                         &ffi_type_sint64,  &ffi_type_float,
                                                         &ffi_type_double,  &ffi_type_void};

/* -- create: the symbol -- */

static lam_status parse_address(const char *lib, const char *symbol, lam_foreign *f) {
  if (lib)
    return lam_fail(LAM_INVALID_ARGUMENT,
                    "lam_foreign_create: library \"%s\" beside an address, expected lib NULL", lib);
  char *end = NULL;
  errno = 0;
  const uintptr_t address = (uintptr_t)strtoull(symbol + 1, &end, 16);
  if (strncmp(symbol, "@0x", 3) != 0 || *end || errno || address == 0)
    return lam_fail(
        LAM_INVALID_ARGUMENT,
        "lam_foreign_create: symbol \"%s\" is no address, expected \"@0x\" and hex digits", symbol);
  memcpy(&f->function, &address, sizeof f->function);
  return LAM_OK;
}

static lam_status find_symbol(const char *lib, const char *symbol, lam_foreign *f) {
  if (symbol[0] == '@') return parse_address(lib, symbol, f);
  if (lib && !(f->library = dlopen(lib, RTLD_NOW | RTLD_LOCAL)))
    return lam_fail(LAM_NOT_FOUND, "lam_foreign_create: library \"%s\" could not be opened: %s",
                    lib, dlerror());

  void *found = dlsym(lib ? f->library : RTLD_DEFAULT, symbol);
  if (!found)
    return lam_fail(LAM_NOT_FOUND, "lam_foreign_create: no symbol \"%s\" in %s%s", symbol,
                    lib ? "library " : "the process", lib ? lib : "");
  memcpy(&f->function, &found, sizeof f->function);
  return LAM_OK;
}

/* -- create: given values -- */

static const char *value_kind(const lam_attr *v) {
  static const char *const kinds[] = {"no value", "an int", "a double", "ints", "a string"};
  return v->type <= LAM_ATTR_STRING ? kinds[v->type] : "a value of unknown type";
}

static lam_status copy_value(const lam_attr *v, lam_foreign *f, void **out) {
  const bool is_text = v->type == LAM_ATTR_STRING;
  const size_t bytes = is_text ? v->n : (size_t)v->n * sizeof *v->v.ints;
  char *copy = calloc(1, bytes + 1); /* a string gets its NUL */
  if (!copy)
    return lam_fail(LAM_RESOURCE_EXHAUSTED,
                    "lam_foreign_create: no memory for a value of %zu bytes", bytes);
  if (bytes) memcpy(copy, is_text ? (const void *)v->v.s : (const void *)v->v.ints, bytes);
  f->copies[f->n_copies++] = copy;
  *out = copy;
  return LAM_OK;
}

/* Sets *out_fits where v can be passed as the argument's type; fails only for want of memory. */
static lam_status bind_value(const lam_attr *v, lam_foreign_type type, lam_foreign *f, slot *s,
                             bool *out_fits) {
  const bool is_int = v->type == LAM_ATTR_INT, is_double = v->type == LAM_ATTR_DOUBLE;
  const bool is_block = v->type == LAM_ATTR_STRING || v->type == LAM_ATTR_INTS;
  *out_fits = true;
  if (type == LAM_FOREIGN_P && is_block) return copy_value(v, f, &s->p);
  if (type == LAM_FOREIGN_P && is_int)
    s->p = (void *)(intptr_t)v->v.i;
  else if (type == LAM_FOREIGN_I64 && is_int)
    s->i64 = v->v.i;
  else if (type == LAM_FOREIGN_I32 && is_int && v->v.i == (int32_t)v->v.i)
    s->i32 = (int32_t)v->v.i;
  else if (type == LAM_FOREIGN_F64 && is_double)
    s->f64 = v->v.f;
  else if (type == LAM_FOREIGN_F32 && is_double && !(isfinite(v->v.f) && fabs(v->v.f) > FLT_MAX))
    s->f32 = (float)v->v.f;
  else
    *out_fits = false;
  return LAM_OK;
}

static const char *what_fits(lam_foreign_type type) {
  static const char *const fitting[] = {
      "an int (an address), ints or a string", "an int of 32 bits", "an int",
      "a double within float's range",         "a double",          ""};
  return fitting[type];
}

static lam_status bind_given(lam_foreign *f, int i, const lam_attr *values, uint32_t n_values) {
  const lam_foreign_arg *a = &f->signature.args[i];
  if ((uint32_t)a->index >= n_values)
    return lam_fail(
        LAM_INVALID_ARGUMENT,
        "lam_foreign_create: signature, column %d: $%d is named, but only %u values are given",
        a->column, a->index, n_values);
  bool fits = false;
  LAM_TRY(bind_value(&values[a->index], a->type, f, &f->given[i], &fits));
  if (fits) return LAM_OK;
  return lam_fail(LAM_INVALID_ARGUMENT,
                  "lam_foreign_create: signature, column %d: value $%d is %s%s, %s takes %s",
                  a->column, a->index, value_kind(&values[a->index]),
                  values[a->index].type == LAM_ATTR_INT ? " that does not fit" : "",
                  lam_foreign_type_names[a->type], what_fits(a->type));
}

static lam_status check_all_named(const lam_foreign *f, uint32_t n_values) {
  for (uint32_t v = 0; v < n_values; v++) {
    bool named = false;
    for (int i = 0; i < f->signature.n_args; i++)
      named |= f->signature.args[i].source == LAM_FOREIGN_VALUE &&
               (uint32_t)f->signature.args[i].index == v;
    if (!named)
      return lam_fail(LAM_INVALID_ARGUMENT,
                      "lam_foreign_create: %u values are given, but the signature names no $%u "
                      "(column %zu, its end)",
                      n_values, v, strlen(f->text) + 1);
  }
  return LAM_OK;
}

static lam_status bind_values(lam_foreign *f, const lam_attr *values, uint32_t n_values) {
  for (int i = 0; i < f->signature.n_args; i++)
    if (f->signature.args[i].source == LAM_FOREIGN_VALUE)
      LAM_TRY(bind_given(f, i, values, n_values));
  return check_all_named(f, n_values);
}

/* -- create and destroy -- */

static lam_status prepare_call(lam_foreign *f) {
  for (int i = 0; i < f->signature.n_args; i++) f->types[i] = ffi_types[f->signature.args[i].type];
  if (ffi_prep_cif(&f->cif, FFI_DEFAULT_ABI, (unsigned)f->signature.n_args,
                   ffi_types[f->signature.result], f->types) != FFI_OK)
    return lam_fail(LAM_INTERNAL, "lam_foreign_create: libffi cannot call \"%s\" on this machine",
                    f->text);
  return LAM_OK;
}

static lam_status allocate(const char *symbol, const char *text, lam_foreign **out) {
  lam_foreign *f = *out = calloc(1, sizeof *f);
  if (f)
    f->symbol = strdup(symbol), f->text = strdup(text),
    f->copies = calloc(LAM_FOREIGN_MAX_ARGS, sizeof *f->copies);
  if (f && f->symbol && f->text && f->copies) return LAM_OK;
  return lam_fail(LAM_RESOURCE_EXHAUSTED, "lam_foreign_create: no memory");
}

lam_status lam_foreign_create(const char *lib, const char *symbol, const char *signature,
                              const lam_attr *values, uint32_t n_values,
                              lam_foreign **out_foreign) {
  if (!out_foreign)
    return lam_fail(LAM_INVALID_ARGUMENT, "lam_foreign_create: out_foreign is NULL");
  *out_foreign = NULL;
  if (!symbol || !signature || (n_values && !values))
    return lam_fail(LAM_INVALID_ARGUMENT, "lam_foreign_create: %s is NULL",
                    !symbol      ? "symbol"
                    : !signature ? "signature"
                                 : "values");
  lam_foreign *f = NULL;
  lam_status status = allocate(symbol, signature, &f);
  if (!status) status = lam_foreign_parse(signature, &f->signature);
  if (!status) status = bind_values(f, values, n_values);
  if (!status) status = find_symbol(lib, symbol, f);
  if (!status) status = prepare_call(f);
  if (status)
    lam_foreign_destroy(f);
  else
    *out_foreign = f;
  return status;
}

void lam_foreign_destroy(lam_foreign *f) {
  if (!f) return;
  if (f->library) dlclose(f->library);
  for (uint32_t i = 0; i < f->n_copies; i++) free(f->copies[i]);
  free(f->copies);
  free(f->text);
  free(f->symbol);
  free(f);
}

/* -- call -- */

typedef struct call {
  const lam_foreign *f;
  const lam_stage_io *io;
  const lam_foreign_arg *arg;
} call;

static lam_status refuse_arg(const call *c, const char *why, long long found) {
  return lam_fail(LAM_INVALID_ARGUMENT,
                  "foreign %s, stage %d, micro-batch %d: argument %d (column %d) %.*s: %s %lld",
                  c->f->symbol, c->io->stage, c->io->micro, (int)(c->arg - c->f->signature.args),
                  c->arg->column, c->arg->width, c->f->text + c->arg->column - 1, why, found);
}

static lam_status find_tensor(const call *c, const DLTensor **out) {
  const bool of_output = c->arg->of_output;
  const int n = of_output ? c->io->n_out : c->io->n_in;
  if (c->arg->index >= n)
    return refuse_arg(c,
                      of_output ? "the number of outputs of this call is"
                                : "the number of inputs of this call is",
                      n);
  *out = (of_output ? c->io->out : c->io->in) + c->arg->index;
  return LAM_OK;
}

static lam_status put_integer(const call *c, int64_t value, slot *s) {
  if (c->arg->type == LAM_FOREIGN_I64) return s->i64 = value, LAM_OK;
  if (value != (int32_t)value) return refuse_arg(c, "does not fit in 32 bits:", value);
  return s->i32 = (int32_t)value, LAM_OK;
}

static lam_status put_tensor_field(const call *c, slot *s) {
  const DLTensor *t = NULL;
  LAM_TRY(find_tensor(c, &t));
  if (c->arg->source == LAM_FOREIGN_DATA) return s->p = (char *)t->data + t->byte_offset, LAM_OK;
  if (c->arg->source == LAM_FOREIGN_DIM) {
    if (c->arg->dim >= t->ndim)
      return refuse_arg(c, "the tensor's number of dimensions is", t->ndim);
    return put_integer(c, t->shape[c->arg->dim], s);
  }
  int64_t numel = 1;
  for (int d = 0; d < t->ndim; d++) numel *= t->shape[d];
  return put_integer(c, numel, s);
}

static lam_status put_arg(const call *c, void *user, slot *s) {
  switch (c->arg->source) {
    case LAM_FOREIGN_DATA:
    case LAM_FOREIGN_DIM:
    case LAM_FOREIGN_NUMEL:
      return put_tensor_field(c, s);
    case LAM_FOREIGN_MICRO:
      return put_integer(c, c->io->micro, s);
    case LAM_FOREIGN_STAGE:
      return put_integer(c, c->io->stage, s);
    case LAM_FOREIGN_STEP:
      return put_integer(c, c->io->step, s);
    case LAM_FOREIGN_USER:
      return s->p = user, LAM_OK;
    case LAM_FOREIGN_LOSS:
      if (!c->io->loss)
        return refuse_arg(c, "only the last stage is given a loss, this is stage", c->io->stage);
      return s->p = c->io->loss, LAM_OK;
    case LAM_FOREIGN_STREAM:
      return s->p = c->io->stream, LAM_OK;
    case LAM_FOREIGN_VALUE:
      return *s = c->f->given[c->arg - c->f->signature.args], LAM_OK;
  }
  return lam_fail(LAM_INTERNAL, "foreign %s: unknown source", c->f->symbol);
}

/* libffi widens an integer result to a whole ffi_arg. */
typedef union result {
  ffi_arg wide;
  int64_t i64;
} result;

static lam_status judge_result(const lam_foreign *f, const lam_stage_io *io, result r) {
  const int64_t value = f->signature.result == LAM_FOREIGN_I32 ? (int32_t)r.wide : r.i64;
  if (f->signature.result == LAM_FOREIGN_VOID || value == 0) return LAM_OK;
  return lam_fail(LAM_INTERNAL,
                  "foreign %s, stage %d, micro-batch %d: returned %" PRId64 ", expected 0",
                  f->symbol, io->stage, io->micro, value);
}

lam_status lam_foreign_call(void *foreign, const lam_stage_io *io) {
  lam_foreign *f = foreign;
  if (!f || !io)
    return lam_fail(LAM_INVALID_ARGUMENT, "lam_foreign_call: %s is NULL", f ? "io" : "foreign");
  if (io->struct_size < sizeof *io)
    return lam_fail(LAM_INVALID_ARGUMENT,
                    "lam_foreign_call: io has struct_size %u, expected %zu or more",
                    io->struct_size, sizeof *io);
  slot slots[LAM_FOREIGN_MAX_ARGS];
  void *addresses[LAM_FOREIGN_MAX_ARGS];
  for (int i = 0; i < f->signature.n_args; i++) {
    const call c = {f, io, &f->signature.args[i]};
    LAM_TRY(put_arg(&c, foreign, &slots[i]));
    addresses[i] = &slots[i];
  }
  result r = {0};
  ffi_call(&f->cif, f->function, &r, addresses);
  return judge_result(f, io, r);
}
