/* epilogue.cuh: what follows one sum of products: scales, bias, aux, activation, what d held before.
 *
 * Invariant: f32 inside; d is rounded once, and so is aux.
 * Leaves the sum to the kernels, z and sums over rows to gemm.c. */
#ifndef LAMELLA_KERNELS_CUDA_EPILOGUE_CUH
#define LAMELLA_KERNELS_CUDA_EPILOGUE_CUH

#include "kernels/cuda/kernel.cuh"

typedef struct lam_epilogue {
  lam_view bias, d, aux;          /* data NULL: absent */
  const float *a_scale, *b_scale; /* NULL: 1 */
  int32_t act;
  bool accumulate;
} lam_epilogue;

static inline lam_view lam_view_if_here(lam_matrix m) {
  const lam_view none = {};
  return lam_matrix_here(m) ? lam_view_of(m) : none;
}

static inline lam_epilogue lam_epilogue_of(const lam_gemm *g) {
  lam_epilogue e = {};
  e.d = lam_view_of(g->d), e.aux = lam_view_if_here(g->aux);
  if (lam_matrix_here(g->bias)) e.bias = lam_view_of_vector(g->bias);
  if (g->more) e.a_scale = (const float *)g->more->a_scale.data;
  if (g->more) e.b_scale = (const float *)g->more->b_scale.data;
  e.act = g->act, e.accumulate = g->accumulate;
  return e;
}

LAM_DEVICE float lam_act_of(int act, float x) {
  switch (act) {
    case LAM_ACT_GELU:
      return lam_gelu(x);
    case LAM_ACT_GELU_TANH:
      return lam_gelu_tanh(x);
    case LAM_ACT_SILU:
      return lam_silu(x);
    case LAM_ACT_RELU:
      return lam_relu(x);
    case LAM_ACT_RELU2:
      return lam_relu2(x);
    default:
      return x;
  }
}

LAM_DEVICE void lam_epilogue_store(const lam_epilogue &e, int64_t row, int64_t col, float sum) {
  sum *= (e.a_scale ? *e.a_scale : 1.0f) * (e.b_scale ? *e.b_scale : 1.0f);
  if (e.bias.data) sum += lam_view_get(e.bias, 0, col);
  if (e.aux.data) lam_element_set(lam_view_at(e.aux, row, col), e.aux.dtype, sum);
  sum = lam_act_of(e.act, sum);
  if (e.accumulate) sum += lam_view_get(e.d, row, col);
  lam_element_set(lam_view_at(e.d, row, col), e.d.dtype, sum);
}

#endif
