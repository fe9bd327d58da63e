/* laws_test.c: what each schedule promises for any size and costs: its bubble, over all ranks and
 * of a rank by itself, and its activations in flight. All costs are whole numbers, of one stage, so
 * times are exact.
 * Leaves goldens and what is refused to build_test.c, published rates to rates_test.c. */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "tests/unit/pipeline/tables.h"

typedef struct trial { /* f, i, w: one stage's, the same for all */
  int p, v, m;
  int f, i, w;
} trial;

typedef struct measured {
  double bubble, own; /* makespan - work; the longest rank's first start to last end - work */
  int32_t peaks[64];  /* stages in flight, per rank */
  int highest;
} measured;

static measured measure(const char *name, trial t) {
  NOTE("%s p %d v %d m %d f %d i %d w %d", name, t.p, t.v, t.m, t.f, t.i, t.w);
  costs_of c;
  measured got = {0};
  even_costs(t.f, t.i, t.w, 0, t.p * t.v, &c);
  lam_schedule *s = built_of(name, t.p, t.v, t.m);
  if (!s) return got;
  const double work = (double)t.m * t.v * (t.f + t.i + t.w);
  const lam_simulated out = simulated(s, &c.costs);
  got.bubble = out.makespan - work;
  got.own = round(work / (1 - out.rank_bubble) - work);
  lam_schedule_peaks(s, got.peaks);
  for (int r = 0; r < t.p; r++)
    if (got.peaks[r] > got.highest) got.highest = got.peaks[r];
  lam_schedule_destroy(s);
  return got;
}

static int least(int a, int b) { return a < b ? a : b; }
static int most(int a, int b) { return a > b ? a : b; }

/* p up to 12, v up to most_v, costs up to 900, m at least m_per_p * p + m_more. */
static trial draw(rng *r, int most_v, int m_per_p, int m_more) {
  trial t = {.p = (int)rng_int(r, 1, 12), .v = (int)rng_int(r, 1, most_v)};
  t.m = most(1, m_per_p * t.p + m_more) + (int)rng_int(r, 0, 30);
  t.f = (int)rng_int(r, 1, 900), t.i = (int)rng_int(r, 1, 900), t.w = (int)rng_int(r, 0, 900);
  return t;
}

/* -- one stage per rank -- */

static void check_plain(trial t) {
  const int both = t.f + t.i + t.w;
  const struct {
    const char *name;
    double bubble;
    int slope; /* peak on rank r: min(m, p - r), m, 1 */
  } laws[] = {{"1f1b", (t.p - 1.) * both, 1},
              {"gpipe", (t.p - 1.) * both, 0},
              {"layerwise", (t.p - 1.) * t.m * both, -1}};
  for (int k = 0; k < 3; k++) {
    const measured got = measure(laws[k].name, t);
    CHECK_EQ(got.bubble, laws[k].bubble), CHECK_EQ(got.own, laws[k].bubble);
    for (int r = 0; r < t.p; r++)
      CHECK_EQ(got.peaks[r], laws[k].slope > 0    ? least(t.m, t.p - r)
                             : laws[k].slope == 0 ? t.m
                                                  : 1);
  }
}

TEST(laws, layerwise_gpipe_and_1f1b_for_any_m) {
  rng r = {seed()};
  for (int k = 0; k < 300; k++) check_plain(draw(&r, 1, 0, 1));
  check_plain((trial){1, 1, 1, 1, 1, 1});
  check_plain((trial){1, 1, 7, 1, 1, 1});
  check_plain((trial){6, 1, 1, 1, 1, 1});
}

TEST(laws, layerwise_keeps_one_worker_busy_at_a_time) {
  lam_schedule *s = built("layerwise", 5, 3);
  lam_event events[64];
  costs_of c;
  rng r = {seed()};
  random_costs(&r, 5, &c);
  lam_simulated out = LAM_SIMULATED_INIT;
  out.events = events, out.n_events = 64;
  REQUIRE_OK(lam_schedule_simulate(s, &c.costs, &out));
  for (uint64_t a = 0; a < out.n_events; a++)
    for (uint64_t b = 0; b < a; b++)
      CHECK(events[a].end <= events[b].start || events[b].end <= events[a].start);
  lam_schedule_destroy(s);
}

static int zb_h1_bubble(trial t) { return (t.p - 1) * most(most(t.f, t.i), t.f + t.i - t.w); }

TEST(laws, zb_h1_from_p_micro_batches_on) {
  rng r = {seed()};
  for (int k = 0; k < 500; k++) {
    const trial t = draw(&r, 1, 1, 0);
    const measured got = measure("zb-h1", t);
    CHECK_EQ(got.bubble, zb_h1_bubble(t));
    for (int q = 0; q < t.p; q++) CHECK_EQ(got.peaks[q], t.p);
  }
}

TEST(laws, zb_h2_from_2p_less_1_micro_batches_on) {
  rng r = {seed()};
  for (int k = 0; k < 500; k++) {
    const trial t = draw(&r, 1, 2, -1);
    const measured got = measure("zb-h2", t);
    CHECK_EQ(got.own, (t.p - 1) * most(0, most(t.i - t.f, t.f + t.i - 2 * t.w)));
    for (int q = 0; q < t.p; q++) CHECK_EQ(got.peaks[q], 2 * t.p - 1);
  }
}

/* -- stages in a loop -- */

static int first_group(int p, int m) {
  const int groups = most(1, m / p);
  return (m + groups - 1) / groups;
}

TEST(laws, interleaved_from_p_micro_batches_on) {
  rng r = {seed()};
  for (int k = 0; k < 500; k++) {
    const trial t = draw(&r, 5, 1, 0);
    const measured got = measure("interleaved", t);
    CHECK_EQ(got.bubble, (t.p - 1) * (t.f + t.i + t.w));
    CHECK_EQ(got.own, got.bubble);
    for (int q = 0; q < t.p; q++)
      CHECK_EQ(got.peaks[q],
               least(t.m * t.v, (t.v - 1) * first_group(t.p, t.m) + 2 * (t.p - 1 - q) + 1));
  }
}

TEST(laws, interleaved_zb_from_p_micro_batches_on) {
  rng r = {seed()};
  for (int k = 0; k < 500; k++) {
    const trial t = draw(&r, 5, 1, 0);
    const measured got = measure("interleaved-zb", t);
    CHECK_EQ(got.bubble, zb_h1_bubble(t));
    for (int q = 0; q < t.p; q++) CHECK_EQ(got.peaks[q], (t.v - 1) * first_group(t.p, t.m) + t.p);
  }
}

/* -- two stages in a V -- */

TEST(laws, zbv_holds_2p_stages_whatever_they_cost) {
  rng r = {seed()};
  for (int k = 0; k < 300; k++) {
    trial t = draw(&r, 1, 2, 0);
    t.v = 2;
    const measured got = measure("zbv", t);
    for (int q = 0; q < t.p; q++) CHECK_EQ(got.peaks[q], 2 * t.p);
  }
}

TEST(laws, zbv_leaves_no_rank_idle_where_all_cost_the_same) {
  rng r = {seed()};
  for (int k = 0; k < 300; k++) {
    trial t = draw(&r, 1, 2, -1);
    t.v = 2, t.i = t.w = t.f;
    const measured got = measure("zbv", t);
    CHECK_EQ(got.own, 0);
    CHECK_EQ(got.bubble, (t.p - 1) * t.f);
  }
  for (int p = 1; p <= 16; p++) /* too few micro-batches: p - 1 of a whole rank's F */
    CHECK_EQ(measure("zbv", (trial){p, 2, p, 1, 1, 1}).own, 2 * (p - 1));
}

/* A fused action costs its F and its B here. The papers' (p-1)(FB + B - 3W) is then (p-1)(F + I);
 * measured is that, less F, where F is the shorter, and more where F is the longer. */
TEST(laws, dualpipev_where_i_and_w_cost_the_same) {
  rng r = {seed()};
  for (int k = 0; k < 300; k++) {
    trial t = draw(&r, 1, 2, 0);
    t.v = 2, t.w = t.i, t.f = k % 3 ? t.f : t.i;
    const measured got = measure("dualpipev", t);
    CHECK_EQ(got.bubble, most(2 * (t.p - 1) * t.f, (t.p - 1) * (t.f + t.i) - t.f));
    CHECK_EQ(got.own, got.bubble);
    for (int q = 0; q < t.p; q++) CHECK_EQ(got.peaks[q], least(2 * t.m, 2 * t.p + 1));
  }
}

/* The papers' law, of the last rank: its bubble is (p-1)(FB + B - 3W) where F = I = W and a fused
 * action takes between as long as its B and as long as both. */
TEST(laws, dualpipev_gains_what_a_fused_action_saves) {
  rng r = {seed()};
  for (int k = 0; k < 200; k++) {
    const trial t = draw(&r, 1, 2, 0);
    const int both = (int)rng_int(&r, 2 * t.f, 3 * t.f);
    double fused[64];
    costs_of c;
    NOTE("p %d m %d f %d fused %d", t.p, t.m, t.f, both);
    even_costs(t.f, t.f, t.f, 0, 2 * t.p, &c);
    for (int s = 0; s < 2 * t.p; s++) fused[s] = both;
    c.costs.forward_backward = fused;
    lam_schedule *s = built_of("dualpipev", t.p, 2, t.m);
    const int work = (2 * (t.m - t.p) - 1) * both + (2 * t.p + 1) * 3 * t.f;
    CHECK_EQ(simulated(s, &c.costs).makespan, work + (t.p - 1) * (both - t.f));
    lam_schedule_destroy(s);
  }
}

/* Rank r fuses 2m - 3p + r + 1 actions; the last one less, for its first pair stands apart. */
TEST(laws, dualpipev_fuses_fewer_actions_on_the_first_ranks) {
  rng r = {seed()};
  for (int k = 0; k < 50; k++) {
    const trial t = draw(&r, 1, 2, 0);
    lam_schedule *s = built_of("dualpipev", t.p, 2, t.m);
    for (int q = 0; s && q < t.p; q++) {
      int pairs = 0;
      for (int64_t i = s->first[q]; i < s->first[q + 1]; i++) pairs += s->actions[i].paired;
      CHECK_EQ(pairs, 2 * t.m - 3 * t.p + q + 1 - (q == t.p - 1));
    }
    lam_schedule_destroy(s);
  }
}

/* p, m, and in units of a rank's F = I = W (two stages): makespan and the highest rank's peak. */
typedef struct published {
  int p, m;
  double makespan, peak;
} published;

static void check_published(const char *name, const published *rows, int n) {
  for (int k = 0; k < n; k++) {
    const measured got = measure(name, (trial){rows[k].p, 2, rows[k].m, 1, 1, 1});
    CHECK_EQ(got.bubble + 6 * rows[k].m, 2 * rows[k].makespan);
    CHECK_EQ(got.highest, 2 * rows[k].peak);
  }
}

TEST(laws, v_half_and_v_min_take_the_published_time_and_memory) {
  static const published half[] = {{2, 4, 12.5, 2},  {3, 6, 20.5, 2},  {4, 8, 26.5, 3},
                                   {4, 12, 38.5, 3}, {8, 16, 56.5, 5}, {8, 24, 80.5, 5}};
  static const published min[] = {{2, 4, 13.5, 2},  {3, 6, 20.5, 2},  {4, 8, 29.5, 2},
                                  {4, 12, 41.5, 2}, {8, 16, 61.5, 4}, {8, 24, 85.5, 4}};
  check_published("v-half", half, 6);
  check_published("v-min", min, 6);
}

TEST(laws, v_half_and_v_min_hold_a_half_and_a_third_of_p_micro_batches) {
  for (int p = 1; p <= 32; p++) FOR_EACH(more, 0, 1, 5) {
      const int m = 2 * p + more;
      CHECK_EQ(measure("v-half", (trial){p, 2, m, 1, 1, 1}).highest, (p + 2) / 2 * 2);
      CHECK_EQ(measure("v-min", (trial){p, 2, m, 1, 1, 1}).highest, (p + 4) / 3 * 2);
    }
}

/* -- all beside each other -- */

/* p 4, m 8, F = I = W = 1 for a whole rank, counted in sixtieths; peaks in micro-batches. */
TEST(laws, worked_example) {
  static const struct {
    const char *name;
    int v;
    double makespan, own, peaks[4];
  } rows[] = {{"gpipe", 1, 33, 9, {8, 8, 8, 8}},
              {"1f1b", 1, 33, 9, {4, 3, 2, 1}},
              {"interleaved", 2, 28.5, 4.5, {5.5, 4.5, 3.5, 2.5}},
              {"zb-h1", 1, 27, 3, {4, 4, 4, 4}},
              {"interleaved-zb", 2, 25.5, 1.5, {4, 4, 4, 4}},
              {"zb-h2", 1, 27, 0, {7, 7, 7, 7}},
              {"zbv", 2, 25.5, 0, {4, 4, 4, 4}},
              {"v-half", 2, 26.5, 2.5, {3, 3, 3, 3}},
              {"v-min", 2, 29.5, 5.5, {2, 2, 2, 2}},
              {"dualpipev", 2, 27, 3, {4.5, 4.5, 4.5, 4.5}}};
  for (size_t k = 0; k < sizeof rows / sizeof rows[0]; k++) {
    const int v = rows[k].v, unit = 60 / v;
    const measured got = measure(rows[k].name, (trial){4, v, 8, unit, unit, unit});
    CHECK_EQ(got.bubble, 60 * (rows[k].makespan - 24));
    CHECK_EQ(got.own, 60 * rows[k].own);
    for (int r = 0; r < 4; r++) CHECK_EQ(got.peaks[r], v * rows[k].peaks[r]);
  }
}

/* F = I = W = 1 for each stage. */
TEST(laws, fewer_micro_batches_than_ranks) {
  static const struct {
    int p, m, of_1f1b, interleaved, zb_h1, zbv;
  } rows[] = {{4, 2, 15, 27, 11, 22}, {4, 3, 18, 30, 13, 26}, {8, 3, 30, 54, 21, 42}};
  for (int k = 0; k < 3; k++) {
    const int p = rows[k].p, m = rows[k].m;
    const struct {
      const char *name;
      int v, makespan;
    } want[] = {{"1f1b", 1, rows[k].of_1f1b},
                {"interleaved", 2, rows[k].interleaved},
                {"zb-h1", 1, rows[k].zb_h1},
                {"zbv", 2, rows[k].zbv}};
    for (int j = 0; j < 4; j++) {
      const measured got = measure(want[j].name, (trial){p, want[j].v, m, 1, 1, 1});
      CHECK_EQ(got.bubble + 3 * m * want[j].v, want[j].makespan);
    }
  }
}
