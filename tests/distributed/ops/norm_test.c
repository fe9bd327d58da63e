/* norm_test.c: what one call of a norm gives is what several give, bit for bit and in place; what the
 * norms refuse, and what ranks that disagree are told.
 * Leaves their results to tests/conformance/ops. */
#include <stdlib.h>
#include <string.h>

#include "tests/distributed/ops/member.h"

#define I lam_attr_i
#define D lam_attr_f
enum { T = 521, K = 67 }; /* three chunks of rows, none of them even */

typedef struct layer {
  float x[T * K], res[T * K], g[K], y[T * K], next[T * K];
  tensor dx, dres, dg, dy, dnext;
} layer;

/* Every rank has its own x; res and g are the same on all. */
static layer *layer_make(int rank) {
  layer *l = calloc(1, sizeof *l);
  rng own = {seed() + (uint64_t)rank}, all = {seed() + 100};
  if (!l) abort();
  for (int i = 0; i < T * K; i++) l->x[i] = rng_float(&own), l->res[i] = rng_float(&all);
  for (int i = 0; i < K; i++) l->g[i] = rng_float(&all);
  TENSOR(&l->dx, l->x, f32, T, K);
  TENSOR(&l->dres, l->res, f32, T, K);
  TENSOR(&l->dg, l->g, f32, K);
  TENSOR(&l->dy, l->y, f32, T, K);
  TENSOR(&l->dnext, l->next, f32, T, K);
  return l;
}

static lam_status run_whole(const member *m, layer *l, double eps) {
  return RUN(m, all_reduce_add_rmsnorm, LIST(&l->dx.dl, &l->dres.dl, &l->dg.dl),
             LIST(&l->dy.dl, &l->dnext.dl), LIST(D(eps)));
}

/* rmsnorm has no group: its attributes start with eps. */
static lam_status run_norm(const tensor *x, const tensor *g, tensor *y, double eps) {
  const DLTensor *in[] = {&x->dl, &g->dl};
  DLTensor *out[] = {&y->dl};
  const lam_attr attrs[] = {D(eps)};
  lam_call call = LAM_CALL_INIT;
  call.op = LAM_OP_rmsnorm;
  call.inputs = in, call.outputs = out, call.attrs = attrs;
  call.n_inputs = 2, call.n_outputs = call.n_attrs = 1;
  return lam_run(NULL, &call);
}

typedef struct task {
  lam_group_id id;
  double eps_of_rank[4];
} task;

static void compare(int rank, int size, void *arg) {
  const task *t = arg;
  member m;
  layer *l = layer_make(rank), *apart = layer_make(rank), *in_place = layer_make(rank);
  REQUIRE_OK(member_join(&m, &t->id, rank, size));
  CHECK_OK(run_whole(&m, l, 1e-5));
  CHECK_OK(run_norm(&l->dnext, &l->dg, &apart->dy, 1e-5));
  CHECK_SAME_BITS(l->y, apart->y, sizeof l->y);

  TENSOR(&in_place->dnext, in_place->res, f32, T, K);
  CHECK_OK(run_whole(&m, in_place, 1e-5));
  CHECK_SAME_BITS(in_place->res, l->next, sizeof l->next);
  CHECK_SAME_BITS(in_place->y, l->y, sizeof l->y);
  member_leave(&m);
  free(l), free(apart), free(in_place);
}

TEST(all_reduce_add_rmsnorm, is_a_sum_and_its_norm_also_in_place) {
  FOR_EACH(p, 1, 2, 3, 4) {
    task t;
    REQUIRE_OK(lam_group_id_create(&t.id));
    run_threads(p, compare, &t);
  }
}

static void disagree(int rank, int size, void *arg) {
  const task *t = arg;
  member m;
  layer *l = layer_make(rank);
  REQUIRE_OK(member_join(&m, &t->id, rank, size));
  CHECK_STATUS(run_whole(&m, l, t->eps_of_rank[rank]), LAM_MISMATCH);
  member_leave(&m);
  free(l);
}

TEST(all_reduce_add_rmsnorm, ranks_of_another_eps_do_not_agree) {
  task t = {.eps_of_rank = {1e-5, 1e-6}};
  REQUIRE_OK(lam_group_id_create(&t.id));
  run_threads(2, disagree, &t);
}

TEST(all_reduce_add_rmsnorm, refuses_what_does_not_fit) {
  lam_group_id id;
  member m;
  layer *l = layer_make(0);
  REQUIRE_OK(lam_group_id_create(&id));
  REQUIRE_OK(member_join(&m, &id, 0, 1));
#define CHECK_REFUSED(expr, words) \
  (CHECK_EQ(expr, LAM_INVALID_ARGUMENT), CHECK_STR(lam_last_error(), words))
  CHECK_REFUSED(run_whole(&m, l, -1), "all_reduce_add_rmsnorm: eps is -1, expected 0 or more");
  TENSOR(&l->dg, l->g, f32, K - 1);
  CHECK_REFUSED(run_whole(&m, l, 0),
                "all_reduce_add_rmsnorm: g's length is 66, expected 67: x's last dimension");
  CHECK_REFUSED(run_norm(&l->dx, &l->dg, &l->dy, 0),
                "rmsnorm: g's length is 66, expected 67: x's last dimension");
  TENSOR(&l->dg, l->g, bf16, K);
  CHECK_REFUSED(run_whole(&m, l, 0), "all_reduce_add_rmsnorm: g: found bf16, expected f32");
  TENSOR(&l->dg, l->g, f32, K);
  TENSOR(&l->dres, l->res, f32, T - 1, K);
  TENSOR(&l->dnext, l->next, f32, T - 1, K);
  CHECK_REFUSED(run_whole(&m, l, 0),
                "all_reduce_add_rmsnorm: res's number of rows is 520, expected 521: x's");
  TENSOR(&l->dres, l->res, f32, T, K);
  TENSOR(&l->dnext, l->y, f32, T, K);
  CHECK_REFUSED(run_whole(&m, l, 0), "all_reduce_add_rmsnorm: next: its memory overlaps that of y");
  TENSOR(&l->dnext, l->x, f32, T, K);
  CHECK_REFUSED(run_whole(&m, l, 0), "all_reduce_add_rmsnorm: next: its memory overlaps that of x");
  member_leave(&m);
  free(l);
}
