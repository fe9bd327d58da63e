/* lt_rules.c: which products the stand-in for cuBLASLt takes, and with which of its three
 * algorithms.
 *
 * As NVIDIA documents it for compute type 32F: types, fp8 only as A^T B with K and M in sixteens on
 * sm_89 and later, epilogues' vectors and auxiliary matrices; what it leaves open is decided the
 * narrow way, so that callers' other paths are taken too.
 *   1: operands aligned to 16 bytes
 *   2: the same, K in two halves, whose sums meet in the workspace
 *   3: any alignment; no auxiliary matrix, no sums, no fp8
 * Invariant: a check never depends on values in device memory. Leaves pointers to lt.c. */
#include "tests/standin/lt.h"

/* -- types and epilogues -- */

int lt_bytes(int32_t type) {
  switch (type) {
    case CUDA_R_32F:
      return 4;
    case CUDA_R_16BF:
    case CUDA_R_16F:
      return 2;
    case CUDA_R_8F_E4M3:
    case CUDA_R_8F_E5M2:
      return 1;
    default:
      return 0;
  }
}

bool lt_is_f8(int32_t type) { return type == CUDA_R_8F_E4M3 || type == CUDA_R_8F_E5M2; }

enum { BIAS = 1, GELU = 2, DGELU = 4, AUX = 8, SUM = 16, RELU = 32 };

static const struct {
  uint32_t epilogue;
  int parts;
} epilogues[] = {
    {CUBLASLT_EPILOGUE_DEFAULT, 0},           {CUBLASLT_EPILOGUE_BIAS, BIAS},
    {CUBLASLT_EPILOGUE_RELU, RELU},           {CUBLASLT_EPILOGUE_RELU_BIAS, RELU | BIAS},
    {CUBLASLT_EPILOGUE_GELU, GELU},           {CUBLASLT_EPILOGUE_GELU_BIAS, GELU | BIAS},
    {CUBLASLT_EPILOGUE_GELU_AUX, GELU | AUX}, {CUBLASLT_EPILOGUE_GELU_AUX_BIAS, GELU | AUX | BIAS},
    {CUBLASLT_EPILOGUE_DGELU, DGELU | AUX},   {CUBLASLT_EPILOGUE_DGELU_BGRAD, DGELU | AUX | SUM},
    {CUBLASLT_EPILOGUE_BGRADA, SUM},          {CUBLASLT_EPILOGUE_BGRADB, SUM},
};

static int parts_of(uint32_t epilogue) {
  for (size_t i = 0; i < sizeof epilogues / sizeof *epilogues; i++)
    if (epilogues[i].epilogue == epilogue) return epilogues[i].parts;
  return -1;
}

bool lt_has_bias(uint32_t epilogue) { return parts_of(epilogue) & BIAS; }
bool lt_has_gelu(uint32_t epilogue) { return parts_of(epilogue) & GELU; }
bool lt_has_dgelu(uint32_t epilogue) { return parts_of(epilogue) & DGELU; }
bool lt_has_aux(uint32_t epilogue) { return parts_of(epilogue) & AUX; }
bool lt_has_sum(uint32_t epilogue) { return parts_of(epilogue) & SUM; }

int32_t lt_bias_type(const lt_problem *p) {
  return p->desc.bias_type >= 0 ? p->desc.bias_type : p->d.type;
}

/* -- rules -- */

static bool takes_types(const lt_problem *p) {
  const int32_t a = p->a.type, b = p->b.type, d = p->d.type;
  if (p->c.type != d || p->desc.scale_type != CUDA_R_32F) return false;
  if (p->desc.compute == CUBLAS_COMPUTE_32F_FAST_TF32)
    return a == CUDA_R_32F && b == CUDA_R_32F && d == CUDA_R_32F;
  if (p->desc.compute != CUBLAS_COMPUTE_32F) return false;
  if (lt_is_f8(a) && lt_is_f8(b))
    return !(a == CUDA_R_8F_E5M2 && b == CUDA_R_8F_E5M2) && !lt_is_f8(d) && lt_bytes(d);
  return a == b && lt_bytes(a) && !lt_is_f8(a) && (d == a || d == CUDA_R_32F);
}

static bool takes_f8(const lt_problem *p) {
  if (!lt_is_f8(p->a.type)) return true;
  const bool tn = p->desc.transa == CUBLAS_OP_T && p->desc.transb == CUBLAS_OP_N;
  return si_machine_is.sm >= LT_F8_FROM_SM && tn && p->m % 16 == 0 && p->k % 16 == 0 &&
         !lt_has_aux(p->desc.epilogue) && !lt_has_sum(p->desc.epilogue);
}

/* The bias has D's type; under fp8 f32 results take bf16. */
static bool takes_bias(const lt_problem *p) {
  if (!lt_has_bias(p->desc.epilogue) && !lt_has_sum(p->desc.epilogue)) return true;
  const bool f8_to_f32 = lt_is_f8(p->a.type) && p->d.type == CUDA_R_32F;
  return lt_bias_type(p) == (f8_to_f32 ? CUDA_R_16BF : p->d.type);
}

static bool takes_aux(const lt_problem *p) {
  if (!lt_has_aux(p->desc.epilogue)) return true;
  const int32_t type = p->desc.aux_type >= 0 ? p->desc.aux_type : p->d.type;
  return type == p->d.type && p->desc.aux_ld >= (int64_t)p->m && p->desc.aux_ld % 8 == 0;
}

static bool takes_orders(const lt_problem *p) {
  const bool by_rows = p->a.order || p->b.order || p->d.order;
  if (p->c.order != p->d.order) return false;
  return !by_rows || (p->desc.epilogue == CUBLASLT_EPILOGUE_DEFAULT && !lt_is_f8(p->a.type));
}

static bool is_sound(const lt_layout *l) {
  const uint64_t line = l->order == CUBLASLT_ORDER_COL ? l->rows : l->cols;
  return l->rows > 0 && l->cols > 0 && l->ld >= (int64_t)line && l->batch == 1 &&
         (l->order == CUBLASLT_ORDER_COL || l->order == CUBLASLT_ORDER_ROW);
}

static bool sizes_fit(lt_problem *p) {
  const bool ta = p->desc.transa != CUBLAS_OP_N, tb = p->desc.transb != CUBLAS_OP_N;
  p->m = p->d.rows, p->n = p->d.cols, p->k = ta ? p->a.rows : p->a.cols;
  return (ta ? p->a.cols : p->a.rows) == p->m && (tb ? p->b.rows : p->b.cols) == p->n &&
         (tb ? p->b.cols : p->b.rows) == p->k && p->c.rows == p->m && p->c.cols == p->n;
}

cublasStatus_t lt_check(lt_problem *p) {
  if (!is_sound(&p->a) || !is_sound(&p->b) || !is_sound(&p->c) || !is_sound(&p->d) || !sizes_fit(p))
    return CUBLAS_STATUS_INVALID_VALUE;
  if ((p->desc.a_scale || p->desc.b_scale) && !lt_is_f8(p->a.type))
    return CUBLAS_STATUS_INVALID_VALUE;
  const bool taken = parts_of(p->desc.epilogue) >= 0 && takes_types(p) && takes_f8(p) &&
                     takes_bias(p) && takes_aux(p) && takes_orders(p) &&
                     p->desc.pointer_mode == CUBLASLT_POINTER_MODE_HOST;
  return taken ? CUBLAS_STATUS_SUCCESS : CUBLAS_STATUS_NOT_SUPPORTED;
}

/* -- algorithms -- */

unsigned lt_alignment(int id, int32_t type) { return id == 3 ? (unsigned)lt_bytes(type) : 16; }

static bool is_aligned(const lt_layout *l, int id) {
  return (uint64_t)l->ld * (uint64_t)lt_bytes(l->type) % lt_alignment(id, l->type) == 0;
}

cublasStatus_t lt_check_choice(const lt_problem *p, int id, uint64_t *out_workspace) {
  *out_workspace = id == 2 ? (2 * p->m * p->n * sizeof(float) + 255) / 256 * 256 : 0;
  if (id < 1 || id > 3) return CUBLAS_STATUS_INVALID_VALUE;
  if (id == 3 &&
      (lt_is_f8(p->a.type) || lt_has_aux(p->desc.epilogue) || lt_has_sum(p->desc.epilogue)))
    return CUBLAS_STATUS_NOT_SUPPORTED;
  const bool fits = is_aligned(&p->a, id) && is_aligned(&p->b, id) && is_aligned(&p->c, id) &&
                    is_aligned(&p->d, id);
  return fits ? CUBLAS_STATUS_SUCCESS : CUBLAS_STATUS_NOT_SUPPORTED;
}

static bool promises(const lt_problem *p, const lt_preference *pref, int id) {
  const int32_t types[] = {p->a.type, p->b.type, p->c.type, p->d.type};
  for (int i = 0; i < 4; i++)
    if (pref->align[i] % lt_alignment(id, types[i])) return false;
  return id != 2 || pref->reductions & CUBLASLT_REDUCTION_SCHEME_COMPUTE_TYPE;
}

int lt_choices(const lt_problem *p, const lt_preference *pref, lt_choice out[3]) {
  const int first = (int)si_chance(3);
  int n = 0;
  for (int i = 0; i < 3; i++) {
    lt_choice c = {1 + (first + i) % 3, 0};
    if (lt_check_choice(p, c.id, &c.workspace) == CUBLAS_STATUS_SUCCESS &&
        c.workspace <= pref->workspace && promises(p, pref, c.id))
      out[n++] = c;
  }
  return n;
}
