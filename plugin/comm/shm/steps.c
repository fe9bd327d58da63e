/* steps.c: the one protocol under all collectives of the shm engine.
 *
 * Every rank of a group does the same steps in the same order. In step i it writes slot i % 4 of
 * its own board, then raises its counter to i + 1; it reads the peers' slots of step i once
 * their counters say so. An operation of n pieces takes n steps, or n + 1 where a piece is
 * folded (reduced by shares) between filling and draining:
 *     two phases     fill(k) publish | wait | drain(k - 1)
 *     three phases   fill(k) | wait | drain(k - 2) fold(k - 1) | publish
 * Invariant: a rank that has published step i reads no slot of a step before i - 1 again, and
 * one that writes step i has seen all peers' counters at i - 1 at least. So i - 4 is read by
 * nobody: four slots, no barrier at an operation's end. The operation is announced in the slot
 * of its first step and compared after the first wait, before any data is used.
 * Leaves what the pieces are to all_reduce.c and gather.c. */
#include <string.h>

#include "plugin/comm/shm/shm.h"

static shm_slot *slot_of(const shm_group *s, int rank, uint32_t step) {
  return &s->boards[rank]->slots[step % SHM_SLOTS];
}

lam_status lam_shm_begin(lam_group *g, const lam_comm_op *op) {
  shm_group *s = shm_group_of(g);
  LAM_TRY(lam_shm_world_use(s->world));
  LAM_TRY(lam_shm_world_check(s->world));
  s->deadline_ms = op->sequence <= 1 ? g->first_deadline_ms : g->deadline_ms;
  s->announced = true;
  slot_of(s, g->rank, s->step)->op = *op;
  return LAM_OK;
}

const lam_comm_op *lam_shm_announced(const shm_group *s) {
  return &slot_of(s, s->g->rank, s->step)->op;
}

static void publish(shm_group *s) {
  s->announced = false;
  shm_flag_raise(&s->boards[s->g->rank]->step, ++s->step);
}

static lam_status wait_all(shm_group *s, uint32_t step) {
  for (int r = 0; r < s->g->size; r++) {
    if (r == s->g->rank) continue;
    const shm_wait w = {
        .flag = &s->boards[r]->step, .value = step, .peer = r, .deadline_ms = s->deadline_ms};
    LAM_TRY(shm_wait_for(s, &w));
  }
  return LAM_OK;
}

lam_status lam_shm_compare(shm_group *s, uint32_t step) {
  const lam_comm_op *ops[SHM_RANKS];
  LAM_TRY(wait_all(s, step + 1));
  for (int r = 0; r < s->g->size; r++) ops[r] = &slot_of(s, r, step)->op;
  return lam_comm_compare(ops, s->g->size);
}

void lam_shm_step_publish(shm_group *s) { publish(s); }

static lam_status run_two_phases(shm_pass *p) {
  shm_group *s = p->s;
  for (int64_t k = 0; k <= p->n; k++) {
    if (k < p->n) {
      p->fill(p, k, shm_slot_data(p, s->g->rank, k));
      publish(s);
    }
    if (k == 0) continue;
    LAM_TRY(k == 1 ? lam_shm_compare(s, p->first) : wait_all(s, p->first + (uint32_t)k));
    p->drain(p, k - 1);
  }
  return LAM_OK;
}

static lam_status run_three_phases(shm_pass *p) {
  shm_group *s = p->s;
  for (int64_t k = 0; k <= p->n + 1; k++) {
    if (k < p->n) p->fill(p, k, shm_slot_data(p, s->g->rank, k));
    if (k > 0) LAM_TRY(k == 1 ? lam_shm_compare(s, p->first) : wait_all(s, p->first + (uint32_t)k));
    if (k > 1) p->drain(p, k - 2);
    if (k > 0 && k <= p->n) p->fold(p, k - 1);
    if (k <= p->n) publish(s);
  }
  return LAM_OK;
}

lam_status lam_shm_pass_run(shm_pass *p) {
  p->first = p->s->step;
  p->used = (p->used + SHM_LINE - 1) / SHM_LINE * SHM_LINE;
  p->places = p->used >= SHM_SPREAD_BYTES ? (uint32_t)(SHM_SLOT_BYTES / p->used) : 1;
  return p->fold ? run_three_phases(p) : run_two_phases(p);
}
