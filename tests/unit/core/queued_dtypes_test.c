/* queued_dtypes_test.c: dtypes by device, and what products are asked beside their operands: fp8's
 * scales, tf32, derivatives and sums in one go. */
#include <math.h>

#include "kernels/math.h"
#include "tests/unit/core/queued.h"

/* -- dtypes: what a device computes -- */

static const DLDataType F16 = {2, 16, 1}, E4M3 = {10, 8, 1}, E5M2 = {12, 8, 1};

/* linear: x [3, 5]  w [4, 5]  b [4]  sx, sw [1]  y [3, 4]  aux */
typedef struct linear {
  uint8_t x[15 * 4], w[20 * 4], b[4 * 4], y[12 * 4], aux[12 * 4];
  float sx, sw;
  host_tensor t[7];
  const DLTensor *in[5];
  DLTensor *out[2];
  lam_attr attrs[3];
  lam_call call;
} linear;

static void fill_bytes(rng *r, uint8_t *data, int n, DLDataType dtype) {
  lam_dtype t = dtype.code == 4    ? LAM_BF16
                : dtype.code == 10 ? LAM_F8E4M3
                : dtype.code == 12 ? LAM_F8E5M2
                : dtype.bits == 16 ? LAM_F16
                                   : LAM_F32;
  const lam_matrix m = {data, 1, n, n, 1, t, false};
  for (int i = 0; i < n; i++) element_put(m, 0, i, rng_float(r));
}

static void linear_make(linear *l, DLDataType x, DLDataType w, DLDataType y) {
  rng r = {seed()};
  memset(l, 0, sizeof *l);
  fill_bytes(&r, l->x, 15, x), fill_bytes(&r, l->w, 20, w), fill_bytes(&r, l->b, 4, F32);
  l->sx = 0.5f, l->sw = 3;
  QUEUED(&l->t[0], l->x, x, 3, 5);
  QUEUED(&l->t[1], l->w, w, 4, 5);
  QUEUED(&l->t[2], l->b, F32, 4);
  QUEUED(&l->t[3], &l->sx, F32, 1);
  QUEUED(&l->t[4], &l->sw, F32, 1);
  QUEUED(&l->t[5], l->y, y, 3, 4);
  QUEUED(&l->t[6], l->aux, y, 3, 4);
  for (int i = 0; i < 5; i++) l->in[i] = &l->t[i].t;
  for (int i = 0; i < 2; i++) l->out[i] = &l->t[5 + i].t;
  l->call = (lam_call)LAM_CALL_INIT;
  l->call.op = LAM_OP_linear;
  l->call.inputs = l->in, l->call.outputs = l->out, l->call.attrs = l->attrs;
  l->call.n_inputs = x.bits == 8 ? 5 : 3, l->call.n_outputs = 1, l->call.n_attrs = 3;
}

static void check_linear(const linear *l, lam_dtype xt, lam_dtype wt, lam_dtype yt) {
  const lam_matrix x = {(void *)l->x, 3, 5, 5, 1, xt, false};
  const lam_matrix w = {(void *)l->w, 4, 5, 5, 1, wt, false};
  const lam_matrix b = {(void *)l->b, 1, 4, 4, 1, LAM_F32, false};
  const lam_matrix y = {(void *)l->y, 3, 4, 4, 1, yt, false};
  const double scale = lam_dtype_is_f8(xt) ? l->sx * l->sw : 1;
  for (int i = 0; i < 12; i++) {
    double want = 0;
    for (int k = 0; k < 5; k++) want += (double)element_at(x, i / 4, k) * element_at(w, i % 4, k);
    want = want * scale + element_at(b, 0, i % 4);
    CHECK(fabs(element_at(y, i / 4, i % 4) - want) <= 0.005 * (1 + fabs(want)));
  }
}

TEST(queued_dtypes, f16_and_fp8_run_where_the_device_computes_them) {
  linear l;
  make_computing();
  linear_make(&l, F16, F16, F16);
  CHECK_OK(lam_run(NULL, &l.call));
  check_linear(&l, LAM_F16, LAM_F16, LAM_F16);
  linear_make(&l, E4M3, E4M3, BF16);
  CHECK_OK(lam_run(NULL, &l.call));
  check_linear(&l, LAM_F8E4M3, LAM_F8E4M3, LAM_BF16);
  linear_make(&l, E5M2, E4M3, F16);
  l.attrs[2] = lam_attr_i(2 | 16 << 8);
  l.attrs[1] = lam_attr_i(1), l.call.n_outputs = 2; /* aux is as y */
  CHECK_OK(lam_run(NULL, &l.call));
  check_linear(&l, LAM_F8E5M2, LAM_F8E4M3, LAM_F16);
  check_queued();
}

TEST(queued_dtypes, fp8_without_what_it_needs_is_refused_in_words) {
  linear l;
  make_computing();
  linear_make(&l, E4M3, E4M3, BF16);
  l.in[4] = NULL;
  CHECK_REFUSED(lam_run(NULL, &l.call), "linear: sw: found NULL, expected f32 [1]: x is f8e4m3");
  l.call.n_inputs = 3;
  CHECK_REFUSED(lam_run(NULL, &l.call), "linear: sx: found NULL, expected f32 [1]: x is f8e4m3");
  linear_make(&l, E4M3, E4M3, BF16);
  l.t[3].t.dtype = BF16;
  CHECK_REFUSED(lam_run(NULL, &l.call), "linear: sx: found bf16, expected f32");
  QUEUED(&l.t[3], &l.sx, F32, 2);
  CHECK_REFUSED(lam_run(NULL, &l.call), "linear: sx: found 2 elements, expected 1");
  linear_make(&l, E4M3, F16, BF16);
  CHECK_REFUSED(lam_run(NULL, &l.call), "linear: w: found f16, expected f8e4m3 or f8e5m2");
  linear_make(&l, E4M3, E4M3, E4M3);
  CHECK_REFUSED(lam_run(NULL, &l.call), "linear: y: found [3, 4] f8e4m3, expected [3, 4] bf16");
  l.attrs[2] = lam_attr_i(10 | 8 << 8);
  CHECK_REFUSED(lam_run(NULL, &l.call), "linear: dtype: found f8e4m3, expected bf16, f16 or f32");
  linear_make(&l, F16, F16, F16);
  l.call.n_inputs = 5;
  CHECK_REFUSED(lam_run(NULL, &l.call),
                "linear: sx: found a scale, expected none: scales are for fp8, x is f16");
  linear_make(&l, E4M3, E4M3, BF16);
  l.call.op = LAM_OP_linear_col_dgrad, l.call.n_inputs = 2, l.call.n_attrs = 0;
  CHECK_REFUSED(lam_run(NULL, &l.call),
                "linear_col_dgrad: dy: found f8e4m3, expected f32, bf16 or f16");
  queued.computes = 1u << LAM_F32;
  linear_make(&l, BF16, BF16, BF16);
  CHECK_REFUSED(lam_run(NULL, &l.call), "linear: x: found bf16, expected f32");
  CHECK_EQ(seen.products, 0);
  check_queued();
}

TEST(queued_dtypes, an_ffn_of_fp8_scales_its_hidden_part_itself) {
  enum { T = 3, K = 5, F = 7, N = 4 };
  uint8_t x[T * K], w1[F * K], w2[N * F];
  float y[T * N], scales[3] = {0.5f, 2, 0.25f};
  host_tensor t[7];
  rng r = {seed()};
  make_computing();
  fill_bytes(&r, x, T * K, E4M3), fill_bytes(&r, w1, F * K, E4M3), fill_bytes(&r, w2, N * F, E4M3);
  QUEUED(&t[0], x, E4M3, T, K);
  QUEUED(&t[1], w1, E4M3, F, K);
  QUEUED(&t[2], w2, E4M3, N, F);
  for (int i = 0; i < 3; i++) QUEUED(&t[3 + i], &scales[i], F32, 1);
  QUEUED(&t[6], y, F32, T, N);
  const DLTensor *in[] = {&t[0].t, &t[1].t, NULL, &t[2].t, NULL, &t[3].t, &t[4].t, &t[5].t};
  DLTensor *out[] = {&t[6].t};
  const lam_attr attrs[] = {lam_attr_default(),     lam_attr_s("gelu"), lam_attr_default(),
                            lam_attr_default(),     lam_attr_default(), lam_attr_i(2),
                            lam_attr_i(2 | 32 << 8)};
  lam_call call = LAM_CALL_INIT;
  call.op = LAM_OP_ffn;
  call.inputs = in, call.outputs = out, call.attrs = attrs;
  call.n_inputs = 8, call.n_outputs = 1, call.n_attrs = 7;
  CHECK_OK(lam_run(NULL, &call));
  CHECK_EQ(seen.quantized, 2); /* chunks */
  for (int i = 0; i < T * N; i++) {
    double want = 0, size = 0;
    for (int f = 0; f < F; f++) {
      double z = 0;
      for (int k = 0; k < K; k++)
        z += (double)lam_f32_of_f8e4m3(x[i / N * K + k]) * lam_f32_of_f8e4m3(w1[f * K + k]);
      const double h = lam_gelu((float)(z * scales[0] * scales[1]));
      want += h * lam_f32_of_f8e4m3(w2[i % N * F + f]) * scales[2];
      size += fabs(h * scales[2]);
    }
    CHECK(fabs(y[i] - want) <= size / 16 + 1e-3);
  }
  check_queued();
}

/* -- what a product is asked beside its operands -- */

TEST(queued_dtypes, f32_products_may_be_tf32_where_the_context_or_the_call_says_so) {
  linear l;
  lam_context_desc desc = LAM_CONTEXT_DESC_INIT;
  lam_context *ctx;
  make_computing();
  linear_make(&l, F32, F32, F32);
  CHECK_OK(lam_run(NULL, &l.call));
  CHECK_EQ(seen.products, 1);
  CHECK_EQ(seen.tf32, 0);
  l.call.flags = LAM_CALL_TF32;
  CHECK_OK(lam_run(NULL, &l.call));
  CHECK_EQ(seen.tf32, 1);
  l.call.flags = 0;
  desc.tf32 = 1;
  REQUIRE_OK(lam_context_create(&desc, &ctx));
  CHECK_OK(lam_run(ctx, &l.call));
  CHECK_EQ(seen.tf32, 2);
  lam_context_destroy(ctx);
  check_queued();
}

/* ffn_bwd: dy [T, N] x [T, K] aux [T, F] w1 [F, K] w2 [N, F] -> dx dw1 db1 dw2 db2 */
enum { BT = 300, BK = 6, BF = 5, BN = 7 };
typedef struct backward {
  float dy[BT * BN], x[BT * BK], aux[BT * BF], w1[BF * BK], w2[BN * BF];
  float dx[BT * BK], dw1[BF * BK], db1[BF], dw2[BN * BF], db2[BN];
  host_tensor t[10];
  const DLTensor *in[5];
  DLTensor *out[5];
  lam_attr attrs[6];
  lam_call call;
} backward;

static void backward_make(backward *b, bool acc) {
  rng r = {seed()};
  memset(b, 0, sizeof *b);
  fill_random(&r, b->dy, BT * BN), fill_random(&r, b->x, BT * BK), fill_random(&r, b->aux, BT * BF);
  fill_random(&r, b->w1, BF * BK), fill_random(&r, b->w2, BN * BF);
  fill_random(&r, b->dw1, BF * BK), fill_random(&r, b->db1, BF), fill_random(&r, b->dw2, BN * BF),
      fill_random(&r, b->db2, BN);
  QUEUED(&b->t[0], b->dy, F32, BT, BN);
  QUEUED(&b->t[1], b->x, F32, BT, BK);
  QUEUED(&b->t[2], b->aux, F32, BT, BF);
  QUEUED(&b->t[3], b->w1, F32, BF, BK);
  QUEUED(&b->t[4], b->w2, F32, BN, BF);
  QUEUED(&b->t[5], b->dx, F32, BT, BK);
  QUEUED(&b->t[6], b->dw1, F32, BF, BK);
  QUEUED(&b->t[7], b->db1, F32, BF);
  QUEUED(&b->t[8], b->dw2, F32, BN, BF);
  QUEUED(&b->t[9], b->db2, F32, BN);
  for (int i = 0; i < 5; i++) b->in[i] = &b->t[i].t, b->out[i] = &b->t[5 + i].t;
  b->attrs[1] = lam_attr_s("gelu"), b->attrs[5] = lam_attr_i(acc);
  b->call = (lam_call)LAM_CALL_INIT;
  b->call.op = LAM_OP_ffn_bwd;
  b->call.inputs = b->in, b->call.outputs = b->out, b->call.attrs = b->attrs;
  b->call.n_inputs = 5, b->call.n_outputs = 5, b->call.n_attrs = 6;
}

static void check_near(const float *a, const float *b, int n, const char *what) {
  for (int i = 0; i < n; i++) {
    NOTE("%s[%d]: %g, %g", what, i, a[i], b[i]);
    CHECK(fabsf(a[i] - b[i]) <= 1e-3f);
  }
}

static void check_same_gradients(const backward *a, const backward *b) {
  check_near(a->dx, b->dx, BT * BK, "dx"), check_near(a->dw1, b->dw1, BF * BK, "dw1");
  check_near(a->db1, b->db1, BF, "db1"), check_near(a->dw2, b->dw2, BN * BF, "dw2");
  check_near(a->db2, b->db2, BN, "db2");
}

TEST(queued_dtypes, gradients_fused_in_products_are_those_of_separate_calls) {
  backward apart, fused;
  FOR_EACH(acc, 0, 1) FOR_EACH(what, 1, 2, 3) {
    make_computing();
    backward_make(&apart, acc), backward_make(&fused, acc);
    CHECK_OK(lam_run(NULL, &apart.call));
    CHECK_EQ(seen.z + seen.column_sums + seen.a_sums, 0);
    fuses_z = what & 1, fuses_sums = what & 2;
    CHECK_OK(lam_run(NULL, &fused.call));
    NOTE("acc %d, fuses %d", acc, what);
    CHECK_EQ(seen.z, what & 1 ? 1 : 0);
    CHECK_EQ(seen.column_sums, what == 3 && !acc);
    CHECK_EQ(seen.a_sums, acc || !(what & 2) ? 0 : what == 3 ? 1 : 2);
    check_same_gradients(&apart, &fused);
    check_queued();
  }
}
