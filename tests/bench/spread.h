/* spread.h: the median of what a bench program measured several times, and its spread: the width of
 * the middle half over the median.
 *
 * Invariant: one meaning of spread in all programs; a figure that was measured once has none, and a
 * line then ends behind its unit. Leaves names, units and scales to the programs. */
#ifndef LAMELLA_TESTS_BENCH_SPREAD_H_
#define LAMELLA_TESTS_BENCH_SPREAD_H_

#include <math.h>
#include <stdio.h>
#include <stdlib.h>

static int by_value(const void *a, const void *b) {
  const double x = *(const double *)a, y = *(const double *)b;
  return (x > y) - (x < y);
}

/* Sorts values. Of none: 0. */
static inline double median_of(double *values, int n) {
  if (n == 0) return 0;
  qsort(values, (size_t)n, sizeof *values, by_value);
  return values[n / 2];
}

/* Ends a line `name figure unit` with the spread of sorted values. */
static inline void end_line(const double *sorted, int n) {
  const double median = n > 1 ? fabs(sorted[n / 2]) : 0;
  if (median > 0) printf(" %.3f", (sorted[n * 3 / 4] - sorted[n / 4]) / median);
  printf("\n"), fflush(stdout);
}

#endif
