/* draw.c: events as a picture: checks them, finds their extent, hands them to the format's
 * function.
 * Invariant and what it leaves: see draw.h. */
#include "plugin/pipeline/schedule/draw.h"

#include <stdlib.h>
#include <string.h>

#define WHO "lam_events_draw: "
#define MOST_RANKS 4096
#define LONGEST (INT64_MAX / 4) /* ns: 73 years */

static const struct {
  const char *name;
  lam_draw_fn draw;
} formats[] = {
    {"grid", lam_draw_grid},
    {"svg", lam_draw_svg},
    {"perfetto", lam_draw_perfetto},
};
enum { n_formats = sizeof formats / sizeof formats[0] };

static const char *const kind_names[] = {
    [LAM_KIND_F] = "forward",
    [LAM_KIND_I] = "backward for the input",
    [LAM_KIND_W] = "backward for the weight",
    [LAM_KIND_B] = "backward",
    [LAM_KIND_SEND] = "send",
    [LAM_KIND_RECV] = "receive",
    [LAM_KIND_WAIT] = "wait",
    [LAM_KIND_REDUCE_GRAD] = "reduction of gradients",
};
enum { n_kinds = sizeof kind_names / sizeof kind_names[0] };

const char *lam_event_kind_name(int kind) { return kind_names[kind]; }

double lam_picture_idle(const lam_picture *p, int rank) {
  const double idle = 1 - (double)p->busy[rank] / (double)(p->last - p->first);
  return idle > 0 ? idle : 0;
}

lam_time_unit lam_picture_unit(const lam_picture *p) {
  static const lam_time_unit units[] = {{"s", 1e9}, {"ms", 1e6}, {"us", 1e3}, {"ns", 1}};
  int i = 0;
  while (i < 3 && (double)(p->last - p->first) < 2 * units[i].ns) i++;
  return units[i];
}

static lam_status check_event(const lam_event *e, uint64_t i) {
  const unsigned long long at = i;
  if (e->rank < 0 || e->rank >= MOST_RANKS)
    return lam_fail(LAM_INVALID_ARGUMENT, WHO "events[%llu].rank is %d, expected 0 to %d", at,
                    e->rank, MOST_RANKS - 1);
  if (e->kind >= n_kinds)
    return lam_fail(LAM_INVALID_ARGUMENT, WHO "events[%llu].kind is %d, expected 0 to %d", at,
                    e->kind, n_kinds - 1);
  const int least = e->kind == LAM_KIND_REDUCE_GRAD ? -1 : 0;
  if (lam_event_is_work(e) && (e->stage < 0 || e->stage >= LAM_SCHEDULE_MOST || e->micro < least))
    return lam_fail(LAM_INVALID_ARGUMENT,
                    WHO "events[%llu] is of stage %d, micro-batch %d, expected 0 or more", at,
                    e->stage, e->micro);
  if (e->start > e->end || e->start < -LONGEST || e->end > LONGEST)
    return lam_fail(LAM_INVALID_ARGUMENT,
                    WHO "events[%llu] goes from %lld to %lld ns, expected start <= end", at,
                    (long long)e->start, (long long)e->end);
  return LAM_OK;
}

static lam_status find_extent(lam_picture *p) {
  p->first = INT64_MAX, p->last = INT64_MIN;
  for (uint64_t i = 0; i < p->n; i++) {
    const lam_event *e = &p->events[i];
    LAM_TRY(check_event(e, i));
    if (e->start < p->first) p->first = e->start;
    if (e->end > p->last) p->last = e->end;
    if (e->rank >= p->n_ranks) p->n_ranks = e->rank + 1;
    if (lam_event_is_work(e) && e->stage >= p->n_stages) p->n_stages = e->stage + 1;
    p->kinds |= 1u << e->kind;
  }
  if (p->last == p->first) p->last++; /* all of them took no time */
  return LAM_OK;
}

/* A rank's stages, by ascending number, are its chunks 0, 1, ... */
static lam_status find_chunks(lam_picture *p) {
  p->rank_of = malloc((size_t)(p->n_stages + 1) * sizeof *p->rank_of);
  int32_t *n_of = calloc((size_t)p->n_ranks, sizeof *n_of);
  p->chunk = calloc((size_t)p->n_stages + 1, sizeof *p->chunk);
  p->busy = calloc((size_t)p->n_ranks, sizeof *p->busy);
  const bool fits = p->rank_of && n_of && p->chunk && p->busy;
  for (int s = 0; fits && s < p->n_stages; s++) p->rank_of[s] = -1;
  for (uint64_t i = 0; fits && i < p->n; i++) {
    const lam_event *e = &p->events[i];
    if (!lam_event_is_work(e)) continue;
    p->rank_of[e->stage] = e->rank;
    p->busy[e->rank] += e->end - e->start;
  }
  for (int s = 0; fits && s < p->n_stages; s++) {
    if (p->rank_of[s] < 0) continue;
    p->chunk[s] = n_of[p->rank_of[s]]++;
    if (p->chunk[s] >= p->n_chunks) p->n_chunks = p->chunk[s] + 1;
  }
  free(n_of);
  return fits ? LAM_OK
              : lam_fail(LAM_RESOURCE_EXHAUSTED, WHO "no memory for %d stages", p->n_stages);
}

static lam_status find_format(const char *name, lam_draw_fn *out) {
  for (int i = 0; i < n_formats; i++)
    if (!strcmp(formats[i].name, name)) return *out = formats[i].draw, LAM_OK;
  return lam_fail(LAM_NOT_FOUND, WHO "format is \"%.64s\", known are grid, svg, perfetto", name);
}

lam_status lam_events_draw_messages(const lam_event *events, uint64_t n,
                                    const lam_carrier *carriers, uint64_t n_carriers,
                                    const char *format, char *buf, uint64_t room,
                                    uint64_t *out_bytes) {
  lam_draw_fn draw = NULL;
  lam_picture p = {.events = events, .n = n, .carriers = carriers, .n_carriers = n_carriers};
  lam_sink out = lam_sink_open(buf, room);
  if (out_bytes) *out_bytes = 0;
  if (!events || !n)
    return lam_fail(LAM_INVALID_ARGUMENT, WHO "found no events, expected at least one");
  if (!format) return lam_fail(LAM_INVALID_ARGUMENT, WHO "format is NULL");
  LAM_TRY(find_format(format, &draw));
  LAM_TRY(find_extent(&p));
  lam_status status = find_chunks(&p);
  if (status == LAM_OK) status = lam_picture_find_messages(&p);
  if (status == LAM_OK) status = draw(&p, &out);
  if (status == LAM_OK && out_bytes) *out_bytes = out.n;
  free(p.messages);
  free(p.held);
  free(p.rank_of);
  free(p.chunk);
  free(p.busy);
  return status;
}

lam_status lam_events_draw(const lam_event *events, uint64_t n, const char *format, char *buf,
                           uint64_t room, uint64_t *out_bytes) {
  return lam_events_draw_messages(events, n, NULL, 0, format, buf, room, out_bytes);
}
