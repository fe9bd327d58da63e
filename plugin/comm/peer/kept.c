/* kept.c: device memory that other ranks may read: it outlives the group of the rank that made it
 * until all others have left theirs, or died.
 *
 * A rank that leaves first does not wait: what it leaves behind is looked after whenever a group of
 * this process is destroyed, or the process ends.
 * Invariant: memory is freed only when no other rank has it open, nor a kernel that reads it.
 * Leaves who has left to the engine. */
#include <pthread.h>
#include <stdlib.h>
#include <unistd.h>

#include "plugin/comm/peer/peer.h"

typedef struct leftover {
  struct leftover *next;
  pid_t process;
  const lam_engine *engine;
  lam_hold *hold;
  const lam_device *device;
  int32_t device_id;
  peer_memory *memory;
} leftover;

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static leftover *leftovers;

static void lock_all(void) { pthread_mutex_lock(&lock); }
static void unlock_all(void) { pthread_mutex_unlock(&lock); }
static void watch_forks(void) { pthread_atfork(lock_all, unlock_all, unlock_all); }

lam_status lam_peer_memory_new(lam_peer *p, uint64_t bytes, void **out) {
  peer_memory *m = calloc(1, sizeof *m);
  *out = NULL;
  if (!m) return lam_fail(LAM_RESOURCE_EXHAUSTED, "no memory");
  const lam_status status = lam_peer_alloc(p->device, bytes, p->among_processes, &m->data);
  if (status != LAM_OK) {
    free(m);
    return status;
  }
  m->next = p->memory;
  p->memory = m;
  *out = m->data;
  return LAM_OK;
}

static void free_all(const lam_device *d, int32_t device_id, peer_memory *m) {
  while (m) {
    peer_memory *next = m->next;
    d->peer->free(device_id, m->data);
    free(m);
    m = next;
  }
}

void lam_peer_memory_drop(lam_peer *p, const void *data) {
  peer_memory **at = &p->memory;
  while (*at && (*at)->data != data) at = &(*at)->next;
  peer_memory *m = *at;
  if (!m) return;
  *at = m->next;
  m->next = NULL;
  free_all(p->device, p->device_id, m);
}

/* Without memory to note it: lost until the process ends. */
static void leave_behind(lam_group *g) {
  static pthread_once_t once = PTHREAD_ONCE_INIT;
  lam_peer *p = g->peer;
  leftover *l = calloc(1, sizeof *l);
  if (!l) return;
  *l = (leftover){.process = p->process,
                  .engine = g->engine,
                  .device = p->device,
                  .device_id = p->device_id,
                  .memory = p->memory};
  if (g->engine->hold(g, &l->hold) != LAM_OK) {
    free(l);
    return;
  }
  pthread_once(&once, watch_forks);
  lock_all();
  l->next = leftovers;
  leftovers = l;
  unlock_all();
}

void lam_peer_memory_leave(lam_group *g) {
  lam_peer *p = g->peer;
  if (g->size > 1 && p->memory && g->engine->hold)
    leave_behind(g);
  else
    free_all(p->device, p->device_id, p->memory);
  p->memory = NULL;
}

static leftover *take_one(void) {
  lock_all();
  leftover **at = &leftovers;
  while (*at && !((*at)->process == getpid() && (*at)->engine->all_left((*at)->hold)))
    at = &(*at)->next;
  leftover *l = *at;
  if (l) *at = l->next;
  unlock_all();
  return l;
}

void lam_peer_sweep(void) {
  for (leftover *l; (l = take_one()) != NULL; free(l)) {
    free_all(l->device, l->device_id, l->memory);
    l->engine->let_go(l->hold);
  }
}
