/* memory.c: memory that a group gives its host.
 *
 * Where the engine has memory that the peers can read, it comes from there, and what is sent out
 * of it is copied once; else it is the context's own. Either way it is the host's until it gives
 * it back.
 * Invariant: data is 64-byte aligned, and free knows from the group alone where it came from.
 * Leaves how peers read it to the engine. */
#include "plugin/comm/comm.h"

/* Before the context's own memory, which asks for its size back. */
typedef union own_head {
  uint64_t bytes;
  unsigned char room[64];
} own_head;

static bool is_shared(const lam_group *g) { return g->size > 1 && g->engine->alloc; }

static lam_status own_alloc(lam_group *g, uint64_t bytes, void **out_data) {
  own_head *head = lam_context_alloc(g->ctx, sizeof *head + bytes);
  if (!head)
    return lam_fail(LAM_RESOURCE_EXHAUSTED, "lam_group_alloc: no memory for %llu bytes",
                    (unsigned long long)bytes);
  head->bytes = sizeof *head + bytes;
  *out_data = head + 1;
  return LAM_OK;
}

lam_status lam_group_alloc(lam_group *g, uint64_t bytes, void **out_data) {
  if (!out_data) return lam_fail(LAM_INVALID_ARGUMENT, "lam_group_alloc: out_data is NULL");
  *out_data = NULL;
  if (!g) return lam_fail(LAM_INVALID_ARGUMENT, "lam_group_alloc: g is NULL");
  if (bytes == 0 || bytes > (uint64_t)1 << 62)
    return lam_fail(LAM_INVALID_ARGUMENT, "lam_group_alloc: bytes is %llu, expected 1 or more%s",
                    (unsigned long long)bytes, bytes ? ", and what a machine can hold" : "");
  return is_shared(g) ? g->engine->alloc(g, bytes, out_data) : own_alloc(g, bytes, out_data);
}

void lam_group_free(lam_group *g, void *data) {
  if (!g || !data) return;
  if (is_shared(g)) {
    g->engine->free(g, data);
    return;
  }
  own_head *head = (own_head *)data - 1;
  lam_context_free(g->ctx, head, head->bytes);
}
