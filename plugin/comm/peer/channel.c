/* channel.c: channels of pipelines on a device: slots in the sender's memory, which its stage writes
 * and the receiver's stage reads in place.
 *
 * All slots are one piece of memory, so it is opened once. A channel of the engine carries headers and
 * how far each host is. Which way messages go is decided at the sender's first slot and stays: where
 * the receiver does not reach the slots, they go down to the host, through a second channel of the
 * engine, and up into slots that the receiver made for itself.
 * Invariant: a slot is the sender's from acquire to push, the receiver's from pull to release.
 * Leaves counting inside a slot to the device. */
#include <stdlib.h>

#include "plugin/comm/peer/peer.h"

typedef struct channel_note {
  lam_wire wire;
  int32_t by_host, depth;
  uint64_t bytes;
  peer_place slots;
} channel_note;

typedef struct peer_channel {
  lam_channel base;
  lam_channel *hosts; /* notes, and how far each host is */
  lam_channel *data;  /* messages themselves, where they go through the host */
  char *slots;        /* the sender's; by host, the own ones. NULL: no message was seen */
  peer_place place;
  uint64_t key, bytes, stride;
  int peer, depth;
  bool decided, by_host;
  uint32_t moved, released;
  channel_note *note; /* of the slot that is acquired */
} peer_channel;

static lam_peer_box slot_box(const peer_channel *c, uint32_t number) {
  return lam_peer_box_at(c->slots + c->stride * (number % (uint32_t)c->depth));
}

static lam_status use(const peer_channel *c, uint32_t number, int what) {
  const lam_peer_box box = slot_box(c, number);
  return lam_peer_box_use(c->base.group, c->peer, &box, what, c->moved == 0, NULL, 0);
}

/* -- opening -- */

static lam_status make_slots(peer_channel *c, lam_peer *p) {
  void *memory = NULL;
  peer_slots *s = calloc(1, sizeof *s);
  if (!s) return lam_fail(LAM_RESOURCE_EXHAUSTED, "channel: no memory");
  const lam_status status = lam_peer_memory_new(p, c->stride * (uint64_t)c->depth, &memory);
  if (status != LAM_OK) {
    free(s);
    return status;
  }
  *s = (peer_slots){p->slots, c->peer, c->depth, c->stride, memory};
  p->slots = s;
  c->slots = memory;
  return LAM_OK;
}

static lam_status open_engines(lam_group *g, const peer_channel *c, uint64_t key, bool sender,
                               uint64_t bytes, lam_channel **out) {
  LAM_TRY(g->engine->channel_open(g, c->peer, sender, key, c->depth, bytes, out));
  (*out)->group = g;
  (*out)->way = g->engine;
  return LAM_OK;
}

lam_status lam_peer_channel_open(lam_group *g, int peer, bool sender, uint64_t key, int depth,
                                 uint64_t bytes, lam_channel **out) {
  lam_peer *p = NULL;
  LAM_TRY(lam_peer_begin(g, &p));
  peer_channel *c = calloc(1, sizeof *c);
  if (!c) return lam_fail(LAM_RESOURCE_EXHAUSTED, "channel: no memory");
  *c = (peer_channel){.base.group = g, .peer = peer, .depth = depth, .bytes = bytes};
  c->stride = PEER_BOX_HEAD + (bytes + 255) / 256 * 256;
  c->key = lam_mix(key, 2);
  lam_status status = sender ? make_slots(c, p) : LAM_OK;
  if (status == LAM_OK)
    status = open_engines(g, c, c->key, sender, sizeof(channel_note), &c->hosts);
  if (status != LAM_OK) {
    free(c); /* slots go with the group */
    return status;
  }
  *out = &c->base;
  return LAM_OK;
}

static lam_status open_data(peer_channel *c, bool sender) {
  if (c->data) return LAM_OK;
  return open_engines(c->base.group, c, lam_mix(c->key, 3), sender, c->bytes, &c->data);
}

/* -- sending -- */

static lam_status decide(peer_channel *c) {
  if (c->decided) return LAM_OK;
  c->by_host = lam_peer_goes_by_host(c->base.group, c->peer);
  if (c->by_host)
    LAM_TRY(open_data(c, true));
  else
    LAM_TRY(lam_peer_place_of(c->base.group->peer, c->slots, &c->place));
  c->decided = true;
  return LAM_OK;
}

lam_status lam_peer_channel_acquire(lam_channel *channel, void **out_slot) {
  peer_channel *c = (peer_channel *)channel;
  lam_peer *p = NULL;
  void *note = NULL;
  LAM_TRY(lam_peer_begin(channel->group, &p));
  LAM_TRY(decide(c));
  LAM_TRY(channel->group->engine->channel_acquire(c->hosts, &note));
  c->note = note;
  if (!c->by_host) LAM_TRY(use(c, c->moved, LAM_BOX_AWAIT_EMPTY));
  *out_slot = slot_box(c, c->moved).data;
  return LAM_OK;
}

static lam_status push_by_host(peer_channel *c, uint64_t bytes) {
  lam_group *g = c->base.group;
  void *host = NULL;
  const lam_wire outer = {.bytes = bytes};
  LAM_TRY(lam_peer_refuse_capture(g));
  LAM_TRY(g->engine->channel_acquire(c->data, &host));
  LAM_TRY(lam_peer_down(g, slot_box(c, c->moved).data, host, bytes));
  return g->engine->channel_push(c->data, &outer);
}

lam_status lam_peer_channel_push(lam_channel *channel, const lam_wire *header) {
  peer_channel *c = (peer_channel *)channel;
  const lam_wire outer = {.bytes = sizeof *c->note};
  lam_peer *p = NULL;
  LAM_TRY(lam_peer_begin(channel->group, &p));
  if (!c->note)
    return lam_fail(LAM_FAILED_PRECONDITION, "channel: push without a slot acquired");
  if (header->bytes > c->bytes)
    return lam_fail(LAM_INVALID_ARGUMENT, "channel: a message of %llu bytes, a slot holds %llu",
                    (unsigned long long)header->bytes, (unsigned long long)c->bytes);
  *c->note = (channel_note){.wire = *header,
                            .by_host = c->by_host,
                            .depth = c->depth,
                            .bytes = c->bytes,
                            .slots = c->place};
  lam_wire_seal(&c->note->wire, c->moved);
  c->note = NULL;
  LAM_TRY(c->by_host ? push_by_host(c, header->bytes) : use(c, c->moved, LAM_BOX_FILL));
  c->moved++;
  return channel->group->engine->channel_push(c->hosts, &outer);
}

/* -- receiving -- */

static lam_status find_slots(peer_channel *c, const channel_note *n) {
  lam_group *g = c->base.group;
  void *memory = NULL;
  if (c->slots) return LAM_OK;
  if (n->depth != c->depth || n->bytes != c->bytes)
    return lam_fail(LAM_MISMATCH, "channel: rank %d opened it otherwise than rank %d", c->peer,
                    g->rank);
  c->by_host = n->by_host;
  if (c->by_host) {
    LAM_TRY(open_data(c, false));
    return make_slots(c, g->peer);
  }
  LAM_TRY(lam_peer_find_sent(g, c->peer, &n->slots, &memory));
  c->slots = memory;
  return LAM_OK;
}

static lam_status pull_by_host(peer_channel *c, uint64_t bytes) {
  lam_group *g = c->base.group;
  const void *host = NULL;
  lam_wire outer;
  LAM_TRY(lam_peer_refuse_capture(g));
  LAM_TRY(g->engine->channel_pull(c->data, &outer, &host));
  LAM_TRY(lam_peer_up(g, host, slot_box(c, c->moved).data, bytes));
  return g->engine->channel_release(c->data);
}

lam_status lam_peer_channel_pull(lam_channel *channel, lam_wire *out_header,
                                 const void **out_data) {
  peer_channel *c = (peer_channel *)channel;
  lam_peer *p = NULL;
  const void *data = NULL;
  lam_wire outer;
  LAM_TRY(lam_peer_begin(channel->group, &p));
  LAM_TRY(channel->group->engine->channel_pull(c->hosts, &outer, &data));
  const channel_note *n = data;
  *out_header = n->wire;
  LAM_TRY(lam_wire_verify(out_header, c->peer, c->moved, c->bytes));
  LAM_TRY(find_slots(c, n));
  LAM_TRY(c->by_host ? pull_by_host(c, out_header->bytes) : use(c, c->moved, LAM_BOX_AWAIT_FULL));
  *out_data = slot_box(c, c->moved).data;
  c->moved++;
  return LAM_OK;
}

lam_status lam_peer_channel_release(lam_channel *channel) {
  peer_channel *c = (peer_channel *)channel;
  lam_peer *p = NULL;
  LAM_TRY(lam_peer_begin(channel->group, &p));
  if (c->released == c->moved)
    return lam_fail(LAM_FAILED_PRECONDITION, "channel: release of a message that was not pulled");
  if (!c->by_host) LAM_TRY(use(c, c->released, LAM_BOX_EMPTY));
  c->released++;
  return channel->group->engine->channel_release(c->hosts);
}

const char *lam_peer_channel_path(const lam_channel *channel) {
  const peer_channel *c = (const peer_channel *)channel;
  const lam_group *g = channel->group;
  const bool known = c->decided || c->moved > 0 || g->peer->way != PEER_UNSETTLED;
  if (!known) return NULL;
  if (c->by_host || g->peer->way == PEER_HOST) return "host";
  return g->engine->is_thread(g, c->peer) ? "threads" : "ipc";
}

void lam_peer_channel_close(lam_channel *channel) {
  peer_channel *c = (peer_channel *)channel;
  const lam_engine *engine = channel->group->engine;
  engine->channel_close(c->hosts);
  if (c->data) engine->channel_close(c->data);
  free(c); /* its slots go with the group: what was pushed can still be pulled */
}
