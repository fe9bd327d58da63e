/* nccl_run.c: NCCL's operations, as work on a stream.
 *
 * Invariant: an operation moves no byte before every rank that takes part has come to it on its device; a
 * sum is made once, in an order drawn by chance, so that all ranks hold the same bits, which are not those
 * of another library.
 * Leaves which calls are allowed to nccl.c. */
#include <stdlib.h>
#include <string.h>

#include "kernels/math.h"
#include "tests/standin/nccl.h"

int nc_bytes(ncclDataType_t t) {
  switch (t) {
    case ncclUint8:
      return 1;
    case ncclFloat16:
    case ncclBfloat16:
      return 2;
    case ncclInt32:
    case ncclFloat32:
      return 4;
    case ncclInt64:
    case ncclFloat64:
      return 8;
  }
  return 0;
}

/* ---- Arithmetic -------------------------------------------------------------------------------- */

static double load(ncclDataType_t t, const void *x, size_t i) {
  switch (t) {
    case ncclFloat32:
      return ((const float *)x)[i];
    case ncclFloat64:
      return ((const double *)x)[i];
    case ncclFloat16:
      return lam_f32_of_f16(((const uint16_t *)x)[i]);
    case ncclBfloat16:
      return lam_f32_of_bf16(((const uint16_t *)x)[i]);
    case ncclInt32:
      return ((const int32_t *)x)[i];
    case ncclInt64:
      return (double)((const int64_t *)x)[i];
    default:
      return ((const uint8_t *)x)[i];
  }
}

static void store(ncclDataType_t t, void *y, size_t i, double v) {
  switch (t) {
    case ncclFloat32:
      ((float *)y)[i] = (float)v;
      break;
    case ncclFloat64:
      ((double *)y)[i] = v;
      break;
    case ncclFloat16:
      ((uint16_t *)y)[i] = lam_f16_of_f32((float)v);
      break;
    case ncclBfloat16:
      ((uint16_t *)y)[i] = lam_bf16_of_f32((float)v);
      break;
    case ncclInt32:
      ((int32_t *)y)[i] = (int32_t)v;
      break;
    case ncclInt64:
      ((int64_t *)y)[i] = (int64_t)v;
      break;
    default:
      ((uint8_t *)y)[i] = (uint8_t)v;
  }
}

/* Elements first .. first + n - 1 of all ranks' x; f32 is rounded at each step, as it is on a card. */
static void *sum(const nc_round *r, int size, size_t first, size_t n, ncclDataType_t t) {
  char *out = si_new(n * (size_t)nc_bytes(t));
  const int from = (int)si_chance((uint64_t)size);
  for (size_t i = 0; i < n; i++) {
    double v = load(t, r->ops[from].x, first + i);
    for (int k = 1; k < size; k++) {
      v += load(t, r->ops[(from + k) % size].x, first + i);
      if (t == ncclFloat32 || t == ncclBfloat16 || t == ncclFloat16) v = (float)v;
    }
    store(t, out, i, v);
  }
  return out;
}

static void copy(void *y, const void *x, size_t bytes) {
  if (y != x) si_counted.nccl_bytes += bytes;
  if (y != x && bytes) memmove(y, x, bytes);
}

static void run_sum(nc_round *r, int size) {
  const nc_op *op = &r->ops[0];
  const size_t bytes = op->n * (size_t)nc_bytes(op->type);
  void *y = sum(r, size, 0, op->n, op->type);
  for (int k = 0; k < size; k++)
    if (op->what == NC_ALL_REDUCE || k == op->peer) copy(r->ops[k].y, y, bytes);
  free(y);
}

static void run_reduce_scatter(nc_round *r, int size) {
  const nc_op *op = &r->ops[0];
  const size_t bytes = op->n * (size_t)nc_bytes(op->type);
  char *y = sum(r, size, 0, op->n * (size_t)size, op->type);
  for (int k = 0; k < size; k++) copy(r->ops[k].y, y + bytes * (size_t)k, bytes);
  free(y);
}

static void run_all_gather(nc_round *r, int size) {
  const size_t bytes = r->ops[0].n * (size_t)nc_bytes(r->ops[0].type);
  for (int from = 0; from < size; from++)
    for (int to = 0; to < size; to++)
      copy((char *)r->ops[to].y + bytes * (size_t)from, r->ops[from].x, bytes);
}

static void run_broadcast(nc_round *r, int size) {
  const nc_op *op = &r->ops[r->ops[0].peer];
  for (int k = 0; k < size; k++) copy(r->ops[k].y, op->x, op->n * (size_t)nc_bytes(op->type));
}

static void (*const runs[])(nc_round *r, int size) = {
    [NC_ALL_REDUCE] = run_sum,
    [NC_REDUCE] = run_sum,
    [NC_REDUCE_SCATTER] = run_reduce_scatter,
    [NC_ALL_GATHER] = run_all_gather,
    [NC_BROADCAST] = run_broadcast,
};

/* ---- Rounds ------------------------------------------------------------------------------------ */

static nc_round *round_of(nc_clique *q, uint64_t number, int from, int to) {
  nc_round *r = q->rounds;
  while (r && (r->number != number || r->from != from || r->to != to)) r = r->next;
  if (r) return r;
  r = si_new(sizeof *r);
  r->number = number;
  r->from = from;
  r->to = to;
  r->next = q->rounds;
  return q->rounds = r;
}

/* The last rank to pass forgets it. */
static void pass(nc_clique *q, nc_round *r, int of) {
  if (++r->passed < of) return;
  for (nc_round **at = &q->rounds; *at; at = &(*at)->next)
    if (*at == r) {
      *at = r->next;
      break;
    }
  free(r);
}

static bool is_alike(const nc_round *r, int size) {
  const nc_op *a = &r->ops[0];
  for (int k = 1; k < size; k++) {
    const nc_op *b = &r->ops[k];
    if (a->what == b->what && a->n == b->n && a->type == b->type && a->peer == b->peer) continue;
    si_report("NCCL: ranks 0 and %d do not call the same operation: this hangs", k);
    return false;
  }
  return true;
}

static void arrive(nc_clique *q, nc_round *r, int rank, const nc_op *op, int of) {
  r->ops[rank] = *op;
  r->here[rank] = true;
  if (++r->arrived < of) return;
  si_memory_open_all();
  if (r->from < 0) {
    r->done = is_alike(r, q->size);
    if (r->done) runs[op->what](r, q->size);
    return;
  }
  const nc_op *s = &r->ops[r->from], *t = &r->ops[r->to];
  r->done = s->n == t->n && s->type == t->type;
  if (r->done)
    copy(t->y, s->x, s->n * (size_t)nc_bytes(s->type));
  else
    si_report("NCCL: rank %d sends %zu elements, rank %d receives %zu: this hangs", r->from, s->n,
              r->to, t->n);
}

/* ---- Work -------------------------------------------------------------------------------------- */

typedef struct nccl_work {
  si_work base;
  nc_comm *comm;
  nc_op ops[NC_OPS];
  int n;
} nccl_work;

typedef struct progress {   /* of one run */
  nc_round *rounds[NC_OPS]; /* NULL: it has passed */
  bool stalls, fails;
} progress;

static bool is_message(const nc_op *op) { return op->what == NC_SEND || op->what == NC_RECV; }

static nc_round *begin_op(nc_comm *c, const nc_op *op) {
  if (op->what == NC_SEND) return round_of(c->clique, c->sent[op->peer]++, c->rank, op->peer);
  if (op->what == NC_RECV) return round_of(c->clique, c->received[op->peer]++, op->peer, c->rank);
  return round_of(c->clique, c->collectives++, -1, -1);
}

static progress *begin(nccl_work *w) {
  progress *p = si_new(sizeof *p);
  if (w->comm->n_running++ > 0)
    si_report("NCCL: a communicator used from two streams: two of its operations run at once");
  p->stalls = si_fails_now(STANDIN_NCCL_STALL);
  p->fails = si_fails_now(STANDIN_NCCL_REMOTE);
  for (int i = 0; i < w->n && !p->stalls && !p->fails; i++) {
    const nc_op *op = &w->ops[i];
    p->rounds[i] = begin_op(w->comm, op);
    arrive(w->comm->clique, p->rounds[i], w->comm->rank, op,
           is_message(op) ? 2 : w->comm->clique->size);
  }
  return p;
}

static void abandon(si_work *work, void *state) {
  ((nccl_work *)work)->comm->n_running--;
  free(state);
}

static void fail_all(nc_clique *q) {
  for (int r = 0; r < q->size; r++)
    if (q->ranks[r]) nc_fail(q->ranks[r], ncclRemoteError, "a peer went away");
}

static si_went run_ops(si_work *work, void **state) {
  nccl_work *w = (nccl_work *)work;
  bool moved = *state == NULL, waits = false;
  if (!*state && w->comm->aborted) return SI_ENDED;
  if (!*state) *state = begin(w);
  progress *p = *state;
  if (p->fails) fail_all(w->comm->clique);
  for (int i = 0; i < w->n; i++) {
    if (p->rounds[i] && p->rounds[i]->done) {
      pass(w->comm->clique, p->rounds[i], is_message(&w->ops[i]) ? 2 : w->comm->clique->size);
      p->rounds[i] = NULL;
      moved = true;
    }
    waits |= p->rounds[i] != NULL;
  }
  if ((waits || p->stalls || p->fails) && !w->comm->aborted) return moved ? SI_MOVED : SI_WAITS;
  abandon(work, p);
  *state = NULL;
  return SI_ENDED;
}

static void release(si_work *work) { nc_unref(((nccl_work *)work)->comm); }

static cudaError_t check_op(const nc_comm *c, const nc_op *op) {
  const size_t bytes = op->n * (size_t)nc_bytes(op->type), all = bytes * (size_t)c->clique->size;
  const bool reads = op->what != NC_RECV && (op->what != NC_BROADCAST || op->peer == c->rank);
  const bool writes = op->what != NC_SEND && (op->what != NC_REDUCE || op->peer == c->rank);
  cudaError_t e = cudaSuccess;
  if (reads)
    e = si_memory_check(op->x, op->what == NC_REDUCE_SCATTER ? all : bytes, c->device, "NCCL",
                        "what it reads");
  if (writes && e == cudaSuccess)
    e = si_memory_check(op->y, op->what == NC_ALL_GATHER ? all : bytes, c->device, "NCCL",
                        "what it writes");
  return e;
}

ncclResult_t nc_queue(nc_comm *c) {
  si_stream *s = si_stream_find(c->stream, "NCCL");
  if (!s) return ncclInvalidArgument;
  if (s->device != c->device) {
    si_report("NCCL: the stream is of device %d, the communicator of device %d", s->device,
              c->device);
    return ncclInvalidArgument;
  }
  for (int i = 0; i < c->n_ops; i++)
    if (check_op(c, &c->ops[i]) != cudaSuccess) return ncclInvalidArgument;
  nccl_work *w = (nccl_work *)si_work_new(sizeof *w, c->device, "an operation of NCCL's", run_ops);
  w->base.abandon = abandon;
  w->base.free = release;
  w->comm = c;
  c->refs++;
  w->n = c->n_ops;
  memcpy(w->ops, c->ops, sizeof w->ops);
  return si_stream_add(s, &w->base, "NCCL") == cudaSuccess ? ncclSuccess : ncclUnhandledCudaError;
}

/* ---- Calls ------------------------------------------------------------------------------------- */

ncclResult_t ncclAllReduce(const void *x, void *y, size_t n, ncclDataType_t t, ncclRedOp_t op,
                           ncclComm_t comm, cudaStream_t stream) {
  const nc_op o = {NC_ALL_REDUCE, x, y, n, t, 0};
  return op == ncclSum ? nc_call(comm, stream, &o, __func__) : ncclInvalidArgument;
}

ncclResult_t ncclReduce(const void *x, void *y, size_t n, ncclDataType_t t, ncclRedOp_t op,
                        int root, ncclComm_t comm, cudaStream_t stream) {
  const nc_op o = {NC_REDUCE, x, y, n, t, root};
  return op == ncclSum ? nc_call(comm, stream, &o, __func__) : ncclInvalidArgument;
}

ncclResult_t ncclReduceScatter(const void *x, void *y, size_t n_own, ncclDataType_t t,
                               ncclRedOp_t op, ncclComm_t comm, cudaStream_t stream) {
  const nc_op o = {NC_REDUCE_SCATTER, x, y, n_own, t, 0};
  return op == ncclSum ? nc_call(comm, stream, &o, __func__) : ncclInvalidArgument;
}

ncclResult_t ncclAllGather(const void *x, void *y, size_t n_own, ncclDataType_t t, ncclComm_t comm,
                           cudaStream_t stream) {
  const nc_op o = {NC_ALL_GATHER, x, y, n_own, t, 0};
  return nc_call(comm, stream, &o, __func__);
}

ncclResult_t ncclBroadcast(const void *x, void *y, size_t n, ncclDataType_t t, int root,
                           ncclComm_t comm, cudaStream_t stream) {
  const nc_op o = {NC_BROADCAST, x, y, n, t, root};
  return nc_call(comm, stream, &o, __func__);
}

ncclResult_t ncclSend(const void *x, size_t n, ncclDataType_t t, int peer, ncclComm_t comm,
                      cudaStream_t stream) {
  const nc_op o = {NC_SEND, x, NULL, n, t, peer};
  return nc_call(comm, stream, &o, __func__);
}

ncclResult_t ncclRecv(void *y, size_t n, ncclDataType_t t, int peer, ncclComm_t comm,
                      cudaStream_t stream) {
  const nc_op o = {NC_RECV, NULL, y, n, t, peer};
  return nc_call(comm, stream, &o, __func__);
}
