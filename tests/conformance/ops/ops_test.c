/* ops_test.c: every row of the operator table against its reference, for any number of ranks,
 * shares, layouts and chunks.
 * Leaves the rows' meaning to reference.c, random problems to problem.c. */
#include <stdlib.h>
#include <string.h>

#include "plugin/comm/peer/peer.h"
#include "tests/conformance/ops/problem.h"
#include "tests/place.h"

enum { PROBLEMS = 40 }; /* per row, dtype and number of ranks */

TEST(table, every_row_has_a_reference) {
  for (uint32_t op = 0; op < LAM_OP_END_; op++) {
    NOTE("%s", lam_op_row(op));
    if (lam_op_row(op)) CHECK(reference_find(op) != NULL);
    if (!lam_op_row(op)) CHECK(reference_find(op) == NULL);
  }
}

static void run_random(ranks *all, uint32_t op, int bits, int n) {
  static problem problems[PROBLEMS];
  rng r = {seed() + op * 8 + (uint64_t)(all->p * 2 + bits)};
  for (int i = 0; i < n; i++) problem_make(&problems[i], &r, op, all->p, bits, i);
  problems_run(all, problems, n);
  for (int i = 0; i < n; i++) problem_free(&problems[i]);
}

/* On a device without peers' collectives groups have one rank; and what runs there costs more.
 * LAMELLA_TEST_RANKS is the most ranks: sanitizers run one kernel at a time, so none can wait. */
static bool can_run(int p) {
  const lam_device *d = place_device();
  const char *most = getenv("LAMELLA_TEST_RANKS");
  if (most && p > atoi(most)) return false;
  return !d || p == 1 || (d->peer && p != 3);
}

static void run_row(uint32_t op) {
  FOR_EACH(p, 1, 2, 3, 4) FOR_EACH(bits, F32_BITS, BF16_BITS, F16_BITS) {
    ranks all = {.p = p, .open = open_shm};
    if (bits == F16_BITS && place_is_host()) continue;
    const int n = place_is_host() ? PROBLEMS : p == 1 ? PROBLEMS / 4 : PROBLEMS / 16;
    if (can_run(p)) run_random(&all, op, bits, tries(n));
  }
}

/* One test a row, so that a failure names it. */
#define ROW_TEST(name) \
  TEST(name, equals_its_reference_for_1_to_4_ranks) { run_row(LAM_OP_##name); }

ROW_TEST(all_reduce)
ROW_TEST(all_gather)
ROW_TEST(reduce_scatter)
ROW_TEST(broadcast)
ROW_TEST(reduce)
ROW_TEST(copy_to_group)
ROW_TEST(reduce_from_group)
ROW_TEST(gather_from_group)
ROW_TEST(scatter_to_group)
ROW_TEST(gather_sequence)
ROW_TEST(scatter_sequence)
ROW_TEST(linear)
ROW_TEST(linear_dgrad)
ROW_TEST(linear_wgrad)
ROW_TEST(act_bwd)
ROW_TEST(linear_col)
ROW_TEST(linear_col_dgrad)
ROW_TEST(linear_col_wgrad)
ROW_TEST(linear_col_bwd)
ROW_TEST(linear_row)
ROW_TEST(linear_row_dgrad)
ROW_TEST(linear_row_wgrad)
ROW_TEST(linear_row_bwd)
ROW_TEST(ffn)
ROW_TEST(ffn_dgrad)
ROW_TEST(ffn_wgrad)
ROW_TEST(ffn_bwd)
ROW_TEST(embedding_vocab)
ROW_TEST(embedding_vocab_wgrad)
ROW_TEST(cross_entropy_vocab)
ROW_TEST(cross_entropy_vocab_bwd)
ROW_TEST(rmsnorm)
ROW_TEST(rmsnorm_bwd)
ROW_TEST(all_reduce_add_rmsnorm)

TEST(callbacks, give_every_row_the_same_meaning) {
  if (!place_is_host()) SKIP("a host's functions are given tensors in its own memory");
  for (uint32_t op = 0; op < LAM_OP_END_; op++) {
    const reference *ref = reference_find(op);
    if (!ref || !ref->run) continue;
    FOR_EACH(p, 2, 3) {
      ranks all = {.p = p, .open = open_callbacks};
      run_random(&all, op, p == 3, tries(PROBLEMS / 4));
    }
  }
}

/* -- chunks: rows enough for more than one, chosen by size -- */

static problem many_rows(int64_t rows, uint32_t op, int p, bool bf16, int64_t chunks) {
  problem pr = {.op = op, .p = p, .ndim = 2, .S = rows, .B = 1, .K = 24, .N = 20, .F = 12};
  rng r = {seed()};
  pr.bf16 = bf16;
  pr.split = pr.unit = pr.bias = 1;
  pr.chunks = chunks;
  pr.acc = row_has(op, "acc") && chunks % 2;
  pr.grad_f32 = row_has(op, "acc") && chunks >= 2;
  pr.gated = row_has(op, "gated") && chunks == 3;
  pr.act = row_has(op, "act") ? ACT_SILU : ACT_NONE;
  pr.seq = row_has(op, "seq") ? rows : 0;
  problem_fill(&pr, &r);
  return pr;
}

TEST(chunks, of_any_number_give_the_same) {
  static const uint32_t ops[] = {LAM_OP_linear_col_dgrad, LAM_OP_linear_col_bwd,
                                 LAM_OP_linear_row,       LAM_OP_ffn,
                                 LAM_OP_ffn_dgrad,        LAM_OP_ffn_bwd};
  rng r = {seed()};
  for (size_t i = 0; i < sizeof ops / sizeof *ops; i++) FOR_EACH(p, 1, 2, 3) FOR_EACH(bf16, 0, 1) {
      if (!can_run(p) || is_spared(&r)) continue;
      problem problems[4];
      ranks all = {.p = p, .open = open_shm};
      for (int chunks = 0; chunks < 4; chunks++)
        problems[chunks] = many_rows(520, ops[i], p, bf16, chunks);
      problems_run(&all, problems, 4);
      for (int chunks = 0; chunks < 4; chunks++) problem_free(&problems[chunks]);
    }
}

/* On a device: rows that are the ranks' own, or all; what is summed and gathered goes to other
 * streams, however small it is. */
TEST(chunks, run_beside_what_moves_and_give_the_same) {
  static const uint32_t ops[] = {LAM_OP_linear_col,       LAM_OP_linear_col_bwd, LAM_OP_linear_row,
                                 LAM_OP_linear_row_dgrad, LAM_OP_linear_row_bwd, LAM_OP_ffn,
                                 LAM_OP_ffn_dgrad,        LAM_OP_ffn_bwd};
  if (place_is_host()) SKIP("the host's memory has no streams");
  const int64_t as_ever = lam_peer_aside_from;
  lam_peer_aside_from = 0;
  for (size_t i = 0; i < sizeof ops / sizeof *ops; i++) FOR_EACH(p, 2, 4) {
      ranks all = {.p = p, .open = open_shm};
      if (!can_run(p)) continue;
      problem both[] = {many_rows(130, ops[i], p, p == 4, 2), many_rows(300, ops[i], p, p == 2, 3)};
      problems_run(&all, both, 2);
      problem_free(&both[0]), problem_free(&both[1]);
    }
  lam_peer_aside_from = as_ever;
}

TEST(chunks, of_the_hidden_part_add_up_to_its_weight_gradient) {
  rng r = {seed()};
  FOR_EACH(op, LAM_OP_ffn_wgrad, LAM_OP_ffn_bwd) FOR_EACH(p, 1, 2) FOR_EACH(bf16, 0, 1) {
    if (!can_run(p) || is_spared(&r)) continue;
    problem problems[4];
    ranks all = {.p = p, .open = open_shm};
    for (int i = 0; i < 4; i++) problems[i] = many_rows(1100, (uint32_t)op, p, bf16, i);
    problems_run(&all, problems, 4);
    for (int i = 0; i < 4; i++) problem_free(&problems[i]);
  }
}

static uint64_t told_wgrad_scratch(int64_t rows) {
  int64_t dy_shape[] = {rows, 8}, aux_shape[] = {rows, 64};
  const DLTensor dy = {NULL, {kDLCPU, 0}, 2, {kDLFloat, 32, 1}, dy_shape, NULL, 0};
  const DLTensor aux = {NULL, {kDLCPU, 0}, 2, {kDLFloat, 32, 1}, aux_shape, NULL, 0};
  const DLTensor *inputs[] = {&dy, &dy, &aux, &aux};
  lam_inferred told = LAM_INFERRED_INIT;
  lam_call call = LAM_CALL_INIT;
  call.op = LAM_OP_ffn_wgrad;
  call.inputs = inputs;
  call.n_inputs = 4;
  return CHECK_OK(lam_infer(NULL, &call, &told)) ? told.scratch_bytes : 0;
}

TEST(chunks, bound_the_scratch_of_ffn_wgrad) {
  CHECK(told_wgrad_scratch(1023) > told_wgrad_scratch(512));
  CHECK_EQ(told_wgrad_scratch(1 << 20), told_wgrad_scratch(512));
}

/* How many chunks lam_infer tells for linear_row of so many rows. */
static uint32_t told_chunks(const lam_group *g, int64_t rows, int64_t chunks) {
  int64_t x_shape[] = {rows, 8}, w_shape[] = {8, 8};
  const DLTensor x = {NULL, {kDLCPU, 0}, 2, {kDLFloat, 32, 1}, x_shape, NULL, 0};
  const DLTensor w = {NULL, {kDLCPU, 0}, 2, {kDLFloat, 32, 1}, w_shape, NULL, 0};
  const DLTensor *inputs[] = {&x, &w};
  const lam_attr attrs[] = {lam_attr_i(g ? lam_group_handle(g) : 0),
                            lam_attr_i(1),
                            lam_attr_i(0),
                            lam_attr_i(0),
                            lam_attr_i(0),
                            lam_attr_i(chunks)};
  lam_inferred told = LAM_INFERRED_INIT;
  lam_call call = LAM_CALL_INIT;
  call.op = LAM_OP_linear_row;
  call.inputs = inputs;
  call.attrs = attrs;
  call.n_inputs = 2;
  call.n_attrs = 6;
  return CHECK_OK(lam_infer(NULL, &call, &told)) ? told.n_chunks : 0;
}

static void ask(int rank, int size, void *arg) {
  ranks *all = arg;
  lam_group *g = NULL;
  (void)size;
  REQUIRE_OK(open_shm(all, NULL, rank, &g));
  CHECK_EQ(told_chunks(g, 0, 0), 1);
  CHECK_EQ(told_chunks(g, 511, 0), 1);
  CHECK_EQ(told_chunks(g, 512, 0), 2);
  CHECK_EQ(told_chunks(g, 2048, 0), 8);
  CHECK_EQ(told_chunks(g, 512, 5), 5);
  CHECK_EQ(told_chunks(g, 3, 5), 3); /* no chunk without a row */
  CHECK_EQ(told_chunks(NULL, 2048, 0), 1);
  lam_group_destroy(g);
}

TEST(chunks, are_chosen_by_size_and_told) {
  ranks all = {.p = 2, .open = open_shm};
  REQUIRE_OK(lam_group_id_create(&all.id));
  run_threads(2, ask, &all);
}
