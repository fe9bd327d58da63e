/* ipc_test.c: device memory of the stand-in between processes: who sees it, how work in one waits for
 * work in the other, what is caught. CUDA is used in the children only. */
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

#include "tests/distributed/await.h"
#include "tests/standin/support.h"
#include "tests/standin/test_kernels.h"

typedef struct scene { /* seen by both */
  cudaIpcMemHandle_t handle;
  _Atomic int shown, seen, closed;
} scene;

static scene *scene_create(void) {
  scene *s = shared_memory(sizeof *s);
  memset(s, 0, sizeof *s);
  return s;
}

static void show(scene *s, void *p) {
  REQUIRE_CUDA(cudaIpcGetMemHandle(&s->handle, p));
  s->shown = 1;
}

static void *open_shown(scene *s) {
  void *p = NULL;
  await_count(&s->shown, 1);
  CHECK_CUDA(cudaIpcOpenMemHandle(&p, s->handle, cudaIpcMemLazyEnablePeerAccess));
  return p;
}

static void both_ways(int rank, int size, void *arg) {
  enum { N = 700001 };
  static char x[N], y[N];
  scene *s = arg;
  begin(seed() + (uint64_t)rank);
  (void)size;
  if (rank == 0) {
    char *p = NULL;
    REQUIRE_CUDA(cudaMalloc((void **)&p, N));
    standin_poke(p, "before", 6); /* what it held stays */
    show(s, p);
    await_count(&s->seen, 1);
    standin_peek(p, x, N);
    for (int i = 6; i < N; i++)
      if (x[i] != (char)(i * 7) && !CHECK_EQ(x[i], (char)(i * 7))) break;
    await_count(&s->closed, 1);
    REQUIRE_CUDA(cudaFree(p));
  } else {
    char *p = open_shown(s), *again = open_shown(s);
    CHECK(p == again);
    standin_peek(p, y, 6);
    CHECK_SAME_BITS(y, "before", 6);
    for (int i = 0; i < N; i++) x[i] = (char)(i * 7);
    cudaStream_t stream = new_stream();
    REQUIRE_CUDA(cudaMemcpyAsync(p, x, N, cudaMemcpyHostToDevice, stream));
    REQUIRE_CUDA(cudaStreamSynchronize(stream));
    s->seen = 1;
    REQUIRE_CUDA(cudaIpcCloseMemHandle(p));
    standin_peek(again, y, 1); /* opened twice, closed once */
    REQUIRE_CUDA(cudaIpcCloseMemHandle(again));
    s->closed = 1;
    REQUIRE_CUDA(cudaStreamDestroy(stream));
  }
  end();
}

TEST(ipc, what_one_process_shows_another_reads_and_writes) {
  run_processes(2, both_ways, scene_create());
}

/* Each waits on the card until the other's blocks have come; only rank 0's host waits for its own. */
static void kernels_meet(int rank, int size, void *arg) {
  enum { BLOCKS = 3 };
  uint32_t out[BLOCKS], zero = 0;
  scene *s = arg;
  begin(seed() + (uint64_t)rank);
  standin_set_patience(120000);
  cudaStream_t stream = new_stream();
  uint32_t *own = device_copy(NULL, sizeof out), *flag;
  if (rank == 0) {
    flag = device_copy(&zero, sizeof zero);
    show(s, flag);
  } else {
    flag = open_shown(s);
  }
  REQUIRE(flag != NULL);
  REQUIRE_CUDA(test_meet(flag, (uint32_t)(size * BLOCKS), 100, own, BLOCKS, 4, stream));
  s->seen++;
  if (rank == 1) await_count(&s->closed, 1); /* here no call makes it go on */
  REQUIRE_CUDA(cudaStreamSynchronize(stream));
  standin_peek(own, out, sizeof out);
  for (int i = 0; i < BLOCKS; i++) CHECK_EQ(out[i], 100 + i);
  s->closed++;
  if (rank == 1) REQUIRE_CUDA(cudaIpcCloseMemHandle(flag));
  s->shown++;
  await_count(&s->shown, 3);
  if (rank == 0) REQUIRE_CUDA(cudaFree(flag));
  REQUIRE_CUDA(cudaFree(own));
  REQUIRE_CUDA(cudaStreamDestroy(stream));
  end();
}

TEST(ipc, kernels_of_two_processes_wait_for_each_other) {
  run_processes(2, kernels_meet, scene_create());
}

/* -- what is refused -- */

static void refusals(int rank, int size, void *arg) {
  cudaIpcMemHandle_t h;
  void *pool, *p, *out;
  (void)rank, (void)size, (void)arg;
  begin(seed());
  cudaStream_t stream = new_stream();
  REQUIRE_CUDA(cudaMallocAsync(&pool, 100, stream));
  REQUIRE_CUDA(cudaMalloc(&p, 1000));
  CHECK_EQ(cudaIpcGetMemHandle(&h, pool), cudaErrorInvalidValue);
  CHECK_EQ(cudaIpcGetMemHandle(&h, (char *)p + 8), cudaErrorInvalidValue);
  CHECK_CONTAINS(standin_reports(), "is not the start of device memory");
  standin_forget_reports();
  REQUIRE_CUDA(cudaIpcGetMemHandle(&h, p));
  CHECK_EQ(cudaIpcOpenMemHandle(&out, h, cudaIpcMemLazyEnablePeerAccess),
           cudaErrorDeviceUninitialized);
  CHECK_EQ(cudaIpcOpenMemHandle(&out, h, 0), cudaErrorInvalidValue);
  CHECK_EQ(cudaIpcCloseMemHandle(p), cudaErrorInvalidValue);
  CHECK_CONTAINS(standin_reports(), "was not opened");
  standin_forget_reports();
  standin_set_ipc(false, true);
  CHECK_EQ(cudaIpcGetMemHandle(&h, p), cudaErrorNotSupported);
  standin_set_ipc(true, true);
  end();
}

TEST(ipc, what_cannot_be_shown_or_opened_is_refused) { run_processes(1, refusals, NULL); }

/* -- bad luck -- */

static void freed_too_soon(int rank, int size, void *arg) {
  scene *s = arg;
  (void)size;
  begin(seed());
  if (rank == 0) {
    void *p = device_copy(NULL, 5000);
    show(s, p);
    await_count(&s->seen, 1);
    CHECK_CUDA(cudaFree(p));
    CHECK_CONTAINS(standin_reports(), "is open in another process");
    standin_forget_reports();
    s->closed = 1;
  } else {
    char byte = 1;
    void *p = open_shown(s);
    s->seen = 1;
    await_count(&s->closed, 1);
    standin_peek(p, &byte, 1); /* the pages live as long as someone has them */
    CHECK_CUDA(cudaIpcCloseMemHandle(p));
  }
  end();
}

TEST(ipc, memory_that_is_freed_while_another_has_it_open_is_reported) {
  run_processes(2, freed_too_soon, scene_create());
}

static void owner_dies(int rank, int size, void *arg) {
  scene *s = arg;
  char got[5] = "";
  (void)size;
  begin(seed());
  if (rank == 0) {
    void *p = device_copy("last", 5);
    show(s, p);
    await_count(&s->seen, 1);
    kill(getpid(), SIGKILL);
  }
  char *p = open_shown(s);
  s->seen = 1;
  standin_peek(p, got, 5);
  CHECK_STR(got, "last");
  CHECK_CUDA(cudaIpcCloseMemHandle(p));
  end();
}

TEST(ipc, memory_outlives_the_process_that_showed_it) {
  run_processes_doomed(2, 1, owner_dies, scene_create());
}

static void opener_dies(int rank, int size, void *arg) {
  scene *s = arg;
  (void)size;
  begin(seed());
  if (rank == 1) {
    s->closed = getpid();
    (void)open_shown(s);
    s->seen = 1;
    kill(getpid(), SIGKILL);
  }
  void *p = device_copy(NULL, 5);
  show(s, p);
  await_count(&s->seen, 1);
  await_end(&s->closed);
  CHECK_CUDA(cudaFree(p)); /* nobody has it open any more */
  end();
}

TEST(ipc, an_opener_that_died_does_not_keep_memory) {
  run_processes_doomed(2, 2, opener_dies, scene_create());
}

/* The host may not look into it, opened or shown; here, where nothing is queued, it is closed. */
static void host_touches(int rank, int size, void *arg) {
  scene *s = arg;
  begin(seed());
  (void)size;
  volatile char *p = rank == 0 ? device_copy(NULL, 5000) : open_shown(s);
  if (rank == 0) show(s, (void *)(uintptr_t)p);
  s->seen++;
  await_count(&s->seen, 2);
  const int null = open("/dev/null", O_WRONLY);
  dup2(null, 2);
  if (rank == 0) await_count(&s->closed, 1);
  if (rank == 1) s->closed = 1;
  raise(p[100] ? SIGKILL : SIGKILL);
}

static void trapped(int rank, int size, void *arg) {
  int status = 0;
  const pid_t child = fork();
  if (child == 0) {
    host_touches(rank, size, arg);
    _exit(0);
  }
  REQUIRE(waitpid(child, &status, 0) == child);
  CHECK(WIFSIGNALED(status) ? WTERMSIG(status) != SIGKILL : WEXITSTATUS(status) != 0);
}

TEST(ipc, the_host_cannot_touch_what_another_process_showed) {
  run_processes(2, trapped, scene_create());
}
