/* on_card.c: see on_card.h. */
#define ON_CARD_ITSELF
#include "tests/conformance/engine/on_card.h"

#include <stdlib.h>
#include <string.h>

#include "kernels/cuda/host.h"
#include "tests/check.h"
#include "tests/conformance/engine/suite.h"
#include "tests/standin/standin.h"

static void *const stream = (void *)cudaStreamPerThread;

/* Of NCCL's ranks each has its own card, of shm's threads all the same one. */
static _Thread_local int32_t card;
static void take_card(int rank) {
  int32_t was;
  card = rank;
  CHECK_OK(lam_device_enter(&lam_device_cuda, card, &was));
}

__attribute__((constructor)) static void take_the_card(void) {
  const char *engine = getenv("LAMELLA_TEST_ENGINE");
  suite_only = engine ? engine : "shm, threads";
  suite_take_card = take_card;
  lam_device_forced = &lam_device_cuda;
  standin_devices(4);
  if (strcmp(suite_only, "shm, processes") == 0)
    suite_most = 3, standin_set_patience(120000); /* another process may be late */
  standin_seed(seed());
}

static void to_card(lam_group *g) {
  int32_t was;
  CHECK_OK(lam_device_enter(&lam_device_cuda, card, &was));
  g->device = &lam_device_cuda;
  g->stream = stream;
}

static lam_status to_host(lam_group *g, lam_status status) {
  g->device = NULL;
  return status;
}

/* -- copies; memory comes and goes in the stream's order -- */

static void *up(const void *host, uint64_t bytes) {
  void *p = NULL;
  CHECK_EQ(cudaMallocAsync(&p, bytes ? bytes : 1, stream), cudaSuccess);
  if (host && bytes) CHECK_OK(lam_device_cuda.order->write(host, p, bytes, stream));
  return p;
}

static void down(void *host, void *card, uint64_t bytes) {
  if (host && bytes) CHECK_OK(lam_device_cuda.order->read(card, host, bytes, stream));
}

static void drop(void *card) { CHECK_EQ(cudaFreeAsync(card, stream), cudaSuccess); }

static void settle(void) { CHECK_OK(lam_device_cuda.order->finish(stream)); }

static bool sums(lam_dtype t) { return t == LAM_F32 || t == LAM_BF16; }

/* -- collectives -- */

/* At the same place within 64 bytes as the host's. */
static char *shifted(const void *host, void *card) { return (char *)card + (uintptr_t)host % 64; }

lam_status card_all_reduce(lam_group *g, const lam_comm_op *op, const void *x, void *y, int64_t n,
                           lam_dtype t) {
  const uint64_t bytes = (uint64_t)(n * lam_dtype_bytes(t));
  if (!sums(t)) return lam_group_all_reduce(g, op, x, y, n, t);
  to_card(g);
  void *dx = up(NULL, bytes + 64), *dy = x == y ? dx : up(NULL, bytes + 64);
  if (bytes) CHECK_OK(lam_device_cuda.order->write(x, shifted(x, dx), bytes, stream));
  settle();
  const lam_status status =
      to_host(g, lam_group_all_reduce(g, op, shifted(x, dx), shifted(y, dy), n, t));
  if (status == LAM_OK) down(y, shifted(y, dy), bytes);
  settle();
  drop(dx);
  if (dy != dx) drop(dy);
  return status;
}

static uint64_t share_bytes(const lam_group *g, const lam_parts *p, bool whole) {
  const int64_t n = whole ? p->first[g->size] : p->first[g->rank + 1] - p->first[g->rank];
  return (uint64_t)(p->outer * n * p->inner * lam_dtype_bytes(p->dtype));
}

lam_status card_all_gather(lam_group *g, const lam_comm_op *op, const lam_parts *p,
                           const void *mine, void *whole) {
  to_card(g);
  void *dx = up(mine, share_bytes(g, p, false)), *dy = up(NULL, share_bytes(g, p, true));
  settle();
  const lam_status status = to_host(g, lam_group_all_gather(g, op, p, dx, dy));
  if (status == LAM_OK) down(whole, dy, share_bytes(g, p, true));
  settle();
  drop(dx), drop(dy);
  return status;
}

lam_status card_reduce_scatter(lam_group *g, const lam_comm_op *op, const lam_parts *p,
                               const void *whole, void *mine) {
  if (!sums(p->dtype)) return lam_group_reduce_scatter(g, op, p, whole, mine);
  to_card(g);
  void *dx = up(whole, share_bytes(g, p, true)), *dy = up(NULL, share_bytes(g, p, false));
  settle();
  const lam_status status = to_host(g, lam_group_reduce_scatter(g, op, p, dx, dy));
  if (status == LAM_OK) down(mine, dy, share_bytes(g, p, false));
  settle();
  drop(dx), drop(dy);
  return status;
}

lam_status card_broadcast(lam_group *g, const lam_comm_op *op, const void *x, void *y,
                          uint64_t bytes, int root) {
  to_card(g);
  void *dx = up(x, bytes), *dy = x == y ? dx : up(NULL, bytes);
  settle();
  const lam_status status = to_host(g, lam_group_broadcast(g, op, dx, dy, bytes, root));
  if (status == LAM_OK) down(y, dy, bytes);
  settle();
  drop(dx);
  if (dy != dx) drop(dy);
  return status;
}

lam_status card_reduce(lam_group *g, const lam_comm_op *op, const void *x, void *y, int64_t n,
                       lam_dtype t, int root) {
  const uint64_t bytes = (uint64_t)(n * lam_dtype_bytes(t));
  if (!sums(t)) return lam_group_reduce(g, op, x, y, n, t, root);
  to_card(g);
  void *dx = up(x, bytes), *dy = y ? up(NULL, bytes) : NULL;
  settle();
  const lam_status status = to_host(g, lam_group_reduce(g, op, dx, dy, n, t, root));
  if (status == LAM_OK) down(y, dy, bytes);
  settle();
  drop(dx);
  if (dy) drop(dy);
  return status;
}

/* -- partial sums: parts are filled on the host, where they were handed out -- */

static _Thread_local struct shadow {
  lam_sum on_card; /* the operands of a chunk that started */
  void *part, *host;
} shadows[4];

lam_status card_begin_sums(lam_group *g, const lam_comm_op *op) {
  to_card(g);
  return to_host(g, lam_group_begin_sums(g, op));
}

static uint64_t matrix_bytes(lam_matrix m) {
  return (uint64_t)(m.rows * m.cols * lam_dtype_bytes(m.dtype));
}

lam_status card_partial(lam_group *g, int64_t rows, int64_t cols, lam_sum *s) {
  to_card(g);
  const lam_status status = to_host(g, lam_group_partial(g, rows, cols, s));
  if (status != LAM_OK) return status;
  struct shadow *sh = &shadows[s->slot];
  sh->part = s->part.data;
  s->part.data = sh->host = malloc(matrix_bytes(s->part) + 1);
  return LAM_OK;
}

static void operand_up(lam_matrix *m) {
  if (lam_matrix_here(*m)) m->data = up(m->data, matrix_bytes(*m));
}

static void operands_up(struct shadow *sh, const lam_sum *s) {
  sh->on_card = *s;
  sh->on_card.part.data = sh->part;
  operand_up(&sh->on_card.bias);
  operand_up(&sh->on_card.residual);
  operand_up(&sh->on_card.y);
  if (matrix_bytes(s->part))
    CHECK_OK(lam_device_cuda.order->write(sh->host, sh->part, matrix_bytes(s->part), stream));
  settle();
}

/* Some tests say only at the end where a sum goes. */
lam_status card_sum_start(lam_group *g, lam_sum *s) {
  struct shadow *sh = &shadows[s->slot];
  to_card(g);
  operands_up(sh, s);
  return to_host(g, lam_group_sum_start(g, &sh->on_card));
}

static void operand_down(lam_matrix m, lam_matrix host, bool wanted) {
  if (wanted) down(host.data, m.data, matrix_bytes(m));
  settle();
  if (lam_matrix_here(m)) drop(m.data);
}

lam_status card_sum_finish(lam_group *g, lam_sum *s) {
  struct shadow *sh = &shadows[s->slot];
  to_card(g);
  if (s->y.data && !sh->on_card.y.data) operands_up(sh, s);
  const lam_status status = to_host(g, lam_group_sum_finish(g, &sh->on_card));
  operand_down(sh->on_card.y, s->y, status == LAM_OK);
  operand_down(sh->on_card.bias, s->bias, false);
  operand_down(sh->on_card.residual, s->residual, false);
  free(sh->host);
  return status;
}

/* -- transfers -- */

lam_status card_send(lam_group *g, int peer, int kind, const lam_wire *header, const void *data) {
  to_card(g);
  void *d = up(data, header->bytes);
  settle();
  const lam_status status = to_host(g, lam_group_send(g, peer, kind, header, d));
  drop(d);
  return status;
}

lam_status card_recv(lam_group *g, int peer, int kind, lam_wire *header, void *data,
                     uint64_t room) {
  to_card(g);
  void *d = up(NULL, room);
  const lam_status status = to_host(g, lam_group_recv(g, peer, kind, header, d, room));
  if (status == LAM_OK) down(data, d, header->bytes);
  settle();
  drop(d);
  return status;
}

/* -- channels: slots have shadows, too, for as long as the test runs -- */

enum { SLOT_BYTES = 16384 };
static _Thread_local struct {
  _Alignas(64) unsigned char host[SLOT_BYTES];
  void *card;
  uint64_t room; /* of the channel that was opened last: a test's are alike */
} filling;

lam_status card_channel_open(lam_group *g, int peer, bool sender, uint64_t key, int depth,
                             uint64_t bytes, lam_channel **out) {
  filling.room = bytes;
  to_card(g);
  return to_host(g, lam_channel_open(g, peer, sender, key, depth, bytes, out));
}

lam_status card_channel_acquire(lam_channel *c, void **out_slot) {
  to_card(c->group);
  const lam_status status = to_host(c->group, lam_channel_acquire(c, &filling.card));
  if (status != LAM_OK) return status;
  CHECK_EQ((uintptr_t)filling.card % 64, 0);
  *out_slot = filling.host;
  return LAM_OK;
}

lam_status card_channel_push(lam_channel *c, const lam_wire *header) {
  to_card(c->group);
  if (header->bytes <= filling.room && filling.card)
    CHECK_OK(lam_device_cuda.order->write(filling.host, filling.card, header->bytes, stream));
  settle();
  filling.card = NULL;
  return to_host(c->group, lam_channel_push(c, header));
}

lam_status card_channel_pull(lam_channel *c, lam_wire *out_header, const void **out_data) {
  static _Thread_local unsigned char pulled[8][SLOT_BYTES];
  static _Thread_local int turn;
  const void *card = NULL;
  to_card(c->group);
  const lam_status status = to_host(c->group, lam_channel_pull(c, out_header, &card));
  if (status != LAM_OK) return status;
  unsigned char *host = pulled[turn++ % 8];
  if (out_header->bytes)
    CHECK_OK(lam_device_cuda.order->read(card, host, out_header->bytes, stream));
  settle();
  *out_data = host;
  return LAM_OK;
}

lam_status card_channel_release(lam_channel *c) {
  to_card(c->group);
  return to_host(c->group, lam_channel_release(c));
}
