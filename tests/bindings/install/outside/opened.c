/* opened.c: a program that links nothing of Lamella's: it opens the library that it is told. */
#include <dlfcn.h>
#include <lamella.h>
#include <stdio.h>

int main(int argc, char **argv) {
  void *library = argc == 2 ? dlopen(argv[1], RTLD_NOW | RTLD_LOCAL) : NULL;
  const lam_api *(*get_api)(uint32_t major) = NULL;
  if (!library) return fprintf(stderr, "%s\n", argc == 2 ? dlerror() : "which library?"), 1;
  *(void **)&get_api = dlsym(library, "lam_get_api");
  const lam_api *api = get_api ? get_api(LAM_VERSION_MAJOR) : NULL;
  uint64_t bytes = 0;
  char text[80];
  lam_schedule *schedule = NULL;
  if (!api || api->struct_size < sizeof *api) return fprintf(stderr, "no whole table\n"), 1;
  if (api->schedule_build("1f1b", 2, 1, 2, &schedule) != LAM_OK ||
      api->schedule_print(schedule, text, sizeof text, &bytes) != LAM_OK)
    return fprintf(stderr, "%s\n", api->last_error()), 1;
  api->schedule_destroy(schedule);
  printf("%s", text);
  return 0;
}
