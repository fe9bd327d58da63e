/* simulate.c: how long a schedule takes, and who works when, for given costs. A rank runs its
 * list strictly in order; an action starts once the rank is free and its inputs are there (plus
 * the transfer, where they come from another rank); a fused pair takes as long as its two
 * halves; in a lowered table a send leaves when its rank comes to it and takes no time.
 * Invariant: the same table and costs give the same events, to the last bit.
 * Leaves where costs come from to the planner, and pictures to draw.c. */
#include <math.h>
#include <stdlib.h>

#include "plugin/core/struct.h"
#include "plugin/pipeline/walk.h"

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
  return c->transfer ? check_list("transfer", c->transfer, s->n_stages - 1) : LAM_OK;
}

static double fraction(double part, double whole) { return whole > 0 ? part / whole : 0; }

/* Lists run in order, so a rank's first and last action bound its time. */
static void measure(const lam_walk *w, lam_simulated *out) {
  const lam_schedule *s = w->s;
  double first = INFINITY, last = 0, longest = 0, work = 0;
  for (int r = 0; r < s->n_ranks; r++) {
    double rank_first = INFINITY, rank_last = 0;
    for (int64_t i = s->first[r]; i < s->first[r + 1]; i++) {
      if (s->actions[i].kind >= LAM_KIND_SEND_F) continue;
      work += w->spans[i].end - w->spans[i].start;
      rank_first = fmin(rank_first, w->spans[i].start);
      rank_last = w->spans[i].end;
    }
    first = fmin(first, rank_first);
    last = fmax(last, rank_last);
    longest = fmax(longest, rank_last - rank_first);
  }
  work /= s->n_ranks;
  out->makespan = last - first;
  out->bubble = fraction(out->makespan - work, out->makespan);
  out->rank_bubble = fraction(longest - work, longest);
}

static uint64_t write_events(const lam_walk *w, lam_event *events, uint64_t room) {
  const lam_schedule *s = w->s;
  uint64_t n = 0;
  int part = 0; /* 1 for the second half of a pair */
  for (int r = 0; r < s->n_ranks; r++)
    for (int64_t i = s->first[r]; i < s->first[r + 1]; i++) {
      const lam_action *a = &s->actions[i];
      if (a->kind >= LAM_KIND_SEND_F) continue;
      if (events && n < room)
        events[n] = (lam_event){r,
                                a->stage,
                                a->micro,
                                (uint16_t)a->kind,
                                (uint16_t)part,
                                llround(w->spans[i].start),
                                llround(w->spans[i].end)};
      part = a->paired;
      n++;
    }
  return n;
}

static lam_status read_walk(const lam_walk *w, uint64_t room, lam_simulated *out) {
  measure(w, out);
  if (out->makespan > LAST_EVENT)
    return lam_fail(LAM_INVALID_ARGUMENT, WHO "it takes %g ns, expected at most %g", out->makespan,
                    LAST_EVENT);
  out->n_events = write_events(w, out->events, room);
  return LAM_OK;
}

lam_status lam_schedule_simulate(const lam_schedule *s, const lam_costs *costs,
                                 lam_simulated *out) {
  LAM_TRY(lam_struct_check("lam_schedule_simulate", "out", out, sizeof *out));
  const uint64_t room = out->n_events;
  *out = (lam_simulated){.struct_size = out->struct_size, .events = out->events};
  if (!s) return lam_fail(LAM_INVALID_ARGUMENT, WHO "s is NULL");
  LAM_TRY(check_costs(s, costs));
  lam_walk w;
  LAM_TRY(lam_check_walk(s, costs, &w));
  const lam_status status = read_walk(&w, room, out);
  lam_walk_finish(&w);
  return status;
}
