/* meet_test.c: how ranks meet: late ones, strangers, and members that contradict each other. */
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <sys/wait.h>

#include "tests/distributed/comm/ranks.h"

static lam_group_id *id; /* of the running test */

/* How far the ranks of the running test are. */
static struct progress {
  _Atomic int tids[8];      /* by rank: set just before it goes to meet */
  _Atomic int open;         /* rank 0 can be reached */
  _Atomic int stranger;     /* has come */
  _Atomic int met;          /* how many have */
  _Atomic int took_ms;      /* rank 1, to meet */
  _Atomic int64_t since_ms; /* when the first rank went to meet */
} *seen;

static void fresh_id(void) {
  if (!id) id = shared_memory(sizeof *id);
  if (!seen) seen = shared_memory(sizeof *seen);
  memset(seen, 0, sizeof *seen);
  CHECK_OK(lam_group_id_create(id));
}

/* The socket that id names: its bytes 8 to 15, in hex. */
static socklen_t name_of(struct sockaddr_un *a) {
  *a = (struct sockaddr_un){.sun_family = AF_UNIX};
  int n = snprintf(a->sun_path + 1, sizeof a->sun_path - 1, "lamella-");
  for (int i = 8; i < 16; i++) n += snprintf(a->sun_path + 1 + n, 3, "%02x", id->bytes[i]);
  return (socklen_t)(offsetof(struct sockaddr_un, sun_path) + 1 + (size_t)n);
}

static int connect_as_stranger(void) {
  struct sockaddr_un a;
  const socklen_t bytes = name_of(&a);
  const int sock = socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0);
  for (int64_t start = await_start(); connect(sock, (struct sockaddr *)&a, bytes) != 0;)
    if (!await_more(start)) return close(sock), -1;
  return sock;
}

/* ---- In time --------------------------------------------------------------------------------- */

static void late_rank(int rank, int size, void *arg) {
  lam_group *g = NULL;
  const int late = *(int *)arg;
  for (int r = 0; r < size && rank == late; r++)
    if (r != late) await_state(&seen->tids[r], 'S');
  seen->tids[rank] = gettid();
  REQUIRE_OK(rank_open(id, rank, size, 20000, &g));
  CHECK_OK(sum_ones(g));
  CHECK_OK(lam_group_warmup(g));
  lam_group_destroy(g);
}

TEST(meet, ranks_may_come_in_any_order) {
  FOR_EACH(late, 0, 1, 2) {
    fresh_id();
    run_processes(3, late_rank, &late);
    fresh_id();
    run_threads(3, late_rank, &late);
  }
}

/* Two processes of two threads each, as a host with local ranks has them. */
static void *mixed_thread(void *arg) {
  int never = -1;
  late_rank(*(int *)arg, 4, &never);
  return NULL;
}
static void mixed_process(int process, int size, void *arg) {
  pthread_t threads[2];
  int ranks[2] = {process, process + 2};
  (void)size, (void)arg;
  for (int i = 0; i < 2; i++) pthread_create(&threads[i], NULL, mixed_thread, &ranks[i]);
  for (int i = 0; i < 2; i++) pthread_join(threads[i], NULL);
}
TEST(meet, some_ranks_may_be_threads_of_one_process) {
  fresh_id();
  run_processes(2, mixed_process, NULL);
}

static void many_ranks(int rank, int size, void *arg) {
  lam_group *g = NULL;
  (void)arg;
  REQUIRE_OK(rank_open(id, rank, size, 60000, &g));
  for (int i = 0; i < 50; i++) CHECK_OK(sum_ones(g));
  lam_group_destroy(g);
}
TEST(meet, more_ranks_than_processors_get_on) {
  FOR_EACH(p, 8, 12) {
    fresh_id();
    run_processes(p, many_ranks, NULL);
  }
}

static void again(int rank, int size, void *arg) {
  (void)arg;
  for (int i = 0; i < 10; i++) {
    lam_group *g = NULL;
    REQUIRE_OK(rank_open(id, rank, size, 20000, &g));
    if (i % 2) CHECK_OK(sum_ones(g));
    lam_group_destroy(g);
  }
}
TEST(meet, an_id_may_be_used_again) {
  fresh_id();
  run_processes(3, again, NULL);
}

/* ---- Too late -------------------------------------------------------------------------------- */

static void missing_rank(int rank, int size, void *arg) {
  lam_group *g = NULL;
  const int absent = *(int *)arg;
  if (rank == absent) return;
  const int64_t first = since_first(&seen->since_ms), start = now_ms();
  CHECK_STATUS(rank_open(id, rank, size, 1500, &g), LAM_PEER_STALLED);
  CHECK(g == NULL);
  CHECK(now_ms() - first >= 1490 && now_ms() - start < 8000);
  if (rank == 0) CHECK_CONTAINS(lam_last_error(), "rank 2");
  if (absent == 0) CHECK_CONTAINS(lam_last_error(), "for rank 0");
}

TEST(meet, a_rank_that_does_not_come_is_named_at_the_deadline) {
  FOR_EACH(absent, 0, 2) {
    fresh_id();
    run_processes(3, missing_rank, &absent);
  }
}

/* Once ranks 0 and 1 know each other and wait for the third. Rank 1 sleeps when it has said who it
 * is, rank 0 when it has heard that. */
static void kill_waiting(int victim) {
  close(connect_as_stranger());
  seen->open = 1;
  for (int i = 0; i < 2; i++) await_state(&seen->tids[1], 'S'), await_state(&seen->tids[0], 'S');
  kill(seen->tids[victim], SIGKILL);
}

static void dies_waiting(int rank, int size, void *arg) {
  lam_group *g = NULL;
  char words[20];
  const int victim = *(int *)arg;
  if (rank == 2) { /* never comes, so that the others wait */
    kill_waiting(victim);
    return;
  }
  if (rank == 1) await_count(&seen->open, 1);
  seen->tids[rank] = gettid();
  CHECK_STATUS(rank_open(id, rank, size, 20000, &g), LAM_PEER_DEAD);
  snprintf(words, sizeof words, "rank %d ended", victim);
  CHECK_CONTAINS(lam_last_error(), words);
}
TEST(meet, a_death_is_noticed) {
  FOR_EACH(victim, 0, 1) {
    fresh_id();
    run_processes_doomed(3, 1u << victim, dies_waiting, &victim);
  }
}

enum { TRIES = 3 };

/* Stands in for rank 0: sends the first `drops` who come away, and tells the next one why. */
static void send_away(int drops) {
  struct sockaddr_un a;
  const socklen_t bytes = name_of(&a);
  const int sock = socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0);
  /* "LAM1", a refusal, rank, size, status; the text from byte 56 on */
  const int32_t head[] = {0x314d414c, 3, 0, 0, LAM_UNAVAILABLE};
  char note[256] = {0}, hello[256];
  memcpy(note, head, sizeof head);
  strcpy(note + 56, "heard at last");
  REQUIRE(bind(sock, (struct sockaddr *)&a, bytes) == 0 && listen(sock, 8) == 0);
  for (int i = 0; i <= drops && i < TRIES; i++) {
    const int guest = accept(sock, NULL, NULL);
    REQUIRE(guest >= 0);
    CHECK_EQ(recv(guest, hello, sizeof hello, 0), (int)sizeof hello);
    if (i == drops) CHECK_EQ(send(guest, note, sizeof note, MSG_NOSIGNAL), (int)sizeof note);
    close(guest);
  }
  close(sock);
}

static void unheard(int rank, int size, void *arg) {
  lam_group *g = NULL;
  const int drops = *(int *)arg;
  if (rank == 0) {
    send_away(drops);
    return;
  }
  CHECK_STATUS(rank_open(id, rank, size, 20000, &g),
               drops < TRIES ? LAM_UNAVAILABLE : LAM_PEER_DEAD);
  CHECK_CONTAINS(lam_last_error(), drops < TRIES ? "heard at last" : "rank 0 ended");
}
/* A machine that stood still for long enough looks like it. */
TEST(meet, who_was_sent_away_unheard_comes_again) {
  FOR_EACH(drops, 0, 1, TRIES - 1, TRIES) {
    fresh_id();
    run_processes(2, unheard, &drops);
  }
}

/* ---- Contradictions -------------------------------------------------------------------------- */

static void other_size(int rank, int size, void *arg) {
  lam_group *g = NULL;
  (void)arg;
  CHECK_STATUS(rank_open(id, rank, rank == 1 ? size + 1 : size, 20000, &g), LAM_MISMATCH);
  CHECK_CONTAINS(lam_last_error(), "rank 1 was given size 4, rank 0 size 3");
}
TEST(meet, other_sizes_are_a_mismatch_for_all) {
  fresh_id();
  run_processes(3, other_size, NULL);
}

static void claimed_twice(int rank, int size, void *arg) {
  lam_group *g = NULL;
  (void)arg;
  CHECK_STATUS(rank_open(id, rank == 2 ? 1 : rank, size, 20000, &g), LAM_MISMATCH);
  CHECK_CONTAINS(lam_last_error(), "two peers claim rank 1");
}
TEST(meet, a_rank_claimed_twice_is_a_mismatch_for_all) {
  fresh_id();
  run_processes(3, claimed_twice, NULL);
}

static void two_rank0s(int rank, int size, void *arg) {
  lam_group *g = NULL;
  (void)arg;
  if (rank == 1) {
    close(connect_as_stranger()); /* rank 0 is there */
    CHECK_STATUS(rank_open(id, 0, size, 20000, &g), LAM_MISMATCH);
    CHECK_CONTAINS(lam_last_error(), "two ranks claim rank 0");
  }
  REQUIRE_OK(rank_open(id, rank, size, 20000, &g)); /* the true one was not disturbed */
  CHECK_OK(sum_ones(g));
  lam_group_destroy(g);
}
TEST(meet, rank_0_claimed_twice_is_a_mismatch) {
  fresh_id();
  run_processes(2, two_rank0s, NULL);
}

TEST(meet, bad_descriptions_are_refused_at_once) {
  lam_group *g = NULL;
  fresh_id();
  CHECK_STATUS(rank_open(id, 2, 2, 100, &g), LAM_INVALID_ARGUMENT);
  CHECK_CONTAINS(lam_last_error(), "rank is 2, expected 0 to 1");
  CHECK_STATUS(rank_open(id, -1, 2, 100, &g), LAM_INVALID_ARGUMENT);
  CHECK_STATUS(rank_open(id, 0, 0, 100, &g), LAM_INVALID_ARGUMENT);
  CHECK_STATUS(rank_open(id, 0, 65, 100, &g), LAM_INVALID_ARGUMENT);
  const lam_group_id zero = {{0}};
  CHECK_STATUS(rank_open(&zero, 0, 2, 100, &g), LAM_INVALID_ARGUMENT);
  CHECK_CONTAINS(lam_last_error(), "lam_group_id_create");
  lam_group_desc d = rank_desc(id, 0, 2, 100);
  d.engine = "carrier pigeon";
  CHECK_STATUS(lam_group_create(NULL, &d, &g), LAM_NOT_FOUND);
  CHECK_CONTAINS(lam_last_error(), "known are: shm");
  d.struct_size--;
  CHECK_STATUS(lam_group_create(NULL, &d, &g), LAM_INVALID_ARGUMENT);
  CHECK_STATUS(lam_group_create(NULL, NULL, &g), LAM_INVALID_ARGUMENT);
  CHECK(g == NULL);
}

/* ---- Strangers ------------------------------------------------------------------------------- */

/* Rank 3 of 4 is a stranger, who must not disturb the others. Rank 1 comes after it. */
typedef void (*stranger_fn)(void);

static void with_stranger(int rank, int size, void *arg) {
  lam_group *g = NULL;
  if (rank == size - 1) {
    (*(const stranger_fn *)arg)();
    seen->stranger = 1;
    return;
  }
  if (rank == 1) await_count(&seen->stranger, 1);
  const int64_t start = now_ms();
  const lam_status status = rank_open(id, rank, size - 1, 20000, &g);
  if (rank == 1) seen->took_ms = (int)(now_ms() - start);
  seen->met++;
  REQUIRE_OK(status);
  CHECK_OK(sum_ones(g));
  lam_group_destroy(g);
}

/* Rank 1 may come; the stranger is there until all have met. */
static void stay(void) {
  seen->stranger = 1;
  await_count(&seen->met, 3);
}

static void silent(void) {
  const int sock = connect_as_stranger();
  CHECK(sock >= 0);
  stay();
  CHECK(seen->took_ms < 4000); /* 5 s is what a silent one is given */
  close(sock);
}
TEST(meet, a_silent_stranger_holds_nobody_up) {
  fresh_id();
  run_processes(4, with_stranger, &(stranger_fn){silent});
}

static void babble(void) {
  static const size_t lengths[] = {0, 1, 255, 256, 257, 4096};
  char noise[4096];
  memset(noise, 0x5a, sizeof noise);
  for (size_t i = 0; i < sizeof lengths / sizeof *lengths; i++) {
    const int sock = connect_as_stranger();
    REQUIRE(sock >= 0);
    (void)!send(sock, noise, lengths[i], MSG_NOSIGNAL);
    close(sock);
  }
}
TEST(meet, noise_is_dropped) {
  fresh_id();
  run_processes(4, with_stranger, &(stranger_fn){babble});
}

static void crowd(void) {
  int socks[60];
  for (int i = 0; i < 60; i++) socks[i] = connect_as_stranger();
  stay(); /* every seat is taken when rank 1 comes, until the silent are sent away */
  for (int i = 0; i < 60; i++)
    if (socks[i] >= 0) close(socks[i]);
}
TEST(meet, a_crowd_of_strangers_is_sent_away) {
  fresh_id();
  run_processes(4, with_stranger, &(stranger_fn){crowd});
}

static void wrong_secret(void) {
  lam_group *g = NULL;
  lam_group_id other = *id;
  other.bytes[20] ^= 1;
  CHECK_STATUS(rank_open(&other, 1, 3, 5000, &g), LAM_INVALID_ARGUMENT);
  CHECK_CONTAINS(lam_last_error(), "secret");
}
TEST(meet, a_wrong_secret_is_refused) {
  fresh_id();
  run_processes(4, with_stranger, &(stranger_fn){wrong_secret});
}

/* As another user: the library itself goes no further, and a raw connection is closed without a
 * word. */
static void other_user(void) {
  lam_group *g = NULL;
  char byte;
  if (setgid(65534) != 0 || setuid(65534) != 0) return;
  CHECK_STATUS(rank_open(id, 1, 3, 5000, &g), LAM_FAILED_PRECONDITION);
  CHECK_CONTAINS(lam_last_error(), "belongs to user 0, expected 65534");
  const int sock = connect_as_stranger();
  REQUIRE(sock >= 0);
  CHECK_EQ(recv(sock, &byte, 1, 0), 0);
  close(sock);
}
TEST(meet, another_user_is_refused) {
  if (geteuid() != 0) SKIP("only root can become another user");
  fresh_id();
  run_processes(4, with_stranger, &(stranger_fn){other_user});
}
