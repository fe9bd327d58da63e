/* graph.c: streams that are captured, and graphs that are launched again and again.
 *
 * A capture's nodes know which earlier ones they follow; a captured stream has heads, which its
 * next node follows. A launch puts every node in line anew.
 * Invariant: what real capture forbids breaks the capture: its streams give errors until
 * cudaStreamEndCapture, which gives no graph.
 * Stricter than a real card: copies from and to pageable memory and stream-ordered allocation in a
 * capture are refused. Leaves the joining of streams by events to stream.c. */
#include <pthread.h>
#include <stdlib.h>
#include <string.h>

#include "tests/standin/inside.h"

typedef struct graph_node {
  si_work *work;
  int *before, n_before;
} graph_node;

typedef struct si_graph {
  graph_node *nodes;
  int n, device;
} si_graph;

typedef struct exec {
  si_graph *graph;
  si_node *last; /* where its previous launch ends: it runs once at a time */
} exec;

static si_capture **captures; /* that are under way */
static int n_captures;
static unsigned long long n_begun;
static _Thread_local enum cudaStreamCaptureMode threads_mode = cudaStreamCaptureModeGlobal;

static uint64_t this_thread(void) { return (uint64_t)pthread_self(); }

/* -- graphs -- */

static void graph_add(si_graph *g, si_work *w, const int *before, int n) {
  g->nodes = si_grown(g->nodes, ((size_t)g->n + 1) * sizeof *g->nodes);
  graph_node node = {w, si_new((size_t)n * sizeof(int)), n};
  if (n) memcpy(node.before, before, (size_t)n * sizeof(int));
  g->nodes[g->n++] = node;
}

static si_graph *graph_copy(const si_graph *g) {
  si_graph *copy = si_new(sizeof *copy);
  copy->device = g->device;
  for (int i = 0; i < g->n; i++) {
    g->nodes[i].work->refs++;
    graph_add(copy, g->nodes[i].work, g->nodes[i].before, g->nodes[i].n_before);
  }
  return copy;
}

static void graph_free(si_graph *g) {
  for (int i = 0; g && i < g->n; i++) {
    si_work_unref(g->nodes[i].work);
    free(g->nodes[i].before);
  }
  if (g) free(g->nodes);
  free(g);
}

/* -- what capture forbids -- */

void si_capture_unref(si_capture *c) {
  if (!c || --c->refs) return;
  graph_free(c->graph);
  free(c);
}

cudaError_t si_capture_break(si_capture *c, cudaError_t e, const char *who) {
  if (c->dead && !c->ended) return cudaErrorStreamCaptureInvalidated;
  if (!c->ended) c->dead = true;
  return si_misuse(e, "%s: a stream capture forbids this: %s", who, cudaGetErrorName(e));
}

cudaError_t si_capture_forbids(const char *who) {
  if (threads_mode == cudaStreamCaptureModeRelaxed) return cudaSuccess;
  for (int i = 0; i < n_captures; i++) {
    si_capture *c = captures[i];
    const bool mine = c->thread == this_thread() && c->mode != cudaStreamCaptureModeRelaxed;
    const bool all =
        c->mode == cudaStreamCaptureModeGlobal && threads_mode == cudaStreamCaptureModeGlobal;
    if (mine || all) return si_capture_break(c, cudaErrorStreamCaptureUnsupported, who);
  }
  return cudaSuccess;
}

cudaError_t CUDARTAPI cudaThreadExchangeStreamCaptureMode(enum cudaStreamCaptureMode *mode) {
  const enum cudaStreamCaptureMode was = threads_mode;
  if ((unsigned)*mode > cudaStreamCaptureModeRelaxed) return cudaErrorInvalidValue;
  threads_mode = *mode;
  *mode = was;
  return cudaSuccess;
}

typedef struct looked {
  int device; /* -1: any, whether it blocks or not */
  si_capture *found;
} looked;

static void look(si_stream *s, void *arg) {
  looked *l = arg;
  const bool here = s->device == l->device && !(s->flags & cudaStreamNonBlocking);
  if (s->capture && (l->device < 0 || here)) l->found = s->capture;
}

bool si_capture_of_blocking(int device, si_capture **out) {
  looked l = {device, NULL};
  if (n_captures > 0) si_each_stream(look, &l);
  *out = l.found;
  return l.found != NULL;
}

/* -- capture -- */

static void set_head(si_stream *s, int head) {
  s->heads = si_grown(s->heads, sizeof(int));
  s->heads[0] = head;
  s->n_heads = 1;
}

cudaError_t si_capture_add(si_stream *s, si_work *w) {
  if (s->capture->dead) {
    si_work_unref(w);
    return cudaErrorStreamCaptureInvalidated;
  }
  si_graph *g = s->capture->graph;
  graph_add(g, w, s->heads, s->n_heads);
  set_head(s, g->n - 1);
  return cudaSuccess;
}

static cudaError_t begin(cudaStream_t handle, enum cudaStreamCaptureMode mode, const char *who) {
  si_stream *s = si_stream_find(handle, who);
  if (!s) return cudaErrorInvalidResourceHandle;
  if ((unsigned)mode > cudaStreamCaptureModeRelaxed) return cudaErrorInvalidValue;
  if (s->legacy)
    return si_misuse(cudaErrorStreamCaptureUnsupported, "%s: the legacy stream is not captured",
                     who);
  if (s->capture)
    return si_misuse(cudaErrorIllegalState, "%s: the stream is captured already", who);
  si_capture *c = si_new(sizeof *c);
  *c = (si_capture){.refs = 2, .id = ++n_begun, .mode = mode, .thread = this_thread(), .origin = s};
  c->graph = si_new(sizeof *c->graph);
  c->graph->device = s->device;
  captures = si_grown(captures, ((size_t)n_captures + 1) * sizeof *captures);
  captures[n_captures++] = c;
  s->capture = c;
  s->n_heads = 0;
  return cudaSuccess;
}

cudaError_t CUDARTAPI cudaStreamBeginCapture(cudaStream_t stream, enum cudaStreamCaptureMode mode) {
  si_enter();
  return si_leave(begin(stream, mode, __func__));
}

/* Does the origin's line follow every node? */
static bool all_joined(const si_graph *g, const si_stream *origin) {
  bool *seen = si_new((size_t)g->n);
  bool all = true;
  for (int i = 0; i < origin->n_heads; i++) seen[origin->heads[i]] = true;
  for (int i = g->n - 1; i >= 0; i--) {
    if (!seen[i]) all = false;
    for (int j = 0; seen[i] && j < g->nodes[i].n_before; j++) seen[g->nodes[i].before[j]] = true;
  }
  free(seen);
  return all;
}

static void leave_capture(si_stream *s, void *arg) {
  if (s->capture != arg) return;
  si_capture_unref(s->capture);
  s->capture = NULL;
  s->n_heads = 0;
}

static void close_capture(si_capture *c) {
  c->ended = true;
  si_each_stream(leave_capture, c);
  for (int i = 0; i < n_captures; i++)
    if (captures[i] == c) captures[i--] = captures[--n_captures];
  si_capture_unref(c);
}

static cudaError_t end_capture(cudaStream_t handle, cudaGraph_t *out, const char *who) {
  *out = NULL;
  si_stream *s = si_stream_find(handle, who);
  if (!s) return cudaErrorInvalidResourceHandle;
  si_capture *c = s->capture;
  if (!c) return si_misuse(cudaErrorIllegalState, "%s: the stream is not captured", who);
  if (c->origin != s) return si_capture_break(c, cudaErrorStreamCaptureUnmatched, who);
  if (c->mode != cudaStreamCaptureModeRelaxed && c->thread != this_thread())
    return si_capture_break(c, cudaErrorStreamCaptureWrongThread, who);
  cudaError_t e = c->dead ? cudaErrorStreamCaptureInvalidated : cudaSuccess;
  if (!c->dead && !all_joined(c->graph, s))
    e = si_capture_break(c, cudaErrorStreamCaptureUnjoined, who);
  if (e == cudaSuccess) *out = si_handle_new(SI_GRAPH, graph_copy(c->graph));
  close_capture(c);
  return e;
}

cudaError_t CUDARTAPI cudaStreamEndCapture(cudaStream_t stream, cudaGraph_t *out) {
  si_enter();
  return si_leave(end_capture(stream, out, __func__));
}

static cudaError_t status_of(cudaStream_t handle, const char *who, si_stream **out_stream,
                             enum cudaStreamCaptureStatus *out) {
  si_capture *c;
  *out = cudaStreamCaptureStatusNone;
  *out_stream = si_stream_find(handle, who);
  if (!*out_stream) return cudaErrorInvalidResourceHandle;
  if ((*out_stream)->legacy && si_capture_of_blocking((*out_stream)->device, &c))
    return cudaErrorStreamCaptureImplicit; /* to ask is harmless: the capture goes on */
  c = (*out_stream)->capture;
  if (c) *out = c->dead ? cudaStreamCaptureStatusInvalidated : cudaStreamCaptureStatusActive;
  return cudaSuccess;
}

cudaError_t CUDARTAPI cudaStreamIsCapturing(cudaStream_t stream,
                                            enum cudaStreamCaptureStatus *out) {
  si_stream *s;
  si_enter();
  return si_leave(status_of(stream, __func__, &s, out));
}

cudaError_t CUDARTAPI cudaStreamGetCaptureInfo(cudaStream_t stream,
                                               enum cudaStreamCaptureStatus *out,
                                               unsigned long long *out_id, cudaGraph_t *graph,
                                               const cudaGraphNode_t **nodes,
                                               const cudaGraphEdgeData **edges, size_t *n) {
  si_stream *s;
  si_enter();
  if (graph || nodes || edges || n)
    return si_leave(si_misuse(cudaErrorNotSupported, "%s: only status and id are here", __func__));
  const cudaError_t e = status_of(stream, __func__, &s, out);
  if (out_id && e == cudaSuccess && s->capture) *out_id = s->capture->id;
  return si_leave(e);
}

/* -- launch -- */

cudaError_t CUDARTAPI cudaGraphInstantiate(cudaGraphExec_t *out, cudaGraph_t graph,
                                           unsigned long long flags) {
  si_enter();
  *out = NULL;
  if (flags != 0) return si_leave(cudaErrorInvalidValue);
  const si_graph *g = si_handle_find(SI_GRAPH, graph, __func__);
  if (!g) return si_leave(cudaErrorInvalidResourceHandle);
  exec *e = si_new(sizeof *e);
  e->graph = graph_copy(g);
  *out = si_handle_new(SI_EXEC, e);
  return si_leave(cudaSuccess);
}

cudaError_t CUDARTAPI cudaGraphDestroy(cudaGraph_t graph) {
  si_enter();
  si_graph *g = si_handle_find(SI_GRAPH, graph, __func__);
  if (!g) return si_leave(cudaErrorInvalidResourceHandle);
  si_handle_drop(SI_GRAPH, graph);
  graph_free(g);
  return si_leave_as_is(cudaSuccess);
}

static void exec_free(exec *e) {
  graph_free(e->graph);
  si_node_unref(e->last);
  free(e);
}

cudaError_t CUDARTAPI cudaGraphExecDestroy(cudaGraphExec_t handle) {
  si_enter();
  exec *e = si_handle_find(SI_EXEC, handle, __func__);
  if (!e) return si_leave(cudaErrorInvalidResourceHandle);
  si_handle_drop(SI_EXEC, handle);
  exec_free(e);
  return si_leave_as_is(cudaSuccess);
}

/* Into a graph that is being captured: its nodes become that graph's. */
static cudaError_t capture_launch(si_stream *s, const si_graph *g) {
  if (s->capture->dead) return cudaErrorStreamCaptureInvalidated;
  si_graph *to = s->capture->graph;
  const int base = to->n;
  for (int i = 0; i < g->n; i++) {
    const graph_node *n = &g->nodes[i];
    n->work->refs++;
    graph_add(to, n->work, n->n_before ? n->before : s->heads,
              n->n_before ? n->n_before : s->n_heads);
    for (int j = 0; n->n_before && j < n->n_before; j++) to->nodes[base + i].before[j] += base;
  }
  s->heads = si_grown(s->heads, ((size_t)g->n + 1) * sizeof(int));
  for (int i = 0; i < g->n; i++) s->heads[i] = base + i;
  if (g->n) s->n_heads = g->n;
  return cudaSuccess;
}

static void put_in_line(si_stream *s, exec *e) {
  static si_node *before[SI_MAX_BEFORE + 1];
  const si_graph *g = e->graph;
  int n = si_stream_before(s, before);
  before[n++] = e->last;
  si_node *first = si_queue_add(si_work_nothing(s->device), before, n);
  si_node **line = si_new(((size_t)g->n + 1) * sizeof *line);
  si_node **of_node = si_new(((size_t)g->n + 1) * sizeof *of_node);
  line[g->n] = first;
  for (int i = 0; i < g->n; i++) {
    for (int j = 0; j < g->nodes[i].n_before; j++) of_node[j] = line[g->nodes[i].before[j]];
    of_node[g->nodes[i].n_before] = first;
    g->nodes[i].work->refs++;
    line[i] = si_queue_add(g->nodes[i].work, of_node, g->nodes[i].n_before + 1);
  }
  si_node_unref(e->last);
  e->last = si_queue_add(si_work_nothing(s->device), line, g->n + 1);
  e->last->refs++;
  si_stream_set_last(s, e->last);
  for (int i = 0; i <= g->n; i++) si_node_unref(line[i]);
  free(line), free(of_node);
}

static cudaError_t launch(cudaGraphExec_t handle, cudaStream_t stream, const char *who) {
  exec *e = si_handle_find(SI_EXEC, handle, who);
  si_stream *s = e ? si_stream_find(stream, who) : NULL;
  si_capture *c;
  if (!s) return cudaErrorInvalidResourceHandle;
  if (s->capture) return capture_launch(s, e->graph);
  if (s->legacy && si_capture_of_blocking(s->device, &c))
    return si_capture_break(c, cudaErrorStreamCaptureImplicit, who);
  if (si_fails_now(STANDIN_LAUNCH)) return cudaErrorLaunchOutOfResources;
  si_counted.graph_launches++;
  put_in_line(s, e);
  si_queue_some();
  return cudaSuccess;
}

cudaError_t CUDARTAPI cudaGraphLaunch(cudaGraphExec_t exec, cudaStream_t stream) {
  si_enter();
  return si_leave(launch(exec, stream, __func__));
}

void si_captures_forget(void) {
  void *p;
  while (n_captures > 0) close_capture(captures[0]);
  for (int64_t i = 0; si_handle_at(SI_GRAPH, i, &p); i++) graph_free(p);
  for (int64_t i = 0; si_handle_at(SI_EXEC, i, &p); i++)
    if (p) exec_free(p);
  threads_mode = cudaStreamCaptureModeGlobal;
}
