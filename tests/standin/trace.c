/* trace.c: what ran on which stream, and from when to when.
 * Invariant: kept in the order in which work ends; a name lives as long as the program.
 * Leaves pictures to tests/gpu and bindings/cli/streams.py. */
#include "tests/standin/inside.h"

static standin_span *spans;
static int n_spans, room;

void standin_trace(standin_span *to, int n) {
  si_enter();
  spans = to;
  room = to ? n : 0;
  n_spans = 0;
  (void)si_leave_as_is(cudaSuccess);
}

int standin_traced(void) {
  si_enter();
  const int n = n_spans;
  (void)si_leave_as_is(cudaSuccess);
  return n;
}

void si_trace(const si_node *n) {
  if (!spans || n->work->name == si_mark) return;
  if (n_spans < room)
    spans[n_spans] = (standin_span){n->work->name, n->work->device, n->stream, (int64_t)n->began_ns,
                                    (int64_t)n->ended_ns};
  n_spans++;
}
