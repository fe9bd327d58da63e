/* onednn.c: opens oneDNN when it is first needed, and runs what onednn_v2.c made.
 *
 * The copy that is in the process already is taken first. It is never closed: JIT code and OpenMP
 * threads outlive a call.
 * Invariant: lam_onednn_open gives a library of a version that the rest was written for, with every
 * function found, or NULL.
 * Leaves the choice between this and plain C to gemm.c. */
#include "kernels/cpu/onednn.h"

#include <dlfcn.h>
#include <pthread.h>

#include "kernels/cpu/forks.h"

static lam_onednn api;
static bool is_open;

/* A pointer to a function from dlsym, as POSIX spells it. */
static bool find(const char *name, void *function) {
  return (*(void **)function = dlsym(api.library, name)) != NULL;
}

static bool find_all(void) {
  bool all = true;
#define FIND(name) all = find(#name, &api.name) && all;
  LAM_ONEDNN_FUNCTIONS(FIND)
#undef FIND
  return all;
}

/* A wheel carries what oneDNN links beside this library. Only our own dlopen looks there, so it is
 * opened for oneDNN, which then finds it by its name. */
static void open_companions(void) {
  static const char *const sonames[] = {"libgomp.so.1", "libOpenCL.so.1"};
  for (size_t i = 0; i < sizeof sonames / sizeof *sonames; i++)
    (void)dlopen(sonames[i], RTLD_LAZY | RTLD_LOCAL);
}

static void *open_own_copy(const char *soname) {
  open_companions();
  return dlopen(soname, RTLD_LAZY | RTLD_LOCAL);
}

static bool open_and_find(void) {
  static const char soname[] = "libdnnl.so.2"; /* 3.x: libdnnl.so.3 */
  api.library = dlopen(soname, RTLD_LAZY | RTLD_LOCAL | RTLD_NOLOAD);
  if (!api.library) api.library = open_own_copy(soname);
  return api.library && find_all() && api.dnnl_version()->major == 2 &&
         api.dnnl_engine_create(&api.engine, dnnl_cpu, 0) == dnnl_success &&
         api.dnnl_stream_create(&api.stream, api.engine, dnnl_stream_default_flags) == dnnl_success;
}

static void open_library(void) {
  lam_forks_wait();
  is_open = open_and_find();
  lam_forks_go_on();
}

const lam_onednn *lam_onednn_open(void) {
  static pthread_once_t once = PTHREAD_ONCE_INIT;
  pthread_once(&once, open_library);
  return is_open ? &api : NULL;
}

lam_status lam_onednn_failed(const char *what, dnnl_status_t status) {
  const lam_status code = status == dnnl_out_of_memory   ? LAM_RESOURCE_EXHAUSTED
                          : status == dnnl_unimplemented ? LAM_UNIMPLEMENTED
                                                         : LAM_INTERNAL;
  return lam_fail(code, "cpu gemm: oneDNN could not %s (its status %d)", what, (int)status);
}

static void point(dnnl_memory_t memory, void *data) {
  if (memory) api.dnnl_memory_set_data_handle(memory, data);
}

lam_status lam_onednn_run(const lam_onednn_product *p, const lam_onednn_operands *o) {
  const dnnl_exec_arg_t args[] = {{DNNL_ARG_SRC, p->a},
                                  {DNNL_ARG_WEIGHTS, p->b},
                                  {DNNL_ARG_DST, p->d},
                                  {DNNL_ARG_SCRATCHPAD, p->scratch},
                                  {DNNL_ARG_BIAS, p->bias}};
  point(p->a, o->a);
  point(p->b, o->b);
  point(p->d, o->d);
  point(p->scratch, o->scratch);
  point(p->bias, o->bias);
  const dnnl_status_t status =
      api.dnnl_primitive_execute(p->primitive, api.stream, p->bias ? 5 : 4, args);
  return status == dnnl_success ? LAM_OK : lam_onednn_failed("run a product", status);
}

void lam_onednn_free(lam_onednn_product *p) {
  const dnnl_memory_t memories[] = {p->a, p->b, p->bias, p->d, p->scratch};
  for (size_t i = 0; i < sizeof memories / sizeof *memories; i++)
    if (memories[i]) api.dnnl_memory_destroy(memories[i]);
  if (p->primitive) api.dnnl_primitive_destroy(p->primitive);
  *p = (lam_onednn_product){0};
}
