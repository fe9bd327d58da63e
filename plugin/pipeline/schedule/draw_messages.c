/* draw_messages.c: which work made what other work read, on another rank.
 *
 * A forward reads the activation of the stage before it, a backward the gradient of the stage behind
 * it, both of its own micro-batch. Where several ranks hold a stage, parts of its tensors each, the
 * first reads what the first one made, and so on.
 * Invariant: one message for each reader at most; where a step's events are not all there, fewer.
 * Leaves what carried them to whoever asked the pipeline. */
#include <stdlib.h>
#include <string.h>

#include "plugin/pipeline/schedule/draw.h"

#define WHO "lam_events_draw_messages: "
enum { MOST_PATH = 64 };

static lam_status check_carrier(const lam_carrier *c, uint64_t i) {
  const unsigned long long at = i;
  if (c->edge < 0 || (c->kind != LAM_KIND_F && c->kind != LAM_KIND_I))
    return lam_fail(LAM_INVALID_ARGUMENT,
                    WHO
                    "carriers[%llu] is of edge %d, kind %d, expected 0 or more, and LAM_KIND_F or "
                    "LAM_KIND_I",
                    at, c->edge, c->kind);
  const size_t n = c->path ? strnlen(c->path, MOST_PATH + 1) : 0;
  if (n < 1 || n > MOST_PATH)
    return lam_fail(LAM_INVALID_ARGUMENT,
                    WHO "carriers[%llu].path is %s, expected 1 to %d characters", at,
                    c->path ? "empty or too long" : "NULL", MOST_PATH);
  for (size_t k = 0; k < n; k++)
    if (c->path[k] < ' ' || c->path[k] > '~' || strchr("\"\\<>&", c->path[k]))
      return lam_fail(LAM_INVALID_ARGUMENT, WHO "carriers[%llu].path has the character 0x%02x", at,
                      (unsigned char)c->path[k]);
  return LAM_OK;
}

static const lam_carrier *find_carrier(const lam_picture *p, int edge, int kind) {
  for (uint64_t i = 0; i < p->n_carriers; i++)
    if (p->carriers[i].edge == edge && p->carriers[i].kind == kind) return &p->carriers[i];
  return NULL;
}

static void find_held(const lam_picture *p, int rank) {
  memset(p->held, 0, (size_t)p->n_stages + 1);
  for (uint64_t i = 0; i < p->n; i++)
    if (p->events[i].rank == rank && lam_event_is_work(&p->events[i]))
      p->held[p->events[i].stage] = true;
}

/* One of its two stages, not both. */
static bool has_end(const lam_picture *p, int edge) {
  return edge < p->n_stages && p->held[edge] != p->held[edge + 1];
}

void lam_picture_put_carriers(const lam_picture *p, int rank, const char *before, const char *after,
                              lam_sink *out) {
  bool any = false;
  if (p->n_carriers > 0) find_held(p, rank);
  for (uint64_t i = 0; i < p->n_carriers; i++) {
    const lam_carrier *c = &p->carriers[i];
    if (!has_end(p, c->edge)) continue;
    lam_sink_printf(out, "%sedge %d %s: %s", any ? "; " : before, c->edge,
                    c->kind == LAM_KIND_F ? "activations" : "gradients", c->path);
    any = true;
  }
  if (any) lam_sink_text(out, after);
}

/* LAM_KIND_F: what it makes is an activation; LAM_KIND_I: a gradient; -1: neither. */
static int makes(const lam_event *e) {
  if (e->kind == LAM_KIND_F) return LAM_KIND_F;
  return e->kind == LAM_KIND_I || e->kind == LAM_KIND_B ? LAM_KIND_I : -1;
}

static int compare(int64_t a, int64_t b) { return a < b ? -1 : a > b; }

static int by_work(const lam_event *x, const lam_event *y) {
  if (x->stage != y->stage) return compare(x->stage, y->stage);
  if (makes(x) != makes(y)) return compare(makes(x), makes(y));
  return compare(x->micro, y->micro);
}

static int by_work_and_rank(const void *a, const void *b) {
  const lam_event *x = *(const lam_event *const *)a, *y = *(const lam_event *const *)b;
  const int work = by_work(x, y);
  return work ? work : compare(x->rank, y->rank);
}

typedef struct made { /* what makes something, sorted */
  const lam_event **list;
  uint64_t n;
} made;

/* Of those that do the same work, the first. */
static uint64_t find_first(made m, const lam_event *work) {
  uint64_t low = 0, high = m.n;
  while (low < high) {
    const uint64_t middle = low + (high - low) / 2;
    if (by_work(m.list[middle], work) < 0)
      low = middle + 1;
    else
      high = middle;
  }
  return low;
}

static const lam_event *find_maker(made m, uint64_t reader, int stage) {
  lam_event wanted = *m.list[reader];
  const uint64_t place = reader - find_first(m, &wanted);
  wanted.stage = stage;
  const uint64_t at = find_first(m, &wanted) + place;
  return at < m.n && by_work(m.list[at], &wanted) == 0 ? m.list[at] : NULL;
}

static void add_message(lam_picture *p, made m, uint64_t reader) {
  const lam_event *to = m.list[reader];
  const int before = makes(to) == LAM_KIND_F ? to->stage - 1 : to->stage + 1;
  const lam_carrier *by = find_carrier(p, before < to->stage ? before : to->stage, makes(to));
  const lam_event *from = by ? find_maker(m, reader, before) : NULL;
  if (from && from->rank != to->rank)
    p->messages[p->n_messages++] = (lam_message){from, to, by};
}

lam_status lam_picture_find_messages(lam_picture *p) {
  made m = {0};
  if (p->n_carriers == 0) return LAM_OK;
  if (!p->carriers) return lam_fail(LAM_INVALID_ARGUMENT, WHO "carriers is NULL");
  for (uint64_t i = 0; i < p->n_carriers; i++) LAM_TRY(check_carrier(&p->carriers[i], i));
  m.list = malloc(p->n * sizeof *m.list);
  p->messages = malloc(p->n * sizeof *p->messages);
  p->held = malloc((size_t)p->n_stages + 1);
  const bool fits = m.list && p->messages && p->held;
  for (uint64_t i = 0; fits && i < p->n; i++)
    if (makes(&p->events[i]) >= 0) m.list[m.n++] = &p->events[i];
  if (fits) qsort(m.list, m.n, sizeof *m.list, by_work_and_rank);
  for (uint64_t i = 0; i < m.n; i++) add_message(p, m, i);
  free(m.list);
  return fits ? LAM_OK : lam_fail(LAM_RESOURCE_EXHAUSTED, WHO "no memory for messages");
}
