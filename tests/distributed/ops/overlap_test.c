/* overlap_test.c: in what order a rank multiplies chunks and sums them: the sum of one chunk is
 * under way while the next is multiplied, as plugin/ops/sum.c says.
 * Rank 0's products are seen through the device's hook, its sums through a table of its group's
 * engine that notes each call. Leaves what comes out to the conformance tests. */
#include <string.h>

#include "kernels/device.h"
#include "plugin/comm/group.h"
#include "tests/distributed/ops/member.h"

#define I lam_attr_i
enum { ROWS = 30, K = 20, N = 12, CHUNKS = 3 };

static _Thread_local char *my_events; /* m: multiply, s: start, f: finish; NULL: not noted */
static const lam_engine *engine;      /* the group's own */

static void note(char event) {
  if (my_events) my_events[strlen(my_events)] = event;
}

static lam_status note_product(const lam_device *d, const char *slot) {
  (void)d;
  if (strcmp(slot, "gemm") == 0) note('m');
  return LAM_OK;
}
static lam_status note_start(lam_group *g, lam_sum *s) {
  note('s');
  return engine->sum_start(g, s);
}
static lam_status note_finish(lam_group *g, lam_sum *s) {
  note('f');
  return engine->sum_finish(g, s);
}

typedef struct order {
  lam_group_id id;
  bool is_ffn;
  char events[100]; /* rank 0's; zeros behind */
} order;

static lam_status call_it(const member *m, bool is_ffn) {
  static float x[ROWS * K], w1[K * N], w2[N * K];
  float out[ROWS * N];
  tensor tx, t1, t2, ty;
  TENSOR(&tx, x, f32, ROWS, is_ffn ? N : K);
  TENSOR(&t1, w1, f32, K, N);
  TENSOR(&t2, w2, f32, N, K);
  TENSOR(&ty, out, f32, ROWS, N);
  if (is_ffn)
    return RUN(m, ffn, LIST(&tx.dl, &t1.dl, NULL, &t2.dl), LIST(&ty.dl),
               LIST(lam_attr_s("relu"), I(0), I(0), I(0), I(CHUNKS)));
  return RUN(m, linear_row, LIST(&tx.dl, &t2.dl), LIST(&ty.dl),
             LIST(I(1), I(0), I(0), I(0), I(CHUNKS)));
}

static void run_noted(int rank, int size, void *arg) {
  order *o = arg;
  member m;
  REQUIRE_OK(member_join(&m, &o->id, rank, size));
  lam_engine noting = *m.g->engine;
  if (rank == 0) {
    engine = m.g->engine;
    noting.sum_start = note_start, noting.sum_finish = note_finish;
    m.g->engine = &noting;
    my_events = o->events;
  }
  CHECK_OK(call_it(&m, o->is_ffn));
  my_events = NULL;
  if (rank == 0) m.g->engine = engine;
  member_leave(&m);
}

static void check_order(bool is_ffn, const char *expected) {
  order o = {.is_ffn = is_ffn};
  CHECK_OK(lam_group_id_create(&o.id));
  lam_device_on_call = note_product;
  run_threads(2, run_noted, &o);
  lam_device_on_call = NULL;
  CHECK_STR(o.events, expected);
}

TEST(overlap, the_sum_of_one_chunk_is_under_way_while_the_next_is_multiplied) {
  check_order(false, "ms" "msf" "msf" "f");
  check_order(true, "mms" "mmsf" "mmsf" "f"); /* both halves of an ffn by chunk */
}
