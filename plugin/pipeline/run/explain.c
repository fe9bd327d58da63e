/* explain.c: where all ranks' last step went, beside where its own times say it had to go.
 *
 * Every rank gives one row: when it worked, how long each of its stages took, how long it waited at
 * each edge. The prediction is a simulation with the stages' mean times; a second one, with all
 * stages alike, tells what of the waiting is the schedule's and what comes of unequal stages.
 * Invariant: of every rank, work + warm_up + drain + waiting + imbalance + other = the step.
 * Leaves clocks and events to report.c, words to explain_text.c. */
#include "plugin/pipeline/run/explain.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "plugin/comm/comm.h"
#include "plugin/core/struct.h"
#include "plugin/pipeline/schedule/walk.h"

#define WHO "lam_pipeline_explain: "

/* -- a rank's row: lam_rank_part, lam_stage_part[n_stages], waits[2 (n_stages - 1)] -- */

static size_t row_bytes(const lam_schedule *s) {
  const size_t n = (size_t)s->n_stages;
  return sizeof(lam_rank_part) + n * sizeof(lam_stage_part) + 2 * (n - 1) * sizeof(double);
}
static lam_stage_part *stages_in(lam_rank_part *row) { return (lam_stage_part *)(row + 1); }
static double *waits_in(const lam_schedule *s, lam_rank_part *row) {
  return (double *)(stages_in(row) + s->n_stages);
}

static void add(lam_stage_part *s, int what, double ns, double n) {
  s->ns[what] += ns, s->n[what] += n;
}

static const int part_of_kind[] = {[LAM_KIND_F] = LAM_PART_F,
                                   [LAM_KIND_I] = LAM_PART_I,
                                   [LAM_KIND_W] = LAM_PART_W,
                                   [LAM_KIND_B] = LAM_PART_B,
                                   [LAM_KIND_REDUCE_GRAD] = LAM_PART_REDUCE};

/* The second half of a pair whose first is `f`. Where both ran in one call, neither's own time is
 * known, only the pair's. */
static void add_pair(lam_stage_part *stages, const lam_event *f, const lam_event *b) {
  const double first = (double)(f->end - f->start), second = (double)(b->end - b->start);
  if (f->start == b->start && f->end == b->end) {
    add(&stages[f->stage], LAM_PART_F, -first, -1);
    add(&stages[f->stage], LAM_PART_PAIR, first, 1);
  } else {
    add(&stages[f->stage], LAM_PART_PAIR, first + second, 1);
    add(&stages[b->stage], part_of_kind[b->kind], second, 1);
  }
}

static void add_events(const lam_meter *m, lam_rank_part *row) {
  lam_stage_part *stages = stages_in(row);
  const lam_event *last = NULL;
  for (uint64_t i = 0; i < m->n_events; i++) {
    const lam_event *e = &m->events[i];
    if (e->kind == LAM_KIND_WAIT) continue;
    if (e->part == 1 && last)
      add_pair(stages, last, e);
    else
      add(&stages[e->stage], part_of_kind[e->kind], (double)(e->end - e->start), 1);
    if (!last) row->first = (double)(e->start - m->start);
    last = e;
  }
}

static void fill_row(const lam_pipeline *p, lam_rank_part *row) {
  const lam_meter *m = &p->meter;
  double *waits = waits_in(p->schedule, row);
  row->start = (double)m->start, row->step = (double)p->step;
  row->n_actions = m->n_actions;
  row->last = m->n_actions ? (double)(m->last_end - m->start) : 0;
  row->work = (double)m->busy, row->waiting = (double)m->waiting;
  add_events(m, row);
  for (int i = 0; i < p->n_ports; i++)
    waits[2 * p->ports[i].edge + (p->ports[i].kind != LAM_KIND_F)] = (double)p->ports[i].waited;
  for (int i = 0; i < p->n_stages; i++) {
    lam_stage_part *s = &stages_in(row)[p->stages[i].number];
    s->first_layer = p->stages[i].is.first_layer, s->n_layers = p->stages[i].is.n_layers;
  }
}

static lam_status gather(const lam_pipeline *p, const void *own, void *rows) {
  const lam_schedule *s = p->schedule;
  if (!p->group) return memcpy(rows, own, row_bytes(s)), LAM_OK;
  const lam_comm_op op = {.op = LAM_COMM_PIPELINE,
                          .dtype = LAM_U8,
                          .ndim = 2,
                          .dims = {s->n_ranks, (int64_t)row_bytes(s)}};
  return lam_group_gather_rows(p->group, &op, own, row_bytes(s), rows);
}

static lam_rank_part *row_of(const lam_explanation *x, int r) {
  return (lam_rank_part *)(void *)(x->rows + (size_t)r * row_bytes(x->s));
}

static lam_status check_rows(const lam_explanation *x) {
  const double step = row_of(x, 0)->step;
  for (int r = 0; r < x->s->n_ranks; r++) {
    const lam_rank_part *row = row_of(x, r);
    if (row->start == 0)
      return lam_fail(LAM_FAILED_PRECONDITION, WHO "rank %d has run no step yet", r);
    if (row->step != step)
      return lam_fail(LAM_MISMATCH, WHO "rank %d's last step is %.0f, rank 0's %.0f", r, row->step,
                      step);
  }
  return LAM_OK;
}

/* Every stage is in one rank's row, with zeros in all others. */
static void merge_rows(lam_explanation *x) {
  for (int r = 0; r < x->s->n_ranks; r++)
    for (int i = 0; i < x->s->n_stages; i++)
      if (x->s->rank_of_stage[i] == r) x->stages[i] = stages_in(row_of(x, r))[i];
}

/* -- costs -- */

static double mean(const lam_stage_part *s, int part) {
  return s->n[part] > 0 ? s->ns[part] / s->n[part] : 0;
}

/* F, I, W, pair and reduction of each stage: [LAM_COSTS][n_stages]. A B that is never split is
 * taken for an I and a W of the same length. */
static void measure_costs(lam_explanation *x) {
  const int n = x->s->n_stages;
  for (int i = 0; i < n; i++) {
    const lam_stage_part *s = &x->stages[i];
    const double whole = mean(s, LAM_PART_B);
    double input = mean(s, LAM_PART_I), weight = mean(s, LAM_PART_W);
    if (s->n[LAM_PART_I] == 0) input = whole / 2;
    if (s->n[LAM_PART_W] == 0) weight = fmax(0, whole - input);
    x->costs[i] = mean(s, LAM_PART_F);
    x->costs[n + i] = input, x->costs[2 * n + i] = weight;
    x->costs[3 * n + i] =
        s->n[LAM_PART_PAIR] > 0 ? mean(s, LAM_PART_PAIR) : x->costs[i] + input + weight;
    x->costs[4 * n + i] = mean(s, LAM_PART_REDUCE);
  }
}

static void level_costs(const lam_explanation *x, double *level) {
  const int n = x->s->n_stages;
  for (int c = 0; c < LAM_COSTS; c++) {
    double sum = 0;
    for (int i = 0; i < n; i++) sum += x->costs[c * n + i];
    for (int i = 0; i < n; i++) level[c * n + i] = sum / n;
  }
}

/* What a run without backwards heeds of a schedule. */
static lam_status forwards_of(const lam_schedule *s, lam_schedule **out) {
  LAM_TRY(lam_schedule_alloc(s->n_ranks, s->n_stages, s->n_micro, out));
  for (int r = 0; r < s->n_ranks; r++)
    for (int64_t i = s->first[r]; i < s->first[r + 1]; i++)
      if (s->actions[i].kind == LAM_KIND_F)
        lam_schedule_push(*out, r, LAM_KIND_F, s->actions[i].stage, s->actions[i].micro);
  return lam_schedule_seal(*out);
}

/* The schedule was checked, so its forwards alone can run as well. */
static lam_status simulate(const lam_schedule *s, const double *costs, double *out_step,
                           lam_rank_time *out_ranks) {
  const size_t n = (size_t)s->n_stages;
  lam_costs c = LAM_COSTS_INIT;
  lam_simulated out = LAM_SIMULATED_INIT;
  lam_walk w;
  c.n_stages = (uint32_t)n;
  c.forward = costs, c.backward_input = costs + n, c.backward_weight = costs + 2 * n;
  c.forward_backward = costs + 3 * n, c.reduce_grad = costs + 4 * n;
  LAM_TRY(lam_walk_run(s, &c, LAM_NOTED_NOTHING, &w));
  lam_walk_measure(&w, &out);
  for (int r = 0; r < s->n_ranks; r++) out_ranks[r] = lam_walk_time(&w, r, out.makespan);
  lam_walk_finish(&w);
  *out_step = out.makespan;
  return LAM_OK;
}

static lam_status predict_on(const lam_schedule *s, const double *level, lam_explanation *x) {
  LAM_TRY(simulate(s, x->costs, &x->predicted_step, x->predicted));
  return simulate(s, level, &x->level_step, x->level);
}

static lam_status predict(const lam_pipeline *p, lam_explanation *x) {
  lam_schedule *forwards = NULL;
  double *level = calloc((size_t)LAM_COSTS * (size_t)x->s->n_stages, sizeof *level);
  if (!level) return lam_fail(LAM_RESOURCE_EXHAUSTED, WHO "no memory");
  measure_costs(x);
  level_costs(x, level);
  lam_status status = p->forward_only ? forwards_of(x->s, &forwards) : LAM_OK;
  if (!status) status = predict_on(forwards ? forwards : x->s, level, x);
  lam_schedule_destroy(forwards);
  free(level);
  return status;
}

/* -- idle time -- */

/* From the first rank's start to the last rank's end, where ranks share a clock; else every rank is
 * taken to have started at once. */
static void place_ranks(const lam_pipeline *p, lam_explanation *x) {
  double origin = INFINITY;
  for (int r = 0; r < x->s->n_ranks; r++) origin = fmin(origin, row_of(x, r)->start);
  for (int r = 0; r < x->s->n_ranks; r++) {
    lam_rank_part *row = row_of(x, r);
    row->late = p->one_clock ? row->start - origin : 0;
    x->step = fmax(x->step, row->late + row->last);
  }
}

static void find_worst(const lam_explanation *x, lam_rank_part *row, lam_idle *out) {
  const double *waits = waits_in(x->s, row);
  out->worst_edge = out->worst_kind = -1;
  for (int i = 0; i < 2 * (x->s->n_stages - 1); i++)
    if (waits[i] > out->worst)
      out->worst = waits[i], out->worst_edge = i / 2,
      out->worst_kind = i % 2 ? LAM_KIND_I : LAM_KIND_F;
}

static void explain_rank(const lam_explanation *x, int r, lam_idle *out) {
  lam_rank_part *row = row_of(x, r);
  const lam_rank_time *predicted = &x->predicted[r];
  *out = (lam_idle){.work = row->work, .warm_up = row->first};
  out->drain = row->n_actions > 0 ? x->step - row->late - row->last : 0;
  out->imbalance = fmin(row->waiting, fmax(0, predicted->waiting - x->level[r].waiting));
  out->waiting = row->waiting - out->imbalance;
  out->other = x->step - out->work - out->warm_up - out->drain - row->waiting;
  out->predicted = x->predicted_step - predicted->busy;
  find_worst(x, row, out);
}

/* -- what measuring takes -- */

/* An action's share: five boundaries, one of them an event; as a step does it. */
static double meter_ns(const lam_pipeline *p) {
  enum { ROUNDS = 64 };
  lam_event events[ROUNDS];
  lam_pipeline scratch = {.rank = p->rank, .meter = {.events = events, .room = ROUNDS}};
  lam_port local = {.channel = NULL};
  const lam_action a = {.kind = LAM_KIND_F};
  const int64_t start = lam_clock_ns();
  for (int i = 0; i < ROUNDS; i++) {
    lam_meter_waited(&scratch, &local, 0, 0);
    lam_meter_waited(&scratch, &local, 0, 0);
    lam_meter_own(&scratch);
    lam_meter_worked(&scratch, &a, NULL, 0, -1);
    lam_meter_own(&scratch);
  }
  return (double)(lam_clock_ns() - start) / ROUNDS;
}

/* -- all of it -- */

static lam_status take_memory(const lam_schedule *s, lam_explanation *x) {
  const size_t ranks = (size_t)s->n_ranks, stages = (size_t)s->n_stages;
  *x = (lam_explanation){.s = s,
                         .own = calloc(1, row_bytes(s)),
                         .rows = calloc(ranks, row_bytes(s)),
                         .stages = calloc(stages, sizeof *x->stages),
                         .costs = calloc(LAM_COSTS * stages, sizeof *x->costs),
                         .predicted = calloc(ranks, sizeof *x->predicted),
                         .level = calloc(ranks, sizeof *x->level),
                         .ranks = calloc(ranks, sizeof *x->ranks)};
  if (x->own && x->rows && x->stages && x->costs && x->predicted && x->level && x->ranks)
    return LAM_OK;
  return lam_fail(LAM_RESOURCE_EXHAUSTED, WHO "no memory for %d ranks", s->n_ranks);
}

static void give_memory(lam_explanation *x) {
  free(x->own), free(x->rows), free(x->stages), free(x->costs);
  free(x->predicted), free(x->level), free(x->ranks);
}

static void copy_out(const lam_pipeline *p, const lam_explanation *x, lam_explained *out) {
  const uint64_t n = (uint64_t)x->s->n_ranks, fits = out->n_ranks < n ? out->n_ranks : n;
  out->step = x->step;
  out->predicted_step = x->predicted_step, out->level_step = x->level_step;
  out->metering = x->step > 0 ? meter_ns(p) * p->meter.n_actions / x->step : 0;
  if (out->ranks) memcpy(out->ranks, x->ranks, fits * sizeof *x->ranks);
  out->n_ranks = n;
  out->text_bytes = lam_explain_text(p, x, out->text, out->text_bytes);
}

static lam_status explain(lam_pipeline *p, lam_explanation *x) {
  (void)lam_marks_read(p); /* else times of queueing: the others wait for this rank's row */
  fill_row(p, x->own);
  LAM_TRY(gather(p, x->own, x->rows));
  LAM_TRY(check_rows(x));
  merge_rows(x);
  LAM_TRY(predict(p, x));
  place_ranks(p, x);
  for (int r = 0; r < x->s->n_ranks; r++) explain_rank(x, r, &x->ranks[r]);
  return LAM_OK;
}

lam_status lam_pipeline_explain(lam_pipeline *p, lam_explained *out) {
  if (!p) return lam_fail(LAM_INVALID_ARGUMENT, WHO "pipeline is NULL");
  LAM_TRY(lam_struct_check("lam_pipeline_explain", "lam_explained", out, sizeof *out));
  lam_explanation x;
  lam_status status = take_memory(p->schedule, &x);
  if (!status) status = explain(p, &x);
  if (!status) copy_out(p, &x, out);
  give_memory(&x);
  return status;
}
