/* draw.h: what every picture of events starts from.
 * Invariant: events were checked, times lie in first..last, and last > first.
 * Leaves the look to draw_grid.c, draw_svg.c, draw_perfetto.c. */
#ifndef LAMELLA_PLUGIN_PIPELINE_SCHEDULE_DRAW_H
#define LAMELLA_PLUGIN_PIPELINE_SCHEDULE_DRAW_H

#include "plugin/pipeline/schedule/schedule.h"
#include "plugin/pipeline/schedule/sink.h"

typedef struct lam_picture {
  const lam_event *events;
  uint64_t n;
  int n_ranks, n_stages, n_chunks; /* chunks: the most stages of one rank */
  int64_t first, last;             /* ns */
  int64_t *busy;                   /* [n_ranks] ns in F, I, W, B, REDUCE_GRAD */
  int32_t *chunk;                  /* [n_stages]: 0 for its rank's first stage, 1 for the next */
  uint32_t kinds;                  /* bit k: kind k occurs */
} lam_picture;

typedef lam_status (*lam_draw_fn)(const lam_picture *p, lam_sink *out);
lam_status lam_draw_grid(const lam_picture *p, lam_sink *out);
lam_status lam_draw_svg(const lam_picture *p, lam_sink *out);
lam_status lam_draw_perfetto(const lam_picture *p, lam_sink *out);

const char *lam_event_kind_name(int kind); /* "forward", ... */
static inline bool lam_kind_is_work(int kind) {
  return kind <= LAM_KIND_B || kind == LAM_KIND_REDUCE_GRAD;
}
static inline bool lam_event_is_work(const lam_event *e) { return lam_kind_is_work(e->kind); }
double lam_picture_idle(const lam_picture *p, int rank); /* share of first..last, 0 to 1 */

/* ns, us, ms or s: the largest of which the whole time has at least 2. */
typedef struct lam_time_unit {
  const char *name;
  double ns;
} lam_time_unit;
lam_time_unit lam_picture_unit(const lam_picture *p);

#endif
