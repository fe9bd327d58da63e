/* draw_test.c: pictures are well formed, whole, and say what the events say. */
#include <ctype.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "tests/unit/pipeline/tables.h"

static char *drawn(const lam_event *events, uint64_t n, const char *format) {
  uint64_t bytes = 0, again = 0;
  CHECK_OK(lam_events_draw(events, n, format, NULL, 0, &bytes));
  char *text = malloc(bytes + 1);
  CHECK_OK(lam_events_draw(events, n, format, text, bytes + 1, &again));
  CHECK_EQ(strlen(text), bytes);
  CHECK_EQ(again, bytes);
  return text;
}

enum { MOST = 1 << 14 };
static lam_event events[MOST];

/* Events of a schedule: forward f ms, both halves of backward b ms. */
static uint64_t events_of(lam_schedule *s, double f, double b) {
  costs_of c;
  even_costs(f * 1e6, b * 1e6, b * 1e6, 0, s->n_stages, &c);
  lam_simulated out = LAM_SIMULATED_INIT;
  out.events = events, out.n_events = MOST;
  CHECK_OK(lam_schedule_simulate(s, &c.costs, &out));
  lam_schedule_destroy(s);
  return out.n_events;
}

static int occurrences(const char *text, const char *part) {
  int n = 0;
  for (const char *at = text; (at = strstr(at, part)); at += strlen(part)) n++;
  return n;
}

/* -- grid -- */

/* 6 ms in 80 columns: a forward (1 ms) or a backward takes 13 or 14 of them. */
TEST(draw, grid_of_a_known_schedule) {
  const uint64_t n = events_of(built("1f1b", 2, 2), 1, 0.5);
  char *text = drawn(events, n, "grid");
  CHECK_STR(text,
            "worker 0  F0-----------F1------------.............B0-----------"
            "..............B1----------- idle 33 %\n"
            "worker 1  .............F0------------B0-----------F1-----------"
            "B1------------............. idle 33 %\n"
            "F forward, B backward, . idle; 6 ms in all\n");
  free(text);
}

TEST(draw, grid_rows_are_100_columns_wide_and_one_per_worker) {
  FOR_EACH(p, 1, 4, 16, 24) {
    NOTE("p %d", p);
    const uint64_t n = events_of(built("1f1b", p, 16), 1, 1);
    char *text = drawn(events, n, "grid");
    CHECK_EQ(occurrences(text, "worker "), p);
    char *line = text;
    for (int r = 0; r < p; r++, line = strchr(line, '\n') + 1) CHECK_EQ(strcspn(line, "\n"), 100);
    CHECK_CONTAINS(line, "F forward, B backward, . idle; ");
    free(text);
  }
}

TEST(draw, grid_shows_a_second_stage_in_lower_case) {
  const uint64_t n = events_of(table_of("0F0 2F0 2B0 0B0\n1F0 1B0"), 1, 1);
  char *text = drawn(events, n, "grid");
  CHECK_CONTAINS(text, "f0");
  CHECK_CONTAINS(text, "F0");
  CHECK_CONTAINS(text, "lower case: every second stage of a worker");
  free(text);
}

TEST(draw, grid_leaves_no_gap_between_actions_that_follow_at_once) {
  const uint64_t n = events_of(built("gpipe", 1, 37), 0.3, 0.7);
  char *text = drawn(events, n, "grid");
  CHECK(!strchr(strndupa(text, strcspn(text, "\n") - 10), '.'));
  CHECK_CONTAINS(text, "idle  0 %");
  free(text);
}

/* -- svg -- */

/* Reads one XML element at *at and all in it: tags nest and close, attributes are quoted, text
 * holds no bare & or <. */
static bool read_element(const char **at);

static bool read_attributes(const char **at) {
  for (;;) {
    while (isspace((unsigned char)**at)) ++*at;
    if (**at == '>' || **at == '/') return true;
    while (isalnum((unsigned char)**at) || strchr("-:_", **at)) ++*at;
    if (*(*at)++ != '=' || *(*at)++ != '"') return false;
    const size_t n = strcspn(*at, "\"<&");
    if ((*at)[n] != '"') return false;
    *at += n + 1;
  }
}

static bool read_content(const char **at) {
  for (;;) {
    *at += strcspn(*at, "<&");
    if (**at != '<') return false;
    if ((*at)[1] == '/') return true;
    if (!read_element(at)) return false;
  }
}

static bool read_element(const char **at) {
  if (*(*at)++ != '<') return false;
  const char *name = *at;
  while (isalnum((unsigned char)**at)) ++*at;
  const size_t n = (size_t)(*at - name);
  if (!n || !read_attributes(at)) return false;
  if (**at == '/') return *at += 2, (*at)[-1] == '>';
  ++*at;
  if (!read_content(at)) return false;
  *at += 2;
  if (strncmp(*at, name, n) || (*at)[n] != '>') return false;
  *at += n + 1;
  return true;
}

static void check_xml(const char *text) {
  const char *at = text;
  CHECK(read_element(&at));
  CHECK_STR(at, "\n");
}

TEST(draw, svg_is_well_formed_and_has_a_box_per_action) {
  FOR_EACH(p, 1, 2, 4, 16) {
    const uint64_t n = events_of(built("1f1b", p, 8), 1, 1);
    char *text = drawn(events, n, "svg");
    check_xml(text);
    CHECK_EQ(occurrences(text, "<title>"), (int)n);
    CHECK_EQ(occurrences(text, "class=\"m\""), (int)n); /* all are wide enough for their number */
    CHECK_EQ(occurrences(text, ">worker "), p);
    CHECK_EQ(occurrences(text, ">idle "), p);
    CHECK_CONTAINS(text, "xmlns=\"http://www.w3.org/2000/svg\"");
    CHECK_CONTAINS(text, ">ms</text>");
    free(text);
  }
}

TEST(draw, svg_says_how_idle_each_worker_is) {
  const uint64_t n = events_of(built("1f1b", 4, 8), 1, 1);
  char *text = drawn(events, n, "svg");
  CHECK_EQ(occurrences(text, ">idle 27.3 %<"), 4);
  CHECK_CONTAINS(text, "<title>stage 0, micro-batch 7: backward, 31 to 33 ms</title>");
  free(text);
}

TEST(draw, svg_leaves_numbers_out_where_boxes_are_narrow) {
  const uint64_t n = events_of(built("1f1b", 4, 500), 1, 1);
  char *text = drawn(events, n, "svg");
  check_xml(text);
  CHECK_EQ(occurrences(text, "class=\"m\""), 0);
  CHECK_EQ(occurrences(text, "<title>"), (int)n);
  free(text);
}

/* -- perfetto -- */

/* Reads one JSON value at *at. */
static bool read_value(const char **at);
static void skip_space(const char **at) { *at += strspn(*at, " \n"); }

static bool read_string(const char **at) {
  if (*(*at)++ != '"') return false;
  for (; **at && **at != '"'; ++*at)
    if (**at == '\\' || (unsigned char)**at < 0x20) return false; /* nothing here needs an escape */
  return *(*at)++ == '"';
}

static bool read_list(const char **at, char end, bool keys) {
  ++*at;
  for (skip_space(at); **at != end;) {
    if (keys && (!read_string(at) || *(*at)++ != ':')) return false;
    if (!read_value(at)) return false;
    skip_space(at);
    if (**at == ',')
      ++*at, skip_space(at);
    else if (**at != end)
      return false;
    else
      break;
    if (**at == end) return false; /* a comma too many */
  }
  ++*at;
  return true;
}

static bool read_value(const char **at) {
  char *end;
  if (**at == '{') return read_list(at, '}', true);
  if (**at == '[') return read_list(at, ']', false);
  if (**at == '"') return read_string(at);
  strtod(*at, &end);
  if (end == *at) return false;
  *at = end;
  return true;
}

TEST(draw, perfetto_is_json_with_names_and_exact_times) {
  uint64_t n = events_of(built("1f1b", 3, 2), 1, 1);
  for (uint64_t i = 0; i < n; i++)
    events[i].start -= 7, events[i].end -= 7; /* times count from the first */
  events[n++] = (lam_event){
      .rank = 2, .stage = 2, .micro = 1, .kind = LAM_KIND_SEND, .start = 1234567, .end = 1300000};
  char *text = drawn(events, n, "perfetto");
  const char *at = text;
  CHECK(read_value(&at));
  CHECK_STR(at, "\n");
  CHECK_EQ(occurrences(text, "\"ph\":\"X\""), (int)n);
  CHECK_EQ(occurrences(text, "\"process_name\""), 3);
  CHECK_EQ(occurrences(text, "\"thread_name\""), 6);
  CHECK_CONTAINS(text, "\"args\":{\"name\":\"worker 2\"}");
  CHECK_CONTAINS(
      text,
      "\"name\":\"send 1\",\"cat\":\"send\",\"pid\":2,\"tid\":1,\"ts\":1234.574,\"dur\":65.433,");
  free(text);
}

/* -- all formats -- */

/* It is work of a whole stage: no micro-batch stands beside it. */
TEST(draw, a_reduction_of_gradients_is_work_without_a_micro_batch) {
  lam_event list[2] = {
      {.stage = 1, .kind = LAM_KIND_B, .end = 4000000},
      {.stage = 1, .micro = -1, .kind = LAM_KIND_REDUCE_GRAD, .start = 4000000, .end = 8000000}};
  char *grid = drawn(list, 2, "grid"), *svg = drawn(list, 2, "svg");
  char *trace = drawn(list, 2, "perfetto");
  CHECK_CONTAINS(grid, "R--------------------------------------- idle  0 %");
  CHECK_CONTAINS(grid, "B backward, R reduction of gradients, ");
  CHECK_CONTAINS(svg, "<title>stage 1: reduction of gradients, 4 to 8 ms</title>");
  CHECK_CONTAINS(trace, "\"name\":\"reduce\",\"cat\":\"reduction of gradients\"");
  free(grid), free(svg), free(trace);
}

static void check_refused(const lam_event *e, uint64_t n, const char *format, const char *message) {
  uint64_t bytes = 1;
  CHECK(lam_events_draw(e, n, format, NULL, 0, &bytes) != LAM_OK);
  CHECK_CONTAINS(lam_last_error(), message);
  CHECK_EQ(bytes, 0);
}

TEST(draw, bad_events_and_formats_are_refused_by_name) {
  const lam_event good = {
      .rank = 0, .stage = 0, .micro = 0, .kind = LAM_KIND_F, .start = 0, .end = 5};
  lam_event bad[2] = {good, good};
  check_refused(&good, 1, "png", "format is \"png\", known are grid, svg, perfetto");
  check_refused(&good, 1, NULL, "format is NULL");
  check_refused(&good, 0, "svg", "found no events");
  check_refused(NULL, 5, "svg", "found no events");
  bad[1].rank = -1;
  check_refused(bad, 2, "svg", "events[1].rank is -1, expected 0 to 4095");
  bad[1] = good, bad[1].kind = 8;
  check_refused(bad, 2, "grid", "events[1].kind is 8, expected 0 to 7");
  bad[1] = good, bad[1].end = -1;
  check_refused(bad, 2, "grid", "events[1] goes from 0 to -1 ns, expected start <= end");
  bad[1] = good, bad[1].stage = -3;
  check_refused(bad, 2, "grid", "events[1] is of stage -3, micro-batch 0");
  bad[1] = good, bad[1].start = INT64_MIN, bad[1].end = INT64_MAX;
  check_refused(bad, 2, "grid", "expected start <= end");
}

/* -- messages -- */

static char *drawn_with(const lam_event *e, uint64_t n, const lam_carrier *by, uint64_t n_by,
                        const char *format) {
  uint64_t bytes = 0;
  CHECK_OK(lam_events_draw_messages(e, n, by, n_by, format, NULL, 0, &bytes));
  char *text = malloc(bytes + 1);
  CHECK_OK(lam_events_draw_messages(e, n, by, n_by, format, text, bytes + 1, NULL));
  CHECK_EQ(strlen(text), bytes);
  return text;
}

static const lam_carrier some[] = {
    {0, LAM_KIND_F, "ipc"}, {0, LAM_KIND_I, "ipc"}, {1, LAM_KIND_F, "nccl"}};

/* Two micro-batches: over edge 0 two activations and two gradients, over edge 1 two activations. */
TEST(draw, perfetto_has_a_flow_for_each_message_and_what_carried_it) {
  const uint64_t n = events_of(built("1f1b", 3, 2), 1, 1);
  char *text = drawn_with(events, n, some, 3, "perfetto");
  const char *at = text;
  CHECK(read_value(&at));
  CHECK_STR(at, "\n");
  CHECK_EQ(occurrences(text, "\"ph\":\"X\""), (int)n);
  CHECK_EQ(occurrences(text, "\"ph\":\"s\""), 6);
  CHECK_EQ(occurrences(text, "\"ph\":\"f\",\"bp\":\"e\""), 6);
  CHECK_EQ(occurrences(text, "\"name\":\"nccl\",\"cat\":\"activation\""), 4);
  CHECK_EQ(occurrences(text, "\"name\":\"ipc\",\"cat\":\"gradient\""), 4);
  CHECK_CONTAINS(text,
                 "\"name\":\"ipc\",\"cat\":\"activation\",\"pid\":0,\"tid\":0,\"ts\":999.999,"
                 "\"args\":{\"edge\":0,\"micro\":0,\"path\":\"ipc\"}}");
  CHECK_CONTAINS(text,
                 "\"cat\":\"activation\",\"pid\":1,\"tid\":0,\"ts\":1000.000,"
                 "\"args\":{\"edge\":0,\"micro\":0,\"path\":\"ipc\"}}");
  free(text);
}

TEST(draw, svg_has_a_line_for_each_message_and_what_carried_it) {
  const uint64_t n = events_of(built("1f1b", 3, 2), 1, 1);
  char *text = drawn_with(events, n, some, 3, "svg");
  check_xml(text);
  CHECK_EQ(occurrences(text, "<line class=\"e\""), 6);
  CHECK_CONTAINS(text, ">lines: messages, by ipc, nccl</text>");
  CHECK_CONTAINS(text, "<title>edge 0, micro-batch 0: activation by ipc, made at 1, read at 1 ms<");
  free(text);
}

TEST(draw, what_stays_on_a_rank_is_no_message_and_a_grid_has_none) {
  static const char *const formats[] = {"grid", "svg", "perfetto"};
  for (int f = 0; f < 3; f++) {
    const uint64_t n = events_of(table_of("0F0 1F0 1B0 0B0"), 1, 1);
    char *plain = drawn(events, n, formats[f]), *with = drawn_with(events, n, some, 2, formats[f]);
    CHECK_STR(with, plain);
    free(plain);
    free(with);
  }
  const uint64_t n = events_of(built("1f1b", 3, 2), 1, 1);
  char *plain = drawn(events, n, "grid"), *with = drawn_with(events, n, some, 3, "grid");
  CHECK_STR(with, plain);
  free(plain);
  free(with);
}

/* Events of one rank alone have readers without makers, and the reverse. */
TEST(draw, messages_whose_other_end_is_not_there_are_left_out) {
  uint64_t n = events_of(built("1f1b", 3, 2), 1, 1), own = 0;
  for (uint64_t i = 0; i < n; i++)
    if (events[i].rank == 1) events[own++] = events[i];
  char *text = drawn_with(events, own, some, 3, "perfetto");
  CHECK_EQ(occurrences(text, "\"ph\":\"s\""), 0);
  free(text);
}

TEST(draw, each_worker_says_what_carries_its_edges) {
  static const char said[] =
      "edge 0 activations: ipc; edge 0 gradients: ipc; edge 1 activations: nccl";
  const uint64_t n = events_of(built("1f1b", 4, 2), 1, 1);
  char *text = drawn_with(events, n, some, 3, "perfetto"), whole[160];
  CHECK_EQ(occurrences(text, "\"process_labels\""), 3); /* worker 3's edge is not told of */
  snprintf(whole, sizeof whole, "\"pid\":1,\"args\":{\"labels\":\"%s\"}},", said);
  CHECK_CONTAINS(text, whole);
  CHECK_CONTAINS(text, "\"pid\":2,\"args\":{\"labels\":\"edge 1 activations: nccl\"}},");
  free(text);
  text = drawn_with(events, n, some, 3, "svg");
  snprintf(whole, sizeof whole, ">worker 1<title>%s</title></text>", said);
  CHECK_CONTAINS(text, whole);
  free(text);
}

/* Ranks 0 and 1 hold stage 0, 2 and 3 stage 1, whose events come in the other order. */
TEST(draw, messages_of_parts_of_a_stage_go_to_the_same_part_of_the_next) {
  static const int ranks[] = {0, 1, 3, 2};
  lam_event list[8];
  for (int i = 0; i < 4; i++) {
    const int stage = i / 2;
    list[i] = (lam_event){.rank = ranks[i], .stage = stage, .start = stage, .end = stage + 1};
    list[4 + i] = list[i];
    list[4 + i].kind = LAM_KIND_B, list[4 + i].start = 4 - stage, list[4 + i].end = 5 - stage;
  }
  char *text = drawn_with(list, 8, some, 2, "perfetto");
  CHECK_EQ(occurrences(text, "\"ph\":\"s\""), 4);
  FOR_EACH(part, 0, 1) {
    char flow[256];
    NOTE("part %d", part);
    snprintf(flow, sizeof flow,
             "\"cat\":\"activation\",\"pid\":%d,\"tid\":0,\"ts\":0.000,"
             "\"args\":{\"edge\":0,\"micro\":0,\"path\":\"ipc\"}},\n"
             "{\"ph\":\"f\",\"bp\":\"e\",\"id\":%d,\"name\":\"ipc\","
             "\"cat\":\"activation\",\"pid\":%d,",
             part, 2 + part, 2 + part);
    CHECK_CONTAINS(text, flow);
  }
  CHECK_EQ(occurrences(text, "\"labels\":\"edge 0 activations: ipc; edge 0 gradients: ipc\""), 4);
  free(text);
}

TEST(draw, refuses_carriers_that_cannot_be) {
  static const struct {
    lam_carrier is;
    const char *said;
  } cases[] = {
      {{-1, LAM_KIND_F, "shm"}, "carriers[1] is of edge -1, kind 0"},
      {{0, LAM_KIND_B, "shm"},
       "carriers[1] is of edge 0, kind 3, expected 0 or more, and LAM_KIND_F"},
      {{0, LAM_KIND_F, NULL}, "carriers[1].path is NULL"},
      {{0, LAM_KIND_F, ""}, "carriers[1].path is empty"},
      {{0, LAM_KIND_F, "a\"b"}, "carriers[1].path has the character 0x22"},
      {{0, LAM_KIND_F, "a\nb"}, "carriers[1].path has the character 0x0a"},
  };
  const uint64_t n = events_of(built("1f1b", 2, 2), 1, 1);
  for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
    const lam_carrier by[] = {some[0], cases[i].is};
    CHECK_STATUS(lam_events_draw_messages(events, n, by, 2, "svg", NULL, 0, NULL),
                 LAM_INVALID_ARGUMENT);
    CHECK_CONTAINS(lam_last_error(), cases[i].said);
  }
  CHECK_STATUS(lam_events_draw_messages(events, n, NULL, 1, "svg", NULL, 0, NULL),
               LAM_INVALID_ARGUMENT);
}

TEST(draw, any_events_are_drawn_or_refused) {
  static const char *const formats[] = {"grid", "svg", "perfetto"};
  rng r = {seed()};
  for (int k = 0; k < tries(200); k++) {
    const int n = (int)rng_int(&r, 1, 40);
    const int64_t scale = (int64_t)1 << rng_int(&r, 0, 60);
    for (int i = 0; i < n; i++) {
      events[i] = (lam_event){.rank = (int)rng_int(&r, 0, 9),
                              .stage = (int)rng_int(&r, 0, 20),
                              .micro = (int)rng_int(&r, 0, k % 2 ? 2 : INT32_MAX),
                              .kind = (uint16_t)rng_int(&r, 0, 7)};
      events[i].start = rng_int(&r, -scale, scale);
      events[i].end = events[i].start + rng_int(&r, 0, scale);
    }
    for (int f = 0; f < 3; f++) {
      char *text = drawn_with(events, (uint64_t)n, some, 3, formats[f]);
      if (f == 1) check_xml(text);
      const char *at = text;
      if (f == 2) CHECK(read_value(&at));
      free(text);
    }
  }
}

TEST(draw, fills_its_room_and_no_more) {
  const uint64_t n = events_of(built("gpipe", 2, 2), 1, 1);
  char buf[64], *whole = drawn(events, n, "svg");
  uint64_t bytes = 0;
  memset(buf, '~', sizeof buf);
  REQUIRE_OK(lam_events_draw(events, n, "svg", buf, 40, &bytes));
  CHECK_EQ(bytes, strlen(whole));
  CHECK(!buf[39] && buf[40] == '~' && !strncmp(buf, whole, 39));
  free(whole);
}
