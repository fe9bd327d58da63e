/* cuda_object_test.c: liblamella_cuda.so.0 itself: found beside liblamella.so.0, one symbol, one line
 * where this machine has no GPU.
 *
 * Leaves what it computes to the tests on the stand-in, and to a machine with a GPU. */
#include <dlfcn.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "kernels/backend.h"
#include "tests/check.h"

enum { PATH = 2048 };

static lam_status fail(lam_status code, const char *text) {
  check_note("%s", text);
  return code;
}
static const char *no_error(void) { return ""; }

TEST(cuda_object, has_one_symbol_and_knows_its_version) {
  static const lam_backend_host host = {fail, no_error};
  void *object = dlopen("kernels/cuda/liblamella_cuda.so.0", RTLD_NOW);
  lam_backend_get_fn *get = NULL;
  REQUIRE(object != NULL);
  CHECK(dlsym(object, "lam_fail") == NULL);
  *(void **)&get = dlsym(object, "lam_backend_get");
  REQUIRE(get != NULL);
  CHECK(get(LAM_BACKEND_VERSION + 1, &host) == NULL);
  const lam_backend *backend = get(LAM_BACKEND_VERSION, &host);
  REQUIRE(backend != NULL);
  CHECK_STR(backend->device->name, "cuda");
  CHECK_EQ(backend->device->device_type, 2);
}

static void link_into(const char *folder, const char *built, const char *name) {
  char from[PATH], to[PATH];
  CHECK(realpath(built, from) != NULL);
  snprintf(to, sizeof to, "%s/%s", folder, name);
  CHECK_EQ(symlink(from, to), 0);
}

typedef lam_status run_fn(lam_context *ctx, const lam_call *call);
typedef const char *error_fn(void);

TEST(cuda_object, is_found_beside_the_library_and_says_what_the_machine_lacks) {
  char folder[PATH / 2], path[PATH];
  const char *tmp = getenv("TEST_TMPDIR");
  snprintf(folder, sizeof folder, "%s/lamella-XXXXXX", tmp ? tmp : "/tmp");
  REQUIRE(mkdtemp(folder) != NULL);
  link_into(folder, "abi/liblamella.so.0", "liblamella.so.0");
  link_into(folder, "kernels/cuda/liblamella_cuda.so.0", "liblamella_cuda.so.0");
  snprintf(path, sizeof path, "%s/liblamella.so.0", folder);
  void *library = dlopen(path, RTLD_NOW);
  REQUIRE(library != NULL);
  run_fn *run = NULL;
  error_fn *error = NULL;
  *(void **)&run = dlsym(library, "lam_run");
  *(void **)&error = dlsym(library, "lam_last_error");

  int64_t shape[] = {2, 2}, strides[] = {2, 1};
  DLTensor t = {.data = (void *)256,
                .device = {kDLCUDA, 0},
                .ndim = 2,
                .dtype = {kDLFloat, 32, 1},
                .shape = shape,
                .strides = strides};
  const DLTensor *in[] = {&t, &t};
  DLTensor *out[] = {&t};
  const lam_call call = {.struct_size = sizeof call,
                         .op = LAM_OP_linear,
                         .inputs = in,
                         .outputs = out,
                         .n_inputs = 2,
                         .n_outputs = 1};
  const lam_status status = run(NULL, &call);
  if (access("/dev/nvidiactl", F_OK) != 0) {
    CHECK_EQ(status, LAM_UNAVAILABLE);
    CHECK_CONTAINS(error(), "linear: x: it lies on cuda:0: cuda: ");
  } else {
    CHECK_EQ(status, LAM_INVALID_ARGUMENT); /* y is x */
  }
}
