/* all_reduce.c: sums over all ranks: all_reduce and reduce.
 *
 * Forms of all_reduce by size, with us for 2 ranks, f32, caches near each other, and Open MPI 4.1:
 *   packet    announcement and operand in marked lines (packet.c)       64 B    0.09   0.19
 *   one-shot  every rank copies its operand in and sums all of them     16 KiB  1.8    7.4
 *   two-shot  rank r sums share r of every piece and publishes it       1 MiB   61     135
 * Two shots wait once more and read 2 operands' worth instead of p; one-shot, 1 MiB takes 122.
 * A big operand goes in pieces through the slots, so that filling one overlaps the peers'
 * reading of another.
 * Invariant: element i is summed in rank order 0..p-1 by whoever sums it, so all ranks hold the
 * same bits.
 * Leaves order and waits to steps.c, arithmetic to add.c. */
#include "plugin/comm/shm/shm.h"

static int64_t piece_length(const shm_pass *p, int64_t piece) {
  const int64_t left = p->total - piece * p->piece;
  return left < p->piece ? left : p->piece;
}

static const void *x_at(const shm_pass *p, int64_t element) {
  return (const char *)p->x + element * lam_dtype_bytes(p->dtype);
}
static void *y_at(const shm_pass *p, int64_t element) {
  return (char *)p->y + element * lam_dtype_bytes(p->dtype);
}

static int64_t result_bytes(const shm_pass *p) { return p->total * lam_dtype_bytes(p->dtype); }

/* ---- One-shot -------------------------------------------------------------------------------- */

static void fill_all(const shm_pass *p, int64_t piece, unsigned char *own) {
  lam_shm_fill(p->s->world, own, x_at(p, piece * p->piece),
               piece_length(p, piece) * lam_dtype_bytes(p->dtype));
}

static void add_all(const shm_pass *p, int64_t piece) {
  const void *parts[SHM_RANKS];
  const shm_group *s = p->s;
  for (int r = 0; r < s->g->size; r++) parts[r] = shm_slot_data(p, r, piece);
  parts[s->g->rank] = x_at(p, piece * p->piece);
  lam_add(p->dtype, parts, s->g->size, piece_length(p, piece), y_at(p, piece * p->piece));
}

/* ---- Two-shot -------------------------------------------------------------------------------- */

/* Share r of a piece: [first, first + n) of its elements, cut at whole cache lines. */
typedef struct share {
  int64_t first, n;
} share;

static share share_of(const shm_pass *p, int64_t piece, int rank) {
  const int64_t n = piece_length(p, piece), ranks = p->s->g->size;
  const int64_t line = SHM_LINE / lam_dtype_bytes(p->dtype);
  const int64_t each = (n + ranks * line - 1) / (ranks * line) * line;
  const int64_t first = each * rank < n ? each * rank : n;
  return (share){first, n - first < each ? n - first : each};
}

/* Everything but the own share, whose place in the slot is for the sum. */
static void fill_others(const shm_pass *p, int64_t piece, unsigned char *own) {
  const int64_t bytes = lam_dtype_bytes(p->dtype), n = piece_length(p, piece);
  const share mine = share_of(p, piece, p->s->g->rank);
  const int64_t after = mine.first + mine.n;
  lam_shm_fill(p->s->world, own, x_at(p, piece * p->piece), mine.first * bytes);
  lam_shm_fill(p->s->world, own + after * bytes, x_at(p, piece * p->piece + after),
               (n - after) * bytes);
}

static void fold_share(const shm_pass *p, int64_t piece) {
  const void *parts[SHM_RANKS];
  const shm_group *s = p->s;
  const int64_t bytes = lam_dtype_bytes(p->dtype);
  const share mine = share_of(p, piece, s->g->rank);
  void *own = shm_slot_data(p, s->g->rank, piece) + mine.first * bytes;
  void *y = y_at(p, piece * p->piece + mine.first);
  for (int r = 0; r < s->g->size; r++) parts[r] = shm_slot_data(p, r, piece) + mine.first * bytes;
  parts[s->g->rank] = x_at(p, piece * p->piece + mine.first);
  if (lam_streams(result_bytes(p)) && !shm_peers_are_far(s->world)) {
    lam_add(p->dtype, parts, s->g->size, mine.n, own);
    lam_copy_streaming(y, own, (size_t)(mine.n * bytes));
  } else {
    lam_add(p->dtype, parts, s->g->size, mine.n, y);
    lam_shm_fill(s->world, own, y, mine.n * bytes);
  }
}

static void drain_shares(const shm_pass *p, int64_t piece) {
  const int64_t bytes = lam_dtype_bytes(p->dtype);
  for (int r = 0; r < p->s->g->size; r++) {
    const share theirs = share_of(p, piece, r);
    if (r != p->s->g->rank)
      lam_copy_result(y_at(p, piece * p->piece + theirs.first),
                      shm_slot_data(p, r, piece) + theirs.first * bytes, theirs.n * bytes,
                      result_bytes(p));
  }
}

/* ---- Which, and in what pieces --------------------------------------------------------------- */

typedef struct path {
  uint64_t up_to; /* bytes of the operand */
  uint64_t piece_bytes;
  bool two_shot;
  const char *name;
} path;

static const path paths[] = {
    {SHM_PACKET_BYTES, SHM_PACKET_BYTES, false, "shm packet"},
    {16 << 10, 16 << 10, false, "shm one-shot"},
    {SHM_SLOT_BYTES, SHM_SLOT_BYTES, true, "shm two-shot"},
    {UINT64_MAX, SHM_SLOT_BYTES, true, "shm two-shot, pipelined"},
};

static const path *path_for(int size, uint64_t bytes) {
  const path *p = size > SHM_PACKET_RANKS ? &paths[1] : paths;
  while (bytes > p->up_to) p++;
  return p;
}

const char *lam_shm_all_reduce_path(int size, uint64_t bytes) {
  return path_for(size, bytes)->name;
}

static shm_pass pass_over(lam_group *g, const void *x, void *y, int64_t n, lam_dtype t,
                          uint64_t piece_bytes) {
  shm_pass p = {.s = shm_group_of(g), .x = x, .y = y, .total = n, .dtype = t};
  p.piece = (int64_t)piece_bytes / lam_dtype_bytes(t);
  p.n = n > p.piece ? (n + p.piece - 1) / p.piece : 1;
  p.used = (n < p.piece ? n : p.piece) * lam_dtype_bytes(t);
  return p;
}

lam_status lam_shm_all_reduce(lam_group *g, const void *x, void *y, int64_t n, lam_dtype t) {
  const path *path = path_for(g->size, (uint64_t)(n * lam_dtype_bytes(t)));
  if (path->up_to == SHM_PACKET_BYTES) return lam_shm_packet_sum(shm_group_of(g), x, y, n, t);
  shm_pass p = pass_over(g, x, y, n, t, path->piece_bytes);
  p.fill = path->two_shot ? fill_others : fill_all;
  p.fold = path->two_shot ? fold_share : NULL;
  p.drain = path->two_shot ? drain_shares : add_all;
  return lam_shm_pass_run(&p);
}

/* ---- Reduce ---------------------------------------------------------------------------------- */

static void fill_unless_root(const shm_pass *p, int64_t piece, unsigned char *own) {
  if (p->s->g->rank != p->root) fill_all(p, piece, own);
}
static void add_at_root(const shm_pass *p, int64_t piece) {
  if (p->s->g->rank == p->root) add_all(p, piece);
}

lam_status lam_shm_reduce(lam_group *g, const void *x, void *y, int64_t n, lam_dtype t, int root) {
  shm_pass p = pass_over(g, x, y, n, t, SHM_SLOT_BYTES);
  p.root = root;
  p.fill = fill_unless_root;
  p.drain = add_at_root;
  return lam_shm_pass_run(&p);
}
