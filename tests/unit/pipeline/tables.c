/* tables.c: random tables and the slow reference. Invariant and what it leaves: see tables.h. */
#include "tests/unit/pipeline/tables.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

lam_schedule *table_of(const char *text) {
  lam_schedule *s = NULL;
  CHECK_OK(lam_schedule_parse(text, strlen(text), &s));
  return s;
}

lam_schedule *built_of(const char *name, int p, int v, int m) {
  lam_schedule *s = NULL;
  CHECK_OK(lam_schedule_build(name, p, v, m, &s));
  return s;
}

lam_schedule *built(const char *name, int p, int m) { return built_of(name, p, 1, m); }

char *text_of(const lam_schedule *s) {
  uint64_t n = 0, again = 0;
  CHECK_OK(lam_schedule_print(s, NULL, 0, &n));
  char *text = malloc(n + 1);
  CHECK_OK(lam_schedule_print(s, text, n + 1, &again));
  CHECK_EQ(again, n);
  return text;
}

lam_schedule_info info_of(const lam_schedule *s) {
  lam_schedule_info info = LAM_SCHEDULE_INFO_INIT;
  CHECK_OK(lam_schedule_check(s, &info));
  return info;
}

lam_simulated simulated(const lam_schedule *s, const lam_costs *costs) {
  lam_simulated out = LAM_SIMULATED_INIT;
  CHECK_OK(lam_schedule_simulate(s, costs, &out));
  return out;
}

/* -- costs -- */

void even_costs(double f, double i, double w, double transfer, int n_stages, costs_of *out) {
  for (int s = 0; s < n_stages; s++) {
    out->forward[s] = f, out->backward_input[s] = i;
    out->backward_weight[s] = w, out->transfer[s] = transfer;
  }
  out->costs = (lam_costs)LAM_COSTS_INIT;
  out->costs.n_stages = (uint32_t)n_stages;
  out->costs.forward = out->forward, out->costs.backward_input = out->backward_input;
  out->costs.backward_weight = out->backward_weight, out->costs.transfer = out->transfer;
}

void random_costs(rng *r, int n_stages, costs_of *out) {
  even_costs(0, 0, 0, 0, n_stages, out);
  for (int s = 0; s < n_stages; s++) {
    out->forward[s] = (double)rng_int(r, 1, 1000),
    out->backward_input[s] = (double)rng_int(r, 1, 1000);
    out->backward_weight[s] = (double)rng_int(r, 0, 1000),
    out->transfer[s] = (double)rng_int(r, 0, 300);
  }
}

/* -- random tables -- */

enum { MOST_ACTIONS = 1 << 12 };

typedef struct draft {
  int n_ranks, n_stages, n_micro, rank_of[64];
  bool split[64][64], done[64][64][4]; /* [stage][micro][kind] */
  lam_action list[64][MOST_ACTIONS];
  int n[64];
} draft;

static bool given_back(const draft *d, int stage, int micro) {
  return d->done[stage][micro][LAM_KIND_B] || d->done[stage][micro][LAM_KIND_I];
}

static bool can_add(const draft *d, int stage, int micro, int kind) {
  const bool *done = d->done[stage][micro];
  if (done[kind]) return false;
  if (kind == LAM_KIND_F) return stage == 0 || d->done[stage - 1][micro][LAM_KIND_F];
  if ((kind == LAM_KIND_B) == d->split[stage][micro]) return false;
  if (kind == LAM_KIND_W) return done[LAM_KIND_I];
  return done[LAM_KIND_F] && (stage == d->n_stages - 1 || given_back(d, stage + 1, micro));
}

static void add(draft *d, int stage, int micro, int kind) {
  const int r = d->rank_of[stage];
  d->list[r][d->n[r]++] = (lam_action){.stage = stage, .micro = micro, .kind = (int16_t)kind};
  d->done[stage][micro][kind] = true;
}

/* From a random starting point, the next action that can be added. */
static bool add_any(draft *d, rng *r) {
  const int n = d->n_stages * d->n_micro * 4, start = (int)rng_int(r, 0, n - 1);
  for (int k = 0; k < n; k++) {
    const int i = (start + k) % n, stage = i / 4 / d->n_micro, micro = i / 4 % d->n_micro,
              kind = i % 4;
    if (can_add(d, stage, micro, kind)) return add(d, stage, micro, kind), true;
  }
  return false;
}

static lam_schedule *table_of_draft(const draft *d) {
  lam_schedule *s = NULL;
  if (!CHECK_OK(lam_schedule_alloc(d->n_ranks, d->n_stages, d->n_micro, &s))) return NULL;
  for (int r = 0; r < d->n_ranks; r++)
    for (int i = 0; i < d->n[r]; i++)
      CHECK_OK(
          lam_schedule_push(s, r, d->list[r][i].kind, d->list[r][i].stage, d->list[r][i].micro));
  CHECK_OK(lam_schedule_seal(s));
  return s;
}

lam_schedule *random_table(rng *r, int most_ranks, int most_stages, int most_micro) {
  draft *d = calloc(1, sizeof *d);
  d->n_ranks = (int)rng_int(r, 1, most_ranks);
  d->n_stages = (int)rng_int(r, 1, most_stages);
  d->n_micro = (int)rng_int(r, 1, most_micro);
  for (int s = 0; s < d->n_stages; s++) {
    d->rank_of[s] = (int)rng_int(r, 0, d->n_ranks - 1);
    for (int m = 0; m < d->n_micro; m++) d->split[s][m] = rng_int(r, 0, 1);
  }
  while (add_any(d, r)) continue;
  lam_schedule *s = table_of_draft(d);
  free(d);
  return s;
}

void fuse_some(lam_schedule *s, rng *r) {
  for (int q = 0; q < s->n_ranks; q++)
    for (int64_t i = s->first[q]; i + 1 < s->first[q + 1]; i++)
      if (s->actions[i].kind == LAM_KIND_F && s->actions[i + 1].kind == LAM_KIND_B &&
          rng_int(r, 0, 1))
        s->actions[i++].paired = 1;
}

lam_schedule *random_fused_table(rng *r, int most_ranks, int most_stages, int most_micro) {
  for (;;) {
    lam_schedule *s = random_table(r, most_ranks, most_stages, most_micro);
    fuse_some(s, r);
    if (reference_makespan(s, NULL, NULL) >= 0) return s;
    lam_schedule_destroy(s);
  }
}

/* -- the reference -- */

typedef struct trial {
  const lam_schedule *s;
  const lam_costs *costs;
  int (*depth)[64];
  double end[64][64][12];            /* [stage][micro][kind]; < 0 = not yet */
  int made[2][64], order[2][64][64]; /* [flow][sending stage] */
  int at[64];
  double clock[64];
} trial;

static bool crosses(const lam_schedule *s, int edge) {
  return s->rank_of_stage[edge] != s->rank_of_stage[edge + 1];
}

static double latest(double a, double b) { return a < 0 || b < 0 ? -1 : a > b ? a : b; }

static double either(const trial *t, int stage, int micro, int a, int b) {
  return t->end[stage][micro][a] >= 0 ? t->end[stage][micro][a] : t->end[stage][micro][b];
}

/* When what crosses `edge` towards `stage` is there; `made` when it was made, -1 = it is not. */
static double arrival(const trial *t, int stage, int micro, int edge, double made, int send,
                      int recv) {
  if (!crosses(t->s, edge)) return made;
  const int from = edge == stage ? stage + 1 : stage - 1;
  if (t->s->lowered) made = t->end[stage][micro][recv] < 0 ? -1 : t->end[from][micro][send];
  return made < 0 || !t->costs ? made : made + t->costs->transfer[edge];
}

static double ready(const trial *t, const lam_action *a) {
  const int s = a->stage, m = a->micro, last = t->s->n_stages - 1;
  const int f = LAM_KIND_F, i = LAM_KIND_I, b = LAM_KIND_B;
  if (a->kind == LAM_KIND_W) return t->end[s][m][i];
  if (a->kind == f)
    return s == 0 ? 0
                  : arrival(t, s, m, s - 1, t->end[s - 1][m][f], LAM_KIND_SEND_F, LAM_KIND_RECV_F);
  if (a->kind == LAM_KIND_SEND_F) return latest(t->end[s][m][f], t->end[s + 1][m][LAM_KIND_RECV_F]);
  if (a->kind == LAM_KIND_SEND_B)
    return latest(either(t, s, m, i, b), t->end[s - 1][m][LAM_KIND_RECV_B]);
  if (a->kind >= LAM_KIND_SEND_F) return 0;
  if (s == last) return t->end[s][m][f];
  const double gradient =
      arrival(t, s, m, s, either(t, s + 1, m, i, b), LAM_KIND_SEND_B, LAM_KIND_RECV_B);
  return latest(t->end[s][m][f], gradient);
}

/* When the slot for a's output is free: once message n - depth was read. */
static double slot(const trial *t, const lam_action *a) {
  const bool makes_none = a->kind == LAM_KIND_W || a->kind > LAM_KIND_B;
  const int flow = a->kind == LAM_KIND_F ? 0 : makes_none ? -1 : 1;
  if (!t->depth || flow < 0) return 0;
  const int to = flow ? a->stage - 1 : a->stage + 1, edge = flow ? a->stage - 1 : a->stage;
  if (to < 0 || to >= t->s->n_stages || !crosses(t->s, edge)) return 0;
  const int n = t->made[flow][a->stage] - t->depth[flow][edge];
  if (n < 0) return 0;
  const int micro = t->order[flow][a->stage][n];
  return flow ? either(t, to, micro, LAM_KIND_I, LAM_KIND_B) : t->end[to][micro][LAM_KIND_F];
}

static double cost(const trial *t, const lam_action *a) {
  const lam_costs *c = t->costs;
  if (!c || a->kind >= LAM_KIND_SEND_F) return 0;
  return a->kind == LAM_KIND_F   ? c->forward[a->stage]
         : a->kind == LAM_KIND_I ? c->backward_input[a->stage]
         : a->kind == LAM_KIND_W ? c->backward_weight[a->stage]
                                 : c->backward_input[a->stage] + c->backward_weight[a->stage];
}

static bool try_step(trial *t, int rank) {
  const int64_t i = t->s->first[rank] + t->at[rank];
  if (i == t->s->first[rank + 1]) return false;
  const lam_action *a = &t->s->actions[i];
  if (a->micro < 0) return t->at[rank]++, true; /* of a whole stage: free */
  const int n = 1 + a->paired;
  double start = t->clock[rank], end = 0;
  for (int k = 0; k < n; k++) start = latest(start, latest(ready(t, a + k), slot(t, a + k)));
  if (start < 0) return false;
  for (int k = 0; k < n; k++) end += cost(t, a + k);
  for (int k = 0; k < n; k++) {
    const int flow = a[k].kind == LAM_KIND_F ? 0 : 1;
    t->end[a[k].stage][a[k].micro][a[k].kind] = start + end;
    if (a[k].kind == LAM_KIND_W || a[k].kind >= LAM_KIND_SEND_F) continue;
    t->order[flow][a[k].stage][t->made[flow][a[k].stage]++] = a[k].micro;
  }
  t->clock[rank] =
      a->kind >= LAM_KIND_SEND_F ? t->clock[rank] : start + end; /* transfers cost none */
  t->at[rank] += n;
  return true;
}

double reference_makespan(const lam_schedule *s, const lam_costs *costs, int depth[2][64]) {
  trial *t = calloc(1, sizeof *t);
  t->s = s, t->costs = costs, t->depth = depth;
  for (double *e = &t->end[0][0][0]; e < &t->end[0][0][0] + 64 * 64 * 12; e++) *e = -1;
  for (bool moved = true; moved;) {
    moved = false;
    for (int r = 0; r < s->n_ranks; r++)
      while (try_step(t, r)) moved = true;
  }
  double makespan = 0;
  for (int r = 0; r < s->n_ranks; r++) {
    if (s->first[r] + t->at[r] < s->first[r + 1]) makespan = -1;
    makespan = latest(makespan, t->clock[r]);
  }
  free(t);
  return makespan;
}

static int count(const lam_schedule *s, int rank, int stage, int micro,
                 int kind) { /* rank -1: any */
  int n = 0;
  for (int r = 0; r < s->n_ranks; r++)
    for (int64_t i = s->first[r]; i < s->first[r + 1]; i++) {
      const lam_action *a = &s->actions[i];
      n += (rank < 0 || r == rank) && a->stage == stage && a->micro == micro && a->kind == kind;
    }
  return n;
}

static bool pair_is_whole(const lam_schedule *s, int stage, int micro) {
  const int f = count(s, -1, stage, micro, LAM_KIND_F), b = count(s, -1, stage, micro, LAM_KIND_B);
  const int i = count(s, -1, stage, micro, LAM_KIND_I), w = count(s, -1, stage, micro, LAM_KIND_W);
  const int below = s->lowered && stage > 0 && crosses(s, stage - 1);
  const int above = s->lowered && stage < s->n_stages - 1 && crosses(s, stage);
  return f == 1 && b <= 1 && i == 1 - b && w == 1 - b &&
         count(s, -1, stage, micro, LAM_KIND_RECV_F) == below &&
         count(s, -1, stage, micro, LAM_KIND_SEND_B) == below &&
         count(s, -1, stage, micro, LAM_KIND_SEND_F) == above &&
         count(s, -1, stage, micro, LAM_KIND_RECV_B) == above;
}

static bool stage_stays_on_its_rank(const lam_schedule *s, int stage) {
  for (int r = 0; r < s->n_ranks; r++)
    for (int64_t i = s->first[r]; i < s->first[r + 1]; i++)
      if (s->actions[i].stage == stage && s->rank_of_stage[stage] != r) return false;
  return true;
}

/* The micro-batches of a stage's actions of these kinds, in list order. */
static int sequence(const lam_schedule *s, int stage, int kind, int or_kind, int *out) {
  int n = 0;
  for (int64_t i = 0; i < s->first[s->n_ranks]; i++)
    if (s->actions[i].stage == stage &&
        (s->actions[i].kind == kind || s->actions[i].kind == or_kind))
      out[n++] = s->actions[i].micro;
  return n;
}

static bool transfers_keep_order(const lam_schedule *s, int stage) {
  static const int channels[4][3] = {{LAM_KIND_SEND_F, 0, LAM_KIND_F},
                                     {LAM_KIND_RECV_F, -1, LAM_KIND_F},
                                     {LAM_KIND_SEND_B, 0, LAM_KIND_I},
                                     {LAM_KIND_RECV_B, 1, LAM_KIND_I}};
  int moved[MOST_ACTIONS], made[MOST_ACTIONS];
  for (int c = 0; c < 4; c++) {
    const int kind = channels[c][2], n = sequence(s, stage, channels[c][0], channels[c][0], moved);
    if (!n) continue;
    sequence(s, stage + channels[c][1], kind, kind == LAM_KIND_I ? LAM_KIND_B : kind, made);
    if (memcmp(moved, made, (size_t)n * sizeof *moved)) return false;
  }
  return true;
}

/* REDUCE_GRAD once, after the stage's last weight gradient; UNSHARD and RESHARD in turn, and where
 * there is one, nothing computed outside of them. */
static bool stage_wide_is_right(const lam_schedule *s, int stage) {
  bool uses = false, open = false, reduced = false;
  for (int64_t i = 0; i < s->first[s->n_ranks]; i++)
    uses |= s->actions[i].stage == stage && s->actions[i].kind == LAM_KIND_UNSHARD;
  for (int64_t i = 0; i < s->first[s->n_ranks]; i++) {
    const lam_action *a = &s->actions[i];
    if (a->stage != stage) continue;
    const bool weight = a->kind == LAM_KIND_W || a->kind == LAM_KIND_B;
    if (reduced && (weight || a->kind == LAM_KIND_REDUCE_GRAD)) return false;
    if (a->kind == LAM_KIND_UNSHARD && open) return false;
    if (a->kind == LAM_KIND_RESHARD && !open) return false;
    if (a->kind <= LAM_KIND_B && uses && !open) return false;
    open = a->kind == LAM_KIND_UNSHARD || (open && a->kind != LAM_KIND_RESHARD);
    reduced |= a->kind == LAM_KIND_REDUCE_GRAD;
  }
  return true;
}

bool reference_accepts(const lam_schedule *s) {
  for (int stage = 0; stage < s->n_stages; stage++) {
    if (!stage_stays_on_its_rank(s, stage) || !stage_wide_is_right(s, stage)) return false;
    for (int micro = 0; micro < s->n_micro; micro++)
      if (!pair_is_whole(s, stage, micro)) return false;
  }
  for (int stage = 0; stage < s->n_stages; stage++)
    if (!transfers_keep_order(s, stage)) return false;
  return reference_makespan(s, NULL, NULL) >= 0;
}
