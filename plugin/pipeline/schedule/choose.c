/* choose.c: which schedule "auto" is: of a list of rules, the first that applies and whose schedule
 * fits in memory.
 *
 * Invariant: what a rank would hold is the built schedule's own peak, not a formula; a rule whose
 * schedule cannot be built for this p, v and m is passed over.
 * Leaves which of several is fastest for measured costs to who simulates them all. */
#include <stdio.h>
#include <string.h>

#include "plugin/core/struct.h"
#include "plugin/pipeline/schedule/build.h"

#define WHO "lam_schedule_choose: "

typedef struct rule {
  const char *name;
  int v; /* stages per rank; 0 = as many as there can be */
  bool (*applies)(const lam_choice_desc *d);
  const char *why;
} rule;

static bool splits(const lam_choice_desc *d) { return d->flags & LAM_CHOICE_SPLITS; }
static bool one_rank(const lam_choice_desc *d) { return d->p == 1; }
static bool overlaps(const lam_choice_desc *d) {
  return (d->flags & LAM_CHOICE_OVERLAPS) && d->v >= 2 && d->m >= 2 * (int64_t)d->p;
}
static bool many_micro(const lam_choice_desc *d) { return d->m >= 4 * (int64_t)d->p; }
static bool loose(const lam_choice_desc *d) { return d->flags & LAM_CHOICE_LOOSE; }
static bool splits_in_two(const lam_choice_desc *d) { return splits(d) && d->v >= 2; }
static bool whole_in_two(const lam_choice_desc *d) { return !splits(d) && d->v >= 2; }
static bool splits_linear(const lam_choice_desc *d) { return splits(d) && d->v == 1; }
static bool always(const lam_choice_desc *d) { return d != NULL; }

/* Where 1f1b's bubble is small, or can be made so, the plain schedule is taken, even though a
 * measured overlap would save more. */
static const rule rules[] = {
    {"1f1b", 1, one_rank, "one rank: there is no bubble to shrink"},
    {"1f1b", 1, many_micro, "with 4 p micro-batches or more its bubble is small"},
    {"1f1b", 1, loose, "memory is loose, so m can grow until its bubble is small"},
    {"dualpipev", 2, overlaps, "a forward and a backward together were measured to take less time"},
    {"zbv", 2, splits_in_two, "backward splits and a rank can have two stages: least bubble"},
    {"interleaved", 0, whole_in_two,
     "backward does not split: several stages per rank shrink the "
     "bubble"},
    {"zb-h1", 1, splits_linear, "backward splits, one stage per rank"},
    {"v-half", 2, splits_in_two, "about half of 1f1b's activations"},
    {"v-min", 2, splits_in_two, "about a third of 1f1b's activations"},
    {"1f1b", 1, always, "at most p micro-batches in flight"},
    {"layerwise", 1, always, "one micro-batch in flight: slow, but it fits"},
};
enum { n_rules = sizeof rules / sizeof *rules };

static lam_status check_desc(const lam_choice_desc *d) {
  const uint32_t known = LAM_CHOICE_SPLITS | LAM_CHOICE_OVERLAPS | LAM_CHOICE_LOOSE;
  if (d->p < 1 || d->v < 1 || d->m < 1)
    return lam_fail(LAM_INVALID_ARGUMENT, WHO "p %d, v %d, m %d: each must be at least 1", d->p,
                    d->v, d->m);
  if (d->flags & ~known)
    return lam_fail(LAM_INVALID_ARGUMENT, WHO "flags is %#x, known are %#x", d->flags, known);
  return LAM_OK;
}

static lam_status peak_of(const lam_schedule *s, int *out_peak) {
  lam_schedule_info info = LAM_SCHEDULE_INFO_INIT;
  LAM_TRY(lam_schedule_check(s, &info));
  *out_peak = info.peak_in_flight;
  return LAM_OK;
}

/* What the fullest rank holds; a stage's activations are a v-th of a rank's. */
static lam_status bytes_of(const lam_choice_desc *d, const char *name, int v, uint64_t *out_bytes) {
  lam_schedule *s;
  int peak = 0;
  LAM_TRY(lam_schedule_build(name, d->p, v, d->m, &s));
  const lam_status status = peak_of(s, &peak);
  lam_schedule_destroy(s);
  const double bytes = (double)d->static_bytes + (double)d->activation_bytes * peak / v;
  *out_bytes = bytes < 1.8e19 ? (uint64_t)(bytes + 0.5) : UINT64_MAX;
  return status;
}

static bool cannot_be_built(lam_status status) {
  return status == LAM_NOT_FOUND || status == LAM_INVALID_ARGUMENT;
}

/* "zbv does not fit, v-half does not fit: " before the reason of what does. */
static void pass_over(lam_choice *out, const char *name) {
  const size_t n = strlen(out->reason);
  snprintf(out->reason + n, sizeof out->reason - n, "%s%s", n ? ", " : "", name);
}

static void take(const lam_choice_desc *d, const rule *r, int v, uint64_t bytes, lam_choice *out) {
  const size_t n = strlen(out->reason);
  out->name = r->name, out->v = v, out->bytes = bytes;
  if (n)
    snprintf(out->reason + n, sizeof out->reason - n, " would not fit in %llu bytes; %s: %s",
             (unsigned long long)d->cap_bytes, r->name, r->why);
  else
    snprintf(out->reason, sizeof out->reason, "%s", r->why);
}

static lam_status fail_cap(const lam_choice_desc *d, const char *name, uint64_t least) {
  return lam_fail(LAM_RESOURCE_EXHAUSTED,
                  WHO
                  "cap_bytes is %llu: even %s, which holds least, takes %llu: %llu bytes are "
                  "missing",
                  (unsigned long long)d->cap_bytes, name, (unsigned long long)least,
                  (unsigned long long)(least - d->cap_bytes));
}

lam_status lam_schedule_choose(const lam_choice_desc *desc, lam_choice *out) {
  LAM_TRY(lam_struct_check("lam_schedule_choose", "desc", desc, sizeof *desc));
  LAM_TRY(lam_struct_check("lam_schedule_choose", "out", out, sizeof *out));
  *out = (lam_choice){.struct_size = out->struct_size};
  LAM_TRY(check_desc(desc));
  uint64_t least = UINT64_MAX;
  const char *leanest = NULL;
  lam_status status = LAM_OK;
  for (const rule *r = rules; r < rules + n_rules; r++) {
    uint64_t bytes = 0;
    const int v = r->v ? r->v : desc->v;
    if (!r->applies(desc)) continue;
    status = bytes_of(desc, r->name, v, &bytes);
    if (cannot_be_built(status)) continue;
    LAM_TRY(status);
    if (!desc->cap_bytes || bytes <= desc->cap_bytes) return take(desc, r, v, bytes, out), LAM_OK;
    if (!strstr(out->reason, r->name)) pass_over(out, r->name);
    if (bytes < least) least = bytes, leanest = r->name;
  }
  *out = (lam_choice){.struct_size = out->struct_size};
  return leanest ? fail_cap(desc, leanest, least)
                 : status; /* none can be built: the last says why */
}

lam_status lam_build_auto(int p, int v, int m, lam_schedule **out) {
  lam_choice_desc d = LAM_CHOICE_DESC_INIT;
  lam_choice choice = LAM_CHOICE_INIT;
  d.p = p, d.v = v, d.m = m;
  d.flags = LAM_CHOICE_SPLITS; /* a stage that cannot is run by what the runtime falls back to */
  LAM_TRY(lam_schedule_choose(&d, &choice));
  return lam_schedule_build(choice.name, p, choice.v, m, out);
}
