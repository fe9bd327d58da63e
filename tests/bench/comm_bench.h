/* comm_bench.h: how comm_bench.c (Lamella) and comm_bench_mpi.c (Open MPI) measure, so that both
 * measure alike.
 *
 * Two ranks, each pinned to its own CPU, do `calls` calls in a row, SAMPLES times; a sample is
 * the mean time of a call. Printed per case: `name/bytes median us spread` (spread.h).
 * Invariant: the same sizes, buffers and numbers of calls on both sides. Leaves the calls to the
 * two programs. */
#ifndef LAMELLA_TESTS_BENCH_COMM_BENCH_H_
#define LAMELLA_TESTS_BENCH_COMM_BENCH_H_

#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <time.h>

#include "tests/bench/spread.h"

enum { SAMPLES = 21, WARM_SAMPLES = 3 };

static const int64_t reduce_sizes[] = {64,       256,       1 << 10, 2 << 10, 4 << 10, 16 << 10,
                                       64 << 10, 256 << 10, 1 << 20, 4 << 20, 16 << 20};
static const int64_t transfer_sizes[] = {64, 4 << 10, 64 << 10, 1 << 20, 16 << 20};
enum {
  N_REDUCE = sizeof reduce_sizes / sizeof *reduce_sizes,
  N_TRANSFER = sizeof transfer_sizes / sizeof *transfer_sizes
};
#define MOST_BYTES (16 << 20)

static inline double now_us(void) {
  struct timespec t;
  clock_gettime(CLOCK_MONOTONIC, &t);
  return (double)t.tv_sec * 1e6 + (double)t.tv_nsec * 1e-3;
}

/* About 4 ms of work a sample at 10 GB/s, at most 2000 calls. */
static inline int calls_for(int64_t bytes) {
  const int64_t n = (32ll << 20) / bytes;
  return n > 2000 ? 2000 : n < 2 ? 2 : (int)n;
}

static inline void print_median(const char *name, int64_t bytes, int rank, double *samples) {
  if (rank != 0) return;
  printf("%s/%lld %.4f us", name, (long long)bytes, median_of(samples, SAMPLES));
  end_line(samples, SAMPLES);
}

/* One case on this rank: run(user, bytes, calls) does the calls. Rank 0 prints. */
static inline void measure(const char *name, int64_t bytes, int rank,
                           void (*run)(void *user, int64_t bytes, int calls), void *user) {
  double samples[SAMPLES];
  const int calls = calls_for(bytes);
  for (int i = -WARM_SAMPLES; i < SAMPLES; i++) {
    const double start = now_us();
    run(user, bytes, calls);
    if (i >= 0) samples[i] = (now_us() - start) / calls;
  }
  print_median(name, bytes, rank, samples);
}

/* Random values: what is all zeros may be cheaper. */
static inline float *fresh_floats(int rank) {
  float *x = aligned_alloc(4096, MOST_BYTES);
  if (!x) abort();
  for (int64_t i = 0; i < MOST_BYTES / 4; i++)
    x[i] = (float)((uint32_t)(i + rank) * 2654435761u >> 8) * 0x1p-24f;
  return x;
}

#endif
