/* register.c: makes every row of the operator table an operator of torch, at load time.
 *
 * Invariant: nothing is thrown or printed while loading; what went wrong is what
 * lamella_torch_error() gives. Torch keeps the kernels' addresses, so the library is never unloaded
 * (-z nodelete).
 * Leaves fakes and autograd to Python, since torch's C layer has neither. */
#include <stdio.h>

#include "bindings/torch/call.h"
#include "bindings/torch/tensor.h"

/* A kernel gets no data of its own, hence one of them for each row. */
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
    lam_torch_run(&rows[ROW_##name], stack);                               \
  }
#include "abi/lamella_ops.def"
#undef LAM_OP

static const struct {
  uint32_t id;
  const char *name, *inputs, *outputs, *attributes, *shapes;
  lam_torch_kernel kernel;
} texts[N_ROWS] = {
#define LAM_OP(id, name, inputs, outputs, attributes, shapes, effect) \
  {id, #name, inputs, outputs, attributes, shapes, run_##name},
#include "abi/lamella_ops.def"
#undef LAM_OP
};

static const char *error;
static char refused[128];

static const char *refuse(const char *what, const char *name) {
  snprintf(refused, sizeof refused, "torch refused %s of lamella::%s (loaded twice?)", what, name);
  return refused;
}

static const char *register_rows(void) {
  lam_torch_library schemas, on_cpu, on_cuda;
  if (lam_torch.aoti_torch_library_init_fragment("lamella", __FILE__, __LINE__, &schemas) ||
      lam_torch.aoti_torch_library_init_impl("lamella", "CPU", __FILE__, __LINE__, &on_cpu) ||
      lam_torch.aoti_torch_library_init_impl("lamella", "CUDA", __FILE__, __LINE__, &on_cuda))
    return "torch gave no library to register in";
  for (int i = 0; i < N_ROWS; i++) {
    if (!lam_torch_row_read(texts[i].id, texts[i].name, texts[i].inputs, texts[i].outputs,
                            texts[i].attributes, texts[i].shapes, &rows[i]))
      return refuse("the size", texts[i].name);
    if (lam_torch.aoti_torch_library_def(schemas, rows[i].schema))
      return refuse("the schema", texts[i].name);
    if (lam_torch.torch_library_impl(on_cpu, texts[i].name, texts[i].kernel, LAM_TORCH_BUILT_FOR) ||
        lam_torch.torch_library_impl(on_cuda, texts[i].name, texts[i].kernel, LAM_TORCH_BUILT_FOR))
      return refuse("the kernel", texts[i].name);
  }
  return NULL; /* the three libraries live as long as the process */
}

__attribute__((constructor)) static void load(void) {
  error = lam_torch_open();
  if (error) return;
  lam_torch_learn_numbers();
  error = register_rows();
}

/* NULL, or why the operators are not there. */
LAM_API const char *lamella_torch_error(void);
const char *lamella_torch_error(void) { return error; }
