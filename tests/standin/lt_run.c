/* lt_run.c: computes a product as cuBLASLt does: f32 sums, epilogue, one rounding.
 *
 * op(A) and op(B) are unpacked to f32 rows of K (tf32: rounded to 10 bits of fraction), so that a
 * sum is a dot product. With a workspace, K goes in two halves, and the two sums meet in a later
 * step: products that share a workspace by mistake spoil each other, as on a card.
 * Invariant: everything is read and written when the stream comes to it, never before.
 * Leaves what is supported to lt_rules.c. */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "kernels/math.h"
#include "tests/standin/lt.h"

typedef struct product_work {
  si_work base;
  lt_problem p;
  lt_operands o;
  int id;
} product_work;

/* -- elements -- */

static float load(const void *p, int32_t type, int64_t i) {
  switch (type) {
    case CUDA_R_32F:
      return ((const float *)p)[i];
    case CUDA_R_16BF:
      return lam_f32_of_bf16(((const uint16_t *)p)[i]);
    case CUDA_R_16F:
      return lam_f32_of_f16(((const uint16_t *)p)[i]);
    case CUDA_R_8F_E4M3:
      return lam_f32_of_f8e4m3(((const uint8_t *)p)[i]);
    default:
      return lam_f32_of_f8e5m2(((const uint8_t *)p)[i]);
  }
}

static void store(void *p, int32_t type, int64_t i, float x) {
  switch (type) {
    case CUDA_R_32F:
      ((float *)p)[i] = x;
      break;
    case CUDA_R_16BF:
      ((uint16_t *)p)[i] = lam_bf16_of_f32(x);
      break;
    default:
      ((uint16_t *)p)[i] = lam_f16_of_f32(x);
      break;
  }
}

static int64_t at(const lt_layout *l, uint64_t row, uint64_t col) {
  return l->order == CUBLASLT_ORDER_COL ? (int64_t)row + (int64_t)col * l->ld
                                        : (int64_t)row * l->ld + (int64_t)col;
}

/* To 10 bits of fraction, the nearest, ties away from zero. */
static float tf32(float x) {
  uint32_t bits = lam_bits_of_f32(x);
  if (x != x || isinf(x)) return x;
  bits = (bits + 0x1000u) & ~0x1fffu;
  return lam_f32_of_bits(bits);
}

/* lines x k: op(A)'s rows, or op(B)'s columns; k_is_rows: K runs down its columns. */
static float *unpack(const lt_problem *p, const lt_layout *l, const void *from, uint64_t lines,
                     bool k_is_rows) {
  const bool rounds = p->desc.compute == CUBLAS_COMPUTE_32F_FAST_TF32;
  float *to = si_new(lines * p->k * sizeof(float));
  for (uint64_t i = 0; i < lines; i++)
    for (uint64_t j = 0; j < p->k; j++) {
      const float x = load(from, l->type, k_is_rows ? at(l, j, i) : at(l, i, j));
      to[i * p->k + j] = rounds ? tf32(x) : x;
    }
  return to;
}

/* -- sums -- */

typedef float lanes __attribute__((vector_size(32)));

static float dot(const float *a, const float *b, uint64_t n) {
  lanes sum = {0};
  float total = 0;
  uint64_t i = 0;
  for (; i + 8 <= n; i += 8) {
    lanes x, y;
    memcpy(&x, a + i, sizeof x);
    memcpy(&y, b + i, sizeof y);
    sum += x * y;
  }
  for (; i < n; i++) total += a[i] * b[i];
  for (int lane = 0; lane < 8; lane++) total += sum[lane];
  return total;
}

/* sums [n][m] of K from `first`, `count` of it */
static void sum_products(const lt_problem *p, const float *a, const float *b, uint64_t first,
                         uint64_t count, float *sums) {
  for (uint64_t col = 0; col < p->n; col++)
    for (uint64_t row = 0; row < p->m; row++)
      sums[col * p->m + row] = dot(a + row * p->k + first, b + col * p->k + first, count);
}

/* -- epilogues -- */

static float gelu(float x) {
  const double v = x, u = 0.7978845608028654 * (v + 0.044715 * v * v * v);
  return (float)(0.5 * v * (1.0 + tanh(u)));
}

static float gelu_slope(float x) {
  const double v = x, u = 0.7978845608028654 * (v + 0.044715 * v * v * v), t = tanh(u);
  const double du = 0.7978845608028654 * (1.0 + 3 * 0.044715 * v * v);
  return (float)(0.5 * (1.0 + t) + (fabs(v) > 30 ? 0.0 : 0.5 * v * (1.0 - t * t) * du));
}

static bool has_relu(uint32_t e) {
  return e == CUBLASLT_EPILOGUE_RELU || e == CUBLASLT_EPILOGUE_RELU_BIAS;
}

/* What becomes of a sum at (row, col). */
static float finish_one(const product_work *w, float v, uint64_t row, uint64_t col) {
  const lt_desc *d = &w->p.desc;
  const int64_t aux_at = (int64_t)row + (int64_t)col * d->aux_ld;
  if (w->o.beta != 0) v += w->o.beta * load(w->o.c, w->p.c.type, at(&w->p.c, row, col));
  if (lt_has_bias(d->epilogue)) v += load(d->bias, lt_bias_type(&w->p), (int64_t)row);
  if (lt_has_dgelu(d->epilogue)) return v * gelu_slope(load(d->aux, w->p.d.type, aux_at));
  if (lt_has_aux(d->epilogue)) store(d->aux, w->p.d.type, aux_at, v);
  if (lt_has_gelu(d->epilogue)) return gelu(v);
  return has_relu(d->epilogue) ? (v > 0 ? v : 0) : v;
}

static void finish(const product_work *w, const float *sums) {
  const lt_problem *p = &w->p;
  const float a_scale = p->desc.a_scale ? load(p->desc.a_scale, CUDA_R_32F, 0) : 1;
  const float b_scale = p->desc.b_scale ? load(p->desc.b_scale, CUDA_R_32F, 0) : 1;
  const bool adds = p->desc.epilogue == CUBLASLT_EPILOGUE_DGELU_BGRAD;
  for (uint64_t row = 0; row < p->m; row++) {
    float total = 0;
    for (uint64_t col = 0; col < p->n; col++) {
      const float v =
          finish_one(w, w->o.alpha * a_scale * b_scale * sums[col * p->m + row], row, col);
      store(w->o.d, p->d.type, at(&p->d, row, col), v);
      total += v;
    }
    if (adds) store(p->desc.bias, lt_bias_type(p), (int64_t)row, total);
  }
}

/* Sums over K of each line. */
static void sum_lines(const lt_problem *p, const float *lines, uint64_t n) {
  for (uint64_t i = 0; i < n; i++) {
    float total = 0;
    for (uint64_t j = 0; j < p->k; j++) total += lines[i * p->k + j];
    store(p->desc.bias, lt_bias_type(p), (int64_t)i, total);
  }
}

/* -- steps -- */

/* All sums; in two parts where the workspace is used. */
static void multiply(const product_work *w, float *sums) {
  const lt_problem *p = &w->p;
  const bool halves = w->id == 2;
  const uint64_t first = halves ? p->k / 2 : p->k;
  float *a = unpack(p, &p->a, w->o.a, p->m, p->desc.transa != CUBLAS_OP_N);
  float *b = unpack(p, &p->b, w->o.b, p->n, p->desc.transb == CUBLAS_OP_N);
  sum_products(p, a, b, 0, first, sums);
  if (halves) sum_products(p, a, b, first, p->k - first, sums + p->m * p->n);
  if (p->desc.epilogue == CUBLASLT_EPILOGUE_BGRADA) sum_lines(p, a, p->m);
  if (p->desc.epilogue == CUBLASLT_EPILOGUE_BGRADB) sum_lines(p, b, p->n);
  free(a), free(b);
}

static si_went run_halves(const product_work *w, void **state) {
  static char first_is_done;
  const uint64_t n = w->p.m * w->p.n;
  float *halves = w->o.workspace;
  if (!*state) {
    multiply(w, halves);
    *state = &first_is_done;
    return SI_MOVED;
  }
  *state = NULL;
  float *sums = si_new(n * sizeof *sums);
  for (uint64_t i = 0; i < n; i++) sums[i] = halves[i] + halves[n + i];
  finish(w, sums);
  free(sums);
  return SI_ENDED;
}

static si_went run_product(si_work *work, void **state) {
  const product_work *w = (const product_work *)work;
  if (!*state && lt_check_places(&w->p, &w->o, w->id, work->device, "a product that runs")) {
    si_lose(work->device, cudaErrorIllegalAddress);
    return SI_ENDED;
  }
  si_memory_reach(work->device);
  if (w->id == 2) return run_halves(w, state);
  float *sums = si_new(w->p.m * w->p.n * sizeof *sums);
  multiply(w, sums);
  finish(w, sums);
  free(sums);
  return SI_ENDED;
}

cudaError_t lt_queue(si_stream *s, const lt_problem *p, const lt_operands *o, int id) {
  product_work *w = (product_work *)si_work_new(sizeof *w, s->device, "a product", run_product);
  w->p = *p;
  w->o = *o;
  w->id = id;
  return si_stream_add(s, &w->base, "cublasLtMatmul");
}

/* -- where operands lie -- */

typedef struct places {
  int device, id;
  const char *who;
} places;

static cudaError_t check_at(const places *c, const void *p, uint64_t bytes, unsigned align,
                            const char *what) {
  const cudaError_t e = si_memory_check(p, bytes, c->device, c->who, what);
  if (e != cudaSuccess || (uintptr_t)p % align == 0) return e;
  return si_misuse(cudaErrorMisalignedAddress,
                   "%s: %s, %p, is not aligned to %u bytes, as algorithm %d asks", c->who, what, p,
                   align, c->id);
}

static cudaError_t check_matrix(const places *c, const void *p, const lt_layout *l,
                                const char *what) {
  const bool by_cols = l->order == CUBLASLT_ORDER_COL;
  const uint64_t lines = by_cols ? l->cols : l->rows, line = by_cols ? l->rows : l->cols;
  const uint64_t elements = (lines - 1) * (uint64_t)l->ld + line;
  return check_at(c, p, elements * (uint64_t)lt_bytes(l->type), lt_alignment(c->id, l->type), what);
}

static cudaError_t check_extras(const places *c, const lt_problem *p) {
  const lt_desc *d = &p->desc;
  const int size = lt_bytes(p->d.type), bias_size = lt_bytes(lt_bias_type(p));
  const uint64_t n_bias = d->epilogue == CUBLASLT_EPILOGUE_BGRADB ? p->n : p->m;
  cudaError_t e = cudaSuccess;
  if (lt_has_bias(d->epilogue) || lt_has_sum(d->epilogue))
    e = check_at(c, d->bias, n_bias * (uint64_t)bias_size, (unsigned)bias_size, "the bias");
  if (e == cudaSuccess && lt_has_aux(d->epilogue))
    e = check_at(c, d->aux, ((p->n - 1) * (uint64_t)d->aux_ld + p->m) * (uint64_t)size, 16,
                 "the auxiliary matrix");
  if (e == cudaSuccess && d->a_scale) e = check_at(c, d->a_scale, 4, 4, "A's scale");
  if (e == cudaSuccess && d->b_scale) e = check_at(c, d->b_scale, 4, 4, "B's scale");
  return e;
}

cudaError_t lt_check_places(const lt_problem *p, const lt_operands *o, int id, int device,
                            const char *who) {
  const places c = {device, id, who};
  uint64_t workspace = 0;
  (void)lt_check_choice(p, id, &workspace);
  cudaError_t e = check_matrix(&c, o->a, &p->a, "A");
  if (e == cudaSuccess) e = check_matrix(&c, o->b, &p->b, "B");
  if (e == cudaSuccess && o->beta != 0) e = check_matrix(&c, o->c, &p->c, "C");
  if (e == cudaSuccess) e = check_matrix(&c, o->d, &p->d, "D");
  if (e == cudaSuccess && workspace) e = check_at(&c, o->workspace, workspace, 16, "the workspace");
  return e == cudaSuccess ? check_extras(&c, p) : e;
}
