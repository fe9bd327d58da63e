/* groups_test.c: what every engine does with transfers, channels, splits and disagreements. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "tests/conformance/engine/suite.h"
#include "tests/distributed/await.h"

static void sum_ones(lam_group *g) {
  float x = 1;
  const lam_comm_op op = op_of(LAM_OP_all_reduce, LAM_F32, 1);
  CHECK_OK(lam_group_all_reduce(g, &op, &x, &x, 1, LAM_F32));
  CHECK_EQ(x, g->size);
}

/* ---- Transfers ------------------------------------------------------------------------------- */

static lam_wire header_of(uint64_t bytes, uint64_t item) {
  return (lam_wire){.bytes = bytes,
                    .item = item,
                    .micro = 7,
                    .dtype = LAM_U8,
                    .ndim = 1,
                    .shape = {(int64_t)bytes},
                    .kind = 1};
}

static void check_message(const lam_wire *h, const unsigned char *data, uint64_t bytes,
                          uint64_t item, int from) {
  CHECK_EQ(h->bytes, bytes);
  CHECK_EQ(h->item, item);
  CHECK_EQ(h->micro, 7);
  CHECK_EQ(h->shape[0], bytes);
  for (uint64_t i = 0; i < bytes; i++)
    if (data[i] != (unsigned char)(i * 7 + item + (uint64_t)from) &&
        !CHECK_EQ(data[i], (unsigned char)(i * 7 + item + (uint64_t)from)))
      return;
}

static void make_message(unsigned char *data, uint64_t bytes, uint64_t item, int from) {
  for (uint64_t i = 0; i < bytes; i++) data[i] = (unsigned char)(i * 7 + item + (uint64_t)from);
}

static const int sizes[] = {0, 1, 63, 1024, 1025, 5000, 65536, 65537, 300000};
enum { N_SIZES = sizeof sizes / sizeof *sizes, MOST = 300000 };

/* Everyone sends to the next and receives from the one before, all sends first. */
static void around(lam_group *g) {
  const int next = (g->rank + 1) % g->size, before = (g->rank + g->size - 1) % g->size;
  unsigned char *data = malloc(MOST);
  for (int i = 0; i < N_SIZES; i++) {
    const lam_wire h = header_of((uint64_t)sizes[i], (uint64_t)i);
    make_message(data, h.bytes, h.item, g->rank);
    CHECK_OK(lam_group_send(g, next, 0, &h, data));
  }
  for (int i = 0; i < N_SIZES; i++) {
    lam_wire h;
    memset(data, 0, MOST);
    CHECK_OK(lam_group_recv(g, before, 0, &h, data, MOST));
    check_message(&h, data, (uint64_t)sizes[i], (uint64_t)i, before);
  }
  free(data);
}
TEST(engine, messages_arrive_whole_and_in_order) {
  on_every_engine("messages_arrive_whole_and_in_order", 2, around);
}

static void kinds_apart(lam_group *g) {
  unsigned char data[4];
  lam_wire h;
  if (g->rank == 0)
    for (int i = 0; i < 4; i++) {
      const lam_wire out = header_of(4, (uint64_t)i);
      make_message(data, 4, (uint64_t)i, 0);
      CHECK_OK(lam_group_send(g, 1, i % 2, &out, data));
    }
  if (g->rank != 1) return;
  FOR_EACH(i, 1, 3, 0, 2) {
    CHECK_OK(lam_group_recv(g, 0, i % 2, &h, data, sizeof data));
    check_message(&h, data, 4, (uint64_t)i, 0);
  }
}
TEST(engine, activations_and_gradients_do_not_mix) {
  on_every_engine("activations_and_gradients_do_not_mix", 2, kinds_apart);
}

/* 8 MiB each way before anyone receives. */
static void both_ways(lam_group *g) {
  const uint64_t bytes = 8 << 20;
  unsigned char *out = malloc(bytes), *in = malloc(bytes);
  lam_wire h = header_of(bytes, 3);
  if (g->rank < 2) {
    make_message(out, bytes, 3, g->rank);
    CHECK_OK(lam_group_send(g, 1 - g->rank, 0, &h, out));
    CHECK_OK(lam_group_recv(g, 1 - g->rank, 0, &h, in, bytes));
    check_message(&h, in, bytes, 3, 1 - g->rank);
  }
  free(out);
  free(in);
}
TEST(engine, two_ranks_may_both_send_first) {
  on_every_engine("two_ranks_may_both_send_first", 2, both_ways);
}

static void too_long(lam_group *g) {
  unsigned char data[100] = {0};
  lam_wire h = header_of(100, 0);
  if (g->rank == 0) CHECK_OK(lam_group_send(g, 1, 0, &h, data));
  if (g->rank != 1) return;
  CHECK_STATUS(lam_group_recv(g, 0, 0, &h, data, 99), LAM_MISMATCH);
  CHECK_CONTAINS(lam_last_error(), "rank 0 sent 100 bytes, room is for 99");
}
TEST(engine, a_message_longer_than_its_room_is_a_mismatch) {
  on_every_engine("a_message_longer_than_its_room_is_a_mismatch", 2, too_long);
}

static void every_edge(lam_group *g) {
  CHECK_OK(lam_group_warmup(g));
  CHECK_OK(lam_group_warmup(g));
  sum_ones(g);
}
TEST(engine, warmup_leaves_nothing_behind) {
  on_every_engine("warmup_leaves_nothing_behind", 1, every_edge);
}

/* ---- Channels -------------------------------------------------------------------------------- */

static void push(lam_channel *c, uint64_t bytes, uint64_t item, int from) {
  void *slot = NULL;
  const lam_wire h = header_of(bytes, item);
  REQUIRE_OK(lam_channel_acquire(c, &slot));
  CHECK_EQ((uintptr_t)slot % 64, 0);
  make_message(slot, bytes, item, from);
  CHECK_OK(lam_channel_push(c, &h));
}

static void pull(lam_channel *c, uint64_t bytes, uint64_t item, int from) {
  lam_wire h;
  const void *data = NULL;
  REQUIRE_OK(lam_channel_pull(c, &h, &data));
  check_message(&h, data, bytes, item, from);
  CHECK_EQ(h.magic, LAM_WIRE_MAGIC);
  CHECK_EQ(h.sequence, item);
}

/* Activations down, gradients up, one forward and one backward in turn, as a pipeline does. */
static void pipeline(lam_group *g) {
  enum { MICROS = 20, DEPTH = 3 };
  const uint64_t bytes = 10000;
  lam_channel *in = NULL, *out = NULL, *back_in = NULL, *back_out = NULL;
  const int p = g->size, r = g->rank;
  if (r + 1 < p) CHECK_OK(lam_channel_open(g, r + 1, true, 1, DEPTH, bytes, &out));
  if (r + 1 < p) CHECK_OK(lam_channel_open(g, r + 1, false, 2, DEPTH, bytes, &back_in));
  if (r > 0) CHECK_OK(lam_channel_open(g, r - 1, false, 1, DEPTH, bytes, &in));
  if (r > 0) CHECK_OK(lam_channel_open(g, r - 1, true, 2, DEPTH, bytes, &back_out));
  for (uint64_t i = 0; i < MICROS; i++) {
    if (in) pull(in, bytes - i, i, r - 1), CHECK_OK(lam_channel_release(in));
    if (out) push(out, bytes - i, i, r);
    if (back_in) pull(back_in, 10 + i, i, r + 1), CHECK_OK(lam_channel_release(back_in));
    if (back_out) push(back_out, 10 + i, i, r);
  }
  sum_ones(g);
  lam_channel_close(in);
  lam_channel_close(out);
  lam_channel_close(back_in);
  lam_channel_close(back_out);
}
TEST(engine, channels_carry_a_pipelines_messages) {
  on_every_engine("channels_carry_a_pipelines_messages", 2, pipeline);
}

/* Pulled messages stay readable until they are released, oldest first. */
static void held(lam_group *g) {
  lam_channel *c = NULL;
  if (g->rank > 1) {
    sum_ones(g);
    return;
  }
  CHECK_OK(lam_channel_open(g, 1 - g->rank, g->rank == 0, 5, 3, 64, &c));
  if (g->rank == 0)
    for (uint64_t i = 0; i < 6; i++) push(c, 64, i, 0);
  else
    for (uint64_t i = 0; i < 6; i += 3) {
      const void *data[3] = {0};
      lam_wire h[3];
      for (int j = 0; j < 3; j++) REQUIRE_OK(lam_channel_pull(c, &h[j], &data[j]));
      for (int j = 0; j < 3; j++) check_message(&h[j], data[j], 64, i + (uint64_t)j, 0);
      for (int j = 0; j < 3; j++) CHECK_OK(lam_channel_release(c));
      CHECK_STATUS(lam_channel_release(c), LAM_FAILED_PRECONDITION);
    }
  sum_ones(g);
  lam_channel_close(c);
}
TEST(engine, pulled_messages_stay_until_they_are_released) {
  on_every_engine("pulled_messages_stay_until_they_are_released", 2, held);
}

static _Atomic int *sender_tid; /* shared; 0 until it comes to its third push */

/* The third push of a ring of two waits until the receiver gives one back, which it does once the
 * sender sleeps. */
static void back_pressure(lam_group *g) {
  lam_channel *c = NULL;
  lam_group_info info = LAM_GROUP_INFO_INIT;
  if (g->rank > 1) return;
  CHECK_OK(lam_channel_open(g, 1 - g->rank, g->rank == 0, 9, 2, 64, &c));
  if (g->rank == 0) {
    *sender_tid = 0;
    push(c, 8, 0, 0);
    push(c, 8, 1, 0);
    CHECK_OK(lam_group_get_info(g, &info));
    const uint64_t waits = info.waits;
    *sender_tid = gettid();
    push(c, 8, 2, 0);
    CHECK_OK(lam_group_get_info(g, &info));
    CHECK(info.waits > waits);
  } else {
    lam_wire h;
    const void *data = NULL;
    for (uint64_t i = 0; i < 2; i++) pull(c, 8, i, 0);
    await_state(sender_tid, 'S');
    CHECK_OK(lam_channel_release(c));
    CHECK_OK(lam_channel_pull(c, &h, &data));
    check_message(&h, data, 8, 2, 0);
  }
  lam_channel_close(c);
}
TEST(engine, channel_holds_its_sender_back) {
  sender_tid = shared_memory(sizeof *sender_tid);
  on_every_engine("channel_holds_its_sender_back", 2, back_pressure);
}

/* ---- Splits ---------------------------------------------------------------------------------- */

static void rows_and_columns(lam_group *g) {
  lam_group *row = NULL, *column = NULL, *pair = NULL;
  CHECK_OK(lam_group_split(g, g->rank / 2, g->rank, &row));
  CHECK_OK(
      lam_group_split(g, g->rank % 2, -g->rank, &column)); /* negative keys: the other way round */
  REQUIRE(row != NULL && column != NULL);
  CHECK_EQ(row->rank, g->rank % 2);
  CHECK_EQ(column->size, (g->size + 1 - g->rank % 2) / 2);
  CHECK_EQ(column->rank, column->size - 1 - g->rank / 2);
  CHECK(row->handle != column->handle && row->handle != g->handle);
  for (int i = 0; i < 3; i++) {
    sum_ones(row);
    sum_ones(column);
    sum_ones(g);
  }
  CHECK_OK(lam_group_split(row, row->size > 1 ? 0 : 0, 0, &pair)); /* a split of a split */
  REQUIRE(pair != NULL);
  sum_ones(pair);
  lam_group_destroy(column);
  lam_group_destroy(row);
  sum_ones(pair);
  lam_group_destroy(pair);
  sum_ones(g);
}
TEST(engine, splits_make_rows_and_columns) {
  on_every_engine("splits_make_rows_and_columns", 1, rows_and_columns);
}

static void uneven_colors(lam_group *g) {
  lam_group *sub = NULL;
  const int color = g->rank == 0 ? -1 : g->rank == g->size - 1 ? 5 : 2;
  CHECK_OK(lam_group_split(g, color, 0, &sub));
  CHECK_EQ(sub != NULL, color >= 0);
  if (sub) {
    CHECK_EQ(sub->size, color == 5 ? 1 : g->size - 2);
    sum_ones(sub);
    CHECK_OK(lam_group_warmup(sub));
  }
  lam_group_destroy(sub);
  sum_ones(g);
}
TEST(engine, a_negative_color_joins_no_group) {
  on_every_engine("a_negative_color_joins_no_group", 1, uneven_colors);
}

/* Members order themselves by (key, old rank): collectives follow the new order. */
static void reversed(lam_group *g) {
  lam_group *sub = NULL;
  int64_t first[MAX_RANKS + 1], who[MAX_RANKS], me = g->rank;
  CHECK_OK(lam_group_split(g, 3, g->size - g->rank, &sub));
  REQUIRE(sub != NULL);
  CHECK_EQ(sub->rank, g->size - 1 - g->rank);
  for (int r = 0; r <= g->size; r++) first[r] = r;
  const lam_comm_op op = op_of(LAM_OP_all_gather, LAM_I64, g->size);
  CHECK_OK(lam_group_all_gather(sub, &op, &(lam_parts){1, 1, first, LAM_I64}, &me, who));
  for (int r = 0; r < g->size; r++) CHECK_EQ(who[r], g->size - 1 - r);
  unsigned char data[16];
  lam_wire h = header_of(16, 1);
  if (sub->size > 1 && sub->rank == 0)
    make_message(data, 16, 1, 0), CHECK_OK(lam_group_send(sub, 1, 1, &h, data));
  if (sub->rank == 1)
    CHECK_OK(lam_group_recv(sub, 0, 1, &h, data, 16)), check_message(&h, data, 16, 1, 0);
  lam_group_destroy(sub);
}
TEST(engine, keys_order_a_split) { on_every_engine("keys_order_a_split", 1, reversed); }

/* ---- Disagreements --------------------------------------------------------------------------- */

typedef lam_status (*call_fn)(lam_group *g, bool odd);

/* The last rank does otherwise; all ranks get MISMATCH naming both sides, now and in every later
 * call. */
static void disagree(lam_group *g, call_fn call, const char *odd_text, const char *rank0_text) {
  char expected[80];
  float x = 0;
  const lam_comm_op op = op_of(LAM_OP_all_reduce, LAM_F32, 1);
  CHECK_STATUS(call(g, g->rank == g->size - 1), LAM_MISMATCH);
  snprintf(expected, sizeof expected, "rank %d called %s, rank 0 %s", g->size - 1, odd_text,
           rank0_text);
  CHECK_CONTAINS(lam_last_error(), expected);
  CHECK_STATUS(lam_group_all_reduce(g, &op, &x, &x, 1, LAM_F32), LAM_MISMATCH);
  CHECK_CONTAINS(lam_last_error(), expected);
  lam_group_info info = LAM_GROUP_INFO_INIT;
  CHECK_OK(lam_group_get_info(g, &info));
  CHECK_EQ(info.poison, LAM_MISMATCH);
  CHECK_CONTAINS(info.error, expected);
}

static lam_status other_shape(lam_group *g, bool odd) {
  static _Thread_local float x[30000];
  const int64_t n = odd ? 20000 : 33;
  const lam_comm_op op = op_of(LAM_OP_all_reduce, LAM_F32, n);
  return lam_group_all_reduce(g, &op, x, x, n, LAM_F32);
}
static void shapes(lam_group *g) {
  disagree(g, other_shape, "all_reduce f32 [20000]", "all_reduce f32 [33]");
}
TEST(engine, other_shapes_are_a_mismatch_on_all_ranks) {
  on_every_engine("other_shapes_are_a_mismatch_on_all_ranks", 2, shapes);
}

static lam_status other_dtype(lam_group *g, bool odd) {
  float x[64] = {0};
  const lam_dtype t = odd ? LAM_BF16 : LAM_F32;
  const lam_comm_op op = op_of(LAM_OP_all_reduce, t, 64);
  return lam_group_all_reduce(g, &op, x, x, 64, t);
}
static void types(lam_group *g) {
  disagree(g, other_dtype, "all_reduce bf16 [64]", "all_reduce f32 [64]");
}
TEST(engine, other_dtypes_are_a_mismatch_on_all_ranks) {
  on_every_engine("other_dtypes_are_a_mismatch_on_all_ranks", 2, types);
}

/* Few bytes here, a gather of many pieces there. */
static lam_status other_op(lam_group *g, bool odd) {
  static _Thread_local char x[1 << 20];
  static _Thread_local float y;
  int64_t first[MAX_RANKS + 1];
  for (int r = 0; r <= g->size; r++) first[r] = 200000 * r;
  const lam_comm_op gather = op_of(LAM_OP_all_gather, LAM_U8, 200000),
                    sum = op_of(LAM_OP_all_reduce, LAM_F32, 1);
  if (odd) return lam_group_all_gather(g, &gather, &(lam_parts){1, 1, first, LAM_U8}, x, x);
  return lam_group_all_reduce(g, &sum, &y, &y, 1, LAM_F32);
}
static void ops(lam_group *g) {
  disagree(g, other_op, "all_gather u8 [200000]", "all_reduce f32 [1]");
}
TEST(engine, other_operations_are_a_mismatch_on_all_ranks) {
  on_every_engine("other_operations_are_a_mismatch_on_all_ranks", 2, ops);
}

/* A sum of partial products against a plain one. */
static lam_status sums_or_not(lam_group *g, bool odd) {
  float y[8];
  const lam_comm_op op = op_of(odd ? LAM_OP_linear_row : LAM_OP_all_reduce, LAM_F32, 8);
  if (!odd) return memset(y, 0, sizeof y), lam_group_all_reduce(g, &op, y, y, 8, LAM_F32);
  lam_sum s = {
      .y = {.data = y, .rows = 1, .cols = 8, .row_stride = 8, .col_stride = 1, .dtype = LAM_F32}};
  LAM_TRY(lam_group_begin_sums(g, &op));
  LAM_TRY(lam_group_partial(g, 1, 8, &s));
  memset(s.part.data, 0, 32);
  LAM_TRY(lam_group_sum_start(g, &s));
  return lam_group_sum_finish(g, &s);
}
static void sums(lam_group *g) {
  disagree(g, sums_or_not, "linear_row f32 [8]", "all_reduce f32 [8]");
}
TEST(engine, partial_sums_against_another_operation_are_a_mismatch) {
  on_every_engine("partial_sums_against_another_operation_are_a_mismatch", 2, sums);
}

static lam_status other_root(lam_group *g, bool odd) {
  float x[64] = {0};
  lam_comm_op op = op_of(LAM_OP_broadcast, LAM_F32, 64);
  op.extra = odd;
  return lam_group_broadcast(g, &op, x, x, sizeof x, odd);
}
static void roots(lam_group *g) {
  disagree(g, other_root, "broadcast f32 [64]", "broadcast f32 [64]; root");
}
TEST(engine, other_roots_are_a_mismatch_on_all_ranks) {
  on_every_engine("other_roots_are_a_mismatch_on_all_ranks", 2, roots);
}

/* The same two operations in another order. */
static lam_status other_order(lam_group *g, bool odd) {
  float x[4] = {0};
  const lam_comm_op a = op_of(LAM_OP_all_reduce, LAM_F32, 4),
                    b = op_of(LAM_OP_broadcast, LAM_F32, 4);
  if (odd) LAM_TRY(lam_group_broadcast(g, &b, x, x, 16, 0));
  LAM_TRY(lam_group_all_reduce(g, &a, x, x, 4, LAM_F32));
  return lam_group_broadcast(g, &b, x, x, 16, 0);
}
static void order(lam_group *g) {
  disagree(g, other_order, "broadcast f32 [4]", "all_reduce f32 [4]");
}
TEST(engine, another_order_is_a_mismatch_on_all_ranks) {
  on_every_engine("another_order_is_a_mismatch_on_all_ranks", 2, order);
}

/* ---- Refusals -------------------------------------------------------------------------------- */

static void refusals(lam_group *g) {
  float x[4] = {0};
  lam_wire h = header_of(1, 0);
  lam_channel *c = NULL;
  const lam_comm_op op = op_of(LAM_OP_all_reduce, LAM_F16, 4);
  CHECK_STATUS(lam_group_all_reduce(g, &op, x, x, 4, LAM_F16), LAM_UNIMPLEMENTED);
  CHECK_STATUS(lam_group_broadcast(g, &op, x, x, 4, g->size), LAM_INVALID_ARGUMENT);
  CHECK_STATUS(lam_group_broadcast(g, &op, x, x, 4, -1), LAM_INVALID_ARGUMENT);
  CHECK_STATUS(lam_group_send(g, g->rank, 0, &h, x), LAM_INVALID_ARGUMENT);
  CHECK_STATUS(lam_group_recv(g, g->size, 0, &h, x, 1), LAM_INVALID_ARGUMENT);
  CHECK_STATUS(lam_group_send(g, (g->rank + 1) % g->size, 2, &h, x), LAM_INVALID_ARGUMENT);
  CHECK_STATUS(lam_channel_open(g, g->rank, true, 1, 1, 1, &c), LAM_INVALID_ARGUMENT);
  CHECK_STATUS(lam_channel_open(g, (g->rank + 1) % g->size, true, 1, 0, 1, &c),
               LAM_INVALID_ARGUMENT);
  REQUIRE_OK(lam_channel_open(g, (g->rank + 1) % g->size, true, 1, 1, 8, &c));
  CHECK_STATUS(lam_channel_push(c, &h), LAM_FAILED_PRECONDITION);
  void *slot = NULL;
  CHECK_OK(lam_channel_acquire(c, &slot));
  h.bytes = 9;
  CHECK_STATUS(lam_channel_push(c, &h), LAM_INVALID_ARGUMENT);
  lam_channel_close(c);
  sum_ones(g);
}
TEST(engine, refusals_leave_the_group_as_it_was) {
  on_every_engine("refusals_leave_the_group_as_it_was", 2, refusals);
}

/* ---- The end of a world ---------------------------------------------------------------------- */

static void poisoned(lam_group *g) {
  lam_group *sub = NULL;
  float x = 0;
  const lam_comm_op op = op_of(LAM_OP_all_reduce, LAM_F32, 1);
  CHECK_OK(lam_group_split(g, g->rank == 0 ? 0 : 1, 0, &sub));
  if (g->rank == g->size - 1) lam_group_poison(g, LAM_CANCELLED, "the host has enough");
  CHECK_STATUS(lam_group_all_reduce(g, &op, &x, &x, 1, LAM_F32), LAM_CANCELLED);
  CHECK_CONTAINS(lam_last_error(), "the host has enough");
  if (sub && sub->size > 1)
    CHECK_STATUS(lam_group_all_reduce(sub, &op, &x, &x, 1, LAM_F32), LAM_CANCELLED);
  lam_group_destroy(sub);
}
TEST(engine, poison_reaches_every_rank) {
  on_every_engine("poison_reaches_every_rank", 2, poisoned);
}

static void poisoned_here(lam_group *g) {
  float x = 0;
  const lam_comm_op op = op_of(LAM_OP_all_reduce, LAM_F32, 1);
  sum_ones(g);
  lam_group_poison(g, LAM_CANCELLED, "enough");
  lam_group_poison(g, LAM_INTERNAL, "too late");
  CHECK_STATUS(lam_group_all_reduce(g, &op, &x, &x, 1, LAM_F32), LAM_CANCELLED);
  CHECK_CONTAINS(lam_last_error(), "enough");
}
TEST(engine, the_first_poison_stays) {
  on_every_engine("the_first_poison_stays", 1, poisoned_here);
}

static void leaving(lam_group *g) {
  float x = 0;
  const lam_comm_op op = op_of(LAM_OP_all_reduce, LAM_F32, 1);
  sum_ones(g);
  if (g->rank == 0) return; /* destroys its group at once */
  CHECK_STATUS(lam_group_all_reduce(g, &op, &x, &x, 1, LAM_F32), LAM_PEER_DEAD);
  CHECK_CONTAINS(lam_last_error(), "rank 0");
  CHECK_CONTAINS(lam_last_error(), "has left");
}
TEST(engine, leaving_is_noticed) { on_every_engine("leaving_is_noticed", 2, leaving); }

/* ---- Handles --------------------------------------------------------------------------------- */

static lam_status find(int64_t handle, lam_group **out) {
  LAM_TRY(lam_group_enter(handle, out));
  lam_group_leave(*out);
  return LAM_OK;
}

static void handles(lam_group *g) {
  lam_group *found = NULL, *sub = NULL;
  int64_t first[MAX_RANKS + 1], all[MAX_RANKS];
  const int64_t mine = lam_group_handle(g);
  CHECK(mine > 0);
  CHECK_OK(find(mine, &found));
  CHECK(found == g);
  for (int r = 0; r <= g->size; r++) first[r] = r;
  const lam_comm_op op = op_of(LAM_OP_all_gather, LAM_I64, g->size);
  CHECK_OK(lam_group_all_gather(g, &op, &(lam_parts){1, 1, first, LAM_I64}, &mine, all));
  for (int r = 0; r < g->size; r++) CHECK_EQ(all[r], mine);

  CHECK_OK(lam_group_split(g, 0, 0, &sub));
  REQUIRE(sub != NULL);
  const int64_t gone = lam_group_handle(sub);
  CHECK_OK(find(gone, &found));
  CHECK(found == sub);
  lam_group_destroy(sub);
  /* All have destroyed theirs: the last one left would be found by every thread. */
  CHECK_OK(lam_group_all_gather(g, &op, &(lam_parts){1, 1, first, LAM_I64}, &mine, all));
  CHECK_STATUS(find(gone, &found), LAM_NOT_FOUND);
  CHECK_OK(find(mine, &found));
  CHECK(found == g);
}
TEST(engine, handles_are_equal_on_all_ranks_and_find_this_threads_group) {
  on_every_engine("handles_are_equal_on_all_ranks_and_find_this_threads_group", 1, handles);
}
