/* peer.c: how ranks on a device come to read each other's memory, and how that ends.
 *
 * At a group's first operation on a device every rank makes its lanes, tells the others where they
 * are in a gather of rows, and takes part in one record of all, which rank 0 made.
 * Invariant: what one rank lacks fails on all of them alike; the memory of all ranks lives until the
 * last of them has left the group and the card has come to the end of its kernels.
 * Leaves operations to collectives.c, sums.c and boxes.c. */
#include <stdio.h>
#include <stdlib.h>

#include "plugin/comm/peer/peer.h"

/* ---- This rank's own --------------------------------------------------------------------------- */

bool lam_peer_takes(const lam_group *g) { return g->device && g->device->order; }

static lam_status check_engine(const lam_group *g) {
  if (!g->device->peer)
    return lam_fail(LAM_UNIMPLEMENTED, "the device %s has no way between ranks", g->device->name);
  if (!g->engine->agree || !g->engine->is_thread)
    return lam_fail(LAM_UNIMPLEMENTED,
                    "operands lie on %s, and the engine %s moves the host's memory only",
                    g->device->name, g->engine->name);
  if (g->size > LAM_PEERS)
    return lam_fail(LAM_UNIMPLEMENTED, "%d ranks; on %s a group has %d at most", g->size,
                    g->device->name, LAM_PEERS);
  return LAM_OK;
}

static lam_status check_thread(const lam_group *g, int rank) {
  if (g->engine->is_thread(g, rank)) return LAM_OK;
  return lam_fail(LAM_UNIMPLEMENTED,
                  "operands lie on %s, and rank %d is another process: between processes they will "
                  "go by CUDA IPC or NCCL, which this build has not; ranks that are threads of one "
                  "process can",
                  g->device->name, rank);
}

static lam_status make_own(lam_group *g) {
  lam_peer *p = calloc(1, sizeof *p);
  if (!p) return lam_fail(LAM_RESOURCE_EXHAUSTED, "no memory");
  p->device = g->device;
  p->peers = (lam_peers){.rank = g->rank, .size = g->size};
  const lam_status status = lam_peer_open(g->device, &p->line, &p->device_id);
  if (status != LAM_OK) {
    free(p);
    return status;
  }
  p->peers.line = p->line;
  __atomic_store_n(&g->peer, p, __ATOMIC_RELEASE); /* lam_group_poison may come from any thread */
  return LAM_OK;
}

lam_status lam_peer_of(lam_group *g, lam_peer **out) {
  LAM_TRY(check_engine(g));
  if (!g->peer) LAM_TRY(make_own(g));
  *out = g->peer;
  if (g->peer->device == g->device) return LAM_OK;
  return lam_fail(LAM_INVALID_ARGUMENT, "the group works on %s, found tensors on %s",
                  g->peer->device->name, g->device->name);
}

/* ---- All ranks' -------------------------------------------------------------------------------- */

typedef struct row { /* what a rank tells the others */
  lam_status status;
  int32_t device_id, n_lanes;
  char why[160];
  lam_peer_line *line;
  void *lanes;
  peer_shared *shared; /* rank 0's */
} row;

static lam_status make_row(const lam_group *g, row *r) {
  uint64_t lane_bytes = 0;
  const lam_peer *p = g->peer;
  r->line = p->line;
  r->device_id = p->device_id;
  if (g->rank == 0 && !(r->shared = calloc(1, sizeof *r->shared)))
    return lam_fail(LAM_RESOURCE_EXHAUSTED, "no memory");
  if (r->shared) atomic_store(&r->shared->users, g->size);
  /* All ranks may be on this card: until the rows are here, nobody knows. */
  LAM_TRY(p->device->peer->lanes(g->size, &r->n_lanes, &lane_bytes));
  return lam_peer_alloc(p->device, (uint64_t)r->n_lanes * lane_bytes, &r->lanes);
}

/* Also where the own row failed: the others wait for it. */
static lam_status exchange(lam_group *g, row *rows) {
  row own = {0};
  const lam_comm_op op = {.op = LAM_COMM_PEERS, .dtype = LAM_U8, .ndim = 1, .dims = {g->size}};
  own.status = make_row(g, &own);
  if (own.status != LAM_OK) {
    snprintf(own.why, sizeof own.why, "%.150s", lam_last_error());
    free(own.shared);
    own.shared = NULL;
  }
  const lam_status status = lam_group_gather_rows(g, &op, &own, sizeof own, rows);
  if (status == LAM_OK) return LAM_OK;
  if (own.lanes) g->peer->device->peer->free(own.device_id, own.lanes);
  free(own.shared);
  return status;
}

static lam_status check_rows(const lam_group *g, const row *rows) {
  for (int r = 0; r < g->size; r++)
    if (rows[r].status != LAM_OK)
      return lam_fail(rows[r].status, "rank %d has no memory for its peers: %s", r, rows[r].why);
  return LAM_OK;
}

static lam_status join_shared(lam_group *g, const row *rows) {
  lam_peer *p = g->peer;
  peer_shared *s = rows[0].shared;
  lam_status status = LAM_OK;
  if (g->rank == 0) {
    s->device = p->device;
    s->size = g->size;
    for (int r = 0; r < g->size; r++) {
      s->of[r].line = rows[r].line;
      s->of[r].lanes = rows[r].lanes;
      s->of[r].device_id = rows[r].device_id;
    }
  }
  p->alone = true;
  p->peers.n_lanes = rows[0].n_lanes;
  for (int r = 0; r < g->size; r++) {
    p->peers.lanes[r] = rows[r].lanes;
    if (rows[r].n_lanes < p->peers.n_lanes) p->peers.n_lanes = rows[r].n_lanes;
    if (r != g->rank && rows[r].device_id == p->device_id) p->alone = false;
    if (status == LAM_OK) status = lam_peer_reach(p->device, rows[r].device_id);
  }
  p->shared = s;
  return status;
}

static void drop_rows(const lam_group *g, const row *rows) {
  const row *own = &rows[g->rank];
  if (own->lanes) g->peer->device->peer->free(own->device_id, own->lanes);
  if (g->rank == 0) free(own->shared);
}

/* All have taken part before one goes on; and a card that reaches not all others fails on all. */
static lam_status confirm(lam_group *g, lam_status joined) {
  unsigned char failed = joined != LAM_OK, all[LAM_PEERS];
  char why[LAM_MESSAGE_BYTES] = "";
  const lam_comm_op op = {.op = LAM_COMM_PEERS, .dtype = LAM_U8, .ndim = 1, .dims = {0}};
  if (failed) snprintf(why, sizeof why, "%s", lam_last_error());
  LAM_TRY(lam_group_gather_rows(g, &op, &failed, 1, all));
  if (failed) return lam_group_end(g, NULL, lam_fail(joined, "%s", why));
  for (int r = 0; r < g->size; r++)
    if (all[r])
      return lam_fail(LAM_UNIMPLEMENTED, "rank %d does not reach the memory of its peers", r);
  return LAM_OK;
}

static lam_status meet(lam_group *g) {
  row rows[LAM_PEERS];
  for (int r = 0; r < g->size; r++) LAM_TRY(check_thread(g, r));
  LAM_TRY(exchange(g, rows));
  const lam_status status = check_rows(g, rows);
  if (status != LAM_OK) {
    drop_rows(g, rows);
    return status;
  }
  return confirm(g, join_shared(g, rows));
}

lam_status lam_peer_prepare(lam_group *g) {
  lam_peer *p = NULL;
  LAM_TRY(lam_peer_of(g, &p));
  LAM_TRY(p->device->peer->check(p->line, true, g->stream));
  if (!p->shared) {
    const uint64_t before = g->sequence;
    const lam_status status = meet(g);
    g->sequence = before; /* what is refused now was never announced */
    LAM_TRY(status);
  }
  LAM_TRY(p->device->peer->check(p->line, p->alone, g->stream));
  p->peers.deadline_ms = lam_peer_deadline(g);
  return LAM_OK;
}

bool lam_peer_queues(const lam_group *g) {
  if (!lam_peer_takes(g) || check_engine(g) != LAM_OK) return false;
  for (int r = 0; r < g->size; r++)
    if (check_thread(g, r) != LAM_OK) return false;
  return true;
}

/* ---- The end ----------------------------------------------------------------------------------- */

void lam_peer_end(lam_group *g) {
  const lam_peer *p = __atomic_load_n(&g->peer, __ATOMIC_ACQUIRE);
  if (!p) return;
  p->device->peer->end(p->line);
  for (int r = 0; p->shared && r < p->shared->size; r++)
    p->device->peer->end(p->shared->of[r].line);
}

static void close_shared(peer_shared *s) {
  if (atomic_fetch_sub(&s->users, 1) > 1) return;
  for (int r = 0; r < s->size; r++) {
    s->device->peer->close(s->of[r].line);
    s->device->peer->free(s->of[r].device_id, s->of[r].lanes);
  }
  free(s);
}

void lam_peer_leave(lam_group *g) {
  lam_peer *p = g->peer;
  if (g->poison != LAM_OK) lam_peer_end(g); /* what waits there would only reach its deadline */
  lam_peer_edges_leave(g); /* also where a peer sent what this rank never looked for */
  if (!p) return;
  for (int i = 0; i < PEER_SUMS; i++)
    if (p->chunks[i].data) lam_device_give_back(p->device, p->chunks[i].data, g->stream);
  if (p->shared)
    close_shared(p->shared);
  else
    p->device->peer->close(p->line);
  g->peer = NULL;
  free(p);
}

/* What the engine of a group does with operands that lie on a device. */
const lam_engine lam_engine_peer = {
    .name = "peer pointers",
    .what = "ranks that are threads of one process read each other's device memory",
    .prepare = lam_peer_prepare,
    .end = lam_peer_end,
    .leave = lam_peer_leave,
    .all_reduce = lam_peer_all_reduce,
    .all_gather = lam_peer_all_gather,
    .reduce_scatter = lam_peer_reduce_scatter,
    .broadcast = lam_peer_broadcast,
    .reduce = lam_peer_reduce,
    .partial = lam_peer_partial,
    .sum_start = lam_peer_sum_start,
    .sum_finish = lam_peer_sum_finish,
    .send = lam_peer_send,
    .recv = lam_peer_recv,
    .channel_open = lam_peer_channel_open,
    .channel_acquire = lam_peer_channel_acquire,
    .channel_push = lam_peer_channel_push,
    .channel_pull = lam_peer_channel_pull,
    .channel_release = lam_peer_channel_release,
    .channel_close = lam_peer_channel_close,
};
