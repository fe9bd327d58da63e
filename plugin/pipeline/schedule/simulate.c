/* simulate.c: how long a schedule takes, and who works when, for given costs. A rank runs its
 * list strictly in order; an action starts once the rank is free and its inputs are there (plus
 * the transfer, where they come from another rank); a fused pair takes as long as its two
 * halves, or what was measured for it; in a lowered table a send leaves when its rank comes to it
 * and takes no time. A rank's idle time is warm-up before its first action, drain after its last,
 * and in between waiting for the input that came last.
 * Invariant: the same table and costs give the same events, to the last bit.
 * Leaves where costs come from to the planner, and pictures to draw.c. */
#include <math.h>
#include <stdlib.h>

#include "plugin/core/struct.h"
#include "plugin/pipeline/schedule/walk.h"

#define WHO "lam_schedule_simulate: "
#define LONGEST 1e12      /* ns: 17 minutes, of one action or transfer */
#define LAST_EVENT 9.2e18 /* ns: what an event's int64 can hold */

static lam_status check_list(const char *name, const double *list, int n) {
  if (!list && n > 0)
    return lam_fail(LAM_INVALID_ARGUMENT, WHO "costs.%s is NULL, expected %d numbers", name, n);
  for (int i = 0; i < n; i++)
    if (!(list[i] >= 0 && list[i] <= LONGEST))
      return lam_fail(LAM_INVALID_ARGUMENT, WHO "costs.%s[%d] is %g, expected 0 to %g ns", name, i,
                      list[i], LONGEST);
  return LAM_OK;
}

static lam_status check_costs(const lam_schedule *s, const lam_costs *c) {
  LAM_TRY(lam_struct_check("lam_schedule_simulate", "costs", c, sizeof *c));
  if (c->n_stages != (uint32_t)s->n_stages)
    return lam_fail(LAM_INVALID_ARGUMENT, WHO "costs.n_stages is %u, the schedule has %d",
                    c->n_stages, s->n_stages);
  LAM_TRY(check_list("forward", c->forward, s->n_stages));
  LAM_TRY(check_list("backward_input", c->backward_input, s->n_stages));
  LAM_TRY(check_list("backward_weight", c->backward_weight, s->n_stages));
  if (c->forward_backward)
    LAM_TRY(check_list("forward_backward", c->forward_backward, s->n_stages));
  if (c->reduce_grad) LAM_TRY(check_list("reduce_grad", c->reduce_grad, s->n_stages));
  return c->transfer ? check_list("transfer", c->transfer, s->n_stages - 1) : LAM_OK;
}

static double fraction(double part, double whole) { return whole > 0 ? part / whole : 0; }

void lam_walk_measure(const lam_walk *w, lam_simulated *out) {
  double first = INFINITY, last = 0, longest = 0, work = 0;
  for (int r = 0; r < w->s->n_ranks; r++) {
    work += w->busy[r];
    if (w->first[r] < 0) continue; /* it has nothing to do */
    first = fmin(first, w->first[r]);
    last = fmax(last, w->clock[r]);
    longest = fmax(longest, w->clock[r] - w->first[r]);
  }
  work /= w->s->n_ranks;
  out->makespan = last - first;
  out->bubble = fraction(out->makespan - work, out->makespan);
  out->rank_bubble = fraction(longest - work, longest);
}

/* -- idle time -- */

static bool takes_time(int kind) { return lam_kind_computes(kind) || kind == LAM_KIND_REDUCE_GRAD; }

/* Which edge the action's input comes over, and which way: an index of lam_simulated's waits. */
static int wait_index(const lam_action *a) {
  return a->kind == LAM_KIND_F ? 2 * (a->stage - 1) : 2 * a->stage + 1;
}

/* Of a fused pair, the half whose input came last. */
static const lam_action *late_half(const lam_walk *w, const lam_action *a) {
  if (!a->paired) return a;
  return lam_walk_arrival(w, a + 1) > lam_walk_arrival(w, a) ? a + 1 : a;
}

/* What the rank waited for between its first action and its last, by edge. */
static void add_waits(const lam_walk *w, int rank, double *waits, uint64_t room) {
  const lam_schedule *s = w->s;
  double clock = INFINITY;
  for (int64_t i = s->first[rank]; i < s->first[rank + 1]; i++) {
    if (!takes_time(s->actions[i].kind)) continue;
    const double gap = w->spans[i].start - clock;
    clock = w->spans[i].end;
    if (gap <= 0) continue;
    const uint64_t at = (uint64_t)wait_index(late_half(w, &s->actions[i]));
    if (at < room) waits[at] += gap;
  }
}

/* A rank that has nothing to do spends the whole time in the drain. */
lam_rank_time lam_walk_time(const lam_walk *w, int rank, double makespan) {
  const double first = w->first[rank], last = w->clock[rank], busy = w->busy[rank];
  if (first < 0) return (lam_rank_time){.drain = makespan};
  const double waiting = fmax(0, last - first - busy); /* a sum of roundings, too */
  return (lam_rank_time){busy, first, makespan - last, waiting};
}

static void explain_idle(const lam_walk *w, lam_simulated *out) {
  const uint64_t n_ranks = (uint64_t)w->s->n_ranks, n_waits = 2 * ((uint64_t)w->s->n_stages - 1);
  for (uint64_t i = 0; out->waits && i < n_waits && i < out->n_waits; i++) out->waits[i] = 0;
  for (uint64_t r = 0; r < n_ranks && (out->waits || out->ranks); r++) {
    if (out->waits) add_waits(w, (int)r, out->waits, out->n_waits);
    if (out->ranks && r < out->n_ranks) out->ranks[r] = lam_walk_time(w, (int)r, out->makespan);
  }
  out->n_ranks = n_ranks, out->n_waits = n_waits;
}

/* -- events -- */

/* Rounded half up, without a call. */
static int64_t whole_ns(double t) {
  const int64_t down = (int64_t)t;
  return down + (t - (double)down >= 0.5);
}

/* Their number; they are written where there is room. */
static uint64_t write_events(const lam_walk *w, lam_event *events, uint64_t room) {
  const lam_schedule *s = w->s;
  uint64_t n = 0;
  int part = 0; /* 1 for the second half of a pair */
  for (int r = 0; r < s->n_ranks; r++)
    for (int64_t i = s->first[r]; i < s->first[r + 1]; i++) {
      const lam_action *a = &s->actions[i];
      if (!takes_time(a->kind)) continue;
      if (events && n < room)
        events[n] = (lam_event){r,
                                a->stage,
                                a->micro,
                                (uint16_t)a->kind,
                                (uint16_t)part,
                                whole_ns(w->spans[i].start),
                                whole_ns(w->spans[i].end)};
      part = a->paired;
      n++;
    }
  return n;
}

static lam_status read_walk(const lam_walk *w, const lam_simulated *rooms, lam_simulated *out) {
  lam_walk_measure(w, out);
  if (out->makespan > LAST_EVENT)
    return lam_fail(LAM_INVALID_ARGUMENT, WHO "it takes %g ns, expected at most %g", out->makespan,
                    LAST_EVENT);
  out->n_ranks = rooms->n_ranks, out->n_waits = rooms->n_waits;
  explain_idle(w, out);
  out->n_events = write_events(w, out->events, rooms->n_events);
  return LAM_OK;
}

lam_status lam_schedule_simulate(const lam_schedule *s, const lam_costs *costs,
                                 lam_simulated *out) {
  LAM_TRY(lam_struct_check("lam_schedule_simulate", "out", out, sizeof *out));
  const lam_simulated rooms = *out;
  *out = (lam_simulated){.struct_size = out->struct_size,
                         .events = out->events,
                         .ranks = out->ranks,
                         .waits = out->waits};
  if (!s) return lam_fail(LAM_INVALID_ARGUMENT, WHO "s is NULL");
  LAM_TRY(check_costs(s, costs));
  lam_walk w;
  const bool spans = out->events || out->waits;
  LAM_TRY(lam_check_walk(s, costs, spans ? LAM_NOTED_SPANS : LAM_NOTED_NOTHING, &w));
  const lam_status status = read_walk(&w, &rooms, out);
  lam_walk_finish(&w);
  return status;
}
