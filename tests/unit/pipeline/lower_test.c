/* lower_test.c: written-out transfers: nothing else changes, receives are as early as their slots,
 * and rings of the depth that is told never stop anybody for ever. */
#include <stdlib.h>
#include <string.h>

#include "tests/unit/pipeline/tables.h"

/* The table without its transfers, as text; caller frees. */
static char *computing(const lam_schedule *s) {
  lam_schedule *out = NULL;
  if (!CHECK_OK(lam_schedule_alloc(s->n_ranks, s->n_stages, s->n_micro, &out))) return NULL;
  for (int r = 0; r < s->n_ranks; r++)
    for (int64_t i = s->first[r]; i < s->first[r + 1]; i++) {
      const lam_action *a = &s->actions[i];
      if (a->kind >= LAM_KIND_SEND_F) continue;
      CHECK_OK(lam_schedule_push(out, r, a->kind, a->stage, a->micro));
      if (i > s->first[r] && a[-1].paired) lam_schedule_pair(out);
    }
  CHECK_OK(lam_schedule_seal(out));
  char *text = text_of(out);
  lam_schedule_destroy(out);
  return text;
}

static lam_schedule *lowered(const lam_schedule *s) {
  lam_schedule *out = NULL;
  CHECK_OK(lam_schedule_lower(s, &out));
  return out;
}

TEST(lower, adds_transfers_and_changes_nothing_else) {
  rng r = {seed()};
  for (int k = 0; k < 200; k++) {
    lam_schedule *s = k % 2 ? random_table(&r, 6, 8, 6) : random_fused_table(&r, 6, 8, 6);
    lam_schedule *l = lowered(s);
    costs_of c;
    random_costs(&r, s->n_stages, &c);
    char *before = text_of(s), *after = computing(l);
    CHECK_STR(after, before);
    CHECK(reference_accepts(l));
    const lam_simulated a = simulated(s, &c.costs), b = simulated(l, &c.costs);
    CHECK_SAME_BITS(&a.makespan, &b.makespan, sizeof a.makespan);
    free(before), free(after);
    lam_schedule_destroy(s), lam_schedule_destroy(l);
  }
}

TEST(lower, keeps_fused_pairs_whole) {
  lam_schedule *s = table_of("0F0 0F1 0B0 0B1\n1F0 1B0 1F1 1B1\n"), *l = NULL;
  lam_schedule_destroy(s);
  s = table_of("0F0 0F1 (0F2;0B0) 0B1 0B2\n1F0 1B0 (1F1;1B0) 1B1\n");
  CHECK_STATUS(lam_schedule_lower(s, &l), LAM_INVALID_ARGUMENT); /* 1B0 twice: lower checks first */
  CHECK(!l);
  lam_schedule_destroy(s);
  s = table_of("0F0 0F1 (0F2;0B0) 0B1 0B2\n1F0 1B0 1F1 1B1 1F2 1B2\n");
  l = lowered(s);
  char *text = text_of(l);
  CHECK_STR(
      text,
      "rank 0: 0RECV_B0 0RECV_B1 0F0 0SEND_F0 0F1 0SEND_F1 (0F2;0B0)OVERLAP_F_B 0RECV_B2 0SEND_F2 "
      "0B1 0B2\n"
      "rank 1: 1RECV_F0 1RECV_F1 1F0 1RECV_F2 1B0 1SEND_B0 1F1 1B1 1SEND_B1 1F2 1B2 1SEND_B2\n");
  free(text);
  lam_schedule_destroy(s), lam_schedule_destroy(l);
}

TEST(lower, one_rank_needs_no_transfer) {
  lam_schedule *s = table_of("0F0 1F0 2F0 2B0 1I0 0B0 1W0"), *l = lowered(s);
  CHECK(!l->lowered);
  CHECK_EQ(info_of(l).n_transfers, 0);
  CHECK_EQ(info_of(l).ring_depth, 0);
  CHECK_EQ(lam_schedule_ring_depth(s, 0, LAM_KIND_F, true), 0);
  lam_schedule_destroy(s), lam_schedule_destroy(l);
}

TEST(lower, a_lowered_table_stays_as_it_is) {
  lam_schedule *s = built("1f1b", 3, 5), *l = lowered(s), *again = lowered(l);
  char *a = text_of(l), *b = text_of(again);
  CHECK_STR(b, a);
  free(a), free(b);
  lam_schedule_destroy(s), lam_schedule_destroy(l), lam_schedule_destroy(again);
}

/* -- rings -- */

TEST(lower, ring_depths_of_known_schedules) {
  lam_schedule *s = built("1f1b", 4, 8);
  for (int e = 0; e < 3; e++) {
    NOTE("edge %d", e);
    CHECK_EQ(lam_schedule_ring_depth(s, e, LAM_KIND_F, false), 2);
    CHECK_EQ(lam_schedule_ring_depth(s, e, LAM_KIND_I, false), 2);
    /* Held on rank e + 1 for its p-1-e micro-batches in flight, and one under way. */
    CHECK_EQ(lam_schedule_ring_depth(s, e, LAM_KIND_F, true), 4 - e);
  }
  CHECK_EQ(lam_schedule_ring_depth(s, -1, LAM_KIND_F, false), 0);
  CHECK_EQ(lam_schedule_ring_depth(s, 3, LAM_KIND_F, false), 0);
  lam_schedule_destroy(s);
  s = built("gpipe", 4, 8);
  CHECK_EQ(lam_schedule_ring_depth(s, 0, LAM_KIND_F, true), 8);
  lam_schedule_destroy(s);
  s = built("layerwise", 4, 8);
  CHECK_EQ(lam_schedule_ring_depth(s, 1, LAM_KIND_F, true), 1);
  lam_schedule_destroy(s);
}

/* 0F3 starts at 3, while (1F1;1B0) runs from 2 to 5: 1F1's input is read until then. */
TEST(lower, a_fused_pair_gives_its_slots_back_at_its_end) {
  lam_schedule *s =
      table_of("0F0 0F1 0F2 0F3 0B0 0B1 0B2 0B3\n1F0 (1F1;1B0) (1F2;1B1) (1F3;1B2) 1B3");
  CHECK_EQ(lam_schedule_ring_depth(s, 0, LAM_KIND_F, false), 3);
  lam_schedule_destroy(s);
}

TEST(lower, a_table_that_cannot_run_has_no_ring_depth) {
  lam_schedule *s = table_of("0F0 0B0 0F1 0B1\n1F0 1F1 1B0 1B1");
  CHECK_EQ(lam_schedule_ring_depth(s, 0, LAM_KIND_F, false), -1);
  lam_schedule_destroy(s);
}

/* Whatever actions really cost, and even if a sender waits for its slot before it computes. */
TEST(lower, rings_of_the_depth_told_never_deadlock) {
  rng r = {seed()};
  for (int k = 0; k < 200; k++) {
    lam_schedule *s = k % 2 ? random_table(&r, 5, 8, 8) : random_fused_table(&r, 5, 8, 8);
    int depth[2][64] = {{0}};
    for (int e = 0; e + 1 < s->n_stages; e++) {
      depth[0][e] = lam_schedule_ring_depth(s, e, LAM_KIND_F, false);
      depth[1][e] = lam_schedule_ring_depth(s, e, LAM_KIND_I, false);
    }
    for (int trial = 0; trial < 5; trial++) {
      costs_of c;
      random_costs(&r, s->n_stages, &c);
      CHECK(reference_makespan(s, &c.costs, depth) >= 0);
    }
    costs_of c; /* with unit costs nobody even waits */
    even_costs(1, 1, 1, 0, s->n_stages, &c);
    CHECK_EQ(reference_makespan(s, &c.costs, depth), simulated(s, &c.costs).makespan);
    lam_schedule_destroy(s);
  }
}

/* The depth is no more than is needed: in a steady 1F1B one slot less costs time. */
TEST(lower, a_ring_one_shallower_makes_somebody_wait) {
  lam_schedule *s = built("1f1b", 4, 8);
  costs_of c;
  even_costs(1, 1, 1, 0, 4, &c);
  int depth[2][64];
  for (int e = 0; e < 3; e++) depth[0][e] = depth[1][e] = 2;
  CHECK_EQ(reference_makespan(s, &c.costs, depth), 33);
  for (int e = 0; e < 3; e++) depth[0][e] = depth[1][e] = 1;
  CHECK(reference_makespan(s, &c.costs, depth) != 33);
  lam_schedule_destroy(s);
}
