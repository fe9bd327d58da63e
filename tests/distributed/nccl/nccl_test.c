/* nccl_test.c: groups on NCCL whose ranks are threads, each on a card of the stand-in's: what ends them,
 * what is refused, and what a call leaves to the device. Emulated: it never ran on a GPU.
 * Leaves what operations give to the engines' suite (tests/conformance/engine). */
#include <pthread.h>
#include <stdlib.h>
#include <string.h>

#include "abi/lamella.h"
#include "kernels/cuda/host.h"
#include "plugin/comm/group.h"
#include "tests/check.h"
#include "tests/standin/standin.h"

#define CHECK_CUDA(expr) CHECK_EQ((expr), cudaSuccess)

typedef struct rank {
  lam_group *g;
  cudaStream_t stream;
  float *x, *y; /* N on the rank's card */
  int rank, size;
  pthread_barrier_t *all;
} rank;

enum { N = 1000 };

typedef struct meeting {
  void (*fn)(rank *r);
  lam_group_id id;
  bool same_card, broken, fails; /* fails: fn makes the group itself */
  pthread_barrier_t all;
} meeting;

static lam_status join_on(const meeting *m, rank *r, uint32_t gpu) {
  lam_group_desc d = LAM_GROUP_DESC_INIT;
  d.gpu = gpu;
  d.rank = r->rank;
  d.size = r->size;
  d.engine = "nccl";
  d.deadline_ms = d.first_deadline_ms = 20000;
  d.id = m->id;
  return lam_group_create(NULL, &d, &r->g);
}

static lam_status join(const meeting *m, rank *r) { return join_on(m, r, 0); }

static void open_card(rank *r, bool same_card) {
  float x[N];
  CHECK_CUDA(cudaSetDevice(same_card ? 0 : r->rank));
  CHECK_CUDA(cudaStreamCreateWithFlags(&r->stream, cudaStreamNonBlocking));
  CHECK_CUDA(cudaMalloc((void **)&r->x, sizeof x));
  CHECK_CUDA(cudaMalloc((void **)&r->y, sizeof x));
  for (int i = 0; i < N; i++) x[i] = (float)(r->rank * N + i);
  CHECK_CUDA(cudaMemcpyAsync(r->x, x, sizeof x, cudaMemcpyHostToDevice, r->stream));
  CHECK_CUDA(cudaStreamSynchronize(r->stream));
}

static void close_card(rank *r) {
  CHECK_CUDA(cudaFree(r->x));
  CHECK_CUDA(cudaFree(r->y));
  CHECK_CUDA(cudaStreamDestroy(r->stream));
}

/* What must be alike for all ends before any memory goes. */
static void run_rank(int number, int size, void *arg) {
  meeting *m = arg;
  rank r = {.rank = number, .size = size, .all = &m->all};
  NOTE("%d ranks", size);
  open_card(&r, m->same_card);
  pthread_barrier_wait(&m->all);
  const lam_status status = m->fails ? LAM_OK : join(m, &r);
  if (CHECK_OK(status)) m->fn(&r);
  if (!m->broken) CHECK_CUDA(cudaStreamSynchronize(r.stream));
  pthread_barrier_wait(&m->all);
  lam_group_destroy(r.g);
  pthread_barrier_wait(&m->all);
  close_card(&r);
}

static void on_cards(meeting m, int size) {
  standin_devices(4);
  standin_reset();
  standin_seed(seed() + (uint64_t)size);
  lam_device_forced = &lam_device_cuda;
  CHECK_OK(lam_group_id_create(&m.id));
  pthread_barrier_init(&m.all, NULL, (unsigned)size);
  run_threads(size, run_rank, &m);
  pthread_barrier_destroy(&m.all);
  if (m.broken) standin_forget_reports();
  CHECK_STR(standin_reports(), "");
}

static lam_status sum_on(rank *r, cudaStream_t stream, const float *x, float *y) {
  const lam_comm_op op = {.op = LAM_OP_all_reduce, .dtype = LAM_F32, .ndim = 1, .dims = {N}};
  r->g->device = &lam_device_cuda;
  r->g->stream = stream;
  const lam_status status = lam_group_all_reduce(r->g, &op, x, y, N, LAM_F32);
  r->g->device = NULL;
  return status;
}

static lam_status sum(rank *r) { return sum_on(r, r->stream, r->x, r->y); }

/* x is r * N + i on rank r: whole numbers, whose sum no order changes. */
static void check_sum(rank *r, int times) {
  float y[N];
  CHECK_CUDA(cudaMemcpyAsync(y, r->y, sizeof y, cudaMemcpyDeviceToHost, r->stream));
  CHECK_CUDA(cudaStreamSynchronize(r->stream));
  for (int i = 0; i < N; i++) {
    float want = (float)(r->size * (r->size - 1) / 2 * N + r->size * i);
    for (int k = 1; k < times; k++) want *= (float)r->size;
    if (y[i] != want && !CHECK_EQ(y[i], want)) return;
  }
}

/* ---- What a call leaves to the device ----------------------------------------------------------- */

static void queue_ten(rank *r) {
  CHECK_OK(sum(r)); /* what is made once is made */
  pthread_barrier_wait(r->all);
  const int64_t before = standin_count().syncs;
  pthread_barrier_wait(r->all);
  for (int i = 0; i < 10; i++) CHECK_OK(sum(r));
  pthread_barrier_wait(r->all);
  CHECK_EQ(standin_count().syncs, before);
  pthread_barrier_wait(r->all);
  check_sum(r, 1);
}
TEST(nccl, no_host_waits_for_its_device_in_a_call) {
  FOR_EACH(p, 2, 3, 4) on_cards((meeting){.fn = queue_ten}, p);
}

/* The second reads what the first writes; only the caller's own event orders them. */
static void use_two_streams(rank *r) {
  cudaStream_t other;
  cudaEvent_t done;
  CHECK_CUDA(cudaStreamCreateWithFlags(&other, cudaStreamNonBlocking));
  CHECK_CUDA(cudaEventCreateWithFlags(&done, cudaEventDisableTiming));
  CHECK_OK(sum_on(r, other, r->x, r->y));
  CHECK_CUDA(cudaEventRecord(done, other));
  CHECK_CUDA(cudaStreamWaitEvent(r->stream, done, 0));
  CHECK_OK(sum_on(r, r->stream, r->y, r->y));
  check_sum(r, 2);
  CHECK_CUDA(cudaEventDestroy(done));
  CHECK_CUDA(cudaStreamDestroy(other));
}
TEST(nccl, calls_on_several_streams_run_in_the_order_of_the_calls) {
  FOR_EACH(p, 2, 3) on_cards((meeting){.fn = use_two_streams}, p);
}

/* Rank r's part is r in row 0, r + 1 in row 1, ...; nobody is sent another's rows. */
static void sum_to_owners(rank *r, int64_t rows) {
  enum { COLS = 5, MOST = 16 };
  float part[MOST * COLS], y[MOST * COLS];
  int64_t first[8];
  const lam_comm_op op = {.op = LAM_OP_linear_row, .dtype = LAM_F32, .ndim = 2, .dims = {rows, COLS}};
  lam_share(rows, 1, r->size, first);
  const int64_t own = first[r->rank + 1] - first[r->rank];
  lam_sum s = {.y = {r->y, own, COLS, COLS, 1, LAM_F32, false},
               .y_first = first[r->rank],
               .scatter = true,
               .whole = rows};
  for (int i = 0; i < rows * COLS; i++) part[i] = (float)(r->rank + i / COLS);
  r->g->device = &lam_device_cuda, r->g->stream = r->stream;
  CHECK_OK(lam_group_begin_sums(r->g, &op));
  CHECK_OK(lam_group_partial(r->g, rows, COLS, &s));
  CHECK_CUDA(cudaMemcpyAsync(s.part.data, part, (size_t)rows * COLS * 4, cudaMemcpyHostToDevice,
                             r->stream));
  CHECK_OK(lam_group_sum_start(r->g, &s));
  CHECK_OK(lam_group_sum_finish(r->g, &s));
  r->g->device = NULL;
  CHECK_CUDA(cudaMemcpyAsync(y, r->y, (size_t)own * COLS * 4, cudaMemcpyDeviceToHost, r->stream));
  CHECK_CUDA(cudaStreamSynchronize(r->stream));
  for (int i = 0; i < own * COLS; i++)
    CHECK_EQ(y[i], r->size * (r->size - 1) / 2 + r->size * (first[r->rank] + i / COLS));
}

static void sum_scattered(rank *r) {
  FOR_EACH(rows, 12, 7, 2) { /* even for 2 and 3 ranks; uneven; less than a row for each */
    pthread_barrier_wait(r->all);
    const uint64_t before = standin_count().nccl_bytes;
    pthread_barrier_wait(r->all);
    sum_to_owners(r, rows);
    pthread_barrier_wait(r->all);
    CHECK_EQ(standin_count().nccl_bytes - before, rows * 5 * 4);
  }
}
TEST(nccl, a_scattered_sum_brings_each_rank_its_own_rows_alone) {
  FOR_EACH(p, 2, 3) on_cards((meeting){.fn = sum_scattered}, p);
}

/* ---- Graphs ------------------------------------------------------------------------------------ */

static void replay(rank *r) {
  cudaGraph_t g;
  cudaGraphExec_t e;
  CHECK_OK(sum(r));
  pthread_barrier_wait(r->all);
  REQUIRE(CHECK_CUDA(cudaStreamBeginCapture(r->stream, cudaStreamCaptureModeThreadLocal)));
  CHECK_OK(sum_on(r, r->stream, r->x, r->y));
  CHECK_OK(sum_on(r, r->stream, r->y, r->y));
  REQUIRE(CHECK_CUDA(cudaStreamEndCapture(r->stream, &g)));
  REQUIRE(CHECK_CUDA(cudaGraphInstantiate(&e, g, 0)));
  for (int i = 0; i < 20; i++) CHECK_CUDA(cudaGraphLaunch(e, r->stream));
  check_sum(r, 2);
  CHECK_OK(sum(r)); /* and outside of it the group goes on */
  check_sum(r, 1);
  pthread_barrier_wait(r->all);
  CHECK_CUDA(cudaGraphExecDestroy(e));
  CHECK_CUDA(cudaGraphDestroy(g));
}
TEST(nccl, a_captured_sum_is_replayed_like_any_other) {
  FOR_EACH(p, 2, 3) on_cards((meeting){.fn = replay}, p);
}

static void capture_one(rank *r) {
  cudaGraph_t g = NULL;
  if (r->rank == 1) CHECK_CUDA(cudaStreamBeginCapture(r->stream, cudaStreamCaptureModeRelaxed));
  CHECK_STATUS(sum(r), LAM_MISMATCH);
  CHECK_CONTAINS(lam_last_error(), "only the call on rank 1 is captured into a graph");
  if (r->rank == 1) (void)cudaStreamEndCapture(r->stream, &g);
  if (g) CHECK_CUDA(cudaGraphDestroy(g));
}
TEST(nccl, capture_on_some_ranks_only_is_a_mismatch) {
  FOR_EACH(p, 2, 3) on_cards((meeting){.fn = capture_one, .broken = true}, p);
}

static void capture_one_stream(rank *r) {
  cudaGraph_t g = NULL;
  cudaStream_t other;
  CHECK_CUDA(cudaStreamCreateWithFlags(&other, cudaStreamNonBlocking));
  CHECK_CUDA(cudaStreamBeginCapture(r->stream, cudaStreamCaptureModeRelaxed));
  CHECK_OK(sum(r));
  CHECK_STATUS(sum_on(r, other, r->x, r->y), LAM_FAILED_PRECONDITION);
  CHECK_CONTAINS(lam_last_error(), "another stream that used this communicator is being captured");
  CHECK_CUDA(cudaStreamEndCapture(r->stream, &g));
  CHECK_CUDA(cudaGraphDestroy(g));
  CHECK_OK(sum_on(r, other, r->x, r->y)); /* it was refused, and the group goes on */
  CHECK_CUDA(cudaStreamSynchronize(other));
  CHECK_CUDA(cudaStreamDestroy(other));
  check_sum(r, 1);
}
TEST(nccl, a_stream_beside_one_that_is_captured_is_refused) {
  on_cards((meeting){.fn = capture_one_stream}, 2);
}

/* Two captures under way: the communicator's stream is part of one. */
static void capture_both(rank *r) {
  cudaGraph_t g = NULL;
  cudaStream_t other;
  CHECK_CUDA(cudaStreamCreateWithFlags(&other, cudaStreamNonBlocking));
  CHECK_CUDA(cudaStreamBeginCapture(r->stream, cudaStreamCaptureModeRelaxed));
  CHECK_OK(sum(r));
  CHECK_CUDA(cudaStreamBeginCapture(other, cudaStreamCaptureModeRelaxed));
  CHECK_STATUS(sum_on(r, other, r->x, r->y), LAM_FAILED_PRECONDITION);
  CHECK_CONTAINS(lam_last_error(), "is being captured into another graph");
  FOR_EACH(which, 0, 1) {
    CHECK_CUDA(cudaStreamEndCapture(which ? other : r->stream, &g)); /* neither was broken */
    CHECK_CUDA(cudaGraphDestroy(g));
  }
  CHECK_CUDA(cudaStreamDestroy(other));
  CHECK_OK(sum(r));
  check_sum(r, 1);
}
TEST(nccl, a_stream_that_is_captured_into_another_graph_is_refused) {
  on_cards((meeting){.fn = capture_both}, 2);
}

/* ---- What is refused --------------------------------------------------------------------------- */

static const meeting *met;

static void meet_and_say(rank *r, lam_status status, const char *text) {
  CHECK_STATUS(join(met, r), status);
  CHECK_CONTAINS(lam_last_error(), text);
  CHECK(r->g == NULL);
}

static void run_failing(int size, void (*fn)(rank *r), bool same_card) {
  static meeting m;
  m = (meeting){.fn = fn, .fails = true, .same_card = same_card};
  met = &m;
  CHECK_OK(lam_group_id_create(&m.id));
  on_cards(m, size);
}

static void share_a_card(rank *r) {
  meet_and_say(r, LAM_FAILED_PRECONDITION,
               "ranks 0 and 1 are on one GPU (0000:01:00.0), and NCCL wants one for each");
  CHECK_CONTAINS(lam_last_error(), "set NCCL_HOSTID to another value in each");
}
TEST(nccl, ranks_on_one_card_are_told_what_to_set) { run_failing(3, share_a_card, true); }

static void differ_in_version(rank *r) {
  standin_set_nccl(r->rank == 1 ? 22809 : 23007);
  meet_and_say(r, LAM_FAILED_PRECONDITION, "rank 1 has NCCL 2.28.9, rank 0 2.30.7");
}
TEST(nccl, ranks_with_other_versions_are_refused) { run_failing(3, differ_in_version, false); }

static void be_old(rank *r) {
  standin_set_nccl(r->rank == 1 ? 21403 : 23007);
  meet_and_say(r, LAM_UNAVAILABLE,
               "rank 1 cannot use NCCL: cuda: NCCL is 2.14.3, Lamella needs 2.18 or newer");
}
TEST(nccl, an_old_version_is_refused_on_all_ranks) { run_failing(2, be_old, false); }

/* ---- A GPU by its number ----------------------------------------------------------------------- */

static int thread_device(void) {
  int device = -1;
  CHECK_CUDA(cudaGetDevice(&device));
  return device;
}

/* Sums over g on this rank's own card, and goes back to card 0. */
static void sum_there(rank *r, lam_group *g) {
  rank there = *r;
  there.g = g;
  open_card(&there, false);
  CHECK_OK(sum(&there));
  check_sum(&there, 1);
  pthread_barrier_wait(r->all);
  close_card(&there);
  CHECK_CUDA(cudaSetDevice(0));
}

static void name_a_gpu(rank *r) {
  lam_group *sub = NULL;
  if (!CHECK_OK(join_on(met, r, (uint32_t)r->rank + 1))) return;
  CHECK_EQ(thread_device(), 0);
  CHECK_OK(lam_group_split(r->g, 0, -r->rank, &sub));
  CHECK_EQ(thread_device(), 0);
  sum_there(r, r->g);
  sum_there(r, sub);
  lam_group_destroy(sub);
  pthread_barrier_wait(r->all);
}
TEST(nccl, a_group_and_its_parts_work_on_the_gpu_that_was_named) {
  FOR_EACH(p, 2, 4) run_failing(p, name_a_gpu, true);
}

static void name_one_too_many(rank *r) {
  CHECK_STATUS(join_on(met, r, r->rank == 1 ? 5 : (uint32_t)r->rank + 1), LAM_INVALID_ARGUMENT);
  CHECK_CONTAINS(lam_last_error(), "rank 1 cannot use NCCL: ");
}
TEST(nccl, a_gpu_that_is_not_there_is_refused_on_all_ranks) {
  run_failing(2, name_one_too_many, true);
}

/* ---- The host's own communicator --------------------------------------------------------------- */

static ncclUniqueId hosts_id;

static bool settled(ncclComm_t comm) {
  ncclResult_t r = ncclInProgress;
  while (r == ncclInProgress)
    if (ncclCommGetAsyncError(comm, &r) != ncclSuccess) return false;
  return r == ncclSuccess;
}

static ncclComm_t hosts_own(const rank *r) {
  ncclComm_t comm = NULL;
  ncclConfig_t config = {
      sizeof config, NCCL_CONFIG_MAGIC, NCCL_CONFIG_VERSION, 0, INT_MIN, INT_MIN, INT_MIN, NULL, 0};
  CHECK_EQ(ncclCommInitRankConfig(&comm, r->size, hosts_id, r->rank, &config), ncclInProgress);
  CHECK(settled(comm));
  return comm;
}

static lam_status adopt(rank *r, int as_rank, ncclComm_t comm) {
  lam_group_desc d = LAM_GROUP_DESC_INIT;
  d.rank = as_rank;
  d.size = r->size;
  d.deadline_ms = d.first_deadline_ms = 5000;
  d.id = met->id;
  return lam_group_adopt_nccl(NULL, &d, comm, &r->g);
}

static void lend(rank *r) {
  ncclComm_t comm = hosts_own(r);
  pthread_barrier_wait(r->all);
  if (!CHECK_OK(adopt(r, r->rank, comm))) return;
  CHECK_OK(sum(r));
  check_sum(r, 1);
  lam_group_destroy(r->g);
  r->g = NULL;
  CHECK_EQ(ncclCommFinalize(comm), ncclInProgress); /* it is as it was */
  CHECK(settled(comm));
  CHECK_EQ(ncclCommDestroy(comm), ncclSuccess);
}

TEST(nccl, the_hosts_communicator_is_split_and_stays_its_own) {
  FOR_EACH(p, 2, 3) {
    CHECK_EQ(ncclGetUniqueId(&hosts_id), ncclSuccess);
    run_failing(p, lend, false);
  }
}

static void lend_as_another(rank *r) {
  ncclComm_t comm = hosts_own(r);
  CHECK(adopt(r, r->size - 1 - r->rank, comm) != LAM_OK);
  CHECK_CONTAINS(lam_last_error(), "of 2, the group has this rank as");
  CHECK_EQ(ncclCommAbort(comm), ncclSuccess);
}

TEST(nccl, a_communicator_whose_ranks_are_others_is_refused) {
  CHECK_EQ(ncclGetUniqueId(&hosts_id), ncclSuccess);
  run_failing(2, lend_as_another, false);
}

/* ---- What ends a group ------------------------------------------------------------------------- */

/* A host that waits for its stream is let go, and then told. */
static void wait_and_be_told(rank *r, lam_status status, const char *text) {
  (void)sum(r);
  (void)cudaStreamSynchronize(r->stream);
  for (int again = 0; again < 2; again++) {
    CHECK_STATUS(sum(r), status);
    CHECK_CONTAINS(lam_last_error(), text);
  }
}

static void set_fault(rank *r, standin_fault what) {
  CHECK_OK(sum(r));
  check_sum(r, 1);
  pthread_barrier_wait(r->all);
  if (r->rank == 0) standin_fail_nth(what, 1);
  pthread_barrier_wait(r->all);
}

static void stall(rank *r) {
  set_fault(r, STANDIN_NCCL_STALL);
  r->g->deadline_ms = 1000; /* the hosts' too: they meet once more */
  wait_and_be_told(r, LAM_PEER_STALLED, "did not end on the device within 1000 ms");
}
TEST(nccl, what_does_not_end_on_the_device_is_aborted_at_the_deadline) {
  FOR_EACH(p, 2, 4) on_cards((meeting){.fn = stall, .broken = true}, p);
}

static void lose_peer(rank *r) {
  set_fault(r, STANDIN_NCCL_REMOTE);
  wait_and_be_told(r, LAM_PEER_DEAD, "remote process exited or there was a network error");
}
TEST(nccl, an_error_that_nccl_reports_ends_the_group_on_all_ranks) {
  FOR_EACH(p, 2, 3) on_cards((meeting){.fn = lose_peer, .broken = true}, p);
}

static void fail_a_call(rank *r) {
  set_fault(r, STANDIN_NCCL);
  wait_and_be_told(r, LAM_UNAVAILABLE, "all_reduce: cuda: NCCL could not queue an operation");
}
TEST(nccl, a_call_that_fails_on_one_rank_ends_the_group_on_all) {
  FOR_EACH(p, 2, 3) on_cards((meeting){.fn = fail_a_call, .broken = true}, p);
}

static void end_by_hand(rank *r) {
  set_fault(r, STANDIN_NCCL_STALL);
  CHECK_OK(sum(r));
  pthread_barrier_wait(r->all);
  if (r->rank == 0) lam_group_poison(r->g, LAM_CANCELLED, "the host has enough");
  (void)cudaStreamSynchronize(r->stream); /* nobody waits for the deadline of 20 s */
  CHECK_STATUS(sum(r), LAM_CANCELLED);
  CHECK_CONTAINS(lam_last_error(), "the host has enough");
}
TEST(nccl, who_ends_a_group_lets_all_ranks_streams_go) {
  FOR_EACH(p, 2, 3) on_cards((meeting){.fn = end_by_hand, .broken = true}, p);
}

static void *end_group(void *g) {
  lam_group_poison(g, LAM_CANCELLED, "the host has enough");
  return NULL;
}

/* Whatever the ranks find first: the words, or that nothing can be queued any more. */
static void end_from_a_thread(rank *r) {
  pthread_t other;
  lam_status status = sum(r);
  if (r->rank == 0) CHECK_EQ(pthread_create(&other, NULL, end_group, r->g), 0);
  while (status == LAM_OK) status = sum(r);
  CHECK_STATUS(status, LAM_CANCELLED);
  CHECK_CONTAINS(lam_last_error(), "the host has enough");
  if (r->rank == 0) CHECK_EQ(pthread_join(other, NULL), 0);
}
TEST(nccl, a_group_that_another_thread_ends_says_why) {
  FOR_EACH(p, 2, 3) on_cards((meeting){.fn = end_from_a_thread, .broken = true}, p);
}
