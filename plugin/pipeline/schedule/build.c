/* build.c: the schedules that are known by name, and what each is for.
 * A new schedule is one function (build.h says what it gets), one row in the table here, and its
 * goldens in tests/golden/schedules.
 * Invariant: a builder runs only for sizes that its row allows, with memory for the whole table.
 * Leaves orders to the builders, proof that a table runs to check.c. */
#include "plugin/pipeline/schedule/build.h"

#include <string.h>

#define MOST_PAIRS (1 << 26) /* (stage, micro-batch): 2.4 GB of actions */

typedef struct builder {
  const char *name;
  int min_v, max_v;     /* stages per rank */
  int least_m_per_rank; /* at least so many micro-batches for every rank; 0: any */
  lam_placement placement;
  void (*rank)(const lam_list *l);  /* one of the two: writes one rank's list, */
  lam_status (*table)(lam_list *l); /* or all lists */
  const char *about;
} builder;

#define ANY_V 1, LAM_SCHEDULE_MOST
static const builder builders[] = {
    {"layerwise", 1, 1, 0, LAM_PLACE_LOOP, lam_build_layerwise, NULL,
     "one micro-batch at a time through all stages: one worker busy at a time"},
    {"gpipe", 1, 1, 0, LAM_PLACE_LOOP, lam_build_gpipe, NULL,
     "all forwards, then all backwards: every micro-batch in flight"},
    {"1f1b", 1, 1, 0, LAM_PLACE_LOOP, lam_build_1f1b, NULL,
     "one forward, one backward in turn: at most p micro-batches in flight"},
    {"interleaved", ANY_V, 0, LAM_PLACE_LOOP, lam_build_interleaved, NULL,
     "1f1b of v stages per rank in a loop: a v-th of the bubble, more in flight"},
    {"zb-h1", 1, 1, 0, LAM_PLACE_LOOP, lam_build_interleaved_zb, NULL,
     "split backward: weight gradients fill the bubble, memory of 1f1b's first rank"},
    {"zb-h2", 1, 1, 0, LAM_PLACE_LOOP, lam_build_zb_h2, NULL,
     "split backward: next to no bubble, at most 2p-1 micro-batches in flight"},
    {"interleaved-zb", ANY_V, 0, LAM_PLACE_LOOP, lam_build_interleaved_zb, NULL,
     "zb-h1 of v stages per rank in a loop: a v-th of its bubble, v p stages in flight"},
    {"zbv", 2, 2, 0, LAM_PLACE_V, lam_build_zbv, NULL,
     "split backward, 2 stages per rank in a V: next to no bubble, memory of 1f1b's first rank"},
    {"v-half", 2, 2, 0, LAM_PLACE_V, NULL, lam_build_v_half,
     "split backward, 2 stages per rank in a V: half of 1f1b's memory, some bubble"},
    {"v-min", 2, 2, 0, LAM_PLACE_V, NULL, lam_build_v_min,
     "split backward, 2 stages per rank in a V: a third of 1f1b's memory, more bubble"},
    {"dualpipev", 2, 2, 2, LAM_PLACE_V, lam_build_dualpipev, NULL,
     "2 stages per rank in a V, a forward and a backward fused into one action; m >= 2p"},
};
enum { n_builders = sizeof builders / sizeof builders[0] };

const char *lam_schedule_name(int i) { return i >= 0 && i < n_builders ? builders[i].name : NULL; }
const char *lam_schedule_about(int i) {
  return i >= 0 && i < n_builders ? builders[i].about : NULL;
}

/* Writes "layerwise, gpipe, ..., auto". */
static const char *known_names(char *buf, size_t room) {
  buf[0] = 0;
  for (int i = 0; i < n_builders; i++) {
    strncat(buf, builders[i].name, room - strlen(buf) - 1);
    strncat(buf, ", ", room - strlen(buf) - 1);
  }
  return strncat(buf, "auto", room - strlen(buf) - 1);
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
  if (m < (int64_t)b->least_m_per_rank * p)
    return lam_fail(LAM_INVALID_ARGUMENT,
                    "lam_schedule_build: %s of p %d, m %d: m must be at least %d p, so %lld",
                    b->name, p, m, b->least_m_per_rank, (long long)b->least_m_per_rank * p);
  if ((int64_t)p * v > LAM_SCHEDULE_MOST || m > LAM_SCHEDULE_MOST ||
      (int64_t)p * v * m > MOST_PAIRS)
    return lam_fail(LAM_INVALID_ARGUMENT,
                    "lam_schedule_build: %s of p %d, v %d, m %d: at most %d stages, %d stages x m",
                    b->name, p, v, m, LAM_SCHEDULE_MOST, MOST_PAIRS);
  return LAM_OK;
}

static int stage_of(const lam_list *l, int chunk) {
  if (l->placement == LAM_PLACE_V && chunk == 1) return 2 * l->p - 1 - l->r;
  return chunk * l->p + l->r;
}

void lam_list_push(const lam_list *l, int kind, int chunk, int micro) {
  lam_schedule_push(l->s, l->r, kind, stage_of(l, chunk), micro);
}

static lam_status write_lists(const builder *b, int v, lam_schedule *s) {
  lam_list l = {.s = s, .placement = b->placement, .p = s->n_ranks, .v = v, .m = s->n_micro};
  LAM_TRY(lam_schedule_reserve(s, 3 * (int64_t)l.p * v * l.m)); /* F, I, W of each at most */
  if (b->table) return b->table(&l);
  for (; l.r < l.p; l.r++) b->rank(&l);
  return LAM_OK;
}

lam_status lam_schedule_build(const char *name, int32_t p, int32_t v, int32_t m,
                              lam_schedule **out_schedule) {
  if (!out_schedule)
    return lam_fail(LAM_INVALID_ARGUMENT, "lam_schedule_build: out_schedule is NULL");
  *out_schedule = NULL;
  if (!name) return lam_fail(LAM_INVALID_ARGUMENT, "lam_schedule_build: name is NULL");
  if (!strcmp(name, "auto")) return lam_build_auto(p, v, m, out_schedule);
  const builder *b = NULL;
  lam_schedule *s;
  LAM_TRY(find_builder(name, &b));
  LAM_TRY(check_shape(b, p, v, m));
  LAM_TRY(lam_schedule_alloc(p, p * v, m, &s));
  lam_status status = write_lists(b, v, s);
  if (status == LAM_OK) status = lam_schedule_seal(s);
  if (status == LAM_OK)
    *out_schedule = s;
  else
    lam_schedule_destroy(s);
  return status;
}
