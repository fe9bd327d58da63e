/* reference_test.c: the references themselves: their gradients are those of their own forward
 * functions, by finite differences; their bounds are not so wide that anything would pass.
 * Leaves the library out. */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "tests/conformance/ops/problem.h"

#define H 1e-5     /* of a finite difference */
#define CLOSE 1e-7 /* its error: H^2 times a third derivative, and rounding / H */

static void run(const problem *pr) { reference_find(pr->op)->run(pr); }

/* The loss whose gradient for y is dy. */
static double loss(const problem *forward, const num *dy) {
  const int64_t n = ref_count(forward, &reference_find(forward->op)->out[0]);
  double sum = 0;
  run(forward);
  for (int64_t i = 0; i < n; i++) sum += forward->out[0][i].v * dy[i].v;
  return sum;
}

/* d loss / d element, for every element of an input of the forward function, against `gradient`. */
static void check_gradient(const problem *forward, const num *dy, int input, const num *gradient) {
  const int64_t n = ref_count(forward, &reference_find(forward->op)->in[input]);
  for (int64_t i = 0; i < n; i++) {
    num *x = &forward->in[input][i];
    const double at = x->v;
    x->v = at + H;
    const double above = loss(forward, dy);
    x->v = at - H;
    const double below = loss(forward, dy), slope = (above - below) / (2 * H);
    x->v = at;
    NOTE("input %d, element %lld: by differences %.12g, as told %.12g", input, (long long)i, slope,
         gradient[i].v);
    if (!CHECK(fabs(slope - gradient[i].v) <= CLOSE * (1 + fabs(slope)))) return;
  }
  run(forward); /* results are those of the given inputs again */
}

static problem sized(uint32_t op, int64_t act, int64_t gated) {
  problem pr = {.op = op, .p = 1, .ndim = 2, .S = 3, .B = 1, .K = 4, .N = 5, .F = 6};
  pr.bias = true;
  pr.split = 1;
  pr.act = act;
  pr.gated = gated;
  pr.save = row_has(op, "save");
  return pr;
}

/* Operands of `backward` that the forward problem has: copied, and the result made again. */
static void give(problem *backward, int input, const num *data) {
  const int64_t n = ref_count(backward, &reference_find(backward->op)->in[input]);
  memcpy(backward->in[input], data, (size_t)n * sizeof *data);
}

TEST(reference, of_linear_has_its_own_gradients) {
  for (int act = 0; act < N_ACTS; act++) {
    rng r = {seed() + (uint64_t)act};
    problem forward = sized(LAM_OP_linear, act, 0), through_act = sized(LAM_OP_act_bwd, act, 0);
    problem backward = sized(LAM_OP_linear_col_bwd, 0, 0);
    problem_fill(&forward, &r);
    problem_fill(&through_act, &r);
    problem_fill(&backward, &r);
    give(&through_act, 1, forward.out[1]);
    run(&through_act);
    give(&backward, 0, through_act.out[0]);
    give(&backward, 1, forward.in[0]);
    give(&backward, 2, forward.in[1]);
    run(&backward);
    NOTE("act %d", act);
    check_gradient(&forward, through_act.in[0], 0, backward.out[0]);
    check_gradient(&forward, through_act.in[0], 1, backward.out[1]);
    check_gradient(&forward, through_act.in[0], 2, backward.out[2]);
    problem_free(&forward);
    problem_free(&through_act);
    problem_free(&backward);
  }
}

TEST(reference, of_ffn_has_its_own_gradients) {
  for (int act = 0; act < N_ACTS; act++) FOR_EACH(gated, 0, 1) {
      rng r = {seed() + (uint64_t)act};
      problem forward = sized(LAM_OP_ffn, act, gated);
      problem backward = sized(LAM_OP_ffn_bwd, act, gated);
      problem_fill(&forward, &r);
      problem_fill(&backward, &r);
      give(&backward, 1, forward.in[0]);
      give(&backward, 2, forward.out[1]);
      give(&backward, 3, forward.in[1]);
      give(&backward, 4, forward.in[3]);
      run(&backward);
      const num *dy = backward.in[0];
      for (int i = 0; i < 5; i++) check_gradient(&forward, dy, i, backward.out[i]);
      problem_free(&forward);
      problem_free(&backward);
    }
}

TEST(reference, of_an_embedding_has_its_own_gradient) {
  rng r = {seed()};
  problem forward = sized(LAM_OP_embedding_vocab, 0, 0);
  problem backward = sized(LAM_OP_embedding_vocab_wgrad, 0, 0);
  problem_fill(&forward, &r);
  problem_fill(&backward, &r);
  give(&backward, 1, forward.in[0]);
  run(&backward);
  check_gradient(&forward, backward.in[0], 1, backward.out[0]);
  problem_free(&forward);
  problem_free(&backward);
}

TEST(reference, of_the_cross_entropy_has_its_own_gradient) {
  rng r = {seed()};
  problem forward = sized(LAM_OP_cross_entropy_vocab, 0, 0);
  problem backward = sized(LAM_OP_cross_entropy_vocab_bwd, 0, 0);
  forward.ignore = backward.ignore = -100;
  problem_fill(&forward, &r);
  problem_fill(&backward, &r);
  forward.in[1][0].v = -100; /* one that is ignored, one that is not */
  forward.in[1][1].v = 2;
  run(&forward);
  give(&backward, 1, forward.in[0]);
  give(&backward, 2, forward.in[1]);
  give(&backward, 3, forward.out[1]);
  run(&backward);
  check_gradient(&forward, backward.in[0], 0, backward.out[0]);
  problem_free(&forward);
  problem_free(&backward);
}

TEST(reference, of_the_norm_has_its_own_gradients) {
  rng r = {seed()};
  problem forward = sized(LAM_OP_rmsnorm, 0, 0), backward = sized(LAM_OP_rmsnorm_bwd, 0, 0);
  forward.eps = backward.eps = 1e-2;
  problem_fill(&forward, &r);
  problem_fill(&backward, &r);
  give(&backward, 1, forward.in[0]);
  give(&backward, 2, forward.in[1]);
  run(&backward);
  check_gradient(&forward, backward.in[0], 0, backward.out[0]);
  check_gradient(&forward, backward.in[0], 1, backward.out[1]);
  problem_free(&forward);
  problem_free(&backward);
}

/* A result that was rounded to bf16 twice, or in which one product of K is missing, is out of
 * bounds somewhere. */
TEST(reference, has_bounds_that_notice_a_missing_product) {
  problem pr = {.op = LAM_OP_linear, .p = 1, .ndim = 2, .S = 33, .B = 1, .K = 512, .N = 7, .F = 1};
  rng r = {seed()};
  int64_t noticed = 0;
  pr.split = pr.bias = 1;
  problem_fill(&pr, &r);
  /* Any of them: a small factor hides all its own products. */
  for (int64_t t = 0; t < pr.S; t++)
    for (int64_t j = 0; j < pr.N; j++)
      for (int64_t k = 0; k < pr.K; k++) {
        const double product = pr.in[0][t * pr.K + k].v * pr.in[1][j * pr.K + k].v;
        noticed += fabs(product) > pr.out[0][t * pr.N + j].e;
      }
  CHECK(noticed > pr.S * pr.N * pr.K * 9 / 10);
  problem_free(&pr);
}

TEST(reference, has_bounds_that_notice_a_second_rounding) {
  problem pr = {.op = LAM_OP_linear, .p = 1, .ndim = 2, .S = 33, .B = 1, .K = 64, .N = 7, .F = 1};
  rng r = {seed()};
  pr.split = pr.bias = pr.bf16 = 1;
  problem_fill(&pr, &r);
  for (int64_t i = 0; i < pr.S * pr.N; i++)
    CHECK(pr.out[0][i].e < 1.2 * 0x1p-8 * fabs(pr.out[0][i].v) + 1e-3);
  problem_free(&pr);
}
