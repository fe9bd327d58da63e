/* matrix.h: a matrix of the demo, in C and in CUDA C.
 * Invariant: rows lie one after the other. Leaves to whoever takes its memory where that is. */
#ifndef LAMELLA_DEMO_MATRIX_H_
#define LAMELLA_DEMO_MATRIX_H_

#include <stdint.h>

enum { VOCAB = 256 };
enum { VECTOR = -1 }; /* as rows: one dimension only */

typedef struct matrix {
  void *data; /* NULL = absent */
  int64_t rows, cols;
  int bits; /* 32 = f32, 16 = bf16 */
} matrix;

static inline matrix matrix_at(void *data, int64_t rows, int64_t cols, int bits) {
  matrix m = {data, rows, cols, bits};
  return m;
}
static inline uint64_t matrix_bytes(matrix m) {
  return (uint64_t)(m.rows * m.cols) * (uint64_t)m.bits / 8;
}

#endif
