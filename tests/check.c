/* check.c: runs the registered tests and prints what the checks find; check.h says in which form.
 *
 * Invariant: every line leaves in one write(), and counts live in memory shared with forked
 * children, so that ranks in threads and in processes report alike and nothing is lost when one
 * dies.
 * Leaves to the sanitizers the reports of what they catch; here the running test is only named. */
#include "tests/check.h"

#include <errno.h>
#include <math.h>
#include <pthread.h>
#include <signal.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/random.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

enum { RANKS_MAX = 64, SHOWN_MAX = 20, RANKS_DEADLINE_S = 120 };

/* What a test did so far; children write it too. */
typedef struct verdict {
  _Atomic int n_failed;
  _Atomic int skipped;
  char reason[200];
} verdict;

static check_test *first_test, **next_test = &first_test;
static verdict *now;              /* the running test's, MAP_SHARED */
static const check_test *running; /* named when the process dies */
static pid_t harness;
static uint64_t run_seed;
static _Thread_local int my_rank = -1;
static _Thread_local char note[200];

const char *lam_last_error(void) __attribute__((weak));
void __sanitizer_set_death_callback(void (*callback)(void)) __attribute__((weak));
int __lsan_do_recoverable_leak_check(void) __attribute__((weak));

const char *(*check_error_text)(void) = NULL;

void check_register(check_test *test) {
  *next_test = test;
  next_test = &test->next;
}

/* -- checks -- */

/* The first failures are shown, all are counted: a broken loop must not bury its first words. */
void check_fail(const char *file, int line, const char *fmt, ...) {
  const int n = atomic_fetch_add(&now->n_failed, 1);
  if (n >= SHOWN_MAX) return;

  char text[1200], rank[24] = "";
  va_list args;
  va_start(args, fmt);
  vsnprintf(text, sizeof text, fmt, args);
  va_end(args);
  if (my_rank >= 0) snprintf(rank, sizeof rank, "[rank %d] ", my_rank);
  dprintf(STDOUT_FILENO, "  %s%s:%d: %s%s%s%s\n", rank, file, line, text, *note ? " [" : "", note,
          *note ? "]" : "");
}

int check_that(int holds, const char *cond, const char *file, int line) {
  if (!holds) check_fail(file, line, "%s does not hold", cond);
  return holds;
}

int check_eq(long long a, long long b, const char *a_text, const char *b_text, const char *file,
             int line) {
  if (a == b) return 1;
  check_fail(file, line, "%s is %lld, %s is %lld", a_text, a, b_text, b);
  return 0;
}

int check_str(const char *a, const char *b, const char *a_text, const char *b_text,
              const char *file, int line) {
  if (a == b || (a && b && strcmp(a, b) == 0)) return 1;
  check_fail(file, line, "%s is \"%s\", %s is \"%s\"", a_text, a ? a : "(null)", b_text,
             b ? b : "(null)");
  return 0;
}

int check_contains(const char *text, const char *part, const char *expr, const char *file,
                   int line) {
  if (text && part && strstr(text, part)) return 1;
  check_fail(file, line, "%s is \"%s\", which does not contain \"%s\"", expr,
             text ? text : "(null)", part ? part : "(null)");
  return 0;
}

static const char *last_error(void) {
  const char *text = NULL;
  if (check_error_text)
    text = check_error_text();
  else if (lam_last_error)
    text = lam_last_error();
  return text && *text ? text : "(no message)";
}

int check_status(int32_t got, int32_t want, const char *got_text, const char *want_text,
                 const char *file, int line) {
  if (got == want) return 1;
  check_fail(file, line, "%s gave status 0x%x, expected %s (0x%x): %s", got_text, (unsigned)got,
             want_text, (unsigned)want, got ? last_error() : "it succeeded");
  return 0;
}

/* How far outside the tolerance: 1 is its edge. Anything that is not a number is infinitely far,
 * unless both are. */
static double excess(double got, double want, double rtol, double atol) {
  if (isnan(want)) return isnan(got) ? 0 : INFINITY;
  if (got == want) return 0;
  const double ratio = fabs(got - want) / (atol + rtol * fabs(want));
  return isfinite(ratio) ? ratio : INFINITY;
}

int check_close(const float *got, const double *want, size_t n, double rtol, double atol,
                const char *expr, const char *file, int line) {
  size_t worst = 0, n_bad = 0;
  double most = 0;
  for (size_t i = 0; i < n; i++) {
    const double e = excess(got[i], want[i], rtol, atol);
    if (e > 1) n_bad++;
    if (e > most) most = e, worst = i;
  }
  if (n_bad == 0) return 1;
  check_fail(file, line,
             "%s: %zu of %zu are off; worst is [%zu]: %.9g, expected %.9g (%.3g x the tolerance)",
             expr, n_bad, n, worst, (double)got[worst], want[worst], most);
  return 0;
}

int check_same_bits(const void *a, const void *b, size_t bytes, const char *a_text,
                    const char *b_text, const char *file, int line) {
  const unsigned char *x = a, *y = b;
  size_t i = 0;
  while (i < bytes && x[i] == y[i]) i++;
  if (i == bytes) return 1;
  check_fail(file, line, "%s and %s differ first at byte %zu of %zu: 0x%02x, 0x%02x", a_text,
             b_text, i, bytes, x[i], y[i]);
  return 0;
}

void check_note(const char *fmt, ...) {
  va_list args;
  va_start(args, fmt);
  vsnprintf(note, sizeof note, fmt, args);
  va_end(args);
}

void check_skip(const char *reason) {
  snprintf(now->reason, sizeof now->reason, "%s", reason);
  now->skipped = 1;
}

/* -- chance -- */

uint64_t seed(void) { return run_seed; }

/* splitmix64: any state is a good one, and equal seeds give equal rows on every machine. */
UNWATCHED static uint64_t next(rng *r) {
  uint64_t z = r->state += 0x9e3779b97f4a7c15u;
  z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
  z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
  return z ^ (z >> 31);
}

UNWATCHED uint64_t rng_next(rng *r) { return next(r); }

UNWATCHED float rng_float(rng *r) { return (float)(next(r) >> 40) * 0x1p-23f - 1.0f; }

int64_t rng_int(rng *r, int64_t lo, int64_t hi) {
  const uint64_t span = (uint64_t)hi - (uint64_t)lo + 1; /* 0 = all of int64 */
  return (int64_t)((uint64_t)lo + (span ? rng_next(r) % span : rng_next(r)));
}

int tries(int n) {
  if (!getenv("LAMELLA_SANITIZER")) return n;
  return n < 4 ? 1 : n / 4;
}

bool is_spared(rng *r) { return rng_int(r, 1, 4) > tries(4); }

static uint64_t pick_seed(void) {
  const char *given = getenv("LAMELLA_TEST_SEED");
  if (given && *given) return strtoull(given, NULL, 0);
  uint32_t fresh = 0;
  if (getrandom(&fresh, sizeof fresh, 0) != (ssize_t)sizeof fresh)
    fresh = (uint32_t)time(NULL) ^ (uint32_t)getpid();
  return fresh;
}

/* -- ranks -- */

typedef struct rank_call {
  check_rank_fn fn;
  void *arg;
  int rank, size;
} rank_call;

static void *thread_main(void *p) {
  const rank_call *call = p;
  my_rank = call->rank;
  call->fn(call->rank, call->size, call->arg);
  return NULL;
}

static int ranks_fit(int size) {
  if (size >= 1 && size <= RANKS_MAX) return 1;
  check_fail(CHECK_AT, "%d ranks asked for, 1 to %d can be run", size, RANKS_MAX);
  return 0;
}

void run_threads(int size, check_rank_fn fn, void *arg) {
  pthread_t threads[RANKS_MAX];
  rank_call calls[RANKS_MAX];
  int n = 0;
  if (!ranks_fit(size)) return;
  for (; n < size; n++) {
    calls[n] = (rank_call){fn, arg, n, size};
    const int failed = pthread_create(&threads[n], NULL, thread_main, &calls[n]);
    if (failed) {
      check_fail(CHECK_AT, "thread %d could not be started: %s", n, strerror(failed));
      break;
    }
  }
  for (int i = 0; i < n; i++) pthread_join(threads[i], NULL);
}

static void watch_death(int on);

static _Noreturn void child_main(const rank_call *call) {
  watch_death(0);
  prctl(PR_SET_PDEATHSIG, SIGKILL);
  my_rank = call->rank;
  const int before = now->n_failed;
  call->fn(call->rank, call->size, call->arg);
  if (__lsan_do_recoverable_leak_check && __lsan_do_recoverable_leak_check())
    check_fail(CHECK_AT, "memory was leaked");
  fflush(NULL);
  _exit(now->n_failed > before ? 1 : 0);
}

typedef struct children {
  pid_t pids[RANKS_MAX]; /* 0 = has ended */
  char stopped[RANKS_MAX];
  int size, n_running;
  unsigned doomed;
} children;

static double seconds(void) {
  struct timespec t;
  clock_gettime(CLOCK_MONOTONIC, &t);
  return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

static int is_doomed(const children *c, int rank) { return rank < 32 && (c->doomed >> rank & 1u); }

static void judge_end(const children *c, int rank, int status) {
  if (is_doomed(c, rank)) {
    if (!WIFSIGNALED(status)) check_fail(CHECK_AT, "rank %d was doomed, but came back", rank);
  } else if (WIFSIGNALED(status)) {
    check_fail(CHECK_AT, "rank %d died of signal %d (%s)", rank, WTERMSIG(status),
               strsignal(WTERMSIG(status)));
  } else if (WEXITSTATUS(status) != 0 && now->n_failed == 0) {
    check_fail(CHECK_AT, "rank %d exited with status %d", rank, WEXITSTATUS(status));
  }
}

static void reap(children *c) {
  for (int rank = 0; rank < c->size; rank++) {
    int status = 0;
    if (c->pids[rank] == 0) continue;
    if (waitpid(c->pids[rank], &status, WNOHANG | WUNTRACED) != c->pids[rank]) continue;
    if (WIFSTOPPED(status)) {
      c->stopped[rank] = 1;
      continue;
    }
    c->pids[rank] = 0;
    c->n_running--;
    judge_end(c, rank, status);
  }
}

static int only_doomed_run(const children *c) {
  for (int rank = 0; rank < c->size; rank++)
    if (c->pids[rank] && !is_doomed(c, rank)) return 0;
  return 1;
}

static void kill_ranks(const children *c, int only_stopped) {
  for (int rank = 0; rank < c->size; rank++)
    if (c->pids[rank] && (c->stopped[rank] || !only_stopped)) kill(c->pids[rank], SIGKILL);
}

static void wait_children(children *c) {
  const double deadline = seconds() + RANKS_DEADLINE_S;
  int late = 0;
  while (reap(c), c->n_running > 0) {
    if (!late && seconds() > deadline) {
      late = 1;
      check_fail(CHECK_AT, "%d of %d ranks still ran after %d s and were killed", c->n_running,
                 c->size, (int)RANKS_DEADLINE_S);
    }
    if (late || only_doomed_run(c)) kill_ranks(c, !late);
    nanosleep(&(struct timespec){.tv_nsec = 500000}, NULL);
  }
}

void run_processes_doomed(int size, unsigned doomed, check_rank_fn fn, void *arg) {
  children c = {.size = size, .doomed = doomed};
  if (!ranks_fit(size)) return;
  fflush(NULL);
  for (int rank = 0; rank < size; rank++) {
    const pid_t pid = fork();
    if (pid == 0) child_main(&(rank_call){fn, arg, rank, size});
    if (pid < 0) {
      check_fail(CHECK_AT, "rank %d could not be forked: %s", rank, strerror(errno));
      kill_ranks(&c, 0);
      break;
    }
    c.pids[rank] = pid;
    c.n_running++;
  }
  wait_children(&c);
}

void run_processes(int size, check_rank_fn fn, void *arg) {
  run_processes_doomed(size, 0, fn, arg);
}

/* -- the run -- */

static void name_the_dying(void) {
  if (running)
    dprintf(STDOUT_FILENO, "FAIL %s.%s (seed %llu): the process died here\n", running->area,
            running->claim, (unsigned long long)run_seed);
  running = NULL;
}

/* A library may give up with exit(); so may a child, which is not the test. */
static void name_the_leaving(void) {
  if (getpid() == harness) name_the_dying();
}

static void on_deadly(int signal_number) {
  name_the_dying();
  signal(signal_number, SIG_DFL);
  raise(signal_number);
}

/* A sanitizer has its own handlers and calls back; two sets of them would hang each other. */
static void watch_death(int on) {
  static const int deadly[] = {SIGSEGV, SIGBUS, SIGFPE, SIGILL, SIGABRT, SIGTERM};
  if (!on) running = NULL;
  if (__sanitizer_set_death_callback) {
    __sanitizer_set_death_callback(name_the_dying);
    return;
  }
  for (size_t i = 0; i < sizeof deadly / sizeof *deadly; i++)
    signal(deadly[i], on ? on_deadly : SIG_DFL);
}

/* Prints the verdict and gives its column: 0 passed, 1 failed, 2 skipped. */
static int run_test(const check_test *test) {
  *note = 0;
  now->n_failed = now->skipped = 0;
  running = test;
  test->run();
  running = NULL;

  const int n = now->n_failed;
  if (n > SHOWN_MAX) dprintf(STDOUT_FILENO, "  and %d more\n", n - SHOWN_MAX);
  if (n > 0)
    dprintf(STDOUT_FILENO, "FAIL %s.%s (seed %llu)\n", test->area, test->claim,
            (unsigned long long)run_seed);
  else if (now->skipped)
    dprintf(STDOUT_FILENO, "skip %s.%s: %s\n", test->area, test->claim, now->reason);
  else
    dprintf(STDOUT_FILENO, "ok %s.%s\n", test->area, test->claim);
  return n > 0 ? 1 : now->skipped ? 2 : 0;
}

static int is_wanted(const check_test *test, const char *filter) {
  char name[400];
  snprintf(name, sizeof name, "%s.%s", test->area, test->claim);
  return strstr(name, filter) != NULL;
}

int main(int argc, char **argv) {
  const char *filter = argc > 1 ? argv[1] : "";
  int counts[3] = {0};
  now = mmap(NULL, sizeof *now, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
  if (now == MAP_FAILED) return perror("check: mmap"), 2;
  run_seed = pick_seed();
  harness = getpid();
  dprintf(STDOUT_FILENO, "seed %llu\n", (unsigned long long)run_seed);
  watch_death(1);
  atexit(name_the_leaving);

  for (const check_test *test = first_test; test; test = test->next)
    if (is_wanted(test, filter)) counts[run_test(test)]++;

  fflush(NULL);
  dprintf(STDOUT_FILENO, "%d passed, %d failed", counts[0], counts[1]);
  if (counts[2]) dprintf(STDOUT_FILENO, ", %d skipped", counts[2]);
  dprintf(STDOUT_FILENO, "\n");
  return counts[1] ? 1 : 0;
}
