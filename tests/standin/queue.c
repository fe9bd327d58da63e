/* queue.c: work that waits for other work, and runs in any order that leaves.
 *
 * Invariant: a node runs once all those before it are done; among the nodes that may run, chance
 * picks.
 * Leaves who waits for whom to stream.c and graph.c; what work is to copy.c, kernel.c, lt_run.c. */
#include <stdlib.h>

#include "tests/standin/inside.h"

static si_node **ready;
static int n_ready, cap_ready;
static int n_left[SI_MAX_DEVICES]; /* nodes that are not done */
const char *const si_mark = "a mark";
static int n_waits;       /* steps since anything moved */
static uint64_t moved_ns; /* when it did */

/* -- work -- */

si_work *si_work_new(size_t bytes, int device, const char *name,
                     si_went (*run)(si_work *, void **)) {
  si_work *w = si_new(bytes);
  w->refs = 1;
  w->device = device;
  w->name = name;
  w->run = run;
  return w;
}

static si_went run_nothing(si_work *w, void **state) {
  (void)w, (void)state;
  return SI_ENDED;
}

si_work *si_work_nothing(int device) {
  return si_work_new(sizeof(si_work), device, si_mark, run_nothing);
}

void si_work_unref(si_work *w) {
  if (--w->refs) return;
  if (w->free) w->free(w);
  free(w);
}

/* -- nodes -- */

void si_node_unref(si_node *n) {
  if (!n || --n->refs) return;
  free(n->after);
  free(n);
}

static void make_ready(si_node *n) {
  if (n_ready == cap_ready)
    ready = si_grown(ready, (size_t)(cap_ready = 2 * cap_ready + 8) * sizeof(si_node *));
  ready[n_ready++] = n;
}

static void follow(si_node *n, si_node *before) {
  if (!before || before->done) return;
  if (before->n_after == before->cap_after)
    before->after = si_grown(
        before->after, (size_t)(before->cap_after = 2 * before->cap_after + 4) * sizeof(si_node *));
  before->after[before->n_after++] = n;
  n->refs++;
  n->n_before++;
}

si_node *si_queue_add(si_work *w, si_node *const *before, int n) {
  si_node *node = si_new(sizeof *node);
  node->refs = 2; /* the caller's, and the queue's until it is done */
  node->work = w;
  n_left[w->device]++;
  for (int i = 0; i < n; i++) follow(node, before[i]);
  if (node->n_before == 0) make_ready(node);
  moved_ns = si_now_ns();
  n_waits = 0;
  si_tell_others();
  return node;
}

static void end(si_node *n) {
  n->done = true;
  n->ended_ns = si_now_ns();
  si_trace(n);
  for (int i = 0; i < n->n_after; i++) {
    if (--n->after[i]->n_before == 0) make_ready(n->after[i]);
    si_node_unref(n->after[i]);
  }
  n->n_after = 0;
  n_left[n->work->device]--;
  si_work_unref(n->work);
  n->work = NULL;
  si_node_unref(n);
}

/* -- steps -- */

static void abandon(si_node *n) {
  if (n->state && n->work->abandon) n->work->abandon(n->work, n->state);
  n->state = NULL;
}

static si_went run(si_node *n) {
  si_work *w = n->work;
  if (!n->state && si_fails_now(STANDIN_DEVICE)) si_lose(w->device, cudaErrorDevicesUnavailable);
  if (si_lost(w->device) != cudaSuccess) {
    abandon(n);
    return SI_ENDED;
  }
  if (!n->began_ns) n->began_ns = si_now_ns();
  si_running = w->name;
  const si_went went = w->run(w, &n->state);
  si_running = NULL;
  return went;
}

static void step(void) {
  const int i = (int)si_chance((uint64_t)n_ready);
  si_node *n = ready[i];
  const si_went went = run(n);
  if (went == SI_WAITS) {
    n_waits++;
    return;
  }
  moved_ns = si_now_ns();
  n_waits = 0;
  if (went != SI_ENDED) return;
  ready[i] = ready[--n_ready];
  end(n);
}

/* All that is ready waits for something that is not here. */
static bool all_wait(void) { return n_waits > 4 * n_ready + 8; }

static bool out_of_patience(void) {
  return si_now_ns() - moved_ns > (uint64_t)si_machine_is.patience_ms * 1000000u;
}

static void give_up(void) {
  for (int i = 0; i < n_ready; i++) {
    si_report("%s: waits for something that does not come; nobody moved for %d ms",
              ready[i]->work->name, si_machine_is.patience_ms);
    si_lose(ready[i]->work->device, cudaErrorLaunchTimeout);
  }
  n_waits = 0;
}

static void step_or_wait(void) {
  if (!all_wait()) {
    step();
  } else if (out_of_patience()) {
    give_up();
  } else {
    n_waits -= n_ready; /* once more for each, then wait again */
    si_wait_for_others();
  }
}

void si_queue_some(void) {
  if (si_chance(4) != 0) return;
  for (uint64_t n = si_chance(12); n > 0 && n_ready > 0 && !all_wait(); n--) step();
}

void si_queue_poll(void) {
  if (all_wait() && out_of_patience()) give_up();
  if (all_wait()) n_waits -= n_ready;
  for (uint64_t n = 1 + si_chance(8); n > 0 && n_ready > 0; n--) step();
}

void si_queue_finish(si_node *until) {
  if (!until) return;
  until->refs++;
  while (!until->done) step_or_wait();
  si_node_unref(until);
}

static bool is_left(int device) {
  int n = device < 0 ? 0 : n_left[device];
  for (int d = 0; device < 0 && d < SI_MAX_DEVICES; d++) n += n_left[d];
  return n > 0;
}

void si_queue_drain(int device) {
  while (is_left(device)) step_or_wait();
}

void si_queue_go_on(void) {
  for (int i = 0; i < 32 && n_ready > 0 && !all_wait(); i++) step();
  if (n_ready == 0)
    si_wait_for_others();
  else if (all_wait())
    step_or_wait();
}

void si_queue_forget(void) {
  for (int d = 0; d < SI_MAX_DEVICES; d++) si_lose(d, cudaErrorContextIsDestroyed);
  while (n_ready > 0) step();
}
