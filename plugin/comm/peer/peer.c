/* peer.c: a rank's own part of a group on a device: made at its first operation there, asked about,
 * ended.
 * Invariant: what a rank made lives until its kernels have come to their end; what others read of it,
 * until they have left, too.
 * Leaves how ranks find the way to meet.c, operations to the files of their names. */
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

#include "plugin/comm/peer/peer.h"

bool lam_peer_takes(const lam_group *g) { return g->device && g->device->order; }

const lam_engine *lam_peer_cells(const lam_group *g) {
  const lam_peer *p = __atomic_load_n(&g->peer, __ATOMIC_ACQUIRE); /* poison: from any thread */
  return g->size > 1 && p && p->way == PEER_HOST ? &lam_engine_by_host : &lam_engine_peer;
}

/* -- making -- */

static bool is_among_processes(const lam_group *g) {
  for (int r = 0; r < g->size && g->engine->shown; r++)
    if (g->size > 1 && !g->engine->is_thread(g, r)) return true;
  return false;
}

static lam_status open_line(const lam_group *g, lam_peer *p) {
  const bool shown = g->size > 1 && g->size <= LAM_PEERS && g->engine->shown;
  return lam_peer_open(g->device, shown ? peer_shown_of(g, g->rank) : NULL, LAM_SHOWN_BYTES,
                       &p->line, &p->device_id);
}

/* From the device's thread. A process that ended after its rank had left is nobody's trouble. */
static void end_of_process(void *arg, int rank) {
  lam_group *g = arg;
  char text[LAM_MESSAGE_BYTES];
  if (g->engine->has_left(g, rank)) return;
  snprintf(text, sizeof text, "rank %d of %d: rank %d died", g->rank, g->size, rank);
  lam_group_poison(g, LAM_PEER_DEAD, text);
}

static lam_status watch_processes(lam_group *g) {
  int fds[LAM_PEERS];
  for (int r = 0; r < g->size; r++) fds[r] = g->engine->end_of_process(g, r);
  return g->device->peer->watch(fds, g->size, end_of_process, g, &g->peer->watch);
}

/* From here on processes find what this rank offers, and their end ends what waits here. */
static lam_status join_processes(lam_group *g) {
  if (!g->peer->among_processes || g->size > LAM_PEERS) return LAM_OK;
  LAM_TRY(watch_processes(g));
  return lam_peer_offer(g);
}

static lam_status make_own(lam_group *g) {
  lam_peer *p = calloc(1, sizeof *p);
  if (!p) return lam_fail(LAM_RESOURCE_EXHAUSTED, "no memory");
  p->device = g->device;
  p->process = getpid();
  p->peers = (lam_peers){.rank = g->rank, .size = g->size};
  p->among_processes = is_among_processes(g);
  const lam_status status = open_line(g, p);
  if (status != LAM_OK) {
    free(p);
    return status;
  }
  p->peers.line = p->line;
  __atomic_store_n(&g->peer, p, __ATOMIC_RELEASE); /* lam_group_poison may come from any thread */
  const lam_status joined = join_processes(g);
  if (joined != LAM_OK) lam_peer_leave(g);
  return joined;
}

lam_status lam_peer_of(lam_group *g, lam_peer **out) {
  if (!g->device->peer)
    return lam_fail(LAM_UNIMPLEMENTED, "the device %s has no way between ranks", g->device->name);
  if (!g->peer) LAM_TRY(make_own(g));
  *out = g->peer;
  if (g->peer->device == g->device) return LAM_OK;
  return lam_fail(LAM_INVALID_ARGUMENT, "the group works on %s, found tensors on %s",
                  g->peer->device->name, g->device->name);
}

/* -- before an operation -- */

/* Through the host, a call waits for the stream: which cannot be recorded. */
lam_status lam_peer_refuse_capture(const lam_group *g) {
  bool captured = false;
  LAM_TRY(lam_device_capturing(g->device, g->stream, &captured));
  if (!captured) return LAM_OK;
  return lam_fail(LAM_FAILED_PRECONDITION,
                  "the stream is captured, and this group's data goes through the host: %s",
                  g->peer->why[0] ? g->peer->why : "not all ranks have said yet what they reach");
}

lam_status lam_peer_begin(lam_group *g, lam_peer **out) {
  LAM_TRY(lam_peer_of(g, out));
  if ((*out)->way == PEER_UNSETTLED && (*out)->among_processes && g->size <= LAM_PEERS)
    lam_peer_try_offers(g);
  return (*out)->device->peer->check((*out)->line, true, g->stream);
}

lam_status lam_peer_prepare(lam_group *g) {
  lam_peer *p = NULL;
  LAM_TRY(lam_peer_begin(g, &p));
  if (p->way == PEER_UNSETTLED) {
    const uint64_t before = g->sequence;
    const lam_status status = lam_peer_meet(g);
    g->sequence = before; /* what is refused now was never announced */
    LAM_TRY(status);
  }
  LAM_TRY(p->way == PEER_HOST ? lam_peer_refuse_capture(g)
                              : p->device->peer->check(p->line, p->alone, g->stream));
  p->peers.deadline_ms = lam_peer_deadline(g);
  return LAM_OK;
}

/* -- questions -- */

bool lam_peer_queues(const lam_group *g) {
  if (!lam_peer_takes(g) || !g->device->peer) return false;
  const int way = g->peer ? g->peer->way : PEER_UNSETTLED;
  if (way != PEER_UNSETTLED) return way != PEER_HOST;
  return g->engine->shown && g->size <= LAM_PEERS && !is_among_processes(g);
}

const char *lam_peer_way(const lam_group *g, const char **out_why) {
  static const char *const names[] = {
      [PEER_THREADS] = "threads", [PEER_IPC] = "ipc", [PEER_HOST] = "host"};
  const int way = g->peer ? g->peer->way : PEER_UNSETTLED;
  *out_why = way == PEER_HOST ? g->peer->why : NULL;
  return g->engine->on_device ? g->engine->on_device->name : names[way];
}

/* -- the end -- */

void lam_peer_end(lam_group *g) {
  const lam_peer *p = __atomic_load_n(&g->peer, __ATOMIC_ACQUIRE);
  if (p) p->device->peer->end(p->line);
  if (!p || g->size < 2 || g->size > LAM_PEERS || !g->engine->shown) return;
  for (int r = 0; r < g->size; r++)
    __atomic_store_n(&peer_shown_of(g, r)->words[LAM_WORD_END], 1, __ATOMIC_RELEASE);
}

static void leave(lam_group *g, lam_peer *p) {
  p->device->peer->unwatch(p->watch);
  if (g->poison != LAM_OK)
    lam_peer_end(g); /* what waits there would only reach its deadline */
  else
    lam_peer_await_readers(g);
  for (int i = 0; i < PEER_SUMS; i++)
    if (p->chunks[i].data) lam_device_give_back(p->device, p->chunks[i].data, g->stream);
  if (p->receiving.scratch) lam_device_give_back(p->device, p->receiving.scratch, g->stream);
  p->device->peer->close(p->line);
  lam_peer_unmap_all(p);
  lam_peer_memory_leave(g);
  lam_peer_edges_free(p);
  if (p->pinned) p->device->peer->unpin(p->device_id, p->pinned);
}

void lam_peer_leave(lam_group *g) {
  lam_peer *p = g->peer;
  if (!p) return;
  if (p->process == getpid()) leave(g, p);
  g->peer = NULL;
  if (g->pace == &p->pace) g->pace = NULL;
  free(p);
}

/* What the engine of a group does with operands that lie on a device. */
const lam_engine lam_engine_peer = {
    .name = "peer pointers",
    .what = "ranks read each other's device memory",
    .prepare = lam_peer_prepare,
    .end = lam_peer_end,
    .leave = lam_peer_leave,
    .all_reduce = lam_peer_all_reduce,
    .all_gather = lam_peer_all_gather,
    .gather_start = lam_peer_gather_start,
    .gather_wait = lam_peer_gather_wait,
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
