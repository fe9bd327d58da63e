/* shm.h: what the files of the shared-memory engine share: one machine, ranks as processes or as
 * threads of one process.
 *
 *   arena      a rank's own memfd, mapped by all its peers; regions are cut from it and found by
 *              key (arena.c)
 *   world      the ranks that met once over a socket, their arenas, liveness, poison (world.c)
 *   board      a group's region on each member: the step counter and a ring of slots (steps.c)
 *   ring       one directed stream of messages between two ranks, in the sender's arena
 *              (transfer.c, channel.c)
 *
 * Invariant: memory that a peer may still read is not written. Who writes a region: its owner,
 * and in its flags the peers. A flag is only ever raised with release and read with acquire; no
 * fence stands alone, so the thread sanitizer can follow.
 * Leaves the first meeting to rendezvous.c, the public calls and poisoning after a failure to
 * group.c. */
#ifndef LAMELLA_PLUGIN_COMM_SHM_SHM_H
#define LAMELLA_PLUGIN_COMM_SHM_SHM_H

#include <stdatomic.h>
#include <string.h>

#include "plugin/comm/comm.h"

#define SHM_RANKS LAM_GROUP_RANKS
#define SHM_SLOTS 4                 /* why four: steps.c */
#define SHM_LINE 128                /* two cache lines: they are fetched in pairs */
#define SHM_SLOT_BYTES (256 << 10)  /* four outgrow a second-level cache: see fill.c */
#define SHM_PIECE_BYTES (128 << 10) /* of what only travels */
#define SHM_SPREAD_BYTES (4 << 10)  /* pieces from this size on take turns within a slot */
#define SHM_DIRECTORY 1024
#define SHM_KEPT_BYTES (8 << 20)     /* a bigger region gives its memory back when it is left */
#define SHM_ARENA_BYTES (4ull << 30) /* address space; memory is taken as regions are made */

/* A counter that is only raised (modulo 2^32), and whether anyone sleeps until it is. */
typedef struct shm_flag {
  _Alignas(SHM_LINE) _Atomic uint32_t value;
  _Atomic uint32_t sleepers;
} shm_flag;

static inline bool shm_flag_reached(const shm_flag *f, uint32_t value) {
  return (int32_t)(atomic_load_explicit(&f->value, memory_order_acquire) - value) >= 0;
}
void lam_shm_flag_wake(shm_flag *f);
/* No syscall when nobody sleeps. A sleeper that comes between the two lines is not seen: it
 * sleeps in slices (wait.c). */
static inline void shm_flag_raise(shm_flag *f, uint32_t value) {
  atomic_store_explicit(&f->value, value, memory_order_release);
  if (atomic_load_explicit(&f->sleepers, memory_order_relaxed)) lam_shm_flag_wake(f);
}

/* ---- Arena ----------------------------------------------------------------------------------- */

/* The head of every region. Its memory is used again once the owner and all `users` have left. */
typedef struct shm_head {
  _Alignas(SHM_LINE) uint64_t key, bytes;
  uint32_t users;
  uint32_t depth;      /* rings: slots */
  uint64_t slot_bytes; /* rings: payload of a slot */
  _Atomic uint32_t owner_left, users_left;
} shm_head;

typedef struct shm_entry { /* of the directory: key 0 = free */
  _Atomic uint64_t key, offset;
} shm_entry;

/* The first pages of an arena. */
typedef struct shm_control {
  shm_flag changes; /* entries published so far */
  _Alignas(SHM_LINE) _Atomic uint32_t poison_claim;
  _Atomic int32_t poison; /* set once, after the message */
  _Atomic int32_t processor; /* where the owner was when it last waited, counted from 1 (apart.c) */
  char message[LAM_MESSAGE_BYTES];
  _Atomic uint32_t directory_used; /* entries beyond were never used */
  shm_entry directory[SHM_DIRECTORY];
} shm_control;

typedef struct shm_arena { /* one mapping; ranks that are threads of one process share it */
  struct shm_arena *next;
  unsigned char *base;
  uint64_t serial; /* names the arena among those made by one process */
  int fd, refs;    /* fd: the owner's, else -1 */
  bool own;        /* made here, not mapped from a peer's fd */
} shm_arena;

static inline shm_control *shm_arena_control(const shm_arena *a) { return (shm_control *)a->base; }

lam_status lam_shm_arena_create(shm_arena **out);
lam_status lam_shm_arena_map(int fd, shm_arena **out); /* a peer's; fd stays the caller's */
/* Made by another thread of this process. */
lam_status lam_shm_arena_find(uint64_t serial, shm_arena **out);
void lam_shm_arena_release(shm_arena *a);

/* Which regions of the own arena are in use; kept by the owner, outside it. */
typedef struct shm_block {
  uint64_t offset, bytes;
  uint64_t until; /* left by its owner: free once all users have left the region at `until` */
} shm_block;
typedef struct shm_blocks {
  shm_block *list;
  int n, room;
} shm_blocks;
typedef struct shm_heap {
  shm_blocks free;    /* by offset, never adjacent */
  shm_blocks leaving; /* left by the owner, maybe still read */
  uint64_t top;       /* nothing was ever used from here on */
} shm_heap;

/* ---- World ----------------------------------------------------------------------------------- */

typedef struct shm_peer {
  shm_arena *arena;
  int life;    /* readable once the rank's process has ended; -1: this process */
  int32_t pid; /* 0: in another pid namespace */
} shm_peer;

struct lam_world {
  lam_context *ctx;
  int rank, size;
  _Atomic int groups;
  _Atomic int refs; /* groups and holds */
  uint64_t tag;     /* one per meeting, equal on all ranks */
  uint32_t forks;   /* of this process when the world was made */
  int life_write;   /* -1: a pidfd tells that this process lives */
  int spins;        /* polls with a pause before giving up the processor; 0: more ranks than CPUs */
  int64_t probe_at; /* fill.c: when to try plain stores again; 0: they are fast */
  int slow_fills;
  int64_t moved_at; /* apart.c: when this rank moved last, and how often it has */
  uint64_t moves;
  uint64_t helped; /* transfer.c: pieces of offers that this rank copied for their receivers */
  shm_heap heap;
  shm_peer peers[SHM_RANKS]; /* [rank] is this rank's own */
};

lam_status lam_shm_world_create(lam_context *ctx, const lam_group_desc *desc, lam_world **out);
void lam_shm_world_join(lam_world *w);    /* one more group */
void lam_shm_world_release(lam_world *w); /* one less */
void lam_shm_world_drop(lam_world *w);    /* a ref that is no group's */
bool lam_shm_world_is_ours(const lam_world *w);     /* not a forked child's copy */
lam_status lam_shm_world_use(const lam_world *w);   /* FAILED_PRECONDITION in a forked child */
lam_status lam_shm_world_check(const lam_world *w); /* poisoned by anyone? */
void lam_shm_world_poison(lam_world *w, lam_status why, const char *message);
bool lam_shm_peer_died(const lam_world *w, int rank);
const char *lam_shm_peer_state(const lam_world *w, int rank); /* "running", "stopped", ... */

/* A region of this rank's arena for `key`; head and flags, `zeroed` bytes, are zero; `users`
 * peers must leave it too. */
lam_status lam_shm_region_create(lam_world *w, uint64_t key, uint64_t bytes, uint64_t zeroed,
                                 uint32_t users, shm_head **out);
/* From here on peers find it. */
lam_status lam_shm_region_publish(lam_world *w, const shm_head *own);
/* NULL: not there (yet). */
shm_head *lam_shm_region_find(const lam_world *w, int rank, uint64_t key);
/* The owner's side, published or not; its memory is kept as long as that of `until`. */
void lam_shm_region_leave(lam_world *w, shm_head *own);
void lam_shm_region_leave_with(lam_world *w, shm_head *own, const shm_head *until);
/* A user's side. */
static inline void shm_region_leave_peer(shm_head *theirs) {
  atomic_fetch_add_explicit(&theirs->users_left, 1, memory_order_acq_rel);
}
void lam_shm_heap_finish(lam_world *w);

/* Copies into own memory that peers read next, the way that is fast where the ranks run now
 * (fill.c). */
void lam_shm_fill(lam_world *w, void *to, const void *from, int64_t bytes);
static inline bool shm_peers_are_far(const lam_world *w) { return w->probe_at != 0; }

/* ---- Group ----------------------------------------------------------------------------------- */

typedef struct shm_slot {
  lam_comm_op op; /* what this rank announced in this step, where an operation begins */
  _Alignas(SHM_LINE) unsigned char data[SHM_SLOT_BYTES];
} shm_slot;

/* A cache line of a packet (packet.c): bytes, and the step they belong to. */
#define SHM_LINE_BYTES 60
#define SHM_LINES 19
#define SHM_PACKET_BYTES 1024 /* what they hold beside the announcement */
#define SHM_PACKET_RANKS 8
typedef struct shm_line {
  _Alignas(64) unsigned char data[SHM_LINE_BYTES];
  _Atomic uint32_t mark;
} shm_line;

typedef struct shm_board {
  shm_head head;
  shm_flag step;                  /* steps published (steps.c) */
  shm_flag summed, reduced, read; /* chunks of partial sums (sum.c) */
  shm_line packets[SHM_SLOTS][SHM_LINES];
  _Alignas(LAM_SHOWN_BYTES) unsigned char shown[LAM_SHOWN_BYTES]; /* see lam_engine; pages of its own */
  shm_slot slots[SHM_SLOTS];
} shm_board;

#define SHM_SUMS 4 /* chunks of partial sums under way */
typedef struct shm_sum_slot {
  shm_head *heads[SHM_RANKS]; /* by rank; NULL: not yet looked up */
  uint64_t capacity;
  uint32_t generation;
  void *own; /* for parts that are copied in, where they are small enough to be; else NULL */
} shm_sum_slot;
typedef struct shm_sums {
  uint32_t taken, started, finished; /* chunks since the group was made */
  bool unchecked;                    /* the operation's announcements were not compared yet */
  uint32_t step;                     /* where it was announced */
  shm_sum_slot slots[SHM_SUMS];
} shm_sums;

#define SHM_KINDS 2
typedef struct shm_edge shm_edge; /* transfer.c */

typedef struct shm_group {
  lam_group *g;
  lam_world *world;
  uint32_t step;        /* steps this rank published */
  uint32_t deadline_ms; /* of the running operation */
  bool announced;       /* begun, not yet published */
  bool held;            /* a hold leaves the peers' boards */
  int world_rank[SHM_RANKS];
  shm_board *boards[SHM_RANKS]; /* by rank of the group */
  shm_sums sums;
  shm_edge *to[SHM_RANKS][SHM_KINDS], *from[SHM_RANKS][SHM_KINDS];
} shm_group;

static inline shm_group *shm_group_of(const lam_group *g) { return g->impl; }

/* What a rank waits for: `flag` of `peer` to reach `value`; gone: raised when the peer will
 * never do it. */
typedef struct shm_wait {
  shm_flag *flag;
  uint32_t value;
  int peer;
  uint32_t deadline_ms;
  const _Atomic uint32_t *gone; /* may be NULL */
  bool between_two; /* a transfer: the peer may be waiting for us in a collective instead */
} shm_wait;
lam_status lam_shm_wait_slow(shm_group *s, const shm_wait *w);
lam_status lam_shm_life(const lam_group *g); /* is the world well, and every member alive? */
static inline lam_status shm_wait_for(shm_group *s, const shm_wait *w) {
  return shm_flag_reached(w->flag, w->value) ? LAM_OK : lam_shm_wait_slow(s, w);
}
/* A peer's region, once it is published; w: peer, deadline_ms and between_two are given. */
lam_status lam_shm_region_await(shm_group *s, const shm_wait *w, uint64_t key, shm_head **out);
int lam_shm_spins_measure(void); /* how many pauses make about 2 us */
/* Ranks that share a processor (apart.c): tells the peers where this one waits; moves it away. */
void lam_shm_show_place(const lam_world *w);
void lam_shm_move_apart(lam_world *w);
static inline void shm_pause(void) {
#if defined(__x86_64__)
  __builtin_ia32_pause();
#elif defined(__aarch64__)
  __asm__ volatile("isb");
#endif
}

/* ---- Steps: how every collective moves its pieces (steps.c) ---------------------------------- */

typedef struct shm_pass shm_pass;
struct shm_pass {
  shm_group *s;
  int64_t n; /* pieces, at least 1 */
  /* fill: write the own slot; fold: NULL, or read slots and write the own one again; drain: read
   * the peers' slots */
  void (*fill)(const shm_pass *, int64_t piece, unsigned char *own);
  void (*fold)(const shm_pass *, int64_t piece);
  void (*drain)(const shm_pass *, int64_t piece);
  int64_t used;           /* bytes of a slot that a piece takes at most */
  uint32_t first, places; /* step of piece 0, places of `used` bytes in a slot; set by run */
  /* what fill, fold and drain need */
  const void *x;
  void *y;
  const lam_parts *parts;
  int64_t piece, total; /* elements of a piece, of the whole */
  lam_dtype dtype;
  int root;
};
lam_status lam_shm_begin(lam_group *g, const lam_comm_op *op);
lam_status lam_shm_pass_run(shm_pass *p);
void lam_shm_step_publish(shm_group *s); /* a step without data: the announcement alone */
const lam_comm_op *lam_shm_announced(const shm_group *s); /* what was begun last */
/* Waits for all, then MISMATCH unless all said the same. */
lam_status lam_shm_compare(shm_group *s, uint32_t step);
static inline unsigned char *shm_slot_data(const shm_pass *p, int rank, int64_t piece) {
  const uint32_t step = p->first + (uint32_t)piece;
  return p->s->boards[rank]->slots[step % SHM_SLOTS].data + step / SHM_SLOTS % p->places * p->used;
}

/* ---- Rings: one directed stream of messages between two ranks (ring.c) ----------------------- */

typedef struct shm_message { /* a slot of a ring; `slot_bytes` of payload follow */
  lam_wire wire;
  _Alignas(SHM_LINE) uint64_t bytes; /* of this piece, where a message travels in several */
  uint64_t place;                    /* where they lie in the sender's arena; 0: in this slot */
  /* An offer (transfer.c): bytes at `place` that are the host's, read there by who made OPEN TAKEN;
   * its sender may make OPEN IN_PIECES: then they follow so; or ENDED: nothing follows. Channels
   * offer nothing. */
  _Atomic uint32_t offer;
  /* SHARED: its receiver has taken it, and the sender may copy pieces too, to `to_place` in the
   * receiver's arena. Who claims a piece copies it; helped: pieces that the sender has copied. */
  _Atomic uint32_t claimed;
  uint64_t to_place;
  shm_flag helped;
} shm_message;
enum { OFFER_NONE, OFFER_OPEN, OFFER_TAKEN, OFFER_SHARED, OFFER_IN_PIECES, OFFER_ENDED };

typedef struct shm_ring {
  shm_group *s;
  int peer;
  bool sender;
  uint64_t key, slot_bytes, stride;
  uint32_t depth;
  uint32_t moved;    /* slots pushed, or pulled */
  uint32_t released; /* slots given back (receiver) */
  shm_head *head;    /* in the sender's arena; NULL: the receiver has not looked it up yet */
  shm_flag *pushed, *freed;
} shm_ring;

/* Sender; r: s, peer, key, slot_bytes and depth are given. */
lam_status lam_shm_ring_create(shm_ring *r, uint64_t extra_bytes);
lam_status lam_shm_ring_attach(shm_ring *r); /* receiver; waits for the sender to create it */
lam_status lam_shm_ring_credit(shm_ring *r); /* sender: waits until slot `moved` is free */
lam_status lam_shm_ring_ready(shm_ring *r);  /* receiver: waits until slot `moved` is full */
void lam_shm_ring_close(shm_ring *r);
static inline shm_message *shm_ring_at(const shm_ring *r, uint32_t i) {
  return (shm_message *)((unsigned char *)r->pushed + 2 * sizeof(shm_flag) +
                         r->stride * (i % r->depth));
}

/* Keys of regions: what for, which one, between whom. */
enum { SHM_KEY_SUM = 1, SHM_KEY_TRANSFER, SHM_KEY_CHANNEL };
static inline uint64_t shm_key(const shm_group *s, int what, uint64_t which, int from, int to) {
  return lam_mix(lam_mix((uint64_t)s->g->handle, lam_mix((uint64_t)what, which)),
                 (uint64_t)from << 32 | (uint32_t)to);
}

/* memcpy, where nothing may have no address */
static inline void shm_copy(void *to, const void *from, int64_t bytes) {
  if (bytes > 0) memcpy(to, from, (size_t)bytes);
}

/* ---- Engine cells, by file ------------------------------------------------------------------- */

lam_status lam_shm_all_reduce(lam_group *g, const void *x, void *y, int64_t n, lam_dtype t);
lam_status lam_shm_packet_sum(shm_group *s, const void *x, void *y, int64_t n, lam_dtype t);
lam_status lam_shm_reduce(lam_group *g, const void *x, void *y, int64_t n, lam_dtype t, int root);
const char *lam_shm_all_reduce_path(int size, uint64_t bytes);
lam_status lam_shm_all_gather(lam_group *g, const lam_parts *p, const void *mine, void *whole);
lam_status lam_shm_reduce_scatter(lam_group *g, const lam_parts *p, const void *whole, void *mine);
lam_status lam_shm_broadcast(lam_group *g, const void *x, void *y, uint64_t bytes, int root);
lam_status lam_shm_partial(lam_group *g, int64_t rows, int64_t cols, lam_sum *s);
lam_status lam_shm_sum_start(lam_group *g, lam_sum *s);
lam_status lam_shm_sum_finish(lam_group *g, lam_sum *s);
void lam_shm_sums_leave(shm_group *s);
lam_status lam_shm_send(lam_group *g, int peer, int kind, const lam_wire *header, const void *data);
lam_status lam_shm_recv(lam_group *g, int peer, int kind, lam_wire *header, void *data,
                        uint64_t room);
const char *lam_shm_send_path(uint64_t bytes);
void lam_shm_transfers_leave(shm_group *s);
lam_status lam_shm_channel_open(lam_group *g, int peer, bool sender, uint64_t key, int depth,
                                uint64_t bytes, lam_channel **out);
lam_status lam_shm_channel_acquire(lam_channel *c, void **out_slot);
lam_status lam_shm_channel_push(lam_channel *c, const lam_wire *header);
lam_status lam_shm_channel_pull(lam_channel *c, lam_wire *out_header, const void **out_data);
lam_status lam_shm_channel_release(lam_channel *c);
void lam_shm_channel_close(lam_channel *c);

#endif
