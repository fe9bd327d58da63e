/* call.c: one call: tensors borrowed as DLTensors, results allocated by torch, lam_run.
 *
 * Inputs are read where they lie, by their strides; only what the library refuses to read
 * (repeated elements, as in an expanded gradient; a last dimension that is not contiguous) is
 * copied first. Results are contiguous.
 * Invariant: everything on the stack is ours and is given back on every way out, before the
 * exception that leaves through aoti_torch_check.
 * Leaves all checks to the library. */
#include "bindings/torch/call.h"

#include <string.h>

#include "bindings/torch/torch_abi.h"

#define MAX_DIMS 8

typedef struct frame {
  const lam_torch_row *row;
  lam_torch_tensor in[LAM_TORCH_MAX_TENSORS], out[LAM_TORCH_MAX_TENSORS];
  DLTensor in_view[LAM_TORCH_MAX_TENSORS], out_view[LAM_TORCH_MAX_TENSORS];
  const DLTensor *in_given[LAM_TORCH_MAX_TENSORS];
  DLTensor *out_given[LAM_TORCH_MAX_TENSORS];
  lam_shape shapes[LAM_TORCH_MAX_TENSORS];
  lam_attr attrs[LAM_TORCH_MAX_ATTRS];
  lam_torch_string strings[LAM_TORCH_MAX_ATTRS];
  int64_t ints[MAX_DIMS + 1]; /* one more than is allowed, so that the library refuses it */
  bool wanted[LAM_TORCH_MAX_TENSORS];
  const char *error;
} frame;

static bool ok(frame *f, int32_t torch_error, const char *what) {
  if (torch_error == 0) return true;
  f->error = what;
  return false;
}

/* -- what torch calls things -- */

static const struct {
  size_t torch; /* the getter of torch's number, in lam_torch_abi */
  DLDataType dlpack;
} dtypes[] = {
#define DTYPE(name, code, bits)                                         \
  {                                                                     \
    offsetof(lam_torch_abi, aoti_torch_dtype_##name), { code, bits, 1 } \
  }
    DTYPE(float32, kDLFloat, 32), DTYPE(bfloat16, 4, 16),      DTYPE(int64, kDLInt, 64),
    DTYPE(int32, kDLInt, 32),     DTYPE(uint8, kDLUInt, 8),    DTYPE(float16, kDLFloat, 16),
    DTYPE(float64, kDLFloat, 64), DTYPE(float8_e4m3fn, 10, 8), DTYPE(float8_e5m2, 12, 8),
#undef DTYPE
};
#define N_DTYPES (sizeof dtypes / sizeof *dtypes)

static int32_t torch_number(size_t i) {
  int32_t (*getter)(void);
  memcpy(&getter, (const char *)&lam_torch + dtypes[i].torch, sizeof getter);
  return getter();
}

static bool dtype_from_torch(int32_t number, DLDataType *out) {
  for (size_t i = 0; i < N_DTYPES; i++) {
    if (torch_number(i) != number) continue;
    *out = dtypes[i].dlpack;
    return true;
  }
  return false;
}

static int32_t dtype_to_torch(DLDataType t) {
  for (size_t i = 0; i < N_DTYPES; i++)
    if (dtypes[i].dlpack.code == t.code && dtypes[i].dlpack.bits == t.bits) return torch_number(i);
  return -1;
}

/* -- results, and contiguous copies -- */

static bool empty(frame *f, int32_t ndim, const int64_t *dims, DLDataType dtype,
                  lam_torch_tensor *out) {
  int64_t strides[MAX_DIMS], step = 1;
  for (int i = ndim - 1; i >= 0; i--) {
    strides[i] = step;
    step *= dims[i] > 1 ? dims[i] : 1;
  }
  return ok(f,
            lam_torch.aoti_torch_empty_strided(ndim, dims, strides, dtype_to_torch(dtype),
                                               lam_torch.aoti_torch_device_type_cpu(), 0, out),
            "torch could not allocate a tensor");
}

/* -- inputs -- */

static bool view_of(frame *f, lam_torch_tensor t, DLTensor *out) {
  int32_t dtype, device;
  int64_t ndim;
  *out = (DLTensor){.device = {kDLCPU, 0}};
  if (lam_torch.torch_get_mutable_data_ptr(t, &out->data) ||
      lam_torch.aoti_torch_get_dim(t, &ndim) || lam_torch.aoti_torch_get_sizes(t, &out->shape) ||
      lam_torch.aoti_torch_get_strides(t, &out->strides) ||
      lam_torch.aoti_torch_get_dtype(t, &dtype) || lam_torch.aoti_torch_get_device_type(t, &device))
    return ok(f, 1, "torch could not describe a tensor");
  if (device != lam_torch.aoti_torch_device_type_cpu())
    return ok(f, 1, "a tensor lies on another device than the CPU");
  if (!dtype_from_torch(dtype, &out->dtype)) return ok(f, 1, "a tensor's dtype is not supported");
  out->ndim = (int32_t)ndim;
  return true;
}

static bool has_elements(const DLTensor *t) {
  for (int i = 0; i < t->ndim; i++)
    if (t->shape[i] == 0) return false;
  return true;
}

/* Rows of n elements side by side, one stride from each to the next: what the library reads. */
static bool by_rows(const DLTensor *t) {
  int64_t step = 0, count = 1; /* of the dimensions so far, without the last one */
  const int last = t->ndim - 1;
  if (t->shape[last] > 1 && t->strides[last] != 1) return false;
  for (int i = last - 1; i >= 0; i--) {
    if (t->shape[i] == 1) continue;
    if (step ? t->strides[i] != step * count : t->strides[i] < t->shape[last]) return false;
    if (!step) step = t->strides[i];
    count *= t->shape[i];
  }
  return true;
}

static bool by_columns(const DLTensor *t) {
  return t->ndim == 2 && t->strides[0] == 1 && t->strides[1] >= t->shape[0];
}

static bool make_contiguous(frame *f, int i) {
  const DLTensor *t = &f->in_view[i];
  lam_torch_tensor copy = NULL;
  if (t->ndim > MAX_DIMS) return true; /* refused by the library, with words */
  if (!empty(f, t->ndim, t->shape, t->dtype, &copy)) return false;
  const bool copied =
      ok(f, lam_torch.aoti_torch_copy_(copy, f->in[i], 0), "torch could not copy a tensor");
  lam_torch.aoti_torch_delete_tensor_object(f->in[i]);
  f->in[i] = copy;
  return copied && view_of(f, copy, &f->in_view[i]);
}

/* A tensor of size 0 stands for an absent one, where one may be absent. */
static bool give_input(frame *f, int i) {
  const DLTensor *t = &f->in_view[i];
  if (!f->in[i]) return true;
  if (!view_of(f, f->in[i], &f->in_view[i])) return false;
  const bool elements = has_elements(t);
  if (f->row->optional[i] && !elements) return true;
  if (elements && t->ndim > 0 && !by_rows(t) && !(f->row->weight[i] && by_columns(t)) &&
      !make_contiguous(f, i))
    return false;
  f->in_given[i] = t;
  return true;
}

/* -- the stack -- */

/* An optional is a heap cell that holds the handle; torch 2.13 and newer frees it itself. */
static lam_torch_tensor open_cell(uint64_t cell) {
  uint64_t *at = (uint64_t *)(uintptr_t)cell;
  if (!at) return NULL;
  const lam_torch_tensor t = (lam_torch_tensor)(uintptr_t)*at;
  if (lam_torch.torch_delete_stable_ivalue)
    lam_torch.torch_delete_stable_ivalue(at);
  else
    lam_torch.delete_cell(at);
  return t;
}

static void take_string(frame *f, int i, uint64_t value) {
  const lam_torch_string s = f->strings[i] = (lam_torch_string)(uintptr_t)value;
  size_t n = 0;
  const char *data = "";
  if (!ok(f, lam_torch.torch_string_length(s, &n) || lam_torch.torch_string_c_str(s, &data),
          "torch could not read a string"))
    return;
  f->attrs[i] = (lam_attr){.type = LAM_ATTR_STRING, .n = (uint32_t)n, .v = {.s = data}};
}

static void take_ints(frame *f, int i, uint64_t value) {
  const lam_torch_list list = (lam_torch_list)(uintptr_t)value;
  size_t n = 0;
  uint64_t item = 0;
  bool read = lam_torch.torch_list_size(list, &n) == 0;
  if (n > MAX_DIMS + 1) n = MAX_DIMS + 1;
  for (size_t k = 0; k < n; k++) {
    read &= lam_torch.torch_list_get_item(list, k, &item) == 0;
    f->ints[k] = (int64_t)item;
  }
  lam_torch.torch_delete_list(list);
  f->attrs[i] = lam_attr_ints(f->ints, (uint32_t)n);
  ok(f, !read, "torch could not read a list");
}

static void take_attr(frame *f, int i, uint64_t value) {
  double number;
  switch (f->row->attr_type[i]) {
    case 's':
      take_string(f, i, value);
      break;
    case 'I':
      take_ints(f, i, value);
      break;
    case 'f':
      memcpy(&number, &value, sizeof number);
      f->attrs[i] = lam_attr_f(number);
      break;
    default:
      f->attrs[i] = lam_attr_i((int64_t)value);
  }
}

/* Everything on the stack is taken, whatever fails, so that all of it is given back. */
static void take(frame *f, const uint64_t *stack) {
  const lam_torch_row *row = f->row;
  for (int i = 0; i < row->n_in; i++, stack++)
    f->in[i] = row->optional[i] ? open_cell(*stack) : (lam_torch_tensor)(uintptr_t)*stack;
  for (int i = 0; i < row->n_attrs; i++) {
    if (row->attr_type[i])
      take_attr(f, i, *stack++);
    else
      f->attrs[i] = lam_attr_default();
  }
  for (int i = 0; i < row->n_out; i++) f->wanted[i] = !row->asked[i] || *stack++;
}

static void give_back(frame *f) {
  for (int i = 0; i < f->row->n_in; i++)
    if (f->in[i]) lam_torch.aoti_torch_delete_tensor_object(f->in[i]);
  for (int i = 0; i < f->row->n_attrs; i++)
    if (f->strings[i]) lam_torch.torch_delete_string(f->strings[i]);
  for (int i = 0; f->error && i < f->row->n_out; i++)
    if (f->out[i]) lam_torch.aoti_torch_delete_tensor_object(f->out[i]);
}

/* -- the call -- */

static bool holds(frame *f, lam_status s) {
  if (s != LAM_OK) f->error = lam_last_error();
  return s == LAM_OK;
}

static bool give_output(frame *f, int i) {
  static const int64_t none[1] = {0};
  const lam_shape *s = &f->shapes[i];
  if (s->ndim < 0 || !f->wanted[i]) return empty(f, 1, none, s->dtype, &f->out[i]);
  f->out_given[i] = &f->out_view[i];
  return empty(f, s->ndim, s->dims, s->dtype, &f->out[i]) && view_of(f, f->out[i], &f->out_view[i]);
}

static bool run(frame *f) {
  const lam_torch_row *row = f->row;
  lam_call call = LAM_CALL_INIT;
  lam_inferred inferred = LAM_INFERRED_INIT;
  for (int i = 0; i < row->n_in; i++)
    if (!give_input(f, i)) return false;
  call.op = row->id;
  call.inputs = f->in_given;
  call.n_inputs = (uint32_t)row->n_in;
  call.attrs = f->attrs;
  call.n_attrs = (uint32_t)row->n_attrs;
  inferred.outputs = f->shapes;
  inferred.n_outputs = (uint32_t)row->n_out;
  if (!holds(f, lam_infer(NULL, &call, &inferred))) return false;

  for (int i = 0; i < row->n_out; i++)
    if (!give_output(f, i)) return false;
  call.outputs = f->out_given;
  call.n_outputs = (uint32_t)row->n_out;
  return holds(f, lam_run(NULL, &call));
}

void lam_torch_run(const lam_torch_row *row, uint64_t *stack) {
  frame f = {.row = row};
  take(&f, stack);
  if (!f.error) run(&f);
  give_back(&f);
  if (f.error) lam_torch.aoti_torch_check(false, row->name, "lamella", 0, f.error);
  for (int i = 0; i < row->n_out; i++) stack[i] = (uint64_t)(uintptr_t)f.out[i];
}
