/* schedule.c: the memory of a schedule: all ranks' lists in one array, filled rank by rank.
 * Invariant: after lam_schedule_seal, first[] is ascending and covers every action; a push
 * refuses what is out of range.
 * Leaves which lists make sense to build.c and check.c. */
#include "plugin/pipeline/schedule/schedule.h"

#include <stdio.h>
#include <stdlib.h>

static const char *const kind_names[LAM_N_KINDS] = {
    [LAM_KIND_F] = "F",
    [LAM_KIND_I] = "I",
    [LAM_KIND_W] = "W",
    [LAM_KIND_B] = "B",
    [LAM_KIND_REDUCE_GRAD] = "REDUCE_GRAD",
    [LAM_KIND_SEND_F] = "SEND_F",
    [LAM_KIND_RECV_F] = "RECV_F",
    [LAM_KIND_SEND_B] = "SEND_B",
    [LAM_KIND_RECV_B] = "RECV_B",
    [LAM_KIND_UNSHARD] = "UNSHARD",
    [LAM_KIND_RESHARD] = "RESHARD",
};

const char *lam_kind_name(int kind) {
  return kind >= 0 && kind < LAM_N_KINDS ? kind_names[kind] : NULL;
}

const char *lam_action_text(const lam_action *a, char buf[LAM_ACTION_BYTES]) {
  const int n = snprintf(buf, LAM_ACTION_BYTES, "%d%s", a->stage, lam_kind_name(a->kind));
  if (a->micro >= 0) snprintf(buf + n, LAM_ACTION_BYTES - (size_t)n, "%d", a->micro);
  return buf;
}

static lam_status check_sizes(int n_ranks, int n_stages, int n_micro) {
  if (n_ranks < 1 || n_stages < 1 || n_micro < 1)
    return lam_fail(LAM_INVALID_ARGUMENT,
                    "schedule: %d ranks, %d stages, %d micro-batches: at least 1 of each is needed",
                    n_ranks, n_stages, n_micro);
  if (n_ranks > LAM_SCHEDULE_MOST || n_stages > LAM_SCHEDULE_MOST || n_micro > LAM_SCHEDULE_MOST)
    return lam_fail(LAM_INVALID_ARGUMENT,
                    "schedule: %d ranks, %d stages, %d micro-batches: at most %d of each", n_ranks,
                    n_stages, n_micro, LAM_SCHEDULE_MOST);
  return LAM_OK;
}

lam_status lam_schedule_alloc(int n_ranks, int n_stages, int n_micro, lam_schedule **out) {
  *out = NULL;
  LAM_TRY(check_sizes(n_ranks, n_stages, n_micro));
  lam_schedule *s = calloc(1, sizeof *s);
  if (!s) goto fail;
  s->n_ranks = n_ranks, s->n_stages = n_stages, s->n_micro = n_micro;
  s->first = calloc((size_t)n_ranks + 1, sizeof *s->first);
  s->rank_of_stage = malloc((size_t)n_stages * sizeof *s->rank_of_stage);
  if (!s->first || !s->rank_of_stage) goto fail;
  for (int i = 0; i < n_stages; i++) s->rank_of_stage[i] = -1;
  *out = s;
  return LAM_OK;
fail:
  lam_schedule_destroy(s);
  return lam_fail(LAM_RESOURCE_EXHAUSTED, "schedule: no memory for %d ranks, %d stages", n_ranks,
                  n_stages);
}

void lam_schedule_destroy(lam_schedule *s) {
  if (!s) return;
  free(s->actions);
  free(s->first);
  free(s->rank_of_stage);
  free(s);
}

lam_status lam_schedule_reserve(lam_schedule *s, int64_t n_actions) {
  if (n_actions <= s->room) return LAM_OK;
  lam_action *grown = realloc(s->actions, (size_t)n_actions * sizeof *grown);
  if (!grown)
    return lam_fail(LAM_RESOURCE_EXHAUSTED, "schedule: no memory for %lld actions",
                    (long long)n_actions);
  s->actions = grown;
  s->room = n_actions;
  return LAM_OK;
}

/* Lists from the open rank up to `rank` end here; a list that is not open has no end yet. */
static void open_rank(lam_schedule *s, int rank) {
  const int64_t n = s->first[s->open + 1];
  while (s->open < rank) s->first[++s->open + 1] = n;
}

static bool in_range(int i, int n) { return i >= 0 && i < n; }

static lam_status append(lam_schedule *s, int rank, int kind, int stage, int micro) {
  if (!in_range(rank, s->n_ranks) || rank < s->open)
    return lam_fail(LAM_INVALID_ARGUMENT,
                    "schedule: push to rank %d, open is %d of %d: lists are filled in rank order",
                    rank, s->open, s->n_ranks);
  const bool stage_wide = lam_kind_is_stage_wide(kind);
  if (!lam_kind_name(kind) || !in_range(stage, s->n_stages) ||
      !(stage_wide ? micro == -1 : in_range(micro, s->n_micro)))
    return lam_fail(LAM_INVALID_ARGUMENT,
                    "schedule: push of kind %d, stage %d of %d, micro-batch %d of %d", kind, stage,
                    s->n_stages, micro, s->n_micro);
  if (rank > s->open) open_rank(s, rank);
  const int64_t n = s->first[rank + 1];
  if (n == s->room) LAM_TRY(lam_schedule_reserve(s, n ? 2 * n : 64));
  s->actions[n] = (lam_action){.stage = stage, .micro = micro, .kind = (int16_t)kind};
  s->first[rank + 1] = n + 1;
  if (s->rank_of_stage[stage] < 0) s->rank_of_stage[stage] = rank;
  s->lowered |= lam_kind_transfers(kind);
  s->stage_wide |= stage_wide;
  return LAM_OK;
}

lam_status lam_schedule_push(lam_schedule *s, int rank, int kind, int stage, int micro) {
  if (s->failed == LAM_OK) s->failed = append(s, rank, kind, stage, micro);
  return s->failed;
}

void lam_schedule_pair(lam_schedule *s) { s->actions[s->first[s->open + 1] - 2].paired = 1; }

lam_status lam_schedule_seal(lam_schedule *s) {
  open_rank(s, s->n_ranks - 1);
  return s->failed;
}

void lam_schedule_peaks(const lam_schedule *s, int32_t *out_peaks) {
  for (int r = 0; r < s->n_ranks; r++) {
    int32_t held = 0, peak = 0;
    for (int64_t i = s->first[r]; i < s->first[r + 1]; i++) {
      const int kind = s->actions[i].kind;
      held += (kind == LAM_KIND_F) - (kind == LAM_KIND_B || kind == LAM_KIND_W);
      if (held > peak) peak = held;
    }
    out_peaks[r] = peak;
  }
}
