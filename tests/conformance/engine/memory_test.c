/* memory_test.c: what every engine does with memory that the group gave, and with messages large
 * enough that a receiver may read them where the sender holds them. */
#include <stdlib.h>
#include <string.h>

#include "tests/conformance/engine/suite.h"

enum { N_SIZES = 6, MOST = 5 << 20 };
static const uint64_t sizes[N_SIZES] = {1, (32 << 10) - 1, 32 << 10, 300001, 1 << 20, MOST};

static lam_wire header_of(uint64_t bytes) {
  return (lam_wire){.bytes = bytes, .dtype = LAM_U8, .ndim = 1, .shape = {(int64_t)bytes}};
}

/* Byte i is i * 11 + i / 512 + salt. 512 at a time: a sanitizer then sees ranges, not bytes. From 163
 * bytes further on all are one more, for 11 * 163 is 1 modulo 256. */
enum { STRIPE = 512 };

static void make(unsigned char *data, uint64_t bytes, int salt) {
  unsigned char stripe[STRIPE + 256];
  for (int i = 0; i < (int)sizeof stripe; i++) stripe[i] = (unsigned char)(i * 11 + salt);
  for (uint64_t at = 0; at < bytes; at += STRIPE)
    memcpy(data + at, stripe + at / STRIPE * 163 % 256, bytes - at < STRIPE ? bytes - at : STRIPE);
}

static void holds(const unsigned char *data, uint64_t bytes, int salt) {
  unsigned char *expected = malloc(bytes);
  make(expected, bytes, salt);
  if (memcmp(data, expected, bytes) != 0)
    for (uint64_t i = 0; i < bytes && CHECK_EQ(data[i], expected[i]); i++) continue;
  free(expected);
}

static unsigned char *group_memory(lam_group *g, uint64_t bytes) {
  void *data = NULL;
  CHECK_OK(lam_group_alloc(g, bytes, &data));
  return data;
}

static void ask_and_give_back(lam_group *g) {
  unsigned char *of[4];
  for (int i = 0; i < 4; i++) {
    of[i] = group_memory(g, sizes[i]);
    CHECK_EQ((uintptr_t)of[i] % 64, 0);
    make(of[i], sizes[i], i);
  }
  for (int i = 0; i < 4; i++) holds(of[i], sizes[i], i);
  for (int i = 3; i >= 0; i--) lam_group_free(g, of[i]);
  lam_group_free(g, NULL);
}
TEST(engine, a_group_gives_memory_that_does_not_overlap) {
  on_every_engine("a_group_gives_memory_that_does_not_overlap", 1, ask_and_give_back);
}

static void refuse(lam_group *g) {
  void *data = &data;
  CHECK_STATUS(lam_group_alloc(g, 0, &data), LAM_INVALID_ARGUMENT);
  CHECK_CONTAINS(lam_last_error(), "bytes is 0, expected 1 or more");
  CHECK(data == NULL);
  CHECK_STATUS(lam_group_alloc(g, UINT64_MAX, &data), LAM_INVALID_ARGUMENT);
  CHECK_STATUS(lam_group_alloc(g, (uint64_t)1 << 60, &data), LAM_RESOURCE_EXHAUSTED);
  CHECK_STATUS(lam_group_alloc(NULL, 1, &data), LAM_INVALID_ARGUMENT);
  CHECK_STATUS(lam_group_alloc(g, 1, NULL), LAM_INVALID_ARGUMENT);
  data = group_memory(g, 1); /* the group is as good as before */
  lam_group_free(g, data);
}
TEST(engine, memory_of_no_size_or_no_end_is_refused) {
  on_every_engine("memory_of_no_size_or_no_end_is_refused", 1, refuse);
}

/* Rank 0 to all others, one after the other, each message several times: taken where it lies. */
static void one_to_all_at(lam_group *g, unsigned char *data) {
  for (int i = 0; i < 3 * N_SIZES; i++) {
    lam_wire h = header_of(sizes[i % N_SIZES]);
    if (g->rank == 0) make(data, h.bytes, i);
    for (int r = 1; r < g->size && g->rank == 0; r++) CHECK_OK(lam_group_send(g, r, 0, &h, data));
    if (g->rank == 0) continue;
    memset(data, 0, sizes[i % N_SIZES]);
    CHECK_OK(lam_group_recv(g, 0, 0, &h, data, MOST));
    CHECK_EQ(h.bytes, sizes[i % N_SIZES]);
    holds(data, h.bytes, i);
  }
}

static void one_to_all(lam_group *g) {
  unsigned char *own = malloc(MOST), *given = group_memory(g, MOST);
  one_to_all_at(g, g->rank ? own : given);
  one_to_all_at(g, given);
  lam_group_free(g, given);
  free(own);
}
TEST(engine, messages_out_of_group_memory_arrive_whole) {
  on_every_engine("messages_out_of_group_memory_arrive_whole", 2, one_to_all);
}

/* Rank 1 looks for the data only when it was told, by then rank 0 has written over it. */
static void write_over(lam_group *g, unsigned char *data) {
  for (int i = 0; i < N_SIZES; i++) {
    unsigned char told = 0;
    lam_wire h = header_of(sizes[i]), one = header_of(1);
    if (g->rank == 0) {
      make(data, h.bytes, i);
      CHECK_OK(lam_group_send(g, 1, 0, &h, data));
      memset(data, 0xee, h.bytes);
      CHECK_OK(lam_group_send(g, 1, 1, &one, &told));
    } else if (g->rank == 1) {
      CHECK_OK(lam_group_recv(g, 0, 1, &one, &told, 1));
      CHECK_OK(lam_group_recv(g, 0, 0, &h, data, MOST));
      holds(data, h.bytes, i);
    }
  }
}

static void write_over_both(lam_group *g) {
  unsigned char *own = malloc(MOST), *given = group_memory(g, MOST);
  write_over(g, own);
  write_over(g, given);
  lam_group_free(g, given);
  free(own);
}
TEST(engine, what_was_sent_is_the_senders_again) {
  on_every_engine("what_was_sent_is_the_senders_again", 2, write_over_both);
}

/* Everyone sends to the next before anyone receives. */
static void all_send_first(lam_group *g) {
  const int next = (g->rank + 1) % g->size, before = (g->rank + g->size - 1) % g->size;
  unsigned char *out = group_memory(g, MOST), *in = malloc(MOST);
  for (int i = 0; i < N_SIZES; i++) {
    lam_wire h = header_of(sizes[i]);
    make(out, h.bytes, g->rank + i);
    CHECK_OK(lam_group_send(g, next, i % 2, &h, out));
    CHECK_OK(lam_group_recv(g, before, i % 2, &h, in, MOST));
    holds(in, h.bytes, before + i);
  }
  lam_group_free(g, out);
  free(in);
}
TEST(engine, all_may_send_out_of_group_memory_first) {
  on_every_engine("all_may_send_out_of_group_memory_first", 2, all_send_first);
}

/* The receiver has no room: it is an error there, and the sender has its memory back. */
static void no_room(lam_group *g) {
  unsigned char *data = group_memory(g, 1 << 20);
  lam_wire h = header_of(1 << 20);
  make(data, 1 << 20, 0);
  if (g->rank == 0) (void)lam_group_send(g, 1, 0, &h, data); /* whether it learns of it in time */
  if (g->rank == 1) {
    CHECK_STATUS(lam_group_recv(g, 0, 0, &h, data, 1 << 19), LAM_MISMATCH);
    CHECK_CONTAINS(lam_last_error(), "rank 0 sent 1048576 bytes, room is for 524288");
    holds(data, 1 << 20, 0);
  }
  lam_group_free(g, data);
}
TEST(engine, an_offer_without_room_for_it_is_a_mismatch) {
  on_every_engine("an_offer_without_room_for_it_is_a_mismatch", 2, no_room);
}
