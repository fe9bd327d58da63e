/* kernel.c: kernels that were launched: which of their blocks run, and how many at once.
 *
 * Blocks start in an order by chance. A block that waits stays resident, and the next one starts,
 * up to as many as a real card's SMs hold: a kernel whose blocks wait for one that does not fit
 * never ends, here as there.
 * Invariant: a launch is checked when it is made, its arguments when it runs.
 * Leaves what happens inside a block to block.c. */
#include <stdlib.h>
#include <string.h>

#include "tests/standin/inside.h"

typedef struct section {
  char *start, *stop;
} section;

typedef struct kernel_work {
  si_work base;
  si_launch launch;
  size_t bytes; /* of the arguments */
} kernel_work;

/* One run: block number i is (i * stride + first) mod n. */
typedef struct progress {
  uint64_t next, n, stride, first;
  si_block **resident;
  uint64_t n_resident, most;
} progress;

enum { MOST_SHARED = 232448, SHARED_OF_SM = 233472 };

static uint64_t common_divisor(uint64_t a, uint64_t b) { return b ? common_divisor(b, a % b) : a; }

static uint64_t fit_on_card(const si_launch *l) {
  const uint64_t threads = 2048 / ((uint64_t)l->block.x * l->block.y * l->block.z);
  const uint64_t shared = l->shared ? SHARED_OF_SM / (l->shared + 1024) : 32;
  uint64_t of_sm = threads < shared ? threads : shared;
  of_sm = of_sm > 32 ? 32 : of_sm;
  return of_sm * (uint64_t)si_n_sms();
}

static progress *begin(const si_launch *l, uint64_t most) {
  progress *p = si_new(sizeof *p);
  p->n = (uint64_t)l->grid.x * l->grid.y * l->grid.z;
  p->first = si_chance(p->n);
  p->stride = 1 + si_chance(p->n);
  while (common_divisor(p->stride, p->n) != 1) p->stride++;
  p->most = most;
  return p;
}

static void finish(progress *p) {
  for (uint64_t i = 0; i < p->n_resident; i++) si_block_free(p->resident[i]);
  free(p->resident);
  free(p);
}

static void abandon(si_work *w, void *state) {
  (void)w;
  finish(state);
}

static uint3 place_of(const si_launch *l, const progress *p) {
  const uint64_t i = (p->next * p->stride + p->first) % p->n;
  const uint3 at = {(unsigned)(i % l->grid.x), (unsigned)(i / l->grid.x % l->grid.y),
                    (unsigned)(i / l->grid.x / l->grid.y)};
  return at;
}

/* The next block, up to where it ends or waits. */
static void start_one(progress *p, const si_launch *l, bool *out_broken) {
  si_block *b = si_block_new(l, place_of(l, p));
  p->next++;
  if (si_block_run(b, out_broken) == SI_ENDED) {
    si_block_free(b);
    return;
  }
  if ((p->n_resident & (p->n_resident + 1)) == 0) /* 0, 1, 3, 7, ...: room for as many more */
    p->resident = si_grown(p->resident, (2 * p->n_resident + 1) * sizeof *p->resident);
  p->resident[p->n_resident++] = b;
}

/* Each resident block once, from one by chance on; did any do more than wait? */
static bool run_resident(progress *p, bool *out_broken) {
  const uint64_t n = p->n_resident, first = si_chance(n);
  uint64_t kept = 0;
  bool moved = false;
  for (uint64_t k = 0; k < n && !*out_broken; k++) {
    si_block **b = &p->resident[(first + k) % n];
    const si_went went = si_block_run(*b, out_broken);
    if (went != SI_WAITS) moved = true;
    if (went != SI_ENDED) continue;
    si_block_free(*b);
    *b = NULL;
  }
  for (uint64_t i = 0; i < n; i++)
    if (p->resident[i]) p->resident[kept++] = p->resident[i];
  p->n_resident = kept;
  return moved;
}

static si_went go_on(progress *p, const si_launch *l, bool *out_broken) {
  bool moved = p->next < p->n && p->n_resident < p->most;
  while (p->next < p->n && p->n_resident < p->most && !*out_broken) {
    start_one(p, l, out_broken);
    if (p->n_resident > 0 && si_chance(8) == 0) return SI_MOVED; /* others may come between */
  }
  if (p->n_resident > 0 && !*out_broken && run_resident(p, out_broken)) moved = true;
  if (p->next == p->n && p->n_resident == 0) return SI_ENDED;
  return moved ? SI_MOVED : SI_WAITS;
}

static si_went run_kernel(si_work *w, void **state) {
  const kernel_work *k = (const kernel_work *)w;
  bool broken = false;
  if (!*state) {
    const cudaError_t e = si_memory_check_words(k->launch.args, k->bytes, w->device, w->name);
    if (e != cudaSuccess) {
      si_lose(w->device, e);
      return SI_ENDED;
    }
    *state = begin(&k->launch, fit_on_card(&k->launch));
  }
  si_memory_reach(w->device);
  const si_went went = go_on(*state, &k->launch, &broken);
  if (broken) si_lose(w->device, cudaErrorLaunchFailure);
  if (!broken && went != SI_ENDED) return went;
  finish(*state);
  *state = NULL;
  return SI_ENDED;
}

static void free_kernel(si_work *w) { free(((kernel_work *)w)->launch.args); }

/* -- launch -- */

static cudaError_t check_dims(const si_launch *l, size_t bytes, const char *who) {
  const bool fits = l->grid.x && l->grid.y && l->grid.z && l->block.x && l->block.y && l->block.z &&
                    l->grid.x <= 0x7fffffffu && l->grid.y <= 65535 && l->grid.z <= 65535 &&
                    l->block.z <= 64 && (uint64_t)l->block.x * l->block.y * l->block.z <= 1024;
  if (!fits)
    return si_misuse(cudaErrorInvalidConfiguration,
                     "%s: a grid of %u x %u x %u blocks of %u x %u x %u", who, l->grid.x, l->grid.y,
                     l->grid.z, l->block.x, l->block.y, l->block.z);
  if (l->shared > MOST_SHARED)
    return si_misuse(cudaErrorInvalidValue, "%s: %zu bytes of shared memory", who, l->shared);
  if (bytes > 32764)
    return si_misuse(cudaErrorInvalidValue, "%s: %zu bytes of arguments", who, bytes);
  return cudaSuccess;
}

static cudaError_t launch(const si_launch *l, const void *args, size_t bytes, cudaStream_t stream) {
  si_stream *s = si_stream_find(stream, l->name);
  if (!s) return cudaErrorInvalidResourceHandle;
  if (s->device != si_device)
    return si_misuse(cudaErrorInvalidResourceHandle,
                     "%s: the stream is of device %d, the thread's device is %d", l->name,
                     s->device, si_device);
  const cudaError_t e = check_dims(l, bytes, l->name);
  if (e != cudaSuccess) return e;
  if (si_fails_now(STANDIN_LAUNCH)) return cudaErrorLaunchOutOfResources;
  kernel_work *k = (kernel_work *)si_work_new(sizeof *k, s->device, l->name, run_kernel);
  k->base.abandon = abandon;
  k->base.free = free_kernel;
  k->launch = *l;
  k->launch.args = si_new(bytes + 16);
  k->bytes = bytes;
  memcpy(k->launch.args, args, bytes);
  si_counted.launches++;
  return si_stream_add(s, &k->base, l->name);
}

cudaError_t standin_launch_kernel(const char *name, dim3 grid, dim3 block, size_t shared,
                                  cudaStream_t stream, void (*run)(const void *), const void *args,
                                  size_t bytes, section of) {
  const si_launch l = {name, grid, block, shared, run, NULL, of.start, of.stop};
  si_enter();
  return si_leave(launch(&l, args, bytes, stream));
}

cudaError_t CUDARTAPI cudaLaunchKernel(const void *kernel, dim3 grid, dim3 block, void **args,
                                       size_t shared, cudaStream_t stream) {
  (void)kernel, (void)grid, (void)block, (void)args, (void)shared, (void)stream;
  si_enter();
  return si_leave(si_misuse(cudaErrorInvalidDeviceFunction,
                            "cudaLaunchKernel: the stand-in's kernels come by standin_launch"));
}

cudaError_t CUDARTAPI cudaFuncSetAttribute(const void *kernel, enum cudaFuncAttribute attr,
                                           int value) {
  (void)kernel;
  si_enter();
  const bool fits = attr == cudaFuncAttributeMaxDynamicSharedMemorySize && value <= MOST_SHARED;
  return si_leave(fits ? cudaSuccess : cudaErrorInvalidValue);
}

cudaError_t CUDARTAPI cudaOccupancyMaxActiveBlocksPerMultiprocessor(int *out, const void *kernel,
                                                                    int block, size_t shared) {
  (void)kernel;
  si_enter();
  *out = 0;
  if (block < 1 || block > 1024) return si_leave(cudaErrorInvalidValue);
  const int by_threads = 2048 / block;
  const int by_shared = shared ? (int)(SHARED_OF_SM / (shared + 1024)) : 32;
  *out = by_threads < by_shared ? by_threads : by_shared;
  if (*out > 32) *out = 32;
  return si_leave(cudaSuccess);
}
