/* vocab.c: what is split by the vocabulary: embeddings and the cross entropy.
 *
 * Every rank holds some rows of w, or some columns of logits. Of an embedding's sum over the ranks
 * only one summand is not zero: it is exact in w's own dtype, so it travels in that. The cross
 * entropy meets once: every rank tells per token a maximum, a sum and the target's logit, and all
 * combine all of them in rank order, so all hold the same bits.
 * Invariant: indices are checked before the peers are told of anything.
 * Leaves the arithmetic to kernels/, sequence splits to gather.c. */
#include <inttypes.h>
#include <stdio.h>

#include "plugin/core/tensor.h"
#include "plugin/ops/rows.h"

/* -- indices -- */

/* "ids[3, 5]": element `at` of t, counted row by row. */
static void place_text(const char *name, const DLTensor *t, int64_t at, char *text, size_t room) {
  int64_t index[LAM_MAX_DIMS];
  for (int i = t->ndim - 1; i >= 0; at /= t->shape[i], i--) index[i] = at % t->shape[i];
  size_t n = (size_t)snprintf(text, room, "%s", name);
  for (int i = 0; i < t->ndim && n < room; i++)
    n += (size_t)snprintf(text + n, room - n, "%s%" PRId64, i ? ", " : "[", index[i]);
  if (t->ndim && n < room) snprintf(text + n, room - n, "]");
}

/* ignored: NULL where none is. Where work is queued, the host would have to wait for an answer:
 * there the rows of results whose index is outside become NaN. */
static lam_status check_indices(const lam_op_call *call, const char *name, int input, int64_t total,
                                const int64_t *ignored) {
  lam_outside found;
  char place[128], or_ignored[48] = "";
  if (call->device->order) return LAM_OK;
  LAM_TRY(lam_device_find_outside(call->device, call->workers, call->in[input], total, ignored,
                                  &found, call->stream));
  if (found.at < 0) return LAM_OK;
  place_text(name, call->in_tensor[input], found.at, place, sizeof place);
  if (ignored) snprintf(or_ignored, sizeof or_ignored, ", or %" PRId64 " (ignored)", *ignored);
  return lam_fail(LAM_INVALID_ARGUMENT, "%s: %s is %" PRId64 ", expected 0 to %" PRId64 "%s",
                  call->name, place, found.value, total - 1, or_ignored);
}

static lam_status mark_indices(const lam_op_call *call, int input, int64_t total,
                               const int64_t *ignored, lam_matrix y) {
  if (!call->device->order) return LAM_OK;
  return lam_device_mark_outside(call->device, call->workers, call->in[input], total, ignored, y,
                                 call->stream);
}

static int64_t count(lam_matrix m) { return m.rows * m.cols; }

/* Where this rank's part of the vocabulary begins: by total and unit, which were checked. */
static int64_t first_row(const lam_op_call *call, int64_t own) {
  const int rank = lam_op_rank(call);
  if (call->attr.total == 0) return rank * own;
  return lam_share_begin(call->attr.total, call->attr.unit, rank, lam_op_size(call));
}

/* -- embedding: ids [...]  w [V_r, K]  y [..., K], seq: its first dimension is split -- */

static lam_status check_ids_whole(const lam_op_call *call, int input) {
  const DLTensor *ids = call->in_tensor[input];
  if (call->attr.seq == 0) return LAM_OK;
  return lam_op_agree(call, "ids' first dimension", ids->ndim ? ids->shape[0] : 1, "attribute seq",
                      call->attr.seq);
}

static bool scatters(const lam_op_call *call) { return call->attr.seq && lam_op_peers(call); }

/* y: contiguous, all rows of the result, of which this rank's are written, and zeros. */
static lam_status own_rows(const lam_op_call *call, lam_matrix y, int64_t total) {
  const lam_matrix ids = call->in[0], w = call->in[1];
  LAM_TRY(lam_device_gather(call->device, call->workers, w, ids, first_row(call, w.rows), y,
                            call->stream));
  return mark_indices(call, 0, total, NULL, y);
}

static lam_status sum_to_all(const lam_op_call *call, int64_t total) {
  const lam_matrix y = call->out[0];
  const lam_comm_op op = lam_op_announcement(call, call->out_tensor[0], y.dtype, -1, 0, total);
  LAM_TRY(own_rows(call, y, total));
  return lam_group_all_reduce(call->group, &op, y.data, y.data, count(y), y.dtype);
}

static lam_status sum_to_shares(const lam_op_call *call, lam_scratch *s, int64_t total) {
  const lam_matrix y = call->out[0];
  const DLTensor *t = call->out_tensor[0];
  const lam_matrix whole = lam_op_take(s, count(call->in[0]), y.cols, y.dtype);
  const lam_comm_op op = lam_op_announcement(call, t, y.dtype, 0, call->attr.seq, total);
  lam_shares rows;
  lam_share(call->attr.seq, 1, lam_op_size(call), rows.first);
  const lam_parts parts = {1, lam_seq_inner(t) * y.cols, rows.first, y.dtype};
  LAM_TRY(own_rows(call, whole, total));
  return lam_group_reduce_scatter(call->group, &op, &parts, whole.data, y.data);
}

static lam_status embedding(const lam_op_call *call, lam_scratch *s) {
  lam_shares vocab;
  LAM_TRY(lam_shares_from_own(call, "w's rows", call->in[1].rows, &vocab));
  const int64_t total = lam_shares_whole(&vocab, call);
  LAM_TRY(check_indices(call, "ids", 0, total, NULL));
  if (!lam_op_peers(call)) return own_rows(call, call->out[0], total);
  LAM_TRY(lam_op_contiguous(call, "y", call->out[0]));
  return scatters(call) ? sum_to_shares(call, s, total) : sum_to_all(call, total);
}

void lam_op_embedding_vocab_needs(const lam_op_call *call, lam_op_needs *out) {
  const lam_matrix w = call->in[1];
  const int64_t rows = scatters(call) ? count(call->in[0]) : 0;
  *out = (lam_op_needs){lam_elements_bytes(rows, w.cols, w.dtype), 1};
}

lam_status lam_op_embedding_vocab_run(const lam_op_call *call) {
  LAM_TRY(check_ids_whole(call, 0));
  return lam_op_with_scratch(call, lam_op_embedding_vocab_needs, embedding);
}

/* dy [..., K], seq: its first dimension is split  ids [...]  dw [V_r, K] */
static lam_status embedding_wgrad(const lam_op_call *call, lam_scratch *s) {
  const lam_matrix ids = call->in[1], dw = call->out[0];
  int64_t *links = lam_scratch_take(s, lam_elements_bytes(dw.rows + count(ids), 1, LAM_I64));
  lam_matrix dy;
  LAM_TRY(lam_seq_gather(call, 0, s, &dy));
  return lam_device_scatter(call->device, call->workers, dy, ids, first_row(call, dw.rows), links,
                            dw, call->attr.acc != 0, call->stream);
}

void lam_op_embedding_vocab_wgrad_needs(const lam_op_call *call, lam_op_needs *out) {
  const int64_t links = call->out[0].rows + count(call->in[1]);
  *out = (lam_op_needs){lam_elements_bytes(links, 1, LAM_I64) + lam_seq_gather_bytes(call, 0), 1};
}

lam_status lam_op_embedding_vocab_wgrad_run(const lam_op_call *call) {
  LAM_TRY(lam_seq_check_share(call, "dy", call->in_tensor[0]));
  LAM_TRY(check_ids_whole(call, 1));
  LAM_TRY(lam_op_agree(call, "the number of ids", count(call->in[1]), "that of dy's rows",
                       lam_seq_gathered_rows(call, 0)));
  LAM_TRY(check_indices(call, "ids", 1, call->attr.total, NULL));
  return lam_op_with_scratch(call, lam_op_embedding_vocab_wgrad_needs, embedding_wgrad);
}

/* -- cross entropy: logits [..., V_r]  targets, loss, lse [...] -- */

enum { PART = sizeof(lam_softmax_part) / sizeof(float) };
_Static_assert(sizeof(lam_softmax_part) == PART * sizeof(float), "a part travels as floats");

static lam_status check_targets(const lam_op_call *call, int logits_input, int64_t *out_total) {
  const lam_matrix logits = call->in[logits_input], targets = call->in[logits_input + 1];
  lam_shares vocab;
  LAM_TRY(lam_shares_from_own(call, "logits' last dimension", logits.cols, &vocab));
  LAM_TRY(lam_op_agree(call, "the number of targets", count(targets), "that of logits' rows",
                       logits.rows));
  *out_total = lam_shares_whole(&vocab, call);
  return check_indices(call, "targets", logits_input + 1, *out_total, &call->attr.ignore);
}

/* Every rank's parts, one rank's after another's. */
static lam_status gather_parts(const lam_op_call *call, lam_scratch *s, int64_t total,
                               lam_matrix mine, lam_matrix *out_all) {
  *out_all = mine;
  if (!lam_op_peers(call)) return LAM_OK;
  const DLTensor *logits = call->in_tensor[0];
  const lam_comm_op op = lam_op_announcement(call, logits, call->in[0].dtype, logits->ndim - 1,
                                             total, call->attr.ignore);
  lam_shares ranks;
  lam_share(lam_op_size(call), 1, lam_op_size(call), ranks.first);
  const lam_parts parts = {1, mine.rows * mine.cols, ranks.first, LAM_F32};
  *out_all = lam_op_take(s, lam_op_size(call) * mine.rows, mine.cols, LAM_F32);
  return lam_group_all_gather(call->group, &op, &parts, mine.data, out_all->data);
}

static lam_status cross_entropy(const lam_op_call *call, lam_scratch *s) {
  const lam_matrix logits = call->in[0], targets = call->in[1];
  const lam_matrix mine = lam_op_take(s, logits.rows, PART, LAM_F32);
  int64_t total;
  lam_matrix all;
  LAM_TRY(check_targets(call, 0, &total));
  LAM_TRY(lam_device_softmax_parts(call->device, call->workers, logits, targets,
                                   first_row(call, logits.cols), mine.data, call->stream));
  LAM_TRY(gather_parts(call, s, total, mine, &all));
  LAM_TRY(lam_device_cross_entropy(call->device, call->workers, all.data, lam_op_size(call),
                                   targets, call->attr.ignore, call->out[0], call->out[1],
                                   call->stream));
  return mark_indices(call, 1, total, &call->attr.ignore, call->out[0]);
}

void lam_op_cross_entropy_vocab_needs(const lam_op_call *call, lam_op_needs *out) {
  const uint64_t mine = lam_elements_bytes(call->in[0].rows, PART, LAM_F32);
  const uint64_t all = lam_op_peers(call)
                           ? lam_elements_bytes(call->in[0].rows, PART * lam_op_size(call), LAM_F32)
                           : 0;
  *out = (lam_op_needs){mine + all, 1};
}

lam_status lam_op_cross_entropy_vocab_run(const lam_op_call *call) {
  return lam_op_with_scratch(call, lam_op_cross_entropy_vocab_needs, cross_entropy);
}

/* dloss [...]  dlogits [..., V_r]: with lse at hand no rank needs another. */
lam_status lam_op_cross_entropy_vocab_bwd_run(const lam_op_call *call) {
  const lam_matrix dloss = call->in[0], logits = call->in[1], targets = call->in[2],
                   lse = call->in[3];
  int64_t total;
  LAM_TRY(
      lam_op_agree(call, "the number of dloss", count(dloss), "that of logits' rows", logits.rows));
  LAM_TRY(lam_op_agree(call, "the number of lse", count(lse), "that of logits' rows", logits.rows));
  LAM_TRY(check_targets(call, 1, &total));
  LAM_TRY(lam_device_cross_entropy_bwd(call->device, call->workers, dloss, logits, targets, lse,
                                       first_row(call, logits.cols), call->attr.ignore,
                                       call->out[0], call->stream));
  return mark_indices(call, 2, total, &call->attr.ignore, call->out[0]);
}
