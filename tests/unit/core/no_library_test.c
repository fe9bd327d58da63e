/* no_library_test.c: a machine without oneDNN: opening it fails here whatever is installed, and
 * plain C computes the same.
 * Invariant: this program stands in for dlopen, so that nothing in it can find the library; it says
 * that it was asked. */
#include <dlfcn.h>
#include <stdlib.h>

#include "kernels/device.h"
#include "tests/unit/core/host.h"

static int n_refused;

void *dlopen(const char *file, int mode) {
  static void *(*next)(const char *file, int mode);
  if (file && strstr(file, "dnnl")) return n_refused++, NULL;
  if (!next) *(void **)&next = dlsym(RTLD_NEXT, "dlopen");
  return next ? next(file, mode) : NULL;
}

enum { K = 65, N = 130, MOST_ROWS = 33 };

typedef struct numbers { /* as floats, and as the bf16 that they are rounded to */
  float f[N * K];
  uint16_t b[N * K];
} numbers;

static numbers x, w, bias;

static void fill(numbers *v, int n, rng *r) {
  for (int i = 0; i < n; i++) {
    uint32_t bits;
    v->f[i] = rng_float(r);
    memcpy(&bits, &v->f[i], sizeof bits);
    v->b[i] = (uint16_t)(bits >> 16);
    bits &= 0xffff0000; /* so that both dtypes hold the same numbers */
    memcpy(&v->f[i], &bits, sizeof bits);
  }
}

/* y = x w^T + bias in f32, of operands of either dtype. */
static void check_linear(int64_t rows, bool is_bf16) {
  static float y[MOST_ROWS * N];
  static double want[MOST_ROWS * N];
  host_tensor hx, hw, hb, hy;
  const DLDataType type = is_bf16 ? BF16 : F32;
  HOST(&hx, is_bf16 ? (void *)x.b : x.f, type, rows, K);
  HOST(&hw, is_bf16 ? (void *)w.b : w.f, type, N, K);
  HOST(&hb, is_bf16 ? (void *)bias.b : bias.f, type, N);
  HOST(&hy, y, F32, rows, N);
  for (int64_t i = 0; i < rows * N; i++) {
    want[i] = bias.f[i % N];
    for (int64_t k = 0; k < K; k++) want[i] += (double)x.f[i / N * K + k] * w.f[i % N * K + k];
  }
  lam_call call = LAM_CALL_INIT;
  call.op = LAM_OP_linear;
  call.inputs = (const DLTensor *[]){&hx.t, &hw.t, &hb.t}, call.n_inputs = 3;
  call.outputs = (DLTensor *[]){&hy.t}, call.n_outputs = 1;
  call.attrs = (lam_attr[]){lam_attr_default(), lam_attr_default(), lam_attr_i(2 | 32 << 8)};
  call.n_attrs = 3;
  NOTE("%d rows, %s", (int)rows, is_bf16 ? "bf16" : "f32");
  CHECK_OK(lam_run(NULL, &call));
  CHECK_CLOSE(y, want, rows * N, 0, K * 0x1p-22);
}

TEST(no_library, plain_c_takes_over) {
  rng r = {seed()};
  fill(&x, MOST_ROWS * K, &r), fill(&w, N * K, &r), fill(&bias, N, &r);
  FOR_EACH(rows, MOST_ROWS, 5, 1) FOR_EACH(is_bf16, 0, 1) check_linear(rows, is_bf16);
  CHECK(n_refused > 0);
}

TEST(no_library, is_said) {
  CHECK(strncmp(lam_device_cpu.describe(), "plain C, own loops: ", 20) == 0);
  CHECK(n_refused > 0);
}
