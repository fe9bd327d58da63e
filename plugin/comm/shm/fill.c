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
 * Invariant: when a copy returns, a release store that follows it covers it too (streaming
 * stores are fenced).
 * Leaves telling the peer to the caller. */
#include "plugin/comm/shm/shm.h"

#define TIMED_FROM (16 << 10) /* fewer bytes vanish in store buffers */
#define STREAM_FROM (4 << 10)
#define SLOW_BYTES_PER_NS 6
#define RETRY_NS 20000000

#if defined(__x86_64__)
#include <emmintrin.h>

static void copy_streaming(char *to, const char *from, size_t bytes) {
  enum { LINE = 64 };
  size_t at = -(uintptr_t)to & (LINE - 1);
  if (at > bytes) at = bytes;
  memcpy(to, from, at);
  for (; at + LINE <= bytes; at += LINE)
    for (size_t i = at; i < at + LINE; i += 16)
      _mm_stream_si128((__m128i *)(void *)(to + i),
                       _mm_loadu_si128((const __m128i *)(const void *)(from + i)));
  memcpy(to + at, from + at, bytes - at);
  _mm_sfence();
}
#else
static void copy_streaming(char *to, const char *from, size_t bytes) { memcpy(to, from, bytes); }
#endif

void lam_shm_fill(lam_world *w, void *to, const void *from, int64_t bytes) {
  if (bytes < TIMED_FROM) {
    if (shm_peers_are_far(w) && bytes >= STREAM_FROM)
      copy_streaming(to, from, (size_t)bytes);
    else
      shm_copy(to, from, bytes);
    return;
  }
  const int64_t start = lam_clock_ns();
  if (start < w->probe_at) {
    copy_streaming(to, from, (size_t)bytes);
    return;
  }
  memcpy(to, from, (size_t)bytes);
  const int64_t end = lam_clock_ns();
  w->slow_fills = bytes < (end - start) * SLOW_BYTES_PER_NS ? w->slow_fills + 1 : 0;
  w->probe_at = w->slow_fills > 1 ? end + RETRY_NS : 0;
}
