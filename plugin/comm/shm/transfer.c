/* transfer.c: send and recv of host calls.
 *
 *   in pieces  a message is copied in by its sender and out by its receiver, so that both copies
 *              run at the same time through slots that stay in the second-level cache
 *   offered    where the receiver can read the sender's memory itself (group memory; ranks that
 *              are threads), it copies the message out of it, once; the sender waits, as long as
 *              copying would have taken it, then takes the offer back and sends in pieces
 *   together   where the sender can write the receiver's memory as well, both copy pieces of a
 *              large offer: one CPU alone does not use all of the memory's bandwidth
 * 1 MiB between two CPUs near each other: in pieces 35 us, offered 25, a bare copy of what the
 * other CPU wrote 23, memcpy within one CPU's caches 22. Reading private memory through the kernel
 * (process_vm_readv), which copies once, takes 80 to 95: it pins pages; at 16 MiB 1.9 to 2.4 times
 * a memcpy, where in pieces takes 1.7.
 *
 * Invariant: per (peer, direction, kind) messages arrive in order and whole, or the receiver
 * gets MISMATCH. A send waits for its receiver only when EDGE_DEPTH pieces or EDGE_SPILL bytes
 * are under way: a receiver that does not come is given PATIENCE_NS, then the next 4 MiB of
 * the message are laid down in the arena beside the slots, and so on; send returns. So two ranks
 * that both send before they receive do not deadlock up to that amount; beyond it, they end with
 * PEER_STALLED. What was offered is the sender's again when send returns, also with an error.
 * Leaves what a header says to the operators, the ring to ring.c. */
#include <sched.h>
#include <stdlib.h>

#include "plugin/comm/shm/shm.h"

enum { EDGE_DEPTH = 64, EDGE_INLINE = 1024, EDGE_SLOTS = 32, EDGE_SLOT_BYTES = 32 << 10 };
#define EDGE_SPILL (256ull << 20)
#define SPILL_BYTES (EDGE_SPILL / EDGE_DEPTH) /* at a time: the receiver may yet come */
#define PATIENCE_NS 200000
#define OFFER_FROM (32 << 10) /* below, the sender is sooner done with its copy than with waiting */
#define OFFER_BYTES_PER_NS 8  /* about what copying in reaches */
#define TOGETHER_FROM (4 << 20) /* below, the receiver's cache would lack what the sender wrote */
#define TOGETHER_PIECE (128 << 10)

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
  LAM_TRY(lam_shm_world_use(s->world));
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

static uintptr_t arena_base(const shm_ring *r, int rank) {
  return (uintptr_t)r->s->world->peers[r->s->world_rank[rank]].arena->base;
}

static uint64_t place_of(const shm_ring *r, const void *p) {
  return (uintptr_t)p - arena_base(r, r->sender ? r->s->g->rank : r->peer);
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

/* A peer may be compiling before its first message. */
static uint32_t patience_of(const shm_edge *e) {
  const lam_group *g = e->ring.s->g;
  return e->messages ? g->deadline_ms : g->first_deadline_ms;
}

static lam_status slot_wait(shm_edge *e) {
  shm_ring *r = &e->ring;
  const shm_wait w = {.flag = r->freed,
                      .value = e->slot_after[e->next_slot],
                      .peer = r->peer,
                      .between_two = true,
                      .deadline_ms = patience_of(e),
                      .gone = &r->head->users_left};
  return shm_wait_for(r->s, &w);
}

/* A copy beside the slots, kept until the receiver has given piece `moved` back. */
static lam_status lay_down(shm_edge *e, const void *data, uint64_t bytes, uint64_t *out_place) {
  spill *sp = &e->spills[e->ring.moved % EDGE_DEPTH];
  LAM_TRY(lam_shm_region_create(e->ring.s->world, 0, sizeof(shm_head) + bytes, sizeof(shm_head), 0,
                                &sp->region));
  sp->after = e->ring.moved + 1;
  e->spilled_bytes += sp->region->bytes;
  memcpy(sp->region + 1, data, bytes);
  *out_place = place_of(&e->ring, sp->region + 1);
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
    if (e->spilled_bytes < EDGE_SPILL) {
      m->bytes = bytes < SPILL_BYTES ? bytes : SPILL_BYTES;
      return lay_down(e, data, m->bytes, &m->place);
    }
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

static void push_piece(shm_edge *e, const lam_wire *header, bool first) {
  shm_message *m = shm_ring_at(&e->ring, e->ring.moved);
  if (first) {
    m->wire = *header;
    lam_wire_seal(&m->wire, e->messages);
  }
  shm_flag_raise(e->ring.pushed, ++e->ring.moved);
}

/* offered: the header has gone with the offer. */
static lam_status send_pieces(shm_edge *e, const lam_wire *header, const char *data, bool offered) {
  uint64_t done = 0;
  do {
    LAM_TRY(lam_shm_ring_credit(&e->ring));
    shm_message *m = shm_ring_at(&e->ring, e->ring.moved);
    atomic_store_explicit(&m->offer, OFFER_NONE, memory_order_relaxed);
    LAM_TRY(fill_piece(e, data + done, header->bytes - done, m));
    push_piece(e, header, done == 0 && !offered);
    done += m->bytes;
  } while (done < header->bytes);
  return LAM_OK;
}

/* ---- Offering -------------------------------------------------------------------------------- */

static bool is_thread(const shm_ring *r) {
  return r->s->world->peers[r->s->world_rank[r->peer]].life < 0;
}

/* Threads of one process share the mapping too, so a place reaches all memory of theirs. */
static bool readable_there(const shm_edge *e, const void *data) {
  return is_thread(&e->ring) || place_of(&e->ring, data) < SHM_ARENA_BYTES;
}

/* One more piece, unless all are claimed. */
static bool copy_next(shm_message *m, char *to, const char *from) {
  const uint64_t at =
      (uint64_t)atomic_fetch_add_explicit(&m->claimed, 1, memory_order_relaxed) * TOGETHER_PIECE;
  if (at >= m->bytes) return false;
  const uint64_t left = m->bytes - at;
  lam_copy_result(to + at, from + at, left < TOGETHER_PIECE ? (int64_t)left : TOGETHER_PIECE,
                  (int64_t)m->bytes);
  return true;
}

static uint32_t copy_all_left(shm_message *m, char *to, const char *from) {
  uint32_t n = 0;
  while (copy_next(m, to, from)) n++;
  return n;
}

/* The sender's part, once. */
static void help(const shm_edge *e, shm_message *m, const void *data) {
  if (atomic_load_explicit(&m->offer, memory_order_acquire) != OFFER_SHARED ||
      atomic_load_explicit(&m->helped.value, memory_order_relaxed))
    return;
  char *to = (char *)(arena_base(&e->ring, e->ring.peer) + m->to_place);
  const uint32_t n = copy_all_left(m, to, data);
  e->ring.s->world->helped += n;
  if (n > 0) shm_flag_raise(&m->helped, n);
}

static bool taken_soon(const shm_edge *e, shm_message *m, const void *data) {
  const int64_t start = lam_clock_ns(), patience = (int64_t)(m->bytes / OFFER_BYTES_PER_NS);
  do {
    if (shm_flag_reached(e->ring.freed, e->ring.moved)) return true;
    help(e, m, data);
    if (e->ring.s->world->spins)
      shm_pause();
    else
      sched_yield();
  } while (lam_clock_ns() - start < patience);
  return false;
}

/* False: the receiver has begun. */
static bool take_back(shm_message *m, uint32_t instead) {
  uint32_t offered = OFFER_OPEN;
  return atomic_compare_exchange_strong_explicit(&m->offer, &offered, instead, memory_order_release,
                                                 memory_order_relaxed);
}

/* After an error nobody may read the host's memory any more: one who began is at the end soon. */
static void await_reader(const shm_edge *e, shm_message *m) {
  if (take_back(m, OFFER_ENDED)) return;
  while (is_thread(&e->ring) && !shm_flag_reached(e->ring.freed, e->ring.moved)) sched_yield();
}

static lam_status offer_wait(shm_edge *e, shm_message *m) {
  const shm_ring *r = &e->ring;
  const shm_wait w = {.flag = r->freed,
                      .value = r->moved,
                      .peer = r->peer,
                      .between_two = true,
                      .deadline_ms = patience_of(e),
                      .gone = &r->head->users_left};
  const lam_status status = shm_wait_for(r->s, &w);
  if (status != LAM_OK) await_reader(e, m);
  return status;
}

static lam_status send_offer(shm_edge *e, const lam_wire *header, const void *data) {
  LAM_TRY(lam_shm_ring_credit(&e->ring));
  shm_message *m = shm_ring_at(&e->ring, e->ring.moved);
  m->bytes = header->bytes;
  m->place = place_of(&e->ring, data);
  atomic_store_explicit(&m->helped.value, 0, memory_order_relaxed);
  atomic_store_explicit(&m->helped.sleepers, 0, memory_order_relaxed);
  atomic_store_explicit(&m->offer, OFFER_OPEN, memory_order_relaxed);
  push_piece(e, header, true);
  if (taken_soon(e, m, data)) return LAM_OK;
  /* More than fits beside the slots would wait in pieces, too. */
  if (header->bytes <= EDGE_SPILL && take_back(m, OFFER_IN_PIECES))
    return send_pieces(e, header, data, true);
  return offer_wait(e, m);
}

lam_status lam_shm_send(lam_group *g, int peer, int kind, const lam_wire *header,
                        const void *data) {
  shm_edge *e = NULL;
  LAM_TRY(edge_find(shm_group_of(g), peer, kind, true, &e));
  drop_spills(e);
  LAM_TRY(header->bytes >= OFFER_FROM && readable_there(e, data) ? send_offer(e, header, data)
                                                                 : send_pieces(e, header, data, false));
  e->messages++;
  return LAM_OK;
}

const char *lam_shm_send_path(uint64_t bytes) {
  return bytes < OFFER_FROM ? "shm slots" : "shm slots, or read where it lies";
}

/* ---- Receiving ------------------------------------------------------------------------------- */

/* What became of an offer, which is taken here unless its sender has taken it back. */
static uint32_t take_offer(shm_message *m) {
  uint32_t offer = atomic_load_explicit(&m->offer, memory_order_acquire);
  if (offer == OFFER_OPEN &&
      atomic_compare_exchange_strong_explicit(&m->offer, &offer, OFFER_TAKEN, memory_order_acquire,
                                              memory_order_acquire))
    offer = OFFER_TAKEN;
  return offer;
}

static const void *piece_data(const shm_ring *r, const shm_message *m) {
  return m->place ? (const void *)(arena_base(r, r->peer) + m->place) : (const void *)(m + 1);
}

/* Its sender is about to end the world, and to say why. */
static lam_status await_reason(const shm_ring *r) {
  const shm_wait never = {.flag = r->pushed,
                          .value = r->moved + 2,
                          .peer = r->peer,
                          .between_two = true,
                          .deadline_ms = r->s->g->deadline_ms};
  LAM_TRY(shm_wait_for(r->s, &never));
  return lam_fail(LAM_INTERNAL, "message from rank %d: it was taken back", r->peer);
}

/* Whether the sender can write there: in the own arena, or anywhere in the same process. */
static bool writable_there(const shm_ring *r, const shm_message *m, const void *to) {
  return m->bytes >= TOGETHER_FROM && r->s->world->spins &&
         atomic_load_explicit(&m->offer, memory_order_relaxed) == OFFER_TAKEN &&
         (is_thread(r) || (uintptr_t)to - arena_base(r, r->s->g->rank) < SHM_ARENA_BYTES);
}

/* The receiver's part: shares the copy, and waits for the pieces that the sender claimed. */
static lam_status copy_together(const shm_ring *r, shm_message *m, void *to, const void *from) {
  const uint32_t pieces = (uint32_t)((m->bytes + TOGETHER_PIECE - 1) / TOGETHER_PIECE);
  m->to_place = (uintptr_t)to - arena_base(r, r->s->g->rank);
  atomic_store_explicit(&m->claimed, 0, memory_order_relaxed);
  atomic_store_explicit(&m->offer, OFFER_SHARED, memory_order_release);
  const shm_wait w = {.flag = &m->helped,
                      .value = pieces - copy_all_left(m, to, from),
                      .peer = r->peer,
                      .between_two = true,
                      .deadline_ms = r->s->g->deadline_ms};
  const lam_status status = shm_wait_for(r->s, &w);
  /* After an error nobody may write to the host's memory any more. (Between processes it is the
   * group's, and lasts.) */
  while (status != LAM_OK && is_thread(r) && !shm_flag_reached(&m->helped, w.value)) sched_yield();
  return status;
}

/* out_bytes: 0 where the sender took its offer back and pieces follow. */
static lam_status copy_piece(const shm_ring *r, shm_message *m, void *to, uint64_t whole,
                             uint64_t *out_bytes) {
  const uint32_t offer = take_offer(m);
  *out_bytes = offer == OFFER_IN_PIECES ? 0 : m->bytes;
  if (offer == OFFER_IN_PIECES) return LAM_OK;
  if (offer == OFFER_ENDED) return await_reason(r);
  if (writable_there(r, m, to))
    LAM_TRY(copy_together(r, m, to, piece_data(r, m)));
  else
    lam_copy_result(to, piece_data(r, m), (int64_t)m->bytes, (int64_t)whole);
  /* After a failure its sender has the memory back, and may have written to it meanwhile. */
  return offer == OFFER_TAKEN ? lam_shm_world_check(r->s->world) : LAM_OK;
}

lam_status lam_shm_recv(lam_group *g, int peer, int kind, lam_wire *header, void *data,
                        uint64_t room) {
  shm_edge *e = NULL;
  uint64_t done = 0, bytes = 0;
  LAM_TRY(edge_find(shm_group_of(g), peer, kind, false, &e));
  for (bool first = true; first || done < header->bytes; first = false, done += bytes) {
    LAM_TRY(lam_shm_ring_ready(&e->ring));
    shm_message *m = shm_ring_at(&e->ring, e->ring.moved);
    if (first) {
      *header = m->wire;
      LAM_TRY(lam_wire_verify(header, peer, e->messages, room));
    }
    if (m->bytes > header->bytes - done)
      return lam_fail(LAM_INTERNAL, "message from rank %d: it is longer than its header says",
                      peer);
    const lam_status status = copy_piece(&e->ring, m, (char *)data + done, header->bytes, &bytes);
    shm_flag_raise(e->ring.freed, ++e->ring.moved); /* also after an error: see await_reader */
    LAM_TRY(status);
  }
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
