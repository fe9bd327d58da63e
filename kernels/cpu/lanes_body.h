/* lanes_body.h: the loops of lanes.h, written once. A lanes_*.c file sets what is below, and
 * includes it:
 *
 *   LANES_TABLE, LANES_NAME   the table's name in C and in words
 *   LANES_TARGET              attribute that allows the instructions
 *   is_here()                 this processor has them
 *   LANES_WIDTH               floats in a vector
 *   LANES_REGISTERS           vector registers, 16 or 32
 *   LANES_FMA(a, b, c)        a * b + c on vectors
 *   LANES_SUM(v)              the lanes of a vector added up
 *   LANES_HAS_PAIRS, LANES_PAIRS_FMA(a, b, c)   whether, and how, pairs of bf16 are multiplied
 *   LANES_TILE_ROWS, LANES_TILE_VECTORS         the shape of the plain gemm's tile
 *   LAM_FMA(a, b, c)          as math.h
 *
 * The elementwise loops work on blocks of a fixed size, which any compiler turns into vector code;
 * the ends of a line go through the same code in a padded block. Products are written with GNU
 * vector types, to be sure of their registers.
 * Invariant: as lanes.h. Leaves the choice of a table to backends.c. */
#include "kernels/codec.h"
#include "kernels/cpu/lanes.h"
#include "kernels/math.h"

enum { BLOCK = LAM_LANES_BLOCK };

#define LANES_FN LANES_TARGET static
#define LANES_INLINE LANES_TARGET static inline __attribute__((always_inline))

/* -- elements in memory -- */

LANES_INLINE float load_one(lam_line r, int64_t at) {
  if (r.dtype == LAM_F32) return ((const float *)r.data)[at * r.stride];
  return lam_f32_of_bf16(((const uint16_t *)r.data)[at * r.stride]);
}

LANES_INLINE void store_one(lam_line r, int64_t at, float v) {
  if (r.dtype == LAM_F32)
    ((float *)r.data)[at * r.stride] = v;
  else
    ((uint16_t *)r.data)[at * r.stride] = lam_bf16_of_f32(v);
}

LANES_FN __attribute__((noinline)) void load_part(lam_line r, int64_t at, int n, float *v) {
  for (int i = 0; i < n; i++) v[i] = load_one(r, at + i);
  for (int i = n; i < BLOCK; i++) v[i] = 0.0f;
}

LANES_FN __attribute__((noinline)) void store_part(lam_line r, int64_t at, int n, const float *v) {
  for (int i = 0; i < n; i++) store_one(r, at + i, v[i]);
}

/* n <= BLOCK elements from `at` on; the rest of v is 0. */
LANES_INLINE void load(lam_line r, int64_t at, int n, float *v) {
  if (n < BLOCK || r.stride != 1) {
    load_part(r, at, n, v);
  } else if (r.dtype == LAM_F32) {
    memcpy(v, (const float *)r.data + at, sizeof(float[BLOCK]));
  } else {
    const uint16_t *h = (const uint16_t *)r.data + at;
    for (int i = 0; i < BLOCK; i++) v[i] = lam_f32_of_bf16(h[i]);
  }
}

LANES_INLINE void store(lam_line r, int64_t at, int n, const float *v) {
  if (n < BLOCK || r.stride != 1) {
    store_part(r, at, n, v);
  } else if (r.dtype == LAM_F32) {
    memcpy((float *)r.data + at, v, sizeof(float[BLOCK]));
  } else {
    uint16_t *h = (uint16_t *)r.data + at;
    for (int i = 0; i < BLOCK; i++) h[i] = lam_bf16_of_f32(v[i]);
  }
}

LANES_INLINE int block_at(int64_t at, int64_t n) { return n - at < BLOCK ? (int)(n - at) : BLOCK; }

LANES_INLINE void add_block(float *v, const float *x) {
  for (int i = 0; i < BLOCK; i++) v[i] += x[i];
}

/* -- elementwise -- */

LANES_FN void copy(lam_line from, lam_line to, int64_t n) {
  float v[BLOCK];
  for (int64_t at = 0; at < n; at += BLOCK) {
    const int w = block_at(at, n);
    load(from, at, w, v);
    store(to, at, w, v);
  }
}

typedef float (*map_fn)(float);

LANES_INLINE void map_block(map_fn f, float *v) {
  for (int i = 0; i < BLOCK; i++) v[i] = f(v[i]);
}

LANES_INLINE void map(map_fn f, lam_line z, lam_line up, lam_line y, int64_t n) {
  float v[BLOCK], u[BLOCK];
  for (int64_t at = 0; at < n; at += BLOCK) {
    const int w = block_at(at, n);
    load(z, at, w, v);
    map_block(f, v);
    if (up.data) {
      load(up, at, w, u);
      for (int i = 0; i < BLOCK; i++) v[i] *= u[i];
    }
    store(y, at, w, v);
  }
}

LANES_FN void act(lam_act a, lam_line z, lam_line up, lam_line y, int64_t n) {
  switch (a) {
    case LAM_ACT_GELU: map(lam_gelu, z, up, y, n); return;
    case LAM_ACT_GELU_TANH: map(lam_gelu_tanh, z, up, y, n); return;
    case LAM_ACT_SILU: map(lam_silu, z, up, y, n); return;
    case LAM_ACT_RELU: map(lam_relu, z, up, y, n); return;
    case LAM_ACT_RELU2: map(lam_relu2, z, up, y, n); return;
    default: map(lam_identity, z, up, y, n); return;
  }
}

/* One loop for all results: what f and grad share is computed once. */
LANES_INLINE void map_bwd(map_fn f, map_fn grad, lam_line dy, lam_line z, lam_line up, lam_line dz,
                          lam_line dup, lam_line y, int64_t n) {
  float g[BLOCK], v[BLOCK], u[BLOCK], du[BLOCK], h[BLOCK];
  for (int64_t at = 0; at < n; at += BLOCK) {
    const int w = block_at(at, n);
    load(dy, at, w, g);
    load(z, at, w, v);
    if (up.data) {
      load(up, at, w, u);
      for (int i = 0; i < BLOCK; i++) {
        const float x = v[i], a = f(x);
        du[i] = g[i] * a;
        h[i] = a * u[i];
        v[i] = g[i] * u[i] * grad(x);
      }
      store(dup, at, w, du);
    } else if (y.data) {
      for (int i = 0; i < BLOCK; i++) {
        h[i] = f(v[i]);
        v[i] = g[i] * grad(v[i]);
      }
    } else {
      for (int i = 0; i < BLOCK; i++) v[i] = g[i] * grad(v[i]);
    }
    if (y.data) store(y, at, w, h);
    store(dz, at, w, v);
  }
}

LANES_FN void act_bwd(lam_act a, lam_line dy, lam_line z, lam_line up, lam_line dz, lam_line dup,
                      lam_line y, int64_t n) {
  switch (a) {
    case LAM_ACT_GELU: map_bwd(lam_gelu, lam_gelu_grad, dy, z, up, dz, dup, y, n); return;
    case LAM_ACT_GELU_TANH:
      map_bwd(lam_gelu_tanh, lam_gelu_tanh_grad, dy, z, up, dz, dup, y, n);
      return;
    case LAM_ACT_SILU: map_bwd(lam_silu, lam_silu_grad, dy, z, up, dz, dup, y, n); return;
    case LAM_ACT_RELU: map_bwd(lam_relu, lam_relu_grad, dy, z, up, dz, dup, y, n); return;
    case LAM_ACT_RELU2: map_bwd(lam_relu2, lam_relu2_grad, dy, z, up, dz, dup, y, n); return;
    default: map_bwd(lam_identity, lam_identity_grad, dy, z, up, dz, dup, y, n); return;
  }
}

/* -- sums -- */

LANES_FN void sum(const lam_matrix *parts, int n_parts, lam_line bias, lam_line residual,
                  int64_t row, int64_t col, lam_line y, int64_t n) {
  float v[BLOCK], x[BLOCK];
  for (int64_t at = 0; at < n; at += BLOCK) {
    const int w = block_at(at, n);
    load(lam_line_at(parts[0], row, col), at, w, v);
    for (int i = 1; i < n_parts; i++)
      load(lam_line_at(parts[i], row, col), at, w, x), add_block(v, x);
    if (bias.data) load(bias, at, w, x), add_block(v, x);
    if (residual.data) load(residual, at, w, x), add_block(v, x);
    store(y, at, w, v);
  }
}

LANES_FN void add(lam_line x, float *total, int64_t n) {
  float v[BLOCK];
  for (int64_t at = 0; at < n; at += BLOCK) {
    load(x, at, block_at(at, n), v);
    add_block(total + at, v);
  }
}

LANES_INLINE void act_block(lam_act a, float *v) {
  switch (a) {
    case LAM_ACT_GELU: map_block(lam_gelu, v); return;
    case LAM_ACT_GELU_TANH: map_block(lam_gelu_tanh, v); return;
    case LAM_ACT_SILU: map_block(lam_silu, v); return;
    case LAM_ACT_RELU: map_block(lam_relu, v); return;
    case LAM_ACT_RELU2: map_block(lam_relu2, v); return;
    default: return;
  }
}

LANES_FN void finish(const float *product, const lam_finish *f, int64_t n) {
  const lam_line from = {(float *)product, 1, LAM_F32};
  float v[BLOCK], x[BLOCK];
  for (int64_t at = 0; at < n; at += BLOCK) {
    const int w = block_at(at, n);
    load(from, at, w, v);
    if (f->bias.data) load(f->bias, at, w, x), add_block(v, x);
    if (f->aux.data) store(f->aux, at, w, v);
    act_block(f->act, v);
    if (f->accumulate) load(f->d, at, w, x), add_block(v, x);
    store(f->d, at, w, v);
  }
}

#include "kernels/cpu/lanes_norm.h"
#include "kernels/cpu/lanes_softmax.h"

/* -- codecs -- */

enum { TILE = LAM_CODEC_TILE };
_Static_assert(TILE % BLOCK == 0, "a tile is loaded in whole blocks");

/* n <= TILE elements from `at` on; the rest of v is 0. */
LANES_INLINE void load_tile(lam_line x, int64_t at, int n, float *v) {
  for (int i = 0; i < TILE; i += BLOCK) {
    const int left = n - i < 0 ? 0 : n - i;
    load(x, at + i, left < BLOCK ? left : BLOCK, v + i);
  }
}

LANES_INLINE void store_tile(lam_line y, int64_t at, int n, const float *v) {
  for (int i = 0; i < n; i += BLOCK) store(y, at + i, n - i < BLOCK ? n - i : BLOCK, v + i);
}

/* The scale of a tile whose code reaches to `most`; what its elements are multiplied by. Not
 * finite: the scale is NaN. */
LANES_INLINE float scale_of(const float *v, float most, float *out_factor) {
  uint32_t largest = 0; /* as bits: they are in the same order, and NaN is beyond infinity */
  for (int i = 0; i < TILE; i++) {
    const uint32_t bits = lam_bits_of_f32(v[i]) & 0x7fffffffu;
    largest = bits > largest ? bits : largest;
  }
  const float x = lam_f32_of_bits(largest);
  *out_factor = 0;
  if (largest >= 0x7f800000u) return lam_f32_of_bits(0x7fc00000u);
  if (x < LAM_CODEC_LEAST) return 0;
  *out_factor = most / x;
  return x / most;
}

typedef uint8_t (*encode_fn)(float);
typedef float (*decode_fn)(uint8_t);

LANES_INLINE void encode_tiles(encode_fn f, float most, lam_line x, int64_t n, char *scales,
                               char *bytes) {
  float v[TILE], factor;
  uint8_t code[TILE];
  for (int64_t at = 0; at < n; at += TILE, scales += sizeof(float)) {
    const int w = n - at < TILE ? (int)(n - at) : TILE;
    load_tile(x, at, w, v);
    const float scale = scale_of(v, most, &factor);
    for (int i = 0; i < TILE; i++) code[i] = f(factor == 0 ? 0 : v[i] * factor);
    memcpy(scales, &scale, sizeof scale);
    memcpy(bytes + at, code, (size_t)w);
  }
}

LANES_INLINE void decode_tiles(decode_fn f, const char *scales, const char *bytes, lam_line y,
                               int64_t n) {
  float v[TILE], scale;
  uint8_t code[TILE] = {0};
  for (int64_t at = 0; at < n; at += TILE, scales += sizeof(float)) {
    const int w = n - at < TILE ? (int)(n - at) : TILE;
    memcpy(&scale, scales, sizeof scale);
    memcpy(code, bytes + at, (size_t)w);
    for (int i = 0; i < TILE; i++) v[i] = f(code[i]) * scale;
    store_tile(y, at, w, v);
  }
}

LANES_FN void encode(int codec, lam_line x, int64_t n, void *scales, void *bytes) {
  switch (codec) {
    case LAM_CODEC_F8E4M3: encode_tiles(lam_f8e4m3_of_f32, 448, x, n, scales, bytes); return;
    case LAM_CODEC_F8E5M2: encode_tiles(lam_f8e5m2_of_f32, 57344, x, n, scales, bytes); return;
    default: encode_tiles(lam_i8_of_f32, 127, x, n, scales, bytes); return;
  }
}

LANES_FN void decode(int codec, const void *scales, const void *bytes, lam_line y, int64_t n) {
  switch (codec) {
    case LAM_CODEC_F8E4M3: decode_tiles(lam_f32_of_f8e4m3, scales, bytes, y, n); return;
    case LAM_CODEC_F8E5M2: decode_tiles(lam_f32_of_f8e5m2, scales, bytes, y, n); return;
    default: decode_tiles(lam_f32_of_i8, scales, bytes, y, n); return;
  }
}

/* -- products -- */

typedef float vec __attribute__((vector_size(4 * LANES_WIDTH)));
typedef float vec_any __attribute__((vector_size(4 * LANES_WIDTH), aligned(4), may_alias));
typedef uint32_t vec_u32 __attribute__((vector_size(4 * LANES_WIDTH)));
typedef float vec_pairs_any __attribute__((vector_size(4 * LANES_WIDTH), aligned(2), may_alias));
typedef uint16_t vec_u16_any __attribute__((vector_size(2 * LANES_WIDTH), aligned(2), may_alias));

enum {
  K_STEP = 2 * LANES_WIDTH,
  SUMS = LANES_REGISTERS == 32 ? 24 : 10,
  AHEAD_BYTES = 4096,
  LINE_BYTES = 64
};

LANES_INLINE vec vec_load(const char *p, lam_dtype dtype, int64_t at) {
  if (dtype == LAM_F32) return *(const vec_any *)(p + 4 * at);
  return (vec)(__builtin_convertvector(*(const vec_u16_any *)(p + 2 * at), vec_u32) << 16);
}

LANES_INLINE vec vec_of(float x) { return x - (vec){0}; }

/* Operands of `dot`: m rows of x and r rows of w, each row so many bytes from the last one. */
typedef struct dot_rows {
  const char *x, *w;
  int64_t x_row_bytes, w_row_bytes;
} dot_rows;

typedef vec dot_sums[LAM_FEW_ROWS][LAM_FEW_ROWS];

/* K_STEP elements of every row. m, r and dtype are known when compiled: the m * r sums stay in
 * registers. */
LANES_INLINE void dot_step(int m, int r, lam_dtype dtype, dot_rows d, dot_sums sums) {
#pragma GCC unroll 2
  for (int64_t at = 0; at < K_STEP; at += LANES_WIDTH) {
    vec w[LAM_FEW_ROWS];
#pragma GCC unroll 8
    for (int j = 0; j < r; j++) w[j] = vec_load(d.w + j * d.w_row_bytes, dtype, at);
#pragma GCC unroll 8
    for (int i = 0; i < m; i++) {
      const vec x = vec_load(d.x + i * d.x_row_bytes, LAM_F32, at);
#pragma GCC unroll 8
      for (int j = 0; j < r; j++) sums[i][j] = LANES_FMA(x, w[j], sums[i][j]);
    }
  }
}

/* The same for bf16 x and w where the processor multiplies pairs of bf16: a vector holds all K_STEP
 * of them. */
LANES_INLINE void dot_step_pairs(int m, int r, dot_rows d, dot_sums sums) {
  vec w[LAM_FEW_ROWS];
#pragma GCC unroll 8
  for (int j = 0; j < r; j++) w[j] = *(const vec_pairs_any *)(d.w + j * d.w_row_bytes);
#pragma GCC unroll 8
  for (int i = 0; i < m; i++) {
    const vec x = *(const vec_pairs_any *)(d.x + i * d.x_row_bytes);
#pragma GCC unroll 8
    for (int j = 0; j < r; j++) sums[i][j] = LANES_PAIRS_FMA(x, w[j], sums[i][j]);
  }
}

LANES_INLINE bool in_pairs(lam_dtype dtype) { return LANES_HAS_PAIRS && dtype == LAM_BF16; }

LANES_INLINE void dot_step_any(int m, int r, lam_dtype dtype, dot_rows d, dot_sums sums) {
  if (in_pairs(dtype))
    dot_step_pairs(m, r, d, sums);
  else
    dot_step(m, r, dtype, d, sums);
}

/* What is left of w after the last whole step, beside zeros; x is padded already. */
LANES_INLINE void dot_end(int m, int r, lam_dtype dtype, dot_rows d, int64_t n_left,
                          dot_sums sums) {
  char w[LAM_FEW_ROWS][K_STEP * 4] = {{0}};
  for (int j = 0; j < r; j++)
    memcpy(w[j], d.w + j * d.w_row_bytes, (size_t)n_left * (dtype == LAM_F32 ? 4 : 2));
  dot_step_any(m, r, dtype, (dot_rows){d.x, w[0], d.x_row_bytes, sizeof w[0]}, sums);
}

/* Asks memory for what dot_some reads a while from now: the same rows further on or, near their
 * end, the next r rows. */
LANES_INLINE void fetch_ahead(int r, dot_rows d, int64_t step_bytes, int64_t n_steps,
                              int64_t n_left) {
  const int64_t n_ahead = AHEAD_BYTES / (r * step_bytes);
  const int64_t at = (n_left > n_ahead ? n_ahead : n_ahead - n_steps) * step_bytes +
                     (n_left > n_ahead ? 0 : r * d.w_row_bytes);
#pragma GCC unroll 8
  for (int j = 0; j < r; j++)
    for (int64_t line = 0; line < step_bytes; line += LINE_BYTES)
      __builtin_prefetch(d.w + j * d.w_row_bytes + at + line);
}

LANES_INLINE void dot_some(int m, int r, lam_dtype dtype, dot_rows d, int64_t k, float *y,
                           int64_t ldy) {
  const int64_t x_step = K_STEP * (in_pairs(dtype) ? 2 : 4),
                w_step = K_STEP * (dtype == LAM_F32 ? 4 : 2);
  const int64_t n_steps = k / K_STEP;
  dot_sums sums;
#pragma GCC unroll 8
  for (int i = 0; i < m; i++)
#pragma GCC unroll 8
    for (int j = 0; j < r; j++) sums[i][j] = (vec){0};

  for (int64_t left = n_steps; left > 0; left--, d.x += x_step, d.w += w_step) {
    fetch_ahead(r, d, w_step, n_steps, left);
    dot_step_any(m, r, dtype, d, sums);
  }
  if (k % K_STEP > 0) dot_end(m, r, dtype, d, k % K_STEP, sums);
#pragma GCC unroll 8
  for (int i = 0; i < m; i++)
#pragma GCC unroll 8
    for (int j = 0; j < r; j++) y[i * ldy + j] = LANES_SUM(sums[i][j]);
}

/* As many rows of w at once as there are registers for their sums; the last few one by one. */
LANES_INLINE void dot_all(int m, lam_dtype dtype, dot_rows d, int64_t k, int64_t n, float *y,
                          int64_t ldy) {
  const int r = SUMS / m < LAM_FEW_ROWS ? SUMS / m : LAM_FEW_ROWS;
  int64_t j = 0;
  for (; j + r <= n; j += r, d.w += r * d.w_row_bytes) dot_some(m, r, dtype, d, k, y + j, ldy);
  for (; j < n; j++, d.w += d.w_row_bytes) dot_some(m, 1, dtype, d, k, y + j, ldy);
}

LANES_INLINE void dot(int m, lam_dtype dtype, dot_rows d, int64_t k, int64_t n, float *y,
                      int64_t ldy) {
  switch (m) {
    case 1: dot_all(1, dtype, d, k, n, y, ldy); return;
    case 2: dot_all(2, dtype, d, k, n, y, ldy); return;
    case 3: dot_all(3, dtype, d, k, n, y, ldy); return;
    case 4: dot_all(4, dtype, d, k, n, y, ldy); return;
    case 5: dot_all(5, dtype, d, k, n, y, ldy); return;
    case 6: dot_all(6, dtype, d, k, n, y, ldy); return;
    case 7: dot_all(7, dtype, d, k, n, y, ldy); return;
    default: dot_all(8, dtype, d, k, n, y, ldy); return;
  }
}

LANES_FN void dot_f32(int m, const void *x, int64_t ldx, const void *w, int64_t ldw, int64_t k,
                      int64_t n, float *y, int64_t ldy) {
  dot(m, LAM_F32, (dot_rows){x, w, 4 * ldx, 4 * ldw}, k, n, y, ldy);
}

LANES_FN void dot_bf16(int m, const void *x, int64_t ldx, const void *w, int64_t ldw, int64_t k,
                       int64_t n, float *y, int64_t ldy) {
  dot(m, LAM_BF16, (dot_rows){x, w, (LANES_HAS_PAIRS ? 2 : 4) * ldx, 2 * ldw}, k, n, y, ldy);
}

/* Adds `depth` rows of w, each times its element of x, to m rows of y. */
LANES_INLINE void axpy_rows(int depth, int m, lam_dtype dtype, const float *x, int64_t ldx,
                            const char *w, int64_t w_row_bytes, int64_t n, float *y, int64_t ldy) {
  int64_t at = 0;
  for (; at + LANES_WIDTH <= n; at += LANES_WIDTH) {
    vec wv[LAM_FEW_ROWS];
#pragma GCC unroll 8
    for (int p = 0; p < depth; p++) wv[p] = vec_load(w + p * w_row_bytes, dtype, at);
    const char *next_rows = w + depth * w_row_bytes + at * (dtype == LAM_F32 ? 4 : 2);
#pragma GCC unroll 8
    for (int p = 0; p < depth; p++) __builtin_prefetch(next_rows + p * w_row_bytes);
    for (int i = 0; i < m; i++) {
      vec s = *(const vec_any *)(y + i * ldy + at);
#pragma GCC unroll 8
      for (int p = 0; p < depth; p++) s = LANES_FMA(vec_of(x[i * ldx + p]), wv[p], s);
      *(vec_any *)(y + i * ldy + at) = s;
    }
  }
  for (; at < n; at++)
    for (int i = 0; i < m; i++)
      for (int p = 0; p < depth; p++) {
        const lam_line row = {(char *)w + p * w_row_bytes, 1, dtype};
        y[i * ldy + at] = LAM_FMA(x[i * ldx + p], load_one(row, at), y[i * ldy + at]);
      }
}

LANES_INLINE void axpy(int m, lam_dtype dtype, const float *x, int64_t ldx, const char *w,
                       int64_t w_row_bytes, int64_t k, int64_t n, float *y, int64_t ldy) {
  int64_t p = 0;
  for (; p + LAM_FEW_ROWS <= k; p += LAM_FEW_ROWS)
    axpy_rows(LAM_FEW_ROWS, m, dtype, x + p, ldx, w + p * w_row_bytes, w_row_bytes, n, y, ldy);
  for (; p < k; p++)
    axpy_rows(1, m, dtype, x + p, ldx, w + p * w_row_bytes, w_row_bytes, n, y, ldy);
}

LANES_FN void axpy_f32(int m, const float *x, int64_t ldx, const void *w, int64_t ldw, int64_t k,
                       int64_t n, float *y, int64_t ldy) {
  axpy(m, LAM_F32, x, ldx, w, 4 * ldw, k, n, y, ldy);
}

LANES_FN void axpy_bf16(int m, const float *x, int64_t ldx, const void *w, int64_t ldw, int64_t k,
                        int64_t n, float *y, int64_t ldy) {
  axpy(m, LAM_BF16, x, ldx, w, 2 * ldw, k, n, y, ldy);
}

enum { TILE_COLS = LANES_TILE_VECTORS * LANES_WIDTH };

LANES_FN void tile(int64_t k, const float *a, const float *b, float *c, int64_t ldc) {
  vec sums[LANES_TILE_ROWS][LANES_TILE_VECTORS];
#pragma GCC unroll 16
  for (int i = 0; i < LANES_TILE_ROWS; i++)
#pragma GCC unroll 4
    for (int j = 0; j < LANES_TILE_VECTORS; j++) sums[i][j] = (vec){0};

  for (int64_t p = 0; p < k; p++, a += LANES_TILE_ROWS, b += TILE_COLS) {
    vec bv[LANES_TILE_VECTORS];
#pragma GCC unroll 4
    for (int j = 0; j < LANES_TILE_VECTORS; j++) bv[j] = *(const vec_any *)(b + j * LANES_WIDTH);
#pragma GCC unroll 16
    for (int i = 0; i < LANES_TILE_ROWS; i++) {
      const vec av = vec_of(a[i]);
#pragma GCC unroll 4
      for (int j = 0; j < LANES_TILE_VECTORS; j++) sums[i][j] = LANES_FMA(av, bv[j], sums[i][j]);
    }
  }
#pragma GCC unroll 16
  for (int i = 0; i < LANES_TILE_ROWS; i++)
#pragma GCC unroll 4
    for (int j = 0; j < LANES_TILE_VECTORS; j++)
      *(vec_any *)(c + i * ldc + j * LANES_WIDTH) += sums[i][j];
}

const lam_lanes LANES_TABLE = {
    .name = LANES_NAME,
    .is_here = is_here,
    .copy = copy,
    .act = act,
    .act_bwd = act_bwd,
    .sum = sum,
    .add = add,
    .finish = finish,
    .max = max,
    .exp_sum = exp_sum,
    .exp = exp_scaled,
    .product_sum = product_sum,
    .scale = scale,
    .scale_less = scale_less,
    .add_product = add_product,
    .encode = encode,
    .decode = decode,
    .dot_f32 = {LAM_F32, K_STEP, dot_f32},
    .dot_bf16 = {LANES_HAS_PAIRS ? LAM_BF16 : LAM_F32, K_STEP, dot_bf16},
    .axpy_f32 = axpy_f32,
    .axpy_bf16 = axpy_bf16,
    .tile_rows = LANES_TILE_ROWS,
    .tile_cols = TILE_COLS,
    .tile = tile,
};
