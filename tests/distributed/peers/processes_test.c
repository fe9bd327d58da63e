/* processes_test.c: ranks that are processes, which cannot read each other's device memory (yet).
 * Alone in its program: CUDA is used in the children only. */
#include <string.h>

#include "tests/distributed/peers/cards.h"

static lam_group_id id;

static void refused(int number, int size, void *arg) {
  lam_group_desc d = LAM_GROUP_DESC_INIT;
  rank r = {.rank = number, .size = size};
  float x = 1;
  (void)arg;
  d.rank = number;
  d.size = size;
  d.deadline_ms = d.first_deadline_ms = 20000;
  d.id = id;
  lam_device_forced = &lam_device_cuda;
  CHECK_EQ(cudaStreamCreateWithFlags(&r.stream, cudaStreamNonBlocking), cudaSuccess);
  REQUIRE_OK(lam_group_create(NULL, &d, &r.g));
  void *card = to_card(&r, &x, sizeof x);
  CHECK_STATUS(call(&r, LAM_OP_all_reduce, LAM_F32, card, 1, card, 1), LAM_UNIMPLEMENTED);
  CHECK_CONTAINS(lam_last_error(), "is another process: between processes they will go by CUDA IPC");
  const lam_comm_op op = {.op = LAM_OP_all_reduce, .dtype = LAM_F32, .ndim = 1, .dims = {1}};
  CHECK_OK(lam_group_all_reduce(r.g, &op, &x, &x, 1, LAM_F32)); /* the group goes on */
  CHECK_EQ(x, size);
  lam_group_destroy(r.g);
  CHECK_EQ(cudaFree(card), cudaSuccess);
}

TEST(peers, ranks_that_are_processes_are_told_what_is_missing) {
  REQUIRE_OK(lam_group_id_create(&id));
  run_processes(2, refused, NULL);
}
