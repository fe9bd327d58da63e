/* calls_test.c: what a call costs beside its work: no allocation of ours, no system call, once its
 * shape is known.
 *
 * malloc and its kin are this program's own, and count; system calls are counted by a tracing
 * parent, from one marker (a call no one else makes) to the next. oneDNN's run of a product
 * allocates a few small nodes of its own; those come through the C++ library and are told apart by
 * their caller. */
#include <dlfcn.h>
#include <errno.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ptrace.h>
#include <sys/syscall.h>
#include <sys/user.h>
#include <sys/wait.h>
#include <unistd.h>

#include "kernels/cpu/cpu.h"
#include "tests/unit/kernels/support.h"

/* -- allocations -- */

void *__libc_malloc(size_t n);
void *__libc_calloc(size_t n, size_t each);
void *__libc_realloc(void *p, size_t n);
void *__libc_memalign(size_t alignment, size_t n);

static _Atomic int n_ours, n_others;
extern char __executable_start, etext;

static void count(const void *caller) {
  const char *at = caller;
  atomic_fetch_add(at >= &__executable_start && at < &etext ? &n_ours : &n_others, 1);
}

#define EXPORT __attribute__((visibility("default")))
EXPORT void *malloc(size_t n) { return count(__builtin_return_address(0)), __libc_malloc(n); }
EXPORT void *calloc(size_t n, size_t each) {
  return count(__builtin_return_address(0)), __libc_calloc(n, each);
}
EXPORT void *realloc(void *p, size_t n) {
  return count(__builtin_return_address(0)), __libc_realloc(p, n);
}
EXPORT int posix_memalign(void **out, size_t alignment, size_t n) {
  count(__builtin_return_address(0));
  *out = __libc_memalign(alignment, n);
  return *out ? 0 : ENOMEM;
}

/* -- calls of every kind -- */

typedef struct calls {
  box a, few, w, bias, d, d_few, aux, parts[2], packed;
} calls;

static calls make_calls(lam_dtype dtype) {
  rng r = {seed()};
  calls c = {.a = box_random(&r, 160, 200, dtype, BY_ROWS),
             .few = box_random(&r, 3, 200, dtype, BY_ROWS),
             .w = box_random(&r, 300, 200, dtype, BY_ROWS),
             .bias = box_random(&r, 1, 300, dtype, BY_ROWS),
             .d = box_new(160, 300, dtype, BY_ROWS),
             .d_few = box_new(3, 300, dtype, BY_ROWS),
             .aux = box_new(160, 300, dtype, BY_ROWS),
             .parts = {box_random(&r, 160, 300, LAM_F32, BY_ROWS),
                       box_random(&r, 160, 300, LAM_F32, BY_ROWS)}};
  int64_t cols = 0;
  CHECK_OK(lam_device_packed_cols(&lam_device_cpu, dtype, 300, 200, 0, &cols));
  c.packed = box_new(300, (cols + 3) / 4, LAM_F32, BY_ROWS);
  CHECK_OK(lam_device_pack(&lam_device_cpu, workers(ALONE), c.w.m, 0, c.packed.m.data, cols, NULL));
  c.packed.m = (lam_matrix){c.packed.m.data, 300, 200, 0, 0, dtype, true};
  return c;
}

static void free_calls(calls *c) {
  box_free(&c->a), box_free(&c->few), box_free(&c->w), box_free(&c->bias), box_free(&c->d),
      box_free(&c->d_few);
  box_free(&c->aux), box_free(&c->parts[0]), box_free(&c->parts[1]), box_free(&c->packed);
}

/* No REQUIRE or CHECK here: between the markers only the library runs. */
static lam_status call_all(const calls *c, const lam_workers *w) {
  const lam_device *cpu = &lam_device_cpu;
  const lam_matrix views[] = {c->parts[0].m, c->parts[1].m}, none = {0};
  const lam_gemm products[] = {
      {.a = c->a.m, .b = c->w.m, .bias = c->bias.m, .d = c->d.m, .act = LAM_ACT_GELU},
      {.a = c->a.m,
       .b = c->w.m,
       .bias = c->bias.m,
       .d = c->d.m,
       .aux = c->aux.m,
       .act = LAM_ACT_GELU},
      {.a = c->few.m, .b = c->w.m, .bias = c->bias.m, .d = c->d_few.m, .act = LAM_ACT_SILU},
      {.a = c->a.m, .b = c->packed.m, .d = c->d.m},
      {.a = c->few.m, .b = c->packed.m, .d = c->d_few.m},
      {.a = c->a.m, .b = c->w.m, .d = c->d.m, .accumulate = true},
  };
  for (size_t i = 0; i < sizeof products / sizeof *products; i++)
    LAM_TRY(lam_device_gemm(cpu, w, &products[i], NULL));
  LAM_TRY(lam_gemm_plain_run(w, &products[0]));
  LAM_TRY(lam_device_act(cpu, w, LAM_ACT_GELU, false, c->d.m, c->aux.m, NULL));
  LAM_TRY(lam_device_act_bwd(cpu, w, LAM_ACT_GELU, false, c->d.m, c->aux.m, c->aux.m, NULL));
  LAM_TRY(lam_device_sum(cpu, w, views, 2, c->bias.m, none, c->d.m, NULL));
  LAM_TRY(lam_device_column_sum(cpu, w, c->d.m, c->bias.m, false, NULL));
  return lam_device_copy(cpu, w, c->d.m, c->aux.m, NULL);
}

enum {
  ROUNDS = 10,
  TRIES = 20,
  MOST_OTHERS = ROUNDS * 6 * 8
}; /* oneDNN: a map of five a product */

/* Own allocations of ROUNDS rounds of calls; those of others, too. */
static int count_rounds(const calls *c, const lam_workers *w, int *out_others) {
  const int ours = n_ours, others = n_others;
  lam_status status = LAM_OK;
  for (int i = 0; i < ROUNDS; i++) status |= call_all(c, w);
  const int ours_now = n_ours - ours;
  *out_others = n_others - others;
  CHECK_EQ(status, LAM_OK);
  return ours_now;
}

/* A worker's first piece of a kind takes memory, and on a busy machine it may come late: so rounds
 * without any must come, not at once. */
TEST(calls, allocate_nothing_once_their_shape_is_known) {
  FOR_EACH(dtype, LAM_F32, LAM_BF16) for (int crew_i = 0; crew_i <= TWO_OPENMP; crew_i++) {
    calls c = make_calls((lam_dtype)dtype);
    int ours = 1, others = 0;
    for (int i = 0; i < TRIES && (ours || others > MOST_OTHERS); i++)
      ours = count_rounds(&c, workers((crew)crew_i), &others);
    NOTE("%s, crew %d", lam_dtype_name((lam_dtype)dtype), crew_i);
    CHECK_EQ(ours, 0);
    CHECK(others <= MOST_OTHERS);
    free_calls(&c);
  }
}

/* -- system calls -- */

enum { MARK = 0x1a3e11a };

static void mark(void) { syscall(SYS_getpriority, MARK, 0); }

static void traced(const calls *c) {
  for (int i = 0; i < 3; i++)
    if (call_all(c, workers(ALONE)) != LAM_OK) _exit(1);
  ptrace(PTRACE_TRACEME, 0, NULL, NULL);
  raise(SIGSTOP);
  mark();
  lam_status status = LAM_OK;
  for (int i = 0; i < 10; i++) status |= call_all(c, workers(ALONE));
  mark();
  _exit(status == LAM_OK ? 0 : 1);
}

/* System calls between the child's two marks; -1 where it may not be traced. `out_last` names one
 * of them. */
static int count_system_calls(pid_t child, long *out_last) {
  int status, n = 0, marks = 0, entering = 1;
  if (waitpid(child, &status, 0) != child || !WIFSTOPPED(status)) return -1;
  ptrace(PTRACE_SETOPTIONS, child, NULL, (void *)(uintptr_t)PTRACE_O_TRACESYSGOOD);
  while (ptrace(PTRACE_SYSCALL, child, NULL, NULL) == 0 && waitpid(child, &status, 0) == child &&
         WIFSTOPPED(status)) {
    struct user_regs_struct regs;
    if (WSTOPSIG(status) != (SIGTRAP | 0x80) || !(entering = !entering)) continue;
    if (ptrace(PTRACE_GETREGS, child, NULL, &regs) != 0) break;
    if (regs.orig_rax == SYS_getpriority && regs.rdi == MARK)
      marks++;
    else if (marks == 1)
      n++, *out_last = (long)regs.orig_rax;
  }
  CHECK(WIFEXITED(status) && WEXITSTATUS(status) == 0);
  return marks == 2 ? n : -1;
}

TEST(calls, make_no_system_call_once_their_shape_is_known) {
  calls c = make_calls(LAM_BF16);
  long last = -1;
  const pid_t child = fork();
  if (child == 0) traced(&c);
  const int n = count_system_calls(child, &last);
  free_calls(&c);
  if (n < 0) SKIP("this process may not trace its child");
  NOTE("one of them is number %ld", last);
  CHECK_EQ(n, 0);
}
