/* main.c: one worker of the demo. Started as a rank of a group (./lamella run, ./lamella demo), it
 * trains its part of the model; with --check it prints what would be done, with --bench how fast
 * this machine does it.
 *
 * Invariant: a mistake in the options ends with status 2, anything that fails later with status 1,
 * each with one line. */
#include <errno.h>
#include <stdio.h>
#include <string.h>

#include "bindings/cli/demo/demo.h"

/* Whether the files named can be read and written, and the device is there: better known before
 * training. */
static lam_status check_outside(const options *o) {
  text t = {0};
  lam_status status = text_read(o, &t);
  text_free(&t);
  FILE *file = status == LAM_OK && o->save ? fopen(o->save, "ab") : NULL;
  if (status == LAM_OK && o->save && !file)
    status = fail(LAM_INVALID_ARGUMENT, "--save %s: %s", o->save, strerror(errno));
  if (file && ftell(file) == 0) remove(o->save);
  if (file) fclose(file);
  return status == LAM_OK ? device_open(o, 0) : status;
}

static int end(const worker *w, lam_status status) {
  if (status == LAM_OK) return 0;
  emit("{\"failed\": %d, \"status\": \"%s\", ", w->rank, lam_status_name(status));
  emit_text("why", error_text());
  emit("}\n");
  return 1;
}

int main(int argc, char **argv) {
  options o;
  lam_status status = options_parse(argc, argv, &o);
  if (status == LAM_OK && o.check) status = check_outside(&o);
  if (status != LAM_OK) return fprintf(stderr, "lamella demo: %s\n", error_text()), 2;
  if (o.check) return print_plan(&o), here->close(), 0;
  worker w;
  status = worker_open(&o, &w);
  if (status == LAM_OK) status = o.bench ? bench(&w) : train(&w);
  const int code = end(&w, status);
  worker_close(&w);
  return code;
}
