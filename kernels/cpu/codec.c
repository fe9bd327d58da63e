/* codec.c: coding and decoding activations for the wire.
 *
 * Invariant: a line's scales lie before its bytes, and a piece of a line begins with a tile, so
 * any cut over the workers writes the same bytes.
 * Leaves the formats to codec.h, the loops to lanes.h, the cutting to work.c. */
#include "kernels/codec.h"

#include "kernels/cpu/cpu.h"
#include "kernels/cpu/lanes.h"

typedef struct codec_call {
  const lam_lanes *lanes;
  int codec;
  lam_matrix x;         /* f32 or bf16 */
  unsigned char *coded; /* x.rows lines */
  int64_t line, scales; /* bytes of a coded line, of its scales */
} codec_call;

static codec_call call_of(int codec, lam_matrix x, void *coded) {
  const int64_t line = lam_codec_line_bytes(codec, x.cols);
  return (codec_call){lam_lanes_pick(), codec, x, coded, line, line - x.cols};
}

/* Where the scales and the bytes of a piece lie. */
static unsigned char *scales_at(const codec_call *c, int64_t row, int64_t col) {
  return c->coded + row * c->line + col / LAM_CODEC_TILE * (int64_t)sizeof(float);
}
static unsigned char *bytes_at(const codec_call *c, int64_t row, int64_t col) {
  return c->coded + row * c->line + c->scales + col;
}

static void encode_piece(void *arg, int64_t row, int64_t col, int64_t n) {
  const codec_call *c = arg;
  c->lanes->encode(c->codec, lam_line_at(c->x, row, col), n, scales_at(c, row, col),
                   bytes_at(c, row, col));
}

static void decode_piece(void *arg, int64_t row, int64_t col, int64_t n) {
  const codec_call *c = arg;
  c->lanes->decode(c->codec, scales_at(c, row, col), bytes_at(c, row, col),
                   lam_line_at(c->x, row, col), n);
}

static lam_matrix as_bf16(lam_matrix x, void *coded) {
  return (lam_matrix){coded, x.rows, x.cols, x.cols, 1, LAM_BF16, false};
}

static lam_status check(const char *who, int codec, lam_dtype t) {
  if (!lam_codec_find(codec))
    return lam_fail(LAM_INVALID_ARGUMENT, "cpu %s: codec is %d, expected 1 to %d", who, codec,
                    LAM_N_CODECS - 1);
  if (!lam_is_float(t))
    return lam_fail(LAM_UNIMPLEMENTED, "cpu %s: x is %s, the CPU has f32 and bf16", who,
                    lam_dtype_name(t));
  return LAM_OK;
}

lam_status lam_encode_run(const lam_workers *w, int codec, lam_matrix x, void *coded,
                          void *stream) {
  LAM_TRY(check("codec_pack", codec, x.dtype));
  if (codec == LAM_CODEC_BF16) return lam_copy_run(w, x, as_bf16(x, coded), stream);
  codec_call c = call_of(codec, x, coded);
  lam_cpu_each_piece(w, x.rows, x.cols, encode_piece, &c);
  return LAM_OK;
}

lam_status lam_decode_run(const lam_workers *w, int codec, const void *coded, lam_matrix y,
                          void *stream) {
  LAM_TRY(check("codec_unpack", codec, y.dtype));
  if (codec == LAM_CODEC_BF16) return lam_copy_run(w, as_bf16(y, (void *)coded), y, stream);
  codec_call c = call_of(codec, y, (void *)coded);
  lam_cpu_each_piece(w, y.rows, y.cols, decode_piece, &c);
  return LAM_OK;
}
