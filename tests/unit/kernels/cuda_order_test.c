/* cuda_order_test.c: the CUDA device's order on the stand-in: whose scratch a block is, what happens
 * to it while streams are captured, and what a call says when memory or the device is gone.
 *
 * Leaves products to cuda_gemm_test.c. */
#include <string.h>
#include <unistd.h>

#include "tests/unit/kernels/far.h"

static const lam_device_order *order(void) { return lam_device_cuda.order; }

static void *borrow(uint64_t bytes, void *stream) {
  void *p = NULL;
  CHECK_OK(order()->borrow(bytes, stream, &p));
  CHECK_EQ((uintptr_t)p % 256, 0);
  return p;
}

TEST(cuda_order, enter_gives_the_thread_its_device_back) {
  int32_t was = -1;
  int is = -1;
  CHECK_OK(order()->enter(1, &was));
  CHECK_EQ(was, 0);
  CHECK(cudaGetDevice(&is) == cudaSuccess && is == 1);
  order()->leave(was);
  CHECK(cudaGetDevice(&is) == cudaSuccess && is == 0);
  CHECK_STATUS(order()->enter(7, &was), LAM_INVALID_ARGUMENT);
  CHECK_STR(lam_last_error(), "cuda: found device 7, this machine has 2");
}

TEST(cuda_order, a_stream_gets_its_own_block_again_and_two_borrowers_never_the_same) {
  void *s = stream_new();
  void *a = borrow(1000, s), *b = borrow(1000, s);
  CHECK(a != b);
  order()->give_back(a, s);
  CHECK(borrow(900, s) == a);
  order()->give_back(b, s);
  order()->give_back(a, s);
  const int64_t allocs = standin_count().allocs;
  for (int i = 0; i < 20; i++) order()->give_back(borrow(1000, s), s);
  CHECK_EQ(standin_count().allocs, allocs);
  stream_drop(s);
}

TEST(cuda_order, a_block_is_given_back_from_another_device_too) {
  int32_t was;
  void *s = stream_new(), *p = borrow(7 << 20, s);
  CHECK_OK(order()->enter(1, &was));
  order()->give_back(p, s);
  order()->leave(was);
  CHECK(borrow(7 << 20, s) == p);
  order()->give_back(p, s);
  stream_drop(s);
}

TEST(cuda_order, blocks_of_streams_that_are_gone_are_used_again) {
  uint64_t first = 0;
  for (int i = 0; i < 300; i++) {
    void *s = stream_new();
    void *p = borrow(1 << 16, s);
    CHECK(cudaMemsetAsync(p, i, 1 << 16, s) == cudaSuccess);
    order()->give_back(p, s);
    stream_drop(s);
    if (i == 100) first = standin_count().live_bytes;
  }
  CHECK_EQ(standin_count().live_bytes, first);
}

enum { ALL_BLOCKS = 32, SOME_STREAMS = 20 };

enum { PASSED = 2, PASSED_BYTES = 1 << 12 };

/* Borrows, fills and reads blocks on a stream, between enter and leave as a call does or not. */
static void use_blocks(void *s, int value, bool in_call, unsigned char seen[PASSED]) {
  int32_t was;
  void *p[PASSED];
  if (in_call) CHECK_OK(order()->enter(0, &was));
  for (int k = 0; k < PASSED; k++) {
    p[k] = borrow(PASSED_BYTES, s);
    CHECK(cudaMemsetAsync(p[k], value, PASSED_BYTES, s) == cudaSuccess);
    CHECK_OK(order()->read((char *)p[k] + PASSED_BYTES - 1, &seen[k], 1, s));
  }
  for (int k = 0; k < PASSED; k++) order()->give_back(p[k], s);
  if (in_call) order()->leave(was);
}

static void pass_blocks_on(bool in_calls) {
  void *streams[SOME_STREAMS], *pinned = NULL; /* or every read would wait */
  CHECK(cudaMallocHost(&pinned, SOME_STREAMS * PASSED) == cudaSuccess);
  unsigned char(*seen)[PASSED] = pinned;
  for (int i = 0; i < SOME_STREAMS; i++) {
    streams[i] = stream_new();
    use_blocks(streams[i], i, in_calls, seen[i]);
  }
  for (int i = 0; i < SOME_STREAMS; i++) {
    CHECK_OK(order()->finish(streams[i]));
    for (int k = 0; k < PASSED; k++) CHECK_EQ(seen[i][k], i);
    stream_drop(streams[i]);
  }
  CHECK(cudaFreeHost(pinned) == cudaSuccess);
}

/* All other blocks are in use, so that these go from stream to stream with work pending on them. */
TEST(cuda_order, work_in_a_block_ends_before_another_stream_has_it) {
  void *holder = stream_new(), *held[ALL_BLOCKS - PASSED];
  for (int i = 0; i < ALL_BLOCKS - PASSED; i++) held[i] = borrow(1 << 12, holder);
  for (uint64_t i = 0; i < 8; i++) {
    standin_seed(seed() + i);
    pass_blocks_on(i % 2);
  }
  for (int i = 0; i < ALL_BLOCKS - PASSED; i++) order()->give_back(held[i], holder);
  stream_drop(holder);
}

/* What a block is marked with comes as the call ends. */
TEST(cuda_order, within_a_call_a_block_that_was_given_back_is_its_streams_alone) {
  void *s = stream_new(), *other = stream_new(), *held[ALL_BLOCKS - 1], *p = NULL;
  int32_t was;
  for (int i = 0; i < ALL_BLOCKS - 1; i++) held[i] = borrow(1 << 12, other);
  CHECK_OK(order()->enter(0, &was));
  void *own = borrow(1 << 12, s);
  order()->give_back(own, s);
  CHECK_STATUS(order()->borrow(1 << 12, other, &p), LAM_RESOURCE_EXHAUSTED);
  CHECK(borrow(1 << 12, s) == own);
  order()->give_back(own, s);
  order()->leave(was);
  CHECK(borrow(1 << 12, other) == own);
  order()->give_back(own, other);
  for (int i = 0; i < ALL_BLOCKS - 1; i++) order()->give_back(held[i], other);
  stream_drop(other), stream_drop(s);
}

/* For the device; for what the stream is; an event; and nothing more, however often it borrows. */
TEST(cuda_order, a_call_asks_cuda_once) {
  unsigned char seen[PASSED];
  void *s = stream_new();
  use_blocks(s, 1, true, seen);
  const standin_counts before = standin_count();
  use_blocks(s, 2, true, seen);
  const standin_counts after = standin_count();
  CHECK_EQ(after.calls - before.calls, 1 + 2 + 1 + 2 * PASSED); /* of these PASSED fill, or read */
  CHECK_OK(order()->finish(s));
  stream_drop(s);
}

static cudaGraphExec_t end_capture(void *stream) {
  cudaGraph_t graph = NULL;
  cudaGraphExec_t exec = NULL;
  CHECK(cudaStreamEndCapture(stream, &graph) == cudaSuccess);
  CHECK(cudaGraphInstantiate(&exec, graph, 0) == cudaSuccess);
  CHECK(cudaGraphDestroy(graph) == cudaSuccess);
  return exec;
}

static void begin_capture(void *stream) {
  CHECK(cudaStreamBeginCapture(stream, cudaStreamCaptureModeGlobal) == cudaSuccess);
}

TEST(cuda_order, a_captured_stream_gets_what_was_there_and_keeps_it_for_its_graphs) {
  void *s = stream_new(), *p = borrow(1 << 20, s);
  bool captured = true;
  order()->give_back(p, s);
  CHECK_OK(order()->capturing(s, &captured));
  CHECK(!captured);

  begin_capture(s);
  CHECK_OK(order()->capturing(s, &captured));
  CHECK(captured);
  CHECK(borrow(1 << 20, s) == p);
  CHECK(cudaMemsetAsync(p, 1, 1 << 20, s) == cudaSuccess);
  order()->give_back(p, s);
  CHECK(borrow(1 << 20, s) == p); /* the graph's next step */
  order()->give_back(p, s);
  cudaGraphExec_t exec = end_capture(s);

  void *other = borrow(1 << 20, s); /* work outside of graphs never gets it */
  CHECK(other != p);
  order()->give_back(other, s);
  CHECK(cudaGraphLaunch(exec, s) == cudaSuccess);
  CHECK_OK(order()->finish(s));
  CHECK(cudaGraphExecDestroy(exec) == cudaSuccess);
  stream_drop(s);
}

TEST(cuda_order, a_captured_stream_may_take_what_lies_idle_on_another) {
  void *warm = stream_new(), *s = stream_new(), *p = borrow(3 << 20, warm);
  order()->give_back(p, warm);
  CHECK_OK(order()->finish(warm));
  begin_capture(s);
  CHECK(borrow(3 << 20, s) == p);
  order()->give_back(p, s);
  CHECK(cudaGraphExecDestroy(end_capture(s)) == cudaSuccess);
  stream_drop(warm);
  stream_drop(s);
}

static bool is_idle(void *stream) {
  const enum cudaStreamCaptureMode mode = lam_cuda_set_capture_mode(cudaStreamCaptureModeRelaxed);
  const bool idle = cudaStreamQuery(stream) == cudaSuccess;
  (void)lam_cuda_set_capture_mode(mode);
  return idle;
}

/* What is still at work on another stream would meet the graph's work. */
TEST(cuda_order, a_captured_stream_takes_nothing_that_is_at_work_on_another) {
  enum { BYTES = 9 << 20 };
  for (int i = 0; i < 20; i++) {
    void *warm = stream_new(), *s = stream_new(), *p = borrow(BYTES, warm), *taken = NULL;
    for (int k = 0; k < 200; k++) CHECK(cudaMemsetAsync(p, k, 64, warm) == cudaSuccess);
    order()->give_back(p, warm);
    begin_capture(s);
    const lam_status status = order()->borrow(BYTES, s, &taken);
    if (taken == p) CHECK(is_idle(warm)); /* it may also be an earlier round's */
    if (status == LAM_OK) order()->give_back(taken, s);
    CHECK(cudaGraphExecDestroy(end_capture(s)) == cudaSuccess);
    stream_drop(warm);
    stream_drop(s);
    if (status == LAM_OK) return;
  }
}

TEST(cuda_order, nothing_is_allocated_while_a_stream_is_captured) {
  void *s = stream_new(), *p = NULL;
  begin_capture(s);
  const int64_t allocs = standin_count().allocs;
  CHECK_STATUS(order()->borrow((uint64_t)1 << 30, s, &p), LAM_RESOURCE_EXHAUSTED);
  CHECK_CONTAINS(lam_last_error(), "call once before the capture, or pass lam_call.scratch");
  CHECK(p == NULL);
  CHECK_EQ(standin_count().allocs, allocs);
  CHECK(cudaGraphExecDestroy(end_capture(s)) == cudaSuccess); /* and the capture is whole */
  stream_drop(s);
}

TEST(cuda_order, memory_that_is_not_there_is_one_line_and_the_next_call_has_some) {
  void *s = stream_new(), *p = NULL;
  CHECK_STATUS(order()->borrow((uint64_t)1 << 40, s, &p), LAM_RESOURCE_EXHAUSTED);
  CHECK_CONTAINS(lam_last_error(), "cuda: could not have 1099511627776 bytes of scratch");
  CHECK_STATUS(lam_device_cuda.memory->alloc(NULL, (uint64_t)1 << 40, &p), LAM_RESOURCE_EXHAUSTED);
  order()->give_back(borrow(5 << 20, s), s);
  stream_drop(s);
}

static void borrow_often(int rank, int size, void *stream) {
  (void)size;
  for (int i = 0; i < 50; i++) {
    unsigned char seen = 0;
    void *p = borrow((uint64_t)(1 + i % 3) << 12, stream);
    CHECK(cudaMemsetAsync(p, rank, 4096, stream) == cudaSuccess);
    CHECK_OK(order()->read(p, &seen, 1, stream));
    CHECK_OK(order()->finish(stream));
    CHECK_EQ(seen, rank);
    order()->give_back(p, stream);
  }
}

TEST(cuda_order, threads_on_one_stream_have_blocks_of_their_own) {
  void *s = stream_new();
  run_threads(4, borrow_often, s);
  stream_drop(s);
}

static void call_in_child(int rank, int size, void *arg) {
  void *p = NULL;
  (void)rank, (void)size, (void)arg;
  (void)lam_cuda_status(cudaErrorInitializationError, "borrow");
  CHECK_CONTAINS(lam_last_error(), "this process was forked from one that uses CUDA");
  CHECK(p == NULL);
}

TEST(cuda_order, a_forked_process_is_told_why_nothing_works) {
  CHECK_OK(lam_cuda_open());
  run_processes(1, call_in_child, NULL);
}

TEST(cuda_order, errors_keep_their_kind) {
  CHECK_STATUS(lam_cuda_status(cudaErrorMemoryAllocation, "x"), LAM_RESOURCE_EXHAUSTED);
  CHECK_STATUS(lam_cuda_status(cudaErrorECCUncorrectable, "x"), LAM_UNAVAILABLE);
  CHECK_STATUS(lam_cuda_status(cudaErrorStreamCaptureUnsupported, "x"), LAM_FAILED_PRECONDITION);
  CHECK_STATUS(lam_cuda_status(cudaErrorIllegalAddress, "copy"), LAM_INTERNAL);
  CHECK_CONTAINS(lam_last_error(), "cuda: could not copy: ");
  CHECK_CONTAINS(lam_last_error(), "(cudaErrorIllegalAddress)");
}

TEST(cuda_order, describes_itself) {
  CHECK_CONTAINS(lam_device_cuda.describe(), "CUDA 13.0, cuBLASLt ");
  CHECK_CONTAINS(lam_device_cuda.describe(), "sm_90");
}

/* Two blocks that a call has left, b idle and a at work again: what is borrowed in a capture. */
static bool borrow_beside_work(void *s, void *t, uint64_t bytes) {
  void *a = NULL, *b = NULL, *taken = NULL;
  int32_t was;
  for (int i = 0; i < 2; i++) { /* the second time a is what s gets first, whenever both are free */
    CHECK_OK(order()->enter(0, &was));
    a = borrow(bytes, s), b = borrow(bytes, s);
    order()->give_back(a, s);
    order()->give_back(b, s);
    order()->leave(was); /* one event for both */
  }
  CHECK_OK(order()->finish(s));
  CHECK(borrow(bytes, s) == a);
  for (int k = 0; k < 200; k++) CHECK(cudaMemsetAsync(a, k, 64, s) == cudaSuccess);
  order()->give_back(a, s);
  begin_capture(t); /* which takes only what is idle */
  CHECK_OK(order()->borrow(bytes, t, &taken));
  const bool was_at_work = !is_idle(s);
  CHECK(taken == b || !was_at_work);
  order()->give_back(taken, t);
  CHECK(cudaGraphExecDestroy(end_capture(t)) == cudaSuccess);
  CHECK_OK(order()->finish(s));
  return was_at_work;
}

/* Ranks on one card wait for each other in kernels: who waits for an idle block must not wait for
 * what a block beside it is used for now. */
TEST(cuda_order, an_event_that_stands_for_a_block_is_not_recorded_again) {
  bool was_at_work = false;
  for (uint64_t i = 0; i < 8 && !was_at_work; i++) {
    void *s = stream_new(), *t = stream_new();
    standin_seed(seed() + i);
    was_at_work = borrow_beside_work(s, t, (11 + i) << 20); /* larger than all before */
    stream_drop(s);
    stream_drop(t);
  }
}

/* The last one: the device does not come back. */
TEST(cuda_zz_order, a_lost_device_is_unavailable) {
  int32_t was;
  CHECK_OK(order()->enter(1, &was));
  void *s = stream_new(), *p = NULL;
  standin_lose_device(1);
  CHECK_STATUS(order()->finish(s), LAM_UNAVAILABLE);
  CHECK_STATUS(order()->borrow(1 << 20, s, &p), LAM_UNAVAILABLE);
  order()->leave(was);
  s = stream_new();
  order()->give_back(borrow(1 << 10, s), s); /* the other one is well */
  stream_drop(s);
}
