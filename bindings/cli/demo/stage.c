/* stage.c: the layers of one stage as the functions that a Lamella pipeline calls: a micro-batch's
 * forward; its backward, whole or in two, for the input and for the weights. The first stage starts
 * from the text's tokens, the last one ends in the loss.
 *
 * What a forward leaves for its backward is one block of memory per micro-batch in flight; blocks
 * are kept and used again by all stages of a worker, so there are as many as the schedule holds at
 * once.
 * Invariant: a stage's input stays valid until its last backward (LAM_STAGE_KEEPS_INPUT), its
 * output is the pipeline's own slot.
 * Leaves when to call what to the schedule. */
#include "bindings/cli/demo/demo.h"

struct stage_saved {
  stage_saved *next;
  char *block;
  uint8_t *tokens, *targets;
  matrix
      x; /* what the first layer reads: the pipeline's slot, or on the first stage the embedding */
  matrix h, logits; /* last stage: [T, H] after the last norm, [T, VOCAB] or their gradient */
  float *r;         /* [T] of the last norm */
  layer_saved layers[];
};

/* -- one micro-batch's block: laid out with base NULL to know its size, then by who takes it -- */

typedef struct cutter {
  char *base;
  uint64_t used;
} cutter;

static void *cut(cutter *c, uint64_t bytes) {
  void *at = c->base ? c->base + c->used : NULL;
  c->used += (bytes + 63) / 64 * 64;
  return at;
}

static matrix cut_matrix(cutter *c, int64_t rows, int64_t cols, int bits) {
  matrix m = matrix_at(NULL, rows, cols, bits);
  m.data = cut(c, matrix_bytes(m));
  return m;
}

static float *cut_floats(cutter *c, int64_t n) { return cut(c, (uint64_t)n * 4); }

static void cut_layer(const model *m, bool keeps_y, cutter *c, layer_saved *s) {
  const options *o = m->o;
  const int64_t t = o->tokens, h = o->hidden, heads = m->heads.end - m->heads.begin;
  s->h1 = cut_matrix(c, t, h, o->bits);
  s->qkv = cut_matrix(c, t, 3 * m->attention, o->bits);
  s->o = cut_matrix(c, t, m->attention, o->bits);
  s->mid = cut_matrix(c, t, h, o->bits);
  s->h2 = cut_matrix(c, t, h, o->bits);
  s->aux = cut_matrix(c, t, 2 * m->ffn, o->bits);
  s->y = keeps_y ? cut_matrix(c, t, h, o->bits) : ABSENT;
  s->d_y = keeps_y || !o->splits ? s->y : cut_matrix(c, t, h, o->bits);
  s->d_aux = o->splits ? cut_matrix(c, t, 2 * m->ffn, o->bits) : ABSENT;
  s->lse = cut_floats(c, heads * t);
  s->r1 = cut_floats(c, t);
  s->r2 = cut_floats(c, t);
}

static uint64_t cut_saved(const model *m, char *base, stage_saved *s) {
  cutter c = {base, 0};
  const int64_t t = m->o->tokens, h = m->o->hidden;
  s->tokens = cut(&c, (uint64_t)t);
  s->targets = cut(&c, (uint64_t)t);
  for (int l = 0; l < m->n_layers; l++)
    cut_layer(m, l + 1 < m->n_layers || m->head, &c, &s->layers[l]);
  if (m->embedding) s->x = cut_matrix(&c, t, h, m->o->bits);
  if (m->head) {
    s->h = cut_matrix(&c, t, h, m->o->bits);
    s->logits = cut_matrix(&c, t, VOCAB, m->o->bits);
    s->r = cut_floats(&c, t);
  }
  return c.used;
}

static uint64_t saved_size(const desk *d) {
  return sizeof(stage_saved) + (uint64_t)d->most_layers * sizeof(layer_saved);
}

static void saved_free(const desk *d, stage_saved *s) {
  if (!s) return;
  here->give(s->block, d->block_bytes);
  memory_give(s, saved_size(d));
}

static stage_saved *saved_new(const desk *d) {
  stage_saved *s = memory_take(saved_size(d));
  if (!s) return NULL;
  s->block = here->take(d->block_bytes);
  if (!s->block) return saved_free(d, s), NULL;
  return s;
}

static lam_status saved_take(stage *s, int micro, stage_saved **out) {
  stage_saved *saved = s->desk->idle;
  if (saved)
    s->desk->idle = saved->next;
  else
    saved = saved_new(s->desk);
  if (!saved)
    return fail(LAM_RESOURCE_EXHAUSTED, "no memory for the activations of micro-batch %d", micro);
  cut_saved(s->m, saved->block, saved);
  *out = s->by_micro[micro] = saved;
  return LAM_OK;
}

static void saved_give(stage *s, int micro) {
  s->by_micro[micro]->next = s->desk->idle;
  s->desk->idle = s->by_micro[micro];
  s->by_micro[micro] = NULL;
}

/* -- the functions -- */

static matrix slot(const DLTensor *t, int bits) {
  return matrix_at((char *)t->data + t->byte_offset, t->shape[0], t->shape[1], bits);
}

static lam_status head_forward(stage *s, stage_saved *saved, matrix y, double *loss) {
  const model *m = s->m;
  here->norm_forward(y, ABSENT, m->last_norm->master, ABSENT, saved->h, saved->r);
  TRY(call_op(s->desk->room.ctx, LAM_OP_linear, IN(saved->h, m->head->w), OUT(saved->logits), NULL,
              0));
  const double share = 1.0 / m->o->micro_batches;
  here->cross_entropy(saved->logits, saved->targets, (float)(share / (double)m->o->tokens), share,
                      loss);
  return LAM_OK;
}

/* d may be y. */
static lam_status head_backward_input(stage *s, stage_saved *saved, matrix y, matrix d) {
  const model *m = s->m;
  layer_room *room = &s->desk->room;
  TRY(call_op(room->ctx, LAM_OP_linear_dgrad, IN(saved->logits, m->head->w), OUT(room->d_h), NULL,
              0));
  here->norm_backward(room->d_h, y, m->last_norm->master, saved->r, ABSENT, d, m->last_norm->grad);
  return LAM_OK;
}

static lam_status head_backward_weight(stage *s, stage_saved *saved) {
  const matrix d_head = matrix_at(s->m->head->grad, VOCAB, s->m->o->hidden, 32);
  return call_op(s->desk->room.ctx, LAM_OP_linear_wgrad, IN(saved->logits, saved->h), OUT(d_head),
                 ATTRS(I(1)));
}

static lam_status forward(stage *s, const lam_stage_io *io) {
  const model *m = s->m;
  stage_saved *saved = NULL;
  TRY(saved_take(s, io->micro, &saved));
  if (m->embedding || m->head)
    here->batch(s->text, m->o, io->step, io->micro, saved->tokens, saved->targets);
  if (m->embedding)
    here->embed_forward(saved->tokens, m->o->sequence, m->embedding->master, m->position->master,
                        saved->x);
  else
    saved->x = slot(&io->in[0], m->o->bits);

  layer_saved *last = &saved->layers[m->n_layers - 1];
  if (!m->head) last->y = slot(&io->out[0], m->o->bits);
  matrix x = saved->x;
  for (int l = 0; l < m->n_layers; x = saved->layers[l++].y)
    TRY(layer_forward(m, l, &s->desk->room, x, &saved->layers[l]));
  return m->head ? head_forward(s, saved, x, io->loss) : LAM_OK;
}

static void end_of_backward(stage *s, const stage_saved *saved, matrix d) {
  const model *m = s->m;
  if (m->embedding)
    here->embed_backward(saved->tokens, m->o->sequence, d, m->embedding->grad, m->position->grad);
}

static lam_status backward(stage *s, const lam_stage_io *io) {
  const model *m = s->m;
  stage_saved *saved = s->by_micro[io->micro];
  matrix d =
      s->desk->d; /* the gradient of the layer's output; the first comes from the next stage */
  if (m->head) {
    TRY(head_backward_input(s, saved, saved->layers[m->n_layers - 1].y, d));
    TRY(head_backward_weight(s, saved));
  } else {
    d = slot(&io->in[0], m->o->bits);
  }
  for (int l = m->n_layers - 1; l >= 0; l--) {
    const matrix x = l ? saved->layers[l - 1].y : saved->x;
    const matrix d_x = l || m->embedding ? s->desk->d : slot(&io->out[0], m->o->bits);
    TRY(layer_backward(m, l, &s->desk->room, x, &saved->layers[l], d, d_x));
    d = d_x;
  }
  end_of_backward(s, saved, d);
  saved_give(s, io->micro);
  return LAM_OK;
}

/* A layer's gradient lies where its output was. */
static lam_status backward_input(stage *s, const lam_stage_io *io) {
  const model *m = s->m;
  stage_saved *saved = s->by_micro[io->micro];
  const layer_saved *last = &saved->layers[m->n_layers - 1];
  if (m->head)
    TRY(head_backward_input(s, saved, last->y, last->d_y));
  else
    here->copy(slot(&io->in[0], m->o->bits).data, last->d_y.data, matrix_bytes(last->d_y));
  matrix d = last->d_y;
  for (int l = m->n_layers - 1; l >= 0; l--) {
    const matrix x = l ? saved->layers[l - 1].y : saved->x;
    d = l ? saved->layers[l - 1].d_y : m->embedding ? s->desk->d : slot(&io->out[0], m->o->bits);
    TRY(layer_backward_input(m, l, &s->desk->room, x, &saved->layers[l], d));
  }
  end_of_backward(s, saved, d);
  return LAM_OK;
}

static lam_status backward_weight(stage *s, const lam_stage_io *io) {
  const model *m = s->m;
  stage_saved *saved = s->by_micro[io->micro];
  if (m->head) TRY(head_backward_weight(s, saved));
  for (int l = m->n_layers - 1; l >= 0; l--)
    TRY(layer_backward_weight(m, l, &s->desk->room, &saved->layers[l]));
  saved_give(s, io->micro);
  return LAM_OK;
}

static lam_status timed(lam_status (*function)(stage *, const lam_stage_io *), int kind, void *user,
                        const lam_stage_io *io) {
  stage *s = user;
  const int64_t began = cpu_ns();
  const lam_status status = function(s, io);
  s->cpu[kind][io->micro] = cpu_ns() - began;
  return status;
}

static lam_status stage_forward(void *user, const lam_stage_io *io) {
  return timed(forward, LAM_KIND_F, user, io);
}
static lam_status stage_backward(void *user, const lam_stage_io *io) {
  return timed(backward, LAM_KIND_B, user, io);
}
static lam_status stage_backward_input(void *user, const lam_stage_io *io) {
  return timed(backward_input, LAM_KIND_I, user, io);
}
static lam_status stage_backward_weight(void *user, const lam_stage_io *io) {
  return timed(backward_weight, LAM_KIND_W, user, io);
}

lam_stage stage_functions(stage *s) {
  lam_stage functions = LAM_STAGE_INIT;
  functions.flags = LAM_STAGE_KEEPS_INPUT;
  functions.user = s;
  functions.forward = stage_forward;
  functions.backward = stage_backward;
  functions.backward_input = stage_backward_input;
  functions.backward_weight = stage_backward_weight;
  functions.first_layer = (uint32_t)s->m->o->first_layer[s->m->stage] + 1;
  functions.n_layers = (uint32_t)s->m->n_layers;
  return functions;
}

/* -- creation -- */

static uint64_t attention_bytes(const options *o) { /* kernels need none */
  if (o->on_gpu) return 0;
  return (uint64_t)attention_room_floats(o->sequence, o->head_size, o->threads) * 4;
}

static matrix new_matrix(int64_t rows, int64_t cols, int bits) {
  matrix m = matrix_at(NULL, rows, cols, bits);
  m.data = here->take(matrix_bytes(m));
  return m;
}

/* Of the largest stage, so that a block serves all of them. */
static lam_status size_blocks(const model *models, int n_models, desk *d) {
  for (int i = 0; i < n_models; i++)
    if (models[i].n_layers > d->most_layers) d->most_layers = models[i].n_layers;
  stage_saved *s = memory_take(saved_size(d));
  if (!s) return fail(LAM_RESOURCE_EXHAUSTED, "no memory for the stages");
  for (int i = 0; i < n_models; i++) {
    const uint64_t bytes = cut_saved(&models[i], NULL, s);
    d->block_bytes = bytes > d->block_bytes ? bytes : d->block_bytes;
  }
  memory_give(s, saved_size(d));
  return LAM_OK;
}

lam_status desk_create(const model *models, int n_models, lam_context *ctx, int64_t tp, desk *out) {
  const options *o = models[0].o;
  *out = (desk){.o = o, .room = {.ctx = ctx, .tp = tp}};
  TRY(size_blocks(models, n_models, out));
  layer_room *r = &out->room;
  matrix *of_hidden[] = {&out->d, &r->out, &r->d_h, &r->d_mid};
  for (int i = 0; i < 4; i++) *of_hidden[i] = new_matrix(o->tokens, o->hidden, o->bits);
  r->d_o = new_matrix(o->tokens, models[0].attention, o->bits);
  r->d_qkv = new_matrix(o->tokens, 3 * models[0].attention, o->bits);
  r->attention = here->take(attention_bytes(o));
  if (!out->d.data || !r->out.data || !r->d_h.data || !r->d_mid.data || !r->d_o.data ||
      !r->d_qkv.data || !r->attention)
    return fail(LAM_RESOURCE_EXHAUSTED, "no memory for gradients of activations");
  return LAM_OK;
}

void stage_destroy(stage *s) {
  for (int i = 0; s->m && i < MAX_MICRO; i++) saved_free(s->desk, s->by_micro[i]);
  *s = (stage){0};
}

void desk_destroy(desk *d) {
  if (!d->o) return;
  for (stage_saved *saved = d->idle, *next; saved; saved = next)
    next = saved->next, saved_free(d, saved);
  layer_room *r = &d->room;
  matrix *all[] = {&d->d, &r->out, &r->d_h, &r->d_mid, &r->d_o, &r->d_qkv};
  for (int i = 0; i < 6; i++) here->give(all[i]->data, matrix_bytes(*all[i]));
  here->give(r->attention, attention_bytes(d->o));
  *d = (desk){0};
}
