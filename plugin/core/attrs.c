/* attrs.c: the attribute names of the operator table, their ranges, and how each is read.
 * Invariant: one line per name; a row that uses another name does not parse.
 * Leaves which row has which attributes to row.c. */
#include "plugin/core/attrs.h"

#include <math.h>
#include <stddef.h>
#include <string.h>

#define LARGEST (INT64_MAX / 4) /* sums and doubles of sizes still fit */

static const char *const acts[LAM_N_ACTS] = {
    [LAM_ACT_NONE] = "",     [LAM_ACT_GELU] = "gelu", [LAM_ACT_GELU_TANH] = "gelu_tanh",
    [LAM_ACT_SILU] = "silu", [LAM_ACT_RELU] = "relu", [LAM_ACT_RELU2] = "relu2",
};

static lam_status set_int(lam_who who, const lam_attr_field *f, const lam_attr *given, void *to) {
  if (given->v.i < f->least || given->v.i > f->most)
    return lam_refuse(who, "found %lld, expected %lld to %lld", (long long)given->v.i,
                      (long long)f->least, (long long)f->most);
  *(int64_t *)to = given->v.i;
  return LAM_OK;
}

static lam_status set_double(lam_who who, const lam_attr_field *f, const lam_attr *given,
                             void *to) {
  (void)f;
  if (!isfinite(given->v.f))
    return lam_refuse(who, "found %g, expected a finite number", given->v.f);
  *(double *)to = given->v.f;
  return LAM_OK;
}

static lam_status set_act(lam_who who, const lam_attr_field *f, const lam_attr *given, void *to) {
  (void)f;
  for (int i = 0; i < LAM_N_ACTS; i++) {
    if (strlen(acts[i]) != given->n || (given->n && memcmp(acts[i], given->v.s, given->n)))
      continue;
    *(int64_t *)to = i;
    return LAM_OK;
  }
  return lam_refuse(who, "found '%.*s', expected one of '' gelu gelu_tanh silu relu relu2",
                    (int)(given->n < 40 ? given->n : 40), given->v.s);
}

/* code | bits << 8, as DLPack counts them; 0 = as the first input. */
static lam_status set_dtype(lam_who who, const lam_attr_field *f, const lam_attr *given, void *to) {
  lam_dtype t;
  const uint64_t v = (uint64_t)given->v.i;
  (void)f;
  *(int64_t *)to = -1;
  if (v == 0) return LAM_OK;
  if (v >> 16 || !lam_dtype_from_dlpack((DLDataType){(uint8_t)v, (uint8_t)(v >> 8), 1}, &t))
    return lam_refuse(who, "found %lld, which is no known code | bits << 8", (long long)given->v.i);
  *(int64_t *)to = t;
  return LAM_OK;
}

static lam_status set_shape(lam_who who, const lam_attr_field *f, const lam_attr *given, void *to) {
  lam_op_attrs *all = (lam_op_attrs *)((char *)to - f->offset);
  if (given->n > LAM_MAX_DIMS)
    return lam_refuse(who, "found %u dimensions, expected at most %d", given->n, LAM_MAX_DIMS);
  for (uint32_t i = 0; i < given->n; i++)
    if (given->v.ints[i] < 0 || given->v.ints[i] > LARGEST)
      return lam_refuse(who, "dimension %u is %lld, expected at least 0", i,
                        (long long)given->v.ints[i]);
  all->shape = given->v.ints;
  all->n_shape = (int32_t)given->n;
  return LAM_OK;
}

#define AT(name) offsetof(lam_op_attrs, name)
static const lam_attr_field fields[] = {
    {"group", 'i', AT(group), 0, INT64_MAX, NULL},
    {"act", 's', AT(act), 1, 0, set_act},
    {"save", 'i', AT(save), 0, 1, NULL},
    {"gather", 'i', AT(gather), 0, 1, NULL},
    {"split", 'i', AT(split), 0, 1, NULL},
    {"gated", 'i', AT(gated), 0, 1, NULL},
    {"acc", 'i', AT(acc), 0, 1, NULL},
    {"seq", 'i', AT(seq), 0, LARGEST, NULL},
    {"total", 'i', AT(total), 0, LARGEST, NULL},
    {"unit", 'i', AT(unit), 0, LARGEST, NULL},
    {"chunks", 'i', AT(chunks), 0, 1 << 20, NULL},
    {"dtype", 'i', AT(dtype), 1, 0, set_dtype},
    {"dim", 'i', AT(dim), 0, LAM_MAX_DIMS - 1, NULL},
    {"root", 'i', AT(root), 0, INT32_MAX, NULL},
    {"peer", 'i', AT(peer), 0, INT32_MAX, NULL},
    {"kind", 'i', AT(kind), 0, 1, NULL},
    {"tag", 'i', AT(tag), -1, INT32_MAX, NULL},
    {"codec", 'i', AT(codec), 0, LAM_CODEC_INT8, NULL},
    {"shape", 'I', AT(shape), 1, 0, set_shape},
    {"side", 'i', AT(side), 0, 1, NULL},
    {"cols", 'i', AT(cols), 0, LARGEST, NULL},
    {"ignore", 'i', AT(ignore), INT64_MIN, INT64_MAX, NULL},
    {"eps", 'f', AT(eps), 1, 0, set_double},
};

const lam_attr_field *lam_attr_field_find(const char *name) {
  for (size_t i = 0; i < sizeof fields / sizeof *fields; i++)
    if (!strcmp(fields[i].name, name)) return &fields[i];
  return NULL;
}

static const struct {
  char type;
  const char *words;
} types[] = {
    [LAM_ATTR_DEFAULT] = {0, "nothing"},   [LAM_ATTR_INT] = {'i', "an int"},
    [LAM_ATTR_DOUBLE] = {'f', "a double"}, [LAM_ATTR_INTS] = {'I', "a list of ints"},
    [LAM_ATTR_STRING] = {'s', "a string"},
};

static lam_status wrong_type(lam_who who, const lam_attr_field *f, uint32_t found) {
  const uint32_t n = sizeof types / sizeof *types;
  uint32_t want = LAM_ATTR_INT;
  while (types[want].type != f->type) want++;
  if (found >= n) return lam_refuse(who, "found type %u, which is no LAM_ATTR_ type", found);
  return lam_refuse(who, "found %s, expected %s", types[found].words, types[want].words);
}

lam_status lam_attr_bind(lam_who who, const lam_attr_field *f, const lam_attr *given,
                         lam_op_attrs *out) {
  if (given->type == LAM_ATTR_DEFAULT) return LAM_OK;
  if (given->type > LAM_ATTR_STRING || types[given->type].type != f->type)
    return wrong_type(who, f, given->type);
  if (given->type >= LAM_ATTR_INTS && given->n && !given->v.ints)
    return lam_refuse(who, "its pointer is NULL, its count is %u", given->n);
  return (f->set ? f->set : set_int)(who, f, given, (char *)out + f->offset);
}
