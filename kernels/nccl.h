/* nccl.h: what a device does with NCCL: communicators, and operations on them.
 *
 * A link is one communicator with a stream of its own. An operation runs there, after what its
 * caller's stream was given before; the caller's stream goes on past it once it is joined.
 * Invariant: no slot waits for a peer or for the device: what takes longer leaves the link busy until
 * `state` says otherwise. Calls on one link come from one thread at a time, whichever that is.
 * Leaves who the ranks are, deadlines, and what a failure ends to plugin/comm/nccl. */
#ifndef LAMELLA_KERNELS_NCCL_H
#define LAMELLA_KERNELS_NCCL_H

#include "kernels/device.h"

enum {
  LAM_NCCL_ID_BYTES = 128,
  LAM_LINK_OPS = 64,  /* operations in line that `progress` tells of */
  LAM_LINK_HOLDS = 64 /* what `hold` may name */
};

typedef struct lam_link lam_link;

/* Where a rank works, as the others compare it. */
typedef struct lam_link_place {
  int32_t version;   /* of NCCL: 23007 is 2.30.7 */
  int32_t device_id; /* this thread's device */
  char card[48];     /* the GPU's place on its machine's bus */
} lam_link_place;

/* What a link is made of; one of id, comm and of. */
typedef struct lam_link_from {
  const unsigned char *id; /* LAM_NCCL_ID_BYTES that one rank made */
  int32_t rank, size;      /* with id; with comm, what it has to be */
  void *comm;              /* the host's own ncclComm_t: the link's is split off it, alike */
  lam_link *of;            /* the links of one colour become one, ordered by key */
  int32_t color, key;      /* with of; color -1: this rank takes part and gets none */
  int32_t ctas;            /* most blocks of a kernel; 0: NCCL's own choice */
} lam_link_from;

typedef enum lam_link_what {
  LAM_LINK_SUM,        /* y = the sum of x over the ranks */
  LAM_LINK_SUM_TO,     /* the same on `peer` alone */
  LAM_LINK_SUM_SHARES, /* x: a share of n for each rank; y: the own one's sum */
  LAM_LINK_GATHER,     /* y: x of every rank, in their order */
  LAM_LINK_BROADCAST,  /* y = x of `peer` */
  LAM_LINK_SEND,
  LAM_LINK_RECV,
  LAM_LINK_N_WHATS
} lam_link_what;

typedef struct lam_link_op {
  lam_link_what what;
  int32_t peer;
  const void *x;
  void *y;
  int64_t n; /* elements; SUM_SHARES: of y */
  lam_dtype dtype;
} lam_link_op;

/* What an operation comes after: all that the stream was given, or what it was given when `hold` was
 * called for that number (of a captured stream: always all). */
typedef struct lam_link_after {
  void *stream;
  int32_t hold; /* -1: all */
} lam_link_after;

/* How far a link is. */
typedef struct lam_link_progress {
  uint64_t started, ended; /* operations; `ended` may lag */
  bool held;               /* what comes next waits for its caller's stream, not for a peer */
} lam_link_progress;

typedef struct lam_device_nccl {
  /* Opens the library where that was not done: 2.18 or newer. */
  lam_status (*place)(lam_link_place *out);
  lam_status (*make_id)(unsigned char *out);
  lam_status (*open)(const lam_link_from *from, lam_link **out);
  lam_status (*state)(lam_link *l, bool *out_busy); /* a failure: of this rank or told by another */
  /* Is this thread's device the link's, and may its work follow that of `stream`? */
  lam_status (*check)(lam_link *l, void *stream);
  /* start; then, when the link is not busy, mark gives the operation's number, for join. */
  lam_status (*start)(lam_link *l, const lam_link_op *ops, int n, lam_link_after after);
  lam_status (*hold)(lam_link *l, int32_t number, void *stream);
  lam_status (*mark)(lam_link *l, uint64_t *out_number);
  lam_status (*join)(lam_link *l, uint64_t number, void *stream);
  lam_status (*progress)(lam_link *l, lam_link_progress *out);
  void (*abort)(lam_link *l); /* what runs or waits on the device gives up */
  /* Before close, where nothing is in line and the peers do the same: busy until they have. */
  lam_status (*finish)(lam_link *l);
  void (*close)(lam_link *l); /* NULL: nothing */
  /* A thread beside NCCL's own, which takes none of the host's signals: liblamella.so starts none. */
  lam_status (*spawn)(void *(*run)(void *arg));
} lam_device_nccl;

/* The wrapper, as those of device.h; d has such a table. */
lam_status lam_link_start(const lam_device *d, lam_link *l, const lam_link_op *ops, int n,
                          lam_link_after after);

#endif
