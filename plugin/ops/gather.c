/* gather.c: operands that come as every rank's rows (sequence split), results that go out with
 * every rank's columns.
 * Invariant: with nobody else in the group nothing is gathered, copied or announced.
 * Leaves how the pieces travel to comm/. */
#include "plugin/ops/common.h"

#include <inttypes.h>

/* -- rows -- */

int64_t lam_seq_inner(const DLTensor *t) {
  int64_t inner = 1;
  for (int i = 1; i < t->ndim - 1; i++) inner *= t->shape[i];
  return inner;
}

static int64_t seq_begin(const lam_op_call *call, int rank) {
  return lam_share_begin(call->attr.seq, 1, rank, lam_op_size(call));
}

/* lam_infer asks before seq was held against the tensor: no bound is known yet. */
static int64_t times(int64_t a, int64_t b) {
  int64_t n;
  return __builtin_mul_overflow(a, b, &n) ? INT64_MAX : n;
}

lam_row_range lam_seq_rows(const lam_op_call *call, const DLTensor *t) {
  const int64_t inner = lam_seq_inner(t), begin = seq_begin(call, lam_op_rank(call));
  const int64_t n = seq_begin(call, lam_op_rank(call) + 1) - begin;
  return (lam_row_range){times(begin, inner), times(n, inner), times(call->attr.seq, inner)};
}

static lam_status check_first(const lam_op_call *call, const char *name, const DLTensor *t,
                              const char *why, int64_t expected) {
  if (t->ndim < 2)
    return lam_fail(LAM_INVALID_ARGUMENT,
                    "%s: %s has %d dimensions, expected at least 2: seq splits the first,"
                    " features are the last",
                    call->name, name, t->ndim);
  if (t->shape[0] == expected) return LAM_OK;
  return lam_fail(LAM_INVALID_ARGUMENT,
                  "%s: %s's first dimension is %" PRId64 ", expected %" PRId64 ": %s", call->name,
                  name, t->shape[0], expected, why);
}

lam_status lam_seq_compare_share(const lam_op_call *call, const char *name, const DLTensor *t) {
  const int rank = lam_op_rank(call);
  return check_first(call, name, t, "this rank's share of seq",
                     seq_begin(call, rank + 1) - seq_begin(call, rank));
}

lam_status lam_seq_check_whole(const lam_op_call *call, const char *name, const DLTensor *t) {
  if (call->attr.seq == 0) return LAM_OK;
  return check_first(call, name, t, "attribute seq", call->attr.seq);
}

static bool is_split(const lam_op_call *call) {
  return call->attr.seq != 0 && lam_op_peers(call) != NULL;
}

int64_t lam_seq_gathered_rows(const lam_op_call *call, int i) {
  return is_split(call) ? lam_seq_rows(call, call->in_tensor[i]).whole : call->in[i].rows;
}

uint64_t lam_seq_gather_bytes(const lam_op_call *call, int i) {
  if (!is_split(call)) return 0;
  const lam_matrix x = call->in[i];
  const int64_t rows = lam_seq_gathered_rows(call, i);
  return lam_elements_bytes(rows, x.cols, x.dtype) + lam_op_compact_bytes(x);
}

lam_status lam_seq_gather_start(const lam_op_call *call, int i, bool by_source, lam_scratch *s,
                                lam_coming *out) {
  const DLTensor *t = call->in_tensor[i];
  lam_matrix mine;
  out->whole = call->in[i];
  out->is_split = is_split(call);
  if (!out->is_split) return LAM_OK;

  LAM_TRY(lam_op_compact(call, s, call->in[i], &mine));
  out->whole = lam_op_take(s, lam_seq_gathered_rows(call, i), mine.cols, mine.dtype);
  out->inner = lam_seq_inner(t);
  out->gather.by_source = by_source;
  lam_share(call->attr.seq, 1, lam_op_size(call), out->shares.first);
  const lam_parts parts = {1, out->inner * mine.cols, out->shares.first, mine.dtype};
  const lam_comm_op op = lam_op_announcement(call, t, mine.dtype, 0, call->attr.seq, by_source);
  return lam_group_gather_start(call->group, &op, &parts, mine.data, out->whole.data, &out->gather);
}

lam_status lam_seq_gather_each(const lam_op_call *call, lam_coming *c, lam_coming_rows rows,
                               const void *user) {
  const int size = lam_op_size(call), me = lam_op_rank(call);
  if (!c->is_split || !c->gather.by_source) {
    LAM_TRY(lam_seq_gather_finish(call, c, LAM_OK));
    return rows(call, user, 0, c->whole.rows);
  }
  for (int step = 0; step < size; step++) {
    const int source = (me + step) % size;
    const int64_t first = c->shares.first[source] * c->inner;
    const int64_t n = c->shares.first[source + 1] * c->inner - first;
    LAM_TRY(lam_group_gather_wait(call->group, &c->gather, source));
    if (n > 0) LAM_TRY(rows(call, user, first, n));
  }
  return LAM_OK;
}

lam_status lam_seq_gather_finish(const lam_op_call *call, lam_coming *c, lam_status status) {
  const lam_status waited = c->is_split ? lam_group_gather_finish(call->group, &c->gather) : LAM_OK;
  return status == LAM_OK ? waited : status;
}

lam_status lam_seq_gather(const lam_op_call *call, int i, lam_scratch *s, lam_matrix *out) {
  lam_coming c;
  LAM_TRY(lam_seq_gather_start(call, i, false, s, &c));
  *out = c.whole;
  return lam_seq_gather_finish(call, &c, LAM_OK);
}

/* -- columns -- */

/* whole [n, all columns] = every rank's mine [n, own columns] */
static lam_status gather_columns(const lam_op_call *call, const lam_shares *columns,
                                 lam_matrix mine, lam_matrix whole, int n_chunks) {
  const lam_parts parts = {whole.rows, 1, columns->first, whole.dtype};
  const lam_comm_op op = {.op = call->op,
                          .dtype = (uint16_t)whole.dtype,
                          .ndim = 2,
                          .dims = {whole.rows, whole.cols},
                          .extra = n_chunks};
  return lam_group_all_gather(call->group, &op, &parts, mine.data, whole.data);
}

uint64_t lam_columns_product_bytes(const lam_op_call *call, int64_t rows, int64_t cols) {
  const lam_chunks chunks = lam_chunks_asked(call, rows, 1);
  return lam_elements_bytes(lam_chunk_most_rows(chunks), cols, call->out[0].dtype);
}

lam_status lam_columns_product(const lam_op_call *call, lam_scratch *s, const lam_shares *columns,
                               const lam_gemm *g) {
  const lam_chunks chunks = lam_chunks_asked(call, g->d.rows, 1);
  const int64_t own = lam_shares_own(columns, call);
  const lam_matrix mine = lam_op_take(s, lam_chunk_most_rows(chunks), own, g->d.dtype);

  for (int i = 0; i < chunks.n; i++) {
    const int64_t first = lam_chunk_first(chunks, i), n = lam_chunk_rows(chunks, i);
    lam_gemm part = *g;
    part.a = lam_matrix_rows(g->a, first, n);
    part.d = lam_matrix_rows(mine, 0, n);
    if (lam_matrix_here(g->aux)) part.aux = lam_matrix_rows(g->aux, first, n);
    LAM_TRY(lam_op_product(call, &part));
    LAM_TRY(gather_columns(call, columns, part.d, lam_matrix_rows(g->d, first, n), chunks.n));
  }
  return LAM_OK;
}
