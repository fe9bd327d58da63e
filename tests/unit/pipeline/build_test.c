/* build_test.c: the builders: their goldens, their laws, what they refuse. */
#include <dirent.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "tests/unit/pipeline/tables.h"

#define GOLDENS "tests/golden/schedules"

/* The file's lines but for its comments. */
static char *golden_text(const char *name) {
  char path[512], line[1 << 14];
  char *text = calloc(1, 1 << 20);
  snprintf(path, sizeof path, GOLDENS "/%s", name);
  FILE *file = fopen(path, "r");
  if (CHECK(file))
    while (fgets(line, sizeof line, file))
      if (line[0] != '#') strcat(text, line);
  if (file) fclose(file);
  return text;
}

/* "1f1b_p2_m3.txt", "1f1b_p2_m3_lowered.txt", "zbv_p4_v2_m8.txt" */
static lam_schedule *named_by(const char *file) {
  char name[64] = "";
  int p = 0, v = 1, m = 0;
  lam_schedule *s = NULL, *lowered = NULL;
  if (sscanf(file, "%63[^_]_p%d_v%d_m%d", name, &p, &v, &m) != 4)
    CHECK_EQ(sscanf(file, "%63[^_]_p%d_m%d", name, &p, &m), 3);
  CHECK_OK(lam_schedule_build(name, p, v, m, &s));
  if (!strstr(file, "_lowered")) return s;
  CHECK_OK(lam_schedule_lower(s, &lowered));
  lam_schedule_destroy(s);
  return lowered;
}

static void check_golden(const char *file) {
  NOTE("%s", file);
  char *want = golden_text(file);
  lam_schedule *s = named_by(file);
  if (CHECK(s)) {
    char *got = text_of(s);
    CHECK_STR(got, want);
    free(got);
  }
  lam_schedule_destroy(s);
  free(want);
}

TEST(build, every_golden_is_what_its_builder_makes) {
  DIR *dir = opendir(GOLDENS);
  REQUIRE(dir);
  int n = 0;
  for (struct dirent *e; (e = readdir(dir));) {
    if (!strstr(e->d_name, ".txt")) continue;
    check_golden(e->d_name);
    n++;
  }
  closedir(dir);
  CHECK(n >= 8);
}

static bool has_golden(const char *builder) {
  DIR *dir = opendir(GOLDENS);
  bool found = false;
  const size_t n = strlen(builder);
  for (struct dirent *e; dir && (e = readdir(dir));)
    found |= !strncmp(e->d_name, builder, n) && e->d_name[n] == '_';
  if (dir) closedir(dir);
  return found;
}

TEST(build, every_builder_has_a_golden_and_a_line_about_it) {
  int n = 0;
  for (; lam_schedule_name(n); n++) {
    NOTE("%s", lam_schedule_name(n));
    CHECK(has_golden(lam_schedule_name(n)));
    CHECK(strlen(lam_schedule_about(n)) > 10);
  }
  CHECK(n >= 3);
  CHECK(!lam_schedule_about(n) && !lam_schedule_name(-1));
}

static int peak_of(const lam_schedule *s, int rank) {
  int32_t peaks[64];
  lam_schedule_peaks(s, peaks);
  return peaks[rank];
}

static int least(int a, int b) { return a < b ? a : b; }

/* The bubble of p ranks with one stage each, m micro-batches, forward f, backward b, free
 * transfers: 1F1B and GPipe (p-1)(f+b); layer-wise all but m(f+b) of m p (f+b). */
static void check_laws(int p, int m, double f, double i, double w) {
  costs_of c;
  even_costs(f, i, w, 0, p, &c);
  const double both = f + i + w, work = m * both;
  const struct {
    const char *name;
    double makespan;
    int slope; /* peak on rank r: min(m, p - r), m, 1 */
  } laws[] = {{"1f1b", work + (p - 1) * both, 1},
              {"gpipe", work + (p - 1) * both, 0},
              {"layerwise", p * work, -1}};
  for (int k = 0; k < 3; k++) {
    NOTE("%s p %d m %d f %g i %g w %g", laws[k].name, p, m, f, i, w);
    lam_schedule *s = built(laws[k].name, p, m);
    const lam_simulated got = simulated(s, &c.costs);
    const float figures[3] = {(float)got.makespan, (float)got.bubble, (float)got.rank_bubble};
    const double own = laws[k].slope < 0 ? 1 - 1.0 / p : (p - 1.0) / (m + p - 1);
    const double want[3] = {laws[k].makespan, own, own};
    CHECK_CLOSE(figures, want, 3, 1e-6, 1e-7);
    for (int r = 0; r < p; r++)
      CHECK_EQ(peak_of(s, r), laws[k].slope > 0 ? least(m, p - r) : laws[k].slope == 0 ? m : 1);
    CHECK_EQ(info_of(s).peak_in_flight, peak_of(s, 0));
    lam_schedule_destroy(s);
  }
}

TEST(build, bubbles_and_peaks_follow_their_laws_for_any_p_m_and_costs) {
  rng r = {seed()};
  for (int k = 0; k < 300; k++)
    check_laws((int)rng_int(&r, 1, 12), (int)rng_int(&r, 1, 40), (double)rng_int(&r, 1, 900),
               (double)rng_int(&r, 1, 900), (double)rng_int(&r, 0, 900));
}

TEST(build, one_rank_or_one_micro_batch_is_a_schedule_too) {
  check_laws(1, 1, 1, 1, 1);
  check_laws(1, 7, 1, 1, 1);
  check_laws(6, 1, 1, 1, 1);
}

TEST(build, layerwise_keeps_one_worker_busy_at_a_time) {
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

static void check_refused(const char *name, int p, int v, int m, const char *message) {
  lam_schedule *s = (lam_schedule *)&s;
  CHECK(lam_schedule_build(name, p, v, m, &s) != LAM_OK);
  CHECK_STR(lam_last_error(), message);
  CHECK(!s);
}

TEST(build, refuses_what_no_builder_makes_and_says_why) {
  check_refused("zigzag", 4, 1, 8,
                "lam_schedule_build: name is \"zigzag\", known are layerwise, gpipe, 1f1b");
  check_refused("1f1b", 0, 1, 8,
                "lam_schedule_build: 1f1b of p 0, v 1, m 8: each must be at least 1");
  check_refused("gpipe", 4, 1, -1,
                "lam_schedule_build: gpipe of p 4, v 1, m -1: each must be at least 1");
  check_refused("1f1b", 4, 2, 8, "lam_schedule_build: 1f1b of v 2 stages per rank: v must be 1");
  check_refused("gpipe", 1 << 16, 1, 1 << 16,
                "lam_schedule_build: gpipe of p 65536, v 1, m 65536: at most 1048576 stages, "
                "67108864 stages x m");
  check_refused(NULL, 4, 1, 8, "lam_schedule_build: name is NULL");
  CHECK_STATUS(lam_schedule_build("1f1b", 1, 1, 1, NULL), LAM_INVALID_ARGUMENT);
}
