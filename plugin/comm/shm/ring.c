/* ring.c: one directed stream of messages between two ranks: slots in the sender's arena, which
 * the receiver reads in place.
 *
 * Invariant: slot i % depth is written only when message i - depth was given back; messages come
 * in the order they were pushed. The region outlives its sender's leaving until the receiver has
 * left too, so what was pushed can be pulled.
 * Leaves what a slot holds to transfer.c (host calls) and channel.c (pipelines). */
#include "plugin/comm/shm/shm.h"

static uint64_t round_up(uint64_t n, uint64_t to) { return (n + to - 1) / to * to; }

static void lay_out(shm_ring *r) {
  r->pushed = (shm_flag *)(r->head + 1);
  r->freed = r->pushed + 1;
  r->stride = sizeof(shm_message) + round_up(r->slot_bytes, SHM_LINE);
}

lam_status lam_shm_ring_create(shm_ring *r, uint64_t extra_bytes) {
  lam_world *w = r->s->world;
  const uint64_t flags = sizeof(shm_head) + 2 * sizeof(shm_flag);
  const uint64_t slots = r->depth * (sizeof(shm_message) + round_up(r->slot_bytes, SHM_LINE));
  r->sender = true;
  LAM_TRY(lam_shm_region_create(w, r->key, flags + slots + extra_bytes, flags, 1, &r->head));
  r->head->depth = r->depth;
  r->head->slot_bytes = r->slot_bytes;
  lay_out(r);
  const lam_status status = lam_shm_region_publish(w, r->head);
  if (status == LAM_OK) return LAM_OK;
  r->head->users = 0;
  lam_shm_region_leave(w, r->head);
  r->head = NULL;
  return status;
}

static uint32_t patience(const shm_ring *r) {
  return r->moved ? r->s->g->deadline_ms : r->s->g->first_deadline_ms;
}

lam_status lam_shm_ring_attach(shm_ring *r) {
  if (r->head) return LAM_OK;
  const shm_wait w = {.peer = r->peer, .deadline_ms = patience(r), .between_two = true};
  LAM_TRY(lam_shm_region_await(r->s, &w, r->key, &r->head));
  if (r->head->depth != r->depth || r->head->slot_bytes != r->slot_bytes) {
    const lam_status status =
        lam_fail(LAM_MISMATCH,
                 "channel: rank %d opened it with %u slots of %llu bytes, rank %d with %u of %llu",
                 r->peer, r->head->depth, (unsigned long long)r->head->slot_bytes, r->s->g->rank,
                 r->depth, (unsigned long long)r->slot_bytes);
    shm_region_leave_peer(r->head);
    r->head = NULL;
    return status;
  }
  lay_out(r);
  return LAM_OK;
}

lam_status lam_shm_ring_credit(shm_ring *r) {
  const shm_wait w = {.flag = r->freed,
                      .value = r->moved + 1 - r->depth,
                      .peer = r->peer,
                      .deadline_ms = patience(r),
                      .gone = &r->head->users_left,
                      .between_two = true};
  return shm_wait_for(r->s, &w);
}

lam_status lam_shm_ring_ready(shm_ring *r) {
  LAM_TRY(lam_shm_ring_attach(r));
  const shm_wait w = {.flag = r->pushed,
                      .value = r->moved + 1,
                      .peer = r->peer,
                      .deadline_ms = patience(r),
                      .gone = &r->head->owner_left,
                      .between_two = true};
  return shm_wait_for(r->s, &w);
}

void lam_shm_ring_close(shm_ring *r) {
  if (r->sender) {
    lam_shm_region_leave(r->s->world, r->head);
  } else {
    /* Its sender may have made it without our ever having looked. */
    shm_head *theirs =
        r->head ? r->head : lam_shm_region_find(r->s->world, r->s->world_rank[r->peer], r->key);
    if (theirs) shm_region_leave_peer(theirs);
  }
  r->head = NULL;
}
