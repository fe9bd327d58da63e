/* choose_test.c: which schedule "auto" is, why, and that it fits in memory. */
#include <string.h>

#include "plugin/pipeline/schedule/walk.h"
#include "tests/unit/pipeline/tables.h"

enum { SPLITS = LAM_CHOICE_SPLITS, OVERLAPS = LAM_CHOICE_OVERLAPS, LOOSE = LAM_CHOICE_LOOSE };

/* Of a rank: 100 bytes always, 40 for one micro-batch. */
static lam_choice_desc desc_of(int p, int v, int m, uint32_t flags, uint64_t cap) {
  lam_choice_desc d = LAM_CHOICE_DESC_INIT;
  d.p = p, d.v = v, d.m = m;
  d.flags = flags;
  d.static_bytes = 100, d.activation_bytes = 40, d.cap_bytes = cap;
  return d;
}

TEST(choose, follows_the_rule) {
  static const struct {
    int p, v, m;
    uint32_t flags;
    uint64_t cap;
    const char *name, *reason;
    int chosen_v;
  } rows[] = {
      {1, 2, 8, SPLITS, 0, "1f1b", "one rank", 1},
      {4, 2, 8, SPLITS | OVERLAPS, 0, "dualpipev", "measured", 2},
      {4, 2, 7, SPLITS | OVERLAPS, 0, "zbv", "backward splits", 2}, /* m < 2p */
      {4, 2, 15, SPLITS | OVERLAPS, 0, "dualpipev", "measured", 2},
      {4, 2, 16, SPLITS | OVERLAPS, 0, "1f1b", "4 p micro-batches", 1},
      {4, 2, 16, OVERLAPS, 0, "1f1b", "4 p micro-batches", 1},
      {4, 2, 8, SPLITS | OVERLAPS | LOOSE, 0, "1f1b", "memory is loose", 1},
      {4, 2, 8, OVERLAPS, 0, "dualpipev", "measured", 2},
      {4, 1, 8, SPLITS | OVERLAPS, 0, "zb-h1", "one stage per rank", 1},
      {4, 2, 15, SPLITS, 0, "zbv", "backward splits", 2},
      {4, 2, 16, SPLITS, 0, "1f1b", "4 p micro-batches", 1},
      {4, 2, 8, SPLITS | LOOSE, 0, "1f1b", "memory is loose", 1},
      {4, 2, 8, 0, 0, "interleaved", "does not split", 2},
      {4, 3, 8, 0, 0, "interleaved", "does not split", 3},
      {4, 1, 8, SPLITS, 0, "zb-h1", "one stage per rank", 1},
      {4, 1, 8, 0, 0, "1f1b", "at most p", 1},
      /* 4 p micro-batches: zbv holds 4 of them, v-half 3, v-min 2, layerwise 1. */
      {4, 2, 8, SPLITS, 260, "zbv", "backward splits", 2},
      {4, 2, 8, SPLITS, 259, "v-half", "zbv would not fit in 259 bytes; v-half: about half", 2},
      {4, 2, 8, SPLITS, 219, "v-min", "zbv, v-half would not fit in 219 bytes; v-min: ", 2},
      {4, 2, 8, SPLITS, 179, "layerwise", "zbv, v-half, v-min, 1f1b would not fit", 1},
      {4, 2, 8, 0, 319, "1f1b", "interleaved would not fit in 319 bytes; 1f1b: at most p", 1},
      {4, 2, 8, SPLITS | OVERLAPS, 279, "zbv", "dualpipev would not fit in 279 bytes", 2},
  };
  for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) {
    NOTE("p %d, v %d, m %d, flags %u, cap %d", rows[i].p, rows[i].v, rows[i].m, rows[i].flags,
         (int)rows[i].cap);
    lam_choice out = LAM_CHOICE_INIT;
    const lam_choice_desc d = desc_of(rows[i].p, rows[i].v, rows[i].m, rows[i].flags, rows[i].cap);
    if (!CHECK_OK(lam_schedule_choose(&d, &out))) continue;
    CHECK_STR(out.name, rows[i].name);
    CHECK_CONTAINS(out.reason, rows[i].reason);
    CHECK_EQ(out.v, rows[i].chosen_v);
  }
}

TEST(choose, takes_what_can_be_built_and_fits) {
  rng r = {seed()};
  for (int k = 0; k < 300; k++) {
    const lam_choice_desc d = desc_of(
        (int)rng_int(&r, 1, 8), (int)rng_int(&r, 1, 3), (int)rng_int(&r, 1, 40),
        (uint32_t)rng_int(&r, 0, 7), (uint64_t)rng_int(&r, 0, 1) * (uint64_t)rng_int(&r, 100, 500));
    NOTE("p %d, v %d, m %d, flags %u, cap %d", d.p, d.v, d.m, d.flags, (int)d.cap_bytes);
    lam_choice out = LAM_CHOICE_INIT;
    lam_schedule *s = NULL;
    const lam_status status = lam_schedule_choose(&d, &out);
    if (d.cap_bytes && d.cap_bytes < 140) { /* not even one micro-batch */
      CHECK_STATUS(status, LAM_RESOURCE_EXHAUSTED);
      continue;
    }
    if (!CHECK_OK(status) || !CHECK_OK(lam_schedule_build(out.name, d.p, out.v, d.m, &s))) continue;
    CHECK(out.v <= d.v);
    CHECK_EQ(out.bytes, 100 + (uint64_t)(40. * info_of(s).peak_in_flight / out.v + 0.5));
    CHECK(!d.cap_bytes || out.bytes <= d.cap_bytes);
    lam_schedule_destroy(s);
  }
}

TEST(choose, a_cap_that_is_too_small_names_what_is_missing) {
  lam_choice out = LAM_CHOICE_INIT;
  const lam_choice_desc d = desc_of(4, 2, 8, SPLITS, 139);
  CHECK_STATUS(lam_schedule_choose(&d, &out), LAM_RESOURCE_EXHAUSTED);
  CHECK_CONTAINS(lam_last_error(),
                 "cap_bytes is 139: even layerwise, which holds least, takes 140");
  CHECK_CONTAINS(lam_last_error(), "1 bytes are missing");
  CHECK(!out.name && !out.reason[0]);
}

TEST(choose, what_makes_no_pipeline_is_refused) {
  lam_choice out = LAM_CHOICE_INIT;
  lam_choice_desc d = desc_of(4, 0, 8, 0, 0);
  CHECK_STATUS(lam_schedule_choose(&d, &out), LAM_INVALID_ARGUMENT);
  CHECK_CONTAINS(lam_last_error(), "p 4, v 0, m 8: each must be at least 1");
  d = desc_of(4, 1, 8, 64, 0);
  CHECK_STATUS(lam_schedule_choose(&d, &out), LAM_INVALID_ARGUMENT);
  d = desc_of(1 << 20, 1, 1 << 20, 0, 0);
  CHECK_STATUS(lam_schedule_choose(&d, &out), LAM_INVALID_ARGUMENT);
  CHECK_CONTAINS(lam_last_error(), "at most");
  CHECK_STATUS(lam_schedule_choose(NULL, &out), LAM_INVALID_ARGUMENT);
}

TEST(choose, auto_is_a_name_that_is_built) {
  rng r = {seed()};
  for (int round = 0; round < 50; round++) {
    lam_choice_desc d =
        desc_of((int)rng_int(&r, 1, 8), (int)rng_int(&r, 1, 3), (int)rng_int(&r, 1, 40), SPLITS, 0);
    lam_choice choice = LAM_CHOICE_INIT;
    lam_schedule *chosen = NULL, *built = NULL;
    NOTE("p %d, v %d, m %d", d.p, d.v, d.m);
    REQUIRE_OK(lam_schedule_choose(&d, &choice));
    REQUIRE_OK(lam_schedule_build(choice.name, d.p, choice.v, d.m, &chosen));
    REQUIRE_OK(lam_schedule_build("auto", d.p, d.v, d.m, &built));
    CHECK_EQ(built->n_stages, d.p * choice.v);
    CHECK_EQ(lam_schedule_n_actions(built), lam_schedule_n_actions(chosen));
    CHECK(memcmp(built->actions, chosen->actions,
                 sizeof *built->actions * (size_t)lam_schedule_n_actions(chosen)) == 0);
    lam_schedule_destroy(chosen);
    lam_schedule_destroy(built);
  }
}
