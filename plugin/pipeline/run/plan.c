/* plan.c: which slots a rank's messages use: a ring per (edge, kind) between two ranks,
 * and for edges that stay on one rank slots given out once for all steps.
 *
 * Invariant: both ends of a ring compute the same depth from the same schedule, and open rings in
 * the same order; no local slot is given out again before its message was read for the last time.
 * Leaves the depth that cannot deadlock to schedule/ring.c, and what is in a slot to slots.c. */
#include <stdlib.h>
#include <string.h>

#include "plugin/comm/comm.h"
#include "plugin/pipeline/run/form.h"
#include "plugin/pipeline/schedule/walk.h"

typedef struct flow {       /* of one kind over one edge */
  int edge, kind, from, to; /* stages */
  bool held;                /* until the receiver's last backward action of the micro-batch */
} flow;

/* -- edges that stay here -- */

static bool makes(const flow *f, const lam_action *a) {
  return a->stage == f->from &&
         (f->kind == LAM_KIND_F ? a->kind == LAM_KIND_F : lam_makes_gradient(a));
}

static bool reads_last(const flow *f, const lam_action *a) {
  if (a->stage != f->to) return false;
  if (f->kind != LAM_KIND_F) return lam_makes_gradient(a);
  return f->held ? lam_ends_backward(a) : a->kind == LAM_KIND_F;
}

static int32_t take_slot(uint8_t *used) {
  int32_t slot = 0;
  while (used[slot]) slot++;
  used[slot] = 1;
  return slot;
}

/* Walks this rank's list; a fused pair takes its slots together, before it gives any back.
 * Returns how many are needed. */
static int place_local(const lam_pipeline *p, const flow *f, int32_t *place, uint8_t *used) {
  int depth = 0;
  for (int64_t i = 0, next; i < p->n_actions; i = next) {
    next = i + 1 + p->actions[i].paired;
    for (int64_t k = i; k < next; k++) {
      const lam_action *a = &p->actions[k];
      if (!lam_pipeline_runs(p, a) || !makes(f, a)) continue;
      place[a->micro] = take_slot(used);
      if (place[a->micro] >= depth) depth = place[a->micro] + 1;
    }
    for (int64_t k = i; k < next; k++) {
      const lam_action *a = &p->actions[k];
      if (lam_pipeline_runs(p, a) && reads_last(f, a)) used[place[a->micro]] = 0;
    }
  }
  return depth;
}

static lam_status open_local(lam_pipeline *p, const flow *f, lam_port *port) {
  uint8_t *used = NULL;
  const uint64_t n_micro = (uint64_t)p->schedule->n_micro,
                 n_tensors = (uint64_t)port->plan->n_tensors;
  port->peer = -1;
  LAM_TRY(lam_pipeline_alloc(p, n_micro, 1, &used));
  LAM_TRY(lam_pipeline_alloc(p, n_micro, sizeof *port->place, &port->place));
  port->depth = place_local(p, f, port->place, used);
  LAM_TRY(lam_place_alloc(p, (uint64_t)port->depth, port->plan->bytes, &port->memory));
  if (p->device)
    LAM_TRY(lam_pipeline_alloc(p, (uint64_t)port->depth, port->plan->offsets[0], &port->fronts));
  LAM_TRY(
      lam_pipeline_alloc(p, (uint64_t)port->depth * n_tensors, sizeof *port->views, &port->views));
  p->slot_bytes += (uint64_t)port->depth * port->plan->bytes;
  return LAM_OK;
}

/* -- edges between two ranks -- */

/* What a port over a channel needs beside it. */
static lam_status open_form(lam_pipeline *p, const flow *f, lam_port *port) {
  const lam_form *form = lam_form_of(port->plan, f->kind);
  const uint64_t slots = port->sends ? 1 : (uint64_t)port->depth;
  if (lam_form_is_plain(form)) return LAM_OK;
  port->form = form;
  p->slot_bytes += slots * port->plan->bytes;
  LAM_TRY(lam_place_alloc(p, slots, port->plan->bytes, &port->beside));
  return port->sends ? LAM_OK : lam_place_alloc(p, 1, form->part_bytes, &port->part);
}

/* One slot more than eager ranks with equal costs need, so that a sender whose receiver is a
 * little late works on. */
static lam_status ring_depth(const lam_pipeline *p, const flow *f, int *out) {
  const int depth = lam_schedule_ring_depth(p->schedule, f->edge, f->kind, f->held),
            most = p->schedule->n_micro;
  if (depth < 1)
    return lam_fail(LAM_RESOURCE_EXHAUSTED, "lam_pipeline_create: no ring depth for edge %d",
                    f->edge);
  *out = depth < most ? depth + 1 : most;
  return LAM_OK;
}

static lam_status follow_sender(lam_pipeline *p, const flow *f, const int32_t *order,
                                lam_port *port) {
  const int n_micro = p->schedule->n_micro;
  port->order =
      lam_order_of(p->schedule, order, f->kind == LAM_KIND_F ? LAM_FLOW_F : LAM_FLOW_B, f->from);
  LAM_TRY(lam_pipeline_alloc(p, (uint64_t)n_micro, sizeof *port->place, &port->place));
  for (int i = 0; i < n_micro; i++) port->place[port->order[i]] = i;
  LAM_TRY(lam_pipeline_alloc(p, (uint64_t)port->depth, 1, &port->done));
  p->slot_bytes += (uint64_t)port->depth * port->plan->bytes;
  return LAM_OK;
}

static lam_status open_channels(lam_pipeline *p, uint64_t key, lam_port *port) {
  const uint64_t bytes = port->form ? port->form->bytes : port->plan->bytes;
  LAM_TRY(lam_channel_open(p->group, port->peer, port->sends, key, port->depth, bytes,
                           &port->channel));
  if (!p->device) return LAM_OK;
  p->group->device = NULL; /* notes are the host's */
  const lam_status status =
      lam_channel_open(p->group, port->peer, port->sends, lam_mix(key, 1), port->depth,
                       port->plan->offsets[0], &port->notes);
  lam_place_tell(p, p->group);
  return status;
}

static lam_status open_ring(lam_pipeline *p, const flow *f, const int32_t *order, uint64_t serial,
                            lam_port *port) {
  const int32_t *rank_of = p->schedule->rank_of_stage;
  port->sends = rank_of[f->from] == p->rank;
  port->peer = port->sends ? rank_of[f->to] : rank_of[f->from];
  LAM_TRY(ring_depth(p, f, &port->depth));
  if (!port->sends) LAM_TRY(follow_sender(p, f, order, port));
  LAM_TRY(open_form(p, f, port));
  const uint64_t rows = port->sends ? 1 : (uint64_t)port->depth;
  LAM_TRY(lam_pipeline_alloc(p, rows * (uint64_t)port->plan->n_tensors, sizeof *port->views,
                             &port->views));
  const uint64_t key = lam_mix(serial, (uint64_t)f->edge << 1 | (f->kind != LAM_KIND_F));
  const lam_status status = open_channels(p, key, port);
  return status
             ? lam_fail_within(
                   status, "lam_pipeline_create: rank %d opens edge %d (%s) with rank %d", p->rank,
                   f->edge, f->kind == LAM_KIND_F ? "activations" : "gradients", port->peer)
             : LAM_OK;
}

/* -- all of them -- */

static void attach(lam_pipeline *p, const flow *f, lam_port *port) {
  const int from = p->stage_index[f->from], to = p->stage_index[f->to];
  const bool forward = f->kind == LAM_KIND_F;
  if (from >= 0) *(forward ? &p->stages[from].out : &p->stages[from].grad_out) = port;
  if (to >= 0) *(forward ? &p->stages[to].in : &p->stages[to].grad_in) = port;
}

static lam_status open_flow(lam_pipeline *p, const flow *f, const int32_t *order, uint64_t serial) {
  const bool from_here = p->stage_index[f->from] >= 0, to_here = p->stage_index[f->to] >= 0;
  if (!from_here && !to_here) return LAM_OK;
  lam_port *port = &p->ports[p->n_ports++];
  port->plan = &p->edges[f->edge], port->edge = f->edge, port->kind = f->kind;
  attach(p, f, port);
  return from_here && to_here ? open_local(p, f, port) : open_ring(p, f, order, serial, port);
}

static lam_status copy_order(lam_pipeline *p, const int32_t **out) {
  int32_t *order = NULL, *copy = NULL;
  const size_t n = (size_t)LAM_FLOWS * (size_t)p->schedule->n_stages * (size_t)p->schedule->n_micro;
  LAM_TRY(lam_output_order(p->schedule, &order));
  const lam_status status = lam_pipeline_alloc(p, n, sizeof *copy, &copy);
  if (!status) memcpy(copy, order, n * sizeof *copy);
  free(order);
  *out = copy;
  return status;
}

lam_status lam_pipeline_plan(lam_pipeline *p, const uint8_t *traits) {
  const int n_edges = p->schedule->n_stages - 1;
  const uint64_t serial =
      p->group ? p->group->sequence : 0; /* equal on all ranks, and no other pipeline's */
  const int32_t *order = NULL;
  LAM_TRY(copy_order(p, &order));
  LAM_TRY(lam_pipeline_alloc(p, 2 * (uint64_t)n_edges, sizeof *p->ports, &p->ports));
  for (int e = 0; e < n_edges; e++) {
    const flow f = {e, LAM_KIND_F, e, e + 1, traits[e + 1] & LAM_TRAIT_KEEPS},
               g = {e, LAM_KIND_I, e + 1, e, false};
    LAM_TRY(open_flow(p, &f, order, serial));
    if (!p->forward_only) LAM_TRY(open_flow(p, &g, order, serial));
  }
  return LAM_OK;
}
