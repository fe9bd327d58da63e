/* check.h: the test harness: tests that register themselves, checks that print both sides, ranks as
 * threads or processes.
 *
 *   TEST(ring, wraps_after_its_last_slot) {
 *     rng r = {seed()};
 *     FOR_EACH(n, 1, 2, 7) CHECK_EQ(ring_next(n, n - 1), 0);
 *   }
 *
 * A failing CHECK is recorded and the test goes on; a failing REQUIRE returns from the function it
 * stands in. Both may be used by every thread and child that run_threads and run_processes start.
 * Output: `seed N`, known whatever ends the program; `ok area.claim`; `FAIL area.claim (seed N)`
 * below the checks that failed; `skip area.claim: reason`; last `N passed, N failed`, with
 * `, N skipped` where there are any.
 * Exit status 1 when something failed. argv[1] keeps the tests whose area.claim contains it;
 * LAMELLA_TEST_SEED=N repeats a run. Leaves main() to check.c. */
#ifndef LAMELLA_TESTS_CHECK_H_
#define LAMELLA_TESTS_CHECK_H_

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

/* -- tests -- */

typedef struct check_test {
  const char *area, *claim;
  void (*run)(void);
  struct check_test *next;
} check_test;

void check_register(check_test *test);

#define TEST(area, claim)                                                    \
  static void test_##area##_##claim(void);                                   \
  __attribute__((constructor)) static void register_##area##_##claim(void) { \
    static check_test test = {#area, #claim, test_##area##_##claim, NULL};   \
    check_register(&test);                                                   \
  }                                                                          \
  static void test_##area##_##claim(void)

/* Ends the test without a verdict; the reason is printed. Only in a TEST's own body. */
#define SKIP(reason)    \
  do {                  \
    check_skip(reason); \
    return;             \
  } while (0)

/* Said beside every check that fails later in this thread's test: NOTE("p=%d seq=%d", p, seq). */
#define NOTE(...) check_note(__VA_ARGS__)

/* Runs its body with int `var` set to each value in turn. */
#define FOR_EACH(var, ...)                                                                     \
  for (int var##_list[] = {__VA_ARGS__}, *var##_at = var##_list, var = 0;                      \
       var##_at < var##_list + sizeof var##_list / sizeof *var##_list && (var = *var##_at, 1); \
       var##_at++)

/* -- checks: all are expressions that give 1 when they hold -- */

#define CHECK_AT __FILE__, __LINE__
#define CHECK(cond) check_that(!!(cond), #cond, CHECK_AT)
#define CHECK_EQ(a, b) check_eq((long long)(a), (long long)(b), #a, #b, CHECK_AT)
#define CHECK_STR(a, b) check_str((a), (b), #a, #b, CHECK_AT)
#define CHECK_CONTAINS(text, part) check_contains((text), (part), #text, CHECK_AT)
/* A status other than the expected one is printed with the library's own message. */
#define CHECK_STATUS(expr, expected) check_status((expr), (expected), #expr, #expected, CHECK_AT)
#define CHECK_OK(expr) CHECK_STATUS(expr, 0)
/* |got - want| <= atol + rtol * |want| for n floats against doubles; the worst is printed. */
#define CHECK_CLOSE(got, want, n, rtol, atol) \
  check_close((got), (want), (size_t)(n), (rtol), (atol), #got, CHECK_AT)
#define CHECK_SAME_BITS(a, b, bytes) check_same_bits((a), (b), (size_t)(bytes), #a, #b, CHECK_AT)

#define REQUIRE(cond)         \
  do {                        \
    if (!CHECK(cond)) return; \
  } while (0)
#define REQUIRE_OK(expr)         \
  do {                           \
    if (!CHECK_OK(expr)) return; \
  } while (0)

/* Gives the text of the last error. By default lam_last_error where the test links it; a test may
 * set its own. */
extern const char *(*check_error_text)(void);

/* -- chance -- */

uint64_t seed(void); /* the run's seed: the same at every call, printed when a test fails */

typedef struct rng {
  uint64_t state;
} rng;

/* What data and references are made of: so many calls that a sanitizer would mostly watch these. */
#define UNWATCHED __attribute__((no_sanitize("address", "thread", "undefined")))

uint64_t rng_next(rng *r);
float rng_float(rng *r);                         /* in [-1, 1) */
int64_t rng_int(rng *r, int64_t lo, int64_t hi); /* in [lo, hi], both ends included */

/* A sanitizer watches how code runs, not what it gives: under one chance draws less. */
int tries(int n);       /* how often to try: n; there a quarter of it, at least once */
bool is_spared(rng *r); /* one case of a sweep: none is; there three of four */

/* -- ranks -- */

typedef void (*check_rank_fn)(int rank, int size, void *arg);

void run_threads(int size, check_rank_fn fn, void *arg);
/* Forks `size` children. A child that fails a check, exits other than 0, dies of a signal or is
 * still running after 120 s fails the test. `arg` is each child's own copy: results come back
 * through checks or memory mapped MAP_SHARED. */
void run_processes(int size, check_rank_fn fn, void *arg);
/* The same, where the ranks in the bit mask `doomed` must not come back: they kill or stop
 * themselves, or are killed by another rank. Those that are stopped are killed once all the others
 * have ended. */
void run_processes_doomed(int size, unsigned doomed, check_rank_fn fn, void *arg);

/* -- what the macros call -- */

#define CHECK_PRINTF(at) __attribute__((format(printf, at, at + 1)))

int check_that(int holds, const char *cond, const char *file, int line);
int check_eq(long long a, long long b, const char *a_text, const char *b_text, const char *file,
             int line);
int check_str(const char *a, const char *b, const char *a_text, const char *b_text,
              const char *file, int line);
int check_contains(const char *text, const char *part, const char *expr, const char *file,
                   int line);
int check_status(int32_t got, int32_t want, const char *got_text, const char *want_text,
                 const char *file, int line);
int check_close(const float *got, const double *want, size_t n, double rtol, double atol,
                const char *expr, const char *file, int line);
int check_same_bits(const void *a, const void *b, size_t bytes, const char *a_text,
                    const char *b_text, const char *file, int line);
void check_fail(const char *file, int line, const char *fmt, ...)
    CHECK_PRINTF(3); /* for checks of one's own */
void check_note(const char *fmt, ...) CHECK_PRINTF(1);
void check_skip(const char *reason);

#ifdef __cplusplus
}
#endif
#endif
