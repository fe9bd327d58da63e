/* layer.c: one decoder layer: x -> mid = x + out(attention(norm1(x))) -> y = mid + ffn(norm2(mid)).
 *
 * The four products are Lamella's: queries, keys and values by column split, attention's output by
 * row split, and the gated FFN, which is both with one sum. So a layer sums over the
 * tensor-parallel group twice forward and twice backward, inside the operators; everything between
 * them is this worker's own.
 * A backward comes whole, or in two for schedules that put the weights' part where they would wait:
 * what it needs lies then where nobody looks any more, d_qkv over qkv, d_mid over mid.
 * Invariant: weight gradients are added to, in f32, for all micro-batches of a step. */
#include "bindings/cli/demo/demo.h"

lam_status layer_forward(const model *m, int layer, layer_room *room, matrix x, layer_saved *s) {
  const param *p = m->params + layer * N_LAYER_PARAMS;
  const int64_t tp = room->tp, hidden = m->o->hidden, head = m->o->head_size;
  const int heads = (int)(m->heads.end - m->heads.begin);
  lam_context *ctx = room->ctx;

  here->norm_forward(x, ABSENT, p[NORM1].master, ABSENT, s->h1, s->r1);
  TRY(call_op(ctx, LAM_OP_linear_col, IN(s->h1, p[QKV].w), OUT(s->qkv),
              /* group act save gather seq total unit */
              ATTRS(I(tp), S(""), I(0), I(0), I(0), I(3 * hidden), I(3 * head))));
  here->attention_forward(s->qkv, m->o->sequence, heads, room->attention, s->o, s->lse);
  TRY(call_op(ctx, LAM_OP_linear_row, IN(s->o, p[ATTENTION_OUT].w), OUT(room->out),
              /* group split seq total unit */
              ATTRS(I(tp), I(1), I(0), I(hidden), I(head))));

  here->norm_forward(x, room->out, p[NORM2].master, s->mid, s->h2, s->r2);
  TRY(call_op(ctx, LAM_OP_ffn, IN(s->h2, p[GATE_UP].w, ABSENT, p[DOWN].w), OUT(room->out, s->aux),
              /* group act gated save */
              ATTRS(I(tp), S("silu"), I(1), I(1))));
  here->add(s->mid, room->out, s->y);
  return LAM_OK;
}

lam_status layer_backward(const model *m, int layer, layer_room *room, matrix x,
                          const layer_saved *s, matrix d_y, matrix d_x) {
  const param *p = m->params + layer * N_LAYER_PARAMS;
  const int64_t tp = room->tp, hidden = m->o->hidden, head = m->o->head_size;
  const int heads = (int)(m->heads.end - m->heads.begin);
  const matrix d_gate_up = param_grad(&p[GATE_UP]), d_down = param_grad(&p[DOWN]);
  lam_context *ctx = room->ctx;

  TRY(call_op(ctx, LAM_OP_ffn_bwd, IN(d_y, s->h2, s->aux, p[GATE_UP].w, p[DOWN].w),
              OUT(room->d_h, d_gate_up, ABSENT, d_down),
              /* group act gated seq chunks acc */
              ATTRS(I(tp), S("silu"), I(1), I(0), I(0), I(1))));
  here->norm_backward(room->d_h, s->mid, p[NORM2].master, s->r2, d_y, room->d_mid, p[NORM2].grad);

  TRY(call_op(ctx, LAM_OP_linear_row_bwd, IN(room->d_mid, s->o, p[ATTENTION_OUT].w),
              OUT(room->d_o, param_grad(&p[ATTENTION_OUT])),
              /* group split seq total unit chunks dtype acc */
              ATTRS(I(tp), I(1), I(0), I(hidden), I(head), I(0), I(0), I(1))));
  here->attention_backward(s->qkv, m->o->sequence, heads, room->attention, s->o, s->lse, room->d_o,
                           room->d_qkv);
  TRY(call_op(ctx, LAM_OP_linear_col_bwd, IN(room->d_qkv, s->h1, p[QKV].w),
              OUT(room->d_h, param_grad(&p[QKV])),
              /* group seq chunks acc */
              ATTRS(I(tp), I(0), I(0), I(1))));
  here->norm_backward(room->d_h, x, p[NORM1].master, s->r1, room->d_mid, d_x, p[NORM1].grad);
  return LAM_OK;
}

lam_status layer_backward_input(const model *m, int layer, layer_room *room, matrix x,
                                const layer_saved *s, matrix d_x) {
  const param *p = m->params + layer * N_LAYER_PARAMS;
  const int64_t tp = room->tp, hidden = m->o->hidden, head = m->o->head_size;
  const int heads = (int)(m->heads.end - m->heads.begin);
  const matrix d_mid = s->mid, d_qkv = s->qkv;
  lam_context *ctx = room->ctx;

  TRY(call_op(ctx, LAM_OP_ffn_dgrad, IN(s->d_y, s->aux, p[GATE_UP].w, p[DOWN].w),
              OUT(room->d_h, s->d_aux), /* group act gated */
              ATTRS(I(tp), S("silu"), I(1))));
  here->norm_backward(room->d_h, s->mid, p[NORM2].master, s->r2, s->d_y, d_mid, p[NORM2].grad);

  TRY(call_op(ctx, LAM_OP_linear_row_dgrad, IN(d_mid, p[ATTENTION_OUT].w), OUT(room->d_o),
              ATTRS(I(tp), I(1), I(0), I(hidden), I(head)))); /* group split seq total unit */
  here->attention_backward(s->qkv, m->o->sequence, heads, room->attention, s->o, s->lse, room->d_o,
                           room->d_qkv);
  here->copy(room->d_qkv.data, d_qkv.data, matrix_bytes(d_qkv));
  TRY(call_op(ctx, LAM_OP_linear_col_dgrad, IN(d_qkv, p[QKV].w), OUT(room->d_h), ATTRS(I(tp))));
  here->norm_backward(room->d_h, x, p[NORM1].master, s->r1, d_mid, d_x, p[NORM1].grad);
  return LAM_OK;
}

lam_status layer_backward_weight(const model *m, int layer, layer_room *room,
                                 const layer_saved *s) {
  const param *p = m->params + layer * N_LAYER_PARAMS;
  const int64_t tp = room->tp, hidden = m->o->hidden, head = m->o->head_size;
  const matrix d_mid = s->mid, d_qkv = s->qkv;
  lam_context *ctx = room->ctx;

  TRY(call_op(
      ctx, LAM_OP_ffn_wgrad, IN(s->d_y, s->h2, s->aux, s->d_aux),
      OUT(param_grad(&p[GATE_UP]), ABSENT, param_grad(&p[DOWN])),
      ATTRS(I(tp), S("silu"), I(1), I(0), I(0), I(1)))); /* group act gated seq chunks acc */
  TRY(call_op(ctx, LAM_OP_linear_row_wgrad, IN(d_mid, s->o), OUT(param_grad(&p[ATTENTION_OUT])),
              /* group split seq total unit chunks dtype acc */
              ATTRS(I(tp), I(1), I(0), I(hidden), I(head), I(0), I(0), I(1))));
  return call_op(ctx, LAM_OP_linear_col_wgrad, IN(d_qkv, s->h1), OUT(param_grad(&p[QKV])),
                 ATTRS(I(tp), I(0), I(0), I(1))); /* group seq chunks acc */
}
