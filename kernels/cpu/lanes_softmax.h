/* lanes_softmax.h: the loops of a softmax, as part of lanes_body.h, which includes it.
 * Invariant: a block's lanes are combined at the end only, by halves, so the order of a sum follows
 * from the length of its line. Leaves longer lines than fit in a cache to the callers. */
#define LEAST lam_f32_of_bits(0xff800000u) /* -infinity */

/* n <= BLOCK elements from `at` on; the rest of v is -infinity. */
LANES_INLINE void load_or_least(lam_line x, int64_t at, int n, float *v) {
  load(x, at, n, v);
  for (int i = n; i < BLOCK; i++) v[i] = LEAST;
}

LANES_INLINE float greater(float a, float b) { return a > b ? a : b; }

LANES_FN float max(lam_line x, int64_t n) {
  float most[BLOCK], v[BLOCK];
  for (int i = 0; i < BLOCK; i++) most[i] = LEAST;
  for (int64_t at = 0; at < n; at += BLOCK) {
    load_or_least(x, at, block_at(at, n), v);
    for (int i = 0; i < BLOCK; i++) most[i] = greater(v[i], most[i]);
  }
  for (int half = BLOCK / 2; half > 0; half /= 2)
    for (int i = 0; i < half; i++) most[i] = greater(most[i + half], most[i]);
  return most[0];
}

LANES_FN float exp_sum(lam_line x, float shift, int64_t n) {
  float total[BLOCK] = {0}, v[BLOCK];
  for (int64_t at = 0; at < n; at += BLOCK) {
    load_or_least(x, at, block_at(at, n), v);
    for (int i = 0; i < BLOCK; i++) total[i] += lam_exp(v[i] - shift);
  }
  for (int half = BLOCK / 2; half > 0; half /= 2)
    for (int i = 0; i < half; i++) total[i] += total[i + half];
  return total[0];
}

LANES_FN void exp_scaled(lam_line x, float shift, float scale, lam_line y, int64_t n) {
  float v[BLOCK];
  for (int64_t at = 0; at < n; at += BLOCK) {
    const int w = block_at(at, n);
    load(x, at, w, v);
    for (int i = 0; i < BLOCK; i++) v[i] = scale * lam_exp(v[i] - shift);
    store(y, at, w, v);
  }
}

#undef LEAST
