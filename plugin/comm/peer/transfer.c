/* transfer.c: messages of host calls whose operands lie on a device.
 *
 * A message lies in a box of its sender's: copied there, or, where it is coded, written there by the
 * coder; its receiver copies it out, or decodes it there. A small one is copied by the kernels that
 * wait, a large one by the copy engine between them. Which box, and the header, go as a small note of
 * the group's engine, from host to host, when the sender's kernels are queued; so the receiver's wait
 * for nothing that may not come. Where the receiver does not reach the box, the message itself
 * follows the note.
 * Invariant: whichever way, messages of one (peer, direction, kind) arrive in order, and a receiver
 * takes the way that the note says.
 * Leaves boxes to boxes.c, who reaches whom to reach.c. */
#include <string.h>

#include "plugin/comm/peer/peer.h"

enum { NOTE_MARK = 0x4c42, BY_BOX = 1, BY_HOST };
#define ENGINE_FROM (256ull << 10) /* bytes; to be measured: two launches more, and no SM at work */

typedef struct note { /* what hosts tell each other of a message */
  lam_wire wire;
  int32_t how, reserved;
  peer_place box;
} note;

/* -- sending -- */

static lam_status tell(lam_group *g, int peer, int kind, const note *n) {
  const lam_wire outer = {
      .bytes = sizeof *n, .dtype = LAM_U8, .ndim = 1, .shape = {sizeof *n}, .slot = NOTE_MARK};
  return g->engine->send(g, peer, kind, &outer, n);
}

static lam_status send_by_host(lam_group *g, int peer, int kind, const lam_wire *header,
                               const void *data) {
  void *room = NULL;
  const note n = {.wire = *header, .how = BY_HOST};
  LAM_TRY(lam_peer_refuse_capture(g));
  LAM_TRY(lam_peer_pinned(g->peer, header->bytes + 1, &room));
  LAM_TRY(lam_peer_down(g, data, room, header->bytes));
  LAM_TRY(tell(g, peer, kind, &n));
  return g->engine->send(g, peer, kind, header, room);
}

/* The box is this rank's until it is filled. */
static lam_status send_open(lam_group *g, int peer, int kind, const lam_wire *header) {
  peer_message *m = &g->peer->sending;
  *m = (peer_message){.peer = peer, .kind = kind, .wire = *header};
  return lam_peer_box_for(g, peer, kind, header->bytes, &m->edge, &m->box);
}

static lam_status send_close(lam_group *g) {
  peer_message *m = &g->peer->sending;
  m->box->last = ++m->edge->sent;
  const note n = {.wire = m->wire, .how = BY_BOX, .box = m->box->place};
  return tell(g, m->peer, m->kind, &n);
}

static lam_status use(lam_group *g, const peer_message *m, int what, void *data, uint64_t bytes) {
  return lam_peer_box_use(g, m->peer, &m->box->box, what, m->edge->sent == 0, data, bytes);
}

/* A message of no bytes fills its box all the same. */
lam_status lam_peer_send(lam_group *g, int peer, int kind, const lam_wire *header,
                         const void *data) {
  lam_peer *p = NULL;
  const peer_message *m;
  void *x = (void *)(uintptr_t)data;
  LAM_TRY(lam_peer_begin(g, &p));
  m = &p->sending;
  if (lam_peer_goes_by_host(g, peer)) return send_by_host(g, peer, kind, header, data);
  LAM_TRY(send_open(g, peer, kind, header));
  if (header->bytes < ENGINE_FROM) {
    LAM_TRY(use(g, m, LAM_BOX_AWAIT_EMPTY | LAM_BOX_FILL, x, header->bytes));
  } else {
    LAM_TRY(use(g, m, LAM_BOX_AWAIT_EMPTY, NULL, 0));
    LAM_TRY(lam_peer_copy(g->device, p->line, x, m->box->box.data, header->bytes, g->stream));
    LAM_TRY(use(g, m, LAM_BOX_FILL, NULL, 0));
  }
  return send_close(g);
}

lam_status lam_peer_send_open(lam_group *g, int peer, int kind, const lam_wire *header,
                              void **out_place) {
  lam_peer *p = NULL;
  LAM_TRY(lam_peer_begin(g, &p));
  if (lam_peer_goes_by_host(g, peer)) return LAM_OK;
  LAM_TRY(send_open(g, peer, kind, header));
  LAM_TRY(use(g, &p->sending, LAM_BOX_AWAIT_EMPTY, NULL, 0));
  *out_place = p->sending.box->box.data;
  return LAM_OK;
}

lam_status lam_peer_send_close(lam_group *g) {
  LAM_TRY(use(g, &g->peer->sending, LAM_BOX_FILL, NULL, 0));
  return send_close(g);
}

/* -- receiving -- */

static lam_status check_note(const lam_group *g, int peer, const lam_wire *outer, const note *n,
                             uint64_t room) {
  if (outer->slot != NOTE_MARK || outer->bytes != sizeof *n)
    return lam_fail(LAM_MISMATCH, "message from rank %d: it lies in the host's memory, y on %s",
                    peer, g->device->name);
  if (n->wire.bytes > room)
    return lam_fail(LAM_MISMATCH, "message from rank %d: rank %d sent %llu bytes, room is for %llu",
                    peer, peer, (unsigned long long)n->wire.bytes, (unsigned long long)room);
  return LAM_OK;
}

static lam_status next_note(lam_group *g, int peer, int kind, uint64_t room, note *n) {
  lam_peer *p = NULL;
  lam_wire outer = {0};
  memset(n, 0, sizeof *n);
  LAM_TRY(lam_peer_begin(g, &p));
  LAM_TRY(g->engine->recv(g, peer, kind, &outer, n, sizeof *n));
  return check_note(g, peer, &outer, n, room);
}

static lam_status recv_by_host(lam_group *g, int peer, int kind, const note *n, void *data) {
  void *room = NULL;
  lam_wire header;
  LAM_TRY(lam_peer_refuse_capture(g));
  LAM_TRY(lam_peer_pinned(g->peer, n->wire.bytes + 1, &room));
  LAM_TRY(g->engine->recv(g, peer, kind, &header, room, n->wire.bytes));
  return lam_peer_up(g, room, data, n->wire.bytes);
}

static bool is_first(const lam_group *g, int peer, int kind) {
  return atomic_load(&peer_shown_of(g, g->rank)->taken[peer][kind]) == 0;
}

static lam_status box_of(lam_group *g, int peer, const note *n, lam_peer_box *out) {
  void *memory = NULL;
  LAM_TRY(lam_peer_find_sent(g, peer, &n->box, &memory));
  *out = lam_peer_box_at(memory);
  return LAM_OK;
}

/* The kernel that empties the box is queued. */
static void count_taken(lam_group *g, int peer, int kind) {
  atomic_fetch_add_explicit(&peer_shown_of(g, g->rank)->taken[peer][kind], 1, memory_order_release);
}

static lam_status recv_by_box(lam_group *g, int peer, int kind, const note *n, void *data) {
  lam_peer_box box;
  const bool first = is_first(g, peer, kind);
  LAM_TRY(box_of(g, peer, n, &box));
  if (n->wire.bytes < ENGINE_FROM) {
    LAM_TRY(lam_peer_box_use(g, peer, &box, LAM_BOX_AWAIT_FULL | LAM_BOX_EMPTY, first, data,
                             n->wire.bytes));
  } else {
    LAM_TRY(lam_peer_box_use(g, peer, &box, LAM_BOX_AWAIT_FULL, first, NULL, 0));
    LAM_TRY(lam_peer_copy(g->device, g->peer->line, box.data, data, n->wire.bytes, g->stream));
    LAM_TRY(lam_peer_box_use(g, peer, &box, LAM_BOX_EMPTY, false, NULL, 0));
  }
  count_taken(g, peer, kind);
  return LAM_OK;
}

lam_status lam_peer_recv(lam_group *g, int peer, int kind, lam_wire *header, void *data,
                         uint64_t room) {
  note n = {.how = 0};
  const lam_status status = next_note(g, peer, kind, room, &n);
  *header = n.wire;
  LAM_TRY(status);
  return (n.how == BY_HOST ? recv_by_host : recv_by_box)(g, peer, kind, &n, data);
}

/* A message that comes through the host lies in scratch meanwhile. */
lam_status lam_peer_recv_open(lam_group *g, int peer, int kind, lam_wire *header, uint64_t room,
                              const void **out_place) {
  note n = {.how = 0};
  const lam_status status = next_note(g, peer, kind, room, &n);
  *header = n.wire;
  LAM_TRY(status);
  peer_receipt *r = &g->peer->receiving;
  *r = (peer_receipt){.peer = peer, .kind = kind};
  if (n.how == BY_HOST) {
    LAM_TRY(lam_device_borrow(g->device, n.wire.bytes + 1, g->stream, &r->scratch));
    *out_place = r->scratch;
    return recv_by_host(g, peer, kind, &n, r->scratch);
  }
  LAM_TRY(box_of(g, peer, &n, &r->box));
  LAM_TRY(lam_peer_box_use(g, peer, &r->box, LAM_BOX_AWAIT_FULL, is_first(g, peer, kind), NULL, 0));
  *out_place = r->box.data;
  return LAM_OK;
}

lam_status lam_peer_recv_close(lam_group *g) {
  peer_receipt *r = &g->peer->receiving;
  if (r->scratch) {
    lam_device_give_back(g->device, r->scratch, g->stream);
    r->scratch = NULL;
    return LAM_OK;
  }
  LAM_TRY(lam_peer_box_use(g, r->peer, &r->box, LAM_BOX_EMPTY, false, NULL, 0));
  count_taken(g, r->peer, r->kind);
  return LAM_OK;
}
