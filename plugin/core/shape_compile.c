/* shape_compile.c: shape rules, from text to steps, by recursive descent over the grammar in
 * lamella_ops.def.
 * Invariant: every error names the row and the place in its text; a rule that compiles keeps its
 * stack within LAM_SHAPE_DEPTH and empty at the end of each piece.
 * Leaves running the steps to shape_run.c. */
#include <ctype.h>
#include <stdlib.h>
#include <string.h>

#include "plugin/core/row.h"

typedef struct parser {
  const char *text, *at;
  lam_row *row;
  lam_shape_rule *rule;
  int depth; /* values on the stack */
} parser;

static lam_status parse_shape(parser *p);
static lam_status parse_expr(parser *p);

static lam_status wrong(const parser *p, const char *expected) {
  return lam_fail(LAM_INTERNAL, "row %s: shapes: at %d, '%.12s': expected %s", p->row->name,
                  (int)(p->at - p->text), p->at, expected);
}

/* -- letters and words -- */

static void skip_blanks(parser *p) {
  while (*p->at == ' ') p->at++;
}

static bool accept(parser *p, char c) {
  if (*p->at != c) return false;
  p->at++;
  return true;
}

static lam_status expect(parser *p, char c) {
  return accept(p, c) ? LAM_OK : wrong(p, (const char[]){'\'', c, '\'', 0});
}

static size_t word_length(const char *s) {
  size_t n = 0;
  while (isalnum((unsigned char)s[n]) || s[n] == '_') n++;
  return isdigit((unsigned char)*s) ? 0 : n;
}

static bool accept_word(parser *p, const char *word) {
  const size_t n = strlen(word);
  if (word_length(p->at) != n || strncmp(p->at, word, n)) return false;
  p->at += n;
  return true;
}

static lam_status parse_input(parser *p, uint8_t *out_input) {
  const size_t n = word_length(p->at);
  for (int i = 0; i < p->row->n_in; i++) {
    if (strlen(p->row->in[i].name) != n || strncmp(p->row->in[i].name, p->at, n)) continue;
    p->at += n;
    *out_input = (uint8_t)i;
    return LAM_OK;
  }
  return wrong(p, "the name of an input");
}

static lam_status parse_attr(parser *p, char type, uint16_t *out_at) {
  const size_t n = word_length(p->at);
  for (int i = 0; i < p->row->n_attrs; i++) {
    const lam_row_attr *a = &p->row->attrs[i];
    if (strlen(a->name) != n || strncmp(a->name, p->at, n) || a->field->type != type) continue;
    p->at += n;
    *out_at = a->field->offset;
    return LAM_OK;
  }
  return wrong(p, type == 'I' ? "an attribute of ints" : "an attribute of an int");
}

/* -- steps -- */

static const int8_t stack_change[LAM_SHAPE_N_STEPS] = {
    [LAM_SHAPE_NUMBER] = 1,  [LAM_SHAPE_ATTR] = 1,       [LAM_SHAPE_ROWS] = 1,
    [LAM_SHAPE_COLS] = 1,    [LAM_SHAPE_SIZE] = 1,       [LAM_SHAPE_SHARE] = -1,
    [LAM_SHAPE_PIECES] = -1, [LAM_SHAPE_ADD] = -1,       [LAM_SHAPE_SUB] = -1,
    [LAM_SHAPE_MUL] = -1,    [LAM_SHAPE_DIV] = -1,       [LAM_SHAPE_EMIT] = -1,
    [LAM_SHAPE_SLICE] = -2,  [LAM_SHAPE_JUMP_IF_0] = -1,
};

static lam_status put(parser *p, lam_shape_code code) {
  p->depth += stack_change[code.step];
  if (p->depth > LAM_SHAPE_DEPTH) return wrong(p, "a simpler rule: its stack is full");
  if (p->row->n_code == LAM_ROW_CODE) return wrong(p, "a shorter row: its code is full");
  p->row->code[p->row->n_code++] = code;
  return LAM_OK;
}

static lam_status put_number(parser *p, int32_t value) {
  return put(p, (lam_shape_code){.step = LAM_SHAPE_NUMBER, .value = value});
}

static lam_status put_step(parser *p, lam_shape_step step) {
  return put(p, (lam_shape_code){.step = (uint8_t)step});
}

static lam_status put_input(parser *p, lam_shape_step step, uint8_t input) {
  return put(p, (lam_shape_code){.step = (uint8_t)step, .input = input});
}

/* -- expressions -- */

static lam_status parse_number(parser *p) {
  char *end;
  const long value = strtol(p->at, &end, 10);
  if (end == p->at || value > INT16_MAX || value < INT16_MIN) return wrong(p, "a number or a name");
  p->at = end;
  return put_number(p, (int32_t)value);
}

static lam_status parse_weight(parser *p, lam_shape_step step) {
  uint8_t input;
  LAM_TRY(expect(p, '('));
  LAM_TRY(parse_input(p, &input));
  if (p->row->in[input].role != LAM_ROLE_WEIGHT) return wrong(p, "a weight");
  LAM_TRY(expect(p, ')'));
  return put_input(p, step, input);
}

/* share(a,b), pieces(a,b) */
static lam_status parse_of_two(parser *p, lam_shape_step step) {
  LAM_TRY(expect(p, '('));
  LAM_TRY(parse_expr(p));
  LAM_TRY(expect(p, ','));
  LAM_TRY(parse_expr(p));
  LAM_TRY(expect(p, ')'));
  return put_step(p, step);
}

static lam_status parse_size(parser *p) {
  LAM_TRY(expect(p, '('));
  LAM_TRY(expect(p, ')'));
  return put_step(p, LAM_SHAPE_SIZE);
}

static lam_status parse_dim(parser *p) {
  uint8_t input;
  LAM_TRY(parse_input(p, &input));
  LAM_TRY(expect(p, '['));
  LAM_TRY(parse_expr(p));
  LAM_TRY(expect(p, ']'));
  return put_input(p, LAM_SHAPE_DIM, input);
}

static lam_status parse_factor(parser *p) {
  uint16_t at;
  if (accept(p, '(')) {
    LAM_TRY(parse_expr(p));
    return expect(p, ')');
  }
  if (accept(p, '$')) {
    LAM_TRY(parse_attr(p, 'i', &at));
    return put(p, (lam_shape_code){.step = LAM_SHAPE_ATTR, .at = at});
  }
  if (accept_word(p, "N")) return parse_weight(p, LAM_SHAPE_ROWS);
  if (accept_word(p, "K")) return parse_weight(p, LAM_SHAPE_COLS);
  if (accept_word(p, "share")) return parse_of_two(p, LAM_SHAPE_SHARE);
  if (accept_word(p, "pieces")) return parse_of_two(p, LAM_SHAPE_PIECES);
  if (accept_word(p, "size")) return parse_size(p);
  return word_length(p->at) ? parse_dim(p) : parse_number(p);
}

static lam_status parse_term(parser *p) {
  LAM_TRY(parse_factor(p));
  while (*p->at == '*' || *p->at == '/') {
    const lam_shape_step step = *p->at++ == '*' ? LAM_SHAPE_MUL : LAM_SHAPE_DIV;
    LAM_TRY(parse_factor(p));
    LAM_TRY(put_step(p, step));
  }
  return LAM_OK;
}

static lam_status parse_expr(parser *p) {
  LAM_TRY(parse_term(p));
  while (*p->at == '+' || *p->at == '-') {
    const lam_shape_step step = *p->at++ == '+' ? LAM_SHAPE_ADD : LAM_SHAPE_SUB;
    LAM_TRY(parse_term(p));
    LAM_TRY(put_step(p, step));
  }
  return LAM_OK;
}

/* -- pieces -- */

/* At `x[a:b]`, not at `x[i]`. */
static bool at_slice(const parser *p) {
  const char *s = p->at + word_length(p->at);
  if (s == p->at || *s != '[') return false;
  return s[strcspn(s, ":]")] == ':';
}

/* Both ends are nearly always numbers: then one step instead of three. */
static lam_status put_slice(parser *p, uint8_t input) {
  lam_shape_code *end = &p->row->code[p->row->n_code - 1], *begin = end - 1;
  if (begin->step != LAM_SHAPE_NUMBER || end->step != LAM_SHAPE_NUMBER)
    return put_input(p, LAM_SHAPE_SLICE, input);
  p->row->n_code -= 2;
  p->depth -= 2;
  const int32_t both = begin->value | (int32_t)((uint32_t)end->value << 16);
  return put(p, (lam_shape_code){.step = LAM_SHAPE_SLICE_AT, .input = input, .value = both});
}

/* What the steps from `first` on push becomes a dimension. */
static lam_status put_dim(parser *p, int first) {
  lam_shape_code *last = &p->row->code[p->row->n_code - 1];
  if (p->row->n_code - first != 1 || last->step != LAM_SHAPE_ROWS)
    return put_step(p, LAM_SHAPE_EMIT);
  last->step = LAM_SHAPE_EMIT_ROWS;
  p->depth--;
  return LAM_OK;
}

static lam_status parse_slice(parser *p) {
  uint8_t input;
  LAM_TRY(parse_input(p, &input));
  LAM_TRY(expect(p, '['));
  LAM_TRY(*p->at == ':' ? put_number(p, 0) : parse_expr(p));
  LAM_TRY(expect(p, ':'));
  LAM_TRY(*p->at == ']' ? put_number(p, LAM_SHAPE_OPEN_END) : parse_expr(p));
  LAM_TRY(expect(p, ']'));
  return put_slice(p, input);
}

/* Nearly always by an attribute alone: then one step instead of two. */
static lam_status put_skip(parser *p) {
  lam_shape_code *last = &p->row->code[p->row->n_code - 1];
  if (last->step != LAM_SHAPE_ATTR) return put_step(p, LAM_SHAPE_JUMP_IF_0);
  last->step = LAM_SHAPE_UNLESS;
  p->depth--;
  return LAM_OK;
}

static lam_status parse_choice(parser *p) {
  lam_shape_code *code = p->row->code;
  LAM_TRY(parse_expr(p));
  LAM_TRY(expect(p, '?'));
  LAM_TRY(put_skip(p));
  const int skip = p->row->n_code - 1;
  LAM_TRY(parse_shape(p));
  LAM_TRY(expect(p, ':'));
  const int leave = p->row->n_code;
  LAM_TRY(put_step(p, LAM_SHAPE_JUMP));
  code[skip].value = p->row->n_code;
  LAM_TRY(parse_shape(p));
  code[leave].value = p->row->n_code;
  return expect(p, '}');
}

static bool at_ints(const parser *p) {
  for (int i = 0; i < p->row->n_attrs; i++) {
    const lam_row_attr *a = &p->row->attrs[i];
    if (a->field->type == 'I' && word_length(p->at + 1) == strlen(a->name) &&
        !strncmp(a->name, p->at + 1, strlen(a->name)))
      return *p->at == '$';
  }
  return false;
}

static lam_status parse_ints(parser *p) {
  uint16_t at;
  p->at++;
  LAM_TRY(parse_attr(p, 'I', &at));
  return put(p, (lam_shape_code){.step = LAM_SHAPE_INTS, .at = at});
}

static lam_status parse_piece(parser *p) {
  if (accept(p, '{')) return parse_choice(p);
  if (accept_word(p, "none")) {
    p->rule->may_be_none = true;
    return put_step(p, LAM_SHAPE_NONE);
  }
  if (at_ints(p)) return parse_ints(p);
  if (at_slice(p)) return parse_slice(p);
  const int first = p->row->n_code;
  LAM_TRY(parse_expr(p));
  return put_dim(p, first);
}

static lam_status parse_shape(parser *p) {
  for (skip_blanks(p); *p->at && !strchr(";@:}", *p->at); skip_blanks(p)) LAM_TRY(parse_piece(p));
  return LAM_OK;
}

/* -- rules -- */

static lam_status parse_as(parser *p) {
  uint8_t input;
  skip_blanks(p);
  LAM_TRY(parse_input(p, &input));
  p->rule->as = (int8_t)input;
  p->rule->dtype_rule = LAM_AS_INPUT;
  skip_blanks(p);
  return put_input(p, LAM_SHAPE_COPY, input);
}

static lam_status parse_dtype(parser *p) {
  uint16_t at;
  p->rule->dtype_rule = LAM_AS_NAMED;
  p->rule->dtype = LAM_F32;
  if (accept_word(p, "f32")) return LAM_OK;
  p->rule->dtype = LAM_U8;
  if (accept_word(p, "u8")) return LAM_OK;
  p->rule->dtype_rule = LAM_AS_ATTR;
  if (!accept(p, '$') || strncmp(p->at, "dtype", 5)) return wrong(p, "f32, u8 or $dtype");
  return parse_attr(p, 'i', &at);
}

/* A rule that is one choice between a shape and none, by one attribute, need not be run to see that
 * the output is absent: most outputs of this kind are. */
static int16_t switch_of(const lam_shape_code *rule, const lam_shape_code *code) {
  if (rule->step != LAM_SHAPE_UNLESS) return -1;
  const lam_shape_code *otherwise = code + rule->value;
  const bool none = otherwise[0].step == LAM_SHAPE_NONE && otherwise[1].step == LAM_SHAPE_END;
  return none ? (int16_t)rule->at : -1;
}

static lam_status parse_rule(parser *p, lam_row_tensor *output) {
  const int first = p->row->n_code;
  p->rule = &output->shape;
  *p->rule = (lam_shape_rule){.first = (uint16_t)first, .as = -1};
  if (!accept_word(p, output->name)) return wrong(p, output->name);
  LAM_TRY(expect(p, ':'));
  skip_blanks(p);
  LAM_TRY(accept_word(p, "as") ? parse_as(p) : parse_shape(p));
  if (accept(p, '@')) LAM_TRY(parse_dtype(p));
  LAM_TRY(put_step(p, LAM_SHAPE_END));
  p->rule->only_if = switch_of(p->row->code + first, p->row->code);
  return LAM_OK;
}

lam_status lam_shapes_compile(const char *text, lam_row *row) {
  parser p = {.text = text, .at = text, .row = row};
  row->n_code = 0;
  for (int i = 0; i < row->n_out; i++) {
    if (i > 0) LAM_TRY(expect(&p, ';'));
    skip_blanks(&p);
    LAM_TRY(parse_rule(&p, &row->out[i]));
    skip_blanks(&p);
  }
  return *p.at ? wrong(&p, "the end") : LAM_OK;
}
