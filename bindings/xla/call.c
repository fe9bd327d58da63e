/* call.c: an XLA call frame becomes a lam_call: buffers are borrowed as DLTensors, attributes are
 * taken by name.
 *
 * Arguments are the row's inputs in order; where the row communicates, then a token (f32 [1])
 * unless it has one among its inputs, and where one process holds several ranks, then this rank
 * (s32 [1]). Results are the row's outputs, then that token. An optional tensor of shape [0] is
 * absent; so is what the attribute `absent` names, a bitmask over inputs, then outputs, then the
 * token: these have no buffer, for each costs XLA some 50 ns a call. The attribute `transposed` is
 * one over inputs, then outputs: that buffer is [K, N] where the row speaks of [N, K]; `flags` is
 * the call's.
 * On CUDA the work goes onto XLA's stream, the device is the one that holds the first buffer.
 * Invariant: nothing is copied or allocated; whatever is wrong becomes an XLA error with Lamella's
 * own message.
 * Leaves all checks of tensors and values to lam_run. */
#include <stdio.h>
#include <string.h>

#include "bindings/xla/call.h"
#include "bindings/xla/cuda.h"
#include "bindings/xla/row.h"

typedef struct xla_call {
  const xla_row *row;
  const char *name; /* in the words, for messages */
  const xla_frame *frame;
  DLDevice device;
  void *stream;
  int n_token;            /* 1: the binding's own token follows the row's tensors */
  int n_arguments;        /* of the row's inputs and the token */
  int n_inputs;           /* the row's, up to the last that is there */
  const xla_buffer *pass; /* the token among the results, where there is one */
  int64_t transposed, absent, flags;
  DLTensor tensors[2 * XLA_MAX_TENSORS];
  int64_t dims[2 * XLA_MAX_TENSORS][2], strides[2 * XLA_MAX_TENSORS][2];
  DLTensor *inputs[XLA_MAX_TENSORS], *outputs[XLA_MAX_TENSORS];
  lam_attr attrs[XLA_MAX_ATTRS];
} xla_call;

/* What goes wrong here, before the library sees it; NULL: nothing did. */
typedef struct complaint {
  char text[200];
} complaint;

static xla_error *make_error(const xla_frame *frame, int32_t code, const char *message) {
  xla_error_create_args args = {sizeof args, NULL, message, code};
  return frame->api->error_create(&args);
}

static xla_error *library_error(const xla_frame *frame, lam_status status) {
  char text[640]; /* XLA keeps the low byte of the status: lamella.errors reads it from the words */
  snprintf(text, sizeof text, "lamella %s: %s", lam_status_name(status), lam_last_error());
  return make_error(frame, status & 0xff, text);
}

/* -- buffers -- */

static bool to_dlpack(int32_t xla, DLDataType *out) {
  static const DLDataType types[] = {
      /* codes as DLPack 1.x numbers them */
      [XLA_PRED] = {6, 8, 1},  [XLA_S8] = {0, 8, 1},      [XLA_S16] = {0, 16, 1},
      [XLA_S32] = {0, 32, 1},  [XLA_S64] = {0, 64, 1},    [XLA_U8] = {1, 8, 1},
      [XLA_U16] = {1, 16, 1},  [XLA_U32] = {1, 32, 1},    [XLA_U64] = {1, 64, 1},
      [XLA_F16] = {2, 16, 1},  [XLA_F32] = {2, 32, 1},    [XLA_F64] = {2, 64, 1},
      [XLA_BF16] = {4, 16, 1}, [XLA_F8E5M2] = {12, 8, 1}, [XLA_F8E4M3FN] = {10, 8, 1},
  };
  if (xla < 0 || xla >= (int32_t)(sizeof types / sizeof *types) || !types[xla].lanes) return false;
  *out = types[xla];
  return true;
}

static bool is_absent(const xla_buffer *b) { return b->rank == 1 && b->dims[0] == 0; }

/* which: among inputs, then outputs. */
static bool bind_buffer(xla_call *c, int which, const xla_buffer *b, complaint *why) {
  DLTensor *t = &c->tensors[which];
  *t = (DLTensor){
      .data = b->data, .device = c->device, .ndim = (int32_t)b->rank, .shape = b->dims};
  if (!to_dlpack(b->dtype, &t->dtype)) {
    snprintf(why->text, sizeof why->text, "buffer %d has XLA's element type %d, which is not known",
             which, (int)b->dtype);
    return false;
  }
  if (!(c->transposed >> which & 1)) return true;
  if (b->rank != 2) {
    snprintf(why->text, sizeof why->text,
             "buffer %d is transposed and has %d dimensions, expected 2", which, (int)b->rank);
    return false;
  }
  t->shape = memcpy(c->dims[which], (int64_t[]){b->dims[1], b->dims[0]}, sizeof c->dims[which]);
  t->strides = memcpy(c->strides[which], (int64_t[]){1, b->dims[1]}, sizeof c->strides[which]);
  return true;
}

static bool is_there(const xla_call *c, int which) { return !(c->absent >> which & 1); }

/* How many of n tensors have a buffer, the first being `which`. */
static int64_t count_there(const xla_call *c, int which, int n) {
  int64_t there = 0;
  for (int i = 0; i < n; i++) there += is_there(c, which + i);
  return there;
}

static bool check_counts(xla_call *c, complaint *why) {
  const int n_tensors = c->row->n_in + c->row->n_out;
  c->n_token = c->row->communicates && !c->row->own_token && is_there(c, n_tensors);
  const int64_t n_in = count_there(c, 0, c->row->n_in) + c->n_token;
  const int64_t n_out = count_there(c, c->row->n_in, c->row->n_out) + c->n_token;
  const int64_t args = c->frame->args.size, rets = c->frame->rets.size;
  const int64_t most = n_in + (c->row->communicates ? 1 : 0);
  c->n_arguments = (int)n_in;
  c->pass = c->n_token && rets == n_out ? c->frame->rets.values[n_out - 1] : NULL;
  if (args >= n_in && args <= most && rets == n_out) return true;
  snprintf(why->text, sizeof why->text, "found %d arguments and %d results, expected %d and %d",
           (int)args, (int)rets, (int)n_in, (int)n_out);
  return false;
}

/* The next buffer of a tensor, unless it has none or is [0] and may be. */
static bool bind_tensor(xla_call *c, int which, bool optional, const xla_values *buffers, int *at,
                        DLTensor **out, complaint *why) {
  *out = NULL;
  if (!is_there(c, which)) return true;
  const xla_buffer *b = buffers->values[(*at)++];
  if (optional && is_absent(b)) return true;
  *out = &c->tensors[which];
  return bind_buffer(c, which, b, why);
}

static bool bind_tensors(xla_call *c, complaint *why) {
  const int n_in = c->row->n_in;
  c->n_inputs = 0;
  for (int i = 0, at = 0; i < n_in; i++) {
    if (!bind_tensor(c, i, c->row->in_optional[i], &c->frame->args, &at, &c->inputs[i], why))
      return false;
    if (c->inputs[i]) c->n_inputs = i + 1;
  }
  for (int i = 0, at = 0; i < c->row->n_out; i++)
    if (!bind_tensor(c, n_in + i, c->row->out_optional[i], &c->frame->rets, &at, &c->outputs[i],
                     why))
      return false;
  return true;
}

static bool pass_token(const xla_call *c) {
  if (!c->pass || !c->pass->data) return true;
  if (c->device.device_type == kDLCUDA) return xla_cuda_clear(c->pass->data, c->stream);
  *(float *)c->pass->data = 0;
  return true;
}

/* -- attributes -- */

static bool is_named(const xla_span *name, const char *ptr, size_t len) {
  return name->len == len && !memcmp(name->ptr, ptr, len);
}

static bool read_scalar(const xla_scalar *s, lam_attr *out) {
  if (s->dtype == XLA_S64) *out = lam_attr_i(*(const int64_t *)s->value);
  if (s->dtype == XLA_S32) *out = lam_attr_i(*(const int32_t *)s->value);
  if (s->dtype == XLA_PRED) *out = lam_attr_i(*(const uint8_t *)s->value);
  if (s->dtype == XLA_F64) *out = lam_attr_f(*(const double *)s->value);
  if (s->dtype == XLA_F32) *out = lam_attr_f(*(const float *)s->value);
  return out->type != LAM_ATTR_DEFAULT;
}

static bool read_attr(int32_t type, const void *value, lam_attr *out) {
  *out = lam_attr_default();
  if (type == XLA_ATTR_SCALAR) return read_scalar(value, out);
  if (type == XLA_ATTR_STRING) {
    const xla_span *s = value;
    *out = (lam_attr){LAM_ATTR_STRING, (uint32_t)s->len, {.s = s->ptr}};
    return true;
  }
  const xla_array *a = value;
  if (type != XLA_ATTR_ARRAY || a->dtype != XLA_S64) return false;
  *out = lam_attr_ints(a->data, (uint32_t)a->size);
  return true;
}

static int find_attr(const xla_row *row, const xla_span *name) {
  for (int i = 0; i < row->n_attrs; i++)
    if (is_named(name, row->attrs[i].ptr, row->attrs[i].len)) return i;
  return -1;
}

/* What is the binding's own among the attributes; NULL: the row's. */
static int64_t *own_attr(xla_call *c, const xla_span *name) {
  if (is_named(name, "transposed", 10)) return &c->transposed;
  if (is_named(name, "flags", 5)) return &c->flags;
  return is_named(name, "absent", 6) ? &c->absent : NULL;
}

static bool bind_attrs(xla_call *c, complaint *why) {
  const xla_attrs *given = &c->frame->attrs;
  for (int i = 0; i < c->row->n_attrs; i++) c->attrs[i] = lam_attr_default();
  c->transposed = c->absent = c->flags = 0;
  for (int64_t i = 0; i < given->size; i++) {
    const xla_span *name = given->names[i];
    int64_t *ours = own_attr(c, name);
    const int at = ours ? -1 : find_attr(c->row, name);
    lam_attr value;
    if ((!ours && at < 0) || !read_attr(given->types[i], given->values[i], &value) ||
        (ours && value.type != LAM_ATTR_INT)) {
      snprintf(why->text, sizeof why->text, "attribute '%.*s' is not known, or of a wrong type",
               (int)(name->len < 40 ? name->len : 40), name->ptr);
      return false;
    }
    if (ours)
      *ours = value.v.i;
    else
      c->attrs[at] = value;
  }
  return true;
}

/* -- the call -- */

/* Where: the CPU; or a device, and the stream that XLA's own work before and after is on. */
static xla_error *find_place(xla_call *c, xla_platform platform) {
  c->device = (DLDevice){kDLCPU, 0};
  c->stream = NULL;
  if (platform == XLA_PLATFORM_CPU) return NULL;
  const xla_values *args = &c->frame->args;
  const void *memory = NULL;
  for (int64_t i = 0; i < args->size && !memory; i++)
    memory = ((const xla_buffer *)args->values[i])->data;
  xla_stream_get_args get = {sizeof get, NULL, c->frame->context, NULL};
  xla_error *error = c->frame->api->stream_get(&get); /* XLA's to free, as this call's own */
  c->device = (DLDevice){kDLCUDA, xla_cuda_device_of(memory)};
  c->stream = get.stream;
  return error;
}

/* Where one process holds several ranks, the last argument says whose call this is: XLA's threads
 * are none of them. */
static xla_error *take_rank(const xla_call *c) {
  const int at = c->n_arguments;
  if (c->frame->args.size <= at || c->row->group < 0) return NULL;
  const xla_buffer *rank = c->frame->args.values[at];
  const int64_t group = c->attrs[c->row->group].v.i;
  if (!group) return NULL;
  if (c->device.device_type == kDLCUDA)
    return make_error(c->frame, LAM_UNIMPLEMENTED,
                      "several ranks in one process: on CUDA the rank lies in the device's memory, "
                      "and reading it would wait for the stream; use one process for each rank");
  const lam_status status = lam_group_use(group, *(const int32_t *)rank->data);
  return status == LAM_OK ? NULL : library_error(c->frame, status);
}

static bool bind(xla_call *c, complaint *why) {
  return bind_attrs(c, why) && check_counts(c, why) && bind_tensors(c, why);
}

static xla_error *complain(const xla_call *c, const complaint *why) {
  char text[300];
  const char *name = strchr(c->row->words, ' ') + 1;
  snprintf(text, sizeof text, "%.*s: %s", (int)strcspn(name, " "), name, why->text);
  return make_error(c->frame, LAM_INVALID_ARGUMENT, text);
}

static lam_status run_bound(xla_call *c, uint32_t op) {
  lam_call call = LAM_CALL_INIT;
  call.op = op;
  call.inputs = (const DLTensor *const *)c->inputs, call.n_inputs = (uint32_t)c->n_inputs;
  call.outputs = c->outputs, call.n_outputs = (uint32_t)c->row->n_out;
  call.attrs = c->attrs, call.n_attrs = (uint32_t)c->row->n_attrs;
  call.stream = c->stream;
  call.flags = (uint32_t)c->flags;
  return lam_run(NULL, &call);
}

static xla_error *run(uint32_t op, xla_platform platform, const xla_frame *frame) {
  xla_call c;
  complaint why;
  c.frame = frame;
  c.row = xla_row_find(op);
  if (!c.row) return make_error(frame, LAM_UNIMPLEMENTED, "the library has no such operator");
  xla_error *error = find_place(&c, platform);
  if (!error && !bind(&c, &why)) error = complain(&c, &why);
  if (!error) error = take_rank(&c);
  if (error) return error;
  const lam_status status = run_bound(&c, op);
  if (status != LAM_OK) return library_error(frame, status);
  if (!pass_token(&c)) return make_error(frame, LAM_UNAVAILABLE, "CUDA did not write a token");
  return NULL;
}

/* A runtime asks each handler which API it was made for before it takes it. No trait: a call is not
 * compatible with command buffers, which are recorded before its shape was called once: scratch is not
 * there yet, products are not measured. */
static bool answer_metadata(const xla_frame *frame) {
  const xla_extension *e = frame->extension_start;
  if (!e || e->type != XLA_EXTENSION_METADATA) return false;
  xla_metadata *m = ((const xla_metadata_extension *)e)->metadata;
  m->api_version = (xla_api_version){sizeof m->api_version, NULL, 0, 1};
  m->traits = 0;
  return true;
}

xla_error *xla_call_run(uint32_t op, xla_platform platform, xla_frame *frame) {
  if (answer_metadata(frame)) return NULL;
  return frame->stage == XLA_STAGE_EXECUTE ? run(op, platform, frame) : NULL;
}
