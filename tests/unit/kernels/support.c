/* support.c: see support.h. */
#include "tests/unit/kernels/support.h"

#include <math.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>

#include "kernels/cpu/parallel.h"
#include "kernels/math.h"

enum { GAP = 5, OFFSET = 3, PATTERN = 0xa5 };

/* -- matrices -- */

static lam_matrix shaped(int64_t rows, int64_t cols, lam_dtype dtype, form f) {
  const int64_t gap = f == ROWS_WITH_GAPS || f == COLS_WITH_GAPS ? GAP : 0;
  if (f == ROWS_APART)
    return (lam_matrix){NULL, rows, cols, (cols + 31) / 16 * 16, 1, dtype, false};
  if (f == BY_ROWS || f == ROWS_WITH_GAPS)
    return (lam_matrix){NULL, rows, cols, cols + gap, 1, dtype, false};
  return (lam_matrix){NULL, rows, cols, 1, rows + gap, dtype, false};
}

static int64_t lines_of(const lam_matrix *m) {
  return m->col_stride == 1 ? m->rows * m->row_stride : m->cols * m->col_stride;
}

box box_new(int64_t rows, int64_t cols, lam_dtype dtype, form f) {
  box b = {.m = shaped(rows, cols, dtype, f)};
  const int64_t bytes = lam_dtype_bytes(dtype);
  b.bytes = (uint64_t)((lines_of(&b.m) + 2 * OFFSET + rows + cols) * bytes + 64);
  if (posix_memalign((void **)&b.memory, 64, b.bytes) != 0) abort();
  memset(b.memory, PATTERN, b.bytes);
  b.m.data = b.memory + (f == BY_ROWS || f == ROWS_APART ? 0 : OFFSET * bytes);
  for (int64_t i = 0; i < rows; i++)
    for (int64_t j = 0; j < cols; j++) set(b.m, i, j, 0);
  return b;
}

box box_random(rng *r, int64_t rows, int64_t cols, lam_dtype dtype, form f) {
  box b = box_new(rows, cols, dtype, f);
  for (int64_t i = 0; i < rows; i++)
    for (int64_t j = 0; j < cols; j++) set(b.m, i, j, rng_float(r));
  return b;
}

box box_copy(const box *from) {
  box b = *from;
  if (posix_memalign((void **)&b.memory, 64, b.bytes) != 0) abort();
  memcpy(b.memory, from->memory, b.bytes);
  b.m.data = b.memory + ((unsigned char *)from->m.data - from->memory);
  return b;
}

void box_free(box *b) {
  free(b->memory);
  *b = (box){.memory = NULL};
}

void check_around(const box *b, const char *what) {
  unsigned char *copy = malloc(b->bytes);
  if (!copy) abort();
  memcpy(copy, b->memory, b->bytes);
  lam_matrix m = b->m;
  m.data = copy + ((unsigned char *)b->m.data - b->memory);
  const size_t bytes = (size_t)lam_dtype_bytes(m.dtype);
  for (int64_t i = 0; i < m.rows; i++)
    for (int64_t j = 0; j < m.cols; j++)
      memset((char *)m.data + (size_t)(i * m.row_stride + j * m.col_stride) * bytes, PATTERN,
             bytes);
  for (uint64_t i = 0; i < b->bytes; i++)
    if (copy[i] != PATTERN) {
      check_fail(CHECK_AT, "%s: byte %llu beside its elements was written", what,
                 (unsigned long long)i);
      break;
    }
  free(copy);
}

static void *at(lam_matrix m, int64_t row, int64_t col) {
  return (char *)m.data + (row * m.row_stride + col * m.col_stride) * lam_dtype_bytes(m.dtype);
}

double get(lam_matrix m, int64_t row, int64_t col) {
  const void *p = at(m, row, col);
  switch (m.dtype) {
    case LAM_F32: return (double)*(const float *)p;
    case LAM_BF16: return (double)lam_f32_of_bf16(*(const uint16_t *)p);
    case LAM_F16: return (double)lam_f32_of_f16(*(const uint16_t *)p);
    case LAM_F8E4M3: return (double)lam_f32_of_f8e4m3(*(const uint8_t *)p);
    case LAM_F8E5M2: return (double)lam_f32_of_f8e5m2(*(const uint8_t *)p);
    default: abort();
  }
}

void set(lam_matrix m, int64_t row, int64_t col, double v) {
  void *p = at(m, row, col);
  switch (m.dtype) {
    case LAM_F32: *(float *)p = (float)v; return;
    case LAM_BF16: *(uint16_t *)p = lam_bf16_of_f32((float)v); return;
    case LAM_F16: *(uint16_t *)p = lam_f16_of_f32((float)v); return;
    case LAM_F8E4M3: *(uint8_t *)p = lam_f8e4m3_of_f32((float)v); return;
    case LAM_F8E5M2: *(uint8_t *)p = lam_f8e5m2_of_f32((float)v); return;
    default: abort();
  }
}

void check_matrix(lam_matrix got, const double *want, double rtol, double atol) {
  const int64_t n = got.rows * got.cols;
  float *flat = malloc(sizeof(float) * (size_t)(n + 1));
  if (!flat) abort();
  for (int64_t i = 0; i < n; i++) flat[i] = (float)get(got, i / got.cols, i % got.cols);
  CHECK_CLOSE(flat, want, n, rtol, atol);
  free(flat);
}

void check_same(lam_matrix a, lam_matrix b) {
  for (int64_t i = 0; i < a.rows; i++)
    for (int64_t j = 0; j < a.cols; j++)
      if (memcmp(at(a, i, j), at(b, i, j), (size_t)lam_dtype_bytes(a.dtype)) != 0) {
        check_fail(CHECK_AT, "element [%lld, %lld] differs: %.9g, %.9g", (long long)i, (long long)j,
                   get(a, i, j), get(b, i, j));
        return;
      }
}

/* -- workers -- */

static void spread_openmp(void *context, int64_t n, void (*fn)(void *arg, int64_t i), void *arg) {
  (void)context;
  lam_cpu_parallel_for(2, n, fn, arg);
}

typedef struct half {
  int64_t first, n;
  void (*fn)(void *arg, int64_t i);
  void *arg;
} half;

static void *run_half(void *p) {
  const half *h = p;
  for (int64_t i = h->first; i < h->n; i += 2) h->fn(h->arg, i);
  return NULL;
}

static void spread_pool(void *context, int64_t n, void (*fn)(void *arg, int64_t i), void *arg) {
  (void)context;
  half even = {0, n, fn, arg}, odd = {1, n, fn, arg};
  pthread_t thread;
  if (pthread_create(&thread, NULL, run_half, &odd) != 0) abort();
  run_half(&even);
  pthread_join(thread, NULL);
}

/* What a thread borrowed last, and is borrowing now, one above the other; kept until it ends. */
static _Thread_local struct loan {
  void *data;
  uint64_t bytes;
} loans[4];
static _Thread_local int n_loans;

static void free_loans(void *of_thread) {
  for (int i = 0; i < 4; i++) free(((struct loan *)of_thread)[i].data);
}
static pthread_key_t at_thread_end;
static void make_key(void) { pthread_key_create(&at_thread_end, free_loans); }

static void *lend(void *context, uint64_t bytes) {
  static pthread_once_t once = PTHREAD_ONCE_INIT;
  (void)context;
  struct loan *l = &loans[n_loans];
  if (bytes > (uint64_t)1 << 40) return NULL;
  if (l->bytes < bytes) {
    pthread_once(&once, make_key);
    pthread_setspecific(at_thread_end, loans);
    free(l->data);
    if (posix_memalign(&l->data, 64, bytes) != 0) abort();
    l->bytes = bytes;
  }
  n_loans++;
  return l->data;
}

static void take_back(void *context, void *p) {
  (void)context;
  CHECK(n_loans > 0 && loans[n_loans - 1].data == p); /* the last first */
  n_loans--;
}

#define LENDS .borrow = lend, .give_back = take_back

const lam_workers *workers(crew c) {
  static const lam_workers crews[N_CREWS] = {
      [ALONE] = {.n_threads = 1, .parallel_for = spread_openmp, LENDS},
      [TWO_OPENMP] = {.n_threads = 2, .parallel_for = spread_openmp, LENDS},
      [TWO_POOL] = {.n_threads = 2, .parallel_for = spread_pool, .own_pool = true, LENDS},
  };
  return &crews[c];
}

const lam_lanes *lanes_here(int i) {
  int n = 0;
  const lam_lanes *const *all = lam_lanes_all(&n);
  for (int at = 0; at < n; at++)
    if (all[at]->is_here() && i-- == 0) return all[at];
  return NULL;
}

/* -- references -- */

static double sigmoid(double x) { return 1 / (1 + exp(-x)); }
static double normal(double x) { return 0.5 * erfc(-x * M_SQRT1_2); }
static double gelu_tanh_sigmoid(double x) {
  return sigmoid(2 * sqrt(2 / M_PI) * (x + 0.044715 * x * x * x));
}

double act_of(lam_act act, double x) {
  switch (act) {
    case LAM_ACT_GELU: return x * normal(x);
    case LAM_ACT_GELU_TANH: return x * gelu_tanh_sigmoid(x);
    case LAM_ACT_SILU: return x * sigmoid(x);
    case LAM_ACT_RELU: return x < 0 ? 0 : x;
    case LAM_ACT_RELU2: return x < 0 ? 0 : x * x;
    default: return x;
  }
}

double act_grad_of(lam_act act, double x) {
  const double s = sigmoid(x), t = gelu_tanh_sigmoid(x);
  switch (act) {
    case LAM_ACT_GELU: return normal(x) + x * exp(-x * x / 2) / sqrt(2 * M_PI);
    case LAM_ACT_GELU_TANH:
      return t + x * t * (1 - t) * 2 * sqrt(2 / M_PI) * (1 + 3 * 0.044715 * x * x);
    case LAM_ACT_SILU: return s + x * s * (1 - s);
    case LAM_ACT_RELU: return isnan(x) ? x : x > 0;
    case LAM_ACT_RELU2: return isnan(x) ? x : x > 0 ? 2 * x : 0;
    default: return isnan(x) ? x : 1;
  }
}

static double *flat_of(lam_matrix m) {
  double *flat = malloc(sizeof *flat * (size_t)(m.rows * m.cols + 1));
  if (!flat) abort();
  for (int64_t i = 0; i < m.rows; i++)
    for (int64_t j = 0; j < m.cols; j++) flat[i * m.cols + j] = get(m, i, j);
  return flat;
}

static double dot(const double *a, const double *b, int64_t n) {
  double sum = 0;
  for (int64_t k = 0; k < n; k++) sum += a[k] * b[k];
  return sum;
}

static double element(lam_matrix v, int64_t i) {
  if (!lam_matrix_here(v)) return 0;
  return v.rows == 1 ? get(v, 0, i) : get(v, i, 0);
}

void product_of(const lam_gemm *g, const double *before, double *want, double *z) {
  const int64_t m = g->d.rows, n = g->d.cols, k = g->a.cols;
  double *a = flat_of(g->a), *b = flat_of(g->b);
  for (int64_t at = 0; at < m * n; at++) {
    const double sum = dot(a + at / n * k, b + at % n * k, k) + element(g->bias, at % n);
    if (z) z[at] = sum;
    want[at] = act_of(g->act, sum) + (before ? before[at] : 0);
  }
  free(a), free(b);
}

/* Partial sums of K random products grow as sqrt(K) / 3; each of K additions errs by half a unit of
 * one: together, as chance has it, K u / 6 and seldom four times that. An activation stretches an
 * error by its slope, for relu2 up to 2 |z|. */
double product_tolerance(const lam_gemm *g) {
  const double k = (double)g->a.cols, u = 0x1p-24;
  const double slope = g->act == LAM_ACT_RELU2 ? 2 * (sqrt(k) + 1) : 1.2;
  const double library = g->act == LAM_ACT_NONE ? 0 : 2e-6; /* what oneDNN's activations err */
  return slope * 2 * u * (k + 8) + library;
}

double rounding_of(lam_dtype t) {
  static const double units[] = {[LAM_F32] = 0x1p-24,
                                 [LAM_BF16] = 0x1p-8,
                                 [LAM_F16] = 0x1p-11,
                                 [LAM_F8E4M3] = 0x1p-4,
                                 [LAM_F8E5M2] = 0x1p-3};
  return units[t];
}
