/* parallel.c: OpenMP through its run-time symbols, from the library that is loaded already.
 *
 * oneDNN brings an OpenMP library along; a second one in the same process would fight it for the
 * cores, so the symbols are looked up where oneDNN finds its own: in the program first, then beside
 * oneDNN.
 * Invariant: a fork never leaves the child with a team whose threads stayed behind: the forking
 * thread's team is dissolved first, and both sides make a new one when they need it.
 * Leaves sanitizer builds without OpenMP, whose barriers they do not understand. */
#include "kernels/cpu/parallel.h"

#include <dlfcn.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stddef.h>

#include "kernels/cpu/cpu.h"
#include "kernels/cpu/forks.h"

enum { OMP_PAUSE_HARD = 2 };

static struct {
  void (*GOMP_parallel)(void (*fn)(void *), void *data, unsigned n_threads, unsigned flags);
  int (*omp_get_max_threads)(void);
  void (*omp_set_num_threads)(int n);
  int (*omp_pause_resource_all)(int kind); /* from OpenMP 5 on */
} openmp;

static _Atomic bool team_was_started;

static void dissolve_team(void) {
  if (atomic_load(&team_was_started)) openmp.omp_pause_resource_all(OMP_PAUSE_HARD);
}

/* A pointer to a function from dlsym, as POSIX spells it. */
static bool find(void *library, const char *name, void *function) {
  return (*(void **)function = dlsym(library, name)) != NULL;
}

/* Whether `library` has an OpenMP whose teams we dissolve ourselves. LLVM's looks after forks
 * itself, and would dissolve other threads' teams too. */
static bool find_all(void *library) {
  if (!find(library, "omp_get_max_threads", &openmp.omp_get_max_threads) ||
      !find(library, "omp_set_num_threads", &openmp.omp_set_num_threads) ||
      !find(library, "GOMP_parallel", &openmp.GOMP_parallel))
    return false;
  return find(library, "omp_pause_resource_all", &openmp.omp_pause_resource_all) &&
         !dlsym(library, "__kmpc_fork_call");
}

/* The program's, or oneDNN's, or the machine's. */
static bool find_openmp(bool in_program, void *onednn) {
  void *library = in_program ? RTLD_DEFAULT : onednn;
  if (!in_program && !onednn) library = dlopen("libgomp.so.1", RTLD_LAZY | RTLD_LOCAL);
  return (in_program || library) && find_all(library);
}

static void open_openmp(void) {
  if (!lam_gemm_library()) return;
  lam_forks_wait();
  const bool in_program = dlsym(RTLD_DEFAULT, "GOMP_parallel") != NULL;
  lam_forks_go_on();
  void *onednn = in_program ? NULL : lam_gemm_library()->open();
  lam_forks_wait();
  const bool dissolves = find_openmp(in_program, onednn);
  lam_forks_go_on();
  if (dissolves) pthread_atfork(dissolve_team, NULL, NULL);
}

static bool have_openmp(void) {
  static pthread_once_t once = PTHREAD_ONCE_INIT;
  pthread_once(&once, open_openmp);
  return openmp.GOMP_parallel != NULL;
}

/* One call's indices; threads take the next one until none is left, so that a slow core takes
 * fewer. */
typedef struct shared_work {
  void (*fn)(void *arg, int64_t i);
  void *arg;
  int64_t n;
  _Atomic int64_t next;
} shared_work;

static void take_indices(void *p) {
  shared_work *work = p;
  for (int64_t i; (i = atomic_fetch_add(&work->next, 1)) < work->n;) work->fn(work->arg, i);
}

void lam_cpu_parallel_for(int n_threads, int64_t n, void (*fn)(void *arg, int64_t i), void *arg) {
  if (n_threads > n) n_threads = (int)n;
  if (n_threads <= 1 || !have_openmp()) {
    for (int64_t i = 0; i < n; i++) fn(arg, i);
    return;
  }
  shared_work work = {fn, arg, n, 0};
  atomic_store(&team_was_started, true);
  openmp.GOMP_parallel(take_indices, &work, (unsigned)n_threads, 0);
}

int lam_cpu_host_threads(void) { return have_openmp() ? openmp.omp_get_max_threads() : 1; }

int lam_cpu_set_team(int n) {
  if (n < 1 || !have_openmp()) return 0;
  const int before = openmp.omp_get_max_threads();
  if (before != n) openmp.omp_set_num_threads(n);
  if (n > 1) atomic_store(&team_was_started, true);
  return before;
}
