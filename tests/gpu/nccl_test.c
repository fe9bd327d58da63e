/* nccl_test.c: groups on the real NCCL, ranks as processes: two of them on one card, each with an
 * NCCL_HOSTID of its own (right results and faults; its speed says nothing), and one on each of 2 to 8
 * cards where a machine has them.
 *
 * What this machine lacks is skipped with a line that says so. The parent never touches CUDA: children
 * are forked before.
 * Leaves the same on threads to the stand-in's tests (tests/distributed/nccl). */
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>

#include "kernels/nccl.h"
#include "plugin/comm/group.h"
#include "tests/distributed/await.h"
#include "tests/distributed/moves/losses.h"
#include "tests/distributed/moves/mixed.h"
#include "tests/place.h"

enum { CUDA = 2 /* kDLCUDA */, N = 5003, ROUNDS = 60, MOST_CARDS = 8 };
#define STREAM ((void *)(uintptr_t)2) /* cudaStreamPerThread */

typedef struct place {
  int cards; /* -1: no NCCL */
  char why[200];
} place;

static void look(place *p) {
  const lam_device *d = NULL;
  lam_link_place where;
  int32_t was;
  if (lam_device_open(CUDA, &d) == LAM_OK)
    while (p->cards < MOST_CARDS && lam_device_enter(d, p->cards, &was) == LAM_OK) p->cards++;
  if (p->cards > 0 && d->nccl->place(&where) != LAM_OK) p->cards = -1;
  snprintf(p->why, sizeof p->why, "not run: %.180s", lam_last_error());
}

static const place *here(void) {
  static place *p;
  if (p) return p;
  setenv("LAMELLA_TEST_DEVICE", "cuda", 1); /* for tests/place.h, which only children ask */
  p = shared_memory(sizeof *p);
  const pid_t child = fork();
  if (child == 0) {
    look(p);
    _exit(0);
  }
  (void)waitpid(child, NULL, 0);
  return p;
}

/* ---- A rank ------------------------------------------------------------------------------------ */

typedef struct plan {
  lam_group_id id;
  bool one_card;
  uint32_t deadline_ms;
} plan;

typedef struct rank {
  const lam_device *d;
  lam_group *g;
  float *x, *y; /* N on the card */
} rank;

static bool rank_open(rank *r, int number, int size, const plan *p) {
  char host[16];
  int32_t was;
  void *x = NULL, *y = NULL;
  lam_group_desc desc = LAM_GROUP_DESC_INIT;
  snprintf(host, sizeof host, "rank-%d", number);
  if (p->one_card) setenv("NCCL_HOSTID", host, 1);
  desc.rank = number;
  desc.size = size;
  desc.engine = "nccl";
  desc.deadline_ms = p->deadline_ms;
  desc.first_deadline_ms = 60000;
  desc.id = p->id;
  if (!CHECK_OK(lam_device_open(CUDA, &r->d))) return false;
  if (!CHECK_OK(lam_device_enter(r->d, p->one_card ? 0 : number, &was))) return false;
  if (!CHECK_OK(r->d->memory->alloc(NULL, N * 4, &x))) return false;
  if (!CHECK_OK(r->d->memory->alloc(NULL, N * 4, &y))) return false;
  r->x = x, r->y = y;
  return CHECK_OK(lam_group_create(NULL, &desc, &r->g));
}

static lam_status on_card(rank *r, lam_status (*f)(rank *r)) {
  r->g->device = r->d;
  r->g->stream = STREAM;
  const lam_status status = f(r);
  r->g->device = NULL;
  return status;
}

static lam_comm_op op_of(uint32_t op) {
  return (lam_comm_op){.op = op, .dtype = LAM_F32, .ndim = 1, .dims = {N}};
}

static lam_parts shares(const lam_group *g, int64_t *first) { /* uneven: the last has the rest */
  for (int r = 0; r <= g->size; r++) first[r] = r == g->size ? N : r * (N / g->size);
  return (lam_parts){.outer = 1, .inner = 1, .first = first, .dtype = LAM_F32};
}

static lam_status sum(rank *r) {
  const lam_comm_op op = op_of(LAM_OP_all_reduce);
  return lam_group_all_reduce(r->g, &op, r->x, r->y, N, LAM_F32);
}

/* The sum's shares, put together again, are the sum. */
static lam_status sum_by_shares(rank *r) {
  int64_t first[MOST_CARDS + 1];
  const lam_parts p = shares(r->g, first);
  const lam_comm_op scatter = op_of(LAM_OP_reduce_scatter), gather = op_of(LAM_OP_all_gather);
  float *mine = r->y + first[r->g->rank];
  LAM_TRY(lam_group_reduce_scatter(r->g, &scatter, &p, r->x, mine));
  return lam_group_all_gather(r->g, &gather, &p, mine, r->y);
}

static lam_status pass_around(rank *r) {
  lam_wire h = {.bytes = N * 4, .dtype = LAM_F32, .ndim = 1, .shape = {N}};
  const int size = r->g->size, me = r->g->rank;
  FOR_EACH(kind, 0, 1) LAM_TRY(lam_group_send(r->g, (me + 1) % size, kind, &h, r->x));
  FOR_EACH(kind, 1, 0)
  LAM_TRY(lam_group_recv(r->g, (me + size - 1) % size, kind, &h, r->y, N * 4));
  return LAM_OK;
}

/* Whole numbers, so that no order of a sum changes it: rank r's element i in round k is r + i + k. */
static void check(rank *r, int round, bool passed) {
  static float y[N];
  const int p = r->g->size, from = (r->g->rank + p - 1) % p;
  CHECK_OK(r->d->order->read(r->y, y, sizeof y, STREAM));
  CHECK_OK(r->d->order->finish(STREAM));
  for (int i = 0; i < N; i++) {
    const float want = (float)(passed ? from + i + round : p * (i + round) + p * (p - 1) / 2);
    if (y[i] != want && !CHECK_EQ(y[i], want)) return;
  }
}

static void fill(rank *r, int round) {
  static float x[N];
  for (int i = 0; i < N; i++) x[i] = (float)(r->g->rank + i + round);
  CHECK_OK(r->d->order->write(x, r->x, sizeof x, STREAM));
}

static void work(int number, int size, void *arg) {
  static lam_status (*const works[])(rank * r) = {sum, sum_by_shares, pass_around};
  rank r = {0};
  const plan *p = arg;
  lam_group *turned = NULL; /* the same ranks in the other order */
  rng chance = {seed()};    /* the same on all ranks: an order that is agreed */
  if (!p->one_card) place_take(number);
  if (!rank_open(&r, number, size, arg)) return;
  for (int round = 0; round < ROUNDS; round++) {
    const int which = (int)rng_int(&chance, 0, 2);
    NOTE("round %d", round);
    fill(&r, round);
    if (!CHECK_OK(on_card(&r, works[which]))) break;
    check(&r, round, which == 2);
  }
  CHECK_OK(lam_group_split(r.g, 0, -number, &turned));
  if (turned) mixed_run(r.g, turned, seed(), p->one_card ? 300 : 10000);
  lam_group_destroy(turned);
  lam_group_destroy(r.g);
}

/* ---- Ranks on cards ---------------------------------------------------------------------------- */

static bool is_here(int cards) { return here()->cards >= cards; }

TEST(nccl, two_processes_on_one_card_give_right_results) {
  plan p = {.one_card = true, .deadline_ms = 30000};
  if (!is_here(1)) SKIP(here()->why);
  REQUIRE_OK(lam_group_id_create(&p.id));
  run_processes(2, work, &p);
}

/* As it is where nobody says what NCCL is to take a card for. */
static void share_a_card(int number, int size, void *arg) {
  const plan *p = arg;
  const lam_device *d = NULL;
  int32_t was;
  lam_group *g = NULL;
  lam_group_desc desc = LAM_GROUP_DESC_INIT;
  unsetenv("NCCL_HOSTID");
  desc.rank = number, desc.size = size, desc.engine = "nccl", desc.id = p->id;
  if (!CHECK_OK(lam_device_open(CUDA, &d)) || !CHECK_OK(lam_device_enter(d, 0, &was))) return;
  CHECK_STATUS(lam_group_create(NULL, &desc, &g), LAM_FAILED_PRECONDITION);
  CHECK_CONTAINS(lam_last_error(), "ranks 0 and 1 are on one GPU");
  CHECK_CONTAINS(lam_last_error(), "set NCCL_HOSTID to another value in each");
}

TEST(nccl, two_processes_on_one_card_are_told_what_to_set) {
  plan p = {.one_card = true};
  if (!is_here(1)) SKIP(here()->why);
  REQUIRE_OK(lam_group_id_create(&p.id));
  run_processes(2, share_a_card, &p);
}

/* A quarter of all operations for each seed: to meet takes NCCL seconds. */
static void lose(int signal, lam_status expected) {
  const loss l = {.engine = "nccl", .signal = signal, .deadline_ms = 2000, .expected = expected};
  lose_in_moves(&l, 2, (int)(seed() % 4), 4);
}

TEST(nccl, a_killed_process_ends_every_operation) {
  if (!is_here(1)) SKIP(here()->why);
  lose(SIGKILL, LAM_PEER_DEAD);
}

TEST(nccl, a_stopped_process_ends_every_operation_at_the_deadline) {
  if (!is_here(1)) SKIP(here()->why);
  lose(SIGSTOP, LAM_PEER_STALLED);
}

static void run_on_cards(int n) {
  plan p = {.deadline_ms = 30000};
  REQUIRE_OK(lam_group_id_create(&p.id));
  run_processes(n, work, &p);
}

#define CARDS_TEST(n)                                                             \
  TEST(nccl, a_rank_on_each_of_##n##_cards) {                                     \
    if (!is_here(n)) SKIP("not run: this machine has not " #n " GPUs with NCCL"); \
    run_on_cards(n);                                                              \
  }
CARDS_TEST(2)
CARDS_TEST(3)
CARDS_TEST(4)
CARDS_TEST(5)
CARDS_TEST(6)
CARDS_TEST(7)
CARDS_TEST(8)
