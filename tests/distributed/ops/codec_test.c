/* codec_test.c: codec_pack and codec_unpack, and transfers that are coded, against the bounds of
 * lamella.h, written down here once more. */
#include <float.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "kernels/math.h"
#include "tests/distributed/ops/member.h"

enum { ROWS = 6, COLS = 300, TILE = 128, N = ROWS * COLS };
#define I lam_attr_i
#define TYPE(t) I((t).code | (t).bits << 8)
static const DLDataType u8 = {kDLUInt, 8, 1};
static const int64_t line_bytes[] = {0, 2 * COLS, 12 + COLS, 12 + COLS, 12 + COLS};

static double bound_of(int codec, double x, double largest) {
  const double of_x[] = {0, 0x1p-8, 0x1p-4, 0x1p-3, 0},
               of_largest[] = {0, 0, 0x1p-10 / 448, 0x1p-17 / 57344, 1.0 / 254};
  return (of_x[codec] * fabs(x) + of_largest[codec] * largest) * (1 + 0x1p-19) + 0x1p-20 * fabs(x) +
         0x1p-100;
}

static void make(rng *r, float *x) {
  for (int i = 0; i < N; i++)
    x[i] = ldexpf(rng_float(r), (int)(i / TILE % 7) * 9 - 20 - (int)rng_int(r, 0, 12));
}

static void check_bounds(int codec, const float *x, const float *y) {
  for (int i = 0; i < N; i++) {
    const int first = i / COLS * COLS + i % COLS / TILE * TILE, end = (i / COLS + 1) * COLS;
    double largest = 0;
    for (int j = first; j < end && j < first + TILE; j++) largest = fmax(largest, fabs(x[j]));
    const double off = fabs((double)x[i] - y[i]), bound = bound_of(codec, x[i], largest);
    if (!(off <= bound)) {
      NOTE("codec %d: element %d: %a came back as %a", codec, i, (double)x[i], (double)y[i]);
      CHECK(off <= bound);
      return;
    }
  }
}

/* -- the rows -- */

static lam_status run(uint32_t op, tensor *in, tensor *out, const lam_attr *attrs, uint32_t n) {
  const DLTensor *ins[] = {&in->dl};
  DLTensor *outs[] = {&out->dl};
  lam_call call = LAM_CALL_INIT;
  call.op = op;
  call.inputs = ins, call.outputs = outs, call.attrs = attrs;
  call.n_inputs = call.n_outputs = 1, call.n_attrs = n;
  return lam_run(NULL, &call);
}

static lam_status infer_coded(tensor *x, int codec, lam_shape *out) {
  const DLTensor *ins[] = {&x->dl};
  const lam_attr attrs[] = {I(codec)};
  lam_inferred inferred = LAM_INFERRED_INIT;
  lam_call call = LAM_CALL_INIT;
  call.op = LAM_OP_codec_pack;
  call.inputs = ins, call.attrs = attrs, call.n_inputs = call.n_attrs = 1;
  inferred.outputs = out, inferred.n_outputs = 1;
  return lam_infer(NULL, &call, &inferred);
}

TEST(codec, rows_bring_back_what_they_declare) {
  static float x[N], y[N];
  static _Alignas(64) uint8_t bytes[ROWS * 2 * COLS + 1];
  rng r = {seed()};
  for (int codec = LAM_CODEC_BF16; codec <= LAM_CODEC_INT8; codec++) {
    tensor tx, ty, coded;
    lam_shape shape;
    make(&r, x);
    TENSOR(&tx, x, f32, 2, 3, COLS);
    TENSOR(&ty, y, f32, 2, 3, COLS);
    REQUIRE_OK(infer_coded(&tx, codec, &shape));
    CHECK_EQ(shape.ndim, 3);
    CHECK_EQ(shape.dims[2], line_bytes[codec]);
    CHECK_EQ(shape.dtype.bits, 8);
    TENSOR(&coded, bytes, u8, 2, 3, line_bytes[codec]);
    bytes[ROWS * line_bytes[codec]] = 0x5a;
    REQUIRE_OK(run(LAM_OP_codec_pack, &tx, &coded, (lam_attr[]){I(codec)}, 1));
    CHECK_EQ(bytes[ROWS * line_bytes[codec]], 0x5a);
    REQUIRE_OK(
        run(LAM_OP_codec_unpack, &coded, &ty, (lam_attr[]){I(codec), I(COLS), TYPE(f32)}, 3));
    check_bounds(codec, x, y);
  }
}

static float to_16_bits(float v, int f16, uint16_t *out) {
  *out = f16 ? lam_f16_of_f32(v) : lam_bf16_of_f32(v);
  return f16 ? lam_f32_of_f16(*out) : lam_f32_of_bf16(*out);
}

/* Their bytes are those of the f32 numbers that they are; what comes back is that, rounded. */
TEST(codec, rows_take_16_bits_as_the_numbers_that_they_are) {
  static uint16_t x[N], y[N];
  static float same[N], back[N];
  static _Alignas(64) uint8_t bytes[ROWS * 2 * COLS], want[ROWS * 2 * COLS];
  static const DLDataType f16 = {kDLFloat, 16, 1};
  rng r = {seed()};
  for (int codec = LAM_CODEC_BF16; codec <= LAM_CODEC_INT8; codec++) FOR_EACH(is_f16, 0, 1) {
      const DLDataType type = is_f16 ? f16 : bf16;
      const lam_attr attrs[] = {I(codec), I(COLS), TYPE(type)};
      tensor tx, ty, coded, ts, ws;
      for (int i = 0; i < N; i++) same[i] = to_16_bits(8 * rng_float(&r), is_f16, &x[i]);
      TENSOR(&tx, x, type, ROWS, COLS);
      TENSOR(&ty, y, type, ROWS, COLS);
      TENSOR(&ts, same, f32, ROWS, COLS);
      TENSOR(&coded, bytes, u8, ROWS, line_bytes[codec]);
      TENSOR(&ws, want, u8, ROWS, line_bytes[codec]);
      REQUIRE_OK(run(LAM_OP_codec_pack, &tx, &coded, attrs, 1));
      REQUIRE_OK(run(LAM_OP_codec_pack, &ts, &ws, attrs, 1));
      CHECK_SAME_BITS(bytes, want, (size_t)(ROWS * line_bytes[codec]));
      REQUIRE_OK(run(LAM_OP_codec_unpack, &coded, &ty, attrs, 3));
      TENSOR(&ts, back, f32, ROWS, COLS);
      REQUIRE_OK(
          run(LAM_OP_codec_unpack, &coded, &ts, (lam_attr[]){I(codec), I(COLS), TYPE(f32)}, 3));
      for (int i = 0; i < N; i++) {
        uint16_t rounded;
        (void)to_16_bits(back[i], is_f16, &rounded);
        if (!CHECK_EQ(y[i], rounded)) break;
      }
    }
}

TEST(codec, rows_refuse_what_they_cannot_code) {
  static float x[N];
  static _Alignas(64) uint8_t bytes[2 * N + 1];
  tensor tx, coded;
  TENSOR(&tx, x, f32, ROWS, COLS);
  TENSOR(&coded, bytes, u8, ROWS, 12 + COLS);
  FOR_EACH(codec, 5, -1) {
    CHECK_EQ(run(LAM_OP_codec_pack, &tx, &coded, (lam_attr[]){I(codec)}, 1), LAM_INVALID_ARGUMENT);
    CHECK_CONTAINS(lam_last_error(), "expected 0 to 4");
  }
  TENSOR(&coded, bytes, u8, ROWS, 2 * COLS); /* what the shape rule makes of none */
  CHECK_EQ(run(LAM_OP_codec_pack, &tx, &coded, (lam_attr[]){I(0)}, 1), LAM_INVALID_ARGUMENT);
  CHECK(lam_last_error()[0] != 0);
  TENSOR(&coded, bytes + 1, u8, ROWS, 2 * COLS);
  CHECK_EQ(run(LAM_OP_codec_pack, &tx, &coded, (lam_attr[]){I(1)}, 1), LAM_INVALID_ARGUMENT);
  CHECK_CONTAINS(lam_last_error(), "coded is at an odd address");
  TENSOR(&coded, bytes, u8, ROWS, 12 + COLS);
  CHECK_EQ(run(LAM_OP_codec_unpack, &coded, &tx, (lam_attr[]){I(1), I(COLS), TYPE(f32)}, 3),
           LAM_INVALID_ARGUMENT);
  CHECK_CONTAINS(lam_last_error(), "coded's last dimension is 312, expected 600");
  CHECK_EQ(run(LAM_OP_codec_unpack, &tx, &tx, (lam_attr[]){I(1), I(COLS), TYPE(f32)}, 3),
           LAM_INVALID_ARGUMENT);
}

/* -- transfers -- */

static lam_status send_to(const member *m, tensor *x, int64_t codec) {
  float zero = 0, out = NAN;
  tensor in, token;
  TENSOR(&in, &zero, f32, 1);
  TENSOR(&token, &out, f32, 1);
  return RUN(m, send_activation, LIST(&x->dl, &in.dl), LIST(&token.dl),
             LIST(I(1), I(0), I(3), I(codec)));
}

static lam_status receive(const member *m, tensor *y, int64_t codec) {
  float zero = 0, out = NAN;
  tensor in, token;
  TENSOR(&in, &zero, f32, 1);
  TENSOR(&token, &out, f32, 1);
  return RUN(m, recv_activation, LIST(&in.dl), LIST(&y->dl, &token.dl),
             LIST(I(0), I(0), I(3), lam_attr_ints(y->shape, (uint32_t)y->dl.ndim),
                  TYPE(y->dl.dtype), I(codec)));
}

typedef struct pair {
  lam_group_id id;
  void (*fn)(const member *m);
  uint64_t seed;
} pair;
static uint64_t shared_seed;

static void join_and_run(int rank, int size, void *arg) {
  const pair *p = arg;
  member m;
  shared_seed = p->seed;
  REQUIRE_OK(member_join(&m, &p->id, rank, size));
  p->fn(&m);
  member_leave(&m);
}

static void run_pair(void (*fn)(const member *m)) {
  pair p = {.fn = fn, .seed = seed()};
  REQUIRE_OK(lam_group_id_create(&p.id));
  run_processes(2, join_and_run, &p);
}

static void coded_both(const member *m) {
  static float x[N], y[N];
  rng r = {shared_seed};
  tensor tx, ty;
  TENSOR(&tx, x, f32, ROWS, COLS);
  TENSOR(&ty, y, f32, ROWS, COLS);
  for (int codec = LAM_CODEC_NONE; codec <= LAM_CODEC_INT8; codec++) {
    make(&r, x); /* the same on both */
    REQUIRE_OK(m->rank == 0 ? send_to(m, &tx, codec) : receive(m, &ty, codec));
    if (m->rank == 1 && codec) check_bounds(codec, x, y);
    if (m->rank == 1 && !codec) CHECK_SAME_BITS(x, y, sizeof x);
  }
}
TEST(codec, transfers_bring_what_the_codec_declares) { run_pair(coded_both); }

static void other_codec(const member *m) {
  static float x[N];
  tensor tx;
  TENSOR(&tx, x, f32, ROWS, COLS);
  if (m->rank == 0) {
    (void)send_to(m, &tx, LAM_CODEC_INT8); /* whether it learns of it in time */
    return;
  }
  CHECK_EQ(receive(m, &tx, LAM_CODEC_F8E4M3), LAM_MISMATCH);
  CHECK_CONTAINS(lam_last_error(), "f32 as int8");
  CHECK_CONTAINS(lam_last_error(), "f32 as f8e4m3");
}
TEST(codec, a_receiver_that_expects_another_codec_ends_the_world) { run_pair(other_codec); }

static void refused(const member *m) {
  static int32_t x[4];
  static const DLDataType i32 = {kDLInt, 32, 1};
  tensor tx;
  TENSOR(&tx, x, i32, 1, 4);
  CHECK_EQ(m->rank ? receive(m, &tx, 2) : send_to(m, &tx, 2), LAM_INVALID_ARGUMENT);
  CHECK_CONTAINS(lam_last_error(), "codec f8e4m3 is for f32, bf16 and f16, found i32");
  CHECK_EQ(m->rank ? receive(m, &tx, 7) : send_to(m, &tx, 7), LAM_INVALID_ARGUMENT);
  CHECK_OK(m->rank ? receive(m, &tx, 0) : send_to(m, &tx, 0));
}
TEST(codec, transfers_refuse_what_no_codec_takes) { run_pair(refused); }
