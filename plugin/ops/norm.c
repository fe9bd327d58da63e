/* norm.c: the root mean square norm, its gradients, and the end of a layer in one call: the sum over
 * the ranks, the residual, and the norm that the next layer starts with.
 *
 * Invariant: the norm is of the sum as it was rounded, so what one call gives is what three give.
 * Leaves the sum over the ranks to sum.c, arithmetic to kernels/. */
#include "plugin/ops/rows.h"

static lam_status check_gain(const lam_op_call *call, lam_matrix x, lam_matrix g) {
  if (!(call->attr.eps >= 0))
    return lam_fail(LAM_INVALID_ARGUMENT, "%s: eps is %g, expected 0 or more", call->name,
                    call->attr.eps);
  return lam_op_agree(call, "g's length", g.cols, "x's last dimension", x.cols);
}

static lam_status check_same(const lam_op_call *call, const char *rows, const char *cols,
                             lam_matrix m, lam_matrix x) {
  LAM_TRY(lam_op_agree(call, cols, m.cols, "x's", x.cols));
  return lam_op_agree(call, rows, m.rows, "x's", x.rows);
}

/* x [T, K]  g [K]  y [T, K] */
lam_status lam_op_rmsnorm_run(const lam_op_call *call) {
  const lam_matrix x = call->in[0], g = call->in[1];
  LAM_TRY(check_gain(call, x, g));
  return lam_device_rmsnorm(call->device, call->workers, x, g, (float)call->attr.eps, call->out[0],
                            call->stream);
}

/* dy, x [T, K]  g [K]  dx [T, K]  dg [K]? */
lam_status lam_op_rmsnorm_bwd_run(const lam_op_call *call) {
  const lam_matrix dy = call->in[0], x = call->in[1], g = call->in[2];
  LAM_TRY(check_gain(call, x, g));
  LAM_TRY(check_same(call, "dy's number of rows", "dy's last dimension", dy, x));
  return lam_device_rmsnorm_bwd(call->device, call->workers, dy, x, g, (float)call->attr.eps,
                                call->out[0], call->out[1], call->attr.acc != 0, call->stream);
}

/* -- next = the sum over ranks of x + res, y = its norm: all [T, K] -- */

/* This rank's part is x itself. */
static lam_status own_part(const lam_part_sum *s, int64_t first, const lam_matrix *bias,
                           const lam_matrix *d) {
  const lam_op_call *call = s->call;
  lam_matrix room;
  (void)bias;
  return lam_device_copy(call->device, call->workers,
                         *lam_op_rows(&call->in[0], first, d->rows, &room), *d, call->stream);
}

/* Where work is queued there is no product for a sum to run beside. */
static lam_chunks chunks_of(const lam_op_call *call) {
  const lam_matrix x = call->in[0];
  return call->device->order ? lam_chunks_asked(call, x.rows, 1)
                             : lam_chunks_for_sum(call, x.rows, x.cols);
}

static lam_status add_and_norm(const lam_op_call *call, lam_scratch *s) {
  const lam_matrix x = call->in[0], res = call->in[1], g = call->in[2];
  const lam_matrix y = call->out[0], next = call->out[1];
  (void)s;
  if (!lam_op_peers(call))
    return lam_device_add_rmsnorm(call->device, call->workers, &x, 1, res, g, (float)call->attr.eps,
                                  next, y, call->stream);
  const lam_part_sum sum = {.call = call,
                            .part = own_part,
                            .y_tensor = call->out_tensor[1],
                            .bias = &lam_op_absent,
                            .y = &next,
                            .chunks = chunks_of(call),
                            .residual = &res,
                            .own = &x,
                            .gain = &g,
                            .normed = &y};
  return lam_part_sum_run(&sum);
}

void lam_op_all_reduce_add_rmsnorm_needs(const lam_op_call *call, lam_op_needs *out) {
  *out = (lam_op_needs){0, (uint32_t)chunks_of(call).n};
}

lam_status lam_op_all_reduce_add_rmsnorm_run(const lam_op_call *call) {
  LAM_TRY(check_gain(call, call->in[0], call->in[2]));
  LAM_TRY(
      check_same(call, "res's number of rows", "res's last dimension", call->in[1], call->in[0]));
  return lam_op_with_scratch(call, NULL, add_and_norm);
}
