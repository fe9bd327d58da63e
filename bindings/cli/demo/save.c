/* save.c: the whole model, or its gradients, as one safetensors file: 8 bytes of length, a JSON
 * header, the tensors one after the other.
 *
 * Every worker sends its parts to rank 0 in the order that model_describe gives, so rank 0 knows
 * what comes: it describes the sender's weights itself, and puts each row where it belongs in the
 * whole.
 * Invariant: what computed the same bits, with any pp and tp, gives the same tensors under the same
 * names; their order in the file is that of the workers. */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "bindings/cli/demo/demo.h"
#include "bindings/cli/demo/rows.h"

typedef matrix (*content)(const param *p); /* what of a weight is saved: its part here */

static matrix weight_of(const param *p) { return p->w; }

static matrix whole_of(const param *p, content of) {
  return matrix_at(NULL, p->whole_rows, p->whole_cols, of(p).bits);
}

/* -- header -- */

typedef struct header {
  char *text;
  size_t bytes, room;
  uint64_t data; /* bytes of tensors named so far */
} header;

static void add_text(header *h, const char *text) {
  const size_t n = strlen(text);
  if (h->bytes + n < h->room) memcpy(h->text + h->bytes, text, n);
  h->bytes += n;
}

static void add_tensor(header *h, const param *p, content of) {
  char entry[256];
  const matrix whole = whole_of(p, of);
  const uint64_t end = h->data + matrix_bytes(whole);
  snprintf(entry, sizeof entry,
           "%s\"%s\":{\"dtype\":\"%s\",\"shape\":[%lld,%lld],\"data_offsets\":[%llu,%llu]}",
           h->data ? "," : "{", p->name, whole.bits == 16 ? "BF16" : "F32", (long long)whole.rows,
           (long long)whole.cols, (unsigned long long)h->data, (unsigned long long)end);
  add_text(h, entry);
  h->data = end;
}

static lam_status write_header(const options *o, content of, FILE *file) {
  header h = {.room = 1 << 20};
  h.text = malloc(h.room);
  lam_status status = h.text ? LAM_OK : fail(LAM_RESOURCE_EXHAUSTED, "no memory for --save");
  for (int stage = 0; stage < o->n_stages && status == LAM_OK; stage++) {
    model m = {0};
    status = model_describe(o, stage, 0, &m);
    for (int i = 0; i < m.n_params && status == LAM_OK; i++) add_tensor(&h, &m.params[i], of);
    model_free(&m);
  }
  add_text(&h, "}");
  while (h.bytes % 8) add_text(&h, " ");
  const uint64_t length = h.bytes;
  if (status == LAM_OK &&
      (fwrite(&length, 8, 1, file) != 1 || fwrite(h.text, 1, h.bytes, file) != h.bytes))
    status = fail(LAM_INVALID_ARGUMENT, "--save: %s", strerror(errno));
  free(h.text);
  return status;
}

/* -- tensors -- */

static void place(const param *p, matrix part, matrix whole) {
  for (int64_t r = 0; r < part.rows; r++) {
    char *to = row_at(whole, param_whole_row(p, r));
    memcpy(to + p->cols.begin * part.bits / 8, row_at(part, r),
           (size_t)(part.cols * part.bits / 8));
  }
}

static lam_status place_own(const param *p, matrix part, matrix whole) {
  matrix read;
  TRY(matrix_read(part, &read));
  place(p, read, whole);
  matrix_unread(part, &read);
  return LAM_OK;
}

static const model *model_of(const worker *w, int stage) {
  int i = 0;
  while (w->models[i].stage != stage) i++;
  return &w->models[i];
}

/* Part `part` of tensor i of a stage: from this rank's memory, or from the worker that has it. */
static lam_status fetch(worker *w, content of, int stage, int part, int i, matrix whole) {
  const int rank = w->o->rank_of_stage[stage] * w->o->tp + part;
  const param *mine = rank == w->rank ? &model_of(w, stage)->params[i] : NULL;
  if (mine) return place_own(mine, of(mine), whole);
  model theirs = {0};
  TRY(model_describe(w->o, stage, part, &theirs));
  const param *p = &theirs.params[i];
  matrix buffer = of(p);
  buffer.data = malloc(matrix_bytes(buffer));
  lam_status status = buffer.data ? worker_recv(w, rank, buffer)
                                  : fail(LAM_RESOURCE_EXHAUSTED, "no memory for --save");
  if (status == LAM_OK) place(p, buffer, whole);
  free(buffer.data);
  model_free(&theirs);
  return status;
}

static lam_status write_tensor(worker *w, content of, int stage, const param *p, int i,
                               FILE *file) {
  matrix whole = whole_of(p, of);
  whole.data = malloc(matrix_bytes(whole));
  lam_status status = whole.data ? LAM_OK : fail(LAM_RESOURCE_EXHAUSTED, "no memory for --save");
  for (int part = 0; status == LAM_OK && part < (p->split ? w->o->tp : 1); part++)
    status = fetch(w, of, stage, part, i, whole);
  if (status == LAM_OK && fwrite(whole.data, 1, matrix_bytes(whole), file) != matrix_bytes(whole))
    status = fail(LAM_INVALID_ARGUMENT, "--save: %s", strerror(errno));
  free(whole.data);
  return status;
}

static lam_status write_all(worker *w, content of, FILE *file) {
  lam_status status = write_header(w->o, of, file);
  for (int stage = 0; stage < w->o->n_stages && status == LAM_OK; stage++) {
    model m = {0};
    status = model_describe(w->o, stage, 0, &m);
    for (int i = 0; i < m.n_params && status == LAM_OK; i++)
      status = write_tensor(w, of, stage, &m.params[i], i, file);
    model_free(&m);
  }
  return status;
}

static lam_status send_own(worker *w, matrix part) {
  matrix read;
  TRY(matrix_read(part, &read));
  const lam_status status = worker_send(w, 0, read);
  matrix_unread(part, &read);
  return status;
}

static lam_status send_all(worker *w, content of) {
  for (const model *m = w->models; m < w->models + w->n_stages; m++)
    for (const param *p = m->params; p < m->params + m->n_params; p++)
      if (p->split || w->part == 0) TRY(send_own(w, of(p)));
  return LAM_OK;
}

static lam_status write_file(worker *w, content of, const char *option, const char *path) {
  if (w->rank) return send_all(w, of);
  FILE *file = fopen(path, "wb");
  if (!file) return fail(LAM_INVALID_ARGUMENT, "%s %s: %s", option, path, strerror(errno));
  lam_status status = write_all(w, of, file);
  if (fclose(file) && status == LAM_OK)
    status = fail(LAM_INVALID_ARGUMENT, "%s %s: %s", option, path, strerror(errno));
  return status;
}

lam_status save(worker *w, const char *path) {
  TRY(write_file(w, weight_of, "--save", path));
  if (w->rank == 0) emit("{"), emit_text("saved", path), emit("}\n");
  return LAM_OK;
}

lam_status save_gradients(worker *w, const char *path) {
  return write_file(w, param_grad, "--save-gradients", path);
}
