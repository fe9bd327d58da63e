/* watch.c: one thread for all groups on NCCL in the process: it notices what would never end.
 *
 * A host that waits for its stream cannot see that a peer is gone, and NCCL's kernels wait for ever. So
 * this thread looks at each group's links some hundred times a second: did a peer die, did anyone end
 * the world, does NCCL report an error, did nothing end within the deadline while nothing but peers was
 * waited for? Then it aborts the group's communicators, and poisons the world, once.
 * Where signals go, and what threads there are, is the host's: the thread is one of the object that uses
 * NCCL, which starts some itself.
 * Invariant: a group is looked at only between lam_nccl_watch and lam_nccl_unwatch; the thread lives
 * while there is a group.
 * Leaves to the group's own thread to notice the poison at its next call. */
#include <time.h>

#include "plugin/comm/nccl/nccl.h"

#define LOOK_NS 5000000

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static lam_nccl *watched;
static bool is_running;

/* ---- One group --------------------------------------------------------------------------------- */

/* Nothing is late while what comes next waits for its caller's own work. */
static lam_status look_at(lam_nccl *n, nccl_link *k) {
  bool busy = false;
  lam_link_progress p;
  const int64_t now = lam_clock_ns();
  LAM_TRY(n->device->nccl->state(k->link, &busy));
  LAM_TRY(n->device->nccl->progress(k->link, &p));
  if (p.ended != k->ended || p.ended == p.started || p.held || k->since == 0) {
    k->ended = p.ended;
    k->since = now;
  }
  if (now - k->since <= (int64_t)n->deadline_ms * 1000000) return LAM_OK;
  return lam_fail(
      LAM_PEER_STALLED,
      "rank %d of %d: operation %llu of a communicator did not end on the device within "
      "%u ms: a peer's did not come",
      n->g->rank, n->g->size, (unsigned long long)p.ended + 1, n->deadline_ms);
}

static void look(lam_nccl *n) {
  const lam_engine *engine = n->g->engine;
  lam_status status = engine->life ? engine->life(n->g) : engine->check(n->g);
  pthread_mutex_lock(&n->lock);
  if (!n->over && !n->is_failing && status == LAM_OK) status = lam_nccl_each_link(n, look_at);
  const bool ends = !n->over && status != LAM_OK;
  pthread_mutex_unlock(&n->lock);
  if (!ends) return;
  engine->poison(n->g, status, lam_last_error());
  lam_nccl_end(n->g);
}

/* ---- The thread -------------------------------------------------------------------------------- */

static void *run(void *unused) {
  const struct timespec pause = {.tv_nsec = LOOK_NS};
  for (;;) {
    pthread_mutex_lock(&lock);
    for (lam_nccl *n = watched; n; n = n->next) look(n);
    is_running = watched != NULL;
    const bool goes_on = is_running;
    pthread_mutex_unlock(&lock);
    if (!goes_on) return unused;
    nanosleep(&pause, NULL);
  }
}

static lam_status start_thread(const lam_device *d) {
  if (!is_running) LAM_TRY(d->nccl->spawn(run));
  is_running = true;
  return LAM_OK;
}

lam_status lam_nccl_watch(lam_nccl *n) {
  pthread_mutex_lock(&lock);
  n->next = watched;
  watched = n;
  const lam_status status = start_thread(n->device);
  if (status != LAM_OK) watched = n->next;
  pthread_mutex_unlock(&lock);
  return status;
}

void lam_nccl_unwatch(lam_nccl *n) {
  pthread_mutex_lock(&lock);
  for (lam_nccl **at = &watched; *at; at = &(*at)->next)
    if (*at == n) {
      *at = n->next;
      break;
    }
  pthread_mutex_unlock(&lock);
}
