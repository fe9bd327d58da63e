/* chain.c: the shortest step of a chain of stages, each on a rank of its own, exactly.
 *
 * For a limit on a stage's time a dynamic programme finds the least sum of all stages' times:
 * best(s, i) = min over j of best(s - 1, j) + time(s, j, i), where stage s holds layers j .. i - 1
 * within limit and cap; of equal sums the evenest. That least sum only falls as the limit rises,
 * so of the limits between two that were solved none can beat
 *   (m - 1) x the next limit above the lower one + the upper one's sum,
 * and halving what is left finds the best step in few solutions, though there are n^2 / 2 limits.
 * Invariant: limits are times that some stage can take, computed by lam_stage_time alone, so that
 * comparing them is exact.
 * Leaves ranks with several stages to search.c. */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "plugin/pipeline/partition/partition.h"

typedef struct state { /* of a cut before layer i, after stage s */
  double sum, squares; /* of the stages so far: cut times; squared times. sum INFINITY: no way */
} state;

typedef struct chain {
  const lam_cut_problem *q;
  int32_t *low;  /* [n_stages][n_layers + 1]: the earliest layer a stage that ends there can hold */
  int32_t *from; /* [n_stages][n_layers + 1]: where the best such stage begins */
  state *states; /* two rows of [n_layers + 1] */
  int32_t *best; /* [n_stages + 1]: the caller's */
  double best_step;
} chain;

static size_t row(const chain *c, int stage) {
  return (size_t)stage * ((size_t)c->q->n_layers + 1);
}

/* For every stage and end, how early the stage can begin within its cap and `slack` bytes. */
static void find_low(chain *c, int64_t slack) {
  const lam_cut_problem *q = c->q;
  for (int s = 0; s < q->n_stages; s++) {
    const int64_t cap = q->cap[q->rank_of[s]];
    const int64_t room = cap > INT64_MAX - slack ? INT64_MAX : cap + slack;
    for (int i = 0; i <= q->n_layers; i++) {
      int lo = 0, hi = i + 1; /* i + 1: not even empty */
      while (lo < hi) {
        const int mid = (lo + hi) / 2;
        if (mid <= i && lam_stage_bytes(q, s, mid, i) > room)
          lo = mid + 1;
        else
          hi = mid;
      }
      c->low[row(c, s) + (size_t)i] = lo <= i && lam_stage_bytes(q, s, lo, i) > room ? i + 1 : lo;
    }
  }
}

typedef struct band { /* cuts that can be reached */
  int lo, hi;
} band;

/* The best way to end stage s before layer i, and where it begins. */
static state best_before(const chain *c, int s, int i, const state *before, band reached,
                         double limit, int32_t *out_from) {
  const lam_cut_problem *q = c->q;
  const int low = c->low[row(c, s) + (size_t)i], last = i - lam_least_layers(q);
  state best = {INFINITY, INFINITY};
  for (int j = last < reached.hi ? last : reached.hi; j >= low && j >= reached.lo; j--) {
    const double time = lam_stage_time(q, s, j, i);
    if (time > limit) break;
    if (before[j].sum > best.sum || before[j].sum == INFINITY) continue;
    const double squares = before[j].squares + time * time;
    if (before[j].sum == best.sum && squares >= best.squares) continue;
    best = (state){before[j].sum, squares};
    *out_from = j;
  }
  if (lam_ends_with_cut(q, s)) best.sum += q->cut_time[i];
  return best;
}

static band ends_of(const lam_cut_problem *q, int s) {
  if (q->pinned[s + 1] >= 0) return (band){q->pinned[s + 1], q->pinned[s + 1]};
  const int least = lam_least_layers(q);
  return (band){least * (s + 1), q->n_layers - least * (q->n_stages - 1 - s)};
}

static void trace_back(const chain *c, int32_t *first) {
  first[c->q->n_stages] = c->q->n_layers;
  for (int s = c->q->n_stages - 1; s >= 0; s--)
    first[s] = c->from[row(c, s) + (size_t)first[s + 1]];
}

/* The least sum of all stages' times where none takes longer than limit; INFINITY where there is
 * no such cut. */
static double solve(chain *c, double limit) {
  const lam_cut_problem *q = c->q;
  state *before = c->states, *after = c->states + q->n_layers + 1;
  band reached = {0, 0};
  before[0] = (state){0, 0};
  for (int s = 0; s < q->n_stages; s++) {
    const band ends = ends_of(q, s);
    band now = {ends.hi + 1, ends.lo - 1};
    for (int i = ends.lo; i <= ends.hi; i++) {
      after[i] = best_before(c, s, i, before, reached, limit, &c->from[row(c, s) + (size_t)i]);
      if (after[i].sum == INFINITY) continue;
      if (i < now.lo) now.lo = i;
      now.hi = i;
    }
    if (now.hi < now.lo) return INFINITY;
    reached = now;
    state *const swapped = before;
    before = after, after = swapped;
  }
  return q->time[q->n_layers] + before[q->n_layers].sum;
}

static double step_of(const lam_cut_problem *q, const int32_t *first) {
  double sum = 0, slowest = 0;
  for (int s = 0; s < q->n_stages; s++) {
    const double time = lam_stage_time(q, s, first[s], first[s + 1]);
    sum += time;
    slowest = fmax(slowest, time);
  }
  return sum + (q->n_micro - 1) * slowest;
}

/* Solves, and keeps the cut where it is the best so far. */
static lam_status try_limit(chain *c, double limit, double *out_sum) {
  *out_sum = solve(c, limit);
  if (*out_sum == INFINITY) return LAM_OK;
  int32_t *first = malloc(((size_t)c->q->n_stages + 1) * sizeof *first);
  if (!first) return lam_fail(LAM_RESOURCE_EXHAUSTED, "lam_partition_solve: no memory for a cut");
  trace_back(c, first);
  const double step = step_of(c->q, first);
  if (step < c->best_step) {
    c->best_step = step;
    memcpy(c->best, first, ((size_t)c->q->n_stages + 1) * sizeof *first);
  }
  free(first);
  return LAM_OK;
}

/* -- limits: the times a stage can take -- */

/* Of stages of this sort that end before layer i: the longest time within `limit` and the shortest
 * one above it. */
static void around(const lam_cut_problem *q, int stage, int i, double limit, double *below,
                   double *above) {
  int lo = 0, hi = i + 1;
  while (lo < hi) {
    const int mid = (lo + hi) / 2;
    if (mid <= i && lam_stage_time(q, stage, mid, i) > limit)
      lo = mid + 1;
    else
      hi = mid;
  }
  if (lo <= i) *below = fmax(*below, lam_stage_time(q, stage, lo, i));
  if (lo > 0) *above = fmin(*above, lam_stage_time(q, stage, lo - 1, i));
}

static void limits_around(const lam_cut_problem *q, double limit, double *below, double *above) {
  *below = -INFINITY, *above = INFINITY;
  around(q, q->n_stages - 1, q->n_layers, limit, below, above);
  if (q->n_stages == 1) return;
  for (int i = 0; i <= q->n_layers; i++) around(q, 0, i, limit, below, above);
}

static double longest_limit(const lam_cut_problem *q) {
  double below, above;
  limits_around(q, INFINITY, &below, &above);
  return below;
}

static double next_limit(const lam_cut_problem *q, double limit) {
  double below, above;
  limits_around(q, limit, &below, &above);
  return above;
}

static double limit_between(const lam_cut_problem *q, double low, double high) {
  double below, above;
  limits_around(q, low + (high - low) / 2, &below, &above);
  return below > low ? below : next_limit(q, low);
}

/* Looks for a better step with a limit between two that were solved, each with its least sum. */
static lam_status refine(chain *c, double low, double low_sum, double high, double high_sum) {
  if (low_sum == high_sum) return LAM_OK; /* more time for the slowest stage buys nothing */
  const double next = next_limit(c->q, low);
  if (next >= high || high_sum + (c->q->n_micro - 1) * next >= c->best_step) return LAM_OK;
  const double middle = limit_between(c->q, low, high);
  double sum;
  LAM_TRY(try_limit(c, middle, &sum));
  LAM_TRY(refine(c, low, low_sum, middle, sum));
  return refine(c, middle, sum, high, high_sum);
}

static bool fits(chain *c, int64_t slack) {
  find_low(c, slack);
  return solve(c, INFINITY) < INFINITY;
}

/* The least bytes by which all caps must grow, and a cut that then fits. As they are, none does. */
static int64_t find_short(chain *c) {
  int64_t lo = 0, hi = 1; /* lo: too little */
  while (!fits(c, hi)) lo = hi, hi *= 2;
  while (hi - lo > 1) {
    const int64_t middle = lo + (hi - lo) / 2;
    if (fits(c, middle))
      hi = middle;
    else
      lo = middle;
  }
  fits(c, hi);
  trace_back(c, c->best);
  return hi;
}

static lam_status run(chain *c, double *out_sum, int64_t *out_short) {
  find_low(c, 0);
  LAM_TRY(try_limit(c, INFINITY, out_sum));
  if (*out_sum == INFINITY) return *out_short = find_short(c), LAM_OK;
  return refine(c, -1, INFINITY, longest_limit(c->q), *out_sum);
}

lam_status lam_cut_chain(const lam_cut_problem *q, int32_t *out_first, double *out_sum,
                         int64_t *out_short) {
  const size_t n = (size_t)q->n_layers + 1, cells = n * (size_t)q->n_stages;
  chain c = {.q = q, .best = out_first, .best_step = INFINITY};
  *out_short = 0;
  c.low = malloc(cells * sizeof *c.low);
  c.from = malloc(cells * sizeof *c.from);
  c.states = malloc(2 * n * sizeof *c.states);
  lam_status status = LAM_OK;
  if (!c.low || !c.from || !c.states)
    status = lam_fail(LAM_RESOURCE_EXHAUSTED,
                      "lam_partition_solve: no memory for %d layers on %d stages", q->n_layers,
                      q->n_stages);
  if (status == LAM_OK) status = run(&c, out_sum, out_short);
  free(c.low);
  free(c.from);
  free(c.states);
  return status;
}
