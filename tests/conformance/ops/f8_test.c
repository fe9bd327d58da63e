/* f8_test.c: layers of fp8, alone and split over two ranks that share the stand-in's card, against
 * double precision: emulated, not run on a GPU.
 *
 * The reference gets what the library gets: fp8's own numbers, and scales. What an ffn makes fp8 of
 * between its products follows from a number that is known up to a rounding: where both ends of what
 * it may be give one code, that code is expected, and no other.
 * Leaves sizes and strides of single products to tests/unit/kernels, f32 and 16 bits to ops_test.c. */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "abi/status.h"
#include "tests/distributed/peers/cards.h"

enum { MOST_IN = 8 };

/* -- numbers -- */

UNWATCHED static double f8_value(lam_dtype t, int code) {
  const int fraction = t == LAM_F8E4M3 ? 3 : 2, bias = t == LAM_F8E4M3 ? 7 : 15;
  const int power = code >> fraction & (t == LAM_F8E4M3 ? 15 : 31),
            part = code & ((1 << fraction) - 1);
  const double size = power ? ldexp((1 << fraction) + part, power - bias - fraction)
                            : ldexp(part, 1 - bias - fraction);
  return code & 0x80 ? -size : size;
}

/* The nearest, the even code of two; beyond the largest finite number that one. */
UNWATCHED static int f8_code(lam_dtype t, double x) {
  const int most = t == LAM_F8E4M3 ? 0x7e : 0x7b;
  int best = 0;
  for (int c = 1; c <= most; c++) {
    const double was = fabs(f8_value(t, best) - fabs(x)), is = fabs(f8_value(t, c) - fabs(x));
    if (is < was || (is == was && c % 2 == 0)) best = c;
  }
  return best | (signbit(x) ? 0x80 : 0);
}

static double to_bf16(double x) {
  const float f = (float)x;
  uint32_t bits;
  float back;
  memcpy(&bits, &f, 4);
  bits = (bits + 0x7fff + (bits >> 16 & 1)) & 0xffff0000u;
  memcpy(&back, &bits, 4);
  return back;
}

static double unit_of(lam_dtype t) {
  return t == LAM_BF16 ? 0x1p-8 : t == LAM_F16 ? 0x1p-11 : 0x1p-24;
}

/* A whole operand: fp8, or f32. */
typedef struct matrix {
  lam_dtype t;
  int64_t rows, cols;
  double *v;
} matrix;

static matrix matrix_random(rng *r, lam_dtype t, int64_t rows, int64_t cols) {
  matrix m = {t, rows, cols, calloc((size_t)(rows * cols), sizeof(double))};
  for (int64_t i = 0; i < rows * cols; i++) {
    const float x = 2 * rng_float(r);
    m.v[i] = t == LAM_F32 ? x : f8_value(t, f8_code(t, x));
  }
  return m;
}

/* -- calls -- */

typedef struct tensor {
  DLTensor dl;
  int64_t shape[2], strides[2];
} tensor;

static const DLDataType types[LAM_N_DTYPES] = {
    [LAM_F32] = {kDLFloat, 32, 1},
    [LAM_BF16] = {kDLBfloat, 16, 1},
    [LAM_F16] = {kDLFloat, 16, 1},
    [LAM_F8E4M3] = {10 /* kDLFloat8_e4m3fn */, 8, 1},
    [LAM_F8E5M2] = {12 /* kDLFloat8_e5m2 */, 8, 1},
};

static lam_attr dtype_attr(lam_dtype t) { return lam_attr_i(types[t].code | types[t].bits << 8); }

static void tensor_make(tensor *to, void *data, lam_dtype t, int64_t rows, int64_t cols) {
  *to = (tensor){.shape = {rows, cols}, .strides = {cols, 1}};
  to->dl = (DLTensor){data, {(DLDeviceType)2, 0}, 2, types[t], to->shape, to->strides, 0};
}

/* Rows and columns of m from these on, on the card. */
static void place(rank *r, tensor *to, const matrix *m, int64_t row, int64_t rows, int64_t col,
                  int64_t cols) {
  const size_t bytes = m->t == LAM_F32 ? 4 : 1;
  char *host = calloc((size_t)(rows * cols) + 1, bytes);
  for (int64_t i = 0; i < rows * cols; i++) {
    const double v = m->v[(row + i / cols) * m->cols + col + i % cols];
    if (bytes == 4)
      ((float *)host)[i] = (float)v;
    else
      host[i] = (char)f8_code(m->t, v);
  }
  tensor_make(to, to_card(r, host, (uint64_t)(rows * cols) * bytes), m->t, rows, cols);
  free(host);
}

static void place_vector(rank *r, tensor *to, const matrix *m, int64_t first, int64_t n) {
  place(r, to, m, 0, 1, first, n);
  to->dl.ndim = 1, to->dl.shape = to->shape + 1, to->dl.strides = to->strides + 1;
}

typedef struct made {
  tensor in[MOST_IN], y;
  const DLTensor *ins[MOST_IN];
} made;

static lam_status run(rank *r, uint32_t op, made *m, const lam_attr *attrs, uint32_t n_attrs) {
  DLTensor *out = &m->y.dl;
  lam_call c = LAM_CALL_INIT;
  for (int i = 0; i < MOST_IN; i++) m->ins[i] = m->in[i].dl.data ? &m->in[i].dl : NULL;
  c.op = op;
  c.inputs = m->ins, c.n_inputs = MOST_IN;
  while (!m->ins[c.n_inputs - 1]) c.n_inputs--;
  c.outputs = &out, c.n_outputs = 1;
  c.attrs = attrs, c.n_attrs = n_attrs;
  c.stream = r->stream;
  return lam_run(NULL, &c);
}

/* y [rows, cols] is want, off by at most the bounds and one rounding. */
static void check_result(rank *r, const made *m, lam_dtype t, const double *want,
                         const double *off) {
  const int64_t n = m->y.shape[0] * m->y.shape[1];
  const int bytes = lam_dtype_bytes(t);
  char *got = calloc((size_t)n + 1, 4);
  from_card(r, got, m->y.dl.data, (uint64_t)(n * bytes));
  for (int64_t i = 0; i < n; i++) {
    uint32_t bits = 0;
    float y;
    memcpy(&bits, got + i * bytes, (size_t)bytes);
    if (t == LAM_BF16) bits <<= 16;
    memcpy(&y, &bits, 4);
    const double bound = off[i] + 1.01 * unit_of(t) * (fabs(want[i]) + off[i]);
    NOTE("rank %d of %d, element %lld of %lld: %g, expected %g within %g", r->rank, r->size,
         (long long)i, (long long)n, (double)y, want[i], bound);
    if (!CHECK(fabs((double)y - want[i]) <= bound)) break;
  }
  free(got);
}

/* -- layers -- */

typedef struct layer {
  int64_t T, K, F, N;
  lam_dtype x_type, w_type, y_type;
  bool gated;
  matrix x, w1, b1, w2, b2, scales; /* scales: x's, w1's, w2's */
} layer;

static layer layer_random(rng *r, const int64_t *sizes, int i) {
  static const lam_dtype x[] = {LAM_F8E4M3, LAM_F8E4M3, LAM_F8E5M2}, y[] = {LAM_BF16, LAM_F32};
  layer l = {.T = sizes[0], .K = sizes[1], .F = sizes[2], .N = sizes[3]};
  const int64_t G = (l.gated = i % 4 == 3) ? 2 * l.F : l.F;
  l.x_type = x[i % 3], l.w_type = i % 5 == 4 && i % 3 < 2 ? LAM_F8E5M2 : LAM_F8E4M3;
  l.y_type = y[i % 2];
  l.x = matrix_random(r, l.x_type, l.T, l.K);
  l.w1 = matrix_random(r, l.w_type, G, l.K), l.b1 = matrix_random(r, LAM_F32, 1, G);
  l.w2 = matrix_random(r, LAM_F8E4M3, l.N, l.F), l.b2 = matrix_random(r, LAM_F32, 1, l.N);
  l.scales = matrix_random(r, LAM_F32, 1, 3);
  for (int k = 0; k < 3; k++) l.scales.v[k] = (float)(0.25 + fabs(l.scales.v[k]) / 4);
  return l;
}

static void layer_free(layer *l) {
  matrix *const all[] = {&l->x, &l->w1, &l->b1, &l->w2, &l->b2, &l->scales};
  for (int i = 0; i < 6; i++) free(all[i]->v);
}

/* The uneven rule, unit 1: where rank's share of n begins. */
static int64_t begin_of(int64_t n, int rank, int p) {
  const int64_t more = n % p;
  return n / p * rank + (rank < more ? rank : more);
}

/* x's row t times w1's row j, scaled, + b1; how far off f32's sums may be. */
static double product_at(const layer *l, int64_t t, int64_t j, double *off) {
  const double scale = l->scales.v[0] * l->scales.v[1];
  double sum = 0, size = fabs(l->b1.v[j]);
  for (int64_t k = 0; k < l->K; k++) {
    const double term = l->x.v[t * l->K + k] * l->w1.v[j * l->K + k] * scale;
    sum += term, size += fabs(term);
  }
  *off = (double)(l->K + 8) * 0x1p-24 * size;
  return sum + l->b1.v[j];
}

static void place_poison(rank *r, made *m, lam_dtype t, int64_t rows, int64_t cols) {
  void *y = to_card(r, NULL, (uint64_t)(rows * cols * lam_dtype_bytes(t)));
  tensor_make(&m->y, y, t, rows, cols);
}

static void check_products(rank *r, const layer *l, const made *m, int64_t first) {
  const int64_t n = m->y.shape[1];
  double *want = calloc((size_t)(l->T * n), 8), *off = calloc((size_t)(l->T * n), 8);
  for (int64_t i = 0; i < l->T * n; i++) want[i] = product_at(l, i / n, first + i % n, &off[i]);
  check_result(r, m, l->y_type, want, off);
  free(want), free(off);
}

/* Rows of w1 on each rank. */
static void linear_col(rank *r) {
  const layer *l = r->arg;
  const int64_t first = begin_of(l->F, r->rank, r->size),
                n = begin_of(l->F, r->rank + 1, r->size) - first;
  const lam_attr attrs[] = {lam_attr_i(lam_group_handle(r->g)),
                            lam_attr_s(""),
                            lam_attr_i(0),
                            lam_attr_i(0),
                            lam_attr_i(0),
                            lam_attr_i(l->F),
                            lam_attr_i(1),
                            lam_attr_i(0),
                            dtype_attr(l->y_type)};
  made m = {.ins = {NULL}};
  place(r, &m.in[0], &l->x, 0, l->T, 0, l->K);
  place(r, &m.in[1], &l->w1, first, n, 0, l->K);
  place_vector(r, &m.in[2], &l->b1, first, n);
  place_vector(r, &m.in[3], &l->scales, 0, 1);
  place_vector(r, &m.in[4], &l->scales, 1, 1);
  place_poison(r, &m, l->y_type, l->T, n);
  if (CHECK_OK(run(r, LAM_OP_linear_col, &m, attrs, 9))) check_products(r, l, &m, first);
}

/* Columns of x and w1 on each rank; y is the sum. */
static void linear_row(rank *r) {
  const layer *l = r->arg;
  const int64_t first = begin_of(l->K, r->rank, r->size),
                n = begin_of(l->K, r->rank + 1, r->size) - first;
  const lam_attr attrs[] = {lam_attr_i(lam_group_handle(r->g)),
                            lam_attr_i(1),
                            lam_attr_i(0),
                            lam_attr_i(l->K),
                            lam_attr_i(1),
                            lam_attr_i(r->size),
                            dtype_attr(l->y_type)};
  made m = {.ins = {NULL}};
  place(r, &m.in[0], &l->x, 0, l->T, first, n);
  place(r, &m.in[1], &l->w1, 0, l->F, first, n);
  place_vector(r, &m.in[2], &l->b1, 0, l->F);
  place_vector(r, &m.in[3], &l->scales, 0, 1);
  place_vector(r, &m.in[4], &l->scales, 1, 1);
  place_poison(r, &m, l->y_type, l->T, l->F);
  if (CHECK_OK(run(r, LAM_OP_linear_row, &m, attrs, 7))) check_products(r, l, &m, 0);
}

/* -- ffn -- */

typedef struct range {
  double low, high;
} range;

static double silu(double z) { return z / (1 + exp(-z)); }

/* h of token t and hidden feature j, rounded as aux would be: the ends of what it may be. The
 * product may have been rounded before act; silu's slope is at most 1.1. */
static range hidden_at(const layer *l, int64_t t, int64_t j) {
  const double u = unit_of(l->y_type);
  double off, up_off = 0;
  const double z = product_at(l, t, j, &off);
  const double up = l->gated ? product_at(l, t, l->F + j, &up_off) : 1;
  const double h = silu(z), z_off = off + u * fabs(z) + 0x1p-20 * (1 + fabs(z));
  if (l->gated) up_off += u * fabs(up);
  const double around = 1.1 * z_off * (fabs(up) + up_off) + fabs(h) * up_off + 0x1p-22 * fabs(h);
  const range all = {h * up - around, h * up + around};
  if (l->y_type != LAM_BF16) return all;
  return (range){to_bf16(all.low), to_bf16(all.high)};
}

static range f8_of(range x, double scale) {
  return (range){f8_value(LAM_F8E4M3, f8_code(LAM_F8E4M3, x.low / scale)) * scale,
                 f8_value(LAM_F8E4M3, f8_code(LAM_F8E4M3, x.high / scale)) * scale};
}

static range hull(range a, range b) { return (range){fmin(a.low, b.low), fmax(a.high, b.high)}; }

/* h [T, n] of one rank through fp8 and back, by its own scale, which is known up to its ends. */
static range *hidden_f8(const layer *l, int64_t first, int64_t n) {
  range *h = calloc((size_t)(l->T * n), sizeof *h), most = {0, 0};
  for (int64_t i = 0; i < l->T * n; i++) {
    h[i] = hidden_at(l, i / n, first + i % n);
    const double low = fmin(fabs(h[i].low), fabs(h[i].high));
    most.low = fmax(most.low, h[i].low < 0 && h[i].high > 0 ? 0 : low);
    most.high = fmax(most.high, fmax(fabs(h[i].low), fabs(h[i].high)));
  }
  const float low = (float)most.low / 448.0f, high = (float)most.high / 448.0f;
  for (int64_t i = 0; i < l->T * n; i++) h[i] = hull(f8_of(h[i], low), f8_of(h[i], high));
  return h;
}

/* Adds this rank's part of y to want, and to off how far off that may be. */
static void add_ffn_part(const layer *l, int64_t first, int64_t n, double *want, double *off) {
  range *h = hidden_f8(l, first, n);
  for (int64_t i = 0; i < l->T * l->N; i++) {
    double size = 0;
    for (int64_t j = 0; j < n; j++) {
      const range at = h[i / l->N * n + j];
      const double w = l->w2.v[i % l->N * l->F + first + j] * l->scales.v[2];
      want[i] += (at.low + at.high) / 2 * w;
      off[i] += (at.high - at.low) / 2 * fabs(w);
      size += fmax(fabs(at.low), fabs(at.high)) * fabs(w);
    }
    off[i] += (double)(n + 16) * 0x1p-24 * size;
  }
  free(h);
}

static void check_ffn(rank *r, const layer *l, const made *m) {
  double *want = calloc((size_t)(l->T * l->N), 8), *off = calloc((size_t)(l->T * l->N), 8);
  for (int64_t i = 0; i < l->T * l->N; i++) want[i] = l->b2.v[i % l->N];
  for (int k = 0; k < r->size; k++) {
    const int64_t first = begin_of(l->F, k, r->size);
    add_ffn_part(l, first, begin_of(l->F, k + 1, r->size) - first, want, off);
  }
  check_result(r, m, l->y_type, want, off);
  free(want), free(off);
}

/* A rank's rows of w1: its gate rows, then its up rows. */
static matrix own_rows(const layer *l, const matrix *m, int64_t cols, int64_t first, int64_t n) {
  const int halves = l->gated ? 2 : 1;
  matrix own = {m->t, halves * n, cols, calloc((size_t)(halves * n * cols), sizeof(double))};
  for (int half = 0; half < halves; half++)
    memcpy(own.v + half * n * cols, m->v + (half * l->F + first) * cols,
           sizeof(double) * (size_t)(n * cols));
  return own;
}

static void ffn(rank *r) {
  const layer *l = r->arg;
  const int64_t first = begin_of(l->F, r->rank, r->size),
                n = begin_of(l->F, r->rank + 1, r->size) - first;
  const lam_attr attrs[] = {lam_attr_i(lam_group_handle(r->g)),
                            lam_attr_s("silu"),
                            lam_attr_i(l->gated),
                            lam_attr_i(0),
                            lam_attr_i(0),
                            lam_attr_i(1),
                            dtype_attr(l->y_type)};
  matrix w1 = own_rows(l, &l->w1, l->K, first, n), b1 = own_rows(l, &l->b1, 1, first, n);
  b1.cols = b1.rows, b1.rows = 1;
  made m = {.ins = {NULL}};
  place(r, &m.in[0], &l->x, 0, l->T, 0, l->K);
  place(r, &m.in[1], &w1, 0, w1.rows, 0, l->K);
  place_vector(r, &m.in[2], &b1, 0, b1.cols);
  place(r, &m.in[3], &l->w2, 0, l->N, first, n);
  place_vector(r, &m.in[4], &l->b2, 0, l->N);
  for (int k = 0; k < 3; k++) place_vector(r, &m.in[5 + k], &l->scales, k, 1);
  place_poison(r, &m, l->y_type, l->T, l->N);
  if (CHECK_OK(run(r, LAM_OP_ffn, &m, attrs, 7))) check_ffn(r, l, &m);
  free(w1.v), free(b1.v);
}

/* -- sizes: what cuBLASLt takes, what it does not, few rows; even and uneven shares -- */

static const int64_t sizes[][4] = {{32, 64, 64, 48}, {16, 48, 96, 32}, {3, 64, 48, 32},
                                   {1, 33, 17, 5},   {9, 31, 35, 16},  {33, 80, 34, 19}};
enum { N_SIZES = sizeof sizes / sizeof *sizes };

typedef struct run_of {
  void (*fn)(rank *r);
  const layer *l;
  int ranks;
  uint64_t chance;
} run_of;

/* In a process of its own: what Lamella knows of a card outlives the stand-in's. */
static void in_process(int number, int size, void *arg) {
  const run_of *o = arg;
  const layer *l = o->l;
  (void)number, (void)size;
  setenv("LAMELLA_ALGORITHMS", "off", 1);
  NOTE("T=%lld K=%lld F=%lld N=%lld %s x %s -> %s%s", (long long)l->T, (long long)l->K,
       (long long)l->F, (long long)l->N, lam_dtype_name(l->x_type), lam_dtype_name(l->w_type),
       lam_dtype_name(l->y_type), l->gated ? ", gated" : "");
  on_cards(&(world){.chance = o->chance}, o->ranks, o->fn, l);
}

static void on_every_size(void (*fn)(rank *r)) {
  rng r = {seed()};
  for (int i = 0; i < 2 * N_SIZES; i++) {
    layer l = layer_random(&r, sizes[i % N_SIZES], i + i / N_SIZES);
    FOR_EACH(p, 1, 2) run_processes(1, in_process, &(run_of){fn, &l, p, rng_next(&r)});
    layer_free(&l);
  }
}

TEST(f8, a_column_split_layer_is_its_own_in_double_precision) { on_every_size(linear_col); }
TEST(f8, a_row_split_layer_is_its_own_in_double_precision) { on_every_size(linear_row); }
TEST(f8, an_ffn_is_its_own_in_double_precision) { on_every_size(ffn); }
