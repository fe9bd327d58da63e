/* stage.c: the layers of one worker as the two functions that a Lamella pipeline calls: a forward
 * and a backward of one micro-batch. The first stage starts from the text's tokens, the last one
 * ends in the loss.
 *
 * What a forward leaves for its backward is one block of memory per micro-batch in flight; blocks
 * are kept and used again, so there are as many as the schedule holds at once.
 * Invariant: a stage's input stays valid until its backward (LAM_STAGE_KEEPS_INPUT), its output is
 * the pipeline's own slot.
 * Leaves when to call what to the schedule. */
#include <string.h>

#include "bindings/cli/demo/demo.h"

struct stage_saved {
  stage_saved *next;
  char *block;
  uint64_t bytes;
  uint8_t *tokens, *targets;
  matrix
      x; /* what the first layer reads: the pipeline's slot, or on the first stage the embedding */
  matrix h, logits; /* last stage: [T, H] after the last norm, [T, VOCAB] or their gradient */
  float *r;         /* [T] of the last norm */
  layer_saved layers[];
};

/* -- one micro-batch's block: laid out once with base NULL to know its size, then for good -- */

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

static uint64_t saved_size(const model *m) {
  return sizeof(stage_saved) + (uint64_t)m->n_layers * sizeof(layer_saved);
}

static void saved_free(const model *m, stage_saved *s) {
  if (!s) return;
  memory_give(s->block, s->bytes);
  memory_give(s, saved_size(m));
}

static stage_saved *saved_new(const model *m) {
  stage_saved *s = memory_take(saved_size(m));
  if (!s) return NULL;
  s->bytes = cut_saved(m, NULL, s);
  s->block = memory_take(s->bytes);
  if (!s->block) return saved_free(m, s), NULL;
  cut_saved(m, s->block, s);
  return s;
}

static lam_status saved_take(stage *s, int micro, stage_saved **out) {
  stage_saved *saved = s->idle;
  if (saved)
    s->idle = saved->next;
  else
    saved = saved_new(s->m);
  if (!saved)
    return fail(LAM_RESOURCE_EXHAUSTED, "no memory for the activations of micro-batch %d", micro);
  *out = s->by_micro[micro] = saved;
  return LAM_OK;
}

static void saved_give(stage *s, int micro) {
  s->by_micro[micro]->next = s->idle;
  s->idle = s->by_micro[micro];
  s->by_micro[micro] = NULL;
}

/* -- the two functions -- */

static matrix slot(const DLTensor *t, int bits) {
  return matrix_at((char *)t->data + t->byte_offset, t->shape[0], t->shape[1], bits);
}

static lam_status head_forward(stage *s, stage_saved *saved, matrix y, double *loss) {
  const model *m = s->m;
  norm_forward(y, ABSENT, m->last_norm->master, ABSENT, saved->h, saved->r);
  TRY(call_op(s->room.ctx, LAM_OP_linear, IN(saved->h, m->head->w), OUT(saved->logits), NULL, 0));
  const double share = 1.0 / m->o->micro_batches;
  *loss +=
      cross_entropy(saved->logits, saved->targets, (float)(share / (double)m->o->tokens)) * share;
  return LAM_OK;
}

static lam_status head_backward(stage *s, stage_saved *saved, matrix y) {
  const model *m = s->m;
  const matrix d_head = matrix_at(m->head->grad, VOCAB, m->o->hidden, 32);
  TRY(call_op(s->room.ctx, LAM_OP_linear_dgrad, IN(saved->logits, m->head->w), OUT(s->room.d_h),
              NULL, 0));
  TRY(call_op(s->room.ctx, LAM_OP_linear_wgrad, IN(saved->logits, saved->h), OUT(d_head),
              ATTRS(I(1))));
  norm_backward(s->room.d_h, y, m->last_norm->master, saved->r, ABSENT, s->d, m->last_norm->grad);
  return LAM_OK;
}

static lam_status forward(stage *s, const lam_stage_io *io) {
  const model *m = s->m;
  stage_saved *saved = NULL;
  TRY(saved_take(s, io->micro, &saved));
  if (m->embedding || m->head)
    text_batch(s->text, m->o, io->step, io->micro, saved->tokens, saved->targets);
  if (m->embedding)
    embed_forward(saved->tokens, m->o->sequence, m->embedding->master, m->position->master,
                  saved->x);
  else
    saved->x = slot(&io->in[0], m->o->bits);

  layer_saved *last = &saved->layers[m->n_layers - 1];
  if (!m->head) last->y = slot(&io->out[0], m->o->bits);
  matrix x = saved->x;
  for (int l = 0; l < m->n_layers; x = saved->layers[l++].y)
    TRY(layer_forward(m, l, &s->room, x, &saved->layers[l]));
  return m->head ? head_forward(s, saved, x, io->loss) : LAM_OK;
}

static lam_status backward(stage *s, const lam_stage_io *io) {
  const model *m = s->m;
  stage_saved *saved = s->by_micro[io->micro];
  matrix d = s->d; /* the gradient of the layer's output; the first one comes from the next stage */
  if (m->head)
    TRY(head_backward(s, saved, saved->layers[m->n_layers - 1].y));
  else
    d = slot(&io->in[0], m->o->bits);
  for (int l = m->n_layers - 1; l >= 0; l--) {
    const matrix x = l ? saved->layers[l - 1].y : saved->x;
    const matrix d_x = l || m->embedding ? s->d : slot(&io->out[0], m->o->bits);
    TRY(layer_backward(m, l, &s->room, x, &saved->layers[l], d, d_x));
    d = d_x;
  }
  if (m->embedding)
    embed_backward(saved->tokens, m->o->sequence, d, m->embedding->grad, m->position->grad);
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
  return timed(forward, 0, user, io);
}
static lam_status stage_backward(void *user, const lam_stage_io *io) {
  return timed(backward, 1, user, io);
}

lam_stage stage_functions(stage *s) {
  lam_stage functions = LAM_STAGE_INIT;
  functions.flags = LAM_STAGE_KEEPS_INPUT;
  functions.user = s;
  functions.forward = stage_forward;
  functions.backward = stage_backward;
  return functions;
}

/* -- creation -- */

static uint64_t attention_bytes(const options *o) {
  return (uint64_t)attention_room_floats(o->sequence, o->head_size, o->threads) * 4;
}

static matrix new_matrix(int64_t rows, int64_t cols, int bits) {
  matrix m = matrix_at(NULL, rows, cols, bits);
  m.data = memory_take(matrix_bytes(m));
  return m;
}

lam_status stage_create(model *m, const text *t, lam_context *ctx, int64_t tp, stage *out) {
  const options *o = m->o;
  *out = (stage){.m = m, .text = t, .room = {.ctx = ctx, .tp = tp}};
  layer_room *r = &out->room;
  matrix *of_hidden[] = {&out->d, &r->out, &r->d_h, &r->d_mid};
  for (int i = 0; i < 4; i++) *of_hidden[i] = new_matrix(o->tokens, o->hidden, o->bits);
  r->d_o = new_matrix(o->tokens, m->attention, o->bits);
  r->d_qkv = new_matrix(o->tokens, 3 * m->attention, o->bits);
  r->attention = memory_take(attention_bytes(o));
  if (!out->d.data || !r->out.data || !r->d_h.data || !r->d_mid.data || !r->d_o.data ||
      !r->d_qkv.data || !r->attention)
    return fail(LAM_RESOURCE_EXHAUSTED, "no memory for gradients of activations");
  return LAM_OK;
}

void stage_destroy(stage *s) {
  if (!s->m) return;
  for (stage_saved *saved = s->idle, *next; saved; saved = next)
    next = saved->next, saved_free(s->m, saved);
  for (int i = 0; i < MAX_MICRO; i++) saved_free(s->m, s->by_micro[i]);
  layer_room *r = &s->room;
  matrix *all[] = {&s->d, &r->out, &r->d_h, &r->d_mid, &r->d_o, &r->d_qkv};
  for (int i = 0; i < 6; i++) memory_give(all[i]->data, matrix_bytes(*all[i]));
  memory_give(r->attention, attention_bytes(s->m->o));
  *s = (stage){0};
}
