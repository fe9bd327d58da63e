/* foreign_parse.c: reads the signature of a foreign function:
 *
 *   signature = { type ":" name } "->" result      words apart by spaces
 *   type      = p | i32 | i64 | f32 | f64          result = i32 | i64 | void
 *   name      = ("in" | "out") number ".data" | ".dim" digit | ".numel"
 *             | micro | stage | step | user | loss | stream | "$" number
 *
 * Invariant: every refusal names the column and what was expected there; nothing past the text's
 * NUL is read.
 * Leaves given values, libraries and symbols to foreign.c. */
#include "plugin/pipeline/run/foreign.h"

#include <string.h>

enum { NUMBER_MAX = 999, QUOTE_MAX = 24 };

const char *const lam_foreign_type_names[LAM_FOREIGN_N_TYPES] = {"p",   "i32", "i64",
                                                                 "f32", "f64", "void"};

typedef struct cursor {
  const char *text, *at;
} cursor;

static lam_status refuse(const cursor *c, const char *found, const char *expected) {
  const int column = (int)(c->at - c->text) + 1;
  const int n = (int)strcspn(c->at, " \t\n"), shown = n < QUOTE_MAX ? n : QUOTE_MAX;
  if (n == 0)
    return lam_fail(LAM_INVALID_ARGUMENT,
                    "lam_foreign_create: signature, column %d: %s at its end, expected %s", column,
                    found, expected);
  return lam_fail(LAM_INVALID_ARGUMENT,
                  "lam_foreign_create: signature, column %d: %s \"%.*s\", expected %s", column,
                  found, shown, c->at, expected);
}

static void skip_spaces(cursor *c) { c->at += strspn(c->at, " \t\n"); }

static bool at_word_end(const char *at) { return *at == 0 || strchr(" \t\n", *at) != NULL; }

static bool take(cursor *c, const char *word) {
  const size_t n = strlen(word);
  if (strncmp(c->at, word, n) != 0) return false;
  c->at += n;
  return true;
}

static bool take_number(cursor *c, int *out) {
  const char *at = c->at;
  int n = 0;
  for (; *at >= '0' && *at <= '9'; at++)
    if ((n = n * 10 + (*at - '0')) > NUMBER_MAX) return false;
  if (at == c->at) return false;
  c->at = at;
  *out = n;
  return true;
}

static lam_status parse_type(cursor *c, lam_foreign_type *out) {
  for (int t = LAM_FOREIGN_P; t < LAM_FOREIGN_VOID; t++) {
    cursor after = *c;
    if (!take(&after, lam_foreign_type_names[t]) || *after.at != ':') continue;
    c->at = after.at + 1;
    *out = (lam_foreign_type)t;
    return LAM_OK;
  }
  return refuse(c, "unknown type", "p: i32: i64: f32: or f64: before a name, or ->");
}

static bool parse_tensor_field(cursor *c, lam_foreign_arg *a) {
  if (take(c, ".data")) return a->source = LAM_FOREIGN_DATA, true;
  if (take(c, ".numel")) return a->source = LAM_FOREIGN_NUMEL, true;
  a->source = LAM_FOREIGN_DIM;
  return take(c, ".dim") && take_number(c, &a->dim) && a->dim < 8;
}

static bool parse_plain_name(cursor *c, lam_foreign_arg *a) {
  static const struct {
    const char *name;
    lam_foreign_source source;
  } names[] = {{"micro", LAM_FOREIGN_MICRO},
               {"stage", LAM_FOREIGN_STAGE},
               {"step", LAM_FOREIGN_STEP},
               {"user", LAM_FOREIGN_USER},
               {"loss", LAM_FOREIGN_LOSS},
               {"stream", LAM_FOREIGN_STREAM}};
  for (size_t i = 0; i < sizeof names / sizeof *names; i++)
    if (take(c, names[i].name)) return a->source = names[i].source, true;
  a->source = LAM_FOREIGN_VALUE;
  return take(c, "$") && take_number(c, &a->index);
}

static lam_status parse_name(cursor *c, lam_foreign_arg *a) {
  cursor word = *c;
  a->of_output = strncmp(c->at, "out", 3) == 0;
  const bool is_tensor = (take(&word, "in") || take(&word, "out")) && take_number(&word, &a->index);
  const bool known =
      is_tensor ? parse_tensor_field(&word, a) : (word = *c, parse_plain_name(&word, a));
  if (!known || !at_word_end(word.at))
    return refuse(c, "unknown name",
                  "in<i> or out<i> with .data, .numel or .dim0 to .dim7, or micro, stage, step, "
                  "user, loss, stream, $<i>");
  c->at = word.at;
  return LAM_OK;
}

/* Which types a source can be passed as, one bit each. */
static unsigned fitting_types(lam_foreign_source s) {
  const unsigned address = 1u << LAM_FOREIGN_P,
                 integer = 1u << LAM_FOREIGN_I32 | 1u << LAM_FOREIGN_I64;
  switch (s) {
    case LAM_FOREIGN_DATA:
    case LAM_FOREIGN_USER:
    case LAM_FOREIGN_LOSS:
    case LAM_FOREIGN_STREAM:
      return address;
    case LAM_FOREIGN_VALUE:
      return ~0u; /* foreign.c compares it with the value that was given */
    default:
      return integer;
  }
}

static lam_status parse_arg(cursor *c, lam_foreign_arg *a) {
  const cursor start = *c;
  LAM_TRY(parse_type(c, &a->type));
  LAM_TRY(parse_name(c, a));
  a->column = (int)(start.at - start.text) + 1;
  a->width = (int)(c->at - start.at);
  const unsigned fitting = fitting_types(a->source);
  if (fitting & 1u << a->type) return LAM_OK;
  return refuse(&start, "type does not fit in",
                fitting & 1u << LAM_FOREIGN_P ? "p: this name is an address"
                                              : "i32 or i64: this name is an integer");
}

static lam_status parse_result(cursor *c, lam_foreign_type *out) {
  skip_spaces(c);
  static const lam_foreign_type results[] = {LAM_FOREIGN_I32, LAM_FOREIGN_I64, LAM_FOREIGN_VOID};
  for (size_t i = 0; i < sizeof results / sizeof *results; i++) {
    cursor after = *c;
    if (!take(&after, lam_foreign_type_names[results[i]]) || !at_word_end(after.at)) continue;
    skip_spaces(&after);
    if (*after.at) return refuse(&after, "more text", "the end, after the result");
    *out = results[i];
    return LAM_OK;
  }
  return refuse(c, "unknown result", "i32, i64 (other than 0 = failed) or void");
}

lam_status lam_foreign_parse(const char *text, lam_foreign_signature *out) {
  cursor c = {text, text};
  *out = (lam_foreign_signature){.n_args = 0};
  for (skip_spaces(&c); !take(&c, "->"); skip_spaces(&c)) {
    if (*c.at == 0) return refuse(&c, "no result", "-> i32, -> i64 or -> void");
    if (out->n_args == LAM_FOREIGN_MAX_ARGS)
      return refuse(&c, "too many arguments:", "at most 32, then ->");
    LAM_TRY(parse_arg(&c, &out->args[out->n_args]));
    out->n_args++;
  }
  return parse_result(&c, &out->result);
}
