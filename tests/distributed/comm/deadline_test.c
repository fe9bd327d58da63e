/* deadline_test.c: how long a rank waits: what a group is given where its host says nothing, and a
 * first operation, which may take as long as a peer compiles.
 * A late rank comes back once its peer has waited past the deadline, which the peer's own waits
 * say. Ranks are processes. */
#include "tests/distributed/comm/ranks.h"

/* ---- Defaults -------------------------------------------------------------------------------- */

static lam_status no_transfer(void *user, int32_t peer, uint32_t channel, const void *data,
                              uint64_t bytes) {
  (void)user, (void)peer, (void)channel, (void)data, (void)bytes;
  return LAM_INTERNAL;
}
static lam_status no_arrival(void *user, int32_t peer, uint32_t channel, void *data,
                             uint64_t bytes) {
  (void)user, (void)peer, (void)channel, (void)data, (void)bytes;
  return LAM_INTERNAL;
}

static lam_group *open_alone(uint32_t deadline_ms, uint32_t first_deadline_ms, bool by_callbacks) {
  lam_group_desc d = LAM_GROUP_DESC_INIT;
  lam_callbacks callbacks = LAM_CALLBACKS_INIT;
  lam_group *g = NULL;
  callbacks.send = no_transfer, callbacks.recv = no_arrival;
  d.size = 1, d.deadline_ms = deadline_ms, d.first_deadline_ms = first_deadline_ms;
  CHECK_OK(lam_group_id_create(&d.id));
  CHECK_OK(by_callbacks ? lam_group_from_callbacks(NULL, &d, &callbacks, &g)
                        : lam_group_create(NULL, &d, &g));
  return g;
}

TEST(deadline, is_30_s_and_10_min_for_the_first_operation_where_none_is_given) {
  FOR_EACH(by_callbacks, 0, 1) {
    lam_group *g = open_alone(0, 0, by_callbacks), *sub = NULL;
    REQUIRE(g != NULL);
    CHECK_EQ(g->deadline_ms, 30000);
    CHECK_EQ(g->first_deadline_ms, 600000);
    CHECK_OK(lam_group_split(g, 0, 0, &sub));
    CHECK_EQ(sub->deadline_ms, 30000);
    CHECK_EQ(sub->first_deadline_ms, 600000);
    lam_group_destroy(sub);
    lam_group_destroy(g);
  }
}

TEST(deadline, given_alone_leaves_the_other_at_its_default) {
  lam_group *later = open_alone(7, 0, false), *first = open_alone(0, 7, false);
  REQUIRE(later && first);
  CHECK_EQ(later->deadline_ms, 7);
  CHECK_EQ(later->first_deadline_ms, 600000);
  CHECK_EQ(first->deadline_ms, 30000);
  CHECK_EQ(first->first_deadline_ms, 7);
  lam_group_destroy(later);
  lam_group_destroy(first);
}

/* ---- A late rank ----------------------------------------------------------------------------- */

enum { DEADLINE_MS = 200 };

typedef struct lateness {
  lam_group_id id;
  lam_status (*operation)(lam_group *g);
  _Atomic int64_t since_ms; /* when rank 0 began to wait; 0: it does not */
  _Atomic int n_outlasted;  /* waits of rank 0 that have lasted longer than DEADLINE_MS */
  _Atomic int n_ended;
} lateness;

/* Asked in every wait, now and then. */
static int32_t note_a_long_wait(void *user) {
  lateness *l = user;
  const int64_t since = l->since_ms;
  if (!since || now_ms() - since <= DEADLINE_MS + 100) return 0;
  l->since_ms = 0;
  l->n_outlasted++;
  return 0;
}

static void be_waited_for(lateness *l, lam_group *g) {
  if (!await_count(&l->n_outlasted, 1)) return;
  CHECK_OK(l->operation(g));
  await_count(&l->n_ended, 1); /* late again: now deadline_ms holds */
}

static void wait_for_the_late(lateness *l, lam_group *g) {
  l->since_ms = now_ms();
  CHECK_OK(l->operation(g));
  l->since_ms = 0;
  CHECK_EQ(l->n_outlasted, 1);
  CHECK_STATUS(l->operation(g), LAM_PEER_STALLED);
  CHECK_CONTAINS(lam_last_error(), "did not come within 200 ms");
  l->n_ended = 1;
}

static void late_rank1(int rank, int size, void *arg) {
  lateness *l = arg;
  lam_group *g = NULL;
  lam_context *ctx = NULL;
  lam_context_desc hooks = LAM_CONTEXT_DESC_INIT;
  lam_group_desc d = rank_desc(&l->id, rank, size, DEADLINE_MS);
  d.first_deadline_ms = 20000;
  hooks.user = l, hooks.should_stop = note_a_long_wait;
  REQUIRE_OK(lam_context_create(&hooks, &ctx));
  REQUIRE_OK(lam_group_create(ctx, &d, &g));
  (rank == 0 ? wait_for_the_late : be_waited_for)(l, g);
  lam_group_destroy(g);
  lam_context_destroy(ctx);
}

/* From rank 1 to rank 0. */
static lam_status transfer(lam_group *g) {
  char byte = 1;
  lam_wire header = {.bytes = 1, .dtype = LAM_U8, .ndim = 1, .shape = {1}};
  return g->rank == 1 ? lam_group_send(g, 0, 0, &header, &byte)
                      : lam_group_recv(g, 1, 0, &header, &byte, 1);
}

TEST(deadline, of_the_first_operation_outlasts_that_of_later_ones) {
  lam_status (*const operations[])(lam_group *g) = {sum_ones, transfer};
  FOR_EACH(i, 0, 1) {
    lateness *l = shared_memory(sizeof *l);
    REQUIRE(l != NULL);
    NOTE("%s", i ? "transfer" : "sum");
    l->operation = operations[i];
    CHECK_OK(lam_group_id_create(&l->id));
    run_processes(2, late_rank1, l);
  }
}
