/* scratch.c: memory for one call, or for one piece of a kernel's work, kept for the next.
 *
 * A context keeps idle blocks in slots. A thread starts looking at a slot of its own, takes what
 * lies there with one atomic exchange, makes it bigger if need be, and puts it back where it was.
 * Invariant: a block is either in one slot or in use by one call; so nothing is locked, and after
 * the first calls nothing is allocated. Leaves counting to context.c. */
#include "plugin/core/context_impl.h"

#define ALIGNMENT 64u

struct lam_block { /* the head of its memory, ALIGNMENT bytes */
  uint64_t bytes;  /* all of it, the head included */
  int slot;        /* where it goes back to */
};

static uint64_t round_up(uint64_t bytes) {
  return (bytes + ALIGNMENT - 1) & ~(uint64_t)(ALIGNMENT - 1);
}

/* Where a thread looks first: threads are numbered as they come, four slots each, one for a call
 * and the next for what it opens inside, so that each finds its own block again. */
#define SLOTS_A_THREAD 4
static _Thread_local unsigned n_open;

static int home_slot(void) {
  static _Atomic unsigned n_threads;
  static _Thread_local unsigned mine; /* from 1; 0 = not numbered yet */
  if (mine == 0) mine = atomic_fetch_add(&n_threads, 1) + 1;
  return (int)((mine * SLOTS_A_THREAD + n_open) % LAM_SCRATCH_SLOTS);
}

static lam_block *take_block(lam_context *ctx, int *slot) {
  const int home = home_slot();
  for (int i = 0; i < LAM_SCRATCH_SLOTS; i++) {
    *slot = (home + i) % LAM_SCRATCH_SLOTS;
    if (!atomic_load_explicit(&ctx->slots[*slot], memory_order_relaxed)) continue;
    lam_block *b = atomic_exchange(&ctx->slots[*slot], NULL);
    if (b) return b;
  }
  *slot = home;
  return NULL;
}

static void put_block(lam_context *ctx, lam_block *b) {
  for (int i = 0; i < LAM_SCRATCH_SLOTS; i++) {
    lam_block *none = NULL;
    if (atomic_compare_exchange_strong(&ctx->slots[(b->slot + i) % LAM_SCRATCH_SLOTS], &none, b))
      return;
  }
  lam_context_free(ctx, b, b->bytes);
}

static lam_block *grow_block(lam_context *ctx, lam_block *b, uint64_t bytes) {
  if (b && b->bytes >= bytes) return b;
  if (b) lam_context_free(ctx, b, b->bytes);
  lam_block *bigger = lam_context_alloc(ctx, bytes);
  if (bigger) bigger->bytes = bytes;
  return bigger;
}

void *lam_context_borrow(lam_context *ctx, uint64_t bytes) {
  int slot;
  if (bytes > UINT64_MAX - ALIGNMENT) return NULL;
  lam_block *b = grow_block(ctx, take_block(ctx, &slot), ALIGNMENT + bytes);
  if (!b) return NULL;
  b->slot = slot;
  n_open++;
  return (char *)b + ALIGNMENT;
}

void lam_context_give_back(lam_context *ctx, void *data) {
  n_open--;
  put_block(ctx, (lam_block *)((char *)data - ALIGNMENT));
}

/* The caller's own memory, at any alignment: one piece's worth of room is spent on aligning the
 * first. */
static lam_status open_own(void *own, uint64_t own_bytes, uint64_t need, lam_scratch *out) {
  const uint64_t skip = -(uintptr_t)own & (ALIGNMENT - 1);
  *out = (lam_scratch){0};
  if (own_bytes < need)
    return lam_fail(LAM_INVALID_ARGUMENT,
                    "scratch: found %llu bytes, expected at least %llu (lam_infer tells)",
                    (unsigned long long)own_bytes, (unsigned long long)need);
  *out = (lam_scratch){.data = (char *)own + skip, .bytes = own_bytes - skip};
  return LAM_OK;
}

lam_status lam_scratch_open(lam_context *ctx, void *own, uint64_t own_bytes, uint64_t need,
                            lam_scratch *out) {
  if (need == 0) {
    *out = (lam_scratch){0};
    return LAM_OK;
  }
  if (own) return open_own(own, own_bytes, lam_scratch_bytes(need), out);

  const uint64_t bytes = lam_scratch_bytes(need);
  void *data = lam_context_borrow(ctx, bytes);
  if (!data) {
    *out = (lam_scratch){0}; /* may be closed all the same */
    return lam_fail(LAM_RESOURCE_EXHAUSTED, "scratch: no memory for %llu bytes",
                    (unsigned long long)bytes);
  }
  *out = (lam_scratch){.data = data, .bytes = bytes, .ctx = ctx};
  return LAM_OK;
}

lam_status lam_scratch_open_queued(const lam_device *device, void *stream, void *own,
                                   uint64_t own_bytes, uint64_t need, lam_scratch *out) {
  const uint64_t bytes = lam_scratch_bytes(need);
  void *data;
  *out = (lam_scratch){0};
  if (need == 0) return LAM_OK;
  if (own) return open_own(own, own_bytes, bytes, out);
  LAM_TRY(lam_device_borrow(device, bytes, stream, &data));
  *out = (lam_scratch){.data = data, .bytes = bytes, .device = device, .stream = stream};
  return LAM_OK;
}

void *lam_scratch_take(lam_scratch *s, uint64_t bytes) {
  char *piece = (char *)s->data + s->used;
  s->used += round_up(bytes);
  return piece;
}

void lam_scratch_close(lam_scratch *s) {
  if (s->ctx) lam_context_give_back(s->ctx, s->data);
  if (s->device) lam_device_give_back(s->device, s->data, s->stream);
  s->ctx = NULL;
  s->device = NULL;
}

void lam_scratch_clear(lam_context *ctx) {
  for (int i = 0; i < LAM_SCRATCH_SLOTS; i++) {
    lam_block *b = atomic_exchange(&ctx->slots[i], NULL);
    if (b) lam_context_free(ctx, b, b->bytes);
  }
}
