/* search.c: cuts where a rank has several stages (loop and V placement): the bottleneck
 * and the cap are a rank's, over all of its stages, which no chain of stages sees.
 *
 * Few cuts are all tried. Of many, a cut is improved for as long as some run of neighbouring
 * boundaries, moved by one layer, makes it better: so a layer can go from any stage to any other,
 * those in between keeping their sizes. Then a few runs are moved by chance (the same in every
 * call) and it is improved again, over and over, and the best is kept.
 * Invariant: better means, in this order: fewer bytes above the caps, a shorter step, ranks that
 * are more even.
 * Leaves the first cut to chain.c, and what is proven of the result to partition.c. */
#include <stdlib.h>
#include <string.h>

#include "plugin/pipeline/partition/partition.h"

#define FEW 100000       /* cuts: a tenth of a second */
#define ENOUGH (1 << 26) /* stages looked at before a search ends: a quarter of a second */

typedef struct search {
  const lam_cut_problem *q;
  int32_t *first;       /* [n_stages + 1] */
  int32_t *best;        /* [n_stages + 1] */
  lam_cut_ranks *ranks; /* scratch */
  lam_cut_score score;  /* the one to beat */
  int64_t looked_at;    /* stages */
  uint64_t chance;
} search;

lam_status lam_cut_ranks_open(const lam_cut_problem *q, lam_cut_ranks *out) {
  const size_t n = (size_t)q->n_ranks;
  out->time = malloc(n * sizeof *out->time);
  out->bytes = malloc(n * sizeof *out->bytes);
  out->chunk = malloc(n * (size_t)q->moments.most_chunks * sizeof *out->chunk);
  if (out->time && out->bytes && out->chunk) return LAM_OK;
  lam_cut_ranks_close(out);
  return lam_fail(LAM_RESOURCE_EXHAUSTED, "lam_partition_solve: no memory for %d ranks",
                  q->n_ranks);
}

void lam_cut_ranks_close(lam_cut_ranks *ranks) {
  free(ranks->time);
  free(ranks->bytes);
  free(ranks->chunk);
}

static void add_up(const lam_cut_problem *q, const int32_t *first, lam_cut_ranks *out) {
  const int chunks = q->moments.most_chunks;
  memset(out->time, 0, (size_t)q->n_ranks * sizeof *out->time);
  memset(out->bytes, 0, (size_t)q->n_ranks * sizeof *out->bytes);
  memset(out->chunk, 0, (size_t)q->n_ranks * (size_t)chunks * sizeof *out->chunk);
  for (int s = 0; s < q->n_stages; s++) {
    const int r = q->rank_of[s];
    out->time[r] += lam_stage_time(q, s, first[s], first[s + 1]);
    out->bytes[r] += lam_fixed_bytes(q, s, first[s], first[s + 1]);
    out->chunk[r * chunks + q->moments.chunk_of[s]] = q->held[first[s + 1]] - q->held[first[s]];
  }
}

/* Of activations, at the moment at which they are most. */
static int64_t most_held(const lam_held *h, int r, const int64_t *chunk) {
  int64_t most = 0;
  for (int k = h->first[r]; k < h->first[r + 1]; k++) {
    int64_t bytes = 0;
    for (int c = 0; c < h->most_chunks; c++) bytes += lam_held_moment(h, k)[c] * chunk[c];
    if (bytes > most) most = bytes;
  }
  return most;
}

lam_cut_score lam_cut_judge(const lam_cut_problem *q, const int32_t *first, lam_cut_ranks *out) {
  lam_cut_score score = {0};
  add_up(q, first, out);
  for (int r = 0; r < q->n_ranks; r++) {
    out->bytes[r] += most_held(&q->moments, r, out->chunk + r * q->moments.most_chunks);
    if (out->bytes[r] > q->cap[r] && out->bytes[r] - q->cap[r] > score.overflow)
      score.overflow = out->bytes[r] - q->cap[r], score.rank = r;
    if (out->time[r] > score.bottleneck) score.bottleneck = out->time[r];
    score.sum += out->time[r];
    score.squares += out->time[r] * out->time[r];
  }
  score.step = score.sum + (q->n_micro - 1) * score.bottleneck;
  return score;
}

static bool is_better(const lam_cut_score *a, const lam_cut_score *b) {
  const double little = 1e-12; /* what sums of the same numbers in another order may differ by */
  if (a->overflow != b->overflow) return a->overflow < b->overflow;
  if (a->step < b->step * (1 - little)) return true;
  return a->step <= b->step * (1 + little) && a->squares < b->squares * (1 - little);
}

static bool judge_better(search *x) {
  const lam_cut_score score = lam_cut_judge(x->q, x->first, x->ranks);
  x->looked_at += x->q->n_stages;
  if (!is_better(&score, &x->score)) return false;
  x->score = score;
  return true;
}

/* -- all -- */

/* Ways to place the boundaries, at most FEW + 1: n - 1 choose S - 1, or with empty stages
 * n + S - 1 choose S - 1. Pins make it fewer. */
static int64_t count_cuts(const lam_cut_problem *q) {
  const int64_t k = q->n_stages - 1,
                n = q->may_be_empty ? q->n_layers + k : (int64_t)q->n_layers - 1;
  double count = 1;
  for (int64_t i = 1; i <= k && count <= FEW; i++) count = count * (double)(n - k + i) / (double)i;
  return count > FEW ? FEW + 1 : (int64_t)count;
}

/* Every stage from `stage` on leaves room for those behind it, so that no way ends before a cut. */
static void try_all(search *x, int stage) {
  const lam_cut_problem *q = x->q;
  const int least = lam_least_layers(q);
  if (stage == q->n_stages) {
    if (!judge_better(x)) return;
    memcpy(x->best, x->first, ((size_t)stage + 1) * sizeof *x->best);
    return;
  }
  const int32_t last = q->n_layers - least * (q->n_stages - stage);
  for (int32_t i = x->first[stage - 1] + least; i <= last; i++) {
    if (q->pinned[stage] >= 0 && q->pinned[stage] != i) continue;
    x->first[stage] = i;
    try_all(x, stage + 1);
  }
}

/* -- some -- */

static void shift(int32_t *first, int a, int b, int by) {
  for (int s = a; s <= b; s++) first[s] += by;
}

static bool has_room(const search *x, int a, int b, int by) {
  const int least = lam_least_layers(x->q);
  return x->first[a] + by - x->first[a - 1] >= least && x->first[b + 1] - x->first[b] - by >= least;
}

/* Moves the run of boundaries that makes the cut best; false where none makes it better. */
static bool move_best(search *x) {
  const lam_cut_problem *q = x->q;
  int best_a = 0, best_b = 0, best_by = 0;
  for (int a = 1; a < q->n_stages && x->looked_at < ENOUGH; a++)
    for (int b = a; b < q->n_stages && q->pinned[b] < 0; b++)
      for (int by = -1; by <= 1; by += 2) {
        if (!has_room(x, a, b, by)) continue;
        shift(x->first, a, b, by);
        if (judge_better(x)) best_a = a, best_b = b, best_by = by;
        shift(x->first, a, b, -by);
      }
  if (!best_by) return false;
  shift(x->first, best_a, best_b, best_by);
  return true;
}

static int pick(search *x, int n) { /* 0 .. n - 1 */
  x->chance = x->chance * 6364136223846793005u + 1442695040888963407u;
  return (int)((x->chance >> 33) % (uint64_t)n);
}

static void move_some(search *x) {
  const lam_cut_problem *q = x->q;
  for (int i = 2 + pick(x, 8); i > 0; i--) {
    const int a = 1 + pick(x, q->n_stages - 1), by = 2 * pick(x, 2) - 1;
    int b = a;
    if (q->pinned[a] >= 0) continue;
    for (int n = pick(x, q->n_stages - a); n > 0 && q->pinned[b + 1] < 0; n--) b++;
    if (has_room(x, a, b, by)) shift(x->first, a, b, by);
  }
}

static void improve(search *x) {
  while (move_best(x)) continue;
}

/* Leaves the best in x->best. */
static void improve_often(search *x, double bound) {
  const size_t bytes = ((size_t)x->q->n_stages + 1) * sizeof *x->best;
  improve(x);
  lam_cut_score best = x->score;
  memcpy(x->best, x->first, bytes);
  while (x->looked_at < ENOUGH && x->q->n_stages > 1 && (best.overflow || best.step > bound)) {
    memcpy(x->first, x->best, bytes);
    move_some(x);
    x->looked_at += x->q->n_stages;
    x->score = lam_cut_judge(x->q, x->first, x->ranks);
    improve(x);
    if (!is_better(&x->score, &best)) continue;
    best = x->score;
    memcpy(x->best, x->first, bytes);
  }
}

lam_status lam_cut_search(const lam_cut_problem *q, double bound, int32_t *first,
                          lam_cut_ranks *ranks, bool *out_all) {
  const size_t n = (size_t)q->n_stages + 1;
  search x = {.q = q, .first = first, .ranks = ranks};
  x.best = malloc(n * sizeof *x.best);
  if (!x.best)
    return lam_fail(LAM_RESOURCE_EXHAUSTED, "lam_partition_solve: no memory for a search");
  x.score = lam_cut_judge(q, first, ranks);
  memcpy(x.best, first, n * sizeof *first);
  *out_all = count_cuts(q) <= FEW;
  if (*out_all)
    try_all(&x, 1);
  else
    improve_often(&x, bound);
  memcpy(first, x.best, n * sizeof *first);
  free(x.best);
  return LAM_OK;
}
