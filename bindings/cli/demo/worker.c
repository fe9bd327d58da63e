/* worker.c: one process of the demo: its place in the groups, its stages and their part of the
 * model, its pipelines.
 *
 * The world's ranks are numbered along the pipeline: rank = index * tp + part. The parts of one
 * index form a tensor-parallel group, the workers of one part a pipeline's group.
 * Invariant: worker_open is the same sequence of collective calls on every rank; worker_close
 * takes what is there. */
#include <sched.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "bindings/cli/demo/demo.h"

#ifdef _OPENMP
#include <omp.h>
static void set_threads(int n) { omp_set_num_threads(n); }
#else
static void set_threads(int n) { (void)n; }
#endif

static int64_t clock_ns(clockid_t clock) {
  struct timespec t;
  clock_gettime(clock, &t);
  return (int64_t)t.tv_sec * 1000000000 + t.tv_nsec;
}

int64_t now_ns(void) { return clock_ns(CLOCK_MONOTONIC); }
int64_t cpu_ns(void) { return clock_ns(CLOCK_THREAD_CPUTIME_ID); }

static int by_size(const void *a, const void *b) {
  const double x = *(const double *)a, y = *(const double *)b;
  return (x > y) - (x < y);
}

double median(double *values, int n) {
  qsort(values, (size_t)n, sizeof *values, by_size);
  return n == 0 ? 0 : n % 2 ? values[n / 2] : (values[n / 2 - 1] + values[n / 2]) / 2;
}

static int cores(void) {
  cpu_set_t set;
  return sched_getaffinity(0, sizeof set, &set) ? 1 : CPU_COUNT(&set);
}

static lam_status open_context(worker *w) {
  lam_context_desc desc = LAM_CONTEXT_DESC_INIT;
  desc.threads = w->o->threads;
  desc.alloc = memory_hook_take;
  desc.free = memory_hook_give;
  set_threads(w->o->threads);
  return lam_context_create(&desc, &w->ctx);
}

static int launched_rank(void) {
  const char *rank = getenv("LAMELLA_RANK") ? getenv("LAMELLA_RANK") : getenv("RANK");
  return rank ? atoi(rank) : 0;
}

/* From the launcher's environment; without a launcher this is the only worker. */
static lam_status open_world(worker *w) {
  lam_group_desc desc = LAM_GROUP_DESC_INIT;
  desc.deadline_ms = (uint32_t)w->o->deadline * 1000;
  if (getenv("LAMELLA_RANK") || getenv("RANK"))
    return lam_group_create_from_env(w->ctx, &desc, &w->world);
  desc.size = 1;
  TRY(lam_group_id_create(&desc.id));
  return lam_group_create(w->ctx, &desc, &w->world);
}

static lam_status open_groups(worker *w) {
  TRY(open_world(w));
  lam_group_info info = LAM_GROUP_INFO_INIT;
  TRY(lam_group_get_info(w->world, &info));
  w->rank = info.rank;
  w->size = info.size;
  w->index = w->rank / w->o->tp;
  w->part = w->rank % w->o->tp;
  w->crowded = !w->o->on_gpu && w->size * w->o->threads > cores();
  if (w->size != w->o->pp * w->o->tp)
    return fail(LAM_INVALID_ARGUMENT, "--pp %d --tp %d needs %d workers, %d came", w->o->pp,
                w->o->tp, w->o->pp * w->o->tp, w->size);
  TRY(lam_group_split(w->world, w->index, w->part, &w->tp));
  return lam_group_split(w->world, w->part, w->index, &w->pp);
}

static lam_status open_stages(worker *w) {
  for (int s = 0; s < w->o->n_stages; s++) {
    if (w->o->rank_of_stage[s] != w->index) continue;
    model *m = &w->models[w->n_stages];
    w->stages[w->n_stages++] = (stage){.m = m, .text = &w->text, .desk = &w->desk};
    TRY(model_describe(w->o, s, w->part, m));
    TRY(model_fill(m));
  }
  return desk_create(w->models, w->n_stages, w->ctx, lam_group_handle(w->tp), &w->desk);
}

lam_status worker_open(const options *o, worker *out) {
  *out = (worker){.o = o};
  TRY(device_open(o, launched_rank()));
  TRY(open_context(out));
  TRY(open_groups(out));
  TRY(text_read(o, &out->text));
  TRY(text_place(&out->text));
  return open_stages(out);
}

void worker_close(worker *w) {
  for (int i = 0; i < w->n_stages; i++) {
    stage_destroy(&w->stages[i]);
    model_free(&w->models[i]);
  }
  desk_destroy(&w->desk);
  text_free(&w->text);
  lam_group_destroy(w->pp);
  lam_group_destroy(w->tp);
  lam_group_destroy(w->world);
  lam_context_destroy(w->ctx);
  here->close();
  *w = (worker){0};
}

/* -- pipelines -- */

lam_status line_open(worker *w, const char *schedule, line *out) {
  *out = (line){.name = schedule};
  TRY(plan_schedule(w->o, schedule, &out->schedule));

  const matrix crossing = matrix_at(NULL, w->o->tokens, w->o->hidden, w->o->bits);
  lam_shape shape = {
      .ndim = 2, .dtype = matrix_dtype(crossing), .dims = {crossing.rows, crossing.cols}};
  lam_edge edges[MAX_STAGES];
  lam_stage functions[MAX_HELD];
  for (int e = 0; e + 1 < w->o->n_stages; e++) {
    lam_edge edge = LAM_EDGE_INIT;
    edge.n_tensors = 1;
    edge.tensors = &shape;
    edges[e] = edge;
  }
  for (int i = 0; i < w->n_stages; i++) functions[i] = stage_functions(&w->stages[i]);
  lam_pipeline_desc desc = LAM_PIPELINE_DESC_INIT;
  desc.group = w->pp;
  desc.schedule = out->schedule;
  desc.stages = functions;
  desc.n_stages = (uint32_t)w->n_stages;
  desc.edges = edges;
  desc.n_edges = (uint32_t)w->o->n_stages - 1;
  desc.device_type = here->type, desc.device_id = here->id, desc.stream = here->stream;
  return lam_pipeline_create(w->ctx, &desc, &out->pipeline);
}

void line_close(line *l) {
  lam_pipeline_destroy(l->pipeline);
  lam_schedule_destroy(l->schedule);
  *l = (line){0};
}

/* -- one worker to another, over the world -- */

lam_status worker_send(worker *w, int to, matrix data) {
  float none = 0;
  const matrix token = matrix_at(&none, VECTOR, 1, 32);
  return call_host_op(w->ctx, LAM_OP_send_activation, IN(data, token), OUT(token),
                      ATTRS(I(lam_group_handle(w->world)), I(to), I(0), I(-1)));
}

lam_status worker_recv(worker *w, int from, matrix data) {
  float none = 0;
  const matrix token = matrix_at(&none, VECTOR, 1, 32);
  const int64_t shape[] = {data.rows, data.cols};
  const DLDataType type = matrix_dtype(data);
  return call_host_op(w->ctx, LAM_OP_recv_activation, IN(token), OUT(data, token),
                      ATTRS(I(lam_group_handle(w->world)), I(from), I(0), I(-1),
                            lam_attr_ints(shape, 2), I(type.code | type.bits << 8)));
}

lam_status gather(worker *w, const void *mine, uint64_t bytes, void *all) {
  const matrix here = matrix_at((void *)(uintptr_t)mine, 1, (int64_t)bytes / 4, 32);
  if (w->rank) return worker_send(w, 0, here);
  memcpy(all, mine, bytes);
  for (int r = 1; r < w->size; r++)
    TRY(worker_recv(w, r, matrix_at((char *)all + (uint64_t)r * bytes, 1, (int64_t)bytes / 4, 32)));
  return LAM_OK;
}
