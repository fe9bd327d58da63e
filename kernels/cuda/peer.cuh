/* peer.cuh: lanes: how a block of one rank's kernel works with the blocks of the same number of its
 * peers' kernels.
 *
 * A lane is memory of its rank: a flag for each peer to raise, the epoch of its last step, and two
 * halves in turn, each for what comes in and for what was made of it. A step takes two epochs:
 *     fill the own half | all raise epoch + 1 | read the peers' halves
 *     (write results    | all raise epoch + 2 | read the peers' results)
 * At its kernel's end a rank says up to where it has read, for those that want to leave.
 * Invariant: a rank raises epoch + 1 of a step when it has read all of the step before; so a half is
 * filled again only when nobody reads it any more, and no step needs a barrier at its end. Epochs are
 * counted in the lane, so a captured kernel goes on where the last one was.
 * All blocks of all ranks on a card must run at once, or they would wait for what cannot start:
 * ranks times lanes is at most the number of its SMs, whatever else a card has room for.
 * Leaves what is filled and read to peer_sum.cu and peer_move.cu. */
#ifndef LAMELLA_KERNELS_CUDA_PEER_CUH
#define LAMELLA_KERNELS_CUDA_PEER_CUH

#include "kernels/cuda/kernel.cuh"
#include "kernels/cuda/peer.h"

enum { PEER_THREADS = 256, PEER_LOOK = 64 /* polls between looks at clock and host */ };

/* What a kernel knows of its ranks. */
typedef struct peer_ranks {
  char *lanes[LAM_PEERS];
  uint32_t *words; /* LAM_WORD_..., which the host sees */
  uint64_t patience_ns;
  int32_t rank, size;
} peer_ranks;

LAM_DEVICE char *peer_lane(const peer_ranks &p, int rank) {
  return p.lanes[rank] + (int64_t)blockIdx.x * LAM_LANE_BYTES;
}
LAM_DEVICE uint32_t *peer_flag(const peer_ranks &p, int of, int raised_by) {
  return (uint32_t *)peer_lane(p, of) + raised_by;
}
LAM_DEVICE uint32_t *peer_epoch(const peer_ranks &p) {
  return (uint32_t *)(peer_lane(p, p.rank) + LAM_LANE_EPOCH);
}
LAM_DEVICE uint32_t *peer_read(const peer_ranks &p, int of, int by) {
  return (uint32_t *)(peer_lane(p, of) + LAM_LANE_READ) + by;
}
/* What comes in, or (made) what was made of it, in the step that began at `epoch`. */
LAM_DEVICE char *peer_half(const peer_ranks &p, int rank, uint32_t epoch, bool made) {
  return peer_lane(p, rank) + LAM_LANE_HEAD +
         (int64_t)(epoch / 2 % 2 * 2 + (made ? 1 : 0)) * LAM_LANE_HALF;
}

/* The word reaches `value`; false: its patience or the host ended it. */
LAM_DEVICE bool peer_await(const uint32_t *word, uint32_t value, uint32_t *words,
                           uint64_t patience_ns, int peer) {
  const uint64_t start = lam_cuda_now_ns();
  for (uint32_t i = 1; (int32_t)(lam_cuda_load_acquire(word) - value) < 0; i++) {
    if (i % PEER_LOOK == 0) {
      if (lam_cuda_load_acquire(words + LAM_WORD_END)) return false;
      if (lam_cuda_now_ns() - start > patience_ns) {
        lam_cuda_store_release(words + LAM_WORD_LATE, (uint32_t)peer + 1);
        lam_cuda_store_release(words + LAM_WORD_END, 1); /* for what is queued behind it */
        return false;
      }
    }
    lam_cuda_spin();
  }
  return true;
}

/* All blocks of this lane have come to `epoch`, and what they wrote before is there; false, to all
 * threads: some have not. over: shared, 0 at first. */
LAM_DEVICE bool peer_meet(const peer_ranks &p, uint32_t epoch, int *over) {
  const int peer = threadIdx.x;
  __syncthreads(); /* what this block wrote comes before what its threads tell */
  if (peer < p.size && peer != p.rank) {
    lam_cuda_store_release(peer_flag(p, peer, p.rank), epoch);
    if (!peer_await(peer_flag(p, p.rank, peer), epoch, p.words, p.patience_ns, peer)) *over = 1;
  }
  __syncthreads();
  return *(volatile int *)over == 0;
}

/* The lane's next step begins at `epoch`; all threads come here. */
LAM_DEVICE void peer_done(const peer_ranks &p, uint32_t epoch) {
  __syncthreads();
  if (threadIdx.x == 0) *peer_epoch(p) = epoch;
  if ((int)threadIdx.x < p.size) lam_cuda_store_release(peer_read(p, threadIdx.x, p.rank), epoch);
}

static inline peer_ranks peer_ranks_of(const lam_peers *p) {
  peer_ranks r = {};
  for (int i = 0; i < p->size; i++) r.lanes[i] = (char *)p->lanes[i];
  r.words = lam_cuda_line_words(p->line);
  r.patience_ns = (uint64_t)p->deadline_ms * 1000000u;
  r.rank = p->rank, r.size = p->size;
  return r;
}

/* Asking how often it fits loads a kernel. */
template <class A>
static lam_status lam_cuda_preload(void (*kernel)(A), int threads, const char *name) {
  int blocks = 0;
  const cudaError_t error =
      cudaOccupancyMaxActiveBlocksPerMultiprocessor(&blocks, (const void *)kernel, threads, 0);
  if (error == cudaSuccess && blocks > 0) return LAM_OK;
  (void)cudaGetLastError();
  return lam_fail(LAM_INTERNAL, "cuda %s: the kernel cannot be loaded: %s", name,
                  cudaGetErrorString(error));
}

#endif

