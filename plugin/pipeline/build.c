/* build.c: the schedules that are known by name. A builder writes one rank's list, as a pure
 * function of ranks, stages per rank, micro-batches and the rank; its comment is its rule, its
 * golden (tests/golden/schedules) its picture.
 * Invariant: memory for the whole table is there before a builder runs, so a push cannot fail. A
 * new schedule is one function here, one row in the table at the end, and one golden; leaves
 * proof that it runs to check.c. */
#include <string.h>

#include "plugin/pipeline/schedule.h"

#define MOST_PAIRS (1 << 26) /* (stage, micro-batch): 2.4 GB of actions */

typedef struct builder {
  const char *name;
  int min_v, max_v; /* stages per rank */
  void (*rank)(lam_schedule *s, int r);
  const char *about;
} builder;

/* Linear placement, one stage per rank: stage r is rank r's. */
static void push(lam_schedule *s, int r, int kind, int micro) {
  lam_schedule_push(s, r, kind, r, micro);
}

/* Plain layer-wise order: a micro-batch goes forward through all stages and backward through all
 * stages before the next one starts, so one worker is busy at a time. Makespan m p (F + B). One
 * micro-batch is in flight. */
static void layerwise(lam_schedule *s, int r) {
  for (int i = 0; i < s->n_micro; i++) push(s, r, LAM_KIND_F, i), push(s, r, LAM_KIND_B, i);
}

/* GPipe (Huang et al. 2019): all forwards, then all backwards. Bubble (p-1)(F + B); all m
 * micro-batches are in flight. */
static void gpipe(lam_schedule *s, int r) {
  for (int i = 0; i < s->n_micro; i++) push(s, r, LAM_KIND_F, i);
  for (int i = 0; i < s->n_micro; i++) push(s, r, LAM_KIND_B, i);
}

/* One-forward-one-backward (PipeDream-Flush, Narayanan et al. 2021): rank r runs min(m, p-1-r)
 * forwards, then one forward and one backward in turn, then the backwards that are left. At most
 * min(m, p-r) micro-batches are in flight on rank r. */
static void one_f_one_b(lam_schedule *s, int r) {
  const int p = s->n_ranks, m = s->n_micro, warm = m < p - 1 - r ? m : p - 1 - r;
  for (int i = 0; i < warm; i++) push(s, r, LAM_KIND_F, i);
  for (int i = warm; i < m; i++) push(s, r, LAM_KIND_F, i), push(s, r, LAM_KIND_B, i - warm);
  for (int i = m - warm; i < m; i++) push(s, r, LAM_KIND_B, i);
}

static const builder builders[] = {
    {"layerwise", 1, 1, layerwise,
     "one micro-batch at a time through all stages: one worker busy at a time"},
    {"gpipe", 1, 1, gpipe, "all forwards, then all backwards: every micro-batch in flight"},
    {"1f1b", 1, 1, one_f_one_b,
     "one forward, one backward in turn: at most p micro-batches in flight"},
};
enum { n_builders = sizeof builders / sizeof builders[0] };

const char *lam_schedule_name(int i) { return i >= 0 && i < n_builders ? builders[i].name : NULL; }
const char *lam_schedule_about(int i) {
  return i >= 0 && i < n_builders ? builders[i].about : NULL;
}

/* Writes "layerwise, gpipe, 1f1b". */
static const char *known_names(char *buf, size_t room) {
  buf[0] = 0;
  for (int i = 0; i < n_builders; i++) {
    if (i) strncat(buf, ", ", room - strlen(buf) - 1);
    strncat(buf, builders[i].name, room - strlen(buf) - 1);
  }
  return buf;
}

static lam_status find_builder(const char *name, const builder **out) {
  for (int i = 0; i < n_builders; i++)
    if (!strcmp(builders[i].name, name)) return *out = &builders[i], LAM_OK;
  char known[256];
  return lam_fail(LAM_NOT_FOUND, "lam_schedule_build: name is \"%.64s\", known are %s", name,
                  known_names(known, sizeof known));
}

static lam_status check_shape(const builder *b, int p, int v, int m) {
  if (p < 1 || v < 1 || m < 1)
    return lam_fail(LAM_INVALID_ARGUMENT,
                    "lam_schedule_build: %s of p %d, v %d, m %d: each must be at least 1", b->name,
                    p, v, m);
  if (v < b->min_v || v > b->max_v)
    return lam_fail(LAM_INVALID_ARGUMENT,
                    "lam_schedule_build: %s of v %d stages per rank: v must be %d%s", b->name, v,
                    v < b->min_v ? b->min_v : b->max_v,
                    b->min_v == b->max_v ? ""
                    : v < b->min_v       ? " or more"
                                         : " or less");
  if ((int64_t)p * v > LAM_SCHEDULE_MOST || m > LAM_SCHEDULE_MOST ||
      (int64_t)p * v * m > MOST_PAIRS)
    return lam_fail(LAM_INVALID_ARGUMENT,
                    "lam_schedule_build: %s of p %d, v %d, m %d: at most %d stages, %d stages x m",
                    b->name, p, v, m, LAM_SCHEDULE_MOST, MOST_PAIRS);
  return LAM_OK;
}

lam_status lam_schedule_build(const char *name, int32_t p, int32_t v, int32_t m,
                              lam_schedule **out_schedule) {
  if (!out_schedule)
    return lam_fail(LAM_INVALID_ARGUMENT, "lam_schedule_build: out_schedule is NULL");
  *out_schedule = NULL;
  if (!name) return lam_fail(LAM_INVALID_ARGUMENT, "lam_schedule_build: name is NULL");
  const builder *b = NULL;
  lam_schedule *s;
  LAM_TRY(find_builder(name, &b));
  LAM_TRY(check_shape(b, p, v, m));
  LAM_TRY(lam_schedule_alloc(p, p * v, m, &s));
  lam_status status = lam_schedule_reserve(s, 3 * (int64_t)p * v * m); /* F, I, W of each at most */
  for (int r = 0; r < p && status == LAM_OK; r++) b->rank(s, r);
  if (status == LAM_OK) status = lam_schedule_seal(s);
  if (status == LAM_OK)
    *out_schedule = s;
  else
    lam_schedule_destroy(s);
  return status;
}
