/* blocks.c: a rank's share of a whole [outer, total, inner] operand, as a run of bytes laid out
 * in equal blocks.
 * Invariant: byte i of a share is the same element on every rank. Leaves moving shares to the
 * engines. */
#include <string.h>

#include "plugin/comm/comm.h"

lam_blocks lam_parts_of(const lam_parts *p, int rank, int size) {
  const int64_t bytes = p->inner * lam_dtype_bytes(p->dtype);
  return (lam_blocks){.count = p->outer,
                      .bytes = (p->first[rank + 1] - p->first[rank]) * bytes,
                      .stride = p->first[size] * bytes,
                      .offset = p->first[rank] * bytes};
}

/* The longest piece of the share from byte `first` on that lies in one block. */
static int64_t piece_at(const lam_blocks *b, int64_t first, int64_t n, int64_t *out_place) {
  const int64_t block = first / b->bytes, within = first % b->bytes;
  *out_place = b->offset + block * b->stride + within;
  return n < b->bytes - within ? n : b->bytes - within;
}

void lam_blocks_take(const lam_blocks *b, const void *whole, int64_t first, int64_t n, void *to) {
  int64_t place = 0;
  for (int64_t done = 0, got = 0; done < n; done += got) {
    got = piece_at(b, first + done, n - done, &place);
    memcpy((char *)to + done, (const char *)whole + place, (size_t)got);
  }
}

void lam_blocks_put(const lam_blocks *b, void *whole, int64_t first, int64_t n, const void *from) {
  int64_t place = 0;
  for (int64_t done = 0, got = 0; done < n; done += got) {
    got = piece_at(b, first + done, n - done, &place);
    lam_copy_result((char *)whole + place, (const char *)from + done, got, b->count * b->stride);
  }
}
