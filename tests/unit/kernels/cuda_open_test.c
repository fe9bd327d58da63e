/* cuda_open_test.c: what opening the CUDA device says of a machine that lacks something, each in a
 * process of its own, on the stand-in. */
#include "tests/unit/kernels/far.h"

typedef struct machine {
  int driver, devices, sm;
  lam_status status;
  const char *words;
} machine;

static void open_there(int rank, int size, void *arg) {
  const machine *m = arg;
  int32_t was;
  (void)rank, (void)size;
  standin_set_driver(m->driver);
  standin_devices(m->devices);
  for (int time = 0; time < 2; time++) {
    CHECK_STATUS(lam_cuda_open(), m->status);
    CHECK_STR(lam_last_error(), m->words);
    CHECK_STATUS(lam_device_enter(CUDA, 0, &was), m->status);
  }
}

TEST(cuda_open, says_what_is_missing_in_one_line) {
  static machine machines[] = {
      {0, 2, 90, LAM_UNAVAILABLE, "cuda: there is no NVIDIA driver on this machine"},
      {12040, 2, 90, LAM_UNAVAILABLE,
       "cuda: the driver is for CUDA 12.4, this build needs CUDA 13.0"},
      {13000, 0, 90, LAM_UNAVAILABLE, "cuda: the driver finds no GPU on this machine"}};
  for (int i = 0; i < 3; i++) run_processes(1, open_there, &machines[i]);
}

/* x [4, 16] times w [8, 16]^T of dtype gives y, on a card of that kind. */
static lam_status multiply(lam_dtype dtype) {
  void *stream = stream_new();
  rng r = {seed()};
  box x = box_random(&r, 4, 16, dtype, BY_ROWS), w = box_random(&r, 8, 16, dtype, BY_ROWS),
      y = box_new(4, 8, LAM_BF16, BY_ROWS);
  far a = far_of(x, 0, stream), b = far_of(w, 0, stream), d = far_of(y, 0, stream);
  const lam_gemm g = {.a = a.m, .b = b.m, .d = d.m};
  const lam_status status = lam_device_gemm(CUDA, workers(ALONE), &g, stream);
  CHECK_OK(CUDA->order->finish(stream));
  far_free(&a), far_free(&b), far_free(&d);
  box_free(&x), box_free(&w), box_free(&y);
  stream_drop(stream);
  return status;
}

static void multiply_on(int rank, int size, void *arg) {
  const machine *m = arg;
  int32_t was;
  (void)rank, (void)size;
  standin_set_sm(m->sm);
  if (m->sm < 80) {
    CHECK_STATUS(lam_device_enter(CUDA, 0, &was), m->status);
  } else {
    CHECK_OK(lam_device_enter(CUDA, 0, &was));
    CHECK_STATUS(multiply(LAM_F8E4M3), m->status);
  }
  if (m->words) CHECK_CONTAINS(lam_last_error(), m->words);
  if (m->sm >= 80) CHECK_OK(multiply(LAM_BF16));
}

TEST(cuda_open, a_dtype_that_the_card_has_not_is_refused_and_others_go_on) {
  static machine cards[] = {
      {0, 0, 80, LAM_UNIMPLEMENTED, "cuda gemm: f8e4m3 needs sm_89 or newer, "},
      {0, 0, 89, LAM_OK, NULL},
      {0, 0, 75, LAM_UNIMPLEMENTED, "is sm_75, Lamella needs sm_80 or newer"}};
  for (int i = 0; i < 3; i++) run_processes(1, multiply_on, &cards[i]);
}

/* By cuBLASLt, and by a kernel of our own. */
static void lose_the_device(int rank, int size, void *arg) {
  rng r = {seed()};
  (void)rank, (void)size, (void)arg;
  void *stream = stream_new();
  box x = box_random(&r, 40, 16, LAM_BF16, BY_ROWS), y = box_new(40, 40, LAM_BF16, BY_ROWS);
  far a = far_of(x, 0, stream), d = far_of(y, 0, stream);
  lam_gemm g = {.a = a.m, .b = a.m, .d = d.m};
  CHECK_OK(lam_device_gemm(CUDA, workers(ALONE), &g, stream));
  standin_lose_device(0);
  CHECK_STATUS(lam_device_gemm(CUDA, workers(ALONE), &g, stream), LAM_UNAVAILABLE);
  g.a = lam_matrix_rows(a.m, 0, 1), g.d = lam_matrix_rows(d.m, 0, 1);
  CHECK_STATUS(lam_device_gemm(CUDA, workers(ALONE), &g, stream), LAM_UNAVAILABLE);
  box_free(&x), box_free(&y);
}

TEST(cuda_open, a_device_that_is_lost_meanwhile_is_unavailable) {
  run_processes(1, lose_the_device, NULL);
}
