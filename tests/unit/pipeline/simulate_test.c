/* simulate_test.c: times against the slow reference, published figures, worked examples; what is
 * refused. The builders' laws are in build_test.c. */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "tests/unit/pipeline/tables.h"

TEST(simulate, agrees_with_the_reference_on_random_tables_and_costs) {
  rng r = {seed()};
  for (int k = 0; k < 300; k++) {
    lam_schedule *s = k % 2 ? random_table(&r, 6, 10, 8) : random_fused_table(&r, 6, 10, 8);
    costs_of c;
    random_costs(&r, s->n_stages, &c);
    const float got = (float)simulated(s, &c.costs).makespan;
    const double want = reference_makespan(s, &c.costs, NULL);
    CHECK_CLOSE(&got, &want, 1, 1e-6, 0);
    lam_schedule_destroy(s);
  }
}

/* Zero Bubble Pipeline Parallelism (arXiv 2401.10241), tables 5 and 8: costs in ms, 1F1B's rate. */
TEST(simulate, reproduces_the_published_rates_of_1f1b) {
  static const struct {
    int p, m;
    double f, i, w, transfer, rate;
  } rows[] = {{8, 24, 18.522, 18.086, 9.337, .601, .2431},
              {8, 32, 18.513, 18.086, 9.331, .626, .1985},
              {8, 64, 18.546, 18.097, 9.321, .762, .1240},
              {8, 24, 29.718, 29.444, 19.927, .527, .2347},
              {8, 32, 29.802, 29.428, 19.530, .577, .1898},
              {8, 64, 29.935, 29.621, 19.388, .535, .1091},
              {16, 48, 11.347, 11.248, 8.132, .377, .2552},
              {16, 64, 11.307, 11.254, 8.101, .379, .2082},
              {16, 128, 11.325, 11.308, 8.109, .378, .1251},
              {32, 96, 10.419, 10.207, 7.715, .408, .2646},
              {32, 128, 10.408, 10.204, 7.703, .408, .2168},
              {32, 256, 10.402, 10.248, 7.698, .460, .1352},
              /* per half stage there: doubled, but for the transfer */
              {16, 48, 28.814, 28.760, 19.352, 1.610, .2668},
              {16, 64, 28.824, 28.786, 19.376, 1.621, .2206},
              {16, 128, 28.632, 28.612, 19.278, 1.619, .1390},
              {24, 72, 13.526, 13.938, 10.502, .755, .2699},
              {24, 96, 13.566, 13.968, 10.518, .758, .2229},
              {24, 192, 13.570, 13.980, 10.520, .770, .1403},
              {32, 96, 18.916, 19.496, 14.576, .879, .2676},
              {32, 128, 18.938, 19.488, 14.612, .892, .2204},
              {32, 256, 18.894, 19.288, 14.386, .887, .1362}};
  for (size_t k = 0; k < sizeof rows / sizeof rows[0]; k++) {
    NOTE("row %d", (int)k);
    costs_of c;
    even_costs(rows[k].f * 1e6, rows[k].i * 1e6, rows[k].w * 1e6, rows[k].transfer * 1e6, rows[k].p,
               &c);
    lam_schedule *s = built("1f1b", rows[k].p, rows[k].m);
    const float got = (float)simulated(s, &c.costs).rank_bubble;
    CHECK_CLOSE(&got, &rows[k].rate, 1, 0, 0.00005 + 1e-7);
    lam_schedule_destroy(s);
  }
}

/* p = 4, m = 8, forward 1, both halves of backward 1, free transfers. */
TEST(simulate, worked_example) {
  static const struct {
    const char *name;
    int32_t peaks[4];
  } rows[] = {{"gpipe", {8, 8, 8, 8}}, {"1f1b", {4, 3, 2, 1}}};
  costs_of c;
  even_costs(1, 1, 1, 0, 4, &c);
  for (int k = 0; k < 2; k++) {
    NOTE("%s", rows[k].name);
    lam_schedule *s = built(rows[k].name, 4, 8);
    const lam_simulated out = simulated(s, &c.costs);
    int32_t peaks[4];
    lam_schedule_peaks(s, peaks);
    CHECK_EQ(out.makespan, 33);
    const float bubbles[2] = {(float)out.bubble, (float)out.rank_bubble};
    const double want[2] = {9 / 33., 9 / 33.};
    CHECK_CLOSE(bubbles, want, 2, 0, 1e-7);
    CHECK_SAME_BITS(peaks, rows[k].peaks, sizeof peaks);
    lam_schedule_destroy(s);
  }
}

TEST(simulate, fewer_micro_batches_than_ranks) {
  static const int rows[][3] = {{4, 2, 15}, {4, 3, 18}, {8, 3, 30}}; /* p, m, makespan of 1F1B */
  for (int k = 0; k < 3; k++) {
    costs_of c;
    even_costs(1, 1, 1, 0, rows[k][0], &c);
    lam_schedule *s = built("1f1b", rows[k][0], rows[k][1]);
    CHECK_EQ(simulated(s, &c.costs).makespan, rows[k][2]);
    lam_schedule_destroy(s);
  }
}

TEST(simulate, only_edges_between_ranks_cost_a_transfer) {
  costs_of c;
  even_costs(1, 1, 1, 10, 3, &c);
  lam_schedule *s = table_of("0F0 1F0 1B0 0B0\n2F0 2B0");
  CHECK_EQ(simulated(s, &c.costs).makespan,
           9 + 2 * 10); /* there and back over edge 1; edge 0 is free */
  c.costs.transfer = NULL;
  CHECK_EQ(simulated(s, &c.costs).makespan, 9);
  lam_schedule_destroy(s);
}

TEST(simulate, a_fused_pair_takes_both_costs_and_gives_both_outputs_at_its_end) {
  costs_of c;
  even_costs(2, 1, 2, 0, 2, &c);
  lam_event events[16];
  lam_simulated out = LAM_SIMULATED_INIT;
  out.events = events, out.n_events = 16;
  lam_schedule *s = table_of("0F0 0F1 (0F2;0B0) 0B1 0B2\n1F0 1B0 1F1 1B1 1F2 1B2");
  REQUIRE_OK(lam_schedule_simulate(s, &c.costs, &out));
  CHECK_EQ(out.n_events, 12);
  const lam_event f = events[2], b = events[3], f2 = events[10]; /* 0F2, 0B0; 1F2 */
  CHECK_EQ(f.kind, LAM_KIND_F), CHECK_EQ(f.part, 0), CHECK_EQ(b.kind, LAM_KIND_B),
      CHECK_EQ(b.part, 1);
  CHECK_EQ(f.start, 7), CHECK_EQ(f.end, 9), CHECK_EQ(b.start, 9),
      CHECK_EQ(b.end, 12); /* 1B0 ends at 7 */
  CHECK(f2.micro == 2 && f2.stage == 1 && f2.start >= 12);
  lam_schedule_destroy(s);
}

TEST(simulate, a_fused_pair_takes_what_was_measured_for_it) {
  costs_of c;
  even_costs(2, 1, 3, 0, 2, &c);
  const double fused[2] = {4.5, 99}; /* by F's stage; F + B would take 6 */
  c.costs.forward_backward = fused;
  lam_event events[16];
  lam_simulated out = LAM_SIMULATED_INIT;
  out.events = events, out.n_events = 16;
  lam_schedule *s = table_of("0F0 0F1 (0F2;0B0) 0B1 0B2\n1F0 1B0 1F1 1B1 1F2 1B2");
  REQUIRE_OK(lam_schedule_simulate(s, &c.costs, &out));
  CHECK_EQ(events[2].start, 8);                        /* 1B0's end */
  CHECK_EQ(events[3].end, 13);                         /* 12.5, rounded */
  CHECK(events[2].end == 10 && events[3].start == 10); /* shared in the ratio of F and B: 1.5, 3 */
  c.costs.forward_backward = (const double[]){4, -1};
  CHECK_STATUS(lam_schedule_simulate(s, &c.costs, &out), LAM_INVALID_ARGUMENT);
  CHECK_CONTAINS(lam_last_error(), "costs.forward_backward[1] is -1");
  lam_schedule_destroy(s);
}

TEST(simulate, reducing_gradients_takes_its_time_after_the_last_backward) {
  costs_of c;
  even_costs(1, 1, 1, 0, 2, &c);
  const double reduce[2] = {7, 3};
  lam_event events[16];
  lam_simulated out = LAM_SIMULATED_INIT;
  out.events = events, out.n_events = 16;
  lam_schedule *s = table_of("0UNSHARD 0F0 0B0 0REDUCE_GRAD 0RESHARD\n1F0 1I0 1W0 1REDUCE_GRAD");
  REQUIRE_OK(lam_schedule_simulate(s, &c.costs, &out));
  CHECK_EQ(out.makespan, 5); /* free without a cost */
  c.costs.reduce_grad = reduce, out.n_events = 16;
  REQUIRE_OK(lam_schedule_simulate(s, &c.costs, &out));
  CHECK_EQ(out.makespan, 12), CHECK_EQ(out.n_events, 7);
  const lam_event *last = &events[2];
  CHECK(last->kind == LAM_KIND_REDUCE_GRAD && last->stage == 0 && last->micro == -1);
  CHECK(last->start == 5 && last->end == 12);
  lam_schedule_destroy(s);
}

/* -- idle time -- */

/* F 1, B 2, every crossing 10. Rank 0: F 0-1, then waits for 1B0. Rank 1: F 11-12, B 12-14. */
TEST(simulate, idle_time_is_warm_up_drain_and_waiting_by_edge) {
  costs_of c;
  even_costs(1, 1, 1, 10, 2, &c);
  lam_rank_time ranks[3];
  double waits[3] = {-1, -1, -1};
  lam_simulated out = LAM_SIMULATED_INIT;
  out.ranks = ranks, out.n_ranks = 3, out.waits = waits, out.n_waits = 3;
  lam_schedule *s = table_of("0F0 0B0 0F1 0B1\n1F0 1B0 1F1 1B1");
  REQUIRE_OK(lam_schedule_simulate(s, &c.costs, &out));
  CHECK_EQ(out.n_ranks, 2), CHECK_EQ(out.n_waits, 2), CHECK_EQ(out.makespan, 52);
  const lam_rank_time want[2] = {{6, 0, 0, 46}, {6, 11, 12, 23}};
  CHECK_SAME_BITS(ranks, want, sizeof want);
  CHECK(waits[0] == 23 && waits[1] == 46 && waits[2] == -1);
  lam_schedule_destroy(s);
}

/* The pair of rank 0 waits for its backward, which came last. */
TEST(simulate, a_fused_pair_waits_for_the_input_that_came_last) {
  costs_of c;
  even_costs(1, 1, 1, 0, 3, &c);
  double waits[4];
  lam_simulated out = LAM_SIMULATED_INIT;
  out.waits = waits, out.n_waits = 4;
  lam_schedule *s = table_of("0F0 0F1 0B0 0B1\n1F0 (1F1;1B0) 1B1\n2F0 2B0 2F1 2B1");
  REQUIRE_OK(lam_schedule_simulate(s, &c.costs, &out));
  CHECK_EQ(waits[0], 0);              /* 0F1 is there at 2, as 1F0 ends */
  CHECK_EQ(waits[3], 5 - 2 + 11 - 8); /* 2B0 ends at 5, 2B1 at 11 */
  lam_schedule_destroy(s);
}

TEST(simulate, the_parts_of_every_rank_add_up_to_the_makespan) {
  rng r = {seed()};
  for (int k = 0; k < 200; k++) {
    lam_schedule *s = k % 2 ? random_table(&r, 6, 10, 8) : random_fused_table(&r, 6, 10, 8);
    costs_of c;
    random_costs(&r, s->n_stages, &c);
    lam_rank_time ranks[8];
    double waits[32], waiting = 0, by_edge = 0;
    lam_simulated out = LAM_SIMULATED_INIT;
    out.ranks = ranks, out.n_ranks = 8, out.waits = waits, out.n_waits = 32;
    CHECK_OK(lam_schedule_simulate(s, &c.costs, &out));
    for (int q = 0; q < s->n_ranks; q++) {
      const lam_rank_time *t = &ranks[q];
      CHECK_EQ(t->busy + t->warm_up + t->drain + t->waiting, out.makespan); /* whole numbers */
      CHECK(t->warm_up >= 0 && t->drain >= 0 && t->waiting >= 0);
      waiting += t->waiting;
    }
    for (uint64_t i = 0; i < out.n_waits; i++) by_edge += waits[i];
    CHECK_EQ(by_edge, waiting);
    lam_schedule_destroy(s);
  }
}

TEST(simulate, events_are_the_lists_in_time) {
  rng r = {seed()};
  lam_event events[1024];
  for (int k = 0; k < 50; k++) {
    lam_schedule *s = random_table(&r, 5, 6, 6);
    costs_of c;
    random_costs(&r, s->n_stages, &c);
    lam_simulated out = LAM_SIMULATED_INIT;
    out.events = events, out.n_events = 1024;
    CHECK_OK(lam_schedule_simulate(s, &c.costs, &out));
    CHECK_EQ(out.n_events, s->first[s->n_ranks]);
    for (int64_t i = 0; i < s->first[s->n_ranks]; i++) {
      CHECK_EQ(events[i].stage, s->actions[i].stage);
      CHECK_EQ(events[i].kind, s->actions[i].kind);
      CHECK_EQ(events[i].rank, s->rank_of_stage[events[i].stage]);
      if (i && events[i].rank == events[i - 1].rank) CHECK(events[i].start >= events[i - 1].end);
    }
    lam_schedule_destroy(s);
  }
}

TEST(simulate, short_of_room_the_rest_of_the_events_is_only_counted) {
  lam_schedule *s = built("gpipe", 2, 3);
  costs_of c;
  even_costs(1, 1, 1, 0, 2, &c);
  lam_event events[5];
  memset(events, 0x55, sizeof events);
  lam_simulated out = LAM_SIMULATED_INIT;
  out.events = events, out.n_events = 4;
  REQUIRE_OK(lam_schedule_simulate(s, &c.costs, &out));
  CHECK_EQ(out.n_events, 12);
  CHECK_EQ(events[3].kind, LAM_KIND_B);
  CHECK_EQ(events[4].rank, 0x55555555);
  lam_schedule_destroy(s);
}

TEST(simulate, free_actions_make_no_bubble) {
  lam_schedule *s = built("1f1b", 3, 4);
  costs_of c;
  even_costs(0, 0, 0, 0, 3, &c);
  const lam_simulated out = simulated(s, &c.costs);
  CHECK(out.makespan == 0 && out.bubble == 0 && out.rank_bubble == 0);
  lam_schedule_destroy(s);
}

static void check_refused(const lam_schedule *s, const lam_costs *c, const char *message) {
  lam_simulated out = LAM_SIMULATED_INIT;
  CHECK_STATUS(lam_schedule_simulate(s, c, &out), LAM_INVALID_ARGUMENT);
  CHECK_CONTAINS(lam_last_error(), message);
  CHECK(out.makespan == 0 && out.n_events == 0);
}

TEST(simulate, bad_costs_are_refused_by_name) {
  lam_schedule *s = built("1f1b", 3, 4);
  costs_of c;
  even_costs(1, 1, 1, 1, 3, &c);
  c.costs.n_stages = 2;
  check_refused(s, &c.costs, "lam_schedule_simulate: costs.n_stages is 2, the schedule has 3");
  c.costs.n_stages = 3, c.forward[2] = -1;
  check_refused(s, &c.costs, "costs.forward[2] is -1, expected 0 to 1e+12 ns");
  c.forward[2] = NAN;
  check_refused(s, &c.costs, "costs.forward[2] is");
  c.forward[2] = 1, c.transfer[1] = INFINITY;
  check_refused(s, &c.costs, "costs.transfer[1] is inf");
  c.transfer[1] = 1, c.costs.backward_weight = NULL;
  check_refused(s, &c.costs, "costs.backward_weight is NULL");
  c.costs.struct_size = 1;
  check_refused(s, &c.costs, "struct_size");
  check_refused(s, NULL, "costs is NULL");
  lam_schedule_destroy(s);
}

TEST(simulate, a_table_that_cannot_run_is_not_simulated) {
  lam_schedule *s = table_of("0B0 0F0");
  costs_of c;
  even_costs(1, 1, 1, 1, 1, &c);
  check_refused(s, &c.costs, "deadlock");
  check_refused(NULL, &c.costs, "s is NULL");
  lam_schedule_destroy(s);
}
