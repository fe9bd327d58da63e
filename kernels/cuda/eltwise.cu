/* eltwise.cu: activations, their derivatives, copies.
 *
 * Floors: what is read and written, once. At a device copy's 3.0 TB/s on an H100 (predicted, not
 * measured): act on bf16 [8192, 2 x 28672] gated 470 us, its derivative 783 us.
 * Instructions an element, counted in sm_90a's code: gelu 31, silu 9, their derivatives 34 and 13.
 * With math.h's own exponential and an exact division gelu took 52, where an H100's memory leaves
 * time for 39 (bf16, in and out).
 * Invariant: f32 inside, one rounding at the store; operands may be the same memory, element for
 * element.
 * Leaves elements in memory to vec.cuh, the cutting to kernel.cuh, the arithmetic to math.h. */
#include "kernels/cuda/kernel.cuh"

static lam_status refuse(const char *who, lam_dtype dtype) {
  return lam_fail(LAM_UNIMPLEMENTED,
                  "cuda %s: dtype number %d, these kernels have f32, bf16, f16, f8e4m3 and f8e5m2",
                  who, (int)dtype);
}

/* Elementwise work is the same on transposed operands: the rows of y should run along memory. */
static bool by_cols(lam_matrix y) { return y.col_stride != 1 && y.row_stride == 1; }
static lam_view view_of(lam_matrix m, bool transposed) {
  return lam_view_of(transposed ? lam_matrix_transposed(m) : m);
}

/* The halves of a gated [gate | up]. */
static lam_matrix half_of(lam_matrix z, bool gated, bool up) {
  const int64_t cols = gated ? z.cols / 2 : z.cols;
  if (up) z.data = (char *)z.data + cols * z.col_stride * lam_cuda_bytes(z.dtype);
  z.cols = cols;
  return z;
}

/* -- activations: 4 bytes an element of bf16, 6 gated; the derivative 6, 10 gated, and 2 more with
 * act(z) again -- */

template <float f(float)>
LAM_DEVICE void map(lam_vec *v) {
  for (int i = 0; i < LAM_VEC; i++) v->at[i] = f(v->at[i]);
}

/* One branch for eight elements: all threads take the same one. */
LAM_DEVICE void act_of(int act, lam_vec *v) {
  switch (act) {
    case LAM_ACT_GELU: map<lam_gelu>(v); return;
    case LAM_ACT_GELU_TANH: map<lam_gelu_tanh>(v); return;
    case LAM_ACT_SILU: map<lam_silu>(v); return;
    case LAM_ACT_RELU: map<lam_relu>(v); return;
    case LAM_ACT_RELU2: map<lam_relu2>(v); return;
    default: return;
  }
}

struct act_piece {
  enum { BLOCKS = 5 };
  int32_t act;
  bool gated;
  lam_view z, up, y;

  __device__ void operator()(int64_t row, int64_t col, int n) const {
    lam_raw z_raw = lam_vec_ask(z, row, col, n), up_raw;
    if (gated) up_raw = lam_vec_ask(up, row, col, n);
    lam_vec v = lam_vec_of(z_raw, z.dtype);
    act_of(act, &v);
    if (gated) {
      const lam_vec u = lam_vec_of(up_raw, up.dtype);
      for (int i = 0; i < LAM_VEC; i++) v.at[i] *= u.at[i];
    }
    lam_vec_store(y, row, col, n, v);
  }
};

extern "C" lam_status lam_cuda_act_run(const lam_workers *w, lam_act act, bool gated, lam_matrix z,
                                       lam_matrix y, void *stream) {
  (void)w;
  if (!lam_cuda_is_float(z.dtype)) return refuse("act", z.dtype);
  if (!lam_cuda_is_float(y.dtype)) return refuse("act", y.dtype);
  const bool t = by_cols(y);
  const act_piece piece = {act, gated, view_of(half_of(z, gated, false), t),
                           view_of(half_of(z, gated, gated), t), view_of(y, t)};
  return lam_cuda_each_piece(t ? y.cols : y.rows, t ? y.rows : y.cols, piece, stream, "act");
}

/* -- what a product leaves to do: of f32 sums 6 bytes an element of bf16, with aux 8 -- */

struct bias_act_piece {
  enum { BLOCKS = 5 };
  int32_t act;
  lam_view z, bias, aux, y; /* data NULL: absent */

  __device__ void operator()(int64_t row, int64_t col, int n) const {
    lam_vec v = lam_vec_load(z, row, col, n);
    if (bias.data) v = lam_vec_plus(v, lam_vec_load(bias, row, col, n));
    if (aux.data) lam_vec_store(aux, row, col, n, v);
    act_of(act, &v);
    lam_vec_store(y, row, col, n, v);
  }
};

static lam_view view_if_here(lam_matrix m, bool transposed) {
  const lam_view none = {};
  return lam_matrix_here(m) ? view_of(m, transposed) : none;
}

/* The same number all along a column of what it is added to, or, transposed, along a row. */
static lam_view bias_view(lam_matrix m, bool transposed) {
  lam_view v = lam_matrix_here(m) ? lam_view_of_vector(m) : view_if_here(m, false);
  if (!transposed) return v;
  v.row_stride = v.col_stride, v.col_stride = 0;
  v.wide = false;
  return v;
}

extern "C" lam_status lam_cuda_bias_act_run(lam_matrix z, lam_matrix bias, lam_act act,
                                            lam_matrix aux, lam_matrix y, void *stream) {
  const lam_matrix all[] = {z, bias, aux, y};
  for (const lam_matrix &m : all)
    if (!lam_cuda_is_float(m.dtype)) return refuse("bias_act", m.dtype);
  const bool t = by_cols(y);
  const bias_act_piece piece = {act, view_of(z, t), bias_view(bias, t), view_if_here(aux, t),
                                view_of(y, t)};
  return lam_cuda_each_piece(t ? y.cols : y.rows, t ? y.rows : y.cols, piece, stream, "bias_act");
}

/* v becomes dy act'(z), or dy up act'(z) where it is gated; then dup becomes dy act(z). dy becomes
 * what act makes of z where that is wanted again. */
typedef struct bwd_vecs {
  lam_vec dy, v, up, dup;
} bwd_vecs;

template <float f(float), float grad(float)>
LAM_DEVICE void map_bwd(bool gated, bool again, bwd_vecs *x) {
  for (int i = 0; i < LAM_VEC; i++) {
    const float z = x->v.at[i], g = x->dy.at[i];
    const float a = gated || again ? f(z) : 0.0f;
    x->v.at[i] = (gated ? g * x->up.at[i] : g) * grad(z);
    if (gated) x->dup.at[i] = g * a;
    if (again) x->dy.at[i] = gated ? a * x->up.at[i] : a;
  }
}

LAM_DEVICE void act_bwd_of(int act, bool gated, bool again, bwd_vecs *x) {
  switch (act) {
    case LAM_ACT_GELU: map_bwd<lam_gelu, lam_gelu_grad>(gated, again, x); return;
    case LAM_ACT_GELU_TANH: map_bwd<lam_gelu_tanh, lam_gelu_tanh_grad>(gated, again, x); return;
    case LAM_ACT_SILU: map_bwd<lam_silu, lam_silu_grad>(gated, again, x); return;
    case LAM_ACT_RELU: map_bwd<lam_relu, lam_relu_grad>(gated, again, x); return;
    case LAM_ACT_RELU2: map_bwd<lam_relu2, lam_relu2_grad>(gated, again, x); return;
    default: map_bwd<lam_identity, lam_identity_grad>(gated, again, x); return;
  }
}

struct act_bwd_piece {
  enum { BLOCKS = 4 };
  int32_t act;
  bool gated, again;
  lam_view dy, z, up, dz, dup;

  __device__ void operator()(int64_t row, int64_t col, int n) const {
    const lam_raw dy_raw = lam_vec_ask(dy, row, col, n), z_raw = lam_vec_ask(z, row, col, n);
    lam_raw up_raw = {};
    if (gated) up_raw = lam_vec_ask(up, row, col, n);
    bwd_vecs x;
    x.dy = lam_vec_of(dy_raw, dy.dtype), x.v = lam_vec_of(z_raw, z.dtype);
    if (gated) x.up = lam_vec_of(up_raw, up.dtype);
    act_bwd_of(act, gated, again, &x);
    lam_vec_store(dz, row, col, n, x.v);
    if (gated) lam_vec_store(dup, row, col, n, x.dup);
    if (again) lam_vec_store(dy, row, col, n, x.dy);
  }
};

static lam_status act_bwd(lam_act act, bool gated, bool again, lam_matrix dy, lam_matrix z,
                          lam_matrix dz, void *stream) {
  const lam_matrix all[] = {dy, z, dz};
  for (const lam_matrix &m : all)
    if (!lam_cuda_is_float(m.dtype)) return refuse("act_bwd", m.dtype);
  const bool t = by_cols(dy);
  const act_bwd_piece piece = {act,
                               gated,
                               again,
                               view_of(dy, t),
                               view_of(half_of(z, gated, false), t),
                               view_of(half_of(z, gated, gated), t),
                               view_of(half_of(dz, gated, false), t),
                               view_of(half_of(dz, gated, gated), t)};
  return lam_cuda_each_piece(t ? dy.cols : dy.rows, t ? dy.rows : dy.cols, piece, stream,
                             "act_bwd");
}

extern "C" lam_status lam_cuda_act_bwd_run(const lam_workers *w, lam_act act, bool gated,
                                           lam_matrix dy, lam_matrix z, lam_matrix dz,
                                           void *stream) {
  (void)w;
  return act_bwd(act, gated, false, dy, z, dz, stream);
}

extern "C" lam_status lam_cuda_act_bwd_again_run(const lam_workers *w, lam_act act, bool gated,
                                                 lam_matrix dy, lam_matrix z, lam_matrix dz,
                                                 void *stream) {
  (void)w;
  return act_bwd(act, gated, true, dy, z, dz, stream);
}

/* -- copies: an element read, an element written -- */

struct convert_piece {
  enum { BLOCKS = 6 };
  lam_view from, to;

  __device__ void operator()(int64_t row, int64_t col, int n) const {
    lam_vec_store(to, row, col, n, lam_vec_load(from, row, col, n));
  }
};

template <class T>
struct move_piece {
  enum { BLOCKS = 6 };
  lam_view from, to;

  __device__ void operator()(int64_t row, int64_t col, int n) const {
    lam_move<T>(from, row, to, row, col, n);
  }
};

/* From columns to rows: a tile goes through shared memory, so that reads run along from's columns
 * and writes along to's rows. Tiles are read and written in runs of 32 elements: of bf16 that is
 * two sectors of memory, so it is predicted to reach some 0.7 of a copy. */
enum { TILE = 32, TILE_ROWS = 8 };

typedef struct tiles {
  lam_view from, to;
  int64_t rows, cols;
} tiles;

/* What lies in a tile: an element as it is, or its value. */
template <class T>
struct as_it_is {
  typedef T type;
  static __device__ T get(const lam_view &m, int64_t row, int64_t col) {
    return *(const T *)lam_view_at(m, row, col);
  }
  static __device__ void set(const lam_view &m, int64_t row, int64_t col, T x) {
    *(T *)lam_view_at(m, row, col) = x;
  }
};
struct as_value {
  typedef float type;
  static __device__ float get(const lam_view &m, int64_t row, int64_t col) {
    return lam_view_get(m, row, col);
  }
  static __device__ void set(const lam_view &m, int64_t row, int64_t col, float x) {
    lam_element_set(lam_view_at(m, row, col), m.dtype, x);
  }
};

template <class E>
__global__ void __launch_bounds__(TILE *TILE_ROWS) transpose(tiles t) {
  typedef typename E::type(*rows)[TILE + 1]; /* one more: a column lies in 32 banks */
  const rows tile = (rows)lam_cuda_shared();
  const int x = threadIdx.x, y = threadIdx.y;
  const int64_t col = (int64_t)blockIdx.x * TILE;
  for (int64_t row = (int64_t)blockIdx.y * TILE; row < t.rows; row += (int64_t)gridDim.y * TILE) {
    for (int i = y; i < TILE; i += TILE_ROWS)
      if (row + x < t.rows && col + i < t.cols) tile[i][x] = E::get(t.from, row + x, col + i);
    __syncthreads();
    for (int i = y; i < TILE; i += TILE_ROWS)
      if (row + i < t.rows && col + x < t.cols) E::set(t.to, row + i, col + x, tile[x][i]);
    __syncthreads();
  }
}

template <class E>
static lam_status transpose_all(const tiles &t, void *stream) {
  const dim3 grid((unsigned)lam_cuda_cuts(t.cols, TILE),
                  (unsigned)lam_cuda_least(lam_cuda_cuts(t.rows, TILE), LAM_GRID_Y));
  return lam_cuda_launch(transpose<E>, grid, dim3(TILE, TILE_ROWS),
                         sizeof(typename E::type) * TILE * (TILE + 1), stream, t, "copy");
}

template <class T>
static lam_status move(const tiles &t, bool turned, void *stream) {
  const move_piece<T> piece = {t.from, t.to};
  if (turned) return transpose_all<as_it_is<T> >(t, stream);
  return lam_cuda_each_piece(t.rows, t.cols, piece, stream, "copy");
}

static bool close_together(lam_matrix m) {
  return m.col_stride == 1 && (m.rows == 1 || m.row_stride == m.cols);
}

extern "C" lam_status lam_cuda_copy_run(const lam_workers *w, lam_matrix from, lam_matrix to,
                                        void *stream) {
  const bool same = from.dtype == to.dtype, t = by_cols(to);
  const int bytes = lam_cuda_bytes(to.dtype);
  (void)w;
  if (from.rows <= 0 || from.cols <= 0) return LAM_OK;
  if (!same && !lam_cuda_is_float(from.dtype)) return refuse("copy", from.dtype);
  if (!same && !lam_cuda_is_float(to.dtype)) return refuse("copy", to.dtype);
  if (t) from = lam_matrix_transposed(from), to = lam_matrix_transposed(to);
  if (same && close_together(from) && close_together(to))
    return lam_cuda_copy_bytes(from.data, to.data, (uint64_t)(to.rows * to.cols * bytes), stream);
  const tiles all = {lam_view_of(from), lam_view_of(to), to.rows, to.cols};
  const bool turned = from.row_stride == 1 && from.col_stride != 1 && to.col_stride == 1;
  if (!same && turned) return transpose_all<as_value>(all, stream);
  if (!same) {
    const convert_piece piece = {all.from, all.to};
    return lam_cuda_each_piece(to.rows, to.cols, piece, stream, "copy");
  }
  switch (bytes) {
    case 1: return move<uint8_t>(all, turned, stream);
    case 2: return move<uint16_t>(all, turned, stream);
    case 4: return move<uint32_t>(all, turned, stream);
    default: return move<uint64_t>(all, turned, stream);
  }
}
