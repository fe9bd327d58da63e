/* client_dlopen.c: a host that does not link Lamella: it opens the library named on its command
 * line, asks for the table of its major version, and calls through that alone. */
#include <dlfcn.h>
#include <lamella.h>
#include <stdio.h>

static int call_through(const lam_api *api) {
  float x = 3, y = 0;
  int64_t shape[] = {1, 1};
  DLTensor tx = {&x, {kDLCPU, 0}, 2, {kDLFloat, 32, 1}, shape, NULL, 0}, ty = tx;
  ty.data = &y;
  const DLTensor *inputs[] = {&tx, &tx};
  DLTensor *outputs[] = {&ty};
  const lam_call call = {sizeof call, LAM_OP_linear, inputs, outputs, NULL, 2, 1, 0,
                         0,           NULL,          NULL,   0};
  if (api->run(NULL, &call) == LAM_OK && y == 9) return 0;
  fprintf(stderr, "run: y is %g, expected 9: %s\n", (double)y, api->last_error());
  return 1;
}

int main(int argc, char **argv) {
  void *library = argc == 2 ? dlopen(argv[1], RTLD_NOW | RTLD_LOCAL) : NULL;
  const lam_api *(*get_api)(uint32_t major) = NULL;
  if (!library)
    return fprintf(stderr, "%s\n", argc == 2 ? dlerror() : "usage: client_dlopen LIBRARY"), 1;
  *(void **)&get_api = dlsym(library, "lam_get_api");
  if (!get_api) return fprintf(stderr, "%s\n", dlerror()), 1;
  if (get_api(LAM_VERSION_MAJOR + 1))
    return fprintf(stderr, "another major version was given a table\n"), 1;
  const lam_api *api = get_api(LAM_VERSION_MAJOR);
  if (!api || api->struct_size < sizeof *api) return fprintf(stderr, "the table is not whole\n"), 1;
  const int failed = call_through(api);
  dlclose(library); /* changes nothing: the library stays */
  return failed || api->version() >> 16 != LAM_VERSION_MAJOR;
}
