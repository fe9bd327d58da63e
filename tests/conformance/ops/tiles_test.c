/* tiles_test.c: split layers in chunks that the library itself chooses, and by the ranks that rows
 * come from, against double precision: where figures of the device say that it pays, products are
 * cut, and what is summed or gathered runs beside them on other streams, which the stand-in runs in
 * any order.
 * Leaves what is queued, and the reasons, to tests/distributed/peers/tiles_test.c. Emulated. */
#include <string.h>

#include "kernels/cuda/host.h"
#include "plugin/comm/peer/peer.h"
#include "tests/conformance/ops/problem.h"
#include "tests/standin/standin.h"

enum { ROWS = 400 };

/* One multiprocessor, whose products take as long as what moves beside them: chunks of 128 rows
 * pay. */
static lam_status slow_pace(lam_pace *out) {
  const lam_pace_step steps[] = {{1, 1000}, {1000000, 1000000}};
  *out = (lam_pace){.n_sms = 1, .tile_rows = 128, .tile_cols = 8, .launch_ns = 1};
  for (int t = 0; t < LAM_N_DTYPES; t++) out->product_flops_per_ns[t] = 1;
  for (int i = 0; i < 2; i++) out->by_peers[i] = out->by_nccl[i] = steps[i];
  return LAM_OK;
}

static lam_device slow;
__attribute__((constructor)) static void take_slow_device(void) {
  slow = lam_device_cuda;
  slow.pace = slow_pace;
  standin_devices(4);
  lam_device_forced = &slow;
  lam_peer_aside_from = 0; /* small operands too */
}

static const uint32_t ops[] = {
    LAM_OP_linear_col, LAM_OP_linear_col_dgrad, LAM_OP_linear_col_wgrad, LAM_OP_linear_col_bwd,
    LAM_OP_linear_row, LAM_OP_linear_row_dgrad, LAM_OP_linear_row_wgrad, LAM_OP_linear_row_bwd,
    LAM_OP_ffn,        LAM_OP_ffn_dgrad,        LAM_OP_ffn_wgrad,        LAM_OP_ffn_bwd};
enum { N_OPS = sizeof ops / sizeof *ops };

/* Uneven shares of everything; the ranks' own rows, or all. */
static problem layer(rng *r, uint32_t op, int p, int turn) {
  problem pr = {.op = op, .p = p, .ndim = 2, .S = ROWS, .B = 1, .K = 25, .N = 19, .F = 13};
  pr.bf16 = turn & 1;
  pr.seq = turn & 2 ? ROWS : 0;
  pr.split = pr.unit = pr.bias = 1;
  pr.acc = row_has(op, "acc") && turn & 4;
  pr.grad_f32 = pr.acc;
  pr.gated = row_has(op, "gated") && turn & 4;
  pr.act = row_has(op, "act") ? ACT_SILU : ACT_NONE;
  pr.total = row_has(op, "total") ? (strstr(lam_op_row(op), "linear_row") ? pr.K : pr.N) : 0;
  problem_fill(&pr, r);
  return pr;
}

/* The first call of a group meets, and is not cut: so each is made twice. */
static void run_twice(uint32_t op, int p, int turn) {
  rng r = {seed() + op * 64 + (uint64_t)(p * 8 + turn)};
  ranks all = {.p = p, .open = open_shm};
  problem both[] = {layer(&r, op, p, turn), layer(&r, op, p, turn)};
  problems_run(&all, both, 2);
  problem_free(&both[0]), problem_free(&both[1]);
}

TEST(tiles, that_are_chosen_give_the_same) {
  for (int i = 0; i < N_OPS; i++)
    FOR_EACH(p, 1, 2, 4) run_twice(ops[i], p, (i + p + (int)(seed() % 8)) % 8);
}

TEST(tiles, of_the_ranks_own_rows_give_the_same) {
  for (int i = 0; i < N_OPS; i++) run_twice(ops[i], 3, 2 + (i + (int)seed()) % 2);
}
