/* pipeline_bench.c: what a pipeline's action costs above its function: stages that do nothing, one
 * message of 64 bytes an edge.
 *
 *   pipeline_action_p1        one rank, one stage: nothing crosses
 *   pipeline_action_local     one rank, two stages: slots handed over
 *   pipeline_action_p2        two ranks, forward only: the sender's time by action
 *   pipeline_overhead_p2      two ranks, 1F1B: neither in a function nor waiting, by action
 *   pipeline_turn_p2          two ranks, 1F1B: the step's time by action, waits included
 *   pipeline_clock            one reading of the clock, of which an action takes up to five
 * Prints `name median unit spread` (spread.h).
 * Leaves rows and goals to ./lamella bench. */
#include <pthread.h>
#include <sched.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "plugin/pipeline/schedule/schedule.h"
#include "tests/bench/spread.h"

enum { MICRO = 64, WARM = 200, STEPS = 2001 };

#define MUST(call)                                                            \
  do {                                                                        \
    if ((call) != LAM_OK) fprintf(stderr, "%s\n", lam_last_error()), exit(1); \
  } while (0)

typedef struct bench {
  const char *name;
  const char *schedule; /* a builder's name; NULL: two stages on one rank */
  int size;
  uint32_t flags;
  bool only_overhead;
  lam_group_id id;
} bench;

typedef struct rank {
  const bench *b;
  int rank;
} rank;

static lam_status nothing(void *user, const lam_stage_io *io) {
  (void)user, (void)io;
  return LAM_OK;
}

static void print_samples(const char *name, double *samples, int n) {
  printf("%s %.3f us", name, median_of(samples, n));
  end_line(samples, n);
}

static lam_schedule *two_on_one(void) {
  char text[MICRO * 64] = "";
  for (int i = 0; i < MICRO; i++) sprintf(text + strlen(text), "0F%d 1F%d 1B%d 0B%d ", i, i, i, i);
  lam_schedule *s = NULL;
  MUST(lam_schedule_parse(text, strlen(text), &s));
  return s;
}

static lam_schedule *schedule_of(const bench *b) {
  lam_schedule *s = NULL;
  if (!b->schedule) return two_on_one();
  MUST(lam_schedule_build(b->schedule, b->size, 1, MICRO, &s));
  return s;
}

static void pin(int cpu) {
  cpu_set_t set;
  CPU_ZERO(&set);
  CPU_SET(cpu, &set);
  sched_setaffinity(0, sizeof set, &set); /* where there are too few CPUs, it stays where it is */
}

static lam_group *join(const rank *r) {
  lam_group *g = NULL;
  lam_group_desc d = LAM_GROUP_DESC_INIT;
  d.rank = r->rank, d.size = r->b->size, d.id = r->b->id;
  if (d.size > 1) MUST(lam_group_create(NULL, &d, &g));
  return g;
}

static lam_pipeline *open_pipeline(const bench *b, lam_group *g, const lam_schedule *s) {
  static const lam_shape shape = {1, {kDLFloat, 32, 1}, {16}};
  const lam_edge edge = {sizeof edge, 1, &shape, 0, 0};
  lam_stage stages[2] = {LAM_STAGE_INIT, LAM_STAGE_INIT};
  for (int i = 0; i < 2; i++) stages[i].forward = stages[i].backward = nothing;
  lam_pipeline_desc d = LAM_PIPELINE_DESC_INIT;
  d.flags = b->flags;
  d.group = g, d.schedule = s;
  d.stages = stages, d.n_stages = (uint32_t)(s->n_stages / s->n_ranks);
  d.edges = &edge, d.n_edges = (uint32_t)(s->n_stages - 1);
  lam_pipeline *p = NULL;
  MUST(lam_pipeline_create(NULL, &d, &p));
  return p;
}

static void *run_rank(void *arg) {
  static double samples[STEPS];
  const rank *r = arg;
  pin(r->rank);
  lam_schedule *s = schedule_of(r->b);
  lam_group *g = join(r);
  lam_pipeline *p = open_pipeline(r->b, g, s);
  for (int i = -WARM; i < STEPS; i++) {
    lam_pipeline_report report = LAM_PIPELINE_REPORT_INIT;
    MUST(lam_pipeline_run(p, i, NULL));
    MUST(lam_pipeline_get_report(p, &report));
    const int64_t ns = r->b->only_overhead ? report.overhead : report.step_time;
    if (i >= 0 && r->rank == 0) samples[i] = (double)ns / 1e3 / report.n_actions;
  }
  if (r->rank == 0) print_samples(r->b->name, samples, STEPS);
  lam_pipeline_destroy(p);
  lam_group_destroy(g);
  lam_schedule_destroy(s);
  return NULL;
}

static void run(bench b) {
  pthread_t threads[2];
  rank ranks[2];
  MUST(lam_group_id_create(&b.id));
  for (int i = 0; i < b.size; i++) {
    ranks[i] = (rank){&b, i};
    if (pthread_create(&threads[i], NULL, run_rank, &ranks[i])) exit(1);
  }
  for (int i = 0; i < b.size; i++) pthread_join(threads[i], NULL);
}

static void time_clock(void) {
  double samples[STEPS];
  struct timespec a, t, z;
  for (int i = 0; i < STEPS; i++) {
    clock_gettime(CLOCK_MONOTONIC, &a);
    for (int k = 0; k < 100; k++) clock_gettime(CLOCK_MONOTONIC, &t);
    clock_gettime(CLOCK_MONOTONIC, &z);
    samples[i] =
        ((double)(z.tv_sec - a.tv_sec) * 1e6 + (double)(z.tv_nsec - a.tv_nsec) / 1e3) / 101;
  }
  print_samples("pipeline_clock", samples, STEPS);
}

int main(void) {
  run((bench){.name = "pipeline_action_p1", .schedule = "1f1b", .size = 1});
  run((bench){.name = "pipeline_action_local", .size = 1});
  run((bench){.name = "pipeline_action_p2",
              .schedule = "1f1b",
              .size = 2,
              .flags = LAM_PIPELINE_FORWARD_ONLY});
  run((bench){
      .name = "pipeline_overhead_p2", .schedule = "1f1b", .size = 2, .only_overhead = true});
  run((bench){.name = "pipeline_turn_p2", .schedule = "1f1b", .size = 2});
  time_clock();
  return 0;
}
