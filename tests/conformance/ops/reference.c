/* reference.c: the rows' arithmetic in double precision, one short function a family.
 * Invariant: an output's bound covers every order of summation and exactly the roundings that the
 * interface promises: one, or, where a problem is computed in steps, one for each step. */
#include "tests/conformance/ops/reference.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "abi/lamella.h"

#define F32_UNIT 0x1p-24 /* half of the distance to the next number, relative */
#define BF16_UNIT 0x1p-8
#define F16_UNIT 0x1p-11
#define F16_LEAST 0x1p-25 /* half of the distance between its smallest numbers */

/* -- activations -- */

static double normal(double z) { return 0.5 * erfc(-z / sqrt(2)); }
static double sigmoid(double z) { return 1 / (1 + exp(-z)); }
static double tanh_arg(double z) { return sqrt(2 / M_PI) * (z + 0.044715 * z * z * z); }

double ref_act_of(ref_act act, double z) {
  switch (act) {
    case ACT_GELU:
      return z * normal(z);
    case ACT_GELU_TANH:
      return 0.5 * z * (1 + tanh(tanh_arg(z)));
    case ACT_SILU:
      return z * sigmoid(z);
    case ACT_RELU:
      return z > 0 ? z : 0;
    case ACT_RELU2:
      return z > 0 ? z * z : 0;
    default:
      return z;
  }
}

static double gelu_tanh_slope(double z) {
  const double t = tanh(tanh_arg(z));
  return 0.5 * (1 + t) + 0.5 * z * (1 - t * t) * sqrt(2 / M_PI) * (1 + 3 * 0.044715 * z * z);
}

double ref_act_slope(ref_act act, double z) {
  switch (act) {
    case ACT_GELU:
      return normal(z) + z * exp(-z * z / 2) / sqrt(2 * M_PI);
    case ACT_GELU_TANH:
      return gelu_tanh_slope(z);
    case ACT_SILU:
      return sigmoid(z) * (1 + z * (1 - sigmoid(z)));
    case ACT_RELU:
      return z > 0 ? 1 : 0;
    case ACT_RELU2:
      return z > 0 ? 2 * z : 0;
    default:
      return 1;
  }
}

/* -- numbers with bounds -- */

/* half: to the problem's 16 bits */
static num rounded(const problem *pr, num a, bool half) {
  const double unit = !half ? F32_UNIT : pr->f16 ? F16_UNIT : BF16_UNIT;
  a.e += unit * (fabs(a.v) + a.e) + (half && pr->f16 ? F16_LEAST : 0);
  return a;
}

/* f32 arithmetic of a few steps: 8 units in the last place */
static num computed(double v, double e) {
  return (num){v, e + 8 * F32_UNIT * (fabs(v) + e) + 0x1p-126};
}

static num times(num a, num b) {
  return computed(a.v * b.v, fabs(a.v) * b.e + fabs(b.v) * a.e + a.e * b.e);
}

/* |act'| is at most 1.13 (gelu), and 2 |z| for relu2 */
static num act_of(ref_act act, num z) {
  const double steep = act == ACT_RELU2 ? 2 * (fabs(z.v) + z.e) : 1.2;
  return computed(ref_act_of(act, z.v), steep * z.e);
}

/* z is exact: a saved tensor. 1 + |z| also bounds the terms that the slopes are made of. */
static num slope_of(ref_act act, num z) {
  const double slope = ref_act_slope(act, z.v);
  return computed(slope, 8 * F32_UNIT * (1 + fabs(z.v)));
}

/* One sum of products: add, then close. */
typedef struct dot {
  double v, e, magnitude;
  int64_t n;
} dot;

static void dot_add(dot *d, num a, num b) {
  d->v += a.v * b.v;
  d->e += fabs(a.v) * b.e + fabs(b.v) * a.e + a.e * b.e;
  d->magnitude += fabs(a.v) * fabs(b.v);
  d->n++;
}

static num dot_close(dot d) {
  return (num){d.v, d.e + (double)(d.n + 8) * F32_UNIT * (d.magnitude + d.e)};
}

/* c [m, n] = the sum over k of a(i, k) b(j, k), + bias [n]; strides give any transposition */
typedef struct view {
  const num *data;
  int64_t row, col;
} view;

static num cell(view a, int64_t i, view b, int64_t j, int64_t n_k, const num *bias) {
  dot d = {0};
  for (int64_t k = 0; k < n_k; k++)
    dot_add(&d, a.data[i * a.row + k * a.col], b.data[j * b.row + k * b.col]);
  if (bias) dot_add(&d, bias[j], (num){1, 0});
  return dot_close(d);
}

static void product(view a, view b, const num *bias, int64_t m, int64_t n, int64_t k, num *c) {
  for (int64_t i = 0; i < m; i++)
    for (int64_t j = 0; j < n; j++) c[i * n + j] = cell(a, i, b, j, k, bias);
}

static num *numbers(int64_t n) { return calloc((size_t)(n > 0 ? n : 1), sizeof(num)); }

static void round_all(const problem *pr, num *a, int64_t n, bool bf16) {
  for (int64_t i = 0; i < n; i++) a[i] = rounded(pr, a[i], bf16);
}

/* z = x w^T + b, which act is given: as it is, or, in steps, rounded. */
static void product_for_act(const problem *pr, const num *x, const num *w, const num *b, int64_t N,
                            bool bf16, num *z) {
  const int64_t T = pr->S * pr->B;
  product((view){x, pr->K, 1}, (view){w, pr->K, 1}, b, T, N, pr->K, z);
  if (pr->in_steps && pr->act != ACT_NONE) round_all(pr, z, T * N, bf16);
}

int64_t ref_size(const problem *pr, char letter) {
  switch (letter) {
    case 'T':
      return pr->S * pr->B;
    case 'K':
      return pr->K;
    case 'N':
      return pr->N;
    case 'F':
      return pr->F;
    case 'G':
      return pr->gated ? 2 * pr->F : pr->F;
    default:
      return 1;
  }
}

int64_t ref_count(const problem *pr, const operand *o) {
  int64_t n = 1;
  for (const char *c = o->dims; *c; c++) n *= ref_size(pr, *c);
  return n;
}

static int64_t tokens(const problem *pr) { return pr->S * pr->B; }
static bool y_bf16(const problem *pr) { return pr->bf16 && !pr->out_f32; }

/* -- linear: x [T, K] w [N, K] b [N]? -> y [T, N] aux [T, N]? -- */

static void linear(const problem *pr) {
  const int64_t T = tokens(pr), n = T * pr->N;
  num *z = numbers(n);
  product_for_act(pr, pr->in[0], pr->in[1], pr->in[2], pr->N, pr->save ? pr->bf16 : y_bf16(pr), z);
  for (int64_t i = 0; i < n; i++) {
    if (pr->save) z[i] = pr->out[1][i] = rounded(pr, z[i], pr->bf16); /* act may be that of aux */
    pr->out[0][i] = rounded(pr, act_of((ref_act)pr->act, z[i]), y_bf16(pr));
  }
  free(z);
}

/* dx [T, K] = dy [T, N] w [N, K] */
static void input_gradient(const problem *pr, const num *dy, const num *w, bool bf16, num *dx) {
  const int64_t T = tokens(pr);
  product((view){dy, pr->N, 1}, (view){w, 1, pr->K}, NULL, T, pr->K, pr->N, dx);
  round_all(pr, dx, T * pr->K, bf16);
}

/* dw [N, K] (+)= dy^T x, db [N]? (+)= the sum of dy's rows. What is added to lies in dw, db. */
static void weight_gradient(const problem *pr, const num *dy, int64_t N, const num *x, int64_t K,
                            num *dw, num *db) {
  const int64_t T = tokens(pr);
  const bool bf16 = pr->bf16 && !pr->grad_f32;
  num *sums = numbers(N * K), one = {1, 0};
  product((view){dy, 1, N}, (view){x, 1, K}, NULL, N, K, T, sums);
  for (int64_t i = 0; i < N * K; i++) {
    const double old = pr->acc ? dw[i].v : 0;
    dw[i] = rounded(pr, computed(sums[i].v + old, sums[i].e), bf16);
  }
  for (int64_t j = 0; db && j < N; j++) {
    dot d = {0};
    for (int64_t t = 0; t < T; t++) dot_add(&d, dy[t * N + j], one);
    if (pr->acc) dot_add(&d, db[j], one);
    db[j] = rounded(pr, dot_close(d), bf16);
  }
  free(sums);
}

static void linear_dgrad(const problem *pr) {
  input_gradient(pr, pr->in[0], pr->in[1], y_bf16(pr), pr->out[0]);
}
static void linear_wgrad(const problem *pr) {
  weight_gradient(pr, pr->in[0], pr->N, pr->in[1], pr->K, pr->out[0], pr->out[1]);
}
static void linear_bwd(const problem *pr) {
  input_gradient(pr, pr->in[0], pr->in[2], y_bf16(pr), pr->out[0]);
  weight_gradient(pr, pr->in[0], pr->N, pr->in[1], pr->K, pr->out[1], pr->out[2]);
}

static void act_bwd(const problem *pr) {
  for (int64_t i = 0; i < tokens(pr) * pr->N; i++)
    pr->out[0][i] =
        rounded(pr, times(pr->in[0][i], slope_of((ref_act)pr->act, pr->in[1][i])), pr->bf16);
}

/* -- ffn: h = act(z), or act(gate) * up with z = [gate | up] -- */

static num *hidden(const problem *pr, const num *z) {
  const int64_t T = tokens(pr), F = pr->F, G = ref_size(pr, 'G');
  num *h = numbers(T * F);
  for (int64_t t = 0; t < T; t++)
    for (int64_t f = 0; f < F; f++) {
      num v = act_of((ref_act)pr->act, z[t * G + f]);
      if (pr->gated) v = times(v, z[t * G + F + f]);
      h[t * F + f] = rounded(pr, v, pr->bf16);
    }
  return h;
}

/* x w1 b1? w2 b2? -> y aux? */
static void ffn(const problem *pr) {
  const int64_t T = tokens(pr), G = ref_size(pr, 'G');
  num *z = numbers(T * G);
  product_for_act(pr, pr->in[0], pr->in[1], pr->in[2], G, pr->bf16, z);
  if (pr->gated || pr->save) round_all(pr, z, T * G, pr->bf16);
  if (pr->save) memcpy(pr->out[1], z, sizeof *z * (size_t)(T * G));
  num *h = hidden(pr, z);
  product((view){h, pr->F, 1}, (view){pr->in[3], pr->F, 1}, pr->in[4], T, pr->N, pr->F, pr->out[0]);
  round_all(pr, pr->out[0], T * pr->N, y_bf16(pr));
  free(h);
  free(z);
}

/* dz = dh * act'(z); gated: [dh * up * act'(gate) | dh * act(gate)], dh = dy w2 */
static void hidden_gradient(const problem *pr, const num *dy, const num *z, const num *w2,
                            num *dz) {
  const int64_t T = tokens(pr), F = pr->F, G = ref_size(pr, 'G');
  const ref_act act = (ref_act)pr->act;
  num *dh = numbers(T * F);
  product((view){dy, pr->N, 1}, (view){w2, 1, F}, NULL, T, F, pr->N, dh);
  round_all(pr, dh, T * F, pr->bf16);
  for (int64_t t = 0; t < T; t++)
    for (int64_t f = 0; f < F; f++) {
      const num d = dh[t * F + f], gate = z[t * G + f];
      num v = times(d, slope_of(act, gate));
      if (pr->gated) v = times(v, z[t * G + F + f]);
      dz[t * G + f] = rounded(pr, v, pr->bf16);
      if (pr->gated) dz[t * G + F + f] = rounded(pr, times(d, act_of(act, gate)), pr->bf16);
    }
  free(dh);
}

static void through_w1(const problem *pr, const num *dz, const num *w1, num *dx) {
  const int64_t T = tokens(pr), G = ref_size(pr, 'G');
  product((view){dz, G, 1}, (view){w1, 1, pr->K}, NULL, T, pr->K, G, dx);
  round_all(pr, dx, T * pr->K, pr->bf16);
}

/* out: dw1 db1? dw2 db2? */
static void ffn_weight_gradients(const problem *pr, const num *dy, const num *x, const num *z,
                                 const num *dz, num *const *out) {
  num *h = hidden(pr, z);
  weight_gradient(pr, dz, ref_size(pr, 'G'), x, pr->K, out[0], out[1]);
  weight_gradient(pr, dy, pr->N, h, pr->F, out[2], out[3]);
  free(h);
}

static void ffn_dgrad(const problem *pr) { /* dy aux w1 w2 -> dx dz */
  hidden_gradient(pr, pr->in[0], pr->in[1], pr->in[3], pr->out[1]);
  through_w1(pr, pr->out[1], pr->in[2], pr->out[0]);
}
static void ffn_wgrad(const problem *pr) { /* dy x aux dz -> dw1 db1? dw2 db2? */
  ffn_weight_gradients(pr, pr->in[0], pr->in[1], pr->in[2], pr->in[3], pr->out);
}
static void ffn_bwd(const problem *pr) { /* dy x aux w1 w2 -> dx dw1 db1? dw2 db2? */
  num *dz = numbers(tokens(pr) * ref_size(pr, 'G'));
  hidden_gradient(pr, pr->in[0], pr->in[2], pr->in[4], dz);
  through_w1(pr, dz, pr->in[3], pr->out[0]);
  ffn_weight_gradients(pr, pr->in[0], pr->in[1], pr->in[2], dz, pr->out + 1);
  free(dz);
}

/* -- vocabulary: N rows or logits; indices are exact numbers -- */

static void embedding(const problem *pr) { /* ids w -> y [T, K] */
  for (int64_t t = 0; t < tokens(pr); t++)
    memcpy(pr->out[0] + t * pr->K, pr->in[1] + (int64_t)pr->in[0][t].v * pr->K,
           sizeof(num) * (size_t)pr->K);
}

static void embedding_wgrad(const problem *pr) { /* dy ids -> dw [N, K] */
  for (int64_t i = 0; i < pr->N * pr->K; i++) {
    dot d = {0};
    for (int64_t t = 0; t < tokens(pr); t++)
      if ((int64_t)pr->in[1][t].v == i / pr->K)
        dot_add(&d, pr->in[0][t * pr->K + i % pr->K], (num){1, 0});
    if (pr->acc) dot_add(&d, pr->out[0][i], (num){1, 0});
    pr->out[0][i] = rounded(pr, dot_close(d), pr->bf16 && !pr->grad_f32);
  }
}

/* Rounding its argument puts e^x off by |x| units, relative. */
static num exp_of(double x) {
  const double v = exp(x);
  return computed(v, v * 2 * F32_UNIT * fabs(x));
}

static void cross_entropy(const problem *pr) { /* logits targets -> loss lse */
  for (int64_t t = 0; t < tokens(pr); t++) {
    const num *z = pr->in[0] + t * pr->N;
    const int64_t target = (int64_t)pr->in[1][t].v;
    double most = -INFINITY, sum = 0;
    for (int64_t j = 0; j < pr->N; j++) most = fmax(most, z[j].v);
    for (int64_t j = 0; j < pr->N; j++) sum += exp(z[j].v - most);
    /* A sum of positive numbers is off by a relative error, its log by as much in all. */
    const double e = F32_UNIT * (2 * (double)pr->N + 64 + 8 * fabs(most));
    pr->out[1][t] = computed(most + log(sum), e);
    pr->out[0][t] = target == pr->ignore
                        ? (num){0, 0}
                        : computed(most + log(sum) - z[target].v, e + F32_UNIT * fabs(z[target].v));
  }
}

static void cross_entropy_bwd(const problem *pr) { /* dloss logits targets lse -> dlogits */
  for (int64_t i = 0; i < tokens(pr) * pr->N; i++) {
    const int64_t t = i / pr->N, target = (int64_t)pr->in[2][t].v;
    num p = exp_of(pr->in[1][i].v - pr->in[3][t].v);
    if (target == i % pr->N) p = computed(p.v - 1, p.e);
    pr->out[0][i] =
        target == pr->ignore ? (num){0, 0} : rounded(pr, times(pr->in[0][t], p), pr->bf16);
  }
}

/* -- collectives: x [T, K]; PARTS one after the other -- */

static void same(const problem *pr) {
  memcpy(pr->out[0], pr->in[0], sizeof(num) * (size_t)(tokens(pr) * pr->K));
}
static void sum_of_parts(const problem *pr) {
  const int64_t n = tokens(pr) * pr->K;
  for (int64_t i = 0; i < n; i++) {
    dot d = {0};
    for (int r = 0; r < pr->p; r++) dot_add(&d, pr->in[0][r * n + i], (num){1, 0});
    pr->out[0][i] = rounded(pr, dot_close(d), pr->bf16);
  }
}
static void roots_part(const problem *pr) {
  const int64_t n = tokens(pr) * pr->K;
  memcpy(pr->out[0], pr->in[0] + pr->root * n, sizeof(num) * (size_t)n);
}

/* -- norm -- */

/* 1 / sqrt(mean of x^2 + eps) of a row of K */
static num root_of(const problem *pr, const num *x) {
  dot d = {0};
  for (int64_t j = 0; j < pr->K; j++) dot_add(&d, x[j], x[j]);
  const num squares = dot_close(d);
  const double K = (double)pr->K, mean = squares.v / K, off = squares.e / K;
  const double root = 1 / sqrt(mean + pr->eps), least = fmax(mean - off, 0) + pr->eps;
  return computed(root, 1 / sqrt(least) - root);
}

static void norm(const problem *pr, const num *x, const num *g, num *y) {
  for (int64_t i = 0; i < tokens(pr) * pr->K; i++) {
    const num root = root_of(pr, x + i / pr->K * pr->K);
    y[i] = rounded(pr, times(times(x[i], root), g[i % pr->K]), pr->bf16);
  }
}

static void rmsnorm(const problem *pr) {
  norm(pr, pr->in[0], pr->in[1], pr->out[0]);
} /* x g -> y */

/* dx = r g dy - x r^3 mean(g dy x) */
static void norm_gradient(const problem *pr, const num *dy, const num *x, const num *g, num *dx) {
  const num r = root_of(pr, x), none = {0, 0};
  dot d = {0};
  for (int64_t j = 0; j < pr->K; j++) dot_add(&d, times(dy[j], g[j]), x[j]);
  const num sum = dot_close(d), mean = {sum.v / (double)pr->K, sum.e / (double)pr->K};
  const num less = times(times(times(r, r), r), mean);
  for (int64_t j = 0; j < pr->K; j++) {
    dot two = {0};
    dot_add(&two, times(dy[j], g[j]), r);
    dot_add(&two, (num){-x[j].v, x[j].e}, less);
    dx[j] = rounded(pr, pr->K ? dot_close(two) : none, pr->bf16);
  }
}

static void rmsnorm_bwd(const problem *pr) { /* dy x g -> dx dg? */
  const num *dy = pr->in[0], *x = pr->in[1];
  const int64_t T = tokens(pr), K = pr->K;
  for (int64_t t = 0; t < T; t++)
    norm_gradient(pr, dy + t * K, x + t * K, pr->in[2], pr->out[0] + t * K);
  for (int64_t j = 0; pr->out[1] && j < K; j++) {
    dot d = {0};
    for (int64_t t = 0; t < T; t++)
      dot_add(&d, times(dy[t * K + j], x[t * K + j]), root_of(pr, x + t * K));
    if (pr->acc) dot_add(&d, pr->out[1][j], (num){1, 0});
    pr->out[1][j] = rounded(pr, dot_close(d), pr->bf16 && !pr->grad_f32);
  }
}

static void sum_and_norm(const problem *pr) { /* x res g -> y next */
  const int64_t n = tokens(pr) * pr->K;
  for (int64_t i = 0; i < n; i++) {
    dot d = {0};
    for (int r = 0; r < pr->p; r++) dot_add(&d, pr->in[0][r * n + i], (num){1, 0});
    dot_add(&d, pr->in[1][i], (num){1, 0});
    pr->out[1][i] = rounded(pr, dot_close(d), pr->bf16);
  }
  norm(pr, pr->out[1], pr->in[2], pr->out[0]);
}

/* -- the rows -- */

#define TRANSFERS "tests/distributed/ops/transfer_test.c"
#define CODECS "tests/distributed/ops/codec_test.c"

static const reference references[] = {
    {.op = LAM_OP_send_activation, .apart = TRANSFERS},
    {.op = LAM_OP_recv_activation, .apart = TRANSFERS},

    {LAM_OP_all_reduce, {{"TK", PARTS, 0}}, {{"TK", WHOLE, 0}}, sum_of_parts, 0},
    {LAM_OP_all_gather, {{"TK", ALONG, 0}}, {{"TK", WHOLE, 0}}, same, 0},
    {LAM_OP_reduce_scatter, {{"TK", PARTS, 0}}, {{"TK", ALONG, 0}}, sum_of_parts, 0},
    {LAM_OP_broadcast, {{"TK", PARTS, 0}}, {{"TK", WHOLE, 0}}, roots_part, 0},
    {LAM_OP_reduce, {{"TK", PARTS, 0}}, {{"TK", WHOLE, 0}}, sum_of_parts, 0},

    {LAM_OP_copy_to_group, {{"TK", WHOLE, 0}}, {{"TK", WHOLE, 0}}, same, 0},
    {LAM_OP_reduce_from_group, {{"TK", PARTS, 0}}, {{"TK", WHOLE, 0}}, sum_of_parts, 0},
    {LAM_OP_gather_from_group, {{"TK", LAST, 0}}, {{"TK", WHOLE, 0}}, same, 0},
    {LAM_OP_scatter_to_group, {{"TK", WHOLE, 0}}, {{"TK", LAST, 0}}, same, 0},
    {LAM_OP_gather_sequence, {{"TK", ALONG, 0}}, {{"TK", WHOLE, 0}}, same, 0},
    {LAM_OP_scatter_sequence, {{"TK", WHOLE, 0}}, {{"TK", ALONG, 0}}, same, 0},

    {LAM_OP_linear,
     {{"TK", WHOLE, 0}, {"NK", WHOLE, WEIGHT}, {"N", WHOLE, BIAS}},
     {{"TN", WHOLE, 0}, {"TN", WHOLE, SAVED}},
     linear,
     0},
    {LAM_OP_linear_dgrad,
     {{"TN", WHOLE, 0}, {"NK", WHOLE, WEIGHT}},
     {{"TK", WHOLE, 0}},
     linear_dgrad,
     0},
    {LAM_OP_linear_wgrad,
     {{"TN", WHOLE, 0}, {"TK", WHOLE, 0}},
     {{"NK", WHOLE, WEIGHT | ADDED}, {"N", WHOLE, BIAS | ADDED}},
     linear_wgrad,
     0},
    {LAM_OP_act_bwd, {{"TN", WHOLE, 0}, {"TN", WHOLE, 0}}, {{"TN", WHOLE, 0}}, act_bwd, 0},

    {LAM_OP_linear_col,
     {{"TK", SEQ, 0}, {"NK", FIRST, WEIGHT}, {"N", LAST, BIAS}},
     {{"TN", GATHERED, 0}, {"TN", LAST, SAVED}},
     linear,
     0},
    {LAM_OP_linear_col_dgrad,
     {{"TN", LAST, 0}, {"NK", FIRST, WEIGHT}},
     {{"TK", SEQ, 0}},
     linear_dgrad,
     0},
    {LAM_OP_linear_col_wgrad,
     {{"TN", LAST, 0}, {"TK", SEQ, 0}},
     {{"NK", FIRST, WEIGHT | ADDED}, {"N", LAST, BIAS | ADDED}},
     linear_wgrad,
     0},
    {LAM_OP_linear_row,
     {{"TK", COLUMNS, 0}, {"NK", LAST, WEIGHT}, {"N", WHOLE, BIAS}},
     {{"TN", SEQ, 0}},
     linear,
     0},
    {LAM_OP_linear_row_dgrad,
     {{"TN", SEQ, 0}, {"NK", LAST, WEIGHT}},
     {{"TK", COLUMNS, 0}},
     linear_dgrad,
     0},
    {LAM_OP_linear_row_wgrad,
     {{"TN", SEQ, 0}, {"TK", COLUMNS, 0}},
     {{"NK", LAST, WEIGHT | ADDED}, {"N", WHOLE, BIAS | ADDED}},
     linear_wgrad,
     0},
    {LAM_OP_linear_col_bwd,
     {{"TN", LAST, 0}, {"TK", SEQ, 0}, {"NK", FIRST, WEIGHT}},
     {{"TK", SEQ, 0}, {"NK", FIRST, WEIGHT | ADDED}, {"N", LAST, BIAS | ADDED}},
     linear_bwd,
     0},
    {LAM_OP_linear_row_bwd,
     {{"TN", SEQ, 0}, {"TK", COLUMNS, 0}, {"NK", LAST, WEIGHT}},
     {{"TK", COLUMNS, 0}, {"NK", LAST, WEIGHT | ADDED}, {"N", WHOLE, BIAS | ADDED}},
     linear_bwd,
     0},

    {LAM_OP_ffn,
     {{"TK", SEQ, 0},
      {"GK", FIRST, WEIGHT},
      {"G", LAST, BIAS},
      {"NF", LAST, WEIGHT},
      {"N", WHOLE, BIAS}},
     {{"TN", SEQ, 0}, {"TG", LAST, SAVED}},
     ffn,
     0},
    {LAM_OP_ffn_dgrad,
     {{"TN", SEQ, 0}, {"TG", LAST, 0}, {"GK", FIRST, WEIGHT}, {"NF", LAST, WEIGHT}},
     {{"TK", SEQ, 0}, {"TG", LAST, 0}},
     ffn_dgrad,
     0},
    {LAM_OP_ffn_wgrad,
     {{"TN", SEQ, 0}, {"TK", SEQ, 0}, {"TG", LAST, 0}, {"TG", LAST, 0}},
     {{"GK", FIRST, WEIGHT | ADDED},
      {"G", LAST, BIAS | ADDED},
      {"NF", LAST, WEIGHT | ADDED},
      {"N", WHOLE, BIAS | ADDED}},
     ffn_wgrad,
     0},
    {LAM_OP_ffn_bwd,
     {{"TN", SEQ, 0}, {"TK", SEQ, 0}, {"TG", LAST, 0}, {"GK", FIRST, WEIGHT}, {"NF", LAST, WEIGHT}},
     {{"TK", SEQ, 0},
      {"GK", FIRST, WEIGHT | ADDED},
      {"G", LAST, BIAS | ADDED},
      {"NF", LAST, WEIGHT | ADDED},
      {"N", WHOLE, BIAS | ADDED}},
     ffn_bwd,
     0},

    {LAM_OP_embedding_vocab,
     {{"T", WHOLE, INDEX}, {"NK", FIRST, WEIGHT | PLAIN_ONLY}},
     {{"TK", SEQ, 0}},
     embedding,
     0},
    {LAM_OP_embedding_vocab_wgrad,
     {{"TK", SEQ, 0}, {"T", WHOLE, INDEX}},
     {{"NK", FIRST, WEIGHT | ADDED}},
     embedding_wgrad,
     0},
    {LAM_OP_cross_entropy_vocab,
     {{"TN", LAST, 0}, {"T", WHOLE, INDEX | MAY_IGNORE}},
     {{"T", WHOLE, VALUE}, {"T", WHOLE, VALUE}},
     cross_entropy,
     0},
    {LAM_OP_cross_entropy_vocab_bwd,
     {{"T", WHOLE, VALUE}, {"TN", LAST, 0}, {"T", WHOLE, INDEX | MAY_IGNORE}, {"T", WHOLE, VALUE}},
     {{"TN", LAST, 0}},
     cross_entropy_bwd,
     0},

    {LAM_OP_rmsnorm, {{"TK", WHOLE, 0}, {"K", WHOLE, GAIN}}, {{"TK", WHOLE, 0}}, rmsnorm, 0},
    {LAM_OP_rmsnorm_bwd,
     {{"TK", WHOLE, 0}, {"TK", WHOLE, 0}, {"K", WHOLE, GAIN}},
     {{"TK", WHOLE, 0}, {"K", WHOLE, BIAS | ADDED}},
     rmsnorm_bwd,
     0},
    {LAM_OP_all_reduce_add_rmsnorm,
     {{"TK", PARTS, 0}, {"TK", WHOLE, 0}, {"K", WHOLE, GAIN}},
     {{"TK", WHOLE, 0}, {"TK", WHOLE, 0}},
     sum_and_norm,
     0},

    {.op = LAM_OP_pack_weight, .apart = "every problem here with packed weights"},
    {.op = LAM_OP_codec_pack, .apart = CODECS},
    {.op = LAM_OP_codec_unpack, .apart = CODECS},
};

const reference *reference_find(uint32_t op) {
  for (size_t i = 0; i < sizeof references / sizeof *references; i++)
    if (references[i].op == op) return &references[i];
  return NULL;
}
