/* reach.c: which ranks' memory this rank can read: threads' by pointers, other processes' once it
 * was opened.
 *
 * A rank offers a piece of memory to try as soon as it works on a device; the others try it when they
 * come to their next operation there, and show what they found. Who sends before a peer has answered
 * waits a moment, then goes through the host.
 * Invariant: nothing is opened twice, and all that was opened is closed when the rank leaves.
 * Leaves what is read to boxes.c and meet.c. */
#include <sched.h>
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

#include "plugin/comm/peer/peer.h"

#define ANSWER_NS 100000000ll /* how long a sender waits for a peer that may be at other things */
#define DEATH_NS 100000000ll

/* -- maps -- */

static lam_status map_new(lam_peer *p, int rank, const peer_place *at, void **out) {
  peer_map *m = calloc(1, sizeof *m);
  if (!m) return lam_fail(LAM_RESOURCE_EXHAUSTED, "no memory");
  const lam_status status = lam_peer_map(p->device, &at->handle, &m->here);
  if (status != LAM_OK) {
    free(m);
    return status;
  }
  m->rank = rank;
  m->there = at->there;
  m->next = p->maps;
  p->maps = m;
  *out = m->here;
  return LAM_OK;
}

/* Memory is kept as long as the group, so no other lies where it lay. */
static lam_status map_of(lam_peer *p, int rank, const peer_place *at, void **out) {
  for (const peer_map *m = p->maps; m; m = m->next)
    if (m->rank == rank && m->there == at->there) {
      *out = m->here;
      return LAM_OK;
    }
  return map_new(p, rank, at, out);
}

void lam_peer_unmap_all(lam_peer *p) {
  while (p->maps) {
    peer_map *m = p->maps;
    p->maps = m->next;
    p->device->peer->unmap(p->device_id, m->here);
    free(m);
  }
}

/* -- places -- */

lam_status lam_peer_place_of(const lam_peer *p, void *data, peer_place *out) {
  *out = (peer_place){.there = data, .device_id = p->device_id, .shown = p->among_processes};
  return p->among_processes ? lam_peer_show(p->device, data, &out->handle) : LAM_OK;
}

lam_status lam_peer_find(lam_group *g, int rank, const peer_place *at, void **out) {
  if (!g->engine->is_thread(g, rank)) return map_of(g->peer, rank, at, out);
  *out = (void *)(uintptr_t)at->there;
  return lam_peer_reach(g->device, at->device_id);
}

/* Memory of a process that was killed opens no more, a moment before its death shows. */
static lam_status or_its_death(lam_group *g, lam_status status) {
  char why[LAM_MESSAGE_BYTES];
  const int64_t start = lam_clock_ns();
  snprintf(why, sizeof why, "%s", lam_last_error());
  while (g->engine->life && lam_clock_ns() - start < DEATH_NS) {
    LAM_TRY(g->engine->life(g));
    usleep(1000);
  }
  return lam_fail(status, "%s", why);
}

lam_status lam_peer_find_sent(lam_group *g, int rank, const peer_place *at, void **out) {
  const lam_status status = lam_peer_find(g, rank, at, out);
  return status == LAM_OK ? LAM_OK : or_its_death(g, status);
}

/* -- offers -- */

/* Where memory cannot be shown, nothing is offered: who asks gets no answer, and nothing is sent by
 * it. */
lam_status lam_peer_offer(lam_group *g) {
  void *data = NULL;
  peer_shown *own = peer_shown_of(g, g->rank);
  LAM_TRY(lam_peer_memory_new(g->peer, LAM_SHOWN_BYTES, &data));
  if (lam_peer_show(g->device, data, &own->probe) != LAM_OK) {
    snprintf(g->peer->why, sizeof g->peer->why, "rank %d: %.140s", g->rank, lam_last_error());
    return LAM_OK;
  }
  atomic_store_explicit(&own->offered, PEER_YES, memory_order_release);
  return LAM_OK;
}

static bool try_offer(lam_group *g, int rank) {
  void *here = NULL;
  peer_shown *theirs = peer_shown_of(g, rank);
  const peer_place at = {.handle = theirs->probe};
  if (map_new(g->peer, rank, &at, &here) == LAM_OK) return true;
  snprintf(g->peer->why, sizeof g->peer->why, "rank %d: %.140s", g->rank, lam_last_error());
  return false;
}

void lam_peer_try_offers(lam_group *g) {
  peer_shown *own = peer_shown_of(g, g->rank);
  for (int r = 0; r < g->size; r++) {
    if (g->engine->is_thread(g, r) || atomic_load(&own->reaches[r]) != PEER_UNKNOWN) continue;
    if (!atomic_load_explicit(&peer_shown_of(g, r)->offered, memory_order_acquire)) continue;
    atomic_store(&own->reaches[r], try_offer(g, r) ? PEER_YES : PEER_NO);
  }
}

static uint32_t answer_of(lam_group *g, int peer) {
  const _Atomic uint32_t *answer = &peer_shown_of(g, peer)->reaches[g->rank];
  const bool offered = atomic_load(&peer_shown_of(g, g->rank)->offered);
  const int64_t start = lam_clock_ns();
  while (offered && atomic_load(answer) == PEER_UNKNOWN && lam_clock_ns() - start < ANSWER_NS) {
    lam_peer_try_offers(g); /* two that wait for each other answer each other */
    sched_yield();
  }
  return atomic_load_explicit(answer, memory_order_acquire);
}

bool lam_peer_goes_by_host(lam_group *g, int peer) {
  const int way = g->peer->way;
  if (way != PEER_UNSETTLED) return way == PEER_HOST;
  if (!g->engine->shown || g->size > LAM_PEERS) return true;
  return !g->engine->is_thread(g, peer) && answer_of(g, peer) != PEER_YES;
}
