/* partition_test.c: cuts against a plain reference that tries every one, written out a second time;
 * caps, pins, empty stages, placements; what is refused. */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "tests/unit/pipeline/tables.h"

enum { MOST = 24 }; /* layers, stages */

typedef struct model {
  int n_layers, n_stages, n_ranks, n_micro;
  bool may_be_empty;
  lam_layer layers[MOST];
  lam_schedule *s;
  uint64_t caps[MOST];
  int32_t pinned[MOST];
} model;

/* -- the reference -- */

/* The most that a rank holds of activations: its list followed, act[stage] bytes by micro-batch. */
UNWATCHED static uint64_t most_held(const lam_schedule *s, int r, const uint64_t *act) {
  uint64_t held = 0, most = 0;
  for (int64_t i = s->first[r]; i < s->first[r + 1]; i++) {
    const lam_action *a = &s->actions[i];
    if (a->kind == LAM_KIND_F) held += act[a->stage];
    if (a->kind == LAM_KIND_B || a->kind == LAM_KIND_W) held -= act[a->stage];
    if (held > most) most = held;
  }
  return most;
}

typedef struct verdict {
  double step, bottleneck; /* step INFINITY: no cut fits */
  double sum;              /* the least of all cuts' times, all stages together */
  uint64_t missing;        /* by how many bytes the closest cut is above a cap */
} verdict;

UNWATCHED static const lam_layer *cut_after(const model *d, const int *first, int stage) {
  if (stage == d->n_stages - 1 || first[stage + 1] == 0) return NULL;
  if (d->s->rank_of_stage[stage] == d->s->rank_of_stage[stage + 1]) return NULL;
  return &d->layers[first[stage + 1] - 1];
}

UNWATCHED static void judge(const model *d, const int *first, verdict *best) {
  double time[MOST] = {0}, sum = 0, slowest = 0;
  uint64_t bytes[MOST] = {0}, act[MOST] = {0}, over = 0;
  for (int s = 0; s < d->n_stages; s++) {
    const int r = d->s->rank_of_stage[s];
    for (int l = first[s]; l < first[s + 1]; l++) {
      const lam_layer *is = &d->layers[l];
      time[r] += is->forward + is->backward_input + is->backward_weight;
      bytes[r] += is->static_bytes;
      act[s] += is->activation_bytes;
    }
    const lam_layer *cut = cut_after(d, first, s);
    if (cut) time[r] += cut->cut_time, bytes[r] += cut->cut_bytes;
  }
  for (int r = 0; r < d->n_ranks; r++) {
    sum += time[r], slowest = fmax(slowest, time[r]);
    if (d->caps[r] < INT64_MAX) bytes[r] += most_held(d->s, r, act);
    if (bytes[r] > d->caps[r] && bytes[r] - d->caps[r] > over) over = bytes[r] - d->caps[r];
  }
  if (over < best->missing) best->missing = over;
  if (sum < best->sum) best->sum = sum;
  const double step = sum + (d->n_micro - 1) * slowest;
  if (!over && step < best->step) best->step = step, best->bottleneck = slowest;
}

static void try_every(const model *d, int *first, int stage, verdict *best) {
  const int least = d->may_be_empty ? 0 : 1;
  if (stage == d->n_stages) {
    first[stage] = d->n_layers;
    if (first[stage] - first[stage - 1] >= least) judge(d, first, best);
    return;
  }
  for (int l = first[stage - 1] + least; l <= d->n_layers; l++)
    if (d->pinned[stage] < 0 || d->pinned[stage] == l) {
      first[stage] = l;
      try_every(d, first, stage + 1, best);
    }
}

static verdict reference(const model *d) {
  verdict best = {INFINITY, 0, INFINITY, UINT64_MAX};
  int first[MOST + 1] = {0};
  try_every(d, first, 1, &best);
  return best;
}

/* -- models -- */

static double random_time(rng *r) { return (double)rng_int(r, 0, 4) * (1 + rng_float(r)) * 100; }

static void random_layers(rng *r, model *d) {
  for (int i = 0; i < d->n_layers; i++)
    d->layers[i] = (lam_layer){.forward = random_time(r),
                               .backward_input = random_time(r),
                               .backward_weight = random_time(r),
                               .cut_time = rng_int(r, 0, 2) ? random_time(r) : 0,
                               .cut_bytes = (uint64_t)rng_int(r, 0, 50),
                               .static_bytes = (uint64_t)rng_int(r, 0, 100),
                               .activation_bytes = (uint64_t)rng_int(r, 0, 20)};
}

/* Loop, V, or one stage per rank, all forwards and then all backwards. */
static lam_schedule *placed(int p, int n_stages, int m, bool is_v) {
  lam_schedule *s = NULL;
  if (!CHECK_OK(lam_schedule_alloc(p, n_stages, m, &s))) return NULL;
  for (int r = 0; r < p; r++)
    for (int pass = 0; pass < 2; pass++)
      for (int k = 0; k < n_stages; k++) {
        const int stage = pass ? n_stages - 1 - k : k, lap = stage / p, at = stage % p;
        if ((is_v && lap % 2 ? p - 1 - at : at) != r) continue;
        for (int i = 0; i < m; i++)
          CHECK_OK(lam_schedule_push(s, r, pass ? LAM_KIND_B : LAM_KIND_F, stage, i));
      }
  CHECK_OK(lam_schedule_seal(s));
  return s;
}

static void random_caps(rng *r, model *d) {
  const bool tight = rng_int(r, 0, 1);
  for (int i = 0; i < d->n_ranks; i++)
    d->caps[i] = tight ? (uint64_t)rng_int(r, 100, 700) : INT64_MAX;
}

/* Pins some stages where a cut that has them is sure to exist. */
static void random_pins(rng *r, model *d) {
  const int slack = d->may_be_empty ? 0 : 1;
  int at = 0;
  for (int s = 0; s < d->n_stages; s++) {
    d->pinned[s] = -1;
    const int most = d->n_layers - slack * (d->n_stages - s);
    if (s && at < most) at += (int)rng_int(r, slack, most - at < slack ? slack : most - at);
    if (s && at <= most && at >= slack * s && !rng_int(r, 0, 5)) d->pinned[s] = at;
  }
}

/* A builder's, where one has this shape. */
static lam_schedule *random_schedule(rng *r, const model *d) {
  lam_schedule *s = NULL;
  int n = 0;
  while (lam_schedule_name(n)) n++;
  const char *name = lam_schedule_name((int)rng_int(r, 0, n - 1));
  const int v = d->n_stages / d->n_ranks;
  if (rng_int(r, 0, 3) && lam_schedule_build(name, d->n_ranks, v, d->n_micro, &s) == LAM_OK)
    return s;
  return placed(d->n_ranks, d->n_stages, d->n_micro, (int)rng_int(r, 0, 1));
}

static model random_model(rng *r, bool chain) {
  model d = {.may_be_empty = !rng_int(r, 0, 3), .n_micro = (int)rng_int(r, 1, 6)};
  d.n_ranks = (int)rng_int(r, 1, chain ? 6 : 3);
  d.n_stages = chain ? d.n_ranks : d.n_ranks * (int)rng_int(r, 2, 3);
  const int least = d.may_be_empty ? 1 : d.n_stages;
  d.n_layers = (int)rng_int(r, least, 10);
  random_layers(r, &d);
  d.s = random_schedule(r, &d);
  random_caps(r, &d);
  random_pins(r, &d);
  return d;
}

static lam_partition_desc desc_of(const model *d) {
  lam_partition_desc desc = LAM_PARTITION_DESC_INIT;
  desc.flags = d->may_be_empty ? LAM_PARTITION_EMPTY_STAGES : 0;
  desc.layers = d->layers, desc.n_layers = (uint32_t)d->n_layers;
  desc.schedule = d->s, desc.caps = d->caps, desc.pinned = d->pinned;
  return desc;
}

/* -- what is solved -- */

static void check_is_a_cut(const model *d, const int32_t *first) {
  CHECK_EQ(first[0], 0);
  CHECK_EQ(first[d->n_stages], d->n_layers);
  for (int s = 0; s < d->n_stages; s++) {
    CHECK(first[s + 1] - first[s] >= (d->may_be_empty ? 0 : 1));
    if (d->pinned[s] >= 0) CHECK_EQ(first[s], d->pinned[s]);
  }
}

static bool is_near(double a, double b) { return fabs(a - b) <= 1e-9 * (1 + fabs(b)); }

/* Of the cut that was given, by the reference's own rules. */
static verdict judged(const model *d, const int32_t *first) {
  int as_int[MOST + 1];
  verdict v = {INFINITY, 0, INFINITY, UINT64_MAX};
  for (int s = 0; s <= d->n_stages; s++) as_int[s] = first[s];
  judge(d, as_int, &v);
  return v;
}

static void check_against_reference(const model *d) {
  int32_t first[MOST + 1];
  lam_partition out = LAM_PARTITION_INIT;
  out.first_layer = first;
  const lam_partition_desc desc = desc_of(d);
  const lam_status status = lam_partition_solve(&desc, &out);
  const verdict want = reference(d);
  if (want.step == INFINITY) {
    char missing[64];
    snprintf(missing, sizeof missing, ": %llu bytes are missing", (unsigned long long)want.missing);
    if (CHECK_STATUS(status, LAM_RESOURCE_EXHAUSTED)) CHECK_CONTAINS(lam_last_error(), missing);
    return;
  }
  if (!CHECK_OK(status)) return;
  check_is_a_cut(d, first);
  const verdict got = judged(d, first);
  CHECK(is_near(out.step, want.step) && is_near(got.step, want.step));
  CHECK(is_near(out.bottleneck, got.bottleneck));
  CHECK(out.proven && is_near(out.bound, want.step));
}

TEST(partition, a_chain_has_the_shortest_step_of_all_cuts) {
  rng r = {seed()};
  for (int k = 0; k < tries(3000); k++) {
    model d = random_model(&r, true);
    NOTE("model %d: %d layers, %d stages", k, d.n_layers, d.n_stages);
    check_against_reference(&d);
    lam_schedule_destroy(d.s);
  }
}

TEST(partition, ranks_with_several_stages_have_the_shortest_step_where_all_cuts_are_tried) {
  rng r = {seed()};
  for (int k = 0; k < tries(1000); k++) {
    model d = random_model(&r, false);
    NOTE("model %d: %d layers, %d stages on %d ranks", k, d.n_layers, d.n_stages, d.n_ranks);
    check_against_reference(&d);
    lam_schedule_destroy(d.s);
  }
}

/* No step is shorter: the slowest rank has its share of the least sum, and the slowest layer. */
static double lower_bound(const model *d, double sum) {
  double slowest = sum / d->n_ranks;
  for (int i = 0; i < d->n_layers; i++) {
    const lam_layer *l = &d->layers[i];
    slowest = fmax(slowest, l->forward + l->backward_input + l->backward_weight);
  }
  return sum + (d->n_micro - 1) * slowest;
}

static void check_found(const model *d, const lam_partition *out, bool capped) {
  const verdict best = reference(d), got = judged(d, out->first_layer);
  check_is_a_cut(d, out->first_layer);
  CHECK(is_near(out->step, got.step)); /* INFINITY where it does not fit */
  CHECK(out->bound <= best.step * (1 + 1e-9) && out->step >= best.step * (1 - 1e-9));
  CHECK(out->step <= best.step * 1.02);
  CHECK(out->proven || strstr(out->proof, "heuristic"));
  if (!capped) CHECK(is_near(out->proven ? out->step : out->bound, lower_bound(d, best.sum)));
}

/* 24 layers on 8 stages of 4 ranks: too many cuts to try, so a search. Here every one is tried. */
static void check_search(rng *r, int k) {
  model d = {.n_layers = 24, .n_stages = 8, .n_ranks = 4, .n_micro = 8};
  const bool capped = k % 3 == 0;
  int32_t first[MOST + 1];
  random_layers(r, &d);
  d.s = placed(d.n_ranks, d.n_stages, d.n_micro, k % 2);
  for (int i = 0; i < MOST; i++) d.caps[i] = capped ? 2500 : INT64_MAX, d.pinned[i] = -1;
  const lam_partition_desc desc = desc_of(&d);
  lam_partition out = LAM_PARTITION_INIT;
  out.first_layer = first;
  if (CHECK_OK(lam_partition_solve(&desc, &out))) check_found(&d, &out, capped);
  lam_schedule_destroy(d.s);
}

TEST(partition, a_search_says_what_it_found_and_calls_proven_only_what_is) {
  rng r = {seed()};
  for (int k = 0; k < tries(8); k++) {
    NOTE("model %d", k);
    check_search(&r, k);
  }
}

/* Few cuts, but 2^48 ways to begin one that leave too few layers for the stages behind. */
TEST(partition, as_many_stages_as_layers_are_cut_at_once) {
  enum { LAYERS = 48 };
  lam_layer layers[LAYERS] = {{0}};
  int32_t first[LAYERS + 1];
  FOR_EACH(stages, LAYERS, LAYERS - 2) {
    lam_partition_desc desc = LAM_PARTITION_DESC_INIT;
    lam_partition out = LAM_PARTITION_INIT;
    for (int i = 0; i < LAYERS; i++) layers[i].forward = i ? 1 : 100; /* no bound is met */
    lam_schedule *s = placed(stages / 2, stages, 2, true);
    desc.layers = layers, desc.n_layers = LAYERS, desc.schedule = s, out.first_layer = first;
    CHECK_OK(lam_partition_solve(&desc, &out));
    CHECK_STR(out.proof, "exact: every cut was tried");
    for (int i = 0; i < stages; i++) CHECK(first[i + 1] > first[i]);
    CHECK_EQ(first[stages], LAYERS);
    lam_schedule_destroy(s);
  }
}

/* As large as a model gets; whether the cut is the best is checked on small ones. */
TEST(partition, a_thousand_layers_on_64_stages_are_cut_exactly) {
  enum { LAYERS = 1000, STAGES = 64, MICROS = 256 };
  static lam_layer layers[LAYERS];
  int32_t first[STAGES + 1];
  rng r = {seed()};
  lam_schedule *s = built("1f1b", STAGES, MICROS);
  for (int capped = 0; capped < 2; capped++) {
    uint64_t caps[STAGES];
    lam_partition_desc desc = LAM_PARTITION_DESC_INIT;
    lam_partition out = LAM_PARTITION_INIT;
    for (int i = 0; i < STAGES; i++) caps[i] = 4000; /* a stage of the mean size holds 1600 */
    for (int i = 0; i < LAYERS; i++)
      layers[i] = (lam_layer){.forward = 1e6 * (1.5 + rng_float(&r)),
                              .backward_input = 2e6 * (1.5 + rng_float(&r)),
                              .cut_time = 3e5 * (1 + rng_float(&r)),
                              .static_bytes = (uint64_t)rng_int(&r, 0, 200),
                              .activation_bytes = (uint64_t)rng_int(&r, 0, 6)};
    desc.layers = layers, desc.n_layers = LAYERS, desc.schedule = s;
    desc.caps = capped ? caps : NULL, out.first_layer = first;
    REQUIRE_OK(lam_partition_solve(&desc, &out));
    CHECK(out.proven && is_near(out.bound, out.step));
    CHECK_CONTAINS(out.proof, "exact");
    CHECK(first[0] == 0 && first[STAGES] == LAYERS);
    for (int i = 0; i < STAGES; i++) CHECK(first[i + 1] > first[i]);
  }
  lam_schedule_destroy(s);
}

/* -- a model that one can follow -- */

/* Embedding, six layers, head; the head takes as long as three layers. */
static model small_model(const char *schedule, int p, int m) {
  model d = {.n_layers = 8, .n_stages = p, .n_ranks = p, .n_micro = m, .s = built(schedule, p, m)};
  for (int i = 0; i < 8; i++)
    d.layers[i] = (lam_layer){.forward = 1,
                              .backward_input = 1,
                              .backward_weight = 1,
                              .static_bytes = 100,
                              .activation_bytes = 10};
  d.layers[0].forward = d.layers[0].backward_input = d.layers[0].backward_weight = 0;
  d.layers[7].forward = d.layers[7].backward_input = d.layers[7].backward_weight = 3;
  for (int i = 0; i < MOST; i++) d.pinned[i] = -1, d.caps[i] = INT64_MAX;
  return d;
}

static lam_status solved(const model *d, int32_t *first, lam_partition *out) {
  *out = (lam_partition)LAM_PARTITION_INIT;
  out->first_layer = first;
  const lam_partition_desc desc = desc_of(d);
  return lam_partition_solve(&desc, out);
}

TEST(partition, embedding_and_head_weigh_what_they_cost) {
  model d = small_model("1f1b", 3, 4);
  int32_t first[4];
  double time[3];
  uint64_t bytes[3];
  lam_partition out = LAM_PARTITION_INIT;
  out.first_layer = first, out.stage_time = time, out.rank_bytes = bytes;
  const lam_partition_desc desc = desc_of(&d);
  REQUIRE_OK(lam_partition_solve(&desc, &out));
  CHECK(first[0] == 0 && first[1] == 4 && first[2] == 7 && first[3] == 8); /* E 3 | 3 | head */
  CHECK(time[0] == 9 && time[1] == 9 && time[2] == 9 && out.bottleneck == 9);
  CHECK(out.step == 27 + 3 * 9 && out.proven);
  CHECK_STR(out.proof, "exact: one stage per rank");
  CHECK_EQ(bytes[0], 400 + 3 * 40); /* three micro-batches in flight on the first of three ranks */
  CHECK_EQ(bytes[1], 300 + 2 * 30);
  CHECK_EQ(bytes[2], 100 + 10);
  lam_schedule_destroy(d.s);
}

TEST(partition, a_cap_counts_what_the_schedule_keeps_in_flight) {
  int32_t first[4];
  lam_partition out;
  model d = small_model("1f1b", 3, 4);
  for (int r = 0; r < 3; r++) d.caps[r] = 519; /* one byte less than the evenest cut needs */
  CHECK_OK(solved(&d, first, &out));
  CHECK(first[1] == 3 && out.bottleneck == 12);
  lam_schedule_destroy(d.s);
  d.s = built("gpipe", 3, 4); /* 4 of 4 everywhere: 140 by layer */
  CHECK_OK(solved(&d, first, &out));
  CHECK(first[1] <= 3 && first[2] - first[1] <= 3 && first[3] - first[2] <= 3);
  lam_schedule_destroy(d.s);
}

TEST(partition, where_nothing_fits_the_stage_that_binds_is_named_and_the_bytes_that_are_missing) {
  int32_t first[4];
  lam_partition out;
  model d = small_model("gpipe", 3, 4);
  for (int r = 0; r < 3; r++) d.caps[r] = 400; /* two layers of 140 each, of eight on three */
  CHECK_STATUS(solved(&d, first, &out), LAM_RESOURCE_EXHAUSTED);
  CHECK_CONTAINS(lam_last_error(), "no cut fits: stage ");
  CHECK_CONTAINS(lam_last_error(), "4 micro-batches in flight");
  CHECK_CONTAINS(lam_last_error(), "holds 420 bytes, its cap is 400: 20 bytes are missing");
  for (int r = 0; r < 3; r++) d.caps[r] = r == 1 ? 100 : 1000;
  CHECK_STATUS(solved(&d, first, &out), LAM_RESOURCE_EXHAUSTED);
  CHECK_CONTAINS(lam_last_error(), "stage 1 (rank 1) binds");
  CHECK_CONTAINS(lam_last_error(), "holds 140 bytes, its cap is 100: 40 bytes are missing");
  lam_schedule_destroy(d.s);
}

TEST(partition, pinned_cuts_stay_and_empty_stages_come_only_where_they_may) {
  int32_t first[4];
  lam_partition out;
  model d = small_model("1f1b", 3, 4);
  d.pinned[1] = 1;
  CHECK_OK(solved(&d, first, &out));
  CHECK(first[1] == 1 && out.bottleneck == 15);
  d.pinned[1] = -1, d.pinned[2] = 1;
  CHECK_STATUS(solved(&d, first, &out), LAM_INVALID_ARGUMENT);
  CHECK_CONTAINS(lam_last_error(),
                 "stages 0 to 1 are pinned to layers 0 to 0 of 8: expected at least 2");
  d.may_be_empty = true;
  CHECK_OK(solved(&d, first, &out));
  CHECK(first[2] == 1);
  d.pinned[2] = 9;
  CHECK_STATUS(solved(&d, first, &out), LAM_INVALID_ARGUMENT);
  d.pinned[2] = -1, d.may_be_empty = false, d.n_layers = 2;
  CHECK_STATUS(solved(&d, first, &out), LAM_INVALID_ARGUMENT);
  CHECK_CONTAINS(lam_last_error(), "2 layers on 3 stages: each stage needs a layer");
  d.may_be_empty = true;
  CHECK_OK(solved(&d, first, &out));
  lam_schedule_destroy(d.s);
}

TEST(partition, what_is_no_problem_is_refused) {
  int32_t first[4];
  lam_partition out = LAM_PARTITION_INIT;
  model d = small_model("1f1b", 3, 4);
  lam_partition_desc desc = desc_of(&d);
  CHECK_STATUS(lam_partition_solve(NULL, &out), LAM_INVALID_ARGUMENT);
  CHECK_STATUS(lam_partition_solve(&desc, NULL), LAM_INVALID_ARGUMENT);
  desc.schedule = NULL;
  CHECK_STATUS(lam_partition_solve(&desc, &out), LAM_INVALID_ARGUMENT);
  CHECK_CONTAINS(lam_last_error(), "desc.schedule is NULL");
  desc = desc_of(&d), desc.layers = NULL;
  CHECK_STATUS(lam_partition_solve(&desc, &out), LAM_INVALID_ARGUMENT);
  desc = desc_of(&d), desc.flags = 6;
  CHECK_STATUS(lam_partition_solve(&desc, &out), LAM_INVALID_ARGUMENT);
  d.layers[2].cut_time = NAN;
  CHECK_STATUS(solved(&d, first, &out), LAM_INVALID_ARGUMENT);
  CHECK_CONTAINS(lam_last_error(), "layers[2].cut_time is");
  d.layers[2].cut_time = 0, d.layers[3].activation_bytes = UINT64_MAX;
  CHECK_STATUS(solved(&d, first, &out), LAM_INVALID_ARGUMENT);
  CHECK_CONTAINS(lam_last_error(), "layers hold");
  lam_schedule_destroy(d.s);
}
