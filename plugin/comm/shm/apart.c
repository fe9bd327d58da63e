/* apart.c: a rank that takes turns with a peer on one processor, while another is allowed to it,
 * moves there.
 *
 * A scheduler likes to wake a thread beside its waker, and leaves two threads there that give the
 * processor to each other: each has just run, so neither is worth moving. Then every message
 * costs two switches, and the next products run one after the other. Nobody but the two can know
 * that they wait for one another.
 *
 * Invariant: a thread may run on the same processors after a move as before it. Without a
 * processor for each rank, or where each rank has its own, nobody moves.
 * Leaves when to look to wait.c: when a yield came back late, because somebody else ran. */
#include <sched.h>

#include "plugin/comm/shm/shm.h"

#define REST_NS 500000 /* between two moves: each costs two system calls and a cold cache */

static _Atomic int32_t *place_of_rank(const lam_world *w, int rank) {
  return &shm_arena_control(w->peers[rank].arena)->processor;
}

void lam_shm_show_place(const lam_world *w) {
  atomic_store_explicit(place_of_rank(w, w->rank), sched_getcpu() + 1, memory_order_relaxed);
}

/* Takes out of `set` where ranks were seen last; false: no peer was seen on `here`. */
static bool leave_out_ranks(const lam_world *w, int here, cpu_set_t *set) {
  bool shared = false;
  for (int r = 0; r < w->size; r++) {
    const int cpu = atomic_load_explicit(place_of_rank(w, r), memory_order_relaxed) - 1;
    shared |= r != w->rank && cpu == here;
    if (cpu >= 0 && cpu < CPU_SETSIZE) CPU_CLR((unsigned)cpu, set);
  }
  return shared;
}

void lam_shm_move_apart(lam_world *w) {
  const int64_t now = lam_clock_ns();
  const int here = sched_getcpu();
  cpu_set_t all, others;
  if (w->spins == 0 || here < 0 || now - w->moved_at < REST_NS) return;
  if (sched_getaffinity(0, sizeof all, &all) != 0) return;
  others = all;
  if (!leave_out_ranks(w, here, &others) || CPU_COUNT(&others) == 0) return;
  if (sched_setaffinity(0, sizeof others, &others) != 0) return;
  sched_setaffinity(0, sizeof all, &all);
  lam_shm_show_place(w);
  w->moved_at = now;
  w->moves++;
}
