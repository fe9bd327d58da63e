/* row.c: reads "id name | inputs | outputs | attributes | shapes | effect" of every operator.
 * Invariant: rows[] is written under one pthread_once and only read after it.
 * Leaves the grammar's checks to the library, whose tests refuse a row that is wrong. */
#include "bindings/xla/row.h"

#include <pthread.h>
#include <string.h>

static xla_row rows[LAM_OP_END_];

/* The next word up to `end`: its length, 0 where there is none. */
static size_t next_word(const char **s, const char *end) {
  while (*s < end && **s == ' ') ++*s;
  const char *stop = *s;
  while (stop < end && *stop != ' ') stop++;
  return (size_t)(stop - *s);
}

static int read_tensors(const char *s, const char *end, bool *optional) {
  int n_tensors = 0;
  for (size_t n; (n = next_word(&s, end)) > 0 && n_tensors < XLA_MAX_TENSORS; s += n)
    optional[n_tensors++] = memchr(s, '?', n) != NULL;
  return n_tensors;
}

static bool has_token(const char *s, const char *end) {
  for (size_t n; (n = next_word(&s, end)) > 0; s += n)
    if (n >= 5 && !memcmp(s, "token", 5)) return true;
  return false;
}

static void read_attrs(const char *s, const char *end, xla_row *row) {
  row->group = -1;
  for (size_t n; (n = next_word(&s, end)) > 0 && row->n_attrs < XLA_MAX_ATTRS; s += n) {
    const char *colon = memchr(s, ':', n);
    const xla_word name = {s, colon ? (size_t)(colon - s) : n};
    if (name.len == 5 && !memcmp(name.ptr, "group", 5)) row->group = row->n_attrs;
    row->attrs[row->n_attrs++] = name;
  }
}

static void read_row(const char *words, xla_row *row) {
  const char *field[7] = {words};
  for (int i = 1; i < 6; i++) field[i] = strchr(field[i - 1], '|') + 1;
  field[6] = words + strlen(words) + 1;
  row->n_in = read_tensors(field[1], field[2] - 1, row->in_optional);
  row->n_out = read_tensors(field[2], field[3] - 1, row->out_optional);
  read_attrs(field[3], field[4] - 1, row);
  row->communicates = strstr(field[5], "COMM") != NULL;
  row->own_token = has_token(field[1], field[2] - 1);
  row->words = words;
}

static void read_table(void) {
  for (uint32_t op = 0; op < LAM_OP_END_; op++) {
    const char *words = lam_op_row(op);
    if (words) read_row(words, &rows[op]);
  }
}

const xla_row *xla_row_find(uint32_t op) {
  static pthread_once_t once = PTHREAD_ONCE_INIT;
  pthread_once(&once, read_table);
  return op < LAM_OP_END_ && rows[op].words ? &rows[op] : NULL;
}
