/* quiet_test.c: after the first call of a size, with peers that come at once, a call allocates
 * nothing and makes no system call. Allocations are counted by this program's own malloc, system
 * calls by a seccomp filter that lets them through and counts. A rank that waits would give its
 * processor away, so ranks here spin for as long as it takes. */
#include <errno.h>
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <signal.h>
#include <stddef.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <ucontext.h>

#include "plugin/comm/shm/shm.h"
#include "tests/distributed/comm/ranks.h"

/* ---- Counting -------------------------------------------------------------------------------- */

void *__libc_malloc(size_t bytes);
void *__libc_calloc(size_t n, size_t bytes);
void *__libc_realloc(void *p, size_t bytes);
void *__libc_memalign(size_t alignment, size_t bytes);

static _Atomic int n_allocations, n_syscalls, last_syscall;

void *malloc(size_t bytes) {
  n_allocations++;
  return __libc_malloc(bytes);
}
void *calloc(size_t n, size_t bytes) {
  n_allocations++;
  return __libc_calloc(n, bytes);
}
void *realloc(void *p, size_t bytes) {
  n_allocations++;
  return __libc_realloc(p, bytes);
}
void *aligned_alloc(size_t alignment, size_t bytes) {
  n_allocations++;
  return __libc_memalign(alignment, bytes);
}

/* The call fails with ENOSYS; its callers here do not care. */
static void on_syscall(int signal_number, siginfo_t *info, void *context) {
  (void)signal_number;
  n_syscalls++;
  last_syscall = info->si_syscall;
#if defined(__x86_64__)
  ((ucontext_t *)context)->uc_mcontext.gregs[REG_RAX] = -ENOSYS;
#else
  (void)context;
#endif
}

/* From here on each system call of this process is counted, but for those that a test needs to
 * end. */
static bool count_syscalls(void) {
  struct sock_filter rules[] = {
      BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, nr)),
      BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, SYS_rt_sigreturn, 3, 0),
      BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, SYS_exit_group, 2, 0),
      BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, SYS_write, 1, 0),
      BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_TRAP),
      BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW),
  };
  const struct sock_fprog program = {sizeof rules / sizeof *rules, rules};
  const struct sigaction action = {.sa_sigaction = on_syscall, .sa_flags = SA_SIGINFO | SA_NODEFER};
  sigaction(SIGSYS, &action, NULL);
  return prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) == 0 &&
         prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, &program) == 0;
}

/* ---- The calls ------------------------------------------------------------------------------- */

enum { N = 200000, COLS = 100 };
static float *x, *y;
static lam_channel *channel;

static lam_comm_op op_of(uint32_t op, int64_t n) {
  return (lam_comm_op){.op = op, .dtype = LAM_F32, .ndim = 1, .dims = {n}};
}

static lam_status sums(lam_group *g, int64_t n) {
  const lam_comm_op op = op_of(LAM_OP_all_reduce, n);
  return lam_group_all_reduce(g, &op, x, y, n, LAM_F32);
}

static lam_status gathers(lam_group *g) {
  int64_t first[9];
  for (int r = 0; r <= g->size; r++) first[r] = N / 4 * r;
  const lam_comm_op gather = op_of(LAM_OP_all_gather, first[g->size]),
                    scatter = op_of(LAM_OP_reduce_scatter, first[g->size]);
  const lam_parts parts = {1, 1, first, LAM_F32};
  LAM_TRY(lam_group_all_gather(g, &gather, &parts, x, y));
  return lam_group_reduce_scatter(g, &scatter, &parts, y, x);
}

static lam_status partial_sums(lam_group *g) {
  const lam_comm_op op = op_of(LAM_OP_linear_row, N);
  lam_sum s = {.y = {.data = y,
                     .rows = N / COLS,
                     .cols = COLS,
                     .row_stride = COLS,
                     .col_stride = 1,
                     .dtype = LAM_F32}};
  LAM_TRY(lam_group_begin_sums(g, &op));
  LAM_TRY(lam_group_partial(g, N / COLS, COLS, &s));
  memcpy(s.part.data, x, N * sizeof *x);
  LAM_TRY(lam_group_sum_start(g, &s));
  return lam_group_sum_finish(g, &s);
}

static lam_status transfers(lam_group *g) {
  lam_wire h = {.bytes = N * sizeof *x};
  if (g->rank == 0) return lam_group_send(g, 1, 0, &h, x);
  return lam_group_recv(g, 0, 0, &h, y, N * sizeof *y);
}

static lam_status messages(lam_group *g) {
  lam_wire h = {.bytes = 100};
  void *slot = NULL;
  const void *data = NULL;
  if (g->rank == 0) {
    LAM_TRY(lam_channel_acquire(channel, &slot));
    return lam_channel_push(channel, &h);
  }
  LAM_TRY(lam_channel_pull(channel, &h, &data));
  return lam_channel_release(channel);
}

static lam_status a_round(lam_group *g) {
  LAM_TRY(sums(g, 16));
  LAM_TRY(sums(g, 1000));
  LAM_TRY(sums(g, N));
  LAM_TRY(gathers(g));
  LAM_TRY(partial_sums(g));
  LAM_TRY(transfers(g));
  return messages(g);
}

static lam_group_id *id;

static void quiet_rank(int rank, int size, void *arg) {
  lam_group *g = NULL;
  lam_context *ctx = NULL;
  lam_context_desc one_thread = LAM_CONTEXT_DESC_INIT;
  const lam_group_desc d = rank_desc(id, rank, size, 60000);
  (void)arg;
  one_thread.threads = 1;
  x = calloc(N, sizeof *x);
  y = calloc(N, sizeof *y);
  REQUIRE_OK(lam_context_create(&one_thread, &ctx));
  REQUIRE_OK(lam_group_create(ctx, &d, &g));
  REQUIRE_OK(lam_channel_open(g, 1 - rank, rank == 0, 1, 4, 100, &channel));
  shm_group_of(g)->world->spins = INT32_MAX;
  for (int i = 0; i < 6; i++) REQUIRE_OK(a_round(g)); /* each of the slots once */
  REQUIRE(count_syscalls());
  syscall(SYS_getpid);
  CHECK_EQ(n_syscalls, 1);
  n_syscalls = n_allocations = 0;
  for (int i = 0; i < 20; i++) REQUIRE_OK(a_round(g));
  const int allocations = n_allocations, syscalls = n_syscalls;
  CHECK_EQ(allocations, 0);
  if (!CHECK_EQ(syscalls, 0)) CHECK_EQ(last_syscall, -1); /* which it was */
}

TEST(quiet, calls_after_the_first_allocate_nothing_and_make_no_system_call) {
  id = shared_memory(sizeof *id);
  CHECK_OK(lam_group_id_create(id));
  run_processes(2, quiet_rank, NULL);
}
