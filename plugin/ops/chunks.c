/* chunks.c: how many chunks of rows a product that is summed over the group is cut into: the second
 * level of tiling.
 *
 * Invariant: the choice follows from attribute, rows, columns and the group's size, which all ranks
 * have alike, never from one rank's share of the features. Leaves the chunks' work to sum.c. */
#include "plugin/ops/common.h"

#define LEAST_ROWS 128               /* below, a product loses speed: 64 rows 13 %, 32 rows 26 % */
#define MOST_PART_BYTES (16ll << 20) /* of one chunk's partial sums, and two are under way */

lam_chunks lam_chunks_asked(const lam_op_call *call, int64_t rows, int64_t otherwise) {
  const int64_t asked = call->attr.chunks > 0 ? call->attr.chunks : otherwise;
  const int64_t n = asked < rows ? asked : rows;
  return (lam_chunks){rows, n > 1 ? (int)n : 1};
}

lam_chunks lam_chunks_pick(const lam_op_call *call, int64_t rows, int64_t cols) {
  const int64_t most_rows = MOST_PART_BYTES / (cols > 0 ? 4 * cols : 4);
  const int64_t rows_each = most_rows > LEAST_ROWS ? most_rows : LEAST_ROWS;
  return lam_chunks_asked(call, rows, (rows + rows_each - 1) / rows_each);
}
