/* device.h: what a device is: const tables of slots. Kernels see pointers, sizes and strides;
 * never a DLTensor.
 *
 * Invariant: plugin/ calls a slot only through the one-line wrappers at the end (lam_device_...),
 * where asserts, tracing and fault injection live once. A missing cell is NULL and its wrapper
 * returns LAM_UNIMPLEMENTED naming device and slot.
 * Leaves all argument checks on users' tensors to plugin/core; shapes that reach a kernel are
 * consistent. */
#ifndef LAMELLA_KERNELS_DEVICE_H
#define LAMELLA_KERNELS_DEVICE_H

#include <stdbool.h>
#include <stddef.h>

#include "abi/status.h"

typedef enum lam_dtype {
  LAM_F32,
  LAM_BF16,
  LAM_F16,
  LAM_F8E4M3,
  LAM_F8E5M2,
  LAM_F64,
  LAM_I32,
  LAM_I64,
  LAM_U8,
  LAM_N_DTYPES
} lam_dtype;
int lam_dtype_bytes(lam_dtype t);
static inline bool lam_dtype_is_f8(lam_dtype t) { return t == LAM_F8E4M3 || t == LAM_F8E5M2; }
const char *lam_dtype_name(lam_dtype t);

/* A view of rows x cols elements. Strides in elements; for gemm operands one of them is 1 (or
 * its dimension is at most 1). Absent: data NULL and rows 0. packed: data is what pack wrote for
 * a [rows, cols] weight; its strides mean nothing. */
typedef struct lam_matrix {
  void *data;
  int64_t rows, cols, row_stride, col_stride;
  lam_dtype dtype;
  bool packed;
} lam_matrix;

static inline bool lam_matrix_here(lam_matrix m) { return m.data != NULL || m.rows != 0; }
static inline lam_matrix lam_matrix_transposed(lam_matrix m) {
  const lam_matrix t = {m.data, m.cols, m.rows, m.col_stride, m.row_stride, m.dtype, m.packed};
  return t;
}
/* n rows, or columns, from `first`; not for packed */
lam_matrix lam_matrix_rows(lam_matrix m, int64_t first, int64_t n);
lam_matrix lam_matrix_cols(lam_matrix m, int64_t first, int64_t n);

typedef enum lam_act {
  LAM_ACT_NONE,
  LAM_ACT_GELU,
  LAM_ACT_GELU_TANH,
  LAM_ACT_SILU,
  LAM_ACT_RELU,
  LAM_ACT_RELU2,
  LAM_N_ACTS
} lam_act;

/* How a kernel may use the machine: the context's threads or pool, and its allocator. Made by
 * plugin/core/context. */
typedef struct lam_workers {
  void *context; /* first argument of the functions below */
  int n_threads; /* 1 = do not spread */
  void (*parallel_for)(void *context, int64_t n, void (*fn)(void *arg, int64_t i), void *arg);
  /* 64-byte aligned, counted; NULL when there is none */
  void *(*alloc)(void *context, uint64_t bytes);
  void (*free)(void *context, void *p, uint64_t bytes);
  /* Scratch for a piece of work: the same, but kept for the next one when it is given back, which
   * the thread that borrowed it does, what it borrowed last first. */
  void *(*borrow)(void *context, uint64_t bytes);
  void (*give_back)(void *context, void *p);
  bool own_pool; /* parallel_for is the host's pool, not OpenMP */
} lam_workers;

/* d [M, N] = act(a [M, K] b [N, K]^T + bias [N]) (+ d where accumulate: then no act, and d is
 * f32 or a's dtype). All strides free as lam_matrix says, so dgrad and wgrad are the same call
 * with transposed views; b may be packed. aux [M, N]: where present receives the pre-activation.
 * f32 accumulation; product and bias are rounded once, together. act, and z's factor, may come in a
 * pass of their own, over what was rounded so. K = 0 gives bias. M = 0 or N = 0: nothing. */
typedef struct lam_gemm {
  lam_matrix a, b, bias, d, aux;
  lam_act act;
  bool accumulate;
  const struct lam_gemm_more *more; /* NULL: nothing of it */
} lam_gemm;

/* What few products ask for; an absent matrix is not asked for. With z, column_sum or a_sum only
 * where the table's `fuses` says so. */
typedef struct lam_gemm_more {
  lam_matrix a_scale, b_scale; /* f32 [1]: fp8 elements of a and b stand for so many times them */
  lam_matrix z;                /* [M, N]: d = (a b^T) act'(z), in place of bias, act and aux */
  lam_act z_act;
  lam_matrix column_sum; /* [N], f32 or d's dtype, overwritten: of d's rows, after z */
  lam_matrix a_sum;      /* [M], f32 or a's dtype, overwritten: of each row of a: the bias gradient
                          * beside a weight gradient */
  bool tf32;             /* f32 operands may be rounded to 10 bits of fraction */
  int32_t spares;        /* multiprocessors to leave to kernels that run beside it */
} lam_gemm_more;

/* For devices whose calls return before the work is done; others have none. Work is queued on a
 * stream: the calls of one stream run in order. */
typedef struct lam_device_order {
  /* Makes it this thread's device, and says what is wrong with driver or card; leave undoes it. */
  lam_status (*enter)(int32_t device_id, int32_t *out_was);
  void (*leave)(int32_t was);
  /* Device memory, 256-byte aligned, for work queued on `stream` until give_back; kept per device
   * and stream. Never allocates while the stream is captured: RESOURCE_EXHAUSTED says what to do. */
  lam_status (*borrow)(uint64_t bytes, void *stream, void **out);
  void (*give_back)(void *p, void *stream);
  lam_status (*capturing)(void *stream, bool *out);
  lam_status (*finish)(void *stream); /* the host waits until all that was queued is done */
  /* Queued copies; the host's memory is read, or written, by the time finish returns. */
  lam_status (*read)(const void *device, void *host, uint64_t bytes, void *stream);
  lam_status (*write)(const void *host, void *device, uint64_t bytes, void *stream);
  /* When the stream comes here is noted in *mark, which is made where it is NULL; not while it is
   * captured. elapsed: between two marks that streams have come to. */
  lam_status (*mark)(void **mark, void *stream);
  lam_status (*elapsed)(void *first, void *last, int64_t *out_ns);
  void (*unmark)(void *mark);
} lam_device_order;

typedef struct lam_device_memory { /* memory and order */
  lam_status (*alloc)(const lam_workers *w, uint64_t bytes, void **out);
  void (*free)(const lam_workers *w, void *p, uint64_t bytes);
  /* any strides; converts f32 to bf16 and back */
  lam_status (*copy)(const lam_workers *w, lam_matrix from, lam_matrix to, void *stream);
} lam_device_memory;

typedef struct lam_device_gemm_table { /* matrix products and packed weights */
  lam_status (*run)(const lam_workers *w, const lam_gemm *g, void *stream);
  /* Whether run takes all that g->more asks for in one go. NULL: never z, column_sum or a_sum. */
  bool (*fuses)(const lam_gemm *g);
  /* side 0: forward, b = w [N, K]; side 1: dgrad, b = w^T. The packed tensor is [N or K rows,
   * cols] bytes. */
  lam_status (*packed_cols)(lam_dtype dtype, int64_t n, int64_t k, int side, int64_t *out_cols);
  lam_status (*pack)(const lam_workers *w, lam_matrix weight, int side, void *packed, int64_t cols,
                     void *stream);
  /* Reads a packed tensor's header: magic, version, side, dtype, N, K, layout, instruction set;
   * refuses, with the reason, what this machine cannot use. bytes = size of the tensor. */
  lam_status (*packed_open)(const void *packed, uint64_t bytes, int *side, lam_dtype *dtype,
                            int64_t *n, int64_t *k);
} lam_device_gemm_table;

/* Elementwise work and reductions; rows split over the workers. */
typedef struct lam_device_vector {
  /* y = act(z); gated: z [T, 2F] = [gate | up], y [T, F] = act(gate) * up */
  lam_status (*act)(const lam_workers *w, lam_act act, bool gated, lam_matrix z, lam_matrix y,
                    void *stream);
  /* dz = dy * act'(z); gated: dz [T, 2F] */
  lam_status (*act_bwd)(const lam_workers *w, lam_act act, bool gated, lam_matrix dy, lam_matrix z,
                        lam_matrix dz, void *stream);
  /* The same, and dy becomes what act would make of z: one pass where a backward wants both. An
   * absent cell: two passes. */
  lam_status (*act_bwd_again)(const lam_workers *w, lam_act act, bool gated, lam_matrix dy,
                              lam_matrix z, lam_matrix dz, void *stream);
  /* y [T, N] = round(sum of parts[0..n-1] in that order, each f32 or y's dtype, same strides +
   * bias + residual), f32 inside */
  lam_status (*sum)(const lam_workers *w, const lam_matrix *parts, int n, lam_matrix bias,
                    lam_matrix residual, lam_matrix y, void *stream);
  /* db [1, N] (+)= sum over rows of dy [T, N], f32 inside, the same order for any number of
   * workers */
  lam_status (*column_sum)(const lam_workers *w, lam_matrix dy, lam_matrix db, bool accumulate,
                           void *stream);
  /* LAM_CODEC_...: each line of x [T, N] in lam_codec_line_bytes(codec, N) bytes, one after
   * another; and back. */
  lam_status (*encode)(const lam_workers *w, int codec, lam_matrix x, void *coded, void *stream);
  lam_status (*decode)(const lam_workers *w, int codec, const void *coded, lam_matrix y,
                       void *stream);
  /* fp8 with one scale: scale f32 [1] = the largest |x| / the largest finite number of y's dtype (1
   * where x has only zeros), y = x / scale. For devices that compute fp8. */
  lam_status (*quantize)(const lam_workers *w, lam_matrix x, lam_matrix y, lam_matrix scale,
                         void *stream);
} lam_device_vector;

/* An index that is outside of its range: which one, counted row by row, and what it is. */
typedef struct lam_outside {
  int64_t at, value; /* at -1: none is */
} lam_outside;

/* What one token's softmax needs to know of some of the logits. */
typedef struct lam_softmax_part {
  float max;    /* the largest of them; -infinity where there is none */
  float sum;    /* of e^(logit - max) */
  float target; /* the target's logit where it is among them, else 0 */
} lam_softmax_part;

/* A vocabulary's rows by index, and the cross entropy over a vocabulary. Indices (ids, targets) are
 * i32 or i64, any matrix of T elements, row by row; so are values per token (f32). Of the
 * vocabulary, rows first, first + 1, ... are here. */
typedef struct lam_device_vocab {
  /* The first index outside of [0, total) that is not *ignored (NULL: nothing is ignored). */
  lam_status (*find_outside)(const lam_workers *w, lam_matrix ids, int64_t total,
                             const int64_t *ignored, lam_outside *out, void *stream);
  /* y [T, n], or, where it has not T rows, a value per token: NaN in each row whose index is such a
   * one; the others stay as they are. For devices with order, where find_outside would have to
   * wait. */
  lam_status (*mark_outside)(const lam_workers *w, lam_matrix ids, int64_t total,
                             const int64_t *ignored, lam_matrix y, void *stream);
  /* y [T, K] = rows ids of weight [n, K]; zeros where a row is not here. One dtype. */
  lam_status (*gather)(const lam_workers *w, lam_matrix weight, lam_matrix ids, int64_t first,
                       lam_matrix y, void *stream);
  /* dw [n, K] (+)= for each of its rows the sum of those rows of dy [T, K] that have its index, f32
   * inside, tokens in order. links: room for n + T numbers. */
  lam_status (*scatter)(const lam_workers *w, lam_matrix dy, lam_matrix ids, int64_t first,
                        int64_t *links, lam_matrix dw, bool accumulate, void *stream);
  /* parts [T], of logits [T, n] */
  lam_status (*softmax_parts)(const lam_workers *w, lam_matrix logits, lam_matrix targets,
                              int64_t first, lam_softmax_part *parts, void *stream);
  /* loss and lse (the log of the sum of e^logit) of T tokens from parts [n_parts, T], combined in
   * their order. An ignored target's loss is 0. */
  lam_status (*cross_entropy)(const lam_workers *w, const lam_softmax_part *parts, int n_parts,
                              lam_matrix targets, int64_t ignore, lam_matrix loss, lam_matrix lse,
                              void *stream);
  /* dlogits [T, n] = dloss (e^(logits - lse) - 1 at the target); 0 where it is ignored. dlogits may
   * be logits. */
  lam_status (*cross_entropy_bwd)(const lam_workers *w, lam_matrix dloss, lam_matrix logits,
                                  lam_matrix targets, lam_matrix lse, int64_t first, int64_t ignore,
                                  lam_matrix dlogits, void *stream);
} lam_device_vocab;

/* Root mean square norm (Zhang, Sennrich 2019): y [T, N] = x r g, r = 1 / sqrt(mean of x^2 + eps)
 * of each row, f32 inside, one rounding. g [1, N]: f32 or x's dtype. */
typedef struct lam_device_norm {
  lam_status (*rmsnorm)(const lam_workers *w, lam_matrix x, lam_matrix g, float eps, lam_matrix y,
                        void *stream);
  /* dx = r (g dy - x r^2 mean of g dy x); dg [1, N] (+)= the sum of dy x r over the rows, the same
   * order for any number of workers. Either may be absent. */
  lam_status (*rmsnorm_bwd)(const lam_workers *w, lam_matrix dy, lam_matrix x, lam_matrix g,
                            float eps, lam_matrix dx, lam_matrix dg, bool accumulate, void *stream);
  /* sum [T, N] = round(sum of parts[0..n-1] in that order + residual), as `sum` of the vectors'
   * table; y = the norm of what was rounded. sum may be residual. */
  lam_status (*add_rmsnorm)(const lam_workers *w, const lam_matrix *parts, int n,
                            lam_matrix residual, lam_matrix g, float eps, lam_matrix sum,
                            lam_matrix y, void *stream);
} lam_device_norm;

/* How fast a device is, by which work is cut into chunks. Figures of its kind, not of the moment: ranks
 * with cards of one kind have them alike. A step of a table: moving so many bytes takes so long; between
 * steps, and past the last two, along the line through two of them. */
enum { LAM_PACE_STEPS = 4 };
typedef struct lam_pace_step {
  int64_t bytes, ns;
} lam_pace_step;
typedef struct lam_pace {
  int32_t n_sms, tile_rows, tile_cols; /* multiprocessors; the tile of a product that each works on */
  int32_t launch_ns;                   /* what a kernel costs beside its work */
  int64_t product_flops_per_ns[LAM_N_DTYPES]; /* of large products; 0: there are none */
  /* What a rank has to send and receive of a sum or gather, over peers' memory and by NCCL. */
  lam_pace_step by_peers[LAM_PACE_STEPS], by_nccl[LAM_PACE_STEPS];
} lam_pace;

typedef struct lam_device {
  const char *name;    /* "cpu" */
  int32_t device_type; /* DLDeviceType */
  uint32_t computes;   /* 1 << lam_dtype: what products and elementwise work take */
  const lam_device_memory *memory;
  const lam_device_order *order; /* NULL: what a call was asked for is there when it returns */
  const lam_device_gemm_table *gemm;
  const lam_device_vector *vector;
  const lam_device_vocab *vocab;
  const lam_device_norm *norm;
  const struct lam_device_peer *peer; /* collectives over peers' pointers; NULL: none */
  const struct lam_device_nccl *nccl; /* collectives of NCCL's; NULL: none */
  lam_status (*pace)(lam_pace *out);  /* this thread's; NULL: nothing runs beside a product */
  const char *(*describe)(void);      /* "oneDNN 2.6.3 avx512_core_bf16" or "plain C"; for doctor */
} lam_device;

extern const lam_device lam_device_cpu;
/* NULL: it is not in this binary; backends.c is the only place with #ifdefs */
const lam_device *lam_device_find(int32_t device_type);
/* The same, or one that is in a shared object of its own, opened when it is first asked for. NULL:
 * there is no device of that type at all. A failure says what this machine lacks for it. */
lam_status lam_device_open(int32_t device_type, const lam_device **out);
extern const lam_device *lam_device_forced; /* found first where set, by its type: for tests */

/* Called before every slot, where set: to trace calls, or to return a failure in the slot's
 * place. Set it while nothing runs. */
typedef lam_status (*lam_device_hook)(const lam_device *d, const char *slot);
extern lam_device_hook lam_device_on_call;

static inline bool lam_device_computes(const lam_device *d, lam_dtype t) {
  return d->computes >> t & 1u;
}

/* On a device without order: enter, leave and finish have nothing to do, read and write copy,
 * nothing is captured. */
lam_status lam_device_enter(const lam_device *d, int32_t device_id, int32_t *out_was);
void lam_device_leave(const lam_device *d, int32_t was);
lam_status lam_device_alloc(const lam_device *d, const lam_workers *w, uint64_t bytes, void **out);
void lam_device_free(const lam_device *d, const lam_workers *w, void *p, uint64_t bytes);
lam_status lam_device_borrow(const lam_device *d, uint64_t bytes, void *stream, void **out);
void lam_device_give_back(const lam_device *d, void *p, void *stream);
lam_status lam_device_capturing(const lam_device *d, void *stream, bool *out);
lam_status lam_device_finish(const lam_device *d, void *stream);
lam_status lam_device_read(const lam_device *d, const void *device, void *host, uint64_t bytes,
                           void *stream);
lam_status lam_device_write(const lam_device *d, const void *host, void *device, uint64_t bytes,
                            void *stream);
lam_status lam_device_mark(const lam_device *d, void **mark, void *stream);
lam_status lam_device_elapsed(const lam_device *d, void *first, void *last, int64_t *out_ns);
void lam_device_unmark(const lam_device *d, void *mark);

lam_status lam_device_pace(const lam_device *d, lam_pace *out);

lam_status lam_device_gemm(const lam_device *d, const lam_workers *w, const lam_gemm *g,
                           void *stream);
bool lam_device_fuses(const lam_device *d, const lam_gemm *g);
lam_status lam_device_copy(const lam_device *d, const lam_workers *w, lam_matrix from,
                           lam_matrix to, void *stream);
lam_status lam_device_pack(const lam_device *d, const lam_workers *w, lam_matrix weight, int side,
                           void *packed, int64_t cols, void *stream);
lam_status lam_device_packed_cols(const lam_device *d, lam_dtype dtype, int64_t n, int64_t k,
                                  int side, int64_t *out_cols);
lam_status lam_device_packed_open(const lam_device *d, const void *packed, uint64_t bytes,
                                  int *side, lam_dtype *dtype, int64_t *n, int64_t *k);
lam_status lam_device_act(const lam_device *d, const lam_workers *w, lam_act act, bool gated,
                          lam_matrix z, lam_matrix y, void *stream);
lam_status lam_device_act_bwd(const lam_device *d, const lam_workers *w, lam_act act, bool gated,
                              lam_matrix dy, lam_matrix z, lam_matrix dz, void *stream);
lam_status lam_device_act_bwd_again(const lam_device *d, const lam_workers *w, lam_act act,
                                    bool gated, lam_matrix dy, lam_matrix z, lam_matrix dz,
                                    void *stream);
lam_status lam_device_sum(const lam_device *d, const lam_workers *w, const lam_matrix *parts, int n,
                          lam_matrix bias, lam_matrix residual, lam_matrix y, void *stream);
lam_status lam_device_column_sum(const lam_device *d, const lam_workers *w, lam_matrix dy,
                                 lam_matrix db, bool accumulate, void *stream);
lam_status lam_device_encode(const lam_device *d, const lam_workers *w, int codec, lam_matrix x,
                             void *coded, void *stream);
lam_status lam_device_decode(const lam_device *d, const lam_workers *w, int codec,
                             const void *coded, lam_matrix y, void *stream);
lam_status lam_device_quantize(const lam_device *d, const lam_workers *w, lam_matrix x,
                               lam_matrix y, lam_matrix scale, void *stream);
lam_status lam_device_find_outside(const lam_device *d, const lam_workers *w, lam_matrix ids,
                                   int64_t total, const int64_t *ignored, lam_outside *out,
                                   void *stream);
lam_status lam_device_mark_outside(const lam_device *d, const lam_workers *w, lam_matrix ids,
                                   int64_t total, const int64_t *ignored, lam_matrix y,
                                   void *stream);
lam_status lam_device_gather(const lam_device *d, const lam_workers *w, lam_matrix weight,
                             lam_matrix ids, int64_t first, lam_matrix y, void *stream);
lam_status lam_device_scatter(const lam_device *d, const lam_workers *w, lam_matrix dy,
                              lam_matrix ids, int64_t first, int64_t *links, lam_matrix dw,
                              bool accumulate, void *stream);
lam_status lam_device_softmax_parts(const lam_device *d, const lam_workers *w, lam_matrix logits,
                                    lam_matrix targets, int64_t first, lam_softmax_part *parts,
                                    void *stream);
lam_status lam_device_cross_entropy(const lam_device *d, const lam_workers *w,
                                    const lam_softmax_part *parts, int n_parts, lam_matrix targets,
                                    int64_t ignore, lam_matrix loss, lam_matrix lse, void *stream);
lam_status lam_device_cross_entropy_bwd(const lam_device *d, const lam_workers *w, lam_matrix dloss,
                                        lam_matrix logits, lam_matrix targets, lam_matrix lse,
                                        int64_t first, int64_t ignore, lam_matrix dlogits,
                                        void *stream);
lam_status lam_device_rmsnorm(const lam_device *d, const lam_workers *w, lam_matrix x, lam_matrix g,
                              float eps, lam_matrix y, void *stream);
lam_status lam_device_rmsnorm_bwd(const lam_device *d, const lam_workers *w, lam_matrix dy,
                                  lam_matrix x, lam_matrix g, float eps, lam_matrix dx,
                                  lam_matrix dg, bool accumulate, void *stream);
lam_status lam_device_add_rmsnorm(const lam_device *d, const lam_workers *w,
                                  const lam_matrix *parts, int n, lam_matrix residual, lam_matrix g,
                                  float eps, lam_matrix sum, lam_matrix y, void *stream);

#endif
