/* apart_test.c: a rank that finds a peer on its own processor goes to another that it may use, and
 * may use the same ones afterwards; without such a processor, or without one for each rank, it
 * stays.
 * Invariant: where a thread runs is set here by narrowing what it may use and widening it again;
 * should the scheduler move it meanwhile, the test tries once more.
 * Leaves what it is good for to the benchmarks. */
#include <sched.h>

#include "plugin/comm/shm/shm.h"
#include "tests/distributed/comm/ranks.h"

typedef struct meeting {
  lam_group_id id;
  cpu_set_t all;
  int place; /* the processor where both begin */
} meeting;

static meeting *meeting_create(void) {
  meeting *m = shared_memory(sizeof *m);
  CHECK(sched_getaffinity(0, sizeof m->all, &m->all) == 0);
  while (!CPU_ISSET((unsigned)m->place, &m->all)) m->place++;
  CHECK_OK(lam_group_id_create(&m->id));
  return m;
}

static bool is_alone(const meeting *m) { return CPU_COUNT(&m->all) < 2; }
#define ONE_PROCESSOR "one processor is allowed: nowhere to go"

static void allow(const cpu_set_t *set) { CHECK(sched_setaffinity(0, sizeof *set, set) == 0); }

static void stay_at(int place) {
  cpu_set_t one;
  CPU_ZERO(&one);
  CPU_SET((unsigned)place, &one);
  allow(&one);
}

/* Both ranks are at `place`, have said so and may not leave. They meet while each may use all: those
 * are counted. */
static lam_status begin(meeting *m, int rank, lam_group **out) {
  LAM_TRY(rank_open(&m->id, rank, 2, 60000, out));
  stay_at(m->place);
  lam_shm_show_place(shm_group_of(*out)->world);
  LAM_TRY(sum_ones(*out));
  shm_group_of(*out)->world->moved_at = 0; /* it may have moved while they met */
  shm_group_of(*out)->world->moves = 0;
  return LAM_OK;
}

static void leave_for_another(int rank, int size, void *arg) {
  meeting *m = arg;
  lam_group *g = NULL;
  (void)size;
  REQUIRE_OK(begin(m, rank, &g));
  lam_world *w = shm_group_of(g)->world;
  for (int i = 0; rank == 1 && i < 1000 && !w->moves; i++) {
    stay_at(m->place);
    allow(&m->all);
    lam_shm_move_apart(w);
  }
  cpu_set_t now;
  CHECK(sched_getaffinity(0, sizeof now, &now) == 0);
  if (rank == 1) {
    CHECK_EQ(w->moves, 1);
    CHECK(CPU_EQUAL(&now, &m->all));
    const int32_t shown = shm_arena_control(w->peers[1].arena)->processor - 1;
    CHECK(shown != m->place && shown >= 0 && CPU_ISSET((unsigned)shown, &m->all));
  }
  REQUIRE_OK(sum_ones(g));
  lam_group_destroy(g);
}

TEST(apart, a_rank_beside_a_peer_goes_where_none_is_and_may_use_all_it_could) {
  meeting *m = meeting_create();
  if (is_alone(m)) SKIP(ONE_PROCESSOR);
  run_processes(2, leave_for_another, m);
}

static void have_nowhere_to_go(int rank, int size, void *arg) {
  meeting *m = arg;
  lam_group *g = NULL;
  (void)size;
  REQUIRE_OK(begin(m, rank, &g));
  lam_world *w = shm_group_of(g)->world;
  if (rank == 1) {
    lam_shm_move_apart(w); /* may use one */
    allow(&m->all);
    w->spins = 0; /* as with fewer processors than ranks */
    lam_shm_move_apart(w);
    CHECK_EQ(w->moves, 0);
  }
  REQUIRE_OK(sum_ones(g));
  lam_group_destroy(g);
}

TEST(apart, a_rank_bound_to_one_or_among_too_many_stays) {
  meeting *m = meeting_create();
  if (is_alone(m)) SKIP(ONE_PROCESSOR);
  run_processes(2, have_nowhere_to_go, m);
}

static lam_status pass_to_and_fro(lam_group *g) {
  char byte = 0;
  for (int i = 0; i < 50; i++) {
    lam_wire h = {.bytes = 1};
    for (int turn = 0; turn < 2; turn++)
      LAM_TRY(g->rank == turn ? lam_group_send(g, 1 - turn, 0, &h, &byte)
                              : lam_group_recv(g, turn, 0, &h, &byte, 1));
  }
  return LAM_OK;
}

/* Both try until one of them has moved: they agree on that by a sum. */
static void wait_for_each_other(int rank, int size, void *arg) {
  meeting *m = arg;
  lam_group *g = NULL;
  float moved = 0;
  const lam_comm_op op = {.op = LAM_OP_all_reduce, .dtype = LAM_F32, .ndim = 1, .dims = {1}};
  (void)size;
  REQUIRE_OK(begin(m, rank, &g));
  for (int i = 0; i < 1000 && moved == 0; i++) {
    stay_at(m->place);
    allow(&m->all);
    REQUIRE_OK(pass_to_and_fro(g));
    moved = (float)shm_group_of(g)->world->moves;
    REQUIRE_OK(lam_group_all_reduce(g, &op, &moved, &moved, 1, LAM_F32));
  }
  CHECK(moved > 0);
  lam_group_destroy(g);
}

TEST(apart, ranks_that_wait_for_each_other_on_one_processor_part) {
  meeting *m = meeting_create();
  if (is_alone(m)) SKIP(ONE_PROCESSOR);
  run_processes(2, wait_for_each_other, m);
}
