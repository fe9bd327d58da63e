/* shm_test.c: the parts of the shared-memory engine that need no ranks: copies that peers read
 * next, which form a size takes, what is taken for a peer's memory. */
#include <fcntl.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "plugin/comm/shm/shm.h"
#include "tests/check.h"

/* ---- Copies ---------------------------------------------------------------------------------- */

enum { MOST = 70000, AROUND = 64 };

/* to + at is filled from from + off, and nothing else is written. */
static void fill_once(lam_world *w, int64_t bytes, int at, int off) {
  static _Alignas(64) unsigned char from[MOST + 2 * AROUND], to[MOST + 2 * AROUND],
      want[MOST + 2 * AROUND];
  rng r = {seed() + (uint64_t)bytes};
  NOTE("%lld bytes, from %d to %d", (long long)bytes, off, at);
  for (int64_t i = 0; i < bytes; i++) from[off + i] = (unsigned char)rng_next(&r);
  memset(to, 42, sizeof to);
  memset(want, 42, sizeof want);
  memcpy(want + at, from + off, (size_t)bytes);
  lam_shm_fill(w, to + at, from + off, bytes);
  CHECK_SAME_BITS(to, want, sizeof want);
}

static void fill_sizes(lam_world *w) {
  rng r = {seed()};
  FOR_EACH(bytes, 0, 1, 63, 4095, 4096, 4097, 4159, 16383, 16384, 16385, 65536, MOST)
  FOR_EACH(at, 0, 1, 15, 63) fill_once(w, bytes, at, (int)rng_int(&r, 0, AROUND));
}

TEST(fill, copies_any_size_to_any_place) { fill_sizes(&(lam_world){0}); }

TEST(fill, streams_any_size_to_any_place_while_peers_are_far) {
  lam_world w = {.probe_at = INT64_MAX};
  CHECK(shm_peers_are_far(&w));
  fill_sizes(&w);
  CHECK(w.probe_at == INT64_MAX && w.slow_fills == 0); /* no copy was plain, so none was timed */
}

TEST(fill, tries_plain_copies_again_when_their_time_has_come) {
  lam_world w = {.probe_at = 1};
  fill_once(&w, MOST, 0, 0);
  CHECK(w.probe_at == 0); /* one slow copy is not enough */
}

/* ---- Paths ----------------------------------------------------------------------------------- */

TEST(path, names_the_form_that_a_size_takes) {
  enum { KIB = 1 << 10, FEW = SHM_PACKET_RANKS, MANY = FEW + 1 };
  static const struct {
    int ranks;
    uint32_t op;
    uint64_t bytes;
    const char *name;
  } all[] = {
      {1, LAM_OP_all_reduce, 64, "local"},
      {2, LAM_OP_all_reduce, 0, "shm packet"},
      {2, LAM_OP_all_reduce, 64, "shm packet"},
      {FEW, LAM_OP_all_reduce, 1024, "shm packet"},
      {2, LAM_OP_all_reduce, 1025, "shm one-shot"},
      {MANY, LAM_OP_all_reduce, 64, "shm one-shot"},
      {MANY, LAM_OP_all_reduce, 16 * KIB, "shm one-shot"},
      {2, LAM_OP_all_reduce, 16 * KIB, "shm one-shot"},
      {2, LAM_OP_all_reduce, 16 * KIB + 1, "shm two-shot"},
      {MANY, LAM_OP_all_reduce, 16 * KIB + 1, "shm two-shot"},
      {2, LAM_OP_all_reduce, 256 * KIB, "shm two-shot"},
      {2, LAM_OP_all_reduce, 256 * KIB + 1, "shm two-shot, pipelined"},
      {SHM_RANKS, LAM_OP_all_reduce, UINT64_MAX, "shm two-shot, pipelined"},
      {2, LAM_OP_all_gather, 128 * KIB, "shm one-shot"},
      {2, LAM_OP_reduce_scatter, 128 * KIB + 1, "shm one-shot, pipelined"},
      {2, LAM_OP_broadcast, 128 * KIB, "shm one-shot"},
      {2, LAM_OP_reduce, 128 * KIB + 1, "shm one-shot, pipelined"},
      {2, LAM_OP_send_activation, 32 * KIB - 1, "shm slots"},
      {2, LAM_OP_recv_activation, 32 * KIB, "shm slots, or read where it lies"},
      {2, LAM_OP_linear_row, 64, "shm"},
  };
  for (size_t i = 0; i < sizeof all / sizeof *all; i++) {
    const lam_group g = {.size = all[i].ranks, .engine = &lam_engine_shm};
    NOTE("row %zu: %d ranks, %llu bytes", i, g.size, (unsigned long long)all[i].bytes);
    CHECK_STR(lam_group_path(&g, all[i].op, all[i].bytes), all[i].name);
  }
}

/* ---- A peer's memory ------------------------------------------------------------------------- */

enum { SHRINK = F_SEAL_SHRINK, GROW = F_SEAL_GROW, SEAL = F_SEAL_SEAL };

static void map_memory(uint64_t bytes, int seals, lam_status expected) {
  shm_arena *a = NULL;
  const int fd = memfd_create("peer", MFD_CLOEXEC | MFD_ALLOW_SEALING);
  REQUIRE(fd >= 0 && ftruncate(fd, (off_t)bytes) == 0);
  REQUIRE(seals == 0 || fcntl(fd, F_ADD_SEALS, seals) == 0);
  NOTE("%llu bytes, seals %#x", (unsigned long long)bytes, (unsigned)seals);
  CHECK_STATUS(lam_shm_arena_map(fd, &a), expected);
  CHECK(!a == (expected != LAM_OK));
  if (!a) CHECK_CONTAINS(lam_last_error(), "a peer's memory is not sealed or of another size");
  lam_shm_arena_release(a);
  CHECK(fcntl(fd, F_GETFD) >= 0); /* still the caller's */
  close(fd);
}

TEST(arena, maps_sealed_memory_of_its_size_alone) {
  const int all = SHRINK | GROW | SEAL;
  map_memory(SHM_ARENA_BYTES, all, LAM_OK);
  FOR_EACH(seals, 0, SHRINK, GROW, SEAL, SHRINK | GROW, SHRINK | SEAL, GROW | SEAL)
  map_memory(SHM_ARENA_BYTES, seals, LAM_INTERNAL);
  map_memory(0, all, LAM_INTERNAL);
  map_memory(SHM_ARENA_BYTES - 4096, all, LAM_INTERNAL);
  map_memory(SHM_ARENA_BYTES + 4096, all, LAM_INTERNAL);
}

TEST(arena, refuses_what_is_no_shared_memory) {
  shm_arena *a = NULL;
  const int fd = open("/dev/null", O_RDWR | O_CLOEXEC);
  CHECK_STATUS(lam_shm_arena_map(fd, &a), LAM_INTERNAL);
  CHECK_STATUS(lam_shm_arena_map(-1, &a), LAM_INTERNAL);
  CHECK(!a);
  close(fd);
}
