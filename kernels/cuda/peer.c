/* peer.c: what ranks share on a card, and the order of what a rank's group queues there.
 *
 * A rank's kernels count steps in its lanes, so they run one after another, whatever streams its
 * calls name: a call on another stream than the last waits for an event. So do those that are captured
 * into one graph; what is outside of it they do not wait for: who replays a graph orders it as he would
 * its operands.
 * Invariant: lanes and words outlive every kernel that was given them: they are freed when the card
 * has come to their end.
 * Leaves the kernels to peer_sum.cu and peer_move.cu. */
#include <stdlib.h>
#include <string.h>

#include "kernels/cuda/host.h"
#include "kernels/cuda/peer.h"

enum {
  FORKS = LAM_PEER_FORKS,
  APART_BYTES = 2 << 20 /* the driver's own unit: what is smaller may share one */
};

typedef struct last_use {
  cudaEvent_t event;
  unsigned long long stream, capture; /* ids of where it was recorded */
  bool is;                            /* it was recorded */
} last_use;

struct lam_peer_line {
  uint32_t *words, *words_on_card;
  last_use last, in_graph; /* in_graph: of calls that were captured */
  cudaEvent_t forked[FORKS], done[FORKS];
  cudaStream_t side;
  int32_t device;
  bool borrowed; /* the words lie in the host's page */
};

uint32_t *lam_cuda_line_words(const lam_peer_line *line) { return line->words_on_card; }

/* -- lines -- */

static lam_status make_event(cudaEvent_t *out) {
  return lam_cuda_status(cudaEventCreateWithFlags(out, cudaEventDisableTiming), "make an event");
}

static lam_status make_events(lam_peer_line *l) {
  LAM_TRY(make_event(&l->last.event));
  LAM_TRY(make_event(&l->in_graph.event));
  for (int i = 0; i < FORKS; i++) {
    LAM_TRY(make_event(&l->forked[i]));
    LAM_TRY(make_event(&l->done[i]));
  }
  return LAM_OK;
}

/* Where the system lets the card see the page; else only this process can end the line. */
static bool borrow_page(lam_peer_line *l, void *page, uint64_t bytes) {
  const unsigned flags = cudaHostRegisterMapped | cudaHostRegisterPortable;
  void *on_card = NULL;
  if (!page || cudaHostRegister(page, bytes, flags) != cudaSuccess) {
    (void)cudaGetLastError();
    return false;
  }
  if (cudaHostGetDevicePointer(&on_card, page, 0) != cudaSuccess) {
    (void)cudaGetLastError();
    (void)cudaHostUnregister(page);
    return false;
  }
  l->words = page;
  l->words_on_card = on_card;
  l->borrowed = true;
  return true;
}

static lam_status make_words(lam_peer_line *l) {
  void *words = NULL, *on_card = NULL;
  LAM_TRY_CUDA(cudaHostAlloc(&words, LAM_WORDS * sizeof(uint32_t),
                             cudaHostAllocMapped | cudaHostAllocPortable),
               "have memory that host and card see");
  l->words = words;
  for (int i = 0; i < LAM_WORDS; i++) l->words[i] = 0;
  LAM_TRY_CUDA(cudaHostGetDevicePointer(&on_card, words, 0), "let the card see the host's memory");
  l->words_on_card = on_card;
  return LAM_OK;
}

static lam_status make_line(lam_peer_line *l, void *page, uint64_t page_bytes) {
  LAM_TRY_CUDA(cudaGetDevice(&l->device), "ask for the thread's device");
  if (!borrow_page(l, page, page_bytes)) LAM_TRY(make_words(l));
  LAM_TRY(make_events(l));
  /* Few blocks, for which peers wait: before those of a product that is there already. */
  LAM_TRY_CUDA(cudaStreamCreateWithPriority(&l->side, cudaStreamNonBlocking, -1), "make a stream");
  LAM_TRY(lam_cuda_peer_load_sum());
  return lam_cuda_peer_load_move();
}

static void destroy_event(cudaEvent_t e) {
  if (e && cudaEventDestroy(e) != cudaSuccess) (void)cudaGetLastError();
}

static void drop_words(const lam_peer_line *l) {
  if (!l->words) return;
  if ((l->borrowed ? cudaHostUnregister : cudaFreeHost)(l->words) != cudaSuccess)
    (void)cudaGetLastError();
}

static void peer_close(lam_peer_line *l) {
  int32_t was = 0;
  if (!l) return;
  const lam_status entered = lam_cuda_enter(l->device, &was);
  const enum cudaStreamCaptureMode mode = lam_cuda_set_capture_mode(cudaStreamCaptureModeRelaxed);
  if (l->last.is && cudaEventSynchronize(l->last.event) != cudaSuccess) (void)cudaGetLastError();
  destroy_event(l->last.event);
  destroy_event(l->in_graph.event);
  for (int i = 0; i < FORKS; i++) destroy_event(l->forked[i]), destroy_event(l->done[i]);
  if (l->side && cudaStreamDestroy(l->side) != cudaSuccess) (void)cudaGetLastError();
  drop_words(l);
  (void)lam_cuda_set_capture_mode(mode);
  if (entered == LAM_OK) lam_cuda_leave(was);
  free(l);
}

static lam_status peer_open(void *page, uint64_t page_bytes, lam_peer_line **out,
                            int32_t *out_device) {
  *out = NULL;
  lam_peer_line *l = calloc(1, sizeof *l);
  if (!l) return lam_fail(LAM_RESOURCE_EXHAUSTED, "cuda: no memory");
  const enum cudaStreamCaptureMode mode = lam_cuda_set_capture_mode(cudaStreamCaptureModeRelaxed);
  const lam_status status = make_line(l, page, page_bytes);
  (void)lam_cuda_set_capture_mode(mode);
  if (status != LAM_OK) {
    peer_close(l);
    return status;
  }
  *out = l;
  *out_device = l->device;
  return LAM_OK;
}

static void peer_end(lam_peer_line *l) {
  __atomic_store_n(&l->words[LAM_WORD_END], 1, __ATOMIC_RELEASE);
}

static lam_status peer_check(lam_peer_line *l, bool alone, void *stream) {
  int device = l->device;
  LAM_TRY_CUDA(cudaGetDevice(&device), "ask for the thread's device");
  if (device != l->device)
    return lam_fail(LAM_INVALID_ARGUMENT, "the group works on GPU %d, found tensors of GPU %d",
                    l->device, device);
  const uint32_t late = __atomic_load_n(&l->words[LAM_WORD_LATE], __ATOMIC_ACQUIRE);
  if (late)
    return lam_fail(LAM_PEER_STALLED,
                    "a kernel waited for rank %u past its deadline: its kernel did not come",
                    late - 1);
  if (alone || (stream != NULL && stream != cudaStreamLegacy)) return LAM_OK;
  return lam_fail(LAM_INVALID_ARGUMENT,
                  "found the default stream: ranks that share a card wait for each other there, so "
                  "each needs a stream of its own");
}

/* -- order -- */

/* Where a call stands. */
typedef struct turn {
  last_use *last; /* what it comes after, and what later ones come after */
  unsigned long long stream, capture;
} turn;

static lam_status follow(lam_peer_line *l, void *stream, turn *out) {
  lam_cuda_capture c;
  LAM_TRY(lam_cuda_capture_of(stream, &c));
  *out = (turn){.last = c.is ? &l->in_graph : &l->last, .capture = c.id};
  LAM_TRY_CUDA(cudaStreamGetId(stream, &out->stream), "use this stream");
  const last_use *last = out->last;
  if (!last->is || last->stream == out->stream || last->capture != c.id) return LAM_OK;
  return lam_cuda_status(cudaStreamWaitEvent(stream, last->event, 0), "wait for another stream");
}

static lam_status mark(const turn *t, void *stream) {
  LAM_TRY_CUDA(cudaEventRecord(t->last->event, stream), "record an event");
  *t->last = (last_use){t->last->event, t->stream, t->capture, true};
  return LAM_OK;
}

static lam_status peer_fork(lam_peer_line *l, int slot, void *stream, void **out_side) {
  *out_side = l->side;
  LAM_TRY_CUDA(cudaEventRecord(l->forked[slot], stream), "record an event");
  return lam_cuda_status(cudaStreamWaitEvent(l->side, l->forked[slot], 0), "begin a side stream");
}

static lam_status peer_forked(lam_peer_line *l, int slot, void *side) {
  return lam_cuda_status(cudaEventRecord(l->done[slot], side), "record an event");
}

static lam_status peer_join(lam_peer_line *l, int slot, void *stream) {
  return lam_cuda_status(cudaStreamWaitEvent(stream, l->done[slot], 0), "wait for a side stream");
}

/* -- memory -- */

/* Zeroed by the time this returns: peers may raise flags at once. */
static lam_status alloc_zeroed(uint64_t bytes, void **out) {
  cudaStream_t own = NULL;
  LAM_TRY_CUDA(cudaMalloc(out, bytes), "have memory for peers");
  LAM_TRY_CUDA(cudaStreamCreateWithFlags(&own, cudaStreamNonBlocking), "make a stream");
  cudaError_t error = cudaMemsetAsync(*out, 0, bytes, own);
  if (error == cudaSuccess) error = cudaStreamSynchronize(own);
  (void)cudaStreamDestroy(own);
  return lam_cuda_status(error, "clear memory for peers");
}

static lam_status peer_alloc(uint64_t bytes, bool apart, void **out) {
  *out = NULL;
  if (apart) bytes = (bytes + APART_BYTES - 1) / APART_BYTES * APART_BYTES;
  const enum cudaStreamCaptureMode mode = lam_cuda_set_capture_mode(cudaStreamCaptureModeRelaxed);
  const lam_status status = alloc_zeroed(bytes, out);
  if (status != LAM_OK && *out) (void)cudaFree(*out), *out = NULL;
  (void)lam_cuda_set_capture_mode(mode);
  return status;
}

_Static_assert(sizeof(lam_peer_handle) == sizeof(cudaIpcMemHandle_t), "one is the other");

static lam_status peer_show(void *p, lam_peer_handle *out) {
  cudaIpcMemHandle_t h;
  const enum cudaStreamCaptureMode mode = lam_cuda_set_capture_mode(cudaStreamCaptureModeRelaxed);
  const cudaError_t error = cudaIpcGetMemHandle(&h, p);
  (void)lam_cuda_set_capture_mode(mode);
  memcpy(out, &h, sizeof h);
  return lam_cuda_status(error, "show memory to another process (cudaIpcGetMemHandle)");
}

static lam_status peer_map(const lam_peer_handle *from, void **out) {
  cudaIpcMemHandle_t h;
  memcpy(&h, from, sizeof h);
  const enum cudaStreamCaptureMode mode = lam_cuda_set_capture_mode(cudaStreamCaptureModeRelaxed);
  const cudaError_t error = cudaIpcOpenMemHandle(out, h, cudaIpcMemLazyEnablePeerAccess);
  (void)lam_cuda_set_capture_mode(mode);
  return lam_cuda_status(error, "open another process's memory (cudaIpcOpenMemHandle)");
}

/* Ends what `end` ends, on its device, whatever is captured. */
static void drop(int32_t device_id, void *p, cudaError_t (*end)(void *p)) {
  int32_t was = 0;
  if (!p || lam_cuda_enter(device_id, &was) != LAM_OK) return;
  const enum cudaStreamCaptureMode mode = lam_cuda_set_capture_mode(cudaStreamCaptureModeRelaxed);
  if (end(p) != cudaSuccess) (void)cudaGetLastError();
  (void)lam_cuda_set_capture_mode(mode);
  lam_cuda_leave(was);
}

static void peer_free(int32_t device_id, void *p) { drop(device_id, p, cudaFree); }
static void peer_unmap(int32_t device_id, void *p) { drop(device_id, p, cudaIpcCloseMemHandle); }
static void peer_unpin(int32_t device_id, void *p) { drop(device_id, p, cudaFreeHost); }

static lam_status peer_pin(uint64_t bytes, void **out) {
  const enum cudaStreamCaptureMode mode = lam_cuda_set_capture_mode(cudaStreamCaptureModeRelaxed);
  const cudaError_t error = cudaMallocHost(out, bytes);
  (void)lam_cuda_set_capture_mode(mode);
  return lam_cuda_status(error, "have pinned memory");
}

static lam_status peer_reach(int32_t device_id) {
  int own = 0, can = 0;
  LAM_TRY_CUDA(cudaGetDevice(&own), "ask for the thread's device");
  if (own == device_id) return LAM_OK;
  LAM_TRY_CUDA(cudaDeviceCanAccessPeer(&can, own, device_id), "ask what the GPU reaches");
  if (!can)
    return lam_fail(LAM_UNIMPLEMENTED, "cuda: GPU %d cannot read the memory of GPU %d", own,
                    device_id);
  const cudaError_t error = cudaDeviceEnablePeerAccess(device_id, 0);
  if (error != cudaErrorPeerAccessAlreadyEnabled)
    return lam_cuda_status(error, "read another GPU's memory");
  (void)cudaGetLastError();
  return LAM_OK;
}

/* Why not more: peer.cuh. */
static lam_status peer_lanes(int on_card, int32_t *out_lanes, uint64_t *out_lane_bytes) {
  int device = 0, sms = 0;
  LAM_TRY_CUDA(cudaGetDevice(&device), "ask for the thread's device");
  LAM_TRY_CUDA(cudaDeviceGetAttribute(&sms, cudaDevAttrMultiProcessorCount, device),
               "count the GPU's multiprocessors");
  const int fit = sms / on_card;
  *out_lanes = fit < 1 ? 1 : fit < LAM_LANES ? fit : LAM_LANES;
  *out_lane_bytes = LAM_LANE_BYTES;
  return LAM_OK;
}

/* -- operations -- */

static lam_status peer_sum(const lam_peers *p, const lam_peer_sum *s, void *stream) {
  turn t;
  LAM_TRY(follow(p->line, stream, &t));
  LAM_TRY(lam_cuda_peer_sum_run(p, s, stream));
  return mark(&t, stream);
}

static lam_status peer_gather(const lam_peers *p, const lam_peer_gather *g, void *stream) {
  turn t;
  LAM_TRY(follow(p->line, stream, &t));
  LAM_TRY(lam_cuda_peer_gather_run(p, g, stream));
  return mark(&t, stream);
}

static lam_status peer_box(lam_peer_line *line, int peer, uint32_t deadline_ms,
                           const lam_peer_box *box, int what, void *data, uint64_t bytes,
                           void *stream) {
  turn t;
  LAM_TRY(follow(line, stream, &t));
  LAM_TRY(lam_cuda_peer_box_run(line, peer, deadline_ms, box, what, data, bytes, stream));
  return mark(&t, stream);
}

static lam_status peer_copy(lam_peer_line *line, const void *from, void *to, uint64_t bytes,
                            void *stream) {
  turn t;
  LAM_TRY(follow(line, stream, &t));
  LAM_TRY_CUDA(cudaMemcpyAsync(to, from, bytes, cudaMemcpyDeviceToDevice, stream), "copy");
  return mark(&t, stream);
}

static lam_status drain(lam_peer_line *l, const lam_peers *lanes, const lam_peer_box *boxes, int n,
                        uint32_t deadline_ms) {
  if (l->last.is) LAM_TRY_CUDA(cudaStreamWaitEvent(l->side, l->last.event, 0), "wait for a stream");
  if (lanes) {
    lam_peers p = *lanes;
    p.deadline_ms = deadline_ms;
    LAM_TRY(lam_cuda_peer_drain_run(&p, l->side));
  }
  for (int i = 0; i < n; i++)
    LAM_TRY(lam_cuda_peer_box_run(l, 0, deadline_ms, &boxes[i], LAM_BOX_AWAIT_EMPTY, NULL, 0,
                                  l->side));
  return lam_cuda_status(cudaStreamSynchronize(l->side), "wait for peers");
}

static void peer_drain(lam_peer_line *l, const lam_peers *lanes, const lam_peer_box *boxes, int n,
                       uint32_t deadline_ms) {
  int32_t was = 0;
  if (lam_cuda_enter(l->device, &was) != LAM_OK) return;
  const enum cudaStreamCaptureMode mode = lam_cuda_set_capture_mode(cudaStreamCaptureModeRelaxed);
  (void)drain(l, lanes, boxes, n, deadline_ms);
  (void)lam_cuda_set_capture_mode(mode);
  lam_cuda_leave(was);
}

const lam_device_peer lam_cuda_peer = {
    .open = peer_open,
    .close = peer_close,
    .end = peer_end,
    .check = peer_check,
    .alloc = peer_alloc,
    .free = peer_free,
    .show = peer_show,
    .map = peer_map,
    .unmap = peer_unmap,
    .pin = peer_pin,
    .unpin = peer_unpin,
    .place = lam_cuda_place,
    .reach = peer_reach,
    .lanes = peer_lanes,
    .fork = peer_fork,
    .forked = peer_forked,
    .join = peer_join,
    .sum = peer_sum,
    .norms = lam_cuda_peer_norms,
    .gather = peer_gather,
    .box = peer_box,
    .copy = peer_copy,
    .watch = lam_cuda_peer_watch,
    .unwatch = lam_cuda_peer_unwatch,
    .drain = peer_drain,
};
