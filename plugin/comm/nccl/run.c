/* run.c: how an operation gets onto a link, and how links end.
 *
 * Communicators are nonblocking: a call may be under way when it returns, as a rule the first on a link,
 * which connects the ranks. Then the host asks until it is not, no longer than the deadline.
 * Invariant: links are touched with the lock held, and an aborted one never again.
 * Leaves noticing what does not end on the device to watch.c. */
#include <sched.h>
#include <stdlib.h>
#include <time.h>
#include <unistd.h>

#include "plugin/comm/nccl/nccl.h"

/* ---- Waiting for hosts ------------------------------------------------------------------------ */

lam_status lam_nccl_check(const lam_nccl *n) {
  LAM_TRY(n->g->engine->check(n->g));
  return n->over ? lam_fail(LAM_POISONED, "the group's communicators were aborted") : LAM_OK;
}

/* With the lock held: the caller ends the group with this failure. A refusal ends nothing. */
static lam_status noted(lam_nccl *n, lam_status status) {
  if (lam_status_ends_group(status)) n->is_failing = true;
  return status;
}

/* Longer naps the longer it takes: first NCCL's threads need this processor. */
static void nap(int64_t waited_ns) {
  const struct timespec t = {.tv_nsec = waited_ns < 1000000 ? 20000 : 500000};
  if (waited_ns < 20000)
    sched_yield();
  else
    nanosleep(&t, NULL);
}

static lam_status look_around(const lam_nccl *n, const char *what, int64_t waited_ns) {
  const lam_group *g = n->g;
  LAM_TRY(g->engine->check(g));
  if (lam_context_should_stop(g->ctx))
    return lam_fail(LAM_INTERRUPTED, "rank %d of %d: the host asked to stop", g->rank, g->size);
  if (waited_ns > (int64_t)n->deadline_ms * 1000000)
    return lam_fail(LAM_PEER_STALLED, "rank %d of %d: NCCL %s for more than %u ms", g->rank,
                    g->size, what, n->deadline_ms);
  return LAM_OK;
}

/* busy: with the lock held. */
static lam_status wait_while(lam_nccl *n, nccl_link *k, const char *what,
                             lam_status (*busy)(lam_nccl *n, nccl_link *k, bool *out)) {
  for (const int64_t start = lam_clock_ns();;) {
    bool is_busy = false;
    pthread_mutex_lock(&n->lock);
    lam_status status = lam_nccl_check(n);
    if (status == LAM_OK) status = noted(n, busy(n, k, &is_busy));
    pthread_mutex_unlock(&n->lock);
    LAM_TRY(status);
    if (!is_busy) return LAM_OK;
    const int64_t waited = lam_clock_ns() - start;
    pthread_mutex_lock(&n->lock);
    status = noted(n, look_around(n, what, waited));
    pthread_mutex_unlock(&n->lock);
    LAM_TRY(status);
    nap(waited);
  }
}

static lam_status is_calling(lam_nccl *n, nccl_link *k, bool *out) {
  return n->device->nccl->state(k->link, out);
}

lam_status lam_nccl_settle(lam_nccl *n, nccl_link *k) {
  return wait_while(n, k, "did not connect the ranks", is_calling);
}

static lam_status is_running(lam_nccl *n, nccl_link *k, bool *out) {
  lam_link_progress p;
  LAM_TRY(n->device->nccl->state(k->link, out));
  LAM_TRY(n->device->nccl->progress(k->link, &p));
  *out = p.ended < p.started;
  return LAM_OK;
}

lam_status lam_nccl_drain(lam_nccl *n, nccl_link *k) {
  return wait_while(n, k, "did not end what was queued", is_running);
}

/* ---- Operations -------------------------------------------------------------------------------- */

lam_status lam_nccl_prepare(lam_group *g) {
  lam_nccl *n = g->nccl;
  if (g->device != n->device)
    return lam_fail(LAM_INVALID_ARGUMENT, "the group works on %s, found tensors on %s",
                    n->device->name, g->device->name);
  pthread_mutex_lock(&n->lock);
  const lam_status status = n->over ? LAM_OK : n->device->nccl->check(n->all.link, g->stream);
  pthread_mutex_unlock(&n->lock);
  return status; /* what ended the group, the next to look will say */
}

static lam_status begin(lam_nccl *n, nccl_link *k, const lam_link_op *ops, int count,
                        lam_link_after after, bool *out_busy) {
  LAM_TRY(lam_nccl_check(n));
  n->deadline_ms = k->used++ <= 1 ? n->g->first_deadline_ms : n->g->deadline_ms;
  LAM_TRY(lam_link_start(n->device, k->link, ops, count, after));
  return n->device->nccl->state(k->link, out_busy);
}

static lam_status mark(lam_nccl *n, nccl_link *k, uint64_t *out_number) {
  LAM_TRY(lam_nccl_check(n));
  return n->device->nccl->mark(k->link, out_number);
}

lam_status lam_nccl_start(lam_nccl *n, nccl_link *k, const lam_link_op *ops, int count,
                          lam_link_after after, uint64_t *out_number) {
  bool busy = false;
  pthread_mutex_lock(&n->lock);
  lam_status status = noted(n, begin(n, k, ops, count, after, &busy));
  if (status == LAM_OK && busy) {
    pthread_mutex_unlock(&n->lock);
    status = lam_nccl_settle(n, k);
    pthread_mutex_lock(&n->lock);
  }
  if (status == LAM_OK) status = noted(n, mark(n, k, out_number));
  pthread_mutex_unlock(&n->lock);
  return status;
}

lam_status lam_nccl_join(lam_nccl *n, nccl_link *k, uint64_t number, void *stream) {
  pthread_mutex_lock(&n->lock);
  lam_status status = lam_nccl_check(n);
  if (status == LAM_OK) status = noted(n, n->device->nccl->join(k->link, number, stream));
  pthread_mutex_unlock(&n->lock);
  return status;
}

lam_status lam_nccl_hold(lam_nccl *n, nccl_link *k, int hold, void *stream) {
  pthread_mutex_lock(&n->lock);
  lam_status status = lam_nccl_check(n);
  if (status == LAM_OK) status = noted(n, n->device->nccl->hold(k->link, hold, stream));
  pthread_mutex_unlock(&n->lock);
  return status;
}

lam_status lam_nccl_run(lam_group *g, const lam_link_op *ops, int count) {
  uint64_t number = 0;
  const lam_link_after after = {g->stream, -1};
  if (count == 0) return LAM_OK;
  LAM_TRY(lam_nccl_start(g->nccl, &g->nccl->all, ops, count, after, &number));
  return lam_nccl_join(g->nccl, &g->nccl->all, number, g->stream);
}

static void count_aside(lam_group *g, int more) {
  g->nccl->aside += more;
  g->busy_sms = g->nccl->aside > 0 ? NCCL_ALL_CTAS : 0;
}

lam_status lam_nccl_start_aside(lam_group *g, const lam_link_op *ops, int count,
                                uint64_t *out_number) {
  const lam_link_after after = {g->stream, -1};
  LAM_TRY(lam_nccl_start(g->nccl, &g->nccl->all, ops, count, after, out_number));
  count_aside(g, 1);
  return LAM_OK;
}

lam_status lam_nccl_join_aside(lam_group *g, uint64_t number) {
  count_aside(g, -1);
  return lam_nccl_join(g->nccl, &g->nccl->all, number, g->stream);
}

/* ---- The end ----------------------------------------------------------------------------------- */

static lam_status abort_link(lam_nccl *n, nccl_link *k) {
  n->device->nccl->abort(k->link);
  return LAM_OK;
}

/* The group's memory is its own thread's to free, later: others may still look at it. */
void lam_nccl_end(lam_group *g) {
  lam_nccl *n = g->nccl;
  if (!n) return;
  pthread_mutex_lock(&n->lock);
  n->over = true;
  (void)lam_nccl_each_link(n, abort_link);
  pthread_mutex_unlock(&n->lock);
}

static lam_status finish_link(lam_nccl *n, nccl_link *k) {
  LAM_TRY(lam_nccl_drain(n, k));
  pthread_mutex_lock(&n->lock);
  const lam_status status = n->device->nccl->finish(k->link);
  pthread_mutex_unlock(&n->lock);
  return status;
}

/* Peers that leave at another time cannot be waited for: then an abort ends the link here. */
static void finish(lam_nccl *n) {
  enum { PATIENCE_MS = 1000 };
  if (n->over || n->g->poison != LAM_OK || lam_nccl_check(n) != LAM_OK) return;
  if (n->deadline_ms > PATIENCE_MS) n->deadline_ms = PATIENCE_MS;
  if (lam_nccl_each_link(n, finish_link) == LAM_OK) (void)lam_nccl_each_link(n, lam_nccl_settle);
}

static lam_status close_link(lam_nccl *n, nccl_link *k) {
  n->device->nccl->close(k->link);
  k->link = NULL;
  return LAM_OK;
}

static void give_back(lam_nccl *n) {
  for (int i = 0; i < NCCL_SUMS; i++)
    if (n->chunks[i].data) lam_device_give_back(n->device, n->chunks[i].data, n->g->stream);
  (void)lam_nccl_each_link(n, close_link);
  for (int r = 0; r < n->g->size; r++)
    for (int way = 0; way < 2; way++) lam_nccl_edge_free(n, n->edges[r][way]);
  n->device->memory->free(lam_context_workers(n->g->ctx), n->scrap, NCCL_SCRAP_BYTES);
}

void lam_nccl_leave(lam_group *g) {
  int32_t was = 0;
  lam_nccl *n = g->nccl;
  if (!n) return;
  if (n->process == getpid()) { /* in a forked child nothing of it is there */
    lam_nccl_unwatch(n);
    const lam_status entered = lam_device_enter(n->device, n->device_id, &was);
    finish(n);
    give_back(n);
    if (entered == LAM_OK) lam_device_leave(n->device, was);
  }
  g->nccl = NULL;
  g->pace = NULL;
  pthread_mutex_destroy(&n->lock);
  free(n);
}
