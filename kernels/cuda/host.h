/* host.h: what the C files of the CUDA device share: errors, cards, cuBLASLt and its products, NCCL.
 *
 * Invariant: no CUDA, cuBLAS or NCCL status leaves a file: where it arises, lam_cuda_status,
 * lam_cublas_status or nccl.c makes it a lam_status with its one line.
 * Leaves kernels, and what they and these files call of each other, to cuda.h. */
#ifndef LAMELLA_KERNELS_CUDA_HOST_H
#define LAMELLA_KERNELS_CUDA_HOST_H

#include <cublasLt.h>
#include <cuda_runtime_api.h>

#include "kernels/cuda/cuda.h"
#include "kernels/cuda/nccl_calls.h"
#include "kernels/nccl.h"

/* -- errors (errors.c) -- */

/* what: "copy 64 bytes", for "cuda: could not copy 64 bytes: out of memory" */
lam_status lam_cuda_status(cudaError_t error, const char *what);
lam_status lam_cublas_status(cublasStatus_t status, const char *what);

#define LAM_TRY_CUDA(call, what) LAM_TRY(lam_cuda_status((call), (what)))
#define LAM_TRY_CUBLAS(call, what) LAM_TRY(lam_cublas_status((call), (what)))

/* -- cards (card.c) -- */

enum { LAM_CUDA_CARDS = 64 };

typedef struct lam_cuda_card {
  int id, sm, n_sms;        /* sm: 90 for compute capability 9.0; n_sms: multiprocessors */
  char name[64];            /* "NVIDIA H100 80GB HBM3" */
  uint64_t workspace_bytes; /* what a product may use beside its operands */
  cublasLtHandle_t handle;
} lam_cuda_card;

/* Driver and cards, looked for once. */
lam_status lam_cuda_open(void);
bool lam_cuda_is_forked(void); /* from a process that had CUDA open: nothing works here */
/* Is there such a card, and does Lamella have kernels for it? */
lam_status lam_cuda_check_card(int id);
/* This thread's card; its handle is for those that ask for it. */
lam_status lam_cuda_card_here(const lam_cuda_card **out);
/* The same with its handle, which is made once, never while `stream` is captured. */
lam_status lam_cuda_card_for_products(void *stream, const lam_cuda_card **out);
const char *lam_cuda_describe(void);
lam_status lam_cuda_place(char *out, int room); /* on its machine's bus */
lam_status lam_cuda_pace(lam_pace *out);         /* pace.c */

/* -- cuBLASLt and NCCL (library.c) -- */

typedef struct lam_cublaslt {
#define LAM_CUBLASLT(name, since, what_for) __typeof__(name) *name;
#include "kernels/cuda/calls.def"
} lam_cublaslt;

/* Opened once; stays open. */
lam_status lam_cublaslt_open(const lam_cublaslt **out);
/* After lam_cublaslt_open gave it. */
const lam_cublaslt *lam_cublaslt_here(void);

typedef struct lam_nccl_calls {
#define LAM_NCCL(name, since, what_for) __typeof__(name) *name;
#include "kernels/cuda/calls.def"
} lam_nccl_calls;

/* The same of NCCL, of any version that has them all. */
lam_status lam_nccl_open(const lam_nccl_calls **out);
const lam_nccl_calls *lam_nccl_here(void); /* after lam_nccl_open gave it */

/* -- order (order.c); lam_cuda_borrow and lam_cuda_give_back: cuda.h -- */

lam_status lam_cuda_enter(int32_t device_id, int32_t *out_was);
void lam_cuda_leave(int32_t was);
lam_status lam_cuda_device_here(int *out); /* the thread's */
lam_status lam_cuda_capturing(void *stream, bool *out);
typedef struct lam_cuda_capture {
  bool is;
  unsigned long long id; /* streams of one capture become one graph */
} lam_cuda_capture;
lam_status lam_cuda_capture_of(void *stream, lam_cuda_capture *out);
/* What this thread may call while streams are captured; gives what it was. Relaxed: what waits for,
 * or allocates, nothing that is captured. */
enum cudaStreamCaptureMode lam_cuda_set_capture_mode(enum cudaStreamCaptureMode mode);
lam_status lam_cuda_finish(void *stream);
lam_status lam_cuda_read(const void *device, void *host, uint64_t bytes, void *stream);
lam_status lam_cuda_write(const void *host, void *device, uint64_t bytes, void *stream);
lam_status lam_cuda_mark(void **mark, void *stream);
lam_status lam_cuda_elapsed(void *first, void *last, int64_t *out_ns);
void lam_cuda_unmark(void *mark);

/* -- one product of cuBLASLt (product.c) -- */

/* d [m, n] by rows = a b^T, as cuBLASLt is asked for it. Compared and kept as bytes: no holes. */
typedef struct lam_product_shape {
  int64_t m, n, k;
  int64_t a_stride, b_stride, d_stride, aux_stride; /* from row to row, or from column to column */
  uint32_t epilogue;                                /* cublasLtEpilogue_t */
  uint32_t sm_target;                               /* multiprocessors to use; 0: all */
  uint8_t a_dtype, b_dtype, d_dtype, vector_dtype;  /* lam_dtype */
  uint8_t a_by_cols, b_by_cols, accumulate, tf32;
  uint8_t a_align, b_align, d_align, aux_align, vector_align; /* log2 of bytes, at most 8 */
  uint8_t aux_dtype, scales;                                  /* scales: 1 a's, 2 b's */
  uint8_t card;
} lam_product_shape;
_Static_assert(sizeof(lam_product_shape) == 7 * 8 + 2 * 4 + 16, "no holes");

/* Where its operands lie. vector: the bias, or where a bias gradient goes. */
typedef struct lam_product_places {
  const void *a, *b, *a_scale, *b_scale;
  void *d, *aux, *vector;
} lam_product_places;

typedef struct lam_product {
  cublasLtMatmulDesc_t desc;
  cublasLtMatrixLayout_t a, b, d;
  cublasLtMatmulAlgo_t algo;
  lam_product_places set; /* what desc points to, where it does */
  uint64_t workspace_bytes;
  bool refused; /* cuBLASLt has nothing for it */
  bool settled; /* its algorithm was timed, or need not be */
} lam_product;

/* Runs it, or says that cuBLASLt has nothing for it: then nothing was queued. */
lam_status lam_product_run(const lam_cuda_card *card, const lam_product_shape *s,
                           const lam_product_places *at, void *stream, bool *out_refused);
/* One run of p, whose pointers are set, with this algorithm; out: where d goes, at->d or elsewhere. */
lam_status lam_product_queue(const lam_cuda_card *card, const lam_product *p, bool accumulate,
                             const lam_product_places *at, const cublasLtMatmulAlgo_t *algo,
                             uint64_t workspace_bytes, void *out, void *workspace, void *stream);

/* -- which algorithm (algos.c) -- */

/* Chooses p's: one kept from before, the best of those timed now, or, while the stream is captured,
 * the first that cuBLASLt names. p is refused where it names none. */
lam_status lam_algos_choose(const lam_cuda_card *card, const lam_product_shape *s,
                            const lam_product_places *at, lam_product *p, void *stream);

/* -- algorithms kept in a file (algos_file.c) -- */

/* What an algorithm is kept by: shapes that are alike share one. */
typedef struct lam_algo_key {
  uint64_t words[sizeof(lam_product_shape) / 8];
} lam_algo_key;

bool lam_algos_are_off(void); /* LAMELLA_ALGORITHMS=off */
bool lam_algos_find(const lam_cuda_card *card, const lam_algo_key *key, cublasLtMatmulAlgo_t *out);
void lam_algos_keep(const lam_cuda_card *card, const lam_algo_key *key,
                    const cublasLtMatmulAlgo_t *algo);

/* -- products (gemm.c) -- */

lam_status lam_cuda_gemm_run(const lam_workers *w, const lam_gemm *g, void *stream);
bool lam_cuda_gemm_fuses(const lam_gemm *g);

/* -- links (nccl.c) -- */

extern const lam_device_nccl lam_cuda_nccl;

extern const lam_device lam_device_cuda;

#endif
