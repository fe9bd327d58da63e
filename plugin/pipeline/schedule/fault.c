/* fault.c: says what is wrong with a table that cannot run, and shows the shortest piece of it
 * that has the fault, "[rank 0: 0B0 0F1; rank 1: 1F1 1B0]". Looked for in this order: every stage
 * on one rank; every (stage, micro-batch) forward once and backward once (B, or I and W), in a
 * lowered table every transfer once, where an edge lies between ranks; transfers in the order in
 * which outputs are made; a deadlock.
 * Invariant: time and memory grow with the number of actions, not with the numbers that stand in
 * them.
 * Leaves the verdict to check.c, circles to circle.c. Positions in messages count from 0, as ranks
 * do. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "plugin/pipeline/schedule/circle.h"
#include "plugin/pipeline/schedule/sink.h"

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

static int64_t index_of(const lam_schedule *s, int stage, int micro, uint32_t kinds) {
  const place at = find_action(s, stage, micro, kinds);
  return s->first[at.rank] + at.position;
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

/* Fills seen[] (kinds per pair); pairs past n_seen are not looked at, see check_pairs. */
static lam_status tally(const lam_schedule *s, uint8_t *seen, size_t n_seen) {
  for (int r = 0; r < s->n_ranks; r++)
    for (int64_t i = s->first[r]; i < s->first[r + 1]; i++) {
      const lam_action *a = &s->actions[i];
      if (s->rank_of_stage[a->stage] != r) return fail_two_ranks(s, r, i);
      if (a->micro < 0) continue;
      const size_t pair = lam_pair_index(s, a->stage, a->micro);
      if (pair >= n_seen) continue;
      const uint32_t clash = seen[pair] & lam_kinds_excluded_by(a->kind);
      if (clash) return fail_twice(s, r, i, clash);
      seen[pair] |= (uint8_t)BIT(a->kind);
    }
  return LAM_OK;
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
  const uint32_t transfers = lam_transfers_of(s, stage), split = BIT(LAM_KIND_I) | BIT(LAM_KIND_W);
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

/* With the two transfers of the piece that shows it, and the two actions that make the outputs. */
static lam_status fail_order(const lam_schedule *s, int rank, int64_t i, int expected, int maker) {
  const lam_action *a = &s->actions[i];
  const uint32_t makers =
      channels[a->kind - LAM_KIND_SEND_F].flow == LAM_FLOW_F ? BIT(LAM_KIND_F) : LAM_KINDS_BACKWARD;
  const place made = find_action(s, maker, expected, makers);
  const lam_action *first = &s->actions[s->first[made.rank] + made.position];
  lam_action then = *first, right = *a;
  char why[256], apart[32] = " ", text[4][LAM_ACTION_BYTES];
  if (made.rank != rank) snprintf(apart, sizeof apart, "; rank %d: ", rank);
  then.micro = a->micro, right.micro = expected;
  then.kind = s->actions[index_of(s, maker, a->micro, makers)].kind;
  snprintf(
      why, sizeof why,
      "is out of order: micro-batch %d is the next that stage %d makes [rank %d: %s %s%s%s %s]",
      expected, maker, made.rank, lam_action_text(first, text[0]), lam_action_text(&then, text[1]),
      apart, lam_action_text(a, text[2]), lam_action_text(&right, text[3]));
  return fail_at(s, rank, i, why);
}

/* The k-th send and the k-th receive of a flow over an edge are the k-th output made. */
static lam_status compare_order(const lam_schedule *s, const int32_t *order, int32_t *passed) {
  for (int r = 0; r < s->n_ranks; r++)
    for (int64_t i = s->first[r]; i < s->first[r + 1]; i++) {
      const lam_action *a = &s->actions[i];
      if (!lam_kind_transfers(a->kind)) continue;
      const int c = a->kind - LAM_KIND_SEND_F, maker = a->stage + channels[c].maker;
      const int k = passed[4 * a->stage + c]++;
      const int expected = lam_order_of(s, order, channels[c].flow, maker)[k];
      if (a->micro != expected) return fail_order(s, r, i, expected, maker);
    }
  return LAM_OK;
}

lam_status lam_check_channels(const lam_schedule *s) {
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

/* -- whole stages -- */

typedef struct stage_state {
  int32_t weights_left; /* backwards that make weight gradients */
  bool sharded, is_whole, reduced;
} stage_state;

static const char *fault_of(const lam_action *a, const stage_state *st) {
  switch (a->kind) {
    case LAM_KIND_REDUCE_GRAD:
      if (st->reduced) return "is one too many: expected once for the stage";
      return st->weights_left ? "is too early: a weight gradient of the stage comes after it"
                              : NULL;
    case LAM_KIND_UNSHARD:
      return st->is_whole ? "is one too many: the stage's last one has no RESHARD yet" : NULL;
    case LAM_KIND_RESHARD:
      return st->is_whole ? NULL : "has no UNSHARD before it";
    default:
      return lam_kind_computes(a->kind) && st->sharded && !st->is_whole
                 ? "computes while the stage is sharded: expected between UNSHARD and RESHARD"
                 : NULL;
  }
}

static void note_kind(const lam_action *a, stage_state *st) {
  st->weights_left -= a->kind == LAM_KIND_B || a->kind == LAM_KIND_W;
  st->reduced |= a->kind == LAM_KIND_REDUCE_GRAD;
  if (a->kind == LAM_KIND_UNSHARD) st->is_whole = true;
  if (a->kind == LAM_KIND_RESHARD) st->is_whole = false;
}

lam_status lam_check_stage_wide(const lam_schedule *s) {
  stage_state *states = calloc((size_t)s->n_stages, sizeof *states);
  if (!states) return lam_fail(LAM_RESOURCE_EXHAUSTED, WHO "no memory for %d stages", s->n_stages);
  for (int stage = 0; stage < s->n_stages; stage++) states[stage].weights_left = s->n_micro;
  for (int64_t i = 0; i < lam_schedule_n_actions(s); i++)
    states[s->actions[i].stage].sharded |= s->actions[i].kind == LAM_KIND_UNSHARD;
  lam_status status = LAM_OK;
  for (int r = 0; r < s->n_ranks && status == LAM_OK; r++)
    for (int64_t i = s->first[r]; i < s->first[r + 1] && status == LAM_OK; i++) {
      const char *why = fault_of(&s->actions[i], &states[s->actions[i].stage]);
      if (why) status = fail_at(s, r, i, why);
      note_kind(&s->actions[i], &states[s->actions[i].stage]);
    }
  free(states);
  return status;
}

/* -- deadlocks -- */

static place place_of(const lam_schedule *s, int64_t i) {
  int rank = 0;
  while (s->first[rank + 1] <= i) rank++;
  return (place){rank, i - s->first[rank]};
}

/* "rank 0, position 2: 0B0 waits for 1B0 (rank 1, position 4)" */
static void tell_link(const lam_schedule *s, const lam_link *l, lam_sink *out) {
  char a[LAM_ACTION_BYTES], b[LAM_ACTION_BYTES];
  const place stuck = place_of(s, l->stuck), needed = place_of(s, l->needed);
  lam_sink_printf(out, "rank %d, position %lld: %s waits for %s (rank %d, position %lld)",
                  stuck.rank, (long long)stuck.position, lam_action_text(&s->actions[l->stuck], a),
                  lam_action_text(&s->actions[l->needed], b), needed.rank,
                  (long long)needed.position);
}

/* "[rank 0: 0B0 0F1; rank 1: 1F1 1B0]": of each rank in the circle what stops it and what is
 * missed of it, in list order. */
static void show_piece(const lam_schedule *s, const lam_link *links, int n, lam_sink *out) {
  char text[LAM_ACTION_BYTES];
  for (int k = 0; k < n; k++) {
    const int64_t stuck = links[k].stuck, missed = links[(k + n - 1) % n].needed;
    const int64_t ends[2] = {stuck < missed ? stuck : missed, stuck < missed ? missed : stuck};
    const bool fused = ends[1] == ends[0] + 1 && s->actions[ends[0]].paired;
    lam_sink_printf(out, "%srank %d: %s%s", k ? "; " : " [", place_of(s, stuck).rank,
                    fused ? "(" : "", lam_action_text(&s->actions[ends[0]], text));
    if (ends[1] != ends[0])
      lam_sink_printf(out, "%s%s%s", fused ? ";" : " ", lam_action_text(&s->actions[ends[1]], text),
                      fused ? ")" : "");
  }
  lam_sink_text(out, "]");
}

/* The circle, as far as it fits in a message; the piece, where all of it fits. */
static lam_status fail_deadlock(const lam_walk *w) {
  lam_link *links = NULL;
  int n = 0, told = 0;
  LAM_TRY(lam_shortest_circle(w, &links, &n));
  char text[LAM_MESSAGE_BYTES - 64], piece[LAM_MESSAGE_BYTES];
  lam_sink out = lam_sink_open(text, sizeof text), shown = lam_sink_open(piece, sizeof piece);
  for (; told < n && out.n < sizeof text - 96; told++) {
    if (told) lam_sink_text(&out, "; ");
    tell_link(w->s, &links[told], &out);
  }
  if (told < n) lam_sink_text(&out, "; ...");
  show_piece(w->s, links, n, &shown);
  free(links);
  const bool fits = out.n + shown.n < sizeof text;
  return lam_fail(LAM_INVALID_ARGUMENT, WHO "deadlock: %s%s", text, fits ? piece : "");
}

lam_status lam_schedule_explain(const lam_schedule *s) {
  LAM_TRY(check_pairs(s));
  if (s->lowered) LAM_TRY(lam_check_channels(s));
  lam_walk w;
  LAM_TRY(lam_walk_run(s, NULL, LAM_NOTED_NOTHING, &w));
  const lam_status status = lam_walk_is_complete(&w)
                                ? lam_fail(LAM_INTERNAL, WHO "a table was refused without a reason")
                                : fail_deadlock(&w);
  lam_walk_finish(&w);
  return status;
}
