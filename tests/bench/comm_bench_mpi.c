/* comm_bench_mpi.c: what comm_bench.c measures, over MPI: mpirun --bind-to core -n 2
 * comm_bench_mpi [filter].
 * Leaves how to measure to comm_bench.h. */
#include "tests/bench/comm_bench.h"

#include <mpi.h>
#include <string.h>

typedef struct bench {
  int rank;
  float *x, *y;
} bench;

static void all_reduce(void *user, int64_t bytes, int calls) {
  const bench *b = user;
  for (int i = 0; i < calls; i++)
    MPI_Allreduce(b->x, b->y, (int)(bytes / 4), MPI_FLOAT, MPI_SUM, MPI_COMM_WORLD);
}

/* `bytes` is the whole operand's. */
static void all_gather(void *user, int64_t bytes, int calls) {
  const bench *b = user;
  const int n = (int)(bytes / 8);
  for (int i = 0; i < calls; i++)
    MPI_Allgather(b->x, n, MPI_FLOAT, b->y, n, MPI_FLOAT, MPI_COMM_WORLD);
}

static void reduce_scatter(void *user, int64_t bytes, int calls) {
  const bench *b = user;
  for (int i = 0; i < calls; i++)
    MPI_Reduce_scatter_block(b->x, b->y, (int)(bytes / 8), MPI_FLOAT, MPI_SUM, MPI_COMM_WORLD);
}

/* A stream of messages one way, then a byte back. */
static void one_way(void *user, int64_t bytes, int calls) {
  const bench *b = user;
  unsigned char done = 0;
  for (int i = 0; i < calls; i++) {
    if (b->rank == 0)
      MPI_Send(b->x, (int)(bytes / 4), MPI_FLOAT, 1, 0, MPI_COMM_WORLD);
    else
      MPI_Recv(b->y, (int)(bytes / 4), MPI_FLOAT, 0, 0, MPI_COMM_WORLD, MPI_STATUS_IGNORE);
  }
  if (b->rank == 1)
    MPI_Send(&done, 1, MPI_BYTE, 0, 0, MPI_COMM_WORLD);
  else
    MPI_Recv(&done, 1, MPI_BYTE, 1, 0, MPI_COMM_WORLD, MPI_STATUS_IGNORE);
}

static void run_sizes(const char *name, const char *filter, bench *b, const int64_t *sizes, int n,
                      void (*run)(void *, int64_t, int)) {
  for (int i = 0; i < n && strstr(name, filter); i++) {
    measure(name, sizes[i], b->rank, run, b);
    MPI_Barrier(MPI_COMM_WORLD);
  }
}

int main(int argc, char **argv) {
  bench b = {0};
  MPI_Init(&argc, &argv);
  MPI_Comm_rank(MPI_COMM_WORLD, &b.rank);
  const char *filter = argc > 1 ? argv[1] : "";
  b.x = fresh_floats(b.rank);
  b.y = fresh_floats(b.rank);
  run_sizes("all_reduce", filter, &b, reduce_sizes, N_REDUCE, all_reduce);
  run_sizes("one_way", filter, &b, transfer_sizes, N_TRANSFER, one_way);
  run_sizes("all_gather", filter, &b, reduce_sizes, N_REDUCE, all_gather);
  run_sizes("reduce_scatter", filter, &b, reduce_sizes, N_REDUCE, reduce_scatter);
  free(b.x);
  free(b.y);
  MPI_Finalize();
  return 0;
}
