/* lower.c: writes a table's transfers out: a send right after the action that makes an output, a
 * receive as early as its slot is free. The first `depth` receives of an edge stand at the start
 * of the list, every later one right after the action that frees its slot, before that action's
 * own sends.
 * Invariant: per (edge, flow), receives stand in the order of the sends; so nobody waits for
 * ever, even if a send is only over once it is received (ring.c says why; check proves it again
 * for the table that comes out).
 * Leaves where bytes lie to runtime.c. */
#include <stdlib.h>
#include <string.h>

#include "plugin/pipeline/schedule/walk.h"

typedef struct lowering {
  const lam_schedule *s;
  lam_schedule *out;
  int32_t *order;  /* [LAM_FLOWS][n_stages][n_micro], by sending stage */
  int32_t *depths; /* [LAM_FLOWS][n_stages], by sending stage */
  int32_t *posted; /* [LAM_FLOWS][n_stages], by sending stage: receives written so far */
  uint8_t *used;   /* [LAM_FLOWS][n_stages][n_micro], by sending stage: slots given back */
} lowering;

static const int8_t sends[LAM_FLOWS] = {LAM_KIND_SEND_F, LAM_KIND_SEND_B};
static const int8_t receives[LAM_FLOWS] = {LAM_KIND_RECV_F, LAM_KIND_RECV_B};
static const int8_t goes_to[LAM_FLOWS] = {1, -1}; /* the receiving stage, from the sending one */

static size_t row_of(const lowering *l, int flow, int sender) {
  return (size_t)(flow * l->s->n_stages + sender);
}

/* Does the flow from `sender` cross between two ranks? (A depth of 0 says no, and stages past an
 * end have none.) */
static bool crosses(const lowering *l, int flow, int sender) {
  return sender >= 0 && sender < l->s->n_stages && l->depths[row_of(l, flow, sender)] > 0;
}

/* Receives from `sender`, as far as slots are free: receive n takes the slot of n - depth. */
static void post(lowering *l, int rank, int flow, int sender) {
  if (!crosses(l, flow, sender)) return;
  const size_t row = row_of(l, flow, sender);
  const int32_t *order = lam_order_of(l->s, l->order, flow, sender), depth = l->depths[row];
  const uint8_t *used = l->used + row * (size_t)l->s->n_micro;
  while (l->posted[row] < l->s->n_micro) {
    const int n = l->posted[row];
    if (n >= depth && !used[order[n - depth]]) break;
    lam_schedule_push(l->out, rank, receives[flow], sender + goes_to[flow], order[n]);
    l->posted[row]++;
  }
}

static int flow_of(int kind) { /* of what the action reads and makes; -1 = nothing that moves */
  if (kind == LAM_KIND_F) return LAM_FLOW_F;
  return kind == LAM_KIND_I || kind == LAM_KIND_B ? LAM_FLOW_B : -1;
}

/* The stage that sends what `a` reads; -1 where it reads nothing that moves. */
static int sender_to(const lam_action *a) {
  const int flow = flow_of(a->kind);
  return flow < 0 ? -1 : a->stage - goes_to[flow];
}

static void post_after(lowering *l, int rank, const lam_action *a) {
  const int flow = flow_of(a->kind), sender = sender_to(a);
  if (!crosses(l, flow, sender)) return;
  l->used[row_of(l, flow, sender) * (size_t)l->s->n_micro + (size_t)a->micro] = 1;
  post(l, rank, flow, sender);
}

static void send_after(lowering *l, int rank, const lam_action *a) {
  const int flow = flow_of(a->kind);
  if (flow < 0 || !crosses(l, flow, a->stage)) return;
  lam_schedule_push(l->out, rank, sends[flow], a->stage, a->micro);
}

/* A fused pair stays whole: its transfers follow it. */
static void lower_action(lowering *l, int rank, const lam_action *a) {
  const int n = 1 + a->paired;
  for (int k = 0; k < n; k++) lam_schedule_push(l->out, rank, a[k].kind, a[k].stage, a[k].micro);
  if (n == 2) lam_schedule_pair(l->out);
  for (int k = 0; k < n; k++) post_after(l, rank, a + k);
  for (int k = 0; k < n; k++) send_after(l, rank, a + k);
}

/* First what slots are free for from the start, in the order in which it will be read. */
static void lower_rank(lowering *l, int rank) {
  const lam_schedule *s = l->s;
  const lam_action *list = s->actions + s->first[rank], *end = s->actions + s->first[rank + 1];
  for (const lam_action *a = list; a < end; a++) post(l, rank, flow_of(a->kind), sender_to(a));
  for (const lam_action *a = list; a < end; a += 1 + a->paired) lower_action(l, rank, a);
}

static lam_status prepare(lowering *l, const lam_walk *w) {
  const lam_schedule *s = l->s;
  const size_t rows = (size_t)LAM_FLOWS * (size_t)s->n_stages;
  l->depths = malloc(rows * sizeof *l->depths);
  l->posted = calloc(rows, sizeof *l->posted);
  l->used = calloc(rows * (size_t)s->n_micro, 1);
  if (!l->depths || !l->posted || !l->used)
    return lam_fail(LAM_RESOURCE_EXHAUSTED, "lam_schedule_lower: no memory for %d stages",
                    s->n_stages);
  LAM_TRY(lam_output_order(s, &l->order));
  lam_ring_depths(w, l->depths);
  return lam_schedule_alloc(s->n_ranks, s->n_stages, s->n_micro, &l->out);
}

static lam_status lower_all(lowering *l, const lam_walk *w) {
  LAM_TRY(prepare(l, w));
  for (int rank = 0; rank < l->s->n_ranks; rank++) lower_rank(l, rank);
  return lam_schedule_seal(l->out); /* says so if any push failed */
}

static lam_status lower(const lam_walk *w, lam_schedule **out_lowered) {
  lowering l = {.s = w->s};
  const lam_status status = lower_all(&l, w);
  free(l.order);
  free(l.depths);
  free(l.posted);
  free(l.used);
  if (status == LAM_OK)
    *out_lowered = l.out;
  else
    lam_schedule_destroy(l.out);
  return status;
}

static lam_status copy(const lam_schedule *s, lam_schedule **out) {
  const size_t n = (size_t)lam_schedule_n_actions(s);
  LAM_TRY(lam_schedule_alloc(s->n_ranks, s->n_stages, s->n_micro, out));
  const lam_status status = lam_schedule_reserve(*out, (int64_t)n);
  if (status != LAM_OK) {
    lam_schedule_destroy(*out);
    *out = NULL;
    return status;
  }
  memcpy((*out)->actions, s->actions, n * sizeof *s->actions);
  memcpy((*out)->first, s->first, ((size_t)s->n_ranks + 1) * sizeof *s->first);
  memcpy((*out)->rank_of_stage, s->rank_of_stage, (size_t)s->n_stages * sizeof *s->rank_of_stage);
  (*out)->lowered = s->lowered, (*out)->stage_wide = s->stage_wide;
  (*out)->open = s->n_ranks - 1;
  return LAM_OK;
}

lam_status lam_schedule_lower(const lam_schedule *s, lam_schedule **out_lowered) {
  if (!out_lowered)
    return lam_fail(LAM_INVALID_ARGUMENT, "lam_schedule_lower: out_lowered is NULL");
  *out_lowered = NULL;
  lam_walk w;
  LAM_TRY(lam_check_walk(s, NULL, s->lowered ? LAM_NOTED_NOTHING : LAM_NOTED_RINGS, &w));
  /* Where transfers are written out, they stand as they are. */
  const lam_status status = s->lowered ? copy(s, out_lowered) : lower(&w, out_lowered);
  lam_walk_finish(&w);
  return status;
}
