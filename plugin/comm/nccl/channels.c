/* channels.c: channels of pipelines over NCCL: slots in device memory that stages write and read in
 * place.
 *
 * Headers, and how far each host is, go over a channel of the host's; the messages over the edge.
 * Invariant: a slot is written again only after what was in it is sent, or read: the streams wait for
 * that, the hosts do not.
 * Leaves the order of an edge's messages to edges.c. */
#include <stdlib.h>

#include "plugin/comm/nccl/nccl.h"

typedef struct nccl_channel {
  lam_channel base;
  lam_channel *hosts;
  nccl_edge *edge;
  uint64_t key, bytes, stride;
  int depth, first_hold; /* of the edge's; -1: none was left, and what comes waits for all */
  uint32_t moved, released;
  uint64_t *numbers; /* of the send from each slot; the sender's */
  char *slots;
  void *header; /* of the slot that is acquired */
} nccl_channel;

static nccl_channel *channel_of(lam_channel *c) { return (nccl_channel *)c; }
static int slot_of(const nccl_channel *c, uint32_t i) { return (int)(i % (uint32_t)c->depth); }
static char *slot(const nccl_channel *c, uint32_t i) {
  return c->slots + c->stride * (uint64_t)slot_of(c, i);
}

/* Tells when a slot's message is read. */
static int hold_of(const nccl_channel *c, uint32_t i) {
  return c->first_hold < 0 ? -1 : c->first_hold + slot_of(c, i);
}

static uint64_t slots_bytes(const nccl_channel *c) { return c->stride * (uint64_t)c->depth; }

static void channel_free(const lam_group *g, nccl_channel *c) {
  const lam_device *d = g->nccl->device;
  if (c->slots) d->memory->free(lam_context_workers(g->ctx), c->slots, slots_bytes(c));
  free(c->numbers);
  free(c);
}

static lam_status open_slots(lam_group *g, nccl_channel *c) {
  void *slots = NULL;
  c->stride = (c->bytes + 255) / 256 * 256 + 256;
  c->numbers = calloc((size_t)c->depth, sizeof *c->numbers);
  if (!c->numbers) return lam_fail(LAM_RESOURCE_EXHAUSTED, "channel: no memory");
  LAM_TRY(g->device->memory->alloc(lam_context_workers(g->ctx), slots_bytes(c), &slots));
  c->slots = slots;
  return LAM_OK;
}

static lam_status open_hosts(lam_group *g, nccl_channel *c, int peer, bool sender) {
  LAM_TRY(g->engine->channel_open(g, peer, sender, c->key, c->depth, sizeof(lam_wire), &c->hosts));
  c->hosts->group = g;
  c->hosts->way = g->engine;
  return LAM_OK;
}

lam_status lam_nccl_channel_open(lam_group *g, int peer, bool sender, uint64_t key, int depth,
                                 uint64_t bytes, lam_channel **out) {
  nccl_edge *e = NULL;
  LAM_TRY(lam_nccl_edge_of(g, peer, sender ? NCCL_TO : NCCL_FROM, &e));
  nccl_channel *c = calloc(1, sizeof *c);
  if (!c) return lam_fail(LAM_RESOURCE_EXHAUSTED, "channel: no memory");
  *c = (nccl_channel){.edge = e, .depth = depth, .bytes = bytes, .key = lam_mix(key, 4) | 4};
  lam_status status = open_slots(g, c);
  if (status == LAM_OK) status = open_hosts(g, c, peer, sender);
  if (status != LAM_OK) {
    channel_free(g, c);
    return status;
  }
  c->first_hold = lam_nccl_edge_holds(e, depth);
  *out = &c->base;
  return LAM_OK;
}

lam_status lam_nccl_channel_acquire(lam_channel *channel, void **out_slot) {
  nccl_channel *c = channel_of(channel);
  lam_group *g = channel->group;
  LAM_TRY(lam_nccl_prepare(g));
  LAM_TRY(g->engine->channel_acquire(c->hosts, &c->header));
  if (c->moved >= (uint32_t)c->depth)
    LAM_TRY(lam_nccl_join(g->nccl, &c->edge->link, c->numbers[slot_of(c, c->moved)], g->stream));
  *out_slot = slot(c, c->moved);
  return LAM_OK;
}

static lam_status check_push(const nccl_channel *c, const lam_wire *header) {
  if (!c->header) return lam_fail(LAM_FAILED_PRECONDITION, "channel: push without a slot acquired");
  if (header->bytes > c->bytes)
    return lam_fail(LAM_INVALID_ARGUMENT, "channel: a message of %llu bytes, a slot holds %llu",
                    (unsigned long long)header->bytes, (unsigned long long)c->bytes);
  return LAM_OK;
}

static lam_status send_slot(lam_group *g, nccl_channel *c, uint64_t bytes) {
  const lam_link_after after = {g->stream, -1};
  const lam_link_op op = {.what = LAM_LINK_SEND,
                          .peer = c->edge->peer < g->rank ? 0 : 1,
                          .x = slot(c, c->moved),
                          .n = (int64_t)bytes,
                          .dtype = LAM_U8};
  return lam_nccl_start(g->nccl, &c->edge->link, &op, 1, after, &c->numbers[slot_of(c, c->moved)]);
}

lam_status lam_nccl_channel_push(lam_channel *channel, const lam_wire *header) {
  nccl_channel *c = channel_of(channel);
  lam_group *g = channel->group;
  const lam_wire outer = {.bytes = sizeof *header};
  const nccl_note note = {.key = c->key, .bytes = header->bytes};
  LAM_TRY(check_push(c, header));
  LAM_TRY(lam_nccl_prepare(g));
  lam_wire *wire = c->header;
  *wire = *header;
  lam_wire_seal(wire, c->moved);
  c->header = NULL;
  if (note.bytes > 0) LAM_TRY(send_slot(g, c, note.bytes));
  c->moved++;
  LAM_TRY(lam_nccl_tell(g, c->edge, &note));
  return g->engine->channel_push(c->hosts, &outer);
}

lam_status lam_nccl_channel_pull(lam_channel *channel, lam_wire *out_header,
                                 const void **out_data) {
  nccl_channel *c = channel_of(channel);
  lam_group *g = channel->group;
  const void *header = NULL;
  nccl_arrival a;
  lam_wire outer;
  LAM_TRY(lam_nccl_prepare(g));
  LAM_TRY(g->engine->channel_pull(c->hosts, &outer, &header));
  *out_header = *(const lam_wire *)header;
  LAM_TRY(lam_wire_verify(out_header, c->edge->peer, c->moved, c->bytes));
  LAM_TRY(lam_nccl_await(g, c->edge, c->key, &a));
  LAM_TRY(lam_nccl_land(g, c->edge, &a, slot(c, c->moved), hold_of(c, c->moved)));
  *out_data = slot(c, c->moved++);
  return LAM_OK;
}

lam_status lam_nccl_channel_release(lam_channel *channel) {
  nccl_channel *c = channel_of(channel);
  lam_group *g = channel->group;
  LAM_TRY(lam_nccl_prepare(g));
  if (c->released == c->moved)
    return lam_fail(LAM_FAILED_PRECONDITION, "channel: release of a message that was not pulled");
  if (hold_of(c, c->released) >= 0)
    LAM_TRY(lam_nccl_hold(g->nccl, &c->edge->link, hold_of(c, c->released), g->stream));
  c->released++;
  return g->engine->channel_release(c->hosts);
}

void lam_nccl_channel_close(lam_channel *channel) {
  nccl_channel *c = channel_of(channel);
  channel->group->engine->channel_close(c->hosts);
  channel_free(channel->group, c);
}
