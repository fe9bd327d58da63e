/* partition_bench.c: how long it takes to cut a model into stages.
 *
 *   partition_1000_64          1,000 layers on 64 ranks, a stage each, 1F1B, m 256: exact
 *   partition_1000_64_cuts     the same, cuts as dear as layers, 4 micro-batches: the most limits
 *   partition_1000_64_capped   the same under a cap that binds
 *   partition_1000_64_short    the same under a cap that is too small: what is missing
 *   partition_1000_64_loop     on 32 ranks, two stages each: a search
 * Layers are random, the same in every run; an exact cut that is not proven ends it with status 1.
 * Prints `name median unit spread` (spread.h).
 * Leaves rows and goals to ./lamella bench. */
#include <stdio.h>
#include <stdlib.h>
#include <time.h>

#include "plugin/pipeline/schedule/schedule.h"
#include "tests/bench/spread.h"

enum { LAYERS = 1000, STAGES = 64, ROUNDS = 9 };

typedef struct bench {
  const char *name;
  int n_ranks, n_micro;
  double cut_time; /* of a layer's time, at most */
  uint64_t cap;    /* bytes; a stage of the mean size holds 1600 and 48 by micro-batch in flight */
  lam_status expected;
  int32_t proven; /* of the cut: the least that will do */
} bench;

static double chance(uint64_t *state) { /* 0 to 1 */
  *state = *state * 6364136223846793005u + 1442695040888963407u;
  return (double)(*state >> 40) / (1 << 24);
}

static void fill(lam_layer *layers, double cut_time) {
  uint64_t state = 1;
  for (int i = 0; i < LAYERS; i++)
    layers[i] = (lam_layer){.forward = 1e6 * (0.5 + chance(&state)),
                            .backward_input = 2e6 * (0.5 + chance(&state)),
                            .cut_time = 3e6 * cut_time * chance(&state),
                            .static_bytes = (uint64_t)(200 * chance(&state)),
                            .activation_bytes = (uint64_t)(6 * chance(&state))};
}

/* Forwards, then backwards; the stages of a rank in turn. */
static lam_schedule *schedule_of(const bench *b) {
  lam_schedule *s = NULL;
  const int v = STAGES / b->n_ranks;
  if (v == 1 && lam_schedule_build("1f1b", STAGES, 1, b->n_micro, &s) == LAM_OK) return s;
  if (lam_schedule_alloc(b->n_ranks, STAGES, b->n_micro, &s) != LAM_OK) exit(1);
  for (int r = 0; r < b->n_ranks; r++)
    for (int k = 0; k < 2 * v; k++)
      for (int i = 0; i < b->n_micro; i++)
        lam_schedule_push(s, r, k < v ? LAM_KIND_F : LAM_KIND_B,
                          (k < v ? k : 2 * v - 1 - k) * b->n_ranks + r, i);
  if (lam_schedule_seal(s) != LAM_OK) exit(1);
  return s;
}

static double now_ms(void) {
  struct timespec t;
  clock_gettime(CLOCK_MONOTONIC, &t);
  return (double)t.tv_sec * 1e3 + (double)t.tv_nsec / 1e6;
}

static double time_once(const bench *b, const lam_partition_desc *desc) {
  lam_partition out = LAM_PARTITION_INIT;
  const double begin = now_ms();
  const lam_status status = lam_partition_solve(desc, &out);
  const double ms = now_ms() - begin;
  if (status != b->expected) fprintf(stderr, "%s: %s\n", b->name, lam_last_error()), exit(1);
  if (out.proven < b->proven) fprintf(stderr, "%s: %s\n", b->name, out.proof), exit(1);
  return ms;
}

static void run(bench b) {
  static lam_layer layers[LAYERS];
  uint64_t caps[STAGES];
  double ms[ROUNDS];
  fill(layers, b.cut_time);
  for (int r = 0; r < b.n_ranks; r++) caps[r] = b.cap;
  lam_partition_desc desc = LAM_PARTITION_DESC_INIT;
  desc.layers = layers, desc.n_layers = LAYERS;
  desc.schedule = schedule_of(&b);
  desc.caps = b.cap ? caps : NULL;
  for (int i = 0; i < ROUNDS; i++) ms[i] = time_once(&b, &desc);
  printf("%s %.1f ms", b.name, median_of(ms, ROUNDS));
  end_line(ms, ROUNDS);
  lam_schedule_destroy((lam_schedule *)desc.schedule);
}

int main(void) {
  run((bench){"partition_1000_64", 64, 256, 0.2, 0, LAM_OK, 1});
  run((bench){"partition_1000_64_cuts", 64, 4, 1, 0, LAM_OK, 1});
  run((bench){"partition_1000_64_capped", 64, 256, 0.2, 4000, LAM_OK, 1});
  run((bench){"partition_1000_64_short", 64, 256, 0.2, 2000, LAM_RESOURCE_EXHAUSTED, 0});
  run((bench){"partition_1000_64_loop", 32, 64, 0.2, 0, LAM_OK, 0});
  return 0;
}
