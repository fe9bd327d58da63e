/* queued.h: a device that queues its work, for tests of what calls ask of one: the CPU's tables
 * under another name, with an order table that counts. So a call's result is right at once; what is
 * tested is what was asked, not when.
 * Invariant: check_queued finds an enter without its leave, a borrow without its give_back. */
#ifndef LAMELLA_TESTS_UNIT_CORE_QUEUED_H_
#define LAMELLA_TESTS_UNIT_CORE_QUEUED_H_

#include "kernels/device.h"
#include "tests/unit/core/host.h"

extern struct queued_seen {
  int entered, left, borrowed, given_back, outside, marked;
  int products, tf32, z, column_sums, a_sums, quantized;
  int32_t device_id;
  void *stream;
  lam_status enter_fails, borrow_fails; /* set by a test: what to fail with */
} seen;

extern lam_device queued;
extern lam_device_gemm_table queued_gemm;
extern bool fuses_z, fuses_sums; /* what its products fuse */

void make_queued(void);    /* in the CUDA device's place, from now on; nothing seen yet */
void make_computing(void); /* the same with products of its own, of every dtype */
void check_queued(void);   /* and away with it */

/* Elements of any dtype. */
float element_at(lam_matrix m, int64_t row, int64_t col);
void element_put(lam_matrix m, int64_t row, int64_t col, float v);

/* As HOST, on device 3. */
#define QUEUED(h, data, dtype, ...) \
  (host_make(h, data, dtype, (const int64_t[]){__VA_ARGS__, -1}), (h)->t.device = queued_place)
static const DLDevice queued_place = {(DLDeviceType)2, 3};

static inline void fill_random(rng *r, float *to, int n) {
  for (int i = 0; i < n; i++) to[i] = rng_float(r);
}

#endif
