/* cuda.cu: the demo's own work on a GPU: batches, norms, embedding, attention, loss, AdamW. Written
 * to be read beside norm.c, attention.c, loss.c: a warp takes a row, or a query, or a key; products
 * in attention are not made on tensor cores.
 *
 * Invariant: no atomics: every sum has one order, so a run repeats bit for bit. Arithmetic is f32
 * whatever matrices hold. Leaves memory and the stream to cuda.c. */
#include "bindings/cli/demo/cuda.h"

#include <cuda_runtime_api.h>
#include <stdio.h>

enum { WARP = 32, WARPS = 4, MOST_PER_LANE = 2 }; /* warps of a block; numbers of a head */
static const unsigned ALL = 0xffffffffu;          /* lanes */

/* -- launching -- */

static cudaStream_t stream;
static char failed[200];

extern "C" void cuda_use(void *to) { stream = (cudaStream_t)to; }

extern "C" void cuda_note(int error, const char *name) {
  if (error != cudaSuccess && !*failed)
    snprintf(failed, sizeof failed, "%s: %s", name, cudaGetErrorString((cudaError_t)error));
}

extern "C" const char *cuda_failed(void) { return *failed ? failed : NULL; }

template <class F>
struct work { /* n times: each(i) by a thread, or each(i, lane) by a warp */
  int64_t n;
  F each;
};

template <class F>
__global__ void by_threads(work<F> w) {
  const int64_t i = (int64_t)blockIdx.x * blockDim.x + threadIdx.x;
  if (i < w.n) w.each(i);
}

template <class F>
__global__ void by_warps(work<F> w) {
  const int64_t i = (int64_t)blockIdx.x * blockDim.y + threadIdx.y;
  if (i < w.n) w.each(i, (int)threadIdx.x);
}

template <class F>
static void launch(void (*kernel)(work<F>), const char *name, dim3 block, int64_t per_block,
                   work<F> w) {
  const dim3 grid((unsigned)((w.n + per_block - 1) / per_block));
  if (w.n == 0) return;
#ifdef __CUDACC__
  void *arguments[] = {&w};
  cuda_note(cudaLaunchKernel((const void *)kernel, grid, block, arguments, 0, stream), name);
#else /* tests: the stand-in for CUDA */
  cuda_note(standin_launch(name, grid, block, 0, stream, [=] { kernel(w); }), name);
#endif
}

template <class F>
static void threads(const char *name, int64_t n, F each) {
  launch<F>(by_threads<F>, name, dim3(256), 256, {n, each});
}

template <class F>
static void warps(const char *name, int64_t n, F each) {
  launch<F>(by_warps<F>, name, dim3(WARP, WARPS), WARPS, {n, each});
}

__device__ static inline float warp_sum(float x) {
  for (int other = WARP / 2; other > 0; other /= 2) x += __shfl_xor_sync(ALL, x, other);
  return x;
}

__device__ static inline float warp_highest(float x) {
  for (int other = WARP / 2; other > 0; other /= 2) x = fmaxf(x, __shfl_xor_sync(ALL, x, other));
  return x;
}

/* -- elements -- */

__device__ static inline float get(matrix m, int64_t row, int64_t col) {
  const int64_t at = row * m.cols + col;
  return m.bits == 16 ? from_bf16(((const uint16_t *)m.data)[at]) : ((const float *)m.data)[at];
}

__device__ static inline void set(matrix m, int64_t row, int64_t col, float x) {
  const int64_t at = row * m.cols + col;
  if (m.bits == 16)
    ((uint16_t *)m.data)[at] = to_bf16(x);
  else
    ((float *)m.data)[at] = x;
}

/* -- a micro-batch of the text -- */

struct batch_token {
  cuda_text t;
  uint8_t *tokens, *targets;
  __device__ void operator()(int64_t i) const {
    const int sequence = (int)(i / t.sequence);
    const uint64_t start = text_start(t.seed, t.batch, sequence, t.n - t.sequence);
    const uint8_t *at = t.bytes + start + i % t.sequence;
    tokens[i] = at[0];
    targets[i] = at[1];
  }
};

extern "C" void cuda_batch(cuda_text t, uint8_t *tokens, uint8_t *targets) {
  threads("batch", (int64_t)t.sequence * t.sequences, batch_token{t, tokens, targets});
}

/* -- norm, sums, embedding -- */

struct norm_row {
  matrix x, add;
  const float *gain;
  matrix sum, y;
  float *r;
  __device__ float joined(int64_t t, int64_t c) const { /* as stored: the backward sees it so */
    if (!add.data) return get(x, t, c);
    set(sum, t, c, get(x, t, c) + get(add, t, c));
    return get(sum, t, c);
  }
  __device__ void operator()(int64_t t, int lane) const {
    float squares = 0;
    for (int64_t c = lane; c < x.cols; c += WARP) {
      const float v = joined(t, c);
      squares += v * v;
    }
    const float scale = norm_scale(warp_sum(squares), x.cols);
    const matrix from = add.data ? sum : x;
    for (int64_t c = lane; c < x.cols; c += WARP) set(y, t, c, get(from, t, c) * scale * gain[c]);
    if (lane == 0) r[t] = scale;
  }
};

extern "C" void cuda_norm_forward(matrix x, matrix add, const float *gain, matrix sum, matrix y,
                                  float *r) {
  warps("norm_forward", x.rows, norm_row{x, add, gain, sum, y, r});
}

struct gain_column {
  matrix d_y, x;
  const float *r;
  float *d_gain;
  __device__ void operator()(int64_t c) const {
    float sum = 0;
    for (int64_t t = 0; t < x.rows; t++) sum += get(d_y, t, c) * get(x, t, c) * r[t];
    d_gain[c] += sum;
  }
};

struct norm_back_row {
  matrix d_y, x;
  const float *gain, *r;
  matrix d_sum, d_x;
  __device__ void operator()(int64_t t, int lane) const {
    float mean = 0;
    for (int64_t c = lane; c < x.cols; c += WARP) mean += get(d_y, t, c) * gain[c] * get(x, t, c);
    mean = warp_sum(mean) * r[t] * r[t] / (float)x.cols;
    for (int64_t c = lane; c < x.cols; c += WARP) {
      const float d = norm_gradient(get(d_y, t, c), gain[c], get(x, t, c), r[t], mean);
      set(d_x, t, c, d + (d_sum.data ? get(d_sum, t, c) : 0));
    }
  }
};

/* The gain's gradient first: d_x may be x. */
extern "C" void cuda_norm_backward(matrix d_y, matrix x, const float *gain, const float *r,
                                   matrix d_sum, matrix d_x, float *d_gain) {
  threads("gain_backward", x.cols, gain_column{d_y, x, r, d_gain});
  warps("norm_backward", x.rows, norm_back_row{d_y, x, gain, r, d_sum, d_x});
}

struct add_element {
  matrix a, b, sum;
  __device__ void operator()(int64_t i) const {
    const int64_t t = i / a.cols, c = i % a.cols;
    set(sum, t, c, get(a, t, c) + get(b, t, c));
  }
};

extern "C" void cuda_add(matrix a, matrix b, matrix sum) {
  threads("add", a.rows * a.cols, add_element{a, b, sum});
}

struct embed_element {
  const uint8_t *tokens;
  int sequence;
  const float *embedding, *position;
  matrix x;
  __device__ void operator()(int64_t i) const {
    const int64_t t = i / x.cols, c = i % x.cols;
    set(x, t, c, embedding[tokens[t] * x.cols + c] + position[t % sequence * x.cols + c]);
  }
};

extern "C" void cuda_embed_forward(const uint8_t *tokens, int sequence, const float *embedding,
                                   const float *position, matrix x) {
  threads("embed_forward", x.rows * x.cols,
          embed_element{tokens, sequence, embedding, position, x});
}

/* In token order, as two tokens may be the same. */
struct embed_column {
  const uint8_t *tokens;
  int sequence;
  matrix d_x;
  float *d_embedding, *d_position;
  __device__ void operator()(int64_t c) const {
    for (int64_t t = 0; t < d_x.rows; t++) {
      d_embedding[tokens[t] * d_x.cols + c] += get(d_x, t, c);
      d_position[t % sequence * d_x.cols + c] += get(d_x, t, c);
    }
  }
};

extern "C" void cuda_embed_backward(const uint8_t *tokens, int sequence, matrix d_x,
                                    float *d_embedding, float *d_position) {
  threads("embed_backward", d_x.cols,
          embed_column{tokens, sequence, d_x, d_embedding, d_position});
}

/* -- causal attention: lanes hold 32 keys' (or queries') scores, then the head's columns -- */

struct head { /* one head's columns of a matrix */
  matrix m;
  int64_t col;
  __device__ float at(int64_t row, int64_t c) const { return get(m, row, col + c); }
};

__device__ static inline float dot(head a, int64_t row_a, head b, int64_t row_b, int64_t d) {
  float sum = 0;
  for (int64_t c = 0; c < d; c++) sum += a.at(row_a, c) * b.at(row_b, c);
  return sum;
}

struct attention { /* work i is of token i / heads, head i % heads */
  matrix qkv, o;
  int sequence, heads;
  __device__ int64_t size() const { return o.cols / heads; }
  __device__ float scale() const { return 1 / sqrtf((float)size()); }
  __device__ int64_t token(int64_t i) const { return i / heads; }
  __device__ int64_t first(int64_t i) const { return token(i) / sequence * sequence; }
  __device__ float *lse_of(float *lse, int64_t i) const { return lse + i % heads * o.rows; }
  __device__ head part(matrix m, int which, int64_t i) const { /* 0 q, 1 k, 2 v; o has one */
    return head{m, which * o.cols + i % heads * size()};
  }
};

/* sum[] += weight of lane k times row first + k of `of`, for k < n */
__device__ static inline void add_rows(float weight, head of, int64_t first, int64_t n, int64_t d,
                                       int lane, float *sum) {
  for (int k = 0; k < WARP && k < n; k++) {
    const float w = __shfl_sync(ALL, weight, k);
    for (int e = 0; e * WARP < d; e++) sum[e] += w * of.at(first + k, e * WARP + lane);
  }
}

__device__ static inline void store_row(const float *sum, float times, head to, int64_t row,
                                        int64_t d, int lane) {
  for (int e = 0; e * WARP < d; e++)
    set(to.m, row, to.col + e * WARP + lane, sum[e] * times);
}

/* A query: the sum of exp, and of values, is scaled down whenever a higher score comes. */
struct query_forward {
  attention a;
  float *lse;
  __device__ void operator()(int64_t i, int lane) const {
    const head q = a.part(a.qkv, 0, i), k = a.part(a.qkv, 1, i), v = a.part(a.qkv, 2, i);
    const int64_t t = a.token(i), d = a.size();
    float top = -1e30f, total = 0, sum[MOST_PER_LANE] = {0};
    for (int64_t j = a.first(i); j <= t; j += WARP) {
      const bool seen = j + lane <= t;
      const float score = seen ? dot(q, t, k, j + lane, d) * a.scale() : -1e30f;
      const float highest = fmaxf(top, warp_highest(score)), shrink = expf(top - highest);
      const float p = seen ? expf(score - highest) : 0;
      total = total * shrink + warp_sum(p);
      for (int e = 0; e < MOST_PER_LANE; e++) sum[e] *= shrink;
      add_rows(p, v, j, t + 1 - j, d, lane, sum);
      top = highest;
    }
    store_row(sum, 1 / total, a.part(a.o, 0, i), t, d, lane);
    if (lane == 0) a.lse_of(lse, i)[t] = logf(total) + top;
  }
};

struct pair { /* of a query and a key: its probability, and the gradient of its score */
  float p, d_score;
};

struct attention_back {
  attention a;
  float *lse;
  matrix d_o, d_qkv;
  /* sum of p dp = d_o o, so dp minus it is d_o (v - o) */
  __device__ pair of(int64_t i, int64_t query, int64_t key, bool seen) const {
    const head q = a.part(a.qkv, 0, i), k = a.part(a.qkv, 1, i), v = a.part(a.qkv, 2, i);
    const head o = a.part(a.o, 0, i), d_out = a.part(d_o, 0, i);
    pair x = {0, 0};
    if (!seen) return x;
    const float score = dot(q, query, k, key, a.size()) * a.scale();
    float through = 0;
    for (int64_t c = 0; c < a.size(); c++)
      through += d_out.at(query, c) * (v.at(key, c) - o.at(query, c));
    x.p = expf(fminf(score - a.lse_of(lse, i)[query], 0));
    x.d_score = x.p * through * a.scale();
    return x;
  }
};

struct query_backward {
  attention_back b;
  __device__ void operator()(int64_t i, int lane) const {
    const int64_t t = b.a.token(i), d = b.a.size();
    float d_q[MOST_PER_LANE] = {0};
    for (int64_t j = b.a.first(i); j <= t; j += WARP) {
      const pair x = b.of(i, t, j + lane, j + lane <= t);
      add_rows(x.d_score, b.a.part(b.a.qkv, 1, i), j, t + 1 - j, d, lane, d_q);
    }
    store_row(d_q, 1, b.a.part(b.d_qkv, 0, i), t, d, lane);
  }
};

struct key_backward {
  attention_back b;
  __device__ void operator()(int64_t i, int lane) const {
    const int64_t t = b.a.token(i), d = b.a.size(), end = b.a.first(i) + b.a.sequence;
    float d_k[MOST_PER_LANE] = {0}, d_v[MOST_PER_LANE] = {0};
    for (int64_t j = t; j < end; j += WARP) {
      const pair x = b.of(i, j + lane, t, j + lane < end);
      add_rows(x.d_score, b.a.part(b.a.qkv, 0, i), j, end - j, d, lane, d_k);
      add_rows(x.p, b.a.part(b.d_o, 0, i), j, end - j, d, lane, d_v);
    }
    store_row(d_k, 1, b.a.part(b.d_qkv, 1, i), t, d, lane);
    store_row(d_v, 1, b.a.part(b.d_qkv, 2, i), t, d, lane);
  }
};

extern "C" void cuda_attention_forward(matrix qkv, int sequence, int heads, float *room, matrix o,
                                       float *lse) {
  const attention a = {qkv, o, sequence, heads};
  (void)room;
  warps("attention_forward", o.rows * heads, query_forward{a, lse});
}

extern "C" void cuda_attention_backward(matrix qkv, int sequence, int heads, float *room, matrix o,
                                        const float *lse, matrix d_o, matrix d_qkv) {
  const attention_back b = {{qkv, o, sequence, heads}, (float *)lse, d_o, d_qkv};
  (void)room;
  warps("attention_backward_queries", o.rows * heads, query_backward{b});
  warps("attention_backward_keys", o.rows * heads, key_backward{b});
}

/* -- loss -- */

struct loss_row {
  matrix logits;
  const uint8_t *targets;
  float scale, share, *losses;
  __device__ void operator()(int64_t t, int lane) const {
    enum { EACH = VOCAB / WARP };
    float x[EACH], highest = -1e30f, sum = 0, target = 0;
    for (int e = 0; e < EACH; e++) {
      x[e] = get(logits, t, e * WARP + lane);
      highest = fmaxf(highest, x[e]);
      if (e * WARP + lane == targets[t]) target = x[e];
    }
    highest = warp_highest(highest);
    target = warp_sum(target);
    for (int e = 0; e < EACH; e++) sum += x[e] = expf(x[e] - highest);
    sum = warp_sum(sum);
    for (int e = 0; e < EACH; e++) {
      const float hit = e * WARP + lane == targets[t] ? scale : 0;
      set(logits, t, e * WARP + lane, x[e] * (scale / sum) - hit);
    }
    if (lane == 0) losses[t] += (logf(sum) + highest - target) * share;
  }
};

extern "C" void cuda_cross_entropy(matrix logits, const uint8_t *targets, float scale, float share,
                                   float *losses) {
  warps("cross_entropy", logits.rows, loss_row{logits, targets, scale, share, losses});
}

/* -- AdamW -- */

struct adamw_element {
  adamw a;
  float *w, *grad, *m, *v;
  uint16_t *bf16;
  __device__ void operator()(int64_t i) const {
    w[i] = adamw_weight(a, w[i], grad[i], &m[i], &v[i]);
    grad[i] = 0;
    if (bf16) bf16[i] = to_bf16(w[i]);
  }
};

extern "C" void cuda_adamw(adamw a, int64_t n, float *w, float *grad, float *m, float *v,
                           uint16_t *bf16) {
  threads("adamw", n, adamw_element{a, w, grad, m, v, bf16});
}
