/* build.h: what a builder of schedules gets and gives. A builder writes one rank's list, as a pure
 * function of ranks, chunks per rank, micro-batches and the rank; its comment is its rule, its
 * golden (tests/golden/schedules) its picture. One that must see all ranks at once writes the
 * whole table.
 *
 * Invariant: memory for the whole table is there before a builder runs, so a push cannot fail.
 * Leaves names and limits to build.c, proof that a table runs to check.c. */
#ifndef LAMELLA_PLUGIN_PIPELINE_SCHEDULE_BUILD_H
#define LAMELLA_PLUGIN_PIPELINE_SCHEDULE_BUILD_H

#include "plugin/pipeline/schedule/schedule.h"

/* Where chunk c of rank r stands among the p v stages. Loop: c p + r. V: r on the way down and
 * 2p-1-r on the way back, so rank 0 has both ends. */
typedef enum lam_placement { LAM_PLACE_LOOP, LAM_PLACE_V } lam_placement;

/* Rank r's list, being written. */
typedef struct lam_list {
  lam_schedule *s;
  lam_placement placement;
  int p, v, m, r; /* ranks, chunks per rank, micro-batches; the rank */
} lam_list;

void lam_list_push(const lam_list *l, int kind, int chunk, int micro);

static inline int lam_least(int a, int b) { return a < b ? a : b; }

/* One chunk per rank: build_linear.c */
void lam_build_layerwise(const lam_list *l);
void lam_build_gpipe(const lam_list *l);
void lam_build_1f1b(const lam_list *l);
void lam_build_zb_h2(const lam_list *l);

/* Chunks in a loop: build_loop.c */
void lam_build_interleaved(const lam_list *l);
void lam_build_interleaved_zb(const lam_list *l);

/* Two chunks in a V: build_v.c, and for all ranks at once build_vmin.c */
void lam_build_zbv(const lam_list *l);
void lam_build_dualpipev(const lam_list *l);
lam_status lam_build_v_half(lam_list *l);
lam_status lam_build_v_min(lam_list *l);

/* What lam_schedule_choose picks: choose.c */
lam_status lam_build_auto(int p, int v, int m, lam_schedule **out);

#endif
