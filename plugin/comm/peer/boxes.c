/* boxes.c: messages from one rank to another over device memory: send and recv, and channels.
 *
 * A message goes into a box in its sender's memory: one kernel copies it there once the box is empty,
 * one of the receiver's copies it out once it is full. Which box, and the header, go as a small
 * message of the group's engine, from host to host; it is sent when the sender's kernel is queued, so
 * the receiver's waits for nothing that may not come.
 * Invariant: a box is used again when the receiver's kernel for what was in it is queued; so a sender
 * waits for its receiver's host only when BOXES messages or SPILL_BYTES are under way. A box that a
 * graph was captured with is never freed before its edge.
 * Leaves counting inside a box to the device. */
#include <pthread.h>
#include <sched.h>
#include <stdlib.h>

#include "plugin/comm/peer/peer.h"

enum { BOXES = 64, HEAD_BYTES = 256 /* a box's words, before its data */, NOTE_MARK = 0x4c42 };
#define SPILL_BYTES (256ull << 20)
#define LEAST_BYTES (64ull << 10)

typedef struct edge_box {
  lam_peer_box box;
  uint64_t bytes;
  uint64_t last; /* messages up to the last that was in it */
} edge_box;

/* The boxes of one direction and kind, or of a channel; both ends' threads use the same. */
typedef struct edge {
  struct edge *next;
  uint64_t key;
  int64_t group;
  int from, to, n;
  _Atomic int users;
  const lam_device *device;
  int32_t device_id; /* the sender's */
  uint64_t bytes, sent;
  _Atomic uint64_t taken; /* messages whose kernel the receiver queued */
  edge_box boxes[BOXES];
} edge;

/* ---- Edges of this process --------------------------------------------------------------------- */

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static edge *edges;

static uint64_t key_of(const lam_group *g, uint64_t what, int from, int to) {
  return lam_mix(lam_mix((uint64_t)g->handle, what), (uint64_t)from << 32 | (uint32_t)to);
}

static edge *edge_find(uint64_t key) {
  pthread_mutex_lock(&lock);
  edge *e = edges;
  while (e && e->key != key) e = e->next;
  pthread_mutex_unlock(&lock);
  return e;
}

static lam_status edge_make(lam_group *g, uint64_t key, int to, edge **out) {
  edge *e = calloc(1, sizeof *e);
  if (!e) return lam_fail(LAM_RESOURCE_EXHAUSTED, "transfer: no memory");
  *e = (edge){.key = key,
              .group = g->handle,
              .from = g->rank,
              .to = to,
              .users = 2,
              .device = g->device,
              .device_id = g->peer->device_id};
  pthread_mutex_lock(&lock);
  e->next = edges;
  edges = e;
  pthread_mutex_unlock(&lock);
  *out = e;
  return LAM_OK;
}

static void edge_unlink(const edge *e) {
  for (edge **at = &edges; *at; at = &(*at)->next)
    if (*at == e) {
      *at = e->next;
      return;
    }
}

/* To free memory waits for what the card was given. */
static void edge_free(edge *e) {
  for (int i = 0; i < e->n; i++)
    if (e->boxes[i].box.words) e->device->peer->free(e->device_id, e->boxes[i].box.words);
  free(e);
}

static void edge_leave(edge *e) {
  pthread_mutex_lock(&lock);
  const bool last = atomic_fetch_sub(&e->users, 1) == 1;
  if (last) edge_unlink(e);
  pthread_mutex_unlock(&lock);
  if (last) edge_free(e);
}

static edge *edge_of(const lam_group *g, edge *after) {
  pthread_mutex_lock(&lock);
  edge *e = after ? after->next : edges;
  while (e && (e->group != g->handle || (e->from != g->rank && e->to != g->rank))) e = e->next;
  pthread_mutex_unlock(&lock);
  return e;
}

/* Both ends may look through the same list: what is last here may be freed, not what comes next. */
void lam_peer_edges_leave(const lam_group *g) {
  edge *own[2 * LAM_PEERS * 64];
  int n = 0;
  for (edge *e = edge_of(g, NULL); e && n < (int)(sizeof own / sizeof *own); e = edge_of(g, e))
    own[n++] = e;
  for (int i = 0; i < n; i++) edge_leave(own[i]);
}

/* ---- Boxes ------------------------------------------------------------------------------------- */

static lam_status box_make(edge *e, edge_box *b, uint64_t bytes) {
  void *data = NULL;
  LAM_TRY(lam_peer_alloc(e->device, HEAD_BYTES + bytes, &data));
  *b = (edge_box){.box = {.data = (char *)data + HEAD_BYTES, .words = data}, .bytes = bytes};
  e->bytes += bytes;
  return LAM_OK;
}

/* The smallest box that will be empty in time and holds so much; NULL: none. */
static edge_box *box_ready(edge *e, uint64_t bytes) {
  edge_box *best = NULL;
  const uint64_t taken = atomic_load_explicit(&e->taken, memory_order_acquire);
  for (edge_box *b = e->boxes; b < e->boxes + e->n; b++)
    if (b->bytes >= bytes && b->last <= taken && (!best || b->bytes < best->bytes)) best = b;
  return best;
}

static uint64_t room_for(uint64_t bytes) {
  uint64_t room = LEAST_BYTES;
  while (room < bytes) room *= 2;
  return room;
}

static bool may_grow(const edge *e, uint64_t room) {
  return e->n < BOXES && (e->bytes + room <= SPILL_BYTES || e->n == 0);
}

/* A peer may be compiling before its first message. */
static uint32_t patience(const lam_group *g, bool first) {
  return first ? g->first_deadline_ms : g->deadline_ms;
}

static lam_status look_around(const lam_group *g, const edge *e, int64_t start) {
  if (g->engine->check) LAM_TRY(g->engine->check(g));
  if (lam_context_should_stop(g->ctx))
    return lam_fail(LAM_INTERRUPTED, "rank %d of %d: the host asked to stop", g->rank, g->size);
  if (lam_clock_ns() - start > (int64_t)g->deadline_ms * 1000000)
    return lam_fail(LAM_PEER_STALLED,
                    "rank %d of %d: rank %d took no message out of %d boxes within %u ms", g->rank,
                    g->size, e->to, e->n, g->deadline_ms);
  return LAM_OK;
}

static lam_status box_for(const lam_group *g, edge *e, uint64_t bytes, edge_box **out) {
  const uint64_t room = room_for(bytes);
  *out = box_ready(e, bytes);
  if (!*out && may_grow(e, room)) {
    *out = &e->boxes[e->n];
    LAM_TRY(box_make(e, *out, room));
    e->n++;
    return LAM_OK;
  }
  for (const int64_t start = lam_clock_ns(); !*out; *out = box_ready(e, bytes)) {
    LAM_TRY(look_around(g, e, start));
    sched_yield();
  }
  return LAM_OK;
}

static lam_status copy(const lam_group *g, int peer, const lam_peer_box *box, int what, bool first,
                       void *data, uint64_t bytes) {
  return lam_peer_box_run(g->device, g->peer->line, peer, patience(g, first), box, what, data,
                          bytes, g->stream);
}

/* ---- Send and receive -------------------------------------------------------------------------- */

typedef struct note { /* what hosts tell each other of a message */
  lam_wire wire;
  int32_t box;
} note;

static lam_status begin(lam_group *g) {
  lam_peer *p = NULL;
  LAM_TRY(lam_peer_of(g, &p));
  return p->device->peer->check(p->line, true, g->stream);
}

/* A message of no bytes fills its box all the same. */
lam_status lam_peer_send(lam_group *g, int peer, int kind, const lam_wire *header,
                         const void *data) {
  const uint64_t key = key_of(g, (uint64_t)kind, g->rank, peer);
  edge_box *b = NULL;
  LAM_TRY(begin(g));
  edge *e = edge_find(key);
  if (!e) LAM_TRY(edge_make(g, key, peer, &e));
  LAM_TRY(box_for(g, e, header->bytes, &b));
  LAM_TRY(copy(g, peer, &b->box, LAM_BOX_AWAIT_EMPTY | LAM_BOX_FILL, e->sent == 0,
               (void *)(uintptr_t)data, header->bytes));
  b->last = ++e->sent;
  const note n = {.wire = *header, .box = (int32_t)(b - e->boxes)};
  const lam_wire outer = {
      .bytes = sizeof n, .dtype = LAM_U8, .ndim = 1, .shape = {sizeof n}, .slot = NOTE_MARK};
  return g->engine->send(g, peer, kind, &outer, &n);
}

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

lam_status lam_peer_recv(lam_group *g, int peer, int kind, lam_wire *header, void *data,
                         uint64_t room) {
  lam_wire outer = {0};
  note n = {.box = -1};
  LAM_TRY(begin(g));
  LAM_TRY(g->engine->recv(g, peer, kind, &outer, &n, sizeof n));
  *header = n.wire;
  LAM_TRY(check_note(g, peer, &outer, &n, room));
  edge *e = edge_find(key_of(g, (uint64_t)kind, peer, g->rank));
  if (!e || n.box < 0 || n.box >= BOXES)
    return lam_fail(LAM_INTERNAL, "message from rank %d: its box is not there", peer);
  LAM_TRY(lam_peer_reach(g->device, e->device_id));
  LAM_TRY(copy(g, peer, &e->boxes[n.box].box, LAM_BOX_AWAIT_FULL | LAM_BOX_EMPTY,
               atomic_load(&e->taken) == 0, data, n.wire.bytes));
  atomic_fetch_add_explicit(&e->taken, 1, memory_order_release);
  return LAM_OK;
}

/* ---- Channels: boxes that the stages write and read in place ----------------------------------- */

typedef struct peer_channel {
  lam_channel base;
  lam_channel *hosts; /* headers, and how far each host is */
  edge *edge;         /* NULL: the receiver has seen no message */
  uint64_t key, bytes;
  int peer, depth;
  uint32_t moved, released;
  void *header; /* of the slot that is acquired */
} peer_channel;

static lam_status make_slots(lam_group *g, peer_channel *c) {
  LAM_TRY(edge_make(g, c->key, c->peer, &c->edge));
  for (int i = 0; i < c->depth; i++) {
    LAM_TRY(box_make(c->edge, &c->edge->boxes[i], c->bytes ? c->bytes : 1));
    c->edge->n++;
  }
  return LAM_OK;
}

static lam_status check_depth(int depth) {
  if (depth <= BOXES) return LAM_OK;
  return lam_fail(LAM_UNIMPLEMENTED, "channel: %d slots; on a device there are %d at most", depth,
                  BOXES);
}

static lam_status open_hosts(lam_group *g, peer_channel *c, bool sender) {
  LAM_TRY(g->engine->channel_open(g, c->peer, sender, c->key, c->depth, sizeof(lam_wire),
                                  &c->hosts));
  c->hosts->group = g;
  return LAM_OK;
}

lam_status lam_peer_channel_open(lam_group *g, int peer, bool sender, uint64_t key, int depth,
                                 uint64_t bytes, lam_channel **out) {
  LAM_TRY(begin(g));
  LAM_TRY(check_depth(depth));
  peer_channel *c = calloc(1, sizeof *c);
  if (!c) return lam_fail(LAM_RESOURCE_EXHAUSTED, "channel: no memory");
  *c = (peer_channel){.peer = peer, .depth = depth, .bytes = bytes};
  c->key = key_of(g, lam_mix(key, 2), sender ? g->rank : peer, sender ? peer : g->rank);
  lam_status status = sender ? make_slots(g, c) : LAM_OK;
  if (status == LAM_OK) status = open_hosts(g, c, sender);
  if (status != LAM_OK) {
    free(c); /* slots go with the group */
    return status;
  }
  *out = &c->base;
  return LAM_OK;
}

static lam_status slot(peer_channel *c, uint32_t number, int what) {
  const edge_box *b = &c->edge->boxes[number % (uint32_t)c->depth];
  return copy(c->base.group, c->peer, &b->box, what, c->moved == 0, NULL, 0);
}

lam_status lam_peer_channel_acquire(lam_channel *channel, void **out_slot) {
  peer_channel *c = (peer_channel *)channel;
  LAM_TRY(begin(channel->group));
  LAM_TRY(channel->group->engine->channel_acquire(c->hosts, &c->header));
  LAM_TRY(slot(c, c->moved, LAM_BOX_AWAIT_EMPTY));
  *out_slot = c->edge->boxes[c->moved % (uint32_t)c->depth].box.data;
  return LAM_OK;
}

lam_status lam_peer_channel_push(lam_channel *channel, const lam_wire *header) {
  peer_channel *c = (peer_channel *)channel;
  const lam_wire outer = {.bytes = sizeof *header};
  LAM_TRY(begin(channel->group));
  if (!c->header)
    return lam_fail(LAM_FAILED_PRECONDITION, "channel: push without a slot acquired");
  if (header->bytes > c->bytes)
    return lam_fail(LAM_INVALID_ARGUMENT, "channel: a message of %llu bytes, a slot holds %llu",
                    (unsigned long long)header->bytes, (unsigned long long)c->bytes);
  lam_wire *wire = c->header;
  *wire = *header;
  lam_wire_seal(wire, c->moved);
  c->header = NULL;
  LAM_TRY(slot(c, c->moved, LAM_BOX_FILL));
  c->moved++;
  return channel->group->engine->channel_push(c->hosts, &outer);
}

/* The sender had opened its end before it pushed. */
static lam_status find_slots(peer_channel *c) {
  lam_group *g = c->base.group;
  if (c->edge) return LAM_OK;
  c->edge = edge_find(c->key);
  if (!c->edge || c->edge->n != c->depth || c->edge->boxes[0].bytes != (c->bytes ? c->bytes : 1))
    return lam_fail(LAM_MISMATCH, "channel: rank %d opened it otherwise than rank %d", c->peer,
                    g->rank);
  return lam_peer_reach(g->device, c->edge->device_id);
}

lam_status lam_peer_channel_pull(lam_channel *channel, lam_wire *out_header,
                                 const void **out_data) {
  peer_channel *c = (peer_channel *)channel;
  const void *header = NULL;
  lam_wire outer;
  LAM_TRY(begin(channel->group));
  LAM_TRY(channel->group->engine->channel_pull(c->hosts, &outer, &header));
  *out_header = *(const lam_wire *)header;
  LAM_TRY(lam_wire_verify(out_header, c->peer, c->moved, c->bytes));
  LAM_TRY(find_slots(c));
  LAM_TRY(slot(c, c->moved, LAM_BOX_AWAIT_FULL));
  *out_data = c->edge->boxes[c->moved % (uint32_t)c->depth].box.data;
  c->moved++;
  return LAM_OK;
}

lam_status lam_peer_channel_release(lam_channel *channel) {
  peer_channel *c = (peer_channel *)channel;
  LAM_TRY(begin(channel->group));
  if (c->released == c->moved)
    return lam_fail(LAM_FAILED_PRECONDITION, "channel: release of a message that was not pulled");
  LAM_TRY(slot(c, c->released, LAM_BOX_EMPTY));
  c->released++;
  return channel->group->engine->channel_release(c->hosts);
}

void lam_peer_channel_close(lam_channel *channel) {
  peer_channel *c = (peer_channel *)channel;
  channel->group->engine->channel_close(c->hosts);
  free(c); /* its boxes go with the group: what was pushed can still be pulled */
}
