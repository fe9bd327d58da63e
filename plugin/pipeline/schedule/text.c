/* text.c: a schedule as text, read and written.
 *
 *   rank 0: 0F0 0F1 0B0 0B1    # one line per rank, in order
 *   1F0,1B0,(1F1;1B2),,        # "rank N:" on all lines or on none
 *
 * Blanks and commas part actions, empty cells are skipped, OVERLAP_F_B after a pair may be left
 * out; # starts a comment. So PyTorch's CSV is read as it is, and the letters that older
 * versions of it wrote, too: BW is B, and in a table that has W and no I, B is I where there is a
 * W.
 *
 * The text is read twice: once to find its sizes (and all its errors), once to fill the lists.
 * Invariant: what is printed is read back as the same schedule; an error names line and column,
 * both from 1.
 * Leaves whether the lists make sense together to check.c. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "plugin/pipeline/schedule/schedule.h"
#include "plugin/pipeline/schedule/sink.h"

#define PAIR_SUFFIX "OVERLAP_F_B"
#define KINDS "F I W B SEND_F RECV_F SEND_B RECV_B REDUCE_GRAD UNSHARD RESHARD"

typedef struct reader {
  const char *at, *end, *line_start;
  int line, n_ranks, n_stages, n_micro; /* seen so far */
  int prefixed;                         /* do lines start with "rank N:"? -1 = not known yet */
  bool has[LAM_N_KINDS];                /* kinds seen */
  lam_schedule *out;                    /* NULL: only measure */
} reader;

typedef struct word {
  const char *text;
  int n;
} word;

static lam_status fail_at(const reader *in, const char *where, const char *expected) {
  const int line = in->line, column = (int)(where - in->line_start) + 1;
  const unsigned char c = where < in->end ? (unsigned char)*where : '\n';
  char found[16] = "the line's end";
  if (c >= 0x20 && c < 0x7f)
    snprintf(found, sizeof found, "'%c'", c);
  else if (c != '\n')
    snprintf(found, sizeof found, "byte 0x%02x", c);
  return lam_fail(LAM_INVALID_ARGUMENT,
                  "lam_schedule_parse: line %d, column %d: found %s, expected %s", line, column,
                  found, expected);
}

static int peek(const reader *in) { return in->at < in->end ? (unsigned char)*in->at : '\n'; }
static bool is_digit(int c) { return c >= '0' && c <= '9'; }
static bool is_letter(int c) { return (c >= 'A' && c <= 'Z') || c == '_'; }
static bool is_blank(int c) { return c == ' ' || c == '\t' || c == '\r'; }

static void skip_blanks(reader *in) {
  while (is_blank(peek(in))) in->at++;
}

static bool skip_char(reader *in, char c) {
  if (peek(in) != c) return false;
  in->at++;
  return true;
}

static bool skip_text(reader *in, const char *text) {
  const size_t n = strlen(text);
  if ((size_t)(in->end - in->at) < n || memcmp(in->at, text, n)) return false;
  in->at += n;
  return true;
}

static lam_status read_number(reader *in, const char *what, int *out) {
  const char *start = in->at;
  if (!is_digit(peek(in))) return fail_at(in, in->at, what);
  int64_t n = 0;
  while (is_digit(peek(in))) {
    if (n < LAM_SCHEDULE_MOST) n = 10 * n + (*in->at - '0');
    in->at++;
  }
  if (n >= LAM_SCHEDULE_MOST)
    return lam_fail(
        LAM_INVALID_ARGUMENT,
        "lam_schedule_parse: line %d, column %d: found a number of %d or more, expected %s",
        in->line, (int)(start - in->line_start) + 1, LAM_SCHEDULE_MOST, what);
  *out = (int)n;
  return LAM_OK;
}

static bool word_is(word w, const char *name) {
  return name && strlen(name) == (size_t)w.n && !memcmp(name, w.text, (size_t)w.n);
}

static int kind_of(word w) {
  for (int kind = 0; kind < LAM_N_KINDS; kind++)
    if (word_is(w, lam_kind_name(kind))) return kind;
  return word_is(w, "BW") ? LAM_KIND_B : -1;
}

static lam_status read_kind(reader *in, int *out) {
  word w = {in->at, 0};
  while (is_letter(peek(in))) in->at++, w.n++;
  if (!w.n) return fail_at(in, in->at, "a kind (" KINDS ") after the stage");
  *out = kind_of(w);
  if (*out < 0)
    return lam_fail(LAM_INVALID_ARGUMENT,
                    "lam_schedule_parse: line %d, column %d: found kind '%.*s', expected " KINDS,
                    in->line, (int)(w.text - in->line_start) + 1, w.n < 32 ? w.n : 32, w.text);
  return LAM_OK;
}

static int larger(int a, int b) { return a > b ? a : b; }

/* "2F7", "2REDUCE_GRAD"; only == -1 takes any kind. */
static lam_status read_action(reader *in, int only, const char *expected) {
  const char *start = in->at;
  int stage = 0, kind = 0, micro = -1;
  LAM_TRY(read_number(in, only < 0 ? "an action such as 0F0, (0F1;0B0) or #" : expected, &stage));
  LAM_TRY(read_kind(in, &kind));
  if (!lam_kind_is_stage_wide(kind)) LAM_TRY(read_number(in, "a micro-batch number", &micro));
  if (only >= 0 && kind != only) return fail_at(in, start, expected);
  in->n_stages = larger(in->n_stages, stage + 1);
  in->n_micro = larger(in->n_micro, micro + 1);
  in->has[kind] = true;
  return in->out ? lam_schedule_push(in->out, in->n_ranks, kind, stage, micro) : LAM_OK;
}

/* "(0F7;7B3)OVERLAP_F_B" */
static lam_status read_pair(reader *in) {
  in->at++;
  skip_blanks(in);
  LAM_TRY(read_action(in, LAM_KIND_F, "a forward first in a fused pair such as (0F7;7B3)"));
  skip_blanks(in);
  if (!skip_char(in, ';')) return fail_at(in, in->at, "';' in a fused pair such as (0F7;7B3)");
  skip_blanks(in);
  LAM_TRY(read_action(in, LAM_KIND_B, "a full backward second in a fused pair such as (0F7;7B3)"));
  skip_blanks(in);
  if (!skip_char(in, ')')) return fail_at(in, in->at, "')' after a fused pair such as (0F7;7B3)");
  skip_text(in, PAIR_SUFFIX);
  if (in->out) lam_schedule_pair(in->out);
  return LAM_OK;
}

static bool at_line_end(const reader *in) { return peek(in) == '\n' || peek(in) == '#'; }

/* "rank 3:", or nothing on every line. */
static lam_status read_prefix(reader *in) {
  const char *start = in->at;
  const bool has = skip_text(in, "rank");
  if (in->prefixed < 0) in->prefixed = has;
  if (in->prefixed != has)
    return fail_at(
        in, start,
        has ? "no \"rank N:\", as on the lines before" : "\"rank N:\", as on the lines before");
  if (!has) return LAM_OK;
  int rank = 0;
  skip_blanks(in);
  const char *number = in->at;
  LAM_TRY(read_number(in, "a rank number", &rank));
  if (rank != in->n_ranks) {
    char expected[64];
    snprintf(expected, sizeof expected, "rank %d: ranks come in order, from 0", in->n_ranks);
    return fail_at(in, number, expected);
  }
  skip_blanks(in);
  return skip_char(in, ':') ? LAM_OK : fail_at(in, in->at, "':' after the rank number");
}

static lam_status read_line(reader *in) {
  skip_blanks(in);
  if (at_line_end(in)) return LAM_OK; /* no rank's line */
  LAM_TRY(read_prefix(in));
  for (;;) {
    while (is_blank(peek(in)) || peek(in) == ',') in->at++;
    if (at_line_end(in)) break;
    LAM_TRY(peek(in) == '(' ? read_pair(in) : read_action(in, -1, NULL));
    if (!at_line_end(in) && !is_blank(peek(in)) && peek(in) != ',')
      return fail_at(in, in->at, "a blank or a comma after an action");
  }
  in->n_ranks++;
  return LAM_OK;
}

static lam_status read_all(const char *text, uint64_t bytes, reader *in) {
  in->at = text;
  in->end = text + bytes;
  for (in->line = 1; in->at < in->end; in->line++) {
    in->line_start = in->at;
    LAM_TRY(read_line(in));
    const char *newline = memchr(in->at, '\n', (size_t)(in->end - in->at));
    in->at = newline ? newline + 1 : in->end;
  }
  return LAM_OK;
}

/* -- old letters -- */

static int by_value(const void *a, const void *b) {
  const int64_t x = *(const int64_t *)a, y = *(const int64_t *)b;
  return x < y ? -1 : x > y;
}

static int64_t pair_key(const lam_action *a) {
  return (int64_t)a->stage * LAM_SCHEDULE_MOST + a->micro;
}

/* B is I where the table has a W of the same stage and micro-batch. */
static lam_status read_old_letters(lam_schedule *s) {
  const int64_t n = s->first[s->n_ranks];
  int64_t *split = malloc((size_t)n * sizeof *split);
  size_t n_split = 0;
  if (!split) return lam_fail(LAM_RESOURCE_EXHAUSTED, "lam_schedule_parse: no memory");
  for (int64_t i = 0; i < n; i++)
    if (s->actions[i].kind == LAM_KIND_W) split[n_split++] = pair_key(&s->actions[i]);
  qsort(split, n_split, sizeof *split, by_value);
  for (int64_t i = 0; i < n; i++) {
    lam_action *a = &s->actions[i];
    const int64_t key = pair_key(a);
    if (i && a[-1].paired) continue; /* a fused pair's backward is whole */
    if (a->kind == LAM_KIND_B && bsearch(&key, split, n_split, sizeof *split, by_value))
      a->kind = LAM_KIND_I;
  }
  free(split);
  return LAM_OK;
}

lam_status lam_schedule_parse(const char *text, uint64_t bytes, lam_schedule **out_schedule) {
  if (!out_schedule)
    return lam_fail(LAM_INVALID_ARGUMENT, "lam_schedule_parse: out_schedule is NULL");
  *out_schedule = NULL;
  if (!text && bytes) return lam_fail(LAM_INVALID_ARGUMENT, "lam_schedule_parse: text is NULL");
  reader measure = {.prefixed = -1}, fill = {.prefixed = -1};
  LAM_TRY(read_all(text, bytes, &measure));
  if (!measure.n_micro)
    return lam_fail(
        LAM_INVALID_ARGUMENT,
        "lam_schedule_parse: found no action in %llu bytes, expected lines such as 0F0 0B0",
        (unsigned long long)bytes);
  LAM_TRY(lam_schedule_alloc(measure.n_ranks, measure.n_stages, measure.n_micro, &fill.out));
  lam_status status = read_all(text, bytes, &fill);
  if (status == LAM_OK) status = lam_schedule_seal(fill.out);
  const bool old_letters = measure.has[LAM_KIND_W] && !measure.has[LAM_KIND_I];
  if (status == LAM_OK && old_letters) status = read_old_letters(fill.out);
  if (status == LAM_OK)
    *out_schedule = fill.out;
  else
    lam_schedule_destroy(fill.out);
  return status;
}

/* -- printing -- */

/* Both are read back by lam_schedule_parse. */
typedef struct format {
  const char *name;
  bool rank_names;
  char gap;         /* before an action */
  const char *none; /* a rank's line that has no action */
} format;

/* csv: an empty line would be no rank's, so that it gets two empty cells. */
static const format formats[] = {{"text", true, ' ', ""}, {"csv", false, ',', ","}};
enum { n_formats = sizeof formats / sizeof formats[0] };

static void print_action(lam_sink *out, const lam_action *a) {
  lam_sink_int(out, a->stage);
  lam_sink_text(out, lam_kind_name(a->kind));
  if (a->micro >= 0) lam_sink_int(out, a->micro);
}

static void print_pair(lam_sink *out, const lam_action *a) {
  lam_sink_text(out, "(");
  print_action(out, a);
  lam_sink_text(out, ";");
  print_action(out, a + 1);
  lam_sink_text(out, ")" PAIR_SUFFIX);
}

static void print_rank(lam_sink *out, const lam_schedule *s, int rank, const format *f) {
  const lam_action *first = s->actions + s->first[rank], *end = s->actions + s->first[rank + 1];
  if (f->rank_names) {
    lam_sink_text(out, "rank ");
    lam_sink_int(out, rank);
    lam_sink_text(out, ":");
  }
  for (const lam_action *a = first; a < end; a += 1 + a->paired) {
    if (a > first || f->rank_names) lam_sink_bytes(out, &f->gap, 1);
    if (a->paired)
      print_pair(out, a);
    else
      print_action(out, a);
  }
  if (first == end) lam_sink_text(out, f->none);
  lam_sink_text(out, "\n");
}

static lam_status print(const lam_schedule *s, const format *f, char *buf, uint64_t room,
                        uint64_t *out_bytes) {
  lam_sink out = lam_sink_open(buf, room);
  for (int rank = 0; rank < s->n_ranks; rank++) print_rank(&out, s, rank, f);
  if (out_bytes) *out_bytes = out.n;
  return LAM_OK;
}

lam_status lam_schedule_print(const lam_schedule *s, char *buf, uint64_t room,
                              uint64_t *out_bytes) {
  if (out_bytes) *out_bytes = 0;
  if (!s) return lam_fail(LAM_INVALID_ARGUMENT, "lam_schedule_print: s is NULL");
  return print(s, &formats[0], buf, room, out_bytes);
}

lam_status lam_schedule_write(const lam_schedule *s, const char *name, char *buf, uint64_t room,
                              uint64_t *out_bytes) {
  if (out_bytes) *out_bytes = 0;
  if (!s || !name)
    return lam_fail(LAM_INVALID_ARGUMENT, "lam_schedule_write: %s is NULL", s ? "format" : "s");
  for (int i = 0; i < n_formats; i++)
    if (!strcmp(formats[i].name, name)) return print(s, &formats[i], buf, room, out_bytes);
  return lam_fail(LAM_NOT_FOUND, "lam_schedule_write: format is \"%.64s\", known are text, csv",
                  name);
}
