/* destroyed_test.c: a group is destroyed while another thread's call uses it: the call ends, with
 * an error where it waits for a rank, and what it uses stays until then.
 * Leaves what peers see of a rank that left between calls to the engines' conformance suite. */
#include <pthread.h>
#include <stdatomic.h>
#include <stdlib.h>

#include "abi/status.h"
#include "tests/distributed/await.h"
#include "tests/distributed/ops/member.h"

/* A rank whose context tells when a call of it waits for a peer, or asks for memory. */
typedef struct owner {
  member m;
  int64_t handle;
  lam_status (*call)(struct owner *o);
  lam_status status; /* of the call */
  char said[200];
  _Atomic int waits, allocates, calls, is_destroyed;
  atomic_bool holds_memory_back; /* until the group is destroyed */
  atomic_bool destroys_itself;   /* from within the wait */
} owner;

static int32_t on_wait(void *user) {
  owner *o = user;
  if (atomic_exchange(&o->destroys_itself, false)) lam_group_destroy(o->m.g);
  o->waits++;
  return 0;
}

static void *on_alloc(void *user, uint64_t bytes, uint64_t alignment) {
  owner *o = user;
  if (o->holds_memory_back) {
    o->allocates++;
    await_count(&o->is_destroyed, 1);
  }
  return aligned_alloc(alignment, (bytes + alignment - 1) / alignment * alignment);
}

static void on_free(void *user, void *p, uint64_t bytes) {
  (void)user, (void)bytes;
  free(p);
}

static void owner_join(owner *o, const lam_group_id *id, int rank, int size) {
  lam_context_desc context = LAM_CONTEXT_DESC_INIT;
  lam_group_desc desc = LAM_GROUP_DESC_INIT;
  o->m = (member){.rank = rank, .size = size};
  context.threads = 1;
  context.user = o;
  context.should_stop = on_wait, context.alloc = on_alloc, context.free = on_free;
  desc.rank = rank, desc.size = size, desc.id = *id;
  desc.deadline_ms = desc.first_deadline_ms = 120000; /* would outlast the test */
  REQUIRE_OK(lam_context_create(&context, &o->m.ctx));
  REQUIRE_OK(lam_group_create(o->m.ctx, &desc, &o->m.g));
  o->handle = lam_group_handle(o->m.g);
  o->waits = 0; /* those until all had come */
}

/* -- the calls -- */

static lam_status reduce(owner *o) {
  float from = 3, to = 0;
  tensor x, y;
  const lam_attr attrs[] = {lam_attr_i(o->handle)}; /* the group itself is another thread's */
  lam_call call = LAM_CALL_INIT;
  TENSOR(&x, &from, f32, 1);
  TENSOR(&y, &to, f32, 1);
  call.op = LAM_OP_all_reduce;
  call.inputs = (const DLTensor *const[]){&x.dl}, call.n_inputs = 1;
  call.outputs = (DLTensor *const[]){&y.dl}, call.n_outputs = 1;
  call.attrs = attrs, call.n_attrs = 1;
  LAM_TRY(lam_group_use(o->handle, o->m.rank));
  LAM_TRY(lam_run(NULL, &call));
  CHECK_EQ(to, 3 * o->m.size);
  return LAM_OK;
}

static lam_status multiply(owner *o) {
  float from[2] = {3, 4}, by[2] = {5, 6}, to = 0;
  tensor x, w, y;
  const lam_attr attrs[] = {lam_attr_i(o->handle)};
  lam_call call = LAM_CALL_INIT;
  TENSOR(&x, from, f32, 1, 2);
  TENSOR(&w, by, f32, 1, 2);
  TENSOR(&y, &to, f32, 1, 1);
  call.op = LAM_OP_linear_row;
  call.inputs = (const DLTensor *const[]){&x.dl, &w.dl}, call.n_inputs = 2;
  call.outputs = (DLTensor *const[]){&y.dl}, call.n_outputs = 1;
  call.attrs = attrs, call.n_attrs = 1;
  LAM_TRY(lam_run(NULL, &call));
  CHECK_EQ(to, 39);
  return LAM_OK;
}

static lam_status warm_up(owner *o) { return lam_group_warmup(o->m.g); }
static lam_status split(owner *o) {
  lam_group *sub;
  return lam_group_split(o->m.g, 0, 0, &sub);
}

static void *run_call(void *arg) {
  owner *o = arg;
  o->status = o->call(o);
  if (o->status) (void)snprintf(o->said, sizeof o->said, "%s", lam_last_error());
  return NULL;
}

static void run_until(owner *o, const _Atomic int *reached) {
  pthread_t thread;
  REQUIRE(pthread_create(&thread, NULL, run_call, o) == 0);
  await_count(reached, 1);
  lam_group_destroy(o->m.g);
  o->is_destroyed = 1;
  pthread_join(thread, NULL);
}

static void context_is_left_empty(const owner *o) {
  lam_context_stats stats = LAM_CONTEXT_STATS_INIT;
  CHECK_OK(lam_context_get_stats(o->m.ctx, &stats));
  CHECK_EQ(stats.arena_bytes, 0);
  lam_context_destroy(o->m.ctx);
}

/* -- two ranks, threads of this process: rank 1 does not come -- */

typedef struct two {
  lam_group_id id;
  owner ranks[2];
} two;

static void join(int rank, int size, void *arg) {
  two *t = arg;
  owner_join(&t->ranks[rank], &t->id, rank, size);
}

static void check_ended(const owner *o) {
  CHECK_STATUS(o->status, LAM_CANCELLED);
  CHECK_CONTAINS(o->said, "rank 0 of 2 destroyed its group while a call used it");
}

static void destroy_under(lam_status (*call)(owner *o), bool by_the_call) {
  two *t = calloc(1, sizeof *t);
  owner *mine = &t->ranks[0], *other = &t->ranks[1];
  REQUIRE_OK(lam_group_id_create(&t->id));
  run_threads(2, join, t);
  mine->call = call, other->call = reduce;
  mine->destroys_itself = by_the_call;
  if (by_the_call)
    (void)run_call(mine);
  else
    run_until(mine, &mine->waits);
  check_ended(mine);
  (void)run_call(other); /* which is told too */
  check_ended(other);
  CHECK_STATUS(reduce(mine), LAM_NOT_FOUND); /* a call that begins later */
  CHECK_CONTAINS(lam_last_error(), "rank 0 of group");
  lam_group_destroy(other->m.g);
  CHECK_STATUS(reduce(other), LAM_NOT_FOUND);
  CHECK_CONTAINS(lam_last_error(), "no open group");
  for (int r = 0; r < 2; r++) context_is_left_empty(&t->ranks[r]);
  CHECK_EQ(count_arenas(), 0);
  free(t);
}

enum { TIMES = 10 };

TEST(destroyed, a_call_that_waits_ends_and_the_other_rank_is_told) {
  for (int i = 0; i < TIMES; i++) destroy_under(reduce, false);
}
TEST(destroyed, a_warm_up_or_split_that_waits_ends_too) {
  destroy_under(warm_up, false);
  destroy_under(split, false);
}
TEST(destroyed, a_hook_of_the_call_may_be_who_does_it) { destroy_under(reduce, true); }

/* -- one rank -- */

static void join_alone(owner *o) {
  lam_group_id id;
  REQUIRE_OK(lam_group_id_create(&id));
  owner_join(o, &id, 0, 1);
}

TEST(destroyed, a_call_that_waits_for_nobody_comes_to_its_end) {
  for (int i = 0; i < TIMES; i++) {
    owner o = {.call = multiply};
    join_alone(&o);
    o.holds_memory_back = true; /* for the partial sum, which is the group's */
    run_until(&o, &o.allocates);
    CHECK_OK(o.status);
    CHECK_STATUS(multiply(&o), LAM_NOT_FOUND);
    context_is_left_empty(&o);
  }
}

static void *call_until_it_is_gone(void *arg) {
  owner *o = arg;
  while ((o->status = o->call(o)) == LAM_OK) o->calls++;
  return NULL;
}

/* A thread's last find is of a group that is gone, and whose place another may have. */
TEST(destroyed, a_call_finds_the_group_whole_or_not_at_all) {
  for (int i = 0; i < 200; i++) {
    pthread_t thread;
    owner o = {.call = reduce};
    join_alone(&o);
    REQUIRE(pthread_create(&thread, NULL, call_until_it_is_gone, &o) == 0);
    await_count(&o.calls, 1);
    lam_group_destroy(o.m.g);
    pthread_join(thread, NULL);
    CHECK_STATUS(o.status, LAM_NOT_FOUND);
    context_is_left_empty(&o);
  }
}
