/* transfer_test.c: send_activation and recv_activation between processes.
 * send: group peer kind tag codec; recv: group peer kind tag shape dtype codec. */
#include <math.h>
#include <string.h>

#include "tests/distributed/ops/member.h"

enum { FORWARD, GRADIENT, ANY_TAG = -1 };
#define I lam_attr_i
#define TYPE(t) I((t).code | (t).bits << 8)

static lam_status send_to(const member *m, tensor *x, int64_t peer, int64_t kind, int64_t tag) {
  float zero = 0, out = NAN;
  tensor in, token;
  TENSOR(&in, &zero, f32, 1);
  TENSOR(&token, &out, f32, 1);
  const lam_status status = RUN(m, send_activation, LIST(&x->dl, &in.dl), LIST(&token.dl),
                                LIST(I(peer), I(kind), I(tag), I(0)));
  if (status == LAM_OK) CHECK(out == 0);
  return status;
}

static lam_status receive(const member *m, tensor *y, int64_t peer, int64_t kind, int64_t tag) {
  float zero = 0, out = NAN;
  tensor in, token;
  TENSOR(&in, &zero, f32, 1);
  TENSOR(&token, &out, f32, 1);
  const lam_status status =
      RUN(m, recv_activation, LIST(&in.dl), LIST(&y->dl, &token.dl),
          LIST(I(peer), I(kind), I(tag), lam_attr_ints(y->shape, (uint32_t)y->dl.ndim),
               TYPE(y->dl.dtype), I(0)));
  if (status == LAM_OK) CHECK(out == 0);
  return status;
}

/* Runs fn as two processes that are ranks 0 and 1 of a group. */
typedef void (*pair_fn)(const member *m);
typedef struct pair {
  lam_group_id id;
  pair_fn fn;
} pair;

static void join_and_run(int rank, int size, void *arg) {
  const pair *p = arg;
  member m;
  REQUIRE_OK(member_join(&m, &p->id, rank, size));
  p->fn(&m);
  member_leave(&m);
}

static void run_pair(pair_fn fn) {
  pair p = {.fn = fn};
  REQUIRE_OK(lam_group_id_create(&p.id));
  run_processes(2, join_and_run, &p);
}

static void fill(float *x, int n, float from) {
  for (int i = 0; i < n; i++) x[i] = from + (float)i;
}

/* -- what arrives -- */

static void round_trip(const member *m) {
  float there[24], back[24];
  tensor x, y;
  fill(there, 24, 100);
  TENSOR(&x, there, f32, 2, 3, 4);
  TENSOR(&y, back, f32, 2, 3, 4);
  if (m->rank == 0) {
    REQUIRE_OK(send_to(m, &x, 1, FORWARD, 7));
    REQUIRE_OK(receive(m, &y, 1, GRADIENT, 7));
    CHECK_SAME_BITS(there, back, sizeof back);
  } else {
    REQUIRE_OK(receive(m, &y, 0, FORWARD, 7));
    REQUIRE_OK(send_to(m, &y, 0, GRADIENT, 7));
  }
}
TEST(transfer, brings_an_activation_there_and_a_gradient_back) { run_pair(round_trip); }

static void two_kinds(const member *m) {
  float data[2], got[2];
  tensor a, b;
  fill(data, 2, (float)m->rank);
  if (m->rank == 0) {
    TENSOR(&a, data, f32, 1);
    TENSOR(&b, data + 1, f32, 1);
    REQUIRE_OK(send_to(m, &a, 1, FORWARD, ANY_TAG));
    REQUIRE_OK(send_to(m, &b, 1, GRADIENT, ANY_TAG));
  } else {
    TENSOR(&a, got, f32, 1);
    TENSOR(&b, got + 1, f32, 1);
    REQUIRE_OK(receive(m, &b, 0, GRADIENT, ANY_TAG)); /* the later one first */
    REQUIRE_OK(receive(m, &a, 0, FORWARD, ANY_TAG));
    CHECK(got[0] == 0 && got[1] == 1);
  }
}
TEST(transfer, keeps_the_two_kinds_apart) { run_pair(two_kinds); }

static void padded(const member *m) {
  float data[3][5], got[3][4];
  tensor x, y;
  fill(&data[0][0], 15, 0);
  TENSOR(&x, data, f32, 3, 4);
  TENSOR(&y, got, f32, 3, 4);
  x.strides[0] = 5;
  if (m->rank == 0) REQUIRE_OK(send_to(m, &x, 1, FORWARD, 0));
  if (m->rank == 1) {
    REQUIRE_OK(receive(m, &y, 0, FORWARD, 0));
    for (int i = 0; i < 3; i++) CHECK_SAME_BITS(got[i], data[i], sizeof got[i]);
  }
}
TEST(transfer, sends_rows_that_lie_apart) { run_pair(padded); }

static void nothing(const member *m) {
  tensor x;
  TENSOR(&x, NULL, bf16, 0, 8);
  CHECK_OK(m->rank == 0 ? send_to(m, &x, 1, FORWARD, 3) : receive(m, &x, 0, FORWARD, 3));
}
TEST(transfer, sends_tensors_without_elements) { run_pair(nothing); }

/* -- what does not fit -- */

static float block[64];

/* Rank 1 asks for `want` with tag 5 where rank 0 sends f32 [4, 4] with tag 5, and is told both. */
static void disagree(const member *m, tensor *want, int64_t tag, const char *found,
                     const char *expected) {
  tensor x;
  TENSOR(&x, block, f32, 4, 4);
  if (m->rank == 0) {
    CHECK_OK(send_to(m, &x, 1, FORWARD, 5));
    const lam_status status = receive(m, &x, 1, FORWARD, 5); /* never sent: the world has ended */
    CHECK_EQ(status, LAM_MISMATCH);
    return;
  }
  CHECK_EQ(receive(m, want, 0, FORWARD, tag), LAM_MISMATCH);
  CHECK_CONTAINS(lam_last_error(), found);
  CHECK_CONTAINS(lam_last_error(), expected);
  CHECK_EQ(send_to(m, &x, 0, FORWARD, 5), LAM_MISMATCH); /* the same for every later call */
}

static void other_tag(const member *m) {
  tensor y;
  TENSOR(&y, block, f32, 4, 4);
  disagree(m, &y, 6, "rank 0 sent activation 5, [4, 4] f32", "expected activation 6, [4, 4] f32");
}
TEST(transfer, ends_the_world_where_tags_differ) { run_pair(other_tag); }

static void other_shape(const member *m) {
  tensor y;
  TENSOR(&y, block, f32, 2, 8);
  disagree(m, &y, 5, "[4, 4] f32", "[2, 8] f32");
}
TEST(transfer, ends_the_world_where_shapes_differ) { run_pair(other_shape); }

static void smaller_shape(const member *m) {
  tensor y;
  TENSOR(&y, block, f32, 2, 4);
  disagree(m, &y, 5, "[4, 4] f32", "[2, 4] f32");
}
TEST(transfer, names_both_shapes_where_there_is_no_room) { run_pair(smaller_shape); }

static void other_dtype(const member *m) {
  tensor y;
  TENSOR(&y, block, bf16, 4, 8);
  disagree(m, &y, 5, "[4, 4] f32", "[4, 8] bf16");
}
TEST(transfer, ends_the_world_where_dtypes_differ) { run_pair(other_dtype); }

/* -- what is refused before anything is sent -- */

static void refused(const member *m) {
  tensor x;
  TENSOR(&x, block, f32, 4, 4);
  CHECK_EQ(send_to(m, &x, m->rank, FORWARD, 0), LAM_INVALID_ARGUMENT);
  CHECK_EQ(send_to(m, &x, 2, FORWARD, 0), LAM_INVALID_ARGUMENT);
  CHECK_EQ(send_to(m, &x, 1 - m->rank, 2, 0), LAM_INVALID_ARGUMENT);
  CHECK_EQ(receive(m, &x, m->rank, FORWARD, 0), LAM_INVALID_ARGUMENT);
  x.strides[0] = 5; /* y: peers write into it */
  CHECK_EQ(receive(m, &x, 1 - m->rank, FORWARD, 0), LAM_INVALID_ARGUMENT);
  CHECK_CONTAINS(lam_last_error(), "recv_activation: y: rows of 4 elements are 5 apart");
  x.strides[0] = 4;
  CHECK_OK(m->rank == 0 ? send_to(m, &x, 1, FORWARD, 0) : receive(m, &x, 0, FORWARD, 0));
}
TEST(transfer, goes_on_after_a_refused_argument) { run_pair(refused); }

TEST(transfer, needs_somebody_else_in_the_group) {
  lam_group_id id;
  member m;
  tensor x;
  TENSOR(&x, block, f32, 4, 4);
  REQUIRE_OK(lam_group_id_create(&id));
  REQUIRE_OK(member_join(&m, &id, 0, 1));
  CHECK_EQ(send_to(&m, &x, 0, FORWARD, 0), LAM_INVALID_ARGUMENT);
  CHECK_CONTAINS(lam_last_error(), "send_activation: group has nobody else in it");
  member_leave(&m);
}
