/* peers_test.c: ranks as threads of one process that share a card: what their collectives give,
 * through the library's calls, in any order in which a card may run them. */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "abi/status.h"
#include "tests/distributed/await.h"
#include "tests/distributed/peers/cards.h"

enum { CHANCES = 5 };

static float value(int rank, int64_t i) {
  rng r = {seed() + (uint64_t)rank * 7919u + (uint64_t)i * 104729u};
  return rng_float(&r);
}

static void reduce_once(rank *r, int64_t n) {
  float *x = calloc((size_t)n, 4), *y = calloc((size_t)n, 4);
  for (int64_t i = 0; i < n; i++) x[i] = value(r->rank, i);
  void *dx = to_card(r, x, (uint64_t)n * 4), *dy = to_card(r, NULL, (uint64_t)n * 4);
  CHECK_OK(call(r, LAM_OP_all_reduce, LAM_F32, dx, n, dy, n));
  from_card(r, y, dy, (uint64_t)n * 4);
  for (int64_t i = 0; i < n; i++) {
    float want = value(0, i);
    for (int k = 1; k < r->size; k++) want += value(k, i);
    if (y[i] != want && !CHECK(y[i] == want)) break;
  }
  free(x);
  free(y);
}

static void reduce(rank *r) {
  FOR_EACH(n, 1, 7, 1000, 70001) reduce_once(r, n);
}

static void by_chance(int ranks, void (*fn)(rank *r)) {
  for (int k = 0; k < tries(CHANCES); k++)
    on_cards(&(world){.chance = seed() + (uint64_t)k}, ranks, fn, NULL);
}

TEST(peers, all_reduce_sums_in_rank_order_on_the_card) {
  FOR_EACH(p, 2, 4) by_chance(p, reduce);
}

/* Nothing waits between them: a half of a lane is filled again while a slow peer may still read it. */
static void queue_many(rank *r) {
  enum { N = 40, SUMS = 24 };
  float x[SUMS][N], y[SUMS][N];
  for (int k = 0; k < SUMS; k++)
    for (int i = 0; i < N; i++) x[k][i] = value(r->rank, k * N + i);
  char *dx = to_card(r, x, sizeof x), *dy = to_card(r, NULL, sizeof y);
  for (size_t k = 0; k < SUMS; k++)
    CHECK_OK(call(r, LAM_OP_all_reduce, LAM_F32, dx + k * sizeof *x, N, dy + k * sizeof *y, N));
  from_card(r, y, dy, sizeof y);
  for (int k = 0; k < SUMS; k++)
    for (int i = 0; i < N; i++) {
      float want = value(0, k * N + i);
      for (int q = 1; q < r->size; q++) want += value(q, k * N + i);
      if (y[k][i] != want && !CHECK(y[k][i] == want)) return;
    }
}

TEST(peers, sums_queued_one_after_another_leave_each_other_alone) {
  FOR_EACH(p, 2, 4) by_chance(p, queue_many);
}

/* More than all lanes hold at once, by two shots. */
static void reduce_much(rank *r) { reduce_once(r, 1600003); }

TEST(peers, a_large_sum_goes_through_the_lanes_in_steps) {
  on_cards(&(world){.chance = seed()}, 2, reduce_much, NULL);
}

/* ---- Sums with their norm ---------------------------------------------------------------------- */

typedef struct shape {
  int64_t rows, cols;
  int kernels; /* that each rank launches */
} shape;

static double part_of(int rank, int64_t i) { return value(rank, i); }
static double residual_of(int64_t i) { return value(50, i); }
static double gain_of(int64_t col) { return value(51, col); }

static lam_matrix floats(void *data, int64_t rows, int64_t cols) {
  return (lam_matrix){data, rows, cols, cols, 1, LAM_F32, false};
}

static void check_norm(const rank *r, const shape *s, int64_t row, const float *sum,
                       const float *normed) {
  double *want = calloc((size_t)s->cols, sizeof *want), squares = 0;
  for (int64_t c = 0; c < s->cols; c++) {
    want[c] = residual_of(row * s->cols + c);
    for (int k = 0; k < r->size; k++) want[c] += part_of(k, row * s->cols + c);
    squares += want[c] * want[c];
  }
  CHECK_CLOSE(sum + row * s->cols, want, s->cols, 1e-6, 1e-6);
  for (int64_t c = 0; c < s->cols; c++)
    want[c] *= gain_of(c) / sqrt(squares / (double)s->cols + 1e-5);
  CHECK_CLOSE(normed + row * s->cols, want, s->cols, 1e-5, 1e-5);
  free(want);
}

static void sum_and_norm(rank *r) {
  const shape *s = r->arg;
  const int64_t n = s->rows * s->cols;
  float *x = calloc((size_t)n, 4), *y = calloc((size_t)n, 4), *g = calloc((size_t)s->cols, 4);
  for (int64_t i = 0; i < n; i++) x[i] = (float)part_of(r->rank, i), y[i] = (float)residual_of(i);
  for (int64_t c = 0; c < s->cols; c++) g[c] = (float)gain_of(c);
  void *dx = to_card(r, x, (uint64_t)n * 4), *dy = to_card(r, y, (uint64_t)n * 4);
  void *dg = to_card(r, g, (uint64_t)s->cols * 4), *dn = to_card(r, NULL, (uint64_t)n * 4);
  lam_sum sum = {.own = floats(dx, s->rows, s->cols),
                 .residual = floats(dy, s->rows, s->cols),
                 .y = floats(dy, s->rows, s->cols), /* the residual's very memory */
                 .gain = floats(dg, 1, s->cols),
                 .normed = floats(dn, s->rows, s->cols),
                 .eps = 1e-5f};
  const lam_comm_op op = {.op = LAM_OP_all_reduce_add_rmsnorm, .ndim = 1, .dims = {n}};
  use_card(r);
  CHECK_OK(lam_group_begin_sums(r->g, &op));
  CHECK_OK(lam_group_partial(r->g, s->rows, s->cols, &sum));
  CHECK_OK(lam_group_sum_start(r->g, &sum));
  CHECK_OK(lam_group_sum_finish(r->g, &sum));
  r->g->device = NULL;
  from_card(r, x, dy, (uint64_t)n * 4);
  from_card(r, y, dn, (uint64_t)n * 4);
  for (int64_t row = 0; row < s->rows; row++) check_norm(r, s, row, x, y);
  free(x), free(y), free(g);
}

/* One row a lane; by two shots; rows that end within eight; rows too long for a lane. */
TEST(peers, a_sum_and_its_norm_are_one_kernel_where_rows_fit_a_lane) {
  const shape shapes[] = {{6, 1024, 1}, {37, 2048, 1}, {5, 33, 1}, {1, 1, 1}, {2, 20001, 2}};
  for (size_t i = 0; i < sizeof shapes / sizeof *shapes; i++)
    FOR_EACH(p, 2, 4) {
      on_cards(&(world){.chance = seed() + i}, p, sum_and_norm, &shapes[i]);
      CHECK_EQ(standin_count().launches, p * shapes[i].kernels);
    }
}

/* ---- Streams ----------------------------------------------------------------------------------- */

/* Each sum takes what the last one left, on the other of two streams; only sums order them. */
static void two_streams(rank *r) {
  enum { N = 300, TURNS = 6 };
  float x[N];
  double want = 1;
  cudaStream_t first = r->stream, other;
  CHECK_EQ(cudaStreamCreateWithFlags(&other, cudaStreamNonBlocking), cudaSuccess);
  for (int i = 0; i < N; i++) x[i] = 1;
  void *d = to_card(r, x, sizeof x);
  for (int turn = 0; turn < TURNS; turn++, want *= r->size) {
    r->stream = turn % 2 ? other : first;
    CHECK_OK(call(r, LAM_OP_all_reduce, LAM_F32, d, N, d, N));
  }
  r->stream = other;
  from_card(r, x, d, sizeof x);
  for (int i = 0; i < N; i++)
    if (x[i] != want && !CHECK_EQ(x[i], want)) break;
  r->stream = first;
  CHECK_EQ(cudaStreamDestroy(other), cudaSuccess);
}

TEST(peers, sums_of_a_group_run_in_order_on_any_streams) { by_chance(2, two_streams); }

static void default_stream(rank *r) {
  const cudaStream_t own = r->stream;
  void *x = to_card(r, NULL, 4);
  r->stream = NULL;
  CHECK_STATUS(call(r, LAM_OP_all_reduce, LAM_F32, x, 1, x, 1), LAM_INVALID_ARGUMENT);
  CHECK_CONTAINS(lam_last_error(), "all_reduce: found the default stream");
  r->stream = own;
  reduce_once(r, 5);
}

TEST(peers, the_default_stream_is_refused_where_ranks_share_a_card) { by_chance(2, default_stream); }

/* ---- Graphs ------------------------------------------------------------------------------------ */

static cudaGraphExec_t captured(rank *r, void (*queue)(rank *r, void *x, void *y, int64_t n),
                                void *x, void *y, int64_t n) {
  cudaGraph_t graph = NULL;
  cudaGraphExec_t exec = NULL;
  CHECK_EQ(cudaStreamBeginCapture(r->stream, cudaStreamCaptureModeThreadLocal), cudaSuccess);
  queue(r, x, y, n);
  CHECK_EQ(cudaStreamEndCapture(r->stream, &graph), cudaSuccess);
  CHECK_EQ(cudaGraphInstantiate(&exec, graph, 0), cudaSuccess);
  CHECK_EQ(cudaGraphDestroy(graph), cudaSuccess);
  return exec;
}

static void queue_sum(rank *r, void *x, void *y, int64_t n) {
  CHECK_OK(call(r, LAM_OP_all_reduce, LAM_F32, x, n, y, n));
}

static void replay(rank *r, int64_t n, int turns) {
  const uint64_t bytes = (uint64_t)n * 4;
  float *x = calloc(1, bytes), *want = calloc(1, bytes), *got = calloc(1, bytes);
  void *dx = to_card(r, NULL, bytes), *dy = to_card(r, NULL, bytes), *dz = to_card(r, NULL, bytes);
  cudaGraphExec_t exec = captured(r, queue_sum, dx, dy, n);
  for (int turn = 0; turn < turns; turn++) {
    for (int64_t i = 0; i < n; i++) x[i] = value(r->rank, i + turn);
    write_card(r, dx, x, bytes);
    CHECK_EQ(cudaGraphLaunch(exec, r->stream), cudaSuccess);
    if (turn % 5) continue;
    CHECK_OK(call(r, LAM_OP_all_reduce, LAM_F32, dx, n, dz, n)); /* eager calls come between */
    from_card(r, got, dy, bytes);
    from_card(r, want, dz, bytes);
    CHECK_SAME_BITS(got, want, bytes);
  }
  CHECK_EQ(cudaGraphExecDestroy(exec), cudaSuccess);
  free(x), free(want), free(got);
}

static void replays(rank *r) {
  replay(r, 33, tries(100));
  replay(r, 70000, tries(10)); /* in pieces */
}

TEST(peers, a_captured_sum_replays_again_and_again) {
  FOR_EACH(p, 2, 4) on_cards(&(world){.chance = seed() + (uint64_t)p}, p, replays, NULL);
}

/* The second of two streams that one graph is made of begins before the first has summed: only sums
 * order them. */
static _Thread_local cudaStream_t other;
static void queue_on_two_streams(rank *r, void *x, void *y, int64_t n) {
  cudaEvent_t fork, join;
  const cudaStream_t first = r->stream;
  CHECK_EQ(cudaEventCreateWithFlags(&fork, cudaEventDisableTiming), cudaSuccess);
  CHECK_EQ(cudaEventCreateWithFlags(&join, cudaEventDisableTiming), cudaSuccess);
  CHECK_EQ(cudaEventRecord(fork, first), cudaSuccess);
  CHECK_EQ(cudaStreamWaitEvent(other, fork, 0), cudaSuccess);
  for (int turn = 0; turn < 6; turn++) {
    r->stream = turn % 2 ? other : first;
    CHECK_OK(call(r, LAM_OP_all_reduce, LAM_F32, turn ? y : x, n, y, n));
  }
  r->stream = first;
  CHECK_EQ(cudaEventRecord(join, other), cudaSuccess);
  CHECK_EQ(cudaStreamWaitEvent(first, join, 0), cudaSuccess);
  CHECK_EQ(cudaEventDestroy(fork), cudaSuccess);
  CHECK_EQ(cudaEventDestroy(join), cudaSuccess);
}

static void replay_two_streams(rank *r) {
  enum { N = 300 };
  float x[N];
  for (int i = 0; i < N; i++) x[i] = 1;
  CHECK_EQ(cudaStreamCreateWithFlags(&other, cudaStreamNonBlocking), cudaSuccess);
  void *dx = to_card(r, x, sizeof x), *dy = to_card(r, NULL, sizeof x);
  cudaGraphExec_t exec = captured(r, queue_on_two_streams, dx, dy, N);
  for (int turn = 0; turn < 5; turn++) CHECK_EQ(cudaGraphLaunch(exec, r->stream), cudaSuccess);
  from_card(r, x, dy, sizeof x);
  for (int i = 0; i < N; i++)
    if (x[i] != 64 && !CHECK_EQ(x[i], 64)) break; /* 2 ranks, 6 sums */
  CHECK_EQ(cudaGraphExecDestroy(exec), cudaSuccess);
  CHECK_EQ(cudaStreamDestroy(other), cudaSuccess);
}

TEST(peers, sums_on_several_streams_of_one_graph_run_in_order) { by_chance(2, replay_two_streams); }

static void capture_on_rank1(rank *r) {
  cudaGraph_t graph = NULL;
  void *x = to_card(r, NULL, 4);
  if (r->rank == 1)
    CHECK_EQ(cudaStreamBeginCapture(r->stream, cudaStreamCaptureModeThreadLocal), cudaSuccess);
  CHECK_STATUS(call(r, LAM_OP_all_reduce, LAM_F32, x, 1, x, 1), LAM_MISMATCH);
  CHECK_CONTAINS(lam_last_error(), "only the call on rank 1 is captured into a graph");
  if (r->rank == 1) (void)cudaStreamEndCapture(r->stream, &graph);
  if (graph) CHECK_EQ(cudaGraphDestroy(graph), cudaSuccess);
}

TEST(peers, capture_on_some_ranks_only_is_a_mismatch) {
  FOR_EACH(p, 2, 3) on_cards(&(world){.chance = seed()}, p, capture_on_rank1, NULL);
}

/* Rank 0 sends, 1 receives and sends it back. */
static void queue_answer(rank *r, void *x, void *y, int64_t n) {
  lam_wire h = {.bytes = (uint64_t)n, .dtype = LAM_U8, .ndim = 1, .shape = {n}};
  use_card(r);
  if (r->rank == 0) CHECK_OK(lam_group_send(r->g, 1, 0, &h, x));
  CHECK_OK(lam_group_recv(r->g, 1 - r->rank, 0, &h, y, (uint64_t)n));
  if (r->rank == 1) CHECK_OK(lam_group_send(r->g, 0, 0, &h, y));
  r->g->device = NULL;
}

static void replay_messages(rank *r) {
  enum { N = 5001 };
  unsigned char x[N], y[N];
  void *dx = to_card(r, NULL, N), *dy = to_card(r, NULL, N);
  cudaGraphExec_t exec = captured(r, queue_answer, dx, dy, N);
  for (int turn = 0; turn < 30; turn++) {
    for (int i = 0; i < N; i++) x[i] = (unsigned char)(i * 3 + turn);
    write_card(r, dx, x, N);
    CHECK_EQ(cudaGraphLaunch(exec, r->stream), cudaSuccess);
    from_card(r, y, dy, N);
    CHECK_SAME_BITS(x, y, N);
  }
  CHECK_EQ(cudaGraphExecDestroy(exec), cudaSuccess);
}

TEST(peers, captured_messages_replay) { by_chance(2, replay_messages); }

/* ---- Ranks that do not come -------------------------------------------------------------------- */

static _Atomic int noticed;

/* Only rank 0 replays what all captured: its kernel waits for nobody, and the next call says so. */
static void alone(rank *r) {
  float one = 1;
  void *x = to_card(r, &one, 4);
  FOR_EACH(n, 1, 2) reduce_once(r, n); /* these have the first operation's deadline */
  r->g->deadline_ms = 1000;
  cudaGraphExec_t exec = captured(r, queue_sum, x, x, 1);
  if (r->rank == 0) {
    CHECK_EQ(cudaGraphLaunch(exec, r->stream), cudaSuccess);
    CHECK_EQ(cudaStreamSynchronize(r->stream), cudaSuccess);
    CHECK_STATUS(call(r, LAM_OP_all_reduce, LAM_F32, x, 1, x, 1), LAM_PEER_STALLED);
    CHECK_CONTAINS(lam_last_error(), "a kernel waited for rank 1 past its deadline");
    noticed = 1;
  } else {
    await_count(&noticed, 1);
    CHECK_STATUS(call(r, LAM_OP_all_reduce, LAM_F32, x, 1, x, 1), LAM_PEER_STALLED);
  }
  CHECK_STATUS(call(r, LAM_OP_all_reduce, LAM_F32, x, 1, x, 1), LAM_PEER_STALLED);
  CHECK_EQ(cudaGraphExecDestroy(exec), cudaSuccess);
}

TEST(peers, a_kernel_whose_peer_does_not_come_ends_at_the_deadline) {
  noticed = 0;
  on_cards(&(world){.chance = seed()}, 2, alone, NULL);
}

/* Rank 0's kernel waits with a deadline that the test would not live to see. */
static void poisoned(rank *r) {
  float one = 1;
  void *x = to_card(r, &one, 4);
  cudaGraphExec_t exec = captured(r, queue_sum, x, x, 1);
  if (r->rank == 0) {
    CHECK_EQ(cudaGraphLaunch(exec, r->stream), cudaSuccess);
    CHECK_EQ(cudaStreamSynchronize(r->stream), cudaSuccess);
  } else {
    lam_group_poison(r->g, LAM_CANCELLED, "enough");
  }
  CHECK_STATUS(call(r, LAM_OP_all_reduce, LAM_F32, x, 1, x, 1), LAM_CANCELLED);
  CHECK_CONTAINS(lam_last_error(), "enough");
  CHECK_EQ(cudaGraphExecDestroy(exec), cudaSuccess);
}

TEST(peers, poison_ends_kernels_that_wait) {
  on_cards(&(world){.chance = seed(), .deadline_ms = 600000}, 2, poisoned, NULL);
}

static void gone(rank *r) {
  void *x = to_card(r, NULL, 4);
  reduce_once(r, 3);
  if (r->rank == 1) {
    lam_group_destroy(r->g);
    r->g = NULL;
    return;
  }
  CHECK_STATUS(call(r, LAM_OP_all_reduce, LAM_F32, x, 1, x, 1), LAM_PEER_DEAD);
  CHECK_CONTAINS(lam_last_error(), "rank 1 (a thread of this process) has left");
}

TEST(peers, a_rank_that_left_is_noticed) {
  on_cards(&(world){.chance = seed()}, 2, gone, NULL);
}

static void idle(rank *r) {
  void *x = to_card(r, NULL, 4);
  reduce_once(r, 1);
  r->g->deadline_ms = 300;
  if (r->rank == 0)
    CHECK_STATUS(call(r, LAM_OP_all_reduce, LAM_F32, x, 1, x, 1), LAM_PEER_STALLED);
}

TEST(peers, a_rank_that_does_not_call_is_noticed) {
  on_cards(&(world){.chance = seed()}, 2, idle, NULL);
}

/* ---- No memory --------------------------------------------------------------------------------- */

static _Thread_local bool lacks;

static lam_status no_memory_once(const lam_device *d, const char *slot) {
  (void)d;
  if (!lacks || strcmp(slot, "peer_alloc") != 0) return LAM_OK;
  lacks = false;
  return lam_fail(LAM_RESOURCE_EXHAUSTED, "none is left");
}

/* What one rank lacks, all are told; then there is memory, and they go on. */
static void lacking(rank *r) {
  void *x = to_card(r, NULL, 4);
  lacks = r->rank == 1;
  CHECK_STATUS(call(r, LAM_OP_all_reduce, LAM_F32, x, 1, x, 1), LAM_RESOURCE_EXHAUSTED);
  CHECK_CONTAINS(lam_last_error(), "rank 1 has no memory for its peers: none is left");
  reduce_once(r, 5);
}

TEST(peers, what_one_rank_lacks_fails_on_all_and_can_be_tried_again) {
  lam_device_on_call = no_memory_once;
  FOR_EACH(p, 2, 4) on_cards(&(world){.chance = seed()}, p, lacking, NULL);
  lam_device_on_call = NULL;
}
