/* meet.c: how the ranks of a group come by their communicators.
 *
 * Each tells the others its NCCL's version, its card and what it failed at; what is wrong with any of
 * them all find alike, before NCCL is asked. Rank 0's id goes the same way. Then the link of all is made,
 * and out of it one for each edge, in rounds in which every rank has one partner at most.
 * Invariant: all ranks make the same communicators in the same order, and each was used once before the
 * group is handed out: NCCL connects nothing later, while kernels run.
 * Leaves waiting to run.c. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "plugin/comm/nccl/nccl.h"

enum { CUDA = 2 /* kDLCUDA */ };

typedef struct row { /* what a rank tells the others */
  lam_status status;
  char why[320];
  lam_link_place place;
  uint64_t host; /* which machine NCCL takes this for */
  uint32_t is_adopted;
  unsigned char id[LAM_NCCL_ID_BYTES]; /* rank 0's */
  lam_pace_row pace;
} row;

/* ---- This rank --------------------------------------------------------------------------------- */

static lam_status make_own(lam_group *g) {
  const lam_device *d = NULL;
  LAM_TRY(lam_device_open(CUDA, &d));
  if (!d || !d->nccl) return lam_fail(LAM_UNAVAILABLE, "no device here uses NCCL");
  lam_nccl *n = calloc(1, sizeof *n);
  if (!n) return lam_fail(LAM_RESOURCE_EXHAUSTED, "no memory");
  *n = (lam_nccl){.g = g, .device = d, .process = getpid(), .deadline_ms = g->first_deadline_ms};
  pthread_mutex_init(&n->lock, NULL);
  g->nccl = n;
  return LAM_OK;
}

/* NCCL_HOSTID stands for a machine where it is set: that is how one card can have several ranks. */
static uint64_t host_id(void) {
  const char *given = getenv("NCCL_HOSTID");
  char text[256] = "";
  uint64_t hash = given != NULL;
  if (given)
    snprintf(text, sizeof text, "%s", given);
  else
    (void)gethostname(text, sizeof text - 1);
  for (const char *c = text; *c; c++) hash = lam_mix(hash, (uint64_t)(unsigned char)*c);
  return hash;
}

static lam_status look_at_card(const lam_nccl *n, row *r) {
  LAM_TRY(n->device->nccl->place(&r->place));
  lam_pace_row_fill(n->device, r->place.card, &r->pace);
  return LAM_OK;
}

/* gpu: as lam_group_desc has it. */
static lam_status find_place(const lam_nccl *n, uint32_t gpu, row *r) {
  int32_t was = 0;
  if (!gpu) return look_at_card(n, r);
  LAM_TRY(lam_device_enter(n->device, (int32_t)(gpu - 1), &was));
  const lam_status status = look_at_card(n, r);
  lam_device_leave(n->device, was);
  return status;
}

static lam_status fill_row(lam_group *g, uint32_t gpu, row *r) {
  LAM_TRY(make_own(g));
  LAM_TRY(find_place(g->nccl, gpu, r));
  g->nccl->device_id = r->place.device_id;
  r->host = host_id();
  return g->rank == 0 && !r->is_adopted ? g->nccl->device->nccl->make_id(r->id) : LAM_OK;
}

/* ---- All of them ------------------------------------------------------------------------------- */

static lam_status check_failures(const lam_group *g, const row *rows) {
  for (int r = 0; r < g->size; r++)
    if (rows[r].status != LAM_OK)
      return lam_fail(rows[r].status, "rank %d cannot use NCCL: %s", r, rows[r].why);
  return LAM_OK;
}

static const char *version_text(int v, char text[24]) {
  snprintf(text, 24, "%d.%d.%d", v / 10000, v / 100 % 100, v % 100);
  return text;
}

static lam_status check_versions(const lam_group *g, const row *rows) {
  char own[24], first[24];
  for (int r = 1; r < g->size; r++)
    if (rows[r].place.version != rows[0].place.version)
      return lam_fail(
          LAM_FAILED_PRECONDITION, "rank %d has NCCL %s, rank 0 %s: all ranks need the same one", r,
          version_text(rows[r].place.version, own), version_text(rows[0].place.version, first));
  return LAM_OK;
}

static lam_status check_adopted(const lam_group *g, const row *rows) {
  for (int r = 1; r < g->size; r++)
    if (rows[r].is_adopted != rows[0].is_adopted)
      return lam_fail(LAM_MISMATCH, "rank %d %s a communicator, rank 0 %s one", r,
                      rows[r].is_adopted ? "brings" : "asks for",
                      rows[0].is_adopted ? "brings" : "asks for");
  return LAM_OK;
}

static lam_status check_cards(const lam_group *g, const row *rows) {
  for (int r = 1; r < g->size; r++)
    for (int q = 0; q < r; q++)
      if (rows[q].host == rows[r].host && strcmp(rows[q].place.card, rows[r].place.card) == 0)
        return lam_fail(
            LAM_FAILED_PRECONDITION,
            "ranks %d and %d are on one GPU (%s), and NCCL wants one for each: give each "
            "rank its own device. For tests alone, processes can share one: set NCCL_HOSTID "
            "to another value in each; threads of one process can with the engine shm",
            q, r, rows[r].place.card);
  return LAM_OK;
}

static lam_status check_rows(const lam_group *g, const row *rows) {
  LAM_TRY(check_failures(g, rows));
  LAM_TRY(check_versions(g, rows));
  LAM_TRY(check_adopted(g, rows));
  return check_cards(g, rows);
}

/* Also where the own row failed: the others wait for it. */
static lam_status exchange(lam_group *g, void *comm, uint32_t gpu, row *rows) {
  row own = {.is_adopted = comm != NULL};
  const lam_comm_op op = {.op = LAM_COMM_NCCL, .dtype = LAM_U8, .ndim = 1, .dims = {g->size}};
  own.status = fill_row(g, gpu, &own);
  if (own.status != LAM_OK) snprintf(own.why, sizeof own.why, "%.300s", lam_last_error());
  LAM_TRY(lam_group_gather_rows(g, &op, &own, sizeof own, rows));
  return check_rows(g, rows);
}

/* ---- Links ------------------------------------------------------------------------------------- */

static lam_status open_link(lam_nccl *n, const lam_link_from *from, nccl_link *k) {
  LAM_TRY(n->device->nccl->open(from, &k->link));
  LAM_TRY(lam_nccl_settle(n, k));
  return from->of ? lam_nccl_settle(n, &n->all) : LAM_OK;
}

/* Round `round` of a tournament: everyone's partner, by the circle method; -1: none. */
static int partner(int rank, int size, int round) {
  const int seats = size + size % 2, last = seats - 1;
  int other = rank == last ? round : (2 * round - rank + 2 * last) % last;
  if (rank != last && other == rank) other = last;
  return other < size && rank < size ? other : -1;
}

static bool is_edge(const lam_group *g, int other) {
  const int apart = (other - g->rank + g->size) % g->size;
  return g->size <= NCCL_ALL_EDGES || apart == 1 || apart == g->size - 1;
}

static lam_status open_notes(lam_group *g, nccl_edge *e, int way) {
  const int from = way == NCCL_TO ? g->rank : e->peer, to = way == NCCL_TO ? e->peer : g->rank;
  const uint64_t key =
      lam_mix(lam_mix((uint64_t)g->handle, LAM_COMM_NCCL), (uint64_t)from << 32 | (uint32_t)to);
  LAM_TRY(g->engine->channel_open(g, e->peer, way == NCCL_TO, key, 2 * NCCL_BOXES,
                                  sizeof(nccl_note), &e->notes));
  e->notes->group = g;
  e->notes->way = g->engine;
  return LAM_OK;
}

/* One colour for each pair. All ranks take part in every split. */
static lam_status split_edge(lam_group *g, int other, int way) {
  lam_nccl *n = g->nccl;
  nccl_link none = {0};
  nccl_edge *e = NULL;
  if (other >= 0) {
    e = n->edges[other][way] = calloc(1, sizeof *e);
    if (!e) return lam_fail(LAM_RESOURCE_EXHAUSTED, "no memory");
    e->peer = other;
    LAM_TRY(open_notes(g, e, way));
  }
  const lam_link_from from = {.of = n->all.link,
                              .color = !e                ? -1
                                       : other < g->rank ? other
                                                         : g->rank,
                              .key = g->rank,
                              .ctas = NCCL_EDGE_CTAS};
  const lam_status status = open_link(n, &from, e ? &e->link : &none);
  n->device->nccl->close(none.link);
  return status;
}

/* In each round first from the lower rank of each pair to the higher, then back. */
static lam_status make_edges(lam_group *g) {
  const int seats = g->size + g->size % 2;
  for (int round = 0; round < seats - 1; round++) {
    int other = partner(g->rank, g->size, round);
    if (other >= 0 && !is_edge(g, other)) other = -1;
    LAM_TRY(split_edge(g, other, g->rank < other ? NCCL_TO : NCCL_FROM));
    LAM_TRY(split_edge(g, other, g->rank < other ? NCCL_FROM : NCCL_TO));
  }
  return LAM_OK;
}

/* None has a group, and may end it, before all do. */
static lam_status await_all(lam_group *g) {
  unsigned char own = 1, all[LAM_GROUP_RANKS];
  const lam_comm_op op = {.op = LAM_COMM_NCCL, .dtype = LAM_U8, .ndim = 1, .dims = {1}};
  return lam_group_gather_rows(g, &op, &own, 1, all);
}

static lam_status make_links(lam_group *g, void *comm, const row *rows) {
  lam_nccl *n = g->nccl;
  const lam_link_from from = {
      .id = comm ? NULL : rows[0].id,
      .comm = comm,
      .rank = g->rank,
      .size = g->size,
      .ctas = NCCL_ALL_CTAS};
  LAM_TRY(open_link(n, &from, &n->all));
  LAM_TRY(make_edges(g));
  LAM_TRY(lam_nccl_warm(g));
  LAM_TRY(await_all(g));
  return lam_nccl_watch(n);
}

static lam_status visit(lam_nccl *n, nccl_link *k, lam_status (*f)(lam_nccl *n, nccl_link *k)) {
  return k->link ? f(n, k) : LAM_OK;
}

lam_status lam_nccl_each_link(lam_nccl *n, lam_status (*f)(lam_nccl *n, nccl_link *k)) {
  for (int r = 0; r < n->g->size; r++)
    for (int way = 0; way < 2; way++)
      if (n->edges[r][way]) LAM_TRY(visit(n, &n->edges[r][way]->link, f));
  return visit(n, &n->all, f);
}

/* ---- Use once ---------------------------------------------------------------------------------- */

static lam_status use(lam_nccl *n, nccl_link *k, const lam_link_op *ops, int count) {
  uint64_t number = 0;
  LAM_TRY(lam_nccl_start(n, k, ops, count, (lam_link_after){NULL, 0}, &number)); /* after nothing */
  return lam_nccl_drain(n, k);
}

/* A byte to each rank and from each, as gathers by source have it. */
static lam_status use_steps(lam_group *g, char *scrap) {
  lam_link_op ops[2 * LAM_GROUP_RANKS];
  int n = 0;
  for (int step = 1; step < g->size; step++) {
    const int from = (g->rank + step) % g->size, to = (g->rank - step + g->size) % g->size;
    ops[n++] = (lam_link_op){
        .what = LAM_LINK_SEND, .peer = to, .x = scrap, .n = 1, .dtype = LAM_U8};
    ops[n++] = (lam_link_op){
        .what = LAM_LINK_RECV, .peer = from, .y = scrap + 64 + step, .n = 1, .dtype = LAM_U8};
  }
  return use(g->nccl, &g->nccl->all, ops, n);
}

/* A float of nobody's to everyone. */
static lam_status use_all(lam_group *g, float *scrap) {
  lam_nccl *n = g->nccl;
  const lam_link_op sum = {.what = LAM_LINK_SUM, .x = scrap, .y = scrap, .n = 1, .dtype = LAM_F32};
  LAM_TRY(use(n, &n->all, &sum, 1));
  LAM_TRY(use_steps(g, (char *)scrap));
  for (int i = 0; i < 2 * g->size; i++) {
    /* Edges in the order in which they were made: each pair at the same time. */
    const int seats = g->size + g->size % 2, round = i / 2;
    const int other = round < seats - 1 ? partner(g->rank, g->size, round) : -1;
    const int way = (g->rank < other) == (i % 2 == 0) ? NCCL_TO : NCCL_FROM;
    if (other < 0 || !n->edges[other][way]) continue;
    const lam_link_op op = {.what = way == NCCL_TO ? LAM_LINK_SEND : LAM_LINK_RECV,
                            .peer = other < g->rank ? 0 : 1,
                            .x = scrap,
                            .y = scrap,
                            .n = 4,
                            .dtype = LAM_U8};
    LAM_TRY(use(n, &n->edges[other][way]->link, &op, 1));
  }
  return LAM_OK;
}

/* The memory stays: to free some waits for the device, where by now a peer may be waited for. */
lam_status lam_nccl_warm(lam_group *g) {
  lam_nccl *n = g->nccl;
  if (!n->scrap)
    LAM_TRY(n->device->memory->alloc(lam_context_workers(g->ctx), NCCL_SCRAP_BYTES, &n->scrap));
  return use_all(g, n->scrap);
}

/* ---- Meeting ----------------------------------------------------------------------------------- */

static void set_pace(lam_group *g, const row *rows) {
  const lam_pace_row *of[LAM_GROUP_RANKS];
  for (int r = 0; r < g->size; r++) of[r] = &rows[r].pace;
  lam_pace_agree(of, g->size, true, &g->nccl->pace);
  g->pace = &g->nccl->pace;
}

static lam_status meet(lam_group *g, void *comm, uint32_t gpu, row *rows) {
  int32_t was = 0;
  LAM_TRY(exchange(g, comm, gpu, rows));
  set_pace(g, rows);
  LAM_TRY(lam_device_enter(g->nccl->device, g->nccl->device_id, &was));
  lam_status status = make_links(g, comm, rows);
  lam_device_leave(g->nccl->device, was);
  return status == LAM_OK ? LAM_OK : lam_group_end(g, "nccl", status); /* the others wait for it */
}

lam_status lam_nccl_meet(lam_group *g, void *comm, uint32_t gpu) {
  row *rows = calloc((size_t)g->size, sizeof *rows);
  if (!rows) return lam_fail(LAM_RESOURCE_EXHAUSTED, "nccl: no memory");
  const lam_status status = meet(g, comm, gpu, rows);
  free(rows);
  g->sequence = 0; /* the group's first operation is still to come */
  return status;
}
