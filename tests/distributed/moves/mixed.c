/* mixed.c: see mixed.h. */
#include "tests/distributed/moves/mixed.h"

#include <stdlib.h>
#include <string.h>

#include "kernels/math.h"
#include "plugin/core/shard.h"
#include "tests/check.h"
#include "tests/place.h"

enum { BATCH = 16, SLOT = 4096 + 64, MOST = 1024 /* elements */, RANKS = 8, DEPTH = 3 };
enum { POISON = 0xa5 };

typedef struct kind kind;

typedef struct operation {
  const kind *kind;
  int number, which; /* which group */
  int64_t n, rows, cols, outer, first[RANKS + 1];
  lam_dtype dtype;
  int root;
  bool scatter;
  char *x, *y; /* on the device */
} operation;

typedef struct mix {
  lam_group *groups[2];
  lam_channel *to[2], *from[2];
  operation batch[BATCH];
  char *card, *host; /* x of the batch, then y */
} mix;

/* What a rank of the group ends with: element i of y, of `count`. */
struct kind {
  const char *name;
  lam_status (*run)(mix *m, operation *o);
  int64_t (*count)(const operation *o, const lam_group *g);
  double (*expected)(const operation *o, const lam_group *g, int64_t i);
};

/* -- elements -- */

static double value(const operation *o, int rank, int64_t i) {
  return (double)((o->number * 31 + rank * 5 + i * 7) % 17 - 8);
}

static double sum_of(const operation *o, const lam_group *g, int64_t i) {
  double sum = 0;
  for (int r = 0; r < g->size; r++) sum += value(o, r, i);
  return sum;
}

static void put(lam_dtype t, char *to, int64_t i, double v) {
  const uint16_t half = t == LAM_F16 ? lam_f16_of_f32((float)v) : lam_bf16_of_f32((float)v);
  const float whole = (float)v;
  const int64_t bytes = lam_dtype_bytes(t);
  memcpy(to + i * bytes, t == LAM_F32 ? (const void *)&whole : &half, (size_t)bytes);
}

static double get(lam_dtype t, const char *from, int64_t i) {
  uint16_t half;
  float whole;
  memcpy(&whole, from + i * 4 * (t == LAM_F32), 4);
  memcpy(&half, from + i * 2, 2);
  return t == LAM_F32 ? whole : t == LAM_F16 ? lam_f32_of_f16(half) : lam_f32_of_bf16(half);
}

/* -- kinds -- */

static lam_comm_op announced(uint32_t op, const operation *o, int64_t n) {
  return (lam_comm_op){
      .op = op, .dtype = (uint16_t)o->dtype, .ndim = 1, .dims = {n}, .extra = o->root};
}

static uint64_t bytes_of(const operation *o, int64_t n) {
  return (uint64_t)(n * lam_dtype_bytes(o->dtype));
}

static int64_t all_of_it(const operation *o, const lam_group *g) { return (void)g, o->n; }

static lam_status all_reduce(mix *m, operation *o) {
  const lam_comm_op op = announced(LAM_OP_all_reduce, o, o->n);
  return lam_group_all_reduce(m->groups[o->which], &op, o->x, o->y, o->n, o->dtype);
}

static lam_status reduce(mix *m, operation *o) {
  const lam_comm_op op = announced(LAM_OP_reduce, o, o->n);
  return lam_group_reduce(m->groups[o->which], &op, o->x, o->y, o->n, o->dtype, o->root);
}
static int64_t at_the_root(const operation *o, const lam_group *g) {
  return g->rank == o->root ? o->n : 0;
}

static lam_status broadcast(mix *m, operation *o) {
  const lam_comm_op op = announced(LAM_OP_broadcast, o, o->n);
  return lam_group_broadcast(m->groups[o->which], &op, o->x, o->y, bytes_of(o, o->n), o->root);
}
static double the_roots(const operation *o, const lam_group *g, int64_t i) {
  return (void)g, value(o, o->root, i);
}

/* Shares of the middle dimension: [outer, first[size], 1]. */
static lam_parts parts_of(const operation *o) {
  return (lam_parts){o->outer, 1, o->first, o->dtype};
}
static int64_t share(const operation *o, int rank) { return o->first[rank + 1] - o->first[rank]; }

static lam_status all_gather(mix *m, operation *o) {
  lam_group *g = m->groups[o->which];
  const lam_comm_op op = announced(LAM_OP_all_gather, o, o->outer * o->first[g->size]);
  const lam_parts p = parts_of(o);
  return lam_group_all_gather(g, &op, &p, o->x, o->y);
}
static int64_t all_shares(const operation *o, const lam_group *g) {
  return o->outer * o->first[g->size];
}
static double of_its_owner(const operation *o, const lam_group *g, int64_t i) {
  int r = 0;
  const int64_t row = i / o->first[g->size], at = i % o->first[g->size];
  while (at >= o->first[r + 1]) r++;
  return value(o, r, row * share(o, r) + at - o->first[r]);
}

static lam_status reduce_scatter(mix *m, operation *o) {
  lam_group *g = m->groups[o->which];
  const lam_comm_op op = announced(LAM_OP_reduce_scatter, o, o->outer * o->first[g->size]);
  const lam_parts p = parts_of(o);
  return lam_group_reduce_scatter(g, &op, &p, o->x, o->y);
}
static int64_t own_share(const operation *o, const lam_group *g) {
  return o->outer * share(o, g->rank);
}
static double sum_of_share(const operation *o, const lam_group *g, int64_t i) {
  const int64_t own = share(o, g->rank), row = i / own;
  return sum_of(o, g, row * o->first[g->size] + o->first[g->rank] + i % own);
}

/* Parts of products, in f32: [rows, cols]. */
static int64_t own_first(const operation *o, const lam_group *g, int rank) {
  return o->scatter ? lam_share_begin(o->rows, 1, rank, g->size) : rank > g->rank ? o->rows : 0;
}
static lam_status products(mix *m, operation *o) {
  lam_group *g = m->groups[o->which];
  lam_comm_op op = announced(LAM_OP_linear_row, o, o->rows * o->cols);
  const int64_t first = own_first(o, g, g->rank), n = own_first(o, g, g->rank + 1) - first;
  const lam_matrix x = {o->x, o->rows, o->cols, o->cols, 1, LAM_F32, false};
  lam_sum s = {.y = {o->y, n, o->cols, o->cols, 1, LAM_F32, false},
               .y_first = first,
               .scatter = o->scatter,
               .whole = o->rows};
  LAM_TRY(lam_group_begin_sums(g, &op));
  LAM_TRY(lam_group_partial(g, o->rows, o->cols, &s));
  if (o->rows * o->cols > 0) LAM_TRY(lam_device_copy(g->device, NULL, x, s.part, g->stream));
  LAM_TRY(lam_group_sum_start(g, &s));
  return lam_group_sum_finish(g, &s);
}
static int64_t own_rows(const operation *o, const lam_group *g) {
  return (own_first(o, g, g->rank + 1) - own_first(o, g, g->rank)) * o->cols;
}
static double sum_of_products(const operation *o, const lam_group *g, int64_t i) {
  return sum_of(o, g, own_first(o, g, g->rank) * o->cols + i);
}

/* Around the ring. */
static int beside(const lam_group *g, int by) { return (g->rank + by + g->size) % g->size; }
static double the_neighbours(const operation *o, const lam_group *g, int64_t i) {
  return value(o, beside(g, -1), i);
}

/* In two halves, one of each kind, which may be received in the other order. */
static lam_status message(mix *m, operation *o) {
  lam_group *g = m->groups[o->which];
  const int64_t first[] = {0, o->n / 2, o->n};
  for (int kind = 0; kind < 2; kind++) {
    const int64_t n = first[kind + 1] - first[kind];
    const lam_wire h = {.bytes = bytes_of(o, n), .dtype = o->dtype, .ndim = 1, .shape = {n}};
    LAM_TRY(lam_group_send(g, beside(g, 1), kind, &h, o->x + bytes_of(o, first[kind])));
  }
  for (int i = 0; i < 2; i++) {
    const int kind = o->scatter ? 1 - i : i;
    const uint64_t at = bytes_of(o, first[kind]), room = bytes_of(o, first[kind + 1]) - at;
    lam_wire h;
    LAM_TRY(lam_group_recv(g, beside(g, -1), kind, &h, o->y + at, room));
  }
  return LAM_OK;
}

static lam_status copy(const lam_group *g, const void *from, void *to, uint64_t bytes) {
  const int64_t n = (int64_t)bytes;
  const lam_matrix x = {(void *)(uintptr_t)from, 1, n, n, 1, LAM_U8, false};
  const lam_matrix y = {to, 1, n, n, 1, LAM_U8, false};
  return n ? lam_device_copy(g->device, NULL, x, y, g->stream) : LAM_OK;
}

static lam_status through_a_channel(mix *m, operation *o) {
  const lam_group *g = m->groups[o->which];
  void *slot = NULL;
  const void *got = NULL;
  lam_wire h = {.bytes = bytes_of(o, o->n)};
  LAM_TRY(lam_channel_acquire(m->to[o->which], &slot));
  LAM_TRY(copy(g, o->x, slot, h.bytes));
  LAM_TRY(lam_channel_push(m->to[o->which], &h));
  LAM_TRY(lam_channel_pull(m->from[o->which], &h, &got));
  LAM_TRY(copy(g, got, o->y, h.bytes));
  return lam_channel_release(m->from[o->which]);
}

static const kind kinds[] = {
    {"all_reduce", all_reduce, all_of_it, sum_of},
    {"reduce", reduce, at_the_root, sum_of},
    {"broadcast", broadcast, all_of_it, the_roots},
    {"all_gather", all_gather, all_shares, of_its_owner},
    {"reduce_scatter", reduce_scatter, own_share, sum_of_share},
    {"partial sums", products, own_rows, sum_of_products},
    {"a message", message, all_of_it, the_neighbours},
    {"a channel", through_a_channel, all_of_it, the_neighbours},
};
enum { N_KINDS = sizeof kinds / sizeof *kinds, PRODUCTS = 5 };

/* -- chance: the same on all ranks -- */

static void draw(operation *o, rng *r, int number, int size) {
  static const lam_dtype dtypes[] = {LAM_F32, LAM_BF16, LAM_F16};
  *o = (operation){.number = number};
  o->which = (int)rng_int(r, 0, 1);
  o->kind = &kinds[rng_int(r, 0, N_KINDS - 1)];
  o->dtype = o->kind == &kinds[PRODUCTS] ? LAM_F32 : dtypes[rng_int(r, 0, 2)];
  o->root = (int)rng_int(r, 0, size - 1);
  o->scatter = rng_int(r, 0, 1);
  o->n = rng_int(r, 0, 3) ? rng_int(r, 0, 60) : rng_int(r, 0, MOST);
  o->cols = rng_int(r, 1, 16);
  o->rows = o->n / o->cols;
  o->outer = rng_int(r, 1, 3);
  const bool even = rng_int(r, 0, 1);
  for (int k = 0; k < size; k++) { /* some are empty */
    const int64_t most = o->n / o->outer / size, any = rng_int(r, 0, 2) ? rng_int(r, 0, most) : 0;
    o->first[k + 1] = o->first[k] + (even ? most : any);
  }
}

/* -- a batch -- */

static void fill(mix *m, operation *o, int at) {
  const lam_group *g = m->groups[o->which];
  char *x = m->host + at * SLOT;
  for (int64_t i = 0; i < MOST; i++) put(o->dtype, x, i, value(o, g->rank, i));
  o->x = m->card + at * SLOT;
  o->y = m->card + (BATCH + at) * SLOT;
}

static bool run(mix *m, operation *o) {
  lam_group *g = m->groups[o->which];
  NOTE("operation %d: %s over group %d of %d, %lld elements", o->number, o->kind->name, o->which,
       g->size, (long long)o->n);
  g->device = place_device();
  g->stream = place_stream();
  const int done = CHECK_OK(o->kind->run(m, o));
  g->device = NULL;
  return done;
}

/* And nothing behind it was written. */
static bool check(const mix *m, const operation *o, int at) {
  const lam_group *g = m->groups[o->which];
  const char *y = m->host + (BATCH + at) * SLOT;
  const int64_t n = o->kind->count(o, g);
  NOTE("operation %d: %s over group %d of %d, %lld elements", o->number, o->kind->name, o->which,
       g->size, (long long)o->n);
  for (int64_t i = 0; i < n; i++) {
    const double got = get(o->dtype, y, i), want = o->kind->expected(o, g, i);
    if (got != want) return CHECK_EQ(got, want);
  }
  for (uint64_t i = bytes_of(o, n); i < bytes_of(o, n) + 32; i++)
    if ((unsigned char)y[i] != POISON) return CHECK_EQ((unsigned char)y[i], POISON);
  return true;
}

static bool run_batch(mix *m, rng *r, int first) {
  memset(m->host, POISON, 2 * BATCH * SLOT);
  for (int i = 0; i < BATCH; i++) {
    draw(&m->batch[i], r, first + i, m->groups[0]->size);
    fill(m, &m->batch[i], i);
  }
  place_write(m->card, m->host, 2 * BATCH * SLOT);
  for (int i = 0; i < BATCH; i++)
    if (!run(m, &m->batch[i])) return false;
  place_read(m->host, m->card, 2 * BATCH * SLOT);
  place_finish();
  for (int i = 0; i < BATCH; i++)
    if (!check(m, &m->batch[i], i)) return false;
  return true;
}

/* -- all -- */

static void open_channels(mix *m, int which) {
  lam_group *g = m->groups[which];
  const int next = beside(g, 1), previous = beside(g, -1);
  g->device = place_device();
  g->stream = place_stream();
  CHECK_OK(lam_channel_open(g, next, true, 70u + (unsigned)g->rank, DEPTH, SLOT, &m->to[which]));
  CHECK_OK(
      lam_channel_open(g, previous, false, 70u + (unsigned)previous, DEPTH, SLOT, &m->from[which]));
  g->device = NULL;
}

void mixed_run(lam_group *a, lam_group *b, uint64_t chance, int n_operations) {
  mix m = {.groups = {a, b}};
  rng r = {chance};
  m.host = malloc(2 * BATCH * SLOT);
  m.card = place_alloc(2 * BATCH * SLOT);
  FOR_EACH(which, 0, 1) open_channels(&m, which);
  for (int i = 0; i < n_operations && run_batch(&m, &r, i); i += BATCH) continue;
  FOR_EACH(which, 0, 1) lam_channel_close(m.to[which]), lam_channel_close(m.from[which]);
  free(m.host);
}
