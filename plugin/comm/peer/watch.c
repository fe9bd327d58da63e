/* watch.c: a thread that waits for the end of the processes that other ranks run in.
 *
 * Kernels cannot see that a peer's process has died: they wait for what it would have raised until
 * their deadline, and the host perhaps with them. This thread ends the group's world then, and with
 * it what waits on the card.
 * Invariant: it sleeps in one poll until a process ends or its rank leaves; it takes no signal of the
 * host's.
 * Leaves what ending means to group.c. */
#include <errno.h>
#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/eventfd.h>
#include <unistd.h>

#include "plugin/comm/peer/peer.h"

typedef struct peer_watch {
  lam_group *g;
  pthread_t thread;
  int stop; /* readable: the rank leaves */
} peer_watch;

static void end_world(const peer_watch *w, int rank) {
  char text[LAM_MESSAGE_BYTES];
  snprintf(text, sizeof text, "rank %d of %d: rank %d died", w->g->rank, w->g->size, rank);
  lam_group_poison(w->g, LAM_PEER_DEAD, text);
}

/* A process that ended after its rank had left is nobody's trouble. */
static void *watch(void *arg) {
  const peer_watch *w = arg;
  const lam_group *g = w->g;
  struct pollfd fds[1 + LAM_PEERS];
  fds[0] = (struct pollfd){.fd = w->stop, .events = POLLIN};
  for (int r = 0; r < g->size; r++)
    fds[1 + r] = (struct pollfd){.fd = g->engine->end_of_process(g, r), .events = POLLIN};
  for (;;) {
    if (poll(fds, (nfds_t)(1 + g->size), -1) < 0 && errno != EINTR) return NULL;
    if (fds[0].revents) return NULL;
    for (int r = 0; r < g->size; r++) {
      if (fds[1 + r].fd < 0 || !fds[1 + r].revents) continue;
      fds[1 + r].fd = -1;
      if (!g->engine->has_left(g, r)) end_world(w, r);
    }
  }
}

static int start(peer_watch *w) {
  sigset_t all, before;
  sigfillset(&all);
  pthread_sigmask(SIG_SETMASK, &all, &before);
  const int error = pthread_create(&w->thread, NULL, watch, w);
  pthread_sigmask(SIG_SETMASK, &before, NULL);
  return error;
}

lam_status lam_peer_watch(lam_group *g) {
  peer_watch *w = calloc(1, sizeof *w);
  if (!w) return lam_fail(LAM_RESOURCE_EXHAUSTED, "no memory");
  *w = (peer_watch){.g = g, .stop = eventfd(0, EFD_CLOEXEC)};
  if (w->stop >= 0 && start(w) == 0) {
    g->peer->watch = w;
    return LAM_OK;
  }
  if (w->stop >= 0) close(w->stop);
  free(w);
  return lam_fail(LAM_RESOURCE_EXHAUSTED, "no thread to watch the other processes");
}

void lam_peer_unwatch(lam_peer *p) {
  const uint64_t one = 1;
  peer_watch *w = p->watch;
  if (!w) return;
  if (write(w->stop, &one, sizeof one) != (ssize_t)sizeof one) return;
  pthread_join(w->thread, NULL);
  close(w->stop);
  free(w);
  p->watch = NULL;
}
