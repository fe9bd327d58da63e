/* await.h: how a test puts ranks in an order: it waits for what has happened, never for time to
 * pass. A condition is looked at until it holds; one that does not hold within AWAIT_S fails.
 * Invariant: a machine however slow changes how long a test takes, not what it finds. */
#ifndef LAMELLA_TESTS_DISTRIBUTED_AWAIT_H_
#define LAMELLA_TESTS_DISTRIBUTED_AWAIT_H_

#include <stdbool.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <time.h>
#include <unistd.h>

#include "tests/check.h"

enum { AWAIT_S = 60 };

/* Memory that forked ranks share with the test. */
static inline void *shared_memory(size_t bytes) {
  void *p = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
  return CHECK(p != MAP_FAILED) ? p : NULL;
}

/* Mappings of ranks' shared memory in this process: none once its groups have ended. */
static inline int count_arenas(void) {
  int n = 0;
  char line[512];
  FILE *f = fopen("/proc/self/maps", "re");
  while (f && fgets(line, sizeof line, f)) n += strstr(line, "memfd:lamella") != NULL;
  if (f) fclose(f);
  return n;
}

/* Between two looks. */
static inline void await_pause(void) {
  nanosleep(&(struct timespec){.tv_nsec = 500000}, NULL);
}

/* The start of a wait, for await_more. */
static inline int64_t await_start(void) { return (int64_t)time(NULL); }

/* Whether to look once more. */
static inline bool await_more(int64_t start) {
  await_pause();
  return (int64_t)time(NULL) - start <= AWAIT_S;
}

static inline bool await_count(const _Atomic int *n, int least) {
  for (int64_t start = await_start(); *n < least;)
    if (!await_more(start)) return CHECK_EQ(*n, least);
  return true;
}

/* What a thread does, as in /proc/TID/stat: R runs, S sleeps, T is stopped; 0: there is none. */
static inline char thread_state(int tid) {
  char path[40], line[512] = "";
  snprintf(path, sizeof path, "/proc/%d/stat", tid);
  FILE *f = fopen(path, "re");
  if (f && !fgets(line, sizeof line, f)) line[0] = 0;
  if (f) fclose(f);
  const char *name_end = strrchr(line, ')');
  return name_end && name_end[1] ? name_end[2] : 0;
}

/* Waits until the process *pid, 0 until it says who it is, has ended: a zombie, or reaped already
 * by the test that started it. */
static inline bool await_end(const _Atomic int *pid) {
  if (!await_count(pid, 1)) return false;
  for (int64_t start = await_start();;) {
    const char state = thread_state(*pid);
    if (state == 'Z' || state == 0) return true;
    if (!await_more(start)) return CHECK_EQ(state, 'Z');
  }
}

/* Waits until thread *tid, 0 until it says who it is, is in `state`: a rank that is about to wait
 * for its peers is asleep once it does. */
static inline bool await_state(const _Atomic int *tid, char state) {
  if (!await_count(tid, 1)) return false;
  for (int64_t start = await_start(); thread_state(*tid) != state;)
    if (!await_more(start)) return CHECK_EQ(thread_state(*tid), state);
  return true;
}

#endif
