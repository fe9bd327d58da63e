/* edges.c: messages to and from one neighbour, whatever they are of: activations, gradients, channels.
 *
 * All that goes to a neighbour shares one link, in the order in which the sender queued it. A note for
 * each message goes from host to host in the same order, so the receiver knows what comes next; what it
 * has not been asked for yet it receives aside, and hands over later. So nothing is taken for something
 * else, in whatever order the ends use their channels.
 * Invariant: both ends queue the same messages on a link in the same order, each of them once.
 * Leaves channels' slots to channels.c. */
#include <stdlib.h>
#include <string.h>

#include "plugin/comm/nccl/nccl.h"

#define LEAST_BYTES (64ull << 10)

struct nccl_parked {
  nccl_parked *next;
  nccl_note note;
  void *data;
};

/* In a graph a send would have to be joined to its caller's stream, or the capture could not end; but
 * joined, what the caller queues next waits until the peer receives, and two ranks that first send to
 * each other and then receive would wait for ever. Nor is there a later call to join it at: none comes
 * for certain, and nobody tells of a capture's end, nor of a graph's, until which its copy is needed.
 * Over peers' pointers messages wait in boxes of the sender's, and are captured. */
static lam_status refuse_capture(const lam_group *g) {
  bool captured = false;
  LAM_TRY(lam_device_capturing(g->device, g->stream, &captured));
  if (!captured) return LAM_OK;
  return lam_fail(
      LAM_FAILED_PRECONDITION,
      "transfers over NCCL cannot be captured into a graph: capture what is between them");
}

lam_status lam_nccl_edge_of(lam_group *g, int peer, int way, nccl_edge **out) {
  LAM_TRY(lam_nccl_check(g->nccl));
  LAM_TRY(lam_nccl_prepare(g));
  LAM_TRY(refuse_capture(g));
  *out = g->nccl->edges[peer][way];
  if (*out) return LAM_OK;
  return lam_fail(
      LAM_FAILED_PRECONDITION,
      "no way to rank %d: of more than %d ranks each has one to its neighbours alone; split "
      "a group of the two",
      peer, NCCL_ALL_EDGES);
}

int lam_nccl_edge_holds(nccl_edge *e, int n) {
  if (e->n_holds + n > LAM_LINK_HOLDS) return -1;
  e->n_holds += n;
  return e->n_holds - n;
}

/* ---- Sending ----------------------------------------------------------------------------------- */

static nccl_box *box_ready(nccl_edge *e, uint64_t bytes, uint64_t ended) {
  nccl_box *best = NULL;
  for (nccl_box *b = e->boxes; b < e->boxes + e->n_boxes; b++)
    if (b->bytes >= bytes && b->number < ended && (!best || b->bytes < best->bytes)) best = b;
  return best;
}

static lam_status box_make(const lam_group *g, nccl_edge *e, uint64_t bytes, nccl_box **out) {
  uint64_t room = LEAST_BYTES;
  while (room < bytes) room *= 2;
  nccl_box *b = &e->boxes[e->n_boxes];
  LAM_TRY(g->device->memory->alloc(lam_context_workers(g->ctx), room, &b->data));
  b->bytes = room;
  e->n_boxes++;
  *out = b;
  return LAM_OK;
}

static uint64_t ended_of(lam_nccl *n, nccl_edge *e) {
  lam_link_progress p = {0};
  pthread_mutex_lock(&n->lock);
  if (!n->over) (void)n->device->nccl->progress(e->link.link, &p);
  pthread_mutex_unlock(&n->lock);
  return p.ended;
}

/* Only when so many messages are under way does the host wait for what was sent before. */
static lam_status box_for(lam_group *g, nccl_edge *e, uint64_t bytes, nccl_box **out) {
  *out = box_ready(e, bytes, ended_of(g->nccl, e));
  if (*out) return LAM_OK;
  if (e->n_boxes < NCCL_BOXES) return box_make(g, e, bytes, out);
  LAM_TRY(lam_nccl_drain(g->nccl, &e->link));
  *out = box_ready(e, bytes, UINT64_MAX);
  if (*out) return LAM_OK;
  nccl_box *b = &e->boxes[0]; /* all are too small, and empty */
  g->device->memory->free(lam_context_workers(g->ctx), b->data, b->bytes);
  *b = e->boxes[--e->n_boxes];
  return box_make(g, e, bytes, out);
}

static lam_matrix as_bytes(const void *data, uint64_t bytes) {
  const int64_t n = (int64_t)bytes;
  return (lam_matrix){(void *)(uintptr_t)data, 1, n, n, 1, LAM_U8, false};
}

static lam_status copy(const lam_group *g, const void *from, void *to, uint64_t bytes) {
  return lam_device_copy(g->device, lam_context_workers(g->ctx), as_bytes(from, bytes),
                         as_bytes(to, bytes), g->stream);
}

lam_status lam_nccl_tell(lam_group *g, nccl_edge *e, const nccl_note *note) {
  void *slot = NULL;
  const lam_wire outer = {.bytes = sizeof *note};
  LAM_TRY(g->engine->channel_acquire(e->notes, &slot));
  memcpy(slot, note, sizeof *note);
  return g->engine->channel_push(e->notes, &outer);
}

/* The caller's memory is its own again in its stream's order: what NCCL reads is a copy. */
static lam_status send_copy(lam_group *g, nccl_edge *e, const void *data, uint64_t bytes) {
  nccl_box *b = NULL;
  const lam_link_after after = {g->stream, -1};
  LAM_TRY(box_for(g, e, bytes, &b));
  LAM_TRY(copy(g, data, b->data, bytes));
  const lam_link_op op = {.what = LAM_LINK_SEND,
                          .peer = e->peer < g->rank ? 0 : 1,
                          .x = b->data,
                          .n = (int64_t)bytes,
                          .dtype = LAM_U8};
  return lam_nccl_start(g->nccl, &e->link, &op, 1, after, &b->number);
}

lam_status lam_nccl_send(lam_group *g, int peer, int kind, const lam_wire *header,
                         const void *data) {
  nccl_edge *e = NULL;
  const nccl_note note = {.key = (uint64_t)kind, .bytes = header->bytes, .wire = *header};
  LAM_TRY(lam_nccl_edge_of(g, peer, NCCL_TO, &e));
  if (note.bytes > 0) LAM_TRY(send_copy(g, e, data, note.bytes));
  return lam_nccl_tell(g, e, &note);
}

/* ---- Receiving --------------------------------------------------------------------------------- */

static lam_status next_note(lam_group *g, nccl_edge *e, nccl_note *out) {
  lam_wire outer;
  const void *data = NULL;
  LAM_TRY(g->engine->channel_pull(e->notes, &outer, &data));
  memcpy(out, data, sizeof *out);
  return g->engine->channel_release(e->notes);
}

static lam_status receive(lam_group *g, nccl_edge *e, void *to, uint64_t bytes, int hold,
                          uint64_t *out_number) {
  const lam_link_after after = {g->stream, hold};
  const lam_link_op op = {.what = LAM_LINK_RECV,
                          .peer = e->peer < g->rank ? 0 : 1,
                          .y = to,
                          .n = (int64_t)bytes,
                          .dtype = LAM_U8};
  return lam_nccl_start(g->nccl, &e->link, &op, 1, after, out_number);
}

static lam_status park(lam_group *g, nccl_edge *e, const nccl_note *note) {
  nccl_parked *p = calloc(1, sizeof *p);
  if (!p) return lam_fail(LAM_RESOURCE_EXHAUSTED, "no memory");
  nccl_parked **last = &e->parked;
  while (*last) last = &(*last)->next;
  *last = p;
  p->note = *note;
  if (note->bytes == 0) return LAM_OK;
  uint64_t number = 0;
  LAM_TRY(lam_device_borrow(g->device, note->bytes, g->stream, &p->data));
  return receive(g, e, p->data, note->bytes, -1, &number);
}

static nccl_parked *unpark(nccl_edge *e, uint64_t key) {
  nccl_parked **at = &e->parked;
  while (*at && (*at)->note.key != key) at = &(*at)->next;
  nccl_parked *p = *at;
  if (p) *at = p->next;
  return p;
}

lam_status lam_nccl_await(lam_group *g, nccl_edge *e, uint64_t key, nccl_arrival *out) {
  out->parked = unpark(e, key);
  if (out->parked) {
    out->note = out->parked->note;
    return LAM_OK;
  }
  for (;;) {
    LAM_TRY(next_note(g, e, &out->note));
    if (out->note.key == key) return LAM_OK;
    LAM_TRY(park(g, e, &out->note));
  }
}

static void drop(const lam_group *g, nccl_parked *p) {
  if (p->data) lam_device_give_back(g->device, p->data, g->stream);
  free(p);
}

/* The link's stream comes past the hold, then g's past the link's, which has received it long ago. */
static lam_status land_parked(lam_group *g, nccl_edge *e, const nccl_parked *p, void *to,
                              int hold) {
  uint64_t number = 0;
  LAM_TRY(lam_nccl_start(g->nccl, &e->link, NULL, 0, (lam_link_after){g->stream, hold}, &number));
  LAM_TRY(lam_nccl_join(g->nccl, &e->link, number, g->stream));
  return copy(g, p->data, to, p->note.bytes);
}

static lam_status land_next(lam_group *g, nccl_edge *e, uint64_t bytes, void *to, int hold) {
  uint64_t number = 0;
  LAM_TRY(receive(g, e, to, bytes, hold, &number));
  return lam_nccl_join(g->nccl, &e->link, number, g->stream);
}

lam_status lam_nccl_land(lam_group *g, nccl_edge *e, nccl_arrival *a, void *to, int hold) {
  lam_status status = LAM_OK;
  if (a->note.bytes > 0)
    status = a->parked ? land_parked(g, e, a->parked, to, hold)
                       : land_next(g, e, a->note.bytes, to, hold);
  if (a->parked) drop(g, a->parked);
  return status;
}

lam_status lam_nccl_recv(lam_group *g, int peer, int kind, lam_wire *header, void *data,
                         uint64_t room) {
  nccl_edge *e = NULL;
  nccl_arrival a;
  LAM_TRY(lam_nccl_edge_of(g, peer, NCCL_FROM, &e));
  LAM_TRY(lam_nccl_await(g, e, (uint64_t)kind, &a));
  *header = a.note.wire;
  if (a.note.bytes > room)
    return lam_fail(LAM_MISMATCH, "message from rank %d: rank %d sent %llu bytes, room is for %llu",
                    peer, peer, (unsigned long long)a.note.bytes, (unsigned long long)room);
  return lam_nccl_land(g, e, &a, data, -1);
}

/* ---- The end ----------------------------------------------------------------------------------- */

void lam_nccl_edge_free(lam_nccl *n, nccl_edge *e) {
  const lam_workers *w = lam_context_workers(n->g->ctx);
  if (!e) return;
  while (e->parked) {
    nccl_parked *p = e->parked;
    e->parked = p->next;
    if (p->data) lam_device_give_back(n->device, p->data, n->g->stream);
    free(p);
  }
  for (int i = 0; i < e->n_boxes; i++)
    n->device->memory->free(w, e->boxes[i].data, e->boxes[i].bytes);
  if (e->notes) n->g->engine->channel_close(e->notes);
  free(e);
}
