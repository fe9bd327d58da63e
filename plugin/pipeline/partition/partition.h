/* partition.h: the layers of a model cut into stages, as a problem of plain numbers.
 *
 * A stage that holds layers from .. to - 1 takes
 *   time[to] - time[from] + what a cut before layer `to` adds   ns of one micro-batch, and holds
 *   fixed + micro-batches in flight * held + what that cut adds  bytes;
 * a rank takes and holds the sum of its stages, at the moment at which that is most. The step is
 *   the sum of all stages' times + (m - 1) x the slowest rank's,
 * that is one micro-batch through every stage, and all others behind it at the slowest rank's pace.
 * Invariant: lam_stage_time and lam_stage_bytes are the only places that say so; for a given end
 * both only fall as the start moves on.
 * Leaves public structs and messages about them to partition.c. */
#ifndef LAMELLA_PLUGIN_PIPELINE_PARTITION_PARTITION_H
#define LAMELLA_PLUGIN_PIPELINE_PARTITION_PARTITION_H

#include <stdbool.h>
#include <stddef.h>

#include "abi/status.h"

/* Moments of ranks: in-flight micro-batches of each of a rank's stages (its chunks). */
typedef struct lam_held {
  int most_chunks;   /* of any rank */
  int32_t *chunk_of; /* [n_stages]: which of its rank's stages */
  int32_t *first;    /* [n_ranks + 1]: rank r's moments are first[r] .. first[r + 1] - 1 */
  int32_t *moments;  /* [...][most_chunks] */
  int room;          /* moments allocated */
} lam_held;
static inline int32_t *lam_held_moment(const lam_held *h, int k) {
  return h->moments + (size_t)k * (size_t)h->most_chunks;
}
lam_status lam_held_find(const lam_schedule *s, lam_held *out); /* of a checked schedule */
void lam_held_finish(lam_held *h);

typedef struct lam_cut_problem {
  int n_layers, n_stages, n_ranks, n_micro;
  bool may_be_empty;
  double *time, *cut_time;           /* [n_layers + 1] prefix sums; of a cut before layer i */
  int64_t *fixed, *held, *cut_bytes; /* [n_layers + 1] the same for bytes */
  int32_t *in_flight, *rank_of;      /* [n_stages] micro-batches held at most; its rank */
  int64_t *cap;                      /* [n_ranks] bytes */
  int32_t *pinned;                   /* [n_stages + 1] first layer of a stage; -1 = free */
  lam_held moments;
} lam_cut_problem;

/* Nothing crosses after the last stage, or to a stage on the same rank. */
static inline bool lam_ends_with_cut(const lam_cut_problem *q, int stage) {
  return stage < q->n_stages - 1 && q->rank_of[stage] != q->rank_of[stage + 1];
}
static inline double lam_stage_time(const lam_cut_problem *q, int stage, int from, int to) {
  return q->time[to] - q->time[from] + (lam_ends_with_cut(q, stage) ? q->cut_time[to] : 0);
}
static inline int64_t lam_fixed_bytes(const lam_cut_problem *q, int stage, int from, int to) {
  return q->fixed[to] - q->fixed[from] + (lam_ends_with_cut(q, stage) ? q->cut_bytes[to] : 0);
}
static inline int64_t lam_stage_bytes(const lam_cut_problem *q, int stage, int from, int to) {
  return lam_fixed_bytes(q, stage, from, to) + q->in_flight[stage] * (q->held[to] - q->held[from]);
}
/* How many layers a stage has at least. */
static inline int lam_least_layers(const lam_cut_problem *q) { return q->may_be_empty ? 0 : 1; }

/* What a cut (first[n_stages + 1]) comes to. */
typedef struct lam_cut_score {
  int64_t overflow;  /* bytes: the most that a rank holds above its cap; 0 = all fit */
  int rank;          /* which rank that is */
  double step, sum;  /* ns; sum: of all stages' times */
  double bottleneck; /* the slowest rank's time */
  double squares;    /* of the ranks' times: smaller is evener */
} lam_cut_score;

/* Of every rank, as judged last. */
typedef struct lam_cut_ranks {
  double *time;           /* [n_ranks] */
  int64_t *bytes, *chunk; /* [n_ranks] most it holds; [n_ranks][most_chunks] of one micro-batch */
} lam_cut_ranks;
lam_status lam_cut_ranks_open(const lam_cut_problem *q, lam_cut_ranks *out);
void lam_cut_ranks_close(lam_cut_ranks *ranks);
lam_cut_score lam_cut_judge(const lam_cut_problem *q, const int32_t *first, lam_cut_ranks *out);

/* One stage per rank: the shortest step there is. For ranks with several stages: the best if every
 * stage were a rank of its own with its rank's cap. out_sum: the least sum of all stages' times
 * that the caps allow. Where nothing fits, *out_short is by how many bytes the caps are too small,
 * and out_first the cut that comes closest. */
lam_status lam_cut_chain(const lam_cut_problem *q, int32_t *out_first, double *out_sum,
                         int64_t *out_short);

/* Ranks with several stages, from the cut in `first` on, until a step of no more than `bound` is
 * found or it has looked long enough. *out_all: every cut was tried. */
lam_status lam_cut_search(const lam_cut_problem *q, double bound, int32_t *first,
                          lam_cut_ranks *ranks, bool *out_all);

#endif
