/* call.c: one call: tensors borrowed as DLTensors, results allocated by torch, lam_run.
 *
 * Inputs are read where they lie, by their strides; only what the library refuses to read
 * (repeated elements, as in an expanded gradient; a last dimension that is not contiguous) is
 * copied first. Results are contiguous, unless they are the caller's own tensors.
 * Invariant: everything on the stack is ours and is given back on every way out, before the
 * exception that leaves through aoti_torch_check.
 * Leaves all checks to the library. */
#include "bindings/torch/call.h"

#include <stdatomic.h>
#include <stdio.h>
#include <string.h>

#include "bindings/torch/tensor.h"

#define TEXT_BYTES 640

typedef struct frame {
  const lam_torch_row *row;
  bool into; /* the results are the caller's tensors */
  lam_torch_tensor in[LAM_TORCH_MAX_TENSORS], out[LAM_TORCH_MAX_TENSORS];
  DLTensor in_view[LAM_TORCH_MAX_TENSORS], out_view[LAM_TORCH_MAX_TENSORS];
  const DLTensor *in_given[LAM_TORCH_MAX_TENSORS];
  DLTensor *out_given[LAM_TORCH_MAX_TENSORS];
  lam_shape shapes[LAM_TORCH_MAX_TENSORS]; /* of new results, whose views point here */
  lam_attr attrs[LAM_TORCH_MAX_ATTRS];
  lam_torch_string strings[LAM_TORCH_MAX_ATTRS];
  int64_t ints[LAM_TORCH_MAX_DIMS + 1]; /* one too many is refused by the library */
  bool wanted[LAM_TORCH_MAX_TENSORS];
  const char *error;
  char *text; /* [TEXT_BYTES], for an error that is made of parts; not cleared for each call */
} frame;

static bool ok(frame *f, const char *error) {
  if (error) f->error = error;
  return !error;
}

/* -- inputs -- */

/* A tensor of size 0 stands for an absent one, where one may be absent. */
static bool give_input(frame *f, int i) {
  DLTensor *t = &f->in_view[i];
  if (!f->in[i]) return true;
  if (!ok(f, lam_torch_view(f->in[i], t))) return false;
  if (f->row->optional[i] && !lam_torch_has_elements(t)) return true;
  f->in_given[i] = t;
  if (t->ndim > LAM_TORCH_MAX_DIMS) return true; /* refused by the library, with words */
  return lam_torch_readable(t, f->row->weight[i]) || ok(f, lam_torch_copy(&f->in[i], t));
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
  if (lam_torch.torch_string_length(s, &n) || lam_torch.torch_string_c_str(s, &data))
    f->error = "torch could not read a string";
  f->attrs[i] = (lam_attr){.type = LAM_ATTR_STRING, .n = (uint32_t)n, .v = {.s = data}};
}

static void take_ints(frame *f, int i, uint64_t value) {
  const lam_torch_list list = (lam_torch_list)(uintptr_t)value;
  size_t n = 0;
  uint64_t item = 0;
  bool read = lam_torch.torch_list_size(list, &n) == 0;
  if (n > LAM_TORCH_MAX_DIMS + 1) n = LAM_TORCH_MAX_DIMS + 1;
  for (size_t k = 0; k < n; k++) {
    read &= lam_torch.torch_list_get_item(list, k, &item) == 0;
    f->ints[k] = (int64_t)item;
  }
  lam_torch.torch_delete_list(list);
  f->attrs[i] = lam_attr_ints(f->ints, (uint32_t)n);
  if (!read) f->error = "torch could not read a list";
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
  for (int i = 0; f->into && i < row->n_out; i++)
    f->out[i] = (lam_torch_tensor)(uintptr_t)*stack++;
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

/* Torch's exception has only words for its kind: lamella.errors reads the status from them. */
static bool holds(frame *f, lam_status s) {
  if (s == LAM_OK) return true;
  snprintf(f->text, TEXT_BYTES, "lamella %s: %s", lam_status_name(s), lam_last_error());
  return ok(f, f->text);
}

/* Their shapes and dtypes are the library's to check. */
static bool give_outputs_as_they_are(frame *f) {
  for (int i = 0; i < f->row->n_out; i++) {
    DLTensor *t = &f->out_view[i];
    if (!ok(f, lam_torch_view(f->out[i], t))) return false;
    if (lam_torch.torch_get_mutable_data_ptr(f->out[i], &t->data))
      return ok(f, "torch gave no memory to write to");
    f->out_given[i] = t;
  }
  return true;
}

static bool make_output(frame *f, int i, const lam_shape *s, DLDevice device) {
  static const int64_t none[1] = {0};
  const bool there = s->ndim >= 0 && f->wanted[i];
  if (there) f->out_given[i] = &f->out_view[i];
  return ok(f, lam_torch_empty(device, s->dtype, there ? s->ndim : 1, there ? s->dims : none,
                               &f->out[i], &f->out_view[i]));
}

static bool make_outputs(frame *f, const lam_call *call) {
  const DLDevice device = f->in_view[0].device;
  lam_inferred inferred = LAM_INFERRED_INIT;
  inferred.outputs = f->shapes;
  inferred.n_outputs = (uint32_t)f->row->n_out;
  if (!holds(f, lam_infer(NULL, call, &inferred))) return false;
  for (int i = 0; i < f->row->n_out; i++)
    if (!make_output(f, i, &f->shapes[i], device)) return false;
  return true;
}

typedef int (*ask_fn)(void);
static _Atomic ask_fn ask_tf32;

void lamella_torch_ask_tf32(int (*ask)(void)) { atomic_store(&ask_tf32, ask); }

/* Torch has the setting in C++ and Python only, neither of which is stable C. */
static uint32_t flags_of(const DLTensor *first) {
  const bool f32 = first->dtype.code == kDLFloat && first->dtype.bits == 32;
  const ask_fn ask = first->device.device_type == kDLCPU || !f32 ? NULL : atomic_load(&ask_tf32);
  return ask && ask() ? LAM_CALL_TF32 : 0;
}

static bool run(frame *f) {
  const lam_torch_row *row = f->row;
  lam_call call = LAM_CALL_INIT;
  for (int i = 0; i < row->n_in; i++)
    if (!give_input(f, i)) return false;
  call.op = row->id;
  call.inputs = f->in_given;
  call.n_inputs = (uint32_t)row->n_in;
  call.attrs = f->attrs;
  call.n_attrs = (uint32_t)row->n_attrs;
  call.flags = flags_of(&f->in_view[0]);
  /* every row's first input must be there */
  if (!ok(f, lam_torch_stream(f->in_view[0].device, &call.stream))) return false;
  if (!(f->into ? give_outputs_as_they_are(f) : make_outputs(f, &call))) return false;
  call.outputs = f->out_given;
  call.n_outputs = (uint32_t)row->n_out;
  return holds(f, lam_run(NULL, &call));
}

void lam_torch_run(const lam_torch_row *row, uint64_t *stack, bool into) {
  char text[TEXT_BYTES];
  frame f = {.row = row, .into = into, .text = text};
  take(&f, stack);
  if (!f.error) run(&f);
  give_back(&f);
  if (f.error) lam_torch.aoti_torch_check(false, row->name, "lamella", 0, f.error);
  for (int i = 0; i < row->n_out; i++) stack[i] = (uint64_t)(uintptr_t)f.out[i];
}
