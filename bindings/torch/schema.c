/* schema.c: one row's strings, read into a lam_torch_row and its schema.
 * Invariant: the row is one that the library's own tests have parsed: its grammar is not checked
 * again here, only that it fits. */
#include "bindings/torch/schema.h"

#include <stdarg.h>
#include <stdio.h>
#include <string.h>

typedef struct text {
  char *to;
  size_t room, n;
} text;

static void add(text *t, const char *format, ...) __attribute__((format(printf, 2, 3)));
static void add(text *t, const char *format, ...) {
  va_list args;
  va_start(args, format);
  const int n = vsnprintf(t->to + t->n, t->room - t->n, format, args);
  va_end(args);
  t->n += n < 0 ? 0 : (size_t)n;
  if (t->n >= t->room) t->n = t->room - 1; /* full: lam_torch_row_read says so */
}

/* The next word of *s: its length, 0 at the end. */
static int next_word(const char **s) {
  *s += strspn(*s, " ");
  return (int)strcspn(*s, " ");
}

static int letters(const char *word) {
  return (int)strspn(word, "abcdefghijklmnopqrstuvwxyz0123456789_");
}

static bool has_mark(const char *word, int n, char mark) {
  return memchr(word + letters(word), mark, (size_t)(n - letters(word))) != NULL;
}

/* No input from here on has to be given: only then may torch's schema have defaults. */
static bool all_optional(const char *s) {
  for (int n; (n = next_word(&s)) > 0; s += n)
    if (!has_mark(s, n, '?')) return false;
  return true;
}

static bool read_inputs(const char *s, lam_torch_row *row, text *t) {
  for (int n; (n = next_word(&s)) > 0; s += n, row->n_in++) {
    if (row->n_in == LAM_TORCH_MAX_TENSORS) return false;
    const bool optional = row->optional[row->n_in] = has_mark(s, n, '?');
    row->weight[row->n_in] = *s == 'w';
    add(t, "%sTensor%s %.*s%s", row->n_in ? ", " : "", optional ? "?" : "", letters(s), s,
        all_optional(s) ? "=None" : "");
  }
  return true;
}

/* Sizes may be symbols where torch compiles for many shapes. */
static const char *type_of_int(const char *name, int n) {
  static const char *const sizes[] = {"total", "seq", "cols"};
  for (size_t i = 0; i < sizeof sizes / sizeof *sizes; i++)
    if ((int)strlen(sizes[i]) == n && !strncmp(sizes[i], name, (size_t)n)) return "SymInt";
  return "int";
}

/* name:type or name:type=default */
static void add_attr(const char *s, int n, text *t) {
  const int name = letters(s);
  const char type = s[name + 1];
  const int given = name + 3 < n ? n - name - 3 : 0; /* length of the default */
  add(t, ", ");
  if (type == 's')
    add(t, "str %.*s=\"\"", name, s);
  else if (type == 'I')
    add(t, "SymInt[] %.*s=[]", name, s);
  else if (type == 'f')
    add(t, "float %.*s=%.*s", name, s, given ? given : 1, given ? s + name + 3 : "0");
  else
    add(t, "%s %.*s=%.*s", type_of_int(s, name), name, s, given ? given : 1,
        given ? s + name + 3 : "0");
}

static bool read_attrs(const char *s, lam_torch_row *row, text *t) {
  for (int n; (n = next_word(&s)) > 0; s += n, row->n_attrs++) {
    if (row->n_attrs == LAM_TORCH_MAX_ATTRS) return false;
    if (!strncmp(s, "acc:", 4)) continue;
    row->attr_type[row->n_attrs] = s[letters(s) + 1];
    add_attr(s, n, t);
  }
  return true;
}

/* The output's rule: up to the next ; */
static bool rule_decides(const char *shapes, const char *name, int n) {
  for (const char *rule = shapes; rule; rule = strchr(rule, ';')) {
    rule += strspn(rule, "; ");
    if (letters(rule) != n || strncmp(rule, name, (size_t)n)) continue;
    const char *none = strstr(rule, ":none"), *end = strchr(rule, ';');
    return none && (!end || none < end);
  }
  return false;
}

static bool read_outputs(const char *outputs, const char *shapes, lam_torch_row *row, text *t) {
  const char *s = outputs;
  for (int n; (n = next_word(&s)) > 0; s += n, row->n_out++) {
    if (row->n_out == LAM_TORCH_MAX_TENSORS) return false;
    if (!has_mark(s, n, '?') || rule_decides(shapes, s, letters(s))) continue;
    row->asked[row->n_out] = true;
    add(t, ", int %.*s=1", letters(s), s);
  }
  return true;
}

static void add_results(const char *s, text *t) {
  add(t, ") -> (");
  for (int i = 0, n; (n = next_word(&s)) > 0; i++, s += n)
    add(t, "%sTensor %.*s", i ? ", " : "", letters(s), s);
  add(t, ")");
}

static bool is_input(const char *inputs, const char *name, int length) {
  for (int n; (n = next_word(&inputs)) > 0; inputs += n)
    if (letters(inputs) == length && !strncmp(inputs, name, (size_t)length)) return true;
  return false;
}

/* *, Tensor(a!) y, Tensor(b!) out_token) -> (Tensor(a!), Tensor(b!)) */
static void add_given(const char *inputs, const char *s, text *t) {
  char mark = 'a';
  add(t, ", *");
  for (int n; (n = next_word(&s)) > 0; s += n)
    add(t, ", Tensor(%c!) %s%.*s", mark++, is_input(inputs, s, letters(s)) ? "out_" : "",
        letters(s), s);
  add(t, ") -> (");
  for (char m = 'a'; m < mark; m++) add(t, "%sTensor(%c!)", m > 'a' ? ", " : "", m);
  add(t, ")");
}

bool lam_torch_row_read(uint32_t id, const char *name, const char *inputs, const char *outputs,
                        const char *attributes, const char *shapes, lam_torch_row *out) {
  char arguments[LAM_TORCH_SCHEMA];
  *out = (lam_torch_row){.id = id, .name = name};
  text args = {arguments, sizeof arguments, 0};
  if (!read_inputs(inputs, out, &args) || !read_attrs(attributes, out, &args) ||
      !read_outputs(outputs, shapes, out, &args))
    return false;
  text made = {out->schema, sizeof out->schema, 0}, given = {out->into, sizeof out->into, 0};
  add(&made, "%s(%s", name, arguments);
  add_results(outputs, &made);
  if (!strchr(outputs, '?')) {
    add(&given, "%s.out(%s", name, arguments);
    add_given(inputs, outputs, &given);
  }
  return made.n + 1 < made.room && given.n + 1 < given.room;
}
