/* mixed_processes_test.c: two groups over ranks in processes of their own, which share a card and
 * read each other's memory by CUDA IPC, or go through the host: the second has the first one's ranks
 * in the other order.
 * Alone in its program: CUDA is used in the children only. Leaves threads to mixed_test.c. */
#include <stdlib.h>
#include <string.h>

#include "tests/check.h"
#include "tests/distributed/moves/mixed.h"
#include "tests/place.h"

static int n_operations(void) {
  const char *n = getenv("LAMELLA_TEST_OPERATIONS");
  return n ? atoi(n) : 10000;
}

static void check_way(const lam_group *g) {
  lam_group_info info = LAM_GROUP_INFO_INIT;
  CHECK_OK(lam_group_get_info(g, &info));
  CHECK(strcmp(info.device_way, "ipc") == 0 || strcmp(info.device_way, "host") == 0);
}

static void run_rank(int rank, int size, void *id) {
  lam_group_desc d = LAM_GROUP_DESC_INIT;
  lam_group *a = NULL, *b = NULL;
  d.rank = rank, d.size = size, d.id = *(const lam_group_id *)id;
  REQUIRE_OK(lam_group_create(NULL, &d, &a));
  REQUIRE_OK(lam_group_split(a, 0, -rank, &b));
  mixed_run(a, b, seed() + (uint64_t)size, n_operations());
  check_way(a);
  check_way(b);
  lam_group_destroy(b);
  lam_group_destroy(a);
}

TEST(mixed_processes, thousands_of_operations_over_two_groups_are_right) {
  if (!place_is_named()) SKIP("no CUDA device was asked for");
  FOR_EACH(p, 2, 3) {
    lam_group_id id;
    REQUIRE_OK(lam_group_id_create(&id));
    run_processes(p, run_rank, &id);
  }
}
