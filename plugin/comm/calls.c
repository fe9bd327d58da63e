/* calls.c: the wrappers that operators and pipelines call: each announces its operation, runs
 * the engine's cell, and after a failure ends the group's world and keeps the message.
 *
 * Invariant: what is refused before it is announced (arguments, a missing cell) leaves the group
 * as it was; whatever fails later poisons it, and every later call gets the same status and
 * message. A group of one rank copies and asks no engine. Cells that an engine leaves out are
 * made from its others here: broadcast, reduce, partial sums. Where operands lie on a device that
 * queues its work, the engine announces, and the cells of its own table for that, or of peer/, move
 * them. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "plugin/comm/comm.h"

/* ---- Failing --------------------------------------------------------------------------------- */

void lam_group_keep(lam_group *g, lam_status status) {
  g->poison = status;
  snprintf(g->error, sizeof g->error, "%s", lam_last_error());
}

const lam_engine *lam_group_on_device(const lam_group *g) {
  return g->engine->on_device ? g->engine->on_device : lam_peer_cells(g);
}

/* Said before it is done: peers that see their device let go then know why. */
lam_status lam_group_end(lam_group *g, const char *doing, lam_status status) {
  const lam_status told =
      g->engine->check ? g->engine->check(g) : LAM_OK; /* another was first: its words */
  if (told == LAM_OK && doing && status != LAM_MISMATCH)
    (void)lam_fail_within(status, "%s", doing); /* a mismatch names both sides itself */
  lam_group_keep(g, told != LAM_OK ? told : status);
  if (told == LAM_OK) g->engine->poison(g, status, g->error);
  lam_group_on_device(g)->end(g);
  return lam_fail(g->poison, "%s", g->error);
}

static lam_status poisoned(const lam_group *g) { return lam_fail(g->poison, "%s", g->error); }

static lam_status missing(const lam_group *g, const char *what) {
  return lam_fail(LAM_UNIMPLEMENTED, "%s: the engine %s does not have it", what, g->engine->name);
}

bool lam_status_ends_group(lam_status status) {
  return status != LAM_OK && status != LAM_INVALID_ARGUMENT && status != LAM_FAILED_PRECONDITION &&
         status != LAM_WOULD_BLOCK;
}

static lam_status end_unless_refused(lam_group *g, const char *doing, lam_status status) {
  return lam_status_ends_group(status) ? lam_group_end(g, doing, status) : status;
}

/* Whose cells move the present call's operands. */
static const lam_engine *way(const lam_group *g) {
  return lam_peer_takes(g) ? lam_group_on_device(g) : g->engine;
}

/* Refused where this device or these ranks cannot; ended where a kernel of an earlier operation
 * found no peer. */
static lam_status prepare(lam_group *g, const lam_comm_op *op) {
  if (!lam_peer_takes(g)) return LAM_OK;
  const lam_status status = lam_group_on_device(g)->prepare(g);
  if (status == LAM_OK || g->poison != LAM_OK) return status;
  return status == LAM_PEER_STALLED ? lam_group_end(g, lam_comm_op_name(op->op), status)
                                    : lam_fail_within(status, "%s", lam_comm_op_name(op->op));
}

/* Ranks that capture and ranks that run now would wait for each other for ever. */
static lam_status say_captured(const lam_group *g, lam_comm_op *op) {
  bool captured = false;
  if (lam_peer_takes(g)) LAM_TRY(lam_device_capturing(g->device, g->stream, &captured));
  op->captured = captured;
  return LAM_OK;
}

static lam_status announce(lam_group *g, const lam_comm_op *op) {
  lam_comm_op numbered = *op;
  if (g->poison != LAM_OK) return poisoned(g);
  LAM_TRY(prepare(g, op));
  numbered.sequence = g->sequence + 1;
  LAM_TRY(say_captured(g, &numbered));
  lam_status status = g->engine->begin(g, &numbered);
  if (status != LAM_OK) return end_unless_refused(g, lam_comm_op_name(op->op), status);
  g->sequence++;
  if (!lam_peer_takes(g) || way(g) == &lam_engine_by_host) return LAM_OK; /* compared with the data */
  status = g->engine->agree(g);
  return status == LAM_OK ? LAM_OK : lam_group_end(g, lam_comm_op_name(op->op), status);
}

static lam_status done(lam_group *g, const lam_comm_op *op, lam_status status) {
  return status == LAM_OK ? LAM_OK : lam_group_end(g, lam_comm_op_name(op->op), status);
}

lam_status lam_group_settle(lam_group *g) {
  const lam_comm_op op = {.op = LAM_COMM_PEERS};
  if (g->poison != LAM_OK) return poisoned(g);
  return g->size > 1 ? prepare(g, &op) : LAM_OK;
}

/* ---- Collectives ----------------------------------------------------------------------------- */

static lam_status check_sum(const lam_group *g, const lam_comm_op *op, lam_dtype t) {
  if (lam_peer_takes(g)) {
    if (t == LAM_F32 || t == LAM_BF16 || t == LAM_F16) return LAM_OK;
    return lam_fail(LAM_UNIMPLEMENTED, "%s: %s cannot be summed on %s, only f32, bf16 and f16",
                    lam_comm_op_name(op->op), lam_dtype_name(t), g->device->name);
  }
  if (lam_add_supported(t)) return LAM_OK;
  return lam_fail(LAM_UNIMPLEMENTED,
                  "%s: %s cannot be summed here, only f32, bf16, f64, i32 and i64",
                  lam_comm_op_name(op->op), lam_dtype_name(t));
}

static lam_status check_root(const lam_group *g, const lam_comm_op *op, int root) {
  if (root >= 0 && root < g->size) return LAM_OK;
  return lam_fail(LAM_INVALID_ARGUMENT, "%s: root is %d, expected 0 to %d",
                  lam_comm_op_name(op->op), root, g->size - 1);
}

static lam_status copy_queued(const lam_group *g, const void *from, void *to, uint64_t bytes) {
  const int64_t n = (int64_t)bytes;
  const lam_matrix x = {(void *)(uintptr_t)from, 1, n, n, 1, LAM_U8, false};
  const lam_matrix y = {to, 1, n, n, 1, LAM_U8, false};
  return lam_device_copy(g->device, lam_context_workers(g->ctx), x, y, g->stream);
}

static lam_status alone(const lam_group *g, const void *from, void *to, uint64_t bytes) {
  if (g->poison != LAM_OK) return poisoned(g);
  if (from == to || bytes == 0) return LAM_OK;
  if (lam_peer_takes(g)) return copy_queued(g, from, to, bytes);
  memcpy(to, from, bytes);
  return LAM_OK;
}

static uint64_t whole_bytes(const lam_group *g, const lam_parts *p) {
  return (uint64_t)(p->outer * p->first[g->size] * p->inner * lam_dtype_bytes(p->dtype));
}

lam_status lam_group_all_reduce(lam_group *g, const lam_comm_op *op, const void *x, void *y,
                                int64_t n, lam_dtype t) {
  LAM_TRY(check_sum(g, op, t));
  if (g->size == 1) return alone(g, x, y, (uint64_t)(n * lam_dtype_bytes(t)));
  LAM_TRY(announce(g, op));
  return done(g, op, way(g)->all_reduce(g, x, y, n, t));
}

lam_status lam_group_all_gather(lam_group *g, const lam_comm_op *op, const lam_parts *p,
                                const void *mine, void *whole) {
  if (g->size == 1) return alone(g, mine, whole, whole_bytes(g, p));
  LAM_TRY(announce(g, op));
  return done(g, op, way(g)->all_gather(g, p, mine, whole));
}

/* By source, engines leave the own share to be copied. */
static lam_status copy_own(const lam_group *g, const lam_parts *p, const void *mine, void *whole) {
  const int64_t each = p->inner * lam_dtype_bytes(p->dtype);
  const int64_t first = p->first[g->rank] * each, bytes = p->first[g->rank + 1] * each - first;
  return bytes ? copy_queued(g, mine, (char *)whole + first, (uint64_t)bytes) : LAM_OK;
}

static bool starts_gathers(const lam_group *g, const lam_parts *p) {
  return lam_peer_takes(g) && way(g)->gather_start && p->outer == 1;
}

lam_status lam_group_gather_start(lam_group *g, const lam_comm_op *op, const lam_parts *p,
                                  const void *mine, void *whole, lam_gather *x) {
  x->is_aside = false;
  x->waited = 0;
  if (g->size == 1) return alone(g, mine, whole, whole_bytes(g, p));
  LAM_TRY(announce(g, op));
  if (!starts_gathers(g, p)) return done(g, op, way(g)->all_gather(g, p, mine, whole));
  lam_status status = way(g)->gather_start(g, p, mine, whole, x);
  if (status == LAM_OK && x->is_aside && x->by_source) status = copy_own(g, p, mine, whole);
  return done(g, op, status);
}

static lam_status wait_steps(lam_group *g, lam_gather *x, int steps) {
  lam_status status = LAM_OK;
  while (x->is_aside && x->waited < steps && status == LAM_OK)
    status = way(g)->gather_wait(g, x, ++x->waited);
  return status == LAM_OK ? LAM_OK : lam_group_end(g, "all_gather", status);
}

lam_status lam_group_gather_wait(lam_group *g, lam_gather *x, int rank) {
  return wait_steps(g, x, x->by_source ? (rank - g->rank + g->size) % g->size : 1);
}

lam_status lam_group_gather_finish(lam_group *g, lam_gather *x) {
  return wait_steps(g, x, x->by_source ? g->size - 1 : 1);
}

/* Rows lie in the host's memory, wherever the present call's operands do. */
lam_status lam_group_gather_rows(lam_group *g, const lam_comm_op *op, const void *own,
                                 uint64_t bytes, void *rows) {
  int64_t first[LAM_GROUP_RANKS + 1];
  const lam_device *device = g->device;
  for (int r = 0; r <= g->size; r++) first[r] = r;
  const lam_parts parts = {.outer = 1, .inner = (int64_t)bytes, .first = first, .dtype = LAM_U8};
  g->device = NULL;
  const lam_status status = lam_group_all_gather(g, op, &parts, own, rows);
  g->device = device;
  return status;
}

lam_status lam_group_reduce_scatter(lam_group *g, const lam_comm_op *op, const lam_parts *p,
                                    const void *whole, void *mine) {
  LAM_TRY(check_sum(g, op, p->dtype));
  if (g->size == 1) return alone(g, whole, mine, whole_bytes(g, p));
  LAM_TRY(announce(g, op));
  return done(g, op, way(g)->reduce_scatter(g, p, whole, mine));
}

/* All of it is the root's share, which an all_gather takes from memory that it does not write. */
static lam_status broadcast_by_gather(lam_group *g, const void *x, void *y, uint64_t bytes,
                                      int root) {
  int64_t first[LAM_GROUP_RANKS + 1];
  for (int r = 0; r <= g->size; r++) first[r] = r > root ? (int64_t)bytes : 0;
  const lam_parts parts = {.outer = 1, .inner = 1, .first = first, .dtype = LAM_U8};
  if (x != y || g->rank != root) return g->engine->all_gather(g, &parts, x, y);
  lam_scratch scratch;
  LAM_TRY(lam_scratch_open(g->ctx, NULL, 0, bytes + 64, &scratch));
  void *mine = lam_scratch_take(&scratch, bytes);
  memcpy(mine, x, bytes);
  const lam_status status = g->engine->all_gather(g, &parts, mine, y);
  lam_scratch_close(&scratch);
  return status;
}

lam_status lam_group_broadcast(lam_group *g, const lam_comm_op *op, const void *x, void *y,
                               uint64_t bytes, int root) {
  LAM_TRY(check_root(g, op, root));
  if (g->size == 1) return alone(g, x, y, bytes);
  LAM_TRY(announce(g, op));
  return done(g, op,
              (way(g)->broadcast ? way(g)->broadcast : broadcast_by_gather)(g, x, y, bytes, root));
}

static lam_status reduce_by_all_reduce(lam_group *g, const void *x, void *y, int64_t n, lam_dtype t,
                                       int root) {
  const uint64_t bytes = (uint64_t)(n * lam_dtype_bytes(t));
  if (g->rank == root) return g->engine->all_reduce(g, x, y, n, t);
  lam_scratch scratch;
  LAM_TRY(lam_scratch_open(g->ctx, NULL, 0, bytes + 64, &scratch));
  const lam_status status = g->engine->all_reduce(g, x, lam_scratch_take(&scratch, bytes), n, t);
  lam_scratch_close(&scratch);
  return status;
}

lam_status lam_group_reduce(lam_group *g, const lam_comm_op *op, const void *x, void *y, int64_t n,
                            lam_dtype t, int root) {
  LAM_TRY(check_sum(g, op, t));
  LAM_TRY(check_root(g, op, root));
  if (g->size == 1) return alone(g, x, y, (uint64_t)(n * lam_dtype_bytes(t)));
  LAM_TRY(announce(g, op));
  return done(g, op,
              (way(g)->reduce ? way(g)->reduce : reduce_by_all_reduce)(g, x, y, n, t, root));
}

/* ---- Partial sums ---------------------------------------------------------------------------- */

/* Where the engine has no memory for them (or there is one rank): the context's, summed by
 * all_reduce when they are finished. */
enum { OWN_SUMS = 4 };
struct lam_own_sums {
  struct {
    void *data;
    uint64_t bytes;
  } slots[OWN_SUMS];
  uint32_t taken, finished;
};

static bool has_own_sums(const lam_group *g) {
  return !lam_peer_takes(g) && (g->size == 1 || !g->engine->partial);
}

static lam_status own_partial(lam_group *g, int64_t rows, int64_t cols, lam_sum *s) {
  const uint64_t bytes = (uint64_t)(rows * cols) * sizeof(float);
  if (!g->own_sums) g->own_sums = calloc(1, sizeof *g->own_sums);
  if (!g->own_sums) return lam_fail(LAM_RESOURCE_EXHAUSTED, "partial sums: no memory");
  if (g->own_sums->taken - g->own_sums->finished >= OWN_SUMS)
    return lam_fail(LAM_FAILED_PRECONDITION,
                    "partial sums: %d chunks are under way, finish one first", OWN_SUMS);
  s->slot = (int)(g->own_sums->taken % OWN_SUMS);
  void **data = &g->own_sums->slots[s->slot].data;
  uint64_t *room = &g->own_sums->slots[s->slot].bytes;
  if (bytes > *room) {
    lam_context_free(g->ctx, *data, *room);
    *data = lam_context_alloc(g->ctx, bytes);
    *room = *data ? bytes : 0;
    if (!*data)
      return lam_fail(LAM_RESOURCE_EXHAUSTED, "partial sums: no memory for %llu bytes",
                      (unsigned long long)bytes);
  }
  s->part = (lam_matrix){.data = *data,
                         .rows = rows,
                         .cols = cols,
                         .row_stride = cols,
                         .col_stride = 1,
                         .dtype = LAM_F32};
  g->own_sums->taken++;
  return LAM_OK;
}

static lam_status own_finish(lam_group *g, lam_sum *s) {
  const lam_matrix part = s->part;
  if (g->size > 1)
    LAM_TRY(g->engine->all_reduce(g, part.data, part.data, part.rows * part.cols, LAM_F32));
  const lam_matrix mine = lam_matrix_rows(part, s->y_first, s->y.rows);
  LAM_TRY(lam_device_sum(&lam_device_cpu, lam_context_workers(g->ctx), &mine, 1, s->bias,
                         s->residual, s->y, NULL));
  g->own_sums->finished++;
  return LAM_OK;
}

void lam_group_sums_free(lam_group *g) {
  if (!g->own_sums) return;
  for (int i = 0; i < OWN_SUMS; i++)
    lam_context_free(g->ctx, g->own_sums->slots[i].data, g->own_sums->slots[i].bytes);
  free(g->own_sums);
}

lam_status lam_group_begin_sums(lam_group *g, const lam_comm_op *op) {
  if (g->size > 1) return announce(g, op);
  return g->poison == LAM_OK ? LAM_OK : poisoned(g);
}

lam_status lam_group_partial(lam_group *g, int64_t rows, int64_t cols, lam_sum *s) {
  if (g->poison != LAM_OK) return poisoned(g);
  return end_unless_refused(g, "partial sums",
                            (has_own_sums(g) ? own_partial : way(g)->partial)(g, rows, cols, s));
}

lam_status lam_group_sum_start(lam_group *g, lam_sum *s) {
  if (g->poison != LAM_OK) return poisoned(g);
  return has_own_sums(g) ? LAM_OK
                         : end_unless_refused(g, "partial sums", way(g)->sum_start(g, s));
}

static lam_status norm_of_sum(const lam_group *g, const lam_sum *s) {
  const lam_device *d = g->device ? g->device : &lam_device_cpu;
  if (!lam_matrix_here(s->gain) || s->is_normed) return LAM_OK;
  return lam_device_rmsnorm(d, lam_context_workers(g->ctx), s->y, s->gain, s->eps, s->normed,
                            g->stream);
}

lam_status lam_group_sum_finish(lam_group *g, lam_sum *s) {
  if (g->poison != LAM_OK) return poisoned(g);
  lam_status status = (has_own_sums(g) ? own_finish : way(g)->sum_finish)(g, s);
  if (status == LAM_OK) status = norm_of_sum(g, s);
  return status == LAM_OK ? LAM_OK : lam_group_end(g, "partial sums", status);
}

/* ---- Transfers ------------------------------------------------------------------------------- */

static lam_status check_peer(const lam_group *g, const char *what, int peer, int kind) {
  if (g->poison != LAM_OK) return poisoned(g);
  if (peer < 0 || peer >= g->size || peer == g->rank)
    return lam_fail(LAM_INVALID_ARGUMENT, "%s: peer is %d, expected another of the ranks 0 to %d",
                    what, peer, g->size - 1);
  if (kind < 0 || kind > 1)
    return lam_fail(LAM_INVALID_ARGUMENT, "%s: kind is %d, expected 0 (activation) or 1 (gradient)",
                    what, kind);
  return LAM_OK;
}

lam_status lam_group_send(lam_group *g, int peer, int kind, const lam_wire *header,
                          const void *data) {
  LAM_TRY(check_peer(g, "send", peer, kind));
  if (!g->engine->send) return missing(g, "send");
  return end_unless_refused(g, "send", way(g)->send(g, peer, kind, header, data));
}

lam_status lam_group_recv(lam_group *g, int peer, int kind, lam_wire *header, void *data,
                          uint64_t room) {
  LAM_TRY(check_peer(g, "recv", peer, kind));
  if (!g->engine->recv) return missing(g, "recv");
  return end_unless_refused(g, "recv", way(g)->recv(g, peer, kind, header, data, room));
}

static bool may_be_in_place(const lam_group *g) {
  return lam_peer_takes(g) && !g->engine->on_device && g->engine->send && g->engine->recv;
}

lam_status lam_group_send_open(lam_group *g, int peer, int kind, const lam_wire *header,
                               void **out_place) {
  *out_place = NULL;
  LAM_TRY(check_peer(g, "send", peer, kind));
  if (!may_be_in_place(g)) return LAM_OK;
  return end_unless_refused(g, "send", lam_peer_send_open(g, peer, kind, header, out_place));
}

lam_status lam_group_send_close(lam_group *g) {
  return end_unless_refused(g, "send", lam_peer_send_close(g));
}

lam_status lam_group_recv_open(lam_group *g, int peer, int kind, lam_wire *header, uint64_t room,
                               const void **out_place) {
  *out_place = NULL;
  LAM_TRY(check_peer(g, "recv", peer, kind));
  if (!may_be_in_place(g)) return LAM_OK;
  return end_unless_refused(g, "recv",
                            lam_peer_recv_open(g, peer, kind, header, room, out_place));
}

lam_status lam_group_recv_close(lam_group *g) {
  return end_unless_refused(g, "recv", lam_peer_recv_close(g));
}

/* ---- Channels -------------------------------------------------------------------------------- */

lam_status lam_channel_open(lam_group *g, int peer, bool sender, uint64_t key, int depth,
                            uint64_t bytes, lam_channel **out) {
  *out = NULL;
  LAM_TRY(check_peer(g, "channel", peer, 0));
  if (depth < 1)
    return lam_fail(LAM_INVALID_ARGUMENT, "channel: depth is %d, expected at least 1", depth);
  if (!g->engine->channel_open) return missing(g, "channel");
  LAM_TRY(end_unless_refused(g, "channel",
                             way(g)->channel_open(g, peer, sender, key, depth, bytes, out)));
  (*out)->group = g;
  (*out)->way = way(g);
  return LAM_OK;
}

lam_status lam_channel_acquire(lam_channel *c, void **out_slot) {
  lam_group *g = c->group;
  if (g->poison != LAM_OK) return poisoned(g);
  return end_unless_refused(g, "channel, waiting for a free slot",
                            c->way->channel_acquire(c, out_slot));
}

lam_status lam_channel_push(lam_channel *c, const lam_wire *header) {
  lam_group *g = c->group;
  if (g->poison != LAM_OK) return poisoned(g);
  return end_unless_refused(g, "channel, sending", c->way->channel_push(c, header));
}

lam_status lam_channel_pull(lam_channel *c, lam_wire *out_header, const void **out_data) {
  lam_group *g = c->group;
  if (g->poison != LAM_OK) return poisoned(g);
  return end_unless_refused(g, "channel, waiting for a message",
                            c->way->channel_pull(c, out_header, out_data));
}

lam_status lam_channel_release(lam_channel *c) {
  lam_group *g = c->group;
  if (g->poison != LAM_OK) return poisoned(g);
  return end_unless_refused(g, "channel, giving back", c->way->channel_release(c));
}

const char *lam_channel_path(const lam_channel *c) {
  const bool on_device = c->way == &lam_engine_peer || c->way == &lam_engine_by_host;
  return on_device ? lam_peer_channel_path(c) : c->way->name;
}

void lam_channel_close(lam_channel *c) {
  if (c) c->way->channel_close(c);
}
