/* text_test.c: schedules as text: what is read, what is printed, where an error stands. */
#include <stdlib.h>
#include <string.h>

#include "tests/unit/pipeline/tables.h"

static void check_reads_as(const char *text, const char *printed) {
  NOTE("%s", text);
  lam_schedule *s = table_of(text);
  if (!s) return;
  char *got = text_of(s);
  CHECK_STR(got, printed);
  free(got);
  lam_schedule_destroy(s);
}

static void check_error(const char *text, const char *message) {
  lam_schedule *s = (lam_schedule *)&s;
  NOTE("%s", text);
  CHECK_STATUS(lam_schedule_parse(text, strlen(text), &s), LAM_INVALID_ARGUMENT);
  CHECK_STR(lam_last_error(), message);
  CHECK(!s);
}

TEST(text, reads_lines_with_and_without_rank_names_and_csv) {
  const char *same = "rank 0: 0F0 0F1 0B0 0B1\nrank 1: 1F0 1B0 1F1 1B1\n";
  check_reads_as("rank 0: 0F0 0F1 0B0 0B1\nrank 1: 1F0 1B0 1F1 1B1\n", same);
  check_reads_as("0F0 0F1 0B0 0B1\n1F0 1B0 1F1 1B1", same);
  check_reads_as("0F0,0F1,,0B0,0B1\r\n,1F0,1B0,1F1,1B1\r\n", same);
  check_reads_as("# two ranks\n\n  rank 0 : 0F0,0F1 , 0B0\t0B1 # done\n\nrank 1:1F0 1B0 1F1 1B1#x",
                 same);
}

TEST(text, reads_every_kind) {
  check_reads_as("0RECV_B3 0F3 0SEND_F3 0I3 0W3\n1RECV_F3 1F3 1B3 1SEND_B3\n",
                 "rank 0: 0RECV_B3 0F3 0SEND_F3 0I3 0W3\nrank 1: 1RECV_F3 1F3 1B3 1SEND_B3\n");
}

TEST(text, reads_what_belongs_to_a_whole_stage) {
  check_reads_as("0UNSHARD,0F0,0B0,0REDUCE_GRAD,0RESHARD",
                 "rank 0: 0UNSHARD 0F0 0B0 0REDUCE_GRAD 0RESHARD\n");
  check_error("0UNSHARD",
              "lam_schedule_parse: found no action in 8 bytes, expected lines such as 0F0 0B0");
}

/* Where a table has W and no I, B is the backward for the input of what has a W. */
TEST(text, reads_old_letters_as_todays) {
  check_reads_as("0F0,0F1,0BW0,0B1,0W1", "rank 0: 0F0 0F1 0B0 0I1 0W1\n");
  check_reads_as("0F0,0F1,0B0,0B1,0W1", "rank 0: 0F0 0F1 0B0 0I1 0W1\n");
  check_reads_as("0F0,0W1,0F1,0B1,0B0", "rank 0: 0F0 0W1 0F1 0I1 0B0\n");
  check_reads_as("0F0,0BW0", "rank 0: 0F0 0B0\n");
  check_reads_as("0F0,0B0,0W0,0F1,0I1,0W1", "rank 0: 0F0 0B0 0W0 0F1 0I1 0W1\n"); /* today's */
}

TEST(text, reads_fused_pairs_with_and_without_their_suffix) {
  const char *same = "rank 0: 0F0 (0F1;0B0)OVERLAP_F_B 0B1\n";
  check_reads_as("0F0 (0F1;0B0)OVERLAP_F_B 0B1", same);
  check_reads_as("0F0,(0F1;0B0),0B1", same);
  check_reads_as("0F0 ( 0F1 ; 0B0 )OVERLAP_F_B 0B1", same);
}

TEST(text, a_rank_may_have_no_actions) {
  check_reads_as("rank 0:\nrank 1: 0F0 0B0\nrank 2:\n", "rank 0:\nrank 1: 0F0 0B0\nrank 2:\n");
  check_reads_as(",,\n0F0 0B0\n,", "rank 0:\nrank 1: 0F0 0B0\nrank 2:\n");
}

TEST(text, sizes_come_from_the_largest_numbers) {
  lam_schedule *s = table_of("0F0 0B0 2F0 2B0\n1F4 1B4\n");
  REQUIRE(s);
  CHECK_EQ(s->n_ranks, 2);
  CHECK_EQ(s->n_stages, 3);
  CHECK_EQ(s->n_micro, 5);
  CHECK_EQ(s->rank_of_stage[2], 0);
  CHECK(!s->lowered);
  lam_schedule_destroy(s);
}

TEST(text, errors_name_line_and_column) {
  check_error("0F0 0X0",
              "lam_schedule_parse: line 1, column 6: found kind 'X', expected F I W B SEND_F "
              "RECV_F SEND_B RECV_B REDUCE_GRAD UNSHARD RESHARD");
  check_error(
      "0F0\n\n0F0 0UNSHARDS",
      "lam_schedule_parse: line 3, column 6: found kind 'UNSHARDS', expected F I W B SEND_F "
      "RECV_F SEND_B RECV_B REDUCE_GRAD UNSHARD RESHARD");
  check_error("0F0 0REDUCE_GRAD3",
              "lam_schedule_parse: line 1, column 17: found '3', expected a blank or a comma after "
              "an action");
  check_error("0F0 F1",
              "lam_schedule_parse: line 1, column 5: found 'F', expected an action such as 0F0, "
              "(0F1;0B0) or #");
  check_error(
      "0F0 0F",
      "lam_schedule_parse: line 1, column 7: found the line's end, expected a micro-batch number");
  check_error("0F0 00",
              "lam_schedule_parse: line 1, column 7: found the line's end, expected a kind (F I W "
              "B SEND_F RECV_F SEND_B RECV_B REDUCE_GRAD UNSHARD RESHARD) after the stage");
  check_error("0F0;0B0",
              "lam_schedule_parse: line 1, column 4: found ';', expected a blank or a comma after "
              "an action");
  check_error("0F0\n0F0 \x01",
              "lam_schedule_parse: line 2, column 5: found byte 0x01, expected an action such as "
              "0F0, (0F1;0B0) or #");
  check_error("0F-1",
              "lam_schedule_parse: line 1, column 3: found '-', expected a micro-batch number");
  check_error("0F99999999999999999999",
              "lam_schedule_parse: line 1, column 3: found a number of 1048576 or more, expected a "
              "micro-batch number");
}

TEST(text, errors_in_fused_pairs_name_what_is_missing) {
  check_error(
      "(0F1 0B0)",
      "lam_schedule_parse: line 1, column 6: found '0', expected ';' in a fused pair such as "
      "(0F7;7B3)");
  check_error(
      "(0B1;0F0)",
      "lam_schedule_parse: line 1, column 2: found '0', expected a forward first in a fused pair "
      "such as (0F7;7B3)");
  check_error(
      "(0F1;0I0)",
      "lam_schedule_parse: line 1, column 6: found '0', expected a full backward second in a "
      "fused pair such as (0F7;7B3)");
  check_error(
      "(0F1;0B0",
      "lam_schedule_parse: line 1, column 9: found the line's end, expected ')' after a fused pair "
      "such as (0F7;7B3)");
  check_error("(0F1;0B0)OVERLAP",
              "lam_schedule_parse: line 1, column 10: found 'O', expected a blank or a comma after "
              "an action");
}

TEST(text, errors_in_rank_names_name_the_rank_expected) {
  check_error(
      "rank 1: 0F0",
      "lam_schedule_parse: line 1, column 6: found '1', expected rank 0: ranks come in order, "
      "from 0");
  check_error("rank 0: 0F0\n1F0",
              "lam_schedule_parse: line 2, column 1: found '1', expected \"rank N:\", as on the "
              "lines before");
  check_error("0F0\nrank 1: 1F0",
              "lam_schedule_parse: line 2, column 1: found 'r', expected no \"rank N:\", as on the "
              "lines before");
  check_error(
      "rank 0 0F0",
      "lam_schedule_parse: line 1, column 8: found '0', expected ':' after the rank number");
}

TEST(text, a_text_without_actions_is_refused) {
  check_error("", "lam_schedule_parse: found no action in 0 bytes, expected lines such as 0F0 0B0");
  check_error("# nothing\n",
              "lam_schedule_parse: found no action in 10 bytes, expected lines such as 0F0 0B0");
  check_error("rank 0:\n",
              "lam_schedule_parse: found no action in 8 bytes, expected lines such as 0F0 0B0");
  CHECK_STATUS(lam_schedule_parse("0F0", 3, NULL), LAM_INVALID_ARGUMENT);
}

TEST(text, reads_no_byte_past_the_end_it_was_given) {
  char *exact = malloc(7); /* no NUL: a sanitizer sees one byte too many */
  memcpy(exact, "0F0 0B0", 7);
  for (uint64_t n = 0; n <= 7; n++) {
    lam_schedule *s = NULL;
    NOTE("%d bytes", (int)n);
    CHECK_STATUS(lam_schedule_parse(exact, n, &s),
                 n == 3 || n == 4 || n == 7 ? LAM_OK : LAM_INVALID_ARGUMENT);
    lam_schedule_destroy(s);
  }
  free(exact);
}

TEST(text, what_is_printed_is_read_back_the_same) {
  rng r = {seed()};
  for (int k = 0; k < 200; k++) {
    lam_schedule *s = random_table(&r, 6, 8, 8), *lowered = NULL;
    CHECK_OK(lam_schedule_lower(s, &lowered));
    char *text = text_of(lowered);
    lam_schedule *again = table_of(text);
    char *twice = again ? text_of(again) : NULL;
    if (CHECK(twice)) CHECK_STR(twice, text);
    free(text), free(twice);
    lam_schedule_destroy(s), lam_schedule_destroy(lowered), lam_schedule_destroy(again);
  }
}

static char *csv_of(const lam_schedule *s) {
  uint64_t n = 0, again = 0;
  CHECK_OK(lam_schedule_write(s, "csv", NULL, 0, &n));
  char *text = malloc(n + 1);
  CHECK_OK(lam_schedule_write(s, "csv", text, n + 1, &again));
  CHECK_EQ(again, n);
  CHECK_EQ(strlen(text), n);
  return text;
}

TEST(text, writes_csv_as_others_read_it) {
  lam_schedule *s = table_of("0F0 0F1 (0F2;0B0) 0I1 0W1 0B2 0REDUCE_GRAD\n,\n1F0 1B0");
  char *csv = csv_of(s);
  CHECK_STR(csv, "0F0,0F1,(0F2;0B0)OVERLAP_F_B,0I1,0W1,0B2,0REDUCE_GRAD\n,\n1F0,1B0\n");
  CHECK_STATUS(lam_schedule_write(s, "json", NULL, 0, NULL), LAM_NOT_FOUND);
  CHECK_STR(lam_last_error(), "lam_schedule_write: format is \"json\", known are text, csv");
  CHECK_STATUS(lam_schedule_write(s, NULL, NULL, 0, NULL), LAM_INVALID_ARGUMENT);
  CHECK_STATUS(lam_schedule_write(NULL, "csv", NULL, 0, NULL), LAM_INVALID_ARGUMENT);
  free(csv);
  lam_schedule_destroy(s);
}

TEST(text, csv_is_read_back_the_same) {
  rng r = {seed()};
  for (int k = 0; k < 100; k++) {
    lam_schedule *s = random_fused_table(&r, 6, 8, 8), *lowered = NULL;
    CHECK_OK(lam_schedule_lower(s, &lowered));
    char *csv = csv_of(lowered), *text = text_of(lowered);
    lam_schedule *again = table_of(csv);
    char *twice = again ? text_of(again) : NULL;
    if (CHECK(twice)) CHECK_STR(twice, text);
    free(csv), free(text), free(twice);
    lam_schedule_destroy(s), lam_schedule_destroy(lowered), lam_schedule_destroy(again);
  }
}

TEST(text, print_fills_its_room_and_counts_the_whole) {
  lam_schedule *s = table_of("0F0 0B0\n");
  char buf[32];
  uint64_t n = 0;
  REQUIRE_OK(lam_schedule_print(s, NULL, 0, &n));
  CHECK_EQ(n, strlen("rank 0: 0F0 0B0\n"));
  for (uint64_t room = 0; room <= n + 1; room++) {
    memset(buf, '~', sizeof buf);
    REQUIRE_OK(lam_schedule_print(s, buf, room, &n));
    CHECK_EQ(n, 16);
    CHECK_EQ(buf[room], '~');
    if (room) CHECK(!buf[room - 1] && !strncmp(buf, "rank 0: 0F0 0B0\n", room - 1));
  }
  CHECK_STATUS(lam_schedule_print(NULL, NULL, 0, &n), LAM_INVALID_ARGUMENT);
  lam_schedule_destroy(s);
}
