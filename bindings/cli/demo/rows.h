/* rows.h: rows of a matrix as f32, whatever it holds. f32 rows are read and written in place; bf16
 * rows pass through `room`, which holds one row. */
#ifndef LAMELLA_DEMO_ROWS_H_
#define LAMELLA_DEMO_ROWS_H_

#include <string.h>

#include "bindings/cli/demo/demo.h"

enum { MAX_ROW = 8192 }; /* the widest row that is handled so: H */

static inline void read_bf16(const uint16_t *from, int64_t n, float *to) {
  for (int64_t i = 0; i < n; i++) to[i] = from_bf16(from[i]);
}

static inline void write_bf16(const float *from, int64_t n, uint16_t *to) {
  for (int64_t i = 0; i < n; i++) to[i] = to_bf16(from[i]);
}

static inline void *row_at(matrix m, int64_t row) {
  return (char *)m.data + row * m.cols * m.bits / 8;
}

static inline const float *row_load(matrix m, int64_t row, float *room) {
  if (m.bits == 32) return row_at(m, row);
  read_bf16(row_at(m, row), m.cols, room);
  return room;
}

/* Where to write a row; row_store then puts it where it belongs. */
static inline float *row_open(matrix m, int64_t row, float *room) {
  return m.bits == 32 ? row_at(m, row) : room;
}

static inline void row_store(matrix m, int64_t row, const float *from) {
  if (m.bits == 16) write_bf16(from, m.cols, row_at(m, row));
}

#endif
