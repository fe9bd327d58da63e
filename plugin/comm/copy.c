/* copy.c: copies of large results, past the caches.
 *
 * A plain store first reads the line that it replaces, and drives out another. Where a result is
 * too large to stay in the caches, that is half of its traffic: 16 MiB out of a 128 KiB slot take
 * 1200-1500 us by memcpy and 680-880 by streaming stores, on one CPU or both. (The C library never
 * streams here: it believes what a virtual machine says of its caches, and would begin at 240 MiB.)
 * Two ranks, host's memory, us, plain and streaming (the best tenth; the best, of 16 MiB one way):
 *     4 MiB   all-reduce  414   453     one way  182   316
 *     8 MiB              1005   951              585   663
 *     16 MiB             2656  2375             1395  1094
 * Invariant: when a copy returns, a release store that follows it covers it too (streaming
 * stores are fenced).
 * Leaves copies that a peer reads to shm/fill.c. */
#include <string.h>

#include "plugin/comm/comm.h"

#define PIECE_FROM (4 << 10) /* blocks of fewer bytes would wait at each one's end for its stores */

#if defined(__x86_64__)
#include <emmintrin.h>

void lam_copy_streaming(void *to, const void *from, size_t bytes) {
  enum { LINE = 64 };
  char *y = to;
  const char *x = from;
  size_t at = -(uintptr_t)y & (LINE - 1);
  if (at > bytes) at = bytes;
  memcpy(y, x, at);
  for (; at + LINE <= bytes; at += LINE)
    for (size_t i = at; i < at + LINE; i += 16)
      _mm_stream_si128((__m128i *)(void *)(y + i),
                       _mm_loadu_si128((const __m128i *)(const void *)(x + i)));
  memcpy(y + at, x + at, bytes - at);
  _mm_sfence();
}
#else
void lam_copy_streaming(void *to, const void *from, size_t bytes) { memcpy(to, from, bytes); }
#endif

void lam_copy_result(void *to, const void *from, int64_t bytes, int64_t result_bytes) {
  if (bytes <= 0) return; /* nothing may have no address */
  if (lam_streams(result_bytes) && bytes >= PIECE_FROM)
    lam_copy_streaming(to, from, (size_t)bytes);
  else
    memcpy(to, from, (size_t)bytes);
}
