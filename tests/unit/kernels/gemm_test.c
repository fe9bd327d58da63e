/* gemm_test.c: products on every path against double precision: any strides, sizes, dtypes, with
 * all that may follow.
 *
 * Leaves packed weights to pack_test.c. */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "kernels/cpu/cpu.h"
#include "kernels/cpu/lanes.h"
#include "tests/unit/kernels/support.h"

typedef enum path { DEVICE, PLAIN, FEW_ROWS, LIBRARY, N_PATHS } path;
static const char *const path_names[] = {"device", "plain", "few rows", "library"};

static bool path_takes(path p, const lam_gemm *g) {
  switch (p) {
    case FEW_ROWS: return lam_gemv_takes(g) && g->d.rows > 0;
    case LIBRARY:
      return lam_gemm_library_here() && lam_gemm_library_here()->takes(g) && g->d.rows > 0 &&
             g->d.cols > 0;
    default: return true;
  }
}

static lam_status run_path(path p, const lam_workers *w, const lam_gemm *g) {
  switch (p) {
    case PLAIN: return lam_gemm_plain_run(w, g);
    case FEW_ROWS: return lam_gemv_run(w, g);
    case LIBRARY: return lam_gemm_library_here()->run(w, g, LAM_LAYOUT_ROWS);
    default: return lam_device_gemm(&lam_device_cpu, w, g, NULL);
  }
}

/* One product and everything it touches. */
typedef struct problem {
  lam_gemm g;
  box a, b, bias, d, aux;
  double *before, *want, *z;
} problem;

typedef struct kind {
  int64_t m, n, k;
  lam_dtype dtype, d_dtype, bias_dtype;
  form a, b, d;
  lam_act act;
  bool bias, aux, accumulate;
} kind;

static problem make_problem(rng *r, kind q) {
  problem p = {.a = box_random(r, q.m, q.k, q.dtype, q.a),
               .b = box_random(r, q.n, q.k, q.dtype, q.b),
               .d = box_random(r, q.m, q.n, q.d_dtype, q.d)};
  if (q.bias) p.bias = box_random(r, 1, q.n, q.bias_dtype, BY_ROWS);
  if (q.aux) p.aux = box_random(r, q.m, q.n, q.d_dtype, q.d);
  p.g = (lam_gemm){p.a.m, p.b.m, p.bias.m, p.d.m, p.aux.m, q.act, q.accumulate, NULL};

  const size_t n = (size_t)(q.m * q.n) + 1;
  p.before = calloc(n, sizeof(double));
  p.want = calloc(n, sizeof(double));
  p.z = calloc(n, sizeof(double));
  if (!p.before || !p.want || !p.z) abort();
  for (int64_t i = 0; i < q.m * q.n; i++) p.before[i] = get(p.d.m, i / q.n, i % q.n);
  product_of(&p.g, q.accumulate ? p.before : NULL, p.want, p.z);
  return p;
}

static void free_problem(problem *p) {
  box_free(&p->a), box_free(&p->b), box_free(&p->bias), box_free(&p->d), box_free(&p->aux);
  free(p->before), free(p->want), free(p->z);
}

static void restore(problem *p) {
  for (int64_t i = 0; i < p->d.m.rows * p->d.m.cols; i++)
    set(p->d.m, i / p->d.m.cols, i % p->d.m.cols, p->before[i]);
}

/* In two passes the activation sees what was rounded once: d errs by two roundings and more. */
static void check_problem(const problem *p) {
  const double u = rounding_of(p->g.d.dtype), atol = product_tolerance(&p->g);
  const bool two_passes =
      lam_matrix_here(p->g.aux) || p->g.act == LAM_ACT_RELU || p->g.act == LAM_ACT_RELU2;
  check_matrix(p->g.d, p->want, 1.01 * u * (two_passes ? 4 : 1), atol + (two_passes ? u : 0));
  if (lam_matrix_here(p->g.aux)) {
    lam_gemm bare = p->g;
    bare.act = LAM_ACT_NONE;
    check_matrix(p->g.aux, p->z, 1.01 * u, product_tolerance(&bare));
    check_around(&p->aux, "aux");
  }
  check_around(&p->d, "d");
}

static void run_once(problem *p, path way, crew c, const kind *q) {
  NOTE(
      "%s, %s, crew %d: %s m=%lld n=%lld k=%lld -> %s, forms %d %d %d, act %d bias %d (%s) aux %d "
      "accumulate %d",
      path_names[way], lam_lanes_pick()->name, c, lam_dtype_name(q->dtype), (long long)q->m,
      (long long)q->n, (long long)q->k, lam_dtype_name(q->d_dtype), q->a, q->b, q->d, q->act,
      q->bias, lam_dtype_name(q->bias_dtype), q->aux, q->accumulate);
  restore(p);
  if (CHECK_OK(run_path(way, workers(c), &p->g))) check_problem(p);
}

/* Every path by every crew; our own paths also with the loops for lesser processors. */
static void run_everywhere(rng *r, kind q) {
  if (is_spared(r)) return;
  problem p = make_problem(r, q);
  for (int way = 0; way < N_PATHS; way++) {
    if (!path_takes((path)way, &p.g)) continue;
    for (int c = 0; c < N_CREWS; c++) run_once(&p, (path)way, (crew)c, &q);
    for (int i = 0; (lam_lanes_forced = lanes_here(i)) != NULL; i++)
      if (way == PLAIN || way == FEW_ROWS) run_once(&p, (path)way, ALONE, &q);
  }
  free_problem(&p);
}

static const struct {
  lam_dtype in, out, bias;
} dtypes[] = {{LAM_F32, LAM_F32, LAM_F32},
              {LAM_BF16, LAM_BF16, LAM_BF16},
              {LAM_BF16, LAM_F32, LAM_F32},
              {LAM_BF16, LAM_BF16, LAM_F32}};
enum { N_DTYPES = sizeof dtypes / sizeof *dtypes };

TEST(gemm, sizes_that_fit_no_block) {
  static const int64_t sizes[][3] = {{1, 1, 1},     {1, 3, 17},    {3, 17, 33},  {8, 65, 129},
                                     {9, 33, 65},   {17, 1, 129},  {33, 129, 3}, {65, 65, 257},
                                     {129, 33, 65}, {250, 530, 40}};
  rng r = {seed()};
  for (size_t s = 0; s < sizeof sizes / sizeof *sizes; s++)
    for (int t = 0; t < N_DTYPES; t++)
      run_everywhere(&r, (kind){.m = sizes[s][0],
                                .n = sizes[s][1],
                                .k = sizes[s][2],
                                .dtype = dtypes[t].in,
                                .d_dtype = dtypes[t].out,
                                .bias_dtype = dtypes[t].bias,
                                .bias = s % 2 == 0});
}

TEST(gemm, every_stride_of_every_operand) {
  rng r = {seed()};
  FOR_EACH(m, 5, 34)
  for (int forms = 0; forms < N_FORMS * N_FORMS * N_FORMS; forms++)
    for (int t = 0; t < 2; t++)
      run_everywhere(&r, (kind){.m = m,
                                .n = 37,
                                .k = 67,
                                .dtype = dtypes[t].in,
                                .d_dtype = dtypes[t].out,
                                .a = forms % N_FORMS,
                                .b = forms / N_FORMS % N_FORMS,
                                .d = forms / N_FORMS / N_FORMS});
}

TEST(gemm, every_activation_with_and_without_aux) {
  rng r = {seed()};
  FOR_EACH(m, 2, 150)
  for (int act = 0; act < LAM_N_ACTS; act++)
    for (int t = 0; t < N_DTYPES; t++)
      for (int aux = 0; aux < 2; aux++)
        run_everywhere(&r, (kind){.m = m,
                                  .n = 40,
                                  .k = 50,
                                  .dtype = dtypes[t].in,
                                  .d_dtype = dtypes[t].out,
                                  .bias_dtype = dtypes[t].bias,
                                  .bias = true,
                                  .act = (lam_act)act,
                                  .aux = aux,
                                  .d = aux ? ROWS_WITH_GAPS : BY_ROWS});
}

TEST(gemm, accumulates_into_what_was_there) {
  rng r = {seed()};
  FOR_EACH(m, 4, 70)
  for (int t = 0; t < N_DTYPES; t++)
    for (int d = 0; d < N_FORMS; d++)
      run_everywhere(&r, (kind){.m = m,
                                .n = 66,
                                .k = 130,
                                .dtype = dtypes[t].in,
                                .d_dtype = dtypes[t].out,
                                .a = BY_COLS,
                                .b = BY_COLS,
                                .d = (form)d,
                                .accumulate = true});
}

TEST(gemm, no_k_gives_the_bias_and_no_rows_or_columns_give_nothing) {
  rng r = {seed()};
  for (int t = 0; t < N_DTYPES; t++) {
    FOR_EACH(accumulate, 0, 1)
    run_everywhere(&r, (kind){.m = 19,
                              .n = 21,
                              .k = 0,
                              .dtype = dtypes[t].in,
                              .d_dtype = dtypes[t].out,
                              .bias_dtype = dtypes[t].bias,
                              .bias = true,
                              .accumulate = accumulate});
    run_everywhere(
        &r, (kind){.m = 3, .n = 21, .k = 0, .dtype = dtypes[t].in, .d_dtype = dtypes[t].out});
    run_everywhere(&r,
                   (kind){.m = 0, .n = 7, .k = 5, .dtype = dtypes[t].in, .d_dtype = dtypes[t].out});
    run_everywhere(&r,
                   (kind){.m = 7, .n = 0, .k = 5, .dtype = dtypes[t].in, .d_dtype = dtypes[t].out});
  }
}

TEST(gemm, whatever_else_chance_thinks_of) {
  rng r = {seed()};
  for (int i = 0; i < tries(150); i++) {
    const int t = (int)rng_int(&r, 0, N_DTYPES - 1), what = (int)rng_int(&r, 0, 2);
    run_everywhere(&r, (kind){.m = rng_int(&r, 1, 80),
                              .n = rng_int(&r, 1, 150),
                              .k = rng_int(&r, 1, 300),
                              .dtype = dtypes[t].in,
                              .d_dtype = dtypes[t].out,
                              .bias_dtype = dtypes[t].bias,
                              .a = rng_int(&r, 0, 3),
                              .b = rng_int(&r, 0, 3),
                              .d = rng_int(&r, 0, 3),
                              .bias = rng_int(&r, 0, 1),
                              .act = what == 1 ? rng_int(&r, 1, 5) : LAM_ACT_NONE,
                              .aux = what == 1 && rng_int(&r, 0, 1),
                              .accumulate = what == 2});
  }
}

/* The same rows, whole or in parts, by one worker or two: the same bits on the paths that are our
 * own. */
TEST(gemm, own_paths_give_the_same_bits_however_rows_and_work_are_split) {
  rng r = {seed()};
  for (int t = 0; t < N_DTYPES; t++)
    for (int way = PLAIN; way <= FEW_ROWS; way++)
      for (int f = 0; f < N_FORMS; f++) {
        const int64_t m = way == PLAIN ? 300 : 8, cut = way == PLAIN ? 77 : 3;
        NOTE("%s, dtypes %d, form %d", path_names[way], t, f);
        if (is_spared(&r)) continue;
        problem p = make_problem(&r, (kind){.m = m,
                                            .n = 600,
                                            .k = 777,
                                            .dtype = dtypes[t].in,
                                            .d_dtype = dtypes[t].out,
                                            .bias_dtype = dtypes[t].bias,
                                            .b = (form)f,
                                            .bias = true,
                                            .act = LAM_ACT_GELU});
        box d = box_copy(&p.d);
        CHECK_OK(run_path((path)way, workers(ALONE), &p.g));
        for (int64_t row = 0; row < m; row += cut) {
          lam_gemm part = p.g;
          part.a = lam_matrix_rows(p.g.a, row, lam_least(cut, m - row));
          part.d = lam_matrix_rows(d.m, row, part.a.rows);
          CHECK_OK(run_path((path)way, workers(TWO_OPENMP), &part));
        }
        check_same(p.d.m, d.m);
        box_free(&d);
        free_problem(&p);
      }
}

/* Row 1 gets a NaN, row 2 an infinity; every row that has neither stays finite. */
static void check_not_numbers(const problem *p) {
  for (int64_t j = 0; j < p->b.m.rows; j++) {
    const double finite = get(p->d.m, 0, j), nan = get(p->d.m, 1, j), huge = get(p->d.m, 2, j);
    CHECK(isfinite(finite));
    CHECK(isnan(nan));
    CHECK(get(p->b.m, j, 5) > 0 ? huge == (double)INFINITY : !(huge > 0));
    if (lam_matrix_here(p->aux.m)) CHECK(isnan(get(p->aux.m, 1, j)));
  }
}

TEST(gemm, what_is_not_a_number_stays_so_through_every_activation) {
  rng r = {seed()};
  FOR_EACH(m, 3, 20)
  FOR_EACH(aux, 0, 1) for (int act = 0; act < LAM_N_ACTS;
                           act++) for (int way = 0; way < N_PATHS; way++) for (int t = 0;
                                                                               t < N_DTYPES; t++) {
    const kind q = {.m = m,
                    .n = 30,
                    .k = 40,
                    .dtype = dtypes[t].in,
                    .d_dtype = dtypes[t].out,
                    .act = (lam_act)act,
                    .aux = aux};
    problem p = make_problem(&r, q);
    NOTE("%s, m=%d, dtypes %d, act %d, aux %d", path_names[way], m, t, act, aux);
    set(p.a.m, 1, 7, (double)NAN);
    set(p.a.m, 2, 5, (double)INFINITY);
    if (path_takes((path)way, &p.g) && CHECK_OK(run_path((path)way, workers(ALONE), &p.g)))
      check_not_numbers(&p);
    free_problem(&p);
  }
}

typedef struct shared_problem {
  problem *p;
  box d[4];
} shared_problem;

static void multiply_often(int rank, int size, void *arg) {
  shared_problem *s = arg;
  (void)size;
  lam_gemm g = s->p->g;
  g.d = s->d[rank].m;
  for (int i = 0; i < 20; i++) CHECK_OK(lam_device_gemm(&lam_device_cpu, workers(ALONE), &g, NULL));
}

TEST(gemm, many_threads_may_call_at_once) {
  rng r = {seed()};
  problem p =
      make_problem(&r, (kind){.m = 40, .n = 90, .k = 70, .dtype = LAM_BF16, .d_dtype = LAM_F32});
  shared_problem s = {.p = &p};
  for (int i = 0; i < 4; i++) s.d[i] = box_new(40, 90, LAM_F32, BY_ROWS);
  run_threads(4, multiply_often, &s);
  for (int i = 0; i < 4; i++) {
    check_matrix(s.d[i].m, p.want, 1e-6, product_tolerance(&p.g));
    box_free(&s.d[i]);
  }
  free_problem(&p);
}

TEST(gemm, other_dtypes_are_refused_by_name) {
  float zero[4] = {0};
  const lam_matrix f16 = {zero, 2, 2, 2, 1, LAM_F16, false},
                   f32 = {zero, 2, 2, 2, 1, LAM_F32, false};
  CHECK_STATUS(lam_device_gemm(&lam_device_cpu, workers(ALONE),
                               &(lam_gemm){.a = f16, .b = f16, .d = f32}, NULL),
               LAM_UNIMPLEMENTED);
  CHECK_CONTAINS(lam_last_error(), "f16 times f16 gives f32");
}
