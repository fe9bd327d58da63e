/* vocab.cu: rows of a vocabulary by index: taken out, and summed back in.
 *
 * Floors: gather reads and writes each row once, ids beside it: bf16 [8192, 8192] at 3.0 TB/s on an
 * H100 90 us. scatter reads dy and writes dw once: dy [8192, 4096], dw [128256, 4096] bf16 373 us
 * (both predicted, not measured). scatter needs no sort and no atomic sum: a row's tokens are
 * chained in their order, as on the CPU. head[row] is the least of its tokens; next[t] is found by
 * looking at the tokens after t, 256 at a time from shared memory: T^2 / 2 comparisons at most,
 * some 20 us for 8192 tokens and 1 ms for 65536 (predicted). One thread walks a row's chain for
 * eight columns, so a token that is most of T makes that walk the longest part.
 * Invariant: a row's sum runs over its tokens in their order; it is rounded once.
 * Leaves elements in memory to vec.cuh, the cross entropy to cross_entropy.cu, indices outside of
 * the vocabulary to mark.cu. */
#include "kernels/cuda/indices.cuh"

static lam_status check(const char *who, lam_matrix m) {
  if (lam_cuda_is_float(m.dtype)) return LAM_OK;
  return lam_fail(LAM_UNIMPLEMENTED, "cuda %s: rows of dtype number %d, no float", who,
                  (int)m.dtype);
}

/* -- gather -- */

/* T has an element's size. */
template <class T>
struct gather_piece {
  enum { BLOCKS = 6 };
  lam_view weight, y;
  lam_indices ids;
  int64_t first, n_rows;

  __device__ void operator()(int64_t row, int64_t col, int n) const {
    const int64_t from = lam_index_at(ids, row) - first;
    if (from >= 0 && from < n_rows)
      lam_move<T>(weight, from, y, row, col, n);
    else
      lam_fill<T>(y, row, col, n, 0);
  }
};

template <class T>
static lam_status gather(lam_matrix weight, lam_matrix ids, int64_t first, lam_matrix y,
                         void *stream) {
  const gather_piece<T> piece = {lam_view_of(weight), lam_view_of(y), lam_indices_of(ids), first,
                                 weight.rows};
  return lam_cuda_each_piece(y.rows, y.cols, piece, stream, "gather");
}

extern "C" lam_status lam_cuda_gather_run(const lam_workers *w, lam_matrix weight, lam_matrix ids,
                                          int64_t first, lam_matrix y, void *stream) {
  (void)w;
  LAM_TRY(check("gather", weight));
  switch (lam_cuda_bytes(weight.dtype)) {
    case 4: return gather<uint32_t>(weight, ids, first, y, stream);
    case 2: return gather<uint16_t>(weight, ids, first, y, stream);
    default: return gather<uint8_t>(weight, ids, first, y, stream);
  }
}

/* -- scatter -- */

enum { TOKENS = 256 }; /* of a block, and of a look at those after them */

typedef struct chains {
  lam_indices ids;
  int64_t first, n_rows, n_tokens;
  unsigned long long *head; /* [n_rows]; all ones: -1, none */
  int64_t *next;            /* [n_tokens] */
} chains;

/* The token's row here; -1: none. */
LAM_DEVICE int64_t row_of(const chains &c, int64_t token) {
  if (token >= c.n_tokens) return -1;
  const int64_t row = lam_index_at(c.ids, token) - c.first;
  return row >= 0 && row < c.n_rows ? row : -1;
}

/* Each thread looks for the next token of its row, from its own block of tokens on, until all of
 * the block have found theirs. */
static __global__ void __launch_bounds__(TOKENS) chain(chains c) {
  int64_t *const rows = (int64_t *)lam_cuda_shared();
  int32_t *const n_looking = (int32_t *)(rows + TOKENS);
  for (int64_t block = blockIdx.x; block * TOKENS < c.n_tokens; block += gridDim.x) {
    const int64_t token = block * TOKENS + threadIdx.x, row = row_of(c, token);
    int64_t next = -1;
    if (row >= 0) atomicMin(&c.head[row], (unsigned long long)token);
    for (int64_t at = block * TOKENS; at < c.n_tokens; at += TOKENS) {
      __syncthreads(); /* the last look is over */
      rows[threadIdx.x] = row_of(c, at + threadIdx.x);
      if (threadIdx.x == 0) *n_looking = 0;
      __syncthreads();
      for (int i = 0; i < TOKENS && row >= 0 && next < 0; i++)
        if (rows[i] == row && at + i > token) next = at + i;
      if (row >= 0 && next < 0) atomicAdd(n_looking, 1);
      __syncthreads();
      if (*n_looking == 0) break;
    }
    if (row >= 0) c.next[token] = next;
  }
}

struct scatter_piece {
  enum { BLOCKS = 5 };
  lam_view dy, dw;
  const int64_t *head, *next;
  bool accumulate;

  __device__ void operator()(int64_t row, int64_t col, int n) const {
    lam_vec v = {{0}};
    int64_t token = head[row];
    if (token < 0 && accumulate) return;
    while (token >= 0) {
      const lam_raw one = lam_vec_ask(dy, token, col, n);
      token = next[token]; /* on its way beside the row */
      v = lam_vec_plus(v, lam_vec_of(one, dy.dtype));
    }
    if (accumulate) v = lam_vec_plus(v, lam_vec_load(dw, row, col, n));
    lam_vec_store(dw, row, col, n, v);
  }
};

extern "C" lam_status lam_cuda_scatter_run(const lam_workers *w, lam_matrix dy, lam_matrix ids,
                                           int64_t first, int64_t *links, lam_matrix dw,
                                           bool accumulate, void *stream) {
  const int64_t n_tokens = ids.rows * ids.cols;
  (void)w;
  LAM_TRY(check("scatter", dy));
  LAM_TRY(check("scatter", dw));
  if (dw.rows <= 0 || dw.cols <= 0) return LAM_OK;
  const cudaError_t error =
      cudaMemsetAsync(links, 0xff, (size_t)dw.rows * sizeof *links, (cudaStream_t)stream);
  LAM_TRY(lam_cuda_refused(error, "scatter", "the heads were not cleared"));
  const chains c = {lam_indices_of(ids),         first,          dw.rows, n_tokens,
                    (unsigned long long *)links, links + dw.rows};
  const dim3 grid((unsigned)lam_cuda_least(lam_cuda_cuts(n_tokens, TOKENS), 1 << 20));
  LAM_TRY(lam_cuda_launch(chain, grid, dim3(TOKENS), (TOKENS + 1) * sizeof *links, stream, c,
                          "scatter"));
  const scatter_piece piece = {lam_view_of(dy), lam_view_of(dw), links, links + dw.rows,
                               accumulate};
  return lam_cuda_each_piece(dw.rows, dw.cols, piece, stream, "scatter");
}
