/* check_broken.c: tests that fail, each in its own way, for check_test.c to run: no part of the
 * suite. */
#include "tests/check.h"

#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/wait.h>
#include <unistd.h>

static void fail_on_last_rank(int rank, int size, void *arg) {
  (void)arg;
  CHECK(rank != size - 1);
}

static void die_on_first_rank(int rank, int size, void *arg) {
  (void)size, (void)arg;
  if (rank == 0) raise(SIGKILL);
}

static void do_nothing(int rank, int size, void *arg) { (void)rank, (void)size, (void)arg; }

TEST(broken, equal) { CHECK_EQ(1 + 1, 3); }
TEST(broken, string) { CHECK_STR("a", "b"); }
TEST(broken, close) {
  const float got[3] = {1, 2, 3};
  const double want[3] = {1, 2.5, 3};
  CHECK_CLOSE(got, want, 3, 1e-6, 0);
}
TEST(broken, bits) { CHECK_SAME_BITS("abc", "abd", 3); }
TEST(broken, require) {
  REQUIRE(1 == 2);
  printf("not reached\n");
}
TEST(broken, threads) { run_threads(3, fail_on_last_rank, NULL); }
TEST(broken, processes) { run_processes(3, fail_on_last_rank, NULL); }
TEST(broken, dead_rank) { run_processes(2, die_on_first_rank, NULL); }
TEST(broken, doomed_rank_lives) { run_processes_doomed(2, 1, do_nothing, NULL); }
TEST(broken, crash) { abort(); }
TEST(broken, exit) {
  if (fork() == 0) exit(2); /* no word of it */
  wait(NULL);
  exit(3);
}
TEST(broken, skip) { SKIP("no reason"); }
