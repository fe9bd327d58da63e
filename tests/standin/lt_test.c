/* lt_test.c: products of the stand-in for cuBLASLt against sums in double precision, and what it
 * refuses. */
#include <cublasLt.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "kernels/math.h"
#include "tests/standin/support.h"

#define CHECK_LT(expr) CHECK_EQ((expr), CUBLAS_STATUS_SUCCESS)

static cudaStream_t stream;
static cublasLtHandle_t lt;

static void begin_with_handle(uint64_t chance) {
  begin(chance);
  stream = new_stream();
  CHECK_LT(cublasLtCreate(&lt));
}

/* -- elements -- */

static int bytes_of(int type) {
  return type == CUDA_R_32F ? 4 : type == CUDA_R_16BF || type == CUDA_R_16F ? 2 : 1;
}

static void put(void *p, int type, int64_t i, float x) {
  uint8_t *c = p;
  uint16_t *h = p;
  switch (type) {
    case CUDA_R_32F:
      ((float *)p)[i] = x;
      break;
    case CUDA_R_16BF:
      h[i] = lam_bf16_of_f32(x);
      break;
    case CUDA_R_16F:
      h[i] = lam_f16_of_f32(x);
      break;
    case CUDA_R_8F_E4M3:
      c[i] = lam_f8e4m3_of_f32(x);
      break;
    default:
      c[i] = lam_f8e5m2_of_f32(x);
      break;
  }
}

static float get(const void *p, int type, int64_t i) {
  const uint8_t *c = p;
  const uint16_t *h = p;
  switch (type) {
    case CUDA_R_32F:
      return ((const float *)p)[i];
    case CUDA_R_16BF:
      return lam_f32_of_bf16(h[i]);
    case CUDA_R_16F:
      return lam_f32_of_f16(h[i]);
    case CUDA_R_8F_E4M3:
      return lam_f32_of_f8e4m3(c[i]);
    default:
      return lam_f32_of_f8e5m2(c[i]);
  }
}

/* -- a product, asked for in one go -- */

typedef struct side { /* a matrix by columns, here and on the device */
  int type, rows, cols, ld;
  char *host;
  void *device;
  cublasLtMatrixLayout_t layout;
} side;

static side make_side(rng *r, int type, int rows, int cols, int ld) {
  side s = {type, rows, cols, ld, NULL, NULL, NULL};
  const size_t bytes = (size_t)cols * (size_t)ld * (size_t)bytes_of(type);
  s.host = malloc(bytes);
  for (int i = 0; i < cols * ld; i++) put(s.host, type, i, rng_float(r));
  CHECK_EQ(cudaMalloc(&s.device, bytes), cudaSuccess);
  standin_poke(s.device, s.host, bytes);
  CHECK_LT(cublasLtMatrixLayoutCreate(&s.layout, (cudaDataType)type, (uint64_t)rows, (uint64_t)cols,
                                      ld));
  return s;
}

static void read_side(side *s) {
  standin_peek(s->device, s->host, (size_t)s->cols * (size_t)s->ld * (size_t)bytes_of(s->type));
}

typedef struct product {
  int in, out, transa, transb, m, n, k;
  cublasLtEpilogue_t epilogue;
  float beta;
  side a, b, d, aux, bias, scale;
  cublasLtMatmulDesc_t desc;
} product;

static void set(cublasLtMatmulDesc_t d, cublasLtMatmulDescAttributes_t what, const void *v,
                size_t n) {
  CHECK_LT(cublasLtMatmulDescSetAttribute(d, what, v, n));
}
#define SET(what, value) set(p->desc, CUBLASLT_MATMUL_DESC_##what, &(value), sizeof(value))

static int even(int n, int to) { return (n + to - 1) / to * to; }

static void make_product(product *p, rng *r, int align) {
  const int32_t ta = p->transa ? CUBLAS_OP_T : CUBLAS_OP_N,
                tb = p->transb ? CUBLAS_OP_T : CUBLAS_OP_N;
  const int ar = p->transa ? p->k : p->m, ac = p->transa ? p->m : p->k;
  const int br = p->transb ? p->n : p->k, bc = p->transb ? p->k : p->n;
  const int32_t bias_type = bytes_of(p->in) == 1 && p->out == CUDA_R_32F ? CUDA_R_16BF : p->out;
  p->a = make_side(r, p->in, ar, ac, even(ar, align));
  p->b = make_side(r, p->in, br, bc, even(br, align));
  p->d = make_side(r, p->out, p->m, p->n, even(p->m, align));
  p->aux = make_side(r, p->out, p->m, p->n, even(p->m, 8));
  p->bias = make_side(r, bias_type, p->m > p->n ? p->m : p->n, 1, p->m > p->n ? p->m : p->n);
  p->scale = make_side(r, CUDA_R_32F, 1, 1, 1);
  CHECK_LT(cublasLtMatmulDescCreate(&p->desc, CUBLAS_COMPUTE_32F, CUDA_R_32F));
  SET(TRANSA, ta);
  SET(TRANSB, tb);
  SET(EPILOGUE, p->epilogue);
  if (p->epilogue == CUBLASLT_EPILOGUE_DEFAULT) return;
  const int64_t aux_ld = p->aux.ld;
  SET(BIAS_POINTER, p->bias.device);
  SET(BIAS_DATA_TYPE, bias_type);
  SET(EPILOGUE_AUX_POINTER, p->aux.device);
  SET(EPILOGUE_AUX_LD, aux_ld);
}

static void free_product(product *p) {
  side *const sides[] = {&p->a, &p->b, &p->d, &p->aux, &p->bias, &p->scale};
  for (int i = 0; i < 6; i++) {
    free(sides[i]->host);
    CHECK_EQ(cudaFree(sides[i]->device), cudaSuccess);
    CHECK_LT(cublasLtMatrixLayoutDestroy(sides[i]->layout));
  }
  CHECK_LT(cublasLtMatmulDescDestroy(p->desc));
}

static cublasStatus_t name_algos(const product *p, uint64_t workspace, uint32_t align,
                                 cublasLtMatmulHeuristicResult_t *out, int *n) {
  cublasLtMatmulPreference_t pref;
  CHECK_LT(cublasLtMatmulPreferenceCreate(&pref));
  CHECK_LT(cublasLtMatmulPreferenceSetAttribute(pref, CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES,
                                                &workspace, sizeof workspace));
  for (int i = 0; i < 4; i++)
    CHECK_LT(cublasLtMatmulPreferenceSetAttribute(
        pref,
        (cublasLtMatmulPreferenceAttributes_t)(CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_A_BYTES + i),
        &align, sizeof align));
  const cublasStatus_t status = cublasLtMatmulAlgoGetHeuristic(
      lt, p->desc, p->a.layout, p->b.layout, p->d.layout, p->d.layout, pref, 8, out, n);
  CHECK_LT(cublasLtMatmulPreferenceDestroy(pref));
  return status;
}

static cublasStatus_t run(const product *p, const cublasLtMatmulAlgo_t *algo, void *workspace,
                          size_t bytes) {
  const float one = 1;
  return cublasLtMatmul(lt, p->desc, &one, p->a.device, p->a.layout, p->b.device, p->b.layout,
                        &p->beta, p->d.device, p->d.layout, p->d.device, p->d.layout, algo,
                        workspace, bytes, stream);
}

/* -- what must come out -- */

static double op_a(const product *p, int row, int k) {
  return get(p->a.host, p->in, p->transa ? k + (int64_t)row * p->a.ld : row + (int64_t)k * p->a.ld);
}
static double op_b(const product *p, int k, int col) {
  return get(p->b.host, p->in, p->transb ? col + (int64_t)k * p->b.ld : k + (int64_t)col * p->b.ld);
}

static double gelu(double x) {
  return x / 2 * (1 + tanh(sqrt(2 / M_PI) * (x + 0.044715 * x * x * x)));
}
static double slope(double x) { return (gelu(x + 1e-5) - gelu(x - 1e-5)) / 2e-5; }

static bool has(const product *p, unsigned part) { return (p->epilogue & part) == part; }

/* d, by columns without gaps, before it is rounded; z: what goes into gelu */
static void reference(const product *p, double *d, double *z) {
  const bool dgelu = has(p, CUBLASLT_EPILOGUE_DGELU) && p->epilogue != CUBLASLT_EPILOGUE_BGRADA;
  for (int col = 0; col < p->n; col++)
    for (int row = 0; row < p->m; row++) {
      double v = 0;
      for (int k = 0; k < p->k; k++) v += op_a(p, row, k) * op_b(p, k, col);
      v += p->beta * get(p->d.host, p->out, row + (int64_t)col * p->d.ld);
      if (has(p, CUBLASLT_EPILOGUE_BIAS)) v += get(p->bias.host, p->bias.type, row);
      if (dgelu) v *= slope(get(p->aux.host, p->out, row + (int64_t)col * p->aux.ld));
      z[row + col * p->m] = v;
      d[row + col * p->m] = has(p, CUBLASLT_EPILOGUE_GELU) ? gelu(v) : v;
    }
}

static double most_error(int type) {
  return type == CUDA_R_32F ? 1e-5 : type == CUDA_R_16F ? 2e-3 : 1.2e-2;
}

static void check_matrix(const side *got, const double *want, int type) {
  int wrong = 0;
  for (int col = 0; col < got->cols; col++)
    for (int row = 0; row < got->rows; row++) {
      const double w = want[row + col * got->rows];
      wrong += !(fabs(get(got->host, type, row + (int64_t)col * got->ld) - w) <=
                 most_error(type) * (1 + fabs(w)));
    }
  CHECK_EQ(wrong, 0);
}

static double sum_of_columns(const product *p, const double *d, int row) {
  double sum = 0;
  for (int col = 0; col < p->n; col++) sum += d[row + col * p->m];
  return sum;
}

static double sum_over_k(const product *p, int i) {
  double sum = 0;
  for (int k = 0; k < p->k; k++)
    sum += p->epilogue == CUBLASLT_EPILOGUE_BGRADA ? op_a(p, i, k) : op_b(p, k, i);
  return sum;
}

static void check_sums(const product *p, const double *d) {
  const bool of_d = p->epilogue == CUBLASLT_EPILOGUE_DGELU_BGRAD;
  const int n = p->epilogue == CUBLASLT_EPILOGUE_BGRADB ? p->n : p->m;
  if (!of_d && p->epilogue != CUBLASLT_EPILOGUE_BGRADA && p->epilogue != CUBLASLT_EPILOGUE_BGRADB)
    return;
  for (int i = 0; i < n; i++) {
    const double want = of_d ? sum_of_columns(p, d, i) : sum_over_k(p, i);
    CHECK(fabs(get(p->bias.host, p->bias.type, i) - want) <=
          4 * most_error(p->out) * (1 + fabs(want)));
  }
}

static void check_product(product *p) {
  double *d = calloc((size_t)(p->m * p->n), sizeof *d),
         *z = calloc((size_t)(p->m * p->n), sizeof *z);
  reference(p, d, z);
  read_side(&p->d);
  check_matrix(&p->d, d, p->out);
  read_side(&p->bias);
  check_sums(p, d);
  if (p->epilogue == CUBLASLT_EPILOGUE_GELU_AUX || p->epilogue == CUBLASLT_EPILOGUE_GELU_AUX_BIAS) {
    read_side(&p->aux);
    check_matrix(&p->aux, z, p->out);
  }
  free(d), free(z);
}

/* Each algorithm that is named, on fresh operands. */
static void try_all(product shape, uint64_t chance) {
  int n = 1;
  for (int i = 0; i < n; i++) {
    product p = shape;
    cublasLtMatmulHeuristicResult_t named[8];
    rng r = {chance};
    void *workspace = NULL;
    make_product(&p, &r, 16);
    REQUIRE(CHECK_LT(name_algos(&p, 1 << 20, 256, named, &n)));
    REQUIRE(n > i);
    if (named[i].workspaceSize) REQUIRE_CUDA(cudaMalloc(&workspace, named[i].workspaceSize));
    REQUIRE(CHECK_LT(run(&p, &named[i].algo, workspace, named[i].workspaceSize)));
    REQUIRE_CUDA(cudaStreamSynchronize(stream));
    check_product(&p);
    REQUIRE_CUDA(cudaFree(workspace));
    free_product(&p);
  }
}

static product eight_cubed(cudaDataType dtype) {
  return (product){.in = dtype,
                   .out = dtype,
                   .m = 8,
                   .n = 8,
                   .k = 8,
                   .epilogue = CUBLASLT_EPILOGUE_DEFAULT};
}

TEST(matmul, every_form_epilogue_and_type_gives_the_sums) {
  FOR_EACH(in, CUDA_R_32F, CUDA_R_16BF, CUDA_R_16F)
  FOR_EACH(form, 0, 1, 2, 3)
  FOR_EACH(epilogue, CUBLASLT_EPILOGUE_DEFAULT, CUBLASLT_EPILOGUE_BIAS, CUBLASLT_EPILOGUE_GELU,
           CUBLASLT_EPILOGUE_GELU_BIAS, CUBLASLT_EPILOGUE_GELU_AUX, CUBLASLT_EPILOGUE_GELU_AUX_BIAS,
           CUBLASLT_EPILOGUE_DGELU, CUBLASLT_EPILOGUE_DGELU_BGRAD, CUBLASLT_EPILOGUE_BGRADA,
           CUBLASLT_EPILOGUE_BGRADB) {
    begin_with_handle(seed() + (uint64_t)form);
    NOTE("type %d, form %d, epilogue %d", in, form, epilogue);
    try_all((product){.in = in,
                      .out = in,
                      .transa = form & 1,
                      .transb = form / 2,
                      .m = 19,
                      .n = 7,
                      .k = 37,
                      .epilogue = (cublasLtEpilogue_t)epilogue,
                      .beta = epilogue == CUBLASLT_EPILOGUE_DEFAULT ? 1 : 0},
            seed());
    CHECK_EQ(standin_leaks(), 2); /* the stream and the handle */
    end();
  }
}

TEST(matmul, f32_results_of_halves_and_fp8) {
  FOR_EACH(in, CUDA_R_16BF, CUDA_R_16F, CUDA_R_8F_E4M3)
  FOR_EACH(epilogue, CUBLASLT_EPILOGUE_DEFAULT, CUBLASLT_EPILOGUE_BIAS) {
    begin_with_handle(seed());
    try_all((product){.in = in,
                      .out = CUDA_R_32F,
                      .transa = 1,
                      .m = 32,
                      .n = 5,
                      .k = 48,
                      .epilogue = (cublasLtEpilogue_t)epilogue},
            seed());
    end();
  }
}

TEST(matmul, tf32_rounds_its_inputs_to_ten_bits) {
  rng r = {seed()};
  begin_with_handle(seed());
  product *p = &(product){.in = CUDA_R_32F,
                          .out = CUDA_R_32F,
                          .m = 1,
                          .n = 1,
                          .k = 1,
                          .epilogue = CUBLASLT_EPILOGUE_DEFAULT};
  make_product(p, &r, 4);
  const float x = 1.0f + 1.0f / 4096, y = 1;
  const int32_t compute = CUBLAS_COMPUTE_32F_FAST_TF32;
  SET(COMPUTE_TYPE, compute);
  standin_poke(p->a.device, &x, sizeof x);
  standin_poke(p->b.device, &y, sizeof y);
  CHECK_LT(run(p, NULL, NULL, 0));
  REQUIRE_CUDA(cudaStreamSynchronize(stream));
  read_side(&p->d);
  CHECK_EQ(get(p->d.host, CUDA_R_32F, 0) == 1.0f, 1);
  free_product(p);
  end();
}

TEST(matmul, fp8_multiplies_by_its_scales) {
  rng r = {seed()};
  begin_with_handle(seed());
  product *p = &(product){.in = CUDA_R_8F_E4M3,
                          .out = CUDA_R_32F,
                          .transa = 1,
                          .m = 16,
                          .n = 3,
                          .k = 16,
                          .epilogue = CUBLASLT_EPILOGUE_DEFAULT};
  make_product(p, &r, 16);
  const float scale = 0.25f;
  standin_poke(p->scale.device, &scale, sizeof scale);
  SET(A_SCALE_POINTER, p->scale.device);
  SET(B_SCALE_POINTER, p->scale.device);
  CHECK_LT(run(p, NULL, NULL, 0));
  REQUIRE_CUDA(cudaStreamSynchronize(stream));
  double want = 0;
  for (int k = 0; k < 16; k++) want += op_a(p, 5, k) * op_b(p, k, 2);
  read_side(&p->d);
  CHECK(fabs(get(p->d.host, CUDA_R_32F, 5 + 2 * p->d.ld) - want / 16) < 1e-5);
  free_product(p);
  end();
}

/* -- refusals -- */

static int n_named(product shape, int ld_align, uint32_t align) {
  rng r = {seed()};
  cublasLtMatmulHeuristicResult_t named[8];
  int n = -1;
  make_product(&shape, &r, ld_align);
  const cublasStatus_t status = name_algos(&shape, 1 << 20, align, named, &n);
  CHECK_EQ(status, n > 0 ? CUBLAS_STATUS_SUCCESS : CUBLAS_STATUS_NOT_SUPPORTED);
  free_product(&shape);
  return n;
}

TEST(matmul, heuristics_name_only_what_alignment_and_card_allow) {
  product f8 = {.in = CUDA_R_8F_E4M3,
                .out = CUDA_R_16BF,
                .transa = 1,
                .m = 32,
                .n = 5,
                .k = 48,
                .epilogue = CUBLASLT_EPILOGUE_DEFAULT};
  product half = {.in = CUDA_R_16BF,
                  .out = CUDA_R_16BF,
                  .transa = 1,
                  .m = 33,
                  .n = 5,
                  .k = 47,
                  .epilogue = CUBLASLT_EPILOGUE_DEFAULT};
  begin_with_handle(seed());
  CHECK_EQ(n_named(f8, 16, 256), 2);
  CHECK_EQ(n_named(f8, 16, 8), 0);
  CHECK_EQ(n_named(half, 16, 16), 3);
  CHECK_EQ(n_named(half, 16, 2), 1);  /* pointers may lie anywhere */
  CHECK_EQ(n_named(half, 1, 256), 1); /* lines do */
  half.epilogue = CUBLASLT_EPILOGUE_GELU_AUX;
  CHECK_EQ(n_named(half, 1, 256), 0);
  product wrong = f8;
  wrong.transa = 0;
  CHECK_EQ(n_named(wrong, 16, 256), 0);
  wrong = f8, wrong.k = 47;
  CHECK_EQ(n_named(wrong, 16, 256), 0);
  wrong = f8, wrong.in = CUDA_R_8F_E5M2; /* both sides */
  CHECK_EQ(n_named(wrong, 16, 256), 0);
  standin_set_sm(80);
  CHECK_EQ(n_named(f8, 16, 256), 0);
  standin_set_sm(90);
  end();
}

TEST(matmul, operands_outside_of_device_memory_are_refused) {
  rng r = {seed()};
  begin_with_handle(seed());
  product p = eight_cubed(CUDA_R_32F);
  make_product(&p, &r, 4);
  product bad = p;
  bad.a.device = p.a.host;
  CHECK_EQ(run(&bad, NULL, NULL, 0), CUBLAS_STATUS_INVALID_VALUE);
  CHECK_CONTAINS(standin_reports(), "A, ");
  bad = p;
  bad.d.device = (char *)p.d.device + 16;
  CHECK_EQ(run(&bad, NULL, NULL, 0), CUBLAS_STATUS_INVALID_VALUE);
  CHECK_CONTAINS(standin_reports(), "leaves its allocation of 256 bytes");
  standin_forget_reports();
  free_product(&p);
  end();
}

TEST(matmul, an_algorithm_for_aligned_operands_refuses_others) {
  rng r = {seed()};
  cublasLtMatmulHeuristicResult_t named[8];
  int n, first = 0;
  begin_with_handle(seed());
  product p = eight_cubed(CUDA_R_16BF);
  make_product(&p, &r, 16);
  CHECK_LT(name_algos(&p, 0, 256, named, &n));
  while (first < n && named[first].algo.data[1] != 1) first++;
  product moved = p;
  moved.a.device = (char *)p.a.device + 2; /* its last line has room */
  CHECK_EQ(run(&moved, &named[first].algo, NULL, 0), CUBLAS_STATUS_INVALID_VALUE);
  CHECK_CONTAINS(standin_reports(), "is not aligned to 16 bytes");
  standin_forget_reports();
  free_product(&p);
  end();
}

TEST(matmul, what_was_destroyed_is_refused) {
  rng r = {seed()};
  begin_with_handle(seed());
  product p = eight_cubed(CUDA_R_32F);
  make_product(&p, &r, 4);
  CHECK_LT(cublasLtMatrixLayoutDestroy(p.a.layout));
  CHECK_EQ(run(&p, NULL, NULL, 0), CUBLAS_STATUS_INVALID_VALUE);
  CHECK_CONTAINS(standin_reports(), "was destroyed before");
  CHECK_EQ(cublasLtMatrixLayoutDestroy(p.a.layout), CUBLAS_STATUS_INVALID_VALUE);
  p.a.layout = NULL;
  standin_forget_reports();
  free_product(&p);
  end();
}

/* -- workspaces and faults -- */

static cublasLtMatmulAlgo_t with_workspace(const product *p) {
  cublasLtMatmulHeuristicResult_t named[8];
  int n = 0, i = 0;
  CHECK_LT(name_algos(p, 1 << 20, 256, named, &n));
  while (i < n - 1 && named[i].workspaceSize == 0) i++;
  CHECK(named[i].workspaceSize > 0);
  return named[i].algo;
}

/* Two products on two streams; were any of their results wrong? */
static bool spoilt(bool shared, uint64_t chance) {
  const product shape = {.in = CUDA_R_32F,
                         .out = CUDA_R_32F,
                         .m = 8,
                         .n = 8,
                         .k = 64,
                         .epilogue = CUBLASLT_EPILOGUE_DEFAULT};
  product p[2] = {shape, shape};
  cudaStream_t streams[2];
  void *workspaces[2];
  double d[64], z[64];
  bool wrong = false;
  rng r = {seed()};
  begin_with_handle(chance);
  for (int i = 0; i < 2; i++) {
    make_product(&p[i], &r, 4);
    CHECK_CUDA(cudaMalloc(&workspaces[i], 512));
    streams[i] = new_stream();
  }
  for (int i = 0; i < 2; i++) {
    const cublasLtMatmulAlgo_t algo = with_workspace(&p[i]);
    stream = streams[i];
    CHECK_LT(run(&p[i], &algo, workspaces[shared ? 0 : i], 512));
  }
  for (int i = 0; i < 2; i++) {
    CHECK_EQ(cudaStreamSynchronize(streams[i]), cudaSuccess);
    reference(&p[i], d, z);
    read_side(&p[i].d);
    for (int j = 0; j < 64; j++)
      wrong |= !(fabs(get(p[i].d.host, CUDA_R_32F, j) - d[j]) < 1e-4 * (1 + fabs(d[j])));
    free_product(&p[i]);
  }
  end();
  return wrong;
}

TEST(matmul, a_workspace_shared_by_two_streams_shows) {
  enum { MOST = 1000 };
  uint64_t n = 0;
  for (uint64_t k = 0; k < 48; k++) CHECK(!spoilt(false, seed() + k));
  while (n < MOST && !spoilt(true, seed() + n)) n++;
  CHECK(n < MOST);
}

TEST(matmul, fails_when_asked_to) {
  rng r = {seed()};
  begin_with_handle(seed());
  product p = eight_cubed(CUDA_R_32F);
  make_product(&p, &r, 4);
  standin_fail_nth(STANDIN_MATMUL, 1);
  CHECK_EQ(run(&p, NULL, NULL, 0), CUBLAS_STATUS_EXECUTION_FAILED);
  CHECK_LT(run(&p, NULL, NULL, 0));
  CHECK_EQ(standin_count().matmuls, 1);
  REQUIRE_CUDA(cudaStreamSynchronize(stream));
  free_product(&p);
  end();
}

TEST(matmul, every_call_of_the_list_has_its_name) {
  CHECK(standin_symbol("cublasLtMatmul") != NULL);
  CHECK(standin_symbol("cudaMalloc") != NULL);
  CHECK(standin_symbol("cudaNothing") == NULL);
}
