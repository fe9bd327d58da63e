/* shard.c: one rank's tensors cut out of whole operands, the call, and the comparison. They are
 * made and looked at in the host's memory; for a call on a device they go there and come back.
 * Invariant: a tensor's memory outside of its elements holds a pattern before and after the
 * call. */
#include "tests/conformance/ops/shard.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define PATTERN 0xa5

/* -- numbers -- */

static uint16_t to_bf16(float v) {
  uint32_t bits;
  memcpy(&bits, &v, 4);
  return (uint16_t)((bits + 0x7fff + (bits >> 16 & 1)) >> 16);
}

static float from_bf16(uint16_t h) {
  const uint32_t bits = (uint32_t)h << 16;
  float v;
  memcpy(&v, &bits, 4);
  return v;
}

double bf16_value(float v) { return from_bf16(to_bf16(v)); }

/* To multiples of its unit: 2^-10 of the power of two below it, from 2^-24 on. */
double f16_value(float v) {
  int power;
  if (!isfinite(v) || v == 0) return v;
  frexp(v, &power);
  const int unit = power - 11 > -24 ? power - 11 : -24;
  return ldexp(nearbyint(ldexp(v, -unit)), unit);
}

static uint16_t to_f16(float v) {
  int power;
  const double near = f16_value(v), size = fabs(near);
  const uint16_t sign = signbit(v) ? 0x8000 : 0;
  if (isnan(v)) return 0x7e00;
  if (size > 65504) return sign | 0x7c00;
  if (size < 0x1p-14) return sign | (uint16_t)ldexp(size, 24);
  frexp(size, &power);
  return sign | (uint16_t)((power + 14) << 10) | (uint16_t)ldexp(size, 11 - power) % 1024;
}

static float from_f16(uint16_t h) {
  const int power = h >> 10 & 31, part = h & 1023;
  const double size = power == 31 ? (part ? NAN : INFINITY)
                      : power     ? ldexp(1024 + part, power - 25)
                                  : ldexp(part, -24);
  return (float)(h >> 15 ? -size : size);
}

num *copy_numbers(const num *a, int64_t n) {
  num *b = calloc((size_t)(n > 0 ? n : 1), sizeof *b);
  if (n > 0) memcpy(b, a, sizeof *b * (size_t)n);
  return b;
}

/* -- shapes and shares -- */

typedef struct piece {
  int64_t begin, end;
} piece;

/* A rank's part of an operand: along `axis` of the whole it holds `pieces`, else everything. */
typedef struct part {
  int ndim, axis, n_pieces;
  int64_t whole[3], dims[3];
  piece pieces[2];
} part;

static int whole_dims(const problem *pr, const operand *o, int64_t dims[3]) {
  int n = 0;
  if (o->dims[0] != 'T') {
    for (const char *c = o->dims; *c; c++) dims[n++] = ref_size(pr, *c);
    return n;
  }
  if (pr->ndim > 1) dims[n++] = pr->S;
  if (pr->ndim > 2) dims[n++] = pr->B;
  if (o->dims[1]) dims[n++] = ref_size(pr, o->dims[1]);
  return n;
}

int64_t along_size(const problem *pr) {
  int64_t dims[3];
  whole_dims(pr, &(operand){.dims = "TK"}, dims);
  return dims[pr->dim];
}

/* The uneven rule, once more: U = total / unit; every rank U / p units, the first U % p one
 * more. */
static piece share(int64_t total, int64_t unit, int rank, int p) {
  const int64_t units = total / unit, each = units / p, more = units % p;
  const int64_t begin = rank * each + (rank < more ? rank : more);
  return (piece){begin * unit, (begin + each + (rank < more)) * unit};
}

static int split_axis(const problem *pr, const operand *o, int ndim) {
  switch (o->lies) {
    case FIRST:
      return 0;
    case LAST:
      return ndim - 1;
    case SEQ:
      return pr->seq ? 0 : -1;
    case GATHERED:
      return pr->gather ? -1 : ndim - 1;
    case COLUMNS:
      return pr->split ? ndim - 1 : -1;
    case ALONG:
      return (int)pr->dim;
    default:
      return -1;
  }
}

static part part_of(const problem *pr, const operand *o, int rank) {
  part a = {0};
  a.ndim = whole_dims(pr, o, a.whole);
  memcpy(a.dims, a.whole, sizeof a.dims);
  a.axis = split_axis(pr, o, a.ndim);
  if (a.axis < 0) return a;
  const int64_t unit = o->lies == SEQ || pr->unit == 0 ? 1 : pr->unit;
  const bool last = a.axis == a.ndim - 1;
  const bool halves = pr->gated && o->dims[last ? strlen(o->dims) - 1 : 0] == 'G';
  const int64_t total = halves ? pr->F : a.whole[a.axis];
  a.pieces[0] = share(total, unit, rank, pr->p);
  a.pieces[1] = (piece){a.pieces[0].begin + total, a.pieces[0].end + total};
  a.n_pieces = halves ? 2 : 1;
  a.dims[a.axis] = a.n_pieces * (a.pieces[0].end - a.pieces[0].begin);
  return a;
}

/* Which element of the whole is element `at` [..] of the part. */
static int64_t whole_index(const part *a, const int64_t at[3]) {
  int64_t index = 0;
  for (int i = 0; i < a->ndim; i++) {
    int64_t here = at[i];
    if (i == a->axis) {
      const int64_t width = a->pieces[0].end - a->pieces[0].begin;
      here = a->pieces[here >= width].begin + (here >= width ? here - width : here);
    }
    index = index * a->whole[i] + here;
  }
  return index;
}

static int64_t count(const part *a) {
  int64_t n = 1;
  for (int i = 0; i < a->ndim; i++) n *= a->dims[i];
  return n;
}

static void unravel(const part *a, int64_t i, int64_t at[3]) {
  for (int d = a->ndim - 1; d >= 0; d--) {
    at[d] = i % a->dims[d];
    i /= a->dims[d];
  }
}

/* -- tensors -- */

typedef enum kind { F32, BF16, F16, I32, I64 } kind;
static const DLDataType types[] = {[F32] = {kDLFloat, 32, 1},
                                   {kDLBfloat, 16, 1},
                                   {kDLFloat, 16, 1},
                                   {kDLInt, 32, 1},
                                   {kDLInt, 64, 1}};

typedef struct tensor {
  DLTensor dl;
  part part;
  int64_t shape[3], strides[3];
  kind kind;
  unsigned char *memory;
  int64_t bytes;
  void *there; /* on the device: the same bytes */
} tensor;

typedef enum layout { PLAIN, OFFSET, PADDED, TRANSPOSED, N_LAYOUTS } layout;

static layout pick_layout(const operand *o, int ndim, bool contiguous, rng *r) {
  const layout l = (layout)rng_int(r, 0, N_LAYOUTS - 1);
  if (contiguous) return l == PLAIN ? PLAIN : OFFSET;
  return l == TRANSPOSED && !((o->marks & WEIGHT) && ndim == 2) ? PADDED : l;
}

static void set_strides(tensor *t, layout l) {
  const int n = t->part.ndim;
  int64_t step = 1;
  for (int i = n - 1; i >= 0; i--) {
    t->strides[i] = step;
    step *= t->shape[i] + (l == PADDED && i == n - 1 ? 3 : 0);
  }
  if (l != TRANSPOSED) return;
  t->strides[0] = 1;
  t->strides[1] = t->shape[0] + 2;
}

static int64_t reach(const tensor *t) {
  int64_t last = 0;
  for (int i = 0; i < t->part.ndim; i++) {
    if (t->shape[i] == 0) return 0;
    last += (t->shape[i] - 1) * t->strides[i];
  }
  return last + 1;
}

static size_t element_bytes(const tensor *t) { return types[t->kind].bits / 8; }

static void tensor_make(tensor *t, const part *a, kind k, layout l) {
  const int size = types[k].bits / 8;
  *t = (tensor){.part = *a, .kind = k};
  memcpy(t->shape, a->dims, sizeof t->shape);
  set_strides(t, l);
  const int64_t offset = l == OFFSET ? 5 * size : 0;
  t->bytes = offset + reach(t) * size + 64;
  t->memory = aligned_alloc(64, (size_t)(t->bytes + 63) / 64 * 64);
  memset(t->memory, PATTERN, (size_t)t->bytes);
  t->dl.data = t->memory;
  t->dl.device = (DLDevice){kDLCPU, 0};
  t->dl.ndim = a->ndim;
  t->dl.dtype = types[k];
  t->dl.shape = t->shape;
  t->dl.strides = l == PLAIN ? NULL : t->strides;
  t->dl.byte_offset = (uint64_t)offset;
}

static unsigned char *element(const tensor *t, const int64_t at[3]) {
  int64_t index = 0;
  for (int i = 0; i < t->part.ndim; i++) index += at[i] * t->strides[i];
  return t->memory + t->dl.byte_offset + index * (int64_t)element_bytes(t);
}

static void store(const tensor *t, const int64_t at[3], float v) {
  const bool index = t->kind >= I32; /* an index is never NaN */
  const uint16_t h = t->kind == F16 ? to_f16(v) : to_bf16(v);
  const int64_t i64 = index ? (int64_t)v : 0;
  const int32_t i32 = (int32_t)i64;
  const void *const as[] = {[F32] = &v, &h, &h, &i32, &i64};
  memcpy(element(t, at), as[t->kind], element_bytes(t));
}

static float load(const tensor *t, const int64_t at[3]) { /* of results: no index */
  uint16_t h;
  float v;
  memcpy(t->kind == F32 ? (void *)&v : (void *)&h, element(t, at), element_bytes(t));
  return t->kind == F32 ? v : t->kind == F16 ? from_f16(h) : from_bf16(h);
}

/* from: the whole operand, or NULL: NaN everywhere */
static void tensor_fill(tensor *t, const num *from) {
  int64_t at[3];
  for (int64_t i = 0; i < count(&t->part); i++) {
    unravel(&t->part, i, at);
    store(t, at, from ? (float)from[whole_index(&t->part, at)].v : NAN);
  }
}

/* -- comparison -- */

static bool check_values(const tensor *t, const num *want, const char *name) {
  int64_t at[3];
  for (int64_t i = 0; i < count(&t->part); i++) {
    unravel(&t->part, i, at);
    const num w = want[whole_index(&t->part, at)];
    const double got = load(t, at);
    if (fabs(got - w.v) <= w.e) continue;
    check_fail(__FILE__, __LINE__, "%s: element %lld of %lld is %.9g, expected %.9g within %.3g",
               name, (long long)i, (long long)count(&t->part), got, w.v, w.e);
    return false;
  }
  return true;
}

/* Elements are overwritten by the pattern, then nothing else may be there. */
static bool check_surroundings(tensor *t, const char *name) {
  int64_t at[3];
  for (int64_t i = 0; i < count(&t->part); i++) {
    unravel(&t->part, i, at);
    memset(element(t, at), PATTERN, element_bytes(t));
  }
  for (int64_t i = 0; i < t->bytes; i++)
    if (t->memory[i] != PATTERN) {
      check_fail(__FILE__, __LINE__, "%s: byte %lld outside of its elements was written", name,
                 (long long)i);
      return false;
    }
  return true;
}

static uint64_t hash_of(const tensor *t) {
  uint64_t h = 1469598103934665603u;
  int64_t at[3];
  for (int64_t i = 0; i < count(&t->part); i++) {
    unravel(&t->part, i, at);
    const float v = load(t, at);
    uint32_t bits;
    memcpy(&bits, &v, 4);
    h = (h ^ bits) * 1099511628211u;
  }
  return h;
}

/* -- on a device -- */

static void send(tensor *t) {
  if (place_is_host() || !t->memory) return;
  t->there = place_alloc((uint64_t)t->bytes);
  place_write(t->there, t->memory, (uint64_t)t->bytes);
  t->dl.data = t->there;
  t->dl.device.device_type = (DLDeviceType)place_device_type();
  t->dl.device.device_id = place_device_id();
}

static void fetch(tensor *t) {
  if (t->there) place_read(t->memory, t->there, (uint64_t)t->bytes);
}

static void tensor_free(tensor *t) {
  if (t->there) place_free(t->there);
  free(t->memory);
}

/* -- packed weights -- */

/* Replaces a plain weight by what pack_weight makes of it. False: it failed. */
static bool pack(tensor *t, lam_context *ctx, int side) {
  const int64_t n = t->shape[0], k = t->shape[1];
  int64_t cols;
  if (n == 0 || k == 0) return true; /* nothing to pack: this rank's stays plain */
  if (!CHECK_OK(lam_packed_size(ctx, t->dl.dtype, n, k, side, &cols))) return false;
  int64_t shape[2] = {side ? k : n, cols};
  void *data = aligned_alloc(64, (size_t)(shape[0] * cols + 64) / 64 * 64 + 64);
  DLTensor packed = {data, {kDLCPU, 0}, 2, {kDLUInt, 8, 1}, shape, NULL, 0};
  const DLTensor *in = &t->dl;
  DLTensor *out = &packed;
  const lam_attr attrs[] = {lam_attr_i(side), lam_attr_i(cols)};
  lam_call call = LAM_CALL_INIT;
  call.op = LAM_OP_pack_weight;
  call.inputs = &in;
  call.outputs = &out;
  call.attrs = attrs;
  call.n_inputs = call.n_outputs = 1;
  call.n_attrs = 2;
  const bool ok = CHECK_OK(lam_run(ctx, &call));
  free(t->memory);
  t->memory = data;
  memcpy(t->shape, shape, sizeof shape);
  t->dl = packed;
  t->dl.shape = t->shape;
  return ok;
}

/* -- the call -- */

/* The fourth field of "id name | inputs | outputs | name:type name:type=default | ..." */
int row_attrs(uint32_t op, char names[16][16]) {
  const char *c = lam_op_row(op);
  int n = 0, used = 0;
  for (int bars = 0; c && bars < 3; bars++) c = strchr(c, '|') ? strchr(c, '|') + 1 : NULL;
  while (c && n < 16 && sscanf(c, " %15[a-z]%*[^ |]%n", names[n], &used) == 1) {
    c += used;
    n++;
  }
  return n;
}

static lam_attr attr_of(const problem *pr, const lam_group *g, const char *name) {
  static const char *const acts[N_ACTS] = {"", "gelu", "gelu_tanh", "silu", "relu", "relu2"};
  const struct {
    const char *name;
    int64_t value;
  } ints[] = {{"save", pr->save},
              {"gather", pr->gather},
              {"split", pr->split},
              {"acc", pr->acc},
              {"gated", pr->gated},
              {"dim", pr->dim},
              {"root", pr->root},
              {"seq", pr->seq},
              {"total", pr->total},
              {"unit", pr->unit},
              {"chunks", pr->chunks},
              {"ignore", pr->ignore},
              {"group", g ? lam_group_handle(g) : 0},
              {"dtype", pr->out_f32 ? (kDLFloat | 32 << 8) : 0}};
  if (strcmp(name, "eps") == 0) return lam_attr_f(pr->eps);
  if (strcmp(name, "act") == 0) return lam_attr_s(acts[pr->act]);
  for (size_t i = 0; i < sizeof ints / sizeof *ints; i++)
    if (strcmp(name, ints[i].name) == 0) return lam_attr_i(ints[i].value);
  check_fail(__FILE__, __LINE__, "the tests know no attribute %s", name);
  return lam_attr_default();
}

const char *problem_text(const problem *pr) {
  static _Thread_local char text[400];
  char name[32] = "";
  sscanf(lam_op_row(pr->op), "%*d %31s", name);
  snprintf(text, sizeof text,
           "%s p=%d %s S=%lld B=%lld ndim=%d K=%lld N=%lld F=%lld act=%lld save=%lld gather=%lld "
           "split=%lld acc=%lld gated=%lld dim=%lld root=%lld seq=%lld total=%lld unit=%lld "
           "chunks=%lld ignore=%lld bias=%d%s%s%s%s%s",
           name, pr->p,
           pr->f16    ? "f16"
           : pr->bf16 ? "bf16"
                      : "f32",
           (long long)pr->S, (long long)pr->B, pr->ndim, (long long)pr->K, (long long)pr->N,
           (long long)pr->F, (long long)pr->act, (long long)pr->save, (long long)pr->gather,
           (long long)pr->split, (long long)pr->acc, (long long)pr->gated, (long long)pr->dim,
           (long long)pr->root, (long long)pr->seq, (long long)pr->total, (long long)pr->unit,
           (long long)pr->chunks, (long long)pr->ignore, pr->bias, pr->bias_f32 ? " bias f32" : "",
           pr->out_f32 ? " y f32" : "", pr->grad_f32 ? " dw f32" : "", pr->packed ? " packed" : "",
           pr->ids_i64 ? " i64" : "");
  return text;
}

/* What peers write into must be contiguous. */
static bool wants_contiguous(const problem *pr, const operand *o) {
  return o->lies == PARTS || pr->op < LAM_OP_linear || (o->lies == GATHERED && pr->gather) ||
         (o->lies == COLUMNS && !pr->split) || pr->op == LAM_OP_embedding_vocab;
}

static kind kind_of(const problem *pr, const operand *o, bool f32) {
  if (o->marks & INDEX) return pr->ids_i64 ? I64 : I32;
  return !pr->bf16 || f32 || (o->marks & VALUE) ? F32 : pr->f16 ? F16 : BF16;
}

typedef struct shard {
  tensor in[8], out[8];
  const DLTensor *inputs[8];
  DLTensor *outputs[8];
  int n_in, n_out;
} shard;

static bool make_inputs(shard *s, const problem *pr, lam_context *ctx, int rank, rng *r) {
  const reference *ref = reference_find(pr->op);
  for (int i = 0; i < 8 && ref->in[i].dims; i++) {
    const operand *o = &ref->in[i];
    s->n_in = i + 1;
    if (!pr->in[i]) continue;
    const part a = part_of(pr, o, rank);
    tensor_make(&s->in[i], &a, kind_of(pr, o, (o->marks & (BIAS | GAIN)) && pr->bias_f32),
                pick_layout(o, a.ndim, false, r));
    tensor_fill(&s->in[i], pr->in[i] + (o->lies == PARTS ? rank * ref_count(pr, o) : 0));
    const int side = strcmp(ref->in[0].dims, "TN") == 0; /* rows that start from dy: dgrad */
    const bool packs =
        pr->packed && place_is_host() && (o->marks & WEIGHT) && !(o->marks & PLAIN_ONLY);
    if (packs && !pack(&s->in[i], ctx, side)) return false;
    s->inputs[i] = &s->in[i].dl;
  }
  return true;
}

static void make_outputs(shard *s, const problem *pr, int rank, rng *r) {
  const reference *ref = reference_find(pr->op);
  for (int i = 0; i < 8 && ref->out[i].dims; i++) {
    const operand *o = &ref->out[i];
    s->n_out = i + 1;
    if (!pr->out[i]) continue;
    const part a = part_of(pr, o, rank);
    const bool f32 = (o->marks & ADDED) ? pr->grad_f32 : pr->out_f32 && i == 0;
    tensor_make(&s->out[i], &a, kind_of(pr, o, f32),
                pick_layout(o, a.ndim, wants_contiguous(pr, o), r));
    tensor_fill(&s->out[i], (o->marks & ADDED) && pr->acc ? pr->old[i] : NULL);
    s->outputs[i] = &s->out[i].dl;
  }
}

/* lam_infer must tell what was made here by hand. */
static bool check_inferred(const shard *s, lam_context *ctx, const lam_call *call,
                           uint64_t *out_scratch) {
  lam_shape shapes[8];
  lam_inferred inferred = LAM_INFERRED_INIT;
  inferred.n_outputs = 8;
  inferred.outputs = shapes;
  *out_scratch = 0;
  if (!CHECK_OK(lam_infer(ctx, call, &inferred))) return false;
  for (int i = 0; i < s->n_out; i++) {
    if (!s->outputs[i]) continue;
    bool same = CHECK_EQ(shapes[i].ndim, s->outputs[i]->ndim);
    for (int d = 0; same && d < shapes[i].ndim; d++)
      same = CHECK_EQ(shapes[i].dims[d], s->outputs[i]->shape[d]);
    if (!same) return false;
  }
  CHECK(inferred.n_chunks >= 1);
  *out_scratch = inferred.scratch_bytes;
  return true;
}

/* What is queued for one rank may wait for another: memory is had before, and given up after, all
 * have called. */
static bool call_it(const shard *s, const problem *pr, lam_context *ctx, const lam_group *g, rng *r,
                    meeting_place *all) {
  char names[16][16];
  lam_attr attrs[16];
  lam_call call = LAM_CALL_INIT;
  call.op = pr->op;
  call.inputs = s->inputs;
  call.outputs = s->outputs;
  call.attrs = attrs;
  call.n_inputs = (uint32_t)s->n_in;
  call.n_outputs = (uint32_t)s->n_out;
  call.stream = place_stream();
  call.n_attrs = (uint32_t)row_attrs(pr->op, names);
  for (uint32_t i = 0; i < call.n_attrs; i++) attrs[i] = attr_of(pr, g, names[i]);

  void *own = NULL;
  bool ok = check_inferred(s, ctx, &call, &call.scratch_bytes);
  if (rng_int(r, 0, 1)) call.scratch = own = place_alloc(call.scratch_bytes + 1);
  if (!own) call.scratch_bytes = 0;
  meet(all);
  ok = ok && CHECK_OK(lam_run(ctx, &call));
  place_finish();
  meet(all);
  if (own) place_free(own);
  return ok;
}

/* What came over the group must be the same bits everywhere; a product made by each rank alone need
 * not be: their layouts differ. */
static bool must_be_same(const problem *pr, const operand *o) {
  const bool communicates = strstr(lam_op_row(pr->op), "| COMM") != NULL;
  return communicates && split_axis(pr, o, 2) < 0 && !(o->marks & ADDED) && pr->op != LAM_OP_reduce;
}

static void check_outputs(shard *s, const problem *pr, int rank, uint64_t *marks) {
  const reference *ref = reference_find(pr->op);
  for (int i = 0; i < s->n_out; i++) {
    char name[40];
    if (!s->outputs[i]) continue;
    snprintf(name, sizeof name, "rank %d, output %d", rank, i);
    if (pr->op == LAM_OP_reduce && rank != pr->root) continue; /* nothing is promised there */
    if (check_values(&s->out[i], pr->out[i], name) && must_be_same(pr, &ref->out[i]))
      marks[i] = hash_of(&s->out[i]);
    check_surroundings(&s->out[i], name);
  }
}

bool shard_run(const problem *pr, lam_context *ctx, lam_group *g, int rank, rng *r,
               meeting_place *all, uint64_t *marks) {
  shard s = {0};
  NOTE("%s", problem_text(pr));
  const lam_group *used = pr->p == 1 && rng_int(r, 0, 1) ? NULL : g;
  bool ok = make_inputs(&s, pr, ctx, rank, r);
  make_outputs(&s, pr, rank, r);
  for (int i = 0; i < 8; i++) send(&s.in[i]), send(&s.out[i]);
  ok = ok && call_it(&s, pr, ctx, used, r, all);
  for (int i = 0; i < 8; i++) fetch(&s.out[i]);
  place_finish();
  if (ok) check_outputs(&s, pr, rank, marks);
  for (int i = 0; i < 8; i++) tensor_free(&s.in[i]), tensor_free(&s.out[i]);
  return ok;
}
