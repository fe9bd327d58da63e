/* tensor.c: the checks of one tensor, and its view as a matrix.
 * Invariant: a product or sum is checked for overflow before it is compared or divided, so that a
 * message names the cause. Leaves what a call expects of the tensor to dispatch.c. */
#include "plugin/core/tensor.h"

#include <stdarg.h>
#include <stdio.h>

#include "plugin/core/dlpack1.h"

lam_status lam_refuse(lam_who who, const char *format, ...) {
  char text[LAM_MESSAGE_BYTES];
  va_list args;
  va_start(args, format);
  vsnprintf(text, sizeof text, format, args);
  va_end(args);
  return lam_fail(LAM_INVALID_ARGUMENT, "%s: %s: %s", who.op, who.arg, text);
}

/* -- dtypes -- */

static const DLDataType dtypes[LAM_N_DTYPES] = {
    [LAM_F32] = {LAM_DL_FLOAT, 32, 1},
    [LAM_BF16] = {LAM_DL_BFLOAT, 16, 1},
    [LAM_F16] = {LAM_DL_FLOAT, 16, 1},
    [LAM_F8E4M3] = {LAM_DL_FLOAT8_E4M3FN, 8, 1},
    [LAM_F8E5M2] = {LAM_DL_FLOAT8_E5M2, 8, 1},
    [LAM_F64] = {LAM_DL_FLOAT, 64, 1},
    [LAM_I32] = {LAM_DL_INT, 32, 1},
    [LAM_I64] = {LAM_DL_INT, 64, 1},
    [LAM_U8] = {LAM_DL_UINT, 8, 1},
};

/* The three fields as one number: most calls find theirs with one comparison. */
static inline uint32_t dtype_key(DLDataType t) {
  return (uint32_t)t.code | (uint32_t)t.bits << 8 | (uint32_t)t.lanes << 16;
}

bool lam_dtype_from_dlpack(DLDataType t, lam_dtype *out) {
  const uint32_t key = dtype_key(t);
  for (int i = 0; i < LAM_N_DTYPES; i++) {
    if (dtype_key(dtypes[i]) != key) continue;
    *out = (lam_dtype)i;
    return true;
  }
  return false;
}

DLDataType lam_dtype_to_dlpack(lam_dtype t) { return dtypes[t]; }

static lam_status check_dtype(lam_who who, DLDataType t, lam_dtype *out) {
  if (t.lanes != 1) return lam_refuse(who, "dtype has %d lanes, expected 1", t.lanes);
  if (lam_dtype_from_dlpack(t, out)) return LAM_OK;
  bool known_code = false;
  for (int i = 0; i < LAM_N_DTYPES; i++) known_code |= dtypes[i].code == t.code;
  if (known_code)
    return lam_refuse(who, "dtype code %d with %d bits is not supported", t.code, t.bits);
  return lam_refuse(who, "dtype code %d is not supported (%d bits)", t.code, t.bits);
}

/* -- sizes: nothing here may overflow -- */

static bool multiply(int64_t a, int64_t b, int64_t *out) {
  return !__builtin_mul_overflow(a, b, out);
}

static bool add(int64_t a, int64_t b, int64_t *out) { return !__builtin_add_overflow(a, b, out); }

/* Zeros count as ones, so that products of the other dimensions of an empty tensor fit as well. */
static lam_status check_dims(lam_who who, const DLTensor *t, int bytes, int64_t *out_elements) {
  int64_t n = 1, n_bits;
  bool empty = false;
  if (t->ndim < 0 || t->ndim > LAM_MAX_DIMS)
    return lam_refuse(who, "ndim is %d, expected 0 to %d", t->ndim, LAM_MAX_DIMS);
  if (t->ndim > 0 && !t->shape) return lam_refuse(who, "shape is NULL, ndim is %d", t->ndim);
  for (int i = 0; i < t->ndim; i++) {
    const int64_t dim = t->shape[i];
    if (dim < 0)
      return lam_refuse(who, "dimension %d is %lld, expected at least 0", i, (long long)dim);
    if (!multiply(n, dim ? dim : 1, &n))
      return lam_refuse(who, "the product of its dimensions overflows at dimension %d", i);
    empty |= dim == 0;
  }
  if (!multiply(n, 8 * bytes, &n_bits)) return lam_refuse(who, "its size in bits overflows");
  *out_elements = empty ? 0 : n;
  return LAM_OK;
}

/* out_reach: how many elements lie between the first and the end of the last. */
static lam_status check_strides(lam_who who, const DLTensor *t, int64_t elements,
                                int64_t *out_reach) {
  int64_t reach = 1, step;
  for (int i = 0; t->strides && i < t->ndim; i++) {
    if (t->shape[i] <= 1) continue; /* a stride that is never taken may be anything */
    if (t->strides[i] < 0)
      return lam_refuse(who, "stride %d is %lld, negative strides are not supported", i,
                        (long long)t->strides[i]);
    if (!multiply(t->shape[i] - 1, t->strides[i], &step) || !add(reach, step, &reach))
      return lam_refuse(who, "the sum of dimensions x strides overflows at dimension %d", i);
  }
  *out_reach = t->strides && elements > 0 ? reach : elements;
  return LAM_OK;
}

/* `bytes` is a power of two: no division on the way of every call. */
static lam_status check_memory(lam_who who, const DLTensor *t, int bytes, int64_t reach) {
  uintptr_t end;
  if (t->byte_offset > PTRDIFF_MAX)
    return lam_refuse(who, "byte_offset is %llu, more than memory can hold",
                      (unsigned long long)t->byte_offset);
  if (t->byte_offset & (uint64_t)(bytes - 1))
    return lam_refuse(who, "byte_offset is %llu, expected a multiple of the element's %d bytes",
                      (unsigned long long)t->byte_offset, bytes);
  if (reach == 0) return LAM_OK;
  if (!t->data) return lam_refuse(who, "data is NULL, but it has elements");
  if (__builtin_add_overflow((uintptr_t)t->data, t->byte_offset, &end) ||
      __builtin_add_overflow(end, (uintptr_t)(reach * bytes), &end))
    return lam_refuse(who, "data, byte_offset and size together pass the end of memory");
  if (((uintptr_t)t->data + t->byte_offset) & (uintptr_t)(bytes - 1))
    return lam_refuse(who, "its first element is not aligned to the element's %d bytes", bytes);
  return LAM_OK;
}

static lam_status check_all(lam_who who, const DLTensor *t, bool data, lam_dtype *out_dtype) {
  int64_t elements = 0, reach = 0, n_bytes = 0;
  LAM_TRY(check_dtype(who, t->dtype, out_dtype));
  const int bytes = dtypes[*out_dtype].bits / 8;
  LAM_TRY(check_dims(who, t, bytes, &elements));
  LAM_TRY(check_strides(who, t, elements, &reach));
  if (!multiply(reach, bytes, &n_bytes))
    return lam_refuse(who, "the bytes its strides reach overflow");
  return data ? check_memory(who, t, bytes, reach) : LAM_OK;
}

/* -- [..., n] as [T, n] -- */

/* One stride for the first n dimensions together, where there is one. Dimensions of 1 do not count.
 * */
static bool merge_dims(const DLTensor *t, int n, int64_t *out_stride) {
  int64_t count = 0; /* 0 = no dimension yet */
  for (int i = n - 1; i >= 0; i--) {
    if (t->shape[i] == 1) continue;
    if (count == 0) {
      *out_stride = t->strides[i];
      count = t->shape[i];
    } else if (t->strides[i] == *out_stride * count) {
      count *= t->shape[i];
    } else {
      return false;
    }
  }
  return true;
}

static lam_status check_repeats(lam_who who, const DLTensor *t) {
  for (int i = 0; i < t->ndim; i++)
    if (t->shape[i] > 1 && t->strides[i] == 0)
      return lam_refuse(who,
                        "stride %d is 0: its %lld elements are one in memory; make it contiguous",
                        i, (long long)t->shape[i]);
  return LAM_OK;
}

static char nothing[64]
    __attribute__((aligned(64))); /* where a tensor without elements and data points */

static lam_status check_layout(lam_who who, const DLTensor *t, bool either, const lam_matrix *m) {
  const bool by_rows = m->col_stride == 1 || m->cols <= 1,
             by_cols = m->row_stride == 1 || m->rows <= 1;
  if (!by_rows && !(either && by_cols))
    return lam_refuse(who, "stride %d is %lld, expected 1%s", t->ndim - 1, (long long)m->col_stride,
                      either ? " here or in the dimension before" : ": make it contiguous");
  const int64_t width = by_rows ? m->cols : m->rows, n = by_rows ? m->rows : m->cols;
  const int64_t step = by_rows ? m->row_stride : m->col_stride;
  if (n > 1 && step < width)
    return lam_refuse(who, "stride %d is %lld: rows of %lld elements overlap; make it contiguous",
                      by_rows ? t->ndim - 2 : t->ndim - 1, (long long)step, (long long)width);
  return LAM_OK;
}

static lam_status flatten(lam_who who, const DLTensor *t, lam_dtype dtype, bool either,
                          lam_matrix *out) {
  const int n = t->ndim;
  int64_t rows = 1, cols = n ? t->shape[n - 1] : 1;
  for (int i = 0; i < n - 1; i++) rows *= t->shape[i];
  *out = (lam_matrix){nothing, rows, cols, cols ? cols : 1, 1, dtype, false};
  if (t->data) out->data = (void *)((uintptr_t)t->data + t->byte_offset);
  if (!t->strides || rows == 0 || cols == 0) return LAM_OK;

  LAM_TRY(check_repeats(who, t));
  if (!merge_dims(t, n - 1, &out->row_stride))
    return lam_refuse(who, "its leading dimensions have no one stride: make it contiguous");
  if (cols > 1) out->col_stride = t->strides[n - 1];
  if (rows == 1 && out->col_stride != 1) out->row_stride = 1;
  return check_layout(who, t, either, out);
}

static lam_reach reach_of(const lam_matrix *m) {
  const char *begin = m->data;
  if (m->rows == 0 || m->cols == 0) return (lam_reach){begin, begin};
  const int64_t last = (m->rows - 1) * m->row_stride + (m->cols - 1) * m->col_stride;
  return (lam_reach){begin, begin + (last + 1) * (dtypes[m->dtype].bits / 8)};
}

lam_status lam_tensor_study(lam_who who, const DLTensor *t, bool data, bool either, lam_matrix *out,
                            lam_reach *out_reach) {
  lam_dtype dtype = LAM_F32;
  LAM_TRY(check_all(who, t, data, &dtype));
  LAM_TRY(flatten(who, t, dtype, either, out));
  if (!data) out->data = NULL;
  *out_reach = reach_of(out);
  return LAM_OK;
}

bool lam_tensor_glance(const DLTensor *t, lam_matrix *out, lam_reach *out_reach) {
  const uint64_t far = 1 << 24; /* a power of two: sizes below it are so together, too */
  const bool f32 = dtype_key(t->dtype) == (LAM_DL_FLOAT | 32u << 8 | 1u << 16);
  if (!f32 && dtype_key(t->dtype) != (LAM_DL_BFLOAT | 16u << 8 | 1u << 16)) return false;
  const int bytes = f32 ? 4 : 2, last = (int)((unsigned)t->ndim - 1); /* ndim: any number yet */
  if ((unsigned)last > 1 || !t->shape || !t->data || t->byte_offset) return false;
  if ((uintptr_t)t->data & (uintptr_t)(bytes - 1)) return false;

  const int64_t cols = t->shape[last], rows = last ? t->shape[0] : 1;
  const int64_t step = rows > 1 && t->strides ? t->strides[0] : cols;
  if ((((uint64_t)rows - 1) | ((uint64_t)cols - 1) | (uint64_t)step) >= far) return false;
  if (step < cols || (t->strides && t->strides[last] != 1)) return false;
  *out = (lam_matrix){t->data, rows, cols, step, 1, f32 ? LAM_F32 : LAM_BF16, false};
  out_reach->begin = t->data;
  out_reach->end = (char *)t->data + ((rows - 1) * step + cols) * bytes;
  return true;
}

/* -- memory -- */

/* n runs of `width` bytes, `step` bytes apart. */
typedef struct span {
  const char *begin;
  int64_t n, width, step;
} span;

static span span_of(const lam_matrix *m) {
  const int64_t bytes = dtypes[m->dtype].bits / 8;
  if (m->col_stride == 1 || m->cols <= 1)
    return (span){m->data, m->rows, m->cols * bytes, m->row_stride * bytes};
  return (span){m->data, m->cols, m->rows * bytes, m->col_stride * bytes};
}

bool lam_matrices_meet(const lam_matrix *a, const lam_matrix *b) {
  const lam_reach reach_a = reach_of(a), reach_b = reach_of(b);
  if (!lam_reach_meets(&reach_a, &reach_b)) return false;
  const span x = span_of(a), y = span_of(b);
  const span low = x.begin <= y.begin ? x : y, high = x.begin <= y.begin ? y : x;
  if (low.n == 1 || (high.n > 1 && high.step != low.step)) return true; /* if in doubt */
  /* Runs of two matrices that lie side by side in one, such as column blocks. */
  const int64_t offset = (high.begin - low.begin) % low.step;
  return offset < low.width || offset + high.width > low.step;
}

/* -- words -- */

const char *lam_shape_text(const int64_t *dims, int ndim, DLDataType dtype,
                           char buf[LAM_SHAPE_TEXT]) {
  lam_dtype known;
  int n = snprintf(buf, LAM_SHAPE_TEXT, "[");
  for (int i = 0; i < ndim && i < LAM_MAX_DIMS; i++)
    n += snprintf(buf + n, LAM_SHAPE_TEXT - (size_t)n, "%s%lld", i ? ", " : "", (long long)dims[i]);
  if (lam_dtype_from_dlpack(dtype, &known))
    snprintf(buf + n, LAM_SHAPE_TEXT - (size_t)n, "] %s", lam_dtype_name(known));
  else
    snprintf(buf + n, LAM_SHAPE_TEXT - (size_t)n, "] code %d, %d bits", dtype.code, dtype.bits);
  return buf;
}

const char *lam_device_text(DLDevice device, char buf[32]) {
  static const char *const names[] = {
      [1] = "cpu",        [2] = "cuda",       [3] = "cuda_host",     [4] = "opencl",
      [7] = "vulkan",     [8] = "metal",      [9] = "vpi",           [10] = "rocm",
      [11] = "rocm_host", [12] = "extension", [13] = "cuda_managed",
  };
  const unsigned type = (unsigned)device.device_type;
  const char *name = type < sizeof names / sizeof *names ? names[type] : NULL;
  if (name)
    snprintf(buf, 32, "%s:%d", name, device.device_id);
  else
    snprintf(buf, 32, "device type %u:%d", type, device.device_id);
  return buf;
}
