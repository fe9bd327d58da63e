/* ask.h: what ./lamella schedule's program is asked, as words name=value, and how it answers: lines
 * of JSON, or a text.
 * Invariant: a mistake is one line on stderr and status 2 where the words are wrong, 1 where a
 * table or the memory is.
 * Leaves what the words mean to a person to schedule.py. */
#ifndef LAMELLA_BINDINGS_CLI_SCHEDULE_ASK_H
#define LAMELLA_BINDINGS_CLI_SCHEDULE_ASK_H

#include <stdbool.h>

#include "abi/lamella.h"

typedef struct ask {
  int p, v, m;
  /* ms: of a rank's share of the layers, or with `layers` of one layer of weight 1. fused: a
   * forward and a backward together; 0 = one after the other. */
  double forward, input, weight, comm, fused;
  double fixed, act, cap; /* of the same: held always; of one micro-batch; of a rank, 0 = no cap */
  double scale;           /* memory may be in any unit, with fractions; times this it is bytes */
  int whole;              /* 1: stages cannot split their backward */
  const char *layers;     /* Megatron's letters; with | the stages are given, else they are found */
  double weights[4];      /* of E t m L */
  const char *name, *format;
} ask;

/* What a schedule comes to for these costs. */
typedef struct answer {
  lam_schedule *s;
  int n_ranks, n_stages, v;
  lam_simulated times;
  lam_event *events; /* [times.n_events] */
  double *held;      /* [n_ranks]: the most that a rank holds */
  bool splits;       /* has I and W */
  char layout[4096]; /* Megatron's string; "" without layers */
  const char *proof; /* why no other layout is better */
  const char *why;   /* what failed here; NULL = in the library */
} answer;

/* Fills `out`, whose s is there; answer_free in any case. */
lam_status answer_make(const ask *a, answer *out);
void answer_free(answer *x);

#endif
