/* parallel.h: spreading work over the process's OpenMP team, without linking OpenMP.
 * Invariant: every index is run exactly once, by some thread, before the call returns.
 * Leaves to the callers how a context's threads or a host's pool are chosen (lam_workers). */
#ifndef LAMELLA_KERNELS_CPU_PARALLEL_H
#define LAMELLA_KERNELS_CPU_PARALLEL_H

#include <stdint.h>

/* Runs fn(arg, 0..n-1) on at most n_threads threads, this one among them; in turn where there is no
 * OpenMP. */
void lam_cpu_parallel_for(int n_threads, int64_t n, void (*fn)(void *arg, int64_t i), void *arg);

/* What the host's OpenMP would take for a team started here; 1 where there is no OpenMP. */
int lam_cpu_host_threads(void);

/* Sets the size of the teams that libraries start from this thread and returns what it was; n < 1
 * sets nothing. */
int lam_cpu_set_team(int n);

#endif
