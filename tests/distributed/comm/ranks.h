/* ranks.h: what the tests of groups under bad luck share: opening a group with short deadlines,
 * and one operation to try it. */
#ifndef LAMELLA_TESTS_DISTRIBUTED_COMM_RANKS_H_
#define LAMELLA_TESTS_DISTRIBUTED_COMM_RANKS_H_

#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "plugin/comm/group.h"
#include "tests/check.h"
#include "tests/distributed/await.h"

static inline lam_group_desc rank_desc(const lam_group_id *id, int rank, int size,
                                       uint32_t deadline_ms) {
  lam_group_desc d = LAM_GROUP_DESC_INIT;
  d.rank = rank;
  d.size = size;
  d.deadline_ms = d.first_deadline_ms = deadline_ms;
  d.id = *id;
  return d;
}

static inline lam_status rank_open(const lam_group_id *id, int rank, int size, uint32_t deadline_ms,
                                   lam_group **out) {
  const lam_group_desc d = rank_desc(id, rank, size, deadline_ms);
  return lam_group_create(NULL, &d, out);
}

static inline lam_status sum_ones(lam_group *g) {
  float x = 1;
  const lam_comm_op op = {.op = LAM_OP_all_reduce, .dtype = LAM_F32, .ndim = 1, .dims = {1}};
  LAM_TRY(lam_group_all_reduce(g, &op, &x, &x, 1, LAM_F32));
  CHECK_EQ(x, g->size);
  return LAM_OK;
}

static inline int64_t now_ms(void) {
  struct timespec t;
  clock_gettime(CLOCK_MONOTONIC, &t);
  return (int64_t)t.tv_sec * 1000 + t.tv_nsec / 1000000;
}

/* When the first rank to ask did so: the first that has waited too long ends the wait of all.
 * *since is 0 before, and seen by all. */
static inline int64_t since_first(_Atomic int64_t *since) {
  int64_t nobody = 0;
  const int64_t now = now_ms();
  return atomic_compare_exchange_strong(since, &nobody, now) ? now : nobody;
}

#endif
