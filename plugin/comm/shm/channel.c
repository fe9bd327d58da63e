/* channel.c: channels of pipelines: a ring whose slots the sender's stage writes and the
 * receiver's stage reads in place.
 * Invariant: a slot handed out by acquire is the sender's until push; one handed out by pull the
 * receiver's until release. Opening waits for nobody, so ranks may open theirs in any order.
 * Leaves the ring itself to ring.c. */
#include <stdlib.h>

#include "plugin/comm/shm/shm.h"

typedef struct shm_channel {
  lam_channel base;
  shm_ring ring;
  bool acquired;
} shm_channel;

static shm_channel *own(lam_channel *c) { return (shm_channel *)c; }

lam_status lam_shm_channel_open(lam_group *g, int peer, bool sender, uint64_t key, int depth,
                                uint64_t bytes, lam_channel **out) {
  shm_group *s = shm_group_of(g);
  LAM_TRY(lam_shm_world_use(s->world));
  shm_channel *c = calloc(1, sizeof *c);
  if (!c) return lam_fail(LAM_RESOURCE_EXHAUSTED, "channel: no memory");
  c->ring = (shm_ring){.s = s, .peer = peer, .depth = (uint32_t)depth, .slot_bytes = bytes};
  c->ring.key = shm_key(s, SHM_KEY_CHANNEL, key, sender ? g->rank : peer, sender ? peer : g->rank);
  const lam_status status = sender ? lam_shm_ring_create(&c->ring, 0) : LAM_OK;
  if (status != LAM_OK) {
    free(c);
    return status;
  }
  *out = &c->base;
  return LAM_OK;
}

lam_status lam_shm_channel_acquire(lam_channel *channel, void **out_slot) {
  shm_channel *c = own(channel);
  LAM_TRY(lam_shm_world_use(c->ring.s->world));
  LAM_TRY(lam_shm_ring_credit(&c->ring));
  c->acquired = true;
  *out_slot = shm_ring_at(&c->ring, c->ring.moved) + 1;
  return LAM_OK;
}

lam_status lam_shm_channel_push(lam_channel *channel, const lam_wire *header) {
  shm_channel *c = own(channel);
  LAM_TRY(lam_shm_world_use(c->ring.s->world));
  if (!c->acquired)
    return lam_fail(LAM_FAILED_PRECONDITION, "channel: push without a slot acquired");
  if (header->bytes > c->ring.slot_bytes)
    return lam_fail(LAM_INVALID_ARGUMENT, "channel: a message of %llu bytes, a slot holds %llu",
                    (unsigned long long)header->bytes, (unsigned long long)c->ring.slot_bytes);
  lam_wire *wire = &shm_ring_at(&c->ring, c->ring.moved)->wire;
  *wire = *header;
  lam_wire_seal(wire, c->ring.moved);
  c->acquired = false;
  shm_flag_raise(c->ring.pushed, ++c->ring.moved);
  return LAM_OK;
}

lam_status lam_shm_channel_pull(lam_channel *channel, lam_wire *out_header, const void **out_data) {
  shm_ring *r = &own(channel)->ring;
  LAM_TRY(lam_shm_world_use(r->s->world));
  LAM_TRY(lam_shm_ring_ready(r));
  const shm_message *m = shm_ring_at(r, r->moved);
  *out_header = m->wire;
  LAM_TRY(lam_wire_verify(out_header, r->peer, r->moved, r->slot_bytes));
  *out_data = m + 1;
  r->moved++;
  return LAM_OK;
}

lam_status lam_shm_channel_release(lam_channel *channel) {
  shm_ring *r = &own(channel)->ring;
  LAM_TRY(lam_shm_world_use(r->s->world));
  if (r->released == r->moved)
    return lam_fail(LAM_FAILED_PRECONDITION, "channel: release of a message that was not pulled");
  shm_flag_raise(r->freed, ++r->released);
  return LAM_OK;
}

void lam_shm_channel_close(lam_channel *channel) {
  if (lam_shm_world_is_ours(own(channel)->ring.s->world)) lam_shm_ring_close(&own(channel)->ring);
  free(channel);
}
