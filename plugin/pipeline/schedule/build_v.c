/* build_v.c: schedules of two chunks per rank in a V: stage r is rank r's chunk 0, here a, on the
 * way down; stage 2p-1-r its chunk 1, b, on the way back. The last rank hands over from a to b
 * without a transfer, and backward starts where forward ended, on the same rank.
 * Invariant: of each kind and chunk the next action is the next micro-batch; what lies past the
 * last one is left out.
 * What it leaves: see build.h. */
#include "plugin/pipeline/schedule/build.h"

enum { A, B }; /* chunks */

typedef struct vee {
  const lam_list *l;
  int next[LAM_KIND_B + 1][2]; /* [kind][chunk]: its next micro-batch */
} vee;

static void add(vee *v, int kind, int chunk) {
  const int micro = v->next[kind][chunk]++;
  if (micro < v->l->m) lam_list_push(v->l, kind, chunk, micro);
}

static void f(vee *v, int chunk) { add(v, LAM_KIND_F, chunk); }
static void i(vee *v, int chunk) { add(v, LAM_KIND_I, chunk); }
static void w(vee *v, int chunk) { add(v, LAM_KIND_W, chunk); }
static void iw(vee *v, int chunk) { i(v, chunk), w(v, chunk); }

/* The steady turn of ZBV: a forward and a whole backward of each chunk, while any F is left of n
 * micro-batches. */
static void zbv_steady(vee *v, int n) {
  const int *fa = &v->next[LAM_KIND_F][A], *fb = &v->next[LAM_KIND_F][B];
  while (*fb < *fa || *fa < n) {
    if (*fa < n) f(v, A);
    iw(v, A);
    f(v, B), iw(v, B);
  }
}

/* ZBV (Qi et al. 2023, arXiv 2401.10241, section 6): warm up down the V and back, then a forward
 * and a backward of each chunk in turn, then the I that others wait for before the W that none
 * does. With costs all the same, no rank waits between its first and its last action and the
 * makespan's bubble is (p-1) F of a chunk for m >= 2p-1; 2p chunks are in flight on every rank for
 * m >= 2p. With m = p only, ranks wait 2(p-1) F of a chunk between their actions, by simulation. It
 * is written for at least 2p-1 micro-batches, those past the last left out. */
void lam_build_zbv(const lam_list *l) {
  const int p = l->p, r = l->r, n = l->m > 2 * p - 1 ? l->m : 2 * p - 1;
  vee v = {.l = l};
  for (int k = 0; k < 2 * (p - r) - 1; k++) f(&v, A);
  for (int k = 0; k < r; k++) f(&v, B), f(&v, A);
  for (int k = 0; k < p - r; k++) f(&v, B), iw(&v, B);
  zbv_steady(&v, n);
  for (int k = 0; k < r; k++) i(&v, A), i(&v, B);
  for (int k = 0; k < p - r; k++) iw(&v, A);
  while (v.next[LAM_KIND_W][B] < n) w(&v, B);
  while (v.next[LAM_KIND_W][A] < n) w(&v, A);
}

/* A whole backward is its I and its W. */
static void b(vee *v, int chunk) {
  v->next[LAM_KIND_W][chunk]++;
  lam_list_push(v->l, LAM_KIND_B, chunk, v->next[LAM_KIND_I][chunk]++);
}

/* One fused action: the forward of a chunk and the backward of the other. */
static void f_and_b(vee *v, int forward) {
  f(v, forward), b(v, !forward);
  lam_schedule_pair(v->l->s);
}

/* A forward of each chunk and a backward of the other, n times. As in the authors' own, the last
 * rank's first pair stands apart. */
static void dualpipev_steady(vee *v, int n) {
  for (int k = 0; k < n; k++) {
    if (k == 0 && v->l->r == v->l->p - 1)
      f(v, A), b(v, B);
    else
      f_and_b(v, A);
    f_and_b(v, B);
  }
}

/* What is left once the last F ran: r + 1 whole backwards and r + 1 I, chunks in turn; then I of a
 * and the W that are owed for these I, in their order: chunks in turn as well, and at last a. */
static void dualpipev_drain(vee *v, int p, int r) {
  for (int k = 0; k <= r; k++) b(v, (k + 1) % 2);
  for (int k = 0; k <= r; k++) i(v, (k + r) % 2);
  for (int k = 0; k < p; k++) {
    w(v, k <= r ? (k + r) % 2 : A);
    if (k < p - r - 1) i(v, A);
  }
}

/* DualPipeV (DeepSeek-AI and Sea AI Lab 2025: DualPipe, arXiv 2412.19437, cut in half), for
 * m >= 2p. [x&y] is one fused action of cost FB: a forward and the backward of the other chunk at
 * once. The last rank's bubble is (p-1)(FB + B - 3W) in chunk costs where F = I = W and
 * B <= FB <= F + B; 2p+1 chunks are in flight on every rank. */
void lam_build_dualpipev(const lam_list *l) {
  const int p = l->p, r = l->r;
  vee v = {.l = l};
  for (int k = 0; k < 2 * (p - r - 1); k++) f(&v, A);
  for (int k = 0; k <= r; k++) f(&v, A), f(&v, B);
  for (int k = 0; k < p - r - 1; k++) iw(&v, B), f(&v, B);
  dualpipev_steady(&v, l->m - 2 * p + r + 1);
  for (int k = 0; k < p - r - 1; k++) b(&v, B), f_and_b(&v, B);
  dualpipev_drain(&v, p, r);
}
