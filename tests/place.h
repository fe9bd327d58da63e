/* place.h: where the tensors of a test lie: in the host's memory, or on the device that the
 * environment names (LAMELLA_TEST_DEVICE=cuda).
 *
 *   place_write(p, host, bytes); ... a call on place_stream() ... place_read(host, p, bytes);
 *
 * Ranks are threads, each with a stream of its own. A device's memory may only be had and given up
 * while no rank waits on the device for another, which is what meetings are for.
 * Invariant: without the variable nothing here does anything, and tensors are the host's.
 * Leaves to the tests what lies there, and checks it on the host. */
#ifndef LAMELLA_TESTS_PLACE_H
#define LAMELLA_TESTS_PLACE_H

#include <pthread.h>
#include <stdbool.h>
#include <stdint.h>

#include "kernels/device.h"

bool place_is_named(void); /* asks no device: for programs whose children alone use it */
const lam_device *place_device(void); /* NULL: the host */
static inline bool place_is_host(void) { return place_device() == NULL; }
const char *place_missing(void); /* why the named device cannot be had; NULL: it can */
int32_t place_device_type(void); /* kDLCPU, kDLCUDA */
int32_t place_device_id(void);   /* the calling thread's: 0, or what it took */
void place_take(int32_t device_id);
void *place_stream(void);        /* the calling thread's; NULL on the host */

/* Failures are failed checks. */
void *place_alloc(uint64_t bytes);
void place_free(void *p);
void place_write(void *to, const void *host, uint64_t bytes);
void place_read(void *host, const void *from, uint64_t bytes);
void place_finish(void); /* what was queued is done: host memory may be looked at */

/* Ranks wait for each other, but for those that have left. On the host nobody waits. */
typedef struct meeting_place {
  pthread_mutex_t lock;
  pthread_cond_t all_here;
  int expected, here, round;
} meeting_place;
void meet_at(meeting_place *m, int ranks);
void meet(meeting_place *m);
void meet_no_more(meeting_place *m);

#endif
