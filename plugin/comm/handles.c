/* handles.c: the process-wide table behind group handles, and who still uses the groups in it.
 *
 * Invariant: a handle is made from the world's number, so it is equal on all ranks and never
 * comes twice; a closed group's handle finds nothing. A group that a call has found stays until the
 * call leaves it, whoever destroys it meanwhile: what is destroyed is found no more, and ends with
 * the last call. Where ranks are threads of one process, a handle finds the rank that the calling
 * thread asked for with lam_group_use, else the group that it opened. Finding the group that this
 * thread found last takes no lock. Leaves the groups' lives to group.c. */
#include <pthread.h>
#include <stdatomic.h>
#include <stdlib.h>

#include "plugin/comm/comm.h"

/* Never freed, but used again for another group: a thread's last find may look at its uses at any
 * time. */
typedef struct lam_entry {
  struct lam_entry *next;
  _Atomic uint32_t uses; /* until it is destroyed one, and one for each call; 0: free */
  lam_group *group;      /* while there are uses */
  bool is_open;          /* to be found; this and the rest under `lock` */
  int64_t handle;
  uint64_t thread;
} lam_entry;

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static pthread_once_t once = PTHREAD_ONCE_INIT;
static lam_entry *entries;       /* under `lock` */
static _Atomic uint64_t version; /* of the table: a thread's last find is good while it stays */

static _Thread_local struct {
  uint64_t version;
  int64_t handle;
  lam_entry *entry;
} last;

static _Thread_local struct { /* whose calls this thread makes; handle 0: nothing was asked for */
  int64_t handle;
  int32_t rank;
} asked;

uint64_t lam_mix(uint64_t a, uint64_t b) {
  uint64_t z = a + 0x9e3779b97f4a7c15u + b * 0xbf58476d1ce4e5b9u;
  z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
  z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
  z ^= z >> 31;
  return z ? z : 1;
}

int64_t lam_group_handle_make(uint64_t of_world, uint64_t which) {
  return (int64_t)(lam_mix(of_world, which) >> 11) | 1; /* survives a double, and JSON */
}

static uint64_t this_thread(void) {
  static _Atomic uint64_t n_threads;
  static _Thread_local uint64_t number;
  if (!number) number = atomic_fetch_add(&n_threads, 1) + 1;
  return number;
}

/* A child that is forked finds the table whole and free, whatever other threads were at. */
static void hold(void) { pthread_mutex_lock(&lock); }
static void let_go(void) { pthread_mutex_unlock(&lock); }
static void watch_forks(void) { pthread_atfork(hold, let_go, let_go); }

/* ---- Uses ------------------------------------------------------------------------------------ */

static void leave(lam_entry *e) {
  lam_group *g = e->group;
  if (atomic_fetch_sub(&e->uses, 1) == 1) lam_group_finish(g);
}

/* Unless it has ended. */
static bool enter(lam_entry *e) {
  uint32_t n = atomic_load_explicit(&e->uses, memory_order_relaxed);
  while (n && !atomic_compare_exchange_weak(&e->uses, &n, n + 1)) continue;
  return n > 0;
}

void lam_group_hold(lam_group *g) { atomic_fetch_add(&g->entry->uses, 1); }

void lam_group_leave(lam_group *g) { leave(g->entry); }

/* ---- The table ------------------------------------------------------------------------------- */

static lam_entry *free_entry(void) {
  lam_entry *e = entries;
  while (e && atomic_load(&e->uses)) e = e->next;
  if (e) return e;
  e = calloc(1, sizeof *e);
  if (!e) return NULL;
  e->next = entries;
  return entries = e;
}

lam_status lam_group_register(lam_group *g) {
  pthread_once(&once, watch_forks);
  pthread_mutex_lock(&lock);
  lam_entry *e = g->entry = free_entry();
  if (e) {
    e->group = g;
    e->is_open = true;
    e->handle = g->handle;
    e->thread = this_thread();
    atomic_store(&e->uses, 1);
  }
  atomic_fetch_add(&version, 1);
  pthread_mutex_unlock(&lock);
  return e ? LAM_OK : lam_fail(LAM_RESOURCE_EXHAUSTED, "group: no memory");
}

bool lam_group_unregister(lam_group *g) {
  pthread_mutex_lock(&lock);
  g->entry->is_open = false;
  atomic_fetch_add(&version, 1);
  pthread_mutex_unlock(&lock);
  return atomic_load(&g->entry->uses) > 1;
}

static lam_status not_here(int64_t handle, int n, bool by_rank) {
  if (n == 0)
    return lam_fail(LAM_NOT_FOUND, "group: no open group has the handle %lld", (long long)handle);
  if (by_rank)
    return lam_fail(LAM_NOT_FOUND, "group: rank %d of group %lld is not in this process",
                    asked.rank, (long long)handle);
  return lam_fail(
      LAM_FAILED_PRECONDITION,
      "group: %d ranks of group %lld are threads of this process, and this thread is none", n,
      (long long)handle);
}

/* The rank that was asked for; else the only group of that handle, or of several (ranks as threads)
 * this thread's. What is open has a use, so it can be entered. */
static lam_status look_up(int64_t handle, lam_entry **out) {
  int n = 0;
  lam_entry *any = NULL, *ours = NULL, *wanted = NULL;
  const bool by_rank = asked.handle == handle;
  pthread_mutex_lock(&lock);
  last.version = atomic_load(&version);
  for (lam_entry *e = entries; e; e = e->next) {
    if (!e->is_open || e->handle != handle) continue;
    n++;
    any = e;
    if (e->thread == this_thread()) ours = e;
    if (by_rank && e->group->rank == asked.rank) wanted = e;
  }
  *out = by_rank ? wanted : n == 1 ? any : ours;
  if (*out) (void)enter(*out);
  pthread_mutex_unlock(&lock);
  return *out ? LAM_OK : not_here(handle, n, by_rank);
}

/* Entered first and judged then: who closes it counts its uses after the table has changed. */
static bool enter_last(int64_t handle) {
  if (!last.entry || last.handle != handle || last.version != atomic_load(&version) ||
      !enter(last.entry))
    return false;
  if (last.version == atomic_load(&version)) return true;
  leave(last.entry);
  return false;
}

lam_status lam_group_enter(int64_t handle, lam_group **out) {
  if (!enter_last(handle)) {
    last.entry = NULL;
    LAM_TRY(look_up(handle, &last.entry));
    last.handle = handle;
  }
  *out = last.entry->group;
  return LAM_OK;
}

lam_status lam_group_use(int64_t handle, int32_t rank) {
  lam_group *g;
  if (asked.handle != handle || asked.rank != rank) {
    asked.handle = handle;
    asked.rank = rank;
    last.entry = NULL;
  }
  LAM_TRY(lam_group_enter(handle, &g));
  lam_group_leave(g);
  return LAM_OK;
}
