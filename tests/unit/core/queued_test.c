/* queued_test.c: what a device that queues its work is given by calls: its own thread's device,
 * scratch, stream and extras of a product.
 *
 * The device here is the CPU's tables under another name, with an order table that counts. So a
 * call's result is right at once; what is tested is what was asked, not when.
 * Invariant: at a test's end every enter has its leave, every borrow its give_back. */
#include <math.h>
#include <stdlib.h>

#include "kernels/device.h"
#include "plugin/comm/group.h"
#include "tests/unit/core/host.h"

/* -- the device -- */

static struct {
  int entered, left, borrowed, given_back, outside, marked;
  int32_t device_id;
  void *stream;
  lam_status enter_fails, borrow_fails;
} seen;

static lam_status q_enter(int32_t device_id, int32_t *out_was) {
  if (seen.enter_fails != LAM_OK) return lam_fail(seen.enter_fails, "queued: no driver");
  seen.entered++;
  seen.device_id = device_id;
  *out_was = 5;
  return LAM_OK;
}

static void q_leave(int32_t was) { seen.left += was == 5; }

static lam_status q_borrow(uint64_t bytes, void *stream, void **out) {
  if (seen.borrow_fails != LAM_OK) return lam_fail(seen.borrow_fails, "queued: captured");
  seen.borrowed++;
  seen.stream = stream;
  *out = aligned_alloc(256, (bytes + 255) / 256 * 256);
  return LAM_OK;
}

static void q_give_back(void *p, void *stream) {
  seen.given_back += stream == seen.stream;
  free(p);
}

static lam_status q_capturing(void *stream, bool *out) {
  (void)stream;
  *out = false;
  return LAM_OK;
}

static const lam_device_order order = {
    .enter = q_enter,
    .leave = q_leave,
    .borrow = q_borrow,
    .give_back = q_give_back,
    .capturing = q_capturing,
};

static lam_status count_outside(const lam_workers *w, lam_matrix ids, int64_t total,
                                const int64_t *ignored, lam_outside *out, void *stream) {
  seen.outside++;
  return lam_device_cpu.vocab->find_outside(w, ids, total, ignored, out, stream);
}

/* Ours as a kernel would: what is marked is what find_outside finds, row by row. */
static lam_status mark_outside(const lam_workers *w, lam_matrix ids, int64_t total,
                               const int64_t *ignored, lam_matrix y, void *stream) {
  const bool rows = y.rows == ids.rows * ids.cols;
  seen.marked++;
  for (int64_t i = 0; i < ids.rows * ids.cols; i++) {
    lam_outside found;
    const int64_t col = i % ids.cols;
    const lam_matrix id = lam_matrix_cols(lam_matrix_rows(ids, i / ids.cols, 1), col, 1);
    LAM_TRY(lam_device_cpu.vocab->find_outside(w, id, total, ignored, &found, stream));
    if (found.at < 0) continue;
    const int64_t first = rows ? i * y.row_stride : i / y.cols * y.row_stride + i % y.cols;
    for (int64_t j = 0; j < (rows ? y.cols : 1); j++) ((float *)y.data)[first + j] = NAN;
  }
  return LAM_OK;
}

static lam_device_vocab vocab;
static lam_device_gemm_table gemm;
static lam_device queued;

static void make_device(void) {
  memset(&seen, 0, sizeof seen);
  vocab = *lam_device_cpu.vocab;
  vocab.find_outside = count_outside;
  vocab.mark_outside = mark_outside;
  gemm = *lam_device_cpu.gemm;
  queued = lam_device_cpu;
  queued.name = "queued";
  queued.device_type = 2; /* kDLCUDA */
  queued.order = &order;
  queued.gemm = &gemm;
  queued.vocab = &vocab;
  lam_device_forced = &queued;
}

static void check_device(void) {
  CHECK_EQ(seen.entered, seen.left);
  CHECK_EQ(seen.borrowed, seen.given_back);
  lam_device_forced = NULL;
}

/* -- calls -- */

/* As HOST, on device 3. */
#define QUEUED(h, data, dtype, ...) \
  (host_make(h, data, dtype, (const int64_t[]){__VA_ARGS__, -1}), (h)->t.device = place)
static const DLDevice place = {(DLDeviceType)2, 3};

/* ffn: x [3, 5]  w1 [7, 5]  w2 [4, 7]  y [3, 4]: its hidden part is scratch */
typedef struct ffn {
  float x[15], w1[35], w2[28], y[12], want[12];
  host_tensor t[4];
  const DLTensor *in[4];
  DLTensor *out[1];
  lam_call call;
} ffn;

static void fill(rng *r, float *to, int n) {
  for (int i = 0; i < n; i++) to[i] = rng_float(r);
}

static void ffn_make(ffn *f, bool on_host) {
  rng r = {seed()};
  memset(f, 0, sizeof *f);
  fill(&r, f->x, 15), fill(&r, f->w1, 35), fill(&r, f->w2, 28);
  QUEUED(&f->t[0], f->x, F32, 3, 5);
  QUEUED(&f->t[1], f->w1, F32, 7, 5);
  QUEUED(&f->t[2], f->w2, F32, 4, 7);
  QUEUED(&f->t[3], on_host ? f->want : f->y, F32, 3, 4);
  for (int i = 0; on_host && i < 4; i++) f->t[i].t.device = (DLDevice){kDLCPU, 0};
  f->in[0] = &f->t[0].t, f->in[1] = &f->t[1].t, f->in[3] = &f->t[2].t;
  f->out[0] = &f->t[3].t;
  f->call = (lam_call)LAM_CALL_INIT;
  f->call.op = LAM_OP_ffn;
  f->call.inputs = f->in, f->call.outputs = f->out;
  f->call.n_inputs = 4, f->call.n_outputs = 1;
}

TEST(queued, a_call_enters_the_device_of_its_operands_and_leaves_it) {
  ffn f, host;
  make_device();
  ffn_make(&host, true);
  CHECK_OK(lam_run(NULL, &host.call));
  CHECK_EQ(seen.entered, 0);
  ffn_make(&f, false);
  CHECK_OK(lam_run(NULL, &f.call));
  CHECK_EQ(seen.entered, 1);
  CHECK_EQ(seen.device_id, 3);
  CHECK_SAME_BITS(f.y, host.want, sizeof f.y);
  check_device();
}

TEST(queued, scratch_is_the_devices_own_for_the_calls_stream) {
  ffn f;
  int stream;
  make_device();
  ffn_make(&f, false);
  f.call.stream = &stream;
  CHECK_OK(lam_run(NULL, &f.call));
  CHECK_EQ(seen.borrowed, 1);
  CHECK(seen.stream == &stream);
  check_device();
}

TEST(queued, scratch_of_the_caller_is_taken_first) {
  ffn f;
  lam_inferred inferred = LAM_INFERRED_INIT;
  make_device();
  ffn_make(&f, false);
  CHECK_OK(lam_infer(NULL, &f.call, &inferred));
  CHECK(inferred.scratch_bytes > 0);
  f.call.scratch = malloc(inferred.scratch_bytes);
  f.call.scratch_bytes = inferred.scratch_bytes - 1;
  CHECK_STATUS(lam_run(NULL, &f.call), LAM_INVALID_ARGUMENT);
  f.call.scratch_bytes++;
  CHECK_OK(lam_run(NULL, &f.call));
  CHECK_EQ(seen.borrowed, 0);
  free(f.call.scratch);
  check_device();
}

TEST(queued, what_cannot_be_had_is_told_and_the_device_is_left) {
  ffn f;
  make_device();
  ffn_make(&f, false);
  seen.borrow_fails = LAM_RESOURCE_EXHAUSTED;
  CHECK_STATUS(lam_run(NULL, &f.call), LAM_RESOURCE_EXHAUSTED);
  CHECK_STR(lam_last_error(), "queued: captured");
  CHECK_EQ(seen.left, 1);
  seen.borrow_fails = LAM_OK, seen.enter_fails = LAM_UNAVAILABLE;
  CHECK_STATUS(lam_run(NULL, &f.call), LAM_UNAVAILABLE);
  CHECK_STR(lam_last_error(), "queued: no driver");
  seen.enter_fails = LAM_OK;
  CHECK_OK(lam_run(NULL, &f.call));
  check_device();
}

TEST(queued, a_call_that_is_refused_never_entered) {
  ffn f;
  make_device();
  ffn_make(&f, false);
  f.t[2].t.device.device_id = 4;
  CHECK_REFUSED(lam_run(NULL, &f.call), "ffn: w2: it lies on cuda:4, x on cuda:3");
  CHECK_EQ(seen.entered, 0);
  check_device();
}

TEST(queued, calls_without_peers_are_capturable_and_the_hosts_are_not) {
  ffn f;
  lam_inferred inferred = LAM_INFERRED_INIT;
  make_device();
  ffn_make(&f, false);
  CHECK_OK(lam_infer(NULL, &f.call, &inferred));
  CHECK_EQ(inferred.capturable, 1);
  ffn_make(&f, true);
  CHECK_OK(lam_infer(NULL, &f.call, &inferred));
  CHECK_EQ(inferred.capturable, 0);
  check_device();
}

TEST(queued, packed_weights_are_refused_where_the_device_has_none) {
  ffn f;
  uint8_t packed[7 * 64] = {0};
  make_device();
  gemm.packed_open = NULL;
  ffn_make(&f, false);
  QUEUED(&f.t[1], packed, U8, 7, 64);
  CHECK_REFUSED(lam_run(NULL, &f.call),
                "ffn: w1: it is packed, and there are no packed weights on queued");
  check_device();
}

/* -- indices: nothing waits for an answer about them -- */

static lam_call vocab_call(uint32_t op, const DLTensor *const *in, DLTensor *const *out,
                           int n_out) {
  lam_call call = LAM_CALL_INIT;
  call.op = op;
  call.inputs = in, call.outputs = out;
  call.n_inputs = 2, call.n_outputs = (uint32_t)n_out;
  return call;
}

TEST(queued, a_row_whose_index_is_outside_becomes_nan) {
  int32_t ids[4] = {2, 0, 3, 1};
  float w[15], y[20];
  host_tensor t[3];
  rng r = {seed()};
  make_device();
  fill(&r, w, 15);
  QUEUED(&t[0], ids, I32, 4);
  QUEUED(&t[1], w, F32, 3, 5);
  QUEUED(&t[2], y, F32, 4, 5);
  const lam_call call = vocab_call(LAM_OP_embedding_vocab, (const DLTensor *[]){&t[0].t, &t[1].t},
                                   (DLTensor *[]){&t[2].t}, 1);
  CHECK_OK(lam_run(NULL, &call));
  CHECK_EQ(seen.outside, 0);
  for (int i = 0; i < 20; i++) CHECK(i / 5 == 2 ? isnan(y[i]) : y[i] == w[ids[i / 5] * 5 + i % 5]);
  for (int i = 0; i < 3; i++) t[i].t.device = (DLDevice){kDLCPU, 0};
  CHECK_REFUSED(lam_run(NULL, &call), "embedding_vocab: ids[2] is 3, expected 0 to 2");
  check_device();
}

TEST(queued, a_target_outside_has_a_loss_of_nan_and_an_ignored_one_of_0) {
  int32_t targets[6] = {0, -100, 6, 4, -1, 2};
  float logits[30], loss[6], lse[6];
  host_tensor t[4];
  rng r = {seed()};
  make_device();
  fill(&r, logits, 30);
  QUEUED(&t[0], logits, F32, 2, 3, 5);
  QUEUED(&t[1], targets, I32, 2, 3);
  QUEUED(&t[2], loss, F32, 2, 3);
  QUEUED(&t[3], lse, F32, 2, 3);
  const lam_call call =
      vocab_call(LAM_OP_cross_entropy_vocab, (const DLTensor *[]){&t[0].t, &t[1].t},
                 (DLTensor *[]){&t[2].t, &t[3].t}, 2);
  CHECK_OK(lam_run(NULL, &call));
  for (int i = 0; i < 6; i++) CHECK_EQ(!!isnan(loss[i]), i == 2 || i == 4);
  CHECK(loss[1] == 0 && loss[0] > 0);
  check_device();
}
