/* peer_move.cu: bytes between ranks that read each other's memory: shares that all gather, and
 * messages of one rank to another, in boxes.
 *
 * A box holds one message, in its sender's memory. Both ends count in words of it how often it was
 * filled and emptied, each of its blocks for itself, so that a captured kernel goes on where the last
 * one was.
 * Invariant: a box is filled when all blocks have emptied what was there, emptied when all have filled
 * it. Bytes move in units that divide all their addresses.
 * Leaves which box a message takes to plugin/comm. */
#include "kernels/cuda/peer.cuh"

/* The largest of 16, 8, 4, 2, 1 that divides all of these. */
static int unit_of(uint64_t all) {
  int unit = 16;
  while (all % (uint64_t)unit) unit /= 2;
  return unit;
}

/* Units threadIdx.x, threadIdx.x + blockDim.x, ... of n bytes: put(from byte, T) each. */
template <class T, class Get, class Put>
LAM_DEVICE void move_units(int64_t n, const Get &get, const Put &put) {
  for (int64_t i = (int64_t)threadIdx.x * sizeof(T); i < n; i += (int64_t)blockDim.x * sizeof(T))
    *(T *)put(i) = *(const T *)get(i);
}

template <class Get, class Put>
LAM_DEVICE void move_bytes(int unit, int64_t n, const Get &get, const Put &put) {
  switch (unit) {
    case 16:
      return move_units<uint4>(n, get, put);
    case 8:
      return move_units<uint2>(n, get, put);
    case 4:
      return move_units<uint32_t>(n, get, put);
    case 2:
      return move_units<uint16_t>(n, get, put);
    default:
      return move_units<uint8_t>(n, get, put);
  }
}

struct along { /* bytes one after another */
  char *data;
  __device__ char *operator()(int64_t i) const { return data + i; }
};

struct among { /* bytes of a share, from `first` on, in its whole */
  char *whole;
  int64_t bytes, stride, first;
  __device__ char *operator()(int64_t i) const {
    return whole + (first + i) / bytes * stride + (first + i) % bytes;
  }
};

/* -- gather -- */

typedef struct gather_call {
  peer_ranks ranks;
  const char *mine;
  char *whole;
  int64_t stride, bytes[LAM_PEERS], share[LAM_PEERS], offset[LAM_PEERS];
  int64_t all, step; /* the largest share; what of it a lane takes at a time */
  int32_t own_unit, unit;
  int32_t first_rank, n_ranks; /* whose shares are read */
} gather_call;

/* Of rank's share, in the step at `first`. */
LAM_DEVICE int64_t of_share(const gather_call &c, int rank, int64_t first) {
  const int64_t left = c.share[rank] - first;
  return left < 0 ? 0 : left < c.step ? left : c.step;
}

static __global__ void __launch_bounds__(PEER_THREADS)
    gather_lanes(const __grid_constant__ gather_call c) {
  __shared__ int over;
  const int me = c.ranks.rank;
  const int64_t stride = c.step * gridDim.x;
  uint32_t epoch = *peer_epoch(c.ranks);
  if (threadIdx.x == 0) over = 0;
  for (int64_t first = (int64_t)blockIdx.x * c.step; first < c.all; first += stride, epoch += 2) {
    move_bytes(c.own_unit, of_share(c, me, first), along{(char *)c.mine + first},
               along{peer_half(c.ranks, me, epoch, false)});
    if (!peer_meet(c.ranks, epoch + 1, &over)) return;
    for (int r = c.first_rank; r < c.first_rank + c.n_ranks; r++)
      move_bytes(c.unit, of_share(c, r, first), along{peer_half(c.ranks, r, epoch, false)},
                 among{c.whole + c.offset[r], c.bytes[r], c.stride, first});
  }
  peer_done(c.ranks, epoch);
}

extern "C" lam_status lam_cuda_peer_gather_run(const lam_peers *p, const lam_peer_gather *g,
                                               void *stream) {
  gather_call c = {};
  uint64_t all = (uint64_t)(uintptr_t)g->whole | (uint64_t)g->stride;
  c.ranks = peer_ranks_of(p);
  c.mine = (const char *)g->mine, c.whole = (char *)g->whole, c.stride = g->stride;
  for (int r = 0; r < p->size; r++) {
    c.bytes[r] = g->bytes[r] > 0 ? g->bytes[r] : 1;
    c.share[r] = g->bytes[r] * g->count[r];
    c.offset[r] = g->offset[r];
    if (c.share[r] > c.all) c.all = c.share[r];
    if (c.share[r] > 0) all |= (uint64_t)g->bytes[r] | (uint64_t)g->offset[r];
  }
  if (c.all == 0) return LAM_OK;
  c.first_rank = g->step ? (p->rank + g->step) % p->size : 0;
  c.n_ranks = g->step ? 1 : p->size;
  c.unit = unit_of(all);
  c.own_unit = unit_of((uint64_t)(uintptr_t)g->mine | (uint64_t)c.share[p->rank]);
  c.step = lam_cuda_least(lam_cuda_cuts(lam_cuda_cuts(c.all, p->n_lanes), 512) * 512, LAM_LANE_HALF);
  const int64_t lanes = lam_cuda_least(lam_cuda_cuts(c.all, c.step), p->n_lanes);
  return lam_cuda_launch(gather_lanes, dim3((unsigned)lanes), dim3(PEER_THREADS), 0, stream, c,
                         "peer_gather");
}

static __global__ void __launch_bounds__(PEER_THREADS)
    drain_lanes(const __grid_constant__ peer_ranks p) {
  const int peer = threadIdx.x;
  if (peer < p.size)
    peer_await(peer_read(p, p.rank, peer), *peer_epoch(p), p.words, p.patience_ns, peer);
}

extern "C" lam_status lam_cuda_peer_drain_run(const lam_peers *p, void *stream) {
  return lam_cuda_launch(drain_lanes, dim3((unsigned)p->n_lanes), dim3(PEER_THREADS), 0, stream,
                         peer_ranks_of(p), "peer_drain");
}

/* -- boxes -- */

enum { BOX_BLOCKS = 8, EMPTIED = LAM_PEER_BOX_WORDS / 2 /* words: filled first, then emptied */ };

typedef struct box_call {
  uint32_t *filled, *emptied, *words;
  uint64_t patience_ns;
  char *data, *other;
  int64_t bytes, each; /* each: of a block */
  int32_t what, peer, unit;
} box_call;

/* As often as it was filled, all of it was emptied; or filled once more than this end emptied it. */
LAM_DEVICE void await_box(const box_call &c, int word, int *over) {
  const bool empty = (c.what & LAM_BOX_AWAIT_EMPTY) != 0;
  const uint32_t value = empty ? c.filled[word] : c.emptied[word] + 1;
  if (threadIdx.x < BOX_BLOCKS &&
      !peer_await((empty ? c.emptied : c.filled) + threadIdx.x, value, c.words, c.patience_ns,
                  c.peer))
    *over = 1;
}

/* One block without a copy counts for all of them. */
static __global__ void __launch_bounds__(PEER_THREADS) use_box(const __grid_constant__ box_call c) {
  __shared__ int over;
  const int n = gridDim.x == 1 ? (int)BOX_BLOCKS : 1;
  const int64_t first = (int64_t)blockIdx.x * c.each;
  const int64_t bytes = c.bytes - first < c.each ? c.bytes - first : c.each;
  if (threadIdx.x == 0) over = 0;
  __syncthreads();
  if (c.what & (LAM_BOX_AWAIT_EMPTY | LAM_BOX_AWAIT_FULL)) await_box(c, blockIdx.x, &over);
  __syncthreads();
  if (*(volatile int *)&over) return;
  if (c.other && bytes > 0) {
    const along box = {c.data + first}, other = {c.other + first};
    if (c.what & LAM_BOX_FILL)
      move_bytes(c.unit, bytes, other, box);
    else
      move_bytes(c.unit, bytes, box, other);
  }
  __syncthreads();
  const int word = blockIdx.x + threadIdx.x;
  if ((int)threadIdx.x >= n) return;
  if (c.what & LAM_BOX_FILL) lam_cuda_store_release(c.filled + word, c.filled[word] + 1);
  if (c.what & LAM_BOX_EMPTY) lam_cuda_store_release(c.emptied + word, c.emptied[word] + 1);
}

extern "C" lam_status lam_cuda_peer_box_run(lam_peer_line *line, int peer, uint32_t deadline_ms,
                                            const lam_peer_box *box, int what, void *data,
                                            uint64_t bytes, void *stream) {
  box_call c = {};
  c.filled = box->words, c.emptied = box->words + EMPTIED;
  c.words = lam_cuda_line_words(line);
  c.patience_ns = (uint64_t)deadline_ms * 1000000u;
  c.data = (char *)box->data, c.other = (char *)data;
  c.bytes = (int64_t)bytes;
  c.each = lam_cuda_cuts(lam_cuda_cuts(c.bytes, BOX_BLOCKS), 16) * 16;
  c.what = what, c.peer = peer;
  c.unit = unit_of((uint64_t)(uintptr_t)data | bytes);
  return lam_cuda_launch(use_box, dim3(data && bytes ? BOX_BLOCKS : 1), dim3(PEER_THREADS), 0,
                         stream, c, "peer_box");
}

extern "C" lam_status lam_cuda_peer_load_move(void) {
  LAM_TRY(lam_cuda_preload(gather_lanes, PEER_THREADS, "peer_gather"));
  return lam_cuda_preload(use_box, PEER_THREADS, "peer_box");
}
