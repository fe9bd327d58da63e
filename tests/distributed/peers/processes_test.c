/* processes_test.c: ranks in processes of their own that share a card, or have one each: which way
 * their operands take, what comes out, and what happens when a process dies or stops.
 * Alone in its program: CUDA is used in the children only. */
#include <math.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "abi/status.h"
#include "kernels/codec.h"
#include "tests/distributed/await.h"
#include "tests/distributed/peers/cards.h"

static float value(int rank, int64_t i) {
  rng r = {seed() + (uint64_t)rank * 7919u + (uint64_t)i * 104729u};
  return rng_float(&r);
}

/* In rank order, as every way sums. */
static float sum_of(const rank *r, int64_t i) {
  float sum = value(0, i);
  for (int k = 1; k < r->size; k++) sum += value(k, i);
  return sum;
}

static lam_status reduce_once(rank *r, int64_t n) {
  float *x = calloc((size_t)n, 4), *y = calloc((size_t)n, 4);
  for (int64_t i = 0; i < n; i++) x[i] = value(r->rank, i);
  void *dx = to_card(r, x, (uint64_t)n * 4), *dy = to_card(r, NULL, (uint64_t)n * 4);
  const lam_status status = call(r, LAM_OP_all_reduce, LAM_F32, dx, n, dy, n);
  from_card(r, y, dy, (uint64_t)n * 4);
  for (int64_t i = 0; i < n && status == LAM_OK; i++)
    if (y[i] != sum_of(r, i) && !CHECK_EQ(y[i], sum_of(r, i))) break;
  free(x);
  free(y);
  return status;
}

/* ---- Which way --------------------------------------------------------------------------------- */

static void by_ipc(rank *r) {
  CHECK_STR(way(r), "");
  FOR_EACH(n, 1, 1000, 70001) CHECK_OK(reduce_once(r, n));
  CHECK_STR(way(r), "ipc");
}

TEST(processes, that_share_a_card_read_each_others_memory) {
  FOR_EACH(p, 2, 3) in_processes(&(world){.chance = seed()}, p, by_ipc, NULL);
}

static const char *why(const rank *r) {
  lam_group_info info = LAM_GROUP_INFO_INIT;
  CHECK_OK(lam_group_get_info(r->g, &info));
  return info.device_why ? info.device_why : "";
}

static void by_host(rank *r) {
  FOR_EACH(n, 1, 1000, 70001) CHECK_OK(reduce_once(r, n));
  CHECK_STR(way(r), "host");
  CHECK_CONTAINS(why(r), r->arg);
}

static void nothing_may_be_shown(rank *r) {
  standin_set_ipc(false, true);
  by_host(r);
}
static void rank1_may_open_nothing(rank *r) {
  standin_set_ipc(true, r->rank != 1);
  by_host(r);
}

TEST(processes, that_may_not_show_or_open_memory_go_through_the_host_and_all_know_why) {
  const world w = {.chance = seed()};
  in_processes(&w, 2, nothing_may_be_shown, "rank 0: cuda: could not show memory to another process");
  in_processes(&w, 3, rank1_may_open_nothing,
               "rank 1: cuda: could not open another process's memory");
}

TEST(processes, and_threads_whose_cards_reach_not_each_other_go_through_the_host) {
  const world w = {.chance = seed(), .apart = true};
  in_processes(&w, 2, by_host, "rank 0: cuda: could not open another process's memory");
  on_cards(&w, 2, by_host, "rank 0: cuda: GPU 0 cannot read the memory of GPU 1");
}

static void not_captured(rank *r) {
  cudaGraph_t graph = NULL;
  void *x = to_card(r, NULL, 4);
  nothing_may_be_shown(r);
  CHECK_EQ(cudaStreamBeginCapture(r->stream, cudaStreamCaptureModeThreadLocal), cudaSuccess);
  CHECK_STATUS(call(r, LAM_OP_all_reduce, LAM_F32, x, 1, x, 1), LAM_FAILED_PRECONDITION);
  CHECK_CONTAINS(lam_last_error(), "goes through the host: rank 0: cuda: could not show memory");
  CHECK_EQ(cudaStreamEndCapture(r->stream, &graph), cudaSuccess);
  CHECK_EQ(cudaGraphDestroy(graph), cudaSuccess);
  CHECK_OK(reduce_once(r, 5)); /* refused before it was announced */
}

TEST(processes, that_go_through_the_host_cannot_be_captured) {
  in_processes(&(world){.chance = seed()}, 2, not_captured, "");
}

/* ---- Messages ---------------------------------------------------------------------------------- */

static void exchange(rank *r, int64_t n, int turn) {
  unsigned char *x = malloc((size_t)n + 1), *y = malloc((size_t)n + 1);
  lam_wire h = {.bytes = (uint64_t)n, .dtype = LAM_U8, .ndim = 1, .shape = {n}}, got;
  for (int64_t i = 0; i < n; i++) x[i] = (unsigned char)(i * 3 + turn + r->rank);
  void *dx = to_card(r, x, (uint64_t)n), *dy = to_card(r, NULL, (uint64_t)n);
  use_card(r);
  CHECK_OK(lam_group_send(r->g, 1 - r->rank, turn % 2, &h, dx));
  CHECK_OK(lam_group_recv(r->g, 1 - r->rank, turn % 2, &got, dy, (uint64_t)n));
  r->g->device = NULL;
  from_card(r, y, dy, (uint64_t)n);
  for (int64_t i = 0; i < n; i++) x[i] = (unsigned char)(i * 3 + turn + 1 - r->rank);
  CHECK_SAME_BITS(x, y, n);
  free(x), free(y);
}

/* The first go before any collective; the large ones by the copy engine. */
static void exchanges(rank *r) {
  int turn = 0;
  FOR_EACH(n, 5, 1, 0, 70000, 600001, 5, 3000000) exchange(r, n, turn++);
  CHECK_OK(reduce_once(r, 7));
  FOR_EACH(n, 5, 300000) exchange(r, n, turn++);
}

static void exchanges_by_ipc(rank *r) {
  exchanges(r);
  CHECK_STR(way(r), "ipc");
}
static void exchanges_by_host(rank *r) {
  standin_set_ipc(true, false);
  exchanges(r);
  CHECK_STR(way(r), "host");
}

TEST(processes, send_each_other_messages_by_either_way) {
  in_processes(&(world){.chance = seed()}, 2, exchanges_by_ipc, NULL);
  in_processes(&(world){.chance = seed()}, 2, exchanges_by_host, NULL);
}

/* Only one end may open memory: each direction takes the way that it can. */
static void one_sided(rank *r) {
  standin_set_ipc(true, r->rank == 0);
  FOR_EACH(turn, 0, 1, 2, 3) exchange(r, 1000 + turn, turn);
}

TEST(processes, take_either_way_for_each_direction_before_they_have_met) {
  in_processes(&(world){.chance = seed()}, 2, one_sided, NULL);
}

enum { DEPTH = 3, SLOT = 5000, MESSAGES = 11 };

static void push_all(rank *r, lam_channel *c) {
  unsigned char x[SLOT];
  void *slot = NULL;
  for (int k = 0; k < MESSAGES; k++) {
    const lam_wire h = {.bytes = SLOT - (uint64_t)k};
    for (int i = 0; i < SLOT; i++) x[i] = (unsigned char)(i + k);
    CHECK_OK(lam_channel_acquire(c, &slot));
    write_card(r, slot, x, SLOT - (uint64_t)k);
    CHECK_OK(lam_channel_push(c, &h));
  }
}

static void pull_all(rank *r, lam_channel *c) {
  unsigned char x[SLOT], y[SLOT];
  const void *slot = NULL;
  lam_wire h;
  for (int k = 0; k < MESSAGES; k++) {
    REQUIRE_OK(lam_channel_pull(c, &h, &slot));
    CHECK_EQ(h.bytes, SLOT - k);
    from_card(r, y, slot, h.bytes);
    for (int i = 0; i < SLOT; i++) x[i] = (unsigned char)(i + k);
    CHECK_SAME_BITS(x, y, SLOT - k);
    CHECK_OK(lam_channel_release(c));
  }
}

static void channel(rank *r) {
  lam_channel *c = NULL;
  use_card(r);
  REQUIRE_OK(lam_channel_open(r->g, 1 - r->rank, r->rank == 0, 77, DEPTH, SLOT, &c));
  (r->rank == 0 ? push_all : pull_all)(r, c);
  CHECK_STR(lam_channel_path(c), r->arg);
  lam_channel_close(c);
  r->g->device = NULL;
}

static void channel_of_a_settled_group(rank *r) {
  CHECK_OK(reduce_once(r, 1));
  channel(r);
}
static void channel_by_host(rank *r) {
  standin_set_ipc(false, true);
  channel_of_a_settled_group(r);
}
static void channel_of_a_fresh_group(rank *r) {
  standin_set_ipc(true, false);
  channel(r);
}

TEST(processes, have_channels_that_name_their_way) {
  const world w = {.chance = seed()};
  in_processes(&w, 2, channel_of_a_settled_group, "ipc");
  in_processes(&w, 2, channel_by_host, "host");
  in_processes(&w, 2, channel_of_a_fresh_group, "host");
  on_cards(&w, 2, channel_of_a_settled_group, "threads");
}

/* ---- Bad luck ---------------------------------------------------------------------------------- */

typedef struct scene {
  _Atomic int pid;
  _Atomic int64_t doom_ms;
} scene;

static int64_t now_ms(void) {
  struct timespec t;
  clock_gettime(CLOCK_MONOTONIC, &t);
  return (int64_t)t.tv_sec * 1000 + t.tv_nsec / 1000000;
}

static scene *stage;

static void die(int signal_number) {
  (void)signal_number;
  stage->doom_ms = now_ms();
  kill(getpid(), SIGKILL);
}

/* Rank 1 dies somewhere in these, its peers perhaps inside of a wait for the card. */
static void killed_in_sums(rank *r) {
  stage = (scene *)(uintptr_t)r->arg;
  CHECK_OK(reduce_once(r, 100));
  CHECK_STR(way(r), "ipc");
  if (r->rank == 1) {
    rng chance = {seed()};
    signal(SIGALRM, die);
    ualarm((useconds_t)rng_int(&chance, 20000, 90000), 0);
  }
  lam_status status = LAM_OK;
  float x[1000] = {0};
  void *dx = to_card(r, x, sizeof x);
  while (status == LAM_OK) {
    status = call(r, LAM_OP_all_reduce, LAM_F32, dx, 1000, dx, 1000);
    (void)cudaStreamSynchronize(r->stream);
  }
  const int64_t took = now_ms() - stage->doom_ms;
  CHECK_STATUS(status, LAM_PEER_DEAD);
  CHECK_CONTAINS(lam_last_error(), "rank 1");
  CHECK_CONTAINS(lam_last_error(), "died");
  if (took > 2000) CHECK_EQ(took, 100); /* far from the deadline of 20 s, even on a busy machine */
  CHECK_STATUS(call(r, LAM_OP_all_reduce, LAM_F32, dx, 1, dx, 1), LAM_PEER_DEAD);
}

/* A graph that only this rank replays waits on the card for one that will never come; the host waits
 * for the card and hears of nothing. */
static void killed_while_the_card_waits(rank *r) {
  stage = (scene *)(uintptr_t)r->arg;
  cudaGraph_t graph = NULL;
  cudaGraphExec_t exec = NULL;
  void *x = to_card(r, NULL, 4);
  CHECK_OK(reduce_once(r, 1));
  CHECK_EQ(cudaStreamBeginCapture(r->stream, cudaStreamCaptureModeThreadLocal), cudaSuccess);
  CHECK_OK(call(r, LAM_OP_all_reduce, LAM_F32, x, 1, x, 1));
  CHECK_EQ(cudaStreamEndCapture(r->stream, &graph), cudaSuccess);
  CHECK_EQ(cudaGraphInstantiate(&exec, graph, 0), cudaSuccess);
  if (r->rank == 1) {
    await_count(&stage->pid, 1);
    die(0);
  }
  CHECK_EQ(cudaGraphLaunch(exec, r->stream), cudaSuccess);
  stage->pid = getpid();
  CHECK_EQ(cudaStreamSynchronize(r->stream), cudaSuccess);
  const int64_t took = now_ms() - stage->doom_ms;
  if (took > 2000) CHECK_EQ(took, 100);
  CHECK_STATUS(call(r, LAM_OP_all_reduce, LAM_F32, x, 1, x, 1), LAM_PEER_DEAD);
  CHECK_CONTAINS(lam_last_error(), "rank 1 died");
  CHECK_EQ(cudaGraphExecDestroy(exec), cudaSuccess);
  CHECK_EQ(cudaGraphDestroy(graph), cudaSuccess);
}

static scene *new_scene(void) {
  scene *s = shared_memory(sizeof *s);
  memset(s, 0, sizeof *s);
  return s;
}

TEST(processes, that_are_killed_are_noticed) {
  const world w = {.chance = seed(), .doomed = 2};
  in_processes(&w, 3, killed_in_sums, new_scene());
  in_processes(&w, 2, killed_while_the_card_waits, new_scene());
}

static void stopped(rank *r) {
  scene *s = (scene *)(uintptr_t)r->arg;
  void *x = to_card(r, NULL, 4);
  CHECK_OK(reduce_once(r, 1));
  r->g->deadline_ms = 1000;
  if (r->rank == 1) {
    s->pid = getpid();
    raise(SIGSTOP);
  }
  await_state(&s->pid, 'T');
  CHECK_STATUS(call(r, LAM_OP_all_reduce, LAM_F32, x, 1, x, 1), LAM_PEER_STALLED);
  CHECK_CONTAINS(lam_last_error(), "stopped");
}

TEST(processes, that_are_stopped_end_the_group_at_the_deadline) {
  in_processes(&(world){.chance = seed(), .doomed = 2}, 2, stopped, new_scene());
}

/* The others go on with each other; who left took nothing that they still read. */
static void leaves_early(rank *r) {
  float x = 5, y = 0;
  lam_wire h = {.bytes = 4, .dtype = LAM_U8, .ndim = 1, .shape = {4}};
  scene *s = (scene *)(uintptr_t)r->arg;
  CHECK_OK(reduce_once(r, 3));
  void *dx = to_card(r, &x, 4);
  use_card(r);
  if (r->rank == 1) {
    CHECK_OK(lam_group_send(r->g, 0, 0, &h, dx));
    r->g->device = NULL;
    CHECK_EQ(cudaStreamSynchronize(r->stream), cudaSuccess);
    lam_group_destroy(r->g);
    r->g = NULL;
    s->pid = 1;
    return;
  }
  await_count(&s->pid, 1);
  CHECK_OK(lam_group_recv(r->g, 1, 0, &h, dx, 4));
  from_card(r, &y, dx, 4);
  CHECK_EQ(y, 5);
  r->g->device = NULL;
}

TEST(processes, read_what_a_rank_sent_before_it_left) {
  in_processes(&(world){.chance = seed()}, 2, leaves_early, new_scene());
}

/* Its message has come, what it lies in has not been opened yet. */
static void killed_when_it_has_sent(rank *r) {
  float x = 5;
  lam_wire h = {.bytes = 4, .dtype = LAM_U8, .ndim = 1, .shape = {4}};
  CHECK_OK(reduce_once(r, 3));
  void *dx = to_card(r, &x, 4);
  use_card(r);
  if (r->rank == 1) {
    CHECK_OK(lam_group_send(r->g, 0, 0, &h, dx));
    kill(getpid(), SIGKILL);
  }
  const int64_t start = await_start();
  while (r->g->engine->life(r->g) == LAM_OK && await_more(start)) continue;
  CHECK_STATUS(lam_group_recv(r->g, 1, 0, &h, dx, 4), LAM_PEER_DEAD);
  CHECK_CONTAINS(lam_last_error(), "rank 1 ");
  CHECK_CONTAINS(lam_last_error(), "died");
  r->g->device = NULL;
}

TEST(processes, that_died_with_what_they_sent_are_named) {
  in_processes(&(world){.chance = seed(), .doomed = 2}, 2, killed_when_it_has_sent, NULL);
}

/* ---- Codes -------------------------------------------------------------------------------------- */

enum { ROWS = 5, COLS = 300 };

static lam_status transfer(rank *r, bool sends, int codec, void *data) {
  int64_t dims[] = {ROWS, COLS}, one = 1;
  void *token = to_card(r, NULL, 4);
  DLTensor t = {token, {2, r->card}, 1, {kDLFloat, 32, 1}, &one, NULL, 0};
  DLTensor x = {data, {2, r->card}, 2, {kDLFloat, 32, 1}, dims, NULL, 0};
  DLTensor t_out = t;
  const DLTensor *ins[] = {sends ? &x : &t, &t};
  DLTensor *outs[] = {sends ? &t_out : &x, &t_out};
  const lam_attr group = lam_attr_i(lam_group_handle(r->g)), peer = lam_attr_i(1 - r->rank);
  const lam_attr kind = lam_attr_i(0), tag = lam_attr_i(3), coded = lam_attr_i(codec);
  const lam_attr send[] = {group, peer, kind, tag, coded};
  const lam_attr recv[] = {group, peer, kind, tag, lam_attr_ints(dims, 2), lam_attr_i(2 | 32 << 8),
                           coded};
  lam_call c = LAM_CALL_INIT;
  c.op = sends ? LAM_OP_send_activation : LAM_OP_recv_activation;
  c.inputs = ins, c.n_inputs = sends ? 2 : 1;
  c.outputs = outs, c.n_outputs = sends ? 1 : 2;
  c.attrs = sends ? send : recv, c.n_attrs = sends ? 5 : 7;
  c.stream = r->stream;
  return lam_run(NULL, &c);
}

static float largest_of_tile(const float *x, int col) {
  float largest = 0;
  const int first = col / LAM_CODEC_TILE * LAM_CODEC_TILE;
  for (int i = first; i < first + LAM_CODEC_TILE && i < COLS; i++)
    if (fabsf(x[i]) > largest) largest = fabsf(x[i]);
  return largest;
}

static void coded_once(rank *r, int codec, int turn) {
  float x[ROWS * COLS], y[ROWS * COLS];
  const bool sends = (turn + r->rank) % 2 == 0;
  for (int i = 0; i < ROWS * COLS; i++) x[i] = value(9 + turn, i);
  void *d = to_card(r, sends ? x : NULL, sizeof x);
  const int64_t copies = standin_count().copies;
  CHECK_OK(transfer(r, sends, codec, d));
  if (strcmp(way(r), "ipc") == 0) CHECK_EQ(standin_count().copies, copies); /* made in its place */
  if (sends) return;
  from_card(r, y, d, sizeof y);
  for (int i = 0; i < ROWS * COLS; i++) {
    const float most = largest_of_tile(x + i / COLS * COLS, i % COLS);
    if (fabs((double)y[i] - x[i]) > lam_codec_bound(codec, x[i], most) && !CHECK_EQ(i, -1)) return;
  }
}

static void coded(rank *r) {
  CHECK_OK(reduce_once(r, 1));
  CHECK_STR(way(r), r->arg);
  for (int turn = 0; turn < 6; turn++)
    coded_once(r, turn < 3 ? LAM_CODEC_BF16 : LAM_CODEC_INT8, turn);
}
static void coded_by_host(rank *r) {
  standin_set_ipc(true, r->rank == 0);
  coded(r);
}

TEST(processes, and_threads_code_messages_in_their_place) {
  const world w = {.chance = seed()};
  in_processes(&w, 2, coded, "ipc");
  in_processes(&w, 2, coded_by_host, "host");
  on_cards(&w, 2, coded, "threads");
}
