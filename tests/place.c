/* place.c: see place.h. */
#include "tests/place.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "tests/check.h"

enum { CPU = 1, CUDA = 2 }; /* DLDeviceType */
/* cudaStreamPerThread: CUDA makes it for each thread that names it. */
#define STREAM_PER_THREAD ((void *)(uintptr_t)2)

static const lam_device *device;
static _Thread_local int32_t card;
static char missing[LAM_MESSAGE_BYTES];

static const char *named(void) {
  const char *name = getenv("LAMELLA_TEST_DEVICE");
  return name && *name && strcmp(name, "cpu") != 0 ? name : NULL;
}

bool place_is_named(void) { return named() != NULL; }

static void find(void) {
  int32_t was;
  const char *name = named();
  if (!name) return;
  if (strcmp(name, "cuda") != 0) {
    snprintf(missing, sizeof missing, "LAMELLA_TEST_DEVICE is %s, known are cpu and cuda", name);
  } else if (lam_device_open(CUDA, &device) != LAM_OK ||
             lam_device_enter(device, 0, &was) != LAM_OK) {
    snprintf(missing, sizeof missing, "%s", lam_last_error());
  } else {
    lam_device_leave(device, was);
    return;
  }
  device = NULL;
}

const char *place_missing(void) {
  static pthread_once_t once = PTHREAD_ONCE_INIT;
  pthread_once(&once, find);
  return *missing ? missing : NULL;
}

const lam_device *place_device(void) {
  const char *why = place_missing();
  if (!why) return device;
  dprintf(1, "FAIL place: %s\n", why);
  exit(1);
}

int32_t place_device_type(void) { return place_is_host() ? CPU : CUDA; }

void *place_stream(void) { return place_is_host() ? NULL : STREAM_PER_THREAD; }

void place_take(int32_t device_id) {
  int32_t was;
  card = device_id;
  if (!place_is_host()) CHECK_OK(lam_device_enter(device, card, &was));
}

int32_t place_device_id(void) { return card; }

/* -- memory -- */

void *place_alloc(uint64_t bytes) {
  const lam_device *d = place_device();
  void *p = NULL;
  int32_t was;
  if (!d) return malloc(bytes ? bytes : 1);
  CHECK_OK(lam_device_enter(d, card, &was));
  CHECK_OK(d->memory->alloc(NULL, bytes ? bytes : 1, &p));
  lam_device_leave(d, was);
  return p;
}

void place_free(void *p) {
  const lam_device *d = place_device();
  int32_t was;
  if (!d) {
    free(p);
  } else if (p && lam_device_enter(d, card, &was) == LAM_OK) {
    d->memory->free(NULL, p, 0);
    lam_device_leave(d, was);
  }
}

void place_write(void *to, const void *host, uint64_t bytes) {
  const lam_device *d = place_device();
  if (!d)
    memcpy(to, host, bytes);
  else
    CHECK_OK(d->order->write(host, to, bytes, place_stream()));
}

void place_read(void *host, const void *from, uint64_t bytes) {
  const lam_device *d = place_device();
  if (!d)
    memcpy(host, from, bytes);
  else
    CHECK_OK(d->order->read(from, host, bytes, place_stream()));
}

void place_finish(void) {
  const lam_device *d = place_device();
  if (d) CHECK_OK(d->order->finish(place_stream()));
}

/* -- meetings -- */

void meet_at(meeting_place *m, int ranks) {
  *m = (meeting_place){PTHREAD_MUTEX_INITIALIZER, PTHREAD_COND_INITIALIZER, ranks, 0, 0};
}

static void go_on(meeting_place *m) {
  m->here = 0;
  m->round++;
  pthread_cond_broadcast(&m->all_here);
}

void meet(meeting_place *m) {
  if (place_is_host()) return;
  pthread_mutex_lock(&m->lock);
  const int round = m->round;
  if (++m->here == m->expected) go_on(m);
  while (m->round == round) pthread_cond_wait(&m->all_here, &m->lock);
  pthread_mutex_unlock(&m->lock);
}

void meet_no_more(meeting_place *m) {
  pthread_mutex_lock(&m->lock);
  m->expected--;
  if (m->here > 0 && m->here == m->expected) go_on(m);
  pthread_mutex_unlock(&m->lock);
}
