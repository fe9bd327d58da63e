/* group.h: an ordered set of ranks over one engine, as operators and pipelines see it; and the
 * table an engine fills.
 *
 * Invariant: every operation is announced to the peers (lam_comm_op, compared by all of them)
 * before it moves data; after a failure from there on the group's world is poisoned and every
 * later call returns the same error.
 * Leaves how bytes travel to the engines (shm/, nccl/, callback.c; later mpi), arithmetic to
 * kernels/. */
#ifndef LAMELLA_PLUGIN_COMM_GROUP_H
#define LAMELLA_PLUGIN_COMM_GROUP_H

#include "plugin/core/context.h"
#include "plugin/core/shard.h"

#define LAM_GROUP_RANKS 64 /* most ranks of a group on one machine */

/* What a rank says it is doing, in clear. Compared by all ranks; shape is that of the whole
 * operand (the split dimension replaced by its whole length). 88 bytes. */
typedef struct lam_comm_op {
  uint32_t op;    /* LAM_OP_..., or LAM_COMM_... below */
  uint16_t dtype; /* lam_dtype */
  uint8_t ndim;
  uint8_t captured; /* into a graph, not to be run now */
  int64_t dims[8];
  int64_t extra;     /* root, dim, or what else must agree */
  uint64_t sequence; /* filled in by the engine */
} lam_comm_op;
#define LAM_COMM_SPLIT 1000u
#define LAM_COMM_WARMUP 1001u
#define LAM_COMM_CHANNEL 1002u
#define LAM_COMM_PIPELINE 1003u
#define LAM_COMM_PEERS 1004u
#define LAM_COMM_NCCL 1005u

/* How a whole [outer, total, inner] operand lies over the ranks along its middle dimension: rank
 * r holds elements first[r] .. first[r + 1] - 1 of it. All counts in elements of dtype. */
typedef struct lam_parts {
  int64_t outer, inner;
  const int64_t *first; /* [size + 1], first[0] = 0, first[size] = total */
  lam_dtype dtype;
} lam_parts;

/* A sum of partial products: parts are f32 matrices [rows, cols] that the engine gives out
 * (partial), filled by a gemm, then summed over the ranks in rank order with bias, rounded once
 * into y. scatter: y holds only this rank's share of the whole [rows of all chunks], by the uneven
 * rule (plugin/core/shard.h); else all of this chunk's rows on every rank. Several chunks may be
 * under way. */
typedef struct lam_sum {
  lam_matrix part;     /* from lam_group_partial */
  lam_matrix own;      /* absent, or what is to be the part: an engine that can read it where it
                        * lies gives it out as part, in its own dtype, and nothing is filled */
  lam_matrix bias;     /* [1, cols] or absent */
  lam_matrix residual; /* as y or absent */
  lam_matrix y;        /* the rows of this chunk that this rank receives (0 rows is fine) */
  int64_t y_first;     /* which row of the chunk y starts at */
  bool scatter;
  int64_t whole, unit, at; /* scatter: rows of all chunks, of a unit, and before this chunk */
  int slot; /* filled by lam_group_partial */
  /* y's root mean square norm, with this gain [1, cols]; or absent. An engine that makes it with
   * the sum says so. */
  lam_matrix gain, normed;
  float eps;
  bool is_normed;
} lam_sum;

/* A gather that is waited for later, of shares that lie one after another: what is queued in between runs
 * beside it. By source: each rank's share by itself, that of the next rank first. */
typedef struct lam_gather {
  bool by_source;
  /* the engine's */
  bool is_aside; /* false: all of it is there */
  int waited;    /* steps that were waited for */
  uint64_t number[LAM_GROUP_RANKS];
} lam_gather;

/* One ordered stream of messages between two ranks; an engine's own starts with it. */
typedef struct lam_channel {
  struct lam_group *group;
  const struct lam_engine *way; /* whose cells serve it */
} lam_channel;

/* A message's header on the wire: 128 bytes, little-endian (the same on every transport). */
typedef struct lam_wire {
  uint32_t magic;
  uint16_t version;
  uint8_t kind, ndim;
  uint64_t step, item, sequence, bytes;
  int64_t shape[8];
  uint32_t edge, micro, dtype;
  uint16_t codec, slot;
  uint64_t check;
} lam_wire;
#define LAM_WIRE_MAGIC 0x4d414c4cu /* "LLAM" */
#define LAM_WIRE_VERSION 1

/* What the ranks of a group found out when they met on a device, alike on all of them. */
typedef struct lam_group_pace {
  lam_pace card;
  lam_pace_step way[LAM_PACE_STEPS]; /* what a rank sends and receives of a sum or gather */
  const char *why_not;               /* NULL, or: nothing is gained beside a product, and why */
} lam_group_pace;

typedef struct lam_engine lam_engine;
typedef struct lam_hold lam_hold; /* what a group's ranks showed each other, after it; the engine's */
enum { LAM_SHOWN_BYTES = 4096 };
typedef struct lam_world lam_world; /* what a group and its splits share; the engine's own */

/* A rank uses the groups of a world from one thread at a time; only lam_group_poison may come from
 * any. */
struct lam_group {
  const lam_engine *engine;
  void *impl; /* the engine's own */
  lam_context *ctx;
  /* Where the operands of the present call lie, and the stream of its work, where that device
   * queues it; NULL: the host's memory. */
  const lam_device *device;
  void *stream;
  int rank, size;
  uint32_t deadline_ms, first_deadline_ms;
  uint64_t sequence; /* operations announced so far */
  uint64_t waits, sleeps;
  int64_t handle;
  lam_status poison;
  char error[LAM_MESSAGE_BYTES]; /* why, once poisoned */
  struct lam_own_sums *own_sums; /* partial sums where the engine has no cell for them; calls.c */
  const lam_group_pace *pace;    /* NULL: the ranks have not met on a device yet */
  int32_t busy_sms; /* multiprocessors taken by what is under way beside the next product */
  struct lam_peer *peer;         /* over peers' device memory, once it was needed; peer/ */
  struct lam_nccl *nccl;         /* over NCCL; nccl/ */
  struct lam_entry *entry;       /* its place in the table of handles; handles.c */
};

/* NULL cells: unsupported, except those marked optional, which group.c then makes from the
 * others. */
struct lam_engine {
  const char *name, *what; /* "shm", one line */
  lam_status (*create)(const lam_group_desc *desc, lam_group *g);
  /* members: parent's ranks, in order */
  lam_status (*split)(lam_group *parent, const int *members, int n, lam_group *sub);
  void (*destroy)(lam_group *g); /* never blocks */
  void (*poison)(lam_group *g, lam_status why, const char *message);
  /* optional: what ended the world, told by any rank; LAM_OK: it goes on. life: or did a rank die? */
  lam_status (*check)(const lam_group *g);
  lam_status (*life)(const lam_group *g);
  /* optional: the cells that move operands on a device that queues its work; such a table has only
   * those, and these three: before an operation is announced; what waits on the device gives up (from
   * any thread); nothing of the group is used any more. NULL: peer/ */
  const lam_engine *on_device;
  lam_status (*prepare)(lam_group *g);
  void (*end)(lam_group *g);
  void (*leave)(lam_group *g);
  /* optional: on g->device all it does is queued, and nothing of it waits for the host */
  bool (*queues)(const lam_group *g);
  /* announce; compare happens at the first wait */
  lam_status (*begin)(lam_group *g, const lam_comm_op *op);
  /* optional, both: compares what was announced, for operations whose data goes another way; and
   * whether `rank` is a thread of this process */
  lam_status (*agree)(lam_group *g);
  bool (*is_thread)(const lam_group *g, int rank);
  /* optional, all or none. A page that `rank` shows the others, zero at first; an fd that is readable
   * once its process has ended, -1: it is this one; whether it destroyed its group. */
  void *(*shown)(const lam_group *g, int rank);
  int (*end_of_process)(const lam_group *g, int rank);
  bool (*has_left)(const lam_group *g, int rank);
  /* From a group that is about to be destroyed: have all others left it, or died? These two from
   * any thread. */
  lam_status (*hold)(lam_group *g, lam_hold **out);
  bool (*all_left)(const lam_hold *h);
  void (*let_go)(lam_hold *h);
  /* x == y allowed */
  lam_status (*all_reduce)(lam_group *g, const void *x, void *y, int64_t n, lam_dtype t);
  lam_status (*all_gather)(lam_group *g, const lam_parts *p, const void *mine, void *whole);
  lam_status (*reduce_scatter)(lam_group *g, const lam_parts *p, const void *whole, void *mine);
  /* optional; reduce's y on root only */
  lam_status (*broadcast)(lam_group *g, const void *x, void *y, uint64_t bytes, int root);
  lam_status (*reduce)(lam_group *g, const void *x, void *y, int64_t n, lam_dtype t, int root);
  /* optional, both: an all_gather that runs beside what is queued next; step 1, 2, ... size - 1 is the
   * share of rank + step; not by source, step 1 is all. Each step is waited for once, in order. */
  lam_status (*gather_start)(lam_group *g, const lam_parts *p, const void *mine, void *whole,
                             lam_gather *x);
  lam_status (*gather_wait)(lam_group *g, const lam_gather *x, int step);
  /* optional: partial sums in memory the peers can read; else scratch + all_reduce. start: part
   * and all fields are written; does not wait. finish: writes y; in the order they started. */
  lam_status (*partial)(lam_group *g, int64_t rows, int64_t cols, lam_sum *s);
  lam_status (*sum_start)(lam_group *g, lam_sum *s);
  lam_status (*sum_finish)(lam_group *g, lam_sum *s);
  /* host calls: ordered per (peer, direction, kind) */
  lam_status (*send)(lam_group *g, int peer, int kind, const lam_wire *header, const void *data);
  lam_status (*recv)(lam_group *g, int peer, int kind, lam_wire *header, void *data, uint64_t room);
  /* channels of pipelines: a ring of `depth` slots of `bytes`, opened by both ends with one key.
   * Sender: acquire waits for a free slot, push sends it. Receiver: pull waits for the next
   * message, release frees the oldest pulled one. Opening waits for nobody. */
  lam_status (*channel_open)(lam_group *g, int peer, bool sender, uint64_t key, int depth,
                             uint64_t bytes, lam_channel **out);
  lam_status (*channel_acquire)(lam_channel *c, void **out_slot);
  lam_status (*channel_push)(lam_channel *c, const lam_wire *header);
  lam_status (*channel_pull)(lam_channel *c, lam_wire *out_header, const void **out_data);
  lam_status (*channel_release)(lam_channel *c);
  void (*channel_close)(lam_channel *c);
  /* optional: memory for the host that peers can read, 64-byte aligned; free never blocks */
  lam_status (*alloc)(lam_group *g, uint64_t bytes, void **out_data);
  void (*free)(lam_group *g, void *data);
  const char *(*path)(const lam_group *g, uint32_t op, uint64_t bytes);
};
extern const lam_engine lam_engine_shm, lam_engine_nccl, lam_engine_callback;

/* A `group` attribute; with ranks as threads, this thread's. It stays until it is left, though
 * another thread destroys it. */
lam_status lam_group_enter(int64_t handle, lam_group **out);
void lam_group_leave(lam_group *g);

/* Finds out, with all ranks, which way the operands of their present calls take, as their first
 * collective there would. Nothing where they lie in the host's memory. */
lam_status lam_group_settle(lam_group *g);

/* The wrappers operators call: each announces (op), runs, and on failure poisons and keeps the
 * message on the group. size 1 is a local copy and costs nothing else. */
lam_status lam_group_all_reduce(lam_group *g, const lam_comm_op *op, const void *x, void *y,
                                int64_t n, lam_dtype t);
lam_status lam_group_all_gather(lam_group *g, const lam_comm_op *op, const lam_parts *p,
                                const void *mine, void *whole);
/* The same in two steps, by_source as x says. wait: what the call's stream is given next finds rank's
 * share there; waiting for the last of them, or for one that was waited for, is fine. Until all are
 * waited for the group does nothing else but sums. */
lam_status lam_group_gather_start(lam_group *g, const lam_comm_op *op, const lam_parts *p,
                                  const void *mine, void *whole, lam_gather *x);
lam_status lam_group_gather_wait(lam_group *g, lam_gather *x, int rank);
lam_status lam_group_gather_finish(lam_group *g, lam_gather *x);
/* A row of so many bytes from each rank: rows [size]. */
lam_status lam_group_gather_rows(lam_group *g, const lam_comm_op *op, const void *own,
                                 uint64_t bytes, void *rows);
lam_status lam_group_reduce_scatter(lam_group *g, const lam_comm_op *op, const lam_parts *p,
                                    const void *whole, void *mine);
lam_status lam_group_broadcast(lam_group *g, const lam_comm_op *op, const void *x, void *y,
                               uint64_t bytes, int root);
lam_status lam_group_reduce(lam_group *g, const lam_comm_op *op, const void *x, void *y, int64_t n,
                            lam_dtype t, int root);
/* then partial, start, finish for any number of chunks */
lam_status lam_group_begin_sums(lam_group *g, const lam_comm_op *op);
lam_status lam_group_partial(lam_group *g, int64_t rows, int64_t cols, lam_sum *s);
lam_status lam_group_sum_start(lam_group *g, lam_sum *s);
lam_status lam_group_sum_finish(lam_group *g, lam_sum *s);
lam_status lam_group_send(lam_group *g, int peer, int kind, const lam_wire *header,
                          const void *data);
lam_status lam_group_recv(lam_group *g, int peer, int kind, lam_wire *header, void *data,
                          uint64_t room);
/* The same where operands lie on a device, in two steps: the message is written in its place on the
 * way by what is queued between them, or read there. NULL: there is no such place, use the above. */
lam_status lam_group_send_open(lam_group *g, int peer, int kind, const lam_wire *header,
                               void **out_place);
lam_status lam_group_send_close(lam_group *g);
lam_status lam_group_recv_open(lam_group *g, int peer, int kind, lam_wire *header, uint64_t room,
                               const void **out_place);
lam_status lam_group_recv_close(lam_group *g);
lam_status lam_channel_open(lam_group *g, int peer, bool sender, uint64_t key, int depth,
                            uint64_t bytes, lam_channel **out);
/* What carries its messages: "threads", "ipc" or "host" on a device, else the engine's name; NULL:
 * not known before the first. */
const char *lam_channel_path(const lam_channel *c);
lam_status lam_channel_acquire(lam_channel *c, void **out_slot);
lam_status lam_channel_push(lam_channel *c, const lam_wire *header);
lam_status lam_channel_pull(lam_channel *c, lam_wire *out_header, const void **out_data);
lam_status lam_channel_release(lam_channel *c);
void lam_channel_close(lam_channel *c);

#endif
