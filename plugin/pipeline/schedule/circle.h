/* circle.h: who waits for whom where a walk came to a stop.
 * Leaves the message to fault.c. */
#ifndef LAMELLA_PLUGIN_PIPELINE_SCHEDULE_CIRCLE_H
#define LAMELLA_PLUGIN_PIPELINE_SCHEDULE_CIRCLE_H

#include "plugin/pipeline/schedule/walk.h"

/* Indices of actions: `stuck` waits for `needed`, which stands on its rank's list at or after the
 * next link's `stuck`; the last one's `needed` at or after the first one's `stuck`. */
typedef struct lam_link {
  int64_t stuck, needed;
} lam_link;

/* The circle of fewest links, the lowest rank's first, of a walk that is not complete though every
 * (stage, micro-batch) is in the table once. Fewest of all in tables of some thousand actions; in
 * larger ones, of those that were looked at in a bounded time. Caller frees *out_links. */
lam_status lam_shortest_circle(const lam_walk *w, lam_link **out_links, int *out_n);

#endif
