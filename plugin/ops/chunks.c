/* chunks.c: how many chunks of rows a product that is summed over the group is cut into: the second
 * level of tiling.
 *
 * Invariant: the choice follows from attribute and rows alone, which all ranks have alike, never
 * from one rank's share of the features. Leaves the chunks' work to sum.c. */
#include "plugin/ops/common.h"

/* ffn, H = 4096, one core, thread time against one chunk: chunks of 256 rows cost nothing at 512
 * rows and save 4 % at 2048, as the hidden part stays in cache; chunks of 128 rows cost 1 % with
 * packed weights and 5 % with plain ones, of 64 rows 3 % and 16 %. */
#define ROWS_THAT_PAY 256
#define MOST_CHUNKS 65536

lam_chunks lam_chunks_asked(const lam_op_call *call, int64_t rows, int64_t otherwise) {
  const int64_t asked = call->attr.chunks > 0 ? call->attr.chunks : otherwise;
  const int64_t most = rows < MOST_CHUNKS ? rows : MOST_CHUNKS;
  const int64_t n = asked < most ? asked : most;
  return (lam_chunks){rows, n > 1 ? (int)n : 1};
}

/* Where work is queued, a chunk smaller than the whole only leaves processors idle. */
lam_chunks lam_chunks_for_cache(const lam_op_call *call, int64_t rows) {
  return lam_chunks_asked(call, rows, call->device->order ? 1 : rows / ROWS_THAT_PAY);
}

lam_chunks lam_chunks_for_sum(const lam_op_call *call, int64_t rows) {
  return lam_op_peers(call) ? lam_chunks_for_cache(call, rows) : lam_chunks_asked(call, rows, 1);
}
