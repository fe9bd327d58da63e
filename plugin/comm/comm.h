/* comm.h: what the engines of comm/ share: names of operations, their comparison, sums of
 * arrays, the wire header, time.
 * Invariant: nothing here knows how bytes travel. Leaves that to the engines, and the public
 * calls to group.c. */
#ifndef LAMELLA_PLUGIN_COMM_COMM_H
#define LAMELLA_PLUGIN_COMM_COMM_H

#include "plugin/comm/group.h"


int64_t lam_clock_ns(void); /* monotonic */

/* ---- Announcements (announce.c) -------------------------------------------------------------- */
const char *lam_comm_op_name(uint32_t op);
/* LAM_MISMATCH naming rank 0's operation and that of the first rank that differs from it: the
 * same text on every rank. */
lam_status lam_comm_compare(const lam_comm_op *const *ops, int n);

/* ---- Wire headers (announce.c) --------------------------------------------------------------- */
void lam_wire_seal(lam_wire *w, uint64_t sequence); /* magic, version, sequence, check */
lam_status lam_wire_verify(const lam_wire *w, int peer, uint64_t sequence, uint64_t room);

/* ---- Arithmetic (add.c) ---------------------------------------------------------------------- */
bool lam_add_supported(lam_dtype t);
/* y[i] = parts[0][i] + parts[1][i] + ... in that order, n elements; bf16 in f32, rounded once. y
 * may be one of parts. */
void lam_add(lam_dtype t, const void *const *parts, int n_parts, int64_t n, void *y);

/* ---- Copies (copy.c) ------------------------------------------------------------------------- */
#define LAM_STREAM_FROM (8 << 20)
static inline bool lam_streams(int64_t result_bytes) { return result_bytes >= LAM_STREAM_FROM; }
void lam_copy_streaming(void *to, const void *from, size_t bytes);
/* Into the host's memory: a part of a result of `result_bytes`. */
void lam_copy_result(void *to, const void *from, int64_t bytes, int64_t result_bytes);

/* ---- Strides (blocks.c) ---------------------------------------------------------------------- */
/* A rank's share of a whole operand, as bytes: `count` blocks of `bytes`, `stride` apart, from
 * `offset`. */
typedef struct lam_blocks {
  int64_t count, bytes, stride, offset;
} lam_blocks;
lam_blocks lam_parts_of(const lam_parts *p, int rank, int size);
/* Bytes first .. first + n - 1 of the share, taken out of `whole` or put into it. */
void lam_blocks_take(const lam_blocks *b, const void *whole, int64_t first, int64_t n, void *to);
void lam_blocks_put(const lam_blocks *b, void *whole, int64_t first, int64_t n, const void *from);

/* ---- Meeting (rendezvous.c) ------------------------------------------------------------------ */
#define LAM_CARD_BYTES 192
#define LAM_CARD_FDS 2
typedef struct lam_card { /* what a rank shows all the others when they meet */
  unsigned char data[LAM_CARD_BYTES];
  int fds[LAM_CARD_FDS]; /* a received card's are the receiver's to close; -1: none */
} lam_card;
/* cards [desc->size]: the own one is given, the others are filled. *out_tag: a number of this
 * meeting, equal on all ranks. */
lam_status lam_rendezvous(lam_context *ctx, const lam_group_desc *desc, lam_card *cards,
                          uint64_t *out_tag);
void lam_group_id_derive(const uint8_t secret[32], lam_group_id *out_id);

/* ---- Handles (handles.c) --------------------------------------------------------------------- */
uint64_t lam_mix(uint64_t a, uint64_t b); /* a well mixed hash of both, never 0 */
int64_t lam_group_handle_make(uint64_t of_world, uint64_t which); /* > 0, below 2^53 */
lam_status lam_group_register(lam_group *g);                      /* by g->handle and this thread */
/* It is found no more; the use that is left is the caller's to leave. Whether calls use it too. */
bool lam_group_unregister(lam_group *g);
void lam_group_hold(lam_group *g);   /* one more use, of a group that is not destroyed yet */
void lam_group_finish(lam_group *g); /* group.c: nobody uses it any more */

/* ---- Operands on a device (peer/) ------------------------------------------------------------- */
bool lam_peer_takes(const lam_group *g); /* the present call's lie on a device that queues its work */
extern const lam_engine lam_engine_peer; /* and then move over peers' memory: these cells */
const lam_engine *lam_group_on_device(const lam_group *g); /* or those of its engine; calls.c */
lam_status lam_nccl_warm(lam_group *g);
lam_status lam_nccl_adopt(const lam_group_desc *desc, void *comm, lam_group *g);
/* Before an operation of all ranks is announced: they read each other's memory. */
lam_status lam_peer_prepare(lam_group *g);
bool lam_peer_queues(const lam_group *g); /* engines' cell `queues` */
/* The cells of the way that is known now: those of kernels, until another was found. */
const lam_engine *lam_peer_cells(const lam_group *g);
extern const lam_engine lam_engine_by_host;
/* "threads", "ipc", "host", for which out_why says why; NULL: not known yet. */
const char *lam_peer_way(const lam_group *g, const char **out_why);
/* A message that is written, or read, where it lies; NULL: it is sent otherwise. */
lam_status lam_peer_send_open(lam_group *g, int peer, int kind, const lam_wire *header,
                              void **out_place);
lam_status lam_peer_send_close(lam_group *g);
lam_status lam_peer_recv_open(lam_group *g, int peer, int kind, lam_wire *header, uint64_t room,
                              const void **out_place);
lam_status lam_peer_recv_close(lam_group *g);
const char *lam_peer_channel_path(const lam_channel *c);
void lam_peer_end(lam_group *g); /* from any thread: what waits on the device gives up */
void lam_peer_leave(lam_group *g);
void lam_peer_sweep(void); /* after a group was destroyed: what groups left for their peers to read */

/* ---- How fast ranks on a device are (pace.c) -------------------------------------------------- */
typedef struct lam_pace_row { /* what each tells the others */
  lam_pace pace;
  char card[48]; /* where it is */
  int32_t is_known, reserved;
} lam_pace_row;
void lam_pace_row_fill(const lam_device *d, const char *card, lam_pace_row *out);
void lam_pace_agree(const lam_pace_row *const *rows, int size, bool by_nccl, lam_group_pace *out);

/* ---- Failing, sums (calls.c); callback groups (callback.c) ----------------------------------- */
/* This thread's last message becomes the group's. */
void lam_group_keep(lam_group *g, lam_status status);
/* Poison with `status` and what was being done, unless another rank was first: then its words. */
lam_status lam_group_end(lam_group *g, const char *doing, lam_status status);
/* Refusals change nothing; all else in a call without an announcement of its own ends the world. */
bool lam_status_ends_group(lam_status status);
void lam_group_sums_free(lam_group *g);
lam_status lam_callback_create(lam_group *g, const lam_callbacks *callbacks);

#endif
