/* answer.c: one schedule for one question: built, its layers cut into stages, timed, its memory
 * counted.
 * Invariant: with layers, a stage costs what its layers weigh; without, an even share of its
 * rank's.
 * Leaves all of this to the library, and what is best to schedule.py. */
#include <stdlib.h>
#include <string.h>

#include "bindings/cli/schedule/ask.h"

#define TRY(expr)                          \
  do {                                     \
    const lam_status status_ = (expr);     \
    if (status_ != LAM_OK) return status_; \
  } while (0)

#define MS 1e6 /* ns */

static lam_status fail(answer *x, lam_status status, const char *why) {
  return x->why = why, status;
}
static lam_status no_memory(answer *x) { return fail(x, LAM_RESOURCE_EXHAUSTED, "no memory"); }

static uint64_t to_bytes(const ask *a, double memory) {
  return (uint64_t)(memory * a->scale + 0.5);
}

/* -- layers -- */

typedef struct layers {
  uint64_t n, n_stages;
  char *letters;
  lam_layer *each;
  int32_t *first; /* [n_stages + 1] */
} layers;

static void layers_free(layers *l) {
  free(l->letters);
  free(l->each);
  free(l->first);
}

static double weight_of(const ask *a, char letter) {
  return a->weights[strchr("EtmL", letter) - "EtmL"];
}

static void weigh(const ask *a, layers *l) {
  for (uint64_t i = 0; i < l->n; i++) {
    const double w = weight_of(a, l->letters[i]);
    l->each[i] = (lam_layer){.forward = w * a->forward * MS,
                             .backward_input = w * a->input * MS,
                             .backward_weight = w * a->weight * MS,
                             .cut_time = 2 * a->comm * MS, /* there and back */
                             .static_bytes = to_bytes(a, w * a->fixed),
                             .activation_bytes = to_bytes(a, w * a->act)};
  }
}

/* The words' layers; and the stages they name, where there is more than one. */
static lam_status layers_read(const ask *a, answer *x, layers *out) {
  lam_layout l = LAM_LAYOUT_INIT;
  *out = (layers){0};
  TRY(lam_layout_parse(a->layers, strlen(a->layers), &l));
  out->n = l.n_layers, out->n_stages = l.n_stages;
  out->letters = l.layers = calloc(l.n_layers + 1, 1);
  out->first = l.first_layer = calloc(l.n_stages + 1, sizeof *l.first_layer);
  out->each = calloc(l.n_layers, sizeof *out->each);
  if (!l.layers || !l.first_layer || !out->each) return no_memory(x);
  TRY(lam_layout_parse(a->layers, strlen(a->layers), &l));
  weigh(a, out);
  return LAM_OK;
}

/* -- one schedule -- */

typedef struct stages {
  int32_t *first;  /* [n_stages + 1] its layers, where there are layers */
  double *share;   /* [n_stages] of what ask's times are of */
  uint64_t *bytes; /* [n_ranks], where there are layers */
  double *costs;   /* [5 n_stages] */
} stages;

static void stages_free(stages *st) {
  free(st->first);
  free(st->share);
  free(st->bytes);
  free(st->costs);
}

static lam_status stages_alloc(answer *x, stages *out) {
  const size_t n = (size_t)x->n_stages;
  out->first = calloc(n + 1, sizeof *out->first);
  out->share = calloc(n, sizeof *out->share);
  out->bytes = calloc(n, sizeof *out->bytes);
  out->costs = calloc(5 * n, sizeof *out->costs);
  return out->first && out->share && out->bytes && out->costs ? LAM_OK : no_memory(x);
}

static lam_status cut(const ask *a, const layers *l, answer *x, stages *st) {
  lam_partition_desc d = LAM_PARTITION_DESC_INIT;
  lam_partition found = LAM_PARTITION_INIT;
  const bool given = l->n_stages > 1;
  if (given && l->n_stages != (uint64_t)x->n_stages)
    return fail(x, LAM_INVALID_ARGUMENT, "the layout has another number of stages");
  d.flags = given ? LAM_PARTITION_EMPTY_STAGES : 0;
  d.layers = l->each, d.n_layers = (uint32_t)l->n;
  d.schedule = x->s;
  d.pinned = given ? l->first : NULL;
  found.first_layer = st->first, found.rank_bytes = st->bytes;
  uint64_t *caps = calloc((size_t)x->n_ranks, sizeof *caps);
  if (!caps) return no_memory(x);
  for (int r = 0; r < x->n_ranks; r++) caps[r] = to_bytes(a, a->cap);
  if (a->cap > 0 && !given) d.caps = caps;
  const lam_status status = lam_partition_solve(&d, &found);
  free(caps);
  TRY(status);
  x->proof = given ? "given" : found.proof;
  const lam_layout layout = {sizeof layout, 0, l->n, (uint64_t)x->n_stages, l->letters, st->first};
  return lam_layout_print(&layout, x->layout, sizeof x->layout, NULL);
}

static void share_out(const ask *a, const layers *l, const answer *x, stages *st) {
  for (int s = 0; s < x->n_stages; s++) {
    st->share[s] = l ? 0 : 1. / x->v;
    for (int32_t i = st->first[s]; l && i < st->first[s + 1]; i++)
      st->share[s] += weight_of(a, l->letters[i]);
  }
}

static lam_costs costs_of(const ask *a, const answer *x, stages *st) {
  lam_costs c = LAM_COSTS_INIT;
  double *const rows[5] = {st->costs, st->costs + x->n_stages, st->costs + 2 * x->n_stages,
                           st->costs + 3 * x->n_stages, st->costs + 4 * x->n_stages};
  const double each[4] = {a->forward, a->input, a->weight, a->fused};
  for (int k = 0; k < 4; k++)
    for (int s = 0; s < x->n_stages; s++) rows[k][s] = st->share[s] * each[k] * MS;
  for (int e = 0; e < x->n_stages; e++) rows[4][e] = a->comm * MS;
  c.n_stages = (uint32_t)x->n_stages;
  c.forward = rows[0], c.backward_input = rows[1], c.backward_weight = rows[2];
  c.forward_backward = a->fused > 0 ? rows[3] : NULL;
  c.transfer = rows[4];
  return c;
}

static lam_status time_it(const lam_costs *costs, answer *x) {
  TRY(lam_schedule_simulate(x->s, costs, &x->times));
  x->events = calloc(x->times.n_events, sizeof *x->events);
  if (!x->events) return no_memory(x);
  x->times.events = x->events;
  TRY(lam_schedule_simulate(x->s, costs, &x->times));
  for (uint64_t i = 0; i < x->times.n_events; i++)
    if (x->events[i].kind == LAM_KIND_W) x->splits = true;
  return LAM_OK;
}

static lam_status weigh_ranks(const ask *a, const stages *st, const int32_t *peaks, answer *x) {
  x->held = calloc((size_t)x->n_ranks, sizeof *x->held);
  if (!x->held) return no_memory(x);
  for (int r = 0; r < x->n_ranks; r++)
    x->held[r] =
        x->layout[0] ? (double)st->bytes[r] / a->scale : a->fixed + a->act * peaks[r] / x->v;
  return LAM_OK;
}

static lam_status measure(const ask *a, const layers *l, const int32_t *peaks, stages *st,
                          answer *x) {
  TRY(stages_alloc(x, st));
  if (l) TRY(cut(a, l, x, st));
  share_out(a, l, x, st);
  const lam_costs costs = costs_of(a, x, st);
  TRY(time_it(&costs, x));
  return weigh_ranks(a, st, peaks, x);
}

static lam_status with_layers(const ask *a, const int32_t *peaks, answer *x) {
  layers l = {0};
  stages st = {0};
  lam_status status = a->layers ? layers_read(a, x, &l) : LAM_OK;
  if (status == LAM_OK) status = measure(a, a->layers ? &l : NULL, peaks, &st, x);
  stages_free(&st);
  layers_free(&l);
  return status;
}

lam_status answer_make(const ask *a, answer *out) {
  lam_schedule_info info = LAM_SCHEDULE_INFO_INIT;
  out->times = (lam_simulated)LAM_SIMULATED_INIT;
  TRY(lam_schedule_check(out->s, &info));
  int32_t *peaks = info.peaks = calloc((size_t)info.n_ranks, sizeof *peaks);
  if (!peaks) return no_memory(out);
  info.n_peaks = (uint64_t)info.n_ranks;
  lam_status status = lam_schedule_check(out->s, &info);
  out->n_ranks = info.n_ranks, out->n_stages = info.n_stages;
  out->v = (info.n_stages + info.n_ranks - 1) / info.n_ranks;
  if (status == LAM_OK) status = with_layers(a, peaks, out);
  free(peaks);
  return status;
}

void answer_free(answer *x) {
  lam_schedule_destroy(x->s);
  free(x->events);
  free(x->held);
}
