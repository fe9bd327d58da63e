/* stream.c: streams and events: who waits for whom.
 *
 * The legacy stream (NULL) waits for all earlier work of the device's blocking streams, and they
 * for it; each thread has one stream more, which blocks. An event stands for what its stream was
 * given before it was recorded.
 * Invariant: a stream's nodes form a line; `last` is its end.
 * Leaves what may run to queue.c, streams that are captured to graph.c. */
#include <stdlib.h>
#include <string.h>

#include "tests/standin/inside.h"

typedef struct event {
  int device;
  unsigned flags;
  si_node *node;       /* the mark it was recorded as; NULL: never, or captured */
  si_capture *capture; /* it was recorded in */
  int *heads, n_heads;
} event;

static si_stream legacy[SI_MAX_DEVICES];
static _Thread_local si_stream *own[SI_MAX_DEVICES]; /* cudaStreamPerThread */
static _Thread_local int64_t own_age;
static int64_t n_own; /* such streams of all threads */
static int64_t age;   /* counts resets, after which threads' own streams are gone */

static si_stream *stream_new(int device, unsigned flags, int priority) {
  si_stream *s = si_new(sizeof *s);
  s->device = device;
  s->flags = flags;
  s->priority = priority;
  s->handle = si_handle_new(SI_STREAM, s);
  return s;
}

static si_stream *threads_own(void) {
  if (own_age != age) memset(own, 0, sizeof own), own_age = age;
  if (own[si_device]) return own[si_device];
  n_own++;
  return own[si_device] = stream_new(si_device, cudaStreamDefault, 0);
}

int64_t si_streams_own(void) { return n_own; }

si_stream *si_stream_find(cudaStream_t handle, const char *who) {
  if (handle == cudaStreamPerThread) return threads_own();
  if (handle != NULL && handle != cudaStreamLegacy) return si_handle_find(SI_STREAM, handle, who);
  legacy[si_device].legacy = true;
  legacy[si_device].device = si_device;
  return &legacy[si_device];
}

void si_each_stream(void (*fn)(si_stream *s, void *arg), void *arg) {
  void *s;
  for (int64_t i = 0; si_handle_at(SI_STREAM, i, &s); i++)
    if (s) fn(s, arg);
}

static void stream_free(si_stream *s) {
  si_node_unref(s->last);
  si_capture_unref(s->capture);
  free(s->heads);
  free(s);
}

static void forget(si_stream *s, void *arg) {
  (void)arg;
  stream_free(s);
}

static void event_clear(event *e) {
  si_node_unref(e->node);
  si_capture_unref(e->capture);
  free(e->heads);
  *e = (event){.device = e->device, .flags = e->flags};
}

void si_streams_forget(void) {
  void *e;
  si_each_stream(forget, NULL);
  for (int64_t i = 0; si_handle_at(SI_EVENT, i, &e); i++)
    if (e) event_clear(e), free(e);
  for (int d = 0; d < SI_MAX_DEVICES; d++) {
    si_node_unref(legacy[d].last);
    legacy[d].last = NULL;
  }
  n_own = 0;
  age++;
}

/* -- the line -- */

typedef struct gathered {
  const si_stream *of;
  si_node **before;
  int n;
} gathered;

static void gather(si_stream *s, void *arg) {
  gathered *g = arg;
  const bool blocks = !(s->flags & cudaStreamNonBlocking);
  if (blocks && s->device == g->of->device && s->last && g->n < SI_MAX_BEFORE)
    g->before[g->n++] = s->last;
}

int si_stream_before(si_stream *s, si_node **before) {
  gathered g = {s, before, 0};
  if (s->last) before[g.n++] = s->last;
  if (s->legacy)
    si_each_stream(gather, &g);
  else if (!(s->flags & cudaStreamNonBlocking) && legacy[s->device].last)
    before[g.n++] = legacy[s->device].last;
  return g.n;
}

void si_stream_set_last(si_stream *s, si_node *last) {
  si_node_unref(s->last);
  s->last = last;
}

static cudaError_t refuse_legacy(si_stream *s, const char *who) {
  si_capture *c;
  if (!s->legacy || !si_capture_of_blocking(s->device, &c)) return cudaSuccess;
  return si_capture_break(c, cudaErrorStreamCaptureImplicit, who);
}

cudaError_t si_stream_add(si_stream *s, si_work *w, const char *who) {
  static si_node *before[SI_MAX_BEFORE];
  if (s->capture) return si_capture_add(s, w);
  const cudaError_t e = refuse_legacy(s, who);
  if (e != cudaSuccess) {
    si_work_unref(w);
    return e;
  }
  const int n = si_stream_before(s, before);
  si_node *added = si_queue_add(w, before, n);
  added->stream = (unsigned long long)(uintptr_t)s->handle;
  si_stream_set_last(s, added);
  si_queue_some();
  return cudaSuccess;
}

/* -- streams -- */

static cudaError_t create(cudaStream_t *out, unsigned flags, int priority) {
  *out = NULL;
  if (flags & ~(unsigned)cudaStreamNonBlocking) return cudaErrorInvalidValue;
  *out = stream_new(si_device, flags, priority)->handle;
  return cudaSuccess;
}

cudaError_t CUDARTAPI cudaStreamCreateWithFlags(cudaStream_t *out, unsigned int flags) {
  si_enter();
  return si_leave(create(out, flags, 0));
}

cudaError_t CUDARTAPI cudaStreamCreateWithPriority(cudaStream_t *out, unsigned int flags,
                                                   int priority) {
  si_enter();
  return si_leave(create(out, flags, priority));
}

cudaError_t CUDARTAPI cudaStreamDestroy(cudaStream_t handle) {
  si_enter();
  si_stream *s = handle == cudaStreamPerThread ? NULL : si_handle_find(SI_STREAM, handle, __func__);
  if (!s) return si_leave(cudaErrorInvalidResourceHandle);
  if (s->capture) si_capture_break(s->capture, cudaErrorStreamCaptureUnsupported, __func__);
  si_handle_drop(SI_STREAM, handle);
  stream_free(s);
  return si_leave_as_is(cudaSuccess);
}

cudaError_t CUDARTAPI cudaStreamGetDevice(cudaStream_t handle, int *out) {
  si_enter();
  const si_stream *s = si_stream_find(handle, __func__);
  if (s) *out = s->device;
  return si_leave(s ? cudaSuccess : cudaErrorInvalidResourceHandle);
}

/* Handles are never used again, so they tell streams of one device apart. */
cudaError_t CUDARTAPI cudaStreamGetId(cudaStream_t handle, unsigned long long *out) {
  si_enter();
  const si_stream *s = si_stream_find(handle, __func__);
  if (s) *out = (unsigned long long)(uintptr_t)s->handle;
  return si_leave(s ? cudaSuccess : cudaErrorInvalidResourceHandle);
}

/* May the host ask how far this stream is? */
static cudaError_t may_ask(si_stream *s, const char *who) {
  if (s->capture) return si_capture_break(s->capture, cudaErrorStreamCaptureUnsupported, who);
  const cudaError_t e = refuse_legacy(s, who);
  return e != cudaSuccess ? e : si_capture_forbids(who);
}

/* What all of the stream comes down to: for the legacy stream, the blocking ones too. */
static si_node *all_of(si_stream *s) {
  static si_node *before[SI_MAX_BEFORE];
  if (!s->legacy) {
    if (s->last) s->last->refs++;
    return s->last;
  }
  const int n = si_stream_before(s, before);
  return si_queue_add(si_work_nothing(s->device), before, n);
}

static cudaError_t synchronize(cudaStream_t handle, const char *who) {
  si_stream *s = si_stream_find(handle, who);
  if (!s) return cudaErrorInvalidResourceHandle;
  const int device = s->device;
  const cudaError_t e = may_ask(s, who);
  if (e != cudaSuccess) return e;
  si_counted.syncs++;
  si_node *n = all_of(s);
  si_queue_finish(n);
  si_node_unref(n);
  si_memory_audit();
  return si_lost(device);
}

cudaError_t CUDARTAPI cudaStreamSynchronize(cudaStream_t handle) {
  si_enter();
  return si_leave(synchronize(handle, __func__));
}

static cudaError_t query(cudaStream_t handle, const char *who) {
  si_stream *s = si_stream_find(handle, who);
  if (!s) return cudaErrorInvalidResourceHandle;
  const cudaError_t e = may_ask(s, who);
  if (e != cudaSuccess) return e;
  si_queue_poll();
  return !s->last || s->last->done ? si_lost(s->device) : cudaErrorNotReady;
}

cudaError_t CUDARTAPI cudaStreamQuery(cudaStream_t handle) {
  si_enter();
  return si_leave(query(handle, __func__));
}

cudaError_t CUDARTAPI cudaDeviceSynchronize(void) {
  si_enter();
  si_capture *c;
  if (si_capture_of_blocking(-1, &c))
    return si_leave(si_capture_break(c, cudaErrorStreamCaptureUnsupported, __func__));
  si_counted.syncs++;
  si_queue_drain(si_device);
  si_memory_audit();
  return si_leave(cudaSuccess);
}

/* -- events -- */

cudaError_t CUDARTAPI cudaEventCreateWithFlags(cudaEvent_t *out, unsigned int flags) {
  si_enter();
  *out = NULL;
  if (flags & ~(unsigned)(cudaEventBlockingSync | cudaEventDisableTiming))
    return si_leave(cudaErrorInvalidValue);
  event *e = si_new(sizeof *e);
  e->device = si_device;
  e->flags = flags;
  *out = si_handle_new(SI_EVENT, e);
  return si_leave(cudaSuccess);
}

cudaError_t CUDARTAPI cudaEventDestroy(cudaEvent_t handle) {
  si_enter();
  event *e = si_handle_find(SI_EVENT, handle, __func__);
  if (!e) return si_leave(cudaErrorInvalidResourceHandle);
  si_handle_drop(SI_EVENT, handle);
  event_clear(e);
  free(e);
  return si_leave_as_is(cudaSuccess);
}

static void copy_heads(int **to, int *n_to, const int *from, int n) {
  *to = si_grown(*to, ((size_t)n + 1) * sizeof(int));
  if (n) memcpy(*to, from, (size_t)n * sizeof(int));
  *n_to = n;
}

static cudaError_t record(cudaEvent_t handle, cudaStream_t stream, const char *who) {
  event *e = si_handle_find(SI_EVENT, handle, who);
  si_stream *s = e ? si_stream_find(stream, who) : NULL;
  if (!s) return cudaErrorInvalidResourceHandle;
  if (s->device != e->device)
    return si_misuse(cudaErrorInvalidResourceHandle,
                     "%s: the event is of device %d, the stream of device %d", who, e->device,
                     s->device);
  if (s->capture) {
    if (s->capture->dead) return cudaErrorStreamCaptureInvalidated;
    event_clear(e);
    e->capture = s->capture;
    e->capture->refs++;
    copy_heads(&e->heads, &e->n_heads, s->heads, s->n_heads);
    return cudaSuccess;
  }
  const cudaError_t error = si_stream_add(s, si_work_nothing(s->device), who);
  if (error != cudaSuccess) return error;
  event_clear(e);
  e->node = s->last;
  e->node->refs++;
  return cudaSuccess;
}

cudaError_t CUDARTAPI cudaEventRecord(cudaEvent_t handle, cudaStream_t stream) {
  si_enter();
  return si_leave(record(handle, stream, __func__));
}

/* The stream becomes part of the event's capture, or waits for more of it. */
static cudaError_t join(si_stream *s, const event *e, const char *who) {
  if (e->capture->ended)
    return si_misuse(cudaErrorCapturedEvent,
                     "%s: the event was recorded in a capture that has ended", who);
  if (s->legacy) return si_capture_break(e->capture, cudaErrorStreamCaptureImplicit, who);
  if (s->capture && s->capture != e->capture) {
    si_capture_break(s->capture, cudaErrorStreamCaptureMerge, who);
    return si_capture_break(e->capture, cudaErrorStreamCaptureMerge, who);
  }
  if (e->capture->dead) return cudaErrorStreamCaptureInvalidated;
  if (!s->capture) s->capture = e->capture, s->capture->refs++, s->n_heads = 0;
  const int had = s->n_heads;
  s->heads = si_grown(s->heads, ((size_t)(had + e->n_heads) + 1) * sizeof(int));
  if (e->n_heads) memcpy(s->heads + had, e->heads, (size_t)e->n_heads * sizeof(int));
  s->n_heads = had + e->n_heads;
  return cudaSuccess;
}

static cudaError_t wait_event(cudaStream_t stream, cudaEvent_t handle, const char *who) {
  static si_node *before[SI_MAX_BEFORE + 1];
  event *e = si_handle_find(SI_EVENT, handle, who);
  si_stream *s = e ? si_stream_find(stream, who) : NULL;
  if (!s) return cudaErrorInvalidResourceHandle;
  if (e->capture) return join(s, e, who);
  if (s->capture) return si_capture_break(s->capture, cudaErrorStreamCaptureIsolation, who);
  const cudaError_t error = refuse_legacy(s, who);
  if (error != cudaSuccess || !e->node) return error;
  int n = si_stream_before(s, before);
  before[n++] = e->node;
  si_stream_set_last(s, si_queue_add(si_work_nothing(s->device), before, n));
  si_queue_some();
  return cudaSuccess;
}

cudaError_t CUDARTAPI cudaStreamWaitEvent(cudaStream_t stream, cudaEvent_t handle,
                                          unsigned int flags) {
  si_enter();
  if (flags != cudaEventWaitDefault) return si_leave(cudaErrorInvalidValue);
  return si_leave(wait_event(stream, handle, __func__));
}

/* A recorded event that the host may ask about, or the reason why not. */
static cudaError_t asked(cudaEvent_t handle, const char *who, event **out) {
  *out = si_handle_find(SI_EVENT, handle, who);
  if (!*out) return cudaErrorInvalidResourceHandle;
  if ((*out)->capture) return si_capture_break((*out)->capture, cudaErrorCapturedEvent, who);
  return si_capture_forbids(who);
}

cudaError_t CUDARTAPI cudaEventQuery(cudaEvent_t handle) {
  event *e;
  si_enter();
  const cudaError_t error = asked(handle, __func__, &e);
  if (error != cudaSuccess) return si_leave(error);
  si_queue_poll();
  return si_leave(!e->node || e->node->done ? cudaSuccess : cudaErrorNotReady);
}

cudaError_t CUDARTAPI cudaEventSynchronize(cudaEvent_t handle) {
  event *e;
  si_enter();
  const cudaError_t error = asked(handle, __func__, &e);
  if (error != cudaSuccess) return si_leave(error);
  const int device = e->device;
  si_counted.syncs++;
  si_queue_finish(e->node);
  return si_leave(si_lost(device));
}

cudaError_t CUDARTAPI cudaEventElapsedTime(float *out, cudaEvent_t first, cudaEvent_t last) {
  event *a, *b;
  si_enter();
  cudaError_t error = asked(first, __func__, &a);
  if (error == cudaSuccess) error = asked(last, __func__, &b);
  if (error != cudaSuccess) return si_leave(error);
  if (!a->node || !b->node || (a->flags | b->flags) & cudaEventDisableTiming)
    return si_leave(si_misuse(cudaErrorInvalidResourceHandle,
                              "%s: an event was not recorded, or has no timing", __func__));
  if (!a->node->done || !b->node->done) return si_leave(cudaErrorNotReady);
  *out = (float)((double)((int64_t)(b->node->ended_ns - a->node->ended_ns)) * 1e-6);
  return si_leave(cudaSuccess);
}
