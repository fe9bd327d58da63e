/* frame_test.c: the FFI handlers under frames that this test makes, as runtimes of several API
 * versions would: without JAX, and with mistakes that JAX does not make.
 * Leaves what JAX itself does with them to test_jax.py. */
#include <dlfcn.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>

#include "bindings/xla/call.h"
#include "bindings/xla/cuda.h"
#include "bindings/xla/row.h"
#include "tests/check.h"

/* -- a runtime -- */

struct xla_error {
  int32_t code;
  char text[400];
};

static xla_error *create_error(xla_error_create_args *args) {
  xla_error *e = calloc(1, sizeof *e);
  e->code = args->code;
  strncpy(e->text, args->message, sizeof e->text - 1);
  return e;
}

/* What CUDA's runtime gives; the CPU's has an error in its place. */
static void *stream = NULL;
static xla_error *get_stream(xla_stream_get_args *args) {
  if (!stream) return create_error(&(xla_error_create_args){40, NULL, "no stream", 12});
  args->stream = stream;
  return NULL;
}

static const xla_api runtime = {.struct_size = 48 + 12 * sizeof(void *),
                                .api_version = {24, NULL, 0, 3},
                                .error_create = create_error,
                                .stream_get = get_stream};

#define MOST 12
typedef struct frame {
  xla_frame f;
  xla_buffer in[MOST], out[MOST];
  void *in_at[MOST], *out_at[MOST], *attr_at[MOST];
  int32_t types[MOST], attr_types[MOST];
  xla_span names[MOST], *name_at[MOST], strings[MOST];
  int64_t ints[MOST];
  xla_scalar scalars[MOST];
  int64_t dims[2 * MOST][2];
} frame;

static void frame_init(frame *f) {
  memset(f, 0, sizeof *f);
  f->f = (xla_frame){.struct_size = sizeof f->f, .api = &runtime, .stage = XLA_STAGE_EXECUTE};
  f->f.args = (xla_values){40, NULL, 0, f->types, f->in_at};
  f->f.rets = (xla_values){40, NULL, 0, f->types, f->out_at};
  f->f.attrs = (xla_attrs){48, NULL, 0, f->attr_types, f->name_at, f->attr_at};
  for (int i = 0; i < MOST; i++) {
    f->types[i] = XLA_BUFFER;
    f->in_at[i] = &f->in[i];
    f->out_at[i] = &f->out[i];
    f->name_at[i] = &f->names[i];
  }
}

/* n1 -1: one dimension. */
static void put(xla_buffer *b, int64_t dims[2], int32_t dtype, void *data, int64_t n0, int64_t n1) {
  dims[0] = n0;
  dims[1] = n1;
  *b = (xla_buffer){48, NULL, dtype, data, n1 < 0 ? 1 : 2, dims};
}
static void add_in(frame *f, int32_t dtype, void *data, int64_t n0, int64_t n1) {
  const int64_t i = f->f.args.size++;
  put(&f->in[i], f->dims[i], dtype, data, n0, n1);
}
static void add_out(frame *f, int32_t dtype, void *data, int64_t n0, int64_t n1) {
  const int64_t i = f->f.rets.size++;
  put(&f->out[i], f->dims[MOST + i], dtype, data, n0, n1);
}
static int64_t add_attr(frame *f, const char *name, int32_t type, void *value) {
  const int64_t i = f->f.attrs.size++;
  f->names[i] = (xla_span){name, strlen(name)};
  f->attr_types[i] = type;
  f->attr_at[i] = value;
  return i;
}
static void add_int(frame *f, const char *name, int64_t value) {
  const int64_t i = add_attr(f, name, XLA_ATTR_SCALAR, NULL);
  f->ints[i] = value;
  f->scalars[i] = (xla_scalar){XLA_S64, &f->ints[i]};
  f->attr_at[i] = &f->scalars[i];
}
static void add_string(frame *f, const char *name, const char *text, size_t n) {
  const int64_t i = add_attr(f, name, XLA_ATTR_STRING, NULL);
  f->strings[i] = (xla_span){text, n};
  f->attr_at[i] = &f->strings[i];
}

static void check_fails_on(xla_platform platform, frame *f, uint32_t op, int32_t code,
                           const char *part) {
  xla_error *e = xla_call_run(op, platform, &f->f);
  if (!CHECK(e != NULL)) return;
  CHECK_EQ(e->code, code);
  CHECK_CONTAINS(e->text, part);
  free(e);
}

static void check_fails(frame *f, uint32_t op, int32_t code, const char *part) {
  check_fails_on(XLA_PLATFORM_CPU, f, op, code, part);
}

/* x [2, 3] w [3, 2] in JAX's order -> y [2, 2] */
static float x[] = {1, 2, 3, 4, 5, 6}, w[] = {1, 0, 0, 1, 1, 1}, y[4];
static void linear(frame *f) {
  frame_init(f);
  add_in(f, XLA_F32, x, 2, 3);
  add_in(f, XLA_F32, w, 3, 2);
  for (int i = 0; i < 3; i++) add_in(f, XLA_F32, NULL, 0, -1);
  add_out(f, XLA_F32, y, 2, 2);
  add_out(f, XLA_F32, NULL, 0, -1);
}

/* -- tests -- */

TEST(xla, tells_every_runtime_that_it_was_made_for_api_0_1) {
  FOR_EACH(with_api, 0, 1) {
    struct {
      xla_metadata m;
      int64_t type_id; /* newer runtimes read this; it must stay as they set it */
    } answer = {{sizeof(xla_metadata), {24, NULL, 9, 9}, 7}, 4711};
    xla_metadata_extension e = {{sizeof e, XLA_EXTENSION_METADATA, NULL}, &answer.m};
    xla_frame f = {.struct_size = sizeof f, .extension_start = &e.base};
    f.api = with_api ? &runtime : NULL;
    CHECK(xla_call_run(LAM_OP_linear, XLA_PLATFORM_CPU, &f) == NULL);
    CHECK_EQ(answer.m.api_version.major_version, 0);
    CHECK_EQ(answer.m.api_version.minor_version, 1);
    CHECK_EQ(answer.m.traits, 0);
    CHECK_EQ(answer.type_id, 4711);
  }
}

TEST(xla, reads_a_transposed_weight_where_it_lies) {
  frame f;
  linear(&f);
  add_string(&f, "act", "relu2", 4); /* without a NUL: relu */
  add_int(&f, "transposed", 2);
  CHECK(xla_call_run(LAM_OP_linear, XLA_PLATFORM_CPU, &f.f) == NULL);
  const float want[] = {1 + 3, 2 + 3, 4 + 6, 5 + 6};
  CHECK_SAME_BITS(y, want, sizeof want);
}

TEST(xla, takes_tensors_without_a_buffer_as_left_out) {
  frame f;
  linear(&f);
  f.f.args.size = 2, f.f.rets.size = 1;
  add_int(&f, "absent", 1 << 2 | 1 << 3 | 1 << 4 | 1 << 6); /* b, both scales, aux */
  add_int(&f, "transposed", 2);
  CHECK(xla_call_run(LAM_OP_linear, XLA_PLATFORM_CPU, &f.f) == NULL);
  CHECK_EQ(y[0], 1 + 3);
  f.ints[0] = 1 << 2 | 1 << 3 | 1 << 4;
  check_fails(&f, LAM_OP_linear, LAM_INVALID_ARGUMENT,
              "found 2 arguments and 1 results, expected 2 and 2");
  f.ints[0] = 1 << 3 | 1 << 4 | 1 << 6;
  check_fails(&f, LAM_OP_linear, LAM_INVALID_ARGUMENT,
              "found 2 arguments and 1 results, expected 3 and 1");
  f.f.args.size = 1, f.ints[0] = 1 << 1 | 1 << 2 | 1 << 3 | 1 << 4 | 1 << 6;
  check_fails(&f, LAM_OP_linear, LAM_INVALID_ARGUMENT, "w: found NULL, expected a tensor");
}

/* A bias behind a tensor that has no buffer, and a call without a token. */
TEST(xla, takes_the_next_buffer_for_the_next_tensor_that_has_one) {
  float b[] = {10, 20}, h[4];
  frame f;
  frame_init(&f);
  add_in(&f, XLA_F32, x, 2, 3);
  add_in(&f, XLA_F32, w, 3, 2);
  add_in(&f, XLA_F32, (float[]){1, 0, 0, 1}, 2, 2);
  add_in(&f, XLA_F32, b, 2, -1);
  add_out(&f, XLA_F32, h, 2, 2);
  const xla_row *row = xla_row_find(LAM_OP_ffn); /* x w1 b1? w2 b2?, scales; y aux */
  if (!CHECK_EQ(row->n_in, 8) || !CHECK_EQ(row->n_out, 2)) return;
  add_int(&f, "absent", 1 << 2 | 7 << 5 | 1 << 9 | 1 << 10);
  add_int(&f, "transposed", 2);
  add_string(&f, "act", "relu", 4);
  CHECK(xla_call_run(LAM_OP_ffn, XLA_PLATFORM_CPU, &f.f) == NULL);
  CHECK_EQ(h[0], 1 + 3 + 10);
  CHECK_EQ(h[1], 2 + 3 + 20);
}

TEST(xla, hands_on_a_calls_flags) {
  frame f;
  linear(&f);
  add_int(&f, "transposed", 2);
  add_int(&f, "flags", LAM_CALL_TF32);
  CHECK(xla_call_run(LAM_OP_linear, XLA_PLATFORM_CPU, &f.f) == NULL);
  f.ints[1] = 16;
  check_fails(&f, LAM_OP_linear, LAM_INVALID_ARGUMENT, "flags: found 0x10, expected 0 or 0x1");
}

TEST(xla, does_nothing_before_the_execute_stage) {
  frame f;
  linear(&f);
  f.f.args.size = 0; /* would be refused */
  for (f.f.stage = 0; f.f.stage < XLA_STAGE_EXECUTE; f.f.stage++)
    CHECK(xla_call_run(LAM_OP_linear, XLA_PLATFORM_CPU, &f.f) == NULL);
}

TEST(xla, hands_on_the_librarys_words_and_its_code) {
  frame f;
  linear(&f); /* not transposed: w is [3, 2], so x should have 2 columns */
  check_fails(&f, LAM_OP_linear, LAM_INVALID_ARGUMENT, "linear: ");
  frame_init(&f);
  float token[1] = {0};
  add_in(&f, XLA_F32, x, 2, 3);
  add_in(&f, XLA_F32, token, 1, -1);
  add_out(&f, XLA_F32, y, 2, 3);
  add_out(&f, XLA_F32, token, 1, -1);
  add_int(&f, "group", 5);
  check_fails(&f, LAM_OP_all_reduce, LAM_NOT_FOUND, "no open group has the handle 5");
}

TEST(xla, refuses_frames_that_do_not_fit_the_row) {
  frame f;
  linear(&f);
  f.f.args.size = 4;
  check_fails(&f, LAM_OP_linear, LAM_INVALID_ARGUMENT, "linear: found 4 arguments and 2 results");
  linear(&f);
  add_int(&f, "nosuch", 1);
  check_fails(&f, LAM_OP_linear, LAM_INVALID_ARGUMENT, "attribute 'nosuch'");
  linear(&f);
  f.in[0].dtype = 99;
  check_fails(&f, LAM_OP_linear, LAM_INVALID_ARGUMENT, "element type 99");
  linear(&f);
  add_int(&f, "transposed", 1 << 5);
  f.out[0].rank = 1;
  check_fails(&f, LAM_OP_linear, LAM_INVALID_ARGUMENT, "transposed and has 1 dimensions");
  linear(&f);
  check_fails(&f, 120, LAM_UNIMPLEMENTED, "no such operator");
}

TEST(xla, knows_every_row_as_the_library_does) {
  for (uint32_t op = 0; op < LAM_OP_END_; op++) {
    const xla_row *row = xla_row_find(op);
    NOTE("row %u", op);
    CHECK_EQ(row != NULL, lam_op_row(op) != NULL);
    if (row && op == LAM_OP_linear_col_bwd) {
      CHECK_EQ(row->n_in * 100 + row->n_out * 10 + row->n_attrs, 334);
      CHECK(row->communicates && !row->own_token && row->out_optional[2] && !row->out_optional[1]);
    }
    if (row && op == LAM_OP_recv_activation) CHECK(row->own_token && row->group == 0);
  }
}

/* -- CUDA, by a driver that says all memory is device 3's. The CUDA device is not beside this test:
 * what is shown is what the handler hands on -- */

static void load_driver(void) {
  REQUIRE(dlopen("tests/bindings/jax/libcuda.so.1", RTLD_NOW) != NULL);
}

TEST(xla, on_cuda_tensors_are_on_the_device_that_holds_them) {
  frame f;
  linear(&f);
  load_driver();
  stream = &f;
  check_fails_on(XLA_PLATFORM_CUDA, &f, LAM_OP_linear, LAM_UNAVAILABLE, "x: it lies on cuda:3: ");
}

TEST(xla, on_cuda_a_runtime_without_a_stream_is_an_error_of_its_own) {
  frame f;
  linear(&f);
  add_int(&f, "transposed", 2);
  load_driver();
  stream = NULL;
  check_fails_on(XLA_PLATFORM_CUDA, &f, LAM_OP_linear, 12, "no stream");
  CHECK(xla_call_run(LAM_OP_linear, XLA_PLATFORM_CPU, &f.f) == NULL); /* it asks for none */
}

TEST(xla, on_cuda_a_ranks_number_is_not_read_from_the_device) {
  frame f;
  float token[1] = {0};
  frame_init(&f);
  load_driver();
  stream = &f;
  add_in(&f, XLA_F32, x, 2, 3);
  add_in(&f, XLA_F32, token, 1, -1);
  add_in(&f, XLA_S32, (void *)16, 1, -1); /* would crash */
  add_out(&f, XLA_F32, y, 2, 3);
  add_out(&f, XLA_F32, token, 1, -1);
  add_int(&f, "group", 5);
  check_fails_on(XLA_PLATFORM_CUDA, &f, LAM_OP_all_reduce, LAM_UNIMPLEMENTED,
                 "use one process for each rank");
}

TEST(xla, on_cuda_a_token_is_written_on_the_stream) {
  float word = 1;
  load_driver();
  CHECK(xla_cuda_clear(&word, &word));
  CHECK_EQ(word, 0);
  CHECK(!xla_cuda_clear(&word, NULL)); /* the driver says no */
}

/* -- ranks of one process, on threads that are none of them -- */

typedef struct ranks {
  lam_group_id id;
  lam_group *group[2];
  int64_t handle;
  float sum[2];
  pthread_barrier_t between;
} ranks;

static void join(int rank, int size, void *arg) {
  ranks *r = arg;
  lam_group_desc d = LAM_GROUP_DESC_INIT;
  d.rank = rank, d.size = size, d.id = r->id;
  d.deadline_ms = d.first_deadline_ms = 10000;
  REQUIRE_OK(lam_group_create(NULL, &d, &r->group[rank]));
  if (rank == 0) r->handle = lam_group_handle(r->group[rank]);
}

static void reduce_as(ranks *r, int32_t rank) {
  frame f;
  float token[1] = {0}, mine[1] = {(float)rank + 1};
  frame_init(&f);
  add_in(&f, XLA_F32, mine, 1, -1);
  add_in(&f, XLA_F32, token, 1, -1);
  add_in(&f, XLA_S32, &rank, 1, -1);
  add_out(&f, XLA_F32, &r->sum[rank], 1, -1);
  add_out(&f, XLA_F32, token, 1, -1);
  add_int(&f, "group", r->handle);
  CHECK(xla_call_run(LAM_OP_all_reduce, XLA_PLATFORM_CPU, &f.f) == NULL);
}

static void reduce_both_ways(int thread, int size, void *arg) {
  ranks *r = arg;
  (void)size;
  reduce_as(r, thread);
  pthread_barrier_wait(&r->between); /* a rank's calls follow each other: a token's part in XLA */
  reduce_as(r, 1 - thread);          /* XLA's threads serve whichever device comes */
}

TEST(xla, the_operand_says_whose_call_it_is) {
  ranks r = {0};
  REQUIRE_OK(lam_group_id_create(&r.id));
  pthread_barrier_init(&r.between, NULL, 2);
  run_threads(2, join, &r);
  run_threads(2, reduce_both_ways, &r);
  pthread_barrier_destroy(&r.between);
  CHECK_EQ(r.sum[0], 3);
  CHECK_EQ(r.sum[1], 3);
  CHECK_STATUS(lam_group_use(r.handle, 2), LAM_NOT_FOUND);
  CHECK_CONTAINS(lam_last_error(), "rank 2 of group");
  for (int i = 0; i < 2; i++) lam_group_destroy(r.group[i]);
  CHECK_STATUS(lam_group_use(r.handle, 0), LAM_NOT_FOUND);
}
