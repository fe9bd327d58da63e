/* failure_test.c: pipelines that cannot go on: every rank ends with an error that says where,
 * soon, and can be closed.
 * Leaves how an engine finds out about its peers to the tests of comm/. */
#include <regex.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "tests/distributed/await.h"
#include "tests/distributed/pipeline/worker.h"
#include "tests/place.h"

#define OF_ONE_PROCESS "a device belongs to the process that opened it"

/* -- a stage says no -- */

typedef struct failing {
  setup at;
  int culprit;       /* rank */
  const char *where; /* what every rank's message must say */
} failing;

static void run_into_failure(int rank, int size, void *arg) {
  const failing *f = arg;
  worker k;
  REQUIRE_OK(worker_open(&k, &f->at, rank, size));
  lam_status status = LAM_OK;
  const double start = seconds_now();
  for (int step = 0; step < 4 && !status; step++) status = lam_pipeline_run(k.pipeline, step, NULL);
  CHECK(seconds_now() - start < 10);
  CHECK_STATUS(status, LAM_FAILED_PRECONDITION);
  CHECK_CONTAINS(lam_last_error(), f->where);
  CHECK_CONTAINS(lam_last_error(), "its function returned 9 (FAILED_PRECONDITION)");

  char first[LAM_MESSAGE_BYTES];
  snprintf(first, sizeof first, "%s", lam_last_error());
  CHECK_STATUS(lam_pipeline_run(k.pipeline, 5, NULL), LAM_FAILED_PRECONDITION);
  CHECK_STR(lam_last_error(), first);
  worker_close(&k);
}

static void fail_everywhere(const lam_schedule *s, int stage, int kind, int micro) {
  static const char names[] = "FIWB";
  char where[100];
  failing f = {.at = {.m = small_model(s->n_stages, s->n_micro), .s = s},
               .culprit = s->rank_of_stage[stage],
               .where = where};
  f.at.m.functions = kind == LAM_KIND_B ? MODEL_WHOLE : MODEL_SPLIT;
  f.at.m.fail_stage = stage, f.at.m.fail_kind = kind, f.at.m.fail_micro = micro;
  snprintf(where, sizeof where, "rank %d, step 0, stage %d, micro-batch %d, %d%c%d", f.culprit,
           stage, micro, stage, kind == LAM_KIND_W || kind == LAM_KIND_I ? 'B' : names[kind],
           micro);
  NOTE("%s", where);
  CHECK_OK(lam_group_id_create(&f.at.id));
  run_threads(s->n_ranks, run_into_failure, &f);
}

TEST(pipeline_failure, a_stage_that_fails_ends_the_step_on_all_ranks) {
  lam_schedule *s = build("1f1b", 3, 5);
  for (int stage = 0; stage < 3; stage++)
    FOR_EACH(kind, LAM_KIND_F, LAM_KIND_B, LAM_KIND_I, LAM_KIND_W) {
      fail_everywhere(s, stage, kind, 0);
      fail_everywhere(s, stage, kind, 3);
    }
  lam_schedule_destroy(s);
}

static lam_status fail_with_own_words(void *user, const lam_stage_io *io) {
  (void)user, (void)io;
  lam_call call = LAM_CALL_INIT; /* a stage's own message is that of the call that failed in it */
  call.op = 9999;
  return lam_fail(LAM_NOT_FOUND, "no operator %u", call.op);
}

TEST(pipeline_failure, the_stages_own_message_is_kept) {
  lam_schedule *s = build("gpipe", 1, 2);
  setup at = {.m = small_model(1, 2), .s = s};
  worker k;
  lam_fail(LAM_INTERNAL, "something older");
  worker_prepare(&k, &at, 0, 1);
  k.stages[0].forward = fail_with_own_words;
  REQUIRE_OK(worker_start(&k));
  CHECK_STATUS(lam_pipeline_run(k.pipeline, 7, NULL), LAM_NOT_FOUND);
  CHECK_STR(lam_last_error(), "rank 0, step 7, stage 0, micro-batch 0, 0F0: no operator 9999");
  worker_close(&k);
  lam_schedule_destroy(s);
}

TEST(pipeline_failure, one_rank_alone_can_go_on_after_a_failed_step) {
  lam_schedule *s = parse("0F0 1F0 0F1 1F1 1B0 0B0 1B1 0B1");
  setup at = {.m = small_model(2, 2), .s = s};
  worker k;
  at.m.fail_stage = 1, at.m.fail_micro = 1, at.m.fail_kind = LAM_KIND_F;
  REQUIRE_OK(worker_open(&k, &at, 0, 1));
  CHECK_STATUS(lam_pipeline_run(k.pipeline, 0, NULL), LAM_FAILED_PRECONDITION);
  at.m.fail_stage = -1;
  CHECK_OK(lam_pipeline_run(k.pipeline, 1, NULL));
  worker_close(&k);
  lam_schedule_destroy(s);
}

/* -- a stage breaks the rules of its io -- */

static lam_status raise_shape(void *user, const lam_stage_io *io) {
  (void)user;
  if (io->n_out) io->out[0].shape[1] = 6;
  return LAM_OK;
}
static lam_status replace_data(void *user, const lam_stage_io *io) {
  static double other[64];
  (void)user;
  if (io->n_out) io->out[0].data = other;
  return LAM_OK;
}
static lam_status replace_dtype(void *user, const lam_stage_io *io) {
  (void)user;
  if (io->n_out) io->out[0].dtype.bits = 32;
  return LAM_OK;
}
static lam_status own_shape(void *user, const lam_stage_io *io) {
  static int64_t shape[2] = {-1, 5};
  (void)user;
  if (io->n_out) io->out[0].shape = shape;
  return LAM_OK;
}

typedef struct rule_breaker {
  setup at;
  lam_stage_fn forward;
  const char *message;
} rule_breaker;

static void break_rules(int rank, int size, void *arg) {
  const rule_breaker *b = arg;
  worker k;
  worker_prepare(&k, &b->at, rank, size);
  if (rank == 0) k.stages[0].forward = b->forward;
  REQUIRE_OK(worker_start(&k));
  CHECK_STATUS(lam_pipeline_run(k.pipeline, 0, NULL), LAM_INVALID_ARGUMENT);
  CHECK_CONTAINS(lam_last_error(), b->message);
  CHECK_CONTAINS(lam_last_error(),
                 "rank 0, step 0, 0F0: sending the activation of micro-batch 0 over edge 0");
  worker_close(&k);
}

TEST(pipeline_failure, outputs_stay_within_their_slot) {
  const rule_breaker all[] = {
      {.forward = raise_shape, .message = "out[0].shape[1] is 6, expected at most 5"},
      {.forward = own_shape, .message = "out[0].shape[0] is -1"},
      {.forward = replace_data, .message = "out[0] was replaced"},
      {.forward = replace_dtype, .message = "out[0] has another dtype"},
  };
  for (size_t i = 0; i < sizeof all / sizeof *all; i++) FOR_EACH(ranks, 1, 2) {
      rule_breaker b = all[i];
      lam_schedule *s = ranks == 1 ? parse("0F0 1F0 1B0 0B0") : build("1f1b", 2, 1);
      b.at = (setup){.m = small_model(2, 1), .s = s};
      CHECK_OK(lam_group_id_create(&b.at.id));
      run_threads(ranks, break_rules, &b);
      lam_schedule_destroy(s);
    }
}

/* -- a rank dies or stops -- */

typedef struct doomed {
  setup at;
  int victim, signal;
  _Atomic int *n_under_way; /* ranks that have done some of step 1 */
} doomed;

static const doomed *doom; /* ranks are processes here */
static int my_rank;

/* Not before every rank has something to say of the step. */
static void end_here(const lam_stage_io *io, int kind) {
  if (kind != LAM_KIND_F || io->step != 1) return;
  if (io->micro == 1) ++*doom->n_under_way;
  if (io->micro != 2 || my_rank != doom->victim) return;
  await_count(doom->n_under_way, 3);
  raise(doom->signal);
}

static void check_matches(const char *text, const char *pattern) {
  regex_t r;
  REQUIRE(regcomp(&r, pattern, REG_EXTENDED | REG_NOSUB) == 0);
  if (regexec(&r, text, 0, NULL, 0) != 0) check_fail(CHECK_AT, "\"%s\" is not %s", text, pattern);
  regfree(&r);
}

/* In the words of whoever noticed first, who may have waited for a rank that waits for the lost
 * one. */
static void check_loss_is_told(const doomed *d) {
  check_matches(lam_last_error(),
                "rank [012], step 1, [012][FB][0-5]: (receiv|send)ing the (activation|gradient) of "
                "micro-batch [0-5] over edge [01], peer rank [012]; last completed: "
                "[012][FB][0-5]");
  if (d->signal == SIGKILL) {
    char died[40];
    snprintf(died, sizeof died, "rank %d \\(pid [0-9]+, [a-z ]+\\) died", d->victim);
    check_matches(lam_last_error(), died);
  } else {
    check_matches(lam_last_error(),
                  "rank [012] \\(pid [0-9]+, (stopped|sleeping|running)\\) did not come within "
                  "1000 ms");
  }
}

static void lose_a_rank(int rank, int size, void *arg) {
  const doomed *d = doom = arg;
  worker k;
  my_rank = rank;
  REQUIRE_OK(worker_open(&k, &d->at, rank, size));
  lam_status status = LAM_OK;
  const double start = seconds_now();
  for (int step = 0; step < 3 && !status; step++) status = lam_pipeline_run(k.pipeline, step, NULL);
  CHECK(seconds_now() - start < 8);
  CHECK_STATUS(status, d->signal == SIGKILL ? LAM_PEER_DEAD : LAM_PEER_STALLED);
  check_loss_is_told(d);
  CHECK_STATUS(lam_pipeline_run(k.pipeline, 3, NULL), status);
  worker_close(&k);
}

static void lose(int victim, int signal) {
  lam_schedule *s = build("1f1b", 3, 6);
  doomed d = {
      .at = {.m = small_model(3, 6), .s = s, .deadline_ms = signal == SIGKILL ? 20000 : 1000},
      .victim = victim,
      .signal = signal,
      .n_under_way = shared_memory(sizeof *d.n_under_way)};
  REQUIRE(d.n_under_way != NULL);
  d.at.m.on_call = end_here;
  NOTE("victim %d, signal %d", victim, signal);
  CHECK_OK(lam_group_id_create(&d.at.id));
  run_processes_doomed(3, 1u << victim, lose_a_rank, &d);
  lam_schedule_destroy(s);
}

TEST(pipeline_failure, a_killed_rank_ends_the_others) {
  if (!place_is_host()) SKIP(OF_ONE_PROCESS);
  FOR_EACH(victim, 0, 1, 2) lose(victim, SIGKILL);
}

TEST(pipeline_failure, a_stopped_rank_ends_the_others_at_the_deadline) {
  if (!place_is_host()) SKIP(OF_ONE_PROCESS);
  FOR_EACH(victim, 0, 1, 2) lose(victim, SIGSTOP);
}

/* -- what a late rank does -- */

typedef struct late {
  setup at;
  const char *state; /* that its peer must read in the message */
  _Atomic int *n_given_up;
  int resume[2]; /* a pipe: a byte ends the wait of a sleeping one */
} late;

static const late *lateness; /* ranks are processes here */

/* Stage 0 keeps rank 1 waiting, in the state that is asked for. */
static void be_late(const lam_stage_io *io, int kind) {
  char byte;
  if (io->stage != 0 || kind != LAM_KIND_F || io->step != 1 || io->micro != 1) return;
  if (strcmp(lateness->state, "sleeping") == 0) CHECK_EQ(read(lateness->resume[0], &byte, 1), 1);
  if (strcmp(lateness->state, "running") == 0)
    while (*lateness->n_given_up == 0) continue;
  if (strcmp(lateness->state, "stopped") == 0) raise(SIGSTOP);
}

static void wait_for_rank0(int rank, int size, void *arg) {
  const late *l = lateness = arg;
  char said[60];
  worker k;
  snprintf(said, sizeof said, "rank 0 \\(pid [0-9]+, %s\\) did not come within 1000 ms", l->state);
  REQUIRE_OK(worker_open(&k, &l->at, rank, size));
  CHECK_OK(lam_pipeline_run(k.pipeline, 0, NULL));
  CHECK_STATUS(lam_pipeline_run(k.pipeline, 1, NULL), LAM_PEER_STALLED);
  if (rank == 1) {
    check_matches(lam_last_error(), said);
    ++*l->n_given_up;
    CHECK_EQ(write(l->resume[1], "", 1), 1);
  }
  worker_close(&k);
}

TEST(pipeline_failure, what_a_late_rank_does_is_told) {
  if (!place_is_host()) SKIP(OF_ONE_PROCESS);
  static const char *const states[] = {"sleeping", "running", "stopped"};
  lam_schedule *s = build("1f1b", 2, 4);
  late l = {.at = {.m = small_model(2, 4), .s = s, .deadline_ms = 1000}};
  l.at.m.on_call = be_late;
  FOR_EACH(i, 0, 1, 2) {
    l.state = states[i];
    l.n_given_up = shared_memory(sizeof *l.n_given_up);
    REQUIRE(l.n_given_up && pipe(l.resume) == 0);
    NOTE("%s", l.state);
    CHECK_OK(lam_group_id_create(&l.at.id));
    if (i < 2)
      run_processes(2, wait_for_rank0, &l);
    else
      run_processes_doomed(2, 1u << 0, wait_for_rank0, &l); /* it stays stopped */
    close(l.resume[0]), close(l.resume[1]);
  }
  lam_schedule_destroy(s);
}

static _Atomic int n_given_up; /* ranks are threads here */

/* Stage 0's function takes until rank 1 has given up. */
static void outlast_rank1(const lam_stage_io *io, int kind) {
  if (io->stage == 0 && kind == LAM_KIND_F && io->step == 1 && io->micro == 1)
    await_count(&n_given_up, 1);
}

static void wait_for_late_rank(int rank, int size, void *arg) {
  const setup *at = arg;
  worker k;
  REQUIRE_OK(worker_open(&k, at, rank, size));
  CHECK_OK(lam_pipeline_run(k.pipeline, 0, NULL));
  const double start = seconds_now();
  CHECK_STATUS(lam_pipeline_run(k.pipeline, 1, NULL),
               LAM_PEER_STALLED); /* the late one is told when it is back */
  const double took = seconds_now() - start;
  if (rank == 1) {
    n_given_up = 1;
    CHECK(took > 0.9 && took < 20);
    CHECK_CONTAINS(
        lam_last_error(),
        "rank 1, step 1, 1F1: receiving the activation of micro-batch 1 over edge 0, peer rank 0");
    CHECK_CONTAINS(lam_last_error(), "last completed: 1B0");
  }
  worker_close(&k);
}

TEST(pipeline_failure, a_late_rank_is_named_with_what_was_waited_for) {
  lam_schedule *s = build("1f1b", 2, 4);
  setup at = {.m = small_model(2, 4), .s = s, .deadline_ms = 1000};
  at.m.on_call = outlast_rank1;
  n_given_up = 0;
  CHECK_OK(lam_group_id_create(&at.id));
  run_threads(2, wait_for_late_rank, &at);
  lam_schedule_destroy(s);
}

static int32_t stop_now(void *user) { return *(int *)user; }

static void interrupt(int rank, int size, void *arg) {
  setup at = *(const setup *)arg;
  int stop = rank == 1;
  worker k;
  at.hooks = (lam_context_desc)LAM_CONTEXT_DESC_INIT;
  int off = 0, *flag = &off; /* the group's own meeting goes undisturbed */
  at.hooks.user = flag, at.hooks.should_stop = stop_now;
  REQUIRE_OK(worker_open(&k, &at, rank, size));
  CHECK_OK(lam_pipeline_run(k.pipeline, 0, NULL));
  *flag = stop;
  CHECK_STATUS(lam_pipeline_run(k.pipeline, 1, NULL), LAM_INTERRUPTED);
  n_given_up = 1;
  worker_close(&k);
}

TEST(pipeline_failure, a_host_that_asks_to_stop_is_heard_in_a_wait) {
  lam_schedule *s = build("1f1b", 2, 4);
  setup at = {.m = small_model(2, 4), .s = s};
  at.m.on_call = outlast_rank1;
  n_given_up = 0;
  CHECK_OK(lam_group_id_create(&at.id));
  run_threads(2, interrupt, &at);
  lam_schedule_destroy(s);
}

static _Atomic int n_done_steps, n_ended;

static void end_from_outside(int rank, int size, void *arg) {
  worker k;
  REQUIRE_OK(worker_open(&k, arg, rank, size));
  CHECK_OK(lam_pipeline_run(k.pipeline, 0, NULL));
  n_done_steps++;
  await_count(&n_done_steps, size);
  if (rank == 1) lam_group_poison(k.group, LAM_CANCELLED, "the host has enough"), n_ended = 1;
  await_count(&n_ended, 1);
  CHECK_STATUS(lam_pipeline_run(k.pipeline, 1, NULL), LAM_CANCELLED); /* rank 0 needs nobody */
  CHECK_CONTAINS(lam_last_error(), "the host has enough");
  worker_close(&k);
}

TEST(pipeline_failure, a_world_that_ended_between_steps_ends_the_next_one) {
  lam_schedule *s = build("gpipe", 2, 2);
  setup at = {.m = small_model(2, 2), .s = s, .flags = LAM_PIPELINE_FORWARD_ONLY};
  n_done_steps = n_ended = 0;
  CHECK_OK(lam_group_id_create(&at.id));
  run_threads(2, end_from_outside, &at);
  lam_schedule_destroy(s);
}

/* -- leaving early -- */

static _Atomic int *n_left; /* shared by all ranks */

static void leave_at_once(int rank, int size, void *arg) {
  worker k;
  REQUIRE_OK(worker_open(&k, arg, rank, size));
  CHECK_OK(lam_pipeline_run(k.pipeline, 0, NULL));
  if (rank != 0) await_count(n_left, 1); /* what rank 0 sent must outlive it */
  CHECK_OK(lam_pipeline_run(k.pipeline, 1, NULL));
  worker_close(&k);
  ++*n_left;
}

/* Rank 0 has room for a whole step, so it needs nobody to leave. */
TEST(pipeline_failure, what_was_sent_outlives_a_sender_that_left) {
  if (!place_is_host()) SKIP(OF_ONE_PROCESS);
  lam_schedule *s = build("gpipe", 3, 3);
  setup at = {.m = small_model(3, 3), .s = s, .flags = LAM_PIPELINE_FORWARD_ONLY};
  n_left = shared_memory(sizeof *n_left);
  CHECK_OK(lam_group_id_create(&at.id));
  run_threads(3, leave_at_once, &at);
  *n_left = 0;
  run_processes(3, leave_at_once, &at);
  lam_schedule_destroy(s);
}

static void destroy_unused(int rank, int size, void *arg) {
  worker k;
  CHECK_OK(worker_open(&k, arg, rank, size));
  worker_close(&k);
}

TEST(pipeline_failure, a_pipeline_that_never_ran_can_be_destroyed) {
  lam_schedule *s = build("gpipe", 2, 3);
  for (int round = 0; round < 20; round++) {
    setup at = {.m = small_model(2, 3), .s = s};
    CHECK_OK(lam_group_id_create(&at.id));
    run_threads(2, destroy_unused, &at);
  }
  lam_schedule_destroy(s);
}
