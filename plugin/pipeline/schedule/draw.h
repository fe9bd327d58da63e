/* draw.h: what every picture of events starts from.
 * Invariant: events were checked, times lie in first..last, and last > first.
 * Leaves the look to draw_grid.c, draw_svg.c, draw_perfetto.c. */
#ifndef LAMELLA_PLUGIN_PIPELINE_SCHEDULE_DRAW_H
#define LAMELLA_PLUGIN_PIPELINE_SCHEDULE_DRAW_H

#include "plugin/pipeline/schedule/schedule.h"
#include "plugin/pipeline/schedule/sink.h"

typedef struct lam_message { /* from one rank to another */
  const lam_event *from, *to; /* the work that made it, and that read it */
  const lam_carrier *by;
} lam_message;

typedef struct lam_picture {
  const lam_event *events;
  uint64_t n;
  int n_ranks, n_stages, n_chunks; /* chunks: the most stages of one rank */
  int64_t first, last;             /* ns */
  int64_t *busy;                   /* [n_ranks] ns in F, I, W, B, REDUCE_GRAD */
  int32_t *rank_of;                /* [n_stages]: one of its ranks; -1: nothing of it is there */
  int32_t *chunk;                  /* [n_stages]: 0 for its rank's first stage, 1 for the next */
  uint32_t kinds;                  /* bit k: kind k occurs */
  const lam_carrier *carriers;
  uint64_t n_carriers;
  lam_message *messages; /* of edges that a carrier is known of */
  uint64_t n_messages;
  bool *held; /* [n_stages + 1]: room to note the stages of the rank that is drawn */
} lam_picture;

/* draw_messages.c: checks carriers, and fills messages and held, which are the caller's to free. */
lam_status lam_picture_find_messages(lam_picture *p);
/* "edge 0 activations: ipc; ..." of the edges that lead to or from the rank, between `before` and
 * `after`; nothing at all where there are none. */
void lam_picture_put_carriers(const lam_picture *p, int rank, const char *before,
                              const char *after, lam_sink *out);
/* "activation" or "gradient" */
static inline const char *lam_message_name(const lam_message *m) {
  return m->by->kind == LAM_KIND_F ? "activation" : "gradient";
}

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
