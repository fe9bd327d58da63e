/* options_test.c: the demo's command line, where layers and weights go, the batches cut from a
 * text. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "bindings/cli/demo/demo.h"
#include "tests/check.h"

static lam_status place(const char *assign, int layers, int pp, int *first) {
  check_error_text = error_text;
  return options_place(assign, layers, pp, first);
}

TEST(placement, every_layer_is_on_exactly_one_stage_and_sizes_differ_by_at_most_one) {
  for (int layers = 1; layers <= 40; layers++)
    for (int pp = 1; pp <= layers && pp <= MAX_STAGES; pp++) {
      int first[MAX_STAGES + 1], least = layers, most = 0;
      REQUIRE_OK(place(NULL, layers, pp, first));
      CHECK_EQ(first[0], 0);
      CHECK_EQ(first[pp], layers);
      for (int s = 0; s < pp; s++) {
        const int n = first[s + 1] - first[s];
        least = n < least ? n : least;
        most = n > most ? n : most;
      }
      CHECK(least >= 1 && most - least <= 1);
    }
}

TEST(placement, assign_places_layers_as_told) {
  int first[MAX_STAGES + 1];
  REQUIRE_OK(place("1-4|5-8|9-12", 12, 3, first));
  CHECK(first[0] == 0 && first[1] == 4 && first[2] == 8 && first[3] == 12);
  REQUIRE_OK(place("1|2,3,4-6", 6, 2, first));
  CHECK(first[0] == 0 && first[1] == 1 && first[2] == 6);
}

TEST(placement, wrong_assignments_are_refused_with_the_reason) {
  static const struct {
    const char *assign, *reason;
  } wrong[] = {
      {"1,4,7,10|2,5,8,11|3,6,9,12",
       "stage 1 goes from layer 1 to layer 4: a stage must hold consecutive layers"},
      {"1-4|6-8|9-12", "layer 5 is on no stage"},
      {"1-4|4-8|9-12", "layer 4 is given twice (stages 1 and 2)"},
      {"1-4|5-8|9-11", "layer 12 is on no stage"},
      {"1-4|5-8|9-13", "layer 13, but the model has layers 1 to 12"},
      {"0-4|5-8|9-12", "layer 0, but the model has layers 1 to 12"},
      {"5-8|1-4|9-12", "layer 5 comes after layer 4 but is on an earlier stage (1)"},
      {"4-1|5-8|9-12", "4-1 runs backwards"},
      {"1-6|7-12", "names 2 stages, --pp says 3"},
      {"1-3|4-6|7-9|10-12", "more than the 3 stages"},
      {"1-4||5-12", "expected a layer's number at character 5"},
      {"", "expected a layer's number at character 1"},
      {"1-4|5-8|9-12x", "found 'x' at character 13"},
      {"1-4|5-8|9-12|", "more than the 3 stages"},
  };
  for (size_t i = 0; i < sizeof wrong / sizeof *wrong; i++) {
    int first[MAX_STAGES + 1];
    NOTE("--assign '%s'", wrong[i].assign);
    CHECK_STATUS(place(wrong[i].assign, 12, 3, first), LAM_INVALID_ARGUMENT);
    CHECK_CONTAINS(error_text(), wrong[i].reason);
  }
}

static lam_status parse(options *o, const char *words) {
  static char copies[8][256], *copy; /* options point into what they were read from */
  static int n_copies;
  copy = copies[n_copies++ % 8];
  char *argv[16] = {"demo"};
  int argc = 1;
  snprintf(copy, 256, "%s", words);
  for (char *word = strtok(copy, " "); word; word = strtok(NULL, " ")) argv[argc++] = word;
  check_error_text = error_text;
  return options_parse(argc, argv, o);
}

TEST(options, stages_come_from_the_assignment_where_pp_is_not_given) {
  options o;
  REQUIRE_OK(parse(&o, "--layers 12 --assign 1-4|5-8|9-12"));
  CHECK_EQ(o.pp, 3);
  REQUIRE_OK(parse(&o, "--layers 12"));
  CHECK_EQ(o.pp, 1);
}

TEST(options, mistakes_are_refused_with_the_option_and_what_was_expected) {
  static const struct {
    const char *words, *reason;
  } wrong[] = {
      {"--nosuch 1", "--nosuch: no such option"},
      {"--pp", "--pp: a value is missing"},
      {"--pp two", "--pp: found 'two', expected a number from 1"},
      {"--pp 0", "--pp: found '0', expected a number from 1"},
      {"--deadline 0", "--deadline: found '0', expected a number from 1"},
      {"--micro-batches 1000", "expected a number from 1 to 64"},
      {"--schedule zigzag", "found 'zigzag', expected one of layerwise, gpipe, 1f1b"},
      {"--dtype f64", "found 'f64', expected one of f32, bf16"},
      {"--hidden 100", "--hidden: found 100, expected a multiple of 32"},
      {"--sequence 100", "--sequence: found 100, expected a multiple of 32"},
      {"--tp 5", "--tp 5: the model has 4 attention heads"},
      {"--pp 9", "--pp 9: more stages than layers (8)"},
      {"--draw 1f1b,zigzag", "--draw: found 'zigzag'"},
  };
  for (size_t i = 0; i < sizeof wrong / sizeof *wrong; i++) {
    options o;
    NOTE("%s", wrong[i].words);
    CHECK_STATUS(parse(&o, wrong[i].words), LAM_INVALID_ARGUMENT);
    CHECK_CONTAINS(error_text(), wrong[i].reason);
  }
}

TEST(weights, parts_of_any_split_together_are_the_whole) {
  options whole, split;
  REQUIRE_OK(parse(&whole, "--layers 2 --hidden 160")); /* 5 heads of 32 */
  REQUIRE_OK(parse(&split, "--layers 2 --hidden 160 --tp 3 --pp 2"));
  model all;
  REQUIRE_OK(model_describe(&whole, 0, 0, &all));
  REQUIRE_OK(model_fill(&all));
  for (int stage = 0; stage < 2; stage++)
    for (int part = 0; part < 3; part++) {
      model m;
      REQUIRE_OK(model_describe(&split, stage, part, &m));
      REQUIRE_OK(model_fill(&m));
      for (int i = 0; i < m.n_params; i++) {
        const param *p = &m.params[i], *w = NULL;
        for (int j = 0; j < all.n_params; j++)
          if (!strcmp(all.params[j].name, p->name)) w = &all.params[j];
        NOTE("%s, stage %d, part %d", p->name, stage, part);
        REQUIRE(w != NULL);
        for (int64_t r = 0; r < p->w.rows; r++)
          if (!CHECK_SAME_BITS(p->master + r * p->w.cols,
                               w->master + param_whole_row(p, r) * w->whole_cols + p->cols.begin,
                               p->w.cols * 4))
            return;
      }
      model_free(&m);
    }
  model_free(&all);
}

TEST(weights, every_element_is_in_exactly_one_part_or_in_all_of_them) {
  options o;
  REQUIRE_OK(parse(&o, "--layers 1 --hidden 160 --tp 3"));
  model parts[3];
  for (int part = 0; part < 3; part++) REQUIRE_OK(model_describe(&o, 0, part, &parts[part]));
  for (int i = 0; i < parts[0].n_params; i++) {
    int64_t held = 0;
    const param *p = &parts[0].params[i];
    for (int part = 0; part < 3; part++) held += param_size(&parts[part].params[i]);
    NOTE("%s", p->name);
    CHECK_EQ(held, p->whole_rows * p->whole_cols * (p->split ? 1 : 3));
  }
  for (int part = 0; part < 3; part++) model_free(&parts[part]);
}

TEST(text, batches_depend_on_seed_step_and_place_only_and_targets_follow_tokens) {
  options o, other;
  REQUIRE_OK(parse(&o, "--sequence 32 --sequences 2 --text /usr/share/common-licenses/GPL-3"));
  REQUIRE_OK(parse(&other, "--sequence 32 --sequences 2 --seed 2"));
  text t;
  REQUIRE_OK(text_read(&o, &t));
  uint8_t a[64], b[64], targets[64], next[64];
  text_batch(&t, &o, 3, 1, a, targets);
  text_batch(&t, &o, 3, 1, b, NULL);
  CHECK_SAME_BITS(a, b, sizeof a);
  for (int i = 0; i < 31; i++) CHECK(targets[i] == a[i + 1] && targets[32 + i] == a[32 + i + 1]);
  CHECK(memcmp(a, a + 32, 32) != 0);
  text_batch(&t, &o, 3, 2, next, NULL);
  CHECK(memcmp(a, next, sizeof a) != 0);
  text_batch(&t, &o, 4, 1, next, NULL);
  CHECK(memcmp(a, next, sizeof a) != 0);
  text_batch(&t, &other, 3, 1, next, NULL);
  CHECK(memcmp(a, next, sizeof a) != 0);
  text_free(&t);
}

TEST(text, files_that_will_not_do_are_refused_with_the_reason) {
  options o;
  text t;
  REQUIRE_OK(parse(&o, "--text /nosuch/file"));
  CHECK_STATUS(text_read(&o, &t), LAM_NOT_FOUND);
  CHECK_CONTAINS(error_text(), "--text /nosuch/file: No such file or directory");
  REQUIRE_OK(parse(&o, "--text /etc/hostname"));
  CHECK_STATUS(text_read(&o, &t), LAM_INVALID_ARGUMENT);
  CHECK_CONTAINS(error_text(), "a sequence needs 129");
  text_free(&t);
  REQUIRE_OK(parse(&o, "--text /"));
  CHECK_STATUS(text_read(&o, &t), LAM_INVALID_ARGUMENT);
  CHECK_CONTAINS(error_text(), "not a plain file");
}

TEST(memory, in_flight_is_what_the_schedule_holds) {
  FOR_EACH(m, 1, 2, 8) {
    CHECK_EQ(in_flight("layerwise", 4, m, 0), 1);
    CHECK_EQ(in_flight("gpipe", 4, m, 3), m);
    CHECK_EQ(in_flight("1f1b", 4, m, 0), m < 4 ? m : 4);
    CHECK_EQ(in_flight("1f1b", 4, m, 3), 1);
  }
}
