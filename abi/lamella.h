/* lamella.h: the whole public API of Lamella, a library that runs a Transformer split over devices.
 *
 * Conventions
 * - Every call returns lam_status: 0 is success; the text of a failure is lam_last_error() of the
 *   calling thread.
 * - Every public struct starts with struct_size and is made by its LAM_..._INIT macro; it only
 *   grows at its end; zero means default; non-zero bytes past what the library knows are refused.
 *   (lam_attr, lam_shape, lam_event, lam_rank_time and lam_layer are frozen.)
 * - Tensors are borrowed for the call; outputs are allocated by the caller; out parameters come
 *   last, are set to NULL or zero on entry and filled on success. Destroy functions take NULL.
 * - Streams: a cudaStream_t as void *; NULL on CPU, where the result is there on return.
 * - Any thread may call with any context; a group's rank is one thread's at a time.
 * - A forked child may use what it inherits, but for groups: they are its parent's and say so
 *   (LAM_FAILED_PRECONDITION). What its host's callbacks need is the host's to start again.
 * Sizes are in bytes where a name says so, else in elements. Times are nanoseconds unless a name
 * says otherwise. */
#ifndef LAMELLA_H
#define LAMELLA_H

#include <dlpack/dlpack.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

#if defined(__GNUC__)
#define LAM_API __attribute__((visibility("default")))
#else
#define LAM_API
#endif

#define LAM_VERSION_MAJOR 0
#define LAM_VERSION_MINOR 1
#define LAM_VERSION_PATCH 0

/* ---- Status: low byte an Abseil code, next byte Lamella's own reason ---- */
typedef int32_t lam_status;
#define LAM_OK 0
#define LAM_CANCELLED 1
#define LAM_INVALID_ARGUMENT 3
#define LAM_DEADLINE_EXCEEDED 4
#define LAM_NOT_FOUND 5
#define LAM_RESOURCE_EXHAUSTED 8
#define LAM_FAILED_PRECONDITION 9
#define LAM_UNIMPLEMENTED 12
#define LAM_INTERNAL 13
#define LAM_UNAVAILABLE 14
#define LAM_MISMATCH (9 | 1 << 8)     /* ranks called different operations, dtypes or shapes */
#define LAM_PEER_DEAD (14 | 2 << 8)   /* a rank's process ended */
#define LAM_PEER_STALLED (4 | 3 << 8) /* a rank did not come before the deadline */
#define LAM_WOULD_BLOCK (8 | 4 << 8)  /* back-pressure: try again; nothing was changed */
#define LAM_POISONED (9 | 5 << 8)     /* an earlier failure ended this group's world */
#define LAM_INTERRUPTED (1 | 6 << 8)  /* the host's should_stop callback said so */

LAM_API const char *lam_last_error(void); /* this thread's last failure, one line; "" before any */
LAM_API const char *lam_status_name(lam_status s); /* "MISMATCH"; a constant string */
LAM_API uint32_t lam_version(void);                /* major << 16 | minor << 8 | patch */

/* ---- Context: threads, memory and hooks of one model ---- */
typedef struct lam_context lam_context;
typedef struct lam_context_desc {
  uint32_t struct_size;
  int32_t threads; /* 0 = the host's OpenMP setting */
  void *user;      /* handed to every callback below; the host's threads call them, any of them */
  void *(*alloc)(void *user, uint64_t bytes, uint64_t alignment); /* NULL = aligned_alloc */
  void (*free)(void *user, void *p, uint64_t bytes);
  /* The host's thread pool: run fn(arg, i) for i in 0..n-1 and return when all are done. NULL =
   * OpenMP, where present. */
  void (*parallel_for)(void *user, int64_t n, void (*fn)(void *arg, int64_t i), void *arg);
  int32_t (*should_stop)(void *user); /* polled in every wait; non-zero = LAM_INTERRUPTED */
  void (*log)(void *user, int32_t level, const char *line);
  /* 1: f32 products on CUDA may round their operands to tf32, 10 bits of fraction, which is several
   * times faster; 0: they stay f32. */
  int32_t tf32;
  uint32_t reserved;
} lam_context_desc;
#define LAM_CONTEXT_DESC_INIT {sizeof(lam_context_desc), 0, 0, 0, 0, 0, 0, 0, 0, 0}

typedef struct lam_context_stats {
  uint32_t struct_size, reserved;
  uint64_t allocations; /* calls to alloc so far */
  /* Held now, and at most so far: scratch, pipeline slots, packed copies. */
  uint64_t bytes, peak_bytes;
  uint64_t arena_bytes; /* shared memory of this context's groups, touched or not */
} lam_context_stats;
#define LAM_CONTEXT_STATS_INIT {sizeof(lam_context_stats), 0, 0, 0, 0, 0}

/* desc NULL = defaults */
LAM_API lam_status lam_context_create(const lam_context_desc *desc, lam_context **out_ctx);
/* After its groups and pipelines, and their calls. */
LAM_API void lam_context_destroy(lam_context *ctx);
/* ctx NULL = the process's default context. */
LAM_API lam_status lam_context_get_stats(const lam_context *ctx, lam_context_stats *out_stats);

/* ---- Operators ---- */
enum { /* LAM_OP_linear = 32, ... from the operator table */
#define LAM_OP(id, name, inputs, outputs, attributes, shapes, effect) LAM_OP_##name = id,
#include "lamella_ops.def"
#undef LAM_OP
       LAM_OP_END_ = 128
};

/* Wire codecs (attribute codec): an activation in fewer bits, for slow links. An element x in a
 * tile of 128 along the last dimension whose largest magnitude is m comes back within
 *   bf16     2^-8 |x|
 *   f8e4m3   2^-4 |x| + 2^-10 m / 448          f8e5m2   2^-3 |x| + 2^-17 m / 57344
 *   int8     m / 254
 * (and 2^-20 of that, and 2^-100); a tile that holds a NaN or an infinity comes back as NaNs. */
#define LAM_CODEC_NONE 0
#define LAM_CODEC_BF16 1
#define LAM_CODEC_F8E4M3 2 /* these three: a byte each, and an f32 scale per tile */
#define LAM_CODEC_F8E5M2 3
#define LAM_CODEC_INT8 4

#define LAM_ATTR_DEFAULT 0
#define LAM_ATTR_INT 1
#define LAM_ATTR_DOUBLE 2
#define LAM_ATTR_INTS 3
#define LAM_ATTR_STRING 4
typedef struct lam_attr { /* 16 bytes, frozen */
  uint32_t type;          /* LAM_ATTR_... */
  uint32_t n;             /* count of ints, or bytes of the string (no NUL needed) */
  union {
    int64_t i;
    double f;
    const int64_t *ints;
    const char *s;
  } v;
} lam_attr;

static inline lam_attr lam_attr_default(void) {
  lam_attr a;
  a.type = LAM_ATTR_DEFAULT;
  a.n = 0;
  a.v.i = 0;
  return a;
}
static inline lam_attr lam_attr_i(int64_t i) {
  lam_attr a = lam_attr_default();
  a.type = LAM_ATTR_INT;
  a.v.i = i;
  return a;
}
static inline lam_attr lam_attr_f(double f) {
  lam_attr a = lam_attr_default();
  a.type = LAM_ATTR_DOUBLE;
  a.v.f = f;
  return a;
}
static inline lam_attr lam_attr_ints(const int64_t *ints, uint32_t n) {
  lam_attr a = lam_attr_default();
  a.type = LAM_ATTR_INTS;
  a.n = n;
  a.v.ints = ints;
  return a;
}
static inline lam_attr lam_attr_s(const char *s) { /* NUL-terminated */
  lam_attr a = lam_attr_default();
  a.type = LAM_ATTR_STRING;
  while (s[a.n]) a.n++;
  a.v.s = s;
  return a;
}

typedef struct lam_call {
  uint32_t struct_size, op;      /* LAM_OP_... */
  const DLTensor *const *inputs; /* in the row's order; NULL or a missing tail = absent */
  DLTensor *const *outputs;
  const lam_attr *attrs; /* in the row's order; a missing tail = defaults */
  uint32_t n_inputs, n_outputs, n_attrs, flags;
  /* A cudaStream_t: the call's work is queued on it; on the CPU NULL. CUDA's default stream will do,
   * but for a group's ranks that share a card: they wait for each other, so each has one of its own. */
  void *stream;
  void *scratch; /* where the operands lie; NULL = the context's own, or the stream's */
  uint64_t scratch_bytes;
} lam_call;
/* flags: this call's f32 products may be tf32, as if its context said so (lam_context_desc.tf32). */
#define LAM_CALL_TF32 1u
#define LAM_CALL_INIT {sizeof(lam_call), 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0}

typedef struct lam_shape { /* frozen */
  int32_t ndim;
  DLDataType dtype;
  int64_t dims[8];
} lam_shape;

typedef struct lam_inferred {
  uint32_t struct_size, n_outputs; /* in: room in outputs; out: the row's outputs */
  lam_shape *outputs;              /* caller's array; an absent output has ndim -1 */
  uint64_t scratch_bytes;
  uint32_t n_chunks;   /* row chunks the call would be cut into: 1 = no overlap of sum and gemm */
  uint32_t capturable; /* 1: may be recorded into a CUDA graph, once it has run outside of one */
  char *chunks_why; /* in: NULL, or room for LAM_WHY_BYTES, which get in one line why n_chunks */
} lam_inferred;
#define LAM_WHY_BYTES 160
#define LAM_INFERRED_INIT {sizeof(lam_inferred), 0, 0, 0, 0, 0, 0}

/* ctx NULL = the context of the group named by the call; without a group the process's default
 * context.
 * On CUDA the work is queued on the stream. Only the first product of its kind (shape, dtypes,
 * epilogue) waits for it: cuBLASLt's algorithms are timed then, and the best is kept for later
 * processes in the folder LAMELLA_ALGORITHMS (else lamella/ in the user's cache; "off": nothing is
 * timed or kept). Graphs that were captured on one stream share its scratch: run them one at a
 * time. */
LAM_API lam_status lam_run(lam_context *ctx, const lam_call *call);
/* What lam_run would want as outputs and scratch. The same checks; data pointers may be NULL. */
LAM_API lam_status lam_infer(lam_context *ctx, const lam_call *call, lam_inferred *out);
LAM_API lam_status lam_op_find(const char *name, uint32_t *out_op);
/* One row as text: "id name | inputs | outputs | attributes | shapes | effect"; NULL for an id that
 * is no operator. */
LAM_API const char *lam_op_row(uint32_t op);

/* Check a tensor as a producer hands it over (version, READ_ONLY, padding; role 0 input, 1 output)
 * and borrow its DLTensor. On a major version other than 1 the deleter is called and nothing else
 * is read. The legacy form, which carries neither version nor flags, is taken at its word. */
struct DLManagedTensorVersioned;
LAM_API lam_status lam_tensor_view(struct DLManagedTensorVersioned *t, uint32_t role,
                                   const DLTensor **out);
LAM_API lam_status lam_tensor_view_legacy(DLManagedTensor *t, uint32_t role, const DLTensor **out);

/* Which part of a whole weight a rank owns: `total` elements in `unit`s, U = total/unit; rank r
 * gets U/p units, and one more if r < U % p. Up to two pieces (a gated weight [gate | up] of
 * 2*total rows has one in each half). */
typedef struct lam_shard_piece {
  int64_t begin, end; /* half open, elements of the whole dimension */
} lam_shard_piece;
typedef struct lam_shard_info {
  uint32_t struct_size, n_pieces;
  lam_shard_piece pieces[2];
} lam_shard_info;
#define LAM_SHARD_INFO_INIT {sizeof(lam_shard_info), 0, {{0, 0}, {0, 0}}}
LAM_API lam_status lam_shard(int64_t total, int64_t unit, int32_t gated, int32_t rank, int32_t size,
                             lam_shard_info *out);

/* Columns of the uint8 tensor [R, cols] that holds a packed w [n, k]; R = n (side 0, forward) or k
 * (side 1, dgrad). Packed weights are the CPU's: on CUDA plain ones are read as fast, and pack_weight
 * says so. */
LAM_API lam_status lam_packed_size(lam_context *ctx, DLDataType dtype, int64_t n, int64_t k,
                                   int32_t side, int64_t *out_cols);

/* ---- Groups ---- */
typedef struct lam_group lam_group;
typedef struct lam_group_id {
  uint8_t bytes[128]; /* opaque; made by one rank, carried to the others by any side channel */
} lam_group_id;
LAM_API lam_status lam_group_id_create(lam_group_id *out_id);

typedef struct lam_group_desc {
  uint32_t struct_size;
  int32_t rank, size;
  uint32_t deadline_ms;       /* 0 = 30000: how long a peer may be late */
  uint32_t first_deadline_ms; /* 0 = 600000: for its first operation: it may be compiling */
  uint32_t gpu; /* engine nccl: this rank's, counted from 1; 0 = the thread's own device */
  const char *engine; /* "shm"; NULL = by device and locality */
  lam_group_id id;
} lam_group_desc;
#define LAM_GROUP_DESC_INIT {sizeof(lam_group_desc), 0, 0, 0, 0, 0, 0, {{0}}}

/* Collective: returns when all `size` ranks have come. Ranks are processes, or threads of one
 * process. */
LAM_API lam_status lam_group_create(lam_context *ctx, const lam_group_desc *desc,
                                    lam_group **out_group);
/* From the launcher's environment: LAMELLA_RANK, LAMELLA_SIZE, LAMELLA_ID (./lamella run), or
 * torchrun's variables. Explicit rank and size in desc win (desc may be NULL); contradictory
 * variables are an error. */
LAM_API lam_status lam_group_create_from_env(lam_context *ctx, const lam_group_desc *desc,
                                             lam_group **out_group);
/* Collective over g: ranks of one color form a group, ordered by (key, old rank); color < 0 = none,
 * *out_sub = NULL. */
LAM_API lam_status lam_group_split(lam_group *g, int32_t color, int32_t key, lam_group **out_sub);

/* The host's own communication. Each returns 0 or a lam_status. Sizes in bytes; dtype as DLPack;
 * shares are even or uneven as the counts say (counts[r] bytes of rank r, in rank order). send and
 * recv are ordered per (peer, channel); send must not wait for the peer's recv, so it buffers. */
typedef struct lam_callbacks {
  uint32_t struct_size, reserved;
  void *user;
  lam_status (*send)(void *user, int32_t peer, uint32_t channel, const void *data, uint64_t bytes);
  lam_status (*recv)(void *user, int32_t peer, uint32_t channel, void *data, uint64_t bytes);
  lam_status (*all_reduce)(void *user, void *data, uint64_t n,
                           DLDataType dtype); /* sum, in place */
  lam_status (*all_gather)(void *user, const void *mine, void *all, const uint64_t *counts);
  lam_status (*reduce_scatter)(void *user, const void *all, void *mine, const uint64_t *counts,
                               DLDataType dtype);
} lam_callbacks;
#define LAM_CALLBACKS_INIT {sizeof(lam_callbacks), 0, 0, 0, 0, 0, 0, 0}
/* id and engine of desc are not used. */
LAM_API lam_status lam_group_from_callbacks(lam_context *ctx, const lam_group_desc *desc,
                                            const lam_callbacks *callbacks, lam_group **out_group);
/* Engine nccl, out of the host's own ncclComm_t, which stays the host's: the group's are split off it,
 * so all its ranks call this at once, while nothing else uses it. desc as for lam_group_create, rank and
 * size as in comm; engine of desc is not used. */
LAM_API lam_status lam_group_adopt_nccl(lam_context *ctx, const lam_group_desc *desc, void *comm,
                                        lam_group **out_group);

typedef struct lam_group_info {
  uint32_t struct_size;
  int32_t rank, size;
  lam_status poison;          /* LAM_OK, or what ended this group's world */
  const char *engine, *error; /* valid while the group lives */
  /* So far: operations, waits that were not over at once, waits that slept. */
  uint64_t operations, waits, sleeps;
  /* How operands on a device travel between the ranks, which the group's first collective there
   * finds out: "threads": ranks of one process read each other's device
   * memory; "ipc": ranks of several processes do, as CUDA IPC lets them; "host": through the host's
   * memory, since not every rank reaches all others' (which device_why says), so calls wait for the
   * stream and cannot be captured. "nccl": that engine's groups. NULL: no such operation yet. */
  const char *device_way, *device_why;
} lam_group_info;
#define LAM_GROUP_INFO_INIT {sizeof(lam_group_info), 0, 0, 0, 0, 0, 0, 0, 0, 0, 0}
LAM_API lam_status lam_group_get_info(const lam_group *g, lam_group_info *out_info);
/* The `group` attribute of a call: > 0, equal on all ranks. */
LAM_API int64_t lam_group_handle(const lam_group *g);
/* From here on, this thread's calls with that handle are those of `rank`: for hosts whose threads
 * serve several ranks of one process and are none of them. */
LAM_API lam_status lam_group_use(int64_t handle, int32_t rank);
/* Collective: every edge used once, a tiny collective. */
LAM_API lam_status lam_group_warmup(lam_group *g);
/* The algorithm an operation of so many bytes would take; a constant string. */
LAM_API const char *lam_group_path(const lam_group *g, uint32_t op, uint64_t bytes);
/* Memory for the host's tensors that the group's ranks on this machine can read: what is sent out
 * of it is copied once, by its receiver, not twice; a large message from such memory into such
 * memory by both ranks, piece by piece. 64-byte aligned, uninitialised, counted in the
 * context's arena bytes; ordinary memory where the engine shares none. Give it back before the
 * group is destroyed; data may be NULL. */
LAM_API lam_status lam_group_alloc(lam_group *g, uint64_t bytes, void **out_data);
LAM_API void lam_group_free(lam_group *g, void *data);
/* Ends the world for every rank. */
LAM_API void lam_group_poison(lam_group *g, lam_status why, const char *message);
/* Waits for no other rank. Where its operands lay on a device it waits for the work that it has
 * queued there, which uses its memory: a kernel that waits for a rank ends when that comes, at the
 * deadline, or with the world; and, a second at most, until other processes have read what lies for
 * them in this one's device memory.
 * Where calls of other threads use it (or this thread's own, whose hook destroys it), they end the
 * world: those that wait for a rank give LAM_CANCELLED, here and on the other ranks. What they use is
 * freed by the last of them, so its context stays until they are back. Calls that come later find no
 * such handle: LAM_NOT_FOUND. Pipelines over it are destroyed before. */
LAM_API void lam_group_destroy(lam_group *g);

/* ---- Schedules, pipelines, layers onto stages ---- */
#include "lamella_pipeline.h"

/* ---- For hosts that use dlopen ---- */
/* An append-only table of the functions above: api->run is lam_run. struct_size tells how many
 * there are. */
typedef struct lam_api {
  uint32_t struct_size, reserved;
#define LAM_FUNCTION(result, name, arguments) result(*name) arguments;
#include "lamella_api.def"
#undef LAM_FUNCTION
} lam_api;
LAM_API const lam_api *lam_get_api(
    uint32_t major); /* NULL where the library is of another major version */

#ifdef __cplusplus
}
#endif
#endif
