/* copy.c: memory calls of the runtime: allocation, copies, fills.
 *
 * Invariant: a copy's ranges are checked when it is queued, and those on devices again when it
 * runs. From pageable memory, bytes are taken at the call; to it, the call waits, as on a real
 * card.
 * Leaves where memory lies to memory.c. */
#include <stdlib.h>
#include <string.h>

#include "tests/standin/inside.h"

/* -- allocation -- */

cudaError_t CUDARTAPI cudaMalloc(void **out, size_t bytes) {
  si_enter();
  const cudaError_t e = si_capture_forbids(__func__);
  return si_leave(e != cudaSuccess ? e : si_memory_new(si_device, bytes, out));
}

/* Waits for all that is queued, as a real one does. */
static cudaError_t free_now(void *p, bool pinned, const char *who) {
  if (!p) return cudaSuccess;
  const cudaError_t e = si_capture_forbids(who);
  if (e != cudaSuccess) return e;
  si_counted.syncs++;
  si_queue_drain(pinned ? -1 : si_memory_place(p));
  return si_memory_free(p, pinned, who);
}

cudaError_t CUDARTAPI cudaFree(void *p) {
  si_enter();
  return si_leave_as_is(free_now(p, false, __func__));
}

cudaError_t CUDARTAPI cudaMallocHost(void **out, size_t bytes) {
  si_enter();
  const cudaError_t e = si_capture_forbids(__func__);
  return si_leave(e != cudaSuccess ? e : si_memory_new(SI_PINNED, bytes, out));
}

cudaError_t CUDARTAPI cudaHostAlloc(void **out, size_t bytes, unsigned int flags) {
  si_enter();
  if (flags & ~(unsigned)(cudaHostAllocPortable | cudaHostAllocMapped | cudaHostAllocWriteCombined))
    return si_leave(cudaErrorInvalidValue);
  const cudaError_t e = si_capture_forbids(__func__);
  return si_leave(e != cudaSuccess ? e : si_memory_new(SI_PINNED, bytes, out));
}

cudaError_t CUDARTAPI cudaFreeHost(void *p) {
  si_enter();
  return si_leave_as_is(free_now(p, true, __func__));
}

cudaError_t CUDARTAPI cudaHostRegister(void *p, size_t bytes, unsigned int flags) {
  si_enter();
  if (flags & ~(unsigned)(cudaHostRegisterPortable | cudaHostRegisterMapped))
    return si_leave(cudaErrorInvalidValue);
  const cudaError_t e = si_capture_forbids(__func__);
  return si_leave(e != cudaSuccess ? e : si_memory_register(p, bytes));
}

cudaError_t CUDARTAPI cudaHostUnregister(void *p) {
  si_enter();
  const cudaError_t e = si_capture_forbids(__func__);
  if (e != cudaSuccess) return si_leave_as_is(e);
  si_counted.syncs++;
  si_queue_drain(-1);
  return si_leave_as_is(si_memory_unregister(p, __func__));
}

cudaError_t CUDARTAPI cudaHostGetDevicePointer(void **out, void *host, unsigned int flags) {
  si_enter();
  *out = NULL;
  if (flags != 0) return si_leave(cudaErrorInvalidValue);
  const cudaError_t e = si_memory_check(host, 1, si_device, __func__, "the memory");
  if (e == cudaSuccess) *out = host;
  return si_leave(e);
}

typedef struct release_work {
  si_work base;
  void *p;
} release_work;

static si_went run_release(si_work *w, void **state) {
  (void)state;
  si_memory_free(((release_work *)w)->p, false, "cudaFreeAsync");
  return SI_ENDED;
}

static si_stream *not_captured(cudaStream_t handle, const char *who, cudaError_t *out) {
  si_stream *s = si_stream_find(handle, who);
  *out = s ? cudaSuccess : cudaErrorInvalidResourceHandle;
  if (s && s->capture) *out = si_capture_break(s->capture, cudaErrorStreamCaptureUnsupported, who);
  return *out == cudaSuccess ? s : NULL;
}

cudaError_t CUDARTAPI cudaMallocAsync(void **out, size_t bytes, cudaStream_t stream) {
  cudaError_t e;
  si_enter();
  *out = NULL;
  const si_stream *s = not_captured(stream, __func__, &e);
  if (s) e = si_memory_new(s->device, bytes, out);
  si_memory_mark_pooled(*out);
  return si_leave(e);
}

cudaError_t CUDARTAPI cudaFreeAsync(void *p, cudaStream_t stream) {
  cudaError_t e;
  si_enter();
  si_stream *s = not_captured(stream, __func__, &e);
  if (s)
    e = si_memory_check(p, 1, si_memory_place(p) >= 0 ? si_memory_place(p) : s->device, __func__,
                        "the memory");
  if (e != cudaSuccess) return si_leave(e);
  release_work *w = (release_work *)si_work_new(sizeof *w, s->device, "cudaFreeAsync", run_release);
  w->p = p;
  return si_leave(si_stream_add(s, &w->base, __func__));
}

cudaError_t CUDARTAPI cudaMemGetInfo(size_t *out_free, size_t *out_total) {
  si_enter();
  *out_total = si_machine_is.memory;
  *out_free = si_machine_is.memory - si_memory_used(si_device);
  return si_leave(cudaSuccess);
}

cudaError_t CUDARTAPI cudaPointerGetAttributes(struct cudaPointerAttributes *out, const void *p) {
  si_enter();
  const int place = si_memory_place(p);
  memset(out, 0, sizeof *out);
  out->device = place >= 0 ? place : place == SI_PINNED ? si_device : cudaInvalidDeviceId;
  out->type = place >= 0           ? cudaMemoryTypeDevice
              : place == SI_PINNED ? cudaMemoryTypeHost
                                   : cudaMemoryTypeUnregistered;
  if (place != SI_PAGEABLE) out->devicePointer = (void *)p;
  if (place < 0) out->hostPointer = (void *)p;
  return si_leave(cudaSuccess);
}

/* -- copies -- */

/* height lines of width bytes */
typedef struct lines {
  char *at;
  size_t pitch;
  int place;
} lines;

typedef struct copy_work {
  si_work base;
  lines to, from;
  size_t width, height;
  char *staged; /* what lay in pageable memory at the call; NULL: the source is read when it runs */
} copy_work;

static uint64_t extent(const copy_work *c, const lines *l) {
  return c->height ? (c->height - 1) * l->pitch + c->width : 0;
}

static cudaError_t check_side(const copy_work *c, const lines *l, const char *who,
                              const char *what) {
  if (l->place == SI_PAGEABLE || c->width == 0 || c->height == 0) return cudaSuccess;
  const int device = l->place >= 0 ? l->place : c->base.device; /* copies reach all devices */
  return si_memory_check(l->at, extent(c, l), device, who, what);
}

static void copy_lines(const copy_work *c) {
  const lines from = c->staged ? (lines){c->staged, c->width, SI_PAGEABLE} : c->from;
  si_memory_open(c->to.place);
  si_memory_open(from.place);
  for (size_t i = 0; i < c->height; i++)
    memmove(c->to.at + i * c->to.pitch, from.at + i * from.pitch, c->width);
}

static si_went run_copy(si_work *w, void **state) {
  const copy_work *c = (const copy_work *)w;
  (void)state;
  if (check_side(c, &c->to, "a copy that runs", "the destination") != cudaSuccess ||
      (!c->staged && check_side(c, &c->from, "a copy that runs", "the source") != cudaSuccess))
    si_lose(w->device, cudaErrorIllegalAddress);
  else
    copy_lines(c);
  return SI_ENDED;
}

static void free_copy(si_work *w) { free(((copy_work *)w)->staged); }

static bool kind_fits(enum cudaMemcpyKind kind, const lines *to, const lines *from) {
  static const int sides[][2] = {{0, 0}, {1, 0}, {0, 1}, {1, 1}}; /* to, from a device? */
  if (kind == cudaMemcpyDefault) return true;
  if ((unsigned)kind > cudaMemcpyDeviceToDevice) return false;
  const bool pinned_counts_as_both = to->place == SI_PINNED || from->place == SI_PINNED;
  return pinned_counts_as_both ||
         (sides[kind][0] == (to->place >= 0) && sides[kind][1] == (from->place >= 0));
}

static void stage(copy_work *c) {
  c->staged = si_new(c->width * c->height);
  for (size_t i = 0; i < c->height; i++)
    memcpy(c->staged + i * c->width, c->from.at + i * c->from.pitch, c->width);
}

static cudaError_t queue_copy(si_stream *s, copy_work *c, const char *who) {
  const bool takes = c->from.place == SI_PAGEABLE, waits = c->to.place == SI_PAGEABLE;
  if (s->capture && (takes || waits)) {
    si_work_unref(&c->base);
    return si_capture_break(s->capture, cudaErrorStreamCaptureUnsupported, who);
  }
  if (takes) stage(c);
  const cudaError_t e = si_stream_add(s, &c->base, who);
  if (e != cudaSuccess || !waits) return e;
  const int device = s->device;
  si_node *last = s->last;
  last->refs++;
  si_counted.syncs++;
  si_queue_finish(last);
  si_node_unref(last);
  return si_lost(device);
}

static cudaError_t copy(lines to, lines from, size_t width, size_t height, enum cudaMemcpyKind kind,
                        cudaStream_t stream, const char *who) {
  si_stream *s = si_stream_find(stream, who);
  if (!s) return cudaErrorInvalidResourceHandle;
  to.place = si_memory_place(to.at), from.place = si_memory_place(from.at);
  if (!kind_fits(kind, &to, &from))
    return si_misuse(cudaErrorInvalidValue, "%s: the direction, %d, is not that of the pointers",
                     who, (int)kind);
  copy_work *c = (copy_work *)si_work_new(sizeof *c, s->device, "a copy", run_copy);
  c->base.free = free_copy;
  c->to = to, c->from = from, c->width = width, c->height = height;
  cudaError_t e = check_side(c, &to, who, "the destination");
  if (e == cudaSuccess) e = check_side(c, &from, who, "the source");
  if (e != cudaSuccess || width == 0 || height == 0) {
    si_work_unref(&c->base);
    return e;
  }
  si_counted.copies++;
  return queue_copy(s, c, who);
}

cudaError_t CUDARTAPI cudaMemcpyAsync(void *to, const void *from, size_t bytes,
                                      enum cudaMemcpyKind kind, cudaStream_t stream) {
  si_enter();
  return si_leave(copy((lines){to, bytes, 0}, (lines){(char *)from, bytes, 0}, bytes, 1, kind,
                       stream, __func__));
}

cudaError_t CUDARTAPI cudaMemcpy2DAsync(void *to, size_t to_pitch, const void *from,
                                        size_t from_pitch, size_t width, size_t height,
                                        enum cudaMemcpyKind kind, cudaStream_t stream) {
  si_enter();
  if (width > to_pitch || width > from_pitch)
    return si_leave(si_misuse(cudaErrorInvalidPitchValue,
                              "%s: lines of %zu bytes, %zu and %zu apart", __func__, width,
                              to_pitch, from_pitch));
  return si_leave(copy((lines){to, to_pitch, 0}, (lines){(char *)from, from_pitch, 0}, width,
                       height, kind, stream, __func__));
}

/* -- fills -- */

typedef struct fill_work {
  si_work base;
  void *at;
  int value;
  size_t bytes;
} fill_work;

static si_went run_fill(si_work *w, void **state) {
  const fill_work *f = (const fill_work *)w;
  (void)state;
  if (si_memory_check(f->at, f->bytes, w->device, "a fill that runs", "the memory")) {
    si_lose(w->device, cudaErrorIllegalAddress);
    return SI_ENDED;
  }
  si_memory_reach(w->device);
  si_memory_fill(f->at, f->value, f->bytes);
  return SI_ENDED;
}

static cudaError_t fill(void *at, int value, size_t bytes, cudaStream_t stream, const char *who) {
  si_stream *s = si_stream_find(stream, who);
  if (!s) return cudaErrorInvalidResourceHandle;
  if (bytes == 0) return cudaSuccess;
  const cudaError_t e = si_memory_check(at, bytes, s->device, who, "the memory");
  if (e != cudaSuccess) return e;
  fill_work *f = (fill_work *)si_work_new(sizeof *f, s->device, "a fill", run_fill);
  f->at = at, f->value = value, f->bytes = bytes;
  si_counted.fills++;
  return si_stream_add(s, &f->base, who);
}

cudaError_t CUDARTAPI cudaMemsetAsync(void *at, int value, size_t bytes, cudaStream_t stream) {
  si_enter();
  return si_leave(fill(at, value, bytes, stream, __func__));
}
