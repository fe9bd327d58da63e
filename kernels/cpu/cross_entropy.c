/* cross_entropy.c: the cross entropy over a vocabulary that may be split.
 *
 * Each holder of some logits tells per token their maximum, their sum of e^(logit - maximum) and
 * the target's logit; from all parts everyone computes the same loss. A row of logits comes from
 * memory once: it is taken in pieces that stay in cache for both of a piece's passes.
 * Invariant: pieces depend on the row's length alone, so any number of workers gives the same bits.
 * Leaves the loops to lanes.h, bringing parts together to the caller. */
#include "kernels/cpu/cpu.h"
#include "kernels/cpu/lanes.h"
#include "kernels/math.h"

enum { PIECE = 4096 };

typedef struct entropy_call {
  const lam_lanes *lanes;
  lam_matrix logits, targets, dloss, lse, dlogits;
  int64_t first, ignore;
  lam_softmax_part *parts;
} entropy_call;

static lam_status check(const char *who, lam_matrix logits) {
  if (lam_is_float(logits.dtype)) return LAM_OK;
  return lam_fail(LAM_UNIMPLEMENTED, "cpu %s: logits are %s, the CPU has f32 and bf16", who,
                  lam_dtype_name(logits.dtype));
}

static float infinite(void) { return lam_f32_of_bits(0x7f800000u); }

/* What sums are relative to: logits of -infinity alone have a sum of 0. */
static float base_of(float max) { return max == -infinite() ? 0.0f : max; }

/* Sums of e^(x - a.max) and e^(x - b.max), as one relative to the greater maximum. */
static void join(lam_softmax_part *a, lam_softmax_part b) {
  const float max = b.max > a->max ? b.max : a->max, base = base_of(max);
  a->sum = a->sum * lam_exp(a->max - base) + b.sum * lam_exp(b.max - base);
  a->max = max;
  a->target += b.target;
}

/* -- forward -- */

static float one(const entropy_call *c, int64_t row, int64_t col) {
  float x;
  c->lanes->copy(lam_line_at(c->logits, row, col), (lam_line){&x, 1, LAM_F32}, 1);
  return x;
}

/* Where the row's target is among the columns here; -1: it is not. */
static int64_t own_target(const entropy_call *c, int64_t row) {
  const int64_t col = lam_index_at(c->targets, row) - c->first;
  return col >= 0 && col < c->logits.cols ? col : -1;
}

static void part_of_row(void *arg, int64_t row, int64_t col, int64_t n) {
  const entropy_call *c = arg;
  const int64_t target = own_target(c, row);
  lam_softmax_part all = {-infinite(), 0.0f, target < 0 ? 0.0f : one(c, row, target)};
  for (; col < n; col += PIECE) {
    const lam_line x = lam_line_at(c->logits, row, col);
    const int64_t width = lam_least(PIECE, n - col);
    lam_softmax_part piece = {.max = c->lanes->max(x, width)};
    piece.sum = c->lanes->exp_sum(x, base_of(piece.max), width);
    join(&all, piece);
  }
  c->parts[row] = all;
}

lam_status lam_softmax_parts_run(const lam_workers *w, lam_matrix logits, lam_matrix targets,
                                 int64_t first, lam_softmax_part *parts, void *stream) {
  (void)stream;
  LAM_TRY(check("softmax_parts", logits));
  entropy_call c = {.lanes = lam_lanes_pick(),
                    .logits = logits,
                    .targets = targets,
                    .first = first,
                    .parts = parts};
  lam_cpu_each_row(w, logits.rows, logits.cols, part_of_row, &c);
  return LAM_OK;
}

lam_status lam_cross_entropy_run(const lam_workers *w, const lam_softmax_part *parts, int n_parts,
                                 lam_matrix targets, int64_t ignore, lam_matrix loss,
                                 lam_matrix lse, void *stream) {
  const int64_t n = targets.rows * targets.cols;
  (void)w, (void)stream;
  for (int64_t t = 0; t < n; t++) {
    lam_softmax_part all = parts[t];
    for (int i = 1; i < n_parts; i++) join(&all, parts[i * n + t]);
    const float log_sum = lam_log(all.sum), base = base_of(all.max);
    *lam_value_at(lse, t) = base + log_sum;
    *lam_value_at(loss, t) =
        lam_index_at(targets, t) == ignore ? 0.0f : (base - all.target) + log_sum;
  }
  return LAM_OK;
}

/* -- backward -- */

static void gradient_of_row(void *arg, int64_t row, int64_t col, int64_t n) {
  const entropy_call *c = arg;
  const lam_line x = lam_line_at(c->logits, row, col), dx = lam_line_at(c->dlogits, row, col);
  const float dloss = *lam_value_at(c->dloss, row), lse = *lam_value_at(c->lse, row);
  const int64_t target = own_target(c, row);
  if (lam_index_at(c->targets, row) == c->ignore) {
    float zero = 0.0f;
    c->lanes->copy((lam_line){&zero, 0, LAM_F32}, dx, n);
    return;
  }
  float at_target = target < 0 ? 0.0f : one(c, row, target); /* dlogits may be logits */
  c->lanes->exp(x, lse, dloss, dx, n);
  if (target < 0) return;
  at_target = dloss * (lam_exp(at_target - lse) - 1.0f);
  c->lanes->copy((lam_line){&at_target, 1, LAM_F32}, lam_line_at(c->dlogits, row, target), 1);
}

lam_status lam_cross_entropy_bwd_run(const lam_workers *w, lam_matrix dloss, lam_matrix logits,
                                     lam_matrix targets, lam_matrix lse, int64_t first,
                                     int64_t ignore, lam_matrix dlogits, void *stream) {
  (void)stream;
  LAM_TRY(check("cross_entropy_bwd", logits));
  LAM_TRY(check("cross_entropy_bwd", dlogits));
  entropy_call c = {.lanes = lam_lanes_pick(),
                    .logits = logits,
                    .targets = targets,
                    .dloss = dloss,
                    .lse = lse,
                    .dlogits = dlogits,
                    .first = first,
                    .ignore = ignore};
  lam_cpu_each_row(w, logits.rows, logits.cols, gradient_of_row, &c);
  return LAM_OK;
}
