/* cuda.h: what cuda.c asks of the kernels in cuda.cu. Each is queued on the stream; the first that
 * could not be is noted, for `cuda_failed`.
 * Invariant: all pointers but names are the GPU's. */
#ifndef LAMELLA_DEMO_CUDA_H_
#define LAMELLA_DEMO_CUDA_H_

#include "bindings/cli/demo/arithmetic.h"
#include "bindings/cli/demo/matrix.h"

#ifdef __cplusplus
extern "C" {
#endif

void cuda_use(void *stream);                 /* from here on */
void cuda_note(int error, const char *name); /* a cudaError_t, and what it is of */
const char *cuda_failed(void);               /* NULL: nothing did */

typedef struct cuda_text {
  const uint8_t *bytes;
  int64_t n;
  uint64_t seed;
  int64_t batch; /* of the whole training */
  int sequence, sequences;
} cuda_text;

void cuda_batch(cuda_text t, uint8_t *tokens, uint8_t *targets);
void cuda_norm_forward(matrix x, matrix add, const float *gain, matrix sum, matrix y, float *r);
void cuda_norm_backward(matrix d_y, matrix x, const float *gain, const float *r, matrix d_sum,
                        matrix d_x, float *d_gain);
void cuda_add(matrix a, matrix b, matrix sum);
void cuda_embed_forward(const uint8_t *tokens, int sequence, const float *embedding,
                        const float *position, matrix x);
void cuda_embed_backward(const uint8_t *tokens, int sequence, matrix d_x, float *d_embedding,
                         float *d_position);
void cuda_attention_forward(matrix qkv, int sequence, int heads, float *room, matrix o, float *lse);
void cuda_attention_backward(matrix qkv, int sequence, int heads, float *room, matrix o,
                             const float *lse, matrix d_o, matrix d_qkv);
/* Each row's loss, times share, is added to losses [rows]. */
void cuda_cross_entropy(matrix logits, const uint8_t *targets, float scale, float share,
                        float *losses);
void cuda_adamw(adamw a, int64_t n, float *w, float *grad, float *m, float *v, uint16_t *bf16);

#ifdef __cplusplus
}
#endif
#endif
