/* capture_test.c: graphs: what capture forbids fails with CUDA's own error, and replays give what
 * the stream would have. */
#include "tests/standin/support.h"
#include "tests/standin/test_kernels.h"

enum { SEEDS = 24 };

static cudaGraphExec_t instantiated(cudaGraph_t g) {
  cudaGraphExec_t e = NULL;
  CHECK_CUDA(cudaGraphInstantiate(&e, g, 0));
  CHECK_CUDA(cudaGraphDestroy(g));
  return e;
}

/* y = (x + 1) on one stream, then + 10, with a side stream that adds 100 to its own copy. */
typedef struct sums {
  float *x, *y, *z;
  cudaStream_t main, side;
  cudaEvent_t fork, join;
} sums;

static bool queue_sums(const sums *s, bool joined) {
  return CHECK_CUDA(test_add(s->x, 1, s->y, 100, s->main)) &&
         CHECK_CUDA(cudaEventRecord(s->fork, s->main)) &&
         CHECK_CUDA(cudaStreamWaitEvent(s->side, s->fork, 0)) &&
         CHECK_CUDA(test_add(s->y, 100, s->z, 100, s->side)) &&
         CHECK_CUDA(cudaEventRecord(s->join, s->side)) &&
         (!joined || CHECK_CUDA(cudaStreamWaitEvent(s->main, s->join, 0))) &&
         CHECK_CUDA(test_add(joined ? s->z : s->y, 10, s->y, 100, s->main));
}

static sums new_sums(void) {
  float x[100];
  for (int i = 0; i < 100; i++) x[i] = (float)i;
  return (sums){device_copy(x, sizeof x),
                device_copy(NULL, sizeof x),
                device_copy(NULL, sizeof x),
                new_stream(),
                new_stream(),
                new_event(),
                new_event()};
}

TEST(capture, a_replay_gives_what_the_streams_would_have) {
  for (uint64_t k = 0; k < SEEDS; k++) {
    cudaGraph_t g;
    float y[100], seven[100];
    begin(seed() + k);
    const sums s = new_sums();
    REQUIRE_CUDA(cudaStreamBeginCapture(s.main, cudaStreamCaptureModeGlobal));
    REQUIRE(queue_sums(&s, true));
    CHECK_EQ(standin_count().launches, 3);
    REQUIRE_CUDA(cudaStreamEndCapture(s.main, &g));
    cudaGraphExec_t e = instantiated(g);
    for (int i = 0; i < 100; i++) seven[i] = (float)(7 * i);
    FOR_EACH(times, 1, 7) {
      if (times == 7) standin_poke(s.x, seven, sizeof seven);
      REQUIRE_CUDA(cudaGraphLaunch(e, s.main));
      REQUIRE_CUDA(cudaGraphLaunch(e, s.main));
      REQUIRE_CUDA(cudaStreamSynchronize(s.main));
      standin_peek(s.y, y, sizeof y);
      for (int i = 0; i < 100; i++) CHECK_EQ(y[i], times * i + 111);
    }
    REQUIRE_CUDA(cudaGraphExecDestroy(e));
    end();
  }
}

TEST(capture, nothing_runs_while_it_is_captured) {
  cudaGraph_t g;
  float y = 0;
  begin(seed());
  const sums s = new_sums();
  REQUIRE_CUDA(cudaStreamBeginCapture(s.main, cudaStreamCaptureModeRelaxed));
  REQUIRE(queue_sums(&s, true));
  cudaStream_t other = new_stream();
  REQUIRE_CUDA(cudaThreadExchangeStreamCaptureMode(
      &(enum cudaStreamCaptureMode){cudaStreamCaptureModeRelaxed}));
  REQUIRE_CUDA(cudaStreamSynchronize(other)); /* may drain, but there is nothing */
  REQUIRE_CUDA(cudaStreamEndCapture(s.main, &g));
  REQUIRE_CUDA(cudaDeviceSynchronize());
  standin_peek(s.y, &y, sizeof y);
  CHECK(y != y);
  end();
}

/* Without the join the graph is refused; a missing wait inside it shows in replays. */
TEST(capture, a_side_stream_that_is_not_joined_is_refused) {
  cudaGraph_t g;
  begin(seed());
  const sums s = new_sums();
  REQUIRE_CUDA(cudaStreamBeginCapture(s.main, cudaStreamCaptureModeGlobal));
  REQUIRE(queue_sums(&s, false));
  CHECK_EQ(cudaStreamEndCapture(s.main, &g), cudaErrorStreamCaptureUnjoined);
  CHECK(g == NULL);
  CHECK_CUDA(test_add(s.x, 1, s.y, 100, s.side)); /* it is out of capture */
  end_with("cudaErrorStreamCaptureUnjoined");
}

TEST(capture, a_missing_wait_inside_a_graph_shows) {
  int wrong = 0;
  for (uint64_t k = 0; k < SEEDS; k++) {
    cudaGraph_t g;
    float y;
    begin(seed() + k);
    const sums s = new_sums();
    REQUIRE_CUDA(cudaStreamBeginCapture(s.main, cudaStreamCaptureModeGlobal));
    REQUIRE_CUDA(cudaEventRecord(s.fork, s.main));
    REQUIRE_CUDA(cudaStreamWaitEvent(s.side, s.fork, 0));
    REQUIRE_CUDA(test_add(s.x, 1, s.y, 1, s.main));
    REQUIRE_CUDA(test_add(s.y, 1, s.z, 1, s.side)); /* reads y without waiting for it */
    REQUIRE_CUDA(cudaEventRecord(s.join, s.side));
    REQUIRE_CUDA(cudaStreamWaitEvent(s.main, s.join, 0));
    REQUIRE_CUDA(cudaStreamEndCapture(s.main, &g));
    cudaGraphExec_t e = instantiated(g);
    REQUIRE_CUDA(cudaGraphLaunch(e, s.main));
    REQUIRE_CUDA(cudaStreamSynchronize(s.main));
    standin_peek(s.z, &y, sizeof y);
    wrong += y != 2;
    end();
  }
  CHECK(wrong > 0);
  CHECK(wrong < SEEDS);
}

/* -- what capture forbids -- */

typedef struct forbidden {
  const char *what;
  cudaError_t (*call)(const sums *s);
  cudaError_t error;
} forbidden;

static cudaError_t allocate(const sums *s) {
  void *p;
  (void)s;
  return cudaMalloc(&p, 64);
}
static cudaError_t pin(const sums *s) {
  void *p;
  (void)s;
  return cudaMallocHost(&p, 64);
}
static cudaError_t free_it(const sums *s) { return cudaFree(s->z); }
static cudaError_t sync_it(const sums *s) { return cudaStreamSynchronize(s->main); }
static cudaError_t sync_another(const sums *s) { return cudaStreamSynchronize(s->side); }
static cudaError_t sync_all(const sums *s) {
  (void)s;
  return cudaDeviceSynchronize();
}
static cudaError_t query_it(const sums *s) { return cudaStreamQuery(s->main); }
static cudaError_t query_event(const sums *s) {
  const cudaError_t e = cudaEventRecord(s->fork, s->main);
  return e != cudaSuccess ? e : cudaEventQuery(s->fork);
}
static cudaError_t wait_for_uncaptured(const sums *s) {
  const cudaError_t e = cudaEventRecord(s->join, s->side);
  return e != cudaSuccess ? e : cudaStreamWaitEvent(s->main, s->join, 0);
}
static cudaError_t copy_from_pageable(const sums *s) {
  static float x;
  return cudaMemcpyAsync(s->x, &x, sizeof x, cudaMemcpyHostToDevice, s->main);
}
static cudaError_t allocate_in_order(const sums *s) {
  void *p;
  return cudaMallocAsync(&p, 64, s->main);
}

static const forbidden all_forbidden[] = {
    {"cudaMalloc", allocate, cudaErrorStreamCaptureUnsupported},
    {"cudaMallocHost", pin, cudaErrorStreamCaptureUnsupported},
    {"cudaFree", free_it, cudaErrorStreamCaptureUnsupported},
    {"synchronizing it", sync_it, cudaErrorStreamCaptureUnsupported},
    {"synchronizing another stream", sync_another, cudaErrorStreamCaptureUnsupported},
    {"synchronizing the device", sync_all, cudaErrorStreamCaptureUnsupported},
    {"asking it", query_it, cudaErrorStreamCaptureUnsupported},
    {"asking its event", query_event, cudaErrorCapturedEvent},
    {"waiting for what is not captured", wait_for_uncaptured, cudaErrorStreamCaptureIsolation},
    {"copying from pageable memory", copy_from_pageable, cudaErrorStreamCaptureUnsupported},
    {"cudaMallocAsync", allocate_in_order, cudaErrorStreamCaptureUnsupported},
};

TEST(capture, what_it_forbids_breaks_it) {
  for (size_t i = 0; i < sizeof all_forbidden / sizeof *all_forbidden; i++) {
    cudaGraph_t g;
    enum cudaStreamCaptureStatus status;
    begin(seed());
    NOTE("%s", all_forbidden[i].what);
    const sums s = new_sums();
    REQUIRE_CUDA(cudaStreamBeginCapture(s.main, cudaStreamCaptureModeGlobal));
    REQUIRE_CUDA(test_add(s.x, 1, s.y, 100, s.main));
    CHECK_EQ(all_forbidden[i].call(&s), all_forbidden[i].error);
    REQUIRE_CUDA(cudaStreamIsCapturing(s.main, &status));
    CHECK_EQ(status, cudaStreamCaptureStatusInvalidated);
    CHECK_EQ(test_add(s.x, 1, s.y, 100, s.main), cudaErrorStreamCaptureInvalidated);
    CHECK_EQ(cudaStreamEndCapture(s.main, &g), cudaErrorStreamCaptureInvalidated);
    CHECK(g == NULL);
    CHECK_CUDA(test_add(s.x, 1, s.y, 100, s.main));
    CHECK_CUDA(cudaStreamSynchronize(s.main));
    end_with("a stream capture forbids this");
  }
}

TEST(capture, the_legacy_stream_is_not_used_beside_a_blocking_one) {
  cudaStream_t blocking;
  cudaGraph_t g;
  begin(seed());
  const sums s = new_sums();
  REQUIRE_CUDA(cudaStreamCreateWithFlags(&blocking, cudaStreamDefault));
  REQUIRE_CUDA(cudaStreamBeginCapture(s.main, cudaStreamCaptureModeGlobal));
  CHECK_CUDA(test_add(s.x, 1, s.y, 100, NULL)); /* the captured one does not block */
  REQUIRE_CUDA(cudaStreamEndCapture(s.main, &g));
  REQUIRE_CUDA(cudaStreamBeginCapture(blocking, cudaStreamCaptureModeGlobal));
  CHECK_EQ(test_add(s.x, 1, s.y, 100, NULL), cudaErrorStreamCaptureImplicit);
  CHECK_EQ(cudaStreamEndCapture(blocking, &g), cudaErrorStreamCaptureInvalidated);
  CHECK_EQ(cudaStreamBeginCapture(NULL, cudaStreamCaptureModeGlobal),
           cudaErrorStreamCaptureUnsupported);
  end_with("the legacy stream is not captured");
}

TEST(capture, two_captures_do_not_merge) {
  cudaGraph_t g;
  begin(seed());
  const sums s = new_sums();
  REQUIRE_CUDA(cudaStreamBeginCapture(s.main, cudaStreamCaptureModeGlobal));
  REQUIRE_CUDA(cudaStreamBeginCapture(s.side, cudaStreamCaptureModeGlobal));
  REQUIRE_CUDA(cudaEventRecord(s.fork, s.main));
  CHECK_EQ(cudaStreamWaitEvent(s.side, s.fork, 0), cudaErrorStreamCaptureMerge);
  CHECK_EQ(cudaStreamEndCapture(s.main, &g), cudaErrorStreamCaptureInvalidated);
  CHECK_EQ(cudaStreamEndCapture(s.side, &g), cudaErrorStreamCaptureInvalidated);
  end_with("cudaErrorStreamCaptureMerge");
}

TEST(capture, it_ends_where_it_began) {
  cudaGraph_t g;
  begin(seed());
  const sums s = new_sums();
  CHECK_EQ(cudaStreamEndCapture(s.main, &g), cudaErrorIllegalState);
  REQUIRE_CUDA(cudaStreamBeginCapture(s.main, cudaStreamCaptureModeGlobal));
  CHECK_EQ(cudaStreamBeginCapture(s.main, cudaStreamCaptureModeGlobal), cudaErrorIllegalState);
  REQUIRE_CUDA(cudaEventRecord(s.fork, s.main));
  REQUIRE_CUDA(cudaStreamWaitEvent(s.side, s.fork, 0));
  CHECK_EQ(cudaStreamEndCapture(s.side, &g), cudaErrorStreamCaptureUnmatched);
  CHECK_EQ(cudaStreamEndCapture(s.main, &g), cudaErrorStreamCaptureInvalidated);
  end_with("cudaErrorStreamCaptureUnmatched");
}

static void end_elsewhere(int rank, int size, void *arg) {
  const sums *s = arg;
  cudaGraph_t g;
  (void)rank, (void)size;
  CHECK_EQ(cudaStreamEndCapture(s->main, &g), cudaErrorStreamCaptureWrongThread);
}

static void allocate_elsewhere(int rank, int size, void *arg) {
  void *p;
  (void)rank, (void)size;
  CHECK_EQ(cudaMalloc(&p, 64), *(cudaError_t *)arg);
}

TEST(capture, modes_say_whom_it_concerns) {
  cudaGraph_t g;
  FOR_EACH(mode, cudaStreamCaptureModeGlobal, cudaStreamCaptureModeThreadLocal,
           cudaStreamCaptureModeRelaxed) {
    void *p;
    cudaError_t elsewhere =
        mode == cudaStreamCaptureModeGlobal ? cudaErrorStreamCaptureUnsupported : cudaSuccess;
    begin(seed());
    const sums s = new_sums();
    REQUIRE_CUDA(cudaStreamBeginCapture(s.main, (enum cudaStreamCaptureMode)mode));
    run_threads(1, allocate_elsewhere, &elsewhere);
    if (mode == cudaStreamCaptureModeRelaxed) CHECK_CUDA(cudaMalloc(&p, 64));
    if (mode == cudaStreamCaptureModeThreadLocal) {
      run_threads(1, end_elsewhere, (void *)&s);
    } else {
      CHECK_EQ(cudaStreamEndCapture(s.main, &g), mode == cudaStreamCaptureModeGlobal
                                                     ? cudaErrorStreamCaptureInvalidated
                                                     : cudaSuccess);
    }
    standin_forget_reports();
    end();
  }
}

/* -- replays -- */

TEST(capture, a_graph_that_outlives_its_memory_is_found) {
  cudaGraph_t g;
  begin(seed());
  const sums s = new_sums();
  REQUIRE_CUDA(cudaStreamBeginCapture(s.main, cudaStreamCaptureModeGlobal));
  REQUIRE_CUDA(cudaMemcpyAsync(s.y, s.x, 400, cudaMemcpyDefault, s.main));
  REQUIRE_CUDA(cudaStreamEndCapture(s.main, &g));
  cudaGraphExec_t e = instantiated(g);
  REQUIRE_CUDA(cudaFree(s.x));
  (void)cudaGraphLaunch(e, s.main);
  CHECK_EQ(cudaStreamSynchronize(s.main), cudaErrorIllegalAddress);
  end_with("a copy that runs: the source");
}

TEST(capture, a_graph_launched_in_a_capture_becomes_part_of_it) {
  for (uint64_t k = 0; k < SEEDS; k++) {
    cudaGraph_t g;
    float y;
    begin(seed() + k);
    const sums s = new_sums();
    REQUIRE_CUDA(cudaStreamBeginCapture(s.main, cudaStreamCaptureModeGlobal));
    REQUIRE(queue_sums(&s, true));
    REQUIRE_CUDA(cudaStreamEndCapture(s.main, &g));
    cudaGraphExec_t inner = instantiated(g);
    REQUIRE_CUDA(cudaStreamBeginCapture(s.main, cudaStreamCaptureModeGlobal));
    REQUIRE_CUDA(cudaGraphLaunch(inner, s.main));
    REQUIRE_CUDA(test_add(s.y, 1000, s.y, 100, s.main));
    REQUIRE_CUDA(cudaStreamEndCapture(s.main, &g));
    REQUIRE_CUDA(cudaGraphLaunch(instantiated(g), s.main));
    REQUIRE_CUDA(cudaStreamSynchronize(s.main));
    standin_peek(s.y, &y, sizeof y);
    CHECK_EQ(y, 1111);
    end();
  }
}
