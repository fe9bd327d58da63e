/* form.c: messages packed into the form they travel in, and unpacked out of it.
 *
 * A tensor is rows of its last dimension: a part is some of the rows, by the uneven rule; a coded
 * row is a line of its codec. Tensors that are neither f32 nor bf16 are never coded.
 * Invariant: the head of a slot and the rows of dims travel in front as they are, so that a
 * receiver knows every size before it unpacks.
 * Leaves which form is best to form_choose.c. */
#include "plugin/pipeline/run/form.h"

#include <string.h>

#include "kernels/codec.h"
#include "plugin/comm/comm.h"
#include "plugin/core/tensor.h"

/* The rows of a tensor that this rank sends or receives. */
typedef struct part {
  int64_t first, n, all;
  int64_t cols, row, line; /* row, line: bytes of one in memory, and on the way */
  bool coded;
  lam_dtype dtype;
} part;

static part part_of(const lam_form *f, const lam_shape *s, const int64_t *dims) {
  part r = {.all = 1, .cols = s->ndim ? dims[s->ndim - 1] : 1};
  for (int d = 0; d < s->ndim - 1; d++) r.all *= dims[d];
  r.first = lam_share_begin(r.all, 1, f->part, f->n_parts);
  r.n = lam_share_begin(r.all, 1, f->part + 1, f->n_parts) - r.first;
  r.coded = f->codec != LAM_CODEC_NONE && lam_dtype_from_dlpack(s->dtype, &r.dtype) &&
            (r.dtype == LAM_F32 || r.dtype == LAM_BF16);
  r.row = r.cols * (s->dtype.bits / 8);
  r.line = r.coded ? lam_codec_line_bytes(f->codec, r.cols) : r.row;
  return r;
}

lam_status lam_form_init(lam_pipeline *p, const lam_edge_plan *plan, lam_form *f) {
  LAM_TRY(lam_pipeline_alloc(p, (uint64_t)plan->n_tensors, sizeof *f->offsets, &f->offsets));
  f->bytes = plan->offsets[0];
  f->part_bytes = 0;
  for (int t = 0; t < plan->n_tensors; t++) {
    const part r = part_of(f, &plan->tensors[t], plan->tensors[t].dims);
    f->offsets[t] = f->bytes;
    f->bytes = lam_slot_align(p, f->bytes + (uint64_t)(r.n * r.line));
    if ((uint64_t)(r.n * r.row) > f->part_bytes) f->part_bytes = (uint64_t)(r.n * r.row);
  }
  return LAM_OK;
}

static lam_matrix rows_at(const part *r, unsigned char *data) {
  return (lam_matrix){data, r->n, r->cols, r->cols, 1, r->dtype, false};
}

static lam_status move(const lam_pipeline *p, const lam_form *f, const part *r,
                       unsigned char *tensor, unsigned char *wire, bool pack) {
  const lam_workers *w = lam_context_workers(p->ctx);
  if (r->n == 0 || r->cols == 0) return LAM_OK;
  if (!r->coded)
    return lam_place_copy(p, pack ? tensor : wire, pack ? wire : tensor, (uint64_t)(r->n * r->row));
  const lam_device *d = p->device ? p->device : &lam_device_cpu;
  const lam_matrix rows = rows_at(r, tensor);
  return pack ? lam_device_encode(d, w, f->codec, rows, wire, p->stream)
              : lam_device_decode(d, w, f->codec, wire, rows, p->stream);
}

lam_status lam_form_pack(const lam_pipeline *p, const lam_port *port, uint64_t *out_bytes) {
  const lam_edge_plan *plan = port->plan;
  const lam_form *f = port->form;
  if (!port->notes) memcpy(port->wire, port->front, plan->offsets[0]);
  for (int t = 0; t < plan->n_tensors; t++) {
    const part r = part_of(f, &plan->tensors[t], lam_slot_dims(port->front, t));
    unsigned char *rows = port->slot + plan->offsets[t] + r.first * r.row;
    LAM_TRY(move(p, f, &r, rows, port->wire + f->offsets[t], true));
    *out_bytes = f->offsets[t] + (uint64_t)(r.n * r.line);
  }
  return LAM_OK;
}

/* Each rank of the group brings its rows. All of them receive the same messages in the same order,
 * that of the schedule. */
static lam_status gather(const lam_pipeline *p, const lam_shape *s, const part *r,
                         const unsigned char *mine, unsigned char *tensor) {
  lam_group *g = p->tensor;
  int64_t first[LAM_GROUP_RANKS + 1];
  for (int i = 0; i <= g->size; i++) first[i] = lam_share_begin(r->all, 1, i, g->size);
  const lam_parts parts = {.outer = 1, .inner = r->row, .first = first, .dtype = LAM_U8};
  lam_comm_op op = {.op = LAM_COMM_PIPELINE, .dtype = LAM_U8, .ndim = 2, .dims = {r->all, r->row}};
  op.extra = s->ndim;
  lam_place_tell(p, g);
  const lam_status status = lam_group_all_gather(g, &op, &parts, mine, tensor);
  g->device = NULL;
  return status;
}

lam_status lam_form_unpack(const lam_pipeline *p, const lam_port *port, unsigned char *front,
                           unsigned char *wire, unsigned char *slot) {
  const lam_edge_plan *plan = port->plan;
  const lam_form *f = port->form;
  if (!port->notes) memcpy(slot, front, plan->offsets[0]);
  for (int t = 0; t < plan->n_tensors; t++) {
    const part r = part_of(f, &plan->tensors[t], lam_slot_dims(front, t));
    unsigned char *tensor = slot + plan->offsets[t], *mine = f->n_parts > 1 ? port->part : tensor;
    LAM_TRY(move(p, f, &r, mine, wire + f->offsets[t], false));
    if (f->n_parts > 1) LAM_TRY(gather(p, &plan->tensors[t], &r, mine, tensor));
  }
  return LAM_OK;
}
