/* fill.c: copying into own memory that a peer reads next.
 *
 * A line that a peer has read is shared, and writing it again waits for the peer's cache. What
 * that costs depends on where the ranks run, and a scheduler or hypervisor may move them (two
 * CPUs, GB/s written and then read by the peer, 64 KiB each time):
 *     caches near each other (one L3)   plain 9 and 44    streaming past the caches 34 and 19
 *     far apart                         plain 2.4 and 17  streaming 34 and 19
 * Near, plain stores win once the memory written in turn outgrows the second-level cache (30 and
 * 49 from 1 MiB on; hence four slots of 256 KiB, and pieces that take turns within them); far,
 * streaming does: 1 MiB all-reduce 89 us against 470. So plain copies are timed; two slow ones
 * in a row, and copies stream until a new try 20 ms later.
 * Invariant: when a copy returns, a release store that follows it covers it too.
 * Leaves telling the peer to the caller. */
#include "plugin/comm/shm/shm.h"

#define TIMED_FROM (16 << 10) /* fewer bytes vanish in store buffers */
#define STREAM_FROM (4 << 10)
#define SLOW_BYTES_PER_NS 6
#define RETRY_NS 20000000

void lam_shm_fill(lam_world *w, void *to, const void *from, int64_t bytes) {
  if (bytes < TIMED_FROM) {
    if (shm_peers_are_far(w) && bytes >= STREAM_FROM)
      lam_copy_streaming(to, from, (size_t)bytes);
    else
      shm_copy(to, from, bytes);
    return;
  }
  const int64_t start = lam_clock_ns();
  if (start < w->probe_at) {
    lam_copy_streaming(to, from, (size_t)bytes);
    return;
  }
  memcpy(to, from, (size_t)bytes);
  const int64_t end = lam_clock_ns();
  w->slow_fills = bytes < (end - start) * SLOW_BYTES_PER_NS ? w->slow_fills + 1 : 0;
  w->probe_at = w->slow_fills > 1 ? end + RETRY_NS : 0;
}
