/* mixed_test.c: ranks as threads, with a device each or all on one, and two groups of them: the second has
 * the first one's ranks in the other order.
 * Leaves ranks as processes over NCCL to tests/gpu/nccl_test.c. */
#include "tests/distributed/moves/mixed.h"

#include <stdlib.h>

#include "tests/distributed/pipeline/layer.h"
#include "tests/place.h"

/* Ten thousand for each number of ranks; or so many in all, eight of ten with 2 ranks. */
static int n_operations(int ranks) {
  const char *all = getenv("LAMELLA_TEST_OPERATIONS");
  return all ? atoi(all) * (ranks == 2 ? 8 : 1) / 10 : 10000;
}

typedef struct run {
  lam_group_id id;
  meeting_place meeting;
} run;

static void run_rank(int rank, int size, void *arg) {
  run *all = arg;
  lam_group *b = NULL;
  lam_context *ctx = context_of(1);
  lam_group *a = join_threads(ctx, &all->id, rank, size);
  CHECK_OK(lam_group_split(a, 0, -rank, &b));
  if (a && b) mixed_run(a, b, seed() + (uint64_t)size, n_operations(size));
  meet(&all->meeting);
  lam_group_destroy(b);
  lam_group_destroy(a);
  meet(&all->meeting);
  lam_context_destroy(ctx);
}

TEST(mixed, ten_thousand_operations_over_two_groups_are_right) {
  static run all;
  if (place_is_host()) SKIP("no device was asked for");
  FOR_EACH(p, 2, 3, 4) {
    CHECK_OK(lam_group_id_create(&all.id));
    meet_at(&all.meeting, p);
    run_threads(p, run_rank, &all);
  }
}
