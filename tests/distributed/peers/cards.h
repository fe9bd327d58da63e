/* cards.h: ranks on the stand-in's cards, as threads or processes, each with a stream of its own.
 *
 * Invariant: what a rank reads back is there: its stream was waited for. A rank that failed a check
 * still meets its peers at the end, so that no memory is freed under them.
 * Leaves what the ranks do to the tests. What passes here is emulated: it never ran on a GPU. */
#ifndef LAMELLA_TESTS_DISTRIBUTED_PEERS_CARDS_H
#define LAMELLA_TESTS_DISTRIBUTED_PEERS_CARDS_H

#include <cuda_runtime_api.h>

#include "abi/lamella.h"
#include "kernels/cuda/host.h"
#include "plugin/comm/group.h"
#include "tests/check.h"
#include "tests/standin/standin.h"

typedef struct rank {
  lam_group *g;
  cudaStream_t stream;
  int rank, size;
  int card;
  const void *arg;
  void *held[64]; /* freed at the end, when all ranks are there */
  int n_held;
} rank;

typedef struct world {
  uint32_t deadline_ms; /* 0: 20 s */
  uint64_t chance;      /* of the stand-in's order */
  bool broken;          /* reports and failed work are what the test wants */
  unsigned doomed;      /* processes: these ranks do not come back */
  bool apart;           /* rank r on card r, which reaches no other */
  bool each;            /* rank r on card r; they reach each other */
  const char *engine;   /* NULL: shm */
  const lam_device *device; /* in the place of the CUDA device; NULL: itself */
} world;

/* fn on each of `size` ranks, on a fresh card. */
void on_cards(const world *w, int size, void (*fn)(rank *r), const void *arg);
/* The same, each in a process of its own, which alone uses CUDA. */
void in_processes(const world *w, int size, void (*fn)(rank *r), const void *arg);
const char *way(const rank *r); /* the group's device_way; "" before it is known */

void *to_card(rank *r, const void *host, uint64_t bytes); /* NULL: poison */
void write_card(rank *r, void *card, const void *host, uint64_t bytes);
void from_card(rank *r, void *host, const void *card, uint64_t bytes); /* waits for the stream */
void use_card(rank *r); /* the group's next operations are of operands on the card */

/* A call of the library on one tensor [n] of each, on the rank's stream. */
lam_status call(rank *r, uint32_t op, lam_dtype t, void *x, int64_t n, void *y, int64_t m);

#endif
