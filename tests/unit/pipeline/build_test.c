/* build_test.c: the builders: their goldens, every size they take, what they refuse. Their laws are
 * in laws_test.c. */
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
  CHECK(n >= 38);
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
  CHECK_EQ(n, 11);
  CHECK(!lam_schedule_about(n) && !lam_schedule_name(-1));
}

/* -- every builder, every size -- */

typedef struct sizes {
  const char *name;
  int p, v, m;
} sizes;

/* Stages of a rank: in a loop c p + r, in a V r and 2p-1-r. */
static int rank_of(const sizes *z, int stage) {
  const bool is_v = !strcmp(z->name, "zbv") || !strcmp(z->name, "v-half") ||
                    !strcmp(z->name, "v-min") || !strcmp(z->name, "dualpipev");
  return is_v && stage >= z->p ? 2 * z->p - 1 - stage : stage % z->p;
}

/* F, and B or I and W, of every (stage, micro-batch) once, on the stage's rank, and nothing else:
 * counted here without check. */
static void check_each_once(const sizes *z, const lam_schedule *s) {
  enum { MOST = 8 * 4 * 20 };
  int f[MOST] = {0}, i[MOST] = {0}, w[MOST] = {0}, strays = 0;
  for (int r = 0; r < z->p; r++)
    for (int64_t k = s->first[r]; k < s->first[r + 1]; k++) {
      const lam_action *a = &s->actions[k];
      const int pair = a->stage * z->m + a->micro;
      f[pair] += a->kind == LAM_KIND_F;
      i[pair] += a->kind == LAM_KIND_I || a->kind == LAM_KIND_B;
      w[pair] += a->kind == LAM_KIND_W || a->kind == LAM_KIND_B;
      strays += rank_of(z, a->stage) != r || a->kind > LAM_KIND_B;
    }
  for (int k = 0; k < z->p * z->v * z->m; k++) strays += f[k] != 1 || i[k] != 1 || w[k] != 1;
  CHECK_EQ(strays, 0);
}

/* With its transfers written out it runs even where a send is only over once it is received. */
static void check_lowered(const lam_schedule *s) {
  lam_schedule *lowered = NULL;
  CHECK_OK(lam_schedule_lower(s, &lowered));
  if (lowered) CHECK_OK(lam_schedule_check(lowered, NULL));
  lam_schedule_destroy(lowered);
}

/* False where the builder refuses the size. */
static bool check_size(const sizes *z) {
  lam_schedule *s = NULL;
  NOTE("%s p %d v %d m %d", z->name, z->p, z->v, z->m);
  if (lam_schedule_build(z->name, z->p, z->v, z->m, &s) != LAM_OK) return false;
  CHECK_EQ(s->n_ranks, z->p), CHECK_EQ(s->n_stages, z->p * z->v), CHECK_EQ(s->n_micro, z->m);
  check_each_once(z, s);
  CHECK_OK(lam_schedule_check(s, NULL));
  check_lowered(s);
  lam_schedule_destroy(s);
  return true;
}

/* p 1 to 8, v 1 to 4, m 1 to 20: how many of the 640 sizes a builder takes. */
static int count_sizes(const char *name) {
  int n = 0;
  for (int p = 1; p <= 8; p++)
    for (int v = 1; v <= 4; v++)
      for (int m = 1; m <= 20; m++) n += check_size(&(sizes){name, p, v, m});
  return n;
}

TEST(build, every_size_that_a_builder_takes_runs_and_has_everything_once) {
  for (int k = 0; lam_schedule_name(k); k++) {
    const char *name = lam_schedule_name(k);
    const bool any_v = strstr(name, "interleaved");
    /* one v, or four; every m, but for DualPipeV's at least 2p: 20 - 2p + 1 of them */
    int n = any_v ? 640 : 160;
    if (!strcmp(name, "dualpipev")) n = 8 * 21 - 2 * 8 * 9 / 2;
    CHECK_EQ(count_sizes(name), n);
  }
}

TEST(build, large_tables_run_too) {
  for (int k = 0; lam_schedule_name(k); k++) {
    lam_schedule *s = NULL;
    if (lam_schedule_build(lam_schedule_name(k), 64, 2, 512, &s) != LAM_OK)
      CHECK_OK(lam_schedule_build(lam_schedule_name(k), 64, 1, 512, &s));
    NOTE("%s", lam_schedule_name(k));
    CHECK_OK(lam_schedule_check(s, NULL));
    lam_schedule_destroy(s);
  }
}

static void check_refused(const char *name, int p, int v, int m, const char *message) {
  lam_schedule *s = (lam_schedule *)&s;
  CHECK(lam_schedule_build(name, p, v, m, &s) != LAM_OK);
  CHECK_STR(lam_last_error(), message);
  CHECK(!s);
}

TEST(build, refuses_what_no_builder_makes_and_says_why) {
  check_refused("zigzag", 4, 1, 8,
                "lam_schedule_build: name is \"zigzag\", known are layerwise, gpipe, 1f1b, "
                "interleaved, zb-h1, zb-h2, interleaved-zb, zbv, v-half, v-min, dualpipev, auto");
  check_refused("1f1b", 0, 1, 8,
                "lam_schedule_build: 1f1b of p 0, v 1, m 8: each must be at least 1");
  check_refused("gpipe", 4, 1, -1,
                "lam_schedule_build: gpipe of p 4, v 1, m -1: each must be at least 1");
  check_refused("1f1b", 4, 2, 8, "lam_schedule_build: 1f1b of v 2 stages per rank: v must be 1");
  check_refused("gpipe", 1 << 16, 1, 1 << 16,
                "lam_schedule_build: gpipe of p 65536, v 1, m 65536: at most 1048576 stages, "
                "67108864 stages x m");
  check_refused("zbv", 4, 1, 8, "lam_schedule_build: zbv of v 1 stages per rank: v must be 2");
  check_refused("dualpipev", 4, 3, 8,
                "lam_schedule_build: dualpipev of v 3 stages per rank: v must be 2");
  check_refused("dualpipev", 4, 2, 7,
                "lam_schedule_build: dualpipev of p 4, m 7: m must be at least 2 p, so 8");
  check_refused("dualpipev", 1, 2, 1,
                "lam_schedule_build: dualpipev of p 1, m 1: m must be at least 2 p, so 2");
  check_refused("v-min", 1 << 14, 2, 1,
                "lam_schedule_build: v-min of p 16384, m 1: p (6p + 8m + 3) is 1610792960 slots, "
                "expected at most 67108864");
  check_refused(NULL, 4, 1, 8, "lam_schedule_build: name is NULL");
  CHECK_STATUS(lam_schedule_build("1f1b", 1, 1, 1, NULL), LAM_INVALID_ARGUMENT);
}
