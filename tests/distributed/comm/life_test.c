/* life_test.c: groups come and go without leaving descriptors, mappings or memory; children of a
 * rank are not the rank. */
#include <dirent.h>
#include <signal.h>
#include <stdio.h>
#include <sys/mman.h>
#include <sys/wait.h>

#include "plugin/comm/shm/shm.h"
#include "tests/distributed/comm/ranks.h"

static lam_group_id *id;

static void fresh_id(void) {
  if (!id) id = shared_memory(sizeof *id);
  CHECK_OK(lam_group_id_create(id));
}

static int count_fds(void) {
  int n = 0;
  DIR *d = opendir("/proc/self/fd");
  while (d && readdir(d)) n++;
  if (d) closedir(d);
  return n;
}

/* Everything a group can hold, then its end. */
static void live(const lam_group_id *with, int rank, int size, lam_context *ctx) {
  lam_group *g = NULL, *sub = NULL;
  lam_channel *c = NULL;
  lam_group_desc d = rank_desc(with, rank, size, 20000);
  REQUIRE_OK(lam_group_create(ctx, &d, &g));
  REQUIRE_OK(lam_group_split(g, 0, -rank, &sub));
  CHECK_OK(lam_group_warmup(g));
  CHECK_OK(sum_ones(sub));
  CHECK_OK(lam_channel_open(g, (rank + 1) % size, true, 1, 2, 1000, &c));
  const lam_comm_op op = {.op = LAM_OP_linear_row, .dtype = LAM_F32, .ndim = 1, .dims = {4}};
  float y[4];
  lam_sum s = {
      .y = {.data = y, .rows = 1, .cols = 4, .row_stride = 4, .col_stride = 1, .dtype = LAM_F32}};
  CHECK_OK(lam_group_begin_sums(g, &op));
  CHECK_OK(lam_group_partial(g, 1, 4, &s));
  memset(s.part.data, 0, 16);
  CHECK_OK(lam_group_sum_start(g, &s));
  CHECK_OK(lam_group_sum_finish(g, &s));
  lam_channel_close(c);
  lam_group_destroy(sub);
  lam_group_destroy(g);
}

enum { CYCLES = 100 };
static lam_group_id ids[CYCLES + 1];

static void cycle(int rank, int size, void *arg) {
  lam_context *ctx = NULL;
  (void)arg;
  REQUIRE_OK(lam_context_create(NULL, &ctx));
  for (int i = 0; i < tries(CYCLES); i++) live(&ids[i], rank, size, ctx);
  lam_context_stats stats = LAM_CONTEXT_STATS_INIT;
  CHECK_OK(lam_context_get_stats(ctx, &stats));
  CHECK_EQ(stats.arena_bytes, 0);
  CHECK_EQ(stats.bytes, 0);
  lam_context_destroy(ctx);
}

static void cycle_process(int rank, int size, void *arg) {
  lam_context *ctx = NULL;
  REQUIRE_OK(lam_context_create(NULL, &ctx));
  live(&ids[CYCLES], rank, size, ctx);
  lam_context_destroy(ctx);
  const int fds = count_fds();
  cycle(rank, size, arg);
  CHECK_EQ(count_fds(), fds);
  CHECK_EQ(count_arenas(), 0);
}

TEST(life, a_hundred_groups_leave_nothing_in_a_process) {
  for (int i = 0; i <= CYCLES; i++) CHECK_OK(lam_group_id_create(&ids[i]));
  run_processes(2, cycle_process, NULL);
}

TEST(life, a_hundred_groups_leave_nothing_in_threads) {
  const int fds = count_fds();
  for (int i = 0; i <= CYCLES; i++) CHECK_OK(lam_group_id_create(&ids[i]));
  run_threads(2, cycle, NULL);
  CHECK_EQ(count_fds(), fds);
  CHECK_EQ(count_arenas(), 0);
}

/* Splits and transfers of one world use the same memory again and again. */
static void many_splits(int rank, int size, void *arg) {
  lam_group *g = NULL;
  lam_context *ctx = NULL;
  lam_context_stats stats = LAM_CONTEXT_STATS_INIT;
  const lam_group_desc d = rank_desc(id, rank, size, 20000);
  (void)arg;
  REQUIRE_OK(lam_context_create(NULL, &ctx));
  REQUIRE_OK(lam_group_create(ctx, &d, &g));
  for (int i = 0; i < tries(60); i++) {
    lam_group *sub = NULL;
    REQUIRE_OK(lam_group_split(g, rank % 2, 0, &sub));
    CHECK_OK(lam_group_warmup(sub));
    lam_group_destroy(sub);
    CHECK_OK(lam_context_get_stats(ctx, &stats));
    CHECK(stats.arena_bytes < 20 << 20); /* one takes about 3 MiB; it depends on who leaves last */
  }
  lam_group_destroy(g);
  lam_context_destroy(ctx);
}
TEST(life, splits_use_memory_again) {
  fresh_id();
  run_processes(4, many_splits, NULL);
}

/* A message that was sent before the sender left can still be received, though it lies outside
 * the ring. */
static void last_words(int rank, int size, void *arg) {
  enum { BYTES = 3 << 20 };
  lam_group *g = NULL;
  unsigned char *data = malloc(BYTES);
  lam_wire h = {.bytes = BYTES};
  _Atomic int *left = arg;
  REQUIRE_OK(rank_open(id, rank, size, 20000, &g));
  if (rank == 0) {
    for (int i = 0; i < BYTES; i++) data[i] = (unsigned char)(i * 13);
    CHECK_OK(lam_group_send(g, 1, 0, &h, data));
  } else {
    await_count(left, 1);
    CHECK_OK(lam_group_recv(g, 0, 0, &h, data, BYTES));
    for (int i = 0; i < BYTES; i++)
      if (data[i] != (unsigned char)(i * 13) && !CHECK_EQ(data[i], (unsigned char)(i * 13))) break;
  }
  free(data);
  lam_group_destroy(g);
  *left = 1;
}
TEST(life, what_was_sent_outlives_its_sender) {
  _Atomic int *left = shared_memory(sizeof *left);
  fresh_id();
  run_processes(2, last_words, left);
  *left = 0;
  fresh_id();
  run_threads(2, last_words, left);
}

/* A send waits once 256 MiB are under way, and then only until the deadline. The other rank stays
 * until the sender says through a pipe that it is done. */
static void endless_sender(int rank, int size, void *arg) {
  enum { BYTES = 24 << 20 };
  const int *done = arg;
  lam_group *g = NULL;
  unsigned char *data = calloc(1, BYTES);
  const lam_wire h = {.bytes = BYTES};
  lam_status status = LAM_OK;
  int n = 0;
  lam_group_desc d = rank_desc(id, rank, size, 1000);
  d.first_deadline_ms = 20000; /* to meet */
  REQUIRE_OK(lam_group_create(NULL, &d, &g));
  CHECK_OK(sum_ones(g));
  if (rank == 0) {
    for (; n < 20 && status == LAM_OK; n++) status = lam_group_send(g, 1, 0, &h, data);
    CHECK_STATUS(status, LAM_PEER_STALLED);
    CHECK(n > 5 && n < 13);
    CHECK_EQ(write(done[1], "", 1), 1);
  } else {
    CHECK_EQ(read(done[0], data, 1), 1);
  }
  free(data);
  lam_group_destroy(g);
}
TEST(life, a_send_that_nobody_receives_ends_at_the_deadline) {
  int done[2];
  REQUIRE(pipe(done) == 0);
  fresh_id();
  run_processes(2, endless_sender, done);
  close(done[0]);
  close(done[1]);
}

/* Nobody touches the pages: an offer so large is never copied beside, only taken. Both ranks are
 * told the same, whenever the receiver comes. (The first message may take as long as to meet.) */
static void endless_offer(int rank, int size, void *arg) {
  const uint64_t bytes = 300ull << 20;
  _Atomic int *done = arg;
  lam_group *g = NULL;
  const lam_wire h = {.bytes = bytes};
  lam_wire got, first = {.bytes = 1};
  char byte = 0;
  void *data = NULL;
  lam_group_desc d = rank_desc(id, rank, size, 1000);
  d.first_deadline_ms = 20000; /* to meet */
  REQUIRE_OK(lam_group_create(NULL, &d, &g));
  CHECK_OK(sum_ones(g));
  if (rank == 0) {
    data = malloc(bytes);
    CHECK_OK(lam_group_send(g, 1, 0, &first, &byte));
    CHECK_STATUS(lam_group_send(g, 1, 0, &h, data), LAM_PEER_STALLED);
    *done = 1;
  } else {
    CHECK_OK(lam_group_recv(g, 0, 0, &first, &byte, 1));
    await_count(done, 1);
    CHECK_STATUS(lam_group_recv(g, 0, 0, &got, &data, bytes), LAM_PEER_STALLED);
    CHECK_CONTAINS(lam_last_error(), "rank 1");
  }
  if (rank == 0) free(data);
  lam_group_destroy(g);
}
TEST(life, an_offer_too_large_to_lay_down_ends_at_the_deadline) {
  _Atomic int done = 0;
  fresh_id();
  run_threads(2, endless_offer, &done);
}

/* ---- The end, while a message is copied ------------------------------------------------------ */

/* The sender's memory lets nobody read until the world has ended: who copies out of it is held in the
 * middle: the receiver; the sender, where it sends in pieces to a receiver that is late; or both, where
 * they copy together. Three threads: sender, receiver, and one who ends the world once one is held. */
static _Atomic int receiving, copying, ended;
static _Thread_local bool was_held;
static unsigned char *held;
static size_t held_bytes;

static void hold(int signal, siginfo_t *info, void *context) {
  (void)context;
  if ((unsigned char *)info->si_addr < held || (unsigned char *)info->si_addr >= held + held_bytes)
    raise(signal == SIGSEGV ? SIGABRT : signal);
  was_held = true;
  copying = 1;
  await_count(&ended, 1);
  mprotect(held, held_bytes, PROT_READ | PROT_WRITE);
}

static void copy_until_the_end(int rank, int size, void *arg) {
  lam_group *g = NULL;
  lam_wire h = {.bytes = held_bytes, .dtype = LAM_U8, .ndim = 1, .shape = {(int64_t)held_bytes}};
  unsigned char *data = arg;
  REQUIRE_OK(rank_open(id, rank, size, 20000, &g));
  shm_group_of(g)->world->spins = 1000; /* as with a processor for each */
  if (rank == 0) {
    await_count(&receiving, 1);
    const lam_status status = lam_group_send(g, 1, 0, &h, held);
    if (status) CHECK_STATUS(status, LAM_CANCELLED); /* or the end came after its last look */
    CHECK_EQ(ended, 1);
    memset(held, 1, held_bytes); /* its own again: nobody reads it now */
  } else if (rank == 1) {
    receiving = 1;
    const lam_status status = lam_group_recv(g, 0, 0, &h, data, held_bytes);
    if (was_held || status) CHECK_STATUS(status, LAM_CANCELLED); /* or all had come */
    memset(data, 2, held_bytes); /* nobody writes to it now */
  } else {
    await_count(&copying, 1);
    lam_group_poison(g, LAM_CANCELLED, "enough");
    ended = 1;
  }
  lam_group_destroy(g);
}

static void end_a_copy_of(size_t bytes) {
  const struct sigaction handler = {.sa_sigaction = hold, .sa_flags = SA_SIGINFO};
  struct sigaction before;
  unsigned char *data = calloc(1, bytes);
  held = mmap(NULL, bytes, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  held_bytes = bytes;
  receiving = copying = ended = 0;
  REQUIRE(data && held != MAP_FAILED);
  sigaction(SIGSEGV, &handler, &before);
  fresh_id();
  run_threads(3, copy_until_the_end, data);
  sigaction(SIGSEGV, &before, NULL);
  for (size_t i = 0; i < bytes; i++)
    if (data[i] != 2 && !CHECK_EQ(data[i], 2)) break;
  munmap(held, bytes);
  free(data);
}

TEST(life, both_get_their_memory_back_when_the_world_ends_in_the_middle_of_a_copy) {
  end_a_copy_of(3 << 20);
}
TEST(life, both_get_their_memory_back_when_the_world_ends_while_both_copy) {
  end_a_copy_of(8 << 20);
}

/* ---- Order between transfers and collectives ------------------------------------------------- */

static void crossed(int rank, int size, void *arg) {
  lam_group *g = NULL;
  char byte = 0;
  lam_wire h = {.bytes = 1};
  (void)arg;
  REQUIRE_OK(rank_open(id, rank, size, 20000, &g));
  CHECK_OK(sum_ones(g));
  const int64_t start = now_ms();
  CHECK_STATUS(rank == 0 ? lam_group_recv(g, 1, 0, &h, &byte, 1) : sum_ones(g), LAM_MISMATCH);
  CHECK_CONTAINS(lam_last_error(), "which called all_reduce");
  CHECK(now_ms() - start < 5000);
  lam_group_destroy(g);
}
TEST(life, a_receive_against_a_collective_is_a_mismatch) {
  fresh_id();
  run_processes(2, crossed, NULL);
}

static void other_rings(int rank, int size, void *arg) {
  lam_group *g = NULL;
  lam_channel *c = NULL;
  lam_wire h;
  const void *data = NULL;
  (void)arg;
  REQUIRE_OK(rank_open(id, rank, size, 20000, &g));
  REQUIRE_OK(lam_channel_open(g, 1 - rank, rank == 0, 3, rank == 0 ? 2 : 4, 64, &c));
  if (rank == 1) CHECK_STATUS(lam_channel_pull(c, &h, &data), LAM_MISMATCH);
  if (rank == 0) CHECK_STATUS(sum_ones(g), LAM_MISMATCH);
  CHECK_CONTAINS(lam_last_error(),
                 "rank 0 opened it with 2 slots of 64 bytes, rank 1 with 4 of 64");
  lam_channel_close(c);
  lam_group_destroy(g);
}
TEST(life, channels_of_other_sizes_are_a_mismatch) {
  fresh_id();
  run_processes(2, other_rings, NULL);
}

/* ---- Children -------------------------------------------------------------------------------- */

enum { GIVEN_BYTES = 9 << 20 }; /* so big that the system has it back at once when it is left */

typedef struct belongings { /* of a rank, and in its child's copy */
  lam_group *g;
  lam_channel *to, *from; /* the other rank */
  unsigned char *given;   /* by the group, all 7 */
} belongings;

static void child_uses_all(const belongings *b, int peer) {
  float x = 1;
  void *slot = NULL;
  const void *message = NULL;
  const lam_comm_op op = {.op = LAM_OP_all_reduce, .dtype = LAM_F32, .ndim = 1, .dims = {1}};
  lam_wire h = {.bytes = 4};
  CHECK_STATUS(lam_group_all_reduce(b->g, &op, &x, &x, 1, LAM_F32), LAM_FAILED_PRECONDITION);
  CHECK_STATUS(lam_group_send(b->g, peer, 0, &h, &x), LAM_FAILED_PRECONDITION);
  CHECK_STATUS(lam_group_recv(b->g, peer, 0, &h, &x, 4), LAM_FAILED_PRECONDITION);
  CHECK_STATUS(lam_group_alloc(b->g, 1, &slot), LAM_FAILED_PRECONDITION);
  CHECK_STATUS(lam_channel_acquire(b->to, &slot), LAM_FAILED_PRECONDITION);
  CHECK_STATUS(lam_channel_pull(b->from, &h, &message), LAM_FAILED_PRECONDITION);
  lam_group_poison(b->g, LAM_CANCELLED, "a child's opinion");
  lam_group_free(b->g, b->given);
  lam_channel_close(b->to);
  lam_channel_close(b->from);
  lam_group_destroy(b->g);
}

static void parent_uses_all(const belongings *b, int peer) {
  void *slot = NULL;
  const void *message = NULL;
  unsigned char whole[4] = "abc", got[4];
  lam_wire h = {.bytes = 4};
  int64_t wrong = 0;
  for (int i = 0; i < 10; i++) CHECK_OK(sum_ones(b->g));
  for (int i = 0; i < GIVEN_BYTES; i++) wrong += b->given[i] != 7;
  CHECK_EQ(wrong, 0);
  CHECK_OK(lam_group_send(b->g, peer, 0, &h, whole));
  CHECK_OK(lam_group_recv(b->g, peer, 0, &h, got, 4));
  if (CHECK_OK(lam_channel_acquire(b->to, &slot))) memcpy(slot, whole, 4);
  CHECK_OK(lam_channel_push(b->to, &h));
  if (CHECK_OK(lam_channel_pull(b->from, &h, &message))) CHECK_SAME_BITS(message, whole, 4);
}

static void with_child(int rank, int size, void *arg) {
  belongings b;
  void *given = NULL;
  int status = -1;
  (void)arg;
  REQUIRE_OK(rank_open(id, rank, size, 20000, &b.g));
  REQUIRE_OK(lam_channel_open(b.g, 1 - rank, true, 1, 2, 64, &b.to));
  REQUIRE_OK(lam_channel_open(b.g, 1 - rank, false, 1, 2, 64, &b.from));
  REQUIRE_OK(lam_group_alloc(b.g, GIVEN_BYTES, &given));
  b.given = memset(given, 7, GIVEN_BYTES);
  CHECK_OK(sum_ones(b.g));
  const pid_t child = fork();
  if (child == 0) {
    child_uses_all(&b, 1 - rank);
    _exit(0);
  }
  CHECK_EQ(waitpid(child, &status, 0), child);
  CHECK_EQ(status, 0);
  parent_uses_all(&b, 1 - rank);
  lam_group_free(b.g, given);
  lam_channel_close(b.to);
  lam_channel_close(b.from);
  lam_group_destroy(b.g);
}
TEST(life, a_forked_child_cannot_disturb_its_parents_group) {
  fresh_id();
  run_processes(2, with_child, NULL);
}
