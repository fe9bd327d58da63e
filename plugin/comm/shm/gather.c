/* gather.c: operands that lie in shares over the ranks: all_gather, reduce_scatter, broadcast.
 *
 * A share is a run of bytes (blocks.c) that goes through the slots in pieces, however its blocks
 * lie in the whole operand.
 * Invariant: all ranks take the same number of steps, that of the largest share; who has nothing
 * left moves nothing.
 * Leaves order and waits to steps.c. */
#include "plugin/comm/shm/shm.h"

static int64_t share_bytes(const shm_pass *p, int rank) {
  const lam_blocks b = lam_parts_of(p->parts, rank, p->s->g->size);
  return b.count * b.bytes;
}

/* Piece `piece` of a share of `total` bytes: where it starts and how long it is (0: the share
 * has ended). */
static int64_t piece_bytes(const shm_pass *p, int64_t piece, int64_t total, int64_t *out_first) {
  const int64_t left = total - piece * p->piece;
  *out_first = piece * p->piece;
  return left < 0 ? 0 : left < p->piece ? left : p->piece;
}

/* Pieces of p->piece bytes, or fewer where there is less. */
static void cut(shm_pass *p, int64_t total) {
  p->n = total > p->piece ? (total + p->piece - 1) / p->piece : 1;
  if (total < p->piece) p->piece = (total + SHM_LINE - 1) / SHM_LINE * SHM_LINE;
  p->used = p->piece;
}

static int64_t largest_share(const shm_pass *p) {
  int64_t most = 0;
  for (int r = 0; r < p->s->g->size; r++) {
    const int64_t bytes = share_bytes(p, r);
    if (bytes > most) most = bytes;
  }
  return most;
}

/* ---- All-gather ------------------------------------------------------------------------------ */

static void fill_mine(const shm_pass *p, int64_t piece, unsigned char *own) {
  int64_t first = 0;
  const int64_t n = piece_bytes(p, piece, share_bytes(p, p->s->g->rank), &first);
  lam_shm_fill(p->s->world, own, (const char *)p->x + first, n);
}

static void drain_theirs(const shm_pass *p, int64_t piece) {
  for (int r = 0; r < p->s->g->size; r++) {
    int64_t first = 0;
    const lam_blocks b = lam_parts_of(p->parts, r, p->s->g->size);
    const int64_t n = piece_bytes(p, piece, b.count * b.bytes, &first);
    const void *from =
        r == p->s->g->rank ? (const char *)p->x + first : (const char *)shm_slot_data(p, r, piece);
    if (n > 0) lam_blocks_put(&b, p->y, first, n, from);
  }
}

lam_status lam_shm_all_gather(lam_group *g, const lam_parts *parts, const void *mine, void *whole) {
  shm_pass p = {.s = shm_group_of(g),
                .x = mine,
                .y = whole,
                .parts = parts,
                .fill = fill_mine,
                .drain = drain_theirs};
  p.piece = SHM_PIECE_BYTES;
  cut(&p, largest_share(&p));
  return lam_shm_pass_run(&p);
}

/* ---- Reduce-scatter: slot r of the slot holds a piece of rank r's share ---------------------- */

/* Of the own share only what does not lie in one run: add_mine reads the operand otherwise. */
static void fill_shares(const shm_pass *p, int64_t piece, unsigned char *own) {
  for (int r = 0; r < p->s->g->size; r++) {
    int64_t first = 0;
    const lam_blocks b = lam_parts_of(p->parts, r, p->s->g->size);
    const int64_t n = piece_bytes(p, piece, b.count * b.bytes, &first);
    if (n > 0 && (r != p->s->g->rank || b.count > 1))
      lam_blocks_take(&b, p->x, first, n, own + r * p->piece);
  }
}

static void add_mine(const shm_pass *p, int64_t piece) {
  const void *parts[SHM_RANKS];
  const int me = p->s->g->rank;
  int64_t first = 0;
  const int64_t n = piece_bytes(p, piece, share_bytes(p, me), &first);
  const lam_blocks mine = lam_parts_of(p->parts, me, p->s->g->size);
  for (int r = 0; r < p->s->g->size; r++) parts[r] = shm_slot_data(p, r, piece) + me * p->piece;
  if (mine.count == 1) parts[me] = (const char *)p->x + mine.offset + first;
  if (n > 0)
    lam_add(p->dtype, parts, p->s->g->size, n / lam_dtype_bytes(p->dtype), (char *)p->y + first);
}

lam_status lam_shm_reduce_scatter(lam_group *g, const lam_parts *parts, const void *whole,
                                  void *mine) {
  shm_pass p = {.s = shm_group_of(g),
                .x = whole,
                .y = mine,
                .parts = parts,
                .fill = fill_shares,
                .drain = add_mine};
  p.dtype = parts->dtype;
  p.piece = SHM_SLOT_BYTES / g->size / SHM_LINE * SHM_LINE;
  cut(&p, largest_share(&p));
  p.used = p.piece * g->size; /* every rank's piece has its place, full or not */
  return lam_shm_pass_run(&p);
}

/* ---- Broadcast ------------------------------------------------------------------------------- */

static void fill_at_root(const shm_pass *p, int64_t piece, unsigned char *own) {
  int64_t first = 0;
  const int64_t n = piece_bytes(p, piece, p->total, &first);
  if (p->s->g->rank == p->root) lam_shm_fill(p->s->world, own, (const char *)p->x + first, n);
}

static void drain_from_root(const shm_pass *p, int64_t piece) {
  int64_t first = 0;
  const int64_t n = piece_bytes(p, piece, p->total, &first);
  const void *from = p->s->g->rank == p->root ? (const char *)p->x + first
                                              : (const char *)shm_slot_data(p, p->root, piece);
  if (from != (char *)p->y + first) lam_copy_result((char *)p->y + first, from, n, p->total);
}

lam_status lam_shm_broadcast(lam_group *g, const void *x, void *y, uint64_t bytes, int root) {
  shm_pass p = {.s = shm_group_of(g), .x = x, .y = y, .total = (int64_t)bytes, .root = root};
  p.fill = fill_at_root;
  p.drain = drain_from_root;
  p.piece = SHM_PIECE_BYTES;
  cut(&p, p.total);
  return lam_shm_pass_run(&p);
}
