/* imported_test.c: tables that others made (tests/golden/imported): interleaved, split backward, V
 * placement, fused pairs. They are read, checked, timed and lowered like our own. */
#include <stdio.h>
#include <stdlib.h>

#include "tests/unit/pipeline/tables.h"

/* p 4, m 8; forward and both halves of backward 1 per rank, so 1 / stages per rank per stage. */
static const struct imported {
  const char *file;
  int stages_per_rank;
  double makespan, bubble, rank_bubble; /* makespan in forwards of a whole rank */
  double peak;                          /* in micro-batches of a whole rank, the highest rank's */
} imported[] = {
    {"interleaved_1f1b_p4_m8.txt", 2, 28.5, 4.5 / 28.5, 4.5 / 28.5, 5.5},
    {"zb_h1_p4_m8.txt", 1, 27, 3 / 27., 3 / 27., 4},
    {"zbv_p4_m8.txt", 2, 25.5, 1.5 / 25.5, 0, 4},
    {"dualpipev_p4_m8.csv", 2, 27, 3 / 27., 3 / 27., 4.5},
    {"v_half_p4_m8.txt", 2, 26.5, 2.5 / 26.5, 2.5 / 26.5, 3},
    {"v_min_p4_m8.txt", 2, 29.5, 5.5 / 29.5, 5.5 / 29.5, 2},
};
enum { n_imported = sizeof imported / sizeof imported[0] };

static char text[1 << 16]; /* of the file that was read last */

static lam_schedule *read_imported(const char *file) {
  char path[256];
  NOTE("%s", file);
  snprintf(path, sizeof path, "tests/golden/imported/%s", file);
  FILE *in = fopen(path, "r");
  lam_schedule *s = NULL;
  if (!CHECK(in)) return NULL;
  const size_t n = fread(text, 1, sizeof text - 1, in);
  text[n] = 0;
  fclose(in);
  CHECK_OK(lam_schedule_parse(text, n, &s));
  return s;
}

TEST(imported, times_bubbles_and_peaks_are_the_published_ones) {
  for (int k = 0; k < n_imported; k++) {
    lam_schedule *s = read_imported(imported[k].file);
    if (!s) continue;
    const double v = imported[k].stages_per_rank;
    costs_of c;
    even_costs(1 / v, 1 / v, 1 / v, 0, s->n_stages, &c);
    const lam_simulated out = simulated(s, &c.costs);
    const float got[4] = {(float)out.makespan, (float)out.bubble, (float)out.rank_bubble,
                          (float)(info_of(s).peak_in_flight / v)};
    const double want[4] = {imported[k].makespan, imported[k].bubble, imported[k].rank_bubble,
                            imported[k].peak};
    CHECK_CLOSE(got, want, 4, 1e-6, 1e-6);
    lam_schedule_destroy(s);
  }
}

TEST(imported, transfers_can_be_written_out_and_rings_hold) {
  rng r = {seed()};
  for (int k = 0; k < n_imported; k++) {
    lam_schedule *s = read_imported(imported[k].file), *lowered = NULL;
    if (!s || !CHECK_OK(lam_schedule_lower(s, &lowered))) continue;
    CHECK(reference_accepts(lowered));
    CHECK_EQ(info_of(lowered).n_transfers, info_of(s).n_transfers);
    int depth[2][64];
    for (int e = 0; e + 1 < s->n_stages; e++) {
      depth[0][e] = lam_schedule_ring_depth(s, e, LAM_KIND_F, false);
      depth[1][e] = lam_schedule_ring_depth(s, e, LAM_KIND_I, false);
    }
    for (int trial = 0; trial < 20; trial++) {
      costs_of c;
      random_costs(&r, s->n_stages, &c);
      CHECK(reference_makespan(s, &c.costs, depth) >= 0);
    }
    lam_schedule_destroy(s), lam_schedule_destroy(lowered);
  }
}

static void check_written(const lam_schedule *s, const char *format, const char *want) {
  static char got[1 << 16];
  uint64_t n = 0;
  CHECK_OK(lam_schedule_write(s, format, got, sizeof got, &n));
  CHECK_STR(got, want);
}

static void drop_carriage_returns(char *line) {
  char *to = line;
  for (; *line; line++)
    if (*line != '\r') *to++ = *line;
  *to = 0;
}

/* But for the ends of lines: Python writes \r\n, we \n; both read both. */
TEST(imported, csv_is_written_as_it_was_read) {
  static const char *const files[] = {"dualpipev_p4_m8.csv", "zbv_p2_m4_comms.csv"};
  for (int k = 0; k < 2; k++) {
    lam_schedule *s = read_imported(files[k]);
    if (!s) continue;
    drop_carriage_returns(text);
    check_written(s, "csv", text);
    lam_schedule_destroy(s);
  }
}

/* Two ranks in a V, where activations and gradients go both ways between the same two: with
 * transfers, UNSHARD, RESHARD and REDUCE_GRAD in it, it is judged as it stands. */
TEST(imported, a_table_with_its_own_transfers_is_checked_as_it_stands) {
  lam_schedule *s = read_imported("zbv_p2_m4_comms.csv"), *same = NULL;
  REQUIRE(s);
  int32_t depths[6], peaks[2];
  lam_schedule_info info = LAM_SCHEDULE_INFO_INIT;
  info.ring_depths = depths, info.n_ring_depths = 6, info.peaks = peaks, info.n_peaks = 2;
  REQUIRE_OK(lam_schedule_check(s, &info));
  CHECK_EQ(info.n_stages, 4), CHECK_EQ(info.n_transfers, 2 * 2 * 4);
  CHECK_EQ(info.n_actions, 4 * 4 * 3 + 4 * 3);
  CHECK(peaks[0] == 4 && peaks[1] == 4);
  CHECK(depths[2] == 0 && depths[3] == 0); /* stages 1 and 2 are both rank 1's */
  CHECK_OK(lam_schedule_lower(s, &same));
  check_written(same, "csv", text);
  costs_of c;
  even_costs(1, 1, 1, 0, 4, &c);
  CHECK_EQ(simulated(s, &c.costs).makespan, info.makespan);
  CHECK_EQ(info.makespan, 25); /* 24 and (p - 1) F */
  lam_schedule_destroy(s), lam_schedule_destroy(same);
}

TEST(imported, old_letters_are_read_as_todays) {
  lam_schedule *s = read_imported("old_letters_p2_m3.csv");
  REQUIRE(s);
  CHECK_OK(lam_schedule_check(s, NULL));
  check_written(s, "text",
                "rank 0: 0F0 0F1 0B0 0F2 0B1 0B2\n"
                "rank 1: 1F0 1I0 1F1 1I1 1W0 1F2 1I2 1W1 1W2\n");
  lam_schedule_destroy(s);
}

/* ZB-H1's law (p-1) max(F, I, F+I-W), for any costs and m >= p: here of the one table at hand. */
TEST(imported, the_bubble_of_zb_h1_follows_its_law) {
  lam_schedule *s = read_imported("zb_h1_p4_m8.txt");
  rng r = {seed()};
  for (int k = 0; s && k < 200; k++) {
    const double f = (double)rng_int(&r, 1, 900), i = (double)rng_int(&r, 1, 900);
    const double w = (double)rng_int(&r, 1, 900), longer = f > i ? f : i;
    costs_of c;
    even_costs(f, i, w, 0, 4, &c);
    NOTE("f %g i %g w %g", f, i, w);
    CHECK_EQ(simulated(s, &c.costs).makespan,
             8 * (f + i + w) + 3 * (f + i - w > longer ? f + i - w : longer));
  }
  lam_schedule_destroy(s);
}
