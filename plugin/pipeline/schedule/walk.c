/* walk.c: what each action waits for, and the walk through a schedule in time. A rank runs until
 * an input is missing, then sleeps until that input comes: a constant per action, nothing searched
 * and nothing tried twice.
 *
 * A signal is one (what, receiving stage, micro-batch): an input that arrived or a receive that
 * was posted. Its cell holds the time once it is there (>= 0); before that NaN, or -1 - rank where
 * that rank sleeps for it. Every signal has one receiver, so one number is enough.
 * Invariant and what it leaves: see walk.h. */
#include "plugin/pipeline/schedule/walk.h"

#include <stdlib.h>
#include <string.h>

#define BIT LAM_KIND_BIT
#define BACKWARD LAM_KINDS_BACKWARD

enum { ARRIVED_F, ARRIVED_B, POSTED_F, POSTED_B, N_SIGNALS, NOTHING = -1 };

/* Stages are relative to the action's. */
typedef struct rule {
  uint8_t own;   /* kinds of its own stage: one of them must have run; 0 = none needed */
  uint8_t clash; /* kinds that cannot stand beside it */
  int8_t waits_for, waits_at, gives, gives_to;
} rule;

static const rule rules[LAM_KIND_RECV_B + 1] = {
    [LAM_KIND_F] = {0, BIT(LAM_KIND_F), ARRIVED_F, 0, ARRIVED_F, 1},
    [LAM_KIND_I] = {BIT(LAM_KIND_F), BACKWARD, ARRIVED_B, 0, ARRIVED_B, -1},
    [LAM_KIND_B] = {BIT(LAM_KIND_F), BACKWARD | BIT(LAM_KIND_W), ARRIVED_B, 0, ARRIVED_B, -1},
    [LAM_KIND_W] = {BIT(LAM_KIND_I), BIT(LAM_KIND_W) | BIT(LAM_KIND_B), NOTHING, 0, NOTHING, 0},
    [LAM_KIND_SEND_F] = {BIT(LAM_KIND_F), BIT(LAM_KIND_SEND_F), POSTED_F, 1, ARRIVED_F, 1},
    [LAM_KIND_SEND_B] = {BACKWARD, BIT(LAM_KIND_SEND_B), POSTED_B, -1, ARRIVED_B, -1},
    [LAM_KIND_RECV_F] = {0, BIT(LAM_KIND_RECV_F), NOTHING, 0, POSTED_F, 0},
    [LAM_KIND_RECV_B] = {0, BIT(LAM_KIND_RECV_B), NOTHING, 0, POSTED_B, 0},
};

/* Who gives a signal: these kinds of the stage `from`, relative to the receiving one; by_wire
 * where the edge lies between two ranks and the table is lowered. */
static const struct {
  uint8_t by_hand, by_wire;
  int8_t from, edge; /* edge: between the receiving stage and the one above it (0) or below (-1) */
} givers[N_SIGNALS] = {
    [ARRIVED_F] = {BIT(LAM_KIND_F), BIT(LAM_KIND_SEND_F), -1, -1},
    [ARRIVED_B] = {BACKWARD, BIT(LAM_KIND_SEND_B), 1, 0},
    [POSTED_F] = {BIT(LAM_KIND_RECV_F), BIT(LAM_KIND_RECV_F), 0, -1},
    [POSTED_B] = {BIT(LAM_KIND_RECV_B), BIT(LAM_KIND_RECV_B), 0, 0},
};

uint32_t lam_kinds_excluded_by(int kind) { return rules[kind].clash; }

uint32_t lam_transfers_of(const lam_schedule *s, int stage) {
  uint32_t kinds = 0;
  if (!s->lowered) return 0;
  if (stage > 0 && lam_edge_crosses(s, stage - 1))
    kinds |= BIT(LAM_KIND_RECV_F) | BIT(LAM_KIND_SEND_B);
  if (stage < s->n_stages - 1 && lam_edge_crosses(s, stage))
    kinds |= BIT(LAM_KIND_SEND_F) | BIT(LAM_KIND_RECV_B);
  return kinds;
}

/* Stages past the pipeline's ends neither give nor take. */
static bool has_edge(const lam_schedule *s, int edge) {
  return edge >= 0 && edge < s->n_stages - 1;
}

int lam_action_needs(const lam_schedule *s, const lam_action *a, lam_need out_needs[2]) {
  if (a->micro < 0) return 0;
  const rule *r = &rules[a->kind];
  int n = 0;
  if (r->own) out_needs[n++] = (lam_need){a->stage, r->own};
  if (r->waits_for == NOTHING) return n;
  const int at = a->stage + r->waits_at, edge = at + givers[r->waits_for].edge;
  if (!has_edge(s, edge)) return n;
  const bool by_wire = s->lowered && lam_edge_crosses(s, edge);
  out_needs[n++] =
      (lam_need){at + givers[r->waits_for].from,
                 by_wire ? givers[r->waits_for].by_wire : givers[r->waits_for].by_hand};
  return n;
}

/* -- what one kind of action is on one stage -- */

typedef struct lam_walk_op {
  double *in, *out; /* [n_micro]: the signals it waits for and gives; NULL = none */
  double cost, transfer;
  int32_t rank;
  uint8_t own, clash, bit;
  bool posts; /* gives its signal without a time: a sender waits for the post, not for its clock */
} op;

static double *row_of(const lam_walk *w, int signal, int stage) {
  return w->signals +
         ((size_t)signal * (size_t)w->s->n_stages + (size_t)stage) * (size_t)w->s->n_micro;
}

static double cost_of(const lam_costs *c, int kind, int stage) {
  if (kind > LAM_KIND_B) return 0;
  if (!c) return kind == LAM_KIND_B ? 2 : 1;
  if (kind == LAM_KIND_F) return c->forward[stage];
  return (kind != LAM_KIND_W ? c->backward_input[stage] : 0) +
         (kind != LAM_KIND_I ? c->backward_weight[stage] : 0);
}

/* Where transfers are written out, an output crosses to another rank by its SEND. */
static void find_output(const lam_walk *w, int kind, int stage, op *o) {
  const lam_schedule *s = w->s;
  const rule *r = &rules[kind];
  if (r->gives == NOTHING) return;
  const int to = stage + r->gives_to, edge = to + givers[r->gives].edge;
  if (!has_edge(s, edge)) return;
  const bool crosses = lam_edge_crosses(s, edge);
  if (crosses && s->lowered && kind <= LAM_KIND_B) return;
  o->out = row_of(w, r->gives, to);
  if (crosses && w->costs && w->costs->transfer) o->transfer = w->costs->transfer[edge];
}

static void find_input(const lam_walk *w, int kind, int stage, op *o) {
  const rule *r = &rules[kind];
  if (r->waits_for == NOTHING) return;
  const int at = stage + r->waits_at;
  if (has_edge(w->s, at + givers[r->waits_for].edge)) o->in = row_of(w, r->waits_for, at);
}

static void fill_ops(lam_walk *w) {
  for (int stage = 0; stage < w->s->n_stages; stage++)
    for (int kind = 0; kind < w->n_kinds; kind++) {
      op *o = &w->ops[stage * w->n_kinds + kind];
      *o = (op){.rank = w->s->rank_of_stage[stage],
                .cost = cost_of(w->costs, kind, stage),
                .own = rules[kind].own,
                .clash = rules[kind].clash,
                .bit = (uint8_t)BIT(kind),
                .posts = kind == LAM_KIND_RECV_F || kind == LAM_KIND_RECV_B};
      if (kind > LAM_KIND_B && kind < LAM_KIND_SEND_F) continue; /* no kind */
      find_input(w, kind, stage, o);
      find_output(w, kind, stage, o);
    }
}

/* -- the walk -- */

static inline const op *op_of(const lam_walk *w, const lam_action *a) {
  return &w->ops[a->stage * w->n_kinds + a->kind];
}

static inline uint8_t *done_of(const lam_walk *w, const lam_action *a) {
  return &w->done[lam_pair_index(w->s, a->stage, a->micro)];
}

/* Raises *start to when the action's input is there. Where it is not, the rank will be woken; for
 * an action of its own stage it would wait for itself, and for a fault it stays where it is. */
static inline bool can_start(const lam_walk *w, const lam_action *a, int rank, double *start) {
  const op *o = op_of(w, a);
  const uint8_t done = *done_of(w, a);
  if (o->rank != rank || (done & o->clash)) return false;
  if (o->own && !(done & o->own)) return false;
  if (!o->in) return true;
  const double there = o->in[a->micro];
  if (!(there >= 0)) return o->in[a->micro] = -1 - rank, false;
  if (there > *start) *start = there;
  return true;
}

static inline void finish_action(lam_walk *w, const lam_action *a, double end) {
  const op *o = op_of(w, a);
  *done_of(w, a) |= o->bit;
  if (!o->out) return;
  const double before = o->out[a->micro];
  o->out[a->micro] = o->posts ? 0 : end + o->transfer;
  if (before < 0) w->ready[w->n_ready++] = (int32_t)(-1 - before);
}

typedef struct meter { /* a rank's, while it runs: see lam_walk */
  int rank;
  double first, clock, busy;
} meter;

static inline void note_work(meter *m, double start, double cost, double end) {
  if (m->first < 0) m->first = start;
  m->clock = end;
  m->busy += cost;
}

static inline void note_span(const lam_walk *w, const lam_action *a, double start, double end) {
  if (w->spans) w->spans[a - w->s->actions] = (lam_span){start, end};
}

static inline void note_slots(const lam_walk *w, const lam_action *a, double start, double end) {
  if (w->rings) lam_rings_note(w->rings, a, start, end);
}

/* A fused pair takes what was measured for it, or its two halves; its outputs come together, at
 * its end. */
static bool run_pair(lam_walk *w, const lam_action *f, meter *m) {
  const lam_action *b = f + 1;
  double start = m->clock;
  if (!can_start(w, f, m->rank, &start) || !can_start(w, b, m->rank, &start)) return false;
  const double forward = op_of(w, f)->cost, halves = forward + op_of(w, b)->cost;
  const double *fused = w->costs ? w->costs->forward_backward : NULL;
  const double whole = fused ? fused[f->stage] : halves, end = start + whole;
  const double middle =
      !fused ? start + forward : start + (halves > 0 ? whole * forward / halves : 0);
  note_span(w, f, start, middle);
  note_span(w, b, middle, end);
  note_slots(w, f, start, end); /* one call: slots are taken and given back together */
  note_slots(w, b, start, end);
  finish_action(w, f, end);
  finish_action(w, b, end);
  note_work(m, start, whole, end);
  return true;
}

static bool run_stage_wide(lam_walk *w, const lam_action *a, meter *m) {
  if (w->s->rank_of_stage[a->stage] != m->rank) return false;
  const double *costs = w->costs ? w->costs->reduce_grad : NULL, start = m->clock;
  const double cost = costs && a->kind == LAM_KIND_REDUCE_GRAD ? costs[a->stage] : 0;
  note_span(w, a, start, start + cost);
  if (a->kind == LAM_KIND_REDUCE_GRAD) note_work(m, start, cost, start + cost);
  return true;
}

/* Transfers are none of a rank's work, and take none of its time. */
static inline bool run_one(lam_walk *w, const lam_action *a, meter *m) {
  double start = m->clock;
  if (!can_start(w, a, m->rank, &start)) return false;
  const double cost = op_of(w, a)->cost, end = start + cost;
  note_span(w, a, start, end);
  finish_action(w, a, end);
  if (!lam_kind_computes(a->kind)) return true;
  note_slots(w, a, start, end);
  note_work(m, start, cost, end);
  return true;
}

static void run_rank(lam_walk *w, int rank) {
  const lam_action *a = w->s->actions + w->at[rank], *end = w->s->actions + w->s->first[rank + 1];
  meter m = {rank, w->first[rank], w->clock[rank], w->busy[rank]};
  while (a < end && (a->paired      ? run_pair(w, a, &m)
                     : a->micro < 0 ? run_stage_wide(w, a, &m)
                                    : run_one(w, a, &m)))
    a += 1 + a->paired;
  w->at[rank] = a - w->s->actions;
  w->first[rank] = m.first, w->clock[rank] = m.clock, w->busy[rank] = m.busy;
}

static bool alloc_walk(lam_walk *w, lam_noted noted) {
  const lam_schedule *s = w->s;
  const size_t ranks = (size_t)s->n_ranks, stages = (size_t)s->n_stages;
  const size_t pairs = stages * (size_t)s->n_micro, signals = s->lowered ? N_SIGNALS : LAM_FLOWS;
  w->n_kinds = s->lowered ? LAM_KIND_RECV_B + 1 : LAM_KIND_B + 1;
  const bool spans = noted == LAM_NOTED_SPANS, rings = noted >= LAM_NOTED_RINGS;
  if (spans) w->spans = malloc((size_t)lam_schedule_n_actions(s) * sizeof *w->spans);
  if (rings) w->rings = lam_rings_create(s, noted == LAM_NOTED_RINGS_HELD);
  w->first = malloc(ranks * sizeof *w->first);
  w->clock = calloc(ranks, sizeof *w->clock);
  w->busy = calloc(ranks, sizeof *w->busy);
  w->at = malloc(ranks * sizeof *w->at);
  w->done = calloc(pairs, 1);
  w->signals = malloc(signals * pairs * sizeof *w->signals);
  w->ops = malloc(stages * (size_t)w->n_kinds * sizeof *w->ops);
  w->ready = malloc(ranks * sizeof *w->ready);
  if ((spans && !w->spans) || (rings && !w->rings) || !w->first || !w->clock || !w->busy ||
      !w->at || !w->done || !w->signals || !w->ops || !w->ready)
    return false;
  for (size_t r = 0; r < ranks; r++) w->first[r] = -1;
  memset(w->signals, 0xff, signals * pairs * sizeof *w->signals); /* NaN */
  return true;
}

lam_status lam_walk_run(const lam_schedule *s, const lam_costs *costs, lam_noted noted,
                        lam_walk *out) {
  *out = (lam_walk){.s = s, .costs = costs};
  if (!alloc_walk(out, noted)) {
    lam_walk_finish(out);
    return lam_fail(LAM_RESOURCE_EXHAUSTED, "schedule: no memory to walk through %lld actions",
                    (long long)lam_schedule_n_actions(s));
  }
  fill_ops(out);
  memcpy(out->at, s->first, (size_t)s->n_ranks * sizeof *out->at);
  for (int r = s->n_ranks - 1; r >= 0; r--) out->ready[out->n_ready++] = r;
  while (out->n_ready) run_rank(out, out->ready[--out->n_ready]);
  return LAM_OK;
}

void lam_walk_finish(lam_walk *w) {
  free(w->spans);
  lam_rings_destroy(w->rings);
  free(w->first);
  free(w->clock);
  free(w->busy);
  free(w->at);
  free(w->done);
  free(w->signals);
  free(w->ops);
  free(w->ready);
  *w = (lam_walk){0};
}

bool lam_walk_has(const lam_walk *w, const lam_need *need, int micro) {
  return w->done[lam_pair_index(w->s, need->stage, micro)] & need->kinds;
}

double lam_walk_arrival(const lam_walk *w, const lam_action *a) {
  const double *in = a->micro < 0 ? NULL : op_of(w, a)->in;
  return in ? in[a->micro] : 0;
}

bool lam_walk_is_complete(const lam_walk *w) {
  for (int r = 0; r < w->s->n_ranks; r++)
    if (w->at[r] < w->s->first[r + 1]) return false;
  return true;
}

bool lam_walk_is_whole(const lam_walk *w) {
  const size_t n_micro = (size_t)w->s->n_micro;
  bool whole = true;
  for (int stage = 0; stage < w->s->n_stages; stage++) {
    const uint8_t *done = w->done + lam_pair_index(w->s, stage, 0);
    const uint8_t once = (uint8_t)(lam_transfers_of(w->s, stage) | BIT(LAM_KIND_F));
    const uint8_t full = once | BIT(LAM_KIND_B), split = once | BIT(LAM_KIND_I) | BIT(LAM_KIND_W);
    for (size_t i = 0; i < n_micro; i++) whole &= done[i] == full || done[i] == split;
  }
  return whole;
}
