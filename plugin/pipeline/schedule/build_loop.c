/* build_loop.c: schedules of v chunks per rank in a loop: stage c p + r is rank r's chunk c. A
 * micro-batch goes round the ranks v times, so a rank waits for one chunk, a v-th of its layers,
 * where it would wait for all of them.
 * Invariant and what it leaves: see build.h. */
#include "plugin/pipeline/schedule/build.h"

typedef struct turn {
  int chunk, micro;
} turn;

/* Micro-batches go in max(1, m / p) groups whose sizes differ by at most one, the larger first:
 * with groups of p and a short last one, or with the smaller first, some (p, v, m) deadlock. */
static int groups_of(const lam_list *l) { return l->m < l->p ? 1 : l->m / l->p; }
static int first_group(const lam_list *l) { return (l->m + groups_of(l) - 1) / groups_of(l); }

/* The k-th forward of a rank: a group goes through chunk 0, then chunk 1, ..., then comes the next
 * group. */
static turn forward_at(const lam_list *l, int k) {
  const int size = l->m / groups_of(l), larger = l->m % groups_of(l) * (size + 1) * l->v;
  const int start = k < larger ? 0 : larger, n = k < larger ? size + 1 : size;
  const int within = (k - start) % (n * l->v), group = (k - start) / (n * l->v);
  return (turn){within / n, start / l->v + group * n + within % n};
}

static void push_f(const lam_list *l, int k) {
  const turn t = forward_at(l, k);
  lam_list_push(l, LAM_KIND_F, t.chunk, t.micro);
}

/* The k-th backward, or half of one: the same way, from the last chunk to the first. */
static void push_back(const lam_list *l, int kind, int k) {
  const turn t = forward_at(l, k);
  lam_list_push(l, kind, l->v - 1 - t.chunk, t.micro);
}

/* Interleaved 1F1B (Narayanan et al. 2021, arXiv 2104.04473), for any v and m: rank r runs
 * (v-1) G + 2(p-1-r) forwards of chunks (G: the first group's size), then one forward and one
 * backward in turn, then the backwards that are left. Bubble (p-1)(F + B)/v for m >= p; at most
 * (v-1) G + 2(p-1-r) + 1 chunks are in flight on rank r. */
void lam_build_interleaved(const lam_list *l) {
  const int n = l->m * l->v;
  const int warm = lam_least(n, (l->v - 1) * first_group(l) + 2 * (l->p - 1 - l->r));
  for (int k = 0; k < warm; k++) push_f(l, k);
  for (int k = warm; k < n; k++) push_f(l, k), push_back(l, LAM_KIND_B, k - warm);
  for (int k = n - warm; k < n; k++) push_back(l, LAM_KIND_B, k);
}

/* Interleaved 1F1B with split backward; of one chunk, ZB-H1 (Qi et al. 2023, arXiv 2401.10241).
 * Rank r runs (v-1) G + p-1-r forwards of chunks, then in turn F, I, and W once r more I are done
 * than W; then the W that are left. A gradient does not wait for W on its way back: bubble
 * (p-1) max(F, I, F+I-W)/v for m >= p. (v-1) G + p chunks are in flight on every rank: for v = 1
 * as many as on 1F1B's first. */
void lam_build_interleaved_zb(const lam_list *l) {
  const int n = l->m * l->v;
  const int warm = lam_least(n, (l->v - 1) * first_group(l) + l->p - 1 - l->r);
  int f = 0, w = 0;
  while (f < warm) push_f(l, f++);
  for (int i = 0; i < n; i++) {
    if (f < n) push_f(l, f++);
    push_back(l, LAM_KIND_I, i);
    if (i >= l->r) push_back(l, LAM_KIND_W, w++);
  }
  while (w < n) push_back(l, LAM_KIND_W, w++);
}
