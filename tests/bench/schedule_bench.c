/* schedule_bench.c: what it costs to prove and to time a schedule.
 *
 *   simulate/131072   a table of 64 ranks with two stages each (interleaved), 512 micro-batches
 *   events/131072     the same, with every event written out
 *   check/1048576     64 ranks with two stages each, 4096 micro-batches: proven and described
 *   lower/131072      transfers written out, and proven again
 *   refuse/131072     two actions swapped: the deadlock found, its shortest circle shown
 *   parse/131072      the text read
 * Prints `name median unit spread`, of the thread's CPU time, as nothing here waits
 * (spread.h).
 * Leaves rows and goals to ./lamella bench. */
#include <stdio.h>
#include <stdlib.h>
#include <time.h>

#include "plugin/pipeline/schedule/schedule.h"
#include "tests/bench/spread.h"

enum { RANKS = 64, STAGES = 2 * RANKS, MOST_SAMPLES = 201 };

#define MUST(call)                                                            \
  do {                                                                        \
    if ((call) != LAM_OK) fprintf(stderr, "%s\n", lam_last_error()), exit(1); \
  } while (0)

/* Interleaved 1F1B for groups of RANKS micro-batches: forward number k of rank r. */
static void push_nth(lam_schedule *s, int r, int kind, int k) {
  const int group = k / STAGES, in_group = k % STAGES, chunk = in_group / RANKS;
  const int stage = r + RANKS * (kind == LAM_KIND_F ? chunk : 1 - chunk);
  MUST(lam_schedule_push(s, r, kind, stage, group * RANKS + in_group % RANKS));
}

static lam_schedule *interleaved(int n_micro) {
  lam_schedule *s = NULL;
  MUST(lam_schedule_alloc(RANKS, STAGES, n_micro, &s));
  MUST(lam_schedule_reserve(s, 2 * (int64_t)STAGES * n_micro));
  for (int r = 0; r < RANKS; r++) {
    const int n = 2 * n_micro, warm = RANKS + 2 * (RANKS - 1 - r);
    for (int k = 0; k < warm; k++) push_nth(s, r, LAM_KIND_F, k);
    for (int k = warm; k < n; k++) {
      push_nth(s, r, LAM_KIND_F, k);
      push_nth(s, r, LAM_KIND_B, k - warm);
    }
    for (int k = n - warm; k < n; k++) push_nth(s, r, LAM_KIND_B, k);
  }
  MUST(lam_schedule_seal(s));
  return s;
}

typedef struct bench {
  lam_schedule *s;
  lam_costs costs;
  lam_event *events;
  char *text;
  uint64_t bytes;
} bench;

static void simulate_it(bench *b) {
  lam_simulated out = LAM_SIMULATED_INIT;
  out.events = b->events, out.n_events = b->events ? 1 << 18 : 0;
  MUST(lam_schedule_simulate(b->s, &b->costs, &out));
}

static void check_it(bench *b) {
  lam_schedule_info info = LAM_SCHEDULE_INFO_INIT;
  MUST(lam_schedule_check(b->s, &info));
}

static void refuse_it(bench *b) {
  if (lam_schedule_check(b->s, NULL) == LAM_OK)
    fprintf(stderr, "a deadlock was accepted\n"), exit(1);
}

static void lower_it(bench *b) {
  lam_schedule *lowered = NULL;
  MUST(lam_schedule_lower(b->s, &lowered));
  MUST(lam_schedule_check(lowered, NULL));
  lam_schedule_destroy(lowered);
}

static void parse_it(bench *b) {
  lam_schedule *s = NULL;
  MUST(lam_schedule_parse(b->text, b->bytes, &s));
  lam_schedule_destroy(s);
}

static double now_us(void) {
  struct timespec t;
  clock_gettime(CLOCK_THREAD_CPUTIME_ID, &t);
  return (double)t.tv_sec * 1e6 + (double)t.tv_nsec / 1e3;
}

static void measure(const char *name, void (*run)(bench *b), bench *b, int n) {
  static double samples[MOST_SAMPLES];
  run(b); /* memory is there from now on */
  for (int i = 0; i < n; i++) {
    const double start = now_us();
    run(b);
    samples[i] = now_us() - start;
  }
  printf("%s %.1f us", name, median_of(samples, n));
  end_line(samples, n);
}

static void swap_two(lam_schedule *s) { /* the last rank's first forward and its backward */
  lam_action *list = s->actions + s->first[RANKS - 1];
  int64_t i = 0;
  while (list[i].kind != LAM_KIND_B) i++;
  const lam_action first = list[0];
  list[0] = list[i], list[i] = first;
}

int main(void) {
  static double forward[STAGES], input[STAGES], weight[STAGES], transfer[STAGES];
  for (int i = 0; i < STAGES; i++)
    forward[i] = 1e6, input[i] = 9e5, weight[i] = 8e5, transfer[i] = 5e4;
  bench b = {.s = interleaved(512), .costs = LAM_COSTS_INIT};
  b.costs.n_stages = STAGES, b.costs.forward = forward, b.costs.backward_input = input;
  b.costs.backward_weight = weight, b.costs.transfer = transfer;
  measure("simulate/131072", simulate_it, &b, 201);
  b.events = malloc(sizeof *b.events << 18);
  measure("events/131072", simulate_it, &b, 201);
  measure("lower/131072", lower_it, &b, 21);
  MUST(lam_schedule_print(b.s, NULL, 0, &b.bytes));
  b.text = malloc(b.bytes + 1);
  MUST(lam_schedule_print(b.s, b.text, b.bytes + 1, &b.bytes));
  measure("parse/131072", parse_it, &b, 21);
  swap_two(b.s);
  measure("refuse/131072", refuse_it, &b, 21);
  lam_schedule_destroy(b.s);
  b.s = interleaved(4096);
  measure("check/1048576", check_it, &b, 21);
  lam_schedule_destroy(b.s);
  free(b.events), free(b.text);
  return 0;
}
