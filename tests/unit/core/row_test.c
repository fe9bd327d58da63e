/* row_test.c: the operator table parses, and every way to write a row wrongly is caught with its
 * place. */
#include "plugin/core/row.h"

#include <stdio.h>

#include "tests/unit/core/host.h"

TEST(rows, the_whole_table_parses) {
  CHECK_OK(lam_rows_check());
  int n = 0;
  for (uint32_t op = 0; op < LAM_OP_END_; op++) {
    const lam_row *row = lam_row_find(op);
    CHECK_EQ(row != NULL, lam_row_words(op) != NULL);
    if (!row) continue;
    uint32_t found;
    CHECK_OK(lam_row_find_name(row->name, &found));
    CHECK_EQ(found, op);
    n++;
  }
  CHECK_EQ(n, 39);
}

TEST(rows, a_row_holds_what_its_line_says) {
  const lam_row *row = lam_row_find(LAM_OP_linear_row);
  REQUIRE(row != NULL);
  CHECK_STR(row->name, "linear_row");
  CHECK_EQ(row->n_in, 5);
  CHECK_EQ(row->n_out, 1);
  CHECK_EQ(row->n_attrs, 7);
  CHECK(row->communicates);
  CHECK_STR(row->in[1].name, "w");
  CHECK_EQ(row->in[1].role, LAM_ROLE_WEIGHT);
  CHECK(!row->in[1].optional && row->in[2].optional);
  CHECK_STR(row->attrs[1].name, "split");
  CHECK_EQ(row->standard.split, 1);
  CHECK_EQ(row->standard.seq, 0);
  CHECK_EQ(row->standard.dtype, -1);
  CHECK_EQ(lam_row_find(LAM_OP_send_activation)->standard.tag, -1);
  CHECK(lam_row_find(LAM_OP_send_activation)->out[0].in_place);
  CHECK(lam_row_find(LAM_OP_linear_wgrad)->out[1].accumulated);
  CHECK_EQ(lam_row_find(LAM_OP_linear_dgrad)->packed_side, 1);
  CHECK_EQ(row->leader, 0);
  CHECK_EQ(lam_row_find(LAM_OP_recv_activation)->leader, 0);
  CHECK_EQ(lam_row_find(LAM_OP_embedding_vocab)->leader, 1);
  CHECK_EQ(lam_row_find(LAM_OP_cross_entropy_vocab_bwd)->leader, 1);
  CHECK_EQ(lam_row_find(LAM_OP_embedding_vocab)->in[0].role, LAM_ROLE_INDEX);
  CHECK_EQ(lam_row_find(LAM_OP_cross_entropy_vocab_bwd)->in[3].role, LAM_ROLE_VALUE);
  CHECK_EQ(lam_row_find(LAM_OP_cross_entropy_vocab)->standard.ignore, -100);
  CHECK(lam_row_find(3) == NULL);
  CHECK(lam_row_find(UINT32_MAX) == NULL);
  CHECK(lam_row_words(UINT32_MAX) == NULL);
}

/* -- rows that must not parse -- */

static const lam_row_text good = {
    9, "op", "x w b?", "y aux?", "act:s save:i total:i", "y: x[:-1] N(w); aux: as x", "PURE"};

typedef struct wrong_row {
  lam_row_text text;
  const char *words;
} wrong_row;

static lam_status parse(lam_row_text t) {
  lam_row row;
  if (!t.inputs) t.inputs = good.inputs;
  if (!t.outputs) t.outputs = good.outputs;
  if (!t.attributes) t.attributes = good.attributes;
  if (!t.shapes) t.shapes = good.shapes;
  if (!t.effect) t.effect = good.effect;
  t.name = "op";
  return lam_row_parse(&t, &row);
}

TEST(rows, wrong_rows_are_told_apart) {
  static const wrong_row wrong[] = {
      {{.effect = "NOISE"}, "row op: effect: 'NOISE': expected PURE or COMM"},
      {{.inputs = "", .outputs = "", .shapes = ""},
       "row op: inputs: '': the first input is always there"},
      {{.inputs = "x? w"}, "row op: inputs: 'x? w': the first input is always there"},
      {{.inputs = "x w activation"}, "row op: inputs: 'activation': a name has 1 to 7 letters"},
      {{.inputs = "x w b!"}, "row op: inputs: 'b!': a mark is one of ? + * ~"},
      {{.inputs = "x w x1 x2 x3 x4 x5 x6 x7"}, "row op: inputs: 'x7': too many tensors"},
      {{.outputs = "y~ aux?"}, "row op: outputs: 'y': ~ goes with a rule `as` an input"},
      {{.attributes = "act"},
       "row op: attributes: 'act': expected name:type, a name of 1 to 7 letters"},
      {{.attributes = "color:i"},
       "row op: attributes: 'color:i': no such attribute; attrs.c has the list"},
      {{.attributes = "act:i"}, "row op: attributes: 'act:i': the type is not that of attrs.c"},
      {{.attributes = "save:i?"}, "row op: attributes: 'save:i?': expected =number"},
      {{.attributes = "save:i=2"}, "op: save: found 2, expected 0 to 1"},
      {{.shapes = "y: x[:-1] N(w)"}, "row op: shapes: at 14, '': expected ';'"},
      {{.shapes = "z: x[:-1]; aux: as x"}, "row op: shapes: at 0, 'z: x[:-1]; a': expected y"},
      {{.shapes = "y: v[0]; aux: as x"},
       "row op: shapes: at 3, 'v[0]; aux: a': expected the name of an input"},
      {{.shapes = "y: N(x); aux: as x"}, "row op: shapes: at 6, '); aux: as x': expected a weight"},
      {{.shapes = "y: $chunks; aux: as x"},
       "row op: shapes: at 4, 'chunks; aux:': expected an attribute of an int"},
      {{.shapes = "y: x[0; aux: as x"}, "row op: shapes: at 6, '; aux: as x': expected ':'"},
      {{.shapes = "y: {$save?x[0]}; aux: as x"},
       "row op: shapes: at 14, '}; aux: as x': expected ':'"},
      {{.shapes = "y: {$save?x[0]:x[1]; aux: as x"},
       "row op: shapes: at 19, '; aux: as x': expected '}'"},
      {{.shapes = "y: size; aux: as x"}, "row op: shapes: at 7, '; aux: as x': expected '('"},
      {{.shapes = "y: share(x[0]); aux: as x"},
       "row op: shapes: at 13, '); aux: as x': expected ','"},
      {{.shapes = "y: x[0] @i8; aux: as x"},
       "row op: shapes: at 9, 'i8; aux: as ': expected f32, u8 or $dtype"},
      {{.shapes = "y: 99999; aux: as x"},
       "row op: shapes: at 3, '99999; aux: ': expected a number or a name"},
      {{.shapes = "y: x[0]*; aux: as x"},
       "row op: shapes: at 8, '; aux: as x': expected a number or a name"},
      {{.shapes = "y: x[0]; aux: as x; y: x[0]"},
       "row op: shapes: at 18, '; y: x[0]': expected the end"},
      {{.shapes = "y: 1+(2+(3+(4+(5+(6+(7+(8+9))))))); aux: as x"},
       "row op: shapes: at 27, '))))))); aux': expected a simpler rule: its stack is full"},
      {{.shapes = "y: {$save?none:x[0]}; aux: as x"},
       "row op: outputs: 'y': its rule has `none`, but it has no ?"},
  };
  CHECK_OK(parse(good));
  for (size_t i = 0; i < sizeof wrong / sizeof *wrong; i++) {
    NOTE("row %d", (int)i);
    CHECK(parse(wrong[i].text) != LAM_OK);
    CHECK_STR(lam_last_error(), wrong[i].words);
  }
}

TEST(rows, a_row_that_is_too_long_is_told) {
  char shapes[1024] = "y:";
  for (int i = 0; i < 90; i++) strcat(shapes, " x[0]");
  strcat(shapes, "; aux: as x");
  CHECK_EQ(parse((lam_row_text){.shapes = shapes}), LAM_INTERNAL);
  CHECK_CONTAINS(lam_last_error(), "expected a shorter row: its code is full");
}

/* -- rules, run -- */

typedef struct ruled { /* one rule over x [2, 3, 10] and w [7, 10], rank 1 of 3 */
  const char *rule;
  int ndim;
  int64_t dims[4];
} ruled;

static lam_status run_rule(const char *rule, lam_shape *out) {
  static host_tensor x, w;
  char shapes[256];
  lam_row row;
  lam_op_attrs attrs = {.total = 22, .unit = 2, .seq = 5, .save = 0, .gather = 1, .dtype = -1};
  HOST(&x, NULL, F32, 2, 3, 10);
  HOST(&w, NULL, F32, 7, 10);
  snprintf(shapes, sizeof shapes, "y: %s", rule);
  const lam_row_text text = {
      9, "op", "x w", "y?", "total:i unit:i seq:i save:i gather:i dtype:i", shapes, "COMM"};
  LAM_TRY(lam_row_parse(&text, &row));
  const DLTensor *in[] = {&x.t, &w.t};
  const lam_shape_env env = {.in = in, .attrs = &attrs, .rank = 1, .size = 3};
  return lam_shape_run(&row, 0, &env, out);
}

TEST(shapes, rules_mean_what_the_table_says) {
  static const ruled rules[] = {
      {"x[:-1] N(w)", 3, {2, 3, 7}},
      {"as x", 3, {2, 3, 10}},
      {"x[1:]", 2, {3, 10}},
      {"x[1:-1]", 1, {3}},
      {"x[:]", 3, {2, 3, 10}},
      {"x[$save+1:]", 2, {3, 10}},
      {"x[:$gather] K(w)", 2, {2, 10}},
      {"x[-1]", 1, {10}},
      {"x[-1]*size() 2", 2, {30, 2}},
      {"(x[0]+x[1])*2-1", 1, {9}},
      {"x[2]/2", 1, {5}},
      {"share(x[-1],1)", 1, {3}},
      {"pieces(x[-1],1) pieces(0,7) pieces(7,7) pieces(8,7)", 4, {10, 0, 1, 2}},
      {"share($total,$unit)", 1, {8}}, /* 11 units of 2 over 3 ranks: 8 8 6 */
      {"{$save?x[0]:x[1]}", 1, {3}},
      {"{$gather?{$total?$total:9}:1} {$save?2:$seq x[1:-1]}", 3, {22, 5, 3}},
      {"{$save?x[0]:none}", -1, {0}},
  };
  for (size_t i = 0; i < sizeof rules / sizeof *rules; i++) {
    lam_shape got;
    NOTE("%s", rules[i].rule);
    if (!CHECK_OK(run_rule(rules[i].rule, &got)) || !CHECK_EQ(got.ndim, rules[i].ndim)) continue;
    for (int k = 0; k < got.ndim; k++) CHECK_EQ(got.dims[k], rules[i].dims[k]);
    CHECK_EQ(got.dtype.bits, 32);
  }
}

TEST(shapes, what_a_call_makes_impossible_is_refused) {
  lam_shape got;
  CHECK_REFUSED(run_rule("x[3]", &got),
                "op: x: found 3 dimensions, its shape rule takes dimension 3");
  CHECK_REFUSED(run_rule("x[-4]", &got),
                "op: x: found 3 dimensions, its shape rule takes dimension -4");
  CHECK_REFUSED(run_rule("x[:4]", &got),
                "op: x: found 3 dimensions, its shape rule takes dimension 3");
  CHECK_REFUSED(run_rule("w[1:0]", &got),
                "op: w: found 2 dimensions, its shape rule takes dimension 1");
  CHECK_REFUSED(run_rule("share(x[-1],4)", &got),
                "op: y: 10 elements are shared out, expected a multiple of unit 4");
  CHECK_REFUSED(run_rule("x[0]-5", &got), "op: y: its dimension 0 would be -3");
  CHECK_REFUSED(run_rule("x[2]/3", &got),
                "op: y: its shape takes 10 / 3, which is no whole number in range");
  CHECK_REFUSED(run_rule("x[2]/$save", &got),
                "op: y: its shape takes 10 / 0, which is no whole number in range");
  CHECK_REFUSED(
      run_rule("32767*32767*32767*32767*32767", &got),
      "op: y: its shape takes 1152780773560811521 * 32767, which is no whole number in range");
  CHECK_REFUSED(run_rule("as x", &got) + run_rule("1 1 1 1 1 1 1 1 1", &got),
                "op: y: it would have more than 8 dimensions");
}
