/* worker.c: see worker.h. */
#include "tests/distributed/pipeline/worker.h"

#include <string.h>
#include <time.h>

#include "tests/place.h"

static void make_stages(worker *w, const setup *at, int rank) {
  for (int i = 0; i < at->m.n_stages; i++)
    if (at->s->rank_of_stage[i] == rank)
      w->stages[w->n_stages++] = model_stage_functions(model_stage_create(&at->m, i, w->all));
  model_edges(&at->m, w->edges, w->shapes);
}

static void join_group(worker *w, const setup *at, int rank, int size) {
  lam_group_desc d = LAM_GROUP_DESC_INIT;
  d.rank = rank, d.size = size, d.id = at->id;
  d.deadline_ms = at->deadline_ms, d.first_deadline_ms = at->first_deadline_ms;
  lam_callbacks host = LAM_CALLBACKS_INIT;
  w->post = (mail_rank){at->mail, rank};
  host.user = &w->post, host.send = mail_send, host.recv = mail_recv;
  if (size > 1 && at->mail)
    CHECK_OK(lam_group_from_callbacks(w->ctx, &d, &host, &w->group));
  else if (size > 1)
    CHECK_OK(lam_group_create(w->ctx, &d, &w->group));
}

void worker_prepare(worker *w, const setup *at, int rank, int size) {
  *w = (worker){.desc = LAM_PIPELINE_DESC_INIT};
  make_stages(w, at, rank);
  CHECK_OK(lam_context_create(at->hooks.struct_size ? &at->hooks : NULL, &w->ctx));
  join_group(w, at, rank, size);
  w->desc.flags = at->flags;
  w->desc.group = w->group, w->desc.schedule = at->s;
  w->desc.stages = w->stages, w->desc.n_stages = (uint32_t)w->n_stages;
  w->desc.device_type = place_device_type(), w->desc.stream = place_stream();
  w->desc.edges = w->edges, w->desc.n_edges = (uint32_t)(at->m.n_stages - 1);
}

lam_status worker_start(worker *w) { return lam_pipeline_create(w->ctx, &w->desc, &w->pipeline); }

lam_status worker_open(worker *w, const setup *at, int rank, int size) {
  worker_prepare(w, at, rank, size);
  return worker_start(w);
}

void worker_close(worker *w) {
  lam_context_stats before = LAM_CONTEXT_STATS_INIT, after = LAM_CONTEXT_STATS_INIT;
  lam_pipeline_destroy(w->pipeline);
  CHECK_OK(lam_context_get_stats(w->ctx, &before));
  lam_group_destroy(w->group);
  CHECK_OK(lam_context_get_stats(w->ctx, &after));
  CHECK_EQ(after.bytes, 0);
  if (!w->group) CHECK_EQ(before.bytes, 0);
  lam_context_destroy(w->ctx);
  for (int i = 0; i < MODEL_STAGES_MAX; i++)
    if (w->all[i]) model_stage_destroy(w->all[i]);
}

model small_model(int n_stages, int n_micro) {
  return (model){.n_stages = n_stages,
                 .n_micro = n_micro,
                 .rows = 3,
                 .width = 5,
                 .functions = MODEL_WHOLE,
                 .seed = seed(),
                 .fail_stage = -1};
}

lam_schedule *build(const char *name, int p, int m) {
  lam_schedule *s = NULL;
  CHECK_OK(lam_schedule_build(name, p, 1, m, &s));
  return s;
}

lam_schedule *parse(const char *text) {
  lam_schedule *s = NULL;
  CHECK_OK(lam_schedule_parse(text, strlen(text), &s));
  return s;
}

double seconds_now(void) {
  struct timespec t;
  clock_gettime(CLOCK_MONOTONIC, &t);
  return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}
