/* adamw.c: the optimizer (Loshchilov and Hutter 2019) on f32 weights; a bf16 copy is made again
 * from them.
 *
 * Invariant: gradients are zero afterwards, so every product of the next step may add to them.
 * Matrices decay, norms do not. */
#include <math.h>

#include "bindings/cli/demo/demo.h"
#include "bindings/cli/demo/rows.h"

/* Up over the first steps, then along a cosine down to a tenth. */
adamw adamw_at(int64_t step, int64_t steps) {
  const double highest = 3e-3, warm = 6, at = (double)step,
               rest = steps > warm ? (double)steps - warm : 1;
  const double rate = at < warm
                          ? highest * (at + 1) / warm
                          : highest * (0.55 + 0.45 * cos(3.141592653589793 * (at - warm) / rest));
  return (adamw){
      .rate = (float)rate, .beta1 = 0.9f, .beta2 = 0.95f, .epsilon = 1e-8f, .decay = 0.01f};
}

void adamw_step(param *p, adamw a, int64_t step) {
  a.unbias1 = (float)(1 / (1 - pow(a.beta1, (double)step + 1)));
  a.unbias2 = (float)(1 / (1 - pow(a.beta2, (double)step + 1)));
  if (p->deviation == 0) a.decay = 0;
  here->adamw(a, param_size(p), p->master, p->grad, p->m, p->v,
              p->w.bits == 16 ? (uint16_t *)p->w.data : NULL);
}

void adamw_update(adamw a, int64_t n, float *restrict w, float *restrict grad, float *restrict m,
                  float *restrict v, uint16_t *bf16) {
#pragma omp parallel for simd
  for (int64_t i = 0; i < n; i++) {
    w[i] = adamw_weight(a, w[i], grad[i], &m[i], &v[i]);
    grad[i] = 0;
  }
  if (bf16) write_bf16(w, n, bf16);
}
