/* plan.c: which schedule is run, and which stage lies on which worker.
 *
 * Names, placements and what a worker holds come from the library and the schedule itself; nothing
 * here knows one schedule from another but layerwise, which is written out for any placement, so
 * that every schedule can be seen beside it.
 * Invariant: the same options give the same plan on every worker. Leaves layers to options.c, bytes
 * to memory.c. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "bindings/cli/demo/demo.h"

/* -- names -- */

/* Of bytes, since names also stand in a list. */
static const char *find_name(const char *value, size_t bytes) {
  const char *name;
  for (int i = 0; (name = lam_schedule_name(i)); i++)
    if (strlen(name) == bytes && !memcmp(name, value, bytes)) return name;
  return NULL;
}

static lam_status fail_name(const char *option, const char *value, size_t bytes) {
  char known[256] = "auto";
  for (int i = 0; lam_schedule_name(i); i++) {
    const size_t n = strlen(known);
    snprintf(known + n, sizeof known - n, ", %s", lam_schedule_name(i));
  }
  return fail(LAM_INVALID_ARGUMENT, "%s: found '%.*s', expected one of %s", option, (int)bytes,
              value, known);
}

/* The reason that the library gave, without the name of its function. */
static lam_status fail_schedule(const char *name) {
  const char *why = lam_last_error(), *colon = strstr(why, ": ");
  return fail(LAM_INVALID_ARGUMENT,
              "--schedule %s: %s (p is --pp, v --stages-per-rank, m --micro-batches)", name,
              colon ? colon + 2 : why);
}

/* -- schedules -- */

/* Micro-batch by micro-batch: a worker's stages upwards, then back. */
static char *layerwise_text(const options *o) {
  const size_t room = (size_t)o->n_stages * (size_t)o->micro_batches * 32 + 64 * MAX_WORKERS;
  char *text = malloc(room);
  size_t n = 0;
  for (int r = 0; text && r < o->pp; r++) {
    n += (size_t)snprintf(text + n, room - n, "rank %d:", r);
    for (int i = 0; i < o->micro_batches; i++) {
      for (int s = 0; s < o->n_stages; s++)
        if (o->rank_of_stage[s] == r) n += (size_t)snprintf(text + n, room - n, " %dF%d", s, i);
      for (int s = o->n_stages - 1; s >= 0; s--)
        if (o->rank_of_stage[s] == r) n += (size_t)snprintf(text + n, room - n, " %dB%d", s, i);
    }
    n += (size_t)snprintf(text + n, room - n, "\n");
  }
  return text;
}

lam_status plan_schedule(const options *o, const char *name, lam_schedule **out) {
  const int v = o->per_worker;
  if (v == 1 || !strcmp(name, o->schedule) || strcmp(name, "layerwise"))
    return lam_schedule_build(name, o->pp, v, o->micro_batches, out) ? fail_schedule(name) : LAM_OK;
  char *text = layerwise_text(o);
  if (!text) return fail(LAM_RESOURCE_EXHAUSTED, "no memory for a schedule");
  const lam_status status = lam_schedule_parse(text, strlen(text), out);
  free(text);
  return status;
}

/* Without a stage's forward_backward the halves of "(0F7;7B3)OVERLAP_F_B" run one after the other,
 * and what the first one makes leaves before the second: a table without pairs. */
lam_status plan_as_run(const lam_schedule *s, lam_schedule **out) {
  static const char pair[] = ")OVERLAP_F_B";
  uint64_t bytes;
  TRY(lam_schedule_print(s, NULL, 0, &bytes));
  char *text = malloc(bytes + 1), *to = text, *from;
  if (!text) return fail(LAM_RESOURCE_EXHAUSTED, "no memory for a schedule");
  lam_status status = lam_schedule_print(s, text, bytes + 1, &bytes);
  for (from = text; status == LAM_OK && *from; from++) {
    if (!strncmp(from, pair, sizeof pair - 1))
      from += sizeof pair - 2;
    else if (*from != '(')
      *to++ = *from == ';' ? ' ' : *from;
  }
  if (status == LAM_OK) status = lam_schedule_parse(text, (uint64_t)(to - text), out);
  free(text);
  return status;
}

/* -- what a schedule tells -- */

/* Slots of an edge between two stages of one worker, which lie in its own memory: activations from
 * their making until the backward that is through with them, gradients until they are used. */
typedef struct hand_over {
  int activations, gradients, most_activations, most_gradients;
} hand_over;

static void note_most(int *most, int now) { *most = now > *most ? now : *most; }

static void note_hand_over(const options *o, const lam_event *e, hand_over *edges) {
  const int s = e->stage;
  const bool up = s + 1 < o->n_stages && o->rank_of_stage[s + 1] == e->rank;
  const bool down = s > 0 && o->rank_of_stage[s - 1] == e->rank;
  const bool gives = e->kind == LAM_KIND_I || e->kind == LAM_KIND_B;
  const bool ends = e->kind == LAM_KIND_W || e->kind == LAM_KIND_B;
  if (up && e->kind == LAM_KIND_F) note_most(&edges[s].most_activations, ++edges[s].activations);
  if (down && gives) note_most(&edges[s - 1].most_gradients, ++edges[s - 1].gradients);
  if (up && gives) edges[s].gradients--;
  if (down && ends) edges[s - 1].activations--;
}

/* Events come rank by rank, each in its list's order. */
static void read_events(const lam_event *events, uint64_t n, options *o) {
  hand_over edges[MAX_STAGES] = {{0}};
  for (uint64_t i = 0; i < n; i++) o->rank_of_stage[events[i].stage] = events[i].rank;
  for (uint64_t i = 0; i < n; i++) {
    o->splits |= events[i].kind == LAM_KIND_W;
    note_hand_over(o, &events[i], edges);
  }
  for (int s = 0; s + 1 < o->n_stages; s++)
    o->slots[o->rank_of_stage[s]] += edges[s].most_activations + edges[s].most_gradients;
}

static lam_status simulate_units(const lam_schedule *s, int n_stages, lam_simulated *out) {
  double ones[MAX_STAGES];
  for (int i = 0; i < n_stages; i++) ones[i] = 1;
  lam_costs costs = LAM_COSTS_INIT;
  costs.n_stages = (uint32_t)n_stages;
  costs.forward = costs.backward_input = costs.backward_weight = ones;
  return lam_schedule_simulate(s, &costs, out);
}

static lam_status read_schedule(const lam_schedule *s, options *o) {
  lam_schedule_info info = LAM_SCHEDULE_INFO_INIT;
  lam_simulated simulated = LAM_SIMULATED_INIT;
  info.peaks = o->peaks, info.n_peaks = MAX_WORKERS;
  TRY(lam_schedule_check(s, &info));
  simulated.n_events = info.n_actions;
  simulated.events = malloc(info.n_actions * sizeof(lam_event));
  if (!simulated.events) return fail(LAM_RESOURCE_EXHAUSTED, "no memory for a schedule");
  const lam_status status = simulate_units(s, o->n_stages, &simulated);
  if (status == LAM_OK) read_events(simulated.events, simulated.n_events, o);
  free(simulated.events);
  return status;
}

/* -- the plan -- */

static bool takes(const char *name, int v) {
  lam_schedule *s = NULL;
  const lam_status status = lam_schedule_build(name, 1, v, 2, &s);
  lam_schedule_destroy(s);
  return status == LAM_OK;
}

/* Stages of a worker that the model can be cut into. */
static int most_per_worker(const options *o, int pp, int stages) {
  if (o->per_worker) return o->per_worker;
  if (stages) return stages >= pp ? stages / pp : 1;
  return o->layers >= 2 * pp ? 2 : 1;
}

static lam_status choose(options *o, int stages) {
  lam_choice_desc desc = LAM_CHOICE_DESC_INIT;
  lam_choice choice = LAM_CHOICE_INIT;
  desc.flags = LAM_CHOICE_SPLITS;
  desc.p = o->pp ? o->pp : stages ? stages : 1;
  desc.v = most_per_worker(o, desc.p, stages);
  desc.m = o->micro_batches;
  TRY(lam_schedule_choose(&desc, &choice));
  o->schedule = choice.name;
  o->per_worker = choice.v;
  snprintf(o->why, sizeof o->why, "%s", choice.reason);
  return LAM_OK;
}

/* Two stages on a worker where the schedule takes two, unless told otherwise. */
lam_status plan_shape(options *o, int stages) {
  o->per_worker = o->stages_per_rank;
  if (!strcmp(o->schedule, "auto")) TRY(choose(o, stages));
  const char *name = find_name(o->schedule, strlen(o->schedule));
  if (!name) return fail_name("--schedule", o->schedule, strlen(o->schedule));
  if (!o->per_worker) o->per_worker = takes(name, 2) ? 2 : 1;
  if (!o->pp && stages % o->per_worker)
    return fail(LAM_INVALID_ARGUMENT, "--assign: found %d stages, %s has %d on each worker", stages,
                name, o->per_worker);
  if (!o->pp) o->pp = stages >= o->per_worker ? stages / o->per_worker : 1;
  if (o->pp > MAX_PIPELINE || o->per_worker > MAX_HELD)
    return fail(LAM_INVALID_ARGUMENT, "found %d workers of %d stages, expected at most %d of %d",
                o->pp, o->per_worker, MAX_PIPELINE, MAX_HELD);
  o->n_stages = o->pp * o->per_worker;
  return LAM_OK;
}

static lam_status check_drawn(options *o, const char *name) {
  options other = *o;
  lam_schedule *s = NULL;
  TRY(plan_schedule(o, name, &s));
  const lam_status status = read_schedule(s, &other);
  lam_schedule_destroy(s);
  TRY(status);
  o->splits |= other.splits;
  if (memcmp(other.rank_of_stage, o->rank_of_stage, sizeof o->rank_of_stage))
    return fail(LAM_INVALID_ARGUMENT, "--draw: %s places stages otherwise than --schedule %s", name,
                o->schedule);
  return LAM_OK;
}

lam_status plan_make(options *o) {
  lam_schedule *s = NULL;
  TRY(plan_schedule(o, o->schedule, &s));
  const lam_status status = read_schedule(s, o);
  lam_schedule_destroy(s);
  TRY(status);
  for (const char *at = o->draw; *at; at += strcspn(at, ","), at += *at == ',') {
    const char *name = find_name(at, strcspn(at, ","));
    if (!name) return fail_name("--draw", at, strcspn(at, ","));
    TRY(check_drawn(o, name));
  }
  return LAM_OK;
}

const char *plan_about(const char *name) {
  for (int i = 0; lam_schedule_name(i); i++)
    if (!strcmp(lam_schedule_name(i), name)) return lam_schedule_about(i);
  return "";
}
