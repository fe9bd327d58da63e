/* callback.c: a group over the host's own communication: five functions it hands in.
 *
 * send and recv are enough: where one of the other three is NULL, and in groups made by split
 * (which the host's collectives do not know), collectives are made of them here, everyone to
 * everyone.
 * Invariant: before each collective the ranks exchange and compare what they are about to do, so
 * a disagreement is a MISMATCH on all of them, as on shm. What a host must hold to: send does
 * not wait for the matching recv (it buffers, or sends from another thread), deadlines and dead
 * peers are its own to notice, and channel numbers are any 32 bits. A failure poisons this
 * rank's groups only.
 * Leaves poisoning to calls.c. */
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>

#include "plugin/comm/comm.h"
#include "plugin/core/struct.h"

/* What a group and its splits share on this rank. */
typedef struct callback_world {
  lam_callbacks cb;
  int refs;
  atomic_bool is_ending;     /* someone writes the message */
  _Atomic lam_status poison; /* after it */
  char message[LAM_MESSAGE_BYTES];
} callback_world;

enum { CHANNEL_KIND0, CHANNEL_KIND1, CHANNEL_CONTROL, CHANNELS };

typedef struct callback_group {
  lam_group *g;
  callback_world *world;
  bool whole; /* the host's own group, so its collectives may be used */
  uint32_t first_channel;
  int host_rank[LAM_GROUP_RANKS];
  uint64_t sent[LAM_GROUP_RANKS][2], received[LAM_GROUP_RANKS][2];
} callback_group;

static callback_group *own(const lam_group *g) { return g->impl; }

/* ---- The host's functions -------------------------------------------------------------------- */

static lam_status host_said(const char *function, lam_status status) {
  if (status == LAM_OK) return LAM_OK;
  return lam_fail(status, "callback %s failed: %s", function, lam_status_name(status));
}

static lam_status host_send(const callback_group *c, int peer, uint32_t channel, const void *data,
                            uint64_t bytes) {
  if (bytes == 0) return LAM_OK;
  return host_said("send",
                   c->world->cb.send(c->world->cb.user, c->host_rank[peer], channel, data, bytes));
}

static lam_status host_recv(const callback_group *c, int peer, uint32_t channel, void *data,
                            uint64_t bytes) {
  if (bytes == 0) return LAM_OK;
  return host_said("recv",
                   c->world->cb.recv(c->world->cb.user, c->host_rank[peer], channel, data, bytes));
}

/* Rank r's block of `all` holds counts[r] bytes, one after the other. */
static lam_status gather_by_hand(const callback_group *c, const void *mine, void *all,
                                 const uint64_t *counts) {
  const uint32_t channel = c->first_channel + CHANNEL_CONTROL;
  const int me = c->g->rank;
  uint64_t at = 0;
  for (int r = 0; r < c->g->size; r++)
    if (r != me) LAM_TRY(host_send(c, r, channel, mine, counts[me]));
  for (int r = 0; r < c->g->size; at += counts[r++]) {
    if (r != me)
      LAM_TRY(host_recv(c, r, channel, (char *)all + at, counts[r]));
    else if (counts[me] > 0)
      memmove((char *)all + at, mine, counts[me]);
  }
  return LAM_OK;
}

static lam_status gather(const callback_group *c, const void *mine, void *all,
                         const uint64_t *counts) {
  if (!c->whole || !c->world->cb.all_gather) return gather_by_hand(c, mine, all, counts);
  return host_said("all_gather", c->world->cb.all_gather(c->world->cb.user, mine, all, counts));
}

static lam_status gather_even(const callback_group *c, const void *mine, void *all,
                              uint64_t bytes) {
  uint64_t counts[LAM_GROUP_RANKS];
  for (int r = 0; r < c->g->size; r++) counts[r] = bytes;
  return gather(c, mine, all, counts);
}

/* ---- Life ------------------------------------------------------------------------------------ */

static lam_status group_open(lam_group *g, callback_world *world, bool whole,
                             const int *host_rank) {
  callback_group *c = calloc(1, sizeof *c);
  if (!c) return lam_fail(LAM_RESOURCE_EXHAUSTED, "group: no memory");
  *c = (callback_group){.g = g, .world = world, .whole = whole};
  for (int r = 0; r < g->size; r++) c->host_rank[r] = host_rank ? host_rank[r] : r;
  world->refs++;
  g->impl = c;
  return LAM_OK;
}

static void callback_destroy(lam_group *g) {
  callback_group *c = own(g);
  if (!c) return;
  if (--c->world->refs == 0) free(c->world);
  free(c);
}

/* All ranks take the number that rank 0 made. */
static lam_status agree_on_handle(lam_group *g) {
  uint64_t mine = lam_mix((uint64_t)lam_clock_ns(), (uintptr_t)g), all[LAM_GROUP_RANKS] = {mine};
  if (g->size > 1) LAM_TRY(gather_even(own(g), &mine, all, sizeof mine));
  g->handle = lam_group_handle_make(all[0], 0);
  return LAM_OK;
}

lam_status lam_callback_create(lam_group *g, const lam_callbacks *callbacks) {
  LAM_TRY(
      lam_struct_check("lam_group_from_callbacks", "lam_callbacks", callbacks, sizeof *callbacks));
  if (!callbacks->send || !callbacks->recv)
    return lam_fail(LAM_INVALID_ARGUMENT, "lam_group_from_callbacks: callbacks.%s is NULL",
                    callbacks->send ? "recv" : "send");
  callback_world *world = calloc(1, sizeof *world);
  if (!world) return lam_fail(LAM_RESOURCE_EXHAUSTED, "group: no memory");
  world->cb = *callbacks;
  lam_status status = group_open(g, world, true, NULL);
  if (status != LAM_OK) {
    free(world);
    return status;
  }
  status = agree_on_handle(g);
  if (status != LAM_OK) callback_destroy(g);
  return status;
}

static lam_status callback_split(lam_group *parent, const int *members, int n, lam_group *sub) {
  int host_rank[LAM_GROUP_RANKS];
  for (int r = 0; r < n; r++) host_rank[r] = own(parent)->host_rank[members[r]];
  const uint64_t alone =
      n == 1 ? lam_mix((uint64_t)lam_clock_ns(), (uintptr_t)sub) : 0; /* nobody to agree with */
  sub->handle = lam_group_handle_make(lam_mix((uint64_t)parent->handle, parent->sequence + alone),
                                      (uint64_t)members[0]);
  LAM_TRY(group_open(sub, own(parent)->world, false, host_rank));
  own(sub)->first_channel = (uint32_t)lam_mix((uint64_t)sub->handle, 0) | 64u;
  return LAM_OK;
}

static void callback_poison(lam_group *g, lam_status why, const char *message) {
  callback_world *w = own(g)->world;
  if (atomic_exchange(&w->is_ending, true)) return;
  strncpy(w->message, message, sizeof w->message - 1);
  atomic_store(&w->poison, why);
}

static lam_status callback_check(const lam_group *g) {
  const callback_world *w = own(g)->world;
  const lam_status poison = atomic_load(&w->poison);
  return poison == LAM_OK ? LAM_OK : lam_fail(poison, "%s", w->message);
}

/* ---- Collectives ----------------------------------------------------------------------------- */

static lam_status callback_begin(lam_group *g, const lam_comm_op *op) {
  lam_comm_op all[LAM_GROUP_RANKS];
  const lam_comm_op *ops[LAM_GROUP_RANKS];
  LAM_TRY(callback_check(g));
  LAM_TRY(gather_even(own(g), op, all, sizeof *op));
  for (int r = 0; r < g->size; r++) ops[r] = &all[r];
  return lam_comm_compare(ops, g->size);
}

/* Everyone's operand to everyone, then the sum in rank order. */
static lam_status all_reduce_by_hand(const callback_group *c, const void *x, void *y, int64_t n,
                                     lam_dtype t) {
  const uint64_t bytes = (uint64_t)(n * lam_dtype_bytes(t));
  const void *parts[LAM_GROUP_RANKS];
  lam_scratch scratch;
  LAM_TRY(lam_scratch_open(c->g->ctx, NULL, 0, bytes * (uint64_t)c->g->size + 64, &scratch));
  char *all = lam_scratch_take(&scratch, bytes * (uint64_t)c->g->size);
  const lam_status status = gather_even(c, x, all, bytes);
  for (int r = 0; r < c->g->size; r++) parts[r] = all + bytes * (uint64_t)r;
  if (status == LAM_OK) lam_add(t, parts, c->g->size, n, y);
  lam_scratch_close(&scratch);
  return status;
}

static DLDataType dlpack_type(lam_dtype t) {
  static const DLDataType types[LAM_N_DTYPES] = {
      [LAM_F32] = {kDLFloat, 32, 1}, [LAM_BF16] = {kDLBfloat, 16, 1}, [LAM_F16] = {kDLFloat, 16, 1},
      [LAM_F64] = {kDLFloat, 64, 1}, [LAM_I32] = {kDLInt, 32, 1},     [LAM_I64] = {kDLInt, 64, 1},
      [LAM_U8] = {kDLUInt, 8, 1}};
  return types[t];
}

static lam_status callback_all_reduce(lam_group *g, const void *x, void *y, int64_t n,
                                      lam_dtype t) {
  const callback_group *c = own(g);
  const uint64_t bytes = (uint64_t)(n * lam_dtype_bytes(t));
  if (n == 0) return LAM_OK;
  if (!c->whole || !c->world->cb.all_reduce) return all_reduce_by_hand(c, x, y, n, t);
  if (x != y) memcpy(y, x, bytes);
  return host_said("all_reduce",
                   c->world->cb.all_reduce(c->world->cb.user, y, (uint64_t)n, dlpack_type(t)));
}

static void count_shares(const lam_group *g, const lam_parts *p, uint64_t *counts,
                         uint64_t *out_total) {
  *out_total = 0;
  for (int r = 0; r < g->size; r++) {
    const lam_blocks b = lam_parts_of(p, r, g->size);
    *out_total += counts[r] = (uint64_t)(b.count * b.bytes);
  }
}

/* Shares that lie one after the other need no other memory: outer is 1. */
static lam_status callback_all_gather(lam_group *g, const lam_parts *p, const void *mine,
                                      void *whole) {
  uint64_t counts[LAM_GROUP_RANKS], total = 0, at = 0;
  lam_scratch scratch;
  count_shares(g, p, counts, &total);
  if (total == 0) return LAM_OK;
  if (p->outer == 1) return gather(own(g), mine, whole, counts);
  LAM_TRY(lam_scratch_open(g->ctx, NULL, 0, total + 64, &scratch));
  char *all = lam_scratch_take(&scratch, total);
  const lam_status status = gather(own(g), mine, all, counts);
  for (int r = 0; r < g->size && status == LAM_OK; at += counts[r++]) {
    const lam_blocks b = lam_parts_of(p, r, g->size);
    lam_blocks_put(&b, whole, 0, (int64_t)counts[r], all + at);
  }
  lam_scratch_close(&scratch);
  return status;
}

/* Rank r's block of `all` to rank r; then the sum of all blocks for this rank, in rank order. */
static lam_status scatter_by_hand(const callback_group *c, const char *all, void *mine,
                                  const uint64_t *counts, lam_dtype t, char *blocks) {
  const void *parts[LAM_GROUP_RANKS];
  const int me = c->g->rank;
  uint64_t at = 0;
  for (int r = 0; r < c->g->size; at += counts[r++]) {
    parts[r] = r == me ? all + at : blocks + counts[me] * (uint64_t)r;
    if (r != me) LAM_TRY(host_send(c, r, c->first_channel + CHANNEL_CONTROL, all + at, counts[r]));
  }
  for (int r = 0; r < c->g->size; r++)
    if (r != me)
      LAM_TRY(host_recv(c, r, c->first_channel + CHANNEL_CONTROL, blocks + counts[me] * (uint64_t)r,
                        counts[me]));
  lam_add(t, parts, c->g->size, (int64_t)counts[me] / lam_dtype_bytes(t), mine);
  return LAM_OK;
}

static lam_status scatter(const callback_group *c, const void *all, void *mine,
                          const uint64_t *counts, lam_dtype t, char *blocks) {
  if (!c->whole || !c->world->cb.reduce_scatter)
    return scatter_by_hand(c, all, mine, counts, t, blocks);
  return host_said("reduce_scatter", c->world->cb.reduce_scatter(c->world->cb.user, all, mine,
                                                                 counts, dlpack_type(t)));
}

static lam_status callback_reduce_scatter(lam_group *g, const lam_parts *p, const void *whole,
                                          void *mine) {
  uint64_t counts[LAM_GROUP_RANKS], total = 0, at = 0;
  lam_scratch scratch;
  count_shares(g, p, counts, &total);
  if (total == 0) return LAM_OK;
  const uint64_t blocks_bytes = counts[g->rank] * (uint64_t)g->size;
  LAM_TRY(lam_scratch_open(g->ctx, NULL, 0, total + blocks_bytes + 128, &scratch));
  char *all = lam_scratch_take(&scratch, total), *blocks = lam_scratch_take(&scratch, blocks_bytes);
  for (int r = 0; r < g->size; at += counts[r++]) {
    const lam_blocks b = lam_parts_of(p, r, g->size);
    lam_blocks_take(&b, whole, 0, (int64_t)counts[r], all + at);
  }
  const lam_status status = scatter(own(g), all, mine, counts, p->dtype, blocks);
  lam_scratch_close(&scratch);
  return status;
}

/* ---- Transfers ------------------------------------------------------------------------------- */

static lam_status send_message(const callback_group *c, int peer, uint32_t channel,
                               uint64_t sequence, const lam_wire *header, const void *data) {
  lam_wire wire = *header;
  lam_wire_seal(&wire, sequence);
  LAM_TRY(host_send(c, peer, channel, &wire, sizeof wire));
  return host_send(c, peer, channel, data, wire.bytes);
}

static lam_status recv_message(const callback_group *c, int peer, uint32_t channel,
                               uint64_t sequence, lam_wire *header, void *data, uint64_t room) {
  LAM_TRY(host_recv(c, peer, channel, header, sizeof *header));
  LAM_TRY(lam_wire_verify(header, peer, sequence, room));
  return host_recv(c, peer, channel, data, header->bytes);
}

static lam_status callback_send(lam_group *g, int peer, int kind, const lam_wire *header,
                                const void *data) {
  callback_group *c = own(g);
  LAM_TRY(callback_check(g));
  return send_message(c, peer, c->first_channel + (uint32_t)kind, c->sent[peer][kind]++, header,
                      data);
}

static lam_status callback_recv(lam_group *g, int peer, int kind, lam_wire *header, void *data,
                                uint64_t room) {
  callback_group *c = own(g);
  LAM_TRY(callback_check(g));
  return recv_message(c, peer, c->first_channel + (uint32_t)kind, c->received[peer][kind]++, header,
                      data, room);
}

/* ---- Channels: `depth` slots at the receiver, one at the sender, whose host buffers ---------- */

typedef struct callback_channel {
  lam_channel base;
  lam_context *ctx;
  int peer;
  uint32_t number;
  bool acquired;
  uint64_t moved, released, depth, stride, slot_bytes;
  char *slots; /* depth * stride bytes */
} callback_channel;

static callback_channel *channel_of(lam_channel *c) { return (callback_channel *)c; }

static lam_status callback_channel_open(lam_group *g, int peer, bool sender, uint64_t key,
                                        int depth, uint64_t bytes, lam_channel **out) {
  callback_channel *c = calloc(1, sizeof *c);
  if (!c) return lam_fail(LAM_RESOURCE_EXHAUSTED, "channel: no memory");
  *c = (callback_channel){
      .ctx = g->ctx, .peer = peer, .depth = sender ? 1 : (uint64_t)depth, .slot_bytes = bytes};
  c->stride = (bytes + 63) / 64 * 64 + 64;
  c->number = (uint32_t)lam_mix((uint64_t)g->handle, key) | 64u;
  c->slots = lam_context_alloc(g->ctx, c->depth * c->stride);
  if (!c->slots) {
    free(c);
    return lam_fail(LAM_RESOURCE_EXHAUSTED, "channel: no memory for %d slots of %llu bytes", depth,
                    (unsigned long long)bytes);
  }
  *out = &c->base;
  return LAM_OK;
}

static lam_status callback_channel_acquire(lam_channel *channel, void **out_slot) {
  callback_channel *c = channel_of(channel);
  c->acquired = true;
  *out_slot = c->slots;
  return LAM_OK;
}

static lam_status callback_channel_push(lam_channel *channel, const lam_wire *header) {
  callback_channel *c = channel_of(channel);
  if (!c->acquired)
    return lam_fail(LAM_FAILED_PRECONDITION, "channel: push without a slot acquired");
  if (header->bytes > c->slot_bytes)
    return lam_fail(LAM_INVALID_ARGUMENT, "channel: a message of %llu bytes, a slot holds %llu",
                    (unsigned long long)header->bytes, (unsigned long long)c->slot_bytes);
  c->acquired = false;
  return send_message(own(channel->group), c->peer, c->number, c->moved++, header, c->slots);
}

static lam_status callback_channel_pull(lam_channel *channel, lam_wire *out_header,
                                        const void **out_data) {
  callback_channel *c = channel_of(channel);
  if (c->moved - c->released == c->depth)
    return lam_fail(LAM_FAILED_PRECONDITION,
                    "channel: all %llu slots hold messages, release one first",
                    (unsigned long long)c->depth);
  char *slot = c->slots + c->moved % c->depth * c->stride;
  LAM_TRY(recv_message(own(channel->group), c->peer, c->number, c->moved, out_header, slot,
                       c->slot_bytes));
  c->moved++;
  *out_data = slot;
  return LAM_OK;
}

static lam_status callback_channel_release(lam_channel *channel) {
  callback_channel *c = channel_of(channel);
  if (c->released == c->moved)
    return lam_fail(LAM_FAILED_PRECONDITION, "channel: release of a message that was not pulled");
  c->released++;
  return LAM_OK;
}

static void callback_channel_close(lam_channel *channel) {
  callback_channel *c = channel_of(channel);
  lam_context_free(c->ctx, c->slots, c->depth * c->stride);
  free(c);
}

static const char *callback_path(const lam_group *g, uint32_t op, uint64_t bytes) {
  (void)op, (void)bytes;
  return own(g)->whole ? "callback" : "callback, send and recv";
}

const lam_engine lam_engine_callback = {
    .name = "callback",
    .what = "the host's own communication, through five functions",
    .create = NULL, /* made by lam_group_from_callbacks: there is no id to meet by */
    .split = callback_split,
    .destroy = callback_destroy,
    .poison = callback_poison,
    .check = callback_check,
    .begin = callback_begin,
    .all_reduce = callback_all_reduce,
    .all_gather = callback_all_gather,
    .reduce_scatter = callback_reduce_scatter,
    .broadcast = NULL, /* by calls.c, from all_gather */
    .reduce = NULL,    /* by calls.c, from all_reduce */
    .partial = NULL,   /* by calls.c: the host's memory is not the peers' to read */
    .sum_start = NULL,
    .sum_finish = NULL,
    .send = callback_send,
    .recv = callback_recv,
    .channel_open = callback_channel_open,
    .channel_acquire = callback_channel_acquire,
    .channel_push = callback_channel_push,
    .channel_pull = callback_channel_pull,
    .channel_release = callback_channel_release,
    .channel_close = callback_channel_close,
    .path = callback_path,
};
