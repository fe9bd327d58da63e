/* call_bench.c: what a call of linear costs the host on the CUDA device, beside cublasLtMatmul
 * called straight with descriptors and an algorithm made before: small products, so that the device
 * keeps up.
 *
 *   call_bench ROUNDS      prints `name figure unit`, a line for each round
 * Leaves what the device takes to figures.py. */
#include <cublasLt.h>
#include <dlfcn.h>
#include <stdio.h>
#include <stdlib.h>
#include <time.h>

#include "abi/lamella.h"
#include "kernels/device.h"

enum { CUDA = 2, M = 16, N = 256, K = 256, CALLS = 200, WORKSPACE = 32 << 20 };
#define STREAM ((void *)(uintptr_t)2) /* cudaStreamPerThread */

static const lam_device *device;
static void *x, *w, *y, *workspace;

static void need(int holds, const char *what) {
  if (holds) return;
  fprintf(stderr, "call_bench: %s: %s\n", what, lam_last_error());
  exit(1);
}

static void *on_device(uint64_t bytes) {
  void *p = NULL;
  need(device->memory->alloc(NULL, bytes, &p) == LAM_OK, "alloc");
  return p;
}

static double microseconds(void) {
  struct timespec t;
  clock_gettime(CLOCK_MONOTONIC, &t);
  return 1e6 * (double)t.tv_sec + 1e-3 * (double)t.tv_nsec;
}

/* -- Lamella -- */

static void call_linear(void) {
  static int64_t x_shape[] = {M, K}, w_shape[] = {N, K}, y_shape[] = {M, N};
  static int64_t by_k[] = {K, 1}, by_n[] = {N, 1};
  const DLDataType bf16 = {kDLBfloat, 16, 1};
  const DLDevice card = {kDLCUDA, 0};
  const DLTensor a = {x, card, 2, bf16, x_shape, by_k, 0}, b = {w, card, 2, bf16, w_shape, by_k, 0};
  DLTensor d = {y, card, 2, bf16, y_shape, by_n, 0};
  const DLTensor *inputs[] = {&a, &b};
  DLTensor *outputs[] = {&d};
  lam_call call = LAM_CALL_INIT;
  call.op = LAM_OP_linear;
  call.inputs = inputs;
  call.outputs = outputs;
  call.n_inputs = 2;
  call.n_outputs = 1;
  call.stream = STREAM;
  need(lam_run(NULL, &call) == LAM_OK, "lam_run");
}

/* -- cuBLASLt -- */

#define CALLS_OF_CUBLASLT(X)                                                                  \
  X(cublasLtCreate)                                                                           \
  X(cublasLtMatmulDescCreate) X(cublasLtMatmulDescSetAttribute) X(cublasLtMatrixLayoutCreate) \
      X(cublasLtMatmulPreferenceCreate) X(cublasLtMatmulPreferenceSetAttribute)               \
          X(cublasLtMatmulAlgoGetHeuristic) X(cublasLtMatmul)
#define DECLARE(name) static __typeof__(&name) call_##name;
CALLS_OF_CUBLASLT(DECLARE)

static cublasLtHandle_t handle;
static cublasLtMatmulDesc_t desc;
static cublasLtMatrixLayout_t of_w, of_x, of_y;
static cublasLtMatmulHeuristicResult_t best;

static void open_cublaslt(void) {
  void *library = dlopen("libcublasLt.so.13", RTLD_LAZY | RTLD_LOCAL);
  need(library != NULL, "libcublasLt.so.13 could not be opened");
#define FIND(name) need((*(void **)&call_##name = dlsym(library, #name)) != NULL, #name);
  CALLS_OF_CUBLASLT(FIND)
}

static void prepare_cublaslt(void) { /* by columns: y^T [N, M] = w x^T */
  const cublasOperation_t turned = CUBLAS_OP_T;
  const size_t room = WORKSPACE;
  cublasLtMatmulPreference_t preference;
  int n = 0;
  open_cublaslt();
  call_cublasLtCreate(&handle);
  call_cublasLtMatmulDescCreate(&desc, CUBLAS_COMPUTE_32F, CUDA_R_32F);
  call_cublasLtMatmulDescSetAttribute(desc, CUBLASLT_MATMUL_DESC_TRANSA, &turned, sizeof turned);
  call_cublasLtMatrixLayoutCreate(&of_w, CUDA_R_16BF, K, N, K);
  call_cublasLtMatrixLayoutCreate(&of_x, CUDA_R_16BF, K, M, K);
  call_cublasLtMatrixLayoutCreate(&of_y, CUDA_R_16BF, N, M, N);
  call_cublasLtMatmulPreferenceCreate(&preference);
  call_cublasLtMatmulPreferenceSetAttribute(preference, CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES,
                                            &room, sizeof room);
  call_cublasLtMatmulAlgoGetHeuristic(handle, desc, of_w, of_x, of_y, of_y, preference, 1, &best,
                                      &n);
  need(n == 1, "no algorithm");
}

static void call_cublaslt(void) {
  const float one = 1, zero = 0;
  need(call_cublasLtMatmul(handle, desc, &one, w, of_w, x, of_x, &zero, y, of_y, y, of_y,
                           &best.algo, workspace, WORKSPACE, STREAM) == CUBLAS_STATUS_SUCCESS,
       "cublasLtMatmul");
}

/* -- both, in turn -- */

static void measure(const char *name, void (*call)(void)) {
  for (int i = 0; i < 10; i++) call();
  need(device->order->finish(STREAM) == LAM_OK, "finish");
  const double began = microseconds();
  for (int i = 0; i < CALLS; i++) call();
  const double took = microseconds() - began;
  need(device->order->finish(STREAM) == LAM_OK, "finish");
  printf("call/%s %.3f us\n", name, took / CALLS);
}

int main(int argc, char **argv) {
  const int rounds = argc > 1 ? atoi(argv[1]) : 5;
  int32_t was;
  need(lam_device_open(CUDA, &device) == LAM_OK, "open");
  need(lam_device_enter(device, 0, &was) == LAM_OK, "enter");
  x = on_device(M * K * 2), w = on_device(N * K * 2), y = on_device(M * N * 2);
  workspace = on_device(WORKSPACE);
  prepare_cublaslt();
  for (int i = 0; i < rounds; i++) {
    measure("cublaslt", call_cublaslt);
    measure("linear", call_linear);
  }
  return 0;
}
