/* tied.c: weights that several stages share, an embedding and a head for one: each rank
 * that holds one sums the gradients of its stages in one tensor, and these are summed over the
 * ranks at the end of a step.
 *
 * Invariant: a shared weight is reduced once per step, by all ranks that hold it and no other, in
 * the order in which the host lists them; not at all where one rank holds it, as in a V.
 * Leaves replicas to the stages' reduce_grad, which has run by then. */
#include <inttypes.h>
#include <string.h>

#include "plugin/comm/comm.h"
#include "plugin/core/struct.h"
#include "plugin/core/tensor.h"
#include "plugin/pipeline/run/runtime.h"

#define WHO "lam_pipeline_create: "

/* -- reading -- */

static lam_status check_stages(const lam_pipeline *p, int number, const lam_tied *t) {
  if (t->n_stages < 2 || !t->stages)
    return lam_fail(LAM_INVALID_ARGUMENT, WHO "tied[%d] has %u stages%s, expected 2 or more",
                    number, t->n_stages, t->stages ? "" : " at NULL");
  for (uint32_t i = 0; i < t->n_stages; i++) {
    const int32_t before = i ? t->stages[i - 1] : -1, stage = t->stages[i];
    if (stage <= before || stage >= p->schedule->n_stages)
      return lam_fail(LAM_INVALID_ARGUMENT,
                      WHO "tied[%d].stages[%u] is %d, expected ascending stages below %d", number,
                      i, stage, p->schedule->n_stages);
  }
  return LAM_OK;
}

static bool is_summed(const lam_pipeline *p, lam_dtype t) {
  return p->device ? t == LAM_F32 || t == LAM_BF16 || t == LAM_F16 : lam_add_supported(t);
}

static lam_status read_shape(const lam_pipeline *p, int number, const lam_tied *given,
                             lam_tied_plan *out) {
  const lam_shape *s = &given->shape;
  if (!lam_dtype_from_dlpack(s->dtype, &out->dtype) || !is_summed(p, out->dtype))
    return lam_fail(LAM_UNIMPLEMENTED, WHO "tied[%d]: its dtype cannot be summed %s", number,
                    p->device ? "on a device, only f32, bf16 and f16"
                              : "here, only f32, bf16, f64, i32 and i64");
  if (s->ndim < 0 || s->ndim > 8)
    return lam_fail(LAM_INVALID_ARGUMENT, WHO "tied[%d].shape.ndim is %d, expected 0 to 8", number,
                    s->ndim);
  out->n = 1;
  for (int d = 0; d < s->ndim; d++)
    if (s->dims[d] < 0 || __builtin_mul_overflow(out->n, s->dims[d], &out->n))
      return lam_fail(LAM_INVALID_ARGUMENT,
                      WHO "tied[%d].shape.dims[%d] is %" PRId64
                          ", expected a tensor that fits in "
                          "memory",
                      number, d, s->dims[d]);
  return LAM_OK;
}

/* The stage of this rank that shares it, and whether other ranks do. */
static void find_holders(const lam_pipeline *p, const lam_tied *given, lam_tied_plan *out) {
  const int32_t *rank_of = p->schedule->rank_of_stage;
  out->stage = -1;
  for (uint32_t i = 0; i < given->n_stages; i++) {
    const int32_t stage = given->stages[i];
    if (rank_of[stage] == p->rank && out->stage < 0) out->stage = stage;
    out->crosses |= rank_of[stage] != rank_of[given->stages[0]];
  }
}

static lam_status read_tied(lam_pipeline *p, int number, const lam_tied *given,
                            lam_tied_plan *out) {
  LAM_TRY(lam_struct_check("lam_pipeline_create", "lam_tied", given, sizeof *given));
  LAM_TRY(check_stages(p, number, given));
  LAM_TRY(read_shape(p, number, given, out));
  find_holders(p, given, out);
  if ((out->stage >= 0) != (given->gradient != NULL))
    return lam_fail(LAM_INVALID_ARGUMENT,
                    WHO "tied[%d].gradient is %s, and rank %d holds %s of its stages", number,
                    given->gradient ? "given" : "NULL", p->rank, out->stage < 0 ? "none" : "one");
  out->gradient = given->gradient;
  uint64_t h = lam_mix(p->tied_hash, (uint64_t)out->n << 8 | (uint64_t)out->dtype);
  for (uint32_t i = 0; i < given->n_stages; i++) h = lam_mix(h, (uint64_t)given->stages[i] + 1);
  p->tied_hash = h;
  return LAM_OK;
}

lam_status lam_tied_read(lam_pipeline *p, const lam_pipeline_desc *d) {
  if (d->n_tied == 0 || p->forward_only) return LAM_OK;
  if (!d->tied) return lam_fail(LAM_INVALID_ARGUMENT, WHO "tied is NULL");
  LAM_TRY(lam_pipeline_alloc(p, d->n_tied, sizeof *p->tied, &p->tied));
  p->n_tied = (int)d->n_tied;
  p->tied_hash = d->n_tied;
  for (int i = 0; i < p->n_tied; i++) {
    const uint32_t stride = d->tied->struct_size; /* the caller's */
    const void *given = (const unsigned char *)d->tied + (size_t)i * stride;
    LAM_TRY(read_tied(p, i, given, &p->tied[i]));
  }
  return LAM_OK;
}

/* -- a group of the ranks that hold it -- */

lam_status lam_tied_open(lam_pipeline *p) {
  for (int i = 0; i < p->n_tied; i++) {
    lam_tied_plan *t = &p->tied[i];
    if (!t->crosses) continue;
    const lam_status status = lam_group_split(p->group, t->stage >= 0 ? 0 : -1, p->rank, &t->group);
    if (status) return lam_fail_within(status, WHO "rank %d, tied[%d]", p->rank, i);
  }
  return LAM_OK;
}

void lam_tied_close(lam_pipeline *p) {
  for (int i = 0; i < p->n_tied; i++)
    if (p->tied[i].group) lam_group_destroy(p->tied[i].group);
}

lam_status lam_tied_reduce(lam_pipeline *p) {
  for (int i = 0; i < p->n_tied; i++) {
    const lam_tied_plan *t = &p->tied[i];
    if (!t->group) continue;
    const lam_comm_op op = {.op = LAM_COMM_PIPELINE,
                            .dtype = (uint16_t)t->dtype,
                            .ndim = 1,
                            .dims = {t->n},
                            .extra = i};
    lam_place_tell(p, t->group);
    const lam_status status =
        lam_group_all_reduce(t->group, &op, t->gradient, t->gradient, t->n, t->dtype);
    t->group->device = NULL;
    if (status)
      return lam_fail_within(status, "rank %d, step %lld, tied[%d] of stage %d", p->rank,
                             (long long)p->step, i, t->stage);
  }
  return LAM_OK;
}
