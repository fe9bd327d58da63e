/* row.c: the operator table's strings, parsed once, and looked up by id.
 * Invariant: rows[] is written under one pthread_once and only read after it.
 * Leaves shape rules to shape_compile.c, attribute names to attrs.c. */
#include "plugin/core/row.h"

#include <pthread.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>

/* -- one row -- */

static const struct {
  const char *prefix;
  lam_role role;
  int ndim;
} roles[] = {
    {"packed", LAM_ROLE_PACKED, 2}, {"token", LAM_ROLE_TOKEN, 1},    {"w", LAM_ROLE_WEIGHT, 2},
    {"dw", LAM_ROLE_WEIGHT, 2},     {"b", LAM_ROLE_BIAS, 1},         {"db", LAM_ROLE_BIAS, 1},
    {"g", LAM_ROLE_BIAS, 1},        {"dg", LAM_ROLE_BIAS, 1},        {"s", LAM_ROLE_SCALE, 1},
    {"ids", LAM_ROLE_INDEX, -1},    {"targets", LAM_ROLE_INDEX, -1}, {"dloss", LAM_ROLE_VALUE, -1},
    {"lse", LAM_ROLE_VALUE, -1},    {"", LAM_ROLE_ACTIVATION, -1},
};

static void set_role(lam_row_tensor *t) {
  int i = 0;
  while (strncmp(t->name, roles[i].prefix, strlen(roles[i].prefix))) i++;
  t->role = roles[i].role;
  t->ndim = roles[i].ndim;
}

static lam_status bad_row(const lam_row_text *text, const char *part, const char *at,
                          const char *what) {
  return lam_fail(LAM_INTERNAL, "row %s: %s: '%.16s': %s", text->name, part, at, what);
}

/* The next word of `*s`, split by blanks: its length, 0 at the end. Leaves *s at its first letter.
 * */
static size_t next_word(const char **s) {
  *s += strspn(*s, " ");
  return strcspn(*s, " ");
}

static void set_mark(lam_row_tensor *t, char mark) {
  t->optional |= mark == '?';
  t->accumulated |= mark == '+';
  t->any_dtype |= mark == '*';
  t->in_place |= mark == '~';
}

static lam_status parse_tensors(const lam_row_text *text, const char *part, const char *s,
                                lam_row_tensor *to, int most, int *out_n) {
  for (size_t n; (n = next_word(&s)) > 0; s += n) {
    const size_t letters = strspn(s, "abcdefghijklmnopqrstuvwxyz0123456789_");
    if (*out_n == most) return bad_row(text, part, s, "too many tensors");
    if (letters == 0 || letters >= LAM_NAME_BYTES)
      return bad_row(text, part, s, "a name has 1 to 7 letters");
    if (strspn(s + letters, "?+*~") != n - letters)
      return bad_row(text, part, s, "a mark is one of ? + * ~");
    lam_row_tensor *t = &to[(*out_n)++];
    memcpy(t->name, s, letters);
    set_role(t);
    for (size_t i = letters; i < n; i++) set_mark(t, s[i]);
  }
  return LAM_OK;
}

/* name:type or name:type=default */
static lam_status parse_attr(const lam_row_text *text, const char *s, size_t n, lam_row *row) {
  lam_row_attr *a = &row->attrs[row->n_attrs];
  const size_t letters = strcspn(s, ":");
  if (row->n_attrs == LAM_MAX_ATTRS) return bad_row(text, "attributes", s, "too many attributes");
  if (letters == 0 || letters >= LAM_NAME_BYTES || letters + 2 > n)
    return bad_row(text, "attributes", s, "expected name:type, a name of 1 to 7 letters");
  memcpy(a->name, s, letters);
  a->field = lam_attr_field_find(a->name);
  if (!a->field) return bad_row(text, "attributes", s, "no such attribute; attrs.c has the list");
  if (a->field->type != s[letters + 1])
    return bad_row(text, "attributes", s, "the type is not that of attrs.c");
  row->n_attrs++;
  if (letters + 2 == n) return LAM_OK;

  if (s[letters + 2] != '=' || a->field->type != 'i')
    return bad_row(text, "attributes", s, "expected =number");
  const lam_attr value = lam_attr_i(strtoll(s + letters + 3, NULL, 10));
  return lam_attr_bind((lam_who){text->name, a->name}, a->field, &value, &row->standard);
}

static lam_status parse_attrs(const lam_row_text *text, lam_row *row) {
  row->standard.dtype = -1;
  const char *s = text->attributes;
  for (size_t n; (n = next_word(&s)) > 0; s += n) LAM_TRY(parse_attr(text, s, n, row));
  return LAM_OK;
}

static int leader_of(const lam_row *row) {
  for (int i = 0; i < row->n_in; i++)
    if (row->in[i].role == LAM_ROLE_ACTIVATION || row->in[i].role == LAM_ROLE_WEIGHT) return i;
  return 0;
}

static lam_status check_marks(const lam_row_text *text, const lam_row *row) {
  for (int i = 0; i < row->n_out; i++) {
    const lam_row_tensor *t = &row->out[i];
    if (t->in_place && t->shape.as < 0)
      return bad_row(text, "outputs", t->name, "~ goes with a rule `as` an input");
    if (t->shape.may_be_none && !t->optional)
      return bad_row(text, "outputs", t->name, "its rule has `none`, but it has no ?");
  }
  if (row->n_in == 0 || row->in[0].optional)
    return bad_row(text, "inputs", text->inputs, "the first input is always there");
  return LAM_OK;
}

lam_status lam_row_parse(const lam_row_text *text, lam_row *out) {
  *out = (lam_row){.id = text->id, .name = text->name};
  if (strcmp(text->effect, "COMM") && strcmp(text->effect, "PURE"))
    return bad_row(text, "effect", text->effect, "expected PURE or COMM");
  out->communicates = text->effect[0] == 'C';
  LAM_TRY(parse_tensors(text, "inputs", text->inputs, out->in, LAM_MAX_INPUTS, &out->n_in));
  LAM_TRY(parse_tensors(text, "outputs", text->outputs, out->out, LAM_MAX_OUTPUTS, &out->n_out));
  LAM_TRY(parse_attrs(text, out));
  LAM_TRY(lam_shapes_compile(text->shapes, out));
  out->packed_side = !strcmp(out->in[0].name, "dy");
  out->leader = leader_of(out);
  for (int i = 0; i < out->n_in; i++) {
    const bool scale = out->in[i].role == LAM_ROLE_SCALE;
    out->scaled |= scale;
    if (!scale) out->n_unscaled = i + 1;
  }
  return check_marks(text, out);
}

/* -- the table -- */

static const lam_row_text texts[] = {
#define LAM_OP(id, name, inputs, outputs, attributes, shapes, effect) \
  {id, #name, inputs, outputs, attributes, shapes, #effect},
#include "abi/lamella_ops.def"
#undef LAM_OP
};
#define N_ROWS ((int)(sizeof texts / sizeof *texts))

static const char *const words[LAM_OP_END_] = {
#define LAM_OP(id, name, inputs, outputs, attributes, shapes, effect) \
  [id] = #id " " #name " | " inputs " | " outputs " | " attributes " | " shapes " | " #effect,
#include "abi/lamella_ops.def"
#undef LAM_OP
};

static lam_row rows[N_ROWS];
static const lam_row *row_of[LAM_OP_END_];
static lam_status first_status;
static char first_error[LAM_MESSAGE_BYTES];
static atomic_bool parsed;

static void parse_table(void) {
  for (int i = 0; i < N_ROWS; i++) {
    const lam_status s = lam_row_parse(&texts[i], &rows[i]);
    if (s == LAM_OK) row_of[texts[i].id] = &rows[i];
    if (s == LAM_OK || first_status != LAM_OK) continue;
    first_status = s;
    strcpy(first_error, lam_last_error());
  }
  atomic_store_explicit(&parsed, true, memory_order_release);
}

static void parse_table_once(void) {
  static pthread_once_t once = PTHREAD_ONCE_INIT;
  if (atomic_load_explicit(&parsed, memory_order_acquire)) return; /* the way of every call */
  pthread_once(&once, parse_table);
}

const lam_row *lam_row_find(uint32_t op) {
  parse_table_once();
  return op < LAM_OP_END_ ? row_of[op] : NULL;
}

lam_status lam_rows_check(void) {
  parse_table_once();
  return first_status == LAM_OK ? LAM_OK : lam_fail(first_status, "%s", first_error);
}

lam_status lam_row_find_name(const char *name, uint32_t *out_op) {
  for (int i = 0; i < N_ROWS; i++) {
    if (strcmp(texts[i].name, name)) continue;
    *out_op = texts[i].id;
    return LAM_OK;
  }
  return lam_fail(LAM_NOT_FOUND, "lam_op_find: no operator is called '%.64s'", name);
}

const char *lam_row_words(uint32_t op) { return op < LAM_OP_END_ ? words[op] : NULL; }
