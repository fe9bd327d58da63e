/* walk.h: a schedule's dependencies, and all of its actions run in time: every rank in its
 * list's order, each action as soon as the rank is free and its inputs are there. Check, lower,
 * ring depths and simulate are readings of one walk.
 *
 * Invariant: lam_action_needs is the only place that says what an action waits for.
 * Leaves verdicts and messages to check.c, real time to runtime.c. */
#ifndef LAMELLA_PLUGIN_PIPELINE_WALK_H
#define LAMELLA_PLUGIN_PIPELINE_WALK_H

#include "plugin/pipeline/schedule.h"

/* A set of kinds: F I W B and SEND_F RECV_F SEND_B RECV_B in one byte. */
#define LAM_KIND_BIT(kind) (1u << (((kind) & 3) | ((kind) >> 3 << 2)))
#define LAM_KINDS_BACKWARD \
  (LAM_KIND_BIT(LAM_KIND_I) | LAM_KIND_BIT(LAM_KIND_B)) /* gives the input's gradient */

/* What crosses an edge: activations leave stage s for s + 1, gradients leave s for s - 1. */
enum { LAM_FLOW_F, LAM_FLOW_B, LAM_FLOWS };

/* One of `kinds` of `stage`, of the action's own micro-batch. edge: the edge it comes over from
 * another rank, -1 = none. */
typedef struct lam_need {
  int32_t stage, edge;
  uint32_t kinds;
} lam_need;

/* What must be done before `a` can start, besides its rank's earlier actions. A SEND needs its
 * RECV posted: sends that are only over once they are received are the strictest transport there
 * is. Returns how many. */
int lam_action_needs(const lam_schedule *s, const lam_action *a, lam_need out_needs[3]);

static inline size_t lam_pair_index(const lam_schedule *s, int stage, int micro) {
  return (size_t)stage * (size_t)s->n_micro + (size_t)micro;
}
static inline int64_t lam_schedule_n_actions(const lam_schedule *s) { return s->first[s->n_ranks]; }
/* Does the edge between stage e and e + 1 lie between two ranks? */
static inline bool lam_edge_crosses(const lam_schedule *s, int e) {
  return s->rank_of_stage[e] != s->rank_of_stage[e + 1];
}

typedef struct lam_span {
  double start, end;
} lam_span;

struct lam_walk_cell;
typedef struct lam_walk {
  const lam_schedule *s;
  const lam_costs *costs; /* NULL: unit costs, transfers free */
  lam_span *spans;        /* [n_actions]; of a fused pair, F's part and then B's */
  double *clock;          /* [n_ranks] */
  int64_t *at; /* [n_ranks]: the action a rank stands at; first[r + 1] where it came to its end */
  struct lam_walk_cell *cells; /* [n_stages * n_micro] */
  int32_t *ready;              /* a stack of ranks to try, and whether a rank is on it */
  uint8_t *is_ready;
} lam_walk;

/* Everything that lam_schedule_check judges, and the walk it ends with, in costs (NULL: unit
 * costs). Who runs or simulates a schedule starts here, and finishes the walk where this
 * succeeded. */
lam_status lam_check_walk(const lam_schedule *s, const lam_costs *costs, lam_walk *out);

/* Runs as much as can be run; fails only for memory. Every (stage, micro-batch) must be there
 * once (check.c). */
lam_status lam_walk_run(const lam_schedule *s, const lam_costs *costs, lam_walk *out);
void lam_walk_finish(lam_walk *w);
bool lam_walk_is_complete(const lam_walk *w);
bool lam_walk_has(const lam_walk *w, const lam_need *need, int micro); /* is it done? */

/* The order in which each stage makes its outputs: [LAM_FLOWS][n_stages][n_micro] micro-batches.
 * Caller frees it. */
lam_status lam_output_order(const lam_schedule *s, int32_t **out_order);
static inline const int32_t *lam_order_of(const lam_schedule *s, const int32_t *order, int flow,
                                          int stage) {
  return order + ((size_t)flow * (size_t)s->n_stages + (size_t)stage) * (size_t)s->n_micro;
}

/* Ring depths (see lam_schedule_ring_depth) of every sending stage: [LAM_FLOWS][n_stages]; of a
 * walk with unit costs. */
lam_status lam_ring_depths(const lam_walk *w, bool held, int32_t *out_depths);

#endif
