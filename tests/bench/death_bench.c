/* death_bench.c: how soon a rank that waits for a killed one is told. Rank 1 is killed by SIGKILL
 * while rank 0 sleeps in an operation with it; the time runs from the kill until the operation
 * gives LAM_PEER_DEAD. Prints `killed/op median ms spread` and `killed_worst/op worst ms` of TRIALS
 * new pairs (the worst of one run has no spread); argv[1] keeps the operations whose name contains
 * it.
 * Invariant: rank 0 is asleep when the kill comes, each time another while since it fell asleep. */
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "plugin/comm/group.h"
#include "tests/bench/spread.h"

enum { TRIALS = 15, STEP_US = 1300 }; /* rank 0 has slept for 0 to 18 ms */

static double now_ms(void) {
  struct timespec t;
  clock_gettime(CLOCK_MONOTONIC, &t);
  return (double)t.tv_sec * 1e3 + (double)t.tv_nsec * 1e-6;
}

static void must(lam_status status, lam_status wanted, const char *what) {
  if (status == wanted) return;
  fprintf(stderr, "death_bench: %s gave 0x%x: %s\n", what, (unsigned)status, lam_last_error());
  exit(1);
}

/* -- the operations -- */

typedef struct member {
  lam_group *g;
  lam_channel *channel; /* from rank 1 to rank 0, as pipelines have them */
} member;

static lam_status all_reduce(const member *m) {
  float x = 1;
  const lam_comm_op op = {.op = LAM_OP_all_reduce, .dtype = LAM_F32, .ndim = 1, .dims = {1}};
  return lam_group_all_reduce(m->g, &op, &x, &x, 1, LAM_F32);
}

static lam_status recv(const member *m) {
  float x = 0;
  lam_wire header = {.bytes = sizeof x, .dtype = LAM_F32, .ndim = 1, .shape = {1}};
  return lam_group_recv(m->g, 1, 0, &header, &x, sizeof x);
}

static lam_status pull(const member *m) {
  lam_wire header;
  const void *data = NULL;
  return lam_channel_pull(m->channel, &header, &data);
}

static const struct {
  const char *name;
  lam_status (*run)(const member *m);
} operations[] = {{"all_reduce", all_reduce}, {"recv", recv}, {"pull", pull}};

/* -- one trial -- */

typedef struct killer {
  pid_t rank0; /* a thread of this process */
  pid_t rank1;
  int pause_us;
  double killed; /* ms */
} killer;

static char thread_state(pid_t tid) {
  char path[40], line[512] = "";
  snprintf(path, sizeof path, "/proc/%d/stat", tid);
  FILE *f = fopen(path, "re");
  if (f && !fgets(line, sizeof line, f)) line[0] = 0;
  if (f) fclose(f);
  const char *name_end = strrchr(line, ')');
  return name_end && name_end[1] ? name_end[2] : 0;
}

static void *kill_rank1(void *arg) {
  killer *k = arg;
  while (thread_state(k->rank0) != 'S') usleep(500);
  usleep((useconds_t)k->pause_us);
  k->killed = now_ms();
  kill(k->rank1, SIGKILL);
  return NULL;
}

static member open_rank(const lam_group_id *id, int rank) {
  lam_group_desc desc = LAM_GROUP_DESC_INIT;
  member m = {0};
  desc.rank = rank, desc.size = 2, desc.id = *id;
  must(lam_group_create(NULL, &desc, &m.g), LAM_OK, "create");
  must(lam_channel_open(m.g, 1 - rank, rank == 1, 1, 2, 64, &m.channel), LAM_OK, "open");
  must(lam_group_warmup(m.g), LAM_OK, "warmup"); /* from here on both ends are open */
  return m;
}

static double trial(lam_status (*run)(const member *m), int pause_us) {
  lam_group_id id;
  pthread_t thread;
  must(lam_group_id_create(&id), LAM_OK, "id");
  const pid_t child = fork();
  if (child == 0) {
    prctl(PR_SET_PDEATHSIG, SIGKILL);
    open_rank(&id, 1);
    for (;;) pause();
  }
  if (child < 0) perror("death_bench: fork"), exit(1);
  const member m = open_rank(&id, 0);
  killer k = {.rank0 = gettid(), .rank1 = child, .pause_us = pause_us};
  if (pthread_create(&thread, NULL, kill_rank1, &k) != 0) abort();
  const lam_status status = run(&m);
  const double end = now_ms();
  pthread_join(thread, NULL);
  must(status, LAM_PEER_DEAD, "the wait for a killed rank");
  waitpid(child, NULL, 0);
  lam_channel_close(m.channel);
  lam_group_destroy(m.g);
  return end - k.killed;
}

int main(int argc, char **argv) {
  for (size_t i = 0; i < sizeof operations / sizeof *operations; i++) {
    double took[TRIALS];
    if (argc > 1 && !strstr(operations[i].name, argv[1])) continue;
    for (int t = 0; t < TRIALS; t++) took[t] = trial(operations[i].run, t * STEP_US);
    printf("killed/%s %.3f ms", operations[i].name, median_of(took, TRIALS));
    end_line(took, TRIALS);
    printf("killed_worst/%s %.3f ms\n", operations[i].name, took[TRIALS - 1]);
  }
  return 0;
}
