/* schedule_fuzz_test.c: tables, good ones and good ones made wrong at random places, through parse,
 * check, lower and simulate.
 *
 * A case takes a table: built (any builder, p = 2 and V placement every other time), or random; its
 * transfers written out or not; with REDUCE_GRAD, UNSHARD and RESHARD or not. Then it changes none
 * to three things: two actions swapped, one lost, doubled, moved to another rank, or another stage,
 * micro-batch or kind.
 * Invariant: check and the plain reference agree on every table. What is accepted runs to its end
 * with sends that wait for their receives and rings of the depths that check told, whatever the
 * costs; what is refused is refused by all, in one line.
 * Leaves what messages say to the unit tests. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "tests/unit/pipeline/tables.h"

enum { CASES = 5000, TEXTS = 10000, MOST_STAGES = 12, MOST_MICRO = 8, MOST_ACTIONS = 1 << 12 };

static rng r;

static bool chance(int one_in) { return rng_int(&r, 1, one_in) == 1; }
static int below(int n) { return (int)rng_int(&r, 0, n - 1); }

/* -- good tables -- */

/* Any builder that takes these sizes; NULL where it does not. */
static lam_schedule *any_built(void) {
  int n = 0;
  while (lam_schedule_name(n)) n++;
  const int p = chance(2) ? 2 : (int)rng_int(&r, 1, 4), v = (int)rng_int(&r, 1, MOST_STAGES / 4);
  lam_schedule *s = NULL;
  return lam_schedule_build(lam_schedule_name(below(n)), p, v, (int)rng_int(&r, 1, MOST_MICRO),
                            &s) == LAM_OK
             ? s
             : NULL;
}

static lam_schedule *any_table(void) {
  lam_schedule *s = chance(3) ? NULL : any_built();
  if (!s) s = random_fused_table(&r, 4, 6, 5);
  return s;
}

static lam_schedule *with_transfers(lam_schedule *s) {
  lam_schedule *lowered = NULL;
  CHECK_OK(lam_schedule_lower(s, &lowered));
  lam_schedule_destroy(s);
  return lowered;
}

/* -- a table as a list that can be changed -- */

typedef struct draft {
  int n_ranks, n_stages, n_micro, n;
  int rank[MOST_ACTIONS]; /* ascending */
  lam_action list[MOST_ACTIONS];
} draft;

static void insert(draft *d, int at, int rank, lam_action a) {
  memmove(d->rank + at + 1, d->rank + at, (size_t)(d->n - at) * sizeof *d->rank);
  memmove(d->list + at + 1, d->list + at, (size_t)(d->n - at) * sizeof *d->list);
  d->rank[at] = rank, d->list[at] = a;
  d->n++;
}

static lam_action take(draft *d, int at) {
  const lam_action a = d->list[at];
  d->n--;
  memmove(d->rank + at, d->rank + at + 1, (size_t)(d->n - at) * sizeof *d->rank);
  memmove(d->list + at, d->list + at + 1, (size_t)(d->n - at) * sizeof *d->list);
  return a;
}

static void read_table(const lam_schedule *s, draft *d) {
  d->n_ranks = s->n_ranks, d->n_stages = s->n_stages, d->n_micro = s->n_micro;
  d->n = (int)s->first[s->n_ranks];
  memcpy(d->list, s->actions, (size_t)d->n * sizeof *d->list);
  for (int q = 0; q < s->n_ranks; q++)
    for (int64_t i = s->first[q]; i < s->first[q + 1]; i++) d->rank[i] = q;
}

/* A pair that was torn apart is a pair no more. */
static bool is_pair(const draft *d, int i) {
  return d->list[i].paired && i + 1 < d->n && d->rank[i + 1] == d->rank[i] &&
         d->list[i].kind == LAM_KIND_F && d->list[i + 1].kind == LAM_KIND_B;
}

static lam_schedule *write_table(const draft *d) {
  lam_schedule *s = NULL;
  if (!CHECK_OK(lam_schedule_alloc(d->n_ranks, d->n_stages, d->n_micro, &s))) return NULL;
  for (int i = 0; i < d->n; i++) {
    const lam_action *a = &d->list[i];
    CHECK_OK(lam_schedule_push(s, d->rank[i], a->kind, a->stage, a->micro));
    if (i && is_pair(d, i - 1)) lam_schedule_pair(s);
  }
  CHECK_OK(lam_schedule_seal(s));
  return s;
}

/* Around each stage's actions, where chance wills. */
static void add_stage_wide(draft *d) {
  for (int stage = 0; stage < d->n_stages; stage++) {
    int first = -1, last = -1;
    for (int i = 0; i < d->n; i++)
      if (d->list[i].stage == stage) first = first < 0 ? i : first, last = i;
    if (first < 0) continue;
    const int rank = d->rank[first];
    if (last + 1 < d->n && d->list[last].paired) last++; /* not into a pair */
    if (first && d->list[first - 1].paired) first--;
    const lam_action reduce = {stage, -1, LAM_KIND_REDUCE_GRAD, 0};
    const lam_action reshard = {stage, -1, LAM_KIND_RESHARD, 0};
    const lam_action unshard = {stage, -1, LAM_KIND_UNSHARD, 0};
    if (chance(2)) insert(d, last + 1, rank, reduce);
    if (chance(2)) insert(d, last + 1, rank, reshard), insert(d, first, rank, unshard);
  }
}

/* -- wrong at one place -- */

static void swap_two(draft *d, int at) {
  const int other = below(d->n);
  const lam_action a = d->list[at];
  if (d->rank[other] != d->rank[at] && !chance(8)) return;
  d->list[at] = d->list[other], d->list[other] = a;
}

static void drop_one(draft *d, int at) {
  if (d->n > 1) take(d, at);
}
static void double_one(draft *d, int at) { insert(d, at, d->rank[at], d->list[at]); }
static void move_one(draft *d, int at) {
  if (at + 1 < d->n) d->rank[at] = d->rank[at + 1]; /* across the end of a list */
}
static void change_stage(draft *d, int at) { d->list[at].stage = below(d->n_stages); }
static void change_micro(draft *d, int at) {
  if (d->list[at].micro >= 0) d->list[at].micro = below(d->n_micro);
}
static void change_kind(draft *d, int at) {
  static const int16_t kinds[] = {LAM_KIND_F,      LAM_KIND_I,      LAM_KIND_W,
                                  LAM_KIND_B,      LAM_KIND_SEND_F, LAM_KIND_RECV_F,
                                  LAM_KIND_SEND_B, LAM_KIND_RECV_B};
  static const int16_t wide[] = {LAM_KIND_REDUCE_GRAD, LAM_KIND_UNSHARD, LAM_KIND_RESHARD};
  d->list[at].kind = d->list[at].micro < 0 ? wide[below(3)] : kinds[below(8)];
}

static void (*const changes[])(draft *d, int at) = {
    swap_two, swap_two, drop_one, double_one, move_one, change_stage, change_micro, change_kind};

/* -- one case -- */

static void check_depths_hold(const lam_schedule *s) {
  int32_t depths[128];
  int by_flow[2][64] = {{0}};
  lam_schedule_info info = LAM_SCHEDULE_INFO_INIT;
  info.ring_depths = depths, info.n_ring_depths = 128;
  CHECK_OK(lam_schedule_check(s, &info));
  for (int e = 0; e + 1 < s->n_stages; e++)
    by_flow[0][e] = depths[2 * e], by_flow[1][e] = depths[2 * e + 1];
  costs_of c;
  random_costs(&r, s->n_stages, &c);
  CHECK(reference_makespan(s, &c.costs, by_flow) >= 0);
  /* (Where transfers are written out the reference makes an output wait for its receive.) */
  const double makespan = simulated(s, &c.costs).makespan;
  if (!s->lowered) CHECK_EQ(reference_makespan(s, &c.costs, NULL), makespan);
}

static void check_accepted(const lam_schedule *s) {
  lam_schedule *lowered = NULL;
  check_depths_hold(s);
  if (!CHECK_OK(lam_schedule_lower(s, &lowered))) return;
  CHECK_OK(lam_schedule_check(lowered, NULL));
  check_depths_hold(lowered);
  lam_schedule_destroy(lowered);
}

static void check_refused(const lam_schedule *s) {
  lam_schedule *lowered = NULL;
  lam_simulated out = LAM_SIMULATED_INIT;
  costs_of c;
  even_costs(1, 1, 1, 1, s->n_stages, &c);
  CHECK(strlen(lam_last_error()) > 20 && !strchr(lam_last_error(), '\n'));
  CHECK_STATUS(lam_schedule_lower(s, &lowered), LAM_INVALID_ARGUMENT);
  CHECK_STATUS(lam_schedule_simulate(s, &c.costs, &out), LAM_INVALID_ARGUMENT);
  CHECK(!lowered);
}

static bool check_verdict(const lam_schedule *s) {
  const bool want = reference_accepts(s), got = lam_schedule_check(s, NULL) == LAM_OK;
  if (got != want) {
    char *text = text_of(s);
    check_fail(CHECK_AT, "reference %d, check %d (%s) on\n%s", want, got,
               got ? "" : lam_last_error(), text);
    free(text);
  } else if (got) {
    check_accepted(s);
  } else {
    check_refused(s);
  }
  return got;
}

/* A good table is accepted; returns whether it still is after `n_changes`. */
static bool run_case(int n_changes) {
  static draft d;
  lam_schedule *s = any_table();
  if (chance(2)) s = with_transfers(s);
  read_table(s, &d);
  lam_schedule_destroy(s);
  if (chance(4)) add_stage_wide(&d);
  for (int k = 0; k < n_changes; k++)
    changes[below((int)(sizeof changes / sizeof *changes))](&d, below(d.n));
  s = write_table(&d);
  const bool accepted = s && check_verdict(s);
  lam_schedule_destroy(s);
  return accepted;
}

TEST(schedule_fuzz, good_tables_are_accepted_and_run) {
  r = (rng){seed()};
  for (int k = 0; k < tries(CASES / 5); k++) CHECK(run_case(0));
}

TEST(schedule_fuzz, changed_tables_are_accepted_and_run_or_are_refused) {
  const int cases = tries(CASES);
  int accepted = 0;
  r = (rng){seed() + 1};
  for (int k = 0; k < cases; k++) accepted += run_case((int)rng_int(&r, 1, 3));
  CHECK(accepted > cases / 50 && accepted < cases / 2); /* both were put to the test */
}

/* -- text -- */

static void digest(const char *text, uint64_t n, int *accepted) {
  lam_schedule *s = NULL, *again = NULL;
  if (lam_schedule_parse(text, n, &s) != LAM_OK) {
    CHECK(!s && strlen(lam_last_error()) > 20);
    return;
  }
  char *printed = text_of(s);
  CHECK_OK(lam_schedule_parse(printed, strlen(printed), &again));
  char *twice = text_of(again);
  CHECK_STR(twice, printed);
  const bool small = s->n_stages <= 64 && s->n_micro <= 64 && s->n_ranks <= 64;
  if (small)
    *accepted += check_verdict(s);
  else
    lam_schedule_check(s, NULL);
  free(printed), free(twice);
  lam_schedule_destroy(s), lam_schedule_destroy(again);
}

/* Cut short, or bytes changed, or a piece put elsewhere. */
static void spoil_text(char *text, int64_t *n) {
  static const char alphabet[] = "0123456789FIWBSENDRCV_(),;# \n\rrank:OLAPUGHT";
  if (chance(4)) *n = rng_int(&r, 0, *n);
  if (!*n) return;
  for (int64_t hits = rng_int(&r, 0, 3); hits > 0; hits--)
    text[rng_int(&r, 0, *n - 1)] =
        chance(10) ? (char)rng_int(&r, 0, 255) : alphabet[below((int)sizeof alphabet - 1)];
  if (!chance(4)) return;
  const int64_t bytes = rng_int(&r, 0, *n), from = rng_int(&r, 0, *n - bytes);
  memmove(text + rng_int(&r, 0, *n - bytes), text + from, (size_t)bytes);
}

TEST(schedule_fuzz, changed_texts_are_read_and_judged_or_refused) {
  const int texts = tries(TEXTS);
  int accepted = 0;
  r = (rng){seed() + 2};
  for (int k = 0; k < texts; k++) {
    uint64_t n = 0;
    lam_schedule *s = random_table(&r, 3, 4, 3);
    fuse_some(s, &r);
    if (chance(2) && lam_schedule_check(s, NULL) == LAM_OK) s = with_transfers(s);
    const char *format = chance(2) ? "csv" : "text";
    CHECK_OK(lam_schedule_write(s, format, NULL, 0, &n));
    char *text = malloc(n + 1); /* no byte more than is read: a sanitizer watches it */
    CHECK_OK(lam_schedule_write(s, format, text, n + 1, &n));
    int64_t bytes = (int64_t)n;
    spoil_text(text, &bytes);
    char *exact = malloc((size_t)bytes + 1);
    memcpy(exact, text, (size_t)bytes);
    digest(exact, (uint64_t)bytes, &accepted);
    free(text), free(exact);
    lam_schedule_destroy(s);
  }
  CHECK(accepted > texts / 100 && accepted < texts / 2);
}

TEST(schedule_fuzz, random_words_are_read_and_judged_or_refused) {
  static const char *const words[] = {"0",  "1", "2",      "3",      "F",     "B",      "I",
                                      "W",  " ", ",",      "\n",     "(",     ";",      ")",
                                      "BW", "#", "rank 0", "SEND_F", "RECV_", "UNSHARD"};
  int accepted = 0;
  r = (rng){seed() + 3};
  for (int k = 0; k < tries(TEXTS); k++) {
    char text[512] = "";
    for (int i = below(40); i > 0; i--) strcat(text, words[below(20)]);
    digest(text, strlen(text), &accepted);
  }
}
