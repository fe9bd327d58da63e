/* norm.cu: the root mean square norm, its gradients, and a sum with its norm.
 *
 * A team of threads takes a row: a part of a warp, or whole warps of a block, by the row's length;
 * each thread holds up to PIECES times eight of its elements in registers, so a row comes from
 * memory once. Floors, bf16 [8192, 8192] at 3.0 TB/s on an H100 (predicted, not measured; the goal
 * is 0.85 of that rate): rmsnorm 4 bytes an element, 90 us; add_rmsnorm 8 bytes, 179 us;
 * rmsnorm_bwd 6 bytes and 4 % for dg's partial sums, 140 us. Registers on sm_90a, four pieces of
 * bf16: rmsnorm 63, add_rmsnorm 90, rmsnorm_bwd 122: of 256 threads four, two and two blocks an SM,
 * each thread with 64 or 128 bytes on their way. Operands of 2 bytes have kernels of their own, for
 * f32 takes twice the room: there rmsnorm_bwd spills 0.5 KB.
 * Invariant: a row's result depends on that row and its length alone; dg sums rows in an order that
 * the shape fixes.
 * Leaves elements in memory to vec.cuh, the last sum for dg to columns.cuh. */
#include "kernels/cuda/columns.cuh"

/* -- a row and its team -- */

/* Pieces of eight elements that a thread keeps; AGAIN: too many, they are read once more. */
enum { AGAIN = 0, PIECES_KEPT = 4, MOST_THREADS = 512 };

typedef struct team_shape {
  int pieces;    /* 1, PIECES_KEPT or AGAIN */
  unsigned x, y; /* threads of a row; rows of a block */
} team_shape;

/* Up to 32 pieces: a power of two of a warp's threads, so that 256 threads take several rows. */
static team_shape team_of(int64_t cols) {
  const int64_t pieces = lam_cuda_cuts(cols, LAM_VEC);
  team_shape t = {1, 1, 1};
  if (pieces <= 32) {
    while (t.x < pieces) t.x *= 2;
    t.y = 256 / t.x;
    return t;
  }
  t.pieces = pieces <= 128 ? 1 : (int)PIECES_KEPT;
  if (pieces > MOST_THREADS * PIECES_KEPT) t.pieces = AGAIN;
  const int64_t threads =
      t.pieces == AGAIN ? (int64_t)MOST_THREADS : lam_cuda_cuts(pieces, t.pieces);
  t.x = (unsigned)lam_cuda_cuts(threads, 32) * 32;
  return t;
}

/* Where a thread's i-th piece of the row begins. */
LAM_DEVICE int64_t piece_at(int i) { return ((int64_t)i * blockDim.x + threadIdx.x) * LAM_VEC; }
LAM_DEVICE int piece_length(int64_t col, int64_t cols) {
  return col >= cols ? 0 : cols - col < LAM_VEC ? (int)(cols - col) : LAM_VEC;
}

/* The sums of N values over a row's team; shared: 32 floats for each value. */
template <int N>
LAM_DEVICE void team_sum(float (&v)[N], float *shared) {
  const int width = blockDim.x < 32 ? blockDim.x : 32, lane = threadIdx.x % 32;
  const int n_warps = blockDim.x / 32;
  for (int j = 0; j < N; j++)
    for (int other = width / 2; other > 0; other /= 2)
      v[j] += __shfl_xor_sync(0xffffffffu, v[j], other);
  if (n_warps <= 1) return;
  __syncthreads(); /* the last row's sums are no longer read */
  for (int j = 0; j < N; j++)
    if (lane == 0) shared[j * 32 + threadIdx.x / 32] = v[j];
  __syncthreads();
  for (int j = 0; j < N; j++)
    v[j] = lam_warp_reduce<lam_plus>(lane < n_warps ? shared[j * 32 + lane] : 0.0f);
}

LAM_DEVICE float root_of(float squares, int64_t cols, float eps) {
  return 1.0f / sqrtf(squares / (float)cols + eps);
}

/* What a thread keeps of an operand; of 2 bytes an element where it is not WORDS, so that the
 * compiler keeps no upper halves. */
template <bool WORDS>
LAM_DEVICE lam_raw ask(const lam_view &m, int64_t row, int64_t col, int n) {
  lam_raw raw = lam_vec_ask(m, row, col, n);
  if (!WORDS) raw.high = {0, 0, 0, 0};
  return raw;
}

static bool words(lam_matrix m) { return lam_cuda_bytes(m.dtype) == 4; }

/* -- y = x r g -- */

enum { PARTS = 8 };

typedef struct norm_call {
  int64_t rows, cols;
  float eps;
  int32_t n_parts; /* a sum, written to x, comes first; 0: x is there */
  bool has_residual;
  lam_view x, g, y, residual;
  lam_view parts[PARTS];
} norm_call;

/* round(sum of the parts + residual); the first part and the residual are on their way. */
LAM_DEVICE lam_vec sum_of(const norm_call &c, const lam_raw &first, const lam_raw &residual,
                          int64_t row, int64_t col, int n) {
  lam_vec v = lam_vec_of(first, c.parts[0].dtype);
  LAM_ROLLED
  for (int i = 1; i < c.n_parts; i++) v = lam_vec_plus(v, lam_vec_load(c.parts[i], row, col, n));
  if (c.has_residual) v = lam_vec_plus(v, lam_vec_of(residual, c.residual.dtype));
  return v;
}

template <int PIECES, bool WORDS, bool SUM>
__global__ void __launch_bounds__(MOST_THREADS) norm_rows(const __grid_constant__ norm_call c) {
  const int64_t row = (int64_t)blockIdx.x * blockDim.y + threadIdx.y;
  const int64_t cols = row < c.rows ? c.cols : 0;
  const int pieces = PIECES ? PIECES : (int)((cols + LAM_VEC - 1) / LAM_VEC / blockDim.x + 1);
  lam_raw x[PIECES ? PIECES : 1], residual[PIECES ? PIECES : 1];
  float squares[1] = {0};

  if (PIECES) {
    LAM_UNROLLED
    for (int i = 0; i < PIECES; i++) { /* all that the row needs, at once */
      const int64_t col = piece_at(i);
      const int n = piece_length(col, cols);
      x[i] = ask<WORDS>(SUM ? c.parts[0] : c.x, row, col, n);
      if (SUM && c.has_residual) residual[i] = ask<WORDS>(c.residual, row, col, n);
    }
  }
  LAM_UNROLLED
  for (int i = 0; i < pieces; i++) {
    const int64_t col = piece_at(i);
    const int n = piece_length(col, cols), at = PIECES ? i : 0;
    if (!PIECES) {
      x[0] = ask<WORDS>(SUM ? c.parts[0] : c.x, row, col, n);
      if (SUM && c.has_residual) residual[0] = ask<WORDS>(c.residual, row, col, n);
    }
    if (SUM) {
      const lam_vec sum = sum_of(c, x[at], residual[at], row, col, n);
      lam_vec_store(c.x, row, col, n, sum);
      x[at] = lam_raw_of(sum, c.x.dtype);
      if (!WORDS) x[at].high = {0, 0, 0, 0};
    }
    const lam_vec v = lam_vec_of(x[at], c.x.dtype);
    for (int j = 0; j < LAM_VEC; j++) squares[0] = LAM_FMA(v.at[j], v.at[j], squares[0]);
  }
  team_sum(squares, (float *)lam_cuda_shared());
  const float r = root_of(squares[0], c.cols, c.eps);
  LAM_UNROLLED
  for (int i = 0; i < pieces; i++) {
    const int64_t col = piece_at(i);
    const int n = piece_length(col, cols);
    if (n == 0) break;
    lam_vec v = lam_vec_of(PIECES ? x[PIECES ? i : 0] : lam_vec_ask(c.x, row, col, n), c.x.dtype);
    const lam_vec g = lam_vec_load(c.g, 0, col, n);
    for (int j = 0; j < LAM_VEC; j++) v.at[j] = v.at[j] * r * g.at[j];
    lam_vec_store(c.y, row, col, n, v);
  }
}

typedef void (*norm_kernel)(norm_call);

template <bool SUM>
static norm_kernel norm_kernel_of(int pieces, bool wide) {
  switch (pieces) {
    case AGAIN: return norm_rows<AGAIN, true, SUM>;
    case 1: return wide ? norm_rows<1, true, SUM> : norm_rows<1, false, SUM>;
    default: return wide ? norm_rows<PIECES_KEPT, true, SUM> : norm_rows<PIECES_KEPT, false, SUM>;
  }
}

static lam_status norm_all(const norm_call &c, bool wide, void *stream, const char *name) {
  if (c.rows <= 0 || c.cols <= 0) return LAM_OK;
  const team_shape t = team_of(c.cols);
  const norm_kernel kernel =
      c.n_parts ? norm_kernel_of<true>(t.pieces, wide) : norm_kernel_of<false>(t.pieces, wide);
  return lam_cuda_launch(kernel, dim3((unsigned)lam_cuda_cuts(c.rows, t.y)), dim3(t.x, t.y),
                         32 * sizeof(float), stream, c, name);
}

static lam_status check(const char *who, const lam_matrix *ms, int n) {
  for (int i = 0; i < n; i++)
    if (lam_matrix_here(ms[i]) && !lam_cuda_is_float(ms[i].dtype))
      return lam_fail(LAM_UNIMPLEMENTED, "cuda %s: operand %d is of dtype number %d, no float", who,
                      i, (int)ms[i].dtype);
  return LAM_OK;
}

static norm_call call_of(lam_matrix x, lam_matrix g, float eps, lam_matrix y) {
  norm_call c = {};
  c.rows = x.rows, c.cols = x.cols, c.eps = eps;
  c.x = lam_view_of(x), c.g = lam_view_of_vector(g), c.y = lam_view_of(y);
  return c;
}

extern "C" lam_status lam_cuda_rmsnorm_run(const lam_workers *w, lam_matrix x, lam_matrix g,
                                           float eps, lam_matrix y, void *stream) {
  const lam_matrix all[] = {x, g, y};
  (void)w;
  LAM_TRY(check("rmsnorm", all, 3));
  return norm_all(call_of(x, g, eps, y), words(x), stream, "rmsnorm");
}

extern "C" lam_status lam_cuda_add_rmsnorm_run(const lam_workers *w, const lam_matrix *parts, int n,
                                               lam_matrix residual, lam_matrix g, float eps,
                                               lam_matrix sum, lam_matrix y, void *stream) {
  const lam_matrix all[] = {residual, g, sum, y}, none = {};
  LAM_TRY(check("add_rmsnorm", parts, n));
  LAM_TRY(check("add_rmsnorm", all, 4));
  if (n > PARTS) {
    LAM_TRY(lam_cuda_sum_run(w, parts, n, none, residual, sum, stream));
    return lam_cuda_rmsnorm_run(w, sum, g, eps, y, stream);
  }
  norm_call c = call_of(sum, g, eps, y);
  bool wide = words(sum) || words(residual);
  for (int i = 0; i < n; i++) wide |= words(parts[i]), c.parts[i] = lam_view_of(parts[i]);
  c.n_parts = n;
  c.has_residual = lam_matrix_here(residual);
  if (c.has_residual) c.residual = lam_view_of(residual);
  return norm_all(c, wide, stream, "add_rmsnorm");
}

/* -- gradients -- */

enum { BWD_THREADS = 132 * 512 }; /* of the grid: two blocks for each SM of a large card */

typedef struct bwd_call {
  int64_t rows, cols;
  float eps;
  bool has_dx, has_dg;
  lam_view dy, x, g, dx;
  float *dg; /* [teams, cols]: of each team's rows */
} bwd_call;

/* dx = dy g r - x less */
LAM_DEVICE lam_vec dx_of(const lam_vec &dy, const lam_vec &g, float r, const lam_vec &x,
                         float less) {
  lam_vec v;
  for (int j = 0; j < LAM_VEC; j++) v.at[j] = LAM_FMA(dy.at[j] * g.at[j], r, -(x.at[j] * less));
  return v;
}

LAM_DEVICE void put_floats(float *to, int n, const lam_vec &v) {
  for (int j = 0; j < LAM_VEC; j++)
    if (j < n) to[j] = v.at[j];
}

/* A team takes rows team, team + teams, ...; what they give to dg stays in registers, or, where a
 * row does not, in the team's own row of memory. */
template <int PIECES, bool WORDS>
__global__ void __launch_bounds__(MOST_THREADS) norm_bwd(const __grid_constant__ bwd_call c) {
  const int64_t team = (int64_t)blockIdx.x * blockDim.y + threadIdx.y;
  const int64_t step = (int64_t)gridDim.x * blockDim.y;
  const int all = (int)((c.cols + LAM_VEC - 1) / LAM_VEC / blockDim.x + 1);
  const int pieces = PIECES ? PIECES : all;
  lam_raw x[PIECES ? PIECES : 1], dy[PIECES ? PIECES : 1];
  lam_vec dg[PIECES ? PIECES : 1] = {};
  float *const mine = c.dg + team * c.cols;

  for (int64_t first = (int64_t)blockIdx.x * blockDim.y; first < c.rows; first += step) {
    const int64_t row = first + threadIdx.y, cols = row < c.rows ? c.cols : 0;
    float sums[2] = {0, 0}; /* of x^2, of dy x g */
    if (PIECES) {
      LAM_UNROLLED
      for (int i = 0; i < PIECES; i++) {
        const int64_t col = piece_at(i);
        const int n = piece_length(col, cols);
        x[i] = ask<WORDS>(c.x, row, col, n);
        dy[i] = ask<WORDS>(c.dy, row, col, n);
      }
    }
    LAM_UNROLLED
    for (int i = 0; i < pieces; i++) {
      const int64_t col = piece_at(i);
      const int n = piece_length(col, cols), at = PIECES ? i : 0;
      if (!PIECES) x[0] = ask<WORDS>(c.x, row, col, n), dy[0] = ask<WORDS>(c.dy, row, col, n);
      const lam_vec a = lam_vec_of(x[at], c.x.dtype), b = lam_vec_of(dy[at], c.dy.dtype);
      const lam_vec g = lam_vec_load(c.g, 0, col, n);
      for (int j = 0; j < LAM_VEC; j++) {
        sums[0] = LAM_FMA(a.at[j], a.at[j], sums[0]);
        sums[1] = LAM_FMA(a.at[j] * b.at[j], g.at[j], sums[1]);
      }
    }
    team_sum(sums, (float *)lam_cuda_shared());
    const float r = root_of(sums[0], c.cols, c.eps);
    const float less = r * r * r * (sums[1] / (float)c.cols);
    LAM_UNROLLED
    for (int i = 0; i < pieces; i++) {
      const int64_t col = piece_at(i);
      const int n = piece_length(col, cols), at = PIECES ? i : 0;
      if (n == 0) break;
      if (!PIECES) x[0] = ask<WORDS>(c.x, row, col, n), dy[0] = ask<WORDS>(c.dy, row, col, n);
      const lam_vec a = lam_vec_of(x[at], c.x.dtype), b = lam_vec_of(dy[at], c.dy.dtype);
      if (c.has_dx)
        lam_vec_store(c.dx, row, col, n, dx_of(b, lam_vec_load(c.g, 0, col, n), r, a, less));
      if (!PIECES && c.has_dg)
        for (int j = 0; j < LAM_VEC; j++)
          dg[0].at[j] = row == team || j >= n ? 0.0f : mine[col + j];
      for (int j = 0; j < LAM_VEC; j++) dg[at].at[j] = LAM_FMA(a.at[j] * b.at[j], r, dg[at].at[j]);
      if (!PIECES && c.has_dg) put_floats(mine + col, n, dg[0]);
    }
  }
  LAM_UNROLLED
  for (int i = 0; i < PIECES && c.has_dg && team < c.rows; i++)
    put_floats(mine + piece_at(i), piece_length(piece_at(i), c.cols), dg[i]);
}

typedef void (*bwd_kernel)(bwd_call);

static bwd_kernel bwd_kernel_of(int pieces, bool wide) {
  switch (pieces) {
    case AGAIN: return norm_bwd<AGAIN, true>;
    case 1: return wide ? norm_bwd<1, true> : norm_bwd<1, false>;
    default: return wide ? norm_bwd<PIECES_KEPT, true> : norm_bwd<PIECES_KEPT, false>;
  }
}

static lam_status bwd_all(bwd_call c, bool wide, lam_matrix dg, bool accumulate, void *stream) {
  const team_shape t = team_of(c.cols);
  const int64_t blocks = lam_cuda_least(lam_cuda_cuts(c.rows, t.y), BWD_THREADS / (t.x * t.y));
  const int64_t teams = lam_cuda_least(blocks * t.y, c.rows);
  void *memory = NULL;
  if (c.has_dg)
    LAM_TRY(lam_cuda_borrow((uint64_t)(teams * c.cols) * sizeof(float), stream, &memory));
  c.dg = (float *)memory;
  const lam_matrix part = {memory, teams, c.cols, c.cols, 1, LAM_F32, false};
  lam_status status = lam_cuda_launch(bwd_kernel_of(t.pieces, wide), dim3((unsigned)blocks),
                                      dim3(t.x, t.y), 64 * sizeof(float), stream, c, "rmsnorm_bwd");
  if (status == LAM_OK && c.has_dg)
    status = lam_cuda_columns_sum(part, dg, accumulate, stream, "rmsnorm_bwd");
  if (memory) lam_cuda_give_back(memory, stream);
  return status;
}

extern "C" lam_status lam_cuda_rmsnorm_bwd_run(const lam_workers *w, lam_matrix dy, lam_matrix x,
                                               lam_matrix g, float eps, lam_matrix dx,
                                               lam_matrix dg, bool accumulate, void *stream) {
  const lam_matrix all[] = {dy, x, g, dx, dg};
  (void)w;
  LAM_TRY(check("rmsnorm_bwd", all, 5));
  bwd_call c = {};
  c.rows = x.rows, c.cols = x.cols, c.eps = eps;
  c.dy = lam_view_of(dy), c.x = lam_view_of(x), c.g = lam_view_of_vector(g);
  c.has_dx = lam_matrix_here(dx), c.has_dg = lam_matrix_here(dg);
  if (c.has_dx) c.dx = lam_view_of(dx);
  if (c.cols <= 0) return LAM_OK;
  if (c.rows <= 0)
    return c.has_dg ? lam_cuda_columns_sum(x, dg, accumulate, stream, "rmsnorm_bwd") : LAM_OK;
  return bwd_all(c, words(x) || words(dy), dg, accumulate, stream);
}
