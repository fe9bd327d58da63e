/* handles.c: the process-wide table behind group handles: open groups and nothing else.
 *
 * Invariant: a handle is made from the world's number, so it is equal on all ranks and never
 * comes twice; a closed group's handle finds nothing. Where ranks are threads of one process, a
 * handle finds the rank that the calling thread asked for with lam_group_use, else the group that
 * it opened. Finding the group that this thread found last takes no lock. Leaves the groups' lives
 * to group.c. */
#include <pthread.h>
#include <stdatomic.h>
#include <stdlib.h>

#include "plugin/comm/comm.h"

typedef struct entry {
  int64_t handle;
  uint64_t thread;
  lam_group *group;
} entry;

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static pthread_once_t once = PTHREAD_ONCE_INIT;
static entry *entries; /* these three under `lock` */
static int n_entries, room;
static _Atomic uint64_t version; /* of the table: a thread's last find is good while it stays */

static _Thread_local struct {
  uint64_t version;
  int64_t handle;
  lam_group *group;
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

lam_status lam_group_register(lam_group *g) {
  lam_status status = LAM_OK;
  pthread_once(&once, watch_forks);
  pthread_mutex_lock(&lock);
  if (n_entries == room) {
    entry *more = realloc(entries, (size_t)(room ? 2 * room : 16) * sizeof *more);
    if (more)
      entries = more, room = room ? 2 * room : 16;
    else
      status = lam_fail(LAM_RESOURCE_EXHAUSTED, "group: no memory");
  }
  if (status == LAM_OK) entries[n_entries++] = (entry){g->handle, this_thread(), g};
  atomic_fetch_add(&version, 1);
  pthread_mutex_unlock(&lock);
  return status;
}

void lam_group_unregister(const lam_group *g) {
  pthread_mutex_lock(&lock);
  for (int i = 0; i < n_entries; i++)
    if (entries[i].group == g) entries[i--] = entries[--n_entries];
  if (n_entries == 0) {
    free(entries);
    entries = NULL;
    room = 0;
  }
  atomic_fetch_add(&version, 1);
  pthread_mutex_unlock(&lock);
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
 * this thread's. */
static lam_status look_up(int64_t handle, lam_group **out) {
  int n = 0;
  lam_group *any = NULL, *ours = NULL, *wanted = NULL;
  const bool by_rank = asked.handle == handle;
  pthread_mutex_lock(&lock);
  last.version = atomic_load(&version);
  for (int i = 0; i < n_entries; i++) {
    if (entries[i].handle != handle) continue;
    n++;
    any = entries[i].group;
    if (entries[i].thread == this_thread()) ours = any;
    if (by_rank && any->rank == asked.rank) wanted = any;
  }
  pthread_mutex_unlock(&lock);
  *out = by_rank ? wanted : n == 1 ? any : ours;
  return *out ? LAM_OK : not_here(handle, n, by_rank);
}

lam_status lam_group_find(int64_t handle, lam_group **out) {
  if (last.group && last.handle == handle &&
      last.version == atomic_load_explicit(&version, memory_order_acquire)) {
    *out = last.group;
    return LAM_OK;
  }
  last.group = NULL;
  LAM_TRY(look_up(handle, out));
  last.handle = handle;
  last.group = *out;
  return LAM_OK;
}

lam_status lam_group_use(int64_t handle, int32_t rank) {
  lam_group *g;
  if (asked.handle != handle || asked.rank != rank) {
    asked.handle = handle;
    asked.rank = rank;
    last.group = NULL;
  }
  return lam_group_find(handle, &g);
}
