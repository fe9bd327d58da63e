/* gradients.c: this worker's gradients beside those of another run, from the safetensors file that
 * save.c wrote of it.
 *
 * Invariant: a difference is a share of the largest gradient of its weight, so that all weights are
 * judged alike. Leaves what difference is too much to the launcher. */
#include <errno.h>
#include <float.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "bindings/cli/demo/demo.h"
#include "bindings/cli/demo/rows.h"

typedef struct gradients_file {
  FILE *file;
  char *header;
  uint64_t data; /* where the first tensor begins */
} gradients_file;

static lam_status open_file(const char *path, gradients_file *out) {
  uint64_t length = 0;
  out->file = fopen(path, "rb");
  if (!out->file) return fail(LAM_NOT_FOUND, "--check-gradients %s: %s", path, strerror(errno));
  const bool begun = fread(&length, 8, 1, out->file) == 1 && length < 1 << 24;
  out->header = begun ? calloc(1, length + 1) : NULL;
  out->data = 8 + length;
  if (!out->header || fread(out->header, 1, length, out->file) != length)
    return fail(LAM_INVALID_ARGUMENT, "--check-gradients %s: not a safetensors file", path);
  return LAM_OK;
}

static void close_file(gradients_file *f) {
  if (f->file) fclose(f->file);
  free(f->header);
}

/* Where a tensor begins, in bytes of the file; as save.c writes its header, without blanks. */
static lam_status find(const gradients_file *f, const char *name, uint64_t *out_begin) {
  char key[64];
  snprintf(key, sizeof key, "\"%s\":{\"dtype\":\"F32\",", name);
  const char *at = strstr(f->header, key);
  if (at) at = strstr(at, "\"data_offsets\":[");
  if (!at) return fail(LAM_NOT_FOUND, "--check-gradients: the file has no f32 %s", name);
  *out_begin = f->data + strtoull(at + strlen("\"data_offsets\":["), NULL, 10);
  return LAM_OK;
}

typedef struct beside {
  float difference, highest; /* the largest so far */
} beside;

static void compare_row(const float *mine, const float *theirs, int64_t n, beside *so_far) {
  for (int64_t i = 0; i < n; i++) {
    const float off = fabsf(mine[i] - theirs[i]);
    if (!(off <= so_far->difference)) so_far->difference = isnan(off) ? FLT_MAX : off;
    so_far->highest = fmaxf(so_far->highest, fabsf(theirs[i]));
  }
}

static lam_status compare_rows(const param *p, matrix own, const gradients_file *f, float *row,
                               beside *out) {
  uint64_t begin = 0;
  TRY(find(f, p->name, &begin));
  for (int64_t r = 0; r < own.rows; r++) {
    const int64_t at = param_whole_row(p, r) * p->whole_cols + p->cols.begin;
    if (fseek(f->file, (long)begin + at * 4, SEEK_SET) ||
        fread(row, 4, (size_t)own.cols, f->file) != (size_t)own.cols)
      return fail(LAM_INVALID_ARGUMENT, "--check-gradients: the file ends in %s", p->name);
    compare_row(row_at(own, r), row, own.cols, out);
  }
  return LAM_OK;
}

/* The largest difference of this worker's part, as a share. */
static lam_status compare(const param *p, const gradients_file *f, double *out) {
  beside found = {0, FLT_MIN};
  matrix own;
  TRY(matrix_read(param_grad(p), &own));
  float *row = malloc((size_t)p->w.cols * 4);
  const lam_status status = row ? compare_rows(p, own, f, row, &found)
                                : fail(LAM_RESOURCE_EXHAUSTED, "no memory for a row");
  free(row);
  matrix_unread(param_grad(p), &own);
  *out = found.difference / found.highest;
  return status;
}

static lam_status compare_all(const worker *w, const gradients_file *f) {
  double most = 0, one = 0;
  const char *name = "";
  for (const model *m = w->models; m < w->models + w->n_stages; m++)
    for (const param *p = m->params; p < m->params + m->n_params; p++) {
      TRY(compare(p, f, &one));
      if (one >= most) most = one, name = p->name;
    }
  emit("{\"gradients\": %d, \"difference\": %.3g, \"weight\": \"%s\"}\n", w->rank, most, name);
  return LAM_OK;
}

lam_status check_gradients(const worker *w, const char *path) {
  gradients_file f = {0};
  lam_status status = open_file(path, &f);
  if (status == LAM_OK) status = compare_all(w, &f);
  close_file(&f);
  return status;
}
