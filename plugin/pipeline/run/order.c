/* order.c: what a table makes of the stages it was given: the order in which each sums its
 * weight gradients, and what runs otherwise than the table says, because a stage cannot.
 *
 * Invariant: a pipeline without LAM_PIPELINE_ANY_ORDER sums every stage's weight gradients in
 * micro-batch order, as one process does, whatever its schedule.
 * Leaves whether the table can run to schedule/check.c, real times to report.c. */
#include <stdlib.h>

#include "plugin/pipeline/run/runtime.h"

/* -- the order of sums -- */

/* A stage that cannot split its backward adds all of it in I, and nothing in W. */
static bool adds_weight_gradient(const lam_pipe_stage *s, const lam_action *a) {
  return a->stage == s->number &&
         (a->kind == LAM_KIND_B || a->kind == (lam_stage_splits(s) ? LAM_KIND_W : LAM_KIND_I));
}

static lam_status check_stage_order(const lam_pipeline *p, const lam_pipe_stage *s) {
  char text[LAM_ACTION_BYTES];
  int next = 0;
  for (int64_t i = 0; i < p->n_actions; i++) {
    const lam_action *a = &p->actions[i];
    if (!adds_weight_gradient(s, a)) continue;
    if (a->micro != next)
      return lam_fail(LAM_FAILED_PRECONDITION,
                      "lam_pipeline_create: %s adds to the weight gradients of stage %d before "
                      "micro-batch %d does: expected micro-batches in order, so that sums are "
                      "those of one process, or LAM_PIPELINE_ANY_ORDER",
                      lam_action_text(a, text), s->number, next);
    next++;
  }
  return LAM_OK;
}

/* -- fall-backs -- */

static double bubble_of(const lam_schedule *s, const double *costs) {
  const size_t n = (size_t)s->n_stages;
  lam_costs c = LAM_COSTS_INIT;
  lam_simulated out = LAM_SIMULATED_INIT;
  c.n_stages = (uint32_t)n;
  c.forward = costs, c.backward_input = costs + n, c.backward_weight = costs + 2 * n;
  return lam_schedule_simulate(s, &c, &out) ? 0 : out.bubble;
}

/* The bubble with F, I and W of 1 each, and with what stages that cannot split make of it, on
 * whatever rank: an I of 2, and nothing for W. Both 0 where there is no memory. */
static void lost_bubble(const lam_pipeline *p, const uint8_t *traits, double *out_meant,
                        double *out_is) {
  const size_t n = (size_t)p->schedule->n_stages;
  double *costs = malloc(3 * n * sizeof *costs);
  *out_meant = *out_is = 0;
  if (!costs) return;
  for (size_t i = 0; i < 3 * n; i++) costs[i] = 1;
  *out_meant = bubble_of(p->schedule, costs);
  for (size_t i = 0; i < n; i++)
    if (!(traits[i] & LAM_TRAIT_SPLITS)) costs[n + i] = 2, costs[2 * n + i] = 0;
  *out_is = bubble_of(p->schedule, costs);
  free(costs);
}

static void tell_of_split(const lam_pipeline *p, int stage, const uint8_t *traits) {
  double meant, is;
  lost_bubble(p, traits, &meant, &is);
  lam_context_log(p->ctx, 1,
                  "pipeline, rank %d: stage %d cannot split its backward, as the schedule would: "
                  "I does all of it, W nothing; with F, I and W of equal length the bubble is "
                  "%.1f %% instead of %.1f %%",
                  p->rank, stage, 100 * is, 100 * meant);
}

static void tell_of_pairs(const lam_pipeline *p, int stage) {
  lam_context_log(p->ctx, 1,
                  "pipeline, rank %d: stage %d has no forward_backward: its fused pairs run one "
                  "after the other",
                  p->rank, stage);
}

static const lam_pipe_stage *stage_of(const lam_pipeline *p, const lam_action *a) {
  return &p->stages[p->stage_index[a->stage]];
}

/* Each once, of the first stage that it befalls. */
void lam_pipeline_tell_of_fallbacks(const lam_pipeline *p, const uint8_t *traits) {
  bool split = false, pairs = false;
  for (int64_t i = 0; i < p->n_actions && !p->forward_only; i++) {
    const lam_action *a = &p->actions[i];
    if (!split && a->kind == LAM_KIND_W && !lam_stage_splits(stage_of(p, a)))
      split = true, tell_of_split(p, a->stage, traits);
    if (!pairs && a->paired && !stage_of(p, a)->is.forward_backward)
      pairs = true, tell_of_pairs(p, a->stage);
  }
}

lam_status lam_pipeline_fit(lam_pipeline *p, uint32_t flags) {
  if (p->forward_only) return LAM_OK;
  for (int i = 0; i < p->n_stages && !(flags & LAM_PIPELINE_ANY_ORDER); i++)
    LAM_TRY(check_stage_order(p, &p->stages[i]));
  for (int64_t i = 0; i < p->n_actions; i++)
    if (p->actions[i].kind == LAM_KIND_REDUCE_GRAD)
      p->stages[p->stage_index[p->actions[i].stage]].reduces_by_list = true;
  return LAM_OK;
}
