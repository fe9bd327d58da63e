/* death_test.c: ranks that are killed, stopped, resumed or interrupted in the middle of every
 * operation: the others end with one error, soon, and nothing is left behind. Ranks are
 * processes. */
#include <dirent.h>
#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <sys/mount.h>
#include <sys/time.h>

#include "tests/distributed/comm/ranks.h"

typedef lam_status (*work_fn)(lam_group *g);

/* Seen by all ranks. */
typedef struct scene {
  lam_group_id id;
  work_fn work;
  _Atomic int64_t doom_ms;
  _Atomic int64_t since_ms; /* when the first of them began to wait; 0: nobody has */
  _Atomic int pids[8]; /* by rank, once it gets to the point that others wait for */
  _Atomic int done;
} scene;

static scene *scene_create(work_fn work) {
  scene *s = shared_memory(sizeof *s);
  s->work = work;
  CHECK_OK(lam_group_id_create(&s->id));
  return s;
}

/* ---- One round of every operation ------------------------------------------------------------ */

enum { N = 100000 };
static float x[N], y[N * 4];
static int64_t first[9];

static lam_comm_op op_of(uint32_t op, int64_t n) {
  return (lam_comm_op){.op = op, .dtype = LAM_F32, .ndim = 1, .dims = {n}};
}
static lam_parts even_parts(const lam_group *g, int64_t each) {
  for (int r = 0; r <= g->size; r++) first[r] = each * r;
  return (lam_parts){1, 1, first, LAM_F32};
}

static lam_status small_sum(lam_group *g) {
  const lam_comm_op op = op_of(LAM_OP_all_reduce, 16);
  return lam_group_all_reduce(g, &op, x, y, 16, LAM_F32);
}
static lam_status middle_sum(lam_group *g) {
  const lam_comm_op op = op_of(LAM_OP_all_reduce, 3000);
  return lam_group_all_reduce(g, &op, x, y, 3000, LAM_F32);
}
static lam_status large_sum(lam_group *g) {
  const lam_comm_op op = op_of(LAM_OP_all_reduce, N);
  return lam_group_all_reduce(g, &op, x, y, N, LAM_F32);
}
static lam_status gather(lam_group *g) {
  const lam_comm_op op = op_of(LAM_OP_all_gather, N / 4 * g->size);
  const lam_parts parts = even_parts(g, N / 4);
  return lam_group_all_gather(g, &op, &parts, x, y);
}
static lam_status scatter(lam_group *g) {
  const lam_comm_op op = op_of(LAM_OP_reduce_scatter, N / 4 * g->size);
  const lam_parts parts = even_parts(g, N / 4);
  return lam_group_reduce_scatter(g, &op, &parts, y, x);
}
static lam_status hand_out(lam_group *g) {
  const lam_comm_op op = op_of(LAM_OP_broadcast, N);
  return lam_group_broadcast(g, &op, x, y, sizeof x, 0);
}
static lam_status collect(lam_group *g) {
  const lam_comm_op op = op_of(LAM_OP_reduce, N);
  return lam_group_reduce(g, &op, x, y, N, LAM_F32, 0);
}
static lam_status partial_sum(lam_group *g) {
  const lam_comm_op op = op_of(LAM_OP_linear_row, N);
  lam_sum s = {.y = {.data = y,
                     .rows = N / 100,
                     .cols = 100,
                     .row_stride = 100,
                     .col_stride = 1,
                     .dtype = LAM_F32}};
  LAM_TRY(lam_group_begin_sums(g, &op));
  LAM_TRY(lam_group_partial(g, N / 100, 100, &s));
  memcpy(s.part.data, x, sizeof x);
  LAM_TRY(lam_group_sum_start(g, &s));
  return lam_group_sum_finish(g, &s);
}
static lam_status pass_around(lam_group *g) {
  lam_wire h = {.bytes = sizeof x};
  LAM_TRY(lam_group_send(g, (g->rank + 1) % g->size, 0, &h, x));
  return lam_group_recv(g, (g->rank + g->size - 1) % g->size, 0, &h, y, sizeof y);
}

static const struct {
  const char *name;
  work_fn work;
} works[] = {{"small all_reduce", small_sum},
             {"middle all_reduce", middle_sum},
             {"large all_reduce", large_sum},
             {"all_gather", gather},
             {"reduce_scatter", scatter},
             {"broadcast", hand_out},
             {"reduce", collect},
             {"partial sums", partial_sum},
             {"transfers", pass_around}};
enum { N_WORKS = sizeof works / sizeof *works };

/* ---- Killed ---------------------------------------------------------------------------------- */

static scene *stage; /* for the signal handler */

static void die(int signal_number) {
  (void)signal_number;
  struct timespec t;
  clock_gettime(CLOCK_MONOTONIC, &t);
  stage->doom_ms = (int64_t)t.tv_sec * 1000 + t.tv_nsec / 1000000;
  kill(getpid(), SIGKILL);
}

/* Rank 2 is killed after 20 to 40 ms, wherever it is then. Its sleeping child keeps what it
 * inherited open. */
static void killed_rank(int rank, int size, void *arg) {
  scene *s = stage = arg;
  lam_group *g = NULL, *sub = NULL;
  REQUIRE_OK(rank_open(&s->id, rank, size, 20000, &g));
  REQUIRE_OK(lam_group_split(g, rank == 2, 0, &sub));
  if (rank == 2) {
    rng r = {seed()};
    signal(SIGALRM, die);
    const struct itimerval soon = {.it_value = {.tv_usec = (long)rng_int(&r, 20000, 40000)}};
    setitimer(ITIMER_REAL, &soon, NULL);
  }
  lam_status status = LAM_OK;
  while (status == LAM_OK) status = s->work(g);
  const int64_t took = now_ms() - s->doom_ms;
  CHECK_STATUS(status, LAM_PEER_DEAD);
  CHECK_CONTAINS(lam_last_error(), "rank 2");
  CHECK_CONTAINS(lam_last_error(), "died");
  if (took > 1000) CHECK_EQ(took, 100); /* far from the deadline of 20 s, even on a busy machine */
  CHECK_STATUS(s->work(g), LAM_PEER_DEAD);
  CHECK_STATUS(sum_ones(sub), LAM_PEER_DEAD); /* all groups of the world */
  CHECK_CONTAINS(lam_last_error(), "rank 2");
  const int64_t start = now_ms();
  lam_group_destroy(sub);
  lam_group_destroy(g);
  CHECK(now_ms() - start < 1000);
}

TEST(death, a_killed_rank_is_noticed_in_every_operation) {
  for (int i = 0; i < N_WORKS; i++) {
    NOTE("%s", works[i].name);
    run_processes_doomed(3, 1u << 2, killed_rank, scene_create(works[i].work));
  }
}

/* What it forked lives on with all it inherited. */
static void forked_then_killed(int rank, int size, void *arg) {
  scene *s = arg;
  lam_group *g = NULL;
  REQUIRE_OK(rank_open(&s->id, rank, size, 20000, &g));
  REQUIRE_OK(sum_ones(g));
  if (rank == 1) {
    if (fork() == 0) {
      alarm(3);
      pause();
    }
    kill(getpid(), SIGKILL);
  }
  const int64_t start = now_ms();
  CHECK_STATUS(sum_ones(g), LAM_PEER_DEAD);
  CHECK(now_ms() - start < 2000);
  lam_group_destroy(g);
}

TEST(death, a_killed_ranks_children_do_not_hide_it) {
  run_processes_doomed(2, 1u << 1, forked_then_killed, scene_create(NULL));
}

static void killed_receiver(int rank, int size, void *arg) {
  scene *s = arg;
  lam_group *g = NULL;
  lam_channel *c = NULL;
  void *slot = NULL;
  const lam_wire h = {.bytes = 8};
  REQUIRE_OK(rank_open(&s->id, rank, size, 20000, &g));
  REQUIRE_OK(lam_channel_open(g, 1 - rank, rank == 0, 1, 2, 64, &c));
  REQUIRE_OK(sum_ones(g));
  if (rank == 1) {
    await_state(&s->pids[0], 'S');
    kill(getpid(), SIGKILL);
  }
  for (int i = 0; i < 2; i++) {
    CHECK_OK(lam_channel_acquire(c, &slot));
    CHECK_OK(lam_channel_push(c, &h));
  }
  s->pids[0] = getpid();
  CHECK_STATUS(lam_channel_acquire(c, &slot), LAM_PEER_DEAD); /* no credit will come */
  lam_channel_close(c);
  lam_group_destroy(g);
}

TEST(death, a_sender_without_credit_notices_its_receivers_death) {
  run_processes_doomed(2, 1u << 1, killed_receiver, scene_create(NULL));
}

static void killed_sender(int rank, int size, void *arg) {
  scene *s = arg;
  lam_group *g = NULL;
  lam_channel *c = NULL;
  void *slot = NULL;
  lam_wire h = {.bytes = 8};
  const void *data = NULL;
  REQUIRE_OK(rank_open(&s->id, rank, size, 20000, &g));
  REQUIRE_OK(lam_channel_open(g, 1 - rank, rank == 1, 1, 2, 64, &c));
  if (rank == 1) {
    CHECK_OK(lam_channel_acquire(c, &slot));
    memset(slot, 5, 8);
    CHECK_OK(lam_channel_push(c, &h));
    kill(getpid(), SIGKILL);
  }
  CHECK_OK(lam_channel_pull(c, &h, &data)); /* what was sent arrives */
  CHECK_EQ(*(const char *)data, 5);
  CHECK_STATUS(lam_channel_pull(c, &h, &data), LAM_PEER_DEAD);
  CHECK_CONTAINS(lam_last_error(), "waiting for a message");
  lam_channel_close(c);
  lam_group_destroy(g);
}

TEST(death, a_dead_senders_last_message_still_arrives) {
  run_processes_doomed(2, 1u << 1, killed_sender, scene_create(NULL));
}

/* ---- Stopped --------------------------------------------------------------------------------- */

static void stopped_rank(int rank, int size, void *arg) {
  scene *s = arg;
  lam_group *g = NULL;
  lam_group_desc d = rank_desc(&s->id, rank, size, 1000);
  d.first_deadline_ms = 20000; /* to meet */
  REQUIRE_OK(lam_group_create(NULL, &d, &g));
  REQUIRE_OK(sum_ones(g));
  REQUIRE_OK(sum_ones(g)); /* the first operation's deadline is over */
  s->pids[rank] = getpid();
  if (rank == 1) raise(SIGSTOP);
  if (rank != 1) await_state(&s->pids[1], 'T');
  const int64_t first = since_first(&s->since_ms), start = now_ms();
  const lam_status status = s->work(g);
  CHECK_STATUS(status, LAM_PEER_STALLED); /* on the resumed rank too */
  CHECK_CONTAINS(lam_last_error(), "rank 1");
  CHECK_CONTAINS(lam_last_error(), "stopped");
  CHECK_CONTAINS(lam_last_error(), "1000 ms");
  if (rank != 1) CHECK(now_ms() - first >= 990 && now_ms() - start < 5000);
  s->done++;
  if (rank == 0) {
    await_count(&s->done, size - 1);
    kill(s->pids[1], SIGCONT);
  }
  lam_group_destroy(g);
}

TEST(death, a_stopped_rank_ends_the_world_at_the_deadline) {
  run_processes(3, stopped_rank, scene_create(small_sum));
  run_processes(3, stopped_rank, scene_create(large_sum));
  run_processes(3, stopped_rank, scene_create(partial_sum));
}

/* ---- Interrupted ----------------------------------------------------------------------------- */

static int32_t stop_after_a_while(void *user) {
  int *polls = user;
  return ++*polls > 3;
}

static void interrupted_rank(int rank, int size, void *arg) {
  scene *s = arg;
  lam_group *g = NULL;
  lam_context *ctx = NULL;
  int polls = 0;
  lam_context_desc hooks = LAM_CONTEXT_DESC_INIT;
  const lam_group_desc d = rank_desc(&s->id, rank, size, 20000);
  REQUIRE_OK(lam_context_create(&hooks, &ctx));
  REQUIRE_OK(lam_group_create(ctx, &d, &g));
  REQUIRE_OK(sum_ones(g));
  lam_context *stopping = NULL;
  hooks.user = &polls;
  hooks.should_stop = stop_after_a_while;
  REQUIRE_OK(lam_context_create(&hooks, &stopping));
  g->ctx = stopping;
  if (rank == 1) await_count(&s->done, 1);
  CHECK_STATUS(sum_ones(g), LAM_INTERRUPTED); /* rank 1 is told by rank 0 */
  s->done++;
  CHECK_CONTAINS(lam_last_error(), "rank 0 of 2: the host asked to stop");
  g->ctx = ctx;
  lam_group_destroy(g);
  lam_context_destroy(stopping);
  lam_context_destroy(ctx);
}

TEST(death, the_host_can_interrupt_a_wait) {
  run_processes(2, interrupted_rank, scene_create(NULL));
}

/* ---- Nothing left ---------------------------------------------------------------------------- */

/* Folders of this process alone where it may mount them, so that what others do is not seen; else
 * those that all share. TMPDIR is new in any case. */
static void take_own_folders(char *tmp) {
  if (unshare(CLONE_NEWNS) == 0 && mount(NULL, "/", NULL, MS_REC | MS_PRIVATE, NULL) == 0)
    CHECK_EQ(mount("tmpfs", "/dev/shm", "tmpfs", 0, NULL), 0);
  REQUIRE(mkdtemp(tmp) != NULL);
  CHECK_EQ(setenv("TMPDIR", tmp, 1), 0);
}

/* Every name in the folder, in order. */
static void list_folder(const char *folder, char *text, size_t room) {
  struct dirent **entries = NULL;
  const int n = scandir(folder, &entries, NULL, alphasort);
  CHECK(n >= 2); /* itself and its parent */
  text[0] = 0;
  for (int i = 0; i < n; i++) {
    const size_t at = strlen(text);
    CHECK((size_t)snprintf(text + at, room - at, "%s\n", entries[i]->d_name) < room - at);
    free(entries[i]);
  }
  free(entries);
}

TEST(death, nothing_is_left_in_shared_folders) {
  enum { ROOM = 1 << 16 };
  static char before[2][ROOM], after[ROOM];
  char tmp[] = "/tmp/death_test_XXXXXX";
  const char *const folders[] = {tmp, "/dev/shm"};
  take_own_folders(tmp);
  for (int i = 0; i < 2; i++) list_folder(folders[i], before[i], ROOM);
  run_processes_doomed(3, 1u << 2, killed_rank, scene_create(large_sum));
  for (int i = 0; i < 2; i++) {
    list_folder(folders[i], after, ROOM);
    CHECK_STR(after, before[i]);
  }
  CHECK_EQ(rmdir(tmp), 0);
}
