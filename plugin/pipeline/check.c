/* check.c: can this table run? In this order: every stage on one rank; every (stage,
 * micro-batch) forward once and backward once (B, or I and W); in a lowered table every transfer
 * once, where an edge lies between ranks, sent and received in the order in which it is made;
 * and nobody waits for ever, even where a send is only over once it is received.
 * Invariant: time and memory grow with the number of actions, not with the numbers that stand in
 * them.
 * Leaves dependencies to walk.c, ring depths to ring.c. Positions in messages count from 0, as
 * ranks do. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "plugin/core/struct.h"
#include "plugin/pipeline/walk.h"

#define BIT LAM_KIND_BIT
#define WHO "lam_schedule_check: "

typedef struct place { /* of an action in the lists */
  int rank;
  int64_t position;
} place;

/* Linear: only for messages. position -1 where there is none. */
static place find_action(const lam_schedule *s, int stage, int micro, uint32_t kinds) {
  for (int r = 0; r < s->n_ranks; r++)
    for (int64_t i = s->first[r]; i < s->first[r + 1]; i++) {
      const lam_action *a = &s->actions[i];
      if (a->stage == stage && a->micro == micro && (BIT(a->kind) & kinds))
        return (place){r, i - s->first[r]};
    }
  return (place){-1, -1};
}

static lam_status fail_at(const lam_schedule *s, int rank, int64_t i, const char *why) {
  char text[LAM_ACTION_BYTES];
  return lam_fail(LAM_INVALID_ARGUMENT, WHO "rank %d, position %lld: %s %s", rank,
                  (long long)(i - s->first[rank]), lam_action_text(&s->actions[i], text), why);
}

static lam_status fail_twice(const lam_schedule *s, int rank, int64_t i, uint32_t kinds) {
  const lam_action *a = &s->actions[i];
  const place first = find_action(s, a->stage, a->micro, kinds);
  char why[96];
  snprintf(why, sizeof why, "is one too many: rank %d has %s at position %lld, expected each once",
           first.rank, BIT(a->kind) == kinds ? "the same" : "this backward",
           (long long)first.position);
  return fail_at(s, rank, i, why);
}

static lam_status fail_two_ranks(const lam_schedule *s, int rank, int64_t i) {
  char why[96];
  snprintf(why, sizeof why, "is here, but stage %d is rank %d's: expected one rank per stage",
           s->actions[i].stage, s->rank_of_stage[s->actions[i].stage]);
  return fail_at(s, rank, i, why);
}

/* Kinds of which one (stage, micro-batch) can have only one: B excludes I and W, and the
 * reverse. */
static uint32_t excluded_by(int kind) {
  if (kind == LAM_KIND_B) return BIT(LAM_KIND_B) | BIT(LAM_KIND_I) | BIT(LAM_KIND_W);
  if (kind == LAM_KIND_I || kind == LAM_KIND_W) return BIT(kind) | BIT(LAM_KIND_B);
  return BIT(kind);
}

/* Fills seen[] (kinds per pair); pairs past n_seen are not looked at, see check_pairs. */
static lam_status tally(const lam_schedule *s, uint8_t *seen, size_t n_seen) {
  for (int r = 0; r < s->n_ranks; r++)
    for (int64_t i = s->first[r]; i < s->first[r + 1]; i++) {
      const lam_action *a = &s->actions[i];
      const size_t pair = lam_pair_index(s, a->stage, a->micro);
      if (s->rank_of_stage[a->stage] != r) return fail_two_ranks(s, r, i);
      if (pair >= n_seen) continue;
      if (seen[pair] & excluded_by(a->kind))
        return fail_twice(s, r, i, seen[pair] & excluded_by(a->kind));
      seen[pair] |= (uint8_t)BIT(a->kind);
    }
  return LAM_OK;
}

/* The transfers that a lowered table must have for every micro-batch of a stage. */
static uint32_t transfers_of(const lam_schedule *s, int stage) {
  uint32_t kinds = 0;
  if (!s->lowered) return 0;
  if (stage > 0 && lam_edge_crosses(s, stage - 1))
    kinds |= BIT(LAM_KIND_RECV_F) | BIT(LAM_KIND_SEND_B);
  if (stage < s->n_stages - 1 && lam_edge_crosses(s, stage))
    kinds |= BIT(LAM_KIND_SEND_F) | BIT(LAM_KIND_RECV_B);
  return kinds;
}

static int first_kind(uint32_t kinds) {
  int kind = 0;
  while (!lam_kind_name(kind) || !(kinds & BIT(kind))) kind++;
  return kind;
}

static lam_status fail_missing(const lam_schedule *s, int stage, int micro, uint32_t missing) {
  const int rank = s->rank_of_stage[stage];
  char where[32] = "no rank";
  if (rank >= 0) snprintf(where, sizeof where, "rank %d", rank);
  if (!(missing & BIT(LAM_KIND_F)) && (missing & LAM_KINDS_BACKWARD))
    return lam_fail(LAM_INVALID_ARGUMENT,
                    WHO "%s: %dB%d is missing: expected B, or I and W, for every micro-batch",
                    where, stage, micro);
  const lam_action a = {.stage = stage, .micro = micro, .kind = (int16_t)first_kind(missing)};
  char text[LAM_ACTION_BYTES];
  return lam_fail(LAM_INVALID_ARGUMENT,
                  WHO "%s: %s is missing: expected once for every micro-batch of the %d", where,
                  lam_action_text(&a, text), s->n_micro);
}

static lam_status fail_needless(const lam_schedule *s, int stage, int micro, uint32_t kinds) {
  const place at = find_action(s, stage, micro, kinds);
  return fail_at(s, at.rank, s->first[at.rank] + at.position, "crosses no edge between two ranks");
}

/* Of one pair: what is there against what must be. */
static lam_status check_pair(const lam_schedule *s, int stage, int micro, uint32_t seen) {
  const uint32_t transfers = transfers_of(s, stage), split = BIT(LAM_KIND_I) | BIT(LAM_KIND_W);
  const uint32_t backward = seen & split ? split : BIT(LAM_KIND_B);
  const uint32_t missing = (BIT(LAM_KIND_F) | backward | transfers) & ~seen;
  if (missing) return fail_missing(s, stage, micro, missing);
  const uint32_t needless = seen & ~(BIT(LAM_KIND_F) | backward | transfers);
  return needless ? fail_needless(s, stage, micro, needless) : LAM_OK;
}

/* A table with fewer actions than pairs lacks one among its first n_actions + 1 pairs: a huge
 * number in a short text is found missing without memory for all pairs up to it. */
static lam_status check_pairs(const lam_schedule *s) {
  const size_t n_pairs = (size_t)s->n_stages * (size_t)s->n_micro,
               enough = (size_t)lam_schedule_n_actions(s) + 1;
  const size_t n = n_pairs < enough ? n_pairs : enough;
  uint8_t *seen = calloc(n, 1);
  if (!seen) return lam_fail(LAM_RESOURCE_EXHAUSTED, WHO "no memory for %zu pairs", n);
  lam_status status = tally(s, seen, n);
  for (size_t i = 0; i < n && status == LAM_OK; i++)
    status = check_pair(s, (int)(i / (size_t)s->n_micro), (int)(i % (size_t)s->n_micro), seen[i]);
  free(seen);
  return status;
}

typedef struct channel {
  int8_t flow, maker; /* maker: the stage whose output it carries, relative to the action's */
} channel;
static const channel channels[] = {/* from LAM_KIND_SEND_F on */
                                   {LAM_FLOW_F, 0},
                                   {LAM_FLOW_F, -1},
                                   {LAM_FLOW_B, 0},
                                   {LAM_FLOW_B, 1}};

static lam_status fail_order(const lam_schedule *s, int rank, int64_t i, int expected, int maker) {
  char why[96];
  snprintf(why, sizeof why, "is out of order: micro-batch %d is the next that stage %d makes",
           expected, maker);
  return fail_at(s, rank, i, why);
}

/* The k-th send and the k-th receive of a flow over an edge are the k-th output made. */
static lam_status compare_order(const lam_schedule *s, const int32_t *order, int32_t *passed) {
  for (int r = 0; r < s->n_ranks; r++)
    for (int64_t i = s->first[r]; i < s->first[r + 1]; i++) {
      const lam_action *a = &s->actions[i];
      if (a->kind < LAM_KIND_SEND_F) continue;
      const int c = a->kind - LAM_KIND_SEND_F, maker = a->stage + channels[c].maker;
      const int k = passed[4 * a->stage + c]++;
      const int expected = lam_order_of(s, order, channels[c].flow, maker)[k];
      if (a->micro != expected) return fail_order(s, r, i, expected, maker);
    }
  return LAM_OK;
}

static lam_status check_channels(const lam_schedule *s) {
  int32_t *order = NULL, *passed = calloc((size_t)s->n_stages * 4, sizeof *passed);
  lam_status status = LAM_OK;
  if (!passed)
    status = lam_fail(LAM_RESOURCE_EXHAUSTED, WHO "no memory for %d stages", s->n_stages);
  if (status == LAM_OK) status = lam_output_order(s, &order);
  if (status == LAM_OK) status = compare_order(s, order, passed);
  free(passed);
  free(order);
  return status;
}

/* What a rank that came to a stop stands at: the half of a pair that misses something, and the
 * need. */
typedef struct block {
  int64_t i;
  lam_need need;
} block;

static block block_of(const lam_walk *w, int rank) {
  const int64_t at = w->at[rank];
  lam_need needs[3];
  for (int64_t i = at; i <= at + w->s->actions[at].paired; i++) {
    const int n = lam_action_needs(w->s, &w->s->actions[i], needs);
    for (int k = 0; k < n; k++)
      if (!lam_walk_has(w, &needs[k], w->s->actions[i].micro)) return (block){i, needs[k]};
  }
  return (block){at, {0}}; /* not reached: a rank only stops where something is missing */
}

/* From any rank that is stuck, whom it waits for, and so on, leads into the circle. */
static int rank_in_circle(const lam_walk *w) {
  int rank = 0;
  while (w->at[rank] == w->s->first[rank + 1]) rank++;
  for (int hops = 0; hops < w->s->n_ranks; hops++)
    rank = w->s->rank_of_stage[block_of(w, rank).need.stage];
  return rank;
}

/* "rank 0, position 2: 0B0 waits for 1B0 (rank 1, position 4); rank 1, position 0: ..." around
 * the circle. */
static lam_status fail_deadlock(const lam_walk *w) {
  const lam_schedule *s = w->s;
  const int start = rank_in_circle(w);
  char text[LAM_MESSAGE_BYTES - 64] = "", a[LAM_ACTION_BYTES], b[LAM_ACTION_BYTES];
  int rank = start;
  do {
    const block stop = block_of(w, rank);
    const lam_action *stuck = &s->actions[stop.i];
    const place at = find_action(s, stop.need.stage, stuck->micro, stop.need.kinds);
    const size_t n = strlen(text);
    snprintf(text + n, sizeof text - n,
             "%srank %d, position %lld: %s waits for %s (rank %d, position %lld)", n ? "; " : "",
             rank, (long long)(stop.i - s->first[rank]), lam_action_text(stuck, a),
             lam_action_text(&s->actions[s->first[at.rank] + at.position], b), at.rank,
             (long long)at.position);
    rank = at.rank;
  } while (rank != start && strlen(text) < sizeof text - 96);
  return lam_fail(LAM_INVALID_ARGUMENT, WHO "deadlock: %s%s", text, rank == start ? "" : "; ...");
}

static int32_t largest(const int32_t *list, size_t n) {
  int32_t top = 0;
  for (size_t i = 0; i < n; i++)
    if (list[i] > top) top = list[i];
  return top;
}

static uint64_t count_transfers(const lam_schedule *s) {
  uint64_t crossing = 0;
  for (int e = 0; e + 1 < s->n_stages; e++) crossing += lam_edge_crosses(s, e);
  return 2 * crossing * (uint64_t)s->n_micro;
}

static lam_status describe(const lam_walk *w, lam_schedule_info *out) {
  const lam_schedule *s = w->s;
  const size_t n_depths = (size_t)LAM_FLOWS * (size_t)s->n_stages, n_ranks = (size_t)s->n_ranks;
  int32_t *numbers = malloc((n_depths > n_ranks ? n_depths : n_ranks) * sizeof *numbers);
  if (!numbers) return lam_fail(LAM_RESOURCE_EXHAUSTED, WHO "no memory for %d stages", s->n_stages);
  const lam_status status = lam_ring_depths(w, false, numbers);
  if (status == LAM_OK) {
    out->n_ranks = s->n_ranks, out->n_stages = s->n_stages, out->n_micro = s->n_micro;
    out->ring_depth = largest(numbers, n_depths);
    lam_schedule_peaks(s, numbers);
    out->peak_in_flight = largest(numbers, n_ranks);
    out->n_transfers = count_transfers(s);
    out->n_actions = (uint64_t)lam_schedule_n_actions(s) - (s->lowered ? 2 * out->n_transfers : 0);
  }
  free(numbers);
  return status;
}

lam_status lam_check_walk(const lam_schedule *s, const lam_costs *costs, lam_walk *out) {
  if (!s) return lam_fail(LAM_INVALID_ARGUMENT, WHO "s is NULL");
  LAM_TRY(check_pairs(s));
  if (s->lowered) LAM_TRY(check_channels(s));
  LAM_TRY(lam_walk_run(s, costs, out));
  if (lam_walk_is_complete(out)) return LAM_OK;
  const lam_status status = fail_deadlock(out);
  lam_walk_finish(out);
  return status;
}

lam_status lam_schedule_check(const lam_schedule *s, lam_schedule_info *out_info) {
  lam_schedule_info info = LAM_SCHEDULE_INFO_INIT;
  if (out_info) {
    LAM_TRY(lam_struct_check("lam_schedule_check", "out_info", out_info, sizeof info));
    info.struct_size = out_info->struct_size;
    *out_info = info;
  }
  lam_walk w;
  LAM_TRY(lam_check_walk(s, NULL, &w));
  const lam_status status = out_info ? describe(&w, out_info) : LAM_OK;
  lam_walk_finish(&w);
  return status;
}
