/* far.h: matrices in the CUDA device's memory, beside their boxes of support.h, for tests on the stand-in.
 *
 * Invariant: a far matrix lies in the pattern of its box: what was written beside its elements shows
 * when it is fetched.
 * Leaves what runs there to the tests. */
#ifndef LAMELLA_TESTS_UNIT_KERNELS_FAR_H
#define LAMELLA_TESTS_UNIT_KERNELS_FAR_H

#include "kernels/cuda/host.h"
#include "tests/standin/standin.h"
#include "tests/unit/kernels/support.h"

#define CUDA (&lam_device_cuda)

typedef struct far {
  box near; /* owned by whoever made it */
  void *memory;
  char *start; /* where the box's memory lies */
  lam_matrix m;
} far;

void *stream_new(void); /* its work runs beside that of others */
void stream_drop(void *stream);

/* shift: bytes by which its first element is off an alignment of 256. An empty box gives an absent
 * matrix. */
far far_of(box near, uint64_t shift, void *stream);
void far_write(far *f, void *stream);
void far_fetch(far *f, void *stream); /* into near; waits */
void far_free(far *f);

#endif
