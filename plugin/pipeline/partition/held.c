/* held.c: what the ranks of a schedule hold, whatever their stages weigh: of every moment
 * at which a rank gives an activation back, how many micro-batches of each of its stages it held,
 * but for moments at which another one held as much of every stage.
 * Invariant: what a rank holds at most, for any bytes by stage, it holds at one of these moments.
 * Leaves bytes to search.c. */
#include <stdlib.h>
#include <string.h>

#include "plugin/pipeline/partition/partition.h"
#include "plugin/pipeline/schedule/schedule.h"

static bool covers(const int32_t *a, const int32_t *b, int n) {
  for (int i = 0; i < n; i++)
    if (a[i] < b[i]) return false;
  return true;
}

/* Room for one moment more. */
static lam_status reserve(lam_held *h, int n) {
  if (n < h->room) return LAM_OK;
  const int room = 2 * n + 64;
  int32_t *grown = realloc(h->moments, (size_t)room * (size_t)h->most_chunks * sizeof *grown);
  if (!grown)
    return lam_fail(LAM_RESOURCE_EXHAUSTED, "lam_partition_solve: no memory for %d moments", room);
  h->moments = grown;
  h->room = room;
  return LAM_OK;
}

/* Keeps `now` among the rank's moments first .. *n - 1, in place of those it covers. */
static lam_status keep(lam_held *h, const int32_t *now, int first, int *n) {
  const size_t bytes = (size_t)h->most_chunks * sizeof *now;
  int kept = first;
  for (int k = first; k < *n; k++) {
    int32_t *const at = lam_held_moment(h, k);
    if (covers(at, now, h->most_chunks)) return LAM_OK;
  }
  for (int k = first; k < *n; k++)
    if (!covers(now, lam_held_moment(h, k), h->most_chunks))
      memmove(lam_held_moment(h, kept++), lam_held_moment(h, k), bytes);
  *n = kept;
  LAM_TRY(reserve(h, kept));
  memcpy(lam_held_moment(h, kept), now, bytes);
  *n = kept + 1;
  return LAM_OK;
}

/* now: scratch, [most_chunks]. */
static lam_status follow_rank(const lam_schedule *s, int r, int32_t *now, lam_held *h, int *n) {
  const int first = *n;
  bool grew = false; /* since the last moment kept */
  memset(now, 0, (size_t)h->most_chunks * sizeof *now);
  for (int64_t i = s->first[r]; i < s->first[r + 1]; i++) {
    const lam_action *a = &s->actions[i];
    if (a->kind == LAM_KIND_F) {
      now[h->chunk_of[a->stage]]++;
      grew = true;
    } else if (a->kind == LAM_KIND_B || a->kind == LAM_KIND_W) {
      if (grew) LAM_TRY(keep(h, now, first, n));
      now[h->chunk_of[a->stage]]--;
      grew = false;
    }
  }
  return LAM_OK;
}

/* Numbers each rank's stages. chunks: scratch, [n_ranks], all zero. */
static void number_chunks(const lam_schedule *s, int32_t *chunks, lam_held *h) {
  for (int i = 0; i < s->n_stages; i++) {
    h->chunk_of[i] = chunks[s->rank_of_stage[i]]++;
    if (h->chunk_of[i] >= h->most_chunks) h->most_chunks = h->chunk_of[i] + 1;
  }
}

static lam_status follow_all(const lam_schedule *s, int32_t *now, lam_held *h) {
  int n = 0;
  LAM_TRY(reserve(h, 0));
  for (int r = 0; r < s->n_ranks; r++) {
    LAM_TRY(follow_rank(s, r, now, h, &n));
    h->first[r + 1] = n;
  }
  return LAM_OK;
}

lam_status lam_held_find(const lam_schedule *s, lam_held *out) {
  *out = (lam_held){0};
  out->chunk_of = malloc((size_t)s->n_stages * sizeof *out->chunk_of);
  out->first = calloc((size_t)s->n_ranks + 1, sizeof *out->first);
  int32_t *scratch = calloc((size_t)s->n_ranks + (size_t)s->n_stages, sizeof *scratch);
  lam_status status = LAM_OK;
  if (!out->chunk_of || !out->first || !scratch)
    status = lam_fail(LAM_RESOURCE_EXHAUSTED, "lam_partition_solve: no memory for %d stages",
                      s->n_stages);
  if (status == LAM_OK) {
    number_chunks(s, scratch, out);
    status = follow_all(s, scratch + s->n_ranks, out);
  }
  free(scratch);
  if (status != LAM_OK) lam_held_finish(out);
  return status;
}

void lam_held_finish(lam_held *h) {
  free(h->chunk_of);
  free(h->first);
  free(h->moments);
}
