/* schedule.h: a schedule is data: one list of actions per rank. As text
 * "0F0 2I1 0W3 1B2 (0F7;7B3)OVERLAP_F_B": stage, kind, micro-batch; a fused pair in brackets.
 *
 * Invariant: a lam_schedule is well formed (kinds known, stages and micro-batches in range,
 * pairs whole); whether it can run is lam_schedule_check's to say, and every function that runs
 * or simulates one calls it first.
 * Leaves time to simulate.c, stage functions and transfers to runtime.c, pictures to draw.c. */
#ifndef LAMELLA_PLUGIN_PIPELINE_SCHEDULE_SCHEDULE_H
#define LAMELLA_PLUGIN_PIPELINE_SCHEDULE_SCHEDULE_H

#include <stdbool.h>
#include <stddef.h>

#include "abi/status.h"

/* Kinds of actions: LAM_KIND_F I W B of lamella.h, and in lowered tables the transfers. SEND_F
 * of stage s: its output to stage s + 1; RECV_F of stage s: its input from s - 1; SEND_B of s:
 * its input's gradient to s - 1; RECV_B of s: from s + 1. Of a whole stage, with no micro-batch
 * (-1): LAM_KIND_REDUCE_GRAD after its last weight gradient; UNSHARD and RESHARD, between which
 * its weights are whole on this rank. */
enum {
  LAM_KIND_SEND_F = 8,
  LAM_KIND_RECV_F,
  LAM_KIND_SEND_B,
  LAM_KIND_RECV_B,
  LAM_KIND_UNSHARD,
  LAM_KIND_RESHARD,
  LAM_N_KINDS,
};

typedef struct lam_action {
  int32_t stage, micro;
  int16_t kind;
  int16_t paired; /* 1: this action and the next one are one fused pair "(0F7;7B3)OVERLAP_F_B" */
} lam_action;

struct lam_schedule {
  int n_ranks, n_stages, n_micro;
  bool lowered;        /* holds transfers */
  bool stage_wide;     /* holds REDUCE_GRAD, UNSHARD or RESHARD */
  lam_action *actions; /* all ranks' lists, one after the other */
  int64_t *first;      /* [n_ranks + 1]: rank r's list is actions[first[r]] .. [first[r + 1] - 1] */
  int32_t *rank_of_stage; /* [n_stages]; -1: a table names no rank for it. The first where two */
  int64_t room;           /* actions allocated */
  int open;               /* the rank that was pushed to last */
  lam_status failed;      /* a push failed: nothing more is pushed, and seal says so */
};

#define LAM_SCHEDULE_MOST (1 << 20) /* ranks, stages, micro-batches: of each at most so many */

/* A schedule of known sizes, lists empty; push appends to rank's list (build lists rank by rank,
 * in order), and cannot fail for memory that was reserved; pair makes the last two actions pushed
 * (an F, then a B) one fused pair; seal closes the lists after the last push. */
lam_status lam_schedule_alloc(int n_ranks, int n_stages, int n_micro, lam_schedule **out);
lam_status lam_schedule_reserve(lam_schedule *s, int64_t n_actions); /* so many pushes in all */
lam_status lam_schedule_push(lam_schedule *s, int rank, int kind, int stage, int micro);
void lam_schedule_pair(lam_schedule *s);
lam_status lam_schedule_seal(lam_schedule *s);

/* Is it F, I, W or B? */
static inline bool lam_kind_computes(int kind) { return kind <= LAM_KIND_B; }
/* Is it of a whole stage, with micro -1? */
static inline bool lam_kind_is_stage_wide(int kind) {
  return kind == LAM_KIND_REDUCE_GRAD || kind >= LAM_KIND_UNSHARD;
}
/* Is it SEND or RECV? */
static inline bool lam_kind_transfers(int kind) {
  return kind >= LAM_KIND_SEND_F && kind <= LAM_KIND_RECV_B;
}

/* One action as text, "3RECV_F12". */
#define LAM_ACTION_BYTES 32
const char *lam_action_text(const lam_action *a, char buf[LAM_ACTION_BYTES]);
const char *lam_kind_name(int kind); /* "F"; NULL for what is no kind */

/* Most activations held at once, per rank [n_ranks]: F done, and neither B nor, where backward is
 * split, W. For a checked schedule. */
void lam_schedule_peaks(const lam_schedule *s, int32_t *out_peaks);

/* Ring depth of an edge (between stage e and e + 1) in one direction (LAM_KIND_F activations,
 * LAM_KIND_I gradients): how many messages are at most under way or held, when every rank runs
 * eagerly with unit costs and nothing blocks a sender. A message takes its slot when the action
 * that makes it starts, and gives it back when the action that needs it ends, or, held, when the
 * receiver's last backward action of that micro-batch ends; slots are used in turn. A ring of
 * this depth cannot deadlock whatever the actions really take. 0 = the edge stays on one rank;
 * -1 = no memory, or the schedule cannot run. */
int lam_schedule_ring_depth(const lam_schedule *s, int edge, int kind, bool held);

#endif
