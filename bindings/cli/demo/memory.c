/* memory.c: every byte that the demo takes, its own and what Lamella asks for through the context,
 * is counted here; and the formula for how many that should be.
 *
 * Invariant: the formula knows the options only, and by them the schedule's own peaks; it never
 * looks at what was taken. Shared memory
 * of groups is not in here. */
#include <math.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>

#include "bindings/cli/demo/demo.h"

static _Atomic uint64_t held, peak;

void memory_count(int64_t bytes) {
  const uint64_t now = atomic_fetch_add(&held, (uint64_t)bytes) + (uint64_t)bytes;
  uint64_t most = atomic_load(&peak);
  while (bytes > 0 && now > most && !atomic_compare_exchange_weak(&peak, &most, now)) continue;
}

void *memory_take(uint64_t bytes) {
  const uint64_t rounded = (bytes + 63) / 64 * 64;
  void *p = aligned_alloc(64, rounded ? rounded : 64);
  if (!p) return NULL;
  memset(p, 0, rounded);
  memory_count((int64_t)bytes);
  return p;
}

void memory_give(void *p, uint64_t bytes) {
  if (!p) return;
  memory_count(-(int64_t)bytes);
  free(p);
}

uint64_t memory_peak(void) { return atomic_load(&peak); }

void *memory_hook_take(void *user, uint64_t bytes, uint64_t alignment) {
  (void)user;
  return alignment <= 64 ? memory_take(bytes) : NULL;
}

void memory_hook_give(void *user, void *p, uint64_t bytes) {
  (void)user;
  memory_give(p, bytes);
}

/* A weight that products read: itself, its f32 master where it is bf16, and in f32 its gradient and
 * two moments. */
static double weight_bytes(const options *o) { return (o->bits == 16 ? 2 + 4 : 4) + 4 + 8; }

/* Lamella's own: four chunks of partial sums under way, each of at most 256 rows in f32 and whole
 * 64 KiB; above 2 MiB they lie in shared memory alone. */
static double partial_sums(double tokens, double hidden) {
  const double grain = 64 << 10, chunk = (tokens < 256 ? tokens : 256) * hidden * 4;
  const double bytes = ceil(chunk / grain) * grain;
  return bytes <= 2 << 20 ? 4 * bytes : 0;
}

typedef struct shape {          /* of a stage's share on one worker */
  double t, h, a, f, e, layers; /* e: bytes of an element */
  bool first, last;
} shape;

static double weights_of(const options *o, shape s) {
  const double products = s.layers * (4 * s.a * s.h + 3 * s.f * s.h) + (s.last ? VOCAB * s.h : 0);
  const double others =
      s.layers * 2 * s.h + (s.first ? (VOCAB + o->sequence) * s.h : 0) + (s.last ? s.h : 0);
  return products * weight_bytes(o) + others * 16;
}

/* Of a micro-batch. Per layer h1, mid, h2, y of H; q, k, v, o of A; gate, up of F; a number per
 * token for each norm and head; for a split backward the gradients of gate and up, and of the last
 * y, which else lies in the pipeline's slot. */
static double kept_by(const options *o, shape s) {
  const double layer =
      s.e * (4 * s.h + 4 * s.a + (o->splits ? 4 : 2) * s.f) + 4 * (2 + s.a / o->head_size);
  const double end = s.last ? s.h + VOCAB : o->splits ? 0 : -s.h;
  return s.t * (s.layers * layer + s.e * ((s.first ? s.h : 0) + end));
}

uint64_t memory_predict(const options *o, int rank, int part) {
  lam_shard_info share = LAM_SHARD_INFO_INIT, ffn = LAM_SHARD_INFO_INIT;
  if (lam_shard(o->hidden, o->head_size, 0, part, o->tp, &share) ||
      lam_shard(o->ffn, 32, 0, part, o->tp, &ffn))
    return 0;
  shape s = {.t = (double)o->tokens,
             .h = o->hidden,
             .a = (double)(share.pieces[0].end - share.pieces[0].begin),
             .f = (double)(ffn.pieces[0].end - ffn.pieces[0].begin),
             .e = o->bits / 8};
  double weights = 0, block = 0; /* blocks are as large as the worker's largest stage needs */
  for (int i = 0; i < o->n_stages; i++) {
    if (o->rank_of_stage[i] != rank) continue;
    s.layers = o->first_layer[i + 1] - o->first_layer[i];
    s.first = i == 0, s.last = i == o->n_stages - 1;
    weights += weights_of(o, s);
    block = fmax(block, kept_by(o, s));
  }
  /* On their way through one layer: its output and three gradients of H; gradients of o, q, k, v;
   * of gate, up and what they give. */
  const double passing = s.t * s.e * (4 * s.h + 4 * s.a);
  const double own = weights + block * o->peaks[rank] + passing;
  if (o->on_gpu) return (uint64_t)own; /* there Lamella asks CUDA for what follows */
  const double between = s.t * s.e * (o->splits ? 1 : 3) * s.f;
  const double tiles =
      o->threads * (double)o->sequence * (10 * o->head_size + 64) * 4; /* attention */
  return (uint64_t)(own + between + s.t * s.e * s.h * o->slots[rank] + tiles +
                    (o->tp > 1 ? partial_sums(s.t, s.h) : 0));
}
