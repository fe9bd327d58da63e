/* large_test.c: results too large for the caches, which are written past them, are whole: sums, whole
 * operands and messages between two ranks, near and far, at places that are no cache line's.
 * Leaves smaller ones, other engines and more ranks to the engines' suite. */
#include "plugin/comm/shm/shm.h"
#include "tests/distributed/comm/ranks.h"

enum { N = LAM_STREAM_FROM / 4 + 4099, OFF = 3 }; /* elements; OFF: from a cache line's beginning */

typedef struct scene {
  lam_group_id id;
  bool far;
} scene;

/* Sums of two of them are exact, and their order is seen nowhere. */
static int32_t value_of(int64_t i, int rank) { return (int32_t)(i * 7 % 65521 + rank * 1000); }

static int32_t *room(void) {
  int32_t *x = aligned_alloc(64, ((N + 16) * sizeof *x + 63) / 64 * 64);
  if (!x) abort();
  return x;
}

static int32_t *operand(int rank) {
  int32_t *x = room();
  for (int64_t i = 0; i < N; i++) x[OFF + i] = value_of(i, rank);
  return x;
}

/* The result, with what lies around it. */
static int32_t *result(void) {
  int32_t *y = room();
  memset(y, -1, (N + 16) * sizeof *y);
  return y;
}

static void nothing_around(const int32_t *y) {
  CHECK(y[OFF - 1] == -1);
  CHECK(y[OFF + N] == -1);
}

static void sum(lam_group *g, const int32_t *x, int32_t *y) {
  const lam_comm_op op = {.op = LAM_OP_all_reduce, .dtype = LAM_I32, .ndim = 1, .dims = {N}};
  REQUIRE_OK(lam_group_all_reduce(g, &op, x + OFF, y + OFF, N, LAM_I32));
  for (int64_t i = 0; i < N; i++)
    if (!CHECK_EQ(y[OFF + i], value_of(i, 0) + value_of(i, 1))) return;
  nothing_around(y);
}

static void gather(lam_group *g, const int32_t *x, int32_t *y) {
  const int64_t first[] = {0, N / 3, N};
  const lam_comm_op op = {.op = LAM_OP_all_gather, .dtype = LAM_I32, .ndim = 1, .dims = {N}};
  const lam_parts parts = {.outer = 1, .inner = 1, .first = first, .dtype = LAM_I32};
  REQUIRE_OK(lam_group_all_gather(g, &op, &parts, x + OFF, y + OFF));
  for (int64_t i = 0; i < N; i++) {
    const int32_t want = i < N / 3 ? value_of(i, 0) : value_of(i - N / 3, 1);
    if (y[OFF + i] != want && !CHECK_EQ(y[OFF + i], want)) return;
  }
  nothing_around(y);
}

static void pass_on(lam_group *g, const int32_t *x, int32_t *y) {
  lam_wire h = {.bytes = N * sizeof *x, .dtype = LAM_I32, .ndim = 1, .shape = {N}};
  REQUIRE_OK(g->rank == 0 ? lam_group_send(g, 1, 0, &h, x + OFF)
                          : lam_group_recv(g, 0, 0, &h, y + OFF, h.bytes));
  if (g->rank == 0) return;
  for (int64_t i = 0; i < N; i++)
    if (!CHECK_EQ(y[OFF + i], value_of(i, 0))) return;
  nothing_around(y);
}

static void work(int rank, int size, void *arg) {
  const scene *s = arg;
  lam_group *g = NULL;
  (void)size;
  REQUIRE_OK(rank_open(&s->id, rank, 2, 60000, &g));
  int32_t *x = operand(rank);
  void (*const all[])(lam_group *, const int32_t *, int32_t *) = {sum, gather, pass_on};
  for (size_t i = 0; i < sizeof all / sizeof *all; i++) {
    int32_t *y = result();
    if (s->far) shm_group_of(g)->world->probe_at = INT64_MAX;
    all[i](g, x, y);
    free(y);
  }
  free(x);
  lam_group_destroy(g);
}

static void run(bool far) {
  scene *s = shared_memory(sizeof *s);
  s->far = far;
  CHECK_OK(lam_group_id_create(&s->id));
  run_processes(2, work, s);
}

TEST(large, results_are_whole_between_near_ranks) { run(false); }
TEST(large, results_are_whole_between_far_ranks) { run(true); }
