/* ring.c: in which order outputs leave, and how many slots an edge needs so that nobody who runs
 * eagerly ever waits for one.
 *
 * Why a ring that deep cannot deadlock: in the walk with unit costs every message finds its slot
 * free when the action that makes it starts. So the walk's own order keeps all dependencies and
 * all slot waits at once; together they have no cycle, and no cycle means no deadlock, whatever
 * the real costs are.
 * Invariant: slots are used in turn, so a message kept long makes a ring deeper even where other
 * slots are free.
 * Leaves slots' bytes to runtime.c. */
#include <stdlib.h>

#include "plugin/pipeline/schedule/walk.h"

static int flow_made_by(int kind) { /* -1: none */
  if (kind == LAM_KIND_F) return LAM_FLOW_F;
  return kind == LAM_KIND_I || kind == LAM_KIND_B ? LAM_FLOW_B : -1;
}

static size_t flow_index(const lam_schedule *s, int flow, int stage) {
  return (size_t)flow * (size_t)s->n_stages + (size_t)stage;
}

lam_status lam_output_order(const lam_schedule *s, int32_t **out_order) {
  const size_t rows = (size_t)LAM_FLOWS * (size_t)s->n_stages;
  int32_t *order = malloc(rows * (size_t)s->n_micro * sizeof *order);
  int32_t *made = calloc(rows, sizeof *made);
  *out_order = order;
  if (!order || !made) goto fail;
  for (int64_t i = 0; i < lam_schedule_n_actions(s); i++) {
    const lam_action *a = &s->actions[i];
    const int flow = flow_made_by(a->kind);
    if (flow < 0) continue;
    const size_t row = flow_index(s, flow, a->stage);
    order[row * (size_t)s->n_micro + (size_t)made[row]++] = a->micro;
  }
  free(made);
  return LAM_OK;
fail:
  free(order);
  free(made);
  *out_order = NULL;
  return lam_fail(LAM_RESOURCE_EXHAUSTED, "schedule: no memory for the order of %d stages' outputs",
                  s->n_stages);
}

/* Of every (flow, sending stage): messages in the order in which they are made, when each took its
 * slot, and, by micro-batch, when it gave it back. Unit costs: times are whole numbers. */
struct lam_rings {
  const lam_schedule *s;
  bool held;
  int32_t *order, *taken, *freed; /* [LAM_FLOWS][n_stages][n_micro] */
  int32_t *made;                  /* [LAM_FLOWS][n_stages] */
};

lam_rings *lam_rings_create(const lam_schedule *s, bool held) {
  const size_t rows = (size_t)LAM_FLOWS * (size_t)s->n_stages, n = rows * (size_t)s->n_micro;
  lam_rings *t = calloc(1, sizeof *t);
  if (!t) return NULL;
  t->s = s, t->held = held;
  t->order = malloc(3 * n * sizeof *t->order);
  t->made = calloc(rows, sizeof *t->made);
  if (!t->order || !t->made) return lam_rings_destroy(t), NULL;
  t->taken = t->order + n, t->freed = t->taken + n;
  return t;
}

void lam_rings_destroy(lam_rings *t) {
  if (!t) return;
  free(t->order);
  free(t->made);
  free(t);
}

static size_t slot_index(const lam_schedule *s, int flow, int stage, int k) {
  return flow_index(s, flow, stage) * (size_t)s->n_micro + (size_t)k;
}

void lam_rings_note(lam_rings *t, const lam_action *a, double start, double end) {
  const lam_schedule *s = t->s;
  const int flow = flow_made_by(a->kind);
  const bool ends_hold = a->kind == LAM_KIND_B || a->kind == LAM_KIND_W;
  if (flow >= 0) {
    const size_t at = slot_index(s, flow, a->stage, t->made[flow_index(s, flow, a->stage)]++);
    t->order[at] = a->micro, t->taken[at] = (int32_t)start;
  }
  if (a->stage > 0 && (t->held ? ends_hold : flow == LAM_FLOW_F))
    t->freed[slot_index(s, LAM_FLOW_F, a->stage - 1, a->micro)] = (int32_t)end;
  if (a->stage < s->n_stages - 1 && flow == LAM_FLOW_B)
    t->freed[slot_index(s, LAM_FLOW_B, a->stage + 1, a->micro)] = (int32_t)end;
}

/* The widest window of messages, in the order they are made, from the oldest that still has its
 * slot to the newest. */
static int depth_of(const lam_rings *t, size_t row) {
  const int32_t *order = t->order + row, *taken = t->taken + row, *freed = t->freed + row;
  int oldest = 0, depth = 0;
  for (int newest = 0; newest < t->s->n_micro; newest++) {
    while (oldest < newest && freed[order[oldest]] <= taken[newest]) oldest++;
    if (newest - oldest + 1 > depth) depth = newest - oldest + 1;
  }
  return depth;
}

void lam_ring_depths(const lam_walk *w, int32_t *out_depths) {
  const lam_schedule *s = w->s;
  for (int flow = 0; flow < LAM_FLOWS; flow++)
    for (int stage = 0; stage < s->n_stages; stage++) {
      const int edge = flow == LAM_FLOW_F ? stage : stage - 1;
      const bool crosses = edge >= 0 && edge < s->n_stages - 1 && lam_edge_crosses(s, edge);
      out_depths[flow_index(s, flow, stage)] =
          crosses ? depth_of(w->rings, slot_index(s, flow, stage, 0)) : 0;
    }
}

int lam_schedule_ring_depth(const lam_schedule *s, int edge, int kind, bool held) {
  lam_walk w;
  if (edge < 0 || edge >= s->n_stages - 1 || !lam_edge_crosses(s, edge)) return 0;
  if (lam_check_walk(s, NULL, held ? LAM_NOTED_RINGS_HELD : LAM_NOTED_RINGS, &w)) return -1;
  const bool forward = kind == LAM_KIND_F;
  const int flow = forward ? LAM_FLOW_F : LAM_FLOW_B, sender = forward ? edge : edge + 1;
  const int depth = depth_of(w.rings, slot_index(s, flow, sender, 0));
  lam_walk_finish(&w);
  return depth;
}
