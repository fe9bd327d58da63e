/* weights_test.c: weights that stages share: summed once per step over the ranks that hold them,
 * left alone where one rank does.
 * Leaves weights of one stage alone to runtime_schedules_test.c. */
#include <string.h>

#include "tests/distributed/pipeline/worker.h"
#include "tests/place.h"

enum { N = 37 };
#define IN_F64 "a device sums no f64"

typedef struct tied_run {
  setup at;
  int32_t stages[3];
  uint32_t n;
} tied_run;

static bool holds(const tied_run *r, int rank, int stage) {
  for (uint32_t i = 0; i < r->n; i++)
    if (r->stages[i] == stage && r->at.s->rank_of_stage[stage] == rank) return true;
  return false;
}

/* What a stage adds to the shared gradient in a step; sums of them are exact. */
static double share(int stage, int step, int i) { return 1000 * stage + 10 * step + i + 1; }

static bool fill_own(const tied_run *r, int rank, int step, double *g) {
  bool any = false;
  memset(g, 0, N * sizeof *g);
  for (int s = 0; s < r->at.s->n_stages; s++) {
    if (!holds(r, rank, s)) continue;
    any = true;
    for (int i = 0; i < N; i++) g[i] += share(s, step, i);
  }
  return any;
}

static lam_tied tie(const tied_run *r, double *gradient) {
  lam_tied t = LAM_TIED_INIT;
  t.stages = r->stages, t.n_stages = r->n;
  t.shape = (lam_shape){1, {kDLFloat, place_is_host() ? 64 : 32, 1}, {N}};
  t.gradient = gradient;
  return t;
}

static void check_sums(const tied_run *r, int step, const double *g) {
  for (int i = 0; i < N; i++) {
    double sum = 0;
    for (uint32_t k = 0; k < r->n; k++) sum += share(r->stages[k], step, i);
    if (!CHECK(g[i] == sum)) return;
  }
}

static void share_weights(int rank, int size, void *arg) {
  const tied_run *r = arg;
  worker k;
  double g[N];
  const bool holder = fill_own(r, rank, 0, g);
  worker_prepare(&k, &r->at, rank, size);
  const lam_tied t = tie(r, holder ? g : NULL);
  k.desc.tied = &t, k.desc.n_tied = 1;
  REQUIRE_OK(worker_start(&k));
  for (int step = 0; step < 3; step++) {
    fill_own(r, rank, step, g);
    CHECK_OK(lam_pipeline_run(k.pipeline, step, NULL));
    if (holder) check_sums(r, step, g);
  }
  worker_close(&k);
}

static void run_tied(const char *name, int p, int v, int32_t a, int32_t b, int32_t c,
                     bool processes) {
  lam_schedule *s = NULL;
  REQUIRE_OK(lam_schedule_build(name, p, v, 6, &s));
  NOTE("%s p=%d, stages %d, %d, %d", name, p, a, b, c);
  tied_run r = {
      .at = {.m = small_model(p * v, 6), .s = s}, .stages = {a, b, c}, .n = c < 0 ? 2 : 3};
  CHECK_OK(lam_group_id_create(&r.at.id));
  (processes ? run_processes : run_threads)(p, share_weights, &r);
  lam_schedule_destroy(s);
}

TEST(pipeline_weights, shared_ones_are_summed_once_over_the_ranks_that_hold_them) {
  if (!place_is_host()) SKIP(IN_F64);
  run_tied("1f1b", 2, 1, 0, 1, -1, false);
  run_tied("1f1b", 3, 1, 0, 2, -1, false); /* rank 1 holds none */
  run_tied("interleaved", 2, 2, 0, 3, -1, false);
  run_tied("zbv", 3, 2, 0, 1, 5, false); /* rank 0 holds both ends, rank 1 the other */
  run_tied("zb-h1", 3, 1, 0, 2, -1, true);
}

TEST(pipeline_weights, a_rank_that_holds_all_of_them_has_the_sum_already) {
  if (!place_is_host()) SKIP(IN_F64);
  run_tied("zbv", 2, 2, 0, 3, -1, false);
  run_tied("interleaved", 1, 2, 0, 1, -1, false);
}

/* In f32: rank 0's are thirds, rank 2's sevenths, whose sums round. */
static void share_f32(int rank, int size, void *arg) {
  const tied_run *r = arg;
  float g[N], want[N], *there = place_alloc(sizeof g);
  worker k;
  worker_prepare(&k, &r->at, rank, size);
  lam_tied t = tie(r, NULL);
  t.shape.dtype.bits = 32;
  t.gradient = rank == 1 ? NULL : there;
  k.desc.tied = &t, k.desc.n_tied = 1;
  REQUIRE_OK(worker_start(&k));
  for (int step = 0; step < 3; step++) {
    for (int i = 0; i < N; i++) {
      const float first = (float)(i + step + 1) / 3, second = (float)(i - 10 * step) / 7;
      g[i] = rank == 0 ? first : second, want[i] = first + second;
    }
    place_write(there, g, sizeof g);
    CHECK_OK(lam_pipeline_run(k.pipeline, step, NULL));
    place_read(g, there, sizeof g);
    place_finish();
    if (rank != 1) CHECK_SAME_BITS(g, want, sizeof want);
  }
  worker_close(&k);
  place_free(there);
}

TEST(pipeline_weights, f32_sums_are_rounded_once) {
  lam_schedule *s = build("1f1b", 3, 5);
  tied_run r = {.at = {.m = small_model(3, 5), .s = s}, .stages = {0, 2}, .n = 2};
  CHECK_OK(lam_group_id_create(&r.at.id));
  run_threads(3, share_f32, &r);
  lam_schedule_destroy(s);
}

/* -- what cannot be shared -- */

static void be_refused(const tied_run *r, const lam_tied *tied, lam_status expected,
                       const char *part) {
  worker k;
  worker_prepare(&k, &r->at, 0, 1);
  k.desc.tied = tied, k.desc.n_tied = 1;
  CHECK_STATUS(worker_start(&k), expected);
  CHECK_CONTAINS(lam_last_error(), part);
  worker_close(&k);
}

static void refuse_stages(tied_run r, int32_t first, int32_t second, const char *part) {
  double g[N];
  r.stages[0] = first, r.stages[1] = second;
  const lam_tied t = tie(&r, g);
  be_refused(&r, &t, LAM_INVALID_ARGUMENT, part);
}

TEST(pipeline_weights, malformed_lists_are_refused) {
  lam_schedule *s = NULL;
  REQUIRE_OK(lam_schedule_build("interleaved", 1, 2, 2, &s));
  const tied_run r = {.at = {.m = small_model(2, 2), .s = s}, .stages = {0, 1}, .n = 2};
  double g[N];
  refuse_stages(r, 0, 2, "stages[1] is 2, expected ascending stages below 2");
  refuse_stages(r, 0, 0, "stages[1] is 0");
  refuse_stages(r, -1, 0, "stages[0] is -1");
  lam_tied t = tie(&r, g);
  t.n_stages = 1;
  be_refused(&r, &t, LAM_INVALID_ARGUMENT, "1 stages, expected 2 or more");
  t = tie(&r, g);
  t.shape.dtype = (DLDataType){kDLInt, 8, 1};
  be_refused(&r, &t, LAM_UNIMPLEMENTED, "cannot be summed");
  t = tie(&r, g);
  t.shape.ndim = 9;
  be_refused(&r, &t, LAM_INVALID_ARGUMENT, "ndim is 9");
  t = tie(&r, g);
  t.shape.dims[0] = -1;
  be_refused(&r, &t, LAM_INVALID_ARGUMENT, "dims[0] is -1");
  t = tie(&r, NULL);
  be_refused(&r, &t, LAM_INVALID_ARGUMENT, "gradient is NULL");
  be_refused(&r, NULL, LAM_INVALID_ARGUMENT, "tied is NULL");
  lam_schedule_destroy(s);
}

static void disagree(int rank, int size, void *arg) {
  tied_run r = *(const tied_run *)arg;
  double g[N];
  worker k;
  worker_prepare(&k, &r.at, rank, size);
  lam_tied t = tie(&r, g);
  t.shape.dims[0] -= rank;
  k.desc.tied = &t, k.desc.n_tied = 1;
  CHECK_STATUS(worker_start(&k), LAM_MISMATCH);
  CHECK_CONTAINS(lam_last_error(), "tied weights are not those of rank 0");
  worker_close(&k);
}

static void keep_it_back(int rank, int size, void *arg) {
  tied_run r = *(const tied_run *)arg;
  double g[N];
  worker k;
  worker_prepare(&k, &r.at, rank, size);
  lam_tied t = tie(&r, rank ? NULL : g);
  k.desc.tied = &t, k.desc.n_tied = 1;
  CHECK_STATUS(worker_start(&k), LAM_INVALID_ARGUMENT);
  CHECK_CONTAINS(lam_last_error(), "gradient is NULL, and rank 1 holds one of its stages");
  worker_close(&k);
}

TEST(pipeline_weights, ranks_that_disagree_are_told_so) {
  lam_schedule *s = build("1f1b", 2, 3);
  tied_run r = {.at = {.m = small_model(2, 3), .s = s}, .stages = {0, 1}, .n = 2};
  CHECK_OK(lam_group_id_create(&r.at.id));
  run_threads(2, disagree, &r);
  CHECK_OK(lam_group_id_create(&r.at.id));
  run_threads(2, keep_it_back, &r);
  lam_schedule_destroy(s);
}
