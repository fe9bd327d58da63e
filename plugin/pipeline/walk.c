/* walk.c: what each action waits for, and the walk through a schedule in time. A rank runs until
 * an input is missing, then sleeps until a neighbour makes something: a constant per action.
 * Invariant and what it leaves: see walk.h. */
#include "plugin/pipeline/walk.h"

#include <stdlib.h>

struct lam_walk_cell {   /* one (stage, micro-batch) */
  double out[LAM_FLOWS]; /* when its output is on its way */
  uint32_t done;         /* kinds that ran */
};

#define BIT LAM_KIND_BIT
#define RECEIVES (BIT(LAM_KIND_RECV_F) | BIT(LAM_KIND_RECV_B))

/* An input comes over the edge below a stage or above it, or from the stage itself. Where the
 * edge lies between two ranks and the table is lowered, it comes by wire: the peer's send, which
 * waited for the own receive. Else it is handed over. */
enum { OWN = 0, BELOW = -1, ABOVE = 1 };
enum { ALWAYS, BY_HAND, BY_WIRE };
typedef struct rule {
  int8_t edge, from, when; /* from: the stage that does it, relative to the action's */
  uint8_t kinds;           /* 0 ends the list */
} rule;

static const rule rules[LAM_KIND_RECV_B + 1][4] = {
    [LAM_KIND_F] = {{BELOW, -1, BY_HAND, BIT(LAM_KIND_F)},
                    {BELOW, -1, BY_WIRE, BIT(LAM_KIND_SEND_F)}},
    [LAM_KIND_I] = {{OWN, 0, ALWAYS, BIT(LAM_KIND_F)},
                    {ABOVE, 1, BY_HAND, LAM_KINDS_BACKWARD},
                    {ABOVE, 1, BY_WIRE, BIT(LAM_KIND_SEND_B)}},
    [LAM_KIND_B] = {{OWN, 0, ALWAYS, BIT(LAM_KIND_F)},
                    {ABOVE, 1, BY_HAND, LAM_KINDS_BACKWARD},
                    {ABOVE, 1, BY_WIRE, BIT(LAM_KIND_SEND_B)}},
    [LAM_KIND_W] = {{OWN, 0, ALWAYS, BIT(LAM_KIND_I)}},
    [LAM_KIND_SEND_F] = {{OWN, 0, ALWAYS, BIT(LAM_KIND_F)},
                         {ABOVE, 1, ALWAYS, BIT(LAM_KIND_RECV_F)}},
    [LAM_KIND_SEND_B] = {{OWN, 0, ALWAYS, LAM_KINDS_BACKWARD},
                         {BELOW, -1, ALWAYS, BIT(LAM_KIND_RECV_B)}},
    [LAM_KIND_RECV_F] = {{0}}, /* a receive is posted: it waits for nothing */
    [LAM_KIND_RECV_B] = {{0}},
};

int lam_action_needs(const lam_schedule *s, const lam_action *a, lam_need out_needs[3]) {
  int n = 0;
  for (const rule *r = rules[a->kind]; r->kinds; r++) {
    const int edge = r->edge == BELOW ? a->stage - 1 : a->stage;
    if (r->edge != OWN && (edge < 0 || edge >= s->n_stages - 1)) continue; /* the pipeline's ends */
    const bool crosses = r->edge != OWN && lam_edge_crosses(s, edge);
    if (r->when != ALWAYS && (r->when == BY_WIRE) != (crosses && s->lowered)) continue;
    out_needs[n++] =
        (lam_need){a->stage + r->from, crosses && !(r->kinds & RECEIVES) ? edge : -1, r->kinds};
  }
  return n;
}

/* Whose list may go on after this kind: the stage above's, below's, or none but the own. */
static const int8_t wakes[LAM_KIND_RECV_B + 1] = {
    [LAM_KIND_F] = 1,      [LAM_KIND_I] = -1,      [LAM_KIND_W] = 0,       [LAM_KIND_B] = -1,
    [LAM_KIND_SEND_F] = 1, [LAM_KIND_RECV_F] = -1, [LAM_KIND_SEND_B] = -1, [LAM_KIND_RECV_B] = 1,
};

static double cost_of(const lam_walk *w, const lam_action *a) {
  const lam_costs *c = w->costs;
  if (a->kind >= LAM_KIND_SEND_F) return 0;
  if (!c) return a->kind == LAM_KIND_B ? 2 : 1;
  if (a->kind == LAM_KIND_F) return c->forward[a->stage];
  return (a->kind != LAM_KIND_W ? c->backward_input[a->stage] : 0) +
         (a->kind != LAM_KIND_I ? c->backward_weight[a->stage] : 0);
}

static double transfer_of(const lam_walk *w, int edge) {
  return edge >= 0 && w->costs && w->costs->transfer ? w->costs->transfer[edge] : 0;
}

static struct lam_walk_cell *cell_of(const lam_walk *w, int stage, int micro) {
  return &w->cells[lam_pair_index(w->s, stage, micro)];
}

bool lam_walk_has(const lam_walk *w, const lam_need *need, int micro) {
  return cell_of(w, need->stage, micro)->done & need->kinds;
}

/* Raises *at to when a's inputs are there; false while one is missing. */
static bool inputs_ready(const lam_walk *w, const lam_action *a, double *at) {
  lam_need needs[3];
  const int n = lam_action_needs(w->s, a, needs);
  for (int i = 0; i < n; i++) {
    const struct lam_walk_cell *c = cell_of(w, needs[i].stage, a->micro);
    if (!(c->done & needs[i].kinds)) return false;
    if (needs[i].edge < 0) continue; /* made on this rank, before now */
    const int flow = needs[i].edge < a->stage ? LAM_FLOW_F : LAM_FLOW_B;
    const double arrival = c->out[flow] + transfer_of(w, needs[i].edge);
    if (arrival > *at) *at = arrival;
  }
  return true;
}

/* Some rank may be waiting for what `a` did. */
static void wake(lam_walk *w, const lam_action *a, int *n_ready) {
  const int stage = a->stage + wakes[a->kind];
  if (stage == a->stage || stage < 0 || stage >= w->s->n_stages) return;
  const int rank = w->s->rank_of_stage[stage];
  if (!w->is_ready[rank]) w->is_ready[rank] = 1, w->ready[(*n_ready)++] = rank;
}

static void finish_action(lam_walk *w, const lam_action *a, double end, int *n_ready) {
  struct lam_walk_cell *c = cell_of(w, a->stage, a->micro);
  const uint32_t bit = BIT(a->kind);
  if (bit & (BIT(LAM_KIND_F) | BIT(LAM_KIND_SEND_F))) c->out[LAM_FLOW_F] = end;
  if (bit & (LAM_KINDS_BACKWARD | BIT(LAM_KIND_SEND_B))) c->out[LAM_FLOW_B] = end;
  c->done |= bit;
  wake(w, a, n_ready);
}

/* Runs the action, or fused pair, that `rank` stands at; false where an input is missing. */
static bool step(lam_walk *w, int rank, int *n_ready) {
  const int64_t i = w->at[rank];
  const lam_action *a = &w->s->actions[i];
  const int n = 1 + a->paired;
  double start = w->clock[rank];
  for (int k = 0; k < n; k++)
    if (!inputs_ready(w, a + k, &start)) return false;
  double end = start;
  for (int k = 0; k < n; k++) {
    const double begin = end;
    end += cost_of(w, a + k);
    w->spans[i + k] = (lam_span){begin, end};
  }
  for (int k = 0; k < n; k++)
    finish_action(w, a + k, end, n_ready); /* a pair's outputs come together, at its end */
  w->clock[rank] = end;
  w->at[rank] = i + n;
  return true;
}

static void run_all(lam_walk *w) {
  int n_ready = 0;
  for (int r = w->s->n_ranks - 1; r >= 0; r--) w->ready[n_ready++] = r, w->is_ready[r] = 1;
  while (n_ready) {
    const int rank = w->ready[--n_ready];
    w->is_ready[rank] = 0;
    while (w->at[rank] < w->s->first[rank + 1] && step(w, rank, &n_ready)) continue;
  }
}

lam_status lam_walk_run(const lam_schedule *s, const lam_costs *costs, lam_walk *out) {
  const size_t ranks = (size_t)s->n_ranks, n = (size_t)lam_schedule_n_actions(s);
  *out = (lam_walk){.s = s, .costs = costs};
  out->spans = malloc(n * sizeof *out->spans);
  out->clock = calloc(ranks, sizeof *out->clock);
  out->at = malloc(ranks * sizeof *out->at);
  out->cells = calloc((size_t)s->n_stages * (size_t)s->n_micro, sizeof *out->cells);
  out->ready = malloc(ranks * sizeof *out->ready);
  out->is_ready = malloc(ranks);
  if (!out->spans || !out->clock || !out->at || !out->cells || !out->ready || !out->is_ready) {
    lam_walk_finish(out);
    return lam_fail(LAM_RESOURCE_EXHAUSTED, "schedule: no memory to walk through %zu actions", n);
  }
  for (size_t r = 0; r < ranks; r++) out->at[r] = s->first[r];
  run_all(out);
  return LAM_OK;
}

void lam_walk_finish(lam_walk *w) {
  free(w->spans);
  free(w->clock);
  free(w->at);
  free(w->cells);
  free(w->ready);
  free(w->is_ready);
  *w = (lam_walk){0};
}

bool lam_walk_is_complete(const lam_walk *w) {
  for (int r = 0; r < w->s->n_ranks; r++)
    if (w->at[r] < w->s->first[r + 1]) return false;
  return true;
}
