/* interrupt.c: lets Python's signal handlers run while the main thread waits in the library.
 *
 * Python notes a signal and runs its handler when the main thread next interprets something, which
 * a thread that waits for a peer does not do. So the library's waits, which poll should_stop every
 * few milliseconds, take the interpreter's lock ten times a second, on the main thread alone, and
 * let it run what is due. The wait goes on unless a handler raises, as Ctrl-C's own does: then it
 * ends, and what was raised is raised again as soon as the main thread interprets something.
 * Invariant: nobody's signal handler is replaced; a handler runs once for a signal; and no wait
 * shorter than 0.1 s takes the lock.
 * Leaves who polls, and what a call that was ended gives, to its callers. */
#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#define EXPORT __attribute__((visibility("default")))
#define PERIOD_NS 100000000

/* Of Python's stable ABI; found by ctypes. */
typedef struct python_functions {
  int (*PyGILState_Ensure)(void);
  void (*PyGILState_Release)(int state);
  int (*PyErr_CheckSignals)(void);
  void (*PyErr_Clear)(void);
  void (*PyErr_Fetch)(void **type, void **value, void **traceback);
  void (*PyErr_Restore)(void *type, void *value, void *traceback);
  int (*Py_AddPendingCall)(int (*fn)(void *arg), void *arg);
} python_functions;

static python_functions python;
static struct {
  void *type, *value, *traceback;
} raised; /* by a handler; under the interpreter's lock */
static atomic_bool ends;
static int64_t last_look; /* of the main thread's alone */

EXPORT void lam_python_open(const python_functions *functions);
EXPORT void lam_python_end(void);
EXPORT int32_t lam_python_should_stop(void *user);

void lam_python_open(const python_functions *functions) { python = *functions; }

/* The interpreter goes: no wait of any thread may hold it up. */
void lam_python_end(void) { atomic_store(&ends, true); }

static int64_t now_ns(void) {
  struct timespec t;
  clock_gettime(CLOCK_MONOTONIC, &t);
  return t.tv_sec * INT64_C(1000000000) + t.tv_nsec;
}

/* Called by Python on the main thread; -1 = it raised. */
static int raise_again(void *arg) {
  (void)arg;
  python.PyErr_Restore(raised.type, raised.value, raised.traceback);
  raised.type = raised.value = raised.traceback = NULL;
  return -1;
}

static void keep_exception(void) {
  python.PyErr_Fetch(&raised.type, &raised.value, &raised.traceback);
  (void)python.Py_AddPendingCall(raise_again, NULL);
}

static bool handler_raises(void) {
  const int state = python.PyGILState_Ensure();
  const bool raises = python.PyErr_CheckSignals() != 0;
  if (raises && raised.type)
    python.PyErr_Clear(); /* one is due already */
  else if (raises)
    keep_exception();
  python.PyGILState_Release(state);
  return raises;
}

int32_t lam_python_should_stop(void *user) {
  (void)user;
  if (atomic_load(&ends)) return 1;
  if (syscall(SYS_gettid) != getpid()) return 0;
  const int64_t now = now_ns();
  if (now - last_look < PERIOD_NS) return 0;
  last_look = now;
  return handler_raises();
}
