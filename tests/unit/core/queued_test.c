/* queued_test.c: what a device that queues its work is given by calls: its own thread's device,
 * scratch, stream, and rows to mark where the host would have to wait. */
#include <math.h>
#include <stdlib.h>

#include "tests/unit/core/queued.h"

/* ffn: x [3, 5]  w1 [7, 5]  w2 [4, 7]  y [3, 4]: its hidden part is scratch */
typedef struct ffn {
  float x[15], w1[35], w2[28], y[12], want[12];
  host_tensor t[4];
  const DLTensor *in[4];
  DLTensor *out[1];
  lam_call call;
} ffn;

static void ffn_make(ffn *f, bool on_host) {
  rng r = {seed()};
  memset(f, 0, sizeof *f);
  fill_random(&r, f->x, 15), fill_random(&r, f->w1, 35), fill_random(&r, f->w2, 28);
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
  make_queued();
  ffn_make(&host, true);
  CHECK_OK(lam_run(NULL, &host.call));
  CHECK_EQ(seen.entered, 0);
  ffn_make(&f, false);
  CHECK_OK(lam_run(NULL, &f.call));
  CHECK_EQ(seen.entered, 1);
  CHECK_EQ(seen.device_id, 3);
  CHECK_SAME_BITS(f.y, host.want, sizeof f.y);
  check_queued();
}

TEST(queued, scratch_is_the_devices_own_for_the_calls_stream) {
  ffn f;
  int stream;
  make_queued();
  ffn_make(&f, false);
  f.call.stream = &stream;
  CHECK_OK(lam_run(NULL, &f.call));
  CHECK_EQ(seen.borrowed, 1);
  CHECK(seen.stream == &stream);
  check_queued();
}

TEST(queued, scratch_of_the_caller_is_taken_first) {
  ffn f;
  lam_inferred inferred = LAM_INFERRED_INIT;
  make_queued();
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
  check_queued();
}

TEST(queued, what_cannot_be_had_is_told_and_the_device_is_left) {
  ffn f;
  make_queued();
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
  check_queued();
}

TEST(queued, a_call_that_is_refused_never_entered) {
  ffn f;
  make_queued();
  ffn_make(&f, false);
  f.t[2].t.device.device_id = 4;
  CHECK_REFUSED(lam_run(NULL, &f.call), "ffn: w2: it lies on cuda:4, x on cuda:3");
  CHECK_EQ(seen.entered, 0);
  check_queued();
}

TEST(queued, calls_without_peers_are_capturable_and_the_hosts_are_not) {
  ffn f;
  lam_inferred inferred = LAM_INFERRED_INIT;
  make_queued();
  ffn_make(&f, false);
  CHECK_OK(lam_infer(NULL, &f.call, &inferred));
  CHECK_EQ(inferred.capturable, 1);
  ffn_make(&f, true);
  CHECK_OK(lam_infer(NULL, &f.call, &inferred));
  CHECK_EQ(inferred.capturable, 0);
  check_queued();
}

TEST(queued, packed_weights_are_refused_where_the_device_has_none) {
  ffn f;
  uint8_t packed[7 * 64] = {0};
  make_queued();
  queued_gemm.packed_open = NULL;
  ffn_make(&f, false);
  QUEUED(&f.t[1], packed, U8, 7, 64);
  CHECK_REFUSED(lam_run(NULL, &f.call),
                "ffn: w1: it is packed, and there are no packed weights on queued");
  check_queued();
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
  make_queued();
  fill_random(&r, w, 15);
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
  check_queued();
}

TEST(queued, a_target_outside_has_a_loss_of_nan_and_an_ignored_one_of_0) {
  int32_t targets[6] = {0, -100, 6, 4, -1, 2};
  float logits[30], loss[6], lse[6];
  host_tensor t[4];
  rng r = {seed()};
  make_queued();
  fill_random(&r, logits, 30);
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
  check_queued();
}
