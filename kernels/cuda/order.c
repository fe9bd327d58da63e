/* order.c: a thread's device, and device memory for work that is queued on a stream.
 *
 * Blocks are kept per device. One that is given back is free for the next work on its stream at
 * once, for that runs later; any other stream first waits for an event that was recorded behind that
 * work. So streams may come and go, and what they left is used again.
 * Inside of a call, between enter and leave, CUDA is asked for the device and for what a stream is
 * once, and one event, recorded as the call ends, stands for all blocks that it left: each question
 * is some 50 ns, an event half a microsecond.
 * Invariant: a block is free or belongs to one borrower; one that a graph was captured with is never
 * freed, moved, or lent to work outside of captures: the graph may run at any time. Graphs captured on
 * one stream share blocks, as they share cuBLAS's workspace under PyTorch: they run one at a time.
 * Leaves memory for results to the caller. */
#include <stdatomic.h>
#include <stdio.h>

#include "kernels/cuda/host.h"

/* -- what a thread knows for the time of a call -- */

enum { BLOCKS = 32, EMPTY = 0, FREE, TAKEN };

typedef struct block {
  _Atomic int state;
  _Atomic bool captured;
  _Atomic bool unmarked; /* no event is behind its last work yet: only its own stream may have it */
  _Atomic uint64_t bytes, last_use;
  _Atomic unsigned long long stream; /* its id: handles are used again, ids are not */
  void *_Atomic data;
  struct block
      *_Atomic marked_by;    /* whose `event` is behind its last work; NULL: nothing is left */
  cudaEvent_t _Atomic event; /* for any block of this device */
  _Atomic int uses;          /* how many its event is for */
} block;

typedef struct stream_about {
  cudaStream_t stream;
  unsigned long long id;
  bool captured;
} stream_about;

typedef struct left_block {
  block *b;
  stream_about on;
} left_block;

/* Nothing is taken as known where calls are nested, as in a callback of the host's. */
typedef struct inside_call {
  bool is, knows_stream;
  int device;
  stream_about about;
  left_block left[BLOCKS];
  int n_left;
} inside_call;
static _Thread_local inside_call inside;

lam_status lam_cuda_device_here(int *out) {
  *out = inside.device;
  return inside.is ? LAM_OK : lam_cuda_status(cudaGetDevice(out), "ask for the thread's device");
}

/* -- the thread's device -- */

/* A thread whose device is lost cannot even ask which one it is. */
lam_status lam_cuda_enter(int32_t device_id, int32_t *out_was) {
  int was = device_id;
  LAM_TRY(lam_cuda_check_card(device_id));
  const bool known = cudaGetDevice(&was) == cudaSuccess;
  if (!known) (void)cudaGetLastError();
  *out_was = was;
  if (!known || was != device_id) LAM_TRY_CUDA(cudaSetDevice(device_id), "enter the device");
  inside.is = true;
  inside.knows_stream = false;
  inside.device = device_id;
  return LAM_OK;
}

static void mark_left(void);

void lam_cuda_leave(int32_t was) {
  int is = inside.device;
  const bool known = inside.is;
  mark_left();
  inside.is = false;
  if (!known && cudaGetDevice(&is) != cudaSuccess) is = -1;
  if (is != was && cudaSetDevice(was) != cudaSuccess) (void)cudaGetLastError();
}

lam_status lam_cuda_capturing(void *stream, bool *out) {
  enum cudaStreamCaptureStatus status = cudaStreamCaptureStatusNone;
  *out = false;
  LAM_TRY_CUDA(cudaStreamIsCapturing(stream, &status), "use this stream");
  if (status == cudaStreamCaptureStatusInvalidated)
    return lam_fail(LAM_FAILED_PRECONDITION,
                    "cuda: the stream's capture was broken by an earlier call");
  *out = status == cudaStreamCaptureStatusActive;
  return LAM_OK;
}

lam_status lam_cuda_capture_of(void *stream, lam_cuda_capture *out) {
  enum cudaStreamCaptureStatus status;
  out->id = 0;
  LAM_TRY(lam_cuda_capturing(stream, &out->is));
  if (!out->is) return LAM_OK;
  return lam_cuda_status(
      cudaStreamGetCaptureInfo(stream, &status, &out->id, NULL, NULL, NULL, NULL),
      "use this stream");
}

enum cudaStreamCaptureMode lam_cuda_set_capture_mode(enum cudaStreamCaptureMode mode) {
  if (cudaThreadExchangeStreamCaptureMode(&mode) != cudaSuccess) (void)cudaGetLastError();
  return mode;
}

/* For the rest of a call a stream stays what it is. */
static lam_status find_about(cudaStream_t stream, stream_about *out) {
  *out = inside.about;
  if (inside.is && inside.knows_stream && out->stream == stream) return LAM_OK;
  out->stream = stream;
  LAM_TRY_CUDA(cudaStreamGetId(stream, &out->id), "use this stream");
  LAM_TRY(lam_cuda_capturing(stream, &out->captured));
  inside.about = *out;
  inside.knows_stream = inside.is;
  return LAM_OK;
}

/* -- blocks -- */

static block blocks[LAM_CUDA_CARDS][BLOCKS];
static _Atomic uint64_t clock_ticks;

typedef struct wish {
  block *all; /* of this device */
  uint64_t bytes;
  unsigned long long stream;
  bool captured;
} wish;

/* How well a block suits, from 0; NOT where it cannot serve. */
enum { FITS, FITS_UNCAPTURED, FITS_ANOTHER_STREAM, TOO_SMALL, NEW, ANOTHER_STREAM, NOT };

static int suits(const block *b, int state, const wish *w) {
  const bool own = b->stream == w->stream, fits = b->bytes >= w->bytes;
  if (state == EMPTY) return w->captured ? NOT : NEW;
  if (state != FREE || (b->captured && !(w->captured && own))) return NOT;
  if (!own && b->unmarked) return NOT;
  if (!w->captured) return !own ? ANOTHER_STREAM : fits ? FITS : TOO_SMALL;
  if (!fits) return NOT;
  return b->captured ? FITS : own ? FITS_UNCAPTURED : FITS_ANOTHER_STREAM;
}

static bool is_better(const block *a, int a_suits, const block *b, int b_suits) {
  if (a_suits != b_suits) return a_suits < b_suits;
  return a_suits == ANOTHER_STREAM ? a->last_use < b->last_use : a->bytes < b->bytes;
}

/* The best but those of the mask; what it was when it was looked at, in out_state. */
static block *find_best(const wish *w, uint32_t but, int *out_suits, int *out_state) {
  block *best = NULL;
  for (block *b = w->all; b < w->all + BLOCKS; b++) {
    const int state = atomic_load(&b->state), s = suits(b, state, w);
    if (s == NOT || but >> (b - w->all) & 1u) continue;
    if (best && !is_better(b, s, best, *out_suits)) continue;
    best = b;
    *out_suits = s;
    *out_state = state;
  }
  return best;
}

/* What another thread took meanwhile, or used for something else, is left and looked for again. */
static block *take_best(const wish *w, uint32_t but, int *out_suits) {
  int state;
  for (block *b; (b = find_best(w, but, out_suits, &state)) != NULL;) {
    const int before = state;
    if (!atomic_compare_exchange_strong(&b->state, &state, TAKEN)) continue;
    if (suits(b, before, w) == *out_suits) return b;
    atomic_store(&b->state, before);
  }
  return NULL;
}

/* -- making and moving them -- */

static lam_status no_memory(const wish *w, cudaError_t error) {
  char what[80];
  snprintf(what, sizeof what, "have %llu bytes of scratch", (unsigned long long)w->bytes);
  return lam_cuda_status(error, what);
}

static lam_status grow(block *b, const wish *w, cudaStream_t stream) {
  void *data = b->data;
  if (data) LAM_TRY_CUDA(cudaFreeAsync(data, stream), "free scratch");
  b->data = data = NULL;
  b->bytes = 0;
  const cudaError_t error = cudaMallocAsync(&data, w->bytes, stream);
  if (error != cudaSuccess) return no_memory(w, error);
  b->data = data;
  b->bytes = w->bytes;
  return LAM_OK;
}

static lam_status make_event(block *b) {
  cudaEvent_t event = b->event;
  if (event) return LAM_OK;
  LAM_TRY_CUDA(cudaEventCreateWithFlags(&event, cudaEventDisableTiming), "make an event");
  b->event = event;
  return LAM_OK;
}

/* It is waited for, or need not be. */
static void drop_mark(block *b) {
  block *by = b->marked_by;
  b->marked_by = NULL;
  if (by) atomic_fetch_sub(&by->uses, 1);
}

/* Makes a taken block the stream's own, as big as is wished. */
static lam_status settle(block *b, int how, const wish *w, cudaStream_t stream) {
  LAM_TRY(make_event(b));
  if (how == ANOTHER_STREAM && b->marked_by)
    LAM_TRY_CUDA(cudaStreamWaitEvent(stream, b->marked_by->event, 0), "wait for another stream");
  drop_mark(b);
  b->stream = w->stream;
  return b->bytes >= w->bytes ? LAM_OK : grow(b, w, stream);
}

/* Leaves it as it is found next: without memory, or in its stream's order. */
static void put_back(block *b) {
  b->last_use = atomic_fetch_add(&clock_ticks, 1);
  atomic_store(&b->state, b->data ? FREE : EMPTY);
}

static lam_status borrow_uncaptured(const wish *w, cudaStream_t stream, void **out) {
  int how;
  block *b = take_best(w, 0, &how);
  if (!b)
    return lam_fail(LAM_RESOURCE_EXHAUSTED,
                    "cuda: all %d blocks of scratch are in use on this device", BLOCKS);
  const lam_status status = settle(b, how, w, stream);
  if (status != LAM_OK) {
    put_back(b);
    return status;
  }
  *out = b->data;
  return LAM_OK;
}

/* Whether what was queued with it has ended. */
static bool is_done(const block *b) {
  if (!b->marked_by) return true;
  const enum cudaStreamCaptureMode mode = lam_cuda_set_capture_mode(cudaStreamCaptureModeRelaxed);
  const bool done = cudaEventQuery(b->marked_by->event) == cudaSuccess;
  if (!done) (void)cudaGetLastError();
  (void)lam_cuda_set_capture_mode(mode);
  return done;
}

/* Of other streams' blocks only one that lies idle: a graph cannot wait for what is outside of it. */
static lam_status borrow_captured(const wish *w, void **out) {
  int how;
  uint32_t busy = 0;
  for (block *b; (b = take_best(w, busy, &how)) != NULL; busy |= 1u << (b - w->all)) {
    if (how == FITS_ANOTHER_STREAM && !is_done(b)) {
      atomic_store(&b->state, FREE);
      continue;
    }
    drop_mark(b);
    b->stream = w->stream;
    b->captured = true;
    *out = b->data;
    return LAM_OK;
  }
  return lam_fail(LAM_RESOURCE_EXHAUSTED,
                  "cuda: %llu bytes of scratch while the stream is captured: call once before the "
                  "capture, or pass lam_call.scratch",
                  (unsigned long long)w->bytes);
}

lam_status lam_cuda_borrow(uint64_t bytes, void *stream, void **out) {
  int device = 0;
  stream_about about;
  *out = NULL;
  LAM_TRY(lam_cuda_device_here(&device));
  LAM_TRY(find_about(stream, &about));
  wish w = {.bytes = bytes ? (bytes + 511) / 512 * 512 : 512,
            .stream = about.id,
            .captured = about.captured};
  if (device >= LAM_CUDA_CARDS) return lam_fail(LAM_UNIMPLEMENTED, "cuda: device %d", device);
  w.all = blocks[device];
  if (w.bytes < bytes) return no_memory(&w, cudaErrorMemoryAllocation);
  return w.captured ? borrow_captured(&w, out) : borrow_uncaptured(&w, stream, out);
}

static block *find_taken(block *all, const void *p) {
  for (block *b = all; b < all + BLOCKS; b++)
    if (b->data == p && atomic_load(&b->state) == TAKEN) return b;
  return NULL;
}

/* On the thread's device, or, where that was left meanwhile, on another. */
static block *find_anywhere(const void *p) {
  int device = 0;
  block *b = NULL;
  if (lam_cuda_device_here(&device) == LAM_OK && device < LAM_CUDA_CARDS)
    b = find_taken(blocks[device], p);
  for (int i = 0; !b && i < LAM_CUDA_CARDS; i++) b = find_taken(blocks[i], p);
  return b;
}

/* -- marks: events behind what blocks were last used for -- */

/* One that nobody uses: there is one for each block, and b uses none. Its first use is the caller's. */
static block *take_event(block *b) {
  block *all = blocks[(b - blocks[0]) / BLOCKS];
  for (int i = 0; i < BLOCKS; i++) {
    block *e = all + (b - all + i) % BLOCKS;
    int none = 0;
    if (e->event && atomic_compare_exchange_strong(&e->uses, &none, 1)) return e;
  }
  return NULL;
}

/* An event that is never recorded again while it stands for a block: or who waits for that block
 * might wait for a kernel that waits for him. Where there is none the host waits. */
static block *record_behind(block *b, cudaStream_t stream) {
  block *by = take_event(b);
  if (by && cudaEventRecord(by->event, stream) == cudaSuccess) return by;
  if (by) atomic_fetch_sub(&by->uses, 1);
  if (cudaStreamSynchronize(stream) != cudaSuccess) (void)cudaGetLastError();
  return NULL;
}

static void mark(block *b, block *by) {
  if (by) atomic_fetch_add(&by->uses, 1);
  b->marked_by = by;
  b->unmarked = false;
}

static void mark_now(block *b, cudaStream_t stream) {
  block *by = record_behind(b, stream);
  mark(b, by);
  if (by) atomic_fetch_sub(&by->uses, 1);
}

static bool is_left(block *b, const stream_about *on) {
  int state = FREE;
  if (!atomic_compare_exchange_strong(&b->state, &state, TAKEN)) return false;
  if (b->unmarked && b->stream == on->id && !b->captured) return true;
  atomic_store(&b->state, FREE);
  return false;
}

/* Those that another thread of the same stream has taken meanwhile are its own to mark. */
static void mark_left(void) {
  block *by = NULL;
  unsigned long long of = 0;
  for (int i = 0; i < inside.n_left; i++) {
    block *b = inside.left[i].b;
    const stream_about *on = &inside.left[i].on;
    if (!is_left(b, on)) continue;
    if (by && on->id != of) atomic_fetch_sub(&by->uses, 1), by = NULL;
    if (!by) by = record_behind(b, on->stream), of = on->id;
    mark(b, by);
    atomic_store(&b->state, FREE);
  }
  if (by) atomic_fetch_sub(&by->uses, 1);
  inside.n_left = 0;
}

/* Marked when the call ends; false: it must be now. */
static bool leave_for_later(block *b, cudaStream_t stream) {
  const bool later = inside.is && inside.knows_stream && inside.about.stream == stream &&
                     inside.about.id == b->stream && inside.n_left < BLOCKS;
  if (later) inside.left[inside.n_left++] = (left_block){b, inside.about};
  return later;
}

void lam_cuda_give_back(void *p, void *stream) {
  block *b = p ? find_anywhere(p) : NULL;
  if (!b) return;
  if (!b->captured) {
    b->unmarked = leave_for_later(b, stream);
    if (!b->unmarked) mark_now(b, stream);
  }
  put_back(b);
}

/* -- copies between device and host -- */

lam_status lam_cuda_finish(void *stream) {
  return lam_cuda_status(cudaStreamSynchronize(stream), "finish what was queued");
}

static lam_status copy(const void *from, void *to, uint64_t bytes, enum cudaMemcpyKind kind,
                       void *stream) {
  if (bytes == 0) return LAM_OK;
  return lam_cuda_status(cudaMemcpyAsync(to, from, bytes, kind, stream), "copy");
}

lam_status lam_cuda_read(const void *device, void *host, uint64_t bytes, void *stream) {
  return copy(device, host, bytes, cudaMemcpyDeviceToHost, stream);
}

lam_status lam_cuda_write(const void *host, void *device, uint64_t bytes, void *stream) {
  return copy(host, device, bytes, cudaMemcpyHostToDevice, stream);
}

/* -- times -- */

lam_status lam_cuda_mark(void **mark, void *stream) {
  if (!*mark)
    LAM_TRY_CUDA(cudaEventCreateWithFlags((cudaEvent_t *)mark, cudaEventDefault), "make an event");
  return lam_cuda_status(cudaEventRecord(*mark, stream), "record an event");
}

lam_status lam_cuda_elapsed(void *first, void *last, int64_t *out_ns) {
  float ms = 0;
  LAM_TRY_CUDA(cudaEventElapsedTime(&ms, first, last), "read times");
  *out_ns = (int64_t)((double)ms * 1e6);
  return LAM_OK;
}

void lam_cuda_unmark(void *mark) {
  if (cudaEventDestroy(mark) != cudaSuccess) (void)cudaGetLastError();
}
