/* codec.c: the codecs by name, with the errors they promise.
 * Invariant: a bound follows from the format alone: half a unit in the last place of what is
 * rounded, half a step of what is below the smallest normal number.
 * Leaves coding to each device. */
#include "kernels/codec.h"

#include <math.h>

/* The scale, its inverse and two products are rounded to f32: 4 * 2^-24 each way. */
#define SLACK 0x1p-20

static const lam_codec_about codecs[LAM_N_CODECS] = {
    [LAM_CODEC_BF16] = {"bf16", false, 0x1p-8, 0},
    [LAM_CODEC_F8E4M3] = {"f8e4m3", true, 0x1p-4, 0x1p-10 / 448},
    [LAM_CODEC_F8E5M2] = {"f8e5m2", true, 0x1p-3, 0x1p-17 / 57344},
    [LAM_CODEC_INT8] = {"int8", true, 0, 0.5 / 127},
};

const lam_codec_about *lam_codec_find(int64_t codec) {
  return codec > LAM_CODEC_NONE && codec < LAM_N_CODECS ? &codecs[codec] : NULL;
}

int64_t lam_codec_line_bytes(int codec, int64_t n) {
  if (!codecs[codec].tiled) return 2 * n;
  return (n + LAM_CODEC_TILE - 1) / LAM_CODEC_TILE * (int64_t)sizeof(float) + n;
}

double lam_codec_bound(int codec, double x, double largest) {
  const lam_codec_about *c = &codecs[codec];
  if (!c->tiled) return c->relative * fabs(x) + 0x1p-134; /* half of bf16's smallest step */
  return (c->relative * fabs(x) + c->absolute * largest) * (1 + SLACK) + SLACK * fabs(x) +
         LAM_CODEC_LEAST;
}
