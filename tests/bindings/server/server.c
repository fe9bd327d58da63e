/* server.c: see server.h. */
#include "tests/bindings/server/server.h"

#include <dirent.h>
#include <math.h>
#include <stdlib.h>

/* -- pool -- */

/* Takes one piece of the first job and runs it; `lock` is held before and after. */
static void run_piece(pool *p, bool by_pool) {
  job *j = p->jobs;
  const int64_t i = j->next++;
  if (j->next == j->n) p->jobs = j->after;
  pthread_mutex_unlock(&p->lock);
  j->fn(j->arg, i);
  p->by_pool += by_pool;
  pthread_mutex_lock(&p->lock);
  if (--j->left == 0) pthread_cond_broadcast(&p->news);
}

static void *work(void *arg) {
  pool *p = arg;
  pthread_mutex_lock(&p->lock);
  while (!p->closing || p->jobs) {
    if (p->jobs)
      run_piece(p, true);
    else
      pthread_cond_wait(&p->news, &p->lock);
  }
  pthread_mutex_unlock(&p->lock);
  return NULL;
}

void pool_open(pool *p) {
  *p = (pool){.jobs = NULL};
  pthread_mutex_init(&p->lock, NULL);
  pthread_cond_init(&p->news, NULL);
  for (int i = 0; i < POOL_THREADS; i++) CHECK_EQ(pthread_create(&p->threads[i], NULL, work, p), 0);
}

void pool_close(pool *p) {
  pthread_mutex_lock(&p->lock);
  p->closing = true;
  pthread_cond_broadcast(&p->news);
  pthread_mutex_unlock(&p->lock);
  for (int i = 0; i < POOL_THREADS; i++) pthread_join(p->threads[i], NULL);
  pthread_cond_destroy(&p->news);
  pthread_mutex_destroy(&p->lock);
}

/* The caller helps: with anyone's pieces, so that nobody waits while there is work. */
void pool_run(pool *p, int64_t n, void (*fn)(void *arg, int64_t i), void *arg) {
  job mine = {fn, arg, n, 0, n, NULL};
  p->sections++;
  p->pieces += n;
  pthread_mutex_lock(&p->lock);
  mine.after = p->jobs;
  p->jobs = &mine;
  pthread_cond_broadcast(&p->news);
  while (mine.left > 0) {
    if (p->jobs)
      run_piece(p, false);
    else
      pthread_cond_wait(&p->news, &p->lock);
  }
  pthread_mutex_unlock(&p->lock);
}

/* -- a model's context -- */

static void *model_alloc(void *user, uint64_t bytes, uint64_t alignment) {
  model_host *h = user;
  const int64_t held = atomic_fetch_add(&h->bytes, (int64_t)bytes) + (int64_t)bytes;
  if (held > h->peak_bytes) h->peak_bytes = held;
  h->allocations++;
  return aligned_alloc(alignment, (bytes + alignment - 1) / alignment * alignment);
}

static void model_free(void *user, void *p, uint64_t bytes) {
  model_host *h = user;
  h->bytes -= (int64_t)bytes;
  free(p);
}

static void model_parallel(void *user, int64_t n, void (*fn)(void *arg, int64_t i), void *arg) {
  pool_run(((model_host *)user)->pool, n, fn, arg);
}

lam_context *model_context(model_host *h) {
  lam_context_desc desc = LAM_CONTEXT_DESC_INIT;
  lam_context *ctx = NULL;
  desc.threads = h->pool ? POOL_THREADS + 1 : 1;
  desc.user = h, desc.alloc = model_alloc, desc.free = model_free;
  if (h->pool) desc.parallel_for = model_parallel;
  CHECK_OK(lam_context_create(&desc, &ctx));
  return ctx;
}

/* -- requests -- */

weights *weights_make(uint64_t of) {
  rng r = {of};
  weights *w = malloc(sizeof *w);
  for (int i = 0; i < FFN * HIDDEN; i++) w->w1[i] = rng_float(&r) / 8, w->w2[i] = rng_float(&r) / 8;
  return w;
}

static double dot(const float *a, const float *b, int n) {
  double sum = 0;
  for (int i = 0; i < n; i++) sum += (double)a[i] * b[i];
  return sum;
}

/* One token's output, in double precision but for the rounding of what lies between. */
static void reference(const weights *w, const float *x, double *y) {
  float h[FFN];
  for (int f = 0; f < FFN; f++) h[f] = (float)fmax(0, dot(x, w->w1 + f * HIDDEN, HIDDEN));
  for (int k = 0; k < HIDDEN; k++) y[k] = dot(h, w->w2 + k * FFN, FFN);
}

void request_run(lam_context *ctx, const weights *w, rng *r, int64_t tokens) {
  float x[MOST_TOKENS * HIDDEN], y[MOST_TOKENS * HIDDEN];
  double want[HIDDEN];
  host_tensor hx, h1, h2, hy;
  for (int i = 0; i < tokens * HIDDEN; i++) x[i] = rng_float(r);
  HOST(&hx, x, F32, tokens, HIDDEN), HOST(&hy, y, F32, tokens, HIDDEN);
  HOST(&h1, (void *)(uintptr_t)w->w1, F32, FFN, HIDDEN);
  HOST(&h2, (void *)(uintptr_t)w->w2, F32, HIDDEN, FFN);
  const lam_attr attrs[] = {lam_attr_default(), lam_attr_s("relu")};
  lam_call call = LAM_CALL_INIT;
  call.op = LAM_OP_ffn;
  call.inputs = (const DLTensor *[]){&hx.t, &h1.t, NULL, &h2.t}, call.n_inputs = 4;
  call.outputs = (DLTensor *[]){&hy.t}, call.n_outputs = 1;
  call.attrs = attrs, call.n_attrs = 2;
  if (!CHECK_OK(lam_run(ctx, &call))) return;
  const int64_t row = rng_int(r, 0, tokens - 1); /* any; all of them would take longer than they */
  reference(w, x + row * HIDDEN, want);
  CHECK_CLOSE(y + row * HIDDEN, want, HIDDEN, 1e-4, 1e-4);
}

lam_status sum_ones(int64_t handle, float *sum) {
  float one = 1;
  host_tensor x, y;
  HOST(&x, &one, F32, 1), HOST(&y, sum, F32, 1);
  const lam_attr group = lam_attr_i(handle);
  lam_call call = LAM_CALL_INIT;
  call.op = LAM_OP_all_reduce;
  call.inputs = (const DLTensor *[]){&x.t}, call.n_inputs = 1;
  call.outputs = (DLTensor *[]){&y.t}, call.n_outputs = 1;
  call.attrs = &group, call.n_attrs = 1;
  return lam_run(NULL, &call);
}

int count_tasks(void) {
  int n = 0;
  DIR *d = opendir("/proc/self/task");
  for (const struct dirent *e; d && (e = readdir(d));) n += e->d_name[0] != '.';
  if (d) closedir(d);
  return n;
}
