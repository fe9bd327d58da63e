/* quiet_test.c: a call after the first allocates nothing and makes no system call, without peers.
 *
 * malloc and its kin are counted by defining them here. System calls are forbidden by the kernel: a
 * child enters strict seccomp, where all but read, write and exit kill it, makes its calls and
 * exits by a bare exit.
 * Invariant: the calls run on one thread; what a pool or OpenMP does is theirs. Leaves calls among
 * peers to comm's tests. */
#include <linux/seccomp.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdlib.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include "tests/unit/core/host.h"

static _Atomic long n_allocations;

void *__libc_malloc(size_t bytes);
void *__libc_calloc(size_t n, size_t bytes);
void *__libc_realloc(void *p, size_t bytes);
void *__libc_memalign(size_t alignment, size_t bytes);

static void *counted(void *p) {
  n_allocations++;
  return p;
}

void *malloc(size_t bytes) { return counted(__libc_malloc(bytes)); }
void *calloc(size_t n, size_t bytes) { return counted(__libc_calloc(n, bytes)); }
void *realloc(void *p, size_t bytes) { return counted(__libc_realloc(p, bytes)); }
void *memalign(size_t to, size_t bytes) { return counted(__libc_memalign(to, bytes)); }
void *aligned_alloc(size_t to, size_t bytes) { return counted(__libc_memalign(to, bytes)); }

enum { T = -1, K = 24, N = 40, F = 56 }; /* T: of the run, few rows and many take other ways */

/* One call of a row with all its inputs and outputs in f32 or bf16, and room for them. */
typedef struct quiet_call {
  host_tensor tensors[8];
  const DLTensor *in[5];
  DLTensor *out[5];
  lam_attr group; /* of one rank, for the rows that have groups */
  lam_call call;
  float memory[8][64 * 64];
} quiet_call;

typedef struct tensor_size {
  int64_t rows, cols; /* rows 0: a vector; cols 0: absent */
} tensor_size;

static const struct {
  uint32_t op;
  int n_in, n_out;
  tensor_size sizes[8]; /* inputs, then outputs */
} calls[] = {
    {LAM_OP_linear, 3, 1, {{T, K}, {N, K}, {0, N}, {T, N}}},
    {LAM_OP_linear_dgrad, 2, 1, {{T, N}, {N, K}, {T, K}}},
    {LAM_OP_linear_wgrad, 2, 2, {{T, N}, {T, K}, {N, K}, {0, N}}},
    {LAM_OP_linear_col, 3, 1, {{T, K}, {N, K}, {0, N}, {T, N}}},
    {LAM_OP_linear_row, 3, 1, {{T, K}, {N, K}, {0, N}, {T, N}}},
    {LAM_OP_linear_row_bwd, 3, 3, {{T, N}, {T, K}, {N, K}, {T, K}, {N, K}, {0, N}}},
    {LAM_OP_ffn, 5, 1, {{T, K}, {F, K}, {0, F}, {N, F}, {0, N}, {T, N}}},
    {LAM_OP_all_reduce, 1, 1, {{T, K}, {T, K}}},
    {LAM_OP_gather_sequence, 1, 1, {{T, K}, {T, K}}},
};
#define N_CALLS ((int)(sizeof calls / sizeof *calls))

static void make_call(quiet_call *q, int which, DLDataType dtype, int64_t t) {
  memset(q, 0, sizeof *q);
  q->call = (lam_call)LAM_CALL_INIT;
  q->call.op = calls[which].op;
  q->call.inputs = q->in, q->call.n_inputs = (uint32_t)calls[which].n_in;
  q->call.outputs = q->out, q->call.n_outputs = (uint32_t)calls[which].n_out;
  for (int i = 0; i < calls[which].n_in + calls[which].n_out; i++) {
    tensor_size s = calls[which].sizes[i];
    if (s.rows == T) s.rows = t;
    host_tensor *h = &q->tensors[i];
    host_make(h, q->memory[i], dtype,
              s.rows ? (int64_t[]){s.rows, s.cols, -1} : (int64_t[]){s.cols, -1});
    if (i < calls[which].n_in)
      q->in[i] = &h->t;
    else
      q->out[i - calls[which].n_in] = &h->t;
  }
}

static bool has_group(uint32_t op) { return strstr(lam_op_row(op), "group:i") != NULL; }

static lam_group *group_of_one(lam_context *ctx) {
  lam_group_desc desc = LAM_GROUP_DESC_INIT;
  lam_group *g = NULL;
  desc.rank = 0, desc.size = 1;
  CHECK_OK(lam_group_id_create(&desc.id));
  CHECK_OK(lam_group_create(ctx, &desc, &g));
  return g;
}

static lam_context *one_thread(void) {
  lam_context_desc desc = LAM_CONTEXT_DESC_INIT;
  lam_context *ctx = NULL;
  desc.threads = 1;
  CHECK_OK(lam_context_create(&desc, &ctx));
  return ctx;
}

/* Each call of the table, in both dtypes: once before, then as often as `fn` says. */
static void each_call_of(int64_t t, void (*fn)(lam_context *ctx, const lam_call *call)) {
  static quiet_call q;
  lam_context *ctx = one_thread();
  lam_group *g = group_of_one(ctx);
  for (int which = 0; which < N_CALLS; which++) {
    FOR_EACH(bf16, 0, 1) {
      make_call(&q, which, bf16 ? BF16 : F32, t);
      q.group = lam_attr_i(lam_group_handle(g));
      q.call.attrs = &q.group, q.call.n_attrs = has_group(q.call.op);
      NOTE("%s, %d rows, %s", bf16 ? "bf16" : "f32", (int)t, lam_op_row(q.call.op));
      if (CHECK_OK(lam_run(ctx, &q.call))) fn(ctx, &q.call);
    }
  }
  lam_group_destroy(g);
  lam_context_destroy(ctx);
}

static void each_call(void (*fn)(lam_context *ctx, const lam_call *call)) {
  each_call_of(5, fn);
  each_call_of(48, fn);
}

static void count_allocations(lam_context *ctx, const lam_call *call) {
  const long before = n_allocations;
  for (int i = 0; i < 10; i++) lam_run(ctx, call);
  CHECK_EQ(n_allocations - before, 0);
}

TEST(quiet, a_call_after_the_first_allocates_nothing) {
  void *volatile p = malloc(10);
  free(p);
  REQUIRE(n_allocations > 0); /* the counting works */
  each_call(count_allocations);
}

static int status_of_child(void (*fn)(lam_context *ctx, const lam_call *call), lam_context *ctx,
                           const lam_call *call) {
  int status = 0;
  const pid_t pid = fork();
  if (pid == 0) {
    if (prctl(PR_SET_SECCOMP, SECCOMP_MODE_STRICT))
      syscall(SYS_exit, 7); /* no seccomp on this kernel */
    if (fn) fn(ctx, call);
    syscall(SYS_exit, 0);
  }
  waitpid(pid, &status, 0);
  return status;
}

static void run_ten_times(lam_context *ctx, const lam_call *call) {
  for (int i = 0; i < 10; i++)
    if (lam_run(ctx, call)) syscall(SYS_exit, 1);
}

static void ask_for_pid(lam_context *ctx, const lam_call *call) {
  (void)ctx;
  (void)call;
  getpid();
}

static void forbid_system_calls(lam_context *ctx, const lam_call *call) {
  const int status = status_of_child(run_ten_times, ctx, call);
  CHECK(WIFEXITED(status) && WEXITSTATUS(status) == 0);
}

TEST(quiet, a_call_after_the_first_makes_no_system_call) {
  const int allowed = status_of_child(NULL, NULL, NULL);
  if (WIFEXITED(allowed) && WEXITSTATUS(allowed) == 7) SKIP("strict seccomp is not to be had here");
  REQUIRE(WIFSIGNALED(status_of_child(ask_for_pid, NULL, NULL))); /* the forbidding works */
  each_call(forbid_system_calls);
}
