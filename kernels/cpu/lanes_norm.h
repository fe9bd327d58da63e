/* lanes_norm.h: the loops of a root mean square norm, as part of lanes_body.h, which includes it.
 * Invariant: as lanes_softmax.h: the order of a sum follows from the length of its line. Leaves
 * roots and means to norm.c. */

/* v times the same elements of x, where x is here */
LANES_INLINE void times_line(lam_line x, int64_t at, int n, float *v) {
  float u[BLOCK];
  if (!x.data) return;
  load(x, at, n, u);
  for (int i = 0; i < BLOCK; i++) v[i] *= u[i];
}

LANES_FN float product_sum(lam_line a, lam_line b, lam_line c, int64_t n) {
  float total[BLOCK] = {0}, v[BLOCK], u[BLOCK];
  for (int64_t at = 0; at < n; at += BLOCK) {
    const int w = block_at(at, n);
    load(a, at, w, v);
    times_line(c, at, w, v);
    load(b, at, w, u);
    for (int i = 0; i < BLOCK; i++) total[i] = LAM_FMA(v[i], u[i], total[i]);
  }
  for (int half = BLOCK / 2; half > 0; half /= 2)
    for (int i = 0; i < half; i++) total[i] += total[i + half];
  return total[0];
}

LANES_FN void scale(lam_line x, float by, lam_line g, lam_line y, int64_t n) {
  float v[BLOCK];
  for (int64_t at = 0; at < n; at += BLOCK) {
    const int w = block_at(at, n);
    load(x, at, w, v);
    for (int i = 0; i < BLOCK; i++) v[i] *= by;
    times_line(g, at, w, v);
    store(y, at, w, v);
  }
}

LANES_FN void scale_less(lam_line dy, lam_line g, float by, lam_line x, float less, lam_line dx,
                         int64_t n) {
  float v[BLOCK], u[BLOCK];
  for (int64_t at = 0; at < n; at += BLOCK) {
    const int w = block_at(at, n);
    load(dy, at, w, v);
    times_line(g, at, w, v);
    load(x, at, w, u);
    for (int i = 0; i < BLOCK; i++) v[i] = LAM_FMA(v[i], by, -(u[i] * less));
    store(dx, at, w, v);
  }
}

LANES_FN void add_product(lam_line a, lam_line b, float by, float *total, int64_t n) {
  float v[BLOCK];
  for (int64_t at = 0; at < n; at += BLOCK) {
    const int w = block_at(at, n);
    load(a, at, w, v);
    times_line(b, at, w, v);
    for (int i = 0; i < BLOCK; i++) total[at + i] = LAM_FMA(v[i], by, total[at + i]);
  }
}
