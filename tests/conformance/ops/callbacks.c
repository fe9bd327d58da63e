/* callbacks.c: a host's own communication between threads, as plain as can be: everybody lays down
 * a pointer, waits for the others, reads theirs, waits again.
 * Invariant: nobody waits longer than PATIENCE_S: a rank that stays away fails the others' calls.
 * Leaves everything but three collectives out: the operators over arrays need no more. */
#include <errno.h>
#include <pthread.h>
#include <string.h>
#include <time.h>

#include "tests/conformance/ops/problem.h"

enum { MOST = 64, PATIENCE_S = 20 };

static struct { /* one meeting at a time */
  pthread_mutex_t lock;
  pthread_cond_t all_here;
  int size, here;
  uint64_t round;
  const void *laid[MOST];
} table = {.lock = PTHREAD_MUTEX_INITIALIZER, .all_here = PTHREAD_COND_INITIALIZER};

typedef struct seat {
  int rank, size;
} seat;
static seat seats[MOST];

static lam_status meet(const seat *me, const void *mine) {
  struct timespec until;
  int late = 0;
  clock_gettime(CLOCK_REALTIME, &until);
  until.tv_sec += PATIENCE_S;
  pthread_mutex_lock(&table.lock);
  const uint64_t round = table.round;
  if (mine) table.laid[me->rank] = mine;
  if (++table.here == me->size) {
    table.here = 0;
    table.round++;
    pthread_cond_broadcast(&table.all_here);
  }
  while (table.round == round && late != ETIMEDOUT)
    late = pthread_cond_timedwait(&table.all_here, &table.lock, &until);
  pthread_mutex_unlock(&table.lock);
  return late == ETIMEDOUT ? LAM_DEADLINE_EXCEEDED : LAM_OK;
}

/* -- sums, in f32 and in rank order -- */

static float number_at(const void *data, uint64_t i, DLDataType type) {
  if (type.bits == 32) return ((const float *)data)[i];
  const uint32_t bits = (uint32_t)((const uint16_t *)data)[i] << 16;
  float v;
  memcpy(&v, &bits, 4);
  return v;
}

static void put_number(void *data, uint64_t i, DLDataType type, float v) {
  uint32_t bits;
  memcpy(&bits, &v, 4);
  if (type.bits == 32)
    ((float *)data)[i] = v;
  else
    ((uint16_t *)data)[i] = (uint16_t)((bits + 0x7fff + (bits >> 16 & 1)) >> 16);
}

static float sum_at(const seat *me, uint64_t i, DLDataType type) {
  float sum = number_at(table.laid[0], i, type);
  for (int r = 1; r < me->size; r++) sum += number_at(table.laid[r], i, type);
  return sum;
}

static lam_status all_reduce(void *user, void *data, uint64_t n, DLDataType type) {
  const seat *me = user;
  static _Thread_local float sums[1 << 16];
  if (type.code == kDLInt || n > sizeof sums / sizeof *sums) return LAM_UNIMPLEMENTED;
  const lam_status status = meet(me, data);
  if (status != LAM_OK) return status;
  for (uint64_t i = 0; i < n; i++) sums[i] = sum_at(me, i, type);
  if (meet(me, NULL) != LAM_OK) return LAM_DEADLINE_EXCEEDED;
  for (uint64_t i = 0; i < n; i++) put_number(data, i, type, sums[i]);
  return LAM_OK;
}

static lam_status all_gather(void *user, const void *mine, void *all, const uint64_t *counts) {
  const seat *me = user;
  char *to = all;
  const lam_status status = meet(me, mine);
  if (status != LAM_OK) return status;
  for (int r = 0; r < me->size; to += counts[r++])
    if (counts[r]) memmove(to, table.laid[r], counts[r]);
  return meet(me, NULL);
}

static lam_status reduce_scatter(void *user, const void *all, void *mine, const uint64_t *counts,
                                 DLDataType type) {
  const seat *me = user;
  const uint64_t bytes = type.bits / 8;
  uint64_t first = 0;
  for (int r = 0; r < me->rank; r++) first += counts[r] / bytes;
  const lam_status status = meet(me, all);
  if (status != LAM_OK) return status;
  for (uint64_t i = 0; i < counts[me->rank] / bytes; i++)
    put_number(mine, i, type, sum_at(me, first + i, type));
  return meet(me, NULL);
}

static lam_status send(void *user, int32_t peer, uint32_t channel, const void *data,
                       uint64_t bytes) {
  (void)user, (void)peer, (void)channel, (void)data, (void)bytes;
  return LAM_UNIMPLEMENTED;
}
static lam_status recv(void *user, int32_t peer, uint32_t channel, void *data, uint64_t bytes) {
  (void)user, (void)peer, (void)channel, (void)data, (void)bytes;
  return LAM_UNIMPLEMENTED;
}

lam_status open_callbacks(const ranks *all, lam_context *ctx, int rank, lam_group **out_group) {
  lam_group_desc desc = LAM_GROUP_DESC_INIT;
  lam_callbacks callbacks = LAM_CALLBACKS_INIT;
  seats[rank] = (seat){rank, all->p};
  desc.rank = rank;
  desc.size = all->p;
  callbacks.user = &seats[rank];
  callbacks.send = send;
  callbacks.recv = recv;
  callbacks.all_reduce = all_reduce;
  callbacks.all_gather = all_gather;
  callbacks.reduce_scatter = reduce_scatter;
  return lam_group_from_callbacks(ctx, &desc, &callbacks, out_group);
}
