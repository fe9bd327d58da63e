/* transfer.c: an activation, or its gradient, from one rank to another, as a call of the host; as
 * it is, or coded (attribute codec) in scratch on both sides.
 *
 * Messages are ordered per (group, peer, direction, kind). The token orders the calls for autograd
 * and XLA and carries nothing.
 * Invariant: what a receiver returns is what it asked for: kind, tag, codec, dtype and shape of
 * the message were compared. Leaves the way of the bytes to the engines. */
#include <inttypes.h>
#include <stdio.h>

#include "kernels/codec.h"
#include "plugin/core/tensor.h"
#include "plugin/ops/rows.h"

#define ANY_TAG (-1) /* only the order counts */

static bool is_coded(const lam_op_call *call) { return call->attr.codec != LAM_CODEC_NONE; }

static lam_status check_attrs(const lam_op_call *call, lam_matrix m) {
  if (!lam_op_peers(call))
    return lam_fail(LAM_INVALID_ARGUMENT, "%s: group has nobody else in it", call->name);
  return is_coded(call) ? lam_op_codec_check(call, m.dtype) : LAM_OK;
}

static lam_wire header_of(const lam_op_call *call, const DLTensor *t, lam_matrix m) {
  lam_wire w = {.kind = (uint8_t)call->attr.kind,
                .ndim = (uint8_t)t->ndim,
                .item = (uint64_t)call->attr.tag,
                .bytes = is_coded(call) ? lam_op_coded_bytes(call, m)
                                        : lam_elements_bytes(m.rows, m.cols, m.dtype),
                .codec = (uint16_t)call->attr.codec,
                .dtype = (uint32_t)m.dtype};
  for (int i = 0; i < t->ndim; i++) w.shape[i] = t->shape[i];
  return w;
}

/* -- send: x token -> token -- */

void lam_op_send_activation_needs(const lam_op_call *call, lam_op_needs *out) {
  const lam_matrix x = call->in[0];
  *out = (lam_op_needs){is_coded(call) ? lam_op_coded_bytes(call, x) : lam_op_compact_bytes(x), 1};
}

static lam_status encode(const lam_op_call *call, void *coded) {
  return lam_device_encode(call->device, call->workers, (int)call->attr.codec, call->in[0], coded,
                           call->stream);
}

/* What travels: x, contiguous; or its code. */
static lam_status payload_of(const lam_op_call *call, lam_scratch *s, lam_matrix *out) {
  if (!is_coded(call)) return lam_op_compact(call, s, call->in[0], out);
  *out = lam_op_take(s, 1, (int64_t)lam_op_coded_bytes(call, call->in[0]), LAM_U8);
  return encode(call, out->data);
}

static lam_status send_payload(const lam_op_call *call, lam_scratch *s, const lam_wire *header) {
  lam_matrix x;
  LAM_TRY(payload_of(call, s, &x));
  return lam_group_send(call->group, (int)call->attr.peer, (int)call->attr.kind, header, x.data);
}

/* The code is made in its place on the way, where there is one. */
static lam_status send_code(const lam_op_call *call, lam_scratch *s, const lam_wire *header) {
  void *place = NULL;
  LAM_TRY(lam_group_send_open(call->group, (int)call->attr.peer, (int)call->attr.kind, header,
                              &place));
  if (!place) return send_payload(call, s, header);
  LAM_TRY(encode(call, place));
  return lam_group_send_close(call->group);
}

static lam_status send(const lam_op_call *call, lam_scratch *s) {
  const lam_wire header = header_of(call, call->in_tensor[0], call->in[0]);
  LAM_TRY((is_coded(call) ? send_code : send_payload)(call, s, &header));
  return lam_op_copy(call, call->in[1], call->out[0]);
}

lam_status lam_op_send_activation_run(const lam_op_call *call) {
  LAM_TRY(check_attrs(call, call->in[0]));
  return lam_op_with_scratch(call, lam_op_send_activation_needs, send);
}

/* -- receive: token -> y token -- */

/* "activation 3, [4, 64] bf16 as int8" */
static const char *message_text(const lam_wire *w, char *text, size_t room) {
  char shape[LAM_SHAPE_TEXT], tag[24] = "";
  const lam_dtype dtype = w->dtype < LAM_N_DTYPES ? (lam_dtype)w->dtype : LAM_U8;
  const lam_codec_about *codec = lam_codec_find(w->codec);
  if ((int64_t)w->item != ANY_TAG) snprintf(tag, sizeof tag, " %" PRId64, (int64_t)w->item);
  snprintf(text, room, "%s%s, %s%s%s", w->kind ? "gradient" : "activation", tag,
           lam_shape_text(w->shape, w->ndim <= 8 ? w->ndim : 0, lam_dtype_to_dlpack(dtype), shape),
           codec ? " as " : "", codec ? codec->name : "");
  return text;
}

static bool same_message(const lam_wire *a, const lam_wire *b) {
  const int64_t tag_a = (int64_t)a->item, tag_b = (int64_t)b->item;
  if (tag_a != ANY_TAG && tag_b != ANY_TAG && tag_a != tag_b) return false;
  if (a->kind != b->kind || a->dtype != b->dtype || a->ndim != b->ndim || a->codec != b->codec)
    return false;
  for (int i = 0; i < a->ndim; i++)
    if (a->shape[i] != b->shape[i]) return false;
  return true;
}

static lam_status refuse_message(const lam_op_call *call, const lam_wire *got,
                                 const lam_wire *wanted) {
  char found[LAM_SHAPE_TEXT + 56], expected[LAM_SHAPE_TEXT + 56];
  const lam_status status =
      lam_fail(LAM_MISMATCH, "%s: rank %" PRId64 " sent %s; rank %d expected %s", call->name,
               call->attr.peer, message_text(got, found, sizeof found), call->group->rank,
               message_text(wanted, expected, sizeof expected));
  return call->group->poison == LAM_OK ? lam_group_end(call->group, NULL, status) : status;
}

/* From the attribute: lam_infer asks before there is a y. */
void lam_op_recv_activation_needs(const lam_op_call *call, lam_op_needs *out) {
  const int n = call->attr.n_shape;
  lam_matrix y = {.rows = 1, .cols = n ? call->attr.shape[n - 1] : 1};
  for (int i = 0; i < n - 1; i++)
    if (__builtin_mul_overflow(y.rows, call->attr.shape[i], &y.rows)) y.rows = INT64_MAX;
  *out = (lam_op_needs){lam_op_coded_bytes(call, y), 1};
}

/* A message that is too long for y fails in the engine, which knows no shapes. */
static lam_status check_message(const lam_op_call *call, lam_status status, const lam_wire *got,
                                const lam_wire *wanted) {
  const bool arrived = status == LAM_OK || (status == LAM_MISMATCH && got->bytes > wanted->bytes);
  if (arrived && !same_message(got, wanted)) return refuse_message(call, got, wanted);
  return status;
}

static lam_status receive_into(const lam_op_call *call, const lam_wire *wanted, void *into) {
  lam_wire got = {0};
  const lam_status status = lam_group_recv(call->group, (int)call->attr.peer, (int)call->attr.kind,
                                           &got, into, wanted->bytes);
  return check_message(call, status, &got, wanted);
}

static lam_status decode(const lam_op_call *call, const void *coded) {
  return lam_device_decode(call->device, call->workers, (int)call->attr.codec, coded, call->out[0],
                           call->stream);
}

/* The code is read in its place on the way, where there is one. */
static lam_status receive_code(const lam_op_call *call, lam_scratch *s, const lam_wire *wanted) {
  const void *place = NULL;
  lam_wire got = {0};
  lam_status status = lam_group_recv_open(call->group, (int)call->attr.peer, (int)call->attr.kind,
                                          &got, wanted->bytes, &place);
  if (status == LAM_OK && !place) {
    const lam_matrix into = lam_op_take(s, 1, (int64_t)wanted->bytes, LAM_U8);
    LAM_TRY(receive_into(call, wanted, into.data));
    return decode(call, into.data);
  }
  status = check_message(call, status, &got, wanted);
  if (status == LAM_OK) status = decode(call, place);
  return status == LAM_OK ? lam_group_recv_close(call->group) : status;
}

static lam_status receive(const lam_op_call *call, lam_scratch *s) {
  const lam_wire wanted = header_of(call, call->out_tensor[0], call->out[0]);
  LAM_TRY(is_coded(call) ? receive_code(call, s, &wanted)
                         : receive_into(call, &wanted, call->out[0].data));
  return lam_op_copy(call, call->in[0], call->out[1]);
}

lam_status lam_op_recv_activation_run(const lam_op_call *call) {
  LAM_TRY(check_attrs(call, call->out[0]));
  LAM_TRY(lam_op_contiguous(call, "y", call->out[0]));
  return lam_op_with_scratch(call, lam_op_recv_activation_needs, receive);
}
