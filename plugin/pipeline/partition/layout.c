/* layout.c: Megatron-LM's string for which layers are in which stage, read and written.
 *
 *   layout: item*     item: one | "(" one+ ")*" count     one: E t m L or |, and maybe "*" count
 * Commas are skipped, wherever they are.
 *
 * E embedding, t transformer layer, m layer that predicts further tokens, L head and loss; | ends a
 * stage. x*3 is xxx, and so is |*3; what stands in a bracket is repeated as it is written, its |
 * included. E is there once and first, L once and last; t come before m; all m are in one stage.
 * Invariant: what is printed is read back as the same layers in the same stages; an error names the
 * position, from 1.
 * Leaves how many stages there must be, and which rank has which, to who asks. */
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "plugin/core/struct.h"
#include "plugin/pipeline/schedule/sink.h"

#define WHO "lam_layout_parse: "
#define MOST (1 << 20) /* layers and stages */
#define ONES "EtmL|"

typedef struct place {
  char letter;
  int32_t at; /* in the text, from 0 */
} place;

typedef struct reader {
  const char *text;
  int n, at;
  place *out; /* what was read, repetitions written out */
  int n_out, room;
} reader;

static lam_status fail_at(const reader *in, int at, const char *expected) {
  char found[16] = "the end";
  const unsigned char c = at < in->n ? (unsigned char)in->text[at] : 0;
  if (at < in->n) snprintf(found, sizeof found, c >= 0x20 && c < 0x7f ? "'%c'" : "byte 0x%02x", c);
  return lam_fail(LAM_INVALID_ARGUMENT, WHO "position %d: found %s, expected %s", at + 1, found,
                  expected);
}

/* The next character that is no comma; 0 at the end. */
static char peek(reader *in) {
  while (in->at < in->n && in->text[in->at] == ',') in->at++;
  return in->at < in->n ? in->text[in->at] : 0;
}

static bool skip(reader *in, char c) {
  if (peek(in) != c) return false;
  in->at++;
  return true;
}

static lam_status reserve(reader *in, int64_t more, int at) {
  const int64_t n = in->n_out + more;
  if (n > MOST) return fail_at(in, at, "at most 1048576 layers and stages in all");
  if (n <= in->room) return LAM_OK;
  place *grown = realloc(in->out, 2 * (size_t)n * sizeof *grown);
  if (!grown)
    return lam_fail(LAM_RESOURCE_EXHAUSTED, WHO "no memory for %lld layers", (long long)n);
  in->out = grown;
  in->room = 2 * (int)n;
  return LAM_OK;
}

/* The last n of what was read, so often in all. */
static lam_status repeat(reader *in, int n, int64_t count, int at) {
  const int64_t more = n * (count - 1);
  LAM_TRY(reserve(in, more, at));
  for (int64_t i = 0; i < more; i++) in->out[in->n_out + i] = in->out[in->n_out - n + i];
  in->n_out += (int)more;
  return LAM_OK;
}

/* "*3" behind the last n of what was read. */
static lam_status read_count(reader *in, int n) {
  int64_t count = 0;
  const char first = peek(in);
  const int at = in->at;
  if (first < '0' || first > '9') return fail_at(in, at, "a count after '*'");
  for (char c = first; c >= '0' && c <= '9'; c = peek(in)) {
    if (count <= MOST) count = 10 * count + (c - '0');
    in->at++;
  }
  return repeat(in, n, count, at);
}

static lam_status read_one(reader *in, const char *expected) {
  const char c = peek(in);
  if (!c || !strchr(ONES, c)) return fail_at(in, in->at, expected);
  LAM_TRY(reserve(in, 1, in->at));
  in->out[in->n_out++] = (place){c, in->at++};
  return skip(in, '*') ? read_count(in, 1) : LAM_OK;
}

static lam_status read_group(reader *in) {
  const int begin = in->n_out;
  do LAM_TRY(read_one(in, "a layer (E t m L) or '|' in brackets, which do not nest"));
  while (peek(in) && peek(in) != ')');
  if (!skip(in, ')')) return fail_at(in, in->at, "')'");
  if (!skip(in, '*')) return fail_at(in, in->at, "'*' and a count after ')'");
  return read_count(in, in->n_out - begin);
}

static lam_status read_text(reader *in) {
  for (peek(in); in->at < in->n; peek(in))
    LAM_TRY(skip(in, '(') ? read_group(in) : read_one(in, "a layer (E t m L), '|' or '('"));
  return LAM_OK;
}

/* -- does it make a model? -- */

typedef struct model {
  int n_layers, stage; /* so far */
  int m_stage;         /* where the m are; -1 = none yet */
} model;

static lam_status check_letter(const reader *in, const place *is, model *so_far, bool is_last) {
  const char c = is->letter;
  if (!so_far->n_layers && c != 'E') return fail_at(in, is->at, "E, the embedding, first");
  if (so_far->n_layers && c == 'E') return fail_at(in, is->at, "E once, as the first layer");
  if (!is_last && c == 'L') return fail_at(in, is->at, "L once, as the last layer");
  if (is_last && c != 'L') return fail_at(in, in->n, "L, head and loss, as the last layer");
  if (c == 't' && so_far->m_stage >= 0) return fail_at(in, is->at, "no t after m");
  if (c == 'm' && so_far->m_stage >= 0 && so_far->m_stage != so_far->stage)
    return fail_at(in, is->at, "all m in one stage");
  if (c == 'm') so_far->m_stage = so_far->stage;
  so_far->n_layers++;
  return LAM_OK;
}

static int last_layer(const reader *in) {
  int last = in->n_out - 1;
  while (last >= 0 && in->out[last].letter == '|') last--;
  return last;
}

static lam_status check_model(const reader *in) {
  model so_far = {.m_stage = -1};
  const int last = last_layer(in);
  if (last < 0) return fail_at(in, in->n, "layers, such as Et*4|t*4L");
  for (int i = 0; i < in->n_out; i++)
    if (in->out[i].letter == '|')
      so_far.stage++;
    else
      LAM_TRY(check_letter(in, &in->out[i], &so_far, i == last));
  return LAM_OK;
}

static void write_layout(const reader *in, lam_layout *out) {
  const uint64_t room_layers = out->n_layers, room_stages = out->n_stages;
  uint64_t layer = 0, stage = 0;
  for (int i = 0; i <= in->n_out; i++) {
    const char c = i < in->n_out ? in->out[i].letter : '|';
    if (c == '|') {
      stage++;
      if (out->first_layer && stage <= room_stages) out->first_layer[stage] = (int32_t)layer;
      continue;
    }
    if (out->layers && layer < room_layers) out->layers[layer] = c;
    layer++;
  }
  if (out->first_layer) out->first_layer[0] = 0;
  out->n_layers = layer, out->n_stages = stage;
}

lam_status lam_layout_parse(const char *text, uint64_t bytes, lam_layout *out) {
  LAM_TRY(lam_struct_check("lam_layout_parse", "out", out, sizeof *out));
  if (!text || bytes > MOST)
    return lam_fail(LAM_INVALID_ARGUMENT, WHO "text is %s, %llu bytes, expected at most %d",
                    text ? "there" : "NULL", (unsigned long long)bytes, MOST);
  reader in = {.text = text, .n = (int)bytes};
  lam_status status = read_text(&in);
  if (status == LAM_OK) status = check_model(&in);
  if (status == LAM_OK) write_layout(&in, out);
  free(in.out);
  return status;
}

/* -- writing -- */

static uint64_t stage_size(const lam_layout *l, uint64_t s) {
  return (uint64_t)(l->first_layer[s + 1] - l->first_layer[s]);
}

static bool same_stage(const lam_layout *l, uint64_t a, uint64_t b) {
  return stage_size(l, a) == stage_size(l, b) &&
         !memcmp(l->layers + l->first_layer[a], l->layers + l->first_layer[b], stage_size(l, a));
}

/* "Et*3": from three equal letters on they are counted. A comma parts a count from a letter. */
static void print_stage(lam_sink *out, const lam_layout *l, uint64_t stage) {
  const int32_t end = l->first_layer[stage + 1];
  for (int32_t i = l->first_layer[stage], next; i < end; i = next) {
    for (next = i + 1; next < end && l->layers[next] == l->layers[i];) next++;
    lam_sink_bytes(out, &l->layers[i], next - i < 3 ? (uint64_t)(next - i) : 1);
    if (next - i >= 3) lam_sink_printf(out, next < end ? "*%d," : "*%d", next - i);
  }
}

/* From three equal stages on, "(tt|)*29". */
static void print_stages(lam_sink *out, const lam_layout *l) {
  const uint64_t last = l->n_stages - 1;
  for (uint64_t s = 0, next; s < last; s = next) {
    for (next = s + 1; next < last && same_stage(l, s, next);) next++;
    if (next - s < 3) next = s + 1;
    lam_sink_text(out, next - s < 3 ? "" : "(");
    print_stage(out, l, s);
    lam_sink_text(out, "|");
    if (next - s < 3) continue;
    lam_sink_printf(out, ")*%llu", (unsigned long long)(next - s));
    if (stage_size(l, next)) lam_sink_text(out, ",");
  }
  print_stage(out, l, last);
}

static lam_status check_layout(const lam_layout *l) {
  if (!l->layers || !l->first_layer || !l->n_stages || l->n_stages > MOST ||
      l->n_layers > MOST - l->n_stages)
    return lam_fail(LAM_INVALID_ARGUMENT,
                    "lam_layout_print: layers is %s, first_layer %s, %llu layers on %llu stages",
                    l->layers ? "there" : "NULL", l->first_layer ? "there" : "NULL",
                    (unsigned long long)l->n_layers, (unsigned long long)l->n_stages);
  for (uint64_t s = 0; s < l->n_stages; s++)
    if (l->first_layer[0] != 0 || l->first_layer[s + 1] < l->first_layer[s] ||
        (uint64_t)l->first_layer[l->n_stages] != l->n_layers)
      return lam_fail(
          LAM_INVALID_ARGUMENT,
          "lam_layout_print: first_layer[%llu] is %d, then %d: expected 0 up to the %llu "
          "layers, ascending",
          (unsigned long long)s, l->first_layer[s], l->first_layer[s + 1],
          (unsigned long long)l->n_layers);
  for (uint64_t i = 0; i < l->n_layers; i++)
    if (!l->layers[i] || !strchr("EtmL", l->layers[i]))
      return lam_fail(LAM_INVALID_ARGUMENT,
                      "lam_layout_print: layers[%llu] is byte 0x%02x, expected E t m or L",
                      (unsigned long long)i, (unsigned char)l->layers[i]);
  return LAM_OK;
}

lam_status lam_layout_print(const lam_layout *layout, char *buf, uint64_t room,
                            uint64_t *out_bytes) {
  if (out_bytes) *out_bytes = 0;
  LAM_TRY(lam_struct_check("lam_layout_print", "layout", layout, sizeof *layout));
  LAM_TRY(check_layout(layout));
  lam_sink out = lam_sink_open(buf, room);
  print_stages(&out, layout);
  if (out_bytes) *out_bytes = out.n;
  return LAM_OK;
}
