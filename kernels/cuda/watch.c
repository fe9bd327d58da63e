/* watch.c: a thread that waits for the end of other processes, whose ranks' kernels this process's may
 * wait for.
 *
 * Kernels cannot see that a peer's process has died: they would wait until their deadline, and the
 * host perhaps with them. liblamella.so starts no threads; CUDA's runtime has some in the process
 * already, so this one is here.
 * Invariant: it sleeps in one poll, takes no signal of the host's, and is gone when unwatch returns.
 * Leaves what the end of a process means to plugin/comm. */
#include <errno.h>
#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <stdlib.h>
#include <sys/eventfd.h>
#include <unistd.h>

#include "kernels/cuda/host.h"
#include "kernels/cuda/peer.h"

struct lam_peer_watch {
  struct pollfd fds[LAM_PEERS + 1]; /* the last: to stop */
  int n;
  void (*fn)(void *arg, int i);
  void *arg;
  pthread_t thread;
};

static void *watch(void *arg) {
  lam_peer_watch *w = arg;
  for (;;) {
    if (poll(w->fds, (nfds_t)w->n + 1, -1) < 0 && errno != EINTR) return NULL;
    if (w->fds[w->n].revents) return NULL;
    for (int i = 0; i < w->n; i++) {
      if (w->fds[i].fd < 0 || !w->fds[i].revents) continue;
      w->fds[i].fd = -1;
      w->fn(w->arg, i);
    }
  }
}

static int start(lam_peer_watch *w) {
  sigset_t all, before;
  sigfillset(&all);
  pthread_sigmask(SIG_SETMASK, &all, &before);
  const int error = pthread_create(&w->thread, NULL, watch, w);
  pthread_sigmask(SIG_SETMASK, &before, NULL);
  return error;
}

lam_status lam_cuda_peer_watch(const int *fds, int n, void (*fn)(void *arg, int i), void *arg,
                               lam_peer_watch **out) {
  *out = NULL;
  lam_peer_watch *w = calloc(1, sizeof *w);
  if (!w) return lam_fail(LAM_RESOURCE_EXHAUSTED, "cuda: no memory");
  *w = (lam_peer_watch){.n = n, .fn = fn, .arg = arg};
  for (int i = 0; i < n; i++) w->fds[i] = (struct pollfd){.fd = fds[i], .events = POLLIN};
  w->fds[n] = (struct pollfd){.fd = eventfd(0, EFD_CLOEXEC), .events = POLLIN};
  if (w->fds[n].fd >= 0 && start(w) == 0) {
    *out = w;
    return LAM_OK;
  }
  if (w->fds[n].fd >= 0) close(w->fds[n].fd);
  free(w);
  return lam_fail(LAM_RESOURCE_EXHAUSTED, "cuda: no thread to watch other processes");
}

void lam_cuda_peer_unwatch(lam_peer_watch *w) {
  const uint64_t one = 1;
  if (!w || write(w->fds[w->n].fd, &one, sizeof one) != (ssize_t)sizeof one) return;
  pthread_join(w->thread, NULL);
  close(w->fds[w->n].fd);
  free(w);
}
