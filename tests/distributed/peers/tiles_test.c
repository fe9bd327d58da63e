/* tiles_test.c: products in chunks on the device: what runs beside what, what is left to it, and
 * into how many chunks a call is cut, and why.
 *
 * Each rank has a card. A table in the place of the device's notes what each rank queues, in its
 * order: g  a product on the call's stream, with how many multiprocessors it leaves to others s  a
 * sum or gather on another stream, which waits for what the call's stream has been given j  the
 * call's stream waits for that Emulated: it never ran on a GPU. Leaves what comes out to
 * tests/conformance/ops/tiles_test.c. */
#include <stdlib.h>
#include <string.h>

#include "plugin/comm/peer/peer.h"
#include "tests/distributed/peers/cards.h"

enum { NOTES = 200 };
static _Thread_local char noted[NOTES];
static _Thread_local int32_t spares[NOTES], n_spares;
static _Thread_local bool is_noting;

static void note(char event) {
  if (is_noting && strlen(noted) < NOTES - 1) noted[strlen(noted)] = event;
}

/* -- the device, watched -- */

static lam_status note_gemm(const lam_workers *w, const lam_gemm *g, void *stream) {
  note('g');
  if (is_noting && n_spares < NOTES) spares[n_spares++] = g->more ? g->more->spares : 0;
  return lam_device_cuda.gemm->run(w, g, stream);
}
static lam_status note_forked(lam_peer_line *line, int slot, void *side) {
  note('s');
  return lam_device_cuda.peer->forked(line, slot, side);
}
static lam_status note_join(lam_peer_line *line, int slot, void *stream) {
  note('j');
  return lam_device_cuda.peer->join(line, slot, stream);
}
static lam_status note_start(lam_link *l, const lam_link_op *ops, int n, lam_link_after after) {
  note('s');
  return lam_device_cuda.nccl->start(l, ops, n, after);
}
static lam_status note_link_join(lam_link *l, uint64_t number, void *stream) {
  note('j');
  return lam_device_cuda.nccl->join(l, number, stream);
}

static lam_device_gemm_table gemm;
static lam_device_peer peer;
static lam_device_nccl nccl;
static lam_device watched;

static const lam_device *watch(void) {
  gemm = *lam_device_cuda.gemm, peer = *lam_device_cuda.peer, nccl = *lam_device_cuda.nccl;
  gemm.run = note_gemm;
  peer.forked = note_forked, peer.join = note_join;
  nccl.start = note_start, nccl.join = note_link_join;
  watched = lam_device_cuda;
  lam_peer_aside_from = 0; /* small operands too */
  watched.gemm = &gemm, watched.peer = &peer, watched.nccl = &nccl;
  return &watched;
}

static world each_on(const char *engine) {
  return (world){.chance = seed(), .each = true, .engine = engine, .device = watch()};
}

typedef struct run_of {
  const world *w;
  int ranks;
  void (*fn)(rank *r);
  const void *arg;
} run_of;

static void in_process(int number, int size, void *arg) {
  const run_of *o = arg;
  (void)number, (void)size;
  setenv("LAMELLA_ALGORITHMS", "off", 1);
  on_cards(o->w, o->ranks, o->fn, o->arg);
}

/* In a process of its own: what Lamella knows of a card outlives the stand-in's. */
static void on_new_cards(const world *w, int ranks, void (*fn)(rank *r), const void *arg) {
  run_processes(1, in_process, &(run_of){w, ranks, fn, arg});
}

/* -- calls -- */

typedef struct operand {
  DLTensor t;
  int64_t shape[2];
} operand;

static operand bf16(const rank *r, void *data, int64_t rows, int64_t cols) {
  operand o = {.shape = {rows, cols}};
  o.t = (DLTensor){data, {2, r->card}, 2, {kDLBfloat, 16, 1}, NULL, NULL, 0};
  return o;
}

typedef struct layer {
  operand in[8], out[4];
  int n_in, n_out;
  lam_attr attrs[12];
  uint32_t n_attrs, op;
} layer;

/* What the call would be cut into, or, where it has data, its run. */
static lam_status ask_or_run(const rank *r, layer *l, lam_inferred *told) {
  const DLTensor *ins[8];
  DLTensor *outs[4];
  lam_call c = LAM_CALL_INIT;
  for (int i = 0; i < l->n_in; i++) {
    l->in[i].t.shape = l->in[i].shape;
    ins[i] = l->in[i].t.ndim ? &l->in[i].t : NULL;
  }
  for (int i = 0; i < l->n_out; i++) {
    l->out[i].t.shape = l->out[i].shape;
    outs[i] = l->out[i].t.ndim ? &l->out[i].t : NULL;
  }
  c.op = l->op;
  c.inputs = ins, c.outputs = outs, c.attrs = l->attrs;
  c.n_inputs = (uint32_t)l->n_in, c.n_outputs = (uint32_t)l->n_out, c.n_attrs = l->n_attrs;
  c.stream = r->stream;
  return told ? lam_infer(NULL, &c, told) : lam_run(NULL, &c);
}

enum { GROUP, SPLIT, SEQ, TOTAL, UNIT, CHUNKS, ROW_ATTRS };

/* linear_row: x [T, K]  w [N, K]  y [T, N] */
static layer linear_row(const rank *r, int64_t t, int64_t k, int64_t n, int64_t chunks) {
  layer l = {.op = LAM_OP_linear_row, .n_in = 2, .n_out = 1, .n_attrs = ROW_ATTRS};
  l.in[0] = bf16(r, NULL, t, k), l.in[1] = bf16(r, NULL, n, k), l.out[0] = bf16(r, NULL, t, n);
  l.attrs[GROUP] = lam_attr_i(lam_group_handle(r->g));
  l.attrs[SPLIT] = lam_attr_i(1);
  l.attrs[SEQ] = l.attrs[UNIT] = l.attrs[TOTAL] = lam_attr_default();
  l.attrs[CHUNKS] = lam_attr_i(chunks);
  return l;
}

static void give_memory(rank *r, layer *l) {
  for (int i = 0; i < l->n_in + l->n_out; i++) {
    operand *o = i < l->n_in ? &l->in[i] : &l->out[i - l->n_in];
    const uint64_t bytes = (uint64_t)(o->shape[0] * o->shape[1] * 2);
    void *zeros = calloc(1, bytes);
    if (o->t.ndim) o->t.data = to_card(r, zeros, bytes);
    free(zeros);
  }
}

static void run_noted(rank *r, layer *l) {
  memset(noted, 0, sizeof noted);
  n_spares = 0;
  is_noting = true;
  CHECK_OK(ask_or_run(r, l, NULL));
  is_noting = false;
}

/* -- what runs beside what -- */

/* Some products, each of which leaves as many: "0 16 16". */
static void check_spares(int32_t first, int32_t others) {
  for (int i = 0; i < n_spares; i++) CHECK_EQ(spares[i], i == 0 ? first : others);
}

static int32_t taken_by(const rank *r) {
  return strcmp(way(r), "nccl") == 0 ? 16 : 32; /* NCCL_ALL_CTAS; lanes */
}

static void sum_in_chunks(rank *r) {
  layer l = linear_row(r, 484, 8, 60, 3);
  give_memory(r, &l);
  run_noted(r, &l);
  CHECK_STR(noted,
            "gs"
            "gsj"
            "gsj"
            "j");
  CHECK_EQ(n_spares, 3);
  check_spares(0, taken_by(r));
  l.attrs[CHUNKS] = lam_attr_i(1); /* nothing beside it: nothing is left */
  run_noted(r, &l);
  CHECK_STR(noted, "gsj");
  check_spares(0, 0);
}

TEST(tiles, the_sum_of_a_chunk_may_run_beside_the_next_product_which_leaves_it_room) {
  FOR_EACH(p, 2, 3) FOR_EACH(by_nccl, 0, 1) {
    const world w = each_on(by_nccl ? "nccl" : NULL);
    on_new_cards(&w, p, sum_in_chunks, NULL);
  }
}

/* ---- Rows from the ranks that have them --------------------------------------------------------- */

enum { WHOLE = 520 };

static operand share(const rank *r, int64_t cols) {
  return bf16(r, NULL, WHOLE / r->size + (r->rank < WHOLE % r->size), cols);
}

/* x [T_r, K]  w [N, K]  y [T, N] */
static layer linear_col(const rank *r, int64_t chunks) {
  layer l = {.op = LAM_OP_linear_col, .n_in = 2, .n_out = 1, .n_attrs = 8};
  l.in[0] = share(r, 36), l.in[1] = bf16(r, NULL, 24, 36), l.out[0] = bf16(r, NULL, WHOLE, 24);
  for (int i = 0; i < 8; i++) l.attrs[i] = lam_attr_default();
  l.attrs[0] = lam_attr_i(lam_group_handle(r->g));
  l.attrs[4] = lam_attr_i(WHOLE);
  l.attrs[7] = lam_attr_i(chunks);
  return l;
}

/* All that comes is queued before the first product, which waits for none of it. */
static void gather_by_source(rank *r) {
  layer l = linear_col(r, r->size);
  give_memory(r, &l);
  run_noted(r, &l);
  CHECK_STR(noted, r->size == 2 ? "sgjg" : "ssgjgjg");
  CHECK_EQ(n_spares, r->size);
  for (int i = 0; i < n_spares; i++) CHECK_EQ(spares[i], i < r->size - 1 ? taken_by(r) : 0);
  l.attrs[7] = lam_attr_i(1);
  run_noted(r, &l);
  CHECK_STR(noted, "sjg");
  check_spares(0, 0);
}

TEST(tiles, own_rows_are_multiplied_while_others_come_and_each_ranks_when_they_have) {
  FOR_EACH(p, 2, 3) FOR_EACH(by_nccl, 0, 1) {
    const world w = each_on(by_nccl ? "nccl" : NULL);
    on_new_cards(&w, p, gather_by_source, NULL);
  }
}

/* dy [T, N]  x [T_r, K]  w [N, K]  dx [T_r, K]  dw [N, K] */
static void backward(rank *r) {
  layer l = {.op = LAM_OP_linear_col_bwd, .n_in = 3, .n_out = 2, .n_attrs = 3};
  l.in[0] = bf16(r, NULL, WHOLE, 24), l.in[1] = share(r, 36), l.in[2] = bf16(r, NULL, 24, 36);
  l.out[0] = share(r, 36), l.out[1] = bf16(r, NULL, 24, 36);
  l.attrs[0] = lam_attr_i(lam_group_handle(r->g));
  l.attrs[1] = lam_attr_i(WHOLE);
  l.attrs[2] = lam_attr_i(1);
  give_memory(r, &l);
  run_noted(r, &l);
  CHECK_STR(noted,
            "sg" /* dx's product beside the gather of x */
            "sj"
            "gj"); /* dw's beside the sum of dx */
  CHECK_EQ(n_spares, 2);
  check_spares(taken_by(r), taken_by(r));
}

TEST(tiles, backward_gathers_beside_one_product_and_sums_beside_the_other) {
  FOR_EACH(by_nccl, 0, 1) {
    const world w = each_on(by_nccl ? "nccl" : NULL);
    on_new_cards(&w, 2, backward, NULL);
  }
}

/* What forks off the call's stream comes back to it, or a capture could not end. */
static void capture(rank *r, layer *l) {
  cudaGraph_t graph = NULL;
  cudaGraphExec_t exec = NULL;
  give_memory(r, l);
  CHECK_OK(ask_or_run(r, l, NULL)); /* what is made once is made */
  from_card(r, NULL, NULL, 0);
  CHECK_EQ(cudaStreamBeginCapture(r->stream, cudaStreamCaptureModeThreadLocal), cudaSuccess);
  CHECK_OK(ask_or_run(r, l, NULL));
  REQUIRE(cudaStreamEndCapture(r->stream, &graph) == cudaSuccess);
  CHECK_EQ(cudaGraphInstantiate(&exec, graph, 0), cudaSuccess);
  for (int i = 0; i < 3; i++) CHECK_EQ(cudaGraphLaunch(exec, r->stream), cudaSuccess);
  from_card(r, NULL, NULL, 0);
  CHECK_EQ(cudaGraphExecDestroy(exec), cudaSuccess);
  CHECK_EQ(cudaGraphDestroy(graph), cudaSuccess);
}

static void capture_both(rank *r) {
  layer sum = linear_row(r, 484, 8, 60, 3), gather = linear_col(r, r->size);
  capture(r, &sum);
  capture(r, &gather);
}

TEST(tiles, are_captured_into_graphs) {
  FOR_EACH(by_nccl, 0, 1) {
    const world w = each_on(by_nccl ? "nccl" : NULL);
    on_new_cards(&w, 2, capture_both, NULL);
  }
}

/* What leaves room is told to cuBLASLt, and no longer than the sum is under way. */
static void count_targets(rank *r) {
  layer l = linear_row(r, 484, 8, 60, 3);
  give_memory(r, &l);
  CHECK_OK(ask_or_run(r, &l, NULL));
  CHECK_EQ(standin_count().sm_target, 132 - 16);
}

TEST(tiles, cublaslt_is_told_how_many_multiprocessors_are_left) {
  const world w = each_on("nccl");
  on_new_cards(&w, 2, count_targets, NULL);
}

/* -- how many chunks, and why -- */

static uint32_t told_chunks(const rank *r, int64_t t, int64_t n, int64_t asked,
                            char why[LAM_WHY_BYTES]) {
  lam_inferred told = LAM_INFERRED_INIT;
  layer l = linear_row(r, t, n / r->size, n, asked);
  told.chunks_why = why;
  CHECK_OK(ask_or_run(r, &l, &told));
  return told.n_chunks;
}

static bool begins(const char *text, const char *with) {
  return strncmp(text, with, strlen(with)) == 0;
}

static void meet_once(rank *r) {
  layer l = linear_row(r, 8, 8, 8, 0);
  give_memory(r, &l);
  CHECK_OK(ask_or_run(r, &l, NULL));
}

/* Of rows that are gathered. */
static void choose_by_source(const rank *r) {
  char why[LAM_WHY_BYTES] = "";
  lam_inferred told = LAM_INFERRED_INIT;
  layer l = linear_col(r, 0);
  const int64_t t = 16384, k = 8192, n = 8192;
  l.in[0].shape[0] = t / r->size, l.in[0].shape[1] = l.in[1].shape[1] = k;
  l.in[1].shape[0] = l.out[0].shape[1] = n / r->size, l.out[0].shape[0] = t;
  l.attrs[4] = lam_attr_i(t);
  l.attrs[5] = lam_attr_i(n);
  told.chunks_why = why;
  CHECK_OK(ask_or_run(r, &l, &told));
  NOTE("%s", why);
  CHECK_EQ(told.n_chunks, (uint32_t)r->size);
  CHECK(begins(why, "by the figures of this card: "));
}

static void choose(rank *r) {
  char why[LAM_WHY_BYTES] = "";
  if (!r->g->pace) {
    CHECK_EQ(told_chunks(r, 8192, 8192, 0, why), 1);
    CHECK_STR(why, "the ranks have not met on this device yet: their first call is not cut");
  }
  meet_once(r);
  const uint32_t n = told_chunks(r, 8192, 8192, 0, why);
  NOTE("%s", why);
  CHECK(n > 1);
  CHECK(begins(why, "by the figures of this card: "));
  CHECK_EQ(told_chunks(r, 256, 8192, 0, why), 1);
  CHECK_STR(why, "chunks of these 256 rows would be less than a wave: 132 tiles of 128 x 256");
  CHECK_EQ(told_chunks(r, 65536, 256, 0, why), 1);
  CHECK(begins(why, "more would take longer: "));
  CHECK_EQ(told_chunks(r, 8192, 8192, 5, why), 5);
  CHECK_STR(why, "attribute chunks is 5");
  choose_by_source(r);
}

TEST(tiles, are_chosen_from_figures_and_the_reason_is_told) {
  FOR_EACH(by_nccl, 0, 1) {
    const world w = each_on(by_nccl ? "nccl" : NULL);
    on_new_cards(&w, 2, choose, NULL);
  }
}

static void choose_one(rank *r) {
  char why[LAM_WHY_BYTES] = "";
  meet_once(r);
  CHECK_EQ(told_chunks(r, 8192, 8192, 0, why), 1);
  CHECK_STR(why, r->arg);
}

TEST(tiles, are_not_cut_where_nothing_is_gained) {
  const world shared = {.chance = seed()}, apart = {.chance = seed(), .apart = true};
  on_new_cards(&shared, 2, choose_one,
               "ranks share a card: none of it is idle while a sum is under way");
  on_new_cards(&apart, 2, choose_one, "the group's data goes through the host, which waits for it");
  on_new_cards(&shared, 1, choose_one, "one rank has nobody to sum or gather with");
}
