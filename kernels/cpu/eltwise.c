/* eltwise.c: activations, their derivatives, copies.
 *
 * Invariant: f32 inside, one rounding at the store; operands may be the same memory, element for
 * element.
 * Leaves the loops to lanes.h, the cutting to work.c. */
#include <string.h>

#include "kernels/cpu/cpu.h"
#include "kernels/cpu/lanes.h"

static bool all_float(const char *who, const lam_matrix *ms, int n, lam_status *out) {
  *out = LAM_OK;
  for (int i = 0; i < n; i++)
    if (lam_matrix_here(ms[i]) && !lam_is_float(ms[i].dtype))
      *out = lam_fail(LAM_UNIMPLEMENTED, "cpu %s: operand %d is %s, the CPU has f32 and bf16", who,
                      i, lam_dtype_name(ms[i].dtype));
  return *out == LAM_OK;
}

typedef struct act_call {
  const lam_lanes *lanes;
  lam_act act;
  bool gated;
  lam_matrix dy, z, y; /* act_bwd: y is dz */
  bool again;          /* dy becomes act(z) */
} act_call;

/* The half of a gated [gate | up] row that starts at F; absent where there is none. */
static lam_line up_at(const act_call *c, lam_matrix z, int64_t row, int64_t col) {
  return c->gated ? lam_line_at(z, row, z.cols / 2 + col) : (lam_line){NULL, 0, z.dtype};
}

static void act_piece(void *arg, int64_t row, int64_t col, int64_t n) {
  const act_call *c = arg;
  c->lanes->act(c->act, lam_line_at(c->z, row, col), up_at(c, c->z, row, col),
                lam_line_at(c->y, row, col), n);
}

lam_status lam_act_run(const lam_workers *w, lam_act act, bool gated, lam_matrix z, lam_matrix y,
                       void *stream) {
  (void)stream;
  lam_status status;
  if (!all_float("act", (lam_matrix[]){z, y}, 2, &status)) return status;
  act_call c = {.lanes = lam_lanes_pick(), .act = act, .gated = gated, .z = z, .y = y};
  lam_cpu_each_piece(w, y.rows, y.cols, act_piece, &c);
  return LAM_OK;
}

static void act_bwd_piece(void *arg, int64_t row, int64_t col, int64_t n) {
  const act_call *c = arg;
  const lam_line dy = lam_line_at(c->dy, row, col), none = {NULL, 0, dy.dtype};
  c->lanes->act_bwd(c->act, dy, lam_line_at(c->z, row, col), up_at(c, c->z, row, col),
                    lam_line_at(c->y, row, col), up_at(c, c->y, row, col), c->again ? dy : none, n);
}

static lam_status act_bwd(const lam_workers *w, act_call *c) {
  lam_status status;
  if (!all_float("act_bwd", (lam_matrix[]){c->dy, c->z, c->y}, 3, &status)) return status;
  c->lanes = lam_lanes_pick();
  lam_cpu_each_piece(w, c->dy.rows, c->dy.cols, act_bwd_piece, c);
  return LAM_OK;
}

lam_status lam_act_bwd_run(const lam_workers *w, lam_act act, bool gated, lam_matrix dy,
                           lam_matrix z, lam_matrix dz, void *stream) {
  (void)stream;
  return act_bwd(w, &(act_call){.act = act, .gated = gated, .dy = dy, .z = z, .y = dz});
}

lam_status lam_act_bwd_again_run(const lam_workers *w, lam_act act, bool gated, lam_matrix dy,
                                 lam_matrix z, lam_matrix dz, void *stream) {
  (void)stream;
  return act_bwd(
      w, &(act_call){.act = act, .gated = gated, .dy = dy, .z = z, .y = dz, .again = true});
}

/* -- copies -- */

typedef struct copy_call {
  const lam_lanes *lanes;
  lam_matrix from, to;
} copy_call;

static void convert_piece(void *arg, int64_t row, int64_t col, int64_t n) {
  const copy_call *c = arg;
  c->lanes->copy(lam_line_at(c->from, row, col), lam_line_at(c->to, row, col), n);
}

/* Elements as they are, NaNs with all their bits. */
static void move_piece(void *arg, int64_t row, int64_t col, int64_t n) {
  const copy_call *c = arg;
  const lam_line from = lam_line_at(c->from, row, col), to = lam_line_at(c->to, row, col);
  const size_t bytes = (size_t)lam_dtype_bytes(from.dtype);
  if (from.stride == 1 && to.stride == 1) {
    memmove(to.data, from.data, (size_t)n * bytes);
    return;
  }
  for (int64_t i = 0; i < n; i++)
    memcpy((char *)to.data + (size_t)(i * to.stride) * bytes,
           (const char *)from.data + (size_t)(i * from.stride) * bytes, bytes);
}

lam_status lam_copy_run(const lam_workers *w, lam_matrix from, lam_matrix to, void *stream) {
  lam_status status;
  const bool same = from.dtype == to.dtype;
  if (!same && !all_float("copy", (lam_matrix[]){from, to}, 2, &status)) return status;
  if (to.row_stride == 1 && to.col_stride != 1) { /* walk along what is written */
    from = lam_matrix_transposed(from);
    to = lam_matrix_transposed(to);
  }
  (void)stream;
  copy_call c = {lam_lanes_pick(), from, to};
  lam_cpu_each_piece(w, to.rows, to.cols, same ? move_piece : convert_piece, &c);
  return LAM_OK;
}
