/* peer_sum.cu: sums over ranks that read each other's memory, with bias, residual and the norm of
 * the sum in the same kernel.
 *
 *   one-shot  every rank reads all ranks' operands and sums what its y holds of them
 *   two-shot  rank r sums share r of each step, rounds it once and lays it out for its peers: each
 *             reads 2 operands' worth in place of p, and waits once more
 * A big operand goes through the lanes in steps; while one lane waits, the others move data.
 * Invariant: every element is summed in rank order, in f32, and rounded once, by whoever sums it, so
 * all ranks hold the same bits.
 * Leaves order and waits to peer.cuh. */
#include "kernels/cuda/peer.cuh"

/* Steps of two shots pay from here on (to be measured): bytes of the operand. */
enum { TWO_SHOT_FROM = 256 << 10 };

typedef struct sum_call {
  peer_ranks ranks;
  lam_view x, bias, residual, y, gain, normed; /* data NULL: absent */
  int64_t rows, cols, vecs;                    /* of x; vecs: a row's pieces of eight */
  int64_t y_row, y_rows, y_col, y_cols;        /* what y holds of it */
  int64_t step;                                /* pieces that a lane takes at a time */
  float eps;
  bool two_shot;
} sum_call;

/* What a lane does in one step: `n` pieces from `first` on. */
typedef struct sum_step {
  int64_t first, n;
  uint32_t epoch;
} sum_step;

LAM_DEVICE int piece_cols(const sum_call &c, int64_t col) {
  return c.cols - col < LAM_VEC ? (int)(c.cols - col) : LAM_VEC;
}

/* Pieces of `dtype` in a lane, one after another. */
LAM_DEVICE lam_view lane_view(char *data, int dtype) {
  const lam_view v = {data, 0, 1, dtype, true};
  return v;
}

/* A share begins with a row where rows are normed. */
LAM_DEVICE int64_t share_begin(const sum_call &c, const sum_step &s, int rank) {
  const int64_t unit = c.gain.data ? c.vecs : 1;
  return s.n / unit * rank / c.ranks.size * unit;
}

LAM_DEVICE void fill(const sum_call &c, const sum_step &s) {
  const lam_view own =
      lane_view(peer_half(c.ranks, c.ranks.rank, s.epoch, false), c.x.dtype);
  for (int64_t i = threadIdx.x; i < s.n; i += blockDim.x) {
    const int64_t row = (s.first + i) / c.vecs, col = (s.first + i) % c.vecs * LAM_VEC;
    lam_vec_store(own, 0, i * LAM_VEC, LAM_VEC, lam_vec_load(c.x, row, col, piece_cols(c, col)));
  }
}

/* Piece i of the step, whole: summed over the ranks, with bias and residual; not yet rounded. */
LAM_DEVICE lam_vec sum_piece(const sum_call &c, const sum_step &s, int64_t i) {
  const int64_t row = (s.first + i) / c.vecs, col = (s.first + i) % c.vecs * LAM_VEC;
  const int n = piece_cols(c, col);
  lam_vec v = lam_vec_load(lane_view(peer_half(c.ranks, 0, s.epoch, false), c.x.dtype), 0,
                           i * LAM_VEC, LAM_VEC);
  for (int r = 1; r < c.ranks.size; r++)
    v = lam_vec_plus(v, lam_vec_load(lane_view(peer_half(c.ranks, r, s.epoch, false), c.x.dtype), 0,
                                     i * LAM_VEC, LAM_VEC));
  if (c.bias.data) v = lam_vec_plus(v, lam_vec_load(c.bias, 0, col, n));
  if (c.residual.data) v = lam_vec_plus(v, lam_vec_load(c.residual, row - c.y_row, col, n));
  return v;
}

/* Into y, as far as y holds it. */
LAM_DEVICE void put_piece(const sum_call &c, int64_t row, int64_t col, const lam_vec &v) {
  const int64_t end = c.y_col + c.y_cols;
  const int n = piece_cols(c, col);
  if (row < c.y_row || row >= c.y_row + c.y_rows || col + n <= c.y_col || col >= end) return;
  if (col >= c.y_col && col + n <= end) {
    lam_vec_store(c.y, row - c.y_row, col - c.y_col, n, v);
    return;
  }
  LAM_UNROLLED
  for (int i = 0; i < LAM_VEC; i++)
    if (i < n && col + i >= c.y_col && col + i < end)
      lam_element_set(lam_view_at(c.y, row - c.y_row, col + i - c.y_col), c.y.dtype, v.at[i]);
}

LAM_DEVICE bool wants_row(const sum_call &c, int64_t row) {
  return row >= c.y_row && row < c.y_row + c.y_rows;
}

/* Piece i as it goes out: summed here, or as rank `owner` rounded it. */
LAM_DEVICE lam_vec take_piece(const sum_call &c, const sum_step &s, int64_t i, int owner) {
  if (owner < 0) return sum_piece(c, s, i);
  return lam_vec_load(lane_view(peer_half(c.ranks, owner, s.epoch, true), c.y.dtype), 0, i * LAM_VEC,
                      LAM_VEC);
}

/* One row from piece `begin` on, and the norm of what was rounded. All threads come here. */
LAM_DEVICE void put_normed_row(const sum_call &c, const sum_step &s, int64_t begin, int owner,
                               float *shared) {
  const int64_t row = (s.first + begin) / c.vecs;
  float squares = 0;
  for (int64_t i = threadIdx.x; i < c.vecs; i += blockDim.x) {
    const int n = piece_cols(c, i * LAM_VEC);
    lam_vec v = take_piece(c, s, begin + i, owner);
    lam_vec_store(c.y, row, i * LAM_VEC, n, v);
    v = lam_vec_of(lam_raw_of(v, c.y.dtype), c.y.dtype);
    for (int j = 0; j < LAM_VEC; j++) /* past n there are zeros */
      squares = LAM_FMA(v.at[j], v.at[j], squares);
  }
  squares = lam_block_reduce<lam_plus>(squares, shared);
  const float r = 1.0f / sqrtf(squares / (float)c.cols + c.eps);
  for (int64_t i = threadIdx.x; i < c.vecs; i += blockDim.x) { /* each thread its own pieces */
    const int n = piece_cols(c, i * LAM_VEC);
    lam_vec v = lam_vec_load(c.y, row, i * LAM_VEC, n);
    const lam_vec g = lam_vec_load(c.gain, 0, i * LAM_VEC, n);
    for (int j = 0; j < LAM_VEC; j++) v.at[j] = v.at[j] * r * g.at[j];
    lam_vec_store(c.normed, row, i * LAM_VEC, n, v);
  }
}

LAM_DEVICE void put_pieces(const sum_call &c, const sum_step &s, int64_t begin, int64_t end,
                           int owner, float *shared) {
  if (c.gain.data) {
    for (int64_t i = begin; i < end; i += c.vecs) put_normed_row(c, s, i, owner, shared);
    return;
  }
  for (int64_t i = begin + threadIdx.x; i < end; i += blockDim.x) {
    const int64_t row = (s.first + i) / c.vecs, col = (s.first + i) % c.vecs * LAM_VEC;
    if (wants_row(c, row)) put_piece(c, row, col, take_piece(c, s, i, owner));
  }
}

/* This rank's share, rounded, where the peers read it. */
LAM_DEVICE void make_share(const sum_call &c, const sum_step &s) {
  const int me = c.ranks.rank;
  const lam_view made = lane_view(peer_half(c.ranks, me, s.epoch, true), c.y.dtype);
  const int64_t end = me + 1 < c.ranks.size ? share_begin(c, s, me + 1) : s.n;
  for (int64_t i = share_begin(c, s, me) + threadIdx.x; i < end; i += blockDim.x)
    lam_vec_store(made, 0, i * LAM_VEC, LAM_VEC, sum_piece(c, s, i));
}

static __global__ void __launch_bounds__(PEER_THREADS) sum_lanes(const __grid_constant__ sum_call c) {
  __shared__ int over;
  __shared__ float shared[32];
  const int64_t all = c.rows * c.vecs, stride = c.step * gridDim.x;
  sum_step s = {(int64_t)blockIdx.x * c.step, 0, *peer_epoch(c.ranks)};
  if (threadIdx.x == 0) over = 0;
  for (; s.first < all; s.first += stride, s.epoch += 2) {
    s.n = all - s.first < c.step ? all - s.first : c.step;
    fill(c, s);
    if (!peer_meet(c.ranks, s.epoch + 1, &over)) return;
    if (!c.two_shot) {
      put_pieces(c, s, 0, s.n, -1, shared);
      continue;
    }
    make_share(c, s);
    if (!peer_meet(c.ranks, s.epoch + 2, &over)) return;
    for (int r = 0; r < c.ranks.size; r++)
      put_pieces(c, s, share_begin(c, s, r), r + 1 < c.ranks.size ? share_begin(c, s, r + 1) : s.n,
                 r, shared);
  }
  peer_done(c.ranks, s.epoch);
}

/* -- the call -- */

static lam_view view_or_none(lam_matrix m) {
  const lam_view none = {};
  return lam_matrix_here(m) ? lam_view_of(m) : none;
}

/* y's pieces begin where x's do: it is wide where it would be with the columns before it. */
static lam_view view_of_part(lam_matrix y, int64_t y_col) {
  lam_view v = lam_view_of(y);
  y.data = (void *)((uintptr_t)y.data - (uintptr_t)(y_col * lam_cuda_bytes(y.dtype)));
  v.wide = lam_view_of(y).wide;
  return v;
}

static lam_status check(const lam_matrix *ms, int n) {
  for (int i = 0; i < n; i++)
    if (lam_matrix_here(ms[i]) && !lam_cuda_is_float(ms[i].dtype))
      return lam_fail(LAM_UNIMPLEMENTED,
                      "cuda: sums over ranks are of f32, bf16 and f16; dtype number %d is not",
                      (int)ms[i].dtype);
  return LAM_OK;
}

static int64_t most_pieces(lam_dtype t) { return LAM_LANE_HALF / (LAM_VEC * lam_cuda_bytes(t)); }

extern "C" bool lam_cuda_peer_norms(const lam_peers *p, int64_t cols, lam_dtype t) {
  (void)p;
  return lam_cuda_cuts(cols, LAM_VEC) <= most_pieces(t);
}

/* All lanes at work, each with a warp's worth at least, and whole rows where they are normed. */
static int64_t step_of(const sum_call &c, int n_lanes, int64_t most) {
  const int64_t unit = c.gain.data ? c.vecs : 32, all = c.rows * c.vecs;
  const int64_t fair = lam_cuda_cuts(lam_cuda_cuts(all, n_lanes), unit) * unit;
  return lam_cuda_least(fair, most / unit * unit);
}

extern "C" lam_status lam_cuda_peer_sum_run(const lam_peers *p, const lam_peer_sum *s,
                                            void *stream) {
  const lam_matrix operands[] = {s->x, s->bias, s->residual, s->y, s->gain, s->normed};
  const lam_dtype wider = lam_matrix_here(s->y) && lam_cuda_bytes(s->y.dtype) >
                                                       lam_cuda_bytes(s->x.dtype)
                              ? s->y.dtype
                              : s->x.dtype;
  sum_call c = {};
  LAM_TRY(check(operands, 6));
  if (s->x.rows <= 0 || s->x.cols <= 0) return LAM_OK;
  c.ranks = peer_ranks_of(p);
  c.x = lam_view_of(s->x);
  c.rows = s->x.rows, c.cols = s->x.cols, c.vecs = lam_cuda_cuts(c.cols, LAM_VEC);
  if (lam_matrix_here(s->y)) c.y = view_of_part(s->y, s->y_col);
  c.y_row = s->y_row, c.y_rows = s->y.rows, c.y_col = s->y_col, c.y_cols = s->y.cols;
  if (lam_matrix_here(s->bias)) c.bias = lam_view_of_vector(s->bias);
  c.residual = view_or_none(s->residual);
  if (lam_matrix_here(s->gain)) c.gain = lam_view_of_vector(s->gain);
  c.normed = view_or_none(s->normed);
  c.eps = s->eps;
  c.two_shot = s->whole && c.rows * c.cols * lam_cuda_bytes(s->x.dtype) >= TWO_SHOT_FROM;
  c.step = step_of(c, p->n_lanes, most_pieces(wider));
  const int64_t lanes = lam_cuda_least(lam_cuda_cuts(c.rows * c.vecs, c.step), p->n_lanes);
  return lam_cuda_launch(sum_lanes, dim3((unsigned)lanes), dim3(PEER_THREADS), 0, stream, c,
                         "peer_sum");
}

extern "C" lam_status lam_cuda_peer_load_sum(void) {
  return lam_cuda_preload(sum_lanes, PEER_THREADS, "peer_sum");
}
