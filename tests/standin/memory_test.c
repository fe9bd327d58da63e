/* memory_test.c: device memory in the stand-in: what is in it, who may touch it, what is caught. */
#include <math.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#include "tests/standin/support.h"
#include "tests/standin/test_kernels.h"

/* -- what is in it -- */

TEST(memory, fresh_memory_is_poisoned_and_aligned) {
  FOR_EACH(bytes, 4, 100, 4096, 5000000) {
    static float x[1250000];
    void *p;
    begin(seed());
    REQUIRE_CUDA(cudaMalloc(&p, (size_t)bytes));
    CHECK_EQ((uintptr_t)p % 256, 0);
    standin_peek(p, x, (size_t)bytes);
    for (int i = 0; i < bytes / 4; i += 97) CHECK(isnan(x[i]));
    REQUIRE_CUDA(cudaMallocHost(&p, (size_t)bytes));
    CHECK(isnan(*(float *)p));
    end();
  }
}

TEST(memory, pointers_say_what_they_are) {
  struct cudaPointerAttributes a;
  void *device, *pinned, *seen;
  int own = 0;
  begin(seed());
  REQUIRE_CUDA(cudaSetDevice(1));
  REQUIRE_CUDA(cudaMalloc(&device, 64));
  REQUIRE_CUDA(cudaHostAlloc(&pinned, 64, cudaHostAllocMapped));
  REQUIRE_CUDA(cudaPointerGetAttributes(&a, (char *)device + 7));
  CHECK_EQ(a.type, cudaMemoryTypeDevice);
  CHECK_EQ(a.device, 1);
  REQUIRE_CUDA(cudaPointerGetAttributes(&a, pinned));
  CHECK_EQ(a.type, cudaMemoryTypeHost);
  REQUIRE_CUDA(cudaPointerGetAttributes(&a, &own));
  CHECK_EQ(a.type, cudaMemoryTypeUnregistered);
  REQUIRE_CUDA(cudaHostGetDevicePointer(&seen, pinned, 0));
  CHECK(seen == pinned);
  end();
}

TEST(memory, copies_and_fills_give_what_they_were_given) {
  enum { W = 17, H = 5, PITCH = 32 };
  uint8_t from[H * PITCH], to[H * PITCH] = {0}, filled[4];
  rng r = {seed()};
  for (size_t i = 0; i < sizeof from; i++) from[i] = (uint8_t)rng_next(&r);
  begin(seed());
  cudaStream_t s = new_stream();
  char *a = device_copy(NULL, sizeof from), *b = device_copy(NULL, H * W);
  REQUIRE_CUDA(cudaMemcpyAsync(a, from, sizeof from, cudaMemcpyHostToDevice, s));
  memset(from, 0, sizeof from); /* its bytes were taken at the call */
  REQUIRE_CUDA(cudaMemcpy2DAsync(b, W, a, PITCH, W, H, cudaMemcpyDeviceToDevice, s));
  REQUIRE_CUDA(cudaMemcpy2DAsync(to, PITCH, b, W, W, H, cudaMemcpyDefault, s));
  r = (rng){seed()};
  for (int i = 0; i < H * PITCH; i++) {
    const uint8_t was = (uint8_t)rng_next(&r);
    CHECK_EQ(to[i], i % PITCH < W ? was : 0);
  }
  REQUIRE_CUDA(cudaMemsetAsync(b, 0x5a, 3, s));
  REQUIRE_CUDA(cudaStreamSynchronize(s));
  standin_peek(b, filled, 4);
  CHECK_EQ(filled[0], 0x5a);
  CHECK_EQ(filled[2], 0x5a);
  CHECK_EQ(filled[3], to[3]);
  end();
}

/* Large pieces get fresh pages for it; what lies beside, on the same pages too, stays. */
TEST(memory, zeros_in_a_large_piece_end_where_they_were_to_end) {
  enum { MOST = 3 << 20 };
  static uint8_t got[MOST];
  rng r = {seed()};
  const size_t first = (size_t)rng_int(&r, 1, 9000), n = (size_t)rng_int(&r, 5 << 18, 2 << 20);
  begin(seed());
  cudaStream_t s = new_stream();
  char *p = device_copy(NULL, MOST);
  REQUIRE_CUDA(cudaMemsetAsync(p, 7, MOST, s));
  REQUIRE_CUDA(cudaMemsetAsync(p + first, 0, n, s));
  REQUIRE_CUDA(cudaStreamSynchronize(s));
  standin_peek(p, got, MOST);
  for (size_t i = 0; i < MOST; i++)
    if (got[i] != (i < first || i >= first + n ? 7 : 0) && !CHECK_EQ(i, -1)) break;
  end();
}

/* -- traps: each in a process of its own, which must die of it -- */

typedef void (*deadly)(float *p, cudaStream_t s);

static void host_writes(float *p, cudaStream_t s) {
  (void)s;
  *(volatile float *)p = 1;
}
static void host_reads(float *p, cudaStream_t s) {
  (void)s;
  (void)*(volatile float *)p;
}
static void kernel_goes_past(float *p, cudaStream_t s) {
  (void)test_stray(p, 1 << 20, s);
  (void)cudaStreamSynchronize(s);
}
static void kernel_comes_late(float *p, cudaStream_t s) {
  float **table = device_copy(&p, sizeof p); /* where no check of arguments sees it */
  (void)cudaFree(p);
  (void)test_through(table, s);
  (void)cudaStreamSynchronize(s);
}
static void kernel_goes_to_another_device(float *p, cudaStream_t s) {
  float *there, **table;
  (void)cudaSetDevice(1);
  (void)cudaMalloc((void **)&there, sizeof *there);
  (void)cudaSetDevice(0);
  table = device_copy(&there, sizeof there); /* no peer, and no check of arguments sees it */
  (void)p, (void)test_through(table, s);
  (void)cudaStreamSynchronize(s);
}
static void kernel_is_askew(float *p, cudaStream_t s) {
  (void)test_wide(p + 1, s);
  (void)cudaStreamSynchronize(s);
}

/* What a child says that must die of this; it was alive: "". */
static const char *last_words(deadly way) {
  static char said[4096];
  int ends[2], status = 0;
  size_t n = 0;
  if (!CHECK(pipe(ends) == 0)) return "";
  fflush(NULL);
  const pid_t child = fork();
  if (child == 0) {
    dup2(ends[1], 1), dup2(ends[1], 2);
    way(device_copy(NULL, 64), new_stream());
    _exit(0);
  }
  close(ends[1]);
  for (ssize_t got; (got = read(ends[0], said + n, sizeof said - 1 - n)) > 0;) n += (size_t)got;
  said[n] = 0;
  close(ends[0]);
  waitpid(child, &status, 0);
  return CHECK(status != 0) ? said : "";
}

TEST(memory, the_host_cannot_touch_it_nor_a_kernel_leave_it) {
  CHECK_CONTAINS(last_words(host_writes), "the host touched");
  CHECK_CONTAINS(last_words(host_reads), "which only queued work may touch");
  CHECK_CONTAINS(last_words(kernel_goes_past), "stray touched");
  CHECK_CONTAINS(last_words(kernel_comes_late), "which was freed");
  CHECK_CONTAINS(last_words(kernel_goes_to_another_device), "which its device does not reach");
  CHECK_CONTAINS(last_words(kernel_is_askew), "an access that is not aligned");
}

TEST(memory, a_write_just_past_the_end_is_reported) {
  begin(seed());
  cudaStream_t s = new_stream();
  float *p = device_copy(NULL, 100);
  REQUIRE_CUDA(test_stray(p, 25, s));
  REQUIRE_CUDA(cudaStreamSynchronize(s));
  end_with("an allocation of 100 bytes on device 0");
}

/* -- misuse -- */

TEST(memory, frees_that_fit_nothing_are_refused) {
  int own = 0;
  begin(seed());
  char *p = device_copy(NULL, 64), *pinned = NULL;
  REQUIRE_CUDA(cudaMallocHost((void **)&pinned, 64));
  CHECK_EQ(cudaFree(p + 4), cudaErrorInvalidValue);
  CHECK_EQ(cudaFree(&own), cudaErrorInvalidValue);
  CHECK_CONTAINS(standin_reports(), "is not the start of an allocation");
  CHECK_EQ(cudaFree(pinned), cudaErrorInvalidValue);
  CHECK_EQ(cudaFreeHost(p), cudaErrorInvalidValue);
  CHECK_EQ(standin_leaks(), 2);
  CHECK_CUDA(cudaFree(p));
  CHECK_EQ(cudaFree(p), cudaErrorInvalidValue);
  CHECK_CUDA(cudaFreeHost(pinned));
  CHECK_CUDA(cudaFree(NULL));
  CHECK_EQ(standin_leaks(), 0);
  end_with("was freed before");
}

TEST(memory, ranges_that_leave_their_allocation_are_refused) {
  char host[128] = {0};
  begin(seed());
  cudaStream_t s = new_stream();
  char *p = device_copy(NULL, 64), *q = device_copy(NULL, 64);
  CHECK_EQ(cudaMemcpyAsync(p + 1, q, 64, cudaMemcpyDefault, s), cudaErrorInvalidValue);
  CHECK_CONTAINS(standin_reports(), "the destination, 64 bytes from");
  CHECK_EQ(cudaMemcpyAsync(p, q - 1, 64, cudaMemcpyDefault, s), cudaErrorInvalidValue);
  CHECK_EQ(cudaMemsetAsync(p, 0, 65, s), cudaErrorInvalidValue);
  CHECK_EQ(cudaMemcpyAsync(host, p, 64, cudaMemcpyHostToDevice, s), cudaErrorInvalidValue);
  CHECK_EQ(cudaMemcpy2DAsync(p, 8, q, 8, 9, 2, cudaMemcpyDefault, s), cudaErrorInvalidPitchValue);
  CHECK_CUDA(cudaFree(q));
  CHECK_EQ(cudaMemcpyAsync(p, q, 64, cudaMemcpyDefault, s), cudaErrorInvalidValue);
  end_with("the source, ");
}

TEST(memory, what_is_freed_under_queued_work_is_found) {
  int found = 0;
  for (uint64_t k = 0; k < 100; k++) {
    begin(seed() + k);
    cudaStream_t s = new_stream(), other = new_stream();
    char *p, *q = device_copy(NULL, 64);
    REQUIRE_CUDA(cudaMallocAsync((void **)&p, 64, s));
    REQUIRE_CUDA(cudaMemsetAsync(p, 1, 64, s));
    REQUIRE_CUDA(cudaMemcpyAsync(q, p, 64, cudaMemcpyDefault, other)); /* without an event */
    (void)cudaFreeAsync(p, s);
    found += cudaDeviceSynchronize() == cudaErrorIllegalAddress;
    standin_forget_reports();
    end();
  }
  CHECK(found > 0);
}

TEST(memory, a_stream_frees_after_its_own_work) {
  for (uint64_t k = 0; k < 16; k++) {
    uint8_t x[64];
    begin(seed() + k);
    cudaStream_t s = new_stream();
    char *p, *q = device_copy(NULL, 64);
    REQUIRE_CUDA(cudaMallocAsync((void **)&p, 64, s));
    REQUIRE_CUDA(cudaMemsetAsync(p, 7, 64, s));
    REQUIRE_CUDA(cudaMemcpyAsync(q, p, 64, cudaMemcpyDefault, s));
    REQUIRE_CUDA(cudaFreeAsync(p, s));
    REQUIRE_CUDA(cudaStreamSynchronize(s));
    standin_peek(q, x, sizeof x);
    CHECK_EQ(x[63], 7);
    CHECK_EQ(standin_leaks(), 2); /* q and the stream */
    end();
  }
}

/* -- faults -- */

TEST(memory, allocations_fail_when_asked_to_or_when_there_is_no_more) {
  void *p, *q;
  begin(seed());
  standin_fail_nth(STANDIN_ALLOC, 2);
  CHECK_CUDA(cudaMalloc(&p, 64));
  CHECK_EQ(cudaMalloc(&q, 64), cudaErrorMemoryAllocation);
  CHECK(q == NULL);
  CHECK_EQ(cudaGetLastError(), cudaErrorMemoryAllocation);
  CHECK_CUDA(cudaGetLastError());
  CHECK_CUDA(cudaMalloc(&q, 64));
  standin_set_memory(1 << 20);
  CHECK_EQ(cudaMalloc(&p, 1 << 20), cudaErrorMemoryAllocation);
  CHECK_CUDA(cudaMalloc(&p, (1 << 20) - 128));
  CHECK_EQ(standin_count().live_bytes, 1 << 20);
  standin_set_memory((uint64_t)4 << 30);
  end();
}

TEST(memory, a_lost_device_says_so_for_ever) {
  void *p;
  begin(seed());
  cudaStream_t s = new_stream();
  char *q = device_copy(NULL, 64);
  standin_fail_nth(STANDIN_DEVICE, 1);
  (void)cudaMemsetAsync(q, 1, 64, s);
  CHECK_EQ(cudaStreamSynchronize(s), cudaErrorDevicesUnavailable);
  CHECK_EQ(cudaMalloc(&p, 64), cudaErrorDevicesUnavailable);
  REQUIRE_CUDA(cudaSetDevice(1)); /* the other one lives */
  CHECK_CUDA(cudaMalloc(&p, 64));
  standin_lose_device(1);
  CHECK_EQ(cudaMalloc(&p, 64), cudaErrorDevicesUnavailable);
  end();
}

TEST(memory, without_a_driver_or_with_an_old_one_every_call_says_so) {
  void *p;
  int n = 7, version;
  begin(seed());
  FOR_EACH(driver, 0, 12080) {
    standin_set_driver(driver);
    CHECK_EQ(cudaGetDeviceCount(&n), cudaErrorInsufficientDriver);
    CHECK_EQ(n, 0);
    CHECK_EQ(cudaMalloc(&p, 64), cudaErrorInsufficientDriver);
    CHECK_CUDA(cudaDriverGetVersion(&version));
    CHECK_EQ(version, driver);
  }
  standin_set_driver(13000);
  standin_devices(0);
  CHECK_EQ(cudaGetDeviceCount(&n), cudaErrorNoDevice);
  standin_devices(2);
  CHECK_CUDA(cudaGetDeviceCount(&n));
  CHECK_EQ(n, 2);
  end();
}

TEST(memory, another_devices_is_reached_by_peers_alone) {
  begin(seed());
  cudaStream_t s = new_stream();
  float x = 1, *here = device_copy(&x, 4), *there;
  REQUIRE_CUDA(cudaSetDevice(1));
  REQUIRE_CUDA(cudaMalloc((void **)&there, 4));
  REQUIRE_CUDA(cudaSetDevice(0));
  REQUIRE_CUDA(cudaMemcpyAsync(there, here, 4, cudaMemcpyDefault, s)); /* copies reach it */
  CHECK_EQ(cudaMemsetAsync(there, 0, 4, s), cudaErrorInvalidValue);
  CHECK_CONTAINS(standin_reports(), "which device 0 does not reach");
  standin_forget_reports();
  REQUIRE_CUDA(cudaDeviceEnablePeerAccess(1, 0));
  CHECK_EQ(cudaDeviceEnablePeerAccess(1, 0), cudaErrorPeerAccessAlreadyEnabled);
  REQUIRE_CUDA(test_add(there, 1, here, 1, s));
  REQUIRE_CUDA(cudaStreamSynchronize(s));
  standin_peek(here, &x, 4);
  CHECK_EQ(x, 2);
  end();
}
