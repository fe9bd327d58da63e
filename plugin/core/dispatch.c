/* dispatch.c: finds the operator of a checked call and runs it.
 * Invariant: the way from lam_run to the operator takes no lock, allocates nothing and makes no
 * system call.
 * Leaves every check to bind.c and bind_outputs.c. */
#include "plugin/core/dispatch.h"

#include <stdio.h>

#include "plugin/core/bind.h"

static lam_status find_entry(const lam_binding *b, const lam_op_entry **out_entry) {
  *out_entry = lam_op_entry_find(b->row->id);
  if (*out_entry && (*out_entry)->run) return LAM_OK;
  return lam_fail(LAM_UNIMPLEMENTED, "%s: this build has no such operator", b->row->name);
}

/* For the time of a call a group is told where the operands lie; at others it is asked for the
 * host's memory. */
static void tell_group(const lam_op_call *call, const lam_device *device) {
  if (!call->group) return;
  call->group->device = device;
  call->group->stream = call->stream;
}

/* Where work is queued, the calling thread's device is that of the operands for the call's time. */
static lam_status run_queued(const lam_binding *b, const lam_op_entry *entry) {
  int32_t was;
  LAM_TRY(lam_device_enter(b->op.device, (int32_t)b->place.device_id, &was));
  tell_group(&b->op, b->op.device);
  const lam_status status = entry->run(&b->op);
  tell_group(&b->op, NULL);
  lam_device_leave(b->op.device, was);
  return status;
}

static lam_status run(lam_binding *b) {
  const lam_op_entry *entry;
  LAM_TRY(find_entry(b, &entry));
  LAM_TRY(lam_bind_shapes(b));
  LAM_TRY(lam_bind_outputs(b));
  return b->op.device->order ? run_queued(b, entry) : entry->run(&b->op);
}

lam_status lam_dispatch_run(lam_context *ctx, const lam_call *call) {
  lam_binding b;
  LAM_TRY(lam_bind_call(&b, ctx, call, true));
  const lam_status status = run(&b);
  lam_bind_close(&b);
  return status;
}

/* Whether all that a call does is queued work: where its group needs the host, it is not. */
static bool is_capturable(const lam_op_call *call) {
  const lam_group *g = call->group;
  if (!call->device->order) return false;
  tell_group(call, call->device);
  const bool is = !g || g->size == 1 || (g->engine->queues && g->engine->queues(g));
  tell_group(call, NULL);
  return is;
}

static lam_status check_room(const lam_binding *b, const lam_inferred *out) {
  if (out->n_outputs == 0 || !out->outputs)
    return LAM_OK; /* scratch and chunks are asked for, shapes are not */
  if (out->n_outputs >= (uint32_t)b->row->n_out) return LAM_OK;
  return lam_fail(LAM_INVALID_ARGUMENT, "lam_infer: room for %u outputs, %s has %d", out->n_outputs,
                  b->row->name, b->row->n_out);
}

static void ask_needs(lam_op_call *call, const lam_op_entry *entry, char *why, lam_op_needs *out) {
  if (why)
    (void)snprintf(why, LAM_WHY_BYTES, "%s is cut only where attribute chunks asks for it",
                   call->name);
  call->why = why;
  if (entry->needs) entry->needs(call, out);
}

static lam_status infer(lam_binding *b, lam_inferred *out) {
  const lam_op_entry *entry;
  lam_op_needs needs = {0, 1};
  LAM_TRY(find_entry(b, &entry));
  LAM_TRY(check_room(b, out));
  LAM_TRY(lam_bind_shapes(b));
  LAM_TRY(lam_bind_inferred(b));
  ask_needs(&b->op, entry, out->chunks_why, &needs);

  for (int i = 0; out->outputs && out->n_outputs && i < b->row->n_out; i++)
    out->outputs[i] = b->shapes[i];
  out->n_outputs = (uint32_t)b->row->n_out;
  out->scratch_bytes = lam_scratch_bytes(needs.scratch_bytes);
  out->n_chunks = needs.n_chunks;
  out->capturable = is_capturable(&b->op);
  return LAM_OK;
}

lam_status lam_dispatch_infer(lam_context *ctx, const lam_call *call, lam_inferred *out) {
  lam_binding b;
  LAM_TRY(lam_bind_call(&b, ctx, call, false));
  const lam_status status = infer(&b, out);
  lam_bind_close(&b);
  return status;
}
