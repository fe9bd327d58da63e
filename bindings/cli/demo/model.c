/* model.c: the weights of one stage on one worker: its layers, the worker's share of every matrix
 * that is split.
 *
 * Query, key and value rows are split by heads, gate and up rows by FFN width (column split); the
 * two matrices that follow them lose the same columns (row split). Norms, embedding and head are
 * whole on every part of a tensor-parallel group: their gradients come out equal there, since all
 * parts see the same activations.
 * Invariant: a weight's first value depends on the seed, its name's place and its row and column
 * in the whole, never on pp or tp. Leaves products to layer.c, updates to adamw.c. */
#include <math.h>
#include <stdio.h>

#include "bindings/cli/demo/demo.h"
#include "bindings/cli/demo/rows.h"

static span piece(const lam_shard_info *share, int i) {
  return (span){share->pieces[i].begin, share->pieces[i].end};
}

static param *describe(param *p, const char *name, int layer, int64_t rows, int64_t cols,
                       float deviation) {
  *p = (param){
      .whole_rows = rows, .whole_cols = cols, .rows = {{0, rows}}, .n_rows = 1, .cols = {0, cols}};
  if (layer >= 0)
    snprintf(p->name, sizeof p->name, "layers.%d.%s.weight", layer, name);
  else
    snprintf(p->name, sizeof p->name, "%s.weight", name);
  p->deviation = deviation;
  p->w = matrix_at(NULL, rows, cols, 32);
  return p;
}

/* Blocks of `whole` rows one after the other (q, k, v; gate, up), `part` of each held here. */
static void split_rows(param *p, int blocks, int64_t whole, span part) {
  for (int i = 0; i < blocks; i++)
    p->rows[i] = (span){i * whole + part.begin, i * whole + part.end};
  p->n_rows = blocks;
  p->w.rows = blocks * (part.end - part.begin);
  p->split = true;
}

static void split_cols(param *p, span part) {
  p->cols = part;
  p->w.cols = part.end - part.begin;
  p->split = true;
}

static void describe_layer(const options *o, int layer, span attention, span ffn, param *p) {
  const int64_t h = o->hidden, f = o->ffn;
  const float in = 1 / sqrtf((float)h),
              out = in / sqrtf(2 * (float)o->layers); /* keeps the residual's size as it sums up */
  describe(&p[NORM1], "norm1", layer, 1, h, 0);
  split_rows(describe(&p[QKV], "attention.qkv", layer, 3 * h, h, in), 3, h, attention);
  split_cols(describe(&p[ATTENTION_OUT], "attention.out", layer, h, h, out), attention);
  describe(&p[NORM2], "norm2", layer, 1, h, 0);
  split_rows(describe(&p[GATE_UP], "ffn.gate_up", layer, 2 * f, h, in), 2, f, ffn);
  split_cols(describe(&p[DOWN], "ffn.down", layer, h, f, out * sqrtf((float)h / (float)f)), ffn);
  for (int i = 0; i < N_LAYER_PARAMS; i++)
    if (i != NORM1 && i != NORM2) p[i].w.bits = o->bits;
}

static void describe_ends(const options *o, model *m, param *next) {
  if (m->stage == 0) {
    m->embedding = describe(next++, "embedding", -1, VOCAB, o->hidden, 0.5f);
    m->position = describe(next++, "position", -1, o->sequence, o->hidden, 0.1f);
  }
  if (m->stage == o->n_stages - 1) {
    m->last_norm = describe(next++, "last_norm", -1, 1, o->hidden, 0);
    m->head = describe(next++, "head", -1, VOCAB, o->hidden, 0.5f / sqrtf((float)o->hidden));
    m->head->w.bits = o->bits;
  }
}

lam_status model_describe(const options *o, int stage, int part, model *out) {
  lam_shard_info attention = LAM_SHARD_INFO_INIT, ffn = LAM_SHARD_INFO_INIT;
  TRY(lam_shard(o->hidden, o->head_size, 0, part, o->tp, &attention));
  TRY(lam_shard(o->ffn, 32, 0, part, o->tp, &ffn));
  const span a = piece(&attention, 0), f = piece(&ffn, 0);
  *out = (model){
      .o = o, .stage = stage, .part = part, .attention = a.end - a.begin, .ffn = f.end - f.begin};
  out->heads = (span){a.begin / o->head_size, a.end / o->head_size};
  out->n_layers = o->first_layer[stage + 1] - o->first_layer[stage];
  out->n_params =
      out->n_layers * N_LAYER_PARAMS + 2 * (stage == 0) + 2 * (stage == o->n_stages - 1);
  out->params = memory_take((uint64_t)out->n_params * sizeof(param));
  if (!out->params) return fail(LAM_RESOURCE_EXHAUSTED, "no memory to describe the model");
  for (int l = 0; l < out->n_layers; l++)
    describe_layer(o, o->first_layer[stage] + l, a, f, out->params + l * N_LAYER_PARAMS);
  describe_ends(o, out, out->params + out->n_layers * N_LAYER_PARAMS);
  return LAM_OK;
}

int64_t param_whole_row(const param *p, int64_t row) {
  for (int i = 0; i < p->n_rows; i++) {
    const int64_t n = p->rows[i].end - p->rows[i].begin;
    if (row < n) return p->rows[i].begin + row;
    row -= n;
  }
  return -1;
}

static uint64_t name_key(const char *name) {
  uint64_t key = 0;
  while (*name) key = hash(key, (uint64_t)*name++);
  return key;
}

/* Even over [-sqrt 3, sqrt 3) times the deviation, from the place in the whole. */
static void fill_rows(param *p, uint64_t seed) {
  const uint64_t key = hash(seed, name_key(p->name));
  const float scale = p->deviation * 1.7320508f / 8388608.0f;
#pragma omp parallel for
  for (int64_t r = 0; r < p->w.rows; r++) {
    const uint64_t row = hash(key, (uint64_t)param_whole_row(p, r));
    float *to = p->master + r * p->w.cols;
    for (int64_t c = 0; c < p->w.cols; c++) {
      const int64_t bits =
          (int64_t)(hash(row, (uint64_t)(p->cols.begin + c)) >> 40) - 8388608; /* 24 bits, signed */
      to[c] = p->deviation == 0 ? 1 : scale * (float)bits;
    }
    row_store(p->w, r, to);
  }
}

/* What is made on the host to where the worker computes. */
static lam_status fill_there(param *p, uint64_t seed) {
  const uint64_t n = (uint64_t)param_size(p);
  param made = *p;
  lam_status status = LAM_OK;
  made.master = memory_take(n * 4);
  made.w.data = p->w.bits == 32 ? made.master : memory_take(n * 2);
  if (!made.master || !made.w.data)
    status = fail(LAM_RESOURCE_EXHAUSTED, "no memory to make %s", p->name);
  if (status == LAM_OK) fill_rows(&made, seed);
  if (status == LAM_OK) status = here->write(made.master, p->master, n * 4);
  if (status == LAM_OK && p->w.bits == 16) status = here->write(made.w.data, p->w.data, n * 2);
  if (p->w.bits == 16) memory_give(made.w.data, n * 2);
  memory_give(made.master, n * 4);
  return status;
}

static lam_status fill(param *p, uint64_t seed) {
  const uint64_t n = (uint64_t)param_size(p);
  p->master = here->take(n * 4);
  p->grad = here->take(n * 4);
  p->m = here->take(n * 4);
  p->v = here->take(n * 4);
  p->w.data = p->w.bits == 32 ? p->master : here->take(n * 2);
  if (!p->master || !p->grad || !p->m || !p->v || !p->w.data)
    return fail(LAM_RESOURCE_EXHAUSTED, "no memory for %s", p->name);
  if (here != &device_host) return fill_there(p, seed);
  fill_rows(p, seed);
  return LAM_OK;
}

lam_status model_fill(model *m) {
  for (int i = 0; i < m->n_params; i++) TRY(fill(&m->params[i], (uint64_t)m->o->seed));
  return LAM_OK;
}

void model_free(model *m) {
  for (int i = 0; i < m->n_params && m->params; i++) {
    param *p = &m->params[i];
    const uint64_t n = (uint64_t)param_size(p);
    if (p->w.data != p->master) here->give(p->w.data, n * 2);
    here->give(p->master, n * 4);
    here->give(p->grad, n * 4);
    here->give(p->m, n * 4);
    here->give(p->v, n * 4);
  }
  memory_give(m->params, (uint64_t)m->n_params * sizeof(param));
  *m = (model){0};
}
