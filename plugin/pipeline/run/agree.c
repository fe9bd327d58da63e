/* agree.c: what a host gave to lam_pipeline_create, read and checked; then compared by all ranks.
 *
 * Invariant: after lam_pipeline_agree every rank knows that all run the same schedule over the
 * same edges, and the traits of all stages; a rank that differs is named on all ranks, with
 * both sides, and so is one that was given what cannot be.
 * Leaves what a table makes of the stages to order.c, slots to plan.c. */
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include "plugin/core/struct.h"
#include "plugin/pipeline/run/runtime.h"

#define WHO "lam_pipeline_create"

/* -- reading: the host's structs -- */

/* Arrays of sized structs: the caller's size is the stride. */
static const void *element(const void *array, uint32_t i) {
  const uint32_t stride = *(const uint32_t *)array;
  return (const unsigned char *)array + (size_t)i * stride;
}

static lam_status read_ranks(lam_pipeline *p, const lam_pipeline_desc *d) {
  const lam_schedule *s = d->schedule;
  const int size = d->group ? d->group->size : 1;
  LAM_TRY(lam_schedule_check(s, NULL));
  if (s->n_ranks != size)
    return lam_fail(LAM_INVALID_ARGUMENT, WHO ": the schedule has %d ranks, the group %d",
                    s->n_ranks, size);
  if (d->n_edges != (uint32_t)(s->n_stages - 1))
    return lam_fail(LAM_INVALID_ARGUMENT,
                    WHO ": %u edges, expected %d: one after each of the %d stages but the last",
                    d->n_edges, s->n_stages - 1, s->n_stages);
  p->schedule = s;
  p->group = size > 1 ? d->group : NULL;
  p->tensor = d->tensor && d->tensor->size > 1 ? d->tensor : NULL;
  p->rank = d->group ? d->group->rank : 0;
  p->forward_only = d->flags & LAM_PIPELINE_FORWARD_ONLY;
  p->actions = s->actions + s->first[p->rank];
  p->n_actions = s->first[p->rank + 1] - s->first[p->rank];
  return LAM_OK;
}

static lam_status read_edges(lam_pipeline *p, const lam_pipeline_desc *d) {
  LAM_TRY(lam_pipeline_alloc(p, d->n_edges, sizeof *p->edges, &p->edges));
  for (uint32_t e = 0; e < d->n_edges; e++) {
    const lam_edge *edge = element(d->edges, e);
    LAM_TRY(lam_struct_check(WHO, "lam_edge", edge, sizeof *edge));
    LAM_TRY(lam_edge_plan_init(p, (int)e, edge, &p->edges[e]));
  }
  return LAM_OK;
}

static lam_status fail_stage(const lam_pipe_stage *s, const char *what) {
  return lam_fail(LAM_INVALID_ARGUMENT, WHO ": stage %d has %s", s->number, what);
}

static lam_stage_call call_of(const lam_stage *is, lam_stage_fn function, void *own_user) {
  return (lam_stage_call){function, own_user ? own_user : is->user};
}

/* A stage that cannot split its backward does all of it in I, and nothing in W. */
static lam_status choose_calls(const lam_pipeline *p, lam_pipe_stage *s) {
  const lam_stage *is = &s->is;
  const lam_stage_call whole = call_of(is, is->backward, is->backward_user);
  const lam_stage_call input = call_of(is, is->backward_input, is->backward_input_user);
  const lam_stage_call weight = call_of(is, is->backward_weight, is->backward_weight_user);
  const bool splits = input.function && weight.function;
  if (!is->forward) return fail_stage(s, "no forward function");
  s->calls[LAM_KIND_F][0] = call_of(is, is->forward, NULL);
  if (p->forward_only) return LAM_OK;
  if (!whole.function && !splits)
    return fail_stage(s,
                      "no backward function: expected backward, or backward_input and "
                      "backward_weight");
  s->calls[LAM_KIND_B][0] = whole.function ? whole : input;
  if (!whole.function) s->calls[LAM_KIND_B][1] = weight;
  s->calls[LAM_KIND_I][0] = splits ? input : whole;
  if (splits) s->calls[LAM_KIND_W][0] = weight;
  s->calls[LAM_KIND_REDUCE_GRAD][0] = call_of(is, is->reduce_grad, NULL);
  return LAM_OK;
}

static lam_status read_stage(lam_pipeline *p, const lam_stage *given, int number,
                             lam_pipe_stage *out) {
  LAM_TRY(lam_struct_check(WHO, "lam_stage", given, sizeof *given));
  memcpy(&out->is, given, sizeof out->is);
  out->number = number;
  if (given->flags & ~LAM_STAGE_KEEPS_INPUT)
    return lam_fail(LAM_UNIMPLEMENTED, WHO ": stage %d has flags 0x%x, known is 0x1", number,
                    given->flags);
  out->keeps = (given->flags & LAM_STAGE_KEEPS_INPUT) && !p->forward_only;
  for (int k = 0; k < LAM_PIPE_KINDS; k++) out->lasted[k] = INT64_MAX;
  return choose_calls(p, out);
}

static lam_status read_stages(lam_pipeline *p, const lam_pipeline_desc *d) {
  const lam_schedule *s = p->schedule;
  LAM_TRY(lam_pipeline_alloc(p, (uint64_t)s->n_stages, sizeof *p->stage_index, &p->stage_index));
  for (int i = 0; i < s->n_stages; i++)
    p->stage_index[i] = s->rank_of_stage[i] == p->rank ? p->n_stages++ : -1;
  if (d->n_stages != (uint32_t)p->n_stages)
    return lam_fail(LAM_INVALID_ARGUMENT,
                    WHO ": rank %d was given %u stages, the schedule puts %d on it", p->rank,
                    d->n_stages, p->n_stages);
  LAM_TRY(lam_pipeline_alloc(p, d->n_stages, sizeof *p->stages, &p->stages));
  for (int i = 0; i < s->n_stages; i++) {
    const int k = p->stage_index[i];
    if (k >= 0) LAM_TRY(read_stage(p, element(d->stages, (uint32_t)k), i, &p->stages[k]));
  }
  return LAM_OK;
}

static lam_status read_all(lam_pipeline *p, const lam_pipeline_desc *d) {
  if (!d->schedule || (d->n_edges && !d->edges) || (d->n_stages && !d->stages))
    return lam_fail(LAM_INVALID_ARGUMENT, WHO ": %s is NULL",
                    !d->schedule              ? "schedule"
                    : d->n_edges && !d->edges ? "edges"
                                              : "stages");
  if (d->flags & ~(LAM_PIPELINE_FORWARD_ONLY | LAM_PIPELINE_ANY_ORDER))
    return lam_fail(LAM_UNIMPLEMENTED, WHO ": flags are 0x%x, known are 0x3", d->flags);
  if (d->split > LAM_SPLIT_ALWAYS || !(d->edge_bytes_per_second >= 0))
    return lam_fail(LAM_INVALID_ARGUMENT,
                    WHO
                    ": split is %u and edge_bytes_per_second %g, expected 0 to %u, and 0 or "
                    "more",
                    d->split, d->edge_bytes_per_second, LAM_SPLIT_ALWAYS);
  LAM_TRY(read_ranks(p, d));
  LAM_TRY(lam_place_read(p, d));
  LAM_TRY(read_edges(p, d));
  LAM_TRY(read_stages(p, d));
  LAM_TRY(lam_tied_read(p, d));
  return lam_pipeline_fit(p, d->flags);
}

typedef struct verdict { /* on what one rank was given */
  lam_status status;
  char text[LAM_MESSAGE_BYTES];
} verdict;

/* A rank that was refused tells the others, who would wait for it until the deadline. Nothing is
 * poisoned: all are refused, and may try again. */
lam_status lam_pipeline_share_verdict(lam_pipeline *p, lam_group *g, lam_status own) {
  if (!g || g->size == 1) return own;
  verdict mine = {.status = own}, *all = NULL;
  if (own) snprintf(mine.text, sizeof mine.text, "%s", lam_last_error());
  LAM_TRY(lam_pipeline_alloc(p, (uint64_t)g->size, sizeof *all, &all));
  const lam_comm_op op = {.op = LAM_COMM_PIPELINE, .dtype = LAM_U8, .ndim = 1, .dims = {g->size}};
  const lam_status status = lam_group_gather_rows(g, &op, &mine, sizeof mine, all);
  if (own) return lam_fail(own, "%s", mine.text);
  LAM_TRY(status);
  for (int r = 0; r < g->size; r++)
    if (all[r].status) return lam_fail(all[r].status, "rank %d: %s", r, all[r].text);
  return LAM_OK;
}

lam_status lam_pipeline_read(lam_pipeline *p, const lam_pipeline_desc *d) {
  const lam_status status = read_all(p, d);
  return lam_pipeline_share_verdict(p, d->group, status);
}

/* -- agreeing: one row of bytes per rank, gathered by all -- */

typedef struct edge_row {
  uint64_t hash;
  char text[LAM_EDGE_TEXT_BYTES];
} edge_row;

/* Then come edge_row[n_edges], then one byte per stage: the traits of those of this rank. */
typedef struct rank_row {
  uint64_t schedule, machine;
  uint64_t forward_only, tied, device_type;
  uint64_t part, n_parts; /* of the tensor-parallel group: ranks of one pipeline hold one part */
} rank_row;

static size_t row_bytes(const lam_pipeline *p) {
  const size_t n = (size_t)p->schedule->n_stages,
               bytes = sizeof(rank_row) + (n - 1) * sizeof(edge_row) + n;
  return (bytes + 7) / 8 * 8;
}

static uint64_t hash_bytes(const void *data, size_t n) { /* FNV-1a */
  const unsigned char *bytes = data;
  uint64_t h = 0xcbf29ce484222325u;
  for (size_t i = 0; i < n; i++) h = (h ^ bytes[i]) * 0x100000001b3u;
  return h;
}

static uint64_t hash_schedule(const lam_schedule *s) {
  const uint64_t lists = hash_bytes(s->first, (size_t)(s->n_ranks + 1) * sizeof *s->first);
  return lists ^ 3 * hash_bytes(s->actions, (size_t)s->first[s->n_ranks] * sizeof *s->actions);
}

/* Ranks of one boot of one kernel share CLOCK_MONOTONIC. 0 where that cannot be told. */
static uint64_t machine_id(void) {
  char id[64] = "";
  const int fd = open("/proc/sys/kernel/random/boot_id", O_RDONLY | O_CLOEXEC);
  const ssize_t n = fd < 0 ? -1 : read(fd, id, sizeof id);
  if (fd >= 0) close(fd);
  return n > 0 ? hash_bytes(id, (size_t)n) : 0;
}

static edge_row *edge_rows(void *row) {
  return (edge_row *)((unsigned char *)row + sizeof(rank_row));
}
static uint8_t *traits_in(const lam_pipeline *p, void *row) {
  return (uint8_t *)(edge_rows(row) + (p->schedule->n_stages - 1));
}

static uint8_t traits_of(const lam_pipe_stage *s) {
  return (uint8_t)((s->keeps ? LAM_TRAIT_KEEPS : 0) | (lam_stage_splits(s) ? LAM_TRAIT_SPLITS : 0));
}

static void fill_row(const lam_pipeline *p, void *row) {
  *(rank_row *)row = (rank_row){hash_schedule(p->schedule),
                                machine_id(),
                                p->forward_only,
                                p->tied_hash,
                                (uint64_t)p->where.device_type,
                                p->tensor ? (uint64_t)p->tensor->rank : 0,
                                p->tensor ? (uint64_t)p->tensor->size : 1};
  for (int e = 0; e < p->schedule->n_stages - 1; e++) {
    edge_rows(row)[e].hash = lam_edge_plan_hash(&p->edges[e]);
    lam_edge_plan_text(&p->edges[e], edge_rows(row)[e].text);
  }
  for (int i = 0; i < p->n_stages; i++)
    traits_in(p, row)[p->stages[i].number] = traits_of(&p->stages[i]);
}

static lam_status compare_rows(lam_pipeline *p, void *first, void *row, int rank) {
  const rank_row *a = first, *b = row;
  if (a->schedule != b->schedule)
    return lam_fail(LAM_MISMATCH, WHO ": rank %d's schedule has other actions than rank 0's", rank);
  if (a->forward_only != b->forward_only)
    return lam_fail(LAM_MISMATCH, WHO ": FORWARD_ONLY is %s on rank 0 and %s on rank %d",
                    a->forward_only ? "set" : "clear", b->forward_only ? "set" : "clear", rank);
  if (a->tied != b->tied)
    return lam_fail(LAM_MISMATCH, WHO ": rank %d's tied weights are not those of rank 0", rank);
  if (a->device_type != b->device_type)
    return lam_fail(LAM_MISMATCH,
                    WHO ": tensors are of device type %d on rank 0 and of %d on rank %d",
                    (int)a->device_type, (int)b->device_type, rank);
  if (a->part != b->part || a->n_parts != b->n_parts)
    return lam_fail(LAM_MISMATCH,
                    WHO
                    ": rank %d is number %d of %d of its tensor-parallel group, rank 0 number "
                    "%d of %d: a pipeline's ranks are of one number",
                    rank, (int)b->part, (int)b->n_parts, (int)a->part, (int)a->n_parts);
  for (int e = 0; e < p->schedule->n_stages - 1; e++)
    if (edge_rows(first)[e].hash != edge_rows(row)[e].hash)
      return lam_fail(LAM_MISMATCH, WHO ": edge %d is %.*s on rank 0 and %.*s on rank %d", e,
                      LAM_EDGE_TEXT_BYTES, edge_rows(first)[e].text, LAM_EDGE_TEXT_BYTES,
                      edge_rows(row)[e].text, rank);
  p->one_clock = p->one_clock && a->machine == b->machine;
  return LAM_OK;
}

static lam_status judge_rows(lam_pipeline *p, unsigned char *rows, uint8_t *traits) {
  const size_t bytes = row_bytes(p);
  p->one_clock = ((rank_row *)(void *)rows)->machine != 0;
  for (int r = 1; r < p->schedule->n_ranks; r++)
    LAM_TRY(compare_rows(p, rows, rows + (size_t)r * bytes, r));
  for (int i = 0; i < p->schedule->n_stages; i++)
    traits[i] = traits_in(p, rows + (size_t)p->schedule->rank_of_stage[i] * bytes)[i];
  return LAM_OK;
}

/* The sizes of the rows are announced, so that ranks that disagree about them never exchange
 * rows. */
static lam_status gather_rows(lam_pipeline *p, const void *own, void *rows) {
  const lam_schedule *s = p->schedule;
  const lam_comm_op op = {.op = LAM_COMM_PIPELINE,
                          .dtype = LAM_U8,
                          .ndim = 3,
                          .dims = {s->n_ranks, s->n_stages, s->n_micro}};
  const lam_status status = lam_group_gather_rows(p->group, &op, own, row_bytes(p), rows);
  return status
             ? lam_fail_within(
                   status,
                   WHO ": rank %d compares its schedule of %d ranks, %d stages, %d micro-batches",
                   p->rank, s->n_ranks, s->n_stages, s->n_micro)
             : LAM_OK;
}

lam_status lam_pipeline_agree(lam_pipeline *p, uint8_t *traits) {
  unsigned char *own = NULL, *rows = NULL;
  const uint64_t n_ranks = (uint64_t)p->schedule->n_ranks;
  LAM_TRY(lam_pipeline_alloc(p, 1, row_bytes(p), &own));
  fill_row(p, own);
  if (!p->group) return judge_rows(p, own, traits);
  LAM_TRY(lam_pipeline_alloc(p, n_ranks, row_bytes(p), &rows));
  LAM_TRY(gather_rows(p, own, rows));
  const lam_status status = judge_rows(p, rows, traits);
  return status ? lam_pipeline_end_world(p, status) : LAM_OK;
}
