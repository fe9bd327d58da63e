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
  const float unbias1 = (float)(1 / (1 - pow(a.beta1, (double)step + 1)));
  const float unbias2 = (float)(1 / (1 - pow(a.beta2, (double)step + 1)));
  const float decay = p->deviation == 0 ? 0 : a.decay;
  const int64_t n = param_size(p);
  float *restrict w = p->master, *restrict grad = p->grad, *restrict m = p->m, *restrict v = p->v;
#pragma omp parallel for simd
  for (int64_t i = 0; i < n; i++) {
    const float g = grad[i];
    m[i] = a.beta1 * m[i] + (1 - a.beta1) * g;
    v[i] = a.beta2 * v[i] + (1 - a.beta2) * g * g;
    w[i] -= a.rate * (m[i] * unbias1 / (sqrtf(v[i] * unbias2) + a.epsilon) + decay * w[i]);
    grad[i] = 0;
  }
  if (p->w.bits == 16) write_bf16(p->master, n, p->w.data);
}
