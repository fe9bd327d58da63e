/* call_fuzz_test.c: calls of every operator, right ones made wrong at random places.
 *
 * A case takes a row, gives it tensors of small consistent sizes, asks lam_infer for the outputs,
 * then spoils none to three things: counts, pointers, dimensions, strides, dtypes, offsets,
 * devices, attributes, struct_size.
 * Invariant: spoiled values are either harmless (they stay inside a tensor's own block of memory)
 * or must be refused, so whatever the library accepts may be run; the address sanitizer watches it.
 * A refused call has a message and wrote nothing; an accepted one wrote only to its outputs.
 * Leaves right results to the conformance tests. */
#include <stdio.h>
#include <stdlib.h>

#include "plugin/core/row.h"
#include "tests/unit/core/host.h"

#define MAX_TENSORS (LAM_MAX_INPUTS + LAM_MAX_OUTPUTS)
#define BLOCK 16384 /* bytes of a tensor's memory: more than any size and stride below can reach */

static const DLDataType dtypes[] = {{2, 32, 1}, {4, 16, 1}, {2, 16, 1}, {10, 8, 1},
                                    {2, 64, 1}, {0, 32, 1}, {0, 64, 1}, {1, 8, 1},
                                    {2, 32, 2}, {6, 8, 1},  {99, 7, 1}};
#define PICK(array) (array)[rng_int(&r, 0, (int64_t)(sizeof(array) / sizeof *(array)) - 1)]

static rng r;

static bool chance(int one_in) { return rng_int(&r, 1, one_in) == 1; }

typedef struct fuzz_case {
  host_tensor tensors[MAX_TENSORS];
  const DLTensor *in[LAM_MAX_INPUTS + 2];
  DLTensor *out[LAM_MAX_OUTPUTS + 2];
  lam_attr attrs[LAM_MAX_ATTRS + 2];
  int64_t ints[10];
  struct {
    lam_call call;
    uint64_t later[2]; /* what a newer caller's struct might hold */
  } given;
  const lam_row *row;
  int64_t t, k, n, f; /* sizes of this case */
} fuzz_case;

static unsigned char *blocks[MAX_TENSORS]; /* one per tensor; inputs first */
static unsigned char before[MAX_TENSORS][BLOCK];

/* -- a right call -- */

static int64_t size_of(const fuzz_case *c, char letter) {
  return letter == 'T'   ? c->t
         : letter == 'K' ? c->k
         : letter == 'N' ? c->n
         : letter == 'F' ? c->f
                         : 1;
}

/* Sizes by the names of the operator table. */
static const char *sizes_of(const char *name) {
  static const char *const table[][2] = {
      {"x", "TK"},      {"dy", "TN"},     {"w", "NK"},    {"b", "N"},
      {"aux", "TF"},    {"dz", "TF"},     {"w1", "FK"},   {"b1", "F"},
      {"w2", "NF"},     {"b2", "N"},      {"token", "1"}, {"ids", "T"},
      {"targets", "T"}, {"logits", "TN"}, {"dloss", "T"}, {"lse", "T"},
  };
  for (size_t i = 0; i < sizeof table / sizeof *table; i++)
    if (!strcmp(table[i][0], name)) return table[i][1];
  return "1";
}

static void make_tensor(host_tensor *h, void *data, DLDataType dtype, int ndim,
                        const int64_t *dims) {
  int64_t all[LAM_MAX_DIMS + 1];
  memcpy(all, dims, sizeof *dims * (size_t)ndim);
  all[ndim] = -1;
  host_make(h, data, dtype, all);
}

static DLDataType dtype_of(lam_role role, DLDataType otherwise) {
  if (role == LAM_ROLE_INDEX) return (DLDataType){0, chance(2) ? 32 : 64, 1};
  return role == LAM_ROLE_TOKEN || role == LAM_ROLE_VALUE ? F32 : otherwise;
}

static void make_inputs(fuzz_case *c, DLDataType dtype) {
  for (int i = 0; i < c->row->n_in; i++) {
    const lam_row_tensor *in = &c->row->in[i];
    const char *letters = sizes_of(in->name);
    int64_t dims[2];
    for (int k = 0; letters[k]; k++) dims[k] = size_of(c, letters[k]);
    make_tensor(&c->tensors[i], blocks[i], dtype_of(in->role, dtype), (int)strlen(letters), dims);
    c->in[i] = in->role == LAM_ROLE_SCALE || (in->optional && chance(2)) ? NULL : &c->tensors[i].t;
  }
}

static lam_attr random_attr(fuzz_case *c, const lam_row_attr *a) {
  static const char *const acts[] = {"", "gelu", "gelu_tanh", "silu", "relu", "relu2"};
  static const int64_t small[] = {0, 0, 0, 1, 1, 2, 3};
  if (chance(3)) return lam_attr_default();
  if (a->field->type == 's') return lam_attr_s(PICK(acts));
  if (a->field->type == 'I') return lam_attr_ints(c->ints, (uint32_t)rng_int(&r, 0, 3));
  if (!strcmp(a->name, "group") || !strcmp(a->name, "dtype")) return lam_attr_i(0);
  if (!strcmp(a->name, "seq")) return lam_attr_i(chance(2) ? c->t : 0);
  return lam_attr_i(PICK(small));
}

static void make_attrs(fuzz_case *c) {
  for (int i = 0; i < 10; i++) c->ints[i] = rng_int(&r, 0, 4);
  for (int i = 0; i < c->row->n_attrs; i++) c->attrs[i] = random_attr(c, &c->row->attrs[i]);
}

/* The outputs that lam_infer asks for, where it knows and they are small enough; else some that are
 * wrong. */
static void make_outputs(fuzz_case *c) {
  static const int64_t anything[] = {2, 2};
  lam_shape shapes[LAM_MAX_OUTPUTS];
  lam_inferred inferred = LAM_INFERRED_INIT;
  inferred.outputs = shapes;
  inferred.n_outputs = LAM_MAX_OUTPUTS;
  const bool known = lam_infer(NULL, &c->given.call, &inferred) == LAM_OK;
  for (int i = 0; i < c->row->n_out; i++) {
    host_tensor *h = &c->tensors[LAM_MAX_INPUTS + i];
    int64_t bytes = known ? 8 : BLOCK;
    for (int k = 0; known && k < shapes[i].ndim; k++)
      bytes = bytes > BLOCK ? bytes : bytes * shapes[i].dims[k];
    const bool fits = bytes < BLOCK;
    make_tensor(h, blocks[LAM_MAX_INPUTS + i], fits ? shapes[i].dtype : F32,
                fits && shapes[i].ndim >= 0 ? shapes[i].ndim : 2,
                fits && shapes[i].ndim >= 0 ? shapes[i].dims : anything);
    c->out[i] = known && shapes[i].ndim < 0 ? NULL : &h->t;
  }
}

static void make_case(fuzz_case *c) {
  memset(c, 0, sizeof *c);
  do c->row = lam_row_find((uint32_t)rng_int(&r, 0, LAM_OP_END_ - 1));
  while (!c->row);
  c->t = rng_int(&r, 0, 4), c->k = rng_int(&r, 0, 4), c->n = rng_int(&r, 0, 4);
  c->f = chance(2) ? c->n : rng_int(&r, 0, 4);
  c->given.call = (lam_call)LAM_CALL_INIT;
  lam_call *call = &c->given.call;
  call->op = c->row->id;
  call->inputs = c->in, call->n_inputs = (uint32_t)c->row->n_in;
  call->outputs = c->out, call->n_outputs = (uint32_t)c->row->n_out;
  call->attrs = c->attrs, call->n_attrs = (uint32_t)c->row->n_attrs;
  make_inputs(c, chance(2) ? F32 : BF16);
  make_attrs(c);
  make_outputs(c);
}

/* -- a wrong one -- */

static host_tensor *some_tensor(fuzz_case *c) {
  const int i = (int)rng_int(&r, 0, c->row->n_in + c->row->n_out - 1);
  return &c->tensors[i < c->row->n_in ? i : LAM_MAX_INPUTS + i - c->row->n_in];
}

static void spoil_shape(fuzz_case *c) {
  static const int64_t dims[] = {0, 1, 2, 3, 4, -1, INT64_MIN, INT64_MAX, INT64_MAX / 2};
  static const int64_t ndims[] = {0, 1, 2, 3, 4, 5, 8, 9, -1, INT32_MAX, INT32_MIN};
  host_tensor *h = some_tensor(c);
  if (chance(3)) {
    h->t.ndim = (int32_t)PICK(ndims);
    for (int i = 0; i < 10; i++)
      h->shape[i] = rng_int(&r, 0, 2), h->strides[i] = rng_int(&r, 0, 16);
  } else if (chance(10)) {
    h->t.shape = NULL;
  } else {
    h->shape[rng_int(&r, 0, 1)] = PICK(dims);
  }
}

static void spoil_strides(fuzz_case *c) {
  static const int64_t strides[] = {0, 1, 2, 3, 4, 5, 8, 16, -1, INT64_MIN, INT64_MAX};
  host_tensor *h = some_tensor(c);
  if (chance(4))
    h->t.strides = NULL;
  else
    h->strides[rng_int(&r, 0, 1)] = PICK(strides);
}

static void spoil_memory(fuzz_case *c) {
  static const uint64_t offsets[] = {0, 1, 2, 4, 8, 64, UINT64_MAX, 1ull << 63};
  host_tensor *h = some_tensor(c), *other = some_tensor(c);
  if (chance(4))
    h->t.data = NULL;
  else if (chance(3) && h->t.data) /* one beside NULL nobody could refuse */
    h->t.data = (char *)h->t.data + 1;
  else if (chance(2))
    h->t.data = other->t.data;
  else
    h->t.byte_offset = PICK(offsets);
}

static void spoil_kind(fuzz_case *c) {
  static const int32_t devices[] = {0, 1, 2, 3, 7, 10, 99, -1};
  host_tensor *h = some_tensor(c);
  if (chance(2)) {
    h->t.dtype = PICK(dtypes);
  } else {
    const int32_t type = PICK(devices);
    memcpy(&h->t.device.device_type, &type, sizeof type);
    h->t.device.device_id = (int32_t)rng_int(&r, -1, 1);
  }
}

static void spoil_attr(fuzz_case *c) {
  static const int64_t values[] = {
      -1, 0, 1, 2, 3, 7, 8, 1000, INT64_MAX, INT64_MIN, INT64_MAX / 4, 4 | 16 << 8, 2 | 32 << 8};
  lam_attr *a = &c->attrs[rng_int(&r, 0, LAM_MAX_ATTRS - 1)];
  a->type = (uint32_t)rng_int(&r, 0, 6);
  a->n = chance(3) ? (uint32_t)rng_int(&r, 0, 9) : 0;
  if (a->type == LAM_ATTR_INTS || a->type == LAM_ATTR_STRING)
    a->v.ints = chance(4) ? NULL : c->ints;
  else
    a->v.i = PICK(values);
}

static void spoil_call(fuzz_case *c) {
  static const uint32_t sizes[] = {0, 8, 71, 72, 73, 80, 88, UINT32_MAX};
  static const uint32_t ops[] = {0, 1, 2, 16, 32, 63, 127, 128, 1000, UINT32_MAX};
  lam_call *call = &c->given.call;
  switch (rng_int(&r, 0, 9)) {
    case 0:
      call->struct_size = PICK(sizes);
      break;
    case 1:
      call->struct_size = sizeof c->given, c->given.later[chance(2)] = chance(2);
      break;
    case 2:
      call->op = PICK(ops);
      break;
    case 3:
      call->n_inputs = (uint32_t)rng_int(&r, 0, LAM_MAX_INPUTS + 2);
      break;
    case 4:
      call->n_outputs = (uint32_t)rng_int(&r, 0, LAM_MAX_OUTPUTS + 2);
      break;
    case 5:
      call->n_attrs = (uint32_t)rng_int(&r, 0, LAM_MAX_ATTRS + 2);
      break;
    case 6:
      call->flags = chance(2) ? 1u << rng_int(&r, 0, 31) : 0;
      break;
    case 7:
      c->in[rng_int(&r, 0, LAM_MAX_INPUTS - 1)] = chance(2) ? NULL : &some_tensor(c)->t;
      break;
    case 8:
      c->out[rng_int(&r, 0, LAM_MAX_OUTPUTS - 1)] = chance(2) ? NULL : &some_tensor(c)->t;
      break;
    default:
      if (chance(3))
        call->inputs = NULL;
      else if (chance(2))
        call->outputs = NULL;
      else
        call->attrs = NULL;
  }
}

static void spoil(fuzz_case *c) {
  static void (*const ways[])(fuzz_case *) = {spoil_shape, spoil_strides, spoil_memory,
                                              spoil_kind,  spoil_attr,    spoil_call};
  for (int64_t n = rng_int(&r, 0, 3); n > 0; n--) PICK(ways)(c);
}

/* -- what must hold -- */

static bool may_be_written(const fuzz_case *c, int block) {
  for (uint32_t i = 0; c->given.call.outputs && i < c->given.call.n_outputs && i < LAM_MAX_OUTPUTS;
       i++) {
    const unsigned char *data = c->out[i] ? c->out[i]->data : NULL;
    if (data >= blocks[block] && data < blocks[block] + BLOCK) return true;
  }
  return false;
}

static void fill_blocks(void) {
  for (int i = 0; i < MAX_TENSORS; i++) {
    for (int k = 0; k < BLOCK; k += 8) {
      const uint64_t bits = rng_next(&r) & 0x3f3f3f3f3f3f3f3fu; /* finite as every float there is */
      memcpy(before[i] + k, &bits, 8);
    }
    memcpy(blocks[i], before[i], BLOCK);
  }
}

/* Blocks back to what they were; says whether anything changed that may not. */
static bool restore_blocks(const fuzz_case *c, lam_status status) {
  bool stray = false;
  for (int i = 0; i < MAX_TENSORS; i++) {
    if (!memcmp(blocks[i], before[i], BLOCK)) continue;
    stray |= status != LAM_OK || !may_be_written(c, i);
    memcpy(blocks[i], before[i], BLOCK);
  }
  return stray;
}

static void check_case(fuzz_case *c, int *n_ok) {
  lam_inferred inferred = LAM_INFERRED_INIT;
  lam_infer(NULL, &c->given.call, &inferred);
  const lam_status status = lam_run(NULL, &c->given.call);
  *n_ok += status == LAM_OK;
  CHECK(strcmp(lam_status_name(status), "UNKNOWN"));
  if (status != LAM_OK) CHECK(lam_last_error()[0] != 0);
  if (restore_blocks(c, status))
    check_fail(CHECK_AT, "status %d, but memory was written: %s", status, lam_last_error());
}

TEST(fuzz, calls_spoiled_at_random_are_refused_or_run_cleanly) {
  enum { N = 20000 };
  int n_ok = 0;
  r = (rng){seed()};
  for (int i = 0; i < MAX_TENSORS; i++) blocks[i] = aligned_alloc(64, BLOCK);
  fill_blocks();
  for (int i = 0; i < N; i++) {
    fuzz_case c;
    make_case(&c);
    spoil(&c);
    NOTE("case %d, %s", i, c.row->name);
    check_case(&c, &n_ok);
  }
  for (int i = 0; i < MAX_TENSORS; i++) free(blocks[i]);
  CHECK(n_ok > N / 10); /* so that operators are reached, too */
  CHECK(n_ok < N / 2);
}
