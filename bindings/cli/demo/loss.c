/* loss.c: cross entropy of next-byte predictions, and its gradient in the logits' place.
 *
 * Invariant: d logits = (softmax - target) * scale; arithmetic is f32, the sum over rows double. */
#include <math.h>

#include "bindings/cli/demo/demo.h"
#include "bindings/cli/demo/rows.h"
#include "bindings/cli/demo/vector.h"

static float highest_of(const float *logits) {
  lanes highest = lanes_of(logits[0]);
  for (int i = 0; i < VOCAB; i += LANES) highest = larger(highest, *lanes_at(logits + i));
  return lanes_highest(highest);
}

/* One row of logits to e^(logit - highest); gives their sum. */
static float exponents(const float *logits, float highest, float *to) {
  lanes sum = {0};
  for (int i = 0; i < VOCAB; i += LANES)
    sum += *lanes_at(to + i) = lanes_exp(*lanes_at(logits + i) - highest);
  return lanes_sum(sum);
}

double cross_entropy(matrix logits, const uint8_t *targets, float scale) {
  double loss = 0;
#pragma omp parallel for reduction(+ : loss)
  for (int64_t t = 0; t < logits.rows; t++) {
    float room[VOCAB], powers[VOCAB];
    const float *row = row_load(logits, t, room);
    const float highest = highest_of(row), target = row[targets[t]];
    const float sum = exponents(row, highest, powers);
    loss += logf(sum) + highest - target;
    float *to = row_open(logits, t, room);
#pragma omp simd
    for (int i = 0; i < VOCAB; i++) to[i] = powers[i] * (scale / sum);
    to[targets[t]] -= scale;
    row_store(logits, t, to);
  }
  return loss / (double)logits.rows;
}
