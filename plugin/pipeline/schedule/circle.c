/* circle.c: the shortest circle of actions that wait for each other.
 *
 * To have reached an action of a rank is to have reached all that stand before it: so what a
 * search has reached is one number a rank, and a search looks at each action once. One starts from
 * every action that stopped, breadth first, no deeper than the best circle so far.
 * Invariant: a circle passes each rank once: where it came back, a shorter one would do.
 * Leaves what waits for what to walk.c. */
#include "plugin/pipeline/schedule/circle.h"

#include <stdlib.h>

#define WHO "lam_schedule_check: "
#define MOST_STEPS (1 << 22) /* actions looked at in all: about a tenth of a second */

typedef struct hop {
  lam_link link;
  int64_t from;     /* reached by it: units from here up to its needed one */
  int rank, parent; /* needed's rank; the hop that reached `stuck`, -1 = the source */
  int depth;
} hop;

typedef struct search {
  const lam_walk *w;
  int32_t *where; /* [n_stages * n_micro][8]: the action of each kind */
  int64_t *reach; /* [n_ranks]: up to and with this unit */
  hop *hops;      /* of one search; the queue, too */
  int n_hops;
  int64_t steps_left;
  int home; /* the source, and its rank */
  int64_t source;
  lam_link *best;
  int n_best;
} search;

static int bit_number(uint32_t kinds) {
  int n = 0;
  while (!(kinds >> n & 1)) n++;
  return n;
}

static void index_actions(search *f) {
  const lam_schedule *s = f->w->s;
  for (int64_t i = 0; i < lam_schedule_n_actions(s); i++) {
    const lam_action *a = &s->actions[i];
    if (a->micro < 0) continue;
    const size_t pair = lam_pair_index(s, a->stage, a->micro);
    f->where[8 * pair + (size_t)bit_number(LAM_KIND_BIT(a->kind))] = (int32_t)i;
  }
}

/* Every pair is whole, so one of the kinds is there. */
static int64_t find_needed(const search *f, const lam_need *need, int micro) {
  const int32_t *at = f->where + 8 * lam_pair_index(f->w->s, need->stage, micro);
  for (int k = 0; k < 8; k++)
    if ((need->kinds >> k & 1) && at[k] >= 0) return at[k];
  return -1;
}

/* A fused pair is one unit: its first half. */
static int64_t unit_of(const lam_schedule *s, int rank, int64_t i) {
  return i > s->first[rank] && s->actions[i - 1].paired ? i - 1 : i;
}

static void add_hop(search *f, lam_link link, int rank, int64_t unit, int parent) {
  const int depth = parent < 0 ? 1 : f->hops[parent].depth + 1;
  f->hops[f->n_hops++] = (hop){link, f->reach[rank] + 1, rank, parent, depth};
  f->reach[rank] = unit;
}

static void keep_circle(search *f, lam_link last, int parent) {
  f->n_best = parent < 0 ? 1 : f->hops[parent].depth + 1;
  f->best[f->n_best - 1] = last;
  for (int k = f->n_best - 2; k >= 0; k--, parent = f->hops[parent].parent)
    f->best[k] = f->hops[parent].link;
}

/* Follows what one unit misses. True where that closes a circle. */
static bool follow(search *f, int64_t unit, int parent) {
  const lam_schedule *s = f->w->s;
  lam_need needs[2];
  f->steps_left--;
  for (int64_t i = unit; i <= unit + s->actions[unit].paired; i++) {
    const lam_action *a = &s->actions[i];
    const int n = lam_action_needs(s, a, needs);
    for (int k = 0; k < n; k++) {
      if (lam_walk_has(f->w, &needs[k], a->micro)) continue;
      const lam_link link = {i, find_needed(f, &needs[k], a->micro)};
      const int rank = s->rank_of_stage[needs[k].stage];
      const int64_t to = unit_of(s, rank, link.needed);
      if (rank == f->home && to >= f->source) return keep_circle(f, link, parent), true;
      if (to > f->reach[rank]) add_hop(f, link, rank, to, parent);
    }
  }
  return false;
}

static bool follow_all(search *f, int g) {
  const lam_schedule *s = f->w->s;
  const hop h = f->hops[g];
  const int64_t last = unit_of(s, h.rank, h.link.needed);
  for (int64_t u = h.from; u <= last && f->steps_left > 0; u += 1 + s->actions[u].paired)
    if (follow(f, u, g)) return true;
  return false;
}

/* A circle through `source` of fewer links than the best so far, or of any length where there is
 * none. */
static void search_from(search *f, int rank, int64_t source) {
  f->home = rank, f->source = source, f->n_hops = 0;
  bool found = follow(f, source, -1);
  for (int g = 0; !found && g < f->n_hops; g++) {
    if (f->n_best && f->hops[g].depth + 1 >= f->n_best) break;
    found = follow_all(f, g);
  }
  for (int g = 0; g < f->n_hops; g++) f->reach[f->hops[g].rank] = f->w->at[f->hops[g].rank] - 1;
}

/* The rank that stands in the way of the one that stands at `unit`. */
static int rank_awaited(const search *f, int64_t unit) {
  const lam_schedule *s = f->w->s;
  lam_need needs[2];
  for (int64_t i = unit; i <= unit + s->actions[unit].paired; i++) {
    const int n = lam_action_needs(s, &s->actions[i], needs);
    for (int k = 0; k < n; k++)
      if (!lam_walk_has(f->w, &needs[k], s->actions[i].micro))
        return s->rank_of_stage[needs[k].stage];
  }
  return -1; /* not reached: a rank only stops where something is missing */
}

/* From any rank that is stuck, whom it waits for, and so on, leads into a circle. */
static int rank_in_circle(const search *f) {
  const lam_walk *w = f->w;
  int rank = 0;
  while (w->at[rank] == w->s->first[rank + 1]) rank++;
  for (int hops = 0; hops < w->s->n_ranks; hops++) rank = rank_awaited(f, w->at[rank]);
  return rank;
}

static void search_all(search *f) {
  const lam_walk *w = f->w;
  const int first = rank_in_circle(f);
  f->steps_left = INT64_MAX;
  search_from(f, first, w->at[first]);
  f->steps_left = MOST_STEPS;
  for (int r = 0; r < w->s->n_ranks; r++)
    for (int64_t u = w->at[r]; u < w->s->first[r + 1]; u += 1 + w->s->actions[u].paired) {
      if (f->steps_left <= 0 || f->n_best == 1) return;
      search_from(f, r, u);
    }
}

static bool alloc_search(search *f) {
  const lam_schedule *s = f->w->s;
  const size_t pairs = (size_t)s->n_stages * (size_t)s->n_micro, ranks = (size_t)s->n_ranks;
  size_t stopped = 1;
  f->reach = malloc(ranks * sizeof *f->reach);
  f->best = malloc(ranks * sizeof *f->best);
  f->where = malloc(8 * pairs * sizeof *f->where);
  if (!f->reach || !f->best || !f->where) return false;
  for (size_t i = 0; i < 8 * pairs; i++) f->where[i] = -1;
  for (int r = 0; r < s->n_ranks; r++) {
    f->reach[r] = f->w->at[r] - 1;
    stopped += (size_t)(s->first[r + 1] - f->w->at[r]);
  }
  f->hops = malloc(stopped * sizeof *f->hops); /* each reaches one action more, at least */
  return f->hops;
}

/* The lowest rank's link to the front: lists lie in rank order. */
static void rotate(lam_link *links, int n) {
  int lowest = 0;
  for (int i = 1; i < n; i++)
    if (links[i].stuck < links[lowest].stuck) lowest = i;
  for (; lowest > 0; lowest--) {
    const lam_link front = links[0];
    for (int i = 0; i + 1 < n; i++) links[i] = links[i + 1];
    links[n - 1] = front;
  }
}

lam_status lam_shortest_circle(const lam_walk *w, lam_link **out_links, int *out_n) {
  search f = {.w = w};
  const bool fits = alloc_search(&f);
  if (fits) {
    index_actions(&f);
    search_all(&f);
    rotate(f.best, f.n_best);
  }
  free(f.where);
  free(f.reach);
  free(f.hops);
  *out_links = f.best, *out_n = f.n_best;
  if (fits) return LAM_OK;
  free(f.best);
  *out_links = NULL;
  return lam_fail(LAM_RESOURCE_EXHAUSTED, WHO "no memory to look for a deadlock's circle");
}
