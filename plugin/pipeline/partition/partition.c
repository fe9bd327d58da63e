/* partition.c: which layers go to which stage, for the public structs: reads a desc into plain
 * numbers, has them solved, says what is proven of the result and why nothing fits.
 *
 * Invariant: the micro-batches in flight are the schedule's own; a rank's bytes are the most that
 * it holds at any moment.
 * Leaves one stage per rank to chain.c, several to search.c. */
#include "plugin/pipeline/partition/partition.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "plugin/core/struct.h"
#include "plugin/pipeline/schedule/schedule.h"

#define WHO "lam_partition_solve: "
#define LONGEST 1e12 /* ns, of one layer */
#define MOST_LAYERS (1 << 16)
#define MOST_CELLS (1 << 24) /* layers x stages */
#define MOST_BYTES 4e18      /* of all layers, all in flight: sums stay within int64 */

static const char proof_chain[] = "exact: one stage per rank",
                  proof_all[] = "exact: every cut was tried",
                  proof_bound[] = "exact: it meets the lower bound",
                  proof_none[] = "heuristic: ranks with several stages, too many cuts to try";

/* -- the desc -- */

static lam_status check_time(int i, const char *name, double ns) {
  if (ns >= 0 && ns <= LONGEST) return LAM_OK;
  return lam_fail(LAM_INVALID_ARGUMENT, WHO "layers[%d].%s is %g, expected 0 to %g ns", i, name, ns,
                  LONGEST);
}

static lam_status check_layers(const lam_partition_desc *d) {
  double bytes = 0;
  if (!d->layers || !d->n_layers || d->n_layers > MOST_LAYERS)
    return lam_fail(LAM_INVALID_ARGUMENT, WHO "layers is %s, n_layers %u, expected 1 to %d",
                    d->layers ? "there" : "NULL", d->n_layers, MOST_LAYERS);
  for (int i = 0; i < (int)d->n_layers; i++) {
    const lam_layer *l = &d->layers[i];
    LAM_TRY(check_time(i, "forward", l->forward));
    LAM_TRY(check_time(i, "backward_input", l->backward_input));
    LAM_TRY(check_time(i, "backward_weight", l->backward_weight));
    LAM_TRY(check_time(i, "cut_time", l->cut_time));
    bytes += (double)l->static_bytes + (double)l->cut_bytes +
             (double)l->activation_bytes * d->schedule->n_micro;
  }
  if (bytes > MOST_BYTES)
    return lam_fail(LAM_INVALID_ARGUMENT, WHO "layers hold %g bytes, expected at most %g", bytes,
                    MOST_BYTES);
  return LAM_OK;
}

static lam_status check_sizes(const lam_partition_desc *d) {
  const int n = (int)d->n_layers, stages = d->schedule->n_stages;
  const bool may_be_empty = d->flags & LAM_PARTITION_EMPTY_STAGES;
  if (d->flags & ~LAM_PARTITION_EMPTY_STAGES)
    return lam_fail(LAM_INVALID_ARGUMENT, WHO "flags is %#x, known is %#x", d->flags,
                    LAM_PARTITION_EMPTY_STAGES);
  if (n < stages && !may_be_empty)
    return lam_fail(LAM_INVALID_ARGUMENT,
                    WHO
                    "%d layers on %d stages: each stage needs a layer, unless "
                    "LAM_PARTITION_EMPTY_STAGES is set",
                    n, stages);
  if ((int64_t)(n + 1) * stages > MOST_CELLS)
    return lam_fail(LAM_INVALID_ARGUMENT, WHO "%d layers on %d stages: at most %d layers x stages",
                    n, stages, MOST_CELLS);
  return LAM_OK;
}

/* Ascending, and between two pinned stages a layer for each stage from the one to the other. */
static lam_status check_pinned(const lam_cut_problem *q) {
  const int least = lam_least_layers(q);
  int last = 0;
  if (q->pinned[0] != 0)
    return lam_fail(LAM_INVALID_ARGUMENT, WHO "pinned[0] is %d, expected 0 or -1", q->pinned[0]);
  for (int s = 1; s <= q->n_stages; s++) {
    if (q->pinned[s] < 0) continue;
    const int room = q->pinned[s] - q->pinned[last];
    if (q->pinned[s] > q->n_layers || room < least * (s - last))
      return lam_fail(LAM_INVALID_ARGUMENT,
                      WHO
                      "stages %d to %d are pinned to layers %d to %d of %d: expected at least "
                      "%d for %d stages",
                      last, s - 1, q->pinned[last], q->pinned[s] - 1, q->n_layers,
                      least * (s - last), s - last);
    last = s;
  }
  return LAM_OK;
}

/* -- the problem -- */

static void problem_finish(lam_cut_problem *q) {
  free(q->time);
  free(q->fixed);
  free(q->in_flight);
  free(q->cap);
  lam_held_finish(&q->moments);
}

/* Three blocks and the caps; the other arrays lie behind the first of their kind. */
static lam_status problem_alloc(lam_cut_problem *q) {
  const size_t n = (size_t)q->n_layers + 1, s = (size_t)q->n_stages;
  q->time = calloc(2 * n, sizeof *q->time);
  q->fixed = calloc(3 * n, sizeof *q->fixed);
  q->in_flight = calloc(3 * s + 1, sizeof *q->in_flight);
  q->cap = calloc((size_t)q->n_ranks, sizeof *q->cap);
  if (!q->time || !q->fixed || !q->in_flight || !q->cap)
    return problem_finish(q),
           lam_fail(LAM_RESOURCE_EXHAUSTED, WHO "no memory for %d layers", q->n_layers);
  q->cut_time = q->time + n;
  q->held = q->fixed + n, q->cut_bytes = q->fixed + 2 * n;
  q->rank_of = q->in_flight + s, q->pinned = q->in_flight + 2 * s;
  return LAM_OK;
}

static void add_layers(lam_cut_problem *q, const lam_layer *layers) {
  for (int i = 0; i < q->n_layers; i++) {
    const lam_layer *l = &layers[i];
    q->time[i + 1] = q->time[i] + (l->forward + l->backward_input + l->backward_weight);
    q->fixed[i + 1] = q->fixed[i] + (int64_t)l->static_bytes;
    q->held[i + 1] = q->held[i] + (int64_t)l->activation_bytes;
    q->cut_time[i + 1] = l->cut_time;
    q->cut_bytes[i + 1] = (int64_t)l->cut_bytes;
  }
}

/* The most micro-batches that each stage holds at a time. */
static void find_in_flight(lam_cut_problem *q) {
  const lam_held *h = &q->moments;
  for (int s = 0; s < q->n_stages; s++)
    for (int k = h->first[q->rank_of[s]]; k < h->first[q->rank_of[s] + 1]; k++) {
      const int32_t n = lam_held_moment(h, k)[h->chunk_of[s]];
      if (n > q->in_flight[s]) q->in_flight[s] = n;
    }
}

static lam_status add_schedule(lam_cut_problem *q, const lam_partition_desc *d) {
  const lam_schedule *s = d->schedule;
  LAM_TRY(lam_held_find(s, &q->moments));
  for (int i = 0; i < q->n_stages; i++) {
    q->rank_of[i] = s->rank_of_stage[i];
    q->pinned[i] = d->pinned ? d->pinned[i] : -1;
  }
  if (q->pinned[0] == -1) q->pinned[0] = 0;
  q->pinned[q->n_stages] = q->n_layers;
  find_in_flight(q);
  for (int r = 0; r < q->n_ranks; r++)
    q->cap[r] = d->caps && d->caps[r] < INT64_MAX ? (int64_t)d->caps[r] : INT64_MAX;
  return LAM_OK;
}

static lam_status problem_open(const lam_partition_desc *d, lam_cut_problem *q) {
  *q = (lam_cut_problem){.n_layers = (int)d->n_layers,
                         .n_stages = d->schedule->n_stages,
                         .n_ranks = d->schedule->n_ranks,
                         .n_micro = d->schedule->n_micro,
                         .may_be_empty = d->flags & LAM_PARTITION_EMPTY_STAGES};
  LAM_TRY(problem_alloc(q));
  add_layers(q, d->layers);
  lam_status status = add_schedule(q, d);
  if (status == LAM_OK) status = check_pinned(q);
  if (status != LAM_OK) problem_finish(q);
  return status;
}

/* -- the answer -- */

/* The stage of a rank that holds most. */
static int fullest_stage(const lam_cut_problem *q, const int32_t *first, int rank) {
  int fullest = -1;
  int64_t most = -1;
  for (int s = 0; s < q->n_stages; s++) {
    if (q->rank_of[s] != rank) continue;
    const int64_t bytes = lam_stage_bytes(q, s, first[s], first[s + 1]);
    if (bytes > most) most = bytes, fullest = s;
  }
  return fullest;
}

static lam_status fail_short(const lam_cut_problem *q, const int32_t *first, int rank,
                             int64_t missing, bool proven) {
  const int s = fullest_stage(q, first, rank);
  const char *verdict = proven ? "no cut fits" : "found no cut that fits";
  char layers[64] = "no layer";
  if (first[s] < first[s + 1])
    snprintf(layers, sizeof layers, "layers %d to %d", first[s], first[s + 1] - 1);
  return lam_fail(LAM_RESOURCE_EXHAUSTED,
                  WHO
                  "%s: stage %d (rank %d) binds: with %s, %d micro-batches in flight, rank %d "
                  "holds %lld bytes, its cap is %lld: %lld bytes are missing",
                  verdict, s, rank, layers, q->in_flight[s], rank,
                  (long long)(q->cap[rank] + missing), (long long)q->cap[rank], (long long)missing);
}

/* No cut's sum of times is below `sum`; the slowest rank has at least its share of it, and at least
 * the slowest layer. */
static double lower_bound(const lam_cut_problem *q, double sum) {
  double slowest = sum / q->n_ranks;
  for (int i = 0; i < q->n_layers; i++) slowest = fmax(slowest, q->time[i + 1] - q->time[i]);
  return sum + (q->n_micro - 1) * slowest;
}

static void write_answer(const lam_cut_problem *q, const int32_t *first, const lam_cut_score *score,
                         const lam_cut_ranks *ranks, double bound, const char *proof,
                         lam_partition *out) {
  out->proof = proof;
  out->proven = proof != proof_none;
  out->step = score->step, out->bottleneck = score->bottleneck;
  out->bound = out->proven ? score->step : bound;
  for (int s = 0; s < q->n_stages && out->stage_time; s++)
    out->stage_time[s] = lam_stage_time(q, s, first[s], first[s + 1]);
  for (int r = 0; r < q->n_ranks && out->rank_bytes; r++)
    out->rank_bytes[r] = (uint64_t)ranks->bytes[r];
  if (out->first_layer) memcpy(out->first_layer, first, ((size_t)q->n_stages + 1) * sizeof *first);
}

static lam_status solve_into(const lam_cut_problem *q, int32_t *first, lam_cut_ranks *ranks,
                             lam_partition *out) {
  const bool chain = q->moments.most_chunks == 1;
  bool all = chain;
  int64_t missing = 0;
  double sum = 0;
  LAM_TRY(lam_cut_chain(q, first, &sum, &missing));
  const double bound = missing ? 0 : lower_bound(q, sum) * (1 + 1e-12);
  if (!chain) LAM_TRY(lam_cut_search(q, bound, first, ranks, &all));
  const lam_cut_score score = lam_cut_judge(q, first, ranks);
  if (score.overflow) /* a stage that alone is above its rank's cap is proof as well */
    return fail_short(q, first, score.rank, score.overflow, all || missing);
  const char *proof = chain                 ? proof_chain
                      : all                 ? proof_all
                      : score.step <= bound ? proof_bound
                                            : proof_none;
  write_answer(q, first, &score, ranks, bound, proof, out);
  return LAM_OK;
}

static lam_status solve(const lam_cut_problem *q, lam_partition *out) {
  lam_cut_ranks ranks;
  LAM_TRY(lam_cut_ranks_open(q, &ranks));
  int32_t *first = malloc(((size_t)q->n_stages + 1) * sizeof *first);
  const lam_status status =
      first ? solve_into(q, first, &ranks, out)
            : lam_fail(LAM_RESOURCE_EXHAUSTED, WHO "no memory for %d stages", q->n_stages);
  free(first);
  lam_cut_ranks_close(&ranks);
  return status;
}

lam_status lam_partition_solve(const lam_partition_desc *desc, lam_partition *out) {
  LAM_TRY(lam_struct_check("lam_partition_solve", "desc", desc, sizeof *desc));
  LAM_TRY(lam_struct_check("lam_partition_solve", "out", out, sizeof *out));
  out->proven = 0, out->proof = "";
  out->step = out->bottleneck = out->bound = 0;
  if (!desc->schedule) return lam_fail(LAM_INVALID_ARGUMENT, WHO "desc.schedule is NULL");
  LAM_TRY(lam_schedule_check(desc->schedule, NULL));
  LAM_TRY(check_layers(desc));
  LAM_TRY(check_sizes(desc));
  lam_cut_problem q;
  LAM_TRY(problem_open(desc, &q));
  const lam_status status = solve(&q, out);
  problem_finish(&q);
  return status;
}
