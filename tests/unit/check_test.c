/* check_test.c: the harness itself: what must fail does, in the test, in threads and in processes.
 *
 * A failing check inside this file would fail it, so the broken cases are a program of their own,
 * check_broken, which lies beside this one. */
#include "tests/check.h"

#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

static void die_on_first_rank(int rank, int size, void *arg) {
  (void)size, (void)arg;
  if (rank == 0) raise(SIGKILL);
}

static void stop_on_first_rank(int rank, int size, void *arg) {
  (void)size, (void)arg;
  if (rank == 0) raise(SIGSTOP);
}

/* Runs one broken case; gives its exit status, and what it printed in `out`. */
static int run_broken(const char *name, char *out, size_t capacity) {
  char self[4096], command[8192];
  const ssize_t n = readlink("/proc/self/exe", self, sizeof self - 1);
  if (n < 0) return -1;
  self[n] = 0;
  *strrchr(self, '/') = 0;
  snprintf(command, sizeof command, "LAMELLA_TEST_SEED=7 '%s/check_broken' broken.%s 2>&1", self,
           name);
  FILE *pipe = popen(command, "r");
  if (!pipe) return -1;
  out[fread(out, 1, capacity - 1, pipe)] = 0;
  const int status = pclose(pipe);
  return WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status);
}

TEST(check, names_what_failed_with_both_sides_and_the_seed) {
  static const char *const cases[][2] = {
      {"equal", "1 + 1 is 2, 3 is 3"},
      {"string", "\"a\" is \"a\", \"b\" is \"b\""},
      {"close", "worst is [1]: 2, expected 2.5"},
      {"bits", "differ first at byte 2 of 3: 0x63, 0x64"},
      {"require", "1 == 2 does not hold"},
      {"threads", "[rank 2]"},
      {"processes", "[rank 2]"},
      {"dead_rank", "rank 0 died of signal 9"},
      {"doomed_rank_lives", "rank 0 was doomed, but came back"},
  };
  for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
    char out[4096], verdict[200];
    NOTE("%s", cases[i][0]);
    CHECK_EQ(run_broken(cases[i][0], out, sizeof out), 1);
    snprintf(verdict, sizeof verdict, "FAIL broken.%s (seed 7)\n0 passed, 1 failed\n", cases[i][0]);
    CHECK_CONTAINS(out, cases[i][1]);
    CHECK_CONTAINS(out, verdict);
    CHECK(strstr(out, "not reached") == NULL);
  }
}

TEST(check, names_the_test_that_crashed_or_left) {
  char out[65536];
  CHECK(run_broken("crash", out, sizeof out) != 0);
  CHECK_CONTAINS(out, "FAIL broken.crash (seed 7)");
  CHECK_EQ(run_broken("exit", out, sizeof out), 3);
  CHECK_STR(out, "seed 7\nFAIL broken.exit (seed 7): the process died here\n");
}

TEST(check, counts_a_skipped_test_apart) {
  char out[4096];
  CHECK_EQ(run_broken("skip", out, sizeof out), 0);
  CHECK_STR(out, "seed 7\nskip broken.skip: no reason\n0 passed, 0 failed, 1 skipped\n");
}

TEST(check, lets_doomed_ranks_die_or_stop) {
  run_processes_doomed(2, 1u, die_on_first_rank, NULL);
  run_processes_doomed(2, 1u, stop_on_first_rank, NULL);
}

TEST(check, equal_seeds_give_equal_rows_within_range) {
  rng a = {42}, b = {42};
  for (int i = 0; i < 1000; i++) {
    const float x = rng_float(&a);
    CHECK(x >= -1.0f && x < 1.0f);
    CHECK(x == rng_float(&b));
    const int64_t k = rng_int(&a, -3, 3);
    CHECK(k >= -3 && k <= 3);
    CHECK_EQ(k, rng_int(&b, -3, 3));
  }
}

TEST(check, for_each_visits_every_value_once) {
  int sum = 0, n = 0;
  FOR_EACH(p, 1, 2, 3, 4) sum += p, n++;
  CHECK_EQ(sum, 10);
  CHECK_EQ(n, 4);
}
