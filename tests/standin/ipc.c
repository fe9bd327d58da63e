/* ipc.c: device memory that one process shows to another, and the thread by which work goes on in
 * both.
 *
 * A handle says in which process which file holds the memory's pages; who opens it maps them beside
 * its own memory of that device. Memory of the stream-ordered pool is not shown.
 * Invariant: the page behind the memory's own says which processes have it open; to free it before
 * they have closed it is a report.
 * Leaves pages and addresses to memory.c. */
#include <fcntl.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/random.h>
#include <unistd.h>

#include "tests/standin/inside.h"

_Static_assert(sizeof(standin_handle) <= sizeof(cudaIpcMemHandle_t), "a handle holds it");

/* -- which process -- */

uint64_t si_ipc_process(void) {
  static uint64_t number;
  static pid_t of;
  if (of == getpid()) return number; /* a forked child is another one */
  of = getpid();
  if (getrandom(&number, sizeof number, 0) != (ssize_t)sizeof number) abort();
  return number;
}

/* The letter behind the program's name: a process that ended is one, too, until its parent asks. */
static bool is_alive(int pid) {
  char path[40], line[256] = "";
  snprintf(path, sizeof path, "/proc/%d/stat", pid);
  FILE *f = fopen(path, "re");
  if (f && !fgets(line, sizeof line, f)) line[0] = 0;
  if (f) fclose(f);
  const char *name_end = strrchr(line, ')');
  return name_end && name_end[1] && !strchr("ZX", name_end[2]);
}

/* -- who has it open -- */

enum { OPENERS = 64 };

bool si_ipc_is_open(const char *page) {
  const _Atomic int32_t *openers = (const _Atomic int32_t *)page;
  for (int i = 0; i < OPENERS; i++)
    if (openers[i] && is_alive(openers[i])) return true;
  return false;
}

void si_ipc_note_open(char *page, bool open) {
  _Atomic int32_t *openers = (_Atomic int32_t *)page;
  const int32_t self = getpid();
  for (int i = 0; i < OPENERS; i++) {
    int32_t was = open ? 0 : self;
    if (atomic_compare_exchange_strong(&openers[i], &was, open ? self : 0)) return;
  }
}

/* -- work goes on -- */

static bool stopped;
static pid_t runs_in;

static void *run(void *arg) {
  for (bool more = true; more; sched_yield()) {
    si_enter();
    if (!stopped) si_queue_go_on();
    more = !stopped;
    si_leave_as_is(cudaSuccess);
  }
  return arg;
}

static void stop(void) {
  if (runs_in != getpid()) return;
  si_enter();
  stopped = true;
  si_leave_as_is(cudaSuccess);
}

static void go_on(void) {
  pthread_t thread;
  if (runs_in == getpid()) return;
  runs_in = getpid();
  stopped = false;
  if (pthread_create(&thread, NULL, run, NULL)) abort();
  pthread_detach(thread);
  atexit(stop);
}

/* -- calls -- */

cudaError_t CUDARTAPI cudaIpcGetMemHandle(cudaIpcMemHandle_t *out, void *p) {
  standin_handle h = {0};
  si_enter();
  memset(out, 0, sizeof *out);
  cudaError_t e = si_capture_forbids(__func__);
  if (e == cudaSuccess && si_machine_is.may_not_show) e = cudaErrorNotSupported;
  if (e == cudaSuccess) e = si_memory_show(p, __func__, &h);
  if (e != cudaSuccess) return si_leave(e);
  memcpy(out, &h, sizeof h);
  go_on();
  return si_leave(cudaSuccess);
}

static cudaError_t open_handle(const standin_handle *h, unsigned flags, void **out) {
  char path[64];
  if (flags != cudaIpcMemLazyEnablePeerAccess) return cudaErrorInvalidValue;
  if (h->process == si_ipc_process()) return cudaErrorDeviceUninitialized;
  if (si_machine_is.may_not_open) return cudaErrorMapBufferObjectFailed;
  if (h->device < 0 || h->device >= si_machine_is.n_devices) return cudaErrorInvalidDevice;
  if (!si_peers_enable(si_device, h->device)) return cudaErrorPeerAccessUnsupported;
  snprintf(path, sizeof path, "/proc/%d/fd/%d", h->pid, h->fd);
  const int fd = open(path, O_RDWR | O_CLOEXEC);
  if (fd < 0) return cudaErrorMapBufferObjectFailed;
  return si_memory_map(h, fd, out);
}

cudaError_t CUDARTAPI cudaIpcOpenMemHandle(void **out, cudaIpcMemHandle_t handle,
                                           unsigned int flags) {
  standin_handle h;
  si_enter();
  *out = NULL;
  memcpy(&h, &handle, sizeof h);
  cudaError_t e = si_capture_forbids(__func__);
  if (e == cudaSuccess) e = open_handle(&h, flags, out);
  if (e == cudaSuccess) go_on();
  return si_leave(e);
}

/* Waits for all that is queued, as a real one does. */
cudaError_t CUDARTAPI cudaIpcCloseMemHandle(void *p) {
  si_enter();
  const cudaError_t e = si_capture_forbids(__func__);
  if (e != cudaSuccess) return si_leave_as_is(e);
  si_counted.syncs++;
  si_queue_drain(si_device);
  return si_leave_as_is(si_memory_unmap(p, __func__));
}
