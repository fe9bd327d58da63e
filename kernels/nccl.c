/* nccl.c: the way into a device's table for NCCL, as device.c is for its others.
 * Invariant: what queues work is called from here and nowhere else, past the hook that traces calls and
 * injects faults.
 * Leaves slots that queue nothing to their callers. */
#include "kernels/nccl.h"

lam_status lam_link_start(const lam_device *d, lam_link *l, const lam_link_op *ops, int n,
                          lam_link_after after) {
  if (lam_device_on_call) LAM_TRY(lam_device_on_call(d, "nccl_start"));
  return d->nccl->start(l, ops, n, after);
}
