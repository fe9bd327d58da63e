/* gemm_plain.c: the product in plain C, for machines without a library and operands that one cannot
 * take.
 *
 * The ladder: three loops -> blocks of d that stay in the second-level cache -> operands copied
 * into panels, in f32, in the order in which the innermost tile reads them -> the tile itself, in
 * registers (lanes.h). 60-80 % of a core's f32 peak. Any strides: only the copying sees them.
 * Invariant: an element's sum runs over k in blocks of K_BLOCK, in order, whatever the blocking of
 * rows and columns.
 * Leaves packed operands to gemm.c. */
#include <string.h>

#include "kernels/cpu/cpu.h"
#include "kernels/cpu/lanes.h"

enum { K_BLOCK = 256, ROW_TILES = 20, COL_TILES = 16 };

typedef struct plain {
  const lam_workers *workers;
  const lam_lanes *lanes;
  const lam_gemm *g;
  int64_t block_rows, block_cols; /* a task's part of d, in elements */
  int64_t blocks_across;          /* tasks side by side */
  _Atomic bool no_memory;
} plain;

/* Rows [first, first + n) of m, columns [k, k + depth), as strips of `width` rows: strip[p][i] =
 * m[i][p], 0 beyond n. */
static void copy_panel(const lam_lanes *lanes, lam_matrix m, int64_t first, int64_t n, int64_t k,
                       int64_t depth, int64_t width, float *panel) {
  const bool along_rows = m.row_stride == 1 && m.col_stride != 1;
  for (int64_t at = 0; at < n; at += width, panel += width * depth) {
    const int64_t rows = lam_least(width, n - at);
    if (rows < width) memset(panel, 0, sizeof *panel * (size_t)(width * depth));
    for (int64_t p = 0; along_rows && p < depth; p++)
      lanes->copy(lam_line_at(lam_matrix_transposed(m), k + p, first + at),
                  (lam_line){panel + p * width, 1, LAM_F32}, rows);
    for (int64_t i = 0; !along_rows && i < rows; i++)
      lanes->copy(lam_line_at(m, first + at + i, k), (lam_line){panel + i, width, LAM_F32}, depth);
  }
}

/* c [rows, cols] += a's panels times b's, tile by tile; both sizes are whole tiles. */
static void multiply_panels(const lam_lanes *lanes, int64_t rows, int64_t cols, int64_t depth,
                            const float *a, const float *b, float *c) {
  /* The strip of a stays in the first-level cache. */
  for (int64_t i = 0; i < rows; i += lanes->tile_rows)
    for (int64_t j = 0; j < cols; j += lanes->tile_cols)
      lanes->tile(depth, a + i * depth, b + j * depth, c + i * cols + j, cols);
}

static void finish_block(const plain *p, const float *c, int64_t ldc, int64_t row, int64_t rows,
                         int64_t col, int64_t cols) {
  const lam_gemm *g = p->g;
  for (int64_t i = 0; i < rows; i++) {
    const lam_finish f = {.bias = lam_line_of_vector(g->bias, col),
                          .aux = lam_line_at(g->aux, row + i, col),
                          .d = lam_line_at(g->d, row + i, col),
                          .act = g->act,
                          .accumulate = g->accumulate};
    p->lanes->finish(c + i * ldc, &f, cols);
  }
}

static void run_block(void *arg, int64_t task) {
  plain *p = arg;
  const lam_gemm *g = p->g;
  const int64_t row = task / p->blocks_across * p->block_rows,
                col = task % p->blocks_across * p->block_cols;
  const int64_t rows = lam_least(p->block_rows, g->a.rows - row),
                cols = lam_least(p->block_cols, g->b.rows - col);
  const int64_t tiled_rows = lam_round_up(rows, p->lanes->tile_rows),
                tiled_cols = lam_round_up(cols, p->lanes->tile_cols);

  const int64_t sizes[] = {tiled_rows * tiled_cols, tiled_rows * K_BLOCK, tiled_cols * K_BLOCK};
  float *c = lam_cpu_borrow(p->workers, sizeof(float) * (uint64_t)(sizes[0] + sizes[1] + sizes[2]));
  if (!c) {
    p->no_memory = true;
    return;
  }
  float *a = c + sizes[0], *b = a + sizes[1];
  memset(c, 0, sizeof(float) * (size_t)sizes[0]);
  for (int64_t k = 0; k < g->a.cols; k += K_BLOCK) {
    const int64_t depth = lam_least(K_BLOCK, g->a.cols - k);
    copy_panel(p->lanes, g->a, row, rows, k, depth, p->lanes->tile_rows, a);
    copy_panel(p->lanes, g->b, col, cols, k, depth, p->lanes->tile_cols, b);
    multiply_panels(p->lanes, tiled_rows, tiled_cols, depth, a, b, c);
  }
  finish_block(p, c, tiled_cols, row, rows, col, cols);
  lam_cpu_give_back(p->workers, c);
}

static int64_t n_blocks(const plain *p) {
  return lam_cuts(p->g->a.rows, p->block_rows) * lam_cuts(p->g->b.rows, p->block_cols);
}

lam_status lam_gemm_plain_run(const lam_workers *w, const lam_gemm *g) {
  if (!lam_is_float(g->a.dtype) || !lam_is_float(g->b.dtype) || !lam_is_float(g->d.dtype))
    return lam_fail(LAM_UNIMPLEMENTED, "cpu gemm: %s times %s gives %s, the CPU has f32 and bf16",
                    lam_dtype_name(g->a.dtype), lam_dtype_name(g->b.dtype),
                    lam_dtype_name(g->d.dtype));
  const lam_lanes *lanes = lam_lanes_pick();
  plain p = {.workers = w,
             .lanes = lanes,
             .g = g,
             .block_rows = lanes->tile_rows * ROW_TILES,
             .block_cols = lanes->tile_cols * COL_TILES};
  while (n_blocks(&p) < w->n_threads && p.block_cols > lanes->tile_cols) p.block_cols /= 2;
  p.blocks_across = lam_cuts(g->b.rows, p.block_cols);
  lam_cpu_spread(w, n_blocks(&p), run_block, &p);
  if (p.no_memory)
    return lam_fail(LAM_RESOURCE_EXHAUSTED, "cpu gemm: a worker could not have its panels' memory");
  return LAM_OK;
}
