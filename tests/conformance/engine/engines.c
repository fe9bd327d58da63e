/* engines.c: the engines of the suite, how their ranks start and meet, and what each cannot do;
 * data for the tests. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "plugin/comm/shm/shm.h"
#include "tests/conformance/engine/callback_example.h"
#include "tests/conformance/engine/suite.h"

typedef struct meeting {
  suite_fn fn;
  const struct engine *engine;
  lam_group_id id;
  mailbox *box;
  post posts[MAX_RANKS];
} meeting;

typedef struct engine {
  const char *name;
  void (*start)(int size, check_rank_fn fn, void *arg);
  lam_status (*open)(meeting *m, int rank, int size, lam_group **out);
  struct {
    const char *claim, *why;
  } unsupported[8];
  bool on_cards; /* only where suite_only names it: it needs one for each rank */
} engine;

static lam_group_desc desc_for(int rank, int size) {
  lam_group_desc d = LAM_GROUP_DESC_INIT;
  d.rank = rank;
  d.size = size;
  d.deadline_ms = d.first_deadline_ms = 20000;
  return d;
}

static lam_status open_named(const char *name, const meeting *m, int rank, int size,
                             lam_group **out) {
  lam_group_desc d = desc_for(rank, size);
  d.engine = name;
  d.id = m->id;
  return lam_group_create(NULL, &d, out);
}

/* Ranks 1 and 3 copy as if they had found their peers far away, whatever is so here: fill.c. */
static lam_status open_shm(meeting *m, int rank, int size, lam_group **out) {
  LAM_TRY(open_named("shm", m, rank, size, out));
  if (rank % 2 == 1) shm_group_of(*out)->world->probe_at = INT64_MAX;
  return LAM_OK;
}

static lam_status open_nccl(meeting *m, int rank, int size, lam_group **out) {
  if (suite_take_card) suite_take_card(rank);
  return open_named("nccl", m, rank, size, out);
}

static lam_status open_callback(meeting *m, int rank, int size, lam_group **out) {
  const lam_group_desc d = desc_for(rank, size);
  m->posts[rank] = (post){m->box, rank, size};
  const lam_callbacks callbacks = post_callbacks(&m->posts[rank]);
  return lam_group_from_callbacks(NULL, &d, &callbacks, out);
}

/* send and recv alone: the engine makes the collectives of them. */
static lam_status open_callback_two(meeting *m, int rank, int size, lam_group **out) {
  const lam_group_desc d = desc_for(rank, size);
  m->posts[rank] = (post){m->box, rank, size};
  lam_callbacks callbacks = post_callbacks(&m->posts[rank]);
  callbacks.all_reduce = NULL;
  callbacks.all_gather = NULL;
  callbacks.reduce_scatter = NULL;
  return lam_group_from_callbacks(NULL, &d, &callbacks, out);
}

static const engine engines[] = {
    {"shm, threads", run_threads, open_shm, {{0}}, false},
    {"shm, processes", run_processes, open_shm, {{0}}, false},
    {"nccl, threads",
     run_threads,
     open_nccl,
     {{"sums_are_made_in_rank_order", "NCCL sums, in an order of its own"},
      {"the_first_poison_stays", "who ends a group takes along what a peer's card has not ended"}},
     true},
    {"callback",
     run_threads,
     open_callback,
     {{"channel_holds_its_sender_back", "the host buffers, and how much is its own to say"},
      {"poison_reaches_every_rank", "five functions cannot tell the others"},
      {"leaving_is_noticed", "a peer's end is the host's to notice"}},
     false},
    {"callback, send and recv",
     run_threads,
     open_callback_two,
     {{"channel_holds_its_sender_back", "the host buffers, and how much is its own to say"},
      {"poison_reaches_every_rank", "five functions cannot tell the others"},
      {"leaving_is_noticed", "a peer's end is the host's to notice"}},
     false},
};

static int supports(const engine *e, const char *claim) {
  for (int i = 0; i < 8 && e->unsupported[i].claim; i++)
    if (strcmp(e->unsupported[i].claim, claim) == 0) return 0;
  return 1;
}

static void run_rank(int rank, int size, void *arg) {
  meeting *m = arg;
  lam_group *g = NULL;
  NOTE("engine %s, %d ranks", m->engine->name, size);
  REQUIRE_OK(m->engine->open(m, rank, size, &g));
  m->fn(g);
  lam_group_destroy(g);
}

const char *suite_only;
int suite_most = 4;

/* Under a sanitizer, which takes five times as long, every other number of ranks will do. */
static void run_engine(const engine *e, int min_ranks, suite_fn fn) {
  const int step = getenv("LAMELLA_SANITIZER") ? 2 : 1;
  for (int p = min_ranks; p <= suite_most; p += step) {
    meeting m = {.fn = fn, .engine = e, .box = mailbox_create(p)};
    CHECK_OK(lam_group_id_create(&m.id));
    e->start(p, run_rank, &m);
    mailbox_destroy(m.box);
  }
}

void (*suite_take_card)(int rank);

static bool is_asked_for(const engine *e) {
  const char *sanitizer = getenv("LAMELLA_SANITIZER");
  const bool one_process = sanitizer && strcmp(sanitizer, "thread") == 0; /* is all that it sees */
  if (one_process && e->start == run_processes) return false;
  return suite_only ? strcmp(suite_only, e->name) == 0 : !e->on_cards;
}

void on_every_engine(const char *claim, int min_ranks, suite_fn fn) {
  for (size_t i = 0; i < sizeof engines / sizeof *engines; i++)
    if (is_asked_for(&engines[i]) && supports(&engines[i], claim))
      run_engine(&engines[i], min_ranks, fn);
}

/* ---- Data ------------------------------------------------------------------------------------ */

float value_of(uint64_t of, int rank, int64_t i) {
  rng r = {seed() + of * 1000003u + (uint64_t)rank * 7919u + (uint64_t)i * 104729u};
  return rng_float(&r);
}

static uint16_t to_bf16(float f) {
  uint32_t bits;
  memcpy(&bits, &f, sizeof bits);
  return (uint16_t)((bits + 0x7fff + (bits >> 16 & 1)) >> 16);
}

static void store(void *x, lam_dtype t, int64_t i, float v) {
  switch (t) {
    case LAM_F32:
      memcpy((char *)x + 4 * i, &v, 4);
      break;
    case LAM_BF16:
      memcpy((char *)x + 2 * i, &(uint16_t){to_bf16(v)}, 2);
      break;
    case LAM_F64:
      memcpy((char *)x + 8 * i, &(double){v}, 8);
      break;
    case LAM_I32:
      memcpy((char *)x + 4 * i, &(int32_t){(int32_t)(v * 1000)}, 4);
      break;
    default:
      memcpy((char *)x + 8 * i, &(int64_t){(int64_t)(v * 1000)}, 8);
      break;
  }
}

void fill(void *x, lam_dtype t, int64_t n, uint64_t of, int rank) {
  for (int64_t i = 0; i < n; i++) store(x, t, i, value_of(of, rank, i));
}

double stored(const void *x, lam_dtype t, int64_t i) {
  float f;
  double d;
  int32_t i32;
  int64_t i64;
  uint32_t bits = 0;
  switch (t) {
    case LAM_F32:
      return memcpy(&f, (const char *)x + 4 * i, 4), f;
    case LAM_BF16:
      memcpy((char *)&bits + 2, (const char *)x + 2 * i, 2);
      return memcpy(&f, &bits, 4), f;
    case LAM_F64:
      return memcpy(&d, (const char *)x + 8 * i, 8), d;
    case LAM_I32:
      return memcpy(&i32, (const char *)x + 4 * i, 4), i32;
    default:
      return memcpy(&i64, (const char *)x + 8 * i, 8), (double)i64;
  }
}

/* Element i of rank's operand, as its dtype holds it. */
double element_of(lam_dtype t, uint64_t of, int rank, int64_t i) {
  unsigned char e[8];
  store(e, t, 0, value_of(of, rank, i));
  return stored(e, t, 0);
}

void check_sums(const void *got, lam_dtype t, int64_t first, int64_t n, uint64_t of, int p) {
  const double unit = t == LAM_F32 ? 0x1p-24 : t == LAM_BF16 ? 0x1p-9 : t == LAM_F64 ? 0x1p-53 : 0;
  const int64_t stride =
      n > 20000 ? 7 : 1; /* a prime: any block of a long operand is looked into */
  for (int64_t i = 0; i < n; i += stride) {
    double want = 0;
    for (int r = 0; r < p; r++) want += element_of(t, of, r, first + i);
    const double off = stored(got, t, i) - want;
    if (off <= unit * p * 2 && off >= -unit * p * 2) continue;
    check_fail(CHECK_AT, "%s element %lld of %lld is %.9g, expected %.9g", lam_dtype_name(t),
               (long long)i, (long long)n, stored(got, t, i), want);
    return;
  }
}

lam_comm_op op_of(uint32_t op, lam_dtype t, int64_t n) {
  return (lam_comm_op){.op = op, .dtype = (uint16_t)t, .ndim = 1, .dims = {n}};
}

static uint64_t sum_of(const char *x, uint64_t bytes) {
  uint64_t sum = 14695981039346656037u;
  for (uint64_t i = 0; i < bytes; i += 8) {
    uint64_t eight = 0;
    memcpy(&eight, x + i, bytes - i < 8 ? bytes - i : 8);
    sum = (sum ^ eight) * 1099511628211u;
  }
  return sum;
}

void check_same_everywhere(lam_group *g, const void *x, uint64_t bytes) {
  uint64_t sum = sum_of(x, bytes), sums[MAX_RANKS];
  int64_t first[MAX_RANKS + 1];
  for (int r = 0; r <= g->size; r++) first[r] = r;
  const lam_comm_op op = op_of(LAM_OP_all_gather, LAM_I64, g->size);
  const lam_parts parts = {.outer = 1, .inner = 1, .first = first, .dtype = LAM_I64};
  REQUIRE_OK(lam_group_all_gather(g, &op, &parts, &sum, sums));
  for (int r = 0; r < g->size; r++) CHECK(sums[r] == sums[0]);
}
