/* check.c: can this table run, and what does it need? One walk with unit costs proves it: every
 * list comes to its end, even where a send is only over once it is received, and on the way every
 * (stage, micro-batch) did all it must, once, on its stage's rank. In a lowered table transfers
 * also stand in the order in which outputs are made; REDUCE_GRAD, UNSHARD and RESHARD where they
 * can.
 * Invariant: time and memory grow with the number of actions, not with the numbers that stand in
 * them.
 * Leaves what is wrong with a table to fault.c, dependencies to walk.c, ring depths to ring.c. */
#include <stdlib.h>

#include "plugin/core/struct.h"
#include "plugin/pipeline/schedule/walk.h"

#define WHO "lam_schedule_check: "

/* Every pair has a forward and a backward: with fewer actions one is missing, and no memory is
 * taken for a huge number in a short table. */
static bool has_enough_actions(const lam_schedule *s) {
  const int64_t pairs = (int64_t)s->n_stages * s->n_micro;
  return 2 * pairs <= lam_schedule_n_actions(s);
}

lam_status lam_check_walk(const lam_schedule *s, const lam_costs *costs, lam_noted noted,
                          lam_walk *out) {
  if (!s) return lam_fail(LAM_INVALID_ARGUMENT, WHO "s is NULL");
  if (!has_enough_actions(s)) return lam_schedule_explain(s);
  LAM_TRY(lam_walk_run(s, costs, noted, out));
  lam_status status = LAM_OK;
  if (!lam_walk_is_complete(out) || !lam_walk_is_whole(out)) status = lam_schedule_explain(s);
  if (status == LAM_OK && s->lowered) status = lam_check_channels(s);
  if (status == LAM_OK && s->stage_wide) status = lam_check_stage_wide(s);
  if (status != LAM_OK) lam_walk_finish(out);
  return status;
}

/* -- what check tells -- */

static int32_t largest(const int32_t *list, size_t n) {
  int32_t top = 0;
  for (size_t i = 0; i < n; i++)
    if (list[i] > top) top = list[i];
  return top;
}

/* As many as fit in the caller's room; *room becomes how many there are. */
static void copy_out(int32_t *to, uint64_t *room, const int32_t *from, size_t n) {
  for (size_t i = 0; to && i < n && i < *room; i++) to[i] = from[i];
  *room = n;
}

/* By sending stage [LAM_FLOWS][n_stages] -> by edge [n_stages - 1][activations, gradients]. */
static void copy_depths(const lam_schedule *s, const int32_t *depths, lam_schedule_info *out) {
  for (int e = 0; e + 1 < s->n_stages; e++) {
    const int32_t of_edge[LAM_FLOWS] = {depths[e], depths[s->n_stages + e + 1]};
    for (size_t k = 0; k < LAM_FLOWS; k++) {
      const size_t i = LAM_FLOWS * (size_t)e + k;
      if (out->ring_depths && i < out->n_ring_depths) out->ring_depths[i] = of_edge[k];
    }
  }
  out->n_ring_depths = LAM_FLOWS * ((uint64_t)s->n_stages - 1);
}

static uint64_t count_kind(const lam_schedule *s, bool (*is)(int kind)) {
  uint64_t n = 0;
  for (int64_t i = 0; i < lam_schedule_n_actions(s); i++) n += is(s->actions[i].kind);
  return n;
}

static uint64_t count_transfers(const lam_schedule *s) {
  uint64_t crossing = 0;
  for (int e = 0; e + 1 < s->n_stages; e++) crossing += lam_edge_crosses(s, e);
  return 2 * crossing * (uint64_t)s->n_micro;
}

static void describe_sizes(const lam_schedule *s, lam_schedule_info *out) {
  out->n_ranks = s->n_ranks, out->n_stages = s->n_stages, out->n_micro = s->n_micro;
  out->n_transfers = count_transfers(s);
  out->n_actions = (uint64_t)lam_schedule_n_actions(s);
  if (s->lowered) out->n_actions -= count_kind(s, lam_kind_transfers);
}

static lam_status describe(const lam_walk *w, lam_schedule_info *out) {
  const lam_schedule *s = w->s;
  const size_t n_depths = (size_t)LAM_FLOWS * (size_t)s->n_stages, n_ranks = (size_t)s->n_ranks;
  int32_t *numbers = malloc((n_depths > n_ranks ? n_depths : n_ranks) * sizeof *numbers);
  if (!numbers) return lam_fail(LAM_RESOURCE_EXHAUSTED, WHO "no memory for %d stages", s->n_stages);
  describe_sizes(s, out);
  lam_ring_depths(w, numbers);
  out->ring_depth = largest(numbers, n_depths);
  copy_depths(s, numbers, out);
  lam_schedule_peaks(s, numbers);
  out->peak_in_flight = largest(numbers, n_ranks);
  copy_out(out->peaks, &out->n_peaks, numbers, n_ranks);
  free(numbers);
  lam_simulated times = LAM_SIMULATED_INIT;
  lam_walk_measure(w, &times);
  out->makespan = times.makespan, out->bubble = times.bubble;
  out->rank_bubble = times.rank_bubble;
  return LAM_OK;
}

lam_status lam_schedule_check(const lam_schedule *s, lam_schedule_info *out_info) {
  lam_schedule_info info = LAM_SCHEDULE_INFO_INIT;
  if (out_info) {
    LAM_TRY(lam_struct_check("lam_schedule_check", "out_info", out_info, sizeof info));
    info.struct_size = out_info->struct_size;
    info.peaks = out_info->peaks, info.ring_depths = out_info->ring_depths;
    const uint64_t rooms[2] = {out_info->n_peaks, out_info->n_ring_depths};
    *out_info = info;
    info.n_peaks = rooms[0], info.n_ring_depths = rooms[1];
  }
  lam_walk w;
  LAM_TRY(lam_check_walk(s, NULL, out_info ? LAM_NOTED_RINGS : LAM_NOTED_NOTHING, &w));
  const lam_status status = out_info ? describe(&w, &info) : LAM_OK;
  if (out_info && status == LAM_OK) *out_info = info;
  lam_walk_finish(&w);
  return status;
}
