/* cards.c: see cards.h. */
#include "tests/distributed/peers/cards.h"

#include <pthread.h>
#include <stdlib.h>
#include <string.h>

#include "tests/distributed/await.h"

#define CHECK_CUDA(expr) CHECK_EQ((expr), cudaSuccess)

typedef struct meeting {
  const world *world;
  void (*fn)(rank *r);
  const void *arg;
  lam_group_id id;
  pthread_barrier_t end;
  _Atomic int *ended; /* processes: seen by all */
} meeting;

static lam_status join(const meeting *m, rank *r) {
  lam_group_desc d = LAM_GROUP_DESC_INIT;
  d.rank = r->rank;
  d.size = r->size;
  d.deadline_ms = d.first_deadline_ms = m->world->deadline_ms ? m->world->deadline_ms : 20000;
  d.id = m->id;
  d.engine = m->world->engine;
  return lam_group_create(NULL, &d, &r->g);
}

/* What a rank has, peers may read until all are here. */
static void meet_at_the_end(meeting *m, int size) {
  if (!m->ended) {
    pthread_barrier_wait(&m->end);
    return;
  }
  (*m->ended)++;
  await_count(m->ended, size - __builtin_popcount(m->world->doomed));
}

static void run_rank(int number, int size, void *arg) {
  meeting *m = arg;
  rank r = {.rank = number, .size = size, .arg = m->arg};
  r.card = m->world->apart || m->world->each ? number : 0;
  NOTE("%d ranks, chance %llu", size, (unsigned long long)m->world->chance);
  CHECK_CUDA(cudaSetDevice(r.card));
  CHECK_CUDA(cudaStreamCreateWithFlags(&r.stream, cudaStreamNonBlocking));
  if (CHECK_OK(join(m, &r))) m->fn(&r);
  const cudaError_t ended = cudaStreamSynchronize(r.stream);
  if (!m->world->broken) CHECK_CUDA(ended);
  meet_at_the_end(m, size);
  lam_group_destroy(r.g);
  for (int i = 0; i < r.n_held; i++) (void)cudaFree(r.held[i]);
  (void)cudaStreamDestroy(r.stream);
}

static void begin(const world *w, uint64_t chance) {
  if (w->each) standin_devices(4);
  standin_reset();
  standin_seed(chance);
  standin_set_apart(w->apart);
  lam_device_forced = w->device ? w->device : &lam_device_cuda;
}

static void end(const world *w) {
  if (w->broken)
    standin_forget_reports();
  else
    CHECK_STR(standin_reports(), "");
}

void on_cards(const world *w, int size, void (*fn)(rank *r), const void *arg) {
  meeting m = {.world = w, .fn = fn, .arg = arg};
  begin(w, w->chance);
  CHECK_OK(lam_group_id_create(&m.id));
  pthread_barrier_init(&m.end, NULL, (unsigned)size);
  run_threads(size, run_rank, &m);
  pthread_barrier_destroy(&m.end);
  end(w);
}

static void run_process(int number, int size, void *arg) {
  const meeting *m = arg;
  begin(m->world, m->world->chance + (uint64_t)number);
  standin_set_patience(120000); /* another process may be late */
  run_rank(number, size, arg);
  end(m->world);
}

void in_processes(const world *w, int size, void (*fn)(rank *r), const void *arg) {
  meeting m = {.world = w, .fn = fn, .arg = arg, .ended = shared_memory(sizeof *m.ended)};
  CHECK_OK(lam_group_id_create(&m.id));
  run_processes_doomed(size, w->doomed, run_process, &m);
}

const char *way(const rank *r) {
  lam_group_info info = LAM_GROUP_INFO_INIT;
  CHECK_OK(lam_group_get_info(r->g, &info));
  return info.device_way ? info.device_way : "";
}

void *to_card(rank *r, const void *host, uint64_t bytes) {
  void *p = NULL;
  CHECK_CUDA(cudaMalloc(&p, bytes ? bytes : 1));
  if (r->n_held < 64) r->held[r->n_held++] = p;
  if (host) write_card(r, p, host, bytes);
  return p;
}

void write_card(rank *r, void *card, const void *host, uint64_t bytes) {
  if (bytes) CHECK_OK(lam_device_cuda.order->write(host, card, bytes, r->stream));
  CHECK_OK(lam_device_cuda.order->finish(r->stream)); /* host memory may change now */
}

void from_card(rank *r, void *host, const void *card, uint64_t bytes) {
  if (bytes) CHECK_OK(lam_device_cuda.order->read(card, host, bytes, r->stream));
  CHECK_OK(lam_device_cuda.order->finish(r->stream));
}

void use_card(rank *r) {
  r->g->device = &lam_device_cuda;
  r->g->stream = r->stream;
}

lam_status call(rank *r, uint32_t op, lam_dtype t, void *x, int64_t n, void *y, int64_t m) {
  static const DLDataType types[] = {
      [LAM_F32] = {kDLFloat, 32, 1}, [LAM_BF16] = {kDLBfloat, 16, 1}, [LAM_F16] = {kDLFloat, 16, 1}};
  int64_t one = 1;
  DLTensor in = {x, {2 /* kDLCUDA */, r->card}, 1, types[t], &n, &one, 0};
  DLTensor out = {y, {2, r->card}, 1, types[t], &m, &one, 0};
  const DLTensor *ins[] = {&in};
  DLTensor *outs[] = {&out};
  const lam_attr attrs[] = {lam_attr_i(lam_group_handle(r->g))};
  lam_call c = LAM_CALL_INIT;
  c.op = op;
  c.inputs = ins, c.outputs = outs, c.attrs = attrs;
  c.n_inputs = c.n_outputs = c.n_attrs = 1;
  c.stream = r->stream;
  return lam_run(NULL, &c);
}
