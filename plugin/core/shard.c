/* shard.c: which part of a whole dimension a rank owns.
 * Invariant: lam_share_begin is the only place that knows the uneven rule.
 * Leaves cutting tensors to whoever holds them. */
#include "plugin/core/shard.h"

#include "plugin/core/struct.h"

int64_t lam_share_begin(int64_t total, int64_t unit, int rank, int size) {
  if (size == 1) return rank ? total : 0; /* alone, it is all one share: two divisions less */
  const int64_t u = unit ? unit : 1, units = total / u, extra = units % size;
  return u * (units / size * rank + (rank < extra ? rank : extra));
}

void lam_share(int64_t total, int64_t unit, int size, int64_t *first) {
  for (int r = 0; r <= size; r++) first[r] = lam_share_begin(total, unit, r, size);
}

static lam_status check_shard(int64_t total, int64_t unit, int32_t gated, int32_t rank,
                              int32_t size) {
  if (size < 1)
    return lam_fail(LAM_INVALID_ARGUMENT, "lam_shard: size is %d, expected at least 1", size);
  if (rank < 0 || rank >= size)
    return lam_fail(LAM_INVALID_ARGUMENT, "lam_shard: rank is %d, expected 0 to %d", rank,
                    size - 1);
  if (gated != 0 && gated != 1)
    return lam_fail(LAM_INVALID_ARGUMENT, "lam_shard: gated is %d, expected 0 or 1", gated);
  if (total < 0 || total > INT64_MAX / 2 || unit < 0)
    return lam_fail(
        LAM_INVALID_ARGUMENT,
        "lam_shard: total is %lld and unit %lld, expected neither negative nor over 2^62",
        (long long)total, (long long)unit);
  if (!lam_share_fits(total, unit))
    return lam_fail(LAM_INVALID_ARGUMENT,
                    "lam_shard: total is %lld, expected a multiple of unit %lld", (long long)total,
                    (long long)unit);
  return LAM_OK;
}

lam_status lam_shard(int64_t total, int64_t unit, int32_t gated, int32_t rank, int32_t size,
                     lam_shard_info *out) {
  LAM_TRY(lam_struct_check("lam_shard", "lam_shard_info", out, sizeof *out));
  *out = (lam_shard_info){.struct_size = out->struct_size};
  LAM_TRY(check_shard(total, unit, gated, rank, size));

  const int64_t begin = lam_share_begin(total, unit, rank, size),
                end = lam_share_begin(total, unit, rank + 1, size);
  out->n_pieces = gated ? 2 : 1;
  out->pieces[0] = (lam_shard_piece){begin, end};
  if (gated)
    out->pieces[1] = (lam_shard_piece){total + begin, total + end}; /* [gate | up] of 2 total */
  return LAM_OK;
}
