/* synthetic_bench.c: every schedule that can be built by name, on more workers than there may be
 * cores: a stage's work is a timed wait, forward f, backward 2 f (of which f for the input, f for
 * the weight), a fused pair of both 2.5 f, so what is measured is order, hand-over and waiting, and
 * nothing of products.
 *
 *   synthetic_bench [steps]       default: 5
 *
 * Ranks are threads of one process. Beside the measured step stands the one that the simulator
 * predicts from the stages' own measured times. A rank has two stages of half the work where the
 * schedule takes two, so a rank's work is the same under every schedule.
 * Prints `synthetic_<schedule>_p<ranks>_m<micro-batches>_{measured,simulated} us`; measured is the
 * median of the steps, with their spread (spread.h), simulated one figure for all of them; and
 * `_metering %`, by steps again: what the runtime's own measuring takes of a step, on the rank
 * where that is most.
 * Invariant: costs are medians over all steps, never the figure that they stand beside.
 * Leaves rows and goals to ./lamella bench. */
#include <errno.h>
#include <pthread.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <time.h>

#include "plugin/pipeline/schedule/schedule.h"
#include "tests/bench/spread.h"

enum { MOST_RANKS = 8, MOST_V = 2, MOST_STAGES = MOST_RANKS * MOST_V, MOST_STEPS = 50, WARM = 1 };
enum { FORWARD_NS = 4000000, EDGE_FLOATS = 1024 }; /* of all stages of a rank */
enum { F, I, W, B, PAIR, N_WORK }; /* what a stage's function did; a pair by its forward's stage */

#define MUST(call)                                                            \
  do {                                                                        \
    if ((call) != LAM_OK) fprintf(stderr, "%s\n", lam_last_error()), exit(1); \
  } while (0)

typedef struct samples {
  double *ns;
  int n, room;
} samples;

typedef struct bench {
  const char *name;
  int p, m, steps, v;
  lam_schedule *schedule;
  lam_group_id id;
  pthread_barrier_t step;
  samples work[MOST_STAGES][N_WORK];          /* of a stage, so of one rank's thread */
  double first[MOST_RANKS], last[MOST_RANKS]; /* ns: this step's first start and last end */
  double length[MOST_STEPS];
  double metering[MOST_RANKS]; /* the part of this step that measuring took */
  double most_metering[MOST_STEPS];
} bench;

typedef struct rank {
  bench *b;
  int rank;
  bool warm;
} rank;

static double now_ns(void) {
  struct timespec t;
  clock_gettime(CLOCK_MONOTONIC, &t);
  return (double)t.tv_sec * 1e9 + (double)t.tv_nsec;
}

static void add_sample(samples *s, double ns) {
  if (s->n == s->room) {
    s->room = s->room ? 2 * s->room : 64;
    s->ns = realloc(s->ns, sizeof(double) * (size_t)s->room);
    if (!s->ns) exit(1);
  }
  s->ns[s->n++] = ns;
}

/* -- a stage -- */

static void wait_ns(int64_t ns) {
  struct timespec left = {0, ns};
  while (clock_nanosleep(CLOCK_MONOTONIC, 0, &left, &left) == EINTR) continue;
}

/* ns: of all stages of a rank */
static lam_status work(void *user, const lam_stage_io *io, int kind, int64_t ns) {
  rank *r = user;
  const double start = now_ns();
  wait_ns(ns / r->b->v);
  const double end = now_ns();
  if (r->b->first[r->rank] == 0) r->b->first[r->rank] = start;
  r->b->last[r->rank] = end;
  if (!r->warm) add_sample(&r->b->work[io->stage][kind], end - start);
  return LAM_OK;
}

static lam_status forward(void *user, const lam_stage_io *io) {
  return work(user, io, F, FORWARD_NS);
}
static lam_status backward(void *user, const lam_stage_io *io) {
  return work(user, io, B, 2 * FORWARD_NS);
}
static lam_status backward_input(void *user, const lam_stage_io *io) {
  return work(user, io, I, FORWARD_NS);
}
static lam_status backward_weight(void *user, const lam_stage_io *io) {
  return work(user, io, W, FORWARD_NS);
}
static lam_status forward_backward(void *user, const lam_stage_io *f, const lam_stage_io *b) {
  (void)b;
  return work(user, f, PAIR, 5 * FORWARD_NS / 2);
}

/* -- a rank -- */

static lam_pipeline *open_pipeline(rank *r, lam_group *g) {
  static const lam_shape shape = {1, {kDLFloat, 32, 1}, {EDGE_FLOATS}};
  const lam_schedule *s = r->b->schedule;
  lam_edge edges[MOST_STAGES];
  lam_stage stages[MOST_V];
  const lam_stage none = LAM_STAGE_INIT;
  for (int i = 0; i < s->n_stages; i++) edges[i] = (lam_edge){sizeof *edges, 1, &shape, 0, 0};
  for (int i = 0; i < MOST_V; i++) {
    stages[i] = none;
    stages[i].user = r;
    stages[i].forward = forward, stages[i].backward = backward;
    stages[i].backward_input = backward_input, stages[i].backward_weight = backward_weight;
    stages[i].forward_backward = forward_backward;
  }
  lam_pipeline_desc d = LAM_PIPELINE_DESC_INIT;
  d.group = g, d.schedule = s;
  d.stages = stages, d.n_stages = (uint32_t)(s->n_stages / s->n_ranks);
  d.edges = edges, d.n_edges = (uint32_t)(s->n_stages - 1);
  lam_pipeline *p = NULL;
  MUST(lam_pipeline_create(NULL, &d, &p));
  return p;
}

static double step_length(const bench *b) {
  double first = b->first[0], last = 0;
  for (int r = 0; r < b->p; r++) {
    first = b->first[r] < first ? b->first[r] : first;
    last = b->last[r] > last ? b->last[r] : last;
  }
  return last - first;
}

static double largest(const double *x, int n) {
  double most = 0;
  for (int i = 0; i < n; i++) most = x[i] > most ? x[i] : most;
  return most;
}

static double metering_of(lam_pipeline *p) {
  lam_explained told = LAM_EXPLAINED_INIT;
  MUST(lam_pipeline_explain(p, &told));
  return told.metering;
}

/* Of step i, by rank 0, while all wait. */
static void note_step(bench *b, int i) {
  b->length[i] = step_length(b);
  b->most_metering[i] = largest(b->metering, b->p);
}

static void *run_rank(void *arg) {
  rank *r = arg;
  bench *b = r->b;
  lam_group *g = NULL;
  lam_group_desc d = LAM_GROUP_DESC_INIT;
  d.rank = r->rank, d.size = b->p, d.id = b->id;
  prctl(PR_SET_TIMERSLACK, 1000); /* ns: waits end when they should, not up to 50 us later */
  MUST(lam_group_create(NULL, &d, &g));
  lam_pipeline *p = open_pipeline(r, g);
  for (int i = -WARM; i < b->steps; i++) {
    r->warm = i < 0;
    b->first[r->rank] = 0;
    pthread_barrier_wait(&b->step);
    MUST(lam_pipeline_run(p, i + WARM, NULL));
    b->metering[r->rank] = metering_of(p);
    pthread_barrier_wait(&b->step);
    if (i >= 0 && r->rank == 0) note_step(b, i);
    pthread_barrier_wait(&b->step);
  }
  lam_pipeline_destroy(p);
  lam_group_destroy(g);
  return NULL;
}

/* -- a schedule -- */

/* Where a schedule has I and W their times stand for B too; else B is halved. */
static double simulate(bench *b) {
  double forward[MOST_STAGES], input[MOST_STAGES], weight[MOST_STAGES], pair[MOST_STAGES];
  for (int s = 0; s < b->schedule->n_stages; s++) {
    samples *of = b->work[s];
    const double full = median_of(of[B].ns, of[B].n);
    forward[s] = median_of(of[F].ns, of[F].n);
    input[s] = of[I].n ? median_of(of[I].ns, of[I].n) : full / 2;
    weight[s] = of[W].n ? median_of(of[W].ns, of[W].n) : full / 2;
    pair[s] = median_of(of[PAIR].ns, of[PAIR].n);
  }
  lam_costs costs = LAM_COSTS_INIT;
  lam_simulated out = LAM_SIMULATED_INIT;
  costs.n_stages = (uint32_t)b->schedule->n_stages;
  costs.forward = forward, costs.backward_input = input, costs.backward_weight = weight;
  costs.forward_backward = pair; /* where a stage has none, its table has no pairs */
  MUST(lam_schedule_simulate(b->schedule, &costs, &out));
  return out.makespan;
}

static void print(bench *b) {
  const double measured = median_of(b->length, b->steps);
  const double metering = median_of(b->most_metering, b->steps);
  printf("synthetic_%s_p%d_m%d_measured %.1f us", b->name, b->p, b->m, measured / 1e3);
  end_line(b->length, b->steps);
  printf("synthetic_%s_p%d_m%d_simulated %.1f us\n", b->name, b->p, b->m, simulate(b) / 1e3);
  printf("synthetic_%s_p%d_m%d_metering %.6f %%", b->name, b->p, b->m, 100 * metering);
  end_line(b->most_metering, b->steps);
}

/* With the most stages a rank that the builder takes; NULL where it takes none of them. */
static lam_schedule *build(const char *name, int p, int m) {
  lam_schedule *s = NULL;
  for (int v = MOST_V; v >= 1 && !s; v--)
    if (lam_schedule_build(name, p, v, m, &s) != LAM_OK) s = NULL;
  return s;
}

static void run_ranks(bench *b) {
  pthread_t threads[MOST_RANKS];
  rank ranks[MOST_RANKS];
  MUST(lam_group_id_create(&b->id));
  pthread_barrier_init(&b->step, NULL, (unsigned)b->p);
  for (int i = 0; i < b->p; i++) {
    ranks[i] = (rank){b, i, true};
    if (pthread_create(&threads[i], NULL, run_rank, &ranks[i])) exit(1);
  }
  for (int i = 0; i < b->p; i++) pthread_join(threads[i], NULL);
  pthread_barrier_destroy(&b->step);
}

static void run(const char *name, int p, int m, int steps) {
  bench *b = calloc(1, sizeof *b);
  if (!b) exit(1);
  b->name = name, b->p = p, b->m = m, b->steps = steps;
  b->schedule = build(name, p, m);
  if (b->schedule) {
    b->v = b->schedule->n_stages / p;
    run_ranks(b);
    print(b);
  } else {
    fprintf(stderr, "# %s of %d ranks, %d micro-batches: %s\n", name, p, m, lam_last_error());
  }
  for (int s = 0; s < MOST_STAGES; s++)
    for (int kind = 0; kind < N_WORK; kind++) free(b->work[s][kind].ns);
  lam_schedule_destroy(b->schedule);
  free(b);
}

int main(int argc, char **argv) {
  static const int sizes[] = {4, 8};
  const int steps = argc > 1 ? atoi(argv[1]) : 5;
  if (steps < 1 || steps > MOST_STEPS)
    return fprintf(stderr, "synthetic_bench [1..%d steps]\n", MOST_STEPS), 1;
  for (int k = 0; k < 2; k++)
    for (int i = 0; lam_schedule_name(i); i++)
      run(lam_schedule_name(i), sizes[k], 2 * sizes[k], steps);
  return 0;
}
