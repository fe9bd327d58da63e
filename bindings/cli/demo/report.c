/* report.c: from the records of a few steps: what each worker's idle share was and what the
 * simulator says it should be, the grid of one step as text, and its pictures as files.
 *
 * Where every worker has its core, idle time is wall-clock time of the pipeline's own report.
 * Where workers share cores, wall-clock time says little; then the step is replayed from the
 * thread CPU time of each forward and backward, in the order and with the dependencies it had, as
 * if each worker had a core of its own.
 * Invariant: predictions use median costs of all steps observed, never the figure that they stand
 * beside. */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "bindings/cli/demo/demo.h"

enum { MAX_STEPS = 16 };

/* Records are [n_steps][size]. */
typedef struct observed {
  const worker *w;
  const line *l;
  const record *records;
  int n_steps;
} observed;

static const record *record_of(const observed *o, int step, int rank) {
  return &o->records[step * o->w->size + rank];
}

static int held_index(const options *o, int stage) {
  int i = 0;
  for (int s = 0; s < stage; s++) i += o->rank_of_stage[s] == o->rank_of_stage[stage];
  return i;
}

/* An action's time: on the wall, or of the thread's CPU. */
static double duration(const observed *o, const record *r, const lam_event *e) {
  return o->w->crowded ? (double)r->cpu[held_index(o->w->o, e->stage)][e->kind][e->micro]
                       : (double)(e->end - e->start);
}

static bool is_work(const lam_event *e) { return e->kind <= LAM_KIND_B; }

/* 0 where the stage has no such action. */
static double median_cost(const observed *o, int stage, int part, int kind) {
  double times[MAX_STEPS * MAX_MICRO];
  int n = 0;
  for (int step = 0; step < o->n_steps; step++) {
    const record *r = record_of(o, step, o->w->o->rank_of_stage[stage] * o->w->o->tp + part);
    for (uint64_t i = 0; i < r->report.n_events; i++)
      if (r->events[i].kind == kind && r->events[i].stage == stage)
        times[n++] = duration(o, r, &r->events[i]);
  }
  return median(times, n);
}

/* -- predicted: the schedule with median costs -- */

typedef struct prediction {
  double step, idle[MAX_WORKERS];                     /* ns; share of the step */
  double forward[MAX_WORKERS], backward[MAX_WORKERS]; /* of a micro-batch, all stages of a worker */
} prediction;

typedef struct costs {
  double forward[MAX_STAGES], input[MAX_STAGES], weight[MAX_STAGES];
} costs;

/* To the simulator a whole backward is the input's and the weight's part. Where it is never done in
 * two, all is the input's; where both happen, most are whole, and the parts add up to that. */
static void cost_stage(const observed *o, int stage, int part, costs *c) {
  const double whole = median_cost(o, stage, part, LAM_KIND_B);
  const double input = median_cost(o, stage, part, LAM_KIND_I);
  const double weight = median_cost(o, stage, part, LAM_KIND_W);
  const double share = input > 0 ? input / (input + weight) : 1;
  c->forward[stage] = median_cost(o, stage, part, LAM_KIND_F);
  c->input[stage] = whole > 0 ? whole * share : input;
  c->weight[stage] = whole > 0 ? whole * (1 - share) : weight;
}

static lam_status simulate_costs(const observed *o, const costs *c, lam_simulated *out) {
  lam_schedule *as_run = NULL;
  lam_costs costs = LAM_COSTS_INIT;
  costs.n_stages = (uint32_t)o->w->o->n_stages;
  costs.forward = c->forward, costs.backward_input = c->input, costs.backward_weight = c->weight;
  TRY(plan_as_run(o->l->schedule, &as_run));
  const lam_status status = lam_schedule_simulate(as_run, &costs, out);
  lam_schedule_destroy(as_run);
  return status;
}

static lam_status simulate_part(const observed *o, int part, prediction *out) {
  const int tp = o->w->o->tp;
  lam_rank_time ranks[MAX_PIPELINE];
  lam_simulated simulated = LAM_SIMULATED_INIT;
  costs c;
  for (int s = 0; s < o->w->o->n_stages; s++) {
    const int rank = o->w->o->rank_of_stage[s] * tp + part;
    cost_stage(o, s, part, &c);
    out->forward[rank] += c.forward[s];
    out->backward[rank] += c.input[s] + c.weight[s];
  }
  simulated.ranks = ranks, simulated.n_ranks = MAX_PIPELINE;
  TRY(simulate_costs(o, &c, &simulated));
  if (simulated.makespan > out->step) out->step = simulated.makespan;
  for (int r = 0; r < o->w->o->pp; r++)
    out->idle[r * tp + part] = 1 - ranks[r].busy / simulated.makespan;
  return LAM_OK;
}

/* -- measured: the wall, or the replay of CPU times -- */

typedef struct replay {
  double up[MAX_STAGES][MAX_MICRO];   /* when each stage's forwards ended; below 0 = not yet */
  double down[MAX_STAGES][MAX_MICRO]; /* and its gradients were there */
  double work[MAX_PIPELINE], end[MAX_PIPELINE];
  uint64_t next[MAX_PIPELINE];
} replay;

/* When the action's input is there; below 0 = not yet. */
static double ready(const replay *r, int n_stages, const lam_event *e) {
  if (e->kind == LAM_KIND_W) return 0;
  if (e->kind == LAM_KIND_F) return e->stage == 0 ? 0 : r->up[e->stage - 1][e->micro];
  return e->stage == n_stages - 1 ? r->up[e->stage][e->micro] : r->down[e->stage + 1][e->micro];
}

/* Runs the rank's list as far as its inputs are there. */
static bool advance(const observed *o, const record *of, int rank, replay *r) {
  const uint64_t began = r->next[rank];
  for (; r->next[rank] < of->report.n_events; r->next[rank]++) {
    const lam_event *e = &of->events[r->next[rank]];
    if (!is_work(e)) continue;
    const double input = ready(r, o->w->o->n_stages, e), cost = duration(o, of, e);
    if (input < 0) break;
    r->end[rank] = (input > r->end[rank] ? input : r->end[rank]) + cost;
    r->work[rank] += cost;
    if (e->kind == LAM_KIND_F) r->up[e->stage][e->micro] = r->end[rank];
    if (e->kind == LAM_KIND_I || e->kind == LAM_KIND_B) r->down[e->stage][e->micro] = r->end[rank];
  }
  return r->next[rank] > began;
}

static double replay_part(const observed *o, int step, int part, double *idle) {
  const int tp = o->w->o->tp, pp = o->w->o->pp;
  replay *r = calloc(1, sizeof *r);
  if (!r) return 0;
  for (int s = 0; s < MAX_STAGES; s++)
    for (int i = 0; i < MAX_MICRO; i++) r->up[s][i] = r->down[s][i] = -1;
  for (bool moved = true; moved;) {
    moved = false;
    for (int k = 0; k < pp; k++) moved |= advance(o, record_of(o, step, k * tp + part), k, r);
  }
  double end = 0;
  for (int k = 0; k < pp; k++) end = r->end[k] > end ? r->end[k] : end;
  for (int k = 0; k < pp; k++) idle[k * tp + part] = end > 0 ? 1 - r->work[k] / end : 0;
  free(r);
  return end;
}

/* Widens [first, last] to this worker's first start and last end; all workers of a machine share
 * one clock. */
static void work_bounds(const record *r, int64_t *first, int64_t *last) {
  for (uint64_t i = 0; i < r->report.n_events; i++) {
    if (!is_work(&r->events[i])) continue;
    if (r->events[i].start < *first) *first = r->events[i].start;
    if (r->events[i].end > *last) *last = r->events[i].end;
  }
}

/* One step's length, ns, and each worker's idle share of it. */
static double measure_step(const observed *o, int step, double *idle) {
  double length = 0;
  for (int part = 0; o->w->crowded && part < o->w->o->tp; part++) {
    const double end = replay_part(o, step, part, idle);
    length = end > length ? end : length;
  }
  if (o->w->crowded) return length;
  int64_t first = INT64_MAX, last = 0;
  for (int r = 0; r < o->w->size; r++) work_bounds(record_of(o, step, r), &first, &last);
  length = (double)(last - first);
  for (int r = 0; r < o->w->size; r++)
    idle[r] = 1 - (double)record_of(o, step, r)->report.busy / length;
  return length;
}

/* -- pictures -- */

typedef struct picture { /* of one step of all workers */
  lam_event *events;
  lam_carrier *carriers; /* an edge's is told by each worker that has an end of it */
  uint64_t n_events, n_carriers;
} picture;

static lam_status draw(const picture *p, const char *format, char **out) {
  uint64_t bytes = 0;
  TRY(lam_events_draw_messages(p->events, p->n_events, p->carriers, p->n_carriers, format, NULL, 0,
                               &bytes));
  *out = malloc(bytes + 1);
  if (!*out) return fail(LAM_RESOURCE_EXHAUSTED, "no memory for a picture");
  return lam_events_draw_messages(p->events, p->n_events, p->carriers, p->n_carriers, format, *out,
                                  bytes + 1, &bytes);
}

static lam_status write_picture(const observed *o, const picture *p, const char *format,
                                const char *ending) {
  char path[512], *text = NULL;
  snprintf(path, sizeof path, "%s/%s.%s", o->w->o->out, o->l->name, ending);
  lam_status status = draw(p, format, &text);
  FILE *file = status == LAM_OK ? fopen(path, "w") : NULL;
  if (status == LAM_OK && (!file || fputs(text, file) < 0))
    status = fail(LAM_INVALID_ARGUMENT, "--out: %s: %s", path, strerror(errno));
  if (file) fclose(file);
  free(text);
  return status;
}

/* The forwards and backwards, rows in the world's order. */
static void add_work(const record *r, int rank, picture *p) {
  for (uint64_t i = 0; i < r->report.n_events; i++) {
    if (!is_work(&r->events[i])) continue;
    p->events[p->n_events] = r->events[i];
    p->events[p->n_events++].rank = rank;
  }
}

static bool has_carrier(const picture *p, const carrier *c) {
  for (uint64_t i = 0; i < p->n_carriers; i++)
    if (p->carriers[i].edge == c->edge && p->carriers[i].kind == c->kind) return true;
  return false;
}

/* All parts of a stage send the same way: they are on one machine. */
static void add_carriers(const record *r, picture *p) {
  for (const carrier *c = r->carriers; c < r->carriers + r->n_carriers; c++)
    if (!has_carrier(p, c))
      p->carriers[p->n_carriers++] = (lam_carrier){c->edge, c->kind, c->path};
}

static lam_status tell_pictures(const observed *o, int step) {
  const size_t size = (size_t)o->w->size;
  picture p = {.events = malloc(sizeof *p.events * MAX_EVENTS * size),
               .carriers = malloc(sizeof *p.carriers * MAX_CARRIERS * size)};
  char *grid = NULL;
  lam_status status = p.events && p.carriers
                          ? LAM_OK
                          : fail(LAM_RESOURCE_EXHAUSTED, "no memory for a picture");
  for (int rank = 0; status == LAM_OK && rank < o->w->size; rank++) {
    add_work(record_of(o, step, rank), rank, &p);
    add_carriers(record_of(o, step, rank), &p);
  }
  if (status == LAM_OK) status = draw(&p, "grid", &grid);
  if (status == LAM_OK) emit_text("grid", grid);
  if (status == LAM_OK && o->w->o->out) status = write_picture(o, &p, "svg", "svg");
  if (status == LAM_OK && o->w->o->out) status = write_picture(o, &p, "perfetto", "json");
  free(grid);
  free(p.events);
  free(p.carriers);
  return status;
}

/* -- the line -- */

static double median_field(const observed *o, int rank, size_t field) {
  double values[MAX_STEPS];
  for (int k = 0; k < o->n_steps; k++)
    values[k] = (double)*(const int64_t *)((const char *)&record_of(o, k, rank)->report + field);
  return median(values, o->n_steps) * 1e-6;
}

static void tell_worker(const observed *o, int rank, const prediction *p, double idle) {
  static const struct {
    const char *name;
    size_t at;
  } fields[] = {{"busy", offsetof(lam_pipeline_report, busy)},
                {"cpu", offsetof(lam_pipeline_report, cpu)},
                {"warm_up", offsetof(lam_pipeline_report, warm_up)},
                {"drain", offsetof(lam_pipeline_report, drain)},
                {"waiting", offsetof(lam_pipeline_report, waiting)},
                {"overhead", offsetof(lam_pipeline_report, overhead)}};
  emit(
      "%s{\"index\": %d, \"part\": %d, \"idle\": %.5f, \"predicted\": %.5f, \"forward\": %.4f, "
      "\"backward\": %.4f",
      rank ? ", " : "", rank / o->w->o->tp, rank % o->w->o->tp, idle, p->idle[rank],
      p->forward[rank] * 1e-6, p->backward[rank] * 1e-6);
  for (int i = 0; i < 6; i++)
    emit(", \"%s\": %.4f", fields[i].name, median_field(o, rank, fields[i].at));
  emit("}");
}

static lam_status tell(const observed *o, const prediction *p, double length, int typical,
                       double idle[][MAX_WORKERS], const char *explained) {
  const worker *w = o->w;
  emit("{");
  emit_text("about", plan_about(o->l->name));
  emit(", ");
  emit_text("explained", explained);
  emit(
      ", \"report\": \"%s\", \"shared_cores\": %s, \"step\": %.4f, \"simulated\": %.4f, "
      "\"workers\": [",
      o->l->name, w->crowded ? "true" : "false", length * 1e-6, p->step * 1e-6);
  for (int rank = 0; rank < w->size; rank++) {
    double shares[MAX_STEPS];
    for (int k = 0; k < o->n_steps; k++) shares[k] = idle[k][rank];
    tell_worker(o, rank, p, median(shares, o->n_steps));
  }
  emit("], ");
  const lam_status status = tell_pictures(o, typical);
  emit("}\n");
  return status;
}

/* Times in ms; shares of the step. */
lam_status report(worker *w, const line *l, const record *records, int n_steps,
                  const char *explained) {
  const observed o = {w, l, records, n_steps < MAX_STEPS ? n_steps : MAX_STEPS};
  prediction predicted = {0};
  for (int part = 0; part < w->o->tp; part++) TRY(simulate_part(&o, part, &predicted));

  double lengths[MAX_STEPS], sorted[MAX_STEPS], idle[MAX_STEPS][MAX_WORKERS];
  for (int k = 0; k < o.n_steps; k++) sorted[k] = lengths[k] = measure_step(&o, k, idle[k]);
  const double length = median(sorted, o.n_steps);
  int typical = 0;
  for (int k = 0; k < o.n_steps; k++) typical = lengths[k] == length ? k : typical;

  if (!w->o->bench) return tell(&o, &predicted, length, typical, idle, explained);
  emit("observed %.6g ms\nsimulated %.6g ms\n", length * 1e-6, predicted.step * 1e-6);
  return LAM_OK;
}
