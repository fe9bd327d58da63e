/* standin.h: what a test can ask of the stand-in for CUDA: chance, faults, what it counted and what
 * it found wrong.
 *
 * The stand-in has the calls of kernels/cuda/calls.def and runs them on the CPU. Nothing runs in
 * the background: work that was queued runs inside later calls, of any thread, in an order drawn
 * from the seed, as far as streams and events allow. Between calls device memory traps when the
 * host touches it. A process that shows memory to another one, or opens another's, has a thread
 * that runs what is queued, since no call of the other could; while it is at work, memory is open.
 * Misuse gives CUDA's own error and one line (a report); reports that no test has read when the
 * process ends are printed, and make it fail. What passes here is "emulated"; it never ran on a GPU.
 * Leaves speed, memory models weaker than the CPU's and races inside one warp to real cards. */
#ifndef LAMELLA_TESTS_STANDIN_STANDIN_H
#define LAMELLA_TESTS_STANDIN_STANDIN_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

/* As it was at the start: streams, memory, faults, errors and counters are gone. Handles from
 * before are found stale. Call it while no other thread is in a call. */
void standin_reset(void);
/* Until it is called, chance comes from the seed of tests/check.h. */
void standin_seed(uint64_t chance);

/* -- the machine: set it before the first call; standin_reset() keeps it -- */
void standin_devices(int n);             /* 2; at most 8 */
void standin_set_sm(int version);        /* 90: compute capability 9.0 */
void standin_set_driver(int version);    /* 13000; 0: there is no driver */
void standin_set_nccl(int version);      /* as this thread finds it: 23007 */
void standin_set_memory(uint64_t bytes); /* of each device: 4 GiB */
void standin_set_patience(int ms);       /* 20000: how long kernels may wait with nobody moving */
void standin_set_apart(bool apart);      /* false; true: no device reaches another's memory */
/* true, true; as in a container that forbids to show memory to other processes, or to open theirs. */
void standin_set_ipc(bool show, bool open);

/* -- faults -- */
typedef enum standin_fault {
  STANDIN_ALLOC,  /* cudaMalloc, cudaMallocAsync, cudaMallocHost, cudaHostAlloc: out of memory */
  STANDIN_LAUNCH, /* a kernel: cudaErrorLaunchOutOfResources, and the device lives on */
  STANDIN_MATMUL, /* cublasLtMatmul: CUBLAS_STATUS_EXECUTION_FAILED */
  STANDIN_DEVICE, /* any queued work: the device is lost, every later call on it says so */
  STANDIN_NCCL,   /* a call of NCCL's that queues: ncclSystemError */
  STANDIN_NCCL_REMOTE, /* an operation of NCCL's, as it runs: ncclRemoteError on all its ranks */
  STANDIN_NCCL_STALL,  /* the same: it waits until it is aborted, and so do its peers' */
  STANDIN_N_FAULTS
} standin_fault;
/* The n-th such call from now on fails, 1 being the next; 0: none does. */
void standin_fail_nth(standin_fault what, int64_t n);
void standin_lose_device(int device); /* now: what is queued there ends without having run */

/* -- what was found -- */
int standin_n_reports(void);
const char *standin_reports(void); /* their lines; the text lives until standin_forget_reports() */
void standin_forget_reports(void);
int64_t standin_leaks(
    void); /* allocations, streams, events, graphs and descriptors that are alive */

typedef struct standin_counts {
  int64_t allocs, frees; /* of device and pinned memory */
  int64_t launches, matmuls, copies, fills;
  int64_t sm_target; /* of the last product; 0: it had none */
  int64_t syncs; /* calls in which the host waited */
  int64_t calls; /* of CUDA's runtime and of cuBLASLt, launches and all else included */
  int64_t graph_launches, heuristics;
  uint64_t live_bytes; /* of device memory */
  uint64_t nccl_bytes; /* that NCCL brought to any rank */
} standin_counts;
standin_counts standin_count(void);

/* -- what ran, and when: as a profiler sees a card; times say what came beside what, not how fast -- */
typedef struct standin_span {
  const char *name; /* of a kernel, or "a product", "a copy", ... */
  int device;
  unsigned long long stream; /* as cudaStreamGetId says; 0: a graph's */
  int64_t begin, end;        /* ns */
} standin_span;
/* From now on what ends is kept in spans[room], events aside; NULL: no more. */
void standin_trace(standin_span *spans, int room);
int standin_traced(void); /* how many there were, also those that found no room */

/* -- device memory, read or written by the test; queued work is not waited for -- */
void standin_peek(const void *device, void *host, size_t bytes);
void standin_poke(void *device, const void *host, size_t bytes);

/* A call of kernels/cuda/calls.def by name, as dlsym finds it in the real library; or NULL. */
void *standin_symbol(const char *name);

#ifdef __cplusplus
}
#endif
#endif
