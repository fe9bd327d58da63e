/* peer.h: what peer.c, which makes lanes and lines, and the kernels that use them know of each other.
 * Invariant: as cuda.h's: what takes a stream queues its work there and returns.
 * Leaves the ranks' protocol to peer.cuh. */
#ifndef LAMELLA_KERNELS_CUDA_PEER_H
#define LAMELLA_KERNELS_CUDA_PEER_H

#include "kernels/cuda/cuda.h"

#ifdef __cplusplus
extern "C" {
#endif

#include "kernels/peer.h"

/* A lane: for each rank a flag, and up to where it has read; its epoch; then its halves, each for
 * incoming and made. */
enum {
  LAM_LANE_READ = 64,
  LAM_LANE_EPOCH = 128,
  LAM_LANE_HEAD = 256,
  LAM_LANE_HALF = 64 << 10,
  LAM_LANE_BYTES = LAM_LANE_HEAD + 4 * LAM_LANE_HALF,
  LAM_LANES = 32 /* at most: enough to fill a link, and few to wait */
};

uint32_t *lam_cuda_line_words(const lam_peer_line *line); /* as the card sees them */

/* Kernels whose blocks wait for each other are loaded before any is launched: to load one may wait
 * for those that run. */
lam_status lam_cuda_peer_load_sum(void);
lam_status lam_cuda_peer_load_move(void);

lam_status lam_cuda_peer_sum_run(const lam_peers *p, const lam_peer_sum *s, void *stream);
bool lam_cuda_peer_norms(const lam_peers *p, int64_t cols, lam_dtype t);
lam_status lam_cuda_peer_gather_run(const lam_peers *p, const lam_peer_gather *g, void *stream);
lam_status lam_cuda_peer_box_run(lam_peer_line *line, int peer, uint32_t deadline_ms,
                                 const lam_peer_box *box, int what, void *data, uint64_t bytes,
                                 void *stream);

/* watch.c */
lam_status lam_cuda_peer_watch(const int *fds, int n, void (*fn)(void *arg, int i), void *arg,
                               lam_peer_watch **out);
void lam_cuda_peer_unwatch(lam_peer_watch *w);

/* One kernel, until all peers have read what is in the lanes. */
lam_status lam_cuda_peer_drain_run(const lam_peers *p, void *stream);

extern const lam_device_peer lam_cuda_peer;

#ifdef __cplusplus
}
#endif

#endif
