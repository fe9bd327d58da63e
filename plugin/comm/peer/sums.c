/* sums.c: sums of partial products that lie on a device: the second level of tiling.
 *
 * A product writes its f32 part into scratch; a part that is there already is read where it lies. A
 * small sum is queued when it is finished, in the same stream: there is nothing to hide behind. A
 * large one is queued when it starts, on a side stream, and runs beside the next chunk's product; to
 * finish is to let the stream wait for it.
 * Invariant: the kernels of one group run in the order of its calls, on all ranks: whatever is queued
 * next waits for what was put aside.
 * Leaves sums to the device. */
#include "plugin/comm/peer/peer.h"

int64_t lam_peer_aside_from = 256 << 10;

lam_status lam_peer_partial(lam_group *g, int64_t rows, int64_t cols, lam_sum *s) {
  lam_peer *p = NULL;
  LAM_TRY(lam_peer_of(g, &p));
  if (p->taken - p->finished >= PEER_SUMS)
    return lam_fail(LAM_FAILED_PRECONDITION,
                    "partial sums: %d chunks are under way, finish one first", PEER_SUMS);
  s->slot = (int)(p->taken % PEER_SUMS);
  if (s->own.data) {
    s->part = s->own;
    p->taken++;
    return LAM_OK;
  }
  LAM_TRY(lam_device_borrow(g->device, (uint64_t)(rows * cols) * sizeof(float), g->stream,
                            &p->chunks[s->slot].data));
  s->part = (lam_matrix){.data = p->chunks[s->slot].data,
                         .rows = rows,
                         .cols = cols,
                         .row_stride = cols,
                         .col_stride = 1,
                         .dtype = LAM_F32};
  p->taken++;
  return LAM_OK;
}

/* The norm in the same kernel, where its rows are not too long for that. */
static bool takes_norm(const lam_group *g, const lam_sum *s) {
  return lam_matrix_here(s->gain) && !s->scatter &&
         g->device->peer->norms(&g->peer->peers, s->part.cols, s->part.dtype);
}

static lam_status queue_sum(lam_group *g, lam_sum *s, void *stream) {
  const lam_matrix none = {0};
  if (g->size == 1) {
    const lam_matrix mine = lam_matrix_rows(s->part, s->y_first, s->y.rows);
    return lam_device_sum(g->device, lam_context_workers(g->ctx), &mine, 1, s->bias, s->residual,
                          s->y, stream);
  }
  lam_peer_sum sum = {.x = s->part,
                      .bias = s->bias,
                      .residual = s->residual,
                      .y = s->y.rows ? s->y : none,
                      .y_row = s->y_first,
                      .whole = !s->scatter};
  s->is_normed = takes_norm(g, s);
  if (s->is_normed) sum.gain = s->gain, sum.normed = s->normed, sum.eps = s->eps;
  return lam_peer_sum_run(g->device, &g->peer->peers, &sum, stream);
}

static int64_t part_bytes(const lam_sum *s) {
  return s->part.rows * s->part.cols * lam_dtype_bytes(s->part.dtype);
}

static bool goes_aside(const lam_group *g, const lam_sum *s) {
  return g->size > 1 && part_bytes(s) >= lam_peer_aside_from;
}

/* One block to a lane, and as a rule one to a multiprocessor. */
void lam_peer_tell_busy(lam_group *g) {
  g->busy_sms = g->peer->waited < g->peer->gathers ? g->peer->peers.n_lanes : 0;
  for (int i = 0; i < PEER_SUMS; i++)
    if (g->peer->chunks[i].aside) g->busy_sms = g->peer->peers.n_lanes;
}

lam_status lam_peer_sum_start(lam_group *g, lam_sum *s) {
  void *side = NULL;
  const lam_peer *p = g->peer;
  if (!goes_aside(g, s)) return LAM_OK;
  LAM_TRY(p->device->peer->fork(p->line, s->slot, g->stream, &side));
  LAM_TRY(queue_sum(g, s, side));
  g->peer->chunks[s->slot].aside = true;
  lam_peer_tell_busy(g);
  return p->device->peer->forked(p->line, s->slot, side);
}

static lam_status join(lam_group *g, int slot) {
  const lam_peer *p = g->peer;
  if (!p->chunks[slot].aside) return LAM_OK;
  g->peer->chunks[slot].aside = false;
  lam_peer_tell_busy(g);
  return p->device->peer->join(p->line, slot, g->stream);
}

lam_status lam_peer_come_back(lam_group *g) {
  for (int i = 0; i < PEER_SUMS; i++) LAM_TRY(join(g, i));
  const lam_gather all = {.by_source = true};
  return lam_peer_gather_wait(g, &all, g->peer->gathers);
}

void lam_peer_sum_drop(lam_group *g, const lam_sum *s) {
  lam_peer *p = g->peer;
  lam_device_give_back(g->device, p->chunks[s->slot].data, g->stream);
  p->chunks[s->slot].data = NULL;
  p->finished++;
}

lam_status lam_peer_sum_finish(lam_group *g, lam_sum *s) {
  if (goes_aside(g, s)) {
    LAM_TRY(join(g, s->slot));
  } else {
    LAM_TRY(lam_peer_come_back(g));
    LAM_TRY(queue_sum(g, s, g->stream));
  }
  lam_peer_sum_drop(g, s);
  return LAM_OK;
}
