/* observe.c: a few steps of one schedule, run to be looked at: their records of all workers,
 * brought to rank 0, and what the library says of the last of them.
 *
 * Invariant: weights are not updated here. Leaves what the records mean to report.c. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "bindings/cli/demo/demo.h"

enum {
  OBSERVED = 3,
  BENCHED = 9,
  UNOBSERVED = 1
}; /* the first step of a pipeline also opens its channels */

/* An edge that has no end here, or both, carries nothing between workers. */
static void take_carriers(const worker *w, const line *l, record *out) {
  out->n_carriers = 0;
  for (int i = 0; i < 2 * (w->o->n_stages - 1); i++) {
    const int32_t edge = i / 2, kind = i % 2 ? LAM_KIND_I : LAM_KIND_F;
    lam_edge_info info = LAM_EDGE_INFO_INIT;
    if (lam_pipeline_get_edge(l->pipeline, edge, kind, &info) != LAM_OK) continue;
    if (info.peer < 0 || !info.path || out->n_carriers == MAX_CARRIERS) continue;
    carrier *c = &out->carriers[out->n_carriers++];
    c->edge = edge, c->kind = kind;
    snprintf(c->path, sizeof c->path, "%s", info.path);
  }
}

lam_status record_take(worker *w, line *l, record *out) {
  const lam_pipeline_report none = LAM_PIPELINE_REPORT_INIT;
  out->report = none;
  out->report.events = out->events;
  out->report.n_events = MAX_EVENTS;
  for (int i = 0; i < w->n_stages; i++) memcpy(out->cpu[i], w->stages[i].cpu, sizeof out->cpu[i]);
  TRY(lam_pipeline_get_report(l->pipeline, &out->report));
  if (out->report.n_events > MAX_EVENTS) out->report.n_events = MAX_EVENTS;
  take_carriers(w, l, out);
  return LAM_OK;
}

static int observed_steps(const worker *w) { return w->o->bench ? BENCHED : OBSERVED; }

/* Every worker asks, rank 0 tells. Where workers share cores the wall's clock explains nothing. */
static lam_status explain(worker *w, line *l, char *text) {
  lam_explained explained = LAM_EXPLAINED_INIT;
  explained.text = text, explained.text_bytes = MAX_TEXT;
  *text = 0;
  return w->crowded || w->o->bench ? LAM_OK : lam_pipeline_explain(l->pipeline, &explained);
}

static lam_status observe_steps(worker *w, line *l, record *mine, record *all) {
  const int n = observed_steps(w);
  char text[MAX_TEXT];
  TRY(line_open(w, l->name, l));
  for (int i = -UNOBSERVED; i < n; i++) {
    TRY(lam_pipeline_run(l->pipeline, w->o->steps + i + UNOBSERVED, NULL));
    if (i < 0) continue;
    TRY(record_take(w, l, mine));
    TRY(gather(w, mine, sizeof *mine, all ? all + i * w->size : NULL));
  }
  TRY(here->finish()); /* what failed on a GPU is told here, at the latest */
  TRY(explain(w, l, text));
  for (int i = 0; all && i < n * w->size; i++) all[i].report.events = all[i].events;
  return w->rank ? LAM_OK : report(w, l, all, n, text);
}

lam_status observe(worker *w, const char *schedule) {
  line l = {.name = schedule};
  const uint64_t bytes = (uint64_t)(observed_steps(w) * w->size) * sizeof(record);
  record *mine = malloc(sizeof *mine), *all = w->rank ? NULL : malloc(bytes);
  lam_status status =
      !mine || (!all && !w->rank) ? fail(LAM_RESOURCE_EXHAUSTED, "no memory for records") : LAM_OK;
  if (status == LAM_OK) status = observe_steps(w, &l, mine, all);
  line_close(&l);
  free(mine);
  free(all);
  return status;
}
