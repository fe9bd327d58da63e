/* slots.c: what lies between two stages: the layout of a message, and its way through a port.
 *
 * Invariant: a message is read and written in its slot, never copied here; what a receiver hands
 * on was checked against what its own schedule expects next.
 * Leaves waiting, credit and the death of peers to comm/, how many slots there are to
 * plan.c. */
#include <inttypes.h>
#include <stdio.h>
#include <string.h>

#include "kernels/codec.h"
#include "plugin/comm/comm.h"
#include "plugin/pipeline/run/form.h"

enum { LINE = 64, MAX_TENSORS = 64, MAX_DIMS = 8 };

/* -- layout -- */

static uint32_t dtype_code(DLDataType t) {
  return t.code | (uint32_t)t.bits << 8 | (uint32_t)t.lanes << 16;
}

static uint64_t element_bytes(DLDataType t) { return t.bits / 8u; }

static lam_status fail_tensor(int edge, int t, const char *what, long long found,
                              const char *expected) {
  return lam_fail(LAM_INVALID_ARGUMENT,
                  "lam_pipeline_create: edges[%d], tensor %d: %s is %lld, expected %s", edge, t,
                  what, found, expected);
}

static lam_status check_shape(int edge, int t, const lam_shape *s, uint64_t *out_bytes) {
  if (s->ndim < 0 || s->ndim > MAX_DIMS) return fail_tensor(edge, t, "ndim", s->ndim, "0 to 8");
  if (s->dtype.lanes != 1) return fail_tensor(edge, t, "dtype.lanes", s->dtype.lanes, "1");
  if (s->dtype.bits == 0 || s->dtype.bits % 8)
    return fail_tensor(edge, t, "dtype.bits", s->dtype.bits, "whole bytes");
  uint64_t bytes = element_bytes(s->dtype);
  for (int d = 0; d < s->ndim; d++) {
    if (s->dims[d] < 0) return fail_tensor(edge, t, "a dimension", s->dims[d], "0 or more");
    if (__builtin_mul_overflow(bytes, (uint64_t)s->dims[d], &bytes) ||
        bytes > INT64_MAX / MAX_TENSORS)
      return fail_tensor(edge, t, "a dimension", s->dims[d], "a tensor that fits in memory");
  }
  *out_bytes = bytes;
  return LAM_OK;
}


static lam_status check_codecs(int edge, const lam_edge *given) {
  const uint32_t codecs[] = {given->codec, given->gradient_codec};
  for (int i = 0; i < 2; i++)
    if (codecs[i] >= LAM_N_CODECS)
      return lam_fail(LAM_INVALID_ARGUMENT,
                      "lam_pipeline_create: edges[%d]: %s is %u, expected 0 to %d", edge,
                      i ? "gradient_codec" : "codec", codecs[i], LAM_N_CODECS - 1);
  return LAM_OK;
}

lam_status lam_edge_plan_init(lam_pipeline *p, int number, const lam_edge *edge,
                              lam_edge_plan *out) {
  const uint32_t n = edge->n_tensors;
  if (n < 1 || n > MAX_TENSORS || !edge->tensors)
    return lam_fail(LAM_INVALID_ARGUMENT,
                    "lam_pipeline_create: edges[%d] has %u tensors%s, expected 1 to %d", number, n,
                    edge->tensors ? "" : " at NULL", MAX_TENSORS);
  out->n_tensors = (int)n;
  LAM_TRY(check_codecs(number, edge));
  out->forms[0].codec = (int)edge->codec, out->forms[1].codec = (int)edge->gradient_codec;
  LAM_TRY(lam_pipeline_alloc(p, n, sizeof *out->tensors, &out->tensors));
  LAM_TRY(lam_pipeline_alloc(p, n, sizeof *out->offsets, &out->offsets));
  out->bytes = lam_slot_align(p, sizeof(lam_slot_head) + n * sizeof(int64_t[MAX_DIMS]));
  for (uint32_t t = 0; t < n; t++) {
    uint64_t bytes = 0;
    LAM_TRY(check_shape(number, (int)t, &edge->tensors[t], &bytes));
    out->tensors[t] = edge->tensors[t];
    out->offsets[t] = out->bytes;
    out->bytes = lam_slot_align(p, out->bytes + bytes);
  }
  return LAM_OK;
}

static const char *dtype_text(DLDataType t, char buf[16]) {
  static const char *const codes[] = {"i", "u", "f", "opaque", "bf", "c", "bool"};
  if (t.code < sizeof codes / sizeof *codes)
    snprintf(buf, 16, "%s%d", codes[t.code], t.bits);
  else
    snprintf(buf, 16, "code%d:%d", t.code, t.bits);
  return buf;
}

/* "f32[4,8]" */
static int tensor_text(const lam_shape *s, char *text, size_t room) {
  char name[16];
  size_t n = (size_t)snprintf(text, room, "%s[", dtype_text(s->dtype, name));
  for (int d = 0; d < s->ndim && n < room; d++)
    n += (size_t)snprintf(text + n, room - n, "%s%" PRId64, d ? "," : "", s->dims[d]);
  if (n < room) n += (size_t)snprintf(text + n, room - n, "]");
  return (int)n;
}

void lam_edge_plan_text(const lam_edge_plan *e, char text[LAM_EDGE_TEXT_BYTES]) {
  size_t n = 0;
  memset(text, 0, LAM_EDGE_TEXT_BYTES);
  for (int t = 0; t < e->n_tensors && n < LAM_EDGE_TEXT_BYTES; t++) {
    if (t) text[n++] = ' ';
    if (n < LAM_EDGE_TEXT_BYTES)
      n += (size_t)tensor_text(&e->tensors[t], text + n, LAM_EDGE_TEXT_BYTES - n);
  }
  for (int i = 0; i < 2 && n < LAM_EDGE_TEXT_BYTES; i++) {
    const lam_codec_about *codec = lam_codec_find(e->forms[i].codec);
    if (codec)
      n += (size_t)snprintf(text + n, LAM_EDGE_TEXT_BYTES - n, "%s as %s", i ? ", gradients" : "",
                            codec->name);
  }
  text[LAM_EDGE_TEXT_BYTES - 1] = 0;
}

uint64_t lam_edge_plan_hash(const lam_edge_plan *e) {
  uint64_t h = (uint64_t)e->n_tensors | (uint64_t)e->forms[0].codec << 32 |
               (uint64_t)e->forms[1].codec << 40;
  for (int t = 0; t < e->n_tensors; t++) {
    const lam_shape *s = &e->tensors[t];
    h = lam_mix(h, dtype_code(s->dtype) | (uint64_t)s->ndim << 32);
    for (int d = 0; d < s->ndim; d++) h = lam_mix(h, (uint64_t)s->dims[d]);
  }
  return h;
}

/* -- views -- */

/* Points a row of DLTensors at a slot. Their strides are NULL: compact, whatever their shape is
 * lowered to. */
static void bind_views(const lam_pipeline *p, const lam_port *port, DLTensor *views,
                       unsigned char *front, unsigned char *slot) {
  for (int t = 0; t < port->plan->n_tensors; t++) {
    const lam_shape *s = &port->plan->tensors[t];
    views[t] = (DLTensor){.data = slot + port->plan->offsets[t],
                          .device = p->where,
                          .ndim = s->ndim,
                          .dtype = s->dtype,
                          .shape = lam_slot_dims(front, t)};
  }
}

static void set_capacities(const lam_port *port, unsigned char *front) {
  for (int t = 0; t < port->plan->n_tensors; t++)
    memcpy(lam_slot_dims(front, t), port->plan->tensors[t].dims, sizeof(int64_t[MAX_DIMS]));
}

static unsigned char *local_slot(const lam_port *port, int micro) {
  return port->memory + (uint64_t)port->place[micro] * port->plan->bytes;
}

static unsigned char *local_front(const lam_port *port, int micro) {
  if (!port->fronts) return local_slot(port, micro);
  return port->fronts + (uint64_t)port->place[micro] * port->plan->offsets[0];
}

static DLTensor *view_row(const lam_port *port, uint64_t row) {
  return port->views + row * (uint64_t)port->plan->n_tensors;
}

/* -- sending -- */

static lam_status acquire(lam_port *port) {
  void *wire = NULL, *note = NULL;
  LAM_TRY(lam_channel_acquire(port->channel, &wire));
  if (port->notes) LAM_TRY(lam_channel_acquire(port->notes, &note));
  port->wire = wire;
  port->slot = port->form ? port->beside : wire;
  port->front = note ? note : port->slot;
  return LAM_OK;
}

lam_status lam_port_acquire(const lam_pipeline *p, lam_port *port, int micro, DLTensor **out_out) {
  if (port->channel)
    LAM_TRY(acquire(port));
  else
    port->slot = local_slot(port, micro), port->front = local_front(port, micro);
  *out_out = view_row(port, port->channel ? 0 : (uint64_t)port->place[micro]);
  bind_views(p, port, *out_out, port->front, port->slot);
  set_capacities(port, port->front);
  return LAM_OK;
}

/* A stage may lower dimensions, in place or by a shape of its own; everything else must be as it
 * was handed out. */
static lam_status take_shape(const lam_port *port, int t, const DLTensor *out) {
  const lam_shape *most = &port->plan->tensors[t];
  int64_t *dims = lam_slot_dims(port->front, t);
  if (out->data != port->slot + port->plan->offsets[t] || out->ndim != most->ndim ||
      out->byte_offset || !out->shape)
    return lam_fail(LAM_INVALID_ARGUMENT,
                    "out[%d] was replaced, expected its data, ndim and byte_offset as handed out",
                    t);
  if (memcmp(&out->dtype, &most->dtype, sizeof most->dtype) != 0)
    return lam_fail(LAM_INVALID_ARGUMENT, "out[%d] has another dtype than the edge's", t);
  if (out->shape != dims) memcpy(dims, out->shape, (size_t)most->ndim * sizeof *dims);
  for (int d = 0; d < most->ndim; d++)
    if (dims[d] < 0 || dims[d] > most->dims[d])
      return lam_fail(LAM_INVALID_ARGUMENT,
                      "out[%d].shape[%d] is %" PRId64 ", expected at most %" PRId64, t, d, dims[d],
                      most->dims[d]);
  return LAM_OK;
}

static uint64_t tensor_bytes(const lam_port *port, int t, const int64_t *dims) {
  uint64_t bytes = element_bytes(port->plan->tensors[t].dtype);
  for (int d = 0; d < port->plan->tensors[t].ndim; d++) bytes *= (uint64_t)dims[d];
  return bytes;
}

/* What the message of `micro` in this step must say of itself, sizes aside; the engine numbers
 * and seals it. */
static lam_wire wire_of(const lam_pipeline *p, const lam_port *port, int micro) {
  const lam_shape *first = &port->plan->tensors[0];
  return (lam_wire){.kind = (uint8_t)port->kind,
                    .ndim = (uint8_t)first->ndim,
                    .step = (uint64_t)p->step,
                    .item = (uint64_t)micro,
                    .edge = (uint32_t)port->edge,
                    .micro = (uint32_t)micro,
                    .codec = (uint16_t)(port->form ? port->form->codec : LAM_CODEC_NONE),
                    .dtype = dtype_code(first->dtype)};
}

lam_status lam_port_push(lam_pipeline *p, lam_port *port, int micro, DLTensor *out) {
  const int n = port->plan->n_tensors;
  for (int t = 0; t < n; t++) LAM_TRY(take_shape(port, t, &out[t]));
  if (!port->channel) return LAM_OK;

  lam_wire w = wire_of(p, port, micro);
  w.bytes =
      port->plan->offsets[n - 1] + tensor_bytes(port, n - 1, lam_slot_dims(port->front, n - 1));
  memcpy(w.shape, lam_slot_dims(port->front, 0), sizeof w.shape);
  ((lam_slot_head *)(void *)port->front)->origin = p->meter.origin;
  if (port->form) LAM_TRY(lam_form_pack(p, port, &w.bytes));
  LAM_TRY(lam_channel_push(port->channel, &w));
  if (!port->notes) return LAM_OK;
  w.bytes = port->plan->offsets[0];
  return lam_channel_push(port->notes, &w);
}

/* -- receiving -- */

static const char *wire_text(const lam_wire *w, char text[160]) {
  const lam_codec_about *codec = lam_codec_find(w->codec);
  snprintf(text, 160, "{step %" PRId64 ", edge %u, %s, micro-batch %u, dtype 0x%x, %u dims%s%s}",
           (int64_t)w->step, w->edge, w->kind == LAM_KIND_F ? "activation" : "gradient", w->micro,
           w->dtype, w->ndim, codec ? ", as " : "", codec ? codec->name : "");
  return text;
}

static lam_status check_header(const lam_pipeline *p, const lam_port *port, const lam_wire *got,
                               int micro) {
  char sent[160], expected[160];
  const lam_wire want = wire_of(p, port, micro);
  if (got->kind == want.kind && got->ndim == want.ndim && got->step == want.step &&
      got->edge == want.edge && got->micro == want.micro && got->dtype == want.dtype &&
      got->codec == want.codec)
    return LAM_OK;
  return lam_fail(LAM_MISMATCH, "rank %d sent %s, rank %d expects %s", port->peer,
                  wire_text(got, sent), p->rank, wire_text(&want, expected));
}

static lam_status check_dims(const lam_port *port, unsigned char *front) {
  for (int t = 0; t < port->plan->n_tensors; t++) {
    const lam_shape *most = &port->plan->tensors[t];
    const int64_t *dims = lam_slot_dims(front, t);
    for (int d = 0; d < most->ndim; d++)
      if (dims[d] < 0 || dims[d] > most->dims[d])
        return lam_fail(LAM_MISMATCH,
                        "rank %d sent tensor %d with dimension %d = %" PRId64
                        ", expected at most %" PRId64,
                        port->peer, t, d, dims[d], most->dims[d]);
  }
  return LAM_OK;
}

/* DLTensor knows no const; a stage does not write its inputs. */
static unsigned char *unconst(const void *data) { return (unsigned char *)(uintptr_t)data; }

static lam_status pull_front(lam_port *port, unsigned char *slot, unsigned char **out) {
  lam_wire got;
  const void *note = slot;
  if (port->notes) LAM_TRY(lam_channel_pull(port->notes, &got, &note));
  *out = unconst(note);
  return check_dims(port, *out);
}

/* The next message in the sender's order, wherever in the own order it is needed. */
static lam_status pull_next(lam_pipeline *p, lam_port *port) {
  lam_wire got;
  const void *data = NULL;
  unsigned char *front = NULL;
  LAM_TRY(lam_channel_pull(port->channel, &got, &data));
  LAM_TRY(check_header(p, port, &got, port->order[port->taken - port->base]));
  if ((uintptr_t)data % LINE)
    return lam_fail(LAM_INTERNAL, "engine %s: a slot at %p, expected a multiple of 64 bytes",
                    p->group->engine->name, data);
  const uint64_t most = port->form ? port->form->bytes : port->plan->bytes;
  if (got.bytes > most)
    return lam_fail(LAM_MISMATCH, "rank %d sent %" PRIu64 " bytes, expected at most %" PRIu64,
                    port->peer, got.bytes, most);
  unsigned char *slot = unconst(data);
  LAM_TRY(pull_front(port, slot, &front));
  const uint64_t row = port->taken % (uint64_t)port->depth;
  if (port->form) {
    unsigned char *beside = port->beside + row * port->plan->bytes;
    LAM_TRY(lam_form_unpack(p, port, front, slot, beside));
    slot = beside;
  }
  if (!port->notes) front = slot;
  bind_views(p, port, view_row(port, row), front, slot);
  const int64_t origin = ((lam_slot_head *)(void *)front)->origin;
  if (p->one_clock && origin < p->meter.origin) p->meter.origin = origin;
  port->taken++;
  return LAM_OK;
}

lam_status lam_port_pull(lam_pipeline *p, lam_port *port, int micro, DLTensor **out_in) {
  if (!port->channel) { /* views anew: the stage that wrote them had them in its hands */
    *out_in = view_row(port, (uint64_t)port->place[micro]);
    bind_views(p, port, *out_in, local_front(port, micro), local_slot(port, micro));
    return LAM_OK;
  }
  const uint64_t message = port->base + (uint64_t)port->place[micro];
  while (port->taken <= message) LAM_TRY(pull_next(p, port));
  *out_in = view_row(port, message % (uint64_t)port->depth);
  return LAM_OK;
}

/* Slots are given back in the order they came: one that is kept longer keeps those behind it. */
lam_status lam_port_finish(lam_port *port, int micro) {
  if (!port->channel) return LAM_OK;
  const uint64_t depth = (uint64_t)port->depth;
  port->done[(port->base + (uint64_t)port->place[micro]) % depth] = 1;
  for (; port->freed < port->taken && port->done[port->freed % depth]; port->freed++) {
    port->done[port->freed % depth] = 0;
    LAM_TRY(lam_channel_release(port->channel));
    if (port->notes) LAM_TRY(lam_channel_release(port->notes));
  }
  return LAM_OK;
}
