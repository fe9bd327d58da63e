/* main.c: the program behind ./lamella schedule.
 *
 *   lamella_schedule list [name=value ...]          every schedule, and what auto is: lines of JSON
 *   lamella_schedule make [name=value ...]          one schedule as text
 *   lamella_schedule draw|write|check [name=value ...] < TABLE
 *                                                   a picture; the table in format=; its numbers
 * Invariant: nothing is printed to stdout by a question that fails.
 * Leaves the schedules to the library, costs and layers to answer.c. */
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "bindings/cli/schedule/ask.h"

enum { NUMBER, REAL, TEXT };
static const struct {
  const char *name;
  int kind;
  size_t at;
} words[] = {
    {"p", NUMBER, offsetof(ask, p)},           {"v", NUMBER, offsetof(ask, v)},
    {"m", NUMBER, offsetof(ask, m)},           {"whole", NUMBER, offsetof(ask, whole)},
    {"forward", REAL, offsetof(ask, forward)}, {"input", REAL, offsetof(ask, input)},
    {"weight", REAL, offsetof(ask, weight)},   {"comm", REAL, offsetof(ask, comm)},
    {"fused", REAL, offsetof(ask, fused)},     {"static", REAL, offsetof(ask, fixed)},
    {"act", REAL, offsetof(ask, act)},         {"cap", REAL, offsetof(ask, cap)},
    {"E", REAL, offsetof(ask, weights[0])},    {"t", REAL, offsetof(ask, weights[1])},
    {"mtp", REAL, offsetof(ask, weights[2])},  {"L", REAL, offsetof(ask, weights[3])},
    {"scale", REAL, offsetof(ask, scale)},     {"name", TEXT, offsetof(ask, name)},
    {"format", TEXT, offsetof(ask, format)},   {"layers", TEXT, offsetof(ask, layers)},
};

static bool read_word(const char *word, ask *out) {
  const size_t n = strcspn(word, "=");
  for (size_t i = 0; i < sizeof words / sizeof *words && word[n]; i++) {
    if (strlen(words[i].name) != n || memcmp(words[i].name, word, n)) continue;
    void *to = (char *)out + words[i].at;
    if (words[i].kind == NUMBER) *(int *)to = atoi(word + n + 1);
    if (words[i].kind == REAL) *(double *)to = atof(word + n + 1);
    if (words[i].kind == TEXT) *(const char **)to = word + n + 1;
    return true;
  }
  return fprintf(stderr, "no such word: %s\n", word), false;
}

static int fail(const char *why, int code) { return fprintf(stderr, "%s\n", why), code; }
static const char *why_of(const answer *x) { return x->why ? x->why : lam_last_error(); }

static void print_text(const char *key, const char *text) {
  printf("\"%s\": \"", key);
  for (const char *c = text; *c; c++)
    if (*c == '"' || *c == '\\')
      printf("\\%c", *c);
    else if ((unsigned char)*c < 0x20)
      printf("\\u%04x", (unsigned char)*c);
    else
      putchar(*c);
  putchar('"');
}

/* -- list -- */

/* With as many stages per rank as asked, or as few as it takes. why: the first refusal that is not
 * of v. */
static lam_status build_near(const ask *a, const char *name, lam_schedule **out, int *out_v,
                             char *why, size_t room) {
  const int tries[] = {a->v, a->v > 2 ? 2 : 1, 1};
  lam_status status = LAM_OK;
  for (int i = 0; i < 3; i++) {
    *out_v = tries[i];
    const lam_status now = lam_schedule_build(name, a->p, tries[i], a->m, out);
    if (now == LAM_OK) return LAM_OK;
    if (i == 0 || strstr(why, "v must be")) snprintf(why, room, "%s", lam_last_error());
    status = now;
  }
  return status;
}

static void print_answer(const answer *x) {
  printf("\"v\": %d, \"makespan\": %.17g, \"bubble\": %.17g, \"rank_bubble\": %.17g, ", x->v,
         x->times.makespan / 1e6, x->times.bubble, x->times.rank_bubble);
  printf("\"splits\": %s, \"held\": [", x->splits ? "true" : "false");
  for (int r = 0; r < x->n_ranks; r++) printf("%s%.17g", r ? ", " : "", x->held[r]);
  printf("]");
  if (!x->layout[0]) return;
  printf(", ");
  print_text("layout", x->layout);
  printf(", ");
  print_text("proof", x->proof);
}

static void list_one(const ask *a, int i) {
  char why[512] = "";
  answer x = {0};
  lam_status status = build_near(a, lam_schedule_name(i), &x.s, &x.v, why, sizeof why);
  if (status == LAM_OK) {
    status = answer_make(a, &x);
    snprintf(why, sizeof why, "%s", why_of(&x));
  }
  printf("{");
  print_text("name", lam_schedule_name(i));
  printf(", ");
  print_text("about", lam_schedule_about(i));
  printf(", ");
  if (status == LAM_OK)
    print_answer(&x);
  else
    print_text("why", why);
  printf("}\n");
  answer_free(&x);
}

static void print_choice(const ask *a) {
  lam_choice_desc d = LAM_CHOICE_DESC_INIT;
  lam_choice choice = LAM_CHOICE_INIT;
  d.p = a->p, d.v = a->v, d.m = a->m;
  d.flags = a->whole ? 0 : LAM_CHOICE_SPLITS;
  if (a->fused > 0 && a->fused < a->forward + a->input + a->weight) d.flags |= LAM_CHOICE_OVERLAPS;
  d.static_bytes = (uint64_t)(a->fixed * a->scale + 0.5);
  d.activation_bytes = (uint64_t)(a->act * a->scale + 0.5);
  d.cap_bytes = (uint64_t)(a->cap * a->scale + 0.5);
  const lam_status status = lam_schedule_choose(&d, &choice);
  printf("{");
  if (status == LAM_OK) print_text("auto", choice.name), printf(", \"v\": %d, ", choice.v);
  print_text("reason", status == LAM_OK ? choice.reason : lam_last_error());
  printf("}\n");
}

/* Layers are read once before anything is printed, so that a mistake in them is one line. */
static int list(const ask *a) {
  lam_layout l = LAM_LAYOUT_INIT;
  if (a->layers) {
    const lam_status status = lam_layout_parse(a->layers, strlen(a->layers), &l);
    if (status != LAM_OK) return fail(lam_last_error(), 2);
  }
  for (int i = 0; lam_schedule_name(i); i++) list_one(a, i);
  if (!a->layers) print_choice(a);
  return 0;
}

/* -- one table -- */

static int write_table(const lam_schedule *s, const char *format) {
  uint64_t n = 0;
  lam_status status = lam_schedule_write(s, format, NULL, 0, &n);
  char *text = malloc(n + 1);
  if (status == LAM_OK && text) status = lam_schedule_write(s, format, text, n + 1, &n);
  if (status == LAM_OK && text) fwrite(text, 1, n, stdout);
  free(text);
  return status == LAM_OK ? 0 : fail(lam_last_error(), 2);
}

static int make(const ask *a) {
  lam_schedule *s;
  char why[512] = "a schedule's name is missing";
  int v;
  if (a->name && build_near(a, a->name, &s, &v, why, sizeof why) == LAM_OK) {
    const int code = write_table(s, "text");
    lam_schedule_destroy(s);
    return code;
  }
  return fail(why, 2);
}

static lam_status draw_events(const answer *x, const char *format) {
  uint64_t n = 0;
  lam_status status = lam_events_draw(x->events, x->times.n_events, format, NULL, 0, &n);
  char *text = malloc(n + 1);
  if (status == LAM_OK && text)
    status = lam_events_draw(x->events, x->times.n_events, format, text, n + 1, &n);
  if (status == LAM_OK && text) fwrite(text, 1, n, stdout);
  free(text);
  return status;
}

static int draw(const ask *a, answer *x) {
  lam_status status = answer_make(a, x);
  if (status == LAM_OK) status = draw_events(x, a->format ? a->format : "grid");
  return status == LAM_OK ? 0 : fail(why_of(x), 1);
}

static int check(const ask *a, answer *x) {
  const lam_status status = answer_make(a, x);
  if (status != LAM_OK) return fail(why_of(x), 1);
  lam_schedule_info info = LAM_SCHEDULE_INFO_INIT;
  lam_schedule_check(x->s, &info);
  printf("{\"p\": %d, \"stages\": %d, \"m\": %d, \"actions\": %llu, \"transfers\": %llu, ",
         info.n_ranks, info.n_stages, info.n_micro, (unsigned long long)info.n_actions,
         (unsigned long long)info.n_transfers);
  printf("\"peak\": %d, \"ring\": %d, ", info.peak_in_flight, info.ring_depth);
  print_answer(x);
  printf("}\n");
  return 0;
}

static char *read_all(uint64_t *out_n) {
  size_t room = 1 << 16, n = 0, got;
  char *text = malloc(room);
  while (text && (got = fread(text + n, 1, room - n, stdin)) > 0) {
    n += got;
    if (n < room) continue;
    char *grown = realloc(text, room *= 2);
    if (!grown) return free(text), NULL;
    text = grown;
  }
  *out_n = n;
  return text;
}

static int read_table(const char *what, const ask *a) {
  uint64_t n = 0;
  char *text = read_all(&n);
  answer x = {0};
  if (!text) return fail("no memory for the table", 1);
  const lam_status status = lam_schedule_parse(text, n, &x.s);
  free(text);
  int code = 0;
  if (status != LAM_OK)
    code = fail(lam_last_error(), 1);
  else if (!strcmp(what, "write"))
    code = write_table(x.s, a->format ? a->format : "text");
  else
    code = strcmp(what, "draw") ? check(a, &x) : draw(a, &x);
  answer_free(&x);
  return code;
}

int main(int argc, char **argv) {
  ask a = {.p = 1, .v = 1, .m = 1, .forward = 1, .input = 1, .weight = 1, .act = 1, .scale = 1};
  a.weights[1] = a.weights[2] = 1;
  const char *what = argc > 1 ? argv[1] : "";
  for (int i = 2; i < argc; i++)
    if (!read_word(argv[i], &a)) return 2;
  if (!strcmp(what, "list")) return list(&a);
  if (!strcmp(what, "make")) return make(&a);
  return read_table(what, &a);
}
