/* peer.c: the way into a device's table for peers, as device.c is for its others.
 * Invariant: a slot that allocates or queues is called from here and nowhere else, past the hook that
 * traces calls and injects faults.
 * Leaves slots that cannot fail to their callers. */
#include "kernels/peer.h"

static lam_status hook(const lam_device *d, const char *slot) {
  if (!d->peer) return lam_fail(LAM_UNIMPLEMENTED, "%s has no %s", d->name, slot);
  return lam_device_on_call ? lam_device_on_call(d, slot) : LAM_OK;
}

lam_status lam_peer_open(const lam_device *d, void *page, uint64_t page_bytes, lam_peer_line **out,
                         int32_t *out_device) {
  *out = NULL;
  LAM_TRY(hook(d, "peer_open"));
  return d->peer->open(page, page_bytes, out, out_device);
}

lam_status lam_peer_alloc(const lam_device *d, uint64_t bytes, bool apart, void **out) {
  *out = NULL;
  LAM_TRY(hook(d, "peer_alloc"));
  return d->peer->alloc(bytes, apart, out);
}

lam_status lam_peer_show(const lam_device *d, void *p, lam_peer_handle *out) {
  LAM_TRY(hook(d, "peer_show"));
  return d->peer->show(p, out);
}

lam_status lam_peer_map(const lam_device *d, const lam_peer_handle *h, void **out) {
  *out = NULL;
  LAM_TRY(hook(d, "peer_map"));
  return d->peer->map(h, out);
}

lam_status lam_peer_pin(const lam_device *d, uint64_t bytes, void **out) {
  *out = NULL;
  LAM_TRY(hook(d, "peer_pin"));
  return d->peer->pin(bytes, out);
}

lam_status lam_peer_copy(const lam_device *d, lam_peer_line *line, const void *from, void *to,
                         uint64_t bytes, void *stream) {
  LAM_TRY(hook(d, "peer_copy"));
  return d->peer->copy(line, from, to, bytes, stream);
}

lam_status lam_peer_reach(const lam_device *d, int32_t device_id) {
  LAM_TRY(hook(d, "peer_reach"));
  return d->peer->reach(device_id);
}

lam_status lam_peer_sum_run(const lam_device *d, const lam_peers *p, const lam_peer_sum *s,
                            void *stream) {
  LAM_TRY(hook(d, "peer_sum"));
  return d->peer->sum(p, s, stream);
}

lam_status lam_peer_gather_run(const lam_device *d, const lam_peers *p, const lam_peer_gather *g,
                               void *stream) {
  LAM_TRY(hook(d, "peer_gather"));
  return d->peer->gather(p, g, stream);
}

lam_status lam_peer_box_run(const lam_device *d, lam_peer_line *line, int peer,
                            uint32_t deadline_ms, const lam_peer_box *box, int what, void *data,
                            uint64_t bytes, void *stream) {
  LAM_TRY(hook(d, "peer_box"));
  return d->peer->box(line, peer, deadline_ms, box, what, data, bytes, stream);
}
