/* on_card.h: put before a test of the suite, sends its operands over the stand-in's card: each call on a
 * group copies them there, runs as if an operator had been called with them, and copies results back.
 *
 * What a card does not sum (f64, integers) stays the host's, and so does what has no operand.
 * Invariant: host memory is what it would be after the same call on the host.
 * Leaves the engine, shm with ranks as threads, to the suite. Emulated: it never ran on a GPU. */
#ifndef LAMELLA_TESTS_CONFORMANCE_ENGINE_ON_CARD_H_
#define LAMELLA_TESTS_CONFORMANCE_ENGINE_ON_CARD_H_

#include "plugin/comm/group.h"

lam_status card_all_reduce(lam_group *g, const lam_comm_op *op, const void *x, void *y, int64_t n,
                           lam_dtype t);
lam_status card_all_gather(lam_group *g, const lam_comm_op *op, const lam_parts *p,
                           const void *mine, void *whole);
lam_status card_reduce_scatter(lam_group *g, const lam_comm_op *op, const lam_parts *p,
                               const void *whole, void *mine);
lam_status card_broadcast(lam_group *g, const lam_comm_op *op, const void *x, void *y,
                          uint64_t bytes, int root);
lam_status card_reduce(lam_group *g, const lam_comm_op *op, const void *x, void *y, int64_t n,
                       lam_dtype t, int root);
lam_status card_begin_sums(lam_group *g, const lam_comm_op *op);
lam_status card_partial(lam_group *g, int64_t rows, int64_t cols, lam_sum *s);
lam_status card_sum_start(lam_group *g, lam_sum *s);
lam_status card_sum_finish(lam_group *g, lam_sum *s);
lam_status card_send(lam_group *g, int peer, int kind, const lam_wire *header, const void *data);
lam_status card_recv(lam_group *g, int peer, int kind, lam_wire *header, void *data, uint64_t room);
lam_status card_channel_open(lam_group *g, int peer, bool sender, uint64_t key, int depth,
                             uint64_t bytes, lam_channel **out);
lam_status card_channel_acquire(lam_channel *c, void **out_slot);
lam_status card_channel_push(lam_channel *c, const lam_wire *header);
lam_status card_channel_pull(lam_channel *c, lam_wire *out_header, const void **out_data);
lam_status card_channel_release(lam_channel *c);

#ifndef ON_CARD_ITSELF
#define lam_group_all_reduce card_all_reduce
#define lam_group_all_gather card_all_gather
#define lam_group_reduce_scatter card_reduce_scatter
#define lam_group_broadcast card_broadcast
#define lam_group_reduce card_reduce
#define lam_group_begin_sums card_begin_sums
#define lam_group_partial card_partial
#define lam_group_sum_start card_sum_start
#define lam_group_sum_finish card_sum_finish
#define lam_group_send card_send
#define lam_group_recv card_recv
#define lam_channel_open card_channel_open
#define lam_channel_acquire card_channel_acquire
#define lam_channel_push card_channel_push
#define lam_channel_pull card_channel_pull
#define lam_channel_release card_channel_release
#endif

#endif
