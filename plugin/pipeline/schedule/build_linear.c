/* build_linear.c: schedules of one chunk per rank: stage r is rank r's.
 * Invariant and what it leaves: see build.h. ZB-H1 is build_loop.c's, of one chunk. */
#include "plugin/pipeline/schedule/build.h"

static void push(const lam_list *l, int kind, int micro) { lam_list_push(l, kind, 0, micro); }

/* Plain layer-wise order: a micro-batch goes forward through all stages and backward through all
 * stages before the next one starts, so one worker is busy at a time. Makespan m p (F + B). One
 * micro-batch is in flight. */
void lam_build_layerwise(const lam_list *l) {
  for (int i = 0; i < l->m; i++) push(l, LAM_KIND_F, i), push(l, LAM_KIND_B, i);
}

/* GPipe (Huang et al. 2019): all forwards, then all backwards. Bubble (p-1)(F + B); all m
 * micro-batches are in flight. */
void lam_build_gpipe(const lam_list *l) {
  for (int i = 0; i < l->m; i++) push(l, LAM_KIND_F, i);
  for (int i = 0; i < l->m; i++) push(l, LAM_KIND_B, i);
}

/* One-forward-one-backward (PipeDream-Flush, Narayanan et al. 2021): rank r runs min(m, p-1-r)
 * forwards, then one forward and one backward in turn, then the backwards that are left. At most
 * min(m, p-r) micro-batches are in flight on rank r. */
void lam_build_1f1b(const lam_list *l) {
  const int m = l->m, warm = lam_least(m, l->p - 1 - l->r);
  for (int i = 0; i < warm; i++) push(l, LAM_KIND_F, i);
  for (int i = warm; i < m; i++) push(l, LAM_KIND_F, i), push(l, LAM_KIND_B, i - warm);
  for (int i = m - warm; i < m; i++) push(l, LAM_KIND_B, i);
}

/* ZB-H2 (Qi et al. 2023, arXiv 2401.10241): rank r runs min(m, 2(p-r)-1) forwards, then in turn I,
 * W once 2r more I are done than W, and F. The first ranks start on so many that none waits for
 * its first I: a rank's own bubble is (p-1) max(0, I-F, F+I-2W) for m >= 2p-1, none where all cost
 * the same, and min(m, 2p-1) micro-batches are in flight. */
void lam_build_zb_h2(const lam_list *l) {
  const int m = l->m, r = l->r;
  int f = 0, w = 0;
  while (f < lam_least(m, 2 * (l->p - r) - 1)) push(l, LAM_KIND_F, f++);
  for (int i = 0; i < m; i++) {
    push(l, LAM_KIND_I, i);
    if (i >= 2 * r) push(l, LAM_KIND_W, w++);
    if (f < m) push(l, LAM_KIND_F, f++);
  }
  while (w < m) push(l, LAM_KIND_W, w++);
}
