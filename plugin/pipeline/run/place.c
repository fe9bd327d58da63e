/* place.c: where the tensors of a pipeline lie: in the host's memory, or on a device that queues
 * its work.
 *
 * There a step queues on one stream, in its list's order, so that slots, stages and messages need
 * no event between them on this rank; between ranks the engine's channels order their slots.
 * Invariant: a pipeline on the host takes the way that it would take if there were no devices.
 * Leaves what a device does to kernels/, how ranks reach each other's memory to comm/. */
#include <string.h>

#include "plugin/pipeline/run/runtime.h"

#define WHO "lam_pipeline_create: "

struct lam_place_block {
  lam_place_block *next;
  void *data;
};

static lam_status open_device(const lam_pipeline_desc *d, const lam_device **out) {
  int32_t was;
  lam_status status = lam_device_open(d->device_type, out);
  if (!status && !*out)
    return lam_fail(LAM_UNIMPLEMENTED, WHO "device_type is %d, a device that this library has not",
                    d->device_type);
  if (!status) status = lam_device_enter(*out, d->device_id, &was);
  if (status) return lam_fail_within(status, WHO "device %d", d->device_id);
  lam_device_leave(*out, was);
  return LAM_OK;
}

static lam_status check_group(const lam_group *g) {
  if (!g || g->engine->queues) return LAM_OK;
  return lam_fail(LAM_UNIMPLEMENTED,
                  WHO "tensors of rank %d: the engine %s moves the host's memory only", g->rank,
                  g->engine->name);
}

static bool queues(const lam_pipeline *p, lam_group *g) {
  if (!g) return true;
  lam_place_tell(p, g);
  const bool is = g->engine->queues(g);
  g->device = NULL;
  return is;
}

/* Messages between ranks may go through the host. */
bool lam_place_queues(const lam_pipeline *p) {
  return p->device && queues(p, p->group) && queues(p, p->tensor);
}

lam_status lam_place_read(lam_pipeline *p, const lam_pipeline_desc *d) {
  const lam_device *device = NULL;
  p->where = (DLDevice){kDLCPU, 0};
  if (d->device_type == 0 || d->device_type == kDLCPU) return LAM_OK;
  LAM_TRY(open_device(d, &device));
  if (!device->order) return LAM_OK;
  p->device = device;
  p->where = (DLDevice){(DLDeviceType)d->device_type, d->device_id};
  p->stream = d->stream;
  LAM_TRY(check_group(p->group));
  return check_group(p->tensor);
}

lam_status lam_place_enter(const lam_pipeline *p, int32_t *out_was) {
  *out_was = 0;
  if (!p->device) return LAM_OK;
  LAM_TRY(lam_device_enter(p->device, p->where.device_id, out_was));
  if (p->group) lam_place_tell(p, p->group);
  return LAM_OK;
}

void lam_place_leave(const lam_pipeline *p, int32_t was) {
  if (!p->device) return;
  if (p->group) p->group->device = NULL;
  lam_device_leave(p->device, was);
}

lam_status lam_place_alloc(lam_pipeline *p, uint64_t n, uint64_t size, void *out) {
  lam_place_block *b = NULL;
  uint64_t bytes;
  if (!p->device) return lam_pipeline_alloc(p, n, size, out);
  if (__builtin_mul_overflow(n, size, &bytes))
    return lam_fail(LAM_RESOURCE_EXHAUSTED, WHO "%llu blocks of %llu bytes", (unsigned long long)n,
                    (unsigned long long)size);
  LAM_TRY(lam_pipeline_alloc(p, 1, sizeof *b, &b));
  const lam_status status =
      lam_device_alloc(p->device, lam_context_workers(p->ctx), bytes ? bytes : 1, &b->data);
  if (status)
    return lam_fail_within(status, WHO "no memory for %llu blocks of %llu bytes",
                           (unsigned long long)n, (unsigned long long)size);
  b->next = p->placed;
  p->placed = b;
  memcpy(out, &b->data, sizeof b->data);
  return LAM_OK;
}

void lam_place_free(lam_pipeline *p) {
  int32_t was;
  if (!p->placed || lam_device_enter(p->device, p->where.device_id, &was) != LAM_OK) return;
  for (const lam_place_block *b = p->placed; b; b = b->next)
    lam_device_free(p->device, lam_context_workers(p->ctx), b->data, 0);
  lam_device_leave(p->device, was);
  p->placed = NULL;
}

lam_status lam_place_copy(const lam_pipeline *p, const void *from, void *to, uint64_t bytes) {
  const int64_t n = (int64_t)bytes;
  if (!p->device) return memcpy(to, from, bytes), LAM_OK;
  const lam_matrix x = {(void *)(uintptr_t)from, 1, n, n, 1, LAM_U8, false};
  const lam_matrix y = {to, 1, n, n, 1, LAM_U8, false};
  return lam_device_copy(p->device, lam_context_workers(p->ctx), x, y, p->stream);
}
