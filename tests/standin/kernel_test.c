/* kernel_test.c: what a kernel may count on in the stand-in, and what it is caught at. */
#include <math.h>
#include <string.h>

#include "tests/standin/support.h"
#include "tests/standin/test_kernels.h"

static cudaStream_t stream;

static void begin_with_stream(uint64_t chance) {
  begin(chance);
  stream = new_stream();
}

TEST(kernel, every_thread_of_every_block_runs_once) {
  FOR_EACH(blocks, 1, 7, 300) FOR_EACH(threads, 1, 33, 1024) {
    uint32_t zero = 0, n = 0;
    begin_with_stream(seed());
    uint32_t *count = device_copy(&zero, sizeof zero);
    REQUIRE_CUDA(test_counts(count, blocks, threads, stream));
    REQUIRE_CUDA(cudaStreamSynchronize(stream));
    standin_peek(count, &n, sizeof n);
    CHECK_EQ(n, blocks * threads);
    end();
  }
}

static void sum_rows(cudaError_t (*sum)(const float *, float *, int, cudaStream_t)) {
  enum { ROWS = 19 };
  static float x[ROWS * 256];
  float y[ROWS];
  rng r = {seed()};
  for (int i = 0; i < ROWS * 256; i++) x[i] = (float)rng_int(&r, -1000, 1000);
  for (uint64_t k = 0; k < 8; k++) {
    begin_with_stream(seed() + k);
    float *dx = device_copy(x, sizeof x), *dy = device_copy(NULL, sizeof y);
    REQUIRE_CUDA(sum(dx, dy, ROWS, stream));
    REQUIRE_CUDA(cudaStreamSynchronize(stream));
    standin_peek(dy, y, sizeof y);
    for (int row = 0; row < ROWS; row++) {
      float want = 0;
      for (int i = 0; i < 256; i++) want += x[row * 256 + i];
      CHECK_EQ(y[row], want);
    }
    end();
  }
}

TEST(kernel, shuffles_barriers_and_shared_memory_sum_rows) {
  sum_rows(test_sum_rows);
  sum_rows(test_sum_rows_dynamic);
}

static int reversed_wrongly(int barrier, uint64_t chance) {
  float x[256], y[256];
  int wrong = 0;
  for (int i = 0; i < 256; i++) x[i] = (float)i;
  begin_with_stream(chance);
  float *dx = device_copy(x, sizeof x), *dy = device_copy(NULL, sizeof y);
  CHECK_EQ(test_reverse(dx, dy, barrier, stream), cudaSuccess);
  CHECK_EQ(cudaStreamSynchronize(stream), cudaSuccess);
  standin_peek(dy, y, sizeof y);
  for (int i = 0; i < 256; i++) wrong += y[i] != x[255 - i];
  end();
  return wrong;
}

TEST(kernel, a_missing_barrier_shows) {
  for (uint64_t k = 0; k < 8; k++) {
    CHECK_EQ(reversed_wrongly(1, seed() + k), 0);
    CHECK(reversed_wrongly(0, seed() + k) > 0);
  }
}

TEST(kernel, shuffles_and_votes_give_what_cuda_says) {
  uint32_t out[256];
  begin_with_stream(seed());
  uint32_t *d = device_copy(NULL, sizeof out);
  REQUIRE_CUDA(test_warp(d, stream));
  REQUIRE_CUDA(cudaStreamSynchronize(stream));
  standin_peek(d, out, sizeof out);
  for (uint32_t lane = 0; lane < 32; lane++) {
    CHECK_EQ(out[lane], 5);
    CHECK_EQ(out[32 + lane], lane ^ 3);
    CHECK_EQ(out[64 + lane], lane < 28 ? lane + 4 : lane);
    CHECK_EQ(out[96 + lane], lane >= 4 ? lane - 4 : lane);
    CHECK_EQ(out[128 + lane], lane % 8 < 6 ? lane + 2 : lane);
    CHECK_EQ(out[160 + lane], 0x49249249);
    CHECK_EQ(out[192 + lane], 1);
    CHECK_EQ(out[224 + lane], lane < 16 ? lane ^ 8 : 100 + (lane ^ 1));
  }
  end();
}

TEST(kernel, threads_that_do_not_all_meet_are_reported) {
  static const char *const said[] = {"wait at __syncthreads", "are at another one",
                                     "wait at a shuffle or vote", "wait at a shuffle or vote"};
  FOR_EACH(how, TEST_HALF_AT_BARRIER, TEST_TWO_BARRIERS, TEST_HALF_AT_SHUFFLE, TEST_LANE_RETURNED) {
    begin_with_stream(seed());
    float *y = device_copy(NULL, 64 * sizeof *y);
    (void)test_diverge((test_divergence)how, y, stream); /* may find it out already */
    CHECK_EQ(cudaStreamSynchronize(stream), cudaErrorLaunchFailure);
    CHECK_CONTAINS(standin_reports(), said[how]);
    CHECK_CONTAINS(standin_reports(), "test_kernels.cu:");
    CHECK_EQ(cudaStreamSynchronize(stream), cudaErrorLaunchFailure); /* the device stays lost */
    CHECK_EQ(test_add(y, 1, y, 1, stream), cudaErrorLaunchFailure);
    standin_forget_reports();
    end();
  }
}

/* Blocks of two kernels on two streams wait for each other, and keep their shared memory. */
TEST(kernel, those_that_wait_let_others_run) {
  for (uint64_t k = 0; k < 8; k++) {
    const uint32_t zero = 0;
    uint32_t a[9], b[9];
    begin_with_stream(seed() + k);
    cudaStream_t other = new_stream();
    uint32_t *flag = device_copy(&zero, sizeof zero);
    uint32_t *da = device_copy(NULL, sizeof a), *db = device_copy(NULL, sizeof b);
    REQUIRE_CUDA(test_meet(flag, 18, 100, da, 9, 0, stream));
    REQUIRE_CUDA(test_meet(flag, 18, 200, db, 9, 0, other));
    REQUIRE_CUDA(cudaStreamSynchronize(stream));
    REQUIRE_CUDA(cudaStreamSynchronize(other));
    standin_peek(da, a, sizeof a);
    standin_peek(db, b, sizeof b);
    for (uint32_t i = 0; i < 9; i++) CHECK_EQ(a[i], 100 + i), CHECK_EQ(b[i], 200 + i);
    end();
  }
}

typedef struct ranks {
  uint32_t *flag, *out[4];
} ranks;

static void launch_and_wait(int rank, int size, void *arg) {
  const ranks *r = arg;
  cudaStream_t own = new_stream();
  REQUIRE_CUDA(test_meet(r->flag, (uint32_t)size, 0, r->out[rank], 1, 0, own));
  REQUIRE_CUDA(cudaStreamSynchronize(own));
  REQUIRE_CUDA(cudaStreamDestroy(own));
}

TEST(kernel, one_that_waits_for_another_threads_launch_ends) {
  FOR_EACH(n, 1, 2, 4) {
    const uint32_t zero = 0;
    begin_with_stream(seed());
    ranks r = {.flag = device_copy(&zero, sizeof zero)};
    for (int i = 0; i < n; i++) r.out[i] = device_copy(NULL, sizeof(uint32_t));
    run_threads(n, launch_and_wait, &r);
    end();
  }
}

TEST(kernel, waiting_for_nobody_is_reported) {
  const uint32_t zero = 0;
  begin_with_stream(seed());
  standin_set_patience(50);
  uint32_t *flag = device_copy(&zero, sizeof zero), *out = device_copy(NULL, sizeof zero);
  REQUIRE_CUDA(test_meet(flag, 2, 0, out, 1, 0, stream));
  CHECK_EQ(cudaStreamSynchronize(stream), cudaErrorLaunchTimeout);
  end_with("meet: waits for something that does not come");
}

/* As on a real card: one block with 200 KiB of shared memory fits on each of 132 SMs. */
TEST(kernel, more_blocks_than_fit_do_not_all_wait_at_once) {
  enum { FIT = 132 };
  const uint32_t zero = 0;
  FOR_EACH(blocks, FIT, FIT + 1) {
    begin_with_stream(seed());
    standin_set_patience(200);
    uint32_t *flag = device_copy(&zero, sizeof zero);
    uint32_t *out = device_copy(NULL, (FIT + 1) * sizeof zero);
    REQUIRE_CUDA(test_meet(flag, (uint32_t)blocks, 0, out, blocks, 200 << 10, stream));
    CHECK_EQ(cudaStreamSynchronize(stream), blocks == FIT ? cudaSuccess : cudaErrorLaunchTimeout);
    if (blocks > FIT) standin_forget_reports();
    end();
  }
}

TEST(kernel, a_launch_that_no_card_takes_is_refused) {
  uint32_t zero = 0;
  begin_with_stream(seed());
  uint32_t *count = device_copy(&zero, sizeof zero);
  CHECK_EQ(test_counts(count, 1, 1025, stream), cudaErrorInvalidConfiguration);
  CHECK_EQ(test_counts(count, 0, 32, stream), cudaErrorInvalidConfiguration);
  CHECK_EQ(cudaSetDevice(1), cudaSuccess);
  CHECK_EQ(test_counts(count, 1, 32, stream), cudaErrorInvalidResourceHandle);
  end_with("the stream is of device 0, the thread's device is 1");
}

TEST(kernel, writing_past_dynamic_shared_memory_is_reported) {
  begin_with_stream(seed());
  float *y = device_copy(NULL, sizeof *y);
  REQUIRE_CUDA(test_past_dynamic(y, stream));
  REQUIRE_CUDA(cudaStreamSynchronize(stream));
  end_with("past its 16 bytes of dynamic shared memory");
}

TEST(kernel, an_argument_that_the_device_cannot_reach_is_reported) {
  static const char *const said[] = {"is host memory", "was freed",
                                     "which device 0 does not reach"};
  FOR_EACH(i, 0, 1, 2) {
    float on_host[4] = {0}, *others = NULL;
    begin_with_stream(seed());
    float *gone = device_copy(NULL, 64);
    REQUIRE_CUDA(cudaFree(gone));
    REQUIRE_CUDA(cudaSetDevice(1));
    REQUIRE_CUDA(cudaMalloc((void **)&others, 64));
    REQUIRE_CUDA(cudaSetDevice(0));
    float *const bad[] = {on_host, gone, others};
    (void)test_add(bad[i], 1, bad[i], 4, stream);
    CHECK_EQ(cudaStreamSynchronize(stream), cudaErrorIllegalAddress);
    end_with(said[i]);
  }
}

TEST(kernel, launches_fail_when_asked_to) {
  uint32_t zero = 0, n;
  begin_with_stream(seed());
  uint32_t *count = device_copy(&zero, sizeof zero);
  standin_fail_nth(STANDIN_LAUNCH, 2);
  CHECK_EQ(test_counts(count, 1, 1, stream), cudaSuccess);
  CHECK_EQ(test_counts(count, 1, 1, stream), cudaErrorLaunchOutOfResources);
  CHECK_EQ(test_counts(count, 1, 1, stream), cudaSuccess);
  CHECK_EQ(cudaStreamSynchronize(stream), cudaSuccess);
  standin_peek(count, &n, sizeof n);
  CHECK_EQ(n, 2);
  CHECK_EQ(standin_count().launches, 2);
  end();
}
