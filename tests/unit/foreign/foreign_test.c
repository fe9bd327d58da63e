/* foreign_test.c: foreign stage functions: what a signature binds, and that every wrong one is
 * refused where it is wrong. The library libtarget.so lies beside this program. Leaves foreign
 * functions in a pipeline to tests/distributed/pipeline. */
#include "plugin/pipeline/run/foreign.h"
#include "tests/check.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static const char *target_path(void) {
  static char path[4200];
  const ssize_t n = readlink("/proc/self/exe", path, 4000);
  path[n < 0 ? 0 : n] = 0;
  char *slash = strrchr(path, '/');
  strcpy(slash ? slash + 1 : path, "libtarget.so");
  return path;
}

/* A call of stage 4, micro-batch 2, step 7 with one f32 input [3, 2] and one output. */
typedef struct sample {
  float x[8], y[8];
  int64_t in_shape[2], out_shape[1];
  DLTensor in, out;
  double loss;
  lam_stage_io io;
} sample;

static void make_sample(sample *s) {
  *s = (sample){.x = {9, 1, 2, 3, 4, 5, 6}, .in_shape = {3, 2}, .out_shape = {6}};
  s->in = (DLTensor){.data = s->x,
                     .byte_offset = sizeof(float),
                     .ndim = 2,
                     .dtype = {kDLFloat, 32, 1},
                     .shape = s->in_shape};
  s->out = (DLTensor){.data = s->y, .ndim = 1, .dtype = {kDLFloat, 32, 1}, .shape = s->out_shape};
  s->io = (lam_stage_io){.struct_size = sizeof s->io,
                         .stage = 4,
                         .micro = 2,
                         .n_in = 1,
                         .n_out = 1,
                         .step = 7,
                         .in = &s->in,
                         .out = &s->out,
                         .loss = &s->loss};
}

static lam_foreign *make(const char *lib, const char *symbol, const char *signature,
                         const lam_attr *values, uint32_t n) {
  lam_foreign *f = NULL;
  CHECK_OK(lam_foreign_create(lib, symbol, signature, values, n, &f));
  return f;
}

TEST(foreign, binds_tensors_and_values) {
  sample s;
  make_sample(&s);
  const lam_attr a = lam_attr_f(2.5);
  lam_foreign *f = make(target_path(), "target_scale",
                        "p:in0.data i64:in0.numel f32:$0 p:out0.data -> i32", &a, 1);
  REQUIRE(f != NULL);
  CHECK_OK(lam_foreign_call(f, &s.io));
  for (int i = 0; i < 6; i++) CHECK(s.y[i] == 2.5f * s.x[i + 1]); /* byte_offset skips x[0] */
  lam_foreign_destroy(f);
}

TEST(foreign, passes_every_type_on_registers_and_stack) {
  struct {
    const void *p[6];
    int32_t i32[6];
    int64_t i64[6];
    float f32[6];
    double f64[6];
    char text[32];
    int64_t ints[3];
  } h;
  sample s;
  make_sample(&s);
  const int64_t ints[3] = {-1, INT64_C(1) << 50, 3};
  char text[] = {'h', 'i', '!', '?'}; /* an attribute's string has no NUL */
  lam_attr values[16];
  values[0] = lam_attr_i((int64_t)(intptr_t)&h);
  for (int i = 1; i <= 12; i++) values[i] = lam_attr_f(i / 4.0);
  values[13] = (lam_attr){.type = LAM_ATTR_STRING, .n = 2, .v.s = text};
  values[14] = lam_attr_ints(ints, 3);
  values[15] = lam_attr_i(INT32_MIN);
  lam_foreign *f =
      make(target_path(), "target_hear",
           "p:$0 i32:micro i32:stage i64:step p:in0.data p:out0.data i64:in0.dim0 i32:in0.dim1 "
           "i64:out0.numel "
           "f32:$1 f64:$2 f32:$3 f64:$4 f32:$5 f64:$6 f32:$7 f64:$8 f32:$9 f64:$10 f32:$11 f64:$12 "
           "p:$13 p:$14 p:user i32:$15 -> i32",
           values, 16);
  REQUIRE(f != NULL);
  memset(text, 'x', sizeof text); /* values were copied */
  REQUIRE_OK(lam_foreign_call(f, &s.io));
  CHECK(h.p[0] == &s.x[1] && h.p[1] == s.y && h.p[2] == f);
  CHECK_EQ(h.i32[0], 2);
  CHECK_EQ(h.i32[1], 4);
  CHECK_EQ(h.i32[2], 2);
  CHECK_EQ(h.i32[3], INT32_MIN);
  CHECK_EQ(h.i64[0], 7);
  CHECK_EQ(h.i64[1], 3);
  CHECK_EQ(h.i64[2], 6);
  for (int i = 0; i < 6; i++)
    CHECK(h.f32[i] == (2 * i + 1) / 4.0f && h.f64[i] == (2 * i + 2) / 4.0);
  CHECK_STR(h.text, "hi");
  CHECK_SAME_BITS(h.ints, ints, sizeof ints);
  lam_foreign_destroy(f);
}

TEST(foreign, calls_libm_with_no_shim) {
  sample s;
  make_sample(&s);
  const lam_attr angle = lam_attr_f(0.5);
  lam_foreign *f = make("libm.so.6", "sincosf", "f32:$0 p:in0.data p:out0.data -> void", &angle, 1);
  REQUIRE(f != NULL);
  CHECK_OK(lam_foreign_call(f, &s.io));
  CHECK(s.x[1] == sinf(0.5f) && s.y[0] == cosf(0.5f));
  lam_foreign_destroy(f);
}

TEST(foreign, finds_symbols_of_the_process_and_addresses) {
  sample s;
  make_sample(&s);
  lam_foreign *f =
      make(NULL, "memcpy", "p:out0.data p:in0.data i64:$0 -> void", (lam_attr[]){lam_attr_i(8)}, 1);
  REQUIRE(f != NULL);
  CHECK_OK(lam_foreign_call(f, &s.io));
  CHECK(s.y[0] == 1 && s.y[1] == 2 && s.y[2] == 0);
  lam_foreign_destroy(f);

  char symbol[40];
  snprintf(symbol, sizeof symbol, "@0x%llx", (unsigned long long)(uintptr_t)&labs);
  f = make(NULL, symbol, "i64:in0.numel -> i64", NULL,
           0); /* labs(6) is not 0: it fails, with the number */
  REQUIRE(f != NULL);
  CHECK_STATUS(lam_foreign_call(f, &s.io), LAM_INTERNAL);
  CHECK_CONTAINS(lam_last_error(), "stage 4, micro-batch 2: returned 6, expected 0");
  lam_foreign_destroy(f);
}

/* y = 2 x, where x is what the stream's place in the io points at. */
TEST(foreign, hands_on_the_stream) {
  sample s;
  make_sample(&s);
  const lam_attr a = lam_attr_f(2);
  lam_foreign *f = make(target_path(), "target_scale",
                        "p:stream i64:out0.numel f32:$0 p:out0.data -> i32", &a, 1);
  REQUIRE(f != NULL);
  s.io.stream = &s.x[1];
  CHECK_OK(lam_foreign_call(f, &s.io));
  CHECK(s.y[0] == 2 && s.y[5] == 12);
  lam_foreign_destroy(f);
}

TEST(foreign, adds_to_the_loss) {
  sample s;
  make_sample(&s);
  lam_foreign *f =
      make(target_path(), "target_sum", "p:in0.data i64:in0.numel p:loss -> void", NULL, 0);
  REQUIRE(f != NULL);
  CHECK_OK(lam_foreign_call(f, &s.io));
  CHECK(s.loss == 21);
  s.io.loss = NULL;
  CHECK_STATUS(lam_foreign_call(f, &s.io), LAM_INVALID_ARGUMENT);
  CHECK_CONTAINS(lam_last_error(), "argument 2 (column 26) p:loss");
  lam_foreign_destroy(f);
}

TEST(foreign, result_other_than_zero_fails_the_call) {
  sample s;
  make_sample(&s);
  FOR_EACH(code, 0, 1, -1, -2147483647) {
    const lam_attr value = lam_attr_i(code);
    lam_foreign *f = make(target_path(), "target_fail", "i32:$0 -> i32", &value, 1);
    REQUIRE(f != NULL);
    CHECK_STATUS(lam_foreign_call(f, &s.io), code ? LAM_INTERNAL : LAM_OK);
    lam_foreign_destroy(f);
  }
  lam_foreign *f =
      make(target_path(), "target_fail_wide", "-> i64", NULL, 0); /* all 64 bits count */
  REQUIRE(f != NULL);
  CHECK_STATUS(lam_foreign_call(f, &s.io), LAM_INTERNAL);
  lam_foreign_destroy(f);
}

TEST(foreign, call_names_the_argument_its_io_lacks) {
  static const struct {
    const char *signature, *message;
  } cases[] = {
      {"p:in0.data p:in3.data -> void",
       "argument 1 (column 12) p:in3.data: the number of inputs of this call is 1"},
      {"i64:out1.dim0 -> void",
       "argument 0 (column 1) i64:out1.dim0: the number of outputs of this call is 1"},
      {"i64:in0.dim2 -> void", "i64:in0.dim2: the tensor's number of dimensions is 2"},
      {"i32:step -> void", "i32:step: does not fit in 32 bits: 1099511627776"},
      {"  i32:in0.dim0 -> void",
       "argument 0 (column 3) i32:in0.dim0: does not fit in 32 bits: 2147483648"},
  };
  sample s;
  make_sample(&s);
  s.io.step = INT64_C(1) << 40;
  s.in_shape[0] = INT64_C(1) << 31;
  for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
    lam_foreign *f = make(target_path(), "target_fail", cases[i].signature, NULL, 0);
    REQUIRE(f != NULL);
    CHECK_STATUS(lam_foreign_call(f, &s.io), LAM_INVALID_ARGUMENT);
    CHECK_CONTAINS(lam_last_error(), cases[i].message);
    CHECK_CONTAINS(lam_last_error(), "foreign target_fail, stage 4, micro-batch 2");
    lam_foreign_destroy(f);
  }
}

TEST(foreign, wrong_signatures_are_refused_with_the_column) {
  static const struct {
    const char *signature, *message;
  } cases[] = {
      {"", "column 1: no result at its end, expected -> i32"},
      {"p:in0.data", "column 11: no result at its end"},
      {"p:in0.data ->", "column 14: unknown result at its end, expected i32, i64"},
      {"p:in0.data -> ", "column 15: unknown result at its end"},
      {"p:in0.data -> f32", "column 15: unknown result \"f32\""},
      {"p:in0.data -> p", "column 15: unknown result \"p\""},
      {"p:in0.data -> i32 i32", "column 19: more text \"i32\""},
      {"p:in0.data -> i32,", "column 15: unknown result \"i32,\""},
      {"p:in0.data, p:out0.data -> i32", "column 3: unknown name \"in0.data,\""},
      {"p:in0.data q:out0.data -> i32", "column 12: unknown type \"q:out0.data\""},
      {"p in0.data -> i32", "column 1: unknown type \"p\", expected p: i32: i64: f32: or f64:"},
      {"i16:micro -> i32", "column 1: unknown type \"i16:micro\""},
      {"void:micro -> i32", "column 1: unknown type"},
      {"p: in0.data -> i32", "column 3: unknown name at its end"},
      {"p:in.data -> i32", "column 3: unknown name \"in.data\""},
      {"p:in0 -> i32", "column 3: unknown name \"in0\""},
      {"p:in0.datum -> i32", "column 3: unknown name"},
      {"p:in0.data2 -> i32", "column 3: unknown name"},
      {"p:in1000.data -> i32", "column 3: unknown name"},
      {"p:in99999999999999999999.data -> i32", "column 3: unknown name"},
      {"p:in-1.data -> i32", "column 3: unknown name"},
      {"i64:in0.dim -> i32", "column 5: unknown name"},
      {"i64:in0.dim8 -> i32", "column 5: unknown name"},
      {"i64:out0.shape -> i32", "column 5: unknown name"},
      {"i32:micros -> i32", "column 5: unknown name"},
      {"i32:Micro -> i32", "column 5: unknown name"},
      {"i32:$ -> i32", "column 5: unknown name"},
      {"i32:$x -> i32", "column 5: unknown name"},
      {"i64:in0.data -> i32",
       "column 1: type does not fit in \"i64:in0.data\", expected p: this name is an address"},
      {"p:micro -> i32", "column 1: type does not fit in \"p:micro\", expected i32 or i64"},
      {"f32:in0.dim0 -> i32", "column 1: type does not fit"},
      {"i32:micro f64:loss -> i32", "column 11: type does not fit"},
  };
  for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
    lam_foreign *f = (lam_foreign *)&f;
    NOTE("\"%s\"", cases[i].signature);
    CHECK_STATUS(lam_foreign_create(target_path(), "target_fail", cases[i].signature, NULL, 0, &f),
                 LAM_INVALID_ARGUMENT);
    CHECK_CONTAINS(lam_last_error(), cases[i].message);
    CHECK(f == NULL);
  }
}

TEST(foreign, values_must_fit_and_all_be_named) {
  const int64_t ints[2] = {1, 2};
  const lam_attr values[] = {lam_attr_i(INT64_C(1) << 40), lam_attr_f(1e300),  lam_attr_s("x"),
                             lam_attr_ints(ints, 2),       lam_attr_default(), {.type = 77}};
  static const struct {
    const char *signature;
    int first, n; /* which of the values above are given */
    const char *message;
  } cases[] = {
      {"i32:$0 -> i32", 0, 0, "column 1: $0 is named, but only 0 values are given"},
      {"i64:$0 i64:$1 -> i32", 0, 1, "column 8: $1 is named, but only 1 values are given"},
      {"i64:$0 -> i32", 0, 2,
       "2 values are given, but the signature names no $1 (column 14, its end)"},
      {"f64:$1 -> i32", 0, 2, "2 values are given"},
      {"i32:$0 -> i32", 0, 1,
       "column 1: value $0 is an int that does not fit, i32 takes an int of 32 bits"},
      {"f64:$0 -> i32", 0, 1, "value $0 is an int that does not fit, f64 takes a double"},
      {"i64:$0 -> i32", 1, 1, "value $0 is a double, i64 takes an int"},
      {"p:$0 -> i32", 1, 1, "value $0 is a double, p takes an int (an address), ints or a string"},
      {"f32:$0 -> i32", 1, 1, "value $0 is a double, f32 takes a double within float's range"},
      {"i64:$0 -> i32", 2, 1, "value $0 is a string, i64 takes an int"},
      {"f64:$0 -> i32", 3, 1, "value $0 is ints, f64 takes a double"},
      {"p:$0 -> i32", 4, 1, "value $0 is no value, p takes"},
      {"p:$0 -> i32", 5, 1, "value $0 is a value of unknown type, p takes"},
  };
  for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
    lam_foreign *f = NULL;
    NOTE("\"%s\" with %d values", cases[i].signature, cases[i].n);
    CHECK_STATUS(lam_foreign_create(target_path(), "target_fail", cases[i].signature,
                                    values + cases[i].first, (uint32_t)cases[i].n, &f),
                 LAM_INVALID_ARGUMENT);
    CHECK_CONTAINS(lam_last_error(), cases[i].message);
  }
}

TEST(foreign, at_most_32_arguments) {
  char signature[33 * 10 + 10] = "";
  for (int i = 0; i < 32; i++) strcat(signature, "i64:micro ");
  char *end = signature + strlen(signature);
  strcpy(end, "-> i32");
  lam_foreign_destroy(make(target_path(), "target_fail", signature, NULL, 0));
  strcpy(end, "i64:micro -> i32");
  lam_foreign *f = NULL;
  CHECK_STATUS(lam_foreign_create(target_path(), "target_fail", signature, NULL, 0, &f),
               LAM_INVALID_ARGUMENT);
  CHECK_CONTAINS(lam_last_error(),
                 "column 321: too many arguments: \"i64:micro\", expected at most 32");
}

TEST(foreign, unknown_libraries_and_symbols_are_named) {
  static const struct {
    const char *lib, *symbol;
    lam_status status;
    const char *message;
  } cases[] = {
      {"libno_such.so", "x", LAM_NOT_FOUND,
       "library \"libno_such.so\" could not be opened: libno_such.so: cannot open"},
      {"libm.so.6", "no_such", LAM_NOT_FOUND, "no symbol \"no_such\" in library libm.so.6"},
      {NULL, "no_such", LAM_NOT_FOUND, "no symbol \"no_such\" in the process"},
      {NULL, "", LAM_NOT_FOUND, "no symbol \"\""},
      {NULL, "@0x", LAM_INVALID_ARGUMENT, "is no address"},
      {NULL, "@0", LAM_INVALID_ARGUMENT, "is no address"},
      {NULL, "@0x0", LAM_INVALID_ARGUMENT, "is no address"},
      {NULL, "@0x12g", LAM_INVALID_ARGUMENT, "\"@0x12g\" is no address"},
      {NULL, "@0x11111111111111111", LAM_INVALID_ARGUMENT, "is no address"},
      {"libm.so.6", "@0x1234", LAM_INVALID_ARGUMENT, "expected lib NULL"},
  };
  for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
    lam_foreign *f = NULL;
    NOTE("\"%s\"", cases[i].symbol);
    CHECK_STATUS(lam_foreign_create(cases[i].lib, cases[i].symbol, "-> void", NULL, 0, &f),
                 cases[i].status);
    CHECK_CONTAINS(lam_last_error(), cases[i].message);
  }
}

TEST(foreign, nothing_where_something_is_needed_is_refused) {
  lam_foreign *f = NULL;
  const lam_stage_io io = {.struct_size = 8};
  CHECK_STATUS(lam_foreign_create(NULL, "abs", "-> void", NULL, 0, NULL), LAM_INVALID_ARGUMENT);
  CHECK_STATUS(lam_foreign_create(NULL, NULL, "-> void", NULL, 0, &f), LAM_INVALID_ARGUMENT);
  CHECK_CONTAINS(lam_last_error(), "symbol is NULL");
  CHECK_STATUS(lam_foreign_create(NULL, "abs", NULL, NULL, 0, &f), LAM_INVALID_ARGUMENT);
  CHECK_STATUS(lam_foreign_create(NULL, "abs", "-> void", NULL, 1, &f), LAM_INVALID_ARGUMENT);
  CHECK_STATUS(lam_foreign_call(NULL, &io), LAM_INVALID_ARGUMENT);
  lam_foreign_destroy(NULL);
  f = make(NULL, "abs", "i32:micro -> void", NULL, 0);
  CHECK_STATUS(lam_foreign_call(f, NULL), LAM_INVALID_ARGUMENT);
  CHECK_STATUS(lam_foreign_call(f, &io), LAM_INVALID_ARGUMENT);
  CHECK_CONTAINS(lam_last_error(), "struct_size 8");
  lam_foreign_destroy(f);
}

/* -- chance -- */

/* Writes one random argument and what the parser must make of it. */
static int random_arg(rng *r, char *out, lam_foreign_arg *want) {
  static const char *const plain[] = {"micro", "stage", "step", "user", "loss", "stream"};
  *want = (lam_foreign_arg){
      .source = (lam_foreign_source)rng_int(r, LAM_FOREIGN_DATA, LAM_FOREIGN_VALUE)};
  const bool address = want->source == LAM_FOREIGN_DATA || want->source == LAM_FOREIGN_USER ||
                       want->source == LAM_FOREIGN_LOSS || want->source == LAM_FOREIGN_STREAM;
  want->type =
      address ? LAM_FOREIGN_P : (lam_foreign_type)rng_int(r, LAM_FOREIGN_I32, LAM_FOREIGN_I64);
  if (want->source == LAM_FOREIGN_VALUE)
    want->type = (lam_foreign_type)rng_int(r, LAM_FOREIGN_P, LAM_FOREIGN_F64);
  int n = sprintf(out, "%s:", lam_foreign_type_names[want->type]);
  if (want->source >= LAM_FOREIGN_MICRO && want->source <= LAM_FOREIGN_STREAM)
    return n + sprintf(out + n, "%s", plain[want->source - LAM_FOREIGN_MICRO]);

  want->index = (int)rng_int(r, 0, rng_int(r, 0, 1) ? 9 : 999);
  if (want->source == LAM_FOREIGN_VALUE) return n + sprintf(out + n, "$%d", want->index);
  want->of_output = rng_int(r, 0, 1);
  n += sprintf(out + n, "%s%d.", want->of_output ? "out" : "in", want->index);
  if (want->source == LAM_FOREIGN_DATA) return n + sprintf(out + n, "data");
  if (want->source == LAM_FOREIGN_NUMEL) return n + sprintf(out + n, "numel");
  want->dim = (int)rng_int(r, 0, 7);
  return n + sprintf(out + n, "dim%d", want->dim);
}

static int random_signature(rng *r, char *out, lam_foreign_signature *want) {
  static const char *const spaces[] = {" ", "  ", "\t", "\n"};
  static const lam_foreign_type results[] = {LAM_FOREIGN_I32, LAM_FOREIGN_I64, LAM_FOREIGN_VOID};
  want->n_args = (int)rng_int(r, 0, LAM_FOREIGN_MAX_ARGS);
  want->result = results[rng_int(r, 0, 2)];
  int n = 0;
  for (int i = 0; i < want->n_args; i++) {
    const int column = n + 1;
    n += random_arg(r, out + n, &want->args[i]);
    want->args[i].column = column;
    want->args[i].width = n + 1 - column;
    n += sprintf(out + n, "%s", spaces[rng_int(r, 0, 3)]);
  }
  return n + sprintf(out + n, "->%s%s", rng_int(r, 0, 1) ? " " : "",
                     lam_foreign_type_names[want->result]);
}

static void check_same(const lam_foreign_signature *got, const lam_foreign_signature *want) {
  CHECK_EQ(got->n_args, want->n_args);
  CHECK_EQ(got->result, want->result);
  for (int i = 0; i < want->n_args && i < got->n_args; i++) {
    const lam_foreign_arg *g = &got->args[i], *w = &want->args[i];
    CHECK(g->type == w->type && g->source == w->source && g->index == w->index &&
          g->of_output == w->of_output);
    CHECK(g->column == w->column && g->width == w->width && g->dim == w->dim);
  }
}

TEST(foreign_grammar, reads_every_signature_it_could_be_given) {
  rng r = {seed()};
  for (int round = 0; round < 2000; round++) {
    char text[1024];
    lam_foreign_signature want, got;
    random_signature(&r, text, &want);
    NOTE("\"%s\"", text);
    REQUIRE_OK(lam_foreign_parse(text, &got));
    check_same(&got, &want);
  }
}

/* A refusal names a column inside the text, or the one after its last character. */
static void check_refusal(const char *text) {
  const char *column = strstr(lam_last_error(), "column ");
  if (CHECK(column != NULL)) {
    const int at = atoi(column + 7);
    CHECK(at >= 1 && at <= (int)strlen(text) + 1);
  }
}

TEST(foreign_grammar, noise_is_refused_or_read_never_worse) {
  static const char alphabet[] = "pif3264: .$->voidatmnumelstrcq0123456789,\t\n\x80\xff";
  rng r = {seed()};
  int n_refused = 0;
  for (int round = 0; round < 20000; round++) {
    char text[1024];
    lam_foreign_signature want, got;
    int n = random_signature(&r, text, &want);
    for (int64_t edits = rng_int(&r, 1, 4); edits > 0; edits--) {
      const int at = (int)rng_int(&r, 0, n - 1);
      if (rng_int(&r, 0, 3) == 0)
        text[n = at] = 0;
      else
        text[at] = alphabet[rng_int(&r, 0, (int64_t)sizeof alphabet - 2)];
      if (n == 0) break;
    }
    char *exact = strdup(text); /* so that a sanitizer sees a read past its end */
    NOTE("\"%s\"", exact);
    const lam_status status = lam_foreign_parse(exact, &got);
    if (status) {
      n_refused++;
      CHECK_STATUS(status, LAM_INVALID_ARGUMENT);
      check_refusal(exact);
    }
    free(exact);
  }
  CHECK(n_refused > 10000);
}
