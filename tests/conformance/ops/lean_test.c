/* lean_test.c: after its first time, a call allocates nothing and makes no system call: alone
 * always, in a group whenever the peers are already there.
 *
 * Allocations are counted by standing in for malloc and its kin (oneDNN's run of a product asks for
 * a few small nodes of its own; they are told apart by their caller); system calls by a seccomp
 * filter that traps them: the handler counts, makes the call for the caller, and goes on. The
 * filter lets through what comes from the handler's own syscall instruction.
 * Invariant: counting changes nothing for a call that makes none. */
#include <errno.h>
#include <sched.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "tests/distributed/ops/member.h"

/* -- allocations -- */

void *__libc_malloc(size_t n);
void *__libc_calloc(size_t n, size_t size);
void *__libc_realloc(void *p, size_t n);
void *__libc_memalign(size_t alignment, size_t n);

static _Atomic uint64_t allocations;
extern char __executable_start, etext;

/* Ours are those that this program's own code asks for. */
static void count_allocation(const void *caller) {
  const char *at = caller;
  if (at >= &__executable_start && at < &etext) allocations++;
}

#define STAND_IN __attribute__((visibility("default")))
#define COUNT count_allocation(__builtin_return_address(0))
STAND_IN void *malloc(size_t n) {
  COUNT;
  return __libc_malloc(n);
}
STAND_IN void *calloc(size_t n, size_t size) {
  COUNT;
  return __libc_calloc(n, size);
}
STAND_IN void *realloc(void *p, size_t n) {
  COUNT;
  return __libc_realloc(p, n);
}
STAND_IN void *aligned_alloc(size_t alignment, size_t n) {
  COUNT;
  return __libc_memalign(alignment, n);
}
STAND_IN int posix_memalign(void **out, size_t alignment, size_t n) {
  COUNT;
  *out = __libc_memalign(alignment, n);
  return *out || n == 0 ? 0 : ENOMEM;
}

/* -- system calls -- */

static _Atomic uint64_t system_calls;

#if defined(__x86_64__)
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <stddef.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <ucontext.h>

/* The one syscall instruction that the filter lets through: it ends at let_through_end. */
long let_through(long number, long a, long b, long c, long d, long e, long f);
extern const char let_through_end[];
__asm__(
    ".text\n.globl let_through, let_through_end\n"
    "let_through:\n"
    "mov %rdi, %rax\nmov %rsi, %rdi\nmov %rdx, %rsi\nmov %rcx, %rdx\nmov %r8, %r10\nmov %r9, %r8\n"
    "mov 8(%rsp), %r9\nsyscall\nlet_through_end:\nret\n");

static void count_and_call(int signal, siginfo_t *info, void *context) {
  greg_t *r = ((ucontext_t *)context)->uc_mcontext.gregs;
  (void)signal;
  system_calls++;
  r[REG_RAX] = let_through(info->si_syscall, r[REG_RDI], r[REG_RSI], r[REG_RDX], r[REG_R10],
                           r[REG_R8], r[REG_R9]);
}

#define FIELD(name) (uint32_t) offsetof(struct seccomp_data, name)

/* From here on this thread's system calls are counted. False: this kernel allows no filters. */
static int count_system_calls(void) {
  const uint64_t place = (uint64_t)(uintptr_t)let_through_end;
  struct sock_filter filter[] = {
      BPF_STMT(BPF_LD | BPF_W | BPF_ABS, FIELD(nr)),
      BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, SYS_rt_sigreturn, 5, 0),
      BPF_STMT(BPF_LD | BPF_W | BPF_ABS, FIELD(instruction_pointer)),
      BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, (uint32_t)place, 0, 2),
      BPF_STMT(BPF_LD | BPF_W | BPF_ABS, FIELD(instruction_pointer) + 4),
      BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, (uint32_t)(place >> 32), 1, 0),
      BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_TRAP),
      BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW),
  };
  const struct sock_fprog program = {sizeof filter / sizeof *filter, filter};
  struct sigaction action = {.sa_sigaction = count_and_call, .sa_flags = SA_SIGINFO | SA_NODEFER};
  return sigaction(SIGSYS, &action, NULL) == 0 && prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) == 0 &&
         prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, &program) == 0;
}
#else
static int count_system_calls(void) { return 0; }
#endif

/* -- calls -- */

#define I lam_attr_i
#define S lam_attr_s
enum { K = 64, N = 48, F = 32, MOST_ROWS = 40, ROOM = 8192 };

static float memory[18][ROOM];

typedef struct operands {
  tensor x, h, y, w, wt, b, dw, db, aux, w1, w2, dw1, dw2, ids, loss, lse, g, h2;
} operands;

/* T tokens. Few rows take another way through the kernels. */
static void make_operands(operands *o, const DLDataType type, int64_t T) {
  TENSOR(&o->x, memory[0], type, T, K);
  TENSOR(&o->y, memory[1], type, T, N);
  TENSOR(&o->w, memory[2], type, N, K);
  TENSOR(&o->b, memory[3], f32, N);
  TENSOR(&o->dw, memory[4], f32, N, K);
  TENSOR(&o->db, memory[5], f32, N);
  TENSOR(&o->aux, memory[6], type, T, F);
  TENSOR(&o->w1, memory[7], type, F, K);
  TENSOR(&o->w2, memory[8], type, N, F);
  TENSOR(&o->dw1, memory[9], f32, F, K);
  TENSOR(&o->dw2, memory[10], f32, N, F);
  TENSOR(&o->h, memory[11], type, T, K);
  TENSOR(&o->wt, memory[12], type, 2 * T, K);
  TENSOR(&o->ids, memory[13], ((DLDataType){kDLInt, 32, 1}), T);
  TENSOR(&o->loss, memory[14], f32, T);
  TENSOR(&o->lse, memory[15], f32, T);
  TENSOR(&o->g, memory[16], f32, K);
  TENSOR(&o->h2, memory[17], type, T, K);
}

#define IN(name) &o->name.dl
typedef lam_status (*call_fn)(const member *m, const operands *o);

static lam_status linear_col(const member *m, const operands *o) {
  return RUN(m, linear_col, LIST(IN(x), IN(w), IN(b)), LIST((DLTensor *)IN(y)), LIST(S("gelu")));
}
static lam_status linear_col_bwd(const member *m, const operands *o) {
  return RUN(m, linear_col_bwd, LIST(IN(y), IN(x), IN(w)),
             LIST((DLTensor *)IN(h), (DLTensor *)IN(dw), (DLTensor *)IN(db)),
             LIST(I(0), I(0), I(1)));
}
static lam_status linear_row(const member *m, const operands *o) {
  return RUN(m, linear_row, LIST(IN(x), IN(w), IN(b)), LIST((DLTensor *)IN(y)), LIST(I(1)));
}
static lam_status linear_row_in_chunks(const member *m, const operands *o) {
  return RUN(m, linear_row, LIST(IN(x), IN(w), IN(b)), LIST((DLTensor *)IN(y)),
             LIST(I(1), I(0), I(0), I(0), I(3)));
}
static lam_status ffn(const member *m, const operands *o) {
  return RUN(m, ffn, LIST(IN(x), IN(w1), NULL, IN(w2), IN(b)),
             LIST((DLTensor *)IN(y), (DLTensor *)IN(aux)), LIST(S("silu"), I(0), I(1)));
}
static lam_status ffn_bwd(const member *m, const operands *o) {
  return RUN(m, ffn_bwd, LIST(IN(y), IN(x), IN(aux), IN(w1), IN(w2)),
             LIST((DLTensor *)IN(h), (DLTensor *)IN(dw1), NULL, (DLTensor *)IN(dw2)),
             LIST(S("silu")));
}
static lam_status all_reduce(const member *m, const operands *o) {
  return RUN(m, all_reduce, LIST(IN(x)), LIST((DLTensor *)IN(h)), LIST({0}));
}
static lam_status gather_sequence(const member *m, const operands *o) {
  const DLTensor *whole = m->size == 1 ? IN(h) : IN(wt);
  return RUN(m, gather_sequence, LIST(IN(x)), LIST((DLTensor *)whole), LIST({0}));
}

static lam_status embedding(const member *m, const operands *o) {
  return RUN(m, embedding_vocab, LIST(IN(ids), IN(w)), LIST((DLTensor *)IN(h)), LIST({0}));
}
static lam_status embedding_wgrad(const member *m, const operands *o) {
  return RUN(m, embedding_vocab_wgrad, LIST(IN(x), IN(ids)), LIST((DLTensor *)IN(dw)),
             LIST(I(m->size * N), I(0), I(0), I(1)));
}
static lam_status cross_entropy(const member *m, const operands *o) {
  return RUN(m, cross_entropy_vocab, LIST(IN(y), IN(ids)),
             LIST((DLTensor *)IN(loss), (DLTensor *)IN(lse)), LIST({0}));
}

static lam_status norm_of_sum(const member *m, const operands *o) {
  return RUN(m, all_reduce_add_rmsnorm, LIST(IN(x), IN(h), IN(g)),
             LIST((DLTensor *)IN(h2), (DLTensor *)IN(h)), LIST(lam_attr_f(1e-5)));
}

static const struct {
  const char *name;
  call_fn call;
} calls[] = {
    {"linear_col", linear_col},
    {"linear_col_bwd", linear_col_bwd},
    {"linear_row", linear_row},
    {"linear_row in chunks", linear_row_in_chunks},
    {"ffn", ffn},
    {"ffn_bwd", ffn_bwd},
    {"all_reduce", all_reduce},
    {"gather_sequence", gather_sequence},
    {"embedding_vocab", embedding},
    {"embedding_vocab_wgrad", embedding_wgrad},
    {"cross_entropy_vocab", cross_entropy},
    {"all_reduce_add_rmsnorm", norm_of_sum},
};
enum { N_CALLS = sizeof calls / sizeof *calls, WARM = 20, TIMES = 100, MOST_BATCHES = 200 };

/* Fewest and most per call. */
typedef struct counts {
  uint64_t allocated_most, system_least, system_most;
} counts;

static int count_batch(const member *m, const operands *o, call_fn call, counts *c) {
  for (int i = 0; i < TIMES; i++) {
    const uint64_t allocated = allocations, entered = system_calls;
    if (!CHECK_OK(call(m, o))) return 0;
    const uint64_t a = allocations - allocated, s = system_calls - entered;
    if (a > c->allocated_most) c->allocated_most = a;
    if (s < c->system_least) c->system_least = s;
    if (s > c->system_most) c->system_most = s;
  }
  return 1;
}

/* Peers are not always there in time, least of all on a busy machine: batches go on until every
 * rank has seen a call without a system call. */
static int all_have_seen(const member *m, int seen) {
  float mine = (float)seen, sum = 0;
  tensor x, y;
  TENSOR(&x, &mine, f32, 1);
  TENSOR(&y, &sum, f32, 1);
  return CHECK_OK(RUN(m, all_reduce, LIST(&x.dl), LIST(&y.dl), LIST({0}))) && sum == (float)m->size;
}

static void count_calls(const member *m, const operands *o, call_fn call, counts *c) {
  *c = (counts){.system_least = UINT64_MAX};
  for (int i = 0; i < MOST_BATCHES; i++)
    if (!count_batch(m, o, call, c) || all_have_seen(m, c->system_least == 0)) return;
}

typedef struct lean {
  lam_group_id id;
  DLDataType type;
  int64_t tokens;
} lean;

static void pin(int rank) {
  cpu_set_t set;
  CPU_ZERO(&set);
  CPU_SET(rank, &set);
  sched_setaffinity(0, sizeof set, &set); /* where there is no such processor: as it was */
}

static void check_counts(const lean *l, const member *m, int i, const counts *c) {
  NOTE("%s, %s, %lld tokens, rank %d of %d", calls[i].name, l->type.bits == 16 ? "bf16" : "f32",
       (long long)l->tokens, m->rank, m->size);
  CHECK_EQ(c->allocated_most, 0);
  CHECK_EQ(m->size == 1 ? c->system_most : c->system_least, 0);
}

static void run_lean(int rank, int size, void *arg) {
  const lean *l = arg;
  member m;
  operands o;
  counts c[N_CALLS];
  pin(rank);
  make_operands(&o, l->type, l->tokens);
  REQUIRE_OK(member_join(&m, &l->id, rank, size));
  for (int i = 0; i < N_CALLS; i++)
    for (int j = 0; j < WARM; j++) REQUIRE_OK(calls[i].call(&m, &o));

  const uint64_t allocated = allocations, entered = system_calls;
  REQUIRE(count_system_calls());
  getppid();
  void *volatile kept = malloc(1);
  free(kept);
  CHECK(allocations > allocated && system_calls > entered); /* counting works */
  for (int i = 0; i < N_CALLS; i++) count_calls(&m, &o, calls[i].call, &c[i]);
  for (int i = 0; i < N_CALLS; i++) check_counts(l, &m, i, &c[i]);
  member_leave(&m);
}

static void run_ranks(int size) {
  FOR_EACH(tokens, 1, MOST_ROWS) for (int i = 0; i < 2; i++) {
    lean l = {.type = i ? bf16 : f32, .tokens = tokens};
    REQUIRE_OK(lam_group_id_create(&l.id));
    run_processes(size, run_lean, &l);
  }
}

TEST(call, allocates_nothing_and_makes_no_system_call_alone) { run_ranks(1); }
TEST(call, allocates_nothing_and_makes_no_system_call_when_peers_are_there) { run_ranks(2); }
