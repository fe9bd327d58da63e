/* nccl.c: communicators of the host's NCCL, each with a stream of its own, and what runs on them.
 *
 * An operation is forked off its caller's stream with one event and joined to it with another. The
 * events of the last LAM_LINK_OPS operations are kept: they tell how far the link is. While the caller's
 * stream is captured, the link's becomes part of the capture, with events that nobody asks.
 * Invariant: all communicators are nonblocking: a call that NCCL has not ended leaves the link busy, and
 * nothing is recorded on its stream before it is not.
 * Leaves finding NCCL to library.c. */
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "kernels/cuda/host.h"

struct lam_link {
  ncclComm_t comm;   /* NULL: aborted, or not of this colour */
  ncclComm_t lender; /* the host's, until it may be used again */
  cudaStream_t stream;
  cudaEvent_t ready[LAM_LINK_OPS], done[LAM_LINK_OPS]; /* by number */
  cudaEvent_t captured_ready, captured_done[LAM_LINK_OPS];
  cudaEvent_t holds[LAM_LINK_HOLDS]; /* made when first used */
  bool held[LAM_LINK_HOLDS];
  bool captured[LAM_LINK_OPS]; /* was operation `number` of a capture */
  uint64_t started, ended;     /* `started` counts those that were marked */
  bool capturing;              /* what was started last */
  bool finalized;
  int32_t device, rank;
};

/* -- errors -- */

static lam_status code_of(ncclResult_t result) {
  static const struct {
    ncclResult_t result;
    lam_status code;
  } codes[] = {
      {ncclSystemError, LAM_UNAVAILABLE}, /* a socket, a driver */
      {ncclRemoteError, LAM_PEER_DEAD},   /* a peer, or the way to it, went away */
  };
  for (size_t i = 0; i < sizeof codes / sizeof *codes; i++)
    if (codes[i].result == result) return codes[i].code;
  return LAM_INTERNAL;
}

/* Under way is no failure. */
static lam_status nccl_status(ncclResult_t result, ncclComm_t comm, const char *what) {
  if (result == ncclSuccess || result == ncclInProgress) return LAM_OK;
  (void)cudaGetLastError();
  const char *more = lam_nccl_here()->ncclGetLastError(comm);
  return lam_fail(code_of(result), "cuda: NCCL could not %s: %s%s%s", what,
                  lam_nccl_here()->ncclGetErrorString(result), more && *more ? ": " : "",
                  more ? more : "");
}

static lam_status find_nccl(int *out_version) {
  const lam_nccl_calls *calls = NULL;
  LAM_TRY(lam_nccl_open(&calls));
  if (calls->ncclGetVersion(out_version) != ncclSuccess)
    return lam_fail(LAM_UNAVAILABLE, "cuda: NCCL does not say which version it is");
  if (*out_version >= NCCL_LEAST_VERSION) return LAM_OK;
  const int v = *out_version; /* 2304: 2.3.4; 20905: 2.9.5 */
  return lam_fail(LAM_UNAVAILABLE, "cuda: NCCL is %d.%d.%d, Lamella needs 2.18 or newer",
                  v >= 10000 ? v / 10000 : v / 1000, v >= 10000 ? v / 100 % 100 : v / 100 % 10,
                  v >= 10000 ? v % 100 : v % 100);
}

static lam_status link_place(lam_link_place *out) {
  const lam_cuda_card *card = NULL;
  LAM_TRY(lam_cuda_card_here(&card));
  LAM_TRY(find_nccl(&out->version));
  out->device_id = card->id;
  return lam_cuda_place(out->card, sizeof out->card);
}

static lam_status link_make_id(unsigned char *out) {
  ncclUniqueId id;
  _Static_assert(sizeof id == LAM_NCCL_ID_BYTES, "as NCCL has it");
  LAM_TRY(nccl_status(lam_nccl_here()->ncclGetUniqueId(&id), NULL, "make an id"));
  memcpy(out, &id, sizeof id);
  return LAM_OK;
}

/* -- life -- */

static ncclConfig_t config_for(int32_t ctas) {
  const ncclConfig_t c = {.size = sizeof c,
                          .magic = NCCL_CONFIG_MAGIC,
                          .version = NCCL_CONFIG_VERSION,
                          .blocking = 0,
                          .cgaClusterSize = INT_MIN,
                          .minCTAs = INT_MIN,
                          .maxCTAs = ctas > 0 ? ctas : INT_MIN,
                          .netName = NULL,
                          .splitShare = 0};
  return c;
}

static lam_status make_event(cudaEvent_t *out) {
  return lam_cuda_status(cudaEventCreateWithFlags(out, cudaEventDisableTiming), "make an event");
}

static lam_status make_stream(lam_link *l) {
  LAM_TRY_CUDA(cudaGetDevice(&l->device), "ask for the thread's device");
  LAM_TRY_CUDA(cudaStreamCreateWithPriority(&l->stream, cudaStreamNonBlocking, -1),
               "make a stream");
  LAM_TRY(make_event(&l->captured_ready));
  for (int i = 0; i < LAM_LINK_OPS; i++) {
    LAM_TRY(make_event(&l->ready[i]));
    LAM_TRY(make_event(&l->done[i]));
    LAM_TRY(make_event(&l->captured_done[i]));
  }
  return LAM_OK;
}

/* The host's communicator has to be one of this group: what NCCL would only hang over. */
static lam_status check_adopted(const lam_link *l, const lam_link_from *from) {
  int rank = -1, size = -1, device = -1;
  LAM_TRY(
      nccl_status(lam_nccl_here()->ncclCommUserRank(from->comm, &rank), NULL, "ask for a rank"));
  LAM_TRY(nccl_status(lam_nccl_here()->ncclCommCount(from->comm, &size), NULL, "count ranks"));
  LAM_TRY(nccl_status(lam_nccl_here()->ncclCommCuDevice(from->comm, &device), NULL,
                      "ask for a device"));
  if (rank != from->rank || size != from->size)
    return lam_fail(LAM_INVALID_ARGUMENT,
                    "comm is rank %d of %d, the group has this rank as %d of %d", rank, size,
                    from->rank, from->size);
  if (device != l->device)
    return lam_fail(LAM_INVALID_ARGUMENT, "comm works on GPU %d, this thread on GPU %d", device,
                    l->device);
  return LAM_OK;
}

static lam_status make_comm(lam_link *l, const lam_link_from *from) {
  ncclConfig_t config = config_for(from->ctas);
  if (from->id) {
    ncclUniqueId id;
    memcpy(&id, from->id, sizeof id);
    return nccl_status(
        lam_nccl_here()->ncclCommInitRankConfig(&l->comm, from->size, id, from->rank, &config),
        NULL, "begin a communicator");
  }
  if (from->comm) LAM_TRY(check_adopted(l, from));
  l->lender = from->comm;
  const ncclComm_t parent = from->comm ? from->comm : from->of->comm;
  const int color = from->comm ? 0 : from->color, key = from->comm ? from->rank : from->key;
  return nccl_status(lam_nccl_here()->ncclCommSplit(parent, color, key, &l->comm, &config), parent,
                     "split a communicator");
}

static void drop_event(cudaEvent_t e) {
  if (e && cudaEventDestroy(e) != cudaSuccess) (void)cudaGetLastError();
}

static void link_abort(lam_link *l) {
  const ncclComm_t comm = l->comm;
  l->comm = NULL;
  if (comm) (void)lam_nccl_here()->ncclCommAbort(comm);
}

static lam_status link_state(lam_link *l, bool *out_busy) {
  ncclResult_t result = ncclSuccess;
  *out_busy = false;
  if (!l->comm) return LAM_OK;
  const ncclComm_t of = l->lender ? l->lender : l->comm;
  const ncclResult_t asked = lam_nccl_here()->ncclCommGetAsyncError(of, &result);
  *out_busy = l->lender != NULL || (asked == ncclSuccess && result == ncclInProgress);
  if (result != ncclInProgress) l->lender = NULL; /* from here on the own one is asked */
  return nccl_status(asked == ncclSuccess ? result : asked, l->comm, "go on");
}

/* Destroyed where all ranks have finished; else nothing of the peers can be waited for. */
static void end_comm(lam_link *l) {
  bool busy = true;
  if (l->comm && l->finalized && link_state(l, &busy) == LAM_OK && !busy) {
    (void)lam_nccl_here()->ncclCommDestroy(l->comm);
    l->comm = NULL;
  }
  link_abort(l);
}

static void link_close(lam_link *l) {
  int32_t was = 0;
  if (!l) return;
  const lam_status entered = lam_cuda_enter(l->device, &was);
  const enum cudaStreamCaptureMode mode = lam_cuda_set_capture_mode(cudaStreamCaptureModeRelaxed);
  end_comm(l);
  drop_event(l->captured_ready);
  for (int i = 0; i < LAM_LINK_OPS; i++)
    drop_event(l->ready[i]), drop_event(l->done[i]), drop_event(l->captured_done[i]);
  for (int i = 0; i < LAM_LINK_HOLDS; i++) drop_event(l->holds[i]);
  if (l->stream && cudaStreamDestroy(l->stream) != cudaSuccess) (void)cudaGetLastError();
  (void)lam_cuda_set_capture_mode(mode);
  if (entered == LAM_OK) lam_cuda_leave(was);
  free(l);
}

static lam_status link_open(const lam_link_from *from, lam_link **out) {
  int version = 0;
  *out = NULL;
  LAM_TRY(find_nccl(&version));
  lam_link *l = calloc(1, sizeof *l);
  if (!l) return lam_fail(LAM_RESOURCE_EXHAUSTED, "cuda: no memory");
  lam_status status = make_stream(l);
  if (status == LAM_OK) status = make_comm(l, from);
  if (status == LAM_OK) {
    *out = l;
    return LAM_OK;
  }
  link_close(l);
  return status;
}

static lam_status link_finish(lam_link *l) {
  if (!l->comm || l->finalized) return LAM_OK;
  l->finalized = true;
  return nccl_status(lam_nccl_here()->ncclCommFinalize(l->comm), l->comm, "end a communicator");
}

/* -- operations -- */

/* The link's stream runs calls on any streams in their order; only a capture that it is part of lets no
 * others in: CUDA would break it. */
static lam_status check_capture(const lam_link *l, void *stream) {
  lam_cuda_capture own, callers;
  LAM_TRY(lam_cuda_capture_of(l->stream, &own));
  LAM_TRY(lam_cuda_capture_of(stream, &callers));
  if (!own.is || (callers.is && callers.id == own.id)) return LAM_OK;
  return lam_fail(LAM_FAILED_PRECONDITION,
                  "another stream that used this communicator is being captured into %s graph: end "
                  "the capture before another stream uses it",
                  callers.is ? "another" : "a");
}

static lam_status link_check(lam_link *l, void *stream) {
  int device = l->device;
  LAM_TRY_CUDA(cudaGetDevice(&device), "ask for the thread's device");
  if (device != l->device)
    return lam_fail(LAM_INVALID_ARGUMENT, "the group works on GPU %d, found tensors of GPU %d",
                    l->device, device);
  return check_capture(l, stream);
}

static const struct {
  ncclDataType_t type;
  int bytes; /* 0: not here; fp8 travels, as bytes, and is not summed */
} types[LAM_N_DTYPES] = {
    [LAM_F32] = {ncclFloat32, 4},  [LAM_BF16] = {ncclBfloat16, 2}, [LAM_F16] = {ncclFloat16, 2},
    [LAM_F8E4M3] = {ncclUint8, 1}, [LAM_F8E5M2] = {ncclUint8, 1},  [LAM_F64] = {ncclFloat64, 8},
    [LAM_I32] = {ncclInt32, 4},    [LAM_I64] = {ncclInt64, 8},     [LAM_U8] = {ncclUint8, 1},
};

static ncclResult_t call(const lam_link *l, const lam_link_op *op) {
  const lam_nccl_calls *nccl = lam_nccl_here();
  const ncclDataType_t t = types[op->dtype].type;
  const size_t n = (size_t)op->n;
  switch (op->what) {
    case LAM_LINK_SUM:
      return nccl->ncclAllReduce(op->x, op->y, n, t, ncclSum, l->comm, l->stream);
    case LAM_LINK_SUM_TO:
      return nccl->ncclReduce(op->x, op->y, n, t, ncclSum, op->peer, l->comm, l->stream);
    case LAM_LINK_SUM_SHARES:
      return nccl->ncclReduceScatter(op->x, op->y, n, t, ncclSum, l->comm, l->stream);
    case LAM_LINK_GATHER:
      return nccl->ncclAllGather(op->x, op->y, n, t, l->comm, l->stream);
    case LAM_LINK_BROADCAST:
      return nccl->ncclBroadcast(op->x, op->y, n, t, op->peer, l->comm, l->stream);
    case LAM_LINK_SEND:
      return nccl->ncclSend(op->x, n, t, op->peer, l->comm, l->stream);
    case LAM_LINK_RECV:
      return nccl->ncclRecv(op->y, n, t, op->peer, l->comm, l->stream);
    default:
      return ncclInvalidArgument;
  }
}

/* All of them as one kernel; also after a failure the group of calls is closed. */
static lam_status call_all(const lam_link *l, const lam_link_op *ops, int n) {
  LAM_TRY(nccl_status(lam_nccl_here()->ncclGroupStart(), l->comm, "begin an operation"));
  lam_status status = LAM_OK;
  for (int i = 0; i < n && status == LAM_OK; i++)
    status = nccl_status(call(l, &ops[i]), l->comm, "queue an operation");
  const ncclResult_t ended = lam_nccl_here()->ncclGroupEnd();
  return status == LAM_OK ? nccl_status(ended, l->comm, "queue an operation") : status;
}

static lam_status link_hold(lam_link *l, int32_t number, void *stream) {
  bool captured = false;
  LAM_TRY(lam_cuda_capturing(stream, &captured));
  if (captured) return LAM_OK;
  if (!l->holds[number]) LAM_TRY(make_event(&l->holds[number]));
  l->held[number] = true;
  return lam_cuda_status(cudaEventRecord(l->holds[number], stream), "record an event");
}

/* `ready` also tells `progress` what the operation waits for. */
static lam_status follow(lam_link *l, lam_link_after after) {
  LAM_TRY(lam_cuda_capturing(after.stream, &l->capturing));
  const cudaEvent_t ready = l->capturing ? l->captured_ready : l->ready[l->started % LAM_LINK_OPS];
  if (l->capturing || after.hold < 0) {
    LAM_TRY_CUDA(cudaEventRecord(ready, after.stream), "record an event");
    return lam_cuda_status(cudaStreamWaitEvent(l->stream, ready, 0), "wait for a stream");
  }
  if (l->held[after.hold])
    LAM_TRY_CUDA(cudaStreamWaitEvent(l->stream, l->holds[after.hold], 0), "wait for a stream");
  return lam_cuda_status(cudaEventRecord(ready, l->stream), "record an event");
}

static lam_status link_start(lam_link *l, const lam_link_op *ops, int n, lam_link_after after) {
  if (!l->comm) return lam_fail(LAM_POISONED, "cuda: the communicator was aborted");
  LAM_TRY(follow(l, after));
  return n > 0 ? call_all(l, ops, n) : LAM_OK;
}

static lam_status link_mark(lam_link *l, uint64_t *out_number) {
  const int slot = (int)(l->started % LAM_LINK_OPS);
  LAM_TRY_CUDA(cudaEventRecord(l->capturing ? l->captured_done[slot] : l->done[slot], l->stream),
               "record an event");
  l->captured[slot] = l->capturing;
  *out_number = l->started++;
  return LAM_OK;
}

/* Where its events were used again since, the wait is for a later one. */
static lam_status link_join(lam_link *l, uint64_t number, void *stream) {
  const int slot = (int)(number % LAM_LINK_OPS);
  return lam_cuda_status(
      cudaStreamWaitEvent(stream, l->captured[slot] ? l->captured_done[slot] : l->done[slot], 0),
      "wait for a communicator's stream");
}

/* Has it been reached? A failure of the device counts: nothing comes after it. */
static bool is_past(cudaEvent_t e) {
  const cudaError_t error = cudaEventQuery(e);
  if (error == cudaSuccess) return true;
  (void)cudaGetLastError();
  return error != cudaErrorNotReady;
}

static lam_status link_progress(lam_link *l, lam_link_progress *out) {
  const enum cudaStreamCaptureMode mode = lam_cuda_set_capture_mode(cudaStreamCaptureModeRelaxed);
  if (l->started > l->ended + LAM_LINK_OPS) l->ended = l->started - LAM_LINK_OPS;
  while (l->ended < l->started &&
         (l->captured[l->ended % LAM_LINK_OPS] || is_past(l->done[l->ended % LAM_LINK_OPS])))
    l->ended++;
  *out = (lam_link_progress){.started = l->started, .ended = l->ended};
  if (l->ended < l->started) out->held = !is_past(l->ready[l->ended % LAM_LINK_OPS]);
  (void)lam_cuda_set_capture_mode(mode);
  return LAM_OK;
}

static lam_status link_spawn(void *(*run)(void *arg)) {
  sigset_t all, was;
  pthread_t thread;
  sigfillset(&all);
  (void)pthread_sigmask(SIG_SETMASK, &all, &was);
  const int error = pthread_create(&thread, NULL, run, NULL);
  (void)pthread_sigmask(SIG_SETMASK, &was, NULL);
  if (error) return lam_fail(LAM_RESOURCE_EXHAUSTED, "cuda: no thread to watch NCCL with");
  (void)pthread_detach(thread);
  return LAM_OK;
}

const lam_device_nccl lam_cuda_nccl = {
    .place = link_place,
    .make_id = link_make_id,
    .open = link_open,
    .state = link_state,
    .check = link_check,
    .start = link_start,
    .hold = link_hold,
    .mark = link_mark,
    .join = link_join,
    .progress = link_progress,
    .abort = link_abort,
    .finish = link_finish,
    .close = link_close,
    .spawn = link_spawn,
};
