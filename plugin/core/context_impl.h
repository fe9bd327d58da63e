/* context_impl.h: what a context is made of, for context.c and scratch.c alone.
 * Invariant: hooks and workers do not change after creation; the rest is atomic, so one context
 * serves many threads. */
#ifndef LAMELLA_PLUGIN_CORE_CONTEXT_IMPL_H
#define LAMELLA_PLUGIN_CORE_CONTEXT_IMPL_H

#include <stdatomic.h>

#include "plugin/core/context.h"

#define LAM_SCRATCH_SLOTS 64

typedef struct lam_block lam_block; /* a kept piece of scratch memory */

struct lam_context {
  lam_workers workers;
  lam_context_desc hooks;
  _Atomic uint64_t allocations, bytes, peak_bytes, arena_bytes;
  _Atomic(lam_block *)
      slots[LAM_SCRATCH_SLOTS]; /* blocks that nobody is using; NULL = none kept here */
};

void lam_scratch_clear(lam_context *ctx); /* gives back all kept blocks */

#endif
