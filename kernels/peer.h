/* peer.h: what ranks that read each other's device memory do with it: sums, gathers, boxes.
 *
 * Every rank has lanes: memory that all ranks of its group read, with flags that they raise. A lane
 * works with the lanes of its number on the other ranks alone, so nothing waits for a whole card.
 * Invariant: an operation is one kernel, queued on a stream; it waits for the peers' kernels on the
 * device, never on the host, counts in device memory, and so may be captured and replayed. Whatever
 * a kernel waits for, it gives up after its deadline, or when its line is ended.
 * Leaves to plugin/comm who the ranks are, that all announced the same, and what a failure ends. */
#ifndef LAMELLA_KERNELS_PEER_H
#define LAMELLA_KERNELS_PEER_H

#include "kernels/device.h"

enum { LAM_PEERS = 16 }; /* most ranks that read each other's memory */

/* One rank's own: the order of what its group queues, whatever the streams; and the words by which
 * host and kernels tell each other that it is over. */
typedef struct lam_peer_line lam_peer_line;
enum {
  LAM_WORD_END,  /* not 0: give up */
  LAM_WORD_LATE, /* 1 + the peer that did not come */
  LAM_WORDS = 16
};

/* By which another process of this machine opens memory. */
typedef struct lam_peer_handle {
  unsigned char bytes[64];
} lam_peer_handle;

typedef struct lam_peers {
  lam_peer_line *line;
  int32_t rank, size;
  int32_t n_lanes;        /* the same on all ranks */
  uint32_t deadline_ms;   /* of the operation */
  void *lanes[LAM_PEERS]; /* by rank */
} lam_peers;

/* y = round(sum over the ranks of x, in rank order, f32 inside + bias + residual): those rows and
 * columns of it from y_row and y_col on; y may be absent, or x itself. */
typedef struct lam_peer_sum {
  lam_matrix x;        /* [rows, cols], the same shape and dtype on all ranks */
  lam_matrix bias;     /* [1, cols] or absent */
  lam_matrix residual; /* as y or absent */
  lam_matrix y;
  int64_t y_row, y_col;
  bool whole; /* every rank's y is all of it: then large ones are summed by shares */
  /* Where gain [1, cols] is here: normed = y r gain, r = 1 / sqrt(mean of y^2 + eps) of each row of
   * the rounded y, which is whole. */
  lam_matrix gain, normed;
  float eps;
} lam_peer_sum;

/* Rank r's share of a whole: blocks of so many bytes at `offset`, `stride` apart. */
typedef struct lam_peer_gather {
  const void *mine; /* the own share, without gaps */
  void *whole;
  int64_t stride;
  int64_t bytes[LAM_PEERS], count[LAM_PEERS], offset[LAM_PEERS];
  int32_t step; /* 0: all shares; else that of the rank so many further on, alone */
} lam_peer_gather;
enum { LAM_PEER_FORKS = 4 + LAM_PEERS };

/* A place for one message at a time, in its sender's memory. */
typedef struct lam_peer_box {
  void *data;
  uint32_t *words; /* LAM_PEER_BOX_WORDS of them, 0 at first: how often it was filled and emptied */
} lam_peer_box;
enum { LAM_PEER_BOX_WORDS = 64 };

/* What a kernel does with a box; with a copy, of `bytes` between the box and elsewhere. */
enum {
  LAM_BOX_AWAIT_EMPTY = 1,
  LAM_BOX_AWAIT_FULL = 2,
  LAM_BOX_FILL = 4, /* and say that it is full */
  LAM_BOX_EMPTY = 8 /* and say so */
};

typedef struct lam_peer_watch lam_peer_watch;

typedef struct lam_device_peer {
  /* On this thread's device, whose number it tells. page: NULL, or the host's, whole pages, where the
   * words come first, so that others can end the line, too. close waits for what was queued. */
  lam_status (*open)(void *page, uint64_t page_bytes, lam_peer_line **out, int32_t *out_device);
  void (*close)(lam_peer_line *line);
  /* From any thread: whatever waits there, or will, ends soon. */
  void (*end)(lam_peer_line *line);
  /* Is this thread's device the line's, may `stream` be used, and did all kernels so far find their
   * peers? alone: no other rank is on this card. */
  lam_status (*check)(lam_peer_line *line, bool alone, void *stream);
  /* Memory of this thread's device that peers reach, zeroed; free waits for what is queued. apart:
   * nothing else lies in its pages, so that it may be shown to other processes. */
  lam_status (*alloc)(uint64_t bytes, bool apart, void **out);
  void (*free)(int32_t device_id, void *p);
  /* Between processes: its owner shows it, another maps it, and unmaps it (which waits for what is
   * queued) before the owner frees it. */
  lam_status (*show)(void *p, lam_peer_handle *out);
  lam_status (*map)(const lam_peer_handle *h, void **out);
  void (*unmap)(int32_t device_id, void *p);
  /* Host memory that the device copies from and to without help. */
  lam_status (*pin)(uint64_t bytes, void **out);
  void (*unpin)(int32_t device_id, void *p);
  lam_status (*place)(char *out, int room); /* this thread's device, as another process would name it */
  lam_status (*reach)(int32_t device_id); /* this thread's device: the memory of that one */
  /* How many lanes are sure to run at once where `on_card` ranks share this thread's card. */
  lam_status (*lanes)(int on_card, int32_t *out_lanes, uint64_t *out_lane_bytes);
  /* Another stream, for work queued beside `stream`: it waits for what is there already; join makes
   * `stream` wait for what fork `slot` (below LAM_PEER_FORKS) was given. */
  lam_status (*fork)(lam_peer_line *line, int slot, void *stream, void **out_side);
  lam_status (*forked)(lam_peer_line *line, int slot, void *side); /* that was all of it */
  lam_status (*join)(lam_peer_line *line, int slot, void *stream);
  lam_status (*sum)(const lam_peers *p, const lam_peer_sum *s, void *stream);
  bool (*norms)(const lam_peers *p, int64_t cols, lam_dtype t); /* rows that fit a lane */
  lam_status (*gather)(const lam_peers *p, const lam_peer_gather *g, void *stream);
  lam_status (*box)(lam_peer_line *line, int peer, uint32_t deadline_ms, const lam_peer_box *box,
                    int what, void *data, uint64_t bytes, void *stream);
  /* A plain copy in the line's order, by the device's copy engine. */
  lam_status (*copy)(lam_peer_line *line, const void *from, void *to, uint64_t bytes, void *stream);
  /* fn(arg, i) from a thread of the device's own, once fds[i] is readable (-1: never); n at most
   * LAM_PEERS. unwatch waits until that is over. */
  lam_status (*watch)(const int *fds, int n, void (*fn)(void *arg, int i), void *arg,
                      lam_peer_watch **out);
  void (*unwatch)(lam_peer_watch *w);
  /* The host waits until peers have read what lies in these lanes (NULL: none) and boxes, which go
   * with its process; so long at most. */
  void (*drain)(lam_peer_line *line, const lam_peers *lanes, const lam_peer_box *boxes, int n,
                uint32_t deadline_ms);
} lam_device_peer;

/* The wrappers, as those of device.h; d has a peer table. */
lam_status lam_peer_open(const lam_device *d, void *page, uint64_t page_bytes, lam_peer_line **out,
                         int32_t *out_device);
lam_status lam_peer_alloc(const lam_device *d, uint64_t bytes, bool apart, void **out);
lam_status lam_peer_show(const lam_device *d, void *p, lam_peer_handle *out);
lam_status lam_peer_map(const lam_device *d, const lam_peer_handle *h, void **out);
lam_status lam_peer_pin(const lam_device *d, uint64_t bytes, void **out);
lam_status lam_peer_copy(const lam_device *d, lam_peer_line *line, const void *from, void *to,
                         uint64_t bytes, void *stream);
lam_status lam_peer_reach(const lam_device *d, int32_t device_id);
lam_status lam_peer_sum_run(const lam_device *d, const lam_peers *p, const lam_peer_sum *s,
                            void *stream);
lam_status lam_peer_gather_run(const lam_device *d, const lam_peers *p, const lam_peer_gather *g,
                               void *stream);
lam_status lam_peer_box_run(const lam_device *d, lam_peer_line *line, int peer,
                            uint32_t deadline_ms, const lam_peer_box *box, int what, void *data,
                            uint64_t bytes, void *stream);

#endif
