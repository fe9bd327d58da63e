/* problem.c: making problems, and running them on ranks that are threads.
 * Invariant: a problem's data depend on its seed alone, never on the ranks' timing.
 * Leaves a rank's own tensors to shard.c. */
#include "tests/conformance/ops/problem.h"

#include <stdlib.h>
#include <string.h>

#include "tests/conformance/ops/shard.h"

/* -- what a row has -- */

/* "id name | inputs | outputs | attributes | ...": does field 3 name it? */
bool row_has(uint32_t op, const char *attr) {
  char names[16][16];
  const int n = row_attrs(op, names);
  for (int i = 0; i < n; i++)
    if (strcmp(names[i], attr) == 0) return true;
  return false;
}

static bool has_lies(const reference *ref, lies l) {
  for (int i = 0; i < 8; i++)
    if ((ref->in[i].dims && ref->in[i].lies == l) || (ref->out[i].dims && ref->out[i].lies == l))
      return true;
  return false;
}

/* -- chance -- */

static bool coin(rng *r) { return rng_int(r, 0, 1) != 0; }

static int64_t pick_tokens(rng *r) {
  static const int64_t few[] = {0, 1, 1, 2, 3, 5, 7, 8, 9, 33};
  return few[rng_int(r, 0, 9)];
}

/* A multiple of unit, mostly small and odd, now and then past a kernel's blocks. */
static int64_t pick_features(rng *r, int64_t unit) {
  return unit * rng_int(r, 1, rng_int(r, 0, 7) == 0 ? 90 : 14);
}

static void pick_sizes(problem *pr, rng *r) {
  pr->ndim = (int)rng_int(r, 1, 3);
  pr->S = pr->ndim == 1 ? 1 : pick_tokens(r);
  pr->B = pr->ndim == 3 ? rng_int(r, 1, 3) : 1;
  pr->unit = rng_int(r, 0, 4);
  const int64_t unit = pr->unit ? pr->unit : 1;
  pr->K = pick_features(r, unit);
  pr->N = pick_features(r, unit);
  pr->F = pick_features(r, unit);
}

static bool is_vocabulary(uint32_t op) {
  return op >= LAM_OP_embedding_vocab && op <= LAM_OP_cross_entropy_vocab_bwd;
}

/* Without total, each rank is taken to hold as much as the others wherever the whole is not at
 * hand. */
static bool needs_total(const problem *pr) {
  switch (pr->op) {
    case LAM_OP_all_gather:
    case LAM_OP_gather_from_group:
    case LAM_OP_gather_sequence:
    case LAM_OP_embedding_vocab:
    case LAM_OP_embedding_vocab_wgrad:
    case LAM_OP_cross_entropy_vocab:
    case LAM_OP_cross_entropy_vocab_bwd:
      return true;
    case LAM_OP_linear_col:
      return pr->gather;
    case LAM_OP_linear_row_dgrad:
    case LAM_OP_linear_row_bwd:
      return !pr->split;
    default:
      return false;
  }
}

static void pick_total(problem *pr, rng *r, const reference *ref) {
  const int64_t unit = pr->unit ? pr->unit : 1;
  const bool of_n = pr->op == LAM_OP_linear_col || is_vocabulary(pr->op);
  int64_t whole = of_n ? pr->N : pr->K;
  if (has_lies(ref, ALONG)) whole = along_size(pr);
  /* A gradient of an embedding does not show how many rows there are. */
  const bool even = whole % (unit * pr->p) == 0 && pr->op != LAM_OP_embedding_vocab_wgrad;
  pr->total = (even || !needs_total(pr)) && coin(r) ? 0 : whole;
}

static void pick_attrs(problem *pr, rng *r, const reference *ref, int turn) {
  static const int64_t chunks[] = {0, 1, 2, 3, 100};
  const uint32_t op = pr->op;
  pr->act = row_has(op, "act") ? turn % N_ACTS : 0;
  pr->save = row_has(op, "save") && coin(r);
  pr->gather = row_has(op, "gather") && coin(r);
  pr->gated = row_has(op, "gated") && coin(r);
  pr->split = row_has(op, "split") ? coin(r) : 1;
  pr->acc = row_has(op, "acc") && coin(r);
  pr->chunks = chunks[turn % 5];
  pr->root = rng_int(r, 0, pr->p - 1);
  pr->seq = row_has(op, "seq") && pr->ndim > 1 && coin(r) ? pr->S : 0;
  pr->dim =
      op == LAM_OP_all_gather || op == LAM_OP_reduce_scatter ? rng_int(r, 0, pr->ndim - 1) : 0;
  if (has_lies(ref, ALONG) && pr->dim < pr->ndim - 1) pr->unit = rng_int(r, 0, 1);
  pr->bias = coin(r);
  pr->bias_f32 = pr->bf16 && coin(r);
  pr->out_f32 = pr->bf16 && row_has(op, "dtype") && coin(r);
  pr->grad_f32 = pr->bf16 && row_has(op, "acc") && coin(r);
  if (op == LAM_OP_rmsnorm_bwd && pr->bias_f32) pr->grad_f32 = true; /* dg is as g, or f32 */
  pr->eps = row_has(op, "eps") ? (coin(r) ? 1e-2 : 1e-5) : 0;
  pr->packed = coin(r);
  pr->ids_i64 = coin(r);
  pr->ignore = coin(r) ? -100 : 0; /* what is no index, or one that is */
}

void problem_make(problem *pr, rng *r, uint32_t op, int p, int bits, int turn) {
  const reference *ref = reference_find(op);
  *pr = (problem){.op = op, .p = p, .bf16 = bits != F32_BITS, .f16 = bits == F16_BITS};
  pick_sizes(pr, r);
  pick_attrs(pr, r, ref, turn);
  pick_total(pr, r, ref);
  problem_fill(pr, r);
}

/* -- data -- */

/* Numbers that the operand's dtype holds exactly. */
static num *random_numbers(const problem *pr, const operand *o, rng *r, bool bf16, float scale) {
  const int64_t n = ref_count(pr, o) * (o->lies == PARTS ? pr->p : 1);
  num *a = calloc((size_t)(n > 0 ? n : 1), sizeof *a);
  for (int64_t i = 0; i < n; i++) {
    const float v = scale * rng_float(r);
    a[i].v = !bf16 ? v : pr->f16 ? f16_value(v) : bf16_value(v);
  }
  return a;
}

static num *random_indices(const problem *pr, const operand *o, rng *r) {
  const int64_t n = ref_count(pr, o);
  num *a = calloc((size_t)(n > 0 ? n : 1), sizeof *a);
  for (int64_t i = 0; i < n; i++) {
    const bool ignored = (o->marks & MAY_IGNORE) && rng_int(r, 0, 4) == 0;
    a[i].v = (double)(ignored ? pr->ignore : rng_int(r, 0, pr->N - 1));
  }
  return a;
}

static num *random_input(const problem *pr, const operand *o, rng *r) {
  const bool bends = strcmp(o->dims, "TG") == 0 || pr->op == LAM_OP_act_bwd; /* activations */
  const bool f32 = ((o->marks & (BIAS | GAIN)) && pr->bias_f32) || (o->marks & VALUE);
  const float scale = bends ? 3 : is_vocabulary(pr->op) && !strcmp(o->dims, "TN") ? 8 : 1;
  if (o->marks & INDEX) return random_indices(pr, o, r);
  return random_numbers(pr, o, r, pr->bf16 && !f32, scale);
}

static bool operand_here(const problem *pr, const operand *o) {
  return o->dims && (!(o->marks & BIAS) || pr->bias) && (!(o->marks & SAVED) || pr->save);
}

void problem_fill(problem *pr, rng *r) {
  const reference *ref = reference_find(pr->op);
  pr->in_steps = !place_is_host();
  for (int i = 0; i < 8; i++) {
    const operand *in = &ref->in[i], *out = &ref->out[i];
    if (operand_here(pr, in)) pr->in[i] = random_input(pr, in, r);
    if (operand_here(pr, out)) pr->out[i] = random_numbers(pr, out, r, pr->bf16, 1);
    if (pr->out[i] && (out->marks & ADDED))
      pr->old[i] = copy_numbers(pr->out[i], ref_count(pr, out));
  }
  ref->run(pr);
}

void problem_free(problem *pr) {
  for (int i = 0; i < 8; i++) {
    free(pr->in[i]);
    free(pr->out[i]);
    free(pr->old[i]);
  }
}

/* -- running -- */

typedef struct crew {
  ranks *all;
  problem *problems;
  int n;
  uint64_t (*marks)[64][8]; /* [problem][rank][output]: a hash of what is whole on every rank */
  meeting_place all_ranks;
} crew;

lam_status open_shm(const ranks *all, lam_context *ctx, int rank, lam_group **out_group) {
  const char *engine = getenv("LAMELLA_TEST_ENGINE");
  lam_group_desc desc = LAM_GROUP_DESC_INIT;
  desc.rank = rank;
  desc.size = all->p;
  desc.deadline_ms = 20000;
  desc.first_deadline_ms = 20000;
  desc.engine = engine ? engine : "shm";
  if (engine) place_take(rank);
  desc.id = all->id;
  return lam_group_create(ctx, &desc, out_group);
}

static void work(int rank, int size, void *arg) {
  crew *c = arg;
  lam_context_desc desc = LAM_CONTEXT_DESC_INIT;
  lam_context *ctx = NULL;
  lam_group *g = NULL;
  (void)size;
  desc.threads = 1;
  REQUIRE_OK(lam_context_create(&desc, &ctx));
  REQUIRE_OK(c->all->open(c->all, ctx, rank, &g));
  rng r = {seed() + (uint64_t)rank};
  for (int i = 0; i < c->n; i++)
    if (!shard_run(&c->problems[i], ctx, g, rank, &r, &c->all_ranks, c->marks[i][rank])) break;
  meet_no_more(&c->all_ranks);
  lam_group_destroy(g);
  lam_context_destroy(ctx);
}

static void check_marks(const crew *c) {
  for (int i = 0; i < c->n; i++)
    for (int rank = 1; rank < c->all->p; rank++)
      for (int out = 0; out < 8; out++) {
        NOTE("%s", problem_text(&c->problems[i]));
        if (!CHECK(c->marks[i][rank][out] == c->marks[i][0][out])) return;
      }
}

void problems_run(ranks *all, problem *problems, int n) {
  crew c = {.all = all, .problems = problems, .n = n, .marks = calloc((size_t)n, sizeof *c.marks)};
  meet_at(&c.all_ranks, all->p);
  REQUIRE_OK(lam_group_id_create(&all->id));
  run_threads(all->p, work, &c);
  check_marks(&c);
  free(c.marks);
}
