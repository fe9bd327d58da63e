/* algos.c: which of cuBLASLt's algorithms a product takes.
 *
 * cuBLASLt names a few, the one that it thinks fastest first; each is run and timed once, and the
 * fastest is kept (algos_file.c) for all shapes alike. Timing runs on the call's own operands: its
 * results are written again and again, each time the same, and last by the call itself. Where that
 * would not do (d is added to, or read), d goes to memory of its own meanwhile.
 * Invariant: the host waits for the device only here, once per kind of product; never while the
 * stream is captured. */
#include <string.h>

#include "kernels/cuda/host.h"

enum { NAMED = 8, RUNS = 3 };

/* -- alike -- */

/* n to its four leading binary digits, rounded up, with which power of two divides it (up to 16). */
static uint64_t size_class(int64_t n) {
  uint64_t v = (uint64_t)n, divides = v & -v;
  int shift = 0;
  while (v >> shift >= 16) shift++;
  v = (v + ((uint64_t)1 << shift) - 1) >> shift << shift;
  if (divides > 16) divides = 16;
  return v | divides << 56;
}

static lam_algo_key key_of(const lam_product_shape *s) {
  lam_product_shape alike = *s;
  lam_algo_key key = {{0}};
  alike.m = (int64_t)size_class(s->m);
  alike.n = (int64_t)size_class(s->n);
  alike.k = (int64_t)size_class(s->k);
  alike.card = 0;
  memcpy(key.words, &alike, sizeof alike);
  return key;
}

/* -- what cuBLASLt names -- */

static lam_status set(cublasLtMatmulPreference_t pref, cublasLtMatmulPreferenceAttributes_t what,
                      const void *value, size_t bytes) {
  return lam_cublas_status(
      lam_cublaslt_here()->cublasLtMatmulPreferenceSetAttribute(pref, what, value, bytes),
      "say what a product may use");
}

static lam_status set_alignment(cublasLtMatmulPreference_t pref,
                                cublasLtMatmulPreferenceAttributes_t what, int log2_bytes) {
  const uint32_t bytes = 1u << log2_bytes;
  return set(pref, what, &bytes, sizeof bytes);
}

/* Partial sums only in f32: the default also allows them in d's dtype. */
static lam_status fill_preference(const lam_cuda_card *card, const lam_product_shape *s,
                                  cublasLtMatmulPreference_t pref) {
  const uint32_t sums = CUBLASLT_REDUCTION_SCHEME_NONE | CUBLASLT_REDUCTION_SCHEME_COMPUTE_TYPE;
  LAM_TRY(set(pref, CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES, &card->workspace_bytes,
              sizeof card->workspace_bytes));
  LAM_TRY(set(pref, CUBLASLT_MATMUL_PREF_REDUCTION_SCHEME_MASK, &sums, sizeof sums));
  LAM_TRY(set_alignment(pref, CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_A_BYTES, s->b_align));
  LAM_TRY(set_alignment(pref, CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_B_BYTES, s->a_align));
  LAM_TRY(set_alignment(pref, CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_C_BYTES, s->d_align));
  return set_alignment(pref, CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_D_BYTES, s->d_align);
}

/* Out: how many there are; none where cuBLASLt has no kernel for the product. */
static lam_status ask(const lam_cuda_card *card, const lam_product *p,
                      cublasLtMatmulPreference_t pref, cublasLtMatmulHeuristicResult_t *named,
                      int *out_n) {
  int n = 0;
  *out_n = 0;
  const cublasStatus_t status = lam_cublaslt_here()->cublasLtMatmulAlgoGetHeuristic(
      card->handle, p->desc, p->b, p->a, p->d, p->d, pref, NAMED, named, &n);
  if (status == CUBLAS_STATUS_NOT_SUPPORTED || status == CUBLAS_STATUS_INVALID_VALUE) return LAM_OK;
  LAM_TRY_CUBLAS(status, "name an algorithm");
  for (int i = 0; i < n; i++)
    if (named[i].state == CUBLAS_STATUS_SUCCESS) named[(*out_n)++] = named[i];
  return LAM_OK;
}

static lam_status name_algorithms(const lam_cuda_card *card, const lam_product_shape *s,
                                  const lam_product *p, cublasLtMatmulHeuristicResult_t *named,
                                  int *out_n) {
  cublasLtMatmulPreference_t pref = NULL;
  LAM_TRY_CUBLAS(lam_cublaslt_here()->cublasLtMatmulPreferenceCreate(&pref),
                 "say what a product may use");
  lam_status status = fill_preference(card, s, pref);
  if (status == LAM_OK) status = ask(card, p, pref, named, out_n);
  (void)lam_cublaslt_here()->cublasLtMatmulPreferenceDestroy(pref);
  return status;
}

/* -- timing -- */

typedef struct trial {
  const lam_cuda_card *card;
  const lam_product_shape *shape;
  const lam_product_places *at;
  const lam_product *product;
  void *out, *workspace, *stream;
  cudaEvent_t begin, end;
} trial;

static lam_status queue(const trial *t, const cublasLtMatmulHeuristicResult_t *of) {
  return lam_product_queue(t->card, t->product, t->shape->accumulate, t->at, &of->algo,
                           of->workspaceSize, t->out, t->workspace, t->stream);
}

/* Once for its code to be loaded, then as often as is timed. */
static lam_status time_one(const trial *t, const cublasLtMatmulHeuristicResult_t *of,
                           float *out_ms) {
  LAM_TRY(queue(t, of));
  LAM_TRY_CUDA(cudaEventRecord(t->begin, t->stream), "time a product");
  for (int i = 0; i < RUNS; i++) LAM_TRY(queue(t, of));
  LAM_TRY_CUDA(cudaEventRecord(t->end, t->stream), "time a product");
  LAM_TRY_CUDA(cudaEventSynchronize(t->end), "time a product");
  return lam_cuda_status(cudaEventElapsedTime(out_ms, t->begin, t->end), "time a product");
}

/* One that cuBLASLt names but does not run is passed over; what breaks the device is not. */
static lam_status time_all(const trial *t, const cublasLtMatmulHeuristicResult_t *named, int n,
                           int *out_best) {
  float best = 0;
  *out_best = -1;
  for (int i = 0; i < n; i++) {
    float ms = 0;
    const lam_status status = time_one(t, &named[i], &ms);
    if (status == LAM_UNIMPLEMENTED) continue;
    if (status != LAM_OK) return status;
    if (*out_best < 0 || ms < best) *out_best = i, best = ms;
  }
  return LAM_OK;
}

static bool reads_its_output(const lam_product_shape *s, const lam_product_places *at) {
  return s->accumulate || at->d == at->aux;
}

static void close_trial(trial *t) {
  if (t->begin) (void)cudaEventDestroy(t->begin);
  if (t->end) (void)cudaEventDestroy(t->end);
  if (t->out && t->out != t->at->d) (void)cudaFreeAsync(t->out, t->stream);
  lam_cuda_give_back(t->workspace, t->stream);
}

/* d's footprint, freed again right after: it may be large. */
static lam_status open_trial(trial *t) {
  const lam_product_shape *s = t->shape;
  const uint64_t d_bytes = (uint64_t)(s->m * s->d_stride * lam_dtype_bytes((lam_dtype)s->d_dtype));
  t->out = t->at->d;
  if (reads_its_output(s, t->at)) {
    t->out = NULL;
    LAM_TRY_CUDA(cudaMallocAsync(&t->out, d_bytes, t->stream), "have memory for timing a product");
  }
  LAM_TRY(lam_cuda_borrow(t->card->workspace_bytes, t->stream, &t->workspace));
  LAM_TRY_CUDA(cudaEventCreateWithFlags(&t->begin, cudaEventDefault), "make an event");
  return lam_cuda_status(cudaEventCreateWithFlags(&t->end, cudaEventDefault), "make an event");
}

/* Another thread may be capturing its stream: this one waits for its own alone. Where there is no
 * memory for timing, the first one named is taken, and not kept. */
static lam_status time_named(trial *t, const lam_algo_key *key,
                             const cublasLtMatmulHeuristicResult_t *named, int n, int *out_best) {
  const enum cudaStreamCaptureMode mode = lam_cuda_set_capture_mode(cudaStreamCaptureModeRelaxed);
  lam_status status = open_trial(t);
  if (status == LAM_OK) status = time_all(t, named, n, out_best);
  close_trial(t);
  (void)lam_cuda_set_capture_mode(mode);
  if (status == LAM_OK && *out_best >= 0) lam_algos_keep(t->card, key, &named[*out_best].algo);
  if (status != LAM_RESOURCE_EXHAUSTED) return status;
  *out_best = 0;
  return LAM_OK;
}

/* -- the choice -- */

static bool take_kept(const lam_cuda_card *card, const lam_algo_key *key, lam_product *p) {
  cublasLtMatmulHeuristicResult_t about;
  cublasLtMatmulAlgo_t algo;
  if (!lam_algos_find(card, key, &algo)) return false;
  memset(&about, 0, sizeof about);
  if (lam_cublaslt_here()->cublasLtMatmulAlgoCheck(card->handle, p->desc, p->b, p->a, p->d, p->d,
                                                   &algo, &about) != CUBLAS_STATUS_SUCCESS ||
      about.workspaceSize > card->workspace_bytes)
    return false;
  p->algo = algo;
  p->workspace_bytes = about.workspaceSize;
  return true;
}

static void take(lam_product *p, const cublasLtMatmulHeuristicResult_t *named) {
  p->algo = named->algo;
  p->workspace_bytes = named->workspaceSize;
}

lam_status lam_algos_choose(const lam_cuda_card *card, const lam_product_shape *s,
                            const lam_product_places *at, lam_product *p, void *stream) {
  const lam_algo_key key = key_of(s);
  cublasLtMatmulHeuristicResult_t named[NAMED];
  int n = 0, best = 0;
  bool captured;
  p->settled = take_kept(card, &key, p);
  if (p->settled) return LAM_OK;
  LAM_TRY(name_algorithms(card, s, p, named, &n));
  p->refused = n == 0;
  if (n > 0) take(p, &named[0]);
  p->settled = n <= 1 || lam_algos_are_off();
  if (p->settled) return LAM_OK;

  LAM_TRY(lam_cuda_capturing(stream, &captured));
  if (captured) return LAM_OK; /* a later call times them */
  trial t = {.card = card, .shape = s, .at = at, .product = p, .stream = stream};
  LAM_TRY(time_named(&t, &key, named, n, &best));
  p->refused = best < 0;
  if (best >= 0) take(p, &named[best]);
  p->settled = true;
  return LAM_OK;
}
