/* transfer.c: send and recv of host calls: a message is copied in by its sender and out by its
 * receiver, in pieces, so that both copies run at the same time through slots that stay in the
 * second-level cache.
 *
 * Invariant: per (peer, direction, kind) messages arrive in order and whole, or the receiver
 * gets MISMATCH. A send waits for its receiver only when EDGE_DEPTH pieces or EDGE_SPILL bytes
 * are under way: a receiver that does not come is given PATIENCE_NS, then the next 4 MiB of
 * the message are laid down in the arena beside the slots, and so on; send returns. So two ranks
 * that both send before they receive do not deadlock up to that amount; beyond it, they end with
 * PEER_STALLED.
 * Leaves what a header says to the operators, the ring to ring.c. */
#include <sched.h>
#include <stdlib.h>

#include "plugin/comm/shm/shm.h"

enum { EDGE_DEPTH = 64, EDGE_INLINE = 1024, EDGE_SLOTS = 32, EDGE_SLOT_BYTES = 32 << 10 };
#define EDGE_SPILL (256ull << 20)
#define SPILL_BYTES (EDGE_SPILL / EDGE_DEPTH) /* at a time: the receiver may yet come */
#define PATIENCE_NS 200000

typedef struct spill {
  shm_head *region; /* NULL: none */
  uint32_t after;   /* free once the receiver has given back so many pieces */
} spill;

struct shm_edge {
  shm_ring ring;
  uint64_t messages;               /* so far */
  uint32_t slot_after[EDGE_SLOTS]; /* a data slot is free once so many pieces were given back */
  uint32_t next_slot;
  uint64_t spilled_bytes;
  spill spills[EDGE_DEPTH]; /* by piece % EDGE_DEPTH */
};

static lam_status edge_find(shm_group *s, int peer, int kind, bool sender, shm_edge **out) {
  shm_edge **at = sender ? &s->to[peer][kind] : &s->from[peer][kind];
  *out = *at;
  if (*at) return LAM_OK;
  shm_edge *e = calloc(1, sizeof *e);
  if (!e) return lam_fail(LAM_RESOURCE_EXHAUSTED, "transfer: no memory");
  const int from = sender ? s->g->rank : peer, to = sender ? peer : s->g->rank;
  e->ring = (shm_ring){.s = s,
                       .peer = peer,
                       .depth = EDGE_DEPTH,
                       .slot_bytes = EDGE_INLINE,
                       .key = shm_key(s, SHM_KEY_TRANSFER, (uint64_t)kind, from, to)};
  const lam_status status =
      sender ? lam_shm_ring_create(&e->ring, (uint64_t)EDGE_SLOTS * EDGE_SLOT_BYTES) : LAM_OK;
  if (status != LAM_OK) {
    free(e);
    return status;
  }
  *out = *at = e;
  return LAM_OK;
}

/* ---- Sending --------------------------------------------------------------------------------- */

static unsigned char *data_slot(const shm_edge *e, uint32_t i) {
  return (unsigned char *)shm_ring_at(&e->ring, 0) + e->ring.stride * e->ring.depth +
         (uint64_t)EDGE_SLOT_BYTES * i;
}

static uint64_t place_of(const shm_ring *r, const void *p) {
  const shm_group *s = r->s;
  const int owner = r->sender ? s->g->rank : r->peer;
  return (uint64_t)((const unsigned char *)p - s->world->peers[s->world_rank[owner]].arena->base);
}

/* What the receiver is done with becomes free. */
static void drop_spills(shm_edge *e) {
  if (e->spilled_bytes == 0) return;
  for (int i = 0; i < EDGE_DEPTH; i++) {
    spill *sp = &e->spills[i];
    if (!sp->region || !shm_flag_reached(e->ring.freed, sp->after)) continue;
    e->spilled_bytes -= sp->region->bytes;
    lam_shm_region_leave(e->ring.s->world, sp->region);
    sp->region = NULL;
  }
}

/* A data slot, where one gets free while the receiver may be at work. */
static bool slot_soon(const shm_edge *e) {
  const uint32_t after = e->slot_after[e->next_slot];
  if (shm_flag_reached(e->ring.freed, after)) return true;
  for (const int64_t start = lam_clock_ns(); lam_clock_ns() - start < PATIENCE_NS; sched_yield())
    if (shm_flag_reached(e->ring.freed, after)) return true;
  return false;
}

static lam_status slot_wait(shm_edge *e) {
  shm_ring *r = &e->ring;
  const shm_wait w = {.flag = r->freed,
                      .value = e->slot_after[e->next_slot],
                      .peer = r->peer,
                      .between_two = true,
                      .deadline_ms = r->s->g->deadline_ms,
                      .gone = &r->head->users_left};
  return shm_wait_for(r->s, &w);
}

static lam_status lay_down(shm_edge *e, const void *data, uint64_t bytes, shm_message *m) {
  spill *sp = &e->spills[e->ring.moved % EDGE_DEPTH];
  LAM_TRY(lam_shm_region_create(e->ring.s->world, 0, sizeof(shm_head) + bytes, sizeof(shm_head), 0,
                                &sp->region));
  sp->after = e->ring.moved + 1;
  e->spilled_bytes += sp->region->bytes;
  memcpy(sp->region + 1, data, bytes);
  m->place = place_of(&e->ring, sp->region + 1);
  m->bytes = bytes;
  return LAM_OK;
}

/* One piece of at most `bytes`, into slot `moved` of the ring; m->bytes says how much it took. */
static lam_status fill_piece(shm_edge *e, const void *data, uint64_t bytes, shm_message *m) {
  m->place = 0;
  m->bytes = bytes;
  if (bytes <= EDGE_INLINE) {
    shm_copy(m + 1, data, (int64_t)bytes);
    return LAM_OK;
  }
  if (!slot_soon(e)) {
    drop_spills(e);
    if (e->spilled_bytes < EDGE_SPILL)
      return lay_down(e, data, bytes < SPILL_BYTES ? bytes : SPILL_BYTES, m);
    LAM_TRY(slot_wait(e));
  }
  unsigned char *to = data_slot(e, e->next_slot);
  m->bytes = bytes < EDGE_SLOT_BYTES ? bytes : EDGE_SLOT_BYTES;
  m->place = place_of(&e->ring, to);
  lam_shm_fill(e->ring.s->world, to, data, (int64_t)m->bytes);
  e->slot_after[e->next_slot] = e->ring.moved + 1;
  e->next_slot = (e->next_slot + 1) % EDGE_SLOTS;
  return LAM_OK;
}

lam_status lam_shm_send(lam_group *g, int peer, int kind, const lam_wire *header,
                        const void *data) {
  shm_edge *e = NULL;
  uint64_t done = 0;
  LAM_TRY(edge_find(shm_group_of(g), peer, kind, true, &e));
  drop_spills(e);
  do {
    LAM_TRY(lam_shm_ring_credit(&e->ring));
    shm_message *m = shm_ring_at(&e->ring, e->ring.moved);
    LAM_TRY(fill_piece(e, (const char *)data + done, header->bytes - done, m));
    if (done == 0) {
      m->wire = *header;
      lam_wire_seal(&m->wire, e->messages);
    }
    done += m->bytes;
    shm_flag_raise(e->ring.pushed, ++e->ring.moved);
  } while (done < header->bytes);
  e->messages++;
  return LAM_OK;
}

/* ---- Receiving ------------------------------------------------------------------------------- */

static const void *piece_data(const shm_ring *r, const shm_message *m) {
  const unsigned char *base = r->s->world->peers[r->s->world_rank[r->peer]].arena->base;
  return m->place ? (const void *)(base + m->place) : (const void *)(m + 1);
}

lam_status lam_shm_recv(lam_group *g, int peer, int kind, lam_wire *header, void *data,
                        uint64_t room) {
  shm_edge *e = NULL;
  uint64_t done = 0;
  LAM_TRY(edge_find(shm_group_of(g), peer, kind, false, &e));
  do {
    LAM_TRY(lam_shm_ring_ready(&e->ring));
    const shm_message *m = shm_ring_at(&e->ring, e->ring.moved);
    if (done == 0) {
      *header = m->wire;
      LAM_TRY(lam_wire_verify(header, peer, e->messages, room));
    }
    if (m->bytes > header->bytes - done)
      return lam_fail(LAM_INTERNAL, "message from rank %d: it is longer than its header says",
                      peer);
    shm_copy((char *)data + done, piece_data(&e->ring, m), (int64_t)m->bytes);
    done += m->bytes;
    shm_flag_raise(e->ring.freed, ++e->ring.moved);
  } while (done < header->bytes);
  e->messages++;
  return LAM_OK;
}

/* ---- The end --------------------------------------------------------------------------------- */

/* A peer may have sent what was never received: its ring is left all the same. */
static void leave_from(shm_group *s, int peer, int kind) {
  shm_ring unseen = {
      .s = s, .peer = peer, .key = shm_key(s, SHM_KEY_TRANSFER, (uint64_t)kind, peer, s->g->rank)};
  lam_shm_ring_close(s->from[peer][kind] ? &s->from[peer][kind]->ring : &unseen);
  free(s->from[peer][kind]);
}

/* Spilled pieces that were not received are the receiver's last: with the ring they are kept
 * until it leaves. */
static void leave_to(shm_group *s, shm_edge *e) {
  if (!e) return;
  for (int i = 0; i < EDGE_DEPTH; i++) {
    shm_head *region = e->spills[i].region;
    if (region) lam_shm_region_leave_with(s->world, region, e->ring.head);
  }
  lam_shm_ring_close(&e->ring);
  free(e);
}

void lam_shm_transfers_leave(shm_group *s) {
  for (int r = 0; r < s->g->size; r++)
    for (int kind = 0; r != s->g->rank && kind < SHM_KINDS; kind++) {
      leave_from(s, r, kind);
      leave_to(s, s->to[r][kind]);
    }
}
