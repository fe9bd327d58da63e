/* vocab_test.c: what the vocabulary rows refuse, and with which words; how often they meet; what
 * ranks that disagree are told.
 * Leaves their results to tests/conformance/ops. */
#include <math.h>
#include <string.h>

#include "tests/distributed/ops/member.h"

#define I lam_attr_i
enum { V = 10, K = 4 };
static const DLDataType i32 = {kDLInt, 32, 1}, i64 = {kDLInt, 64, 1}, u8 = {kDLUInt, 8, 1};

static float data[4][128]; /* zeros */
static float out[128], more[128];

static member alone(void) {
  lam_group_id id;
  member m = {0};
  CHECK_OK(lam_group_id_create(&id));
  CHECK_OK(member_join(&m, &id, 0, 1));
  return m;
}

#define CHECK_REFUSED(expr, words)                                                         \
  do {                                                                                     \
    CHECK_EQ(expr, LAM_INVALID_ARGUMENT);                                                  \
    CHECK_STR(lam_last_error(), words);                                                    \
    for (int at = 0; at < 128; at++) CHECK(out[at] == 0 && more[at] == 0); /* untouched */ \
  } while (0)

/* -- one rank's own mistakes -- */

TEST(embedding_vocab, names_an_id_outside_and_its_place) {
  int32_t narrow[] = {0, 9, 3, 1, 2, 10};
  int64_t wide[] = {0, 9, -1, 1, 2, 3};
  int32_t one = V;
  member m = alone();
  tensor ids, w, y;
  TENSOR(&w, data[0], f32, V, K);
  TENSOR(&y, out, f32, 2, 3, K);
  TENSOR(&ids, narrow, i32, 2, 3);
  CHECK_REFUSED(RUN(&m, embedding_vocab, LIST(&ids.dl, &w.dl), LIST(&y.dl), LIST({0})),
                "embedding_vocab: ids[1, 2] is 10, expected 0 to 9");
  TENSOR(&ids, wide, i64, 2, 3);
  CHECK_REFUSED(RUN(&m, embedding_vocab, LIST(&ids.dl, &w.dl), LIST(&y.dl), LIST({0})),
                "embedding_vocab: ids[0, 2] is -1, expected 0 to 9");
  TENSOR(&ids, &one, i32, 1);
  ids.dl.ndim = 0;
  TENSOR(&y, out, f32, K);
  CHECK_REFUSED(RUN(&m, embedding_vocab, LIST(&ids.dl, &w.dl), LIST(&y.dl), LIST({0})),
                "embedding_vocab: ids is 10, expected 0 to 9");
  member_leave(&m);
}

TEST(embedding_vocab, refuses_what_cannot_be_looked_up) {
  int32_t indices[6] = {0};
  member m = alone();
  tensor ids, w, y, packed;
  TENSOR(&ids, data[1], f32, 2, 3);
  TENSOR(&w, data[0], f32, V, K);
  TENSOR(&y, out, f32, 2, 3, K);
  CHECK_REFUSED(RUN(&m, embedding_vocab, LIST(&ids.dl, &w.dl), LIST(&y.dl), LIST({0})),
                "embedding_vocab: ids: found f32, expected i32 or i64");
  TENSOR(&ids, indices, i32, 2, 3);
  TENSOR(&packed, data[0], u8, V, K);
  CHECK_REFUSED(RUN(&m, embedding_vocab, LIST(&ids.dl, &packed.dl), LIST(&y.dl), LIST({0})),
                "embedding_vocab: w: found u8, expected f32 or bf16");
  TENSOR(&y, out, bf16, 2, 3, K);
  CHECK_REFUSED(RUN(&m, embedding_vocab, LIST(&ids.dl, &w.dl), LIST(&y.dl), LIST({0})),
                "embedding_vocab: y: found [2, 3, 4] bf16, expected [2, 3, 4] f32");
  TENSOR(&y, out, f32, 2, 3, K);
  CHECK_REFUSED(RUN(&m, embedding_vocab, LIST(&ids.dl, &w.dl), LIST(&y.dl), LIST(I(12))),
                "embedding_vocab: w's rows is 10, expected 12: this rank's share of total by unit");
  TENSOR(&y, out, f32, 4, 3, K);
  CHECK_REFUSED(RUN(&m, embedding_vocab, LIST(&ids.dl, &w.dl), LIST(&y.dl), LIST(I(0), I(0), I(4))),
                "embedding_vocab: ids' first dimension is 2, expected 4: attribute seq");
  member_leave(&m);
}

TEST(embedding_vocab_wgrad, refuses_ids_that_do_not_fit) {
  int32_t indices[6] = {0, 0, 0, 0, 0, V + 1};
  member m = alone();
  tensor ids, dy, dw;
  TENSOR(&dy, data[0], f32, 6, K);
  TENSOR(&ids, indices, i32, 5);
  TENSOR(&dw, out, f32, V, K);
  CHECK_REFUSED(RUN(&m, embedding_vocab_wgrad, LIST(&dy.dl, &ids.dl), LIST(&dw.dl), LIST(I(V))),
                "embedding_vocab_wgrad: the number of ids is 5, expected 6: that of dy's rows");
  TENSOR(&ids, indices, i32, 6);
  CHECK_REFUSED(RUN(&m, embedding_vocab_wgrad, LIST(&dy.dl, &ids.dl), LIST(&dw.dl), LIST(I(V))),
                "embedding_vocab_wgrad: ids[5] is 11, expected 0 to 9");
  CHECK_REFUSED(RUN(&m, embedding_vocab_wgrad, LIST(&dy.dl, &ids.dl), LIST(&dw.dl), LIST({0})),
                "embedding_vocab_wgrad: dw: found [10, 4] f32, expected [0, 4] f32");
  member_leave(&m);
}

TEST(cross_entropy_vocab, names_a_target_outside_and_what_is_ignored) {
  int64_t indices[] = {0, -100, 7, 10};
  member m = alone();
  tensor logits, targets, loss, lse;
  TENSOR(&logits, data[0], f32, 4, V);
  TENSOR(&targets, indices, i64, 4);
  TENSOR(&loss, out, f32, 4);
  TENSOR(&lse, more, f32, 4);
  CHECK_REFUSED(RUN(&m, cross_entropy_vocab, LIST(&logits.dl, &targets.dl), LIST(&loss.dl, &lse.dl),
                    LIST({0})),
                "cross_entropy_vocab: targets[3] is 10, expected 0 to 9, or -100 (ignored)");
  CHECK_REFUSED(RUN(&m, cross_entropy_vocab, LIST(&logits.dl, &targets.dl), LIST(&loss.dl, &lse.dl),
                    LIST(I(0), I(0), I(10))),
                "cross_entropy_vocab: targets[1] is -100, expected 0 to 9, or 10 (ignored)");
  TENSOR(&targets, indices, i64, 3);
  CHECK_REFUSED(
      RUN(&m, cross_entropy_vocab, LIST(&logits.dl, &targets.dl), LIST(&loss.dl, &lse.dl),
          LIST({0})),
      "cross_entropy_vocab: the number of targets is 3, expected 4: that of logits' rows");
  member_leave(&m);
}

TEST(cross_entropy_vocab_bwd, refuses_values_that_are_not_per_token) {
  int32_t indices[4] = {0};
  member m = alone();
  tensor dloss, logits, targets, lse, dlogits;
  TENSOR(&dloss, data[0], f32, 4);
  TENSOR(&logits, data[1], bf16, 4, V);
  TENSOR(&targets, indices, i32, 4);
  TENSOR(&lse, data[2], bf16, 4);
  TENSOR(&dlogits, out, bf16, 4, V);
#define BACKWARD                                                                      \
  RUN(&m, cross_entropy_vocab_bwd, LIST(&dloss.dl, &logits.dl, &targets.dl, &lse.dl), \
      LIST(&dlogits.dl), LIST({0}))
  CHECK_REFUSED(BACKWARD, "cross_entropy_vocab_bwd: lse: found bf16, expected f32");
  TENSOR(&lse, data[2], f32, 5);
  CHECK_REFUSED(
      BACKWARD,
      "cross_entropy_vocab_bwd: the number of lse is 5, expected 4: that of logits' rows");
  TENSOR(&lse, data[2], f32, 4);
  TENSOR(&dloss, data[0], f32, 2);
  CHECK_REFUSED(
      BACKWARD,
      "cross_entropy_vocab_bwd: the number of dloss is 2, expected 4: that of logits' rows");
  TENSOR(&dloss, data[0], f32, 4);
  indices[2] = -1;
  CHECK_REFUSED(BACKWARD,
                "cross_entropy_vocab_bwd: targets[2] is -1, expected 0 to 9, or -100 (ignored)");
  member_leave(&m);
}

TEST(cross_entropy_vocab_bwd, may_write_over_its_logits) {
  int32_t indices[] = {3, -100};
  float values[2 * V], dlosses[] = {2, 5}, lses[] = {1, 1};
  rng r = {seed()};
  member m = alone();
  tensor dloss, logits, targets, lse, apart;
  for (int i = 0; i < 2 * V; i++) values[i] = rng_float(&r);
  TENSOR(&dloss, dlosses, f32, 2);
  TENSOR(&logits, values, f32, 2, V);
  TENSOR(&targets, indices, i32, 2);
  TENSOR(&lse, lses, f32, 2);
  TENSOR(&apart, data[3], f32, 2, V);
  const DLTensor *const in[8] = {&dloss.dl, &logits.dl, &targets.dl, &lse.dl};
  const lam_attr none[12] = {{0}};
  CHECK_OK(member_run(&m, LAM_OP_cross_entropy_vocab_bwd, in, (DLTensor *[8]){&apart.dl}, none));
  CHECK_OK(member_run(&m, LAM_OP_cross_entropy_vocab_bwd, in, (DLTensor *[8]){&logits.dl}, none));
  CHECK_SAME_BITS(values, data[3], sizeof values);
  for (int j = 0; j < V; j++) CHECK(values[V + j] == 0);
  member_leave(&m);
}

/* -- several ranks -- */

static uint64_t operations(const member *m) {
  lam_group_info info = LAM_GROUP_INFO_INIT;
  CHECK_OK(lam_group_get_info(m->g, &info));
  return info.operations;
}

/* Two ranks: V columns of logits each. */
static lam_status entropy(const member *m, int64_t ignore, int32_t target, int64_t n) {
  int32_t indices[3] = {target, 2 * (int32_t)n - 1, 0};
  tensor logits, targets, loss, lse;
  TENSOR(&logits, data[0], f32, 3, n);
  TENSOR(&targets, indices, i32, 3);
  TENSOR(&loss, out, f32, 3);
  TENSOR(&lse, more, f32, 3);
  return RUN(m, cross_entropy_vocab, LIST(&logits.dl, &targets.dl), LIST(&loss.dl, &lse.dl),
             LIST(I(0), I(0), I(ignore)));
}

static lam_status entropy_bwd(const member *m) {
  int32_t indices[3] = {0};
  tensor values, logits, targets, dlogits;
  TENSOR(&values, data[1], f32, 3);
  TENSOR(&logits, data[0], f32, 3, V);
  TENSOR(&targets, indices, i32, 3);
  TENSOR(&dlogits, data[2], f32, 3, V);
  return RUN(m, cross_entropy_vocab_bwd, LIST(&values.dl, &logits.dl, &targets.dl, &values.dl),
             LIST(&dlogits.dl), LIST({0}));
}

static void count_meetings(int rank, int size, void *arg) {
  member m;
  REQUIRE_OK(member_join(&m, arg, rank, size));
  const uint64_t before = operations(&m);
  CHECK_OK(entropy(&m, -100, 5, V));
  CHECK_EQ(operations(&m) - before, 1);
  CHECK(fabs(out[0] - log(2 * V)) < 1e-6 && fabs(more[2] - log(2 * V)) < 1e-6);
  CHECK_OK(entropy_bwd(&m));
  CHECK_EQ(operations(&m) - before, 1);
  member_leave(&m);
}

static void refuse_alike(int rank, int size, void *arg) {
  member m;
  REQUIRE_OK(member_join(&m, arg, rank, size));
  const uint64_t before = operations(&m);
  CHECK_EQ(entropy(&m, -100, 2 * V, V), LAM_INVALID_ARGUMENT);
  CHECK_STR(lam_last_error(),
            "cross_entropy_vocab: targets[0] is 20, expected 0 to 19, or -100 (ignored)");
  CHECK_EQ(operations(&m), before);
  CHECK_OK(entropy(&m, -100, 2 * V - 1, V));
  member_leave(&m);
}

static void other_ignore(int rank, int size, void *arg) {
  member m;
  REQUIRE_OK(member_join(&m, arg, rank, size));
  CHECK_EQ(entropy(&m, rank ? -1 : -100, 0, V), LAM_MISMATCH);
  CHECK_CONTAINS(lam_last_error(), "must agree: -1 and -100");
  member_leave(&m);
}

static void other_vocabulary(int rank, int size, void *arg) {
  member m;
  REQUIRE_OK(member_join(&m, arg, rank, size));
  CHECK_EQ(entropy(&m, -100, 0, rank ? V - 1 : V), LAM_MISMATCH);
  CHECK_CONTAINS(lam_last_error(), "cross_entropy_vocab f32 [3, 18]");
  CHECK_CONTAINS(lam_last_error(), "cross_entropy_vocab f32 [3, 20]");
  member_leave(&m);
}

static void other_embedding(int rank, int size, void *arg) {
  int32_t indices[3] = {0};
  const int64_t rows = rank ? V - 1 : V;
  member m;
  tensor ids, w, y;
  REQUIRE_OK(member_join(&m, arg, rank, size));
  TENSOR(&ids, indices, i32, 3);
  TENSOR(&w, data[0], f32, rows, K);
  TENSOR(&y, out, f32, 3, K);
  CHECK_EQ(RUN(&m, embedding_vocab, LIST(&ids.dl, &w.dl), LIST(&y.dl), LIST({0})), LAM_MISMATCH);
  CHECK_CONTAINS(lam_last_error(), "must agree: 18 and 20");
  member_leave(&m);
}

static void run_pair(check_rank_fn fn) {
  lam_group_id id;
  REQUIRE_OK(lam_group_id_create(&id));
  run_processes(2, fn, &id);
}

TEST(cross_entropy_vocab, meets_once_and_its_gradient_never) { run_pair(count_meetings); }
TEST(cross_entropy_vocab, outlives_a_target_that_all_refused) { run_pair(refuse_alike); }
TEST(cross_entropy_vocab, ends_where_ranks_ignore_different_targets) { run_pair(other_ignore); }
TEST(cross_entropy_vocab, ends_where_vocabularies_differ) { run_pair(other_vocabulary); }
TEST(embedding_vocab, ends_where_vocabularies_differ) { run_pair(other_embedding); }
