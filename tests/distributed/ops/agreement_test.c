/* agreement_test.c: ranks that do not call the same: every one of them is told so, and by what.
 *
 * Each case gives rank 0 one call and the other ranks another. All ranks get MISMATCH with the same
 * words, and the same status for whatever they call next. */
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>

#include "kernels/device.h"
#include "tests/distributed/ops/member.h"

#define I lam_attr_i
enum { K = 6, N = 4, MOST = 512 };

typedef struct what { /* of linear_row or all_reduce */
  uint32_t op;
  int64_t rows, chunks, seq;
  DLDataType type;
} what;

static float in_data[MOST], weight[MOST], out_data[MOST];

static lam_status call_it(const member *m, const what *c) {
  tensor x, w, y;
  TENSOR(&x, in_data, c->type, c->rows, c->op == LAM_OP_all_reduce ? N : K);
  TENSOR(&w, weight, c->type, N, K);
  const int64_t mine = c->rows / m->size + (m->rank < c->rows % m->size);
  TENSOR(&y, out_data, c->type, c->seq ? mine : c->rows, N);
  if (c->op == LAM_OP_all_reduce) return RUN(m, all_reduce, LIST(&x.dl), LIST(&y.dl), LIST({0}));
  return RUN(m, linear_row, LIST(&x.dl, &w.dl), LIST(&y.dl),
             LIST(I(1), I(c->seq), I(0), I(0), I(c->chunks)));
}

typedef struct ranks {
  lam_group_id id;
  what first, others;
  char words[2][100];    /* that the message must contain */
  char (*messages)[512]; /* [rank], shared */
} ranks;

static void disagree(int rank, int size, void *arg) {
  ranks *r = arg;
  const what *mine = rank == 0 ? &r->first : &r->others;
  member m;
  REQUIRE_OK(member_join(&m, &r->id, rank, size));
  CHECK_EQ(call_it(&m, mine), LAM_MISMATCH);
  CHECK_CONTAINS(lam_last_error(), r->words[0]);
  CHECK_CONTAINS(lam_last_error(), r->words[1]);
  snprintf(r->messages[rank], 512, "%s", lam_last_error());
  CHECK_EQ(call_it(&m, &r->first), LAM_MISMATCH);
  member_leave(&m);
}

static void run_disagreement(what first, what others, const char *a, const char *b) {
  FOR_EACH(p, 2, 3) {
    ranks r = {.first = first, .others = others};
    snprintf(r.words[0], sizeof r.words[0], "%s", a);
    snprintf(r.words[1], sizeof r.words[1], "%s", b);
    REQUIRE_OK(lam_group_id_create(&r.id));
    r.messages = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    run_processes(p, disagree, &r);
    for (int i = 1; i < p; i++) CHECK_STR(r.messages[i], r.messages[0]);
    munmap(r.messages, 4096);
  }
}

static const what usual = {LAM_OP_linear_row, 5, 1, 0, {kDLFloat, 32, 1}};

TEST(agreement, is_missed_where_operators_differ) {
  what other = usual;
  other.op = LAM_OP_all_reduce;
  run_disagreement(usual, other, "linear_row f32 [5, 4]", "all_reduce f32 [5, 4]");
}
TEST(agreement, is_missed_where_shapes_differ) {
  what other = usual;
  other.rows = 7;
  run_disagreement(usual, other, "linear_row f32 [5, 4]", "linear_row f32 [7, 4]");
}
TEST(agreement, is_missed_where_dtypes_differ) {
  what other = usual;
  other.type = bf16;
  run_disagreement(usual, other, "linear_row f32", "linear_row bf16");
}
TEST(agreement, is_missed_where_chunks_differ) {
  what other = usual;
  other.chunks = 2;
  run_disagreement(usual, other, "linear_row", "must agree: 2 and 1");
}
TEST(agreement, is_missed_where_only_some_split_the_sequence) {
  what other = usual;
  other.seq = usual.rows;
  run_disagreement(usual, other, "linear_row", "must agree: -1 and 1");
}

/* -- what is refused before peers know of it -- */

static void refused_first(int rank, int size, void *arg) {
  ranks *r = arg;
  member m;
  tensor x, w, y;
  REQUIRE_OK(member_join(&m, &r->id, rank, size));
  TENSOR(&x, in_data, f32, 5, K + 1);
  TENSOR(&w, weight, f32, N, K);
  TENSOR(&y, out_data, f32, 5, N);
  if (rank == 0) {
    CHECK_EQ(RUN(&m, linear_row, LIST(&x.dl, &w.dl), LIST(&y.dl), LIST(I(1))),
             LAM_INVALID_ARGUMENT);
    CHECK_STR(lam_last_error(),
              "linear_row: this rank's share of x's last dimension is 7, expected "
              "6: w's in features");
  }
  CHECK_OK(call_it(&m, &r->first));
  member_leave(&m);
}

TEST(agreement, outlives_an_argument_that_one_rank_refused) {
  ranks r = {.first = usual};
  REQUIRE_OK(lam_group_id_create(&r.id));
  run_processes(2, refused_first, &r);
}

/* -- a failure after the peers were told -- */

static lam_status fail_gemm(const lam_device *d, const char *slot) {
  (void)d;
  if (strcmp(slot, "gemm") != 0) return LAM_OK;
  return lam_fail(LAM_INTERNAL, "a gemm that fails for the test");
}

static void one_fails(int rank, int size, void *arg) {
  ranks *r = arg;
  member m;
  REQUIRE_OK(member_join(&m, &r->id, rank, size));
  CHECK_OK(call_it(&m, &r->first));
  if (rank == 1) lam_device_on_call = fail_gemm;
  CHECK_EQ(call_it(&m, &r->first), LAM_INTERNAL);
  CHECK_CONTAINS(lam_last_error(), "a gemm that fails for the test");
  member_leave(&m);
}

TEST(agreement, ends_for_all_when_one_fails_in_the_middle) {
  FOR_EACH(chunks, 1, 3) {
    ranks r = {.first = usual};
    r.first.chunks = chunks;
    REQUIRE_OK(lam_group_id_create(&r.id));
    run_processes(3, one_fails, &r);
  }
}
