/* check_test.c: what can run is accepted, what cannot is refused with its place: by example, and
 * against the slow reference on random and spoilt tables. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "tests/unit/pipeline/tables.h"

static void check_refused(const char *text, const char *message) {
  lam_schedule *s = table_of(text);
  NOTE("%s", text);
  CHECK_STATUS(lam_schedule_check(s, NULL), LAM_INVALID_ARGUMENT);
  CHECK_STR(lam_last_error(), message);
  lam_schedule_destroy(s);
}

TEST(check, an_action_twice_is_named_with_both_places) {
  check_refused("0F0 0F0 0B0",
                "lam_schedule_check: rank 0, position 1: 0F0 is one too many: rank 0 has the same "
                "at position 0, "
                "expected each once");
  check_refused("0F0 0B0 0W0 0F1 0I1 0W1",
                "lam_schedule_check: rank 0, position 2: 0W0 is one too many: rank 0 has this "
                "backward at position 1, expected each once");
}

TEST(check, a_missing_action_is_named) {
  check_refused("0F0 0F1 0B1",
                "lam_schedule_check: rank 0: 0B0 is missing: expected B, or I and W, for every "
                "micro-batch");
  check_refused(
      "0F0 0I0",
      "lam_schedule_check: rank 0: 0W0 is missing: expected once for every micro-batch of the 1");
  check_refused(
      "0B0",
      "lam_schedule_check: rank 0: 0F0 is missing: expected once for every micro-batch of the 1");
  check_refused("0F0 0B0\n2F0 2B0",
                "lam_schedule_check: no rank: 1F0 is missing: expected once for every micro-batch "
                "of the 1");
}

TEST(check, huge_numbers_in_a_short_table_are_found_missing_without_memory_for_them) {
  check_refused("0F0 0B0 1048575F1048575 1048575B1048575",
                "lam_schedule_check: rank 0: 0F1 is missing: expected once for every micro-batch "
                "of the 1048576");
}

TEST(check, a_stage_has_one_rank) {
  check_refused("0F0 0B0 1F0\n1B0",
                "lam_schedule_check: rank 1, position 0: 1B0 is here, but stage 1 is rank 0's: "
                "expected one rank per stage");
}

TEST(check, a_deadlock_is_told_as_the_circle_it_is) {
  check_refused(
      "0B0 0F0",
      "lam_schedule_check: deadlock: rank 0, position 0: 0B0 waits for 0F0 (rank 0, position 1) "
      "[rank 0: 0B0 0F0]");
  check_refused(
      "0F0 0B0 0F1 0B1\n1F0 1F1 1B0 1B1",
      "lam_schedule_check: deadlock: rank 0, position 1: 0B0 waits for 1B0 (rank 1, position 2); "
      "rank 1, position 1: 1F1 waits for 0F1 (rank 0, position 2) [rank 0: 0B0 0F1; rank 1: 1F1 "
      "1B0]");
  check_refused(
      "(0F0;0B0)",
      "lam_schedule_check: deadlock: rank 0, position 1: 0B0 waits for 0F0 (rank 0, position 0) "
      "[rank 0: (0F0;0B0)]");
  check_refused(
      "0F0 (0F1;0B0) 0B1\n1F0 1F1 1B0 1B1",
      "lam_schedule_check: deadlock: rank 0, position 2: 0B0 waits for 1B0 (rank 1, position 2); "
      "rank 1, position 1: 1F1 waits for 0F1 (rank 0, position 1) [rank 0: (0F1;0B0); rank 1: 1F1 "
      "1B0]");
}

TEST(check, who_only_waits_for_the_circle_is_not_blamed) {
  check_refused("0F0 0B0\n1F0 1B0\n2F0 3B0 2B0 3F0",
                "lam_schedule_check: deadlock: rank 2, position 1: 3B0 waits for "
                "3F0 (rank 2, position 3) [rank 2: 3B0 3F0]");
}

/* Two stages per rank, stage 20 + r behind r: every rank starts with the later one. */
TEST(check, a_long_circle_is_cut_and_fits_the_message) {
  char text[4096] = "", line[64];
  for (int r = 0; r < 20; r++) {
    snprintf(line, sizeof line, "%dF0 %dF0 %dB0 %dB0\n", 20 + r, r, 20 + r, r);
    strcat(text, line);
  }
  lam_schedule *s = table_of(text);
  CHECK_STATUS(lam_schedule_check(s, NULL), LAM_INVALID_ARGUMENT);
  CHECK_CONTAINS(lam_last_error(),
                 "rank 0, position 0: 20F0 waits for 19F0 (rank 19, position 1); rank 19");
  CHECK_CONTAINS(lam_last_error(), "; ...");
  lam_schedule_destroy(s);
}

/* -- lowered tables -- */

TEST(check, a_lowered_table_needs_every_transfer) {
  check_refused("0F0 0RECV_B0 0B0\n1RECV_F0 1F0 1B0 1SEND_B0",
                "lam_schedule_check: rank 0: 0SEND_F0 is missing: expected once for every "
                "micro-batch of the 1");
  check_refused("0F0 0SEND_F0 0RECV_B0 0B0 0RECV_B0\n1RECV_F0 1F0 1B0 1SEND_B0",
                "lam_schedule_check: rank 0, position 4: 0RECV_B0 is one too many: rank 0 has the "
                "same at position 2, "
                "expected each once");
}

TEST(check, a_transfer_where_none_is_needed_is_refused) {
  check_refused("0F0 0SEND_F0 1F0 1B0 0B0",
                "lam_schedule_check: rank 0, position 1: 0SEND_F0 crosses no edge between "
                "two ranks");
  check_refused("0F0 0SEND_B0 0B0",
                "lam_schedule_check: rank 0, position 1: 0SEND_B0 crosses no edge between two "
                "ranks");
}

TEST(check, tags_on_a_channel_must_match) {
  check_refused(
      "0RECV_B0 0RECV_B1 0F0 0SEND_F0 0F1 0SEND_F1 0B0 0B1\n"
      "1RECV_F1 1RECV_F0 1F0 1B0 1SEND_B0 1F1 1B1 1SEND_B1",
      "lam_schedule_check: rank 1, position 0: 1RECV_F1 is out of order: micro-batch 0 is the next "
      "that stage 0 makes [rank 0: 0F0 0F1; rank 1: 1RECV_F1 1RECV_F0]");
  check_refused(
      "0RECV_B0 0RECV_B1 0F0 0F1 0SEND_F1 0SEND_F0 0B0 0B1\n"
      "1RECV_F1 1RECV_F0 1F0 1B0 1SEND_B0 1F1 1B1 1SEND_B1",
      "lam_schedule_check: rank 0, position 4: 0SEND_F1 is out of order: micro-batch 0 is the next "
      "that stage 0 makes [rank 0: 0F0 0F1 0SEND_F1 0SEND_F0]");
}

/* Each side sends before it posts its receive: only sends that are buffered could save it. */
TEST(check, sends_that_wait_for_each_others_receives_are_a_deadlock) {
  check_refused(
      "0F0 0SEND_F0 0F1 0SEND_F1 0RECV_B0 0B0 0RECV_B1 0B1\n"
      "1RECV_F0 1F0 1B0 1SEND_B0 1RECV_F1 1F1 1B1 1SEND_B1",
      "lam_schedule_check: deadlock: rank 0, position 3: 0SEND_F1 waits for 1RECV_F1 (rank 1, "
      "position 4); "
      "rank 1, position 3: 1SEND_B0 waits for 0RECV_B0 (rank 0, position 4) [rank 0: 0SEND_F1 "
      "0RECV_B0; rank 1: 1SEND_B0 1RECV_F1]");
}

TEST(check, a_send_before_its_action_is_a_deadlock) {
  check_refused("0SEND_F0 0F0 0RECV_B0 0B0\n1RECV_F0 1F0 1B0 1SEND_B0",
                "lam_schedule_check: deadlock: rank 0, position 0: 0SEND_F0 waits for 0F0 (rank 0, "
                "position 1) [rank 0: 0SEND_F0 0F0]");
}

/* -- what belongs to a whole stage -- */

TEST(check, gradients_are_reduced_once_after_the_last_of_them) {
  lam_schedule *s = table_of("0F0 0F1 0B0 0I1 0W1 0REDUCE_GRAD\n1F0 1B0 1F1 1B1 1REDUCE_GRAD");
  CHECK_OK(lam_schedule_check(s, NULL));
  CHECK_EQ(info_of(s).n_actions, 11);
  lam_schedule_destroy(s);
  check_refused("0F0 0F1 0B0 0I1 0REDUCE_GRAD 0W1",
                "lam_schedule_check: rank 0, position 4: 0REDUCE_GRAD is too early: a weight "
                "gradient of the stage comes after it");
  check_refused("0F0 0B0 0REDUCE_GRAD 0REDUCE_GRAD",
                "lam_schedule_check: rank 0, position 3: 0REDUCE_GRAD is one too many: expected "
                "once for the stage");
  check_refused("0F0 0B0 1REDUCE_GRAD\n1F0 1B0",
                "lam_schedule_check: rank 1, position 0: 1F0 is here, but stage 1 is rank 0's: "
                "expected one rank per stage");
}

TEST(check, a_stage_computes_between_unshard_and_reshard) {
  lam_schedule *s = table_of("0UNSHARD 0F0 0RESHARD 0UNSHARD 0B0 0RESHARD 0REDUCE_GRAD");
  CHECK_OK(lam_schedule_check(s, NULL));
  lam_schedule_destroy(s);
  check_refused("0UNSHARD 0F0 0RESHARD 0B0",
                "lam_schedule_check: rank 0, position 3: 0B0 computes while the stage is sharded: "
                "expected between UNSHARD and RESHARD");
  check_refused("0F0 0RESHARD 0B0",
                "lam_schedule_check: rank 0, position 1: 0RESHARD has no UNSHARD before it");
  check_refused("0UNSHARD 0F0 0UNSHARD 0B0",
                "lam_schedule_check: rank 0, position 2: 0UNSHARD is one too many: the stage's "
                "last one has no RESHARD yet");
}

/* -- the shortest piece -- */

/* The ranks stop in a circle of three; behind it, rank 0 has a fault of its own. */
TEST(check, the_shortest_circle_is_shown_not_the_first) {
  check_refused("0F0 3F0 0F1 3B0 3F1 3B1 0B0 0B1\n1F1 1F0 1B0 1B1\n2F1 2F0 2B0 2B1",
                "lam_schedule_check: deadlock: rank 0, position 1: 3F0 waits for 2F0 (rank 2, "
                "position 1); rank 2, position 0: 2F1 waits for 1F1 (rank 1, position 0); rank 1, "
                "position 0: 1F1 waits for 0F1 (rank 0, position 2) [rank 0: 3F0 0F1; rank 2: 2F1 "
                "2F0; rank 1: 1F1]");
  check_refused("0F0 3F0 0F1 3B0 3B1 3F1 0B0 0B1\n1F1 1F0 1B0 1B1\n2F1 2F0 2B0 2B1",
                "lam_schedule_check: deadlock: rank 0, position 4: 3B1 waits for 3F1 (rank 0, "
                "position 5) [rank 0: 3B1 3F1]");
}

/* Its rules are written out here once more: does y wait for x? (Tables without transfers.) */
static bool waits_for(const lam_action *y, const lam_action *x) {
  const bool y_back = y->kind == LAM_KIND_I || y->kind == LAM_KIND_B;
  const bool x_back = x->kind == LAM_KIND_I || x->kind == LAM_KIND_B;
  if (x->micro != y->micro) return false;
  if (y->kind == LAM_KIND_W) return x->kind == LAM_KIND_I && x->stage == y->stage;
  if (y->kind == LAM_KIND_F) return x->kind == LAM_KIND_F && x->stage == y->stage - 1;
  return y_back &&
         ((x->kind == LAM_KIND_F && x->stage == y->stage) || (x_back && x->stage == y->stage + 1));
}

enum { MOST = 128 };
typedef struct graph { /* hop[y][z]: y waits for something that z stands before, or is */
  int n;
  bool hop[MOST][MOST];
} graph;

static void build_graph(const lam_schedule *s, graph *g) {
  int unit[MOST], rank[MOST], r = 0;
  g->n = (int)s->first[s->n_ranks];
  for (int i = 0; i < g->n; i++) {
    while (s->first[r + 1] <= i) r++;
    rank[i] = r, unit[i] = i && s->actions[i - 1].paired ? i - 1 : i;
  }
  memset(g->hop, 0, sizeof g->hop);
  for (int y = 0; y < g->n; y++)
    for (int x = 0; x < g->n; x++)
      for (int z = 0; z < g->n && waits_for(&s->actions[y], &s->actions[x]); z++)
        g->hop[y][z] |= rank[z] == rank[x] && unit[z] <= unit[x];
}

/* The fewest hops from any action back to itself; 0 = there is no circle. */
static int shortest_circle(const lam_schedule *s) {
  static graph g;
  int best = 0;
  build_graph(s, &g);
  for (int start = 0; start < g.n; start++) {
    bool reached[MOST] = {false};
    int queue[MOST], depth[MOST], n = 0;
    queue[n] = start, depth[n++] = 0;
    for (int k = 0; k < n; k++)
      for (int z = 0; z < g.n; z++) {
        if (!g.hop[queue[k]][z]) continue;
        if (z == start && (!best || depth[k] + 1 < best)) best = depth[k] + 1;
        if (!reached[z]) reached[z] = true, queue[n] = z, depth[n++] = depth[k] + 1;
        if (n == MOST) n--;
      }
  }
  return best;
}

static int count_text(const char *text, const char *part) {
  int n = 0;
  while ((text = strstr(text, part))) n++, text++;
  return n;
}

/* Neighbours change places, where the later one does not need the earlier one itself. */
static void shuffle_some(lam_schedule *s, rng *r) {
  for (int64_t swaps = rng_int(r, 1, 60); swaps > 0; swaps--) {
    const int rank = (int)rng_int(r, 0, s->n_ranks - 1);
    if (s->first[rank + 1] - s->first[rank] < 2) continue;
    lam_action *a = &s->actions[rng_int(r, s->first[rank], s->first[rank + 1] - 2)];
    const lam_action earlier = a[0];
    if (waits_for(&a[1], &a[0])) continue;
    a[0] = a[1], a[1] = earlier;
  }
}

TEST(check, the_circle_shown_has_the_fewest_links_there_are) {
  rng r = {seed()};
  int deadlocks = 0, longer = 0;
  for (int k = 0; k < 600; k++) {
    lam_schedule *s = random_table(&r, 4, 5, 4);
    shuffle_some(s, &r);
    if (k % 2) fuse_some(s, &r);
    const int want = shortest_circle(s);
    if (!CHECK_EQ(lam_schedule_check(s, NULL) != LAM_OK, want > 0)) NOTE("%s", lam_last_error());
    if (want) {
      NOTE("%s", lam_last_error());
      CHECK_EQ(count_text(lam_last_error(), " waits for "), want);
      CHECK(strstr(lam_last_error(), " [rank ") || strlen(lam_last_error()) > 300);
      deadlocks++, longer += want > 1;
    }
    lam_schedule_destroy(s);
  }
  CHECK(deadlocks > 100 && longer > 20); /* several links in one of three, say */
}

/* -- what check tells -- */

TEST(check, info_counts_actions_transfers_peaks_and_rings) {
  lam_schedule *s = built("1f1b", 4, 8), *lowered = NULL;
  REQUIRE_OK(lam_schedule_lower(s, &lowered));
  const lam_schedule_info a = info_of(s), b = info_of(lowered);
  CHECK_EQ(a.n_ranks, 4), CHECK_EQ(a.n_stages, 4), CHECK_EQ(a.n_micro, 8);
  CHECK_EQ(a.n_actions, 64), CHECK_EQ(a.n_transfers, 48);
  CHECK_EQ(a.peak_in_flight, 4), CHECK_EQ(a.ring_depth, 2);
  CHECK_SAME_BITS(&a, &b, sizeof a); /* lowering changes none of it */
  lam_schedule_destroy(s), lam_schedule_destroy(lowered);
}

TEST(check, info_gives_peaks_and_rings_one_by_one_and_bubbles) {
  lam_schedule *s = built("1f1b", 4, 8);
  int32_t peaks[5] = {-1, -1, -1, -1, -1}, depths[7] = {-1, -1, -1, -1, -1, -1, -1};
  lam_schedule_info info = LAM_SCHEDULE_INFO_INIT;
  info.peaks = peaks, info.n_peaks = 5, info.ring_depths = depths, info.n_ring_depths = 7;
  REQUIRE_OK(lam_schedule_check(s, &info));
  CHECK_EQ(info.n_peaks, 4), CHECK_EQ(info.n_ring_depths, 6);
  for (int r = 0; r < 4; r++) CHECK_EQ(peaks[r], 4 - r);
  for (int i = 0; i < 6; i++) CHECK_EQ(depths[i], 2);
  CHECK_EQ(peaks[4], -1), CHECK_EQ(depths[6], -1);
  CHECK_EQ(info.makespan, 33);
  CHECK(info.bubble == 9 / 33. && info.rank_bubble == 9 / 33.);
  peaks[1] = depths[1] = -7;
  info.n_peaks = info.n_ring_depths = 1; /* short of room the rest is only counted */
  REQUIRE_OK(lam_schedule_check(s, &info));
  CHECK(peaks[1] == -7 && depths[1] == -7 && info.n_peaks == 4 && info.n_ring_depths == 6);
  lam_schedule_destroy(s);
}

/* Stages 1 and 2 are both rank 1's: what they hand over needs no ring. */
TEST(check, an_edge_that_stays_on_a_rank_has_no_ring) {
  lam_schedule *s = table_of("0F0 3F0 3B0 0B0\n1F0 2F0 2B0 1B0");
  int32_t depths[6];
  lam_schedule_info info = LAM_SCHEDULE_INFO_INIT;
  info.ring_depths = depths, info.n_ring_depths = 6;
  REQUIRE_OK(lam_schedule_check(s, &info));
  const int32_t want[6] = {1, 1, 0, 0, 1, 1};
  CHECK_SAME_BITS(depths, want, sizeof want);
  lam_schedule_destroy(s);
}

TEST(check, struct_sizes_and_nulls_are_checked) {
  lam_schedule *s = built("gpipe", 2, 2);
  lam_schedule_info info = LAM_SCHEDULE_INFO_INIT;
  info.struct_size = 3;
  CHECK_STATUS(lam_schedule_check(s, &info), LAM_INVALID_ARGUMENT);
  CHECK_STATUS(lam_schedule_check(NULL, NULL), LAM_INVALID_ARGUMENT);
  CHECK_OK(lam_schedule_check(s, NULL));
  lam_schedule_destroy(s);
  lam_schedule_destroy(NULL);
}

/* -- against the reference -- */

static lam_schedule *pushed(const lam_schedule *s, lam_action *list, const int64_t *first) {
  lam_schedule *out = NULL;
  if (!CHECK_OK(lam_schedule_alloc(s->n_ranks, s->n_stages, s->n_micro, &out))) return NULL;
  for (int r = 0; r < s->n_ranks; r++)
    for (int64_t i = first[r]; i < first[r + 1]; i++)
      CHECK_OK(lam_schedule_push(out, r, list[i].kind, list[i].stage, list[i].micro));
  CHECK_OK(lam_schedule_seal(out));
  return out;
}

/* A copy with one thing changed: two actions of a rank swapped, one action lost, doubled or
 * moved to the next rank, or its stage, micro-batch or kind another. */
static lam_schedule *spoilt(const lam_schedule *s, rng *r) {
  const int64_t n = s->first[s->n_ranks], at = rng_int(r, 0, n - 1);
  lam_action *list = calloc((size_t)n + 1, sizeof *list);
  int64_t *first = calloc((size_t)s->n_ranks + 1, sizeof *first);
  memcpy(list, s->actions, (size_t)n * sizeof *list);
  memcpy(first, s->first, ((size_t)s->n_ranks + 1) * sizeof *first);
  for (int64_t i = 0; i < n; i++) list[i].paired = 0;
  int rank = 0;
  while (first[rank + 1] <= at) rank++;
  const int64_t other = rng_int(r, first[rank], first[rank + 1] - 1);
  const lam_action a = list[at];
  const int what = (int)rng_int(r, 0, 6);
  if (what == 0) list[at] = list[other], list[other] = a;
  if (what == 1) memmove(list + at, list + at + 1, (size_t)(n - at) * sizeof *list);
  if (what == 2) memmove(list + at + 1, list + at, (size_t)(n - at) * sizeof *list);
  for (int q = rank + 1; q <= s->n_ranks; q++) first[q] += what == 2 ? 1 : what == 1 ? -1 : 0;
  if (what == 3 && rank + 1 < s->n_ranks) first[rank + 1]--;
  if (what == 4) list[at].stage = (int)rng_int(r, 0, s->n_stages - 1);
  if (what == 5) list[at].micro = (int)rng_int(r, 0, s->n_micro - 1);
  if (what == 6)
    list[at].kind =
        (int16_t)(s->lowered && rng_int(r, 0, 1) ? rng_int(r, 8, 11) : rng_int(r, 0, 3));
  lam_schedule *out = pushed(s, list, first);
  free(list), free(first);
  return out;
}

static int agrees(const lam_schedule *s) { /* 1 accepted, 0 refused by both */
  const bool want = reference_accepts(s), got = lam_schedule_check(s, NULL) == LAM_OK;
  if (got != want) {
    char *text = text_of(s);
    check_fail(CHECK_AT, "reference %d, check %d (%s) on\n%s", want, got,
               got ? "" : lam_last_error(), text);
    free(text);
  }
  return got;
}

TEST(check, random_tables_that_can_run_are_accepted) {
  rng r = {seed()};
  for (int k = 0; k < 300; k++) {
    lam_schedule *s = random_table(&r, 6, 8, 6);
    CHECK(agrees(s));
    lam_schedule_destroy(s);
  }
}

TEST(check, agrees_with_the_reference_on_fused_tables) {
  rng r = {seed()};
  int accepted = 0;
  for (int k = 0; k < 400; k++) {
    lam_schedule *s = random_table(&r, 4, 6, 4);
    fuse_some(s, &r);
    accepted += agrees(s);
    lam_schedule_destroy(s);
  }
  CHECK(accepted > 50 && accepted < 400);
}

static void spoil_and_compare(bool lowered) {
  rng r = {seed() + lowered};
  int accepted = 0;
  for (int k = 0; k < 1500; k++) {
    lam_schedule *s = random_table(&r, 4, 5, 4);
    if (lowered) {
      lam_schedule *l = NULL;
      CHECK_OK(lam_schedule_lower(s, &l));
      lam_schedule_destroy(s);
      s = l;
    }
    lam_schedule *bad = spoilt(s, &r);
    accepted += agrees(bad);
    lam_schedule_destroy(bad), lam_schedule_destroy(s);
  }
  CHECK(accepted > 50 && accepted < 1400); /* both verdicts were put to the test */
}

TEST(check, agrees_with_the_reference_on_spoilt_tables) { spoil_and_compare(false); }
TEST(check, agrees_with_the_reference_on_spoilt_lowered_tables) { spoil_and_compare(true); }

/* Any bytes: read or refused; checked or refused; and what passes is simulated, lowered and
 * drawn. */
static void digest(const char *text, uint64_t n, int *accepted) {
  lam_schedule *s = NULL, *lowered = NULL;
  if (lam_schedule_parse(text, n, &s) != LAM_OK) return;
  if (lam_schedule_check(s, NULL) == LAM_OK) {
    costs_of c;
    even_costs(1e6, 1e6, 1e6, 1e5, s->n_stages < 64 ? s->n_stages : 64, &c);
    CHECK_OK(lam_schedule_lower(s, &lowered));
    CHECK_OK(lam_schedule_check(lowered, NULL));
    if (s->n_stages <= 64) simulated(s, &c.costs);
    ++*accepted;
  }
  lam_schedule_destroy(s), lam_schedule_destroy(lowered);
}

TEST(check, any_spoilt_text_is_digested_or_refused) {
  static const char alphabet[] = "0123456789FIWBSENDRCV_(),;# \n\rrank:OLAP";
  rng r = {seed()};
  int accepted = 0;
  for (int k = 0; k < 3000; k++) {
    lam_schedule *s = random_table(&r, 3, 4, 3);
    fuse_some(s, &r);
    char *text = text_of(s);
    const int64_t n = (int64_t)strlen(text);
    for (int64_t hits = rng_int(&r, 1, 2); hits > 0; hits--)
      text[rng_int(&r, 0, n - 1)] = rng_int(&r, 0, 9)
                                        ? alphabet[rng_int(&r, 0, sizeof alphabet - 2)]
                                        : (char)rng_int(&r, 0, 255);
    digest(text, (uint64_t)n, &accepted);
    free(text);
    lam_schedule_destroy(s);
  }
  CHECK(accepted > 5); /* a blank became a comma, say: about 1 in 100 */
}
