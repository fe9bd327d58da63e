/* shard.h: the uneven rule, once: `total` elements in `unit`s, U = total / unit; rank r of p gets U
 * / p units, and one more if r < U % p. lam_shard, operators, engines and shape inference all take
 * shares from here.
 * Invariant: shares are contiguous, in rank order, and cover total exactly. Leaves refusing bad
 * numbers to the callers. */
#ifndef LAMELLA_PLUGIN_CORE_SHARD_H
#define LAMELLA_PLUGIN_CORE_SHARD_H

#include <stdbool.h>
#include <stdint.h>

/* total >= 0, a multiple of unit; unit 0 = 1. */
static inline bool lam_share_fits(int64_t total, int64_t unit) {
  return total >= 0 && unit >= 0 && (unit <= 1 || total % unit == 0);
}

/* Where rank's share begins; rank == size gives total. total must fit unit. */
int64_t lam_share_begin(int64_t total, int64_t unit, int rank, int size);

/* first[0..size]: the begins of all shares and total. */
void lam_share(int64_t total, int64_t unit, int size, int64_t *first);

#endif
