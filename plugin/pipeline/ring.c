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

#include "plugin/pipeline/walk.h"

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
typedef struct slot_times {
  int32_t *order, *taken, *freed; /* [LAM_FLOWS][n_stages][n_micro] */
  int32_t *made;                  /* [LAM_FLOWS][n_stages] */
} slot_times;

static size_t slot_index(const lam_schedule *s, int flow, int stage, int k) {
  return flow_index(s, flow, stage) * (size_t)s->n_micro + (size_t)k;
}

/* The action that makes a message takes its slot; the last one that reads it gives it back. */
static void note_action(const lam_schedule *s, const lam_action *a, lam_span when, bool held,
                        slot_times *t) {
  const int flow = flow_made_by(a->kind);
  const bool ends_hold = a->kind == LAM_KIND_B || a->kind == LAM_KIND_W;
  const int32_t start = (int32_t)when.start, end = (int32_t)when.end;
  if (flow >= 0) {
    const size_t at = slot_index(s, flow, a->stage, t->made[flow_index(s, flow, a->stage)]++);
    t->order[at] = a->micro, t->taken[at] = start;
  }
  if (a->stage > 0 && (held ? ends_hold : flow == LAM_FLOW_F))
    t->freed[slot_index(s, LAM_FLOW_F, a->stage - 1, a->micro)] = end;
  if (a->stage < s->n_stages - 1 && flow == LAM_FLOW_B)
    t->freed[slot_index(s, LAM_FLOW_B, a->stage + 1, a->micro)] = end;
}

static void note_times(const lam_walk *w, bool held, slot_times *times) {
  const lam_schedule *s = w->s;
  for (int64_t i = 0; i < lam_schedule_n_actions(s); i++) {
    lam_span when = w->spans[i];
    const bool paired =
        s->actions[i].paired; /* one call: its slots are taken and given back together */
    if (paired) when.end = w->spans[i + 1].end;
    note_action(s, &s->actions[i], when, held, times);
    if (paired) i++, note_action(s, &s->actions[i], when, held, times);
  }
}

/* The widest window of messages, in the order they are made, from the oldest that still has its
 * slot to the newest. */
static int depth_of(const slot_times *t, size_t row, int n_micro) {
  const int32_t *order = t->order + row, *taken = t->taken + row, *freed = t->freed + row;
  int oldest = 0, depth = 0;
  for (int newest = 0; newest < n_micro; newest++) {
    while (oldest < newest && freed[order[oldest]] <= taken[newest]) oldest++;
    if (newest - oldest + 1 > depth) depth = newest - oldest + 1;
  }
  return depth;
}

static void measure_depths(const lam_schedule *s, const slot_times *times, int32_t *out_depths) {
  for (int flow = 0; flow < LAM_FLOWS; flow++)
    for (int stage = 0; stage < s->n_stages; stage++) {
      const int edge = flow == LAM_FLOW_F ? stage : stage - 1;
      const bool crosses = edge >= 0 && edge < s->n_stages - 1 && lam_edge_crosses(s, edge);
      out_depths[flow_index(s, flow, stage)] =
          crosses ? depth_of(times, slot_index(s, flow, stage, 0), s->n_micro) : 0;
    }
}

lam_status lam_ring_depths(const lam_walk *w, bool held, int32_t *out_depths) {
  const lam_schedule *s = w->s;
  const size_t rows = (size_t)LAM_FLOWS * (size_t)s->n_stages, n = rows * (size_t)s->n_micro;
  slot_times t = {.order = malloc(3 * n * sizeof *t.order), .made = calloc(rows, sizeof *t.made)};
  const bool fits = t.order && t.made;
  if (fits) {
    t.taken = t.order + n, t.freed = t.taken + n;
    note_times(w, held, &t);
    measure_depths(s, &t, out_depths);
  }
  free(t.order);
  free(t.made);
  return fits ? LAM_OK
              : lam_fail(LAM_RESOURCE_EXHAUSTED, "schedule: no memory for the slots of %d stages",
                         s->n_stages);
}

static lam_status depth_of_edge(const lam_schedule *s, size_t index, bool held, int *out) {
  lam_walk w;
  LAM_TRY(lam_check_walk(s, NULL, true, &w));
  int32_t *depths = malloc((size_t)LAM_FLOWS * (size_t)s->n_stages * sizeof *depths);
  lam_status status =
      depths ? lam_ring_depths(&w, held, depths)
             : lam_fail(LAM_RESOURCE_EXHAUSTED, "schedule: no memory for %d depths", s->n_stages);
  if (status == LAM_OK) *out = depths[index];
  free(depths);
  lam_walk_finish(&w);
  return status;
}

int lam_schedule_ring_depth(const lam_schedule *s, int edge, int kind, bool held) {
  int depth = -1;
  if (edge < 0 || edge >= s->n_stages - 1 || !lam_edge_crosses(s, edge)) return 0;
  const size_t index =
      kind == LAM_KIND_F ? flow_index(s, LAM_FLOW_F, edge) : flow_index(s, LAM_FLOW_B, edge + 1);
  return depth_of_edge(s, index, held, &depth) == LAM_OK ? depth : -1;
}
