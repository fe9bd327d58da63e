/* tensor.c: torch's tensors as DLTensors, and new ones.
 *
 * Torch's numbers for dtypes and devices never change while it is loaded: they are asked for once.
 * Invariant: nothing here reads or writes elements; a copy is torch's own.
 * Leaves which inputs are copied to call.c. */
#include "bindings/torch/tensor.h"

#include <string.h>

static const struct {
  size_t getter; /* of torch's number, in lam_torch_abi */
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
static int32_t numbers[N_DTYPES], cpu, cuda;

void lam_torch_learn_numbers(void) {
  for (size_t i = 0; i < N_DTYPES; i++) {
    int32_t (*getter)(void);
    memcpy(&getter, (const char *)&lam_torch + dtypes[i].getter, sizeof getter);
    numbers[i] = getter();
  }
  cpu = lam_torch.aoti_torch_device_type_cpu();
  cuda = lam_torch.aoti_torch_device_type_cuda();
}

static bool dtype_from_torch(int32_t number, DLDataType *out) {
  for (size_t i = 0; i < N_DTYPES; i++) {
    if (numbers[i] != number) continue;
    *out = dtypes[i].dlpack;
    return true;
  }
  return false;
}

static int32_t dtype_to_torch(DLDataType t) {
  for (size_t i = 0; i < N_DTYPES; i++)
    if (dtypes[i].dlpack.code == t.code && dtypes[i].dlpack.bits == t.bits) return numbers[i];
  return -1;
}

const char *lam_torch_view(lam_torch_tensor t, DLTensor *out) {
  const void *data;
  int32_t dtype, device, index = 0;
  int64_t ndim;
  if (lam_torch.torch_get_const_data_ptr(t, &data) || lam_torch.aoti_torch_get_dim(t, &ndim) ||
      lam_torch.aoti_torch_get_sizes(t, &out->shape) ||
      lam_torch.aoti_torch_get_strides(t, &out->strides) ||
      lam_torch.aoti_torch_get_dtype(t, &dtype) || lam_torch.aoti_torch_get_device_type(t, &device))
    return "torch could not describe a tensor";
  if (device != cpu && device != cuda) return "a tensor is neither on a CPU nor on a CUDA device";
  if (device == cuda && lam_torch.aoti_torch_get_device_index(t, &index))
    return "torch could not tell a tensor's device";
  if (!dtype_from_torch(dtype, &out->dtype)) return "a tensor's dtype is not supported";
  out->data = (void *)(uintptr_t)data; /* inputs are only read */
  out->device = (DLDevice){device == cuda ? kDLCUDA : kDLCPU, index};
  out->ndim = (int32_t)ndim;
  out->byte_offset = 0;
  return NULL;
}

const char *lam_torch_empty(DLDevice device, DLDataType dtype, int32_t ndim, const int64_t *dims,
                            lam_torch_tensor *out, DLTensor *view) {
  int64_t strides[LAM_TORCH_MAX_DIMS], step = 1;
  for (int i = ndim - 1; i >= 0; i--) {
    strides[i] = step;
    step *= dims[i] > 1 ? dims[i] : 1;
  }
  *view = (DLTensor){NULL, device, ndim, dtype, (int64_t *)(uintptr_t)dims, NULL, 0};
  if (lam_torch.aoti_torch_empty_strided(ndim, dims, strides, dtype_to_torch(dtype),
                                         device.device_type == kDLCUDA ? cuda : cpu,
                                         device.device_id, out) ||
      lam_torch.torch_get_mutable_data_ptr(*out, &view->data))
    return "torch could not allocate a tensor";
  return NULL;
}

const char *lam_torch_copy(lam_torch_tensor *t, DLTensor *view) {
  lam_torch_tensor copy = NULL;
  DLTensor made;
  const char *error =
      lam_torch_empty(view->device, view->dtype, view->ndim, view->shape, &copy, &made);
  if (!error && lam_torch.aoti_torch_copy_(copy, *t, 0)) error = "torch could not copy a tensor";
  if (!error) error = lam_torch_view(copy, view);
  if (copy) {
    lam_torch.aoti_torch_delete_tensor_object(*t);
    *t = copy;
  }
  return error;
}

bool lam_torch_has_elements(const DLTensor *t) {
  for (int i = 0; i < t->ndim; i++)
    if (t->shape[i] == 0) return false;
  return true;
}

/* Rows of n elements side by side, one stride from each to the next. */
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

bool lam_torch_readable(const DLTensor *t, bool weight) {
  return t->ndim == 0 || !lam_torch_has_elements(t) || by_rows(t) || (weight && by_columns(t));
}

const char *lam_torch_stream(DLDevice device, void **out) {
  *out = NULL;
  if (device.device_type == kDLCPU) return NULL;
  if (!lam_torch.aoti_torch_get_current_cuda_stream)
    return "no libtorch_cuda.so is loaded that could name its stream";
  if (lam_torch.aoti_torch_get_current_cuda_stream(device.device_id, out))
    return "torch could not name its CUDA stream";
  return NULL;
}
