/* engine.c: the shm engine: groups on one machine over shared memory, as one table.
 * Invariant: when create or split returns on one rank, every member has found every other's board.
 * Leaves meeting to world.c, moving data to the other files here, checks and poisoning to
 * group.c. */
#include <stdlib.h>

#include "plugin/comm/shm/shm.h"

/* ---- Opening --------------------------------------------------------------------------------- */

static lam_status board_create(shm_group *s) {
  shm_head *head = NULL;
  LAM_TRY(lam_shm_region_create(s->world, (uint64_t)s->g->handle, sizeof(shm_board),
                                offsetof(shm_board, slots), (uint32_t)s->g->size - 1, &head));
  s->boards[s->g->rank] = (shm_board *)head;
  return lam_shm_region_publish(s->world, head);
}

/* Every page once, so that later operations meet no page fault. What is read, a peer may be
 * writing, and nobody looks at. */
__attribute__((no_sanitize("thread"))) static void touch(const shm_board *b) {
  const volatile unsigned char *bytes = (const volatile unsigned char *)b;
  for (size_t at = 0; at < sizeof *b; at += 4096) (void)bytes[at];
}

static lam_status boards_open(shm_group *s) {
  for (int r = 0; r < s->g->size; r++) {
    shm_head *head = NULL;
    if (r != s->g->rank) {
      const shm_wait w = {.peer = r, .deadline_ms = s->deadline_ms};
      LAM_TRY(lam_shm_region_await(s, &w, (uint64_t)s->g->handle, &head));
      s->boards[r] = (shm_board *)head;
    }
    touch(s->boards[r]);
  }
  /* Step 0 carries no operation: it says that this rank has found all boards. */
  const uint32_t step = s->step;
  s->boards[s->g->rank]->slots[step % SHM_SLOTS].op = (lam_comm_op){.op = LAM_COMM_SPLIT};
  lam_shm_step_publish(s);
  return lam_shm_compare(s, step);
}

static void leave(shm_group *s) {
  if (!lam_shm_world_is_ours(s->world))
    return; /* a forked child's copy: the peers are its parent's */
  lam_shm_sums_leave(s);
  lam_shm_transfers_leave(s);
  for (int r = 0; r < s->g->size && !s->held; r++)
    if (r != s->g->rank && s->boards[r]) shm_region_leave_peer(&s->boards[r]->head);
  lam_shm_region_leave(s->world, &s->boards[s->g->rank]->head);
}

/* `world` becomes the group's. members: ranks of the world; NULL: all. */
static lam_status group_open(lam_group *g, lam_world *world, const int *members) {
  shm_group *s = calloc(1, sizeof *s);
  if (!s) {
    lam_shm_world_release(world);
    return lam_fail(LAM_RESOURCE_EXHAUSTED, "group: no memory");
  }
  *s = (shm_group){.g = g, .world = world, .deadline_ms = g->first_deadline_ms};
  for (int r = 0; r < g->size; r++) s->world_rank[r] = members ? members[r] : r;
  g->impl = s;
  lam_status status = board_create(s);
  if (status == LAM_OK) status = boards_open(s);
  if (status == LAM_OK) return LAM_OK;
  if (s->boards[g->rank]) leave(s);
  lam_shm_world_release(world);
  free(s);
  g->impl = NULL;
  return status;
}

/* Alone there is nobody to meet: no arena, no socket; group.c keeps such a group from every
 * other cell. */
static lam_status shm_create(const lam_group_desc *desc, lam_group *g) {
  lam_world *world = NULL;
  g->handle = lam_group_handle_make(lam_mix((uint64_t)lam_clock_ns(), (uintptr_t)g), 0);
  if (desc->size == 1) return LAM_OK;
  LAM_TRY(lam_shm_world_create(g->ctx, desc, &world));
  g->handle = lam_group_handle_make(world->tag, 0);
  return group_open(g, world, NULL);
}

static lam_status shm_split(lam_group *parent, const int *members, int n, lam_group *sub) {
  const shm_group *s = shm_group_of(parent);
  int world_rank[SHM_RANKS];
  sub->handle = lam_group_handle_make(lam_mix((uint64_t)lam_clock_ns(), (uintptr_t)sub), 0);
  if (n == 1) return LAM_OK;
  sub->handle = lam_group_handle_make(lam_mix((uint64_t)parent->handle, parent->sequence),
                                      (uint64_t)members[0]);
  for (int r = 0; r < n; r++) world_rank[r] = s->world_rank[members[r]];
  lam_shm_world_join(s->world);
  return group_open(sub, s->world, world_rank);
}

static void shm_destroy(lam_group *g) {
  shm_group *s = shm_group_of(g);
  if (!s) return;
  leave(s);
  lam_shm_world_release(s->world);
  free(s);
}

static void shm_poison(lam_group *g, lam_status why, const char *message) {
  const shm_group *s = shm_group_of(g);
  if (s && lam_shm_world_is_ours(s->world)) lam_shm_world_poison(s->world, why, message);
}

static lam_status shm_check(const lam_group *g) {
  const shm_group *s = shm_group_of(g);
  return s ? lam_shm_world_check(s->world) : LAM_OK;
}

/* ---- Operands that go another way -------------------------------------------------------------- */

static lam_status shm_agree(lam_group *g) {
  shm_group *s = shm_group_of(g);
  const uint32_t step = s->step;
  lam_shm_step_publish(s);
  return lam_shm_compare(s, step);
}

static bool shm_is_thread(const lam_group *g, int rank) {
  const shm_group *s = shm_group_of(g);
  return s && s->world->peers[s->world_rank[rank]].life < 0;
}

static void *shm_shown(const lam_group *g, int rank) {
  return shm_group_of(g)->boards[rank]->shown;
}

static int shm_end_of_process(const lam_group *g, int rank) {
  const shm_group *s = shm_group_of(g);
  return s->world->peers[s->world_rank[rank]].life;
}

static bool board_left(const shm_board *b) {
  return atomic_load_explicit(&b->head.owner_left, memory_order_acquire);
}

static bool shm_has_left(const lam_group *g, int rank) {
  return board_left(shm_group_of(g)->boards[rank]);
}

/* The peers' boards stay as they are until a hold leaves them, so that it can ask. */
struct lam_hold {
  lam_world *world;
  int n, world_rank[SHM_RANKS];
  shm_board *boards[SHM_RANKS];
};

static lam_status shm_hold(lam_group *g, lam_hold **out) {
  shm_group *s = shm_group_of(g);
  lam_hold *h = calloc(1, sizeof *h);
  if (!h) return lam_fail(LAM_RESOURCE_EXHAUSTED, "group: no memory");
  h->world = s->world;
  atomic_fetch_add(&s->world->refs, 1);
  for (int r = 0; r < g->size; r++) {
    if (r == g->rank) continue;
    h->world_rank[h->n] = s->world_rank[r];
    h->boards[h->n++] = s->boards[r];
  }
  s->held = true;
  *out = h;
  return LAM_OK;
}

static bool shm_all_left(const lam_hold *h) {
  for (int i = 0; i < h->n; i++)
    if (!board_left(h->boards[i]) && !lam_shm_peer_died(h->world, h->world_rank[i])) return false;
  return true;
}

static void shm_let_go(lam_hold *h) {
  for (int i = 0; i < h->n; i++) shm_region_leave_peer(&h->boards[i]->head);
  lam_shm_world_drop(h->world);
  free(h);
}

/* ---- The host's memory ----------------------------------------------------------------------- */

/* A region that is looked up by nobody: peers are told the place with each message. */
static lam_status shm_alloc(lam_group *g, uint64_t bytes, void **out_data) {
  shm_head *head = NULL;
  lam_world *w = shm_group_of(g)->world;
  LAM_TRY(lam_shm_world_use(w));
  LAM_TRY(lam_shm_region_create(w, 0, sizeof *head + bytes, sizeof *head, 0, &head));
  *out_data = head + 1;
  return LAM_OK;
}

static void shm_free(lam_group *g, void *data) {
  lam_world *w = shm_group_of(g)->world;
  if (lam_shm_world_is_ours(w)) lam_shm_region_leave(w, (shm_head *)data - 1);
}

static const char *shm_path(const lam_group *g, uint32_t op, uint64_t bytes) {
  switch (op) {
    case LAM_OP_all_reduce:
      return lam_shm_all_reduce_path(g->size, bytes);
    case LAM_OP_all_gather:
    case LAM_OP_reduce_scatter:
    case LAM_OP_broadcast:
    case LAM_OP_reduce:
      return bytes <= SHM_PIECE_BYTES ? "shm one-shot" : "shm one-shot, pipelined";
    case LAM_OP_send_activation:
    case LAM_OP_recv_activation:
      return lam_shm_send_path(bytes);
    default:
      return "shm";
  }
}

const lam_engine lam_engine_shm = {
    .name = "shm",
    .what = "one machine, over shared memory; ranks are processes or threads of one process",
    .create = shm_create,
    .split = shm_split,
    .destroy = shm_destroy,
    .poison = shm_poison,
    .check = shm_check,
    .life = lam_shm_life,
    .queues = lam_peer_queues,
    .begin = lam_shm_begin,
    .agree = shm_agree,
    .is_thread = shm_is_thread,
    .shown = shm_shown,
    .end_of_process = shm_end_of_process,
    .has_left = shm_has_left,
    .hold = shm_hold,
    .all_left = shm_all_left,
    .let_go = shm_let_go,
    .all_reduce = lam_shm_all_reduce,
    .all_gather = lam_shm_all_gather,
    .reduce_scatter = lam_shm_reduce_scatter,
    .broadcast = lam_shm_broadcast,
    .reduce = lam_shm_reduce,
    .partial = lam_shm_partial,
    .sum_start = lam_shm_sum_start,
    .sum_finish = lam_shm_sum_finish,
    .send = lam_shm_send,
    .recv = lam_shm_recv,
    .channel_open = lam_shm_channel_open,
    .channel_acquire = lam_shm_channel_acquire,
    .channel_push = lam_shm_channel_push,
    .channel_pull = lam_shm_channel_pull,
    .channel_release = lam_shm_channel_release,
    .channel_close = lam_shm_channel_close,
    .alloc = shm_alloc,
    .free = shm_free,
    .path = shm_path,
};
