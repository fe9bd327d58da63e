/* mark.cu: NaN where an index was outside of its vocabulary: what the CPU's host is told at once, the
 * card's reads in the result.
 *
 * A warp looks at one index and writes nothing, mostly: 8192 tokens take a launch's own time.
 * Invariant: rows whose index is inside, or ignored, are not touched. */
#include "kernels/cuda/indices.cuh"

enum { WARPS = 8 };

typedef struct marks {
  lam_indices ids, values; /* values: where y has not a row for each token */
  int64_t n_tokens, total, ignored, cols;
  lam_view y;
  bool ignores, rows;
} marks;

static __global__ void __launch_bounds__(32 * WARPS) mark(marks m) {
  const int64_t token = (int64_t)blockIdx.x * WARPS + threadIdx.x / 32;
  const int lane = threadIdx.x % 32;
  const float nan = lam_f32_of_bits(0x7fc00000u);
  if (token >= m.n_tokens) return;
  const int64_t id = lam_index_at(m.ids, token);
  if ((uint64_t)id < (uint64_t)m.total || (m.ignores && id == m.ignored)) return;
  if (!m.rows) {
    if (lane == 0) *lam_value_at(m.values, token) = nan;
    return;
  }
  for (int64_t col = lane; col < m.cols; col += 32)
    lam_element_set(lam_view_at(m.y, token, col), m.y.dtype, nan);
}

extern "C" lam_status lam_cuda_mark_outside_run(const lam_workers *w, lam_matrix ids, int64_t total,
                                                const int64_t *ignored, lam_matrix y,
                                                void *stream) {
  const int64_t n = ids.rows * ids.cols;
  const bool rows = y.rows == n;
  (void)w;
  if (!lam_cuda_is_float(y.dtype) || (!rows && y.dtype != LAM_F32))
    return lam_fail(LAM_UNIMPLEMENTED, "cuda mark_outside: rows of dtype number %d, no float",
                    (int)y.dtype);
  const marks m = {
      lam_indices_of(ids), lam_indices_of(y), n,   total, ignored ? *ignored : 0, y.cols,
      lam_view_of(y),      ignored != NULL,   rows};
  const dim3 grid((unsigned)lam_cuda_cuts(n, WARPS));
  return lam_cuda_launch(mark, grid, dim3(32 * WARPS), 0, stream, m, "mark_outside");
}
