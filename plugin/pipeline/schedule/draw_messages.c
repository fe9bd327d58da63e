/* draw_messages.c: which work made what other work read, on another rank.
 *
 * A forward reads the activation of the stage before it, a backward the gradient of the stage behind
 * it, both of its own micro-batch.
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

static bool has_stage(const lam_picture *p, int rank, int stage) {
  return stage < p->n_stages && p->rank_of[stage] == rank;
}

/* One of its two stages, not both. */
static bool has_end(const lam_picture *p, int rank, int edge) {
  return edge < p->n_stages && has_stage(p, rank, edge) != has_stage(p, rank, edge + 1);
}

void lam_picture_put_carriers(const lam_picture *p, int rank, const char *before, const char *after,
                              lam_sink *out) {
  bool any = false;
  for (uint64_t i = 0; i < p->n_carriers; i++) {
    const lam_carrier *c = &p->carriers[i];
    if (!has_end(p, rank, c->edge)) continue;
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

static int by_what_is_made(const void *a, const void *b) {
  const lam_event *x = *(const lam_event *const *)a, *y = *(const lam_event *const *)b;
  if (x->stage != y->stage) return x->stage < y->stage ? -1 : 1;
  if (makes(x) != makes(y)) return makes(x) < makes(y) ? -1 : 1;
  return x->micro < y->micro ? -1 : x->micro > y->micro;
}

static void add_message(lam_picture *p, const lam_event *to, const lam_event **made, uint64_t n) {
  const int kind = makes(to), before = kind == LAM_KIND_F ? to->stage - 1 : to->stage + 1;
  const lam_carrier *by = find_carrier(p, before < to->stage ? before : to->stage, kind);
  const lam_event wanted = {.stage = before, .micro = to->micro, .kind = (uint16_t)kind};
  const lam_event *key = &wanted;
  const lam_event **from = by ? bsearch(&key, made, n, sizeof *made, by_what_is_made) : NULL;
  if (from && (*from)->rank != to->rank)
    p->messages[p->n_messages++] = (lam_message){*from, to, by};
}

lam_status lam_picture_find_messages(lam_picture *p) {
  uint64_t n = 0;
  if (p->n_carriers == 0) return LAM_OK;
  if (!p->carriers) return lam_fail(LAM_INVALID_ARGUMENT, WHO "carriers is NULL");
  for (uint64_t i = 0; i < p->n_carriers; i++) LAM_TRY(check_carrier(&p->carriers[i], i));
  const lam_event **made = malloc(p->n * sizeof *made);
  p->messages = malloc(p->n * sizeof *p->messages);
  const bool fits = made && p->messages;
  for (uint64_t i = 0; fits && i < p->n; i++)
    if (makes(&p->events[i]) >= 0) made[n++] = &p->events[i];
  if (fits) qsort(made, n, sizeof *made, by_what_is_made);
  for (uint64_t i = 0; fits && i < p->n; i++)
    if (makes(&p->events[i]) >= 0) add_message(p, &p->events[i], made, n);
  free(made);
  return fits ? LAM_OK : lam_fail(LAM_RESOURCE_EXHAUSTED, WHO "no memory for messages");
}
