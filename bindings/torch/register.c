/* register.c: makes every row of the operator table an operator of torch, at load time.
 *
 * Invariant: nothing is thrown or printed while loading; what went wrong is what
 * lamella_torch_error() gives. Torch keeps the kernels' addresses, so the library is never unloaded
 * (-z nodelete).
 * Leaves fakes and autograd to Python, since torch's C layer has neither. */
#include <stdio.h>

#include "bindings/torch/call.h"
#include "bindings/torch/tensor.h"

/* A kernel gets no data of its own, hence two of them for each row: one makes its results, one writes
 * into given tensors. */
enum {
#define LAM_OP(id, name, ...) ROW_##name,
#include "abi/lamella_ops.def"
#undef LAM_OP
  N_ROWS
};
static lam_torch_row rows[N_ROWS];

#define LAM_OP(id, name, ...)                                              \
  static void run_##name(uint64_t *stack, uint64_t n_in, uint64_t n_out) { \
    (void)n_in;                                                            \
    (void)n_out;                                                           \
    lam_torch_run(&rows[ROW_##name], stack, false);                        \
  }                                                                        \
  static void run_##name##_into(uint64_t *stack, uint64_t n_in, uint64_t n_out) { \
    (void)n_in;                                                            \
    (void)n_out;                                                           \
    lam_torch_run(&rows[ROW_##name], stack, true);                         \
  }
#include "abi/lamella_ops.def"
#undef LAM_OP

static const struct {
  uint32_t id;
  const char *name, *inputs, *outputs, *attributes, *shapes;
  lam_torch_kernel kernel, kernel_into;
} texts[N_ROWS] = {
#define LAM_OP(id, name, inputs, outputs, attributes, shapes, effect) \
  {id, #name, inputs, outputs, attributes, shapes, run_##name, run_##name##_into},
#include "abi/lamella_ops.def"
#undef LAM_OP
};

static const char *load_error;
static char refused[128];

static const char *refuse(const char *what, const char *name) {
  snprintf(refused, sizeof refused, "torch refused %s of lamella::%s (loaded twice?)", what, name);
  return refused;
}

static bool refuses_kernel(const lam_torch_library libraries[2], const char *name,
                           lam_torch_kernel kernel) {
  return lam_torch.torch_library_impl(libraries[0], name, kernel, LAM_TORCH_BUILT_FOR) ||
         lam_torch.torch_library_impl(libraries[1], name, kernel, LAM_TORCH_BUILT_FOR);
}

static const char *register_row(lam_torch_library schemas, const lam_torch_library on[2], int i) {
  char overload[64];
  lam_torch_row *row = &rows[i];
  if (!lam_torch_row_read(texts[i].id, texts[i].name, texts[i].inputs, texts[i].outputs,
                          texts[i].attributes, texts[i].shapes, row))
    return refuse("the size", row->name);
  if (lam_torch.aoti_torch_library_def(schemas, row->schema)) return refuse("a schema", row->name);
  if (refuses_kernel(on, row->name, texts[i].kernel)) return refuse("a kernel", row->name);
  if (!row->into[0]) return NULL;
  snprintf(overload, sizeof overload, "%s.out", row->name);
  if (lam_torch.aoti_torch_library_def(schemas, row->into)) return refuse("a schema", overload);
  return refuses_kernel(on, overload, texts[i].kernel_into) ? refuse("a kernel", overload) : NULL;
}

/* The three libraries live as long as the process. */
static const char *register_rows(void) {
  lam_torch_library schemas, on[2];
  if (lam_torch.aoti_torch_library_init_fragment("lamella", __FILE__, __LINE__, &schemas) ||
      lam_torch.aoti_torch_library_init_impl("lamella", "CPU", __FILE__, __LINE__, &on[0]) ||
      lam_torch.aoti_torch_library_init_impl("lamella", "CUDA", __FILE__, __LINE__, &on[1]))
    return "torch gave no library to register in";
  for (int i = 0; i < N_ROWS; i++) {
    const char *error = register_row(schemas, on, i);
    if (error) return error;
  }
  return NULL;
}

__attribute__((constructor)) static void load(void) {
  load_error = lam_torch_open();
  if (load_error) return;
  lam_torch_learn_numbers();
  load_error = register_rows();
}

/* NULL, or why the operators are not there. */
LAM_API const char *lamella_torch_error(void);
const char *lamella_torch_error(void) { return load_error; }
