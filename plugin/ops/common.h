/* common.h: what the operators of this folder share: agreement of sizes, scratch, how a split
 * operand lies over the ranks, rows and columns gathered, products summed over the group in chunks.
 *
 * Invariant: whatever decides how often the ranks meet (chunks, shares) follows from what every
 * rank of a correct program knows alike, never from one rank's own share.
 * Leaves checks of single tensors to plugin/core, bytes on their way to plugin/comm. */
#ifndef LAMELLA_PLUGIN_OPS_COMMON_H
#define LAMELLA_PLUGIN_OPS_COMMON_H

#include "plugin/comm/comm.h"
#include "plugin/core/shard.h"
#include "plugin/ops/ops.h"
#include "plugin/ops/tiles.h"

/* ---- Calls (common.c) ---- */

/* The group where there is somebody else in it, or NULL. */
static inline lam_group *lam_op_peers(const lam_op_call *call) {
  return call->group && call->group->size > 1 ? call->group : NULL;
}
static inline int lam_op_rank(const lam_op_call *call) {
  return call->group ? call->group->rank : 0;
}
static inline int lam_op_size(const lam_op_call *call) {
  return call->group ? call->group->size : 1;
}

/* "linear_row: x's last dimension is 3, expected 4: w's in features" unless found == expected. */
lam_status lam_op_disagree(const lam_op_call *call, const char *what, int64_t found,
                           const char *why, int64_t expected);
static inline lam_status lam_op_agree(const lam_op_call *call, const char *what, int64_t found,
                                      const char *why, int64_t expected) {
  return found == expected ? LAM_OK : lam_op_disagree(call, what, found, why, expected);
}
lam_status lam_op_contiguous(const lam_op_call *call, const char *name, lam_matrix m);
/* What few rows need lies on the stack: to borrow and give back a block would cost as much as the
 * rest of a small call. */
#define LAM_NEAR_BYTES 4096
/* Runs `body` with the scratch it needs (needs NULL: none). If it fails after the peers were told
 * of an operation, the group's world is poisoned: they must not wait for what will not come. */
typedef lam_status (*lam_op_body)(const lam_op_call *call, lam_scratch *scratch);
lam_status lam_op_with_scratch(const lam_op_call *call, lam_op_needs_fn needs, lam_op_body body);

/* What no memory holds is 2^52 elements, so that sums of sizes do not overflow either. */
static inline uint64_t lam_elements_bytes(int64_t rows, int64_t cols, lam_dtype t) {
  const int64_t most = (int64_t)1 << 52;
  int64_t n;
  if (__builtin_mul_overflow(rows, cols, &n) || n > most) n = most;
  return (uint64_t)n * (uint64_t)lam_dtype_bytes(t);
}
lam_matrix lam_op_take(lam_scratch *s, int64_t rows, int64_t cols, lam_dtype t);
bool lam_matrix_contiguous(lam_matrix m);
/* m itself where it is contiguous, else a copy in scratch. */
lam_status lam_op_compact(const lam_op_call *call, lam_scratch *s, lam_matrix m, lam_matrix *out);
uint64_t lam_op_compact_bytes(lam_matrix m);
/* to = from, any dtype, last dimensions contiguous; nothing where they are the same memory. */
lam_status lam_op_copy(const lam_op_call *call, lam_matrix from, lam_matrix to);

/* Views go by address here: one that was just written is slow to copy. */
extern const lam_matrix lam_op_absent;

/* Rows of m, absent where m is; a new view, in *room, only where they are not all of them. */
static inline const lam_matrix *lam_op_rows(const lam_matrix *m, int64_t first, int64_t n,
                                            lam_matrix *room) {
  if (n == m->rows || !lam_matrix_here(*m)) return m;
  *room = lam_matrix_rows(*m, first, n);
  return room;
}

/* With what the context allows. */
lam_status lam_op_product_queued(const lam_op_call *call, const lam_gemm *g);
static inline lam_status lam_op_product(const lam_op_call *call, const lam_gemm *g) {
  if (call->device->order) return lam_op_product_queued(call, g);
  return lam_device_gemm(call->device, call->workers, g, call->stream);
}
/* The product with all of g->more, where the device does them in one go; else nothing. */
lam_status lam_op_product_fused(const lam_op_call *call, const lam_gemm *g, bool *out_done);
/* Inputs a and b as the scales of a product's fp8 factors. */
static inline lam_gemm_more lam_op_scales(const lam_op_call *call, int a, int b) {
  return (lam_gemm_more){.a_scale = call->in[a], .b_scale = call->in[b]};
}
/* d = a b^T + bias. Every field is written, so that none is cleared before: 7 ns. */
static inline lam_gemm lam_op_gemm(const lam_matrix *a, const lam_matrix *b, const lam_matrix *bias,
                                   const lam_matrix *d) {
  return (lam_gemm){.a = *a,
                    .b = *b,
                    .bias = *bias,
                    .d = *d,
                    .aux = lam_op_absent,
                    .act = LAM_ACT_NONE,
                    .accumulate = false,
                    .more = NULL};
}

/* ---- Shares (shares.c) ---- */

/* Where each rank's part of a dimension begins; first[size] is the whole. */
typedef struct lam_shares {
  int64_t first[LAM_GROUP_RANKS + 1];
} lam_shares;
static inline int64_t lam_shares_begin(const lam_shares *s, const lam_op_call *call) {
  return s->first[lam_op_rank(call)];
}
static inline int64_t lam_shares_own(const lam_shares *s, const lam_op_call *call) {
  return s->first[lam_op_rank(call) + 1] - s->first[lam_op_rank(call)];
}
static inline int64_t lam_shares_whole(const lam_shares *s, const lam_op_call *call) {
  return s->first[lam_op_size(call)];
}
/* A dimension of which this rank holds `own`: by attributes total and unit, or, without total, as
 * much on every rank. */
lam_status lam_shares_from_own(const lam_op_call *call, const char *what, int64_t own,
                               lam_shares *out);
/* A dimension that is here whole: by unit; total is 0 or the same. */
lam_status lam_shares_from_whole(const lam_op_call *call, const char *what, int64_t whole,
                                 lam_shares *out);

/* What the peers compare: the whole operand: t's shape, with dimension `dim` (-1: none) `whole`
 * long. extra: whatever else must agree. */
lam_comm_op lam_op_announcement(const lam_op_call *call, const DLTensor *t, lam_dtype dtype,
                                int dim, int64_t whole, int64_t extra);

/* ---- Sequence-split operands and gathered columns (gather.c) ---- */

/* Rows of the flattened operand per element of its first dimension: [S, B, n] has B. */
int64_t lam_seq_inner(const DLTensor *t);
/* Which rows of the whole this rank holds, where the operand is split by attribute seq. */
typedef struct lam_row_range {
  int64_t first, n, whole;
} lam_row_range;
lam_row_range lam_seq_rows(const lam_op_call *call, const DLTensor *t);
/* Refuses an operand whose first dimension is not this rank's share of seq. No seq: anything
 * goes. */
lam_status lam_seq_compare_share(const lam_op_call *call, const char *name, const DLTensor *t);
static inline lam_status lam_seq_check_share(const lam_op_call *call, const char *name,
                                             const DLTensor *t) {
  return call->attr.seq ? lam_seq_compare_share(call, name, t) : LAM_OK;
}
lam_status lam_seq_check_whole(const lam_op_call *call, const char *name, const DLTensor *t);
/* All rows of input `i`, which comes as this rank's share where seq is set: gathered into
 * scratch. */
lam_status lam_seq_gather(const lam_op_call *call, int i, lam_scratch *s, lam_matrix *out);
uint64_t lam_seq_gather_bytes(const lam_op_call *call, int i);
/* The same beside what is queued until finish. */
typedef struct lam_coming {
  lam_matrix whole;
  lam_shares shares; /* rows, in units of `inner` */
  int64_t inner;
  lam_gather gather;
  bool is_split;
} lam_coming;
/* by_source: then `each` gives the rows of one rank after the other, the own ones first, each as
 * soon as they are there; else all at once. */
lam_status lam_seq_gather_start(const lam_op_call *call, int i, bool by_source, lam_scratch *s,
                                lam_coming *out);
typedef lam_status (*lam_coming_rows)(const lam_op_call *call, const void *user, int64_t first,
                                      int64_t n);
lam_status lam_seq_gather_each(const lam_op_call *call, lam_coming *c, lam_coming_rows rows,
                               const void *user);
/* Also where what was queued in between failed, with that: memory must not go before it is
 * written. */
lam_status lam_seq_gather_finish(const lam_op_call *call, lam_coming *c, lam_status status);
int64_t lam_seq_gathered_rows(const lam_op_call *call, int i);

/* g->d [T, N] whole on every rank, g->b this rank's rows of [N, K]: the product of each chunk of
 * rows goes to scratch, then its columns are gathered. */
lam_status lam_columns_product(const lam_op_call *call, lam_scratch *s, const lam_shares *columns,
                               const lam_gemm *g);
uint64_t lam_columns_product_bytes(const lam_op_call *call, int64_t rows, int64_t cols);

/* ---- Chunks (chunks.c) ---- */

/* Rows cut into n chunks of whole units, as even as can be; the last may end within a unit. */
typedef struct lam_chunks {
  int64_t rows;
  int n, unit; /* unit 0: 1 */
} lam_chunks;
static inline int64_t lam_chunk_first(lam_chunks c, int i) {
  if (c.unit <= 1) return lam_share_begin(c.rows, 1, i, c.n);
  const int64_t first = lam_share_begin((c.rows + c.unit - 1) / c.unit, 1, i, c.n) * c.unit;
  return first < c.rows ? first : c.rows;
}
static inline int64_t lam_chunk_rows(lam_chunks c, int i) {
  return lam_chunk_first(c, i + 1) - lam_chunk_first(c, i);
}
static inline int64_t lam_chunk_most_rows(lam_chunks c) {
  return c.n == 1 ? c.rows : lam_chunk_rows(c, 0);
}
/* Attribute chunks, or `otherwise` where it is 0. */
lam_chunks lam_chunks_asked(const lam_op_call *call, int64_t rows, int64_t otherwise);
lam_chunks lam_chunks_study_sum(const lam_op_call *call, int64_t rows, int64_t cols);
lam_chunks lam_chunks_study_ffn(const lam_op_call *call, int64_t rows, int64_t cols);
/* On the CPU, chunks of fewer rows do not pay (chunks.c). */
#define LAM_ROWS_THAT_PAY 256
/* One chunk, as can be said at a glance: few rows on the CPU, nothing asked for, nobody asks why. */
static inline bool lam_chunks_are_one(const lam_op_call *call, int64_t rows) {
  return rows < 2 * LAM_ROWS_THAT_PAY && call->attr.chunks <= 0 && !call->why &&
         !call->device->order;
}
/* For a product [rows, cols] that is summed over the group: attribute chunks, or where it is 0 by
 * rows, or on a device by what its figures say pays; the same on all ranks. Alone, one. */
static inline lam_chunks lam_chunks_for_sum(const lam_op_call *call, int64_t rows, int64_t cols) {
  return lam_chunks_are_one(call, rows) ? (lam_chunks){rows, 1, 1}
                                        : lam_chunks_study_sum(call, rows, cols);
}
/* The same of an ffn's two products, whose chunks also keep what is between them in the CPU's cache:
 * there alone too. */
static inline lam_chunks lam_chunks_for_ffn(const lam_op_call *call, int64_t rows, int64_t cols) {
  return lam_chunks_are_one(call, rows) ? (lam_chunks){rows, 1, 1}
                                        : lam_chunks_study_ffn(call, rows, cols);
}
/* Whether rows [rows, cols] of all ranks' are best multiplied rank by rank, as they come; the
 * results' columns, that many or, where it is given, attribute total, are split over the ranks. */
bool lam_chunks_study_source(const lam_op_call *call, int64_t rows, int64_t cols, int64_t results);
static inline bool lam_chunks_by_source(const lam_op_call *call, int64_t rows, int64_t cols,
                                        int64_t results) {
  return call->device->order && call->attr.seq && lam_op_peers(call) &&
         lam_chunks_study_source(call, rows, cols, results);
}

/* ---- Products summed over the group (sum.c) ---- */

/* y = bias + the sum over ranks of their partial products, which `part` computes some rows at a
 * time. With attribute seq every rank keeps only its own rows of y. Alone, parts go straight into
 * y. */
typedef struct lam_part_sum lam_part_sum;
struct lam_part_sum {
  const lam_op_call *call;
  /* d [n, N] = rows first .. first + n - 1 of this rank's product, + bias where it is here. */
  lam_status (*part)(const lam_part_sum *s, int64_t first, const lam_matrix *bias,
                     const lam_matrix *d);
  const void *user;
  const DLTensor *y_tensor;
  const lam_matrix *bias, *y;
  lam_chunks chunks; /* of the whole rows */
  /* NULL, or: what is added to y as well, and y's norm with this gain and attribute eps. Not with
   * seq, and not alone. */
  const lam_matrix *residual, *gain, *normed;
  const lam_matrix *own; /* NULL, or: this rank's part, as it is; `part` copies it */
};
/* Multiplies all chunks. While the sum of one travels, the next is multiplied; that of the `last`
 * is left under way, beside whatever the caller does until finish. */
lam_status lam_part_sum_start(const lam_part_sum *s, lam_sum *last);
lam_status lam_part_sum_finish(const lam_part_sum *s, lam_sum *last);
lam_status lam_part_sum_run(const lam_part_sum *s);

/* ---- Weight gradients (wgrad.c) ---- */

/* dw (+)= dy^T x, db (+)= the sum of dy's rows. x [T, K]  dy [T, N]  dw [N, K]  db [N]? */
lam_status lam_op_wgrad(const lam_op_call *call, lam_matrix dy, lam_matrix x, lam_matrix dw,
                        lam_matrix db);
lam_status lam_op_weight_grad(const lam_op_call *call, lam_matrix dy, lam_matrix x, lam_matrix dw,
                              bool add);
lam_status lam_op_bias_grad(const lam_op_call *call, lam_matrix dy, lam_matrix db);

#endif
