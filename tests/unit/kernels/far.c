/* far.c: see far.h. */
#include "tests/unit/kernels/far.h"

#include <stdlib.h>

static void need(lam_status status) {
  if (status != LAM_OK) check_fail(CHECK_AT, "%s", lam_last_error());
}

void *stream_new(void) {
  cudaStream_t stream = NULL;
  if (cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking) != cudaSuccess) abort();
  return stream;
}

void stream_drop(void *stream) {
  if (cudaStreamDestroy(stream) != cudaSuccess) abort();
}

enum { ROOM = 256 };

far far_of(box near, uint64_t shift, void *stream) {
  far f = {.near = near, .m = near.m};
  if (!near.memory) return f;
  const uint64_t offset = (uint64_t)((unsigned char *)near.m.data - near.memory);
  need(CUDA->memory->alloc(NULL, near.bytes + 2 * ROOM, &f.memory));
  f.start = (char *)f.memory + ROOM + shift % ROOM - offset % ROOM;
  f.m.data = f.start + offset;
  far_write(&f, stream);
  return f;
}

void far_write(far *f, void *stream) {
  if (!f->memory) return;
  need(CUDA->order->write(f->near.memory, f->start, f->near.bytes, stream));
  need(CUDA->order->finish(stream));
}

void far_fetch(far *f, void *stream) {
  if (!f->memory) return;
  need(CUDA->order->read(f->start, f->near.memory, f->near.bytes, stream));
  need(CUDA->order->finish(stream));
}

void far_free(far *f) {
  CUDA->memory->free(NULL, f->memory, 0);
  f->memory = NULL;
}
