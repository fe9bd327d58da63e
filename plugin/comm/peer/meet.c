/* meet.c: the group's first collective on a device: which way its data goes.
 *
 * Every rank makes its lanes and tells the others where they are, tries to reach all of theirs, and
 * hears from all whether they do.
 * Invariant: what one rank lacks fails on all of them alike; where one rank does not reach another's
 * memory, all go through the host, and all know why.
 * Leaves operations to collectives.c, sums.c and by_host.c. */
#include <stdio.h>

#include "plugin/comm/peer/peer.h"

typedef struct row { /* what a rank tells the others */
  lam_status status;
  int32_t n_lanes;
  int32_t refused; /* its lanes cannot be shown: `why` */
  peer_place lanes;
  lam_pace_row pace;
  char why[PEER_WHY];
} row;

typedef struct verdict {
  int32_t fails;
  char why[PEER_WHY];
} verdict;

static void keep_why(char why[PEER_WHY]) { snprintf(why, PEER_WHY, "%.150s", lam_last_error()); }

static lam_status fill_pace(const lam_group *g, row *r) {
  char card[48];
  LAM_TRY(g->device->peer->place(card, sizeof card));
  lam_pace_row_fill(g->device, card, &r->pace);
  return LAM_OK;
}

static lam_status make_row(const lam_group *g, row *r) {
  uint64_t lane_bytes = 0;
  void *lanes = NULL;
  lam_peer *p = g->peer;
  /* All ranks may be on this card: until the rows are here, nobody knows. */
  LAM_TRY(p->device->peer->lanes(g->size, &r->n_lanes, &lane_bytes));
  LAM_TRY(fill_pace(g, r));
  LAM_TRY(lam_peer_memory_new(p, (uint64_t)r->n_lanes * lane_bytes, &lanes));
  r->refused = lam_peer_place_of(p, lanes, &r->lanes) != LAM_OK;
  if (r->refused) keep_why(r->why);
  return LAM_OK;
}

/* Also where the own row failed: the others wait for it. */
static lam_status exchange(lam_group *g, row *rows) {
  row own = {0};
  const lam_comm_op op = {.op = LAM_COMM_PEERS, .dtype = LAM_U8, .ndim = 1, .dims = {g->size}};
  own.status = make_row(g, &own);
  if (own.status != LAM_OK) keep_why(own.why);
  LAM_TRY(lam_group_gather_rows(g, &op, &own, sizeof own, rows));
  for (int r = 0; r < g->size; r++) {
    if (rows[r].status == LAM_OK) continue;
    lam_peer_memory_drop(g->peer, own.lanes.there); /* which nobody looked for */
    return lam_fail(rows[r].status, "rank %d has no memory for its peers: %s", r, rows[r].why);
  }
  return LAM_OK;
}

static lam_status join(lam_group *g, const row *rows) {
  lam_peer *p = g->peer;
  p->alone = true;
  p->peers.n_lanes = rows[0].n_lanes;
  for (int r = 0; r < g->size; r++) {
    if (rows[r].n_lanes < p->peers.n_lanes) p->peers.n_lanes = rows[r].n_lanes;
    if (rows[r].refused) return lam_fail(LAM_UNIMPLEMENTED, "rank %d: %s", r, rows[r].why);
    const lam_status found = lam_peer_find(g, r, &rows[r].lanes, &p->peers.lanes[r]);
    if (found != LAM_OK) return lam_fail_within(found, "rank %d", g->rank);
    if (r != g->rank && g->engine->is_thread(g, r) && rows[r].lanes.device_id == p->device_id)
      p->alone = false;
  }
  return LAM_OK;
}

static void settle(lam_group *g, peer_way way) {
  peer_shown *own = peer_shown_of(g, g->rank);
  for (int r = 0; r < g->size; r++)
    atomic_store(&own->reaches[r], way == PEER_HOST ? PEER_NO : PEER_YES);
  atomic_store(&g->peer->way, way);
}

/* All have tried before one goes on. */
static lam_status confirm(lam_group *g, lam_status joined) {
  verdict own = {.fails = joined != LAM_OK}, all[LAM_PEERS];
  const lam_comm_op op = {.op = LAM_COMM_PEERS, .dtype = LAM_U8, .ndim = 1, .dims = {0}};
  if (own.fails) keep_why(own.why);
  LAM_TRY(lam_group_gather_rows(g, &op, &own, sizeof own, all));
  for (int r = 0; r < g->size; r++) {
    if (!all[r].fails) continue;
    snprintf(g->peer->why, PEER_WHY, "%s", all[r].why);
    settle(g, PEER_HOST);
    return LAM_OK;
  }
  settle(g, g->peer->among_processes ? PEER_IPC : PEER_THREADS);
  return LAM_OK;
}

/* What goes through the host waits for it. */
static void set_pace(lam_group *g, const row *rows) {
  lam_peer *p = g->peer;
  const lam_pace_row *of[LAM_PEERS] = {NULL};
  for (int r = 0; rows && r < g->size; r++) of[r] = &rows[r].pace;
  if (p->way != PEER_HOST)
    lam_pace_agree(of, g->size, false, &p->pace);
  else
    p->pace.why_not = "the group's data goes through the host, which waits for it";
  g->pace = &p->pace;
}

static lam_status meet_on_device(lam_group *g) {
  row rows[LAM_PEERS];
  LAM_TRY(exchange(g, rows));
  LAM_TRY(confirm(g, join(g, rows)));
  set_pace(g, rows);
  return LAM_OK;
}

static lam_status meet_on_host(lam_group *g, const char *why) {
  snprintf(g->peer->why, PEER_WHY, "%s", why);
  atomic_store(&g->peer->way, PEER_HOST);
  set_pace(g, NULL);
  return LAM_OK;
}

lam_status lam_peer_meet(lam_group *g) {
  if (!g->engine->shown) return meet_on_host(g, "the engine moves the host's memory only");
  if (g->size > LAM_PEERS) return meet_on_host(g, "so many ranks do not read each other's memory");
  return meet_on_device(g);
}
