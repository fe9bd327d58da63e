/* walk.h: a schedule's dependencies, and all of its actions run in time: every rank in its
 * list's order, each action as soon as the rank is free and its inputs are there. Check, lower,
 * ring depths and simulate are readings of one walk.
 *
 * Invariant: the table of rules in walk.c is the only place that says what an action waits for.
 * Leaves verdicts to check.c, messages to fault.c, real time to runtime.c. */
#ifndef LAMELLA_PLUGIN_PIPELINE_SCHEDULE_WALK_H
#define LAMELLA_PLUGIN_PIPELINE_SCHEDULE_WALK_H

#include "plugin/pipeline/schedule/schedule.h"

/* A set of kinds: F I W B and SEND_F RECV_F SEND_B RECV_B in one byte. What belongs to a whole
 * stage has no bit. */
#define LAM_KIND_BIT(kind) \
  ((kind) >= LAM_KIND_REDUCE_GRAD && ((kind) & ~3) != LAM_KIND_SEND_F ? 0u : LAM_KIND_BIT_(kind))
#define LAM_KIND_BIT_(kind) (1u << (((kind)&3) | ((kind) >> 3 << 2)))
#define LAM_KINDS_BACKWARD \
  (LAM_KIND_BIT(LAM_KIND_I) | LAM_KIND_BIT(LAM_KIND_B)) /* gives the input's gradient */

/* What crosses an edge: activations leave stage s for s + 1, gradients leave s for s - 1. */
enum { LAM_FLOW_F, LAM_FLOW_B, LAM_FLOWS };

/* One of `kinds` of `stage`, of the action's own micro-batch. */
typedef struct lam_need {
  int32_t stage;
  uint32_t kinds;
} lam_need;

/* What must be done before `a` can start, besides its rank's earlier actions. A SEND needs its
 * RECV posted: sends that are only over once they are received are the strictest transport there
 * is. Returns how many. */
int lam_action_needs(const lam_schedule *s, const lam_action *a, lam_need out_needs[2]);

/* Kinds of which one (stage, micro-batch) cannot have both this one and another: B excludes I and
 * W, and the reverse; each excludes itself. */
uint32_t lam_kinds_excluded_by(int kind);
/* The transfers that a lowered table must have for every micro-batch of a stage. */
uint32_t lam_transfers_of(const lam_schedule *s, int stage);

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

/* What a walk notes on its way; rings only with unit costs. */
typedef enum lam_noted {
  LAM_NOTED_NOTHING,
  LAM_NOTED_SPANS,
  LAM_NOTED_RINGS,
  LAM_NOTED_RINGS_HELD, /* slots are held until the receiver's last backward action */
} lam_noted;

typedef struct lam_rings lam_rings;
struct lam_walk_op;
typedef struct lam_walk {
  const lam_schedule *s;
  const lam_costs *costs; /* NULL: unit costs, transfers free */
  lam_span *spans;  /* [n_actions]; of a fused pair, F's part and then B's; NULL = not noted */
  lam_rings *rings; /* NULL = not noted */
  double *first, *clock, *busy; /* [n_ranks]: its first start (-1 = none), last end, work in all */
  int64_t *at;   /* [n_ranks]: the action a rank stands at; first[r + 1] where it came to its end */
  uint8_t *done; /* [n_stages * n_micro]: kinds that ran */
  double *signals;         /* see walk.c */
  struct lam_walk_op *ops; /* [n_stages][n_kinds] */
  int32_t *ready;          /* a stack of ranks that can go on */
  int n_ready, n_kinds;
} lam_walk;

/* Everything that lam_schedule_check judges, and the walk that proves it, in costs (NULL: unit
 * costs). Who runs or simulates a schedule starts here, and finishes the walk where this
 * succeeded. */
lam_status lam_check_walk(const lam_schedule *s, const lam_costs *costs, lam_noted noted,
                          lam_walk *out);

/* Runs as much as can be run, and stops a rank at an action that was there before or is not its
 * stage's rank's; fails only for memory. */
lam_status lam_walk_run(const lam_schedule *s, const lam_costs *costs, lam_noted noted,
                        lam_walk *out);
void lam_walk_finish(lam_walk *w);
/* Did every list come to its end? */
bool lam_walk_is_complete(const lam_walk *w);
/* Did every (stage, micro-batch) do all it must, once? Of a walk that is complete. */
bool lam_walk_is_whole(const lam_walk *w);
bool lam_walk_has(const lam_walk *w, const lam_need *need, int micro); /* is it done? */
/* When the input of `a` from another stage was there; 0 where it has none. */
double lam_walk_arrival(const lam_walk *w, const lam_action *a);

/* simulate.c: the makespan and the bubbles of a walk that is complete. */
void lam_walk_measure(const lam_walk *w, lam_simulated *out);
/* simulate.c: a rank's part of that makespan. */
lam_rank_time lam_walk_time(const lam_walk *w, int rank, double makespan);

/* The order in which each stage makes its outputs: [LAM_FLOWS][n_stages][n_micro] micro-batches.
 * Caller frees it. */
lam_status lam_output_order(const lam_schedule *s, int32_t **out_order);
static inline const int32_t *lam_order_of(const lam_schedule *s, const int32_t *order, int flow,
                                          int stage) {
  return order + ((size_t)flow * (size_t)s->n_stages + (size_t)stage) * (size_t)s->n_micro;
}

/* Ring depths (see lam_schedule_ring_depth) of every sending stage: [LAM_FLOWS][n_stages]; of a
 * walk that noted rings. */
void lam_ring_depths(const lam_walk *w, int32_t *out_depths);

/* ring.c, for walk.c: a message's slot is taken when the action that makes it starts, given back
 * when the last one that reads it ends. */
lam_rings *lam_rings_create(const lam_schedule *s, bool held); /* NULL: no memory */
void lam_rings_note(lam_rings *rings, const lam_action *a, double start, double end);
void lam_rings_destroy(lam_rings *rings);

/* fault.c: says what is wrong with a table that check does not accept. Never LAM_OK. */
lam_status lam_schedule_explain(const lam_schedule *s);
/* fault.c: the k-th send and the k-th receive of a flow over an edge are the k-th output made. */
lam_status lam_check_channels(const lam_schedule *s);
/* fault.c: REDUCE_GRAD, UNSHARD and RESHARD stand where they can. */
lam_status lam_check_stage_wide(const lam_schedule *s);

#endif
