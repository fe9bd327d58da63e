/* context.h: threads, memory and hooks of one model, as the rest of plugin/ sees them.
 * Invariant: after the first call of a shape, taking and giving back scratch allocates nothing and
 * makes no system call.
 * Leaves groups and pipelines, which hang on a context, to comm/ and pipeline/. */
#ifndef LAMELLA_PLUGIN_CORE_CONTEXT_H
#define LAMELLA_PLUGIN_CORE_CONTEXT_H

#include "kernels/device.h"

lam_context *lam_context_default(void); /* the process's default one; never NULL, never destroyed */
const lam_workers *lam_context_workers(lam_context *ctx);
void *lam_context_alloc(lam_context *ctx,
                        uint64_t bytes); /* counted, 64-byte aligned; NULL when there is none */
void lam_context_free(lam_context *ctx, void *p, uint64_t bytes);
void lam_context_count_arena(lam_context *ctx,
                             int64_t bytes); /* shared memory taken (+) or given back (-) */
bool lam_context_should_stop(lam_context *ctx);
bool lam_context_tf32(const lam_context *ctx); /* f32 products may round their operands */
void lam_context_log(lam_context *ctx, int level, const char *format, ...)
    __attribute__((format(printf, 3, 4)));

/* Scratch: a block for the duration of one call or piece of work, grown on first use and kept. Safe
 * from many threads; one gives back first what it borrowed last. NULL when there is none. */
void *lam_context_borrow(lam_context *ctx, uint64_t bytes);
void lam_context_give_back(lam_context *ctx, void *data);
typedef struct lam_scratch {
  void *data;
  uint64_t bytes, used;
  lam_context *ctx;         /* NULL: the caller's own memory, or a device's */
  const lam_device *device; /* whose queue it is for; NULL: none */
  void *stream;
} lam_scratch;
/* What `need` takes with room for aligning LAM_SCRATCH_PIECES pieces: what open asks for and
 * lam_infer tells. */
#define LAM_SCRATCH_PIECES 15
static inline uint64_t lam_scratch_bytes(uint64_t need) {
  return need ? need + (LAM_SCRATCH_PIECES + 1) * 64 : 0;
}
lam_status lam_scratch_open(lam_context *ctx, void *own, uint64_t own_bytes, uint64_t need,
                            lam_scratch *out);
/* The same in the memory of a device that queues its work on `stream`: the device's own, kept for
 * each stream, where the caller gives none. */
lam_status lam_scratch_open_queued(const lam_device *device, void *stream, void *own,
                                   uint64_t own_bytes, uint64_t need, lam_scratch *out);
void *lam_scratch_take(lam_scratch *s,
                       uint64_t bytes); /* 64-byte aligned piece; in sum at most `need` */
void lam_scratch_close(lam_scratch *s);

#endif
