/* boxes.c: boxes: places for messages, one at a time, in their sender's device memory.
 *
 * Sender and receiver count in words of the box how often it was filled and emptied, by kernels that
 * wait for each other; hosts count messages, so that a box is filled again only when the kernel that
 * empties it is queued. A flag that a dead process would have raised can be given up, an event of its
 * could not: hence kernels that wait, and not events.
 * Invariant: a sender waits for its receiver's host only when PEER_BOXES messages or SPILL_BYTES are
 * under way. A box that a graph was captured with lives as long as the group.
 * Leaves what is in a box to transfer.c, channels' slots to channel.c. */
#include <sched.h>
#include <stdlib.h>

#include "plugin/comm/peer/peer.h"

#define SPILL_BYTES (256ull << 20)
#define LEAST_BYTES (64ull << 10)
#define LEAVE_MS 1000
#define LEAST_APART (2ull << 20) /* no less is shown to another process */

lam_peer_box lam_peer_box_at(void *memory) {
  return (lam_peer_box){.data = (char *)memory + PEER_BOX_HEAD, .words = memory};
}

static lam_status box_make(lam_peer *p, peer_edge *e, edge_box *b, uint64_t room) {
  void *memory = NULL;
  LAM_TRY(lam_peer_memory_new(p, PEER_BOX_HEAD + room, &memory));
  const edge_box made = {.box = lam_peer_box_at(memory), .bytes = room};
  *b = made;
  const lam_status status = lam_peer_place_of(p, memory, &b->place);
  if (status != LAM_OK) {
    lam_peer_memory_drop(p, memory);
    return status;
  }
  e->bytes += room;
  e->n++;
  return LAM_OK;
}

/* The smallest box that will be empty in time and holds so much; NULL: none. */
static edge_box *box_ready(const lam_group *g, peer_edge *e, uint64_t bytes) {
  edge_box *best = NULL;
  const uint64_t taken = atomic_load_explicit(&peer_shown_of(g, e->peer)->taken[g->rank][e->kind],
                                              memory_order_acquire);
  for (edge_box *b = e->boxes; b < e->boxes + e->n; b++)
    if (b->bytes >= bytes && b->last <= taken && (!best || b->bytes < best->bytes)) best = b;
  return best;
}

static uint64_t room_for(const lam_peer *p, uint64_t bytes) {
  uint64_t all = p->among_processes ? LEAST_APART : LEAST_BYTES;
  while (all - PEER_BOX_HEAD < bytes) all *= 2;
  return all - PEER_BOX_HEAD;
}

static bool may_grow(const peer_edge *e, uint64_t room) {
  return e->n < PEER_BOXES && (e->bytes + room <= SPILL_BYTES || e->n == 0);
}

static lam_status look_around(const lam_group *g, const peer_edge *e, int64_t start) {
  if (g->engine->check) LAM_TRY(g->engine->check(g));
  if (lam_context_should_stop(g->ctx))
    return lam_fail(LAM_INTERRUPTED, "rank %d of %d: the host asked to stop", g->rank, g->size);
  if (lam_clock_ns() - start > (int64_t)g->deadline_ms * 1000000)
    return lam_fail(LAM_PEER_STALLED,
                    "rank %d of %d: rank %d took no message out of %d boxes within %u ms", g->rank,
                    g->size, e->peer, e->n, g->deadline_ms);
  return LAM_OK;
}

static lam_status edge_to(lam_peer *p, int peer, int kind, peer_edge **out) {
  peer_edge *e = p->edges;
  while (e && (e->peer != peer || e->kind != kind)) e = e->next;
  *out = e;
  if (e) return LAM_OK;
  e = calloc(1, sizeof *e);
  if (!e) return lam_fail(LAM_RESOURCE_EXHAUSTED, "transfer: no memory");
  *e = (peer_edge){.next = p->edges, .peer = peer, .kind = kind};
  *out = p->edges = e;
  return LAM_OK;
}

lam_status lam_peer_box_for(lam_group *g, int peer, int kind, uint64_t bytes, peer_edge **out_edge,
                            edge_box **out) {
  LAM_TRY(edge_to(g->peer, peer, kind, out_edge));
  peer_edge *e = *out_edge;
  const uint64_t room = room_for(g->peer, bytes);
  *out = box_ready(g, e, bytes);
  if (!*out && may_grow(e, room)) {
    *out = &e->boxes[e->n];
    return box_make(g->peer, e, *out, room);
  }
  for (const int64_t start = lam_clock_ns(); !*out; *out = box_ready(g, e, bytes)) {
    LAM_TRY(look_around(g, e, start));
    sched_yield();
  }
  return LAM_OK;
}

/* A peer may be compiling before its first message. */
lam_status lam_peer_box_use(const lam_group *g, int peer, const lam_peer_box *box, int what,
                            bool first, void *data, uint64_t bytes) {
  return lam_peer_box_run(g->device, g->peer->line, peer,
                          first ? g->first_deadline_ms : g->deadline_ms, box, what, data, bytes,
                          g->stream);
}

/* -- the end -- */

/* What is here goes with the process, perhaps as soon as the group is destroyed. */
static bool still_reads(const lam_group *g, int peer) {
  return !g->engine->is_thread(g, peer) && !g->engine->has_left(g, peer);
}

static void drain(const lam_group *g, const lam_peers *lanes, const lam_peer_box *boxes, int n) {
  g->peer->device->peer->drain(g->peer->line, lanes, boxes, n, LEAVE_MS);
}

void lam_peer_await_readers(lam_group *g) {
  const lam_peer *p = g->peer;
  if (!p->among_processes || g->size > LAM_PEERS) return;
  if (p->way == PEER_IPC) drain(g, &p->peers, NULL, 0);
  for (const peer_edge *e = p->edges; e; e = e->next)
    for (int i = 0; i < e->n && still_reads(g, e->peer); i++) drain(g, NULL, &e->boxes[i].box, 1);
  for (const peer_slots *s = p->slots; s; s = s->next)
    for (int i = 0; i < s->depth && still_reads(g, s->peer); i++) {
      const lam_peer_box box = lam_peer_box_at(s->memory + s->stride * (uint64_t)i);
      drain(g, NULL, &box, 1);
    }
}

void lam_peer_edges_free(lam_peer *p) {
  while (p->slots) {
    peer_slots *s = p->slots;
    p->slots = s->next;
    free(s);
  }
  while (p->edges) {
    peer_edge *e = p->edges;
    p->edges = e->next;
    free(e);
  }
}
