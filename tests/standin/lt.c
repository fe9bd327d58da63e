/* lt.c: cuBLASLt's calls: handles, descriptors, heuristics, and the product's checks.
 *
 * Invariant: descriptors are handles, too: no call sees one that was destroyed. A product is queued
 * only when all that it will touch was found in memory that its device reaches.
 * Leaves what is supported to lt_rules.c, arithmetic to lt_run.c. */
#include "tests/standin/lt.h"

#include <stdlib.h>
#include <string.h>

typedef enum sort { HANDLE, DESC, LAYOUT, PREFERENCE } sort;

typedef struct object {
  sort sort;
  int device; /* of a handle */
  union {
    lt_desc desc;
    lt_layout layout;
    lt_preference preference;
  } is;
} object;

static const char *const sorts[] = {"handle", "matmul descriptor", "matrix layout", "preference"};

static object *make(sort sort, void **out) {
  object *o = si_new(sizeof *o);
  o->sort = sort;
  *out = si_handle_new(SI_LT, o);
  return o;
}

static object *find(const void *handle, sort sort, const char *who) {
  object *o = si_handle_find(SI_LT, handle, who);
  if (o && o->sort != sort) {
    si_report("%s: %p is a %s, not a %s", who, handle, sorts[o->sort], sorts[sort]);
    return NULL;
  }
  return o;
}

static cublasStatus_t leave(cublasStatus_t status) {
  si_leave_as_is(cudaSuccess);
  return status;
}

static cublasStatus_t destroy(const void *handle, sort sort, const char *who) {
  if (!handle) return CUBLAS_STATUS_SUCCESS;
  si_enter();
  object *o = find(handle, sort, who);
  if (o) si_handle_drop(SI_LT, handle);
  free(o);
  return leave(o ? CUBLAS_STATUS_SUCCESS : CUBLAS_STATUS_INVALID_VALUE);
}

/* -- the library -- */

size_t CUBLASWINAPI cublasLtGetVersion(void) { return CUBLAS_VERSION; }

static const struct {
  cublasStatus_t code;
  const char *name, *text;
} statuses[] = {
#define ROW(code, text) {code, #code, text},
    ROW(CUBLAS_STATUS_SUCCESS, "the operation completed successfully")
        ROW(CUBLAS_STATUS_NOT_INITIALIZED, "the library was not initialized")
            ROW(CUBLAS_STATUS_ALLOC_FAILED, "the resource allocation failed")
                ROW(CUBLAS_STATUS_INVALID_VALUE,
                    "an unsupported value or parameter was passed to the function")
                    ROW(CUBLAS_STATUS_ARCH_MISMATCH,
                        "the function requires an architectural feature absent from the device")
                        ROW(CUBLAS_STATUS_EXECUTION_FAILED, "the GPU program failed to execute")
                            ROW(CUBLAS_STATUS_INTERNAL_ERROR, "an internal operation failed")
                                ROW(CUBLAS_STATUS_NOT_SUPPORTED,
                                    "the functionality requested is not supported")
#undef ROW
};

const char *CUBLASWINAPI cublasLtGetStatusName(cublasStatus_t status) {
  for (size_t i = 0; i < sizeof statuses / sizeof *statuses; i++)
    if (statuses[i].code == status) return statuses[i].name;
  return "an unknown status";
}

const char *CUBLASWINAPI cublasLtGetStatusString(cublasStatus_t status) {
  for (size_t i = 0; i < sizeof statuses / sizeof *statuses; i++)
    if (statuses[i].code == status) return statuses[i].text;
  return "an unknown status";
}

cublasStatus_t CUBLASWINAPI cublasLtCreate(cublasLtHandle_t *out) {
  si_enter();
  *out = NULL;
  if (si_lost(si_device) != cudaSuccess) return leave(CUBLAS_STATUS_NOT_INITIALIZED);
  void *handle;
  make(HANDLE, &handle)->device = si_device;
  *out = handle;
  return leave(CUBLAS_STATUS_SUCCESS);
}

cublasStatus_t CUBLASWINAPI cublasLtDestroy(cublasLtHandle_t handle) {
  return destroy(handle, HANDLE, __func__);
}

/* -- descriptors -- */

/* An attribute and where it lies. */
typedef struct field {
  int attribute;
  size_t offset, bytes;
} field;

#define FIELD(type, attribute, member) \
  { attribute, offsetof(type, member), sizeof(((type *)NULL)->member) }

static cublasStatus_t set(void *of, const field *fields, size_t n, int attribute, const void *value,
                          size_t bytes, const char *who) {
  for (size_t i = 0; i < n; i++) {
    if (fields[i].attribute != attribute) continue;
    if (!value || bytes != fields[i].bytes) {
      si_report("%s: attribute %d has %zu bytes, %zu are given", who, attribute, fields[i].bytes,
                bytes);
      return CUBLAS_STATUS_INVALID_VALUE;
    }
    memcpy((char *)of + fields[i].offset, value, bytes);
    return CUBLAS_STATUS_SUCCESS;
  }
  si_report("%s: attribute %d is not in the stand-in", who, attribute);
  return CUBLAS_STATUS_INVALID_VALUE;
}

#define SET(object, fields, attribute, value, bytes) \
  set(object, fields, sizeof fields / sizeof *fields, (int)(attribute), value, bytes, __func__)

cublasStatus_t CUBLASWINAPI cublasLtMatmulDescCreate(cublasLtMatmulDesc_t *out,
                                                     cublasComputeType_t compute,
                                                     cudaDataType_t scale_type) {
  void *handle;
  si_enter();
  make(DESC, &handle)->is.desc = (lt_desc){.compute = (int32_t)compute,
                                           .scale_type = (int32_t)scale_type,
                                           .epilogue = CUBLASLT_EPILOGUE_DEFAULT,
                                           .bias_type = -1,
                                           .aux_type = -1};
  *out = handle;
  return leave(CUBLAS_STATUS_SUCCESS);
}

cublasStatus_t CUBLASWINAPI cublasLtMatmulDescDestroy(cublasLtMatmulDesc_t handle) {
  return destroy(handle, DESC, __func__);
}

static const field desc_fields[] = {
    FIELD(lt_desc, CUBLASLT_MATMUL_DESC_COMPUTE_TYPE, compute),
    FIELD(lt_desc, CUBLASLT_MATMUL_DESC_SCALE_TYPE, scale_type),
    FIELD(lt_desc, CUBLASLT_MATMUL_DESC_POINTER_MODE, pointer_mode),
    FIELD(lt_desc, CUBLASLT_MATMUL_DESC_TRANSA, transa),
    FIELD(lt_desc, CUBLASLT_MATMUL_DESC_TRANSB, transb),
    FIELD(lt_desc, CUBLASLT_MATMUL_DESC_EPILOGUE, epilogue),
    FIELD(lt_desc, CUBLASLT_MATMUL_DESC_BIAS_POINTER, bias),
    FIELD(lt_desc, CUBLASLT_MATMUL_DESC_BIAS_DATA_TYPE, bias_type),
    FIELD(lt_desc, CUBLASLT_MATMUL_DESC_EPILOGUE_AUX_POINTER, aux),
    FIELD(lt_desc, CUBLASLT_MATMUL_DESC_EPILOGUE_AUX_LD, aux_ld),
    FIELD(lt_desc, CUBLASLT_MATMUL_DESC_EPILOGUE_AUX_DATA_TYPE, aux_type),
    FIELD(lt_desc, CUBLASLT_MATMUL_DESC_SM_COUNT_TARGET, sm_target),
    FIELD(lt_desc, CUBLASLT_MATMUL_DESC_FAST_ACCUM, fast_accum),
    FIELD(lt_desc, CUBLASLT_MATMUL_DESC_A_SCALE_POINTER, a_scale),
    FIELD(lt_desc, CUBLASLT_MATMUL_DESC_B_SCALE_POINTER, b_scale),
};

cublasStatus_t CUBLASWINAPI cublasLtMatmulDescSetAttribute(cublasLtMatmulDesc_t handle,
                                                           cublasLtMatmulDescAttributes_t attribute,
                                                           const void *value, size_t bytes) {
  si_enter();
  object *o = find(handle, DESC, __func__);
  return leave(o ? SET(&o->is.desc, desc_fields, attribute, value, bytes)
                 : CUBLAS_STATUS_INVALID_VALUE);
}

cublasStatus_t CUBLASWINAPI cublasLtMatrixLayoutCreate(cublasLtMatrixLayout_t *out,
                                                       cudaDataType type, uint64_t rows,
                                                       uint64_t cols, int64_t ld) {
  void *handle;
  si_enter();
  make(LAYOUT, &handle)->is.layout =
      (lt_layout){(int32_t)type, CUBLASLT_ORDER_COL, rows, cols, ld, 1};
  *out = handle;
  return leave(CUBLAS_STATUS_SUCCESS);
}

cublasStatus_t CUBLASWINAPI cublasLtMatrixLayoutDestroy(cublasLtMatrixLayout_t handle) {
  return destroy(handle, LAYOUT, __func__);
}

static const field layout_fields[] = {
    FIELD(lt_layout, CUBLASLT_MATRIX_LAYOUT_TYPE, type),
    FIELD(lt_layout, CUBLASLT_MATRIX_LAYOUT_ORDER, order),
    FIELD(lt_layout, CUBLASLT_MATRIX_LAYOUT_ROWS, rows),
    FIELD(lt_layout, CUBLASLT_MATRIX_LAYOUT_COLS, cols),
    FIELD(lt_layout, CUBLASLT_MATRIX_LAYOUT_LD, ld),
    FIELD(lt_layout, CUBLASLT_MATRIX_LAYOUT_BATCH_COUNT, batch),
};

cublasStatus_t CUBLASWINAPI cublasLtMatrixLayoutSetAttribute(
    cublasLtMatrixLayout_t handle, cublasLtMatrixLayoutAttribute_t attribute, const void *value,
    size_t bytes) {
  si_enter();
  object *o = find(handle, LAYOUT, __func__);
  return leave(o ? SET(&o->is.layout, layout_fields, attribute, value, bytes)
                 : CUBLAS_STATUS_INVALID_VALUE);
}

static const lt_preference no_preference = {.reductions = CUBLASLT_REDUCTION_SCHEME_MASK,
                                            .align = {256, 256, 256, 256}};

cublasStatus_t CUBLASWINAPI cublasLtMatmulPreferenceCreate(cublasLtMatmulPreference_t *out) {
  void *handle;
  si_enter();
  make(PREFERENCE, &handle)->is.preference = no_preference;
  *out = handle;
  return leave(CUBLAS_STATUS_SUCCESS);
}

cublasStatus_t CUBLASWINAPI cublasLtMatmulPreferenceDestroy(cublasLtMatmulPreference_t handle) {
  return destroy(handle, PREFERENCE, __func__);
}

static const field preference_fields[] = {
    FIELD(lt_preference, CUBLASLT_MATMUL_PREF_SEARCH_MODE, search),
    FIELD(lt_preference, CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES, workspace),
    FIELD(lt_preference, CUBLASLT_MATMUL_PREF_REDUCTION_SCHEME_MASK, reductions),
    FIELD(lt_preference, CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_A_BYTES, align[0]),
    FIELD(lt_preference, CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_B_BYTES, align[1]),
    FIELD(lt_preference, CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_C_BYTES, align[2]),
    FIELD(lt_preference, CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_D_BYTES, align[3]),
};

cublasStatus_t CUBLASWINAPI cublasLtMatmulPreferenceSetAttribute(
    cublasLtMatmulPreference_t handle, cublasLtMatmulPreferenceAttributes_t attribute,
    const void *value, size_t bytes) {
  si_enter();
  object *o = find(handle, PREFERENCE, __func__);
  return leave(o ? SET(&o->is.preference, preference_fields, attribute, value, bytes)
                 : CUBLAS_STATUS_INVALID_VALUE);
}

/* -- problems and algorithms -- */

static cublasStatus_t gather(lt_problem *p, const void *handle, const void *desc, const void *a,
                             const void *b, const void *c, const void *d, const char *who) {
  const object *h = find(handle, HANDLE, who);
  const void *const layouts[] = {a, b, c, d};
  lt_layout *const into[] = {&p->a, &p->b, &p->c, &p->d};
  if (!h) return CUBLAS_STATUS_NOT_INITIALIZED;
  if (h->device != si_device) {
    si_report("%s: the handle is of device %d, the thread's device is %d", who, h->device,
              si_device);
    return CUBLAS_STATUS_INVALID_VALUE;
  }
  const object *o = find(desc, DESC, who);
  if (!o) return CUBLAS_STATUS_INVALID_VALUE;
  p->desc = o->is.desc;
  for (int i = 0; i < 4; i++) {
    o = find(layouts[i], LAYOUT, who);
    if (!o) return CUBLAS_STATUS_INVALID_VALUE;
    *into[i] = o->is.layout;
  }
  return lt_check(p);
}

/* An algorithm is its number and a seal; it can be kept in a file. */
enum { SEAL_OF_ALGO = 0x1a9e11a };

static int id_of(const cublasLtMatmulAlgo_t *algo) {
  return algo->data[0] == SEAL_OF_ALGO && algo->data[2] == CUBLAS_VERSION ? (int)algo->data[1] : 0;
}

cublasStatus_t CUBLASWINAPI cublasLtMatmulAlgoGetHeuristic(
    cublasLtHandle_t handle, cublasLtMatmulDesc_t desc, cublasLtMatrixLayout_t a,
    cublasLtMatrixLayout_t b, cublasLtMatrixLayout_t c, cublasLtMatrixLayout_t d,
    cublasLtMatmulPreference_t preference, int most, cublasLtMatmulHeuristicResult_t *out,
    int *out_n) {
  lt_problem p;
  lt_choice choices[3];
  si_enter();
  *out_n = 0;
  si_counted.heuristics++;
  const cublasStatus_t status = gather(&p, handle, desc, a, b, c, d, __func__);
  const object *pref = find(preference, PREFERENCE, __func__);
  if (status != CUBLAS_STATUS_SUCCESS) return leave(status);
  if (!pref || most < 1) return leave(CUBLAS_STATUS_INVALID_VALUE);
  const int n = lt_choices(&p, &pref->is.preference, choices);
  for (int i = 0; i < n && i < most; i++) {
    memset(&out[i], 0, sizeof out[i]);
    out[i].algo.data[0] = SEAL_OF_ALGO;
    out[i].algo.data[1] = (uint64_t)choices[i].id;
    out[i].algo.data[2] = CUBLAS_VERSION;
    out[i].workspaceSize = choices[i].workspace;
    out[i].wavesCount = 1.0f;
    ++*out_n;
  }
  return leave(n ? CUBLAS_STATUS_SUCCESS : CUBLAS_STATUS_NOT_SUPPORTED);
}

cublasStatus_t CUBLASWINAPI cublasLtMatmulAlgoCheck(
    cublasLtHandle_t handle, cublasLtMatmulDesc_t desc, cublasLtMatrixLayout_t a,
    cublasLtMatrixLayout_t b, cublasLtMatrixLayout_t c, cublasLtMatrixLayout_t d,
    const cublasLtMatmulAlgo_t *algo, cublasLtMatmulHeuristicResult_t *out) {
  lt_problem p;
  uint64_t workspace = 0;
  si_enter();
  cublasStatus_t status = gather(&p, handle, desc, a, b, c, d, __func__);
  if (status == CUBLAS_STATUS_SUCCESS) status = lt_check_choice(&p, id_of(algo), &workspace);
  out->workspaceSize = workspace;
  out->state = status;
  out->wavesCount = 1.0f;
  return leave(status);
}

/* -- the product -- */

static unsigned alignment_of(const void *p) {
  const uintptr_t at = (uintptr_t)p;
  return at % 256 == 0 ? 256 : (unsigned)(at & -at);
}

/* Without an algorithm of the caller's: the first that would do. */
static int choose(const lt_problem *p, const lt_operands *o, uint64_t workspace) {
  lt_choice choices[3];
  const lt_preference pref = {
      .workspace = workspace,
      .reductions = CUBLASLT_REDUCTION_SCHEME_MASK,
      .align = {alignment_of(o->a), alignment_of(o->b), alignment_of(o->c), alignment_of(o->d)}};
  return lt_choices(p, &pref, choices) > 0 ? choices[0].id : 0;
}

static cublasStatus_t check_algo(const lt_problem *p, const lt_operands *o,
                                 const cublasLtMatmulAlgo_t *algo, uint64_t workspace, int *out_id,
                                 const char *who) {
  uint64_t needed;
  *out_id = algo ? id_of(algo) : choose(p, o, workspace);
  if (!*out_id) return algo ? CUBLAS_STATUS_INVALID_VALUE : CUBLAS_STATUS_NOT_SUPPORTED;
  const cublasStatus_t status = lt_check_choice(p, *out_id, &needed);
  if (status != CUBLAS_STATUS_SUCCESS) return status;
  if (needed <= workspace && (needed == 0 || o->workspace)) return CUBLAS_STATUS_SUCCESS;
  si_report("%s: the algorithm needs %llu bytes of workspace, %llu are given", who,
            (unsigned long long)needed, (unsigned long long)workspace);
  return CUBLAS_STATUS_INVALID_VALUE;
}

static cublasStatus_t multiply(const lt_problem *p, const lt_operands *o,
                               const cublasLtMatmulAlgo_t *algo, uint64_t workspace,
                               cudaStream_t stream, const char *who) {
  int id;
  si_stream *s = si_stream_find(stream, who);
  if (!s) return CUBLAS_STATUS_INVALID_VALUE;
  if (s->device != si_device) {
    si_report("%s: the stream is of device %d, the thread's device is %d", who, s->device,
              si_device);
    return CUBLAS_STATUS_INVALID_VALUE;
  }
  const cublasStatus_t status = check_algo(p, o, algo, workspace, &id, who);
  if (status != CUBLAS_STATUS_SUCCESS) return status;
  if (lt_check_places(p, o, id, s->device, who) != cudaSuccess) return CUBLAS_STATUS_INVALID_VALUE;
  if (si_lost(s->device) != cudaSuccess || si_fails_now(STANDIN_MATMUL))
    return CUBLAS_STATUS_EXECUTION_FAILED;
  si_counted.matmuls++;
  si_counted.sm_target = p->desc.sm_target;
  return lt_queue(s, p, o, id) == cudaSuccess ? CUBLAS_STATUS_SUCCESS
                                              : CUBLAS_STATUS_EXECUTION_FAILED;
}

cublasStatus_t CUBLASWINAPI cublasLtMatmul(cublasLtHandle_t handle, cublasLtMatmulDesc_t desc,
                                           const void *alpha, const void *A,
                                           cublasLtMatrixLayout_t a, const void *B,
                                           cublasLtMatrixLayout_t b, const void *beta,
                                           const void *C, cublasLtMatrixLayout_t c, void *D,
                                           cublasLtMatrixLayout_t d,
                                           const cublasLtMatmulAlgo_t *algo, void *workspace,
                                           size_t workspace_bytes, cudaStream_t stream) {
  lt_problem p;
  si_enter();
  const cublasStatus_t status = gather(&p, handle, desc, a, b, c, d, __func__);
  if (status != CUBLAS_STATUS_SUCCESS) return leave(status);
  const lt_operands o = {*(const float *)alpha, *(const float *)beta, A, B, C, D, workspace};
  return leave(multiply(&p, &o, algo, workspace_bytes, stream, __func__));
}
