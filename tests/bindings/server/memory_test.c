/* memory_test.c: what a model needs to run comes from its host's allocator, and nothing else does.
 *
 * malloc and its kin are counted by defining them here; the context's own memory is cut from a
 * block that was there before. What oneDNN keeps for a shape is the thread's, made by the model
 * that ran first, so that a second one shows what a model itself takes.
 * Invariant: one thread calls. */
#include <stdlib.h>

#include "tests/bindings/server/server.h"

void *__libc_malloc(size_t bytes);
void *__libc_calloc(size_t n, size_t bytes);
void *__libc_realloc(void *p, size_t bytes);
void *__libc_memalign(size_t alignment, size_t bytes);

static _Atomic bool counts;
static _Atomic uint64_t largest;

static void *counted(void *p, size_t bytes) {
  if (counts && bytes > largest) largest = bytes;
  return p;
}

void *malloc(size_t bytes) { return counted(__libc_malloc(bytes), bytes); }
void *calloc(size_t n, size_t bytes) { return counted(__libc_calloc(n, bytes), n * bytes); }
void *realloc(void *p, size_t bytes) { return counted(__libc_realloc(p, bytes), bytes); }
void *memalign(size_t to, size_t bytes) { return counted(__libc_memalign(to, bytes), bytes); }
void *aligned_alloc(size_t to, size_t bytes) { return counted(__libc_memalign(to, bytes), bytes); }
int posix_memalign(void **out, size_t to, size_t bytes) {
  *out = counted(__libc_memalign(to, bytes), bytes);
  return *out ? 0 : 12;
}

/* A host's own memory: cut from the front, given back never. */
typedef struct reserve {
  _Alignas(64) unsigned char block[64 << 20];
  uint64_t used, n_freed;
} reserve;

static void *cut(void *user, uint64_t bytes, uint64_t alignment) {
  reserve *m = user;
  m->used = (m->used + alignment - 1) / alignment * alignment;
  if (m->used + bytes > sizeof m->block) return NULL;
  m->used += bytes;
  return m->block + m->used - bytes;
}

static void leave(void *user, void *p, uint64_t bytes) {
  (void)p;
  ((reserve *)user)->n_freed += bytes;
}

static lam_context *context_on(reserve *m) {
  lam_context_desc desc = LAM_CONTEXT_DESC_INIT;
  lam_context *ctx = NULL;
  desc.threads = 1;
  desc.user = m, desc.alloc = cut, desc.free = leave;
  CHECK_OK(lam_context_create(&desc, &ctx));
  return ctx;
}

enum { T = 48, K = 160, N = 224 };

/* Layers whose kernels want memory of their own: few rows, an activation after a rounded product,
 * a weight gradient, and what has no oneDNN way. */
static const struct {
  uint32_t op;
  int64_t tokens;
  bool bf16;
  const char *act;
} calls[] = {
    {LAM_OP_linear, 3, false, ""},      {LAM_OP_linear, 3, true, "silu"},
    {LAM_OP_linear, T, true, "relu"},   {LAM_OP_linear, T, false, "relu2"},
    {LAM_OP_linear_wgrad, T, true, ""}, {LAM_OP_linear_dgrad, T, false, ""},
};

static void run_call(lam_context *ctx, int which) {
  static float a[N * K], b[N * K], c[N * K];
  const DLDataType dtype = calls[which].bf16 ? BF16 : F32;
  const int64_t t = calls[which].tokens;
  host_tensor x, w, y;
  HOST(&x, a, dtype, t, K), HOST(&w, b, dtype, N, K), HOST(&y, c, dtype, t, N);
  const lam_attr act = lam_attr_s(calls[which].act);
  const bool dgrad = calls[which].op == LAM_OP_linear_dgrad;
  const bool wgrad = calls[which].op == LAM_OP_linear_wgrad;
  lam_call call = LAM_CALL_INIT;
  call.op = calls[which].op;
  call.inputs =
      wgrad ? (const DLTensor *[]){&y.t, &x.t} : (const DLTensor *[]){dgrad ? &y.t : &x.t, &w.t};
  call.outputs = (DLTensor *[]){wgrad ? &w.t : dgrad ? &x.t : &y.t};
  call.n_inputs = 2, call.n_outputs = 1;
  call.attrs = &act, call.n_attrs = !dgrad && !wgrad;
  CHECK_OK(lam_run(ctx, &call));
}

static void run_all(lam_context *ctx) {
  for (int i = 0; i < (int)(sizeof calls / sizeof *calls); i++) {
    NOTE("call %d: %s", i, lam_op_row(calls[i].op));
    run_call(ctx, i);
  }
}

TEST(server_memory, a_model_takes_all_it_needs_from_its_host) {
  static reserve first, second;
  lam_context *ctx = context_on(&first);
  run_all(ctx);
  lam_context_destroy(ctx);
  ctx = context_on(&second);
  counts = true;
  run_all(ctx);
  counts = false;
  CHECK(largest < 4096); /* nodes that oneDNN makes in each product: no room for a row of rows */
  CHECK(second.used > T * N * sizeof(float)); /* between a product and its activation */
  lam_context_stats stats = LAM_CONTEXT_STATS_INIT;
  CHECK_OK(lam_context_get_stats(ctx, &stats));
  const uint64_t held = stats.bytes;
  CHECK_EQ(stats.bytes, held);
  lam_context_destroy(ctx);
  CHECK(held > 0 && second.n_freed >= held);
}

TEST(server_memory, a_model_without_memory_says_so_and_goes_on_later) {
  static reserve m;
  lam_context *ctx = context_on(&m);
  m.used = sizeof m.block;
  static float x[2 * K], w[N * K], y[2 * N];
  host_tensor hx, hw, hy;
  HOST(&hx, x, F32, 2, K), HOST(&hw, w, F32, N, K), HOST(&hy, y, F32, 2, N);
  lam_call call = LAM_CALL_INIT;
  call.op = LAM_OP_linear;
  call.inputs = (const DLTensor *[]){&hx.t, &hw.t}, call.n_inputs = 2;
  call.outputs = (DLTensor *[]){&hy.t}, call.n_outputs = 1;
  CHECK_STATUS(lam_run(ctx, &call), LAM_RESOURCE_EXHAUSTED);
  CHECK_CONTAINS(lam_last_error(), "bytes of scratch memory could not be had");
  m.used = 0;
  CHECK_OK(lam_run(ctx, &call));
  lam_context_destroy(ctx);
}
