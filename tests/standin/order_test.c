/* order_test.c: who waits for whom: streams, events, the legacy stream; and that a wait which is
 * left out shows within a few seeds, some seven as a rule. */
#include "tests/standin/support.h"
#include "tests/standin/test_kernels.h"

enum { SEEDS = 24, MOST_SEEDS = 1000 };

static uint8_t byte_at(const void *p) {
  uint8_t x;
  standin_peek(p, &x, 1);
  return x;
}

/* Does a run end with 2 at p, which 1 was written to before? */
static bool runs_right(bool (*run)(uint8_t *p, bool ordered), bool ordered, int k) {
  begin(seed() + (uint64_t)k);
  uint8_t *p = device_copy(NULL, 1);
  CHECK(run(p, ordered));
  CHECK_CUDA(cudaDeviceSynchronize());
  const bool right = byte_at(p) == 2;
  end();
  return right;
}

static void check_order(bool (*run)(uint8_t *p, bool ordered)) {
  int k = 0;
  for (int i = 0; i < SEEDS; i++) CHECK(runs_right(run, true, i));
  while (k < MOST_SEEDS && runs_right(run, false, k)) k++;
  CHECK(k < MOST_SEEDS);
}

static bool by_event(uint8_t *p, bool ordered) {
  cudaStream_t a = new_stream(), b = new_stream();
  cudaEvent_t e = new_event();
  bool ok = CHECK_CUDA(cudaMemsetAsync(p, 1, 1, a));
  if (ordered) ok &= CHECK_CUDA(cudaEventRecord(e, a)) && CHECK_CUDA(cudaStreamWaitEvent(b, e, 0));
  return ok && CHECK_CUDA(cudaMemsetAsync(p, 2, 1, b));
}
TEST(order, a_missing_event_shows) { check_order(by_event); }

/* The event stands for what was queued when it was recorded, not for what came later. */
static bool by_late_event(uint8_t *p, bool ordered) {
  cudaStream_t a = new_stream(), b = new_stream();
  cudaEvent_t e = new_event();
  bool ok = ordered || CHECK_CUDA(cudaEventRecord(e, a));
  ok &= CHECK_CUDA(cudaMemsetAsync(p, 1, 1, a));
  if (ordered) ok &= CHECK_CUDA(cudaEventRecord(e, a));
  return ok && CHECK_CUDA(cudaStreamWaitEvent(b, e, 0)) && CHECK_CUDA(cudaMemsetAsync(p, 2, 1, b));
}
TEST(order, an_event_recorded_too_early_shows) { check_order(by_late_event); }

/* One stream blocks, or does not, against the legacy stream: before it and after it. */
static bool legacy_after(uint8_t *p, bool ordered) {
  cudaStream_t s;
  return CHECK_CUDA(
             cudaStreamCreateWithFlags(&s, ordered ? cudaStreamDefault : cudaStreamNonBlocking)) &&
         CHECK_CUDA(cudaMemsetAsync(p, 1, 1, s)) && CHECK_CUDA(cudaMemsetAsync(p, 2, 1, NULL));
}
static bool legacy_before(uint8_t *p, bool ordered) {
  cudaStream_t s;
  return CHECK_CUDA(
             cudaStreamCreateWithFlags(&s, ordered ? cudaStreamDefault : cudaStreamNonBlocking)) &&
         CHECK_CUDA(cudaMemsetAsync(p, 1, 1, NULL)) && CHECK_CUDA(cudaMemsetAsync(p, 2, 1, s));
}
static bool legacy_and_own(uint8_t *p, bool ordered) {
  return CHECK_CUDA(cudaMemsetAsync(p, 1, 1, ordered ? cudaStreamPerThread : new_stream())) &&
         CHECK_CUDA(cudaMemsetAsync(p, 2, 1, cudaStreamLegacy));
}
TEST(order, the_legacy_stream_waits_for_blocking_streams) { check_order(legacy_after); }
TEST(order, blocking_streams_wait_for_the_legacy_stream) { check_order(legacy_before); }
TEST(order, a_threads_own_stream_blocks) { check_order(legacy_and_own); }

/* -- the host -- */

/* Reading pinned memory before the copy to it has ended. */
TEST(order, reading_before_synchronizing_shows) {
  int early = 0;
  for (uint64_t k = 0; k < SEEDS; k++) {
    uint8_t *pinned, two = 2;
    begin(seed() + k);
    cudaStream_t s = new_stream();
    uint8_t *p = device_copy(&two, 1);
    REQUIRE_CUDA(cudaMallocHost((void **)&pinned, 1));
    REQUIRE_CUDA(cudaMemcpyAsync(pinned, p, 1, cudaMemcpyDeviceToHost, s));
    early += *pinned != 2;
    REQUIRE_CUDA(cudaStreamSynchronize(s));
    CHECK_EQ(*pinned, 2);
    end();
  }
  CHECK(early > 0);
}

/* Writing to it again before the copy from it has begun. */
TEST(order, reusing_a_source_too_early_shows) {
  int spoilt = 0;
  for (uint64_t k = 0; k < SEEDS; k++) {
    uint8_t *pinned;
    begin(seed() + k);
    cudaStream_t s = new_stream();
    uint8_t *p = device_copy(NULL, 1);
    REQUIRE_CUDA(cudaMallocHost((void **)&pinned, 1));
    *pinned = 2;
    REQUIRE_CUDA(cudaMemcpyAsync(p, pinned, 1, cudaMemcpyHostToDevice, s));
    *pinned = 3;
    REQUIRE_CUDA(cudaStreamSynchronize(s));
    spoilt += byte_at(p) != 2;
    end();
  }
  CHECK(spoilt > 0);
}

TEST(order, events_and_streams_say_when_they_have_ended) {
  int not_ready = 0;
  for (uint64_t k = 0; k < SEEDS; k++) {
    int waited = 0;
    begin(seed() + k);
    cudaStream_t s = new_stream();
    cudaEvent_t e = new_event();
    uint8_t *p = device_copy(NULL, 1);
    CHECK_CUDA(cudaEventQuery(e)); /* never recorded */
    for (int i = 0; i < 9; i++) REQUIRE_CUDA(cudaMemsetAsync(p, i, 1, s));
    REQUIRE_CUDA(cudaEventRecord(e, s));
    while (cudaEventQuery(e) == cudaErrorNotReady) waited++; /* a query lets it go on */
    CHECK_EQ(byte_at(p), 8);
    CHECK_CUDA(cudaStreamQuery(s));
    CHECK_EQ(cudaGetLastError(), waited ? cudaErrorNotReady : cudaSuccess);
    not_ready += waited;
    end();
  }
  CHECK(not_ready > 0);
}

TEST(order, elapsed_time_is_between_events) {
  float ms = -1;
  cudaEvent_t a, b;
  begin(seed());
  cudaStream_t s = new_stream();
  REQUIRE_CUDA(cudaEventCreateWithFlags(&a, cudaEventDefault));
  REQUIRE_CUDA(cudaEventCreateWithFlags(&b, cudaEventDefault));
  REQUIRE_CUDA(cudaEventRecord(a, s));
  REQUIRE_CUDA(cudaEventRecord(b, s));
  REQUIRE_CUDA(cudaEventSynchronize(b));
  CHECK_CUDA(cudaEventElapsedTime(&ms, a, b));
  CHECK(ms >= 0);
  CHECK_EQ(cudaEventElapsedTime(&ms, a, new_event()), cudaErrorInvalidResourceHandle);
  end_with("was not recorded, or has no timing");
}

TEST(order, the_same_seed_gives_the_same_order) {
  uint8_t got[2];
  for (uint64_t k = 0; k < 4; k++) {
    FOR_EACH(i, 0, 1) {
      begin(seed() + k);
      uint8_t *p = device_copy(NULL, 1);
      for (int j = 0; j < 6; j++) REQUIRE_CUDA(cudaMemsetAsync(p, j, 1, new_stream()));
      REQUIRE_CUDA(cudaDeviceSynchronize());
      got[i] = byte_at(p);
      end();
    }
    CHECK_EQ(got[0], got[1]);
  }
}

/* -- handles -- */

TEST(order, handles_that_are_not_or_no_longer_are_refused) {
  cudaEvent_t e;
  begin(seed());
  cudaStream_t s = new_stream();
  uint8_t *p = device_copy(NULL, 1);
  e = new_event();
  REQUIRE_CUDA(cudaStreamDestroy(s));
  REQUIRE_CUDA(cudaEventDestroy(e));
  CHECK_EQ(cudaMemsetAsync(p, 0, 1, s), cudaErrorInvalidResourceHandle);
  CHECK_CONTAINS(standin_reports(), "was destroyed before");
  CHECK_EQ(cudaStreamDestroy(s), cudaErrorInvalidResourceHandle);
  CHECK_EQ(cudaEventDestroy(e), cudaErrorInvalidResourceHandle);
  CHECK_EQ(cudaEventRecord(e, NULL), cudaErrorInvalidResourceHandle);
  CHECK_EQ(cudaStreamSynchronize((cudaStream_t)p), cudaErrorInvalidResourceHandle);
  end_with("is no stream");
}

TEST(order, an_event_of_another_device_is_refused) {
  begin(seed());
  cudaEvent_t e = new_event();
  REQUIRE_CUDA(cudaSetDevice(1));
  cudaStream_t s = new_stream();
  CHECK_EQ(cudaEventRecord(e, s), cudaErrorInvalidResourceHandle);
  end_with("the event is of device 0, the stream of device 1");
}

TEST(order, work_outlives_its_stream_and_event) {
  begin(seed());
  cudaStream_t a = new_stream(), b = new_stream();
  cudaEvent_t e = new_event();
  uint8_t *p = device_copy(NULL, 1);
  REQUIRE_CUDA(cudaMemsetAsync(p, 1, 1, a));
  REQUIRE_CUDA(cudaEventRecord(e, a));
  REQUIRE_CUDA(cudaStreamWaitEvent(b, e, 0));
  REQUIRE_CUDA(cudaMemsetAsync(p, 2, 1, b));
  REQUIRE_CUDA(cudaStreamDestroy(a));
  REQUIRE_CUDA(cudaStreamDestroy(b));
  REQUIRE_CUDA(cudaEventDestroy(e));
  REQUIRE_CUDA(cudaDeviceSynchronize());
  CHECK_EQ(byte_at(p), 2);
  CHECK_CUDA(cudaStreamSynchronize(cudaStreamPerThread));
  CHECK_EQ(standin_leaks(), 1); /* p */
  end();
}
