/* codec.h: wire codecs: an activation in fewer bits than its dtype, for slow links.
 *
 * A line of n elements (a tensor's last dimension) becomes, byte by byte:
 *   bf16                     n bf16
 *   f8e4m3, f8e5m2, int8     one f32 scale per tile of 128 elements, then n bytes
 * A tile's scale is its largest magnitude over the largest the code has (448, 57344, 127); an
 * element is its code times the scale. Tiles with scales of their own are what DeepSeek-V3 (2024)
 * does with 1 x 128 activations; fp8 as OCP's 8-bit formats (Micikevicius et al. 2022).
 * Invariant: an element comes back within lam_codec_bound, whatever else its tile holds; a tile
 * with an infinity or a NaN comes back as NaNs, so that nothing hides. Codes of such a tile, and of
 * one below LAM_CODEC_LEAST, are 0, so that every machine writes the same bytes.
 * Leaves the loops to each device. */
#ifndef LAMELLA_KERNELS_CODEC_H
#define LAMELLA_KERNELS_CODEC_H

#include "kernels/device.h"

enum { LAM_CODEC_TILE = 128, LAM_N_CODECS = LAM_CODEC_INT8 + 1 };
/* In a tile whose largest magnitude is below it, all elements come back as 0. */
#define LAM_CODEC_LEAST 0x1p-100f

typedef struct lam_codec_about {
  const char *name;
  bool tiled;
  /* |error| <= relative |x| + absolute * the tile's largest magnitude */
  double relative, absolute;
} lam_codec_about;

const lam_codec_about *lam_codec_find(int64_t codec); /* NULL: there is no such codec; 0 is none */
int64_t lam_codec_line_bytes(int codec, int64_t n);
/* How far an element x may be from what comes back, `largest` being its tile's magnitude. */
double lam_codec_bound(int codec, double x, double largest);

#endif
