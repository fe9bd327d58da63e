/* abi_test.c: the adapter's calls under a torch that this test makes: without torch, under the
 * sanitizers, and with failures that torch does not have on demand.
 *
 * Every handle, string, list and cell is counted; what lam_run is given is looked at on its way, so
 * that a copy shows as another pointer.
 * Leaves what torch itself does with the operators to the Python tests beside it. */
#include <pthread.h>
#include <setjmp.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>

#include "abi/lamella.h"
#include "bindings/torch/call.h"
#include "bindings/torch/tensor.h"
#include "tests/check.h"

/* -- a torch -- */

enum { CPU = 40, CUDA = 41, FLOAT = 70, NO_DTYPE = 99, MOST_DIMS = 4 }; /* numbers of its own */

typedef struct lam_torch_tensor_ { /* one handle; torch's tensors may have several */
  float *data;
  bool owns;
  int64_t ndim, sizes[MOST_DIMS], strides[MOST_DIMS];
  int32_t dtype, device, index;
} tensor;

static atomic_int live, copies; /* handles, strings, lists and cells that were not given back */
static atomic_int fail_empty;   /* the allocation to fail: 1 the next one; 0 none */
static _Thread_local jmp_buf thrown;
static _Thread_local char what[512];
static _Thread_local const void *seen[LAM_TORCH_MAX_TENSORS]; /* data of lam_run's inputs */
static _Thread_local void *seen_stream;
static _Thread_local uint32_t seen_flags;
static int stream_of_device_1;

static void *count(size_t bytes) {
  live++;
  return calloc(1, bytes);
}
static void give_back(void *p) {
  live--;
  free(p);
}

static int32_t cpu(void) { return CPU; }
static int32_t cuda(void) { return CUDA; }
static int32_t float32(void) { return FLOAT; }
static int32_t other(void) { return NO_DTYPE; }

static int32_t get_const_data(tensor *t, const void **out) { return *out = t->data, 0; }
static int32_t get_data(tensor *t, void **out) { return *out = t->data, 0; }
static int32_t get_dim(tensor *t, int64_t *out) { return *out = t->ndim, 0; }
static int32_t get_sizes(tensor *t, int64_t **out) { return *out = t->sizes, 0; }
static int32_t get_strides(tensor *t, int64_t **out) { return *out = t->strides, 0; }
static int32_t get_dtype(tensor *t, int32_t *out) { return *out = t->dtype, 0; }
static int32_t get_device(tensor *t, int32_t *out) { return *out = t->device, 0; }
static int32_t get_index(tensor *t, int32_t *out) { return *out = t->index, 0; }

static int32_t delete_tensor(tensor *t) {
  if (t->owns) free(t->data);
  give_back(t);
  return 0;
}

static int32_t empty(int64_t ndim, const int64_t *sizes, const int64_t *strides, int32_t dtype,
                     int32_t device, int32_t index, tensor **out) {
  size_t n = 1;
  if (fail_empty && --fail_empty == 0) return 1;
  tensor *t = *out = count(sizeof *t);
  *t = (tensor){.owns = true, .ndim = ndim, .dtype = dtype, .device = device, .index = index};
  for (int64_t i = 0; i < ndim; i++) {
    t->sizes[i] = sizes[i];
    t->strides[i] = strides[i];
    n *= (size_t)sizes[i];
  }
  t->data = calloc(n ? n : 1, sizeof(float)); /* exactly: a sanitizer sees the first byte past it */
  return 0;
}

static int32_t copy(tensor *to, tensor *from, int32_t non_blocking) {
  (void)non_blocking;
  copies++;
  for (int64_t i = 0; i < to->sizes[0]; i++)
    for (int64_t j = 0; j < to->sizes[1]; j++)
      to->data[i * to->strides[0] + j] = from->data[i * from->strides[0] + j * from->strides[1]];
  return 0;
}

static int32_t string_length(lam_torch_string s, size_t *out) {
  return *out = strlen((const char *)s), 0;
}
static int32_t string_text(lam_torch_string s, const char **out) {
  return *out = (const char *)s, 0;
}
static int32_t delete_string(lam_torch_string s) { return give_back(s), 0; }
static int32_t delete_cell(uint64_t *cell) { return give_back(cell), 0; }

static void throw_unless(bool holds, const char *function, const char *file, uint32_t line,
                         const char *message) {
  (void)holds, (void)function, (void)file, (void)line;
  strncpy(what, message, sizeof what - 1);
  longjmp(thrown, 1); /* as torch's exception, it does not come back */
}

static int32_t current_stream(int32_t device, void **out) {
  return *out = device == 1 ? &stream_of_device_1 : NULL, 0;
}

static void start_torch(void) {
  lam_torch = (lam_torch_abi){
      .aoti_torch_device_type_cpu = cpu,
      .aoti_torch_device_type_cuda = cuda,
      .aoti_torch_dtype_float32 = float32,
      .aoti_torch_dtype_bfloat16 = other,
      .aoti_torch_dtype_float16 = other,
      .aoti_torch_dtype_float64 = other,
      .aoti_torch_dtype_float8_e4m3fn = other,
      .aoti_torch_dtype_float8_e5m2 = other,
      .aoti_torch_dtype_uint8 = other,
      .aoti_torch_dtype_int32 = other,
      .aoti_torch_dtype_int64 = other,
      .aoti_torch_delete_tensor_object = delete_tensor,
      .torch_get_const_data_ptr = get_const_data,
      .torch_get_mutable_data_ptr = get_data,
      .aoti_torch_get_dim = get_dim,
      .aoti_torch_get_sizes = get_sizes,
      .aoti_torch_get_strides = get_strides,
      .aoti_torch_get_dtype = get_dtype,
      .aoti_torch_get_device_type = get_device,
      .aoti_torch_get_device_index = get_index,
      .aoti_torch_empty_strided = empty,
      .aoti_torch_copy_ = copy,
      .torch_string_length = string_length,
      .torch_string_c_str = string_text,
      .torch_delete_string = delete_string,
      .torch_delete_stable_ivalue = delete_cell,
      .aoti_torch_check = throw_unless,
      .aoti_torch_get_current_cuda_stream = current_stream,
  };
  lam_torch_learn_numbers();
}

/* Linked in lam_run's place by the adapter's calls. */
lam_status __real_lam_run(lam_context *ctx, const lam_call *call);
lam_status __wrap_lam_run(lam_context *ctx, const lam_call *call);
lam_status __wrap_lam_run(lam_context *ctx, const lam_call *call) {
  for (uint32_t i = 0; i < call->n_inputs; i++)
    seen[i] = call->inputs[i] ? call->inputs[i]->data : NULL;
  return __real_lam_run(ctx, call);
}
lam_status __real_lam_infer(lam_context *ctx, const lam_call *call, lam_inferred *out);
lam_status __wrap_lam_infer(lam_context *ctx, const lam_call *call, lam_inferred *out);
lam_status __wrap_lam_infer(lam_context *ctx, const lam_call *call, lam_inferred *out) {
  seen_stream = call->stream;
  seen_flags = call->flags;
  return __real_lam_infer(ctx, call, out);
}

/* -- a call of linear: x [2, 3] w [2, 3] b? sx? sw? act save dtype -> y [2, 2] aux -- */

static tensor *new_tensor(float *data, int64_t rows, int64_t cols, int64_t row, int64_t col) {
  tensor *t = count(sizeof *t);
  *t = (tensor){data, false, 2, {rows, cols}, {row, col}, FLOAT, CPU, 0};
  return t;
}

static uint64_t as_value(const void *p) { return (uint64_t)(uintptr_t)p; }

static uint64_t new_cell(tensor *t) {
  uint64_t *cell = count(sizeof *cell);
  *cell = as_value(t);
  return as_value(cell);
}

static uint64_t new_string(const char *text) {
  char *s = count(strlen(text) + 1);
  return as_value(strcpy(s, text));
}

#define ROW(name, inputs, outputs, attributes, shapes) \
  lam_torch_row_read(LAM_OP_##name, #name, inputs, outputs, attributes, shapes, &row)

static lam_torch_row row;
static void read_linear(void) {
  start_torch();
  live = copies = fail_empty = 0;
  CHECK(ROW(linear, "x w b? sx? sw?", "y aux?", "act:s save:i dtype:i",
            "y: x[:-1] N(w) @$dtype; aux: {$save?x[:-1] N(w):none}"));
}

typedef struct stack {
  uint64_t slots[16];
} stack;

static stack linear_of(tensor *x, tensor *w, const char *act, int64_t save) {
  return (stack){{as_value(x), as_value(w), 0, 0, 0, new_string(act), (uint64_t)save, 0}};
}

/* Whether it came to its end; else `what` says why. */
static bool run(stack *s) {
  if (setjmp(thrown)) return false;
  lam_torch_run(&row, s->slots, false);
  return true;
}

static tensor *result(const stack *s, int i) { return (tensor *)(uintptr_t)s->slots[i]; }

static void drop_results(const stack *s) {
  for (int i = 0; i < 2; i++) delete_tensor(result(s, i));
}

/* x = [[1 2 3], [4 5 6]], w = [[1 1 1], [1 0 1]] */
static void check_product(const stack *s) {
  static const float want[] = {6, 4, 15, 10};
  for (int i = 0; i < 4; i++) CHECK_EQ(result(s, 0)->data[i], want[i]);
}

static float x[] = {1, 2, 3, 4, 5, 6}, w[] = {1, 1, 1, 1, 0, 1};

TEST(torch_abi, results_are_new_and_everything_else_is_given_back) {
  read_linear();
  FOR_EACH(save, 0, 1) {
    stack s = linear_of(new_tensor(x, 2, 3, 3, 1), new_tensor(w, 2, 3, 3, 1), "", save);
    if (!CHECK(run(&s))) return;
    check_product(&s);
    CHECK_EQ(result(&s, 1)->sizes[0], save ? 2 : 0);
    CHECK_EQ(live, 2);
    drop_results(&s);
    CHECK_EQ(live, 0);
  }
}

TEST(torch_abi, strided_rows_and_a_turned_weight_are_read_where_they_lie) {
  static float wide[] = {1, 2, 3, -1, -1, 4, 5, 6, -1, -1}, turned[] = {1, 1, 1, 0, 1, 1};
  read_linear();
  stack s = linear_of(new_tensor(wide, 2, 3, 5, 1), new_tensor(turned, 2, 3, 1, 2), "", 0);
  if (!CHECK(run(&s))) return;
  check_product(&s);
  CHECK(seen[0] == wide);
  CHECK(seen[1] == turned);
  CHECK_EQ(copies, 0);
  drop_results(&s);
}

TEST(torch_abi, a_dimension_of_one_may_be_expanded_from_anything) {
  read_linear();
  stack s = linear_of(new_tensor(x, 1, 3, 0, 1), new_tensor(w, 2, 3, 3, 1), "", 0);
  if (!CHECK(run(&s))) return;
  CHECK_EQ(result(&s, 0)->data[0], 6);
  CHECK(seen[0] == x);
  CHECK_EQ(copies, 0);
  drop_results(&s);
}

TEST(torch_abi, what_the_library_refuses_to_read_is_copied_once_and_given_back) {
  static float one = 2, turned[] = {1, 4, 2, 5, 3, 6};
  read_linear();
  const struct {
    float *data;
    int64_t row, col;
    float first;
  } cases[] = {{&one, 0, 0, 6}, {turned, 1, 2, 6}};
  FOR_EACH(i, 0, 1) {
    tensor *strange = new_tensor(cases[i].data, 2, 3, cases[i].row, cases[i].col);
    stack s = linear_of(strange, new_tensor(w, 2, 3, 3, 1), "", 0);
    if (!CHECK(run(&s))) return;
    CHECK_EQ(result(&s, 0)->data[0], cases[i].first);
    CHECK(seen[0] != cases[i].data);
    CHECK_EQ(copies, i + 1);
    drop_results(&s);
    CHECK_EQ(live, 0);
  }
}

TEST(torch_abi, an_optional_input_comes_in_a_cell_and_one_of_size_0_is_absent) {
  static float b[] = {10, 20};
  read_linear();
  FOR_EACH(rows, 2, 0) {
    tensor *bias = new_tensor(b, rows, 1, 1, 1);
    bias->ndim = 1;
    stack s = linear_of(new_tensor(x, 2, 3, 3, 1), new_tensor(w, 2, 3, 3, 1), "", 0);
    s.slots[2] = new_cell(bias);
    if (!CHECK(run(&s))) return;
    CHECK_EQ(result(&s, 0)->data[0], rows ? 16 : 6);
    drop_results(&s);
    CHECK_EQ(live, 0);
  }
}

TEST(torch_abi, a_refusal_carries_the_librarys_words_and_gives_all_back) {
  read_linear();
  stack s = linear_of(new_tensor(x, 2, 3, 3, 1), new_tensor(w, 2, 3, 3, 1), "gellu", 0);
  CHECK(!run(&s));
  CHECK_CONTAINS(what, "gellu");
  s = linear_of(new_tensor(x, 2, 3, 3, 1), new_tensor(w, 3, 2, 2, 1), "", 0);
  CHECK(!run(&s));
  CHECK_CONTAINS(what, "linear: ");
  tensor *strange = new_tensor(x, 2, 3, 3, 1);
  strange->dtype = FLOAT + 1;
  s = linear_of(strange, new_tensor(w, 2, 3, 3, 1), "", 0);
  CHECK(!run(&s));
  CHECK_CONTAINS(what, "dtype is not supported");
  CHECK_EQ(live, 0);
}

TEST(torch_abi, an_allocation_that_fails_gives_all_back) {
  FOR_EACH(nth, 1, 2, 3) {
    read_linear();
    stack s = linear_of(new_tensor(x, 2, 3, 0, 1), new_tensor(w, 2, 3, 3, 1), "", 1);
    fail_empty = nth; /* the copy, y, aux */
    CHECK(!run(&s));
    CHECK_CONTAINS(what, "torch could not allocate a tensor");
    CHECK_EQ(live, 0);
  }
}

TEST(torch_abi, a_cuda_tensor_goes_to_the_library_with_torchs_stream) {
  read_linear();
  FOR_EACH(has_stream, 1, 0) {
    tensor *a = new_tensor(x, 2, 3, 3, 1), *b = new_tensor(w, 2, 3, 3, 1);
    a->device = b->device = CUDA;
    a->index = b->index = 1;
    if (!has_stream) lam_torch.aoti_torch_get_current_cuda_stream = NULL;
    seen_stream = NULL;
    stack s = linear_of(a, b, "", 0);
    CHECK(!run(&s)); /* the CUDA device is not beside this test */
    CHECK_CONTAINS(what, has_stream ? "it lies on cuda:1: liblamella_cuda.so.0"
                                    : "no libtorch_cuda.so is loaded");
    CHECK(seen_stream == (has_stream ? &stream_of_device_1 : NULL));
    CHECK_EQ(live, 0);
  }
}

static int yes(void) { return 1; }
static int no(void) { return 0; }

/* Asked for calls of f32 on CUDA alone: on the CPU it would cost, and mean nothing. */
TEST(torch_abi, f32_on_cuda_may_be_tf32_where_torch_says_so) {
  int (*const asks[])(void) = {NULL, no, yes};
  read_linear();
  FOR_EACH(device, CPU, CUDA) for (int i = 0; i < 3; i++) {
    tensor *a = new_tensor(x, 2, 3, 3, 1), *b = new_tensor(w, 2, 3, 3, 1);
    a->device = b->device = device;
    lamella_torch_ask_tf32(asks[i]);
    stack s = linear_of(a, b, "", 0);
    if (run(&s)) drop_results(&s);
    CHECK_EQ(seen_flags, device == CUDA && asks[i] == yes ? LAM_CALL_TF32 : 0);
  }
  lamella_torch_ask_tf32(NULL);
  CHECK_EQ(live, 0);
}

static void call_often(int rank, int size, void *arg) {
  (void)rank, (void)size, (void)arg;
  for (int i = 0; i < 200; i++) {
    stack s = linear_of(new_tensor(x, 2, 3, 3, 1), new_tensor(w, 2, 3, 3, 1), "", i % 2);
    if (!CHECK(run(&s))) return;
    check_product(&s);
    drop_results(&s);
  }
}

TEST(torch_abi, threads_call_the_same_operator_at_once) {
  read_linear();
  run_threads(4, call_often, NULL);
  CHECK_EQ(live, 0);
}
