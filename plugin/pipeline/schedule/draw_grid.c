/* draw_grid.c: events as text, one row per worker, time from left to right in 100 columns.
 *
 *   worker 0  F0F1F2F3.......B0---F4.B1---...     idle 27 %
 *
 * An action is its kind and micro-batch where they fit, else its kind alone, then dashes; dots
 * are idle. A rank's second stage (fourth, ...) is in lower case.
 * Invariant: what follows without a gap in time follows without a gap in the row.
 * Leaves waits and transfers out: they show as idle, or lie beside work. */
#include <ctype.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "plugin/pipeline/schedule/draw.h"

enum { COLUMNS = 80 }; /* of time; with the label and the idle share 100 */

static const char letters[] = {[LAM_KIND_F] = 'F',
                               [LAM_KIND_I] = 'I',
                               [LAM_KIND_W] = 'W',
                               [LAM_KIND_B] = 'B',
                               [LAM_KIND_REDUCE_GRAD] = 'R'};

static int column(const lam_picture *p, int64_t t) {
  return (int)floor((double)(t - p->first) / (double)(p->last - p->first) * COLUMNS + 0.5);
}

static void put_event(const lam_picture *p, const lam_event *e, char row[COLUMNS]) {
  const int from = column(p, e->start), n = column(p, e->end) - from;
  const char letter = letters[e->kind];
  char label[16];
  const int length = e->micro < 0 ? snprintf(label, sizeof label, "%c", letter)
                                  : snprintf(label, sizeof label, "%c%d", letter, e->micro);
  if (n <= 0) return;
  memset(row + from, length <= n ? '-' : letter, (size_t)n);
  if (length <= n) memcpy(row + from, label, (size_t)length);
  for (int i = from; p->chunk[e->stage] % 2 && i < from + n; i++) row[i] = (char)tolower(row[i]);
}

static void put_legend(const lam_picture *p, lam_sink *out) {
  const lam_time_unit unit = lam_picture_unit(p);
  for (int kind = LAM_KIND_F; kind <= LAM_KIND_REDUCE_GRAD; kind++)
    if (lam_kind_is_work(kind) && (p->kinds >> kind & 1))
      lam_sink_printf(out, "%c %s, ", letters[kind], lam_event_kind_name(kind));
  lam_sink_printf(out, ". idle%s; ",
                  p->n_chunks > 1 ? ", lower case: every second stage of a worker" : "");
  lam_sink_printf(out, "%.4g %s in all\n", (double)(p->last - p->first) / unit.ns, unit.name);
}

lam_status lam_draw_grid(const lam_picture *p, lam_sink *out) {
  const size_t n_cells = (size_t)p->n_ranks * COLUMNS;
  char *cells = malloc(n_cells);
  if (!cells)
    return lam_fail(LAM_RESOURCE_EXHAUSTED, "lam_events_draw: no memory for %d rows", p->n_ranks);
  memset(cells, '.', n_cells);
  for (uint64_t i = 0; i < p->n; i++)
    if (lam_event_is_work(&p->events[i]))
      put_event(p, &p->events[i], cells + p->events[i].rank * COLUMNS);
  for (int rank = 0; rank < p->n_ranks; rank++)
    lam_sink_printf(out, "worker %-3d%.*s idle %2.0f %%\n", rank, COLUMNS, cells + rank * COLUMNS,
                    100 * lam_picture_idle(p, rank));
  free(cells);
  put_legend(p, out);
  return LAM_OK;
}
