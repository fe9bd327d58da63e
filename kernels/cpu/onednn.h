/* onednn.h: one product, as oneDNN computes it: made once, run often.
 *
 * onednn.c opens the library and runs products; onednn_v2.c makes them, and is all that depends on
 * oneDNN 2.x: for 3.x write onednn_v3.c (descriptors become handles, post-ops lose their scale) and
 * choose by version in onednn.c.
 * Invariant: a lam_onednn_product belongs to one thread. Leaves keeping products, and threads, to
 * gemm_onednn.c. */
#ifndef LAMELLA_KERNELS_CPU_ONEDNN_H
#define LAMELLA_KERNELS_CPU_ONEDNN_H

#include <oneapi/dnnl/dnnl.h>

#include "kernels/cpu/cpu.h"

/* What a product is made for: d [m, n] = act(a [m, k] b [n, k]^T + bias) (+ d). All of it is the
 * key of a cache: no padding. */
typedef struct lam_onednn_shape {
  int64_t m, n, k;
  int64_t a_stride, b_stride,
      d_stride; /* between rows, or columns where `by_cols`; 0 where b is in a layout of blocks */
  uint8_t a_by_cols, b_by_cols, b_layout, dtype;
  uint8_t d_dtype, bias_dtype, has_bias, act;
  uint32_t accumulate, n_threads;
} lam_onednn_shape;

typedef struct lam_onednn_product {
  dnnl_primitive_t primitive;
  dnnl_memory_t a, b, bias, d, scratch; /* bias: NULL where there is none */
  uint64_t scratch_bytes;
} lam_onednn_product;

typedef struct lam_onednn_operands {
  void *a, *b, *bias, *d, *scratch;
} lam_onednn_operands;

/* The functions that are used, all found when the library is opened. */
#define LAM_ONEDNN_FUNCTIONS(X)                                                                    \
  X(dnnl_version)                                                                                  \
  X(dnnl_get_effective_cpu_isa) X(dnnl_engine_create) X(dnnl_stream_create)                        \
      X(dnnl_primitive_create) X(dnnl_primitive_destroy) X(dnnl_primitive_execute)                 \
          X(dnnl_primitive_desc_create) X(dnnl_primitive_desc_destroy)                             \
              X(dnnl_primitive_desc_query_md) X(dnnl_primitive_attr_create)                        \
                  X(dnnl_primitive_attr_destroy) X(dnnl_primitive_attr_set_post_ops)               \
                      X(dnnl_primitive_attr_set_scratchpad_mode) X(dnnl_post_ops_create)           \
                          X(dnnl_post_ops_destroy) X(dnnl_post_ops_append_eltwise)                 \
                              X(dnnl_post_ops_append_sum) X(dnnl_matmul_desc_init)                 \
                                  X(dnnl_memory_desc_init_by_strides)                              \
                                      X(dnnl_memory_desc_init_by_tag) X(dnnl_memory_desc_get_size) \
                                          X(dnnl_memory_desc_equal) X(dnnl_memory_create)          \
                                              X(dnnl_memory_destroy)                               \
                                                  X(dnnl_memory_set_data_handle)                   \
                                                      X(dnnl_reorder_primitive_desc_create)

typedef struct lam_onednn {
  void *library;
  dnnl_engine_t engine;
  dnnl_stream_t stream; /* on CPU it holds no state */
#define DECLARE(name) __typeof__(name) *name;
  LAM_ONEDNN_FUNCTIONS(DECLARE)
#undef DECLARE
} lam_onednn;

const lam_onednn *lam_onednn_open(void); /* NULL where it cannot be used */
lam_status lam_onednn_failed(const char *what, dnnl_status_t status);
lam_status lam_onednn_run(const lam_onednn_product *p, const lam_onednn_operands *o);
void lam_onednn_free(lam_onednn_product *p);

/* What makes, packs or frees takes locks of oneDNN's: the caller lets forks wait (forks.h). */
lam_status lam_onednn_make(const lam_onednn_shape *s, lam_onednn_product *out);
/* Packs b [n, k] of any strides into a layout of blocks, and the layout that oneDNN likes best. */
lam_status lam_onednn_pack(lam_matrix b, lam_weight_layout layout, void *data);
lam_weight_layout lam_onednn_best_layout(lam_dtype dtype, int64_t n, int64_t k);

#endif
