/* options_test.c: the demo's command line, where layers, stages and weights go, the batches cut
 * from a text. */
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
      {"1-6|7-12", "names 2 stages, the schedule has 3"},
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
  REQUIRE_OK(parse(&o, "--layers 12 --schedule zbv --assign 1-4|5-8|9-11|12"));
  CHECK_EQ(o.pp, 2);
}

TEST(plan, stages_lie_where_the_schedule_has_them) {
  options o;
  REQUIRE_OK(parse(&o, "--pp 2 --schedule zbv"));
  CHECK(o.rank_of_stage[0] == 0 && o.rank_of_stage[1] == 1);
  CHECK(o.rank_of_stage[2] == 1 && o.rank_of_stage[3] == 0);
  REQUIRE_OK(parse(&o, "--pp 2 --schedule interleaved --stages-per-rank 3"));
  for (int s = 0; s < 6; s++) CHECK_EQ(o.rank_of_stage[s], s % 2);
}

TEST(plan, every_schedule_of_the_library_is_taken_with_its_own_number_of_stages) {
  for (int i = 0; lam_schedule_name(i); i++) {
    char words[64];
    options o;
    snprintf(words, sizeof words, "--pp 2 --schedule %s", lam_schedule_name(i));
    NOTE("%s", words);
    REQUIRE_OK(parse(&o, words));
    CHECK_EQ(o.pp, 2);
    lam_schedule *s = NULL;
    REQUIRE_OK(plan_schedule(&o, o.schedule, &s));
    lam_schedule_destroy(s);
    REQUIRE_OK(plan_schedule(&o, "layerwise", &s)); /* of the same placement */
    lam_schedule_destroy(s);
  }
}

TEST(plan, auto_is_what_the_library_chooses_and_says_why) {
  options o;
  REQUIRE_OK(parse(&o, "--pp 4 --micro-batches 8 --schedule auto"));
  CHECK(!strcmp(o.schedule, "zbv") && o.n_stages == 8);
  CHECK_CONTAINS(o.why, "least bubble");
  REQUIRE_OK(parse(&o, "--pp 4 --micro-batches 8 --layers 7 --schedule auto"));
  CHECK(!strcmp(o.schedule, "zb-h1") && o.n_stages == 4);
}

static uint64_t text_bytes(const lam_schedule *s) {
  uint64_t bytes = 0;
  CHECK_OK(lam_schedule_print(s, NULL, 0, &bytes));
  return bytes;
}

TEST(plan, fused_pairs_run_one_after_the_other) {
  options o;
  lam_schedule *s = NULL, *as_run = NULL, *again = NULL;
  lam_schedule_info fused = LAM_SCHEDULE_INFO_INIT, apart = LAM_SCHEDULE_INFO_INIT;
  REQUIRE_OK(parse(&o, "--pp 4 --schedule dualpipev"));
  REQUIRE_OK(plan_schedule(&o, o.schedule, &s));
  REQUIRE_OK(plan_as_run(s, &as_run));
  REQUIRE_OK(lam_schedule_check(s, &fused));
  REQUIRE_OK(lam_schedule_check(as_run, &apart));
  CHECK_EQ(fused.n_actions, apart.n_actions);
  CHECK(apart.makespan < fused.makespan);
  REQUIRE_OK(plan_as_run(as_run, &again));
  CHECK_EQ(text_bytes(as_run), text_bytes(again));
  lam_schedule_destroy(s), lam_schedule_destroy(as_run), lam_schedule_destroy(again);
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
      {"--schedule zigzag", "found 'zigzag', expected one of auto, layerwise, gpipe, 1f1b, inter"},
      {"--schedule dualpipev --pp 2 --micro-batches 3", "m must be at least 2 p, so 4"},
      {"--schedule v-half --stages-per-rank 1", "--schedule v-half: v-half of v 1 stages per rank"},
      {"--schedule 1f1b --stages-per-rank 2", "v must be 1"},
      {"--stages-per-rank 9", "expected a number from 1 to 4"},
      {"--schedule zbv --pp 5", "--pp 5: with 2 stages each, as zbv has them, more stages than la"},
      {"--schedule zbv --pp 2 --assign 1-2|3-8", "names 2 stages, the schedule has 4"},
      {"--schedule zbv --assign 1-2|3|4-8", "--assign: found 3 stages, zbv has 2 on each worker"},
      {"--schedule zbv --pp 2 --draw interleaved", "--draw: interleaved places stages otherwise"},
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

TEST(memory, blocks_are_as_many_as_the_schedule_holds) {
  static const struct {
    const char *name;
    int peaks[4];
  } rows[] = {{"layerwise", {1, 1, 1, 1}}, {"gpipe", {8, 8, 8, 8}}, {"1f1b", {4, 3, 2, 1}},
              {"zb-h1", {4, 4, 4, 4}},     {"zbv", {8, 8, 8, 8}},   {"v-half", {6, 6, 6, 6}},
              {"v-min", {4, 4, 4, 4}}};
  for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) {
    char words[64];
    options o;
    snprintf(words, sizeof words, "--pp 4 --micro-batches 8 --schedule %s", rows[i].name);
    NOTE("%s", words);
    REQUIRE_OK(parse(&o, words));
    for (int r = 0; r < 4; r++) CHECK_EQ(o.peaks[r], rows[i].peaks[r]);
  }
}
