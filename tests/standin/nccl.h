/* nccl.h: what the files of the stand-in for NCCL share.
 *
 * Communicators are nonblocking, as Lamella asks for them: a call is under way until so many questions
 * were asked, by chance, and until the other ranks did their part; only then is its work queued. As
 * NCCL's kernels do, an operation waits on the device for those of its peers, and ends unfinished when its
 * communicator is aborted.
 * Invariant: the ranks of a communicator are threads of this process.
 * Leaves life to nccl.c, operations to nccl_run.c. */
#ifndef LAMELLA_TESTS_STANDIN_NCCL_H
#define LAMELLA_TESTS_STANDIN_NCCL_H

#include "kernels/cuda/nccl_calls.h"
#include "tests/standin/inside.h"

#pragma GCC visibility push(hidden)

enum { NC_RANKS = 8, NC_OPS = 16 };

typedef enum nc_what {
  NC_ALL_REDUCE,
  NC_REDUCE,
  NC_REDUCE_SCATTER,
  NC_ALL_GATHER,
  NC_BROADCAST,
  NC_SEND,
  NC_RECV
} nc_what;

typedef struct nc_op {
  nc_what what;
  const void *x;
  void *y;
  size_t n;
  ncclDataType_t type;
  int peer; /* root, or the other */
} nc_op;

typedef struct nc_comm nc_comm;

/* A collective that some ranks have reached on the device, or a message that is offered. */
typedef struct nc_round {
  struct nc_round *next;
  uint64_t number;
  int from, to; /* -1: a collective */
  int arrived, passed;
  nc_op ops[NC_RANKS];
  bool here[NC_RANKS], done;
} nc_round;

typedef struct nc_clique { /* what the ranks of a communicator share */
  struct nc_clique *next;
  ncclUniqueId id;
  int size, joined, refs;
  nc_comm *ranks[NC_RANKS];
  nc_round *rounds;
} nc_clique;

struct nc_comm {
  ncclComm_t handle;
  nc_clique *clique; /* NULL: a split that has not ended */
  int refs;          /* its handle, and work */
  int rank, device;
  int busy; /* questions until the call under way may end; 0: none is */
  bool joining, connected, aborted, finalizing;
  bool started; /* issued its first operation: until all have, nobody is connected */
  ncclResult_t error;
  const char *why;
  uint64_t collectives, sent[NC_RANKS], received[NC_RANKS]; /* on the device, so far */
  nc_op ops[NC_OPS];                                        /* of a call that is under way */
  int n_ops;
  cudaStream_t stream;
  nc_comm *splits_into; /* what a split under way makes */
  nc_clique *split_of;  /* where it was called */
  int color, key;
  bool splitting;
  int n_running; /* its work that is on the device now: at most one */
};

nc_comm *nc_find(ncclComm_t comm, const char *who);
void nc_unref(nc_comm *c);
ncclResult_t nc_fail(nc_comm *c, ncclResult_t error, const char *why);
/* A call that queues: kept until the group of calls ends. */
ncclResult_t nc_call(ncclComm_t comm, cudaStream_t stream, const nc_op *op, const char *who);
ncclResult_t nc_queue(nc_comm *c); /* what is under way */
int nc_bytes(ncclDataType_t t);

#pragma GCC visibility pop

#endif
