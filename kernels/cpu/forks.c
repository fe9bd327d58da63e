/* forks.c: see forks.h. A fork takes the door, so that nobody comes in, and waits until all are out.
 *
 * No lock that knows its owner would do: in the child it is another thread that opens the door. */
#include "kernels/cpu/forks.h"

#include <pthread.h>
#include <sched.h>
#include <stdatomic.h>

static pthread_mutex_t door = PTHREAD_MUTEX_INITIALIZER;
static atomic_int inside;

void lam_forks_wait(void) {
  pthread_mutex_lock(&door);
  atomic_fetch_add(&inside, 1);
  pthread_mutex_unlock(&door);
}

void lam_forks_go_on(void) { atomic_fetch_sub(&inside, 1); }

/* Forks are rare, and what is inside takes milliseconds. */
static void before(void) {
  pthread_mutex_lock(&door);
  while (atomic_load(&inside) > 0) sched_yield();
}

static void after(void) { pthread_mutex_unlock(&door); }

/* When the library is loaded: later another thread might be forking. */
__attribute__((constructor)) static void watch_forks(void) {
  pthread_atfork(before, after, after);
}
