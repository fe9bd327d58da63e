/* losses.c: see losses.h. */
#include "tests/distributed/moves/losses.h"

#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/time.h>
#include <time.h>

#include "tests/distributed/await.h"
#include "tests/place.h"

enum { LOST = 1 };

/* Seen by all ranks. */
typedef struct scene {
  const loss *loss;
  const move *move;
  lam_group_id id;
  _Atomic int64_t struck_ms;
  _Atomic int ready, left; /* ranks */
} scene;

static int64_t now_ms(void) {
  struct timespec t;
  clock_gettime(CLOCK_MONOTONIC, &t);
  return (int64_t)t.tv_sec * 1000 + t.tv_nsec / 1000000;
}

/* -- the rank that is lost -- */

static scene *fate;

static void strike(int signal_number) {
  (void)signal_number;
  fate->struck_ms = now_ms();
  kill(getpid(), fate->loss->signal);
}

/* After some operations, wherever it is then: in a call, or waiting for its device. */
static void strike_soon(scene *s) {
  rng r = {seed() + (uint64_t)(s->move - moves)};
  const struct itimerval soon = {.it_value = {.tv_usec = (long)rng_int(&r, 2000, 30000)}};
  fate = s;
  signal(SIGALRM, strike);
  setitimer(ITIMER_REAL, &soon, NULL);
}

/* -- all ranks -- */

/* NCCL takes a card with another NCCL_HOSTID for another machine's. */
static lam_group *join(const scene *s, lam_context *ctx, int rank, int size) {
  lam_group_desc d = LAM_GROUP_DESC_INIT;
  lam_group *g = NULL;
  char host[16];
  snprintf(host, sizeof host, "rank-%d", rank);
  setenv("NCCL_HOSTID", host, 1);
  d.rank = rank, d.size = size, d.id = s->id, d.engine = s->loss->engine;
  d.deadline_ms = d.first_deadline_ms = 60000;
  CHECK_OK(lam_group_create(ctx, &d, &g));
  return g;
}

/* What a rank keeps for its peers to read is given back with the next group, once they have left. */
static void leave_no_memory(scene *s, lam_context *ctx, int size) {
  lam_context_stats stats = LAM_CONTEXT_STATS_INIT;
  lam_group_desc alone = LAM_GROUP_DESC_INIT;
  lam_group *g = NULL;
  s->left++;
  await_count(&s->left, size - 1);
  alone.size = 1;
  CHECK_OK(lam_group_create(ctx, &alone, &g));
  lam_group_destroy(g);
  CHECK_OK(lam_context_get_stats(ctx, &stats));
  CHECK_EQ(stats.bytes, 0);
  if (s->loss->signal == SIGKILL) CHECK_EQ(count_arenas(), 0); /* who is stopped may yet read */
}

/* Far from the deadline where a death is told, even on a busy machine. */
static void be_told(scene *s, mover *m) {
  /* The first who waited too long may have waited for a rank that waits for the lost one. */
  const char *who = s->loss->signal == SIGKILL ? "rank 1" : "rank ";
  lam_status status = LAM_OK;
  while (status == LAM_OK) {
    status = mover_run(m, s->move);
    mover_wait();
  }
  const int64_t now = now_ms(), took = s->struck_ms ? now - s->struck_ms : 0;
  CHECK_STATUS(status, s->loss->expected);
  CHECK_CONTAINS(lam_last_error(), who);
  CHECK(took < 10000);
  for (int other = 0; other < n_moves - 1; other++) {
    CHECK_STATUS(mover_run(m, &moves[other]), s->loss->expected);
    CHECK_CONTAINS(lam_last_error(), who);
  }
}

static void run_rank(int rank, int size, void *arg) {
  scene *s = arg;
  mover m;
  lam_context *ctx = context_of(1);
  lam_group *g = join(s, ctx, rank, size);
  NOTE("%s, signal %d", s->move->name, s->loss->signal);
  if (!g) return;
  mover_open(&m, ctx, g);
  CHECK_OK(mover_run(&m, &moves[0])); /* which way there is, all know */
  CHECK_OK(mover_run(&m, s->move));
  mover_wait();
  g->deadline_ms = s->loss->deadline_ms;
  s->ready++;
  if (rank == LOST && await_count(&s->ready, size)) strike_soon(s);
  be_told(s, &m);
  if (rank == LOST) strike(0); /* it was told before its time had come */
  mover_close(&m);
  leave_no_memory(s, ctx, size);
  lam_context_destroy(ctx);
}

void lose_in_moves(const loss *l, int ranks, int first, int every) {
  scene *s = shared_memory(sizeof *s);
  for (int i = first; s && i < n_moves; i += every) {
    *s = (scene){.loss = l, .move = &moves[i]};
    CHECK_OK(lam_group_id_create(&s->id));
    run_processes_doomed(ranks, 1u << LOST, run_rank, s);
  }
}
