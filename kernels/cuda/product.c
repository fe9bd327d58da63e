/* product.c: one product through cuBLASLt: its descriptors, made once, and its run.
 *
 * cuBLASLt's matrices go by columns, so it is asked for d^T [n, m] = b a^T: its A is our b, its B our
 * a, and its vectors run along our columns. Plain operands, K innermost in both, are its form "TN".
 * Every thread keeps the products that it used last, by their whole shape: descriptors hold the
 * pointers of a call, and so are no two threads' at once. No locks.
 * Invariant: a call whose shape is in the cache makes nothing and asks nothing of the heuristics.
 * Leaves which algorithm to algos.c, and what cuBLASLt has not to gemm.c. */
#include <pthread.h>
#include <stdlib.h>
#include <string.h>

#include "kernels/cuda/host.h"

/* -- each thread's products -- */

enum { SETS = 128, WAYS = 4 };

typedef struct entry {
  lam_product_shape shape;
  lam_product product;
  uint64_t last_use; /* 0: empty */
} entry;

typedef struct cache {
  entry sets[SETS][WAYS];
  uint64_t uses;
} cache;

static _Thread_local cache *mine;
static pthread_key_t at_thread_end;

static void free_product(lam_product *p) {
  const lam_cublaslt *lt = lam_cublaslt_here();
  const cublasLtMatrixLayout_t layouts[] = {p->a, p->b, p->d};
  for (size_t i = 0; i < sizeof layouts / sizeof *layouts; i++)
    if (layouts[i]) (void)lt->cublasLtMatrixLayoutDestroy(layouts[i]);
  if (p->desc) (void)lt->cublasLtMatmulDescDestroy(p->desc);
  *p = (lam_product){.desc = NULL};
}

static void free_cache(void *of_thread) {
  cache *c = of_thread;
  for (int set = 0; set < SETS; set++)
    for (int way = 0; way < WAYS; way++) free_product(&c->sets[set][way].product);
  free(c);
  mine = NULL;
}

static void make_key(void) { pthread_key_create(&at_thread_end, free_cache); }

static cache *my_cache(void) {
  static pthread_once_t once = PTHREAD_ONCE_INIT;
  if (mine) return mine;
  pthread_once(&once, make_key);
  mine = calloc(1, sizeof *mine);
  if (mine) pthread_setspecific(at_thread_end, mine);
  return mine;
}

/* FNV-1a over the words of a shape. */
static uint64_t hash(const lam_product_shape *s) {
  uint64_t words[sizeof *s / sizeof(uint64_t)];
  uint64_t h = 0xcbf29ce484222325u;
  memcpy(words, s, sizeof words);
  for (size_t i = 0; i < sizeof words / sizeof *words; i++) h = (h ^ words[i]) * 0x100000001b3u;
  return h ^ h >> 32;
}

/* -- descriptors -- */

static const cudaDataType types[LAM_N_DTYPES] = {
    [LAM_F32] = CUDA_R_32F,        [LAM_BF16] = CUDA_R_16BF,      [LAM_F16] = CUDA_R_16F,
    [LAM_F8E4M3] = CUDA_R_8F_E4M3, [LAM_F8E5M2] = CUDA_R_8F_E5M2,
};

static lam_status set(cublasLtMatmulDesc_t desc, cublasLtMatmulDescAttributes_t what,
                      const void *value, size_t bytes) {
  return lam_cublas_status(
      lam_cublaslt_here()->cublasLtMatmulDescSetAttribute(desc, what, value, bytes),
      "describe a product");
}

static lam_status set_i32(cublasLtMatmulDesc_t desc, cublasLtMatmulDescAttributes_t what,
                          int32_t value) {
  return set(desc, what, &value, sizeof value);
}

/* x [rows, cols] by rows, from one to the next `stride` elements, is its matrix [cols, rows]. */
static lam_status make_layout(cublasLtMatrixLayout_t *out, lam_dtype dtype, int64_t rows,
                              int64_t cols, bool by_cols, int64_t stride) {
  const uint64_t inner = (uint64_t)(by_cols ? rows : cols),
                 outer = (uint64_t)(by_cols ? cols : rows);
  return lam_cublas_status(
      lam_cublaslt_here()->cublasLtMatrixLayoutCreate(out, types[dtype], inner, outer, stride),
      "describe a matrix");
}

static bool has_aux(const lam_product_shape *s) { return s->aux_stride != 0; }

static bool has_vector(const lam_product_shape *s) {
  return s->epilogue != CUBLASLT_EPILOGUE_DEFAULT && s->vector_align != 0;
}

static lam_status make_desc(const lam_product_shape *s, cublasLtMatmulDesc_t *out) {
  const cublasComputeType_t compute = s->tf32 ? CUBLAS_COMPUTE_32F_FAST_TF32 : CUBLAS_COMPUTE_32F;
  LAM_TRY_CUBLAS(lam_cublaslt_here()->cublasLtMatmulDescCreate(out, compute, CUDA_R_32F),
                 "describe a product");
  LAM_TRY(set_i32(*out, CUBLASLT_MATMUL_DESC_TRANSA, s->b_by_cols ? CUBLAS_OP_N : CUBLAS_OP_T));
  LAM_TRY(set_i32(*out, CUBLASLT_MATMUL_DESC_TRANSB, s->a_by_cols ? CUBLAS_OP_T : CUBLAS_OP_N));
  LAM_TRY(set_i32(*out, CUBLASLT_MATMUL_DESC_EPILOGUE, (int32_t)s->epilogue));
  if (s->sm_target)
    LAM_TRY(set_i32(*out, CUBLASLT_MATMUL_DESC_SM_COUNT_TARGET, (int32_t)s->sm_target));
  if (has_vector(s))
    LAM_TRY(set_i32(*out, CUBLASLT_MATMUL_DESC_BIAS_DATA_TYPE, (int32_t)types[s->vector_dtype]));
  if (has_aux(s))
    LAM_TRY(set(*out, CUBLASLT_MATMUL_DESC_EPILOGUE_AUX_LD, &s->aux_stride, sizeof s->aux_stride));
  return LAM_OK;
}

static lam_status make_product(const lam_product_shape *s, lam_product *p) {
  LAM_TRY(make_desc(s, &p->desc));
  LAM_TRY(make_layout(&p->a, s->a_dtype, s->m, s->k, s->a_by_cols, s->a_stride));
  LAM_TRY(make_layout(&p->b, s->b_dtype, s->n, s->k, s->b_by_cols, s->b_stride));
  return make_layout(&p->d, s->d_dtype, s->m, s->n, false, s->d_stride);
}

static lam_status find_product(const lam_product_shape *s, lam_product **out) {
  cache *c = my_cache();
  if (!c) return lam_fail(LAM_RESOURCE_EXHAUSTED, "cuda gemm: no memory for a thread's products");
  entry *all = c->sets[hash(s) % SETS], *oldest = all;
  for (entry *e = all; e < all + WAYS; e++) {
    if (e->last_use && memcmp(&e->shape, s, sizeof *s) == 0) {
      e->last_use = ++c->uses;
      *out = &e->product;
      return LAM_OK;
    }
    if (e->last_use < oldest->last_use) oldest = e;
  }
  free_product(&oldest->product);
  oldest->last_use = 0;
  LAM_TRY(make_product(s, &oldest->product));
  oldest->shape = *s;
  oldest->last_use = ++c->uses;
  *out = &oldest->product;
  return LAM_OK;
}

/* -- running -- */

/* is: where it points now. */
static lam_status point(cublasLtMatmulDesc_t desc, cublasLtMatmulDescAttributes_t what,
                        const void *is, const void *to) {
  return is == to ? LAM_OK : set(desc, what, &to, sizeof to);
}

/* Its A is our b. */
static lam_status set_pointers(const lam_product_shape *s, const lam_product_places *at,
                               lam_product *p) {
  const lam_product_places is = p->set;
  p->set = (lam_product_places){.a = NULL}; /* not known, should one fail */
  if (has_vector(s))
    LAM_TRY(point(p->desc, CUBLASLT_MATMUL_DESC_BIAS_POINTER, is.vector, at->vector));
  if (has_aux(s))
    LAM_TRY(point(p->desc, CUBLASLT_MATMUL_DESC_EPILOGUE_AUX_POINTER, is.aux, at->aux));
  if (s->scales & 1)
    LAM_TRY(point(p->desc, CUBLASLT_MATMUL_DESC_B_SCALE_POINTER, is.a_scale, at->a_scale));
  if (s->scales & 2)
    LAM_TRY(point(p->desc, CUBLASLT_MATMUL_DESC_A_SCALE_POINTER, is.b_scale, at->b_scale));
  p->set = *at;
  return LAM_OK;
}

lam_status lam_product_queue(const lam_cuda_card *card, const lam_product *p, bool accumulate,
                             const lam_product_places *at, const cublasLtMatmulAlgo_t *algo,
                             uint64_t workspace_bytes, void *out, void *workspace, void *stream) {
  const float one = 1, beta = accumulate ? 1 : 0;
  return lam_cublas_status(lam_cublaslt_here()->cublasLtMatmul(
                               card->handle, p->desc, &one, at->b, p->b, at->a, p->a, &beta, at->d,
                               p->d, out, p->d, algo, workspace, workspace_bytes, stream),
                           "multiply");
}

static lam_status run_chosen(const lam_cuda_card *card, const lam_product_shape *s,
                             const lam_product_places *at, const lam_product *p, void *stream) {
  void *workspace = NULL;
  if (p->workspace_bytes) LAM_TRY(lam_cuda_borrow(card->workspace_bytes, stream, &workspace));
  const lam_status status = lam_product_queue(card, p, s->accumulate, at, &p->algo,
                                              p->workspace_bytes, at->d, workspace, stream);
  lam_cuda_give_back(workspace, stream);
  return status;
}

lam_status lam_product_run(const lam_cuda_card *card, const lam_product_shape *s,
                           const lam_product_places *at, void *stream, bool *out_refused) {
  lam_product *p = NULL;
  *out_refused = false;
  LAM_TRY(find_product(s, &p));
  if (!p->refused) LAM_TRY(set_pointers(s, at, p));
  if (!p->settled) LAM_TRY(lam_algos_choose(card, s, at, p, stream));
  *out_refused = p->refused;
  return p->refused ? LAM_OK : run_chosen(card, s, at, p, stream);
}
