/* group.c: the life of a group: made, split, asked about, poisoned, destroyed.
 * Invariant: a group that is handed out is registered under its handle and open in its engine;
 * destroy undoes the one, the last that uses the group the other; neither waits for a rank. Leaves
 * operations to calls.c, the launcher's environment to launch.c, how bytes travel to the engines. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "plugin/comm/comm.h"
#include "plugin/core/struct.h"

static const lam_engine *const engines[] = {&lam_engine_shm, &lam_engine_nccl};

static lam_status engine_find(const char *name, const lam_engine **out) {
  char known[80] = "";
  for (size_t i = 0; i < sizeof engines / sizeof *engines; i++) {
    if (!name || strcmp(name, engines[i]->name) == 0) {
      *out = engines[i];
      return LAM_OK;
    }
    snprintf(known + strlen(known), sizeof known - strlen(known), " %s", engines[i]->name);
  }
  return lam_fail(LAM_NOT_FOUND, "lam_group_create: engine \"%s\" is not known; known are:%s", name,
                  known);
}

static lam_status desc_open(const char *who, const lam_group_desc *desc, lam_group_desc *out) {
  LAM_TRY(lam_struct_check(who, "lam_group_desc", desc, sizeof *desc));
  *out = *desc;
  if (out->size < 1 || out->size > LAM_GROUP_RANKS)
    return lam_fail(LAM_INVALID_ARGUMENT, "%s: size is %d, expected 1 to %d", who, out->size,
                    LAM_GROUP_RANKS);
  if (out->rank < 0 || out->rank >= out->size)
    return lam_fail(LAM_INVALID_ARGUMENT, "%s: rank is %d, expected 0 to %d", who, out->rank,
                    out->size - 1);
  if (out->deadline_ms == 0) out->deadline_ms = 30000;
  if (out->first_deadline_ms == 0) out->first_deadline_ms = 600000;
  return LAM_OK;
}

static lam_status group_alloc(lam_context *ctx, const lam_engine *engine,
                              const lam_group_desc *desc, lam_group **out) {
  if (!ctx) ctx = lam_context_default();
  lam_group *g = lam_context_alloc(ctx, sizeof *g);
  if (!g) return lam_fail(LAM_RESOURCE_EXHAUSTED, "group: no memory");
  *g = (lam_group){.engine = engine,
                   .ctx = ctx,
                   .rank = desc->rank,
                   .size = desc->size,
                   .deadline_ms = desc->deadline_ms,
                   .first_deadline_ms = desc->first_deadline_ms};
  *out = g;
  return LAM_OK;
}

static void group_free(lam_group *g) {
  lam_group_sums_free(g);
  lam_context_free(g->ctx, g, sizeof *g);
}

/* `opened` is what the engine said of g. On success g is the caller's, else it is gone. */
static lam_status hand_out(lam_group *g, lam_status opened, lam_group **out_group) {
  if (opened == LAM_OK) {
    opened = lam_group_register(g);
    if (opened != LAM_OK) g->engine->destroy(g);
  }
  if (opened != LAM_OK) {
    group_free(g);
    return opened;
  }
  *out_group = g;
  return LAM_OK;
}

lam_status lam_group_create(lam_context *ctx, const lam_group_desc *desc, lam_group **out_group) {
  lam_group_desc d;
  lam_group *g = NULL;
  const lam_engine *engine = NULL;
  if (!out_group) return lam_fail(LAM_INVALID_ARGUMENT, "lam_group_create: out_group is NULL");
  *out_group = NULL;
  LAM_TRY(desc_open("lam_group_create", desc, &d));
  LAM_TRY(engine_find(d.engine, &engine));
  LAM_TRY(group_alloc(ctx, engine, &d, &g));
  return hand_out(g, engine->create(&d, g), out_group);
}

lam_status lam_group_from_callbacks(lam_context *ctx, const lam_group_desc *desc,
                                    const lam_callbacks *callbacks, lam_group **out_group) {
  lam_group_desc d;
  lam_group *g = NULL;
  if (!out_group)
    return lam_fail(LAM_INVALID_ARGUMENT, "lam_group_from_callbacks: out_group is NULL");
  *out_group = NULL;
  LAM_TRY(desc_open("lam_group_from_callbacks", desc, &d));
  LAM_TRY(group_alloc(ctx, &lam_engine_callback, &d, &g));
  return hand_out(g, lam_callback_create(g, callbacks), out_group);
}

lam_status lam_group_adopt_nccl(lam_context *ctx, const lam_group_desc *desc, void *comm,
                                lam_group **out_group) {
  lam_group_desc d;
  lam_group *g = NULL;
  if (!out_group || !comm)
    return lam_fail(LAM_INVALID_ARGUMENT, "lam_group_adopt_nccl: %s is NULL",
                    out_group ? "comm" : "out_group");
  *out_group = NULL;
  LAM_TRY(desc_open("lam_group_adopt_nccl", desc, &d));
  LAM_TRY(group_alloc(ctx, &lam_engine_nccl, &d, &g));
  return hand_out(g, lam_nccl_adopt(&d, comm, g), out_group);
}

/* ---- Split ----------------------------------------------------------------------------------- */

typedef struct seat {
  int32_t color, key;
} seat;

/* Ranks of `color`, ordered by (key, rank). */
static int pick_members(const seat *seats, int size, int32_t color, int *members) {
  int n = 0;
  for (int r = 0; r < size; r++) {
    if (seats[r].color != color) continue;
    int at = n++;
    for (; at > 0 && seats[members[at - 1]].key > seats[r].key; at--) members[at] = members[at - 1];
    members[at] = r;
  }
  return n;
}

static lam_status gather_seats(lam_group *g, int32_t color, int32_t key, seat *seats) {
  const seat mine = {color, key};
  const lam_comm_op op = {.op = LAM_COMM_SPLIT, .dtype = LAM_I32, .ndim = 2, .dims = {g->size, 2}};
  return lam_group_gather_rows(g, &op, &mine, sizeof mine, seats);
}

static lam_status split(lam_group *g, int32_t color, int32_t key, lam_group **out_sub) {
  seat seats[LAM_GROUP_RANKS];
  int members[LAM_GROUP_RANKS];
  lam_group *sub = NULL;
  LAM_TRY(gather_seats(g, color, key, seats));
  if (color < 0) return LAM_OK;
  lam_group_desc d = {.deadline_ms = g->deadline_ms, .first_deadline_ms = g->first_deadline_ms};
  d.size = pick_members(seats, g->size, color, members);
  while (members[d.rank] != g->rank) d.rank++;
  LAM_TRY(group_alloc(g->ctx, g->engine, &d, &sub));
  const lam_status status = hand_out(sub, g->engine->split(g, members, d.size, sub), out_sub);
  return status == LAM_OK ? LAM_OK : lam_group_end(g, "split", status);
}

lam_status lam_group_split(lam_group *g, int32_t color, int32_t key, lam_group **out_sub) {
  if (!g || !out_sub)
    return lam_fail(LAM_INVALID_ARGUMENT, "lam_group_split: %s is NULL", g ? "out_sub" : "g");
  *out_sub = NULL;
  lam_group_hold(g);
  const lam_status status = split(g, color, key, out_sub);
  lam_group_leave(g);
  return status;
}

/* ---- Questions ------------------------------------------------------------------------------- */

/* Another rank or group of the world may have ended it since this group was last used. */
static void notice_end(lam_group *g) {
  if (g->poison == LAM_OK && g->engine->check && g->engine->check(g) != LAM_OK)
    lam_group_keep(g, g->engine->check(g));
}

lam_status lam_group_get_info(const lam_group *g, lam_group_info *out_info) {
  if (!g) return lam_fail(LAM_INVALID_ARGUMENT, "lam_group_get_info: g is NULL");
  LAM_TRY(lam_struct_check("lam_group_get_info", "lam_group_info", out_info, sizeof *out_info));
  notice_end((lam_group *)(uintptr_t)g);
  *out_info = (lam_group_info){.struct_size = out_info->struct_size,
                               .rank = g->rank,
                               .size = g->size,
                               .poison = g->poison,
                               .engine = g->engine->name,
                               .error = g->error,
                               .operations = g->sequence,
                               .waits = g->waits,
                               .sleeps = g->sleeps};
  out_info->device_way = lam_peer_way(g, &out_info->device_why);
  return LAM_OK;
}

int64_t lam_group_handle(const lam_group *g) { return g ? g->handle : 0; }

const char *lam_group_path(const lam_group *g, uint32_t op, uint64_t bytes) {
  if (!g || g->size == 1) return "local";
  return g->engine->path ? g->engine->path(g, op, bytes) : g->engine->name;
}

/* ---- Warm-up, end ---------------------------------------------------------------------------- */

/* A byte to everyone, of either kind, then one from everyone: so small a send waits for nobody. */
static lam_status use_every_edge(lam_group *g) {
  unsigned char byte = 0;
  lam_wire header = {.bytes = 1, .dtype = LAM_U8, .ndim = 1, .shape = {1}};
  for (int i = 0; i < 4 * g->size; i++) {
    const int peer = i / 2 % g->size, kind = i % 2;
    if (peer == g->rank) continue;
    LAM_TRY(i < 2 * g->size ? lam_group_send(g, peer, kind, &header, &byte)
                            : lam_group_recv(g, peer, kind, &header, &byte, 1));
  }
  return LAM_OK;
}

static lam_status warm_up(lam_group *g) {
  float one = 1;
  const lam_comm_op op = {.op = LAM_COMM_WARMUP, .dtype = LAM_F32, .ndim = 1, .dims = {1}};
  LAM_TRY(lam_group_all_reduce(g, &op, &one, &one, 1, LAM_F32));
  if (g->nccl) LAM_TRY(lam_nccl_warm(g));
  return g->size > 1 ? use_every_edge(g) : LAM_OK;
}

lam_status lam_group_warmup(lam_group *g) {
  if (!g) return lam_fail(LAM_INVALID_ARGUMENT, "lam_group_warmup: g is NULL");
  lam_group_hold(g);
  const lam_status status = warm_up(g);
  lam_group_leave(g);
  return status;
}

/* From any thread where the engine can tell the world; the group's own thread notices it then. */
void lam_group_poison(lam_group *g, lam_status why, const char *message) {
  if (!g) return;
  if (why == LAM_OK) why = LAM_POISONED;
  if (!message) message = "the host ended the group";
  if (g->size > 1 && g->engine->check) {
    g->engine->poison(g, why, message);
  } else if (g->poison == LAM_OK) {
    g->poison = why;
    snprintf(g->error, sizeof g->error, "%s", message);
  }
  lam_group_on_device(g)->end(g);
}

/* By the last that used it. */
void lam_group_finish(lam_group *g) {
  lam_group_on_device(g)->leave(g);
  g->engine->destroy(g);
  group_free(g);
  lam_peer_sweep();
}

/* Calls of other threads that wait for a rank would keep it; so would this thread's own, where a
 * host's callback destroys it. */
void lam_group_destroy(lam_group *g) {
  char why[80];
  if (!g) return;
  if (lam_group_unregister(g) && g->size > 1) {
    snprintf(why, sizeof why, "rank %d of %d destroyed its group while a call used it", g->rank,
             g->size);
    lam_group_poison(g, LAM_CANCELLED, why);
  }
  lam_group_leave(g);
}
