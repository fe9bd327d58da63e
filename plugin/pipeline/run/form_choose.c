/* form_choose.c: whether the ranks of a tensor-parallel group, which all hold the same activations,
 * each send all of them, or each a part that the receivers gather (Megatron-LM's scatter-gather,
 * Narayanan et al. 2021).
 *
 * Split, a message takes its bytes / n_parts over the edge, and a gather, which is timed here with
 * the edge's own sizes; whole, all its bytes over the edge. On one machine a whole message is not
 * copied at all: the edge's speed must be given for a split to be weighed.
 * Invariant: all ranks of the group and of the pipeline were asked for the same, which is checked,
 * and use the largest gather time that any of them saw, so that they decide alike.
 * Leaves packing to form.c. */
#include <stdlib.h>

#include "plugin/comm/comm.h"
#include "plugin/core/struct.h"
#include "plugin/pipeline/run/form.h"

enum { TRIES = 5 };

static const char *const why[] = {
    [LAM_EDGE_NO_TENSOR_GROUP] = "whole: no tensor-parallel group was given",
    [LAM_EDGE_ASKED_WHOLE] = "whole: as asked for",
    [LAM_EDGE_ASKED_SPLIT] = "split: as asked for",
    [LAM_EDGE_SPEED_UNKNOWN] = "whole: the edge's speed was not given",
    [LAM_EDGE_WHOLE_FASTER] = "whole: a gather would take longer than it saves",
    [LAM_EDGE_SPLIT_FASTER] = "split: a part and a gather take less than the whole",
};

/* -- timing -- */

static int by_value(const void *a, const void *b) {
  const double d = *(const double *)a - *(const double *)b;
  return d < 0 ? -1 : d > 0;
}

/* Seconds to gather `bytes`, a share of them from each rank. */
static lam_status time_gather(const lam_pipeline *p, unsigned char *mine, unsigned char *whole,
                              int64_t bytes, double *out) {
  lam_group *g = p->tensor;
  int64_t first[LAM_GROUP_RANKS + 1];
  double took[TRIES];
  for (int r = 0; r <= g->size; r++) first[r] = lam_share_begin(bytes, 1, r, g->size);
  const lam_comm_op op = {.op = LAM_COMM_PIPELINE, .dtype = LAM_U8, .ndim = 1, .dims = {bytes}};
  const lam_parts parts = {.outer = 1, .inner = 1, .first = first, .dtype = LAM_U8};
  for (int i = 0; i < TRIES; i++) {
    const int64_t start = lam_clock_ns();
    lam_place_tell(p, g);
    lam_status status = lam_group_all_gather(g, &op, &parts, mine, whole);
    g->device = NULL;
    if (status == LAM_OK && p->device) status = lam_device_finish(p->device, p->stream);
    LAM_TRY(status);
    took[i] = (double)(lam_clock_ns() - start) * 1e-9;
  }
  qsort(took, TRIES, sizeof *took, by_value);
  *out = took[TRIES / 2];
  return LAM_OK;
}

static lam_status time_edges(lam_pipeline *p, int n_edges, double *seconds) {
  uint64_t most = 1;
  unsigned char *data = NULL;
  for (int e = 0; e < n_edges; e++)
    if (p->edges[e].bytes > most) most = p->edges[e].bytes;
  LAM_TRY(lam_place_alloc(p, 2, most, &data));
  for (int e = 0; e < n_edges; e++)
    LAM_TRY(time_gather(p, data, data + most, (int64_t)p->edges[e].bytes, &seconds[e]));
  return LAM_OK;
}

/* values[i] = the largest of all ranks' values[i]. */
static lam_status largest(lam_pipeline *p, lam_group *g, double *values, int n) {
  double *all = NULL;
  if (!g || n == 0) return LAM_OK;
  LAM_TRY(lam_pipeline_alloc(p, (uint64_t)g->size * (uint64_t)n, sizeof *all, &all));
  const lam_comm_op op = {.op = LAM_COMM_PIPELINE, .dtype = LAM_U8, .ndim = 1, .dims = {n}};
  LAM_TRY(lam_group_gather_rows(g, &op, values, (uint64_t)n * sizeof *all, all));
  for (int r = 0; r < g->size; r++)
    for (int i = 0; i < n; i++)
      if (all[r * n + i] > values[i]) values[i] = all[r * n + i];
  return LAM_OK;
}

/* -- what was asked for -- */

typedef struct wish {
  int64_t split;
  double speed; /* 0 where it does not count */
} wish;

static lam_status compare_wishes(const lam_pipeline *p, const lam_group *g, const wish *all) {
  for (int r = 1; r < g->size; r++)
    if (all[r].split != all[0].split || all[r].speed != all[0].speed)
      return lam_fail(LAM_MISMATCH,
                      "lam_pipeline_create: split is %d and edge_bytes_per_second %g on rank 0 of "
                      "the %s group, %d and %g on rank %d",
                      (int)all[0].split, all[0].speed,
                      g == p->tensor ? "tensor-parallel" : "pipeline's", (int)all[r].split,
                      all[r].speed, r);
  return LAM_OK;
}

static lam_status gather_wishes(lam_pipeline *p, lam_group *g, wish mine) {
  wish *all = NULL;
  if (!g) return LAM_OK;
  LAM_TRY(lam_pipeline_alloc(p, (uint64_t)g->size, sizeof *all, &all));
  const lam_comm_op op = {.op = LAM_COMM_PIPELINE, .dtype = LAM_U8, .ndim = 1, .dims = {g->size}};
  LAM_TRY(lam_group_gather_rows(g, &op, &mine, sizeof mine, all));
  return compare_wishes(p, g, all);
}

/* Ranks that were asked for different things would wait for each other in a gather. */
static lam_status agree(lam_pipeline *p, const lam_pipeline_desc *d) {
  const wish mine = {d->split, d->split == LAM_SPLIT_AUTO ? d->edge_bytes_per_second : 0};
  lam_status status = gather_wishes(p, p->tensor, mine);
  if (status == LAM_OK) status = gather_wishes(p, p->group, mine);
  return status ? lam_pipeline_end_world(p, status) : LAM_OK;
}

/* -- deciding -- */

static int reason_without_measure(const lam_pipeline *p, const lam_pipeline_desc *desc) {
  if (!p->tensor) return LAM_EDGE_NO_TENSOR_GROUP;
  if (desc->split == LAM_SPLIT_NEVER) return LAM_EDGE_ASKED_WHOLE;
  if (desc->split == LAM_SPLIT_ALWAYS) return LAM_EDGE_ASKED_SPLIT;
  return desc->edge_bytes_per_second > 0 ? LAM_EDGE_WHOLE_FASTER : LAM_EDGE_SPEED_UNKNOWN;
}

static lam_status shape_form(lam_pipeline *p, const lam_edge_plan *plan, bool split, lam_form *f) {
  f->n_parts = split ? p->tensor->size : 1;
  f->part = split ? p->tensor->rank : 0;
  return lam_form_init(p, plan, f);
}

/* By the largest part's bytes, rank 0's, which all ranks know. */
static lam_status choose_form(lam_pipeline *p, const lam_pipeline_desc *desc, lam_edge_plan *plan,
                              int reason, double gather, lam_form *f) {
  const bool weigh = reason == LAM_EDGE_WHOLE_FASTER;
  LAM_TRY(shape_form(p, plan, false, f));
  f->reason = reason;
  if (weigh) {
    f->whole_seconds = (double)f->bytes / desc->edge_bytes_per_second;
    f->split_seconds = f->whole_seconds / p->tensor->size + gather;
    if (f->split_seconds < f->whole_seconds) f->reason = LAM_EDGE_SPLIT_FASTER;
  }
  const bool split = f->reason == LAM_EDGE_ASKED_SPLIT || f->reason == LAM_EDGE_SPLIT_FASTER;
  return split ? shape_form(p, plan, true, f) : LAM_OK;
}

lam_status lam_forms_choose(lam_pipeline *p, const lam_pipeline_desc *desc) {
  const int n = p->schedule->n_stages - 1, reason = reason_without_measure(p, desc);
  double *gather = NULL;
  if (p->tensor) LAM_TRY(agree(p, desc));
  LAM_TRY(lam_pipeline_alloc(p, (uint64_t)n + 1, sizeof *gather, &gather));
  if (reason == LAM_EDGE_WHOLE_FASTER) {
    LAM_TRY(time_edges(p, n, gather));
    LAM_TRY(largest(p, p->tensor, gather, n));
    LAM_TRY(largest(p, p->group, gather, n));
  }
  for (int e = 0; e < n; e++)
    for (int kind = 0; kind < 2; kind++)
      LAM_TRY(choose_form(p, desc, &p->edges[e], reason, gather[e], &p->edges[e].forms[kind]));
  return LAM_OK;
}

lam_status lam_pipeline_get_edge(const lam_pipeline *p, int32_t edge, int32_t kind,
                                 lam_edge_info *out) {
  if (!p) return lam_fail(LAM_INVALID_ARGUMENT, "lam_pipeline_get_edge: p is NULL");
  LAM_TRY(lam_struct_check("lam_pipeline_get_edge", "lam_edge_info", out, sizeof *out));
  if (kind != LAM_KIND_F && kind != LAM_KIND_I)
    return lam_fail(LAM_INVALID_ARGUMENT,
                    "lam_pipeline_get_edge: kind is %d, expected LAM_KIND_F or LAM_KIND_I", kind);
  for (int i = 0; i < p->n_ports; i++) {
    const lam_port *port = &p->ports[i];
    if (port->edge != edge || port->kind != kind) continue;
    const lam_form *f = lam_form_of(port->plan, kind);
    const bool here = port->peer < 0;
    *out =
        (lam_edge_info){.struct_size = out->struct_size,
                        .peer = port->peer,
                        .codec = here ? LAM_CODEC_NONE : (uint32_t)f->codec,
                        .parts = here ? 1 : (uint32_t)f->n_parts,
                        .depth = (uint32_t)port->depth,
                        .slot_bytes = port->plan->bytes,
                        .wire_bytes = here ? 0 : f->bytes,
                        .whole_seconds = f->whole_seconds,
                        .split_seconds = f->split_seconds,
                        .why = here ? "a hand-off: both stages are on this rank" : why[f->reason],
                        .path = here ? "local" : lam_channel_path(port->channel)};
    return LAM_OK;
  }
  return lam_fail(LAM_NOT_FOUND, "lam_pipeline_get_edge: edge %d has no end on rank %d for %s",
                  edge, p->rank, kind == LAM_KIND_F ? "activations" : "gradients");
}
