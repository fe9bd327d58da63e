/* onednn_v2.c: makes products and packs weights with oneDNN 2.x; everything that 3.x spells
 * otherwise is here.
 *
 * A plain b is a memory descriptor with strides; packed weights are one of oneDNN's formats of
 * blocks, by name, so that their layout is known without asking the library that wrote them.
 * Invariant: nothing allocated here outlives a failure. Leaves caching and running to gemm_onednn.c
 * and onednn.c. */
#include "kernels/cpu/onednn.h"

static dnnl_data_type_t type_of(lam_dtype dtype) { return dtype == LAM_F32 ? dnnl_f32 : dnnl_bf16; }

/* oneDNN's weights are [k, n]: "a" is k, "b" is n. */
static const dnnl_format_tag_t tags[LAM_N_LAYOUTS][2] = {
    [LAM_LAYOUT_64] = {dnnl_BA16a64b, dnnl_BA16a64b2a},
    [LAM_LAYOUT_48] = {dnnl_BA16a48b, dnnl_BA16a48b2a},
    [LAM_LAYOUT_32] = {dnnl_BA16a32b, dnnl_BA16a32b2a},
    [LAM_LAYOUT_16] = {dnnl_BA16a16b, dnnl_BA16a16b2a},
};

static void describe(dnnl_memory_desc_t *md, int64_t rows, int64_t cols, lam_dtype dtype,
                     int64_t stride, bool by_cols) {
  const dnnl_dims_t dims = {rows, cols}, strides = {by_cols ? 1 : stride, by_cols ? stride : 1};
  lam_onednn_open()->dnnl_memory_desc_init_by_strides(md, 2, dims, type_of(dtype), strides);
}

static dnnl_status_t describe_blocks(dnnl_memory_desc_t *md, int64_t k, int64_t n, lam_dtype dtype,
                                     dnnl_format_tag_t tag) {
  const dnnl_dims_t dims = {k, n};
  return lam_onednn_open()->dnnl_memory_desc_init_by_tag(md, 2, dims, type_of(dtype), tag);
}

typedef struct descriptors {
  dnnl_memory_desc_t a, b, bias, d;
} descriptors;

static void describe_all(const lam_onednn_shape *s, descriptors *md) {
  describe(&md->a, s->m, s->k, s->dtype, s->a_stride, s->a_by_cols);
  describe(&md->d, s->m, s->n, s->d_dtype, s->d_stride, false);
  if (s->has_bias) describe(&md->bias, 1, s->n, s->bias_dtype, s->n, false);
  if (s->b_layout == LAM_LAYOUT_ROWS)
    describe(&md->b, s->k, s->n, s->dtype, s->b_stride, !s->b_by_cols); /* b^T */
  else
    describe_blocks(&md->b, s->k, s->n, s->dtype, tags[s->b_layout][s->dtype == LAM_BF16]);
}

static const struct {
  dnnl_alg_kind_t kind;
  float alpha;
} eltwise[LAM_N_ACTS] = {
    [LAM_ACT_GELU] = {dnnl_eltwise_gelu_erf, 0.0f},
    [LAM_ACT_GELU_TANH] = {dnnl_eltwise_gelu_tanh, 0.0f},
    [LAM_ACT_SILU] = {dnnl_eltwise_swish, 1.0f},
};

/* Accumulating in the product itself: measured on two cores of Zen 4, d [4096, 4096] += over 512
 * tokens, it costs 8 % more than overwriting in bf16 and 3 % in f32; f32 blocks of 128, 256 or 512
 * rows added up afterwards cost 10 %, 44 %, 18 % and 6 %, 6 %, 2 %. */
static dnnl_status_t append_post_ops(const lam_onednn *dnnl, const lam_onednn_shape *s,
                                     dnnl_post_ops_t ops) {
  if (s->accumulate) return dnnl->dnnl_post_ops_append_sum(ops, 1.0f);
  if (s->act == LAM_ACT_NONE) return dnnl_success;
  return dnnl->dnnl_post_ops_append_eltwise(ops, 1.0f, eltwise[s->act].kind, eltwise[s->act].alpha,
                                            0.0f);
}

/* Scratch memory is the caller's, so that a product can be run by many threads and allocates
 * nothing. */
static dnnl_status_t make_attributes(const lam_onednn *dnnl, const lam_onednn_shape *s,
                                     dnnl_primitive_attr_t *out) {
  dnnl_post_ops_t ops = NULL;
  dnnl_status_t status = dnnl->dnnl_primitive_attr_create(out);
  if (status == dnnl_success)
    status = dnnl->dnnl_primitive_attr_set_scratchpad_mode(*out, dnnl_scratchpad_mode_user);
  if (status == dnnl_success) status = dnnl->dnnl_post_ops_create(&ops);
  if (status == dnnl_success) status = append_post_ops(dnnl, s, ops);
  if (status == dnnl_success) status = dnnl->dnnl_primitive_attr_set_post_ops(*out, ops);
  if (ops) dnnl->dnnl_post_ops_destroy(ops);
  return status;
}

static dnnl_status_t make_descriptor(const lam_onednn *dnnl, const lam_onednn_shape *s,
                                     const descriptors *md, dnnl_primitive_desc_t *out) {
  dnnl_primitive_attr_t attributes = NULL;
  dnnl_matmul_desc_t matmul;
  dnnl_status_t status = make_attributes(dnnl, s, &attributes);
  if (status == dnnl_success)
    status = dnnl->dnnl_matmul_desc_init(&matmul, &md->a, &md->b, s->has_bias ? &md->bias : NULL,
                                         &md->d);
  if (status == dnnl_success)
    status = dnnl->dnnl_primitive_desc_create(out, &matmul, attributes, dnnl->engine, NULL);
  if (attributes) dnnl->dnnl_primitive_attr_destroy(attributes);
  return status;
}

static dnnl_status_t make_memories(const lam_onednn *dnnl, const lam_onednn_shape *s,
                                   const descriptors *md, const dnnl_memory_desc_t *scratch,
                                   lam_onednn_product *out) {
  const struct {
    dnnl_memory_t *memory;
    const dnnl_memory_desc_t *md;
  } all[] = {{&out->a, &md->a},
             {&out->b, &md->b},
             {&out->d, &md->d},
             {&out->scratch, scratch},
             {&out->bias, &md->bias}};
  dnnl_status_t status = dnnl_success;
  for (int i = 0; i < (s->has_bias ? 5 : 4) && status == dnnl_success; i++)
    status = dnnl->dnnl_memory_create(all[i].memory, all[i].md, dnnl->engine, DNNL_MEMORY_NONE);
  return status;
}

lam_status lam_onednn_make(const lam_onednn_shape *s, lam_onednn_product *out) {
  const lam_onednn *dnnl = lam_onednn_open();
  dnnl_primitive_desc_t pd = NULL;
  descriptors md;
  *out = (lam_onednn_product){0};
  describe_all(s, &md);
  dnnl_status_t status = make_descriptor(dnnl, s, &md, &pd);
  if (status == dnnl_success) {
    const dnnl_memory_desc_t *scratch =
        dnnl->dnnl_primitive_desc_query_md(pd, dnnl_query_scratchpad_md, 0);
    out->scratch_bytes = dnnl->dnnl_memory_desc_get_size(scratch);
    status = make_memories(dnnl, s, &md, scratch, out);
  }
  if (status == dnnl_success) status = dnnl->dnnl_primitive_create(&out->primitive, pd);
  if (pd) dnnl->dnnl_primitive_desc_destroy(pd);
  if (status == dnnl_success) return LAM_OK;
  lam_onednn_free(out);
  return lam_onednn_failed("make a product", status);
}

/* -- packed weights -- */

enum { REPRESENTATIVE_M = 128 }; /* from 1 to 512 rows oneDNN 2.6 asks for the same layout */

lam_weight_layout lam_onednn_best_layout(lam_dtype dtype, int64_t n, int64_t k) {
  const lam_onednn *dnnl = lam_onednn_open();
  const lam_onednn_shape s = {.m = REPRESENTATIVE_M,
                              .n = n,
                              .k = k,
                              .a_stride = k,
                              .b_stride = k,
                              .d_stride = n,
                              .dtype = dtype,
                              .d_dtype = dtype};
  lam_weight_layout best = LAM_LAYOUT_ROWS;
  dnnl_primitive_desc_t pd = NULL;
  descriptors md;
  describe_all(&s, &md);
  describe_blocks(&md.b, k, n, dtype, dnnl_format_tag_any);
  if (make_descriptor(dnnl, &s, &md, &pd) != dnnl_success) return best;
  const dnnl_memory_desc_t *liked =
      dnnl->dnnl_primitive_desc_query_md(pd, dnnl_query_weights_md, 0);
  for (int layout = LAM_LAYOUT_ROWS + 1; layout < LAM_N_LAYOUTS; layout++) {
    dnnl_memory_desc_t known;
    describe_blocks(&known, k, n, dtype, tags[layout][dtype == LAM_BF16]);
    if (dnnl->dnnl_memory_desc_equal(&known, liked)) best = layout;
  }
  dnnl->dnnl_primitive_desc_destroy(pd);
  return best;
}

lam_status lam_onednn_pack(lam_matrix b, lam_weight_layout layout, void *data) {
  const lam_onednn *dnnl = lam_onednn_open();
  const bool by_cols = b.col_stride != 1;
  lam_onednn_product p = {0};
  dnnl_primitive_desc_t pd = NULL;
  dnnl_memory_desc_t from, to;
  const int64_t stride = by_cols ? b.col_stride : b.row_stride;
  describe(&from, b.cols, b.rows, b.dtype, stride, !by_cols); /* b^T */
  dnnl_status_t status =
      describe_blocks(&to, b.cols, b.rows, b.dtype, tags[layout][b.dtype == LAM_BF16]);
  if (status == dnnl_success)
    status =
        dnnl->dnnl_reorder_primitive_desc_create(&pd, &from, dnnl->engine, &to, dnnl->engine, NULL);
  if (status == dnnl_success) status = dnnl->dnnl_primitive_create(&p.primitive, pd);
  if (status == dnnl_success) status = dnnl->dnnl_memory_create(&p.a, &from, dnnl->engine, b.data);
  if (status == dnnl_success) status = dnnl->dnnl_memory_create(&p.d, &to, dnnl->engine, data);
  const dnnl_exec_arg_t args[] = {{DNNL_ARG_FROM, p.a}, {DNNL_ARG_TO, p.d}};
  if (status == dnnl_success)
    status = dnnl->dnnl_primitive_execute(p.primitive, dnnl->stream, 2, args);
  if (pd) dnnl->dnnl_primitive_desc_destroy(pd);
  lam_onednn_free(&p);
  return status == dnnl_success ? LAM_OK : lam_onednn_failed("pack weights", status);
}
