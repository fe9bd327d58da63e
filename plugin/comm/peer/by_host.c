/* by_host.c: operands on a device whose ranks do not read each other's memory: down to pinned memory,
 * over the engine, up again.
 *
 * f16, which no engine sums, travels as f32.
 * Invariant: one staging buffer for each rank, free again when a call returns: so each waits for the
 * stream, and none can be captured.
 * Leaves messages to transfer.c and channel.c, which take this way message by message. */
#include "plugin/comm/peer/peer.h"

/* -- staging -- */

lam_status lam_peer_pinned(lam_peer *p, uint64_t bytes, void **out) {
  if (bytes > p->pinned_bytes) {
    const uint64_t room = bytes > 2 * p->pinned_bytes ? bytes : 2 * p->pinned_bytes;
    if (p->pinned) p->device->peer->unpin(p->device_id, p->pinned);
    p->pinned = NULL;
    p->pinned_bytes = 0;
    LAM_TRY(lam_peer_pin(p->device, room, &p->pinned));
    p->pinned_bytes = room;
  }
  *out = p->pinned;
  return LAM_OK;
}

lam_status lam_peer_down(lam_group *g, const void *from, void *to, uint64_t bytes) {
  if (bytes) LAM_TRY(lam_device_read(g->device, from, to, bytes, g->stream));
  return lam_device_finish(g->device, g->stream);
}

lam_status lam_peer_up(lam_group *g, const void *from, void *to, uint64_t bytes) {
  if (bytes) LAM_TRY(lam_device_write(g->device, from, to, bytes, g->stream));
  return lam_device_finish(g->device, g->stream);
}

static lam_dtype travels_as(lam_dtype t) { return t == LAM_F16 ? LAM_F32 : t; }

static lam_status convert(const lam_group *g, const void *from, lam_dtype f, void *to, lam_dtype t,
                          int64_t n) {
  const lam_matrix x = {(void *)(uintptr_t)from, 1, n, n, 1, f, false};
  const lam_matrix y = {to, 1, n, n, 1, t, false};
  return n ? lam_device_copy(g->device, lam_context_workers(g->ctx), x, y, g->stream) : LAM_OK;
}

/* n elements of t, converted on the device on their way down, or up. */
static lam_status down_as(lam_group *g, const void *from, lam_dtype t, void *to, int64_t n) {
  const lam_dtype as = travels_as(t);
  const uint64_t bytes = (uint64_t)(n * lam_dtype_bytes(as));
  void *room = NULL;
  if (as == t) return lam_peer_down(g, from, to, bytes);
  LAM_TRY(lam_device_borrow(g->device, bytes, g->stream, &room));
  lam_status status = convert(g, from, t, room, as, n);
  if (status == LAM_OK) status = lam_peer_down(g, room, to, bytes);
  lam_device_give_back(g->device, room, g->stream);
  return status;
}

static lam_status up_as(lam_group *g, const void *from, void *to, lam_dtype t, int64_t n) {
  const lam_dtype as = travels_as(t);
  const uint64_t bytes = (uint64_t)(n * lam_dtype_bytes(as));
  void *room = NULL;
  if (as == t) return lam_peer_up(g, from, to, bytes);
  LAM_TRY(lam_device_borrow(g->device, bytes, g->stream, &room));
  lam_status status = lam_peer_up(g, from, room, bytes);
  if (status == LAM_OK) status = convert(g, room, as, to, t, n);
  lam_device_give_back(g->device, room, g->stream);
  return status;
}

/* -- collectives -- */

static lam_status sum_down(lam_group *g, const void *x, int64_t n, lam_dtype t, void **out) {
  const lam_dtype as = travels_as(t);
  LAM_TRY(lam_peer_pinned(g->peer, (uint64_t)(n * lam_dtype_bytes(as)) + 1, out));
  LAM_TRY(down_as(g, x, t, *out, n));
  return g->engine->all_reduce(g, *out, *out, n, as);
}

static lam_status all_reduce(lam_group *g, const void *x, void *y, int64_t n, lam_dtype t) {
  void *sum = NULL;
  LAM_TRY(sum_down(g, x, n, t, &sum));
  return up_as(g, sum, y, t, n);
}

static lam_status reduce(lam_group *g, const void *x, void *y, int64_t n, lam_dtype t, int root) {
  void *sum = NULL;
  LAM_TRY(sum_down(g, x, n, t, &sum));
  return g->rank == root ? up_as(g, sum, y, t, n) : LAM_OK;
}

static int64_t share_of(const lam_group *g, const lam_parts *p) {
  return p->outer * (p->first[g->rank + 1] - p->first[g->rank]) * p->inner;
}
static int64_t whole_of(const lam_group *g, const lam_parts *p) {
  return p->outer * p->first[g->size] * p->inner;
}

static lam_status staged(const lam_group *g, const lam_parts *p, char **out_mine,
                         char **out_whole) {
  const uint64_t each = (uint64_t)lam_dtype_bytes(p->dtype);
  const uint64_t whole = ((uint64_t)whole_of(g, p) * each + 63) / 64 * 64;
  void *room = NULL;
  LAM_TRY(lam_peer_pinned(g->peer, whole + (uint64_t)share_of(g, p) * each + 1, &room));
  *out_whole = room;
  *out_mine = (char *)room + whole;
  return LAM_OK;
}

static lam_status all_gather(lam_group *g, const lam_parts *p, const void *mine, void *whole) {
  char *from = NULL, *to = NULL;
  const uint64_t each = (uint64_t)lam_dtype_bytes(p->dtype);
  LAM_TRY(staged(g, p, &from, &to));
  LAM_TRY(lam_peer_down(g, mine, from, (uint64_t)share_of(g, p) * each));
  LAM_TRY(g->engine->all_gather(g, p, from, to));
  return lam_peer_up(g, to, whole, (uint64_t)whole_of(g, p) * each);
}

static lam_status reduce_scatter(lam_group *g, const lam_parts *p, const void *whole, void *mine) {
  char *from = NULL, *to = NULL;
  lam_parts as = *p;
  as.dtype = travels_as(p->dtype);
  LAM_TRY(staged(g, &as, &to, &from));
  LAM_TRY(down_as(g, whole, p->dtype, from, whole_of(g, p)));
  LAM_TRY(g->engine->reduce_scatter(g, &as, from, to));
  return up_as(g, to, mine, p->dtype, share_of(g, p));
}

/* All of it is the root's share. */
static lam_status broadcast(lam_group *g, const void *x, void *y, uint64_t bytes, int root) {
  int64_t first[LAM_GROUP_RANKS + 1];
  for (int r = 0; r <= g->size; r++) first[r] = r > root ? (int64_t)bytes : 0;
  const lam_parts parts = {.outer = 1, .inner = 1, .first = first, .dtype = LAM_U8};
  return all_gather(g, &parts, x, y);
}

/* -- partial sums: all of the sum comes to every rank, bias and rounding on the device -- */

/* Always in scratch of its own, in f32: the sum comes back there. */
static lam_status partial(lam_group *g, int64_t rows, int64_t cols, lam_sum *s) {
  const lam_matrix own = s->own;
  s->own = (lam_matrix){0};
  const lam_status status = lam_peer_partial(g, rows, cols, s);
  s->own = own;
  return status;
}

static lam_status sum_start(lam_group *g, lam_sum *s) {
  (void)g, (void)s;
  return LAM_OK;
}

static lam_status sum_finish(lam_group *g, lam_sum *s) {
  void *sum = NULL;
  const lam_matrix part = s->part;
  LAM_TRY(sum_down(g, part.data, part.rows * part.cols, LAM_F32, &sum));
  LAM_TRY(up_as(g, sum, part.data, LAM_F32, part.rows * part.cols));
  const lam_matrix mine = lam_matrix_rows(part, s->y_first, s->y.rows);
  LAM_TRY(lam_device_sum(g->device, lam_context_workers(g->ctx), &mine, 1, s->bias, s->residual,
                         s->y, g->stream));
  lam_peer_sum_drop(g, s);
  return LAM_OK;
}

const lam_engine lam_engine_by_host = {
    .name = "by host",
    .what = "down to the host, over the group's engine, up again",
    .prepare = lam_peer_prepare,
    .end = lam_peer_end,
    .leave = lam_peer_leave,
    .all_reduce = all_reduce,
    .all_gather = all_gather,
    .reduce_scatter = reduce_scatter,
    .broadcast = broadcast,
    .reduce = reduce,
    .partial = partial,
    .sum_start = sum_start,
    .sum_finish = sum_finish,
    .send = lam_peer_send,
    .recv = lam_peer_recv,
    .channel_open = lam_peer_channel_open,
    .channel_acquire = lam_peer_channel_acquire,
    .channel_push = lam_peer_channel_push,
    .channel_pull = lam_peer_channel_pull,
    .channel_release = lam_peer_channel_release,
    .channel_close = lam_peer_channel_close,
};
