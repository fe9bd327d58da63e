/* build_vmin.c: V-Min and V-Half (Qi et al. 2024, arXiv 2405.15362): two chunks per rank in a V,
 * fewer activations in flight for some bubble. All ranks are planned at once, in slots of one unit
 * that F, I and W all take: every micro-batch repeats one pattern 6 slots later, W fill the gaps,
 * then every item moves as early as its inputs and the pattern's own peak of memory allow. What
 * comes out is each rank's order; it is run eagerly.
 *
 * Invariant: items are visited in slot order and only move back in time, so what stands in a slot
 * that was not visited yet stands where it began; held[] never exceeds the limit once it is set.
 * What it leaves: see build.h. */
#include <limits.h>
#include <stdlib.h>

#include "plugin/pipeline/schedule/build.h"

/* 0: stage r, 1: stage 2p-1-r. While items move, a W is of no chunk: the k-th is for the k-th I. */
enum { F0, F1, I1, I0, W, W1, W0, n_types, NOTHING = -1 };
#define PERIOD 6 /* slots between a type's micro-batches: F, I and W of both chunks fit */
#define MOST_SLOTS (1 << 26) /* of all ranks together: 1.3 GB */

static const struct type {
  int8_t kind, chunk;
  int8_t neighbour; /* same type and micro-batch on that rank, relative to this one; 0 = none */
  int8_t own;       /* this type and the same micro-batch on its own rank comes before */
  int8_t held;      /* adds to the activations held */
  int8_t pending;   /* adds to the W that can be done */
} types[n_types] = {
    [F0] = {LAM_KIND_F, 0, -1, NOTHING, 1, 0},  [F1] = {LAM_KIND_F, 1, 1, F0, 1, 0},
    [I1] = {LAM_KIND_I, 1, -1, F1, 0, 1},       [I0] = {LAM_KIND_I, 0, 1, I1, 0, 1},
    [W] = {LAM_KIND_W, 0, 0, NOTHING, -1, -1},  [W1] = {LAM_KIND_W, 1, 0, NOTHING, -1, -1},
    [W0] = {LAM_KIND_W, 0, 0, NOTHING, -1, -1},
};

typedef struct plan {
  int p, m, n;      /* ranks, micro-batches, slots per rank */
  int limit;        /* activations that a rank may hold */
  bool w_float;     /* W stand in no slot: a pending one is done in each empty slot */
  int32_t *item;    /* [p][n]: type * 2m + micro (of W: its number), or NOTHING */
  int32_t *held;    /* [p][n]: activations held after a slot */
  int32_t *pending; /* [p][n]: I without their W after a slot */
  int32_t *slot;    /* [p][n_types * 2m]: where an item stands */
  int32_t *next;    /* [p]: the first slot after a rank's last item, while gaps are closed */
} plan;

static int32_t *row_of(const plan *z, int32_t *list, int r) { return list + (size_t)r * z->n; }
static int32_t *slot_of(const plan *z, int r, int type, int micro) {
  return z->slot + 2 * (size_t)z->m * ((size_t)r * n_types + (size_t)type) + micro;
}
static int type_at(const plan *z, int r, int t) {
  const int item = row_of(z, z->item, r)[t];
  return item == NOTHING ? NOTHING : item / (2 * z->m);
}
static int micro_at(const plan *z, int r, int t) { return row_of(z, z->item, r)[t] % (2 * z->m); }

static void place(plan *z, int r, int type, int micro, int t) {
  row_of(z, z->item, r)[t] = type * 2 * z->m + micro;
  *slot_of(z, r, type, micro) = t;
}

/* -- the pattern, and W -- */

/* Slots of the first micro-batch's F0, F1, I1, I0 on rank r. */
typedef void offsets_fn(int p, int r, int out[4]);

static void v_min_offsets(int p, int r, int out[4]) {
  const int k = p % 3 == 0 ? 2 : 0;
  out[F0] = r, out[F1] = 2 * p - r - 1, out[I1] = 2 * p + k + r, out[I0] = 4 * p + k - r - 1;
}

static void v_half_offsets(int p, int r, int out[4]) {
  const int k = p % 2 == 0 ? 3 : 0;
  out[F0] = 2 * r, out[F1] = 3 * p - r - 2;
  out[I1] = 3 * p + k + 2 * r - 1, out[I0] = 6 * p + k - r - 2;
}

static void place_pattern(plan *z, offsets_fn *offsets) {
  int first[4];
  for (int r = 0; r < z->p; r++) {
    offsets(z->p, r, first);
    for (int type = F0; type <= I0; type++)
      for (int i = 0; i < z->m; i++) place(z, r, type, i, first[type] + PERIOD * i);
  }
}

/* Empty slots take pending W; a W is pending from its I on, and those left over come at the end. */
static void fill_w(plan *z, int r) {
  int n = 0, done = 0;
  for (int t = 0; t < z->n; t++) {
    const int type = type_at(z, r, t);
    if (type != NOTHING)
      n += types[type].pending;
    else if (n)
      n--, place(z, r, W, done++, t);
  }
}

/* The same for good: pending W of chunk 1 go first. */
static void fill_w_of_chunks(plan *z, int r) {
  int n[2] = {0, 0}, done[2] = {0, 0};
  for (int t = 0; t < z->n; t++) {
    const int type = type_at(z, r, t), c = n[1] ? 1 : 0;
    if (type != NOTHING)
      n[types[type].chunk] += types[type].pending;
    else if (n[c])
      n[c]--, place(z, r, c ? W1 : W0, done[c]++, t);
  }
}

static void drop_w(plan *z, int r) {
  for (int t = 0; t < z->n; t++)
    if (type_at(z, r, t) == W) row_of(z, z->item, r)[t] = NOTHING;
}

/* -- memory -- */

/* Counts a rank's memory anew from slot `from` on, and stops past `until`, the last slot that
 * changed, once the counts are what they were. False: over the limit. */
static bool count_held(plan *z, int r, int from, int until) {
  int32_t *held = row_of(z, z->held, r), *pending = row_of(z, z->pending, r);
  int h = from ? held[from - 1] : 0, w = from ? pending[from - 1] : 0;
  for (int t = from; t < z->n; t++) {
    int type = type_at(z, r, t);
    if (type == NOTHING && z->w_float && w) type = W;
    if (type != NOTHING) h += types[type].held, w += types[type].pending;
    if (h > z->limit) return false;
    if (t > until && h == held[t] && w == pending[t]) return true;
    held[t] = h, pending[t] = w;
  }
  return true;
}

static void count_all_held(plan *z) {
  for (int r = 0; r < z->p; r++) count_held(z, r, 0, z->n);
}

static int highest_held(const plan *z) {
  int top = 0;
  for (size_t k = 0; k < (size_t)z->p * z->n; k++)
    if (z->held[k] > top) top = z->held[k];
  return top;
}

/* -- squeezing -- */

/* The first slot after all that an item waits for; of W only after the W before it: that its I is
 * done is may_stand's to see. */
static int earliest(const plan *z, int r, int type, int micro) {
  const struct type *t = &types[type];
  const int from = r + t->neighbour;
  int last = -1, at;
  if (t->neighbour && from >= 0 && from < z->p && (at = *slot_of(z, from, type, micro)) > last)
    last = at;
  if (t->own != NOTHING && (at = *slot_of(z, r, t->own, micro)) > last) last = at;
  if (micro && (at = *slot_of(z, r, type, micro - 1)) > last) last = at;
  return last + 1;
}

/* From slot t to slot u, if that can be; else all is as it was. */
static bool move_item(plan *z, int r, int t, int u) {
  const int type = type_at(z, r, t), micro = micro_at(z, r, t);
  row_of(z, z->item, r)[t] = NOTHING;
  place(z, r, type, micro, u);
  if (count_held(z, r, u, t)) return true;
  row_of(z, z->item, r)[u] = NOTHING;
  place(z, r, type, micro, t);
  count_held(z, r, u, t);
  return false;
}

/* Is slot u free, the limit kept there, and, for W, an I pending? What stands between u and the
 * item's own slot is no W, so pending cannot run out later; the limit is move_item's to keep. */
static bool may_stand(const plan *z, int r, int type, int u) {
  if (type_at(z, r, u) != NOTHING) return false;
  const int h = u ? row_of(z, z->held, r)[u - 1] : 0, w = u ? row_of(z, z->pending, r)[u - 1] : 0;
  return h + types[type].held <= z->limit && w + types[type].pending >= 0;
}

static void squeeze_item(plan *z, int r, int t) {
  const int type = type_at(z, r, t);
  for (int u = earliest(z, r, type, micro_at(z, r, t)); u < t; u++)
    if (may_stand(z, r, type, u) && move_item(z, r, t, u)) return;
}

/* Visits all items in slot order, ranks in turn. From rank 0's first I0 to the last micro-batch's
 * next F0 the pattern is steady, and stays; items before that are moved, or not (tail), those
 * after it are. */
static void squeeze(plan *z, bool tail) {
  enum { EARLY, STEADY, LATE } at = EARLY;
  for (int t = 0; t < z->n; t++)
    for (int r = 0; r < z->p; r++) {
      const int type = type_at(z, r, t);
      if (type == NOTHING) continue;
      if (at == EARLY && type == I0 && r == 0) at = STEADY;
      if (at == LATE || (at == EARLY && !tail)) squeeze_item(z, r, t);
      if (at == STEADY && type == F0 && micro_at(z, r, t) == z->m - 1) at = LATE;
    }
}

/* Keeps each rank's order, and takes out the gaps in which it waits for nobody. Without this V-Min
 * of p 3, m 6 takes 21 units of a rank's F, not the published 20.5. */
static void close_gaps(plan *z) {
  for (int t = 0; t < z->n; t++)
    for (int r = 0; r < z->p; r++) {
      const int type = type_at(z, r, t);
      if (type == NOTHING) continue;
      const int micro = micro_at(z, r, t), ready = earliest(z, r, type, micro);
      row_of(z, z->item, r)[t] = NOTHING;
      place(z, r, type, micro, ready > z->next[r] ? ready : z->next[r]);
      z->next[r] = *slot_of(z, r, type, micro) + 1;
    }
}

/* W take part in the first squeeze, and are placed anew after the second. */
static void order(plan *z, offsets_fn *offsets) {
  place_pattern(z, offsets);
  for (int r = 0; r < z->p; r++) fill_w(z, r);
  z->limit = INT_MAX;
  count_all_held(z);
  z->limit = highest_held(z);
  squeeze(z, false);
  close_gaps(z);
  for (int r = 0; r < z->p; r++) drop_w(z, r);
  z->w_float = true;
  count_all_held(z);
  squeeze(z, true);
  for (int r = 0; r < z->p; r++) fill_w_of_chunks(z, r);
}

/* -- the table -- */

static void plan_free(plan *z) {
  free(z->item), free(z->held), free(z->pending);
  free(z->slot), free(z->next);
}

static lam_status plan_alloc(const char *name, int p, int m, plan *z) {
  const int64_t n = 6 * (int64_t)p + (PERIOD + 2) * (int64_t)m + 3; /* the last I0; W left over */
  if (p * n > MOST_SLOTS)
    return lam_fail(LAM_INVALID_ARGUMENT,
                    "lam_schedule_build: %s of p %d, m %d: p (6p + 8m + 3) is %lld slots, expected "
                    "at most %d",
                    name, p, m, (long long)(p * n), MOST_SLOTS);
  const size_t cells = (size_t)(p * n);
  *z = (plan){.p = p, .m = m, .n = (int)n};
  z->item = malloc(cells * sizeof *z->item);
  z->held = calloc(cells, sizeof *z->held);
  z->pending = calloc(cells, sizeof *z->pending);
  z->slot = malloc((size_t)p * n_types * 2 * (size_t)m * sizeof *z->slot);
  z->next = calloc((size_t)p, sizeof *z->next);
  if (!z->item || !z->held || !z->pending || !z->slot || !z->next) {
    plan_free(z);
    return lam_fail(LAM_RESOURCE_EXHAUSTED, "lam_schedule_build: %s: no memory for %zu slots", name,
                    cells);
  }
  for (size_t k = 0; k < cells; k++) z->item[k] = NOTHING;
  return LAM_OK;
}

static lam_status build(const char *name, lam_list *l, offsets_fn *offsets) {
  plan z;
  LAM_TRY(plan_alloc(name, l->p, l->m, &z));
  order(&z, offsets);
  for (l->r = 0; l->r < l->p; l->r++)
    for (int t = 0; t < z.n; t++) {
      const int type = type_at(&z, l->r, t);
      if (type != NOTHING)
        lam_list_push(l, types[type].kind, types[type].chunk, micro_at(&z, l->r, t));
    }
  plan_free(&z);
  return LAM_OK;
}

/* About half of 1F1B's activations: (p+2)/2 micro-batches of a whole rank, for m >= 2p. */
lam_status lam_build_v_half(lam_list *l) { return build("v-half", l, v_half_offsets); }

/* About a third of 1F1B's activations: (p+4)/3 micro-batches of a whole rank, for m >= 2p. */
lam_status lam_build_v_min(lam_list *l) { return build("v-min", l, v_min_offsets); }
