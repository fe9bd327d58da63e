/* foreign_pipeline_test.c: a pipeline whose every stage is made of foreign functions, forward and
 * backward, trained with no shim in between; and what it says when one of them fails. The library
 * libtarget.so lies beside this program. */
#include <dlfcn.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "abi/status.h"
#include "tests/check.h"

enum { N = 6, MICRO = 4, STAGES = 4, STEPS = 2 }; /* stage 0 data, 1 and 2 layers, 3 the loss */

typedef struct layer { /* as the library has it */
  int64_t n;
  double *w, *dw, *saved;
  int64_t rows;
} layer;

static const char *target_path(void) {
  static _Thread_local char path[4200];
  const ssize_t n = readlink("/proc/self/exe", path, 4000);
  path[n < 0 ? 0 : n] = 0;
  char *slash = strrchr(path, '/');
  strcpy(slash ? slash + 1 : path, "libtarget.so");
  return path;
}

static void layer_init(layer *l, int seed_of, int rows) {
  rng r = {(uint64_t)seed_of};
  *l = (layer){.n = N, .rows = rows};
  l->w = calloc(N * N, sizeof(double)), l->dw = calloc(N * N, sizeof(double));
  l->saved = calloc((size_t)(MICRO * rows * N), sizeof(double));
  for (int i = 0; i < N * N; i++) l->w[i] = rng_float(&r);
}

static void layer_finish(layer *l) { free(l->w), free(l->dw), free(l->saved); }

/* What each stage calls; $0 is its layer. */
static const char *const calls[STAGES][2][2] = {
    {{"target_data", "i64:step i32:micro i64:out0.numel p:out0.data -> void"},
     {"target_nothing", "-> void"}},
    {{"target_layer_forward", "p:$0 i32:micro p:in0.data p:out0.data -> i32"},
     {"target_layer_backward", "p:$0 i32:micro p:in0.data p:out0.data -> i32"}},
    {{"target_layer_forward", "p:$0 i32:micro p:in0.data p:out0.data -> i32"},
     {"target_layer_backward", "p:$0 i32:micro p:in0.data p:out0.data -> i32"}},
    {{"target_loss_forward", "p:$0 i32:micro p:in0.data p:loss -> i32"},
     {"target_loss_backward", "p:$0 i32:micro p:out0.data -> i32"}},
};

static lam_foreign *make(int stage, int direction, layer *l) {
  const char *const *c = calls[stage][direction];
  const lam_attr state = lam_attr_i((int64_t)(intptr_t)l);
  lam_foreign *f = NULL;
  CHECK_OK(lam_foreign_create(target_path(), c[0], c[1], &state, strstr(c[1], "$0") != NULL, &f));
  return f;
}

typedef struct job {
  lam_group_id id;
  int rows;
  double dw[STAGES][N * N], loss[STEPS]; /* what must come out */
} job;

/* The same library, called by hand. */
static void by_hand(job *j) {
  void *lib = dlopen(target_path(), RTLD_NOW | RTLD_LOCAL);
  REQUIRE(lib != NULL);
  void (*data)(int64_t, int32_t, int64_t, double *);
  int (*forward)(layer *, int32_t, const double *, double *),
      (*backward)(layer *, int32_t, const double *, double *);
  int (*loss_forward)(layer *, int32_t, const double *, double *);
  *(void **)&data = dlsym(lib, "target_data");
  *(void **)&forward = dlsym(lib, "target_layer_forward");
  *(void **)&backward = dlsym(lib, "target_layer_backward");
  *(void **)&loss_forward = dlsym(lib, "target_loss_forward");
  layer l[STAGES];
  double a[64 * N], b[64 * N], c[64 * N];
  for (int i = 0; i < STAGES; i++) layer_init(&l[i], i, j->rows);
  for (int step = 0; step < STEPS; step++)
    for (int m = 0; m < MICRO; m++) {
      data(step, m, j->rows * N, a);
      forward(&l[1], m, a, b), forward(&l[2], m, b, c), loss_forward(&l[3], m, c, &j->loss[step]);
      backward(&l[2], m, c, b), backward(&l[1], m, b, a);
    }
  for (int i = 0; i < STAGES; i++) memcpy(j->dw[i], l[i].dw, sizeof j->dw[i]), layer_finish(&l[i]);
  dlclose(lib);
}

typedef struct rank {
  layer layers[STAGES];
  lam_foreign *handles[STAGES][2];
  lam_stage stages[STAGES];
  lam_group *group;
  lam_schedule *schedule;
  lam_pipeline *pipeline;
} rank;

static void open_rank(rank *k, const job *j, int me, int size) {
  static const char one[] =
      "0F0 1F0 2F0 3F0 3B0 2B0 1B0 0B0 0F1 1F1 2F1 3F1 3B1 2B1 1B1 0B1 "
      "0F2 1F2 2F2 3F2 3B2 2B2 1B2 0B2 0F3 1F3 2F3 3F3 3B3 2B3 1B3 0B3";
  *k = (rank){.group = NULL};
  if (size == 1)
    CHECK_OK(lam_schedule_parse(one, sizeof one - 1, &k->schedule));
  else
    CHECK_OK(lam_schedule_build("1f1b", size, 1, MICRO, &k->schedule));
  lam_group_desc g = LAM_GROUP_DESC_INIT;
  g.rank = me, g.size = size, g.id = j->id;
  if (size > 1) CHECK_OK(lam_group_create(NULL, &g, &k->group));
  for (int i = 0; i < STAGES; i++) layer_init(&k->layers[i], i, j->rows);

  const int first = size == 1 ? 0 : me, last = size == 1 ? STAGES - 1 : me;
  for (int i = first; i <= last; i++) {
    k->handles[i][0] = make(i, 0, &k->layers[i]), k->handles[i][1] = make(i, 1, &k->layers[i]);
    k->stages[i - first] = (lam_stage)LAM_STAGE_INIT;
    k->stages[i - first].forward = k->stages[i - first].backward = lam_foreign_call;
    k->stages[i - first].user = k->handles[i][0],
                  k->stages[i - first].backward_user = k->handles[i][1];
  }
  const lam_shape shape = {2, {kDLFloat, 64, 1}, {j->rows, N}};
  lam_edge edges[STAGES - 1];
  for (int e = 0; e < STAGES - 1; e++) edges[e] = (lam_edge){sizeof edges[e], 1, &shape, 0, 0};
  lam_pipeline_desc d = LAM_PIPELINE_DESC_INIT;
  d.group = k->group, d.schedule = k->schedule;
  d.stages = k->stages, d.n_stages = (uint32_t)(last - first + 1);
  d.edges = edges, d.n_edges = STAGES - 1;
  CHECK_OK(lam_pipeline_create(NULL, &d, &k->pipeline));
}

static void close_rank(rank *k) {
  lam_pipeline_destroy(k->pipeline);
  lam_schedule_destroy(k->schedule);
  lam_group_destroy(k->group);
  for (int i = 0; i < STAGES; i++) {
    lam_foreign_destroy(k->handles[i][0]), lam_foreign_destroy(k->handles[i][1]);
    layer_finish(&k->layers[i]);
  }
}

static void train_rank(int me, int size, void *arg) {
  const job *j = arg;
  rank k;
  open_rank(&k, j, me, size);
  for (int step = 0; step < STEPS; step++) {
    double loss = 0;
    REQUIRE_OK(lam_pipeline_run(k.pipeline, step, &loss));
    if (k.handles[STAGES - 1][0]) CHECK(loss == j->loss[step]);
  }
  for (int i = 0; i < STAGES; i++)
    if (k.handles[i][0]) CHECK_SAME_BITS(k.layers[i].dw, j->dw[i], sizeof j->dw[i]);
  close_rank(&k);
}

TEST(foreign_pipeline, trains_a_library_that_knows_nothing_of_pipelines) {
  FOR_EACH(size, 1, STAGES) {
    job j = {.rows = 5};
    by_hand(&j);
    CHECK(j.loss[0] > 0 && j.dw[1][0] != 0);
    CHECK_OK(lam_group_id_create(&j.id));
    run_threads(size, train_rank, &j);
  }
}

static void fail_rank(int me, int size, void *arg) {
  rank k;
  open_rank(&k, arg, me, size);
  CHECK_STATUS(lam_pipeline_run(k.pipeline, 0, NULL), LAM_INTERNAL);
  CHECK_CONTAINS(
      lam_last_error(),
      "step 0, stage 3, micro-batch 3, 3B3: foreign target_loss_backward, stage 3, micro-batch 3: "
      "returned 1, expected 0");
  close_rank(&k);
}

TEST(foreign_pipeline, a_function_that_fails_is_named_on_all_ranks) {
  FOR_EACH(size, 1, STAGES) {
    job j = {.rows = 1};
    CHECK_OK(lam_group_id_create(&j.id));
    run_threads(size, fail_rank, &j);
  }
}
