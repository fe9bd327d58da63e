/* comm_bench.c: collectives and transfers of the shm engine between two processes, each pinned
 * to its own CPU; for comparison memcpy of the same buffers, and `crossing`, the floor of any
 * transfer: one CPU copies what the other has just written. Prints `name/bytes median us spread`
 * per case; argv[1] keeps the names that contain it.
 * Leaves how to measure to comm_bench.h. */
#include "tests/bench/comm_bench.h"

#include <sched.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

#include "plugin/comm/group.h"

typedef struct bench {
  lam_group *g;
  float *x, *y, *shared; /* MOST_BYTES each; shared: by both ranks */
  void *given;           /* by the group */
} bench;

static void must(lam_status status, const char *what) {
  if (status == LAM_OK) return;
  fprintf(stderr, "comm_bench: %s: %s\n", what, lam_last_error());
  exit(1);
}

static void all_reduce(void *user, int64_t bytes, int calls) {
  const bench *b = user;
  const lam_comm_op op = {
      .op = LAM_OP_all_reduce, .dtype = LAM_F32, .ndim = 1, .dims = {bytes / 4}};
  for (int i = 0; i < calls; i++)
    must(lam_group_all_reduce(b->g, &op, b->x, b->y, bytes / 4, LAM_F32), "all_reduce");
}

static void all_reduce_bf16(void *user, int64_t bytes, int calls) {
  const bench *b = user;
  const lam_comm_op op = {
      .op = LAM_OP_all_reduce, .dtype = LAM_BF16, .ndim = 1, .dims = {bytes / 2}};
  for (int i = 0; i < calls; i++)
    must(lam_group_all_reduce(b->g, &op, b->x, b->y, bytes / 2, LAM_BF16), "all_reduce");
}

/* `bytes` is the whole operand's. */
static void all_gather(void *user, int64_t bytes, int calls) {
  const bench *b = user;
  const int64_t first[] = {0, bytes / 8, bytes / 4};
  const lam_comm_op op = {
      .op = LAM_OP_all_gather, .dtype = LAM_F32, .ndim = 1, .dims = {bytes / 4}};
  const lam_parts parts = {.outer = 1, .inner = 1, .first = first, .dtype = LAM_F32};
  for (int i = 0; i < calls; i++)
    must(lam_group_all_gather(b->g, &op, &parts, b->x, b->y), "all_gather");
}

static void reduce_scatter(void *user, int64_t bytes, int calls) {
  const bench *b = user;
  const int64_t first[] = {0, bytes / 8, bytes / 4};
  const lam_comm_op op = {
      .op = LAM_OP_reduce_scatter, .dtype = LAM_F32, .ndim = 1, .dims = {bytes / 4}};
  const lam_parts parts = {.outer = 1, .inner = 1, .first = first, .dtype = LAM_F32};
  for (int i = 0; i < calls; i++)
    must(lam_group_reduce_scatter(b->g, &op, &parts, b->x, b->y), "reduce_scatter");
}

/* A stream of messages one way, then a byte back. */
static void stream_of(const bench *b, const void *x, void *y, int64_t bytes, int calls) {
  lam_wire header = {.bytes = (uint64_t)bytes, .dtype = LAM_F32, .ndim = 1, .shape = {bytes / 4}};
  unsigned char done = 0;
  const int me = b->g->rank;
  for (int i = 0; i < calls; i++)
    must(me == 0 ? lam_group_send(b->g, 1, 0, &header, x)
                 : lam_group_recv(b->g, 0, 0, &header, y, MOST_BYTES),
         "one_way");
  header.bytes = 1;
  must(me == 1 ? lam_group_send(b->g, 0, 0, &header, &done)
               : lam_group_recv(b->g, 1, 0, &header, &done, 1),
       "one_way");
}

static void one_way(void *user, int64_t bytes, int calls) {
  const bench *b = user;
  stream_of(b, b->x, b->y, bytes, calls);
}

/* The same out of memory that the group gave. */
static void one_way_given(void *user, int64_t bytes, int calls) {
  const bench *b = user;
  stream_of(b, b->given, b->y, bytes, calls);
}

/* And into such memory. */
static void one_way_between_given(void *user, int64_t bytes, int calls) {
  const bench *b = user;
  stream_of(b, b->given, b->given, bytes, calls);
}

static void copy_from(const bench *b, const void *x, int64_t bytes) {
  if (b->g->rank != 0) return;
  memcpy(b->y, x, (size_t)bytes);
  __asm__ volatile("" : : "r"(b->y) : "memory");
}

static void copy(void *user, int64_t bytes, int calls) {
  const bench *b = user;
  for (int i = 0; i < calls; i++) copy_from(b, b->x, bytes);
}

/* Rank 1 writes memory that both see, rank 0 then copies it out: no protocol, one copy, timed
 * alone. What the bytes cost on their way from one CPU's caches to the other's. */
static double cross_once(const bench *b, int64_t bytes) {
  if (b->g->rank == 1) memcpy(b->shared, b->x, (size_t)bytes);
  all_reduce((void *)b, 64, 1);
  const double start = now_us();
  copy_from(b, b->shared, bytes);
  const double took = now_us() - start;
  all_reduce((void *)b, 64, 1);
  return took;
}

static void crossing(const bench *b, const char *filter) {
  for (int i = 0; i < N_TRANSFER && strstr("crossing", filter); i++) {
    double samples[SAMPLES];
    for (int j = -WARM_SAMPLES; j < SAMPLES; j++) {
      const double took = cross_once(b, transfer_sizes[i]);
      if (j >= 0) samples[j] = took;
    }
    print_median("crossing", transfer_sizes[i], b->g->rank, samples);
  }
}

static void run_sizes(const char *name, const char *filter, bench *b, const int64_t *sizes, int n,
                      void (*run)(void *, int64_t, int)) {
  for (int i = 0; i < n && strstr(name, filter); i++) {
    measure(name, sizes[i], b->g->rank, run, b);
    all_reduce(b, 64, 1); /* rank 1 does not run ahead of what rank 0 does alone */
  }
}

static void rank_main(const lam_group_desc *desc, float *shared, const char *filter) {
  bench b = {.x = fresh_floats(desc->rank), .y = fresh_floats(desc->rank), .shared = shared};
  must(lam_group_create(NULL, desc, &b.g), "create");
  must(lam_group_warmup(b.g), "warmup");
  must(lam_group_alloc(b.g, MOST_BYTES, &b.given), "alloc");
  memcpy(b.given, b.x, MOST_BYTES);
  run_sizes("all_reduce", filter, &b, reduce_sizes, N_REDUCE, all_reduce);
  run_sizes("one_way", filter, &b, transfer_sizes, N_TRANSFER, one_way);
  run_sizes("one_way_given", filter, &b, transfer_sizes, N_TRANSFER, one_way_given);
  run_sizes("one_way_between_given", filter, &b, transfer_sizes, N_TRANSFER, one_way_between_given);
  run_sizes("memcpy", filter, &b, transfer_sizes, N_TRANSFER, copy);
  crossing(&b, filter);
  run_sizes("all_reduce_bf16", filter, &b, reduce_sizes, N_REDUCE, all_reduce_bf16);
  run_sizes("all_gather", filter, &b, reduce_sizes, N_REDUCE, all_gather);
  run_sizes("reduce_scatter", filter, &b, reduce_sizes, N_REDUCE, reduce_scatter);
  lam_group_free(b.g, b.given);
  lam_group_destroy(b.g);
  free(b.x);
  free(b.y);
}

/* The rank's CPU among those this process may use. */
static void pin(int rank) {
  cpu_set_t usable, one;
  CPU_ZERO(&one);
  if (sched_getaffinity(0, sizeof usable, &usable) != 0) return;
  for (int cpu = 0, n = 0; cpu < CPU_SETSIZE; cpu++)
    if (CPU_ISSET(cpu, &usable) && n++ == rank) CPU_SET(cpu, &one);
  if (CPU_COUNT(&one)) sched_setaffinity(0, sizeof one, &one);
}

int main(int argc, char **argv) {
  lam_group_desc desc = LAM_GROUP_DESC_INIT;
  const char *filter = argc > 1 ? argv[1] : "";
  desc.size = 2;
  must(lam_group_id_create(&desc.id), "id");
  float *shared =
      mmap(NULL, MOST_BYTES, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
  if (shared == MAP_FAILED) return perror("comm_bench: mmap"), 1;
  const pid_t child = fork();
  if (child < 0) return perror("comm_bench: fork"), 1;
  desc.rank = child == 0;
  pin(desc.rank);
  rank_main(&desc, shared, filter);
  int status = 0;
  if (child > 0) waitpid(child, &status, 0);
  return status != 0;
}
