/* processes_test.c: two processes on one card: they read each other's device memory by CUDA IPC, or,
 * where the machine forbids that, go through the host; either way the numbers are right.
 * CUDA is used in the children only. Spinning kernels of two processes take turns on a card, so nothing
 * here says how fast it is. */
#include <stdlib.h>
#include <string.h>

#include "abi/lamella.h"
#include "kernels/device.h"
#include "plugin/comm/group.h"
#include "tests/check.h"
#include "tests/place.h"

enum { CUDA = 2 /* kDLCUDA */, N = 300001 };

static lam_group_id id;

static float value(int rank, int64_t i) { return (float)((i * 7 + rank * 13) % 101) - 50; }

static const char *way(const lam_group *g) {
  lam_group_info info = LAM_GROUP_INFO_INIT;
  CHECK_OK(lam_group_get_info(g, &info));
  NOTE("by %s %s", info.device_way, info.device_why ? info.device_why : "");
  return info.device_way ? info.device_way : "";
}

static lam_status sum(lam_group *g, void *x) {
  const lam_comm_op op = {.op = LAM_OP_all_reduce, .dtype = LAM_F32, .ndim = 1, .dims = {N}};
  return lam_group_all_reduce(g, &op, x, x, N, LAM_F32);
}

static lam_status pass_on(lam_group *g, void *x) {
  lam_wire h = {.bytes = N * sizeof(float), .dtype = LAM_F32, .ndim = 1, .shape = {N}};
  LAM_TRY(lam_group_send(g, 1 - g->rank, 0, &h, x));
  return lam_group_recv(g, 1 - g->rank, 0, &h, x, N * sizeof(float));
}

/* In place, one after another: messages, then a sum of what came. */
static void use(lam_group *g, const lam_device *d, void *card, float *host) {
  for (int64_t i = 0; i < N; i++) host[i] = value(g->rank, i);
  REQUIRE_OK(lam_device_write(d, host, card, N * sizeof *host, g->stream));
  REQUIRE_OK(pass_on(g, card));
  REQUIRE_OK(lam_device_read(d, card, host, N * sizeof *host, g->stream));
  REQUIRE_OK(lam_device_finish(d, g->stream));
  for (int64_t i = 0; i < N; i++)
    if (host[i] != value(1 - g->rank, i) && !CHECK_EQ(host[i], value(1 - g->rank, i))) return;
  REQUIRE_OK(sum(g, card));
  REQUIRE_OK(pass_on(g, card));
  REQUIRE_OK(lam_device_read(d, card, host, N * sizeof *host, g->stream));
  REQUIRE_OK(lam_device_finish(d, g->stream));
  for (int64_t i = 0; i < N; i++)
    if (host[i] != value(0, i) + value(1, i) && !CHECK_EQ(host[i], value(0, i) + value(1, i)))
      return;
}

static void rank_of_two(int rank, int size, void *arg) {
  const lam_device *d = NULL;
  lam_group *g = NULL;
  lam_group_desc desc = LAM_GROUP_DESC_INIT;
  float *host = malloc(N * sizeof *host);
  void *card = NULL;
  int32_t was;
  (void)arg;
  desc.rank = rank, desc.size = size, desc.id = id;
  REQUIRE_OK(lam_device_open(CUDA, &d));
  REQUIRE_OK(lam_device_enter(d, 0, &was));
  REQUIRE_OK(lam_group_create(NULL, &desc, &g));
  REQUIRE_OK(lam_device_borrow(d, N * sizeof *host, NULL, &card));
  g->device = d; /* the default stream: each process has its own */
  use(g, d, card, host);
  CHECK(strcmp(way(g), "ipc") == 0 || strcmp(way(g), "host") == 0);
  g->device = NULL;
  lam_device_give_back(d, card, NULL);
  lam_group_destroy(g);
  lam_device_leave(d, was);
  free(host);
}

TEST(processes, on_one_card_sum_and_send) {
  if (!place_is_named()) SKIP("no CUDA device was asked for");
  REQUIRE_OK(lam_group_id_create(&id));
  run_processes(2, rank_of_two, NULL);
}
