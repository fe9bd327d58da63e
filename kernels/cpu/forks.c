/* forks.c: see forks.h. A fork is the writer of a lock whose readers are the calls. */
#include "kernels/cpu/forks.h"

#include <pthread.h>

/* A fork that waits comes before the next calls, or it might wait for ever. */
#define FREE PTHREAD_RWLOCK_WRITER_NONRECURSIVE_INITIALIZER_NP

static pthread_rwlock_t lock = FREE;

void lam_forks_wait(void) { pthread_rwlock_rdlock(&lock); }
void lam_forks_go_on(void) { pthread_rwlock_unlock(&lock); }

static void before(void) { pthread_rwlock_wrlock(&lock); }
static void in_parent(void) { pthread_rwlock_unlock(&lock); }
static void in_child(void) {
  lock = (pthread_rwlock_t)FREE;
} /* it is another thread that holds it */

/* When the library is loaded: later another thread might be forking. */
__attribute__((constructor)) static void watch_forks(void) {
  pthread_atfork(before, in_parent, in_child);
}
