/* layout_test.c: Megatron-LM's layout string: what it means, the way there and back, and where a
 * wrong one is wrong. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "tests/check.h"

#include "abi/lamella.h"

enum { ROOM = 4096 };

/* The layout with all repetitions written out: "Ettt|tt|L". */
static lam_status expand(const char *text, char *out) {
  static char layers[ROOM];
  static int32_t first[ROOM + 1];
  lam_layout l = LAM_LAYOUT_INIT;
  l.layers = layers, l.n_layers = ROOM;
  l.first_layer = first, l.n_stages = ROOM;
  out[0] = 0;
  const lam_status status = lam_layout_parse(text, strlen(text), &l);
  if (status != LAM_OK) return status;
  for (uint64_t s = 0; s < l.n_stages; s++) {
    if (s) strcat(out, "|");
    strncat(out, layers + first[s], (size_t)(first[s + 1] - first[s]));
  }
  CHECK_EQ(first[l.n_stages], l.n_layers);
  return status;
}

/* A layout as it is written out, printed. */
static void print(const char *expanded, char *out) {
  static char layers[ROOM];
  static int32_t first[ROOM + 1];
  lam_layout l = LAM_LAYOUT_INIT;
  l.layers = layers, l.first_layer = first;
  l.n_stages = 1;
  first[0] = 0;
  for (const char *c = expanded; *c; c++)
    if (*c == '|')
      first[l.n_stages++] = (int32_t)l.n_layers;
    else
      layers[l.n_layers++] = *c;
  first[l.n_stages] = (int32_t)l.n_layers;
  uint64_t n = 0;
  CHECK_OK(lam_layout_print(&l, out, ROOM, &n));
  CHECK_EQ(n, strlen(out));
}

TEST(layout, means_what_megatron_says) {
  static const char *const rows[][2] = {
      {"EL", "EL"},
      {"Ettt|(tt|)*3,m|L", "Ettt|tt|tt|tt|m|L"},
      {"Et*3|(tt|)*2,m|L", "Ettt|tt|tt|m|L"},
      {"E,t*3|,,t|L,", "Ettt|t|L"},
      {"Et(tt|t)*2,tL", "Ettt|ttt|ttL"},
      {"E(|tt)*2L", "E|tt|ttL"},
      {"Et*1|t*2,L", "Et|ttL"},
      {"Et*1,0L", "EttttttttttL"}, /* commas are taken out first */
      {"Et|*3L", "Et|||L"},
      {"|Et|L|", "|Et|L|"},
      {"Et*0tL", "EtL"},
      {"E(t*2|)*2mmL", "Ett|tt|mmL"},
      {"E(t|)*0L", "EL"},
  };
  char got[ROOM];
  for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) {
    NOTE("%s", rows[i][0]);
    CHECK_OK(expand(rows[i][0], got));
    CHECK_STR(got, rows[i][1]);
  }
}

TEST(layout, is_printed_as_short_as_one_writes_it) {
  static const char *const rows[] = {"Et*3|(tt|)*29,m|L",   "EL",     "Et|t|tL",
                                     "E|(t*4|)*30,t*4,m|L", "Et*5,L", "|Ett|(|)*3,tt|L|"};
  char expanded[ROOM], printed[ROOM];
  for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) {
    CHECK_OK(expand(rows[i], expanded));
    print(expanded, printed);
    CHECK_STR(printed, rows[i]);
  }
}

static void random_layout(rng *r, char *out) {
  const int n_stages = (int)rng_int(r, 1, 12), alike = (int)rng_int(r, 0, 4);
  char *at = out;
  *at++ = 'E';
  for (int s = 0; s < n_stages; s++) {
    const int n = rng_int(r, 0, 1) ? alike : (int)rng_int(r, 0, 6);
    for (int i = 0; i < n; i++) *at++ = 't';
    if (s < n_stages - 1) *at++ = '|';
  }
  for (int64_t i = rng_int(r, 0, 3); i > 0; i--) *at++ = 'm';
  if (rng_int(r, 0, 1)) *at++ = '|';
  *at++ = 'L';
  *at = 0;
}

TEST(layout, is_the_same_after_printing_and_reading) {
  rng r = {seed()};
  char want[ROOM], text[ROOM], got[ROOM];
  for (int i = 0; i < 2000; i++) {
    random_layout(&r, want);
    print(want, text);
    NOTE("%s", text);
    CHECK_OK(expand(text, got));
    CHECK_STR(got, want);
  }
}

TEST(layout, names_the_position_of_a_mistake_and_what_was_expected) {
  static const char *const rows[][2] = {
      {"", "position 1: found the end, expected layers"},
      {"Et*3|xL", "position 6: found 'x', expected a layer (E t m L), '|' or '('"},
      {"Et*3 |L", "position 5: found ' ', expected a layer"},
      {"Et\n|L", "position 3: found byte 0x0a, expected a layer"},
      {"Et*|L", "position 4: found '|', expected a count after '*'"},
      {"Et*", "position 4: found the end, expected a count after '*'"},
      {"Et*3*2L", "position 5: found '*', expected a layer"},
      {"*3EL", "position 1: found '*', expected a layer"},
      {"E(tt|L", "position 7: found the end, expected ')'"},
      {"E(tt)L", "position 6: found 'L', expected '*' and a count after ')'"},
      {"E()*3L", "position 3: found ')', expected a layer (E t m L) or '|' in brackets"},
      {"E((t)*2|)*2L",
       "position 3: found '(', expected a layer (E t m L) or '|' in brackets, "
       "which do not nest"},
      {"Ett)L", "position 4: found ')', expected a layer"},
      {"ttL", "position 1: found 't', expected E, the embedding, first"},
      {"EtEL", "position 3: found 'E', expected E once"},
      {"(E)*2L", "position 2: found 'E', expected E once"},
      {"ELtL", "position 2: found 'L', expected L once, as the last layer"},
      {"Et|t", "position 5: found the end, expected L, head and loss, as the last layer"},
      {"EmtL", "position 3: found 't', expected no t after m"},
      {"Em|mL", "position 4: found 'm', expected all m in one stage"},
      {"Et*999999999L", "position 4: found '9', expected at most 1048576 layers and stages"},
      {"E(t*1000)*99999L", "position 11: found '9', expected at most 1048576 layers and stages"},
  };
  char got[ROOM];
  for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) {
    NOTE("%s", rows[i][0]);
    CHECK_STATUS(expand(rows[i][0], got), LAM_INVALID_ARGUMENT);
    CHECK_CONTAINS(lam_last_error(), rows[i][1]);
  }
}

TEST(layout, does_not_end_at_a_zero_byte) {
  static const char text[] = "Et|tL\0ttt";
  lam_layout l = LAM_LAYOUT_INIT;
  CHECK_OK(lam_layout_parse(text, 5, &l));
  CHECK_STATUS(lam_layout_parse(text, sizeof text - 1, &l), LAM_INVALID_ARGUMENT);
  CHECK_CONTAINS(lam_last_error(), "position 6: found byte 0x00, expected a layer");
}

TEST(layout, random_text_is_read_or_refused) {
  rng r = {seed()};
  static const char letters[] = "EtmL|()*,0129x ";
  char text[32], got[ROOM], again[ROOM], printed[ROOM];
  for (int i = 0; i < 20000; i++) {
    const int n = (int)rng_int(&r, 1, 14);
    text[0] = 'E';
    for (int k = 1; k < n; k++) text[k] = letters[rng_int(&r, 0, (int64_t)sizeof letters - 2)];
    text[n] = 'L', text[n + 1] = 0;
    lam_layout size = LAM_LAYOUT_INIT;
    if (lam_layout_parse(text, strlen(text), &size) != LAM_OK) continue;
    if (size.n_layers + size.n_stages >= ROOM) continue;
    NOTE("%s", text);
    CHECK_OK(expand(text, got));
    print(got, printed);
    CHECK_OK(expand(printed, again));
    CHECK_STR(again, got);
  }
}

TEST(layout, tells_sizes_without_arrays_and_fills_no_more_than_there_is_room) {
  lam_layout l = LAM_LAYOUT_INIT;
  CHECK_OK(lam_layout_parse("Ett|tt|L", 8, &l));
  CHECK_EQ(l.n_layers, 6);
  CHECK_EQ(l.n_stages, 3);
  char layers[8] = "#######";
  int32_t first[3] = {7, 7, 7};
  l.layers = layers, l.n_layers = 2;
  l.first_layer = first, l.n_stages = 1;
  CHECK_OK(lam_layout_parse("Ett|tt|L", 8, &l));
  CHECK_STR(layers, "Et#####");
  CHECK(first[0] == 0 && first[1] == 3 && first[2] == 7);
}

TEST(layout, what_is_no_layout_is_not_printed) {
  char layers[] = "EtL";
  int32_t first[] = {0, 2, 3};
  uint64_t n = 7;
  const lam_layout good = {sizeof good, 0, 3, 2, layers, first};
  lam_layout l = good;
  l.layers = NULL;
  CHECK_STATUS(lam_layout_print(&l, NULL, 0, &n), LAM_INVALID_ARGUMENT);
  CHECK_EQ(n, 0);
  l = good, l.n_layers = 4;
  CHECK_STATUS(lam_layout_print(&l, NULL, 0, &n), LAM_INVALID_ARGUMENT);
  CHECK_CONTAINS(lam_last_error(), "expected 0 up to the 4 layers");
  l = good, layers[1] = 'x';
  CHECK_STATUS(lam_layout_print(&l, NULL, 0, &n), LAM_INVALID_ARGUMENT);
  CHECK_CONTAINS(lam_last_error(), "layers[1] is byte 0x78");
}
