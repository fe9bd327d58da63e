/* collectives_test.c: what every engine's collectives give, against double precision, for any
 * size, dtype and split. */
#include <stdlib.h>
#include <string.h>

#include "tests/conformance/engine/suite.h"

static const lam_dtype dtypes[] = {LAM_F32, LAM_BF16, LAM_F64, LAM_I32, LAM_I64};
enum { N_DTYPES = sizeof dtypes / sizeof *dtypes };

/* A block whose use starts `off` bytes after a cache line. */
static void *block(int64_t bytes, int off) {
  char *p = aligned_alloc(64, (size_t)(bytes + 127) / 64 * 64);
  return p + off;
}
static void unblock(void *p, int off) { free((char *)p - off); }

/* ---- all_reduce ------------------------------------------------------------------------------ */

static void reduce_once(lam_group *g, int64_t n, lam_dtype t, int off, bool in_place) {
  const int64_t bytes = n * lam_dtype_bytes(t);
  const uint64_t of = (uint64_t)n * 10 + t;
  void *x = block(bytes, off), *y = in_place ? x : block(bytes, off);
  const lam_comm_op op = op_of(LAM_OP_all_reduce, t, n);
  fill(x, t, n, of, g->rank);
  CHECK_OK(lam_group_all_reduce(g, &op, x, y, n, t));
  check_sums(y, t, 0, n, of, g->size);
  check_same_everywhere(g, y, (uint64_t)bytes);
  unblock(x, off);
  if (!in_place) unblock(y, off);
}

static void reduce_sizes(lam_group *g) {
  FOR_EACH(n, 0, 1, 3, 15, 16, 17, 255, 256, 257, 1025, 4095, 4096, 4099, 40000, 70001)
  reduce_once(g, n, LAM_F32, 0, false);
  rng r = {seed()};
  for (int i = 0; i < 10; i++) reduce_once(g, rng_int(&r, 1, 3000), LAM_F32, 0, false);
}
TEST(engine, all_reduce_is_right_for_any_length) {
  on_every_engine("all_reduce_is_right_for_any_length", 1, reduce_sizes);
}

static void reduce_dtypes(lam_group *g) {
  for (int t = 0; t < N_DTYPES; t++)
    FOR_EACH(n, 1, 31, 33, 1000, 9001, 50021) reduce_once(g, n, dtypes[t], 0, false);
}
TEST(engine, all_reduce_is_right_for_any_dtype) {
  on_every_engine("all_reduce_is_right_for_any_dtype", 1, reduce_dtypes);
}

static void reduce_places(lam_group *g) {
  FOR_EACH(off, 2, 6, 62) {
    reduce_once(g, 501, LAM_BF16, off, false);
    reduce_once(g, 30011, LAM_BF16, off, true);
  }
  reduce_once(g, 77, LAM_F32, 4, true);
  reduce_once(g, 100003, LAM_F32, 12, true);
}
TEST(engine, all_reduce_works_in_place_and_unaligned) {
  on_every_engine("all_reduce_works_in_place_and_unaligned", 1, reduce_places);
}

static void reduce_large(lam_group *g) {
  reduce_once(g, 400001, LAM_F32, 0, true);
  reduce_once(g, 500001, LAM_BF16, 0, false);
}
TEST(engine, all_reduce_is_right_in_many_pieces) {
  on_every_engine("all_reduce_is_right_in_many_pieces", 2, reduce_large);
}

/* Summed in another order, a large and its negative would leave something else. */
static void rank_order(lam_group *g) {
  static const float given[4] = {1e8f, 1.0f, -1e8f, 1.0f};
  FOR_EACH(n, 1, 200, 5000, 80000) {
    float *x = malloc((size_t)n * 4), want = given[0];
    for (int r = 1; r < g->size; r++) want += given[r];
    for (int i = 0; i < n; i++) x[i] = given[g->rank];
    const lam_comm_op op = op_of(LAM_OP_all_reduce, LAM_F32, n);
    CHECK_OK(lam_group_all_reduce(g, &op, x, x, n, LAM_F32));
    for (int i = 0; i < n; i++)
      if (x[i] != want && !CHECK(x[i] == want)) break;
    free(x);
  }
}
TEST(engine, sums_are_made_in_rank_order) {
  on_every_engine("sums_are_made_in_rank_order", 2, rank_order);
}

/* ---- Shares ---------------------------------------------------------------------------------- */

/* Any split, some shares empty. */
static void random_shares(rng *r, int size, int64_t *first) {
  first[0] = 0;
  for (int i = 0; i < size; i++)
    first[i + 1] = first[i] + (rng_int(r, 0, 3) ? rng_int(r, 0, 40) : 0);
}

static void gather_once(lam_group *g, const lam_parts *p) {
  const int64_t total = p->first[g->size], begin = p->first[g->rank],
                own = p->first[g->rank + 1] - begin;
  const int64_t bytes = lam_dtype_bytes(p->dtype);
  char *mine = malloc((size_t)(p->outer * own * p->inner * bytes) + 1),
       *whole = malloc((size_t)(p->outer * total * p->inner * bytes) + 1);
  for (int64_t o = 0; o < p->outer; o++)
    for (int64_t i = 0; i < own * p->inner; i++)
      for (int64_t b = 0; b < bytes; b++)
        mine[(o * own * p->inner + i) * bytes + b] =
            (char)((o * total + begin) * p->inner + i + 3 * b);
  const lam_comm_op op = {.op = LAM_OP_all_gather,
                          .dtype = (uint16_t)p->dtype,
                          .ndim = 3,
                          .dims = {p->outer, total, p->inner}};
  CHECK_OK(lam_group_all_gather(g, &op, p, mine, whole));
  for (int64_t i = 0; i < p->outer * total * p->inner * bytes; i++)
    if (whole[i] != (char)(i / bytes + 3 * (i % bytes)) &&
        !CHECK_EQ(whole[i], (char)(i / bytes + 3 * (i % bytes))))
      break;
  free(mine);
  free(whole);
}

static void gathers(lam_group *g) {
  rng r = {seed() + 1};
  int64_t first[MAX_RANKS + 1];
  const lam_dtype types[] = {LAM_F32, LAM_BF16, LAM_U8, LAM_I64};
  for (int i = 0; i < 24; i++) {
    random_shares(&r, g->size, first);
    gather_once(g, &(lam_parts){rng_int(&r, 0, 5), rng_int(&r, 1, 70), first, types[i % 4]});
  }
  lam_share(3001, 1, g->size, first);
  gather_once(g, &(lam_parts){3, 100, first, LAM_F32}); /* more than a slot */
}
TEST(engine, all_gather_joins_any_dimension_unevenly) {
  on_every_engine("all_gather_joins_any_dimension_unevenly", 1, gathers);
}

static void scatter_once(lam_group *g, const lam_parts *p, uint64_t of) {
  const int64_t total = p->first[g->size], begin = p->first[g->rank],
                own = p->first[g->rank + 1] - begin;
  const int64_t bytes = lam_dtype_bytes(p->dtype), row = own * p->inner;
  char *mine = malloc((size_t)(p->outer * row * bytes) + 1),
       *whole = malloc((size_t)(p->outer * total * p->inner * bytes) + 1);
  fill(whole, p->dtype, p->outer * total * p->inner, of, g->rank);
  const lam_comm_op op = {.op = LAM_OP_reduce_scatter,
                          .dtype = (uint16_t)p->dtype,
                          .ndim = 3,
                          .dims = {p->outer, total, p->inner}};
  CHECK_OK(lam_group_reduce_scatter(g, &op, p, whole, mine));
  for (int64_t o = 0; o < p->outer; o++)
    check_sums(mine + o * row * bytes, p->dtype, (o * total + begin) * p->inner, row, of, g->size);
  free(mine);
  free(whole);
}

static void scatters(lam_group *g) {
  rng r = {seed() + 2};
  int64_t first[MAX_RANKS + 1];
  for (int i = 0; i < 20; i++) {
    random_shares(&r, g->size, first);
    scatter_once(g,
                 &(lam_parts){rng_int(&r, 0, 5), rng_int(&r, 1, 70), first, dtypes[i % N_DTYPES]},
                 500 + (uint64_t)i);
  }
  lam_share(2003, 1, g->size, first);
  scatter_once(g, &(lam_parts){2, 50, first, LAM_F32}, 600);
  scatter_once(g, &(lam_parts){1, 50, first, LAM_BF16}, 601);
}
TEST(engine, reduce_scatter_splits_any_dimension_unevenly) {
  on_every_engine("reduce_scatter_splits_any_dimension_unevenly", 1, scatters);
}

/* ---- One root -------------------------------------------------------------------------------- */

static void broadcast_once(lam_group *g, int root, int64_t n, bool in_place) {
  float *x = malloc((size_t)n * 4 + 4), *y = in_place ? x : malloc((size_t)n * 4 + 4);
  lam_comm_op op = op_of(LAM_OP_broadcast, LAM_F32, n);
  op.extra = root;
  fill(x, LAM_F32, n, 700, g->rank);
  CHECK_OK(lam_group_broadcast(g, &op, x, y, (uint64_t)n * 4, root));
  for (int i = 0; i < n; i++)
    if (y[i] != value_of(700, root, i) && !CHECK(y[i] == value_of(700, root, i))) break;
  free(x);
  if (!in_place) free(y);
}

static void broadcasts(lam_group *g) {
  for (int root = 0; root < g->size; root++)
    FOR_EACH(n, 0, 1, 1000, 150001) FOR_EACH(in_place, 0, 1) broadcast_once(g, root, n, in_place);
}
TEST(engine, broadcast_hands_out_the_roots_operand) {
  on_every_engine("broadcast_hands_out_the_roots_operand", 1, broadcasts);
}

static void reduce_at(lam_group *g, int root, int64_t n, bool in_place) {
  float *x = malloc((size_t)n * 4 + 4), *y = in_place ? x : malloc((size_t)n * 4 + 4);
  lam_comm_op op = op_of(LAM_OP_reduce, LAM_F32, n);
  op.extra = root;
  fill(x, LAM_F32, n, 800, g->rank);
  CHECK_OK(lam_group_reduce(g, &op, x, g->rank == root ? y : NULL, n, LAM_F32, root));
  if (g->rank == root) check_sums(y, LAM_F32, 0, n, 800, g->size);
  free(x);
  if (!in_place) free(y);
}

static void reduces(lam_group *g) {
  for (int root = 0; root < g->size; root++)
    FOR_EACH(n, 0, 1, 1000, 100001) FOR_EACH(in_place, 0, 1) reduce_at(g, root, n, in_place);
}
TEST(engine, reduce_sums_at_the_root) { on_every_engine("reduce_sums_at_the_root", 1, reduces); }

/* ---- Partial sums ---------------------------------------------------------------------------- */

typedef struct product { /* of `chunks` chunks, rows each */
  int64_t rows, cols, chunks;
  lam_dtype y;
  bool bias, residual, scatter;
} product;

static lam_matrix matrix(void *data, int64_t rows, int64_t cols, lam_dtype t) {
  return (lam_matrix){
      .data = data, .rows = rows, .cols = cols, .row_stride = cols, .col_stride = 1, .dtype = t};
}

/* bias is column / 64, residual row / 32: exact in bf16 for small ones. */
static double expected(const product *p, int64_t row, int64_t col, int64_t chunk, int size) {
  double want =
      (p->bias ? (double)(col % 64) / 64 : 0) + (p->residual ? (double)(row % 32) / 32 : 0);
  for (int r = 0; r < size; r++) want += value_of(900 + (uint64_t)chunk, r, row * p->cols + col);
  return want;
}

static void check_product(const product *p, const void *y, int64_t first, int64_t n, int64_t chunk,
                          int size) {
  const double unit = (p->y == LAM_F32 ? 0x1p-24 : 0x1p-9) * (size + 2) * 2;
  for (int64_t i = 0; i < n * p->cols; i++) {
    const double want = expected(p, first + i / p->cols, i % p->cols, chunk, size),
                 off = stored(y, p->y, i) - want;
    if (off <= unit && off >= -unit) continue;
    check_fail(CHECK_AT, "chunk %lld, row %lld, column %lld: %.9g, expected %.9g", (long long)chunk,
               (long long)(first + i / p->cols), (long long)(i % p->cols), stored(y, p->y, i),
               want);
    return;
  }
}

typedef struct chunk {
  lam_sum sum;
  void *y, *residual;
  int64_t first, n;
} chunk;

static void put(lam_matrix m, int64_t i, double v) {
  if (m.dtype == LAM_F32)
    ((float *)m.data)[i] = (float)v;
  else
    memcpy((char *)m.data + 2 * i, (char *)&(float){(float)v} + 2, 2); /* exact here: no rounding */
}

/* With scatter, the rank's rows of the chunk: every chunk is shared out alike here. */
static void start_chunk(lam_group *g, const product *p, int64_t number, const lam_matrix *bias,
                        chunk *c) {
  int64_t first[MAX_RANKS + 1];
  lam_share(p->rows, 1, g->size, first);
  c->first = p->scatter ? first[g->rank] : 0;
  c->n = p->scatter ? first[g->rank + 1] - first[g->rank] : p->rows;
  c->y = calloc((size_t)(p->rows * p->cols) + 1, 4);
  c->residual = calloc((size_t)(p->rows * p->cols) + 1, 4);
  c->sum =
      (lam_sum){.y = matrix(c->y, c->n, p->cols, p->y), .y_first = c->first, .scatter = p->scatter};
  c->sum.whole = p->rows;
  if (p->bias) c->sum.bias = *bias;
  if (p->residual) c->sum.residual = matrix(c->residual, c->n, p->cols, p->y);
  for (int64_t i = 0; p->residual && i < c->n * p->cols; i++)
    put(c->sum.residual, i, (double)((c->first + i / p->cols) % 32) / 32);
  REQUIRE_OK(lam_group_partial(g, p->rows, p->cols, &c->sum));
  fill(c->sum.part.data, LAM_F32, p->rows * p->cols, 900 + (uint64_t)number, g->rank);
  CHECK_OK(lam_group_sum_start(g, &c->sum));
}

static void finish_chunk(lam_group *g, const product *p, int64_t number, chunk *c) {
  CHECK_OK(lam_group_sum_finish(g, &c->sum));
  check_product(p, c->y, c->first, c->n, number, g->size);
  if (!p->scatter)
    check_same_everywhere(g, c->y, (uint64_t)(p->rows * p->cols * lam_dtype_bytes(p->y)));
  free(c->y);
  free(c->residual);
}

/* Two chunks under way at any time; one operation each, so that the checks between them are
 * others. */
static void sum_product(lam_group *g, const product *p) {
  void *bias_data = calloc((size_t)p->cols + 1, 4);
  const lam_matrix bias = matrix(bias_data, 1, p->cols, p->y);
  chunk chunks[2];
  for (int64_t i = 0; i < p->cols; i++) put(bias, i, (double)(i % 64) / 64);
  const lam_comm_op op = {.op = LAM_OP_linear_row,
                          .dtype = (uint16_t)p->y,
                          .ndim = 2,
                          .dims = {p->rows * p->chunks, p->cols}};
  CHECK_OK(lam_group_begin_sums(g, &op));
  for (int64_t i = 0; i < p->chunks; i++) {
    start_chunk(g, p, i, &bias, &chunks[i % 2]);
    if (i > 0) finish_chunk(g, p, i - 1, &chunks[(i - 1) % 2]);
  }
  finish_chunk(g, p, p->chunks - 1, &chunks[(p->chunks - 1) % 2]);
  free(bias_data);
}

static void products(lam_group *g) {
  const product all[] = {
      {1, 33, 1, LAM_F32, false, false, false},   {5, 17, 3, LAM_F32, true, true, false},
      {64, 64, 5, LAM_BF16, true, false, false},  {7, 129, 2, LAM_BF16, false, true, true},
      {3, 50, 9, LAM_F32, true, true, true},      {300, 512, 3, LAM_F32, true, true, false},
      {301, 300, 6, LAM_BF16, true, true, false}, {299, 301, 5, LAM_F32, true, false, true},
  };
  for (size_t i = 0; i < sizeof all / sizeof *all; i++) {
    NOTE("product %zu, %d ranks", i, g->size);
    sum_product(g, &all[i]);
  }
}
TEST(engine, partial_sums_take_bias_and_residual_once) {
  on_every_engine("partial_sums_take_bias_and_residual_once", 1, products);
}

static void too_many_chunks(lam_group *g) {
  lam_sum sums[16];
  int n = 0;
  const lam_comm_op op = op_of(LAM_OP_linear_row, LAM_F32, 4);
  memset(sums, 0, sizeof sums);
  CHECK_OK(lam_group_begin_sums(g, &op));
  while (n < 16 && lam_group_partial(g, 1, 4, &sums[n]) == LAM_OK) {
    memset(sums[n].part.data, 0, 16);
    CHECK_OK(lam_group_sum_start(g, &sums[n++]));
  }
  CHECK(n >= 2 && n < 16);
  CHECK_CONTAINS(lam_last_error(), "finish one first");
  for (int i = 0; i < n; i++) {
    float y[4];
    sums[i].y = matrix(y, 1, 4, LAM_F32);
    sums[i].y_first = 0;
    sums[i].scatter = false;
    sums[i].bias = sums[i].residual = (lam_matrix){0};
    CHECK_OK(lam_group_sum_finish(g, &sums[i]));
  }
  reduce_once(g, 10, LAM_F32, 0, false); /* the group is as it was */
}
TEST(engine, partial_sums_refuse_more_chunks_than_slots) {
  on_every_engine("partial_sums_refuse_more_chunks_than_slots", 1, too_many_chunks);
}
