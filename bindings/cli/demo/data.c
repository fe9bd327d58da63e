/* data.c: a text's bytes as tokens, in micro-batches that depend on nothing but the seed, the step
 * and the place.
 *
 * Invariant: every worker cuts the same micro-batch without asking another: the first stage reads
 * its tokens, the last its targets. Leaves what is done with them to stage.c. */
#include <errno.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>

#include "bindings/cli/demo/demo.h"

static lam_status read_all(FILE *file, const char *path, text *out) {
  struct stat info;
  if (fstat(fileno(file), &info) || !S_ISREG(info.st_mode))
    return fail(LAM_INVALID_ARGUMENT, "--text %s: not a plain file", path);
  out->n = info.st_size;
  out->bytes = memory_take((uint64_t)out->n);
  if (!out->bytes)
    return fail(LAM_RESOURCE_EXHAUSTED, "--text %s: no memory for %lld bytes", path,
                (long long)out->n);
  if (fread(out->bytes, 1, (size_t)out->n, file) != (size_t)out->n)
    return fail(LAM_INVALID_ARGUMENT, "--text %s: cannot be read: %s", path, strerror(errno));
  return LAM_OK;
}

lam_status text_read(const options *o, text *out) {
  *out = (text){0};
  FILE *file = fopen(o->text, "rb");
  if (!file) return fail(LAM_NOT_FOUND, "--text %s: %s", o->text, strerror(errno));
  lam_status status = read_all(file, o->text, out);
  fclose(file);
  if (status == LAM_OK && out->n < o->sequence + 1)
    status = fail(LAM_INVALID_ARGUMENT, "--text %s: has %lld bytes, a sequence needs %d", o->text,
                  (long long)out->n, o->sequence + 1);
  return status;
}

lam_status text_place(text *t) {
  t->there = here == &device_host ? t->bytes : here->take((uint64_t)t->n);
  if (!t->there) return fail(LAM_RESOURCE_EXHAUSTED, "--text: no memory on the device");
  return t->there == t->bytes ? LAM_OK : here->write(t->bytes, t->there, (uint64_t)t->n);
}

void text_free(text *t) {
  if (t->there != t->bytes) here->give(t->there, (uint64_t)t->n);
  memory_give(t->bytes, (uint64_t)t->n);
  *t = (text){0};
}

void text_batch(const text *t, const options *o, int64_t step, int micro, uint8_t *tokens,
                uint8_t *targets) {
  for (int i = 0; i < o->sequences; i++) {
    const uint64_t start =
        text_start((uint64_t)o->seed, step * MAX_MICRO + micro, i, t->n - o->sequence);
    const size_t to = (size_t)i * (size_t)o->sequence, n = (size_t)o->sequence;
    if (tokens) memcpy(tokens + to, t->bytes + start, n);
    if (targets) memcpy(targets + to, t->bytes + start + 1, n);
  }
}
