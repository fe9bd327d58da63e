/* memory.c: every byte that the demo takes, its own and what Lamella asks for through the context,
 * is counted here; and the formula for how many that should be.
 *
 * Invariant: the formula knows the options only; it never looks at what was taken. Shared memory
 * of groups is not in here. */
#include <math.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>

#include "bindings/cli/demo/demo.h"

static _Atomic uint64_t held, peak;

void *memory_take(uint64_t bytes) {
  const uint64_t rounded = (bytes + 63) / 64 * 64;
  void *p = aligned_alloc(64, rounded ? rounded : 64);
  if (!p) return NULL;
  memset(p, 0, rounded);
  const uint64_t now = atomic_fetch_add(&held, bytes) + bytes;
  uint64_t most = atomic_load(&peak);
  while (now > most && !atomic_compare_exchange_weak(&peak, &most, now)) continue;
  return p;
}

void memory_give(void *p, uint64_t bytes) {
  if (!p) return;
  atomic_fetch_sub(&held, bytes);
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

/* One micro-batch at a time; all of them; or as many as there are stages from here on. */
int in_flight(const char *schedule, int stages, int micro_batches, int stage) {
  if (!strcmp(schedule, "layerwise")) return 1;
  if (!strcmp(schedule, "gpipe")) return micro_batches;
  return micro_batches < stages - stage ? micro_batches : stages - stage;
}

/* A weight that products read: itself, its f32 master where it is bf16, and in f32 its gradient and
 * two moments. */
static double weight_bytes(const options *o) { return (o->bits == 16 ? 2 + 4 : 4) + 4 + 8; }

/* Lamella's own: four chunks of partial sums under way, each of at most 256 rows in f32 and whole 64
 * KiB; above 2 MiB they lie in shared memory alone. */
static double partial_sums(double tokens, double hidden) {
  const double grain = 64 << 10, chunk = (tokens < 256 ? tokens : 256) * hidden * 4;
  const double bytes = ceil(chunk / grain) * grain;
  return bytes <= 2 << 20 ? 4 * bytes : 0;
}

uint64_t memory_predict(const options *o, int stage, int part) {
  lam_shard_info share = LAM_SHARD_INFO_INIT, ffn = LAM_SHARD_INFO_INIT;
  if (lam_shard(o->hidden, o->head_size, 0, part, o->tp, &share) ||
      lam_shard(o->ffn, 32, 0, part, o->tp, &ffn))
    return 0;
  const double t = (double)o->tokens, h = o->hidden, e = o->bits / 8,
               layers = o->first_layer[stage + 1] - o->first_layer[stage];
  const double a = (double)(share.pieces[0].end - share.pieces[0].begin),
               f = (double)(ffn.pieces[0].end - ffn.pieces[0].begin);
  const bool first = stage == 0, last = stage == o->pp - 1;

  const double products = layers * (4 * a * h + 3 * f * h) + (last ? VOCAB * h : 0);
  const double others = layers * 2 * h + (first ? (VOCAB + o->sequence) * h : 0) + (last ? h : 0);
  /* Per layer h1, mid, h2, y of H; q, k, v, o of A; gate, up of F; a number per token for each norm
   * and head. */
  const double kept = layers * t * (e * (4 * h + 4 * a + 2 * f) + 4 * (2 + a / o->head_size)) +
                      (first ? t * h * e : 0) + (last ? t * e * (h + VOCAB) : -t * h * e);
  /* On their way through one layer: its output and three gradients of H; gradients of o, q, k, v;
   * of gate, up and what they give. */
  const double passing = t * e * (4 * h + 4 * a + 3 * f);
  const double tiles =
      o->threads * (double)o->sequence * (10 * o->head_size + 64) * 4; /* attention */
  return (uint64_t)(products * weight_bytes(o) + others * 16 +
                    kept * in_flight(o->schedule, o->pp, o->micro_batches, stage) + passing +
                    tiles + (o->tp > 1 ? partial_sums(t, h) : 0));
}
