/* wait.c: waiting for a peer: pause for about 2 us, then offer the processor, then sleep in slices.
 *
 * Invariant: a wait ends, whatever the peer does: its flag comes, or its death, its leaving,
 * anyone's poison, the host's should_stop or the deadline is seen within one slice (5 ms).
 * Leaves poisoning the world with the error to group.c. */
#include <errno.h>
#include <limits.h>
#include <linux/futex.h>
#include <sched.h>
#include <stdio.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#include "plugin/comm/shm/shm.h"

#define YIELD_NS 50000 /* what waking a sleeper on an idle core costs: no use to sleep for less */
#define SPIN_NS 2000
#define TAKEN_NS 1500 /* a yield that nobody takes is back in 0.2 to 0.8 us */
#define SLICE_NS 1000000 /* the first; the next are longer */
#define LONG_SLICE_NS 5000000

int lam_shm_spins_measure(void) {
  enum { TRIES = 256 };
  int64_t best = INT64_MAX;
  for (int i = 0; i < 5; i++) {
    const int64_t start = lam_clock_ns();
    for (int j = 0; j < TRIES; j++) shm_pause();
    const int64_t took = lam_clock_ns() - start;
    if (took < best) best = took;
  }
  return (int)(SPIN_NS * TRIES / (best > TRIES ? best : TRIES));
}

void lam_shm_flag_wake(shm_flag *f) {
  atomic_store_explicit(&f->sleepers, 0, memory_order_relaxed);
  syscall(SYS_futex, &f->value, FUTEX_WAKE, INT_MAX, NULL, NULL, 0);
}

/* Until the flag changes, a wake or the end of the slice; not private: the ranks may be
 * processes. */
static void flag_sleep(shm_flag *f, uint32_t value, int64_t slice_ns) {
  atomic_store(&f->sleepers, 1);
  const uint32_t seen = atomic_load(&f->value);
  if ((int32_t)(seen - value) >= 0) return;
  const struct timespec slice = {.tv_nsec = slice_ns};
  syscall(SYS_futex, &f->value, FUTEX_WAIT, seen, &slice, NULL, 0);
}

/* "rank 1 (pid 77, stopped)"; a subgroup's rank is followed by its number in the world. */
static const char *peer_text(const shm_group *s, int peer, char text[96]) {
  const int of_world = s->world_rank[peer], pid = s->world->peers[of_world].pid;
  int n = snprintf(text, 96, "rank %d", peer);
  if (of_world != peer) n += snprintf(text + n, 96 - (size_t)n, " (%d of the world)", of_world);
  if (s->world->peers[of_world].life < 0)
    snprintf(text + n, 96 - (size_t)n, " (a thread of this process)");
  else if (pid)
    snprintf(text + n, 96 - (size_t)n, " (pid %d, %s)", pid,
             lam_shm_peer_state(s->world, of_world));
  return text;
}

static bool has_left(const shm_group *s, int peer) {
  return s->boards[peer] &&
         atomic_load_explicit(&s->boards[peer]->head.owner_left, memory_order_acquire);
}

/* A peer that waits for us in a collective will not send: it would have to come back first. */
static bool waits_elsewhere(const shm_group *s, const shm_wait *w) {
  return w->between_two &&
         (int32_t)(atomic_load_explicit(&s->boards[w->peer]->step.value, memory_order_acquire) -
                   s->step) > 0;
}

static lam_status check_lives(const shm_group *s) {
  char text[96];
  for (int r = 0; r < s->g->size; r++)
    if (r != s->g->rank && !has_left(s, r) && lam_shm_peer_died(s->world, s->world_rank[r]))
      return lam_fail(LAM_PEER_DEAD, "rank %d of %d: %s died", s->g->rank, s->g->size,
                      peer_text(s, r, text));
  return LAM_OK;
}

lam_status lam_shm_life(const lam_group *g) {
  const shm_group *s = shm_group_of(g);
  LAM_TRY(lam_shm_world_check(s->world));
  return check_lives(s);
}

static lam_status check_members(const shm_group *s, const shm_wait *w) {
  char text[96];
  LAM_TRY(check_lives(s));
  if (has_left(s, w->peer) || (w->gone && atomic_load_explicit(w->gone, memory_order_acquire)))
    return lam_fail(LAM_PEER_DEAD, "rank %d of %d: %s has left", s->g->rank, s->g->size,
                    peer_text(s, w->peer, text));
  if (waits_elsewhere(s, w))
    return lam_fail(LAM_MISMATCH, "rank %d of %d waits for a transfer with %s, which called %s",
                    s->g->rank, s->g->size, peer_text(s, w->peer, text),
                    lam_comm_op_name(s->boards[w->peer]->slots[s->step % SHM_SLOTS].op.op));
  return LAM_OK;
}

static lam_status look_around(const shm_group *s, const shm_wait *w, int64_t waited_ns) {
  char text[96];
  LAM_TRY(lam_shm_world_check(s->world));
  LAM_TRY(check_members(s, w));
  if (lam_context_should_stop(s->g->ctx))
    return lam_fail(LAM_INTERRUPTED, "rank %d of %d: the host asked to stop", s->g->rank,
                    s->g->size);
  if (waited_ns > (int64_t)w->deadline_ms * 1000000)
    return lam_fail(LAM_PEER_STALLED, "rank %d of %d: %s did not come within %u ms", s->g->rank,
                    s->g->size, peer_text(s, w->peer, text), w->deadline_ms);
  return LAM_OK;
}

static lam_status sleep_until(shm_group *s, const shm_wait *w, int64_t start) {
  s->g->sleeps++;
  for (int64_t slice = SLICE_NS; !shm_flag_reached(w->flag, w->value); slice = LONG_SLICE_NS) {
    const lam_status status = look_around(s, w, lam_clock_ns() - start);
    if (shm_flag_reached(w->flag, w->value)) break; /* perhaps the peer's last act before it left */
    LAM_TRY(status);
    flag_sleep(w->flag, w->value, slice);
  }
  return LAM_OK;
}

/* A yield that comes back late was taken by somebody, perhaps by the peer. */
static bool yield_until(shm_group *s, const shm_wait *w, int64_t start) {
  lam_shm_show_place(s->world);
  for (int64_t before = start, after; before - start < YIELD_NS; before = after) {
    if (shm_flag_reached(w->flag, w->value)) return true;
    sched_yield();
    after = lam_clock_ns();
    if (after - before > TAKEN_NS) lam_shm_move_apart(s->world);
  }
  return false;
}

lam_status lam_shm_wait_slow(shm_group *s, const shm_wait *w) {
  s->g->waits++;
  for (int i = s->world->spins; i > 0; i--) {
    if (shm_flag_reached(w->flag, w->value)) return LAM_OK;
    shm_pause();
  }
  const int64_t start = lam_clock_ns();
  return yield_until(s, w, start) ? LAM_OK : sleep_until(s, w, start);
}

lam_status lam_shm_region_await(shm_group *s, const shm_wait *w, uint64_t key, shm_head **out) {
  const int of_world = s->world_rank[w->peer];
  shm_flag *changes = &shm_arena_control(s->world->peers[of_world].arena)->changes;
  const int64_t start = lam_clock_ns();
  for (;;) {
    const uint32_t seen = atomic_load_explicit(&changes->value, memory_order_acquire);
    *out = lam_shm_region_find(s->world, of_world, key);
    if (*out) return LAM_OK;
    const int64_t left = w->deadline_ms - (lam_clock_ns() - start) / 1000000;
    shm_wait next = *w;
    next.flag = changes;
    next.value = seen + 1;
    next.deadline_ms = left > 0 ? (uint32_t)left : 0;
    LAM_TRY(shm_wait_for(s, &next));
  }
}
