/* cross_entropy.cu: the cross entropy over a vocabulary that may be split.
 *
 * Floors: softmax_parts reads the logits once (the sum is moved to each new maximum on the way),
 * cross_entropy_bwd reads and writes them once: bf16 [8192, 128256] at 3.0 TB/s on an H100 700 us
 * and 1.4 ms (predicted, not measured). One exponential an element: the card's own, as math.h's
 * would bind softmax_parts (some 16 of the 19 instructions that memory leaves time for).
 * Invariant: a row's parts depend on the row's length alone.
 * Leaves bringing parts together to the caller, targets outside of the vocabulary to mark.cu. */
#include "kernels/cuda/indices.cuh"

static lam_status check(const char *who, lam_matrix logits) {
  if (lam_cuda_is_float(logits.dtype)) return LAM_OK;
  return lam_fail(LAM_UNIMPLEMENTED, "cuda %s: logits of dtype number %d, no float", who,
                  (int)logits.dtype);
}

LAM_DEVICE float infinite(void) { return lam_f32_of_bits(0x7f800000u); }

/* What sums are relative to: logits of -infinity alone have a sum of 0. */
LAM_DEVICE float base_of(float max) { return max == -infinite() ? 0.0f : max; }

/* -- forward -- */

enum { ROW_THREADS = 512 };

typedef struct parts_call {
  lam_view logits;
  int64_t rows, cols, first;
  lam_indices targets;
  lam_softmax_part *parts;
} parts_call;

/* Eight more logits, of which n are there. */
LAM_DEVICE void take(const lam_vec &v, int n, float *max, float *sum) {
  float greatest = *max;
  for (int i = 0; i < LAM_VEC; i++)
    if (i < n) greatest = lam_greater::of(greatest, v.at[i]);
  const float base = base_of(greatest);
  float some = *sum * __expf(*max - base);
  for (int i = 0; i < LAM_VEC; i++)
    if (i < n) some += __expf(v.at[i] - base);
  *max = greatest, *sum = some;
}

LAM_DEVICE int length_at(const parts_call &c, int64_t col) {
  return c.cols - col < LAM_VEC ? (int)(c.cols - col) : LAM_VEC;
}

static __global__ void __launch_bounds__(ROW_THREADS) softmax_parts(parts_call c) {
  float *const shared = (float *)lam_cuda_shared();
  const int64_t first = (int64_t)threadIdx.x * LAM_VEC, step = (int64_t)blockDim.x * LAM_VEC;
  for (int64_t row = blockIdx.x; row < c.rows; row += gridDim.x) {
    float max = lam_greater::none(), sum = 0.0f;
    lam_raw next = {};
    if (first < c.cols) next = lam_vec_ask(c.logits, row, first, length_at(c, first));
    for (int64_t col = first; col < c.cols; col += step) { /* the next are on their way */
      const lam_raw some = next;
      if (col + step < c.cols)
        next = lam_vec_ask(c.logits, row, col + step, length_at(c, col + step));
      take(lam_vec_of(some, c.logits.dtype), length_at(c, col), &max, &sum);
    }
    const float greatest = lam_block_reduce<lam_greater>(max, shared);
    sum = lam_block_reduce<lam_plus>(sum * __expf(max - base_of(greatest)), shared);
    if (threadIdx.x > 0) continue;
    const int64_t target = lam_index_at(c.targets, row) - c.first;
    const bool here = target >= 0 && target < c.cols;
    c.parts[row] = {greatest, sum, here ? lam_view_get(c.logits, row, target) : 0.0f};
  }
}

extern "C" lam_status lam_cuda_softmax_parts_run(const lam_workers *w, lam_matrix logits,
                                                 lam_matrix targets, int64_t first,
                                                 lam_softmax_part *parts, void *stream) {
  (void)w;
  LAM_TRY(check("softmax_parts", logits));
  if (logits.rows <= 0) return LAM_OK;
  const parts_call c = {lam_view_of(logits),     logits.rows, logits.cols, first,
                        lam_indices_of(targets), parts};
  const int64_t warps = lam_cuda_cuts(lam_cuda_cuts(logits.cols, LAM_VEC), 32);
  const int64_t threads = lam_cuda_least(lam_cuda_most(warps, 1) * 32, ROW_THREADS);
  return lam_cuda_launch(softmax_parts, dim3((unsigned)lam_cuda_least(logits.rows, 1 << 30)),
                         dim3((unsigned)threads), 32 * sizeof(float), stream, c, "softmax_parts");
}

typedef struct loss_call {
  const lam_softmax_part *parts; /* [n_parts, n_tokens] */
  int32_t n_parts;
  int64_t n_tokens, ignore;
  lam_indices targets, loss, lse;
} loss_call;

/* Sums of e^(x - a.max) and e^(x - b.max), as one relative to the greater maximum. */
LAM_DEVICE void join(lam_softmax_part *a, lam_softmax_part b) {
  const float max = b.max > a->max ? b.max : a->max, base = base_of(max);
  a->sum = a->sum * lam_exp(a->max - base) + b.sum * lam_exp(b.max - base);
  a->max = max;
  a->target += b.target;
}

static __global__ void __launch_bounds__(256) losses(loss_call c) {
  for (int64_t t = (int64_t)blockIdx.x * blockDim.x + threadIdx.x; t < c.n_tokens;
       t += (int64_t)gridDim.x * blockDim.x) {
    lam_softmax_part all = c.parts[t];
    for (int i = 1; i < c.n_parts; i++) join(&all, c.parts[i * c.n_tokens + t]);
    const bool ignored = lam_index_at(c.targets, t) == c.ignore;
    const float log_sum = lam_log(all.sum), base = base_of(all.max);
    *lam_value_at(c.lse, t) = base + log_sum;
    *lam_value_at(c.loss, t) = ignored ? 0.0f : (base - all.target) + log_sum;
  }
}

extern "C" lam_status lam_cuda_cross_entropy_run(const lam_workers *w,
                                                 const lam_softmax_part *parts, int n_parts,
                                                 lam_matrix targets, int64_t ignore,
                                                 lam_matrix loss, lam_matrix lse, void *stream) {
  const int64_t n = targets.rows * targets.cols;
  const loss_call c = {parts,
                       n_parts,
                       n,
                       ignore,
                       lam_indices_of(targets),
                       lam_indices_of(loss),
                       lam_indices_of(lse)};
  (void)w;
  return lam_cuda_launch(losses, dim3((unsigned)lam_cuda_least(lam_cuda_cuts(n, 256), 1 << 20)),
                         dim3(256), 0, stream, c, "cross_entropy");
}

/* -- backward -- */

struct gradient_piece {
  enum { BLOCKS = 6 };
  lam_view logits, dlogits;
  lam_indices dloss, targets, lse;
  int64_t first, ignore;

  __device__ void operator()(int64_t row, int64_t col, int n) const {
    lam_vec v = lam_vec_load(logits, row, col, n);
    const int64_t target = lam_index_at(targets, row), own = target - first - col;
    const float scale = *lam_value_at(dloss, row), shift = *lam_value_at(lse, row);
    for (int i = 0; i < LAM_VEC; i++)
      v.at[i] =
          target == ignore ? 0.0f : scale * (__expf(v.at[i] - shift) - (i == own ? 1.0f : 0.0f));
    lam_vec_store(dlogits, row, col, n, v);
  }
};

extern "C" lam_status lam_cuda_cross_entropy_bwd_run(const lam_workers *w, lam_matrix dloss,
                                                     lam_matrix logits, lam_matrix targets,
                                                     lam_matrix lse, int64_t first, int64_t ignore,
                                                     lam_matrix dlogits, void *stream) {
  (void)w;
  LAM_TRY(check("cross_entropy_bwd", logits));
  LAM_TRY(check("cross_entropy_bwd", dlogits));
  const gradient_piece piece = {lam_view_of(logits),
                                lam_view_of(dlogits),
                                lam_indices_of(dloss),
                                lam_indices_of(targets),
                                lam_indices_of(lse),
                                first,
                                ignore};
  return lam_cuda_each_piece(logits.rows, logits.cols, piece, stream, "cross_entropy_bwd");
}
