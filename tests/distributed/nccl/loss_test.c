/* loss_test.c: what becomes of every operation over NCCL, and of a pipeline's step, when a rank is lost
 * in it: NCCL says so, or nothing ends on the device, or the rank leaves, or it does not come. Ranks are
 * threads, each on a card of the stand-in's. Emulated: it never ran on a GPU.
 * Leaves ranks that are killed to tests/gpu: their processes. */
#include <stdlib.h>

#include "abi/status.h"
#include "tests/distributed/await.h"
#include "tests/distributed/moves/moves.h"
#include "tests/place.h"
#include "tests/standin/standin.h"

enum { RANKS = 3, LOST = 1, SHORT_MS = 300, LONG_MS = 20000 };

typedef struct loss {
  const char *how;
  void (*strike)(struct loss *l, mover *m); /* the lost rank's, between two moves */
  bool stays_away;                          /* the lost rank, until the others were told */
  lam_status expected;
  const char *text;
  uint32_t deadline_ms; /* from then on */
  const move *move;
  lam_group_id id;
  meeting_place meeting;
  _Atomic int told; /* of the other ranks */
} loss;

/* -- how a rank is lost; in an operation of NCCL's that comes by chance -- */

static int64_t one_of(const loss *l, int most) {
  rng r = {seed() + (uint64_t)(l->move - moves)};
  return rng_int(&r, 1, most);
}
static void be_cut_off(loss *l, mover *m) {
  (void)m;
  standin_fail_nth(STANDIN_NCCL_REMOTE, one_of(l, 5));
}
static void get_stuck(loss *l, mover *m) {
  (void)m;
  standin_fail_nth(STANDIN_NCCL_STALL, one_of(l, 5));
}
static void leave(loss *l, mover *m) {
  (void)l;
  mover_close(m);
}

/* -- a rank -- */

static lam_group *join(loss *l, lam_context *ctx, int rank, int size) {
  lam_group_desc d = LAM_GROUP_DESC_INIT;
  lam_group *g = NULL;
  d.rank = rank, d.size = size, d.id = l->id, d.engine = "nccl";
  d.deadline_ms = d.first_deadline_ms = LONG_MS;
  place_take(rank);
  CHECK_OK(lam_group_create(ctx, &d, &g));
  return g;
}

/* A host that waits for its stream is let go, and then told: the same for ever. */
static void be_told(loss *l, mover *m) {
  lam_status status = LAM_OK;
  for (int i = 0; i < 100 && status == LAM_OK; i++) {
    status = mover_run(m, l->move);
    mover_wait();
  }
  CHECK_STATUS(status, l->expected);
  CHECK_CONTAINS(lam_last_error(), l->text);
  FOR_EACH(other, 0, n_moves - 2) {
    CHECK_STATUS(mover_run(m, &moves[other]), l->expected);
    CHECK_CONTAINS(lam_last_error(), l->text);
  }
  l->told++;
}

static void run_rank(int rank, int size, void *arg) {
  loss *l = arg;
  mover m;
  lam_context_stats left = LAM_CONTEXT_STATS_INIT;
  lam_context *ctx = context_of(1);
  lam_group *g = join(l, ctx, rank, size);
  NOTE("%s: %s", l->move->name, l->how);
  if (!g) return;
  mover_open(&m, ctx, g);
  for (int i = 0; i < 2; i++)
    CHECK_OK(mover_run(&m, l->move)); /* then it is no longer the first operation */
  mover_wait();
  meet(&l->meeting);
  g->deadline_ms = l->deadline_ms;
  if (rank == LOST && l->strike) l->strike(l, &m);
  meet(&l->meeting);
  if (rank == LOST && l->stays_away) await_count(&l->told, RANKS - 1);
  const bool left_early = rank == LOST && l->strike == leave;
  if (!left_early) be_told(l, &m);
  meet(&l->meeting); /* nobody frees what another may still read */
  if (!left_early) mover_close(&m);
  CHECK_OK(lam_context_get_stats(ctx, &left));
  CHECK_EQ(left.bytes, 0);
  lam_context_destroy(ctx);
}

static void lose_in(loss l, int every) {
  for (int i = 0; i < n_moves; i += every) {
    l.move = &moves[i];
    l.told = 0;
    CHECK_OK(lam_group_id_create(&l.id));
    meet_at(&l.meeting, RANKS);
    run_threads(RANKS, run_rank, &l);
    standin_fail_nth(STANDIN_NCCL_REMOTE, 0);
    standin_fail_nth(STANDIN_NCCL_STALL, 0);
    standin_forget_reports();
  }
}

TEST(loss, an_error_that_nccl_reports_ends_every_operation_on_all_ranks) {
  lose_in((loss){.how = "cut off",
                 .strike = be_cut_off,
                 .expected = LAM_PEER_DEAD,
                 .text = "remote process exited or there was a network error",
                 .deadline_ms = LONG_MS},
          1);
}

TEST(loss, what_does_not_end_on_the_device_ends_every_operation_at_the_deadline) {
  lose_in((loss){.how = "stuck",
                 .strike = get_stuck,
                 .expected = LAM_PEER_STALLED,
                 .text = "300 ms",
                 .deadline_ms = SHORT_MS},
          1);
}

TEST(loss, a_rank_that_left_ends_every_operation_of_the_others) {
  lose_in((loss){.how = "left",
                 .strike = leave,
                 .expected = LAM_PEER_DEAD,
                 .text = "rank 1 (a thread of this process) has left",
                 .deadline_ms = LONG_MS},
          4); /* to leave before the others takes a second */
}

TEST(loss, a_rank_that_does_not_come_ends_every_operation_at_the_deadline) {
  lose_in((loss){.how = "away",
                 .stays_away = true,
                 .expected = LAM_PEER_STALLED,
                 .text = "300 ms",
                 .deadline_ms = SHORT_MS},
          2); /* over NCCL nothing is queued: it is the control channel's deadline */
}
