/* report_test.c: what a step says of itself, what it holds, and that it takes nothing more than
 * that while it runs.
 * Leaves the pictures drawn from events to the schedule's tests. */
#include <linux/audit.h>
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <signal.h>
#include <stdatomic.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <time.h>
#include <ucontext.h>
#include <unistd.h>

#include "tests/distributed/await.h"
#include "tests/distributed/pipeline/worker.h"

enum { EVENTS = 400, MS = 1000000 };

typedef struct report {
  lam_pipeline_report is;
  lam_event events[EVENTS];
} report;

static void read_report(const worker *k, report *r) {
  r->is = (lam_pipeline_report)LAM_PIPELINE_REPORT_INIT;
  r->is.events = r->events, r->is.n_events = EVENTS;
  CHECK_OK(lam_pipeline_get_report(k->pipeline, &r->is));
  CHECK(r->is.n_events <= EVENTS);
}

static void check_sums(const report *r) {
  const lam_pipeline_report *i = &r->is;
  CHECK_EQ(i->step_time, i->busy + i->warm_up + i->waiting + i->drain + i->overhead);
  CHECK(i->busy >= 0 && i->warm_up >= 0 && i->waiting >= 0 && i->drain >= 0 && i->overhead >= 0 &&
        i->cpu >= 0);
  CHECK_EQ(i->waiting > 0, i->worst_edge >= 0);
}

/* Events come one after the other; their actions are this rank's list, in its order. */
static void check_events(const report *r, const lam_schedule *s, int rank) {
  const lam_action *a = s->actions + s->first[rank];
  int64_t at = INT64_MIN, busy = 0;
  for (uint64_t i = 0; i < r->is.n_events; i++) {
    const lam_event *e = &r->events[i];
    CHECK_EQ(e->rank, rank);
    CHECK(e->start >= at && e->end >= e->start);
    at = e->end;
    if (e->kind == LAM_KIND_WAIT) continue;
    CHECK(e->stage == a->stage && e->micro == a->micro && e->kind == a->kind && e->part == 0);
    busy += e->end - e->start;
    a++;
  }
  CHECK(a == s->actions + s->first[rank + 1]);
  CHECK_EQ(busy, r->is.busy);
  CHECK_EQ(r->is.n_actions, s->first[rank + 1] - s->first[rank]);
}

static void report_steps(int rank, int size, void *arg) {
  const setup *at = arg;
  worker k;
  report r;
  REQUIRE_OK(worker_open(&k, at, rank, size));
  read_report(&k, &r);
  CHECK(r.is.n_events == 0 && r.is.step_time == 0); /* before any step */
  for (int step = 0; step < 3; step++) {
    CHECK_OK(lam_pipeline_run(k.pipeline, step, NULL));
    read_report(&k, &r);
    check_sums(&r);
    check_events(&r, at->s, rank);
  }
  worker_close(&k);
}

TEST(pipeline_report, times_add_up_and_events_are_the_list) {
  for (int p = 1; p <= 4; p++) {
    lam_schedule *s = build("1f1b", p, 5);
    setup at = {.m = small_model(p, 5), .s = s};
    CHECK_OK(lam_group_id_create(&at.id));
    run_threads(p, report_steps, &at);
    lam_schedule_destroy(s);
  }
}

TEST(pipeline_report, gives_as_many_events_as_there_is_room_for) {
  lam_schedule *s = build("gpipe", 1, 5);
  setup at = {.m = small_model(1, 5), .s = s};
  worker k;
  lam_event events[4] = {{0}};
  lam_pipeline_report r = LAM_PIPELINE_REPORT_INIT;
  REQUIRE_OK(worker_open(&k, &at, 0, 1));
  CHECK_OK(lam_pipeline_run(k.pipeline, 0, NULL));
  r.events = events, r.n_events = 3;
  CHECK_OK(lam_pipeline_get_report(k.pipeline, &r));
  CHECK_EQ(r.n_events, 10);
  CHECK(events[2].micro == 2 && events[3].end == 0);
  r.events = NULL;
  CHECK_OK(lam_pipeline_get_report(k.pipeline, &r));
  CHECK_EQ(r.n_events, 10);
  worker_close(&k);
  lam_schedule_destroy(s);
}

TEST(pipeline_report, halves_of_a_fused_pair_are_told_apart) {
  static const char text[] = "0F0 1F0 0F1 (1F1;1B0) 0B0 1B1 0B1";
  static const int parts[] = {0, 0, 0, 0, 1, 0, 0, 0};
  lam_schedule *s = parse(text);
  FOR_EACH(functions, MODEL_WHOLE, MODEL_WHOLE | MODEL_FUSED) {
    setup at = {.m = small_model(2, 2), .s = s};
    worker k;
    report r;
    at.m.functions = (unsigned)functions;
    REQUIRE_OK(worker_open(&k, &at, 0, 1));
    CHECK_OK(lam_pipeline_run(k.pipeline, 0, NULL));
    read_report(&k, &r);
    check_sums(&r);
    CHECK_EQ(r.is.n_events, 8);
    for (int i = 0; i < 8; i++) CHECK_EQ(r.events[i].part, parts[i]);
    const lam_event *f = &r.events[3], *b = &r.events[4];
    CHECK(f->kind == LAM_KIND_F && b->kind == LAM_KIND_B && b->stage == 1 && b->micro == 0);
    if (functions & MODEL_FUSED)
      CHECK(f->start == b->start && f->end == b->end);
    else
      CHECK(b->start >= f->end);
    CHECK_EQ(k.all[1]->pairs, (functions & MODEL_FUSED) != 0);
    worker_close(&k);
  }
  lam_schedule_destroy(s);
}

TEST(pipeline_report, a_pair_that_runs_its_forward_alone_has_no_second_half) {
  lam_schedule *s = parse("0F0 1F0 0F1 (1F1;1B0) 0B0 0F2 1F2 1B1 0B1 1B2 0B2");
  setup at = {.m = small_model(2, 3), .s = s, .flags = LAM_PIPELINE_FORWARD_ONLY};
  worker k;
  report r;
  REQUIRE_OK(worker_open(&k, &at, 0, 1));
  CHECK_OK(lam_pipeline_run(k.pipeline, 0, NULL));
  read_report(&k, &r);
  CHECK_EQ(r.is.n_events, 6);
  for (int i = 0; i < 6; i++) CHECK_EQ(r.events[i].part, 0);
  worker_close(&k);
  lam_schedule_destroy(s);
}

/* -- where time went -- */

static _Atomic int second_forward; /* rank 0 has begun it, in step 1; ranks are threads here */

/* The timed waits are the stage's work, whose length the report must show. */
static void slow_first_stage(const lam_stage_io *io, int kind) {
  if (io->stage == 0 && kind == LAM_KIND_F && io->step == 1 && io->micro == 1) second_forward = 1;
  if (io->stage == 0 && kind == LAM_KIND_F) usleep(20000);
  if (io->stage == 0 && kind == LAM_KIND_B) usleep(5000);
}

static int64_t first_forward(const report *r) {
  uint64_t i = 0;
  while (i < r->is.n_events && r->events[i].kind != LAM_KIND_F) i++;
  return r->events[i].start;
}

static void blame(int rank, int size, void *arg) {
  const setup *at = arg;
  worker k;
  report r;
  REQUIRE_OK(worker_open(&k, at, rank, size));
  CHECK_OK(lam_pipeline_run(k.pipeline, 0, NULL));
  if (rank == 1) await_count(&second_forward, 1); /* late, and still sees when the step began */
  CHECK_OK(lam_pipeline_run(k.pipeline, 1, NULL));
  read_report(&k, &r);
  if (rank == 1) {
    CHECK_EQ(r.is.worst_edge, 0);
    CHECK_EQ(r.is.worst_kind, LAM_KIND_F);
    CHECK(r.is.waiting > 20 * MS);
    CHECK(first_forward(&r) >= 19 * MS);               /* rank 0's clock runs since it began */
    CHECK(r.events[r.is.n_events - 1].end >= 80 * MS); /* four slow forwards */
  } else {
    CHECK(r.is.busy >= 100 * MS);
    CHECK(r.is.cpu < r.is.busy / 4); /* sleeping is not work */
    CHECK(r.is.warm_up < 10 * MS); /* it waits for nobody: half of what a forward takes */
  }
  worker_close(&k);
}

TEST(pipeline_report, names_the_edge_that_is_waited_for) {
  lam_schedule *s = build("1f1b", 2, 4);
  setup at = {.m = small_model(2, 4), .s = s};
  at.m.on_call = slow_first_stage;
  second_forward = 0;
  CHECK_OK(lam_group_id_create(&at.id));
  run_threads(2, blame, &at);
  lam_schedule_destroy(s);
}

static void spin_a_while(const lam_stage_io *io, int kind) {
  (void)io, (void)kind;
  struct timespec t;
  const double end = seconds_now() + 2e-3;
  do clock_gettime(CLOCK_THREAD_CPUTIME_ID, &t);
  while (seconds_now() < end);
}

TEST(pipeline_report, work_counts_as_cpu_time) {
  lam_schedule *s = build("gpipe", 1, 3);
  setup at = {.m = small_model(1, 3), .s = s};
  at.m.on_call = spin_a_while;
  worker k;
  report r;
  REQUIRE_OK(worker_open(&k, &at, 0, 1));
  for (int step = 0; step < 2; step++) CHECK_OK(lam_pipeline_run(k.pipeline, step, NULL));
  read_report(&k, &r);
  CHECK(r.is.busy >= 12 * MS);
  CHECK(r.is.cpu > 2 * MS &&
        r.is.cpu <= r.is.busy + MS / 10); /* other processes may take the rest */
  worker_close(&k);
  lam_schedule_destroy(s);
}

/* -- what it holds -- */

static uint64_t slot_bytes(
    const model *m) { /* a head, a row of dims, the tensor, in lines of 64 bytes */
  return 64 + 64 + ((uint64_t)m->rows * (uint64_t)m->width * 8 + 63) / 64 * 64;
}

static void count_slots(int rank, int size, void *arg) {
  const setup *at = arg;
  worker k;
  report r;
  REQUIRE_OK(worker_open(&k, at, rank, size));
  read_report(&k, &r);
  const bool held = at->m.keeps;
  uint64_t slots = 0;
  if (rank > 0) { /* one more than it takes, but not more than there are micro-batches */
    const int depth = lam_schedule_ring_depth(at->s, rank - 1, LAM_KIND_F, held) + 1;
    slots += (uint64_t)(depth < at->s->n_micro ? depth : at->s->n_micro);
  }
  if (rank < size - 1) {
    const int depth = lam_schedule_ring_depth(at->s, rank, LAM_KIND_I, held) + 1;
    slots += (uint64_t)(depth < at->s->n_micro ? depth : at->s->n_micro);
  }
  CHECK_EQ(r.is.slot_bytes, slots * slot_bytes(&at->m));
  worker_close(&k);
}

TEST(pipeline_report, slots_are_counted_where_they_are_read) {
  lam_schedule *s = build("1f1b", 3, 6);
  FOR_EACH(keeps, 0, 1) {
    setup at = {.m = small_model(3, 6), .s = s};
    at.m.keeps = keeps;
    CHECK_OK(lam_group_id_create(&at.id));
    run_threads(3, count_slots, &at);
  }
  lam_schedule_destroy(s);
}

TEST(pipeline_report, edges_within_a_rank_hold_no_more_than_is_in_flight) {
  lam_schedule *one = parse("0F0 1F0 1B0 0B0 0F1 1F1 1B1 0B1"),
               *all = parse("0F0 0F1 1F0 1F1 1B0 1B1 0B0 0B1");
  FOR_EACH(keeps, 0, 1) {
    setup at = {.m = small_model(2, 2), .s = one};
    worker k;
    report r;
    at.m.keeps = keeps;
    REQUIRE_OK(worker_open(&k, &at, 0, 1));
    read_report(&k, &r);
    CHECK_EQ(r.is.slot_bytes, 2 * slot_bytes(&at.m)); /* an activation and a gradient */
    worker_close(&k);
    at.s = all;
    REQUIRE_OK(worker_open(&k, &at, 0, 1));
    read_report(&k, &r);
    CHECK_EQ(r.is.slot_bytes, 4 * slot_bytes(&at.m));
    worker_close(&k);
  }
  lam_schedule_destroy(one), lam_schedule_destroy(all);
}

/* -- what it says -- */

typedef struct log {
  int n;
  char line[256];
} log;

static void keep_line(void *user, int32_t level, const char *line) {
  log *l = user;
  (void)level;
  l->n++;
  snprintf(l->line, sizeof l->line, "%s", line);
}

TEST(pipeline_report, a_stage_that_cannot_split_is_named_once) {
  lam_schedule *s = parse("0F0 0F1 1F0 1F1 1I0 1I1 1W0 1W1 0I0 0I1 0W0 0W1");
  log said = {0};
  setup at = {.m = small_model(2, 2), .s = s, .hooks = LAM_CONTEXT_DESC_INIT};
  at.hooks.user = &said, at.hooks.log = keep_line;
  worker k;
  REQUIRE_OK(worker_open(&k, &at, 0, 1));
  for (int step = 0; step < 3; step++) CHECK_OK(lam_pipeline_run(k.pipeline, step, NULL));
  CHECK_EQ(said.n, 1);
  CHECK_CONTAINS(said.line, "cannot split its backward");
  worker_close(&k);
  at.m.functions = MODEL_SPLIT;
  REQUIRE_OK(worker_open(&k, &at, 0, 1));
  CHECK_EQ(said.n, 1);
  worker_close(&k);
  lam_schedule_destroy(s);
}

/* -- what it takes: every system call of this thread is counted and let through to nowhere -- */

static _Atomic int n_system_calls, last_system_call;

static void count_call(int number, siginfo_t *info, void *context) {
  (void)number, (void)context;
  n_system_calls++;
  last_system_call = info->si_syscall;
}

static int forbid_system_calls(void) {
  struct sigaction action = {.sa_sigaction = count_call, .sa_flags = SA_SIGINFO};
  struct sock_filter rules[] = {
      BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, nr)),
      BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, SYS_rt_sigreturn, 3, 0),
      BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, SYS_exit_group, 2, 0),
      BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, SYS_write, 1, 0),
      BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_TRAP),
      BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW),
  };
  const struct sock_fprog program = {sizeof rules / sizeof *rules, rules};
  return sigaction(SIGSYS, &action, NULL) || prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) ||
         prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, &program);
}

static _Atomic int *n_ready, *n_quiet; /* ranks before and after the filter; shared by processes */

/* Runs one step with the filter on; nothing can be closed after it, so the process ends here. */
static void run_without_system_calls(worker *k, int step) {
  lam_context_stats before = LAM_CONTEXT_STATS_INIT, after = LAM_CONTEXT_STATS_INIT;
  CHECK_OK(lam_context_get_stats(k->ctx, &before));
  if (!CHECK(forbid_system_calls() == 0)) _exit(1);
  const lam_status status = lam_pipeline_run(k->pipeline, step, NULL);
  int ok = CHECK_OK(status) & CHECK_OK(lam_context_get_stats(k->ctx, &after));
  ok &= CHECK_EQ(n_system_calls, 0) & CHECK_EQ(last_system_call, 0);
  ok &= CHECK_EQ(after.allocations, before.allocations);
  ++*n_quiet;
  _exit(!ok);
}

static void count_ranks(void) {
  _Atomic int *counts = shared_memory(2 * sizeof *counts);
  n_ready = counts, n_quiet = counts + 1;
}

static void step_alone(int rank, int size, void *arg) {
  worker k;
  REQUIRE_OK(worker_open(&k, arg, rank, size));
  for (int step = 0; step < 3; step++) CHECK_OK(lam_pipeline_run(k.pipeline, step, NULL));
  run_without_system_calls(&k, 3);
}

TEST(pipeline_report, a_step_of_one_rank_allocates_nothing_and_makes_no_system_call) {
  if (getenv("LAMELLA_SANITIZER")) SKIP("a sanitizer makes system calls of its own");
  lam_schedule *s = parse("0F0 0F1 1F0 1F1 1B0 1B1 0B0 0B1");
  setup at = {.m = small_model(2, 2), .s = s};
  count_ranks();
  run_processes(1, step_alone, &at);
  lam_schedule_destroy(s);
}

/* Forward only: rank 0 has room for a whole step, and is done before rank 1 begins its own. */
static void step_with_ready_peers(int rank, int size, void *arg) {
  worker k;
  REQUIRE_OK(worker_open(&k, arg, rank, size));
  for (int step = 0; step < 3; step++) CHECK_OK(lam_pipeline_run(k.pipeline, step, NULL));
  ++*n_ready;
  await_count(n_ready, size);
  if (rank == 1) await_count(n_quiet, 1);
  run_without_system_calls(&k, 3);
}

TEST(pipeline_report, a_step_with_ready_peers_allocates_nothing_and_makes_no_system_call) {
  if (getenv("LAMELLA_SANITIZER")) SKIP("a sanitizer makes system calls of its own");
  lam_schedule *s = build("gpipe", 2, 2);
  setup at = {.m = small_model(2, 2), .s = s, .flags = LAM_PIPELINE_FORWARD_ONLY};
  CHECK_OK(lam_group_id_create(&at.id));
  count_ranks();
  run_processes(2, step_with_ready_peers, &at);
  lam_schedule_destroy(s);
}
