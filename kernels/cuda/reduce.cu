/* reduce.cu: sums over parts and over rows.
 *
 * Invariant: the order of every sum is fixed by the shape: parts in their order, then bias, then
 * residual; rows in slabs, each summed by itself first, as columns.cuh says. So all ranks, and any
 * card, get the same bits.
 * Leaves elements in memory to vec.cuh, the cutting to kernel.cuh. */
#include "kernels/cuda/columns.cuh"

static lam_status refuse(const char *who, const char *what, lam_dtype dtype) {
  return lam_fail(LAM_UNIMPLEMENTED, "cuda %s: %s is of dtype number %d, these kernels have floats",
                  who, what, (int)dtype);
}

/* -- parts: each is read once, y written once: 8 bytes an element for two parts and a residual of
 * bf16 -- */

enum { PARTS = 32 }; /* that a kernel takes at once: its arguments end at 4 KB */

struct sum_piece {
  enum { BLOCKS = 4 };
  int32_t n_parts;
  bool has_bias, has_residual;
  lam_view y, bias, residual;
  lam_view parts[PARTS];

  __device__ void operator()(int64_t row, int64_t col, int n) const {
    lam_raw next = lam_vec_ask(parts[0], row, col, n), last;
    if (has_residual) last = lam_vec_ask(residual, row, col, n);
    lam_vec v = {{0}};
    for (int i = 0; i < n_parts; i++) { /* while one part is added, the next is on its way */
      const lam_raw raw = next;
      if (i + 1 < n_parts) next = lam_vec_ask(parts[i + 1], row, col, n);
      const lam_vec part = lam_vec_of(raw, parts[i].dtype);
      v = i == 0 ? part : lam_vec_plus(v, part);
    }
    if (has_bias) v = lam_vec_plus(v, lam_vec_load(bias, row, col, n));
    if (has_residual) v = lam_vec_plus(v, lam_vec_of(last, residual.dtype));
    lam_vec_store(y, row, col, n, v);
  }
};

static lam_status sum_some(const lam_matrix *parts, int n, lam_matrix bias, lam_matrix residual,
                           lam_matrix y, void *stream) {
  sum_piece piece = {};
  piece.n_parts = n;
  for (int i = 0; i < n; i++) piece.parts[i] = lam_view_of(parts[i]);
  piece.y = lam_view_of(y);
  piece.has_bias = lam_matrix_here(bias);
  piece.has_residual = lam_matrix_here(residual);
  if (piece.has_bias) piece.bias = lam_view_of_vector(bias);
  if (piece.has_residual) piece.residual = lam_view_of(residual);
  return lam_cuda_each_piece(y.rows, y.cols, piece, stream, "sum");
}

/* More parts than a kernel takes: what the first ones sum to, as f32, becomes the first part of the
 * rest. */
static lam_status sum_many(const lam_matrix *parts, int n, lam_matrix bias, lam_matrix residual,
                           lam_matrix y, lam_matrix so_far, void *stream) {
  const lam_matrix none = {};
  lam_matrix some[PARTS];
  LAM_TRY(sum_some(parts, PARTS, none, none, so_far, stream));
  for (int at = PARTS; at < n; at += PARTS - 1) {
    const int more = (int)lam_cuda_least(PARTS - 1, n - at);
    const bool last = at + more == n;
    some[0] = so_far;
    memcpy(some + 1, parts + at, sizeof(lam_matrix) * (size_t)more);
    LAM_TRY(sum_some(some, more + 1, last ? bias : none, last ? residual : none, last ? y : so_far,
                     stream));
  }
  return LAM_OK;
}

extern "C" lam_status lam_cuda_sum_run(const lam_workers *w, const lam_matrix *parts, int n,
                                       lam_matrix bias, lam_matrix residual, lam_matrix y,
                                       void *stream) {
  (void)w;
  if (n < 1) return lam_fail(LAM_INVALID_ARGUMENT, "cuda sum: %d parts, at least 1 is needed", n);
  for (int i = 0; i < n; i++)
    if (!lam_cuda_is_float(parts[i].dtype)) return refuse("sum", "a part", parts[i].dtype);
  if (!lam_cuda_is_float(y.dtype)) return refuse("sum", "y", y.dtype);
  if (!lam_cuda_is_float(bias.dtype)) return refuse("sum", "the bias", bias.dtype);
  if (!lam_cuda_is_float(residual.dtype)) return refuse("sum", "the residual", residual.dtype);
  if (n <= PARTS) return sum_some(parts, n, bias, residual, y, stream);
  if (y.rows <= 0 || y.cols <= 0) return LAM_OK;
  void *memory;
  LAM_TRY(lam_cuda_borrow((uint64_t)(y.rows * y.cols) * sizeof(float), stream, &memory));
  const lam_matrix so_far = {memory, y.rows, y.cols, y.cols, 1, LAM_F32, false};
  const lam_status status = sum_many(parts, n, bias, residual, y, so_far, stream);
  lam_cuda_give_back(memory, stream);
  return status;
}

/* -- rows -- */

extern "C" lam_status lam_cuda_column_sum_run(const lam_workers *w, lam_matrix dy, lam_matrix db,
                                              bool accumulate, void *stream) {
  (void)w;
  if (!lam_cuda_is_float(dy.dtype)) return refuse("column_sum", "dy", dy.dtype);
  if (!lam_cuda_is_float(db.dtype)) return refuse("column_sum", "db", db.dtype);
  return lam_cuda_columns_sum(dy, db, accumulate, stream, "column_sum");
}
