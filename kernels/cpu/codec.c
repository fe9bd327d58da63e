/* codec.c: coding and decoding activations for the wire.
 *
 * Invariant: a line's scales lie before its bytes, and a piece of a line begins with a tile, so
 * any cut over the workers writes the same bytes.
 * Leaves the formats to codec.h, the loops to lanes.h, the cutting to work.c. */
#include "kernels/codec.h"

#include "kernels/cpu/cpu.h"
#include "kernels/cpu/lanes.h"
#include "kernels/math.h"

typedef struct codec_call {
  const lam_lanes *lanes;
  int codec;
  lam_matrix x;         /* f32, bf16 or f16 */
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

static lam_matrix as_bf16(lam_matrix x, void *coded) {
  return (lam_matrix){coded, x.rows, x.cols, x.cols, 1, LAM_BF16, false};
}

static lam_line bf16_at(const codec_call *c, int64_t row, int64_t col) {
  return lam_line_at(as_bf16(c->x, c->coded), row, col);
}

/* x: n elements of a line, from `col` on */
static void encode_line(const codec_call *c, int64_t row, int64_t col, lam_line x, int64_t n) {
  if (c->codec == LAM_CODEC_BF16)
    c->lanes->copy(x, bf16_at(c, row, col), n);
  else
    c->lanes->encode(c->codec, x, n, scales_at(c, row, col), bytes_at(c, row, col));
}

static void decode_line(const codec_call *c, int64_t row, int64_t col, lam_line y, int64_t n) {
  if (c->codec == LAM_CODEC_BF16)
    c->lanes->copy(bf16_at(c, row, col), y, n);
  else
    c->lanes->decode(c->codec, scales_at(c, row, col), bytes_at(c, row, col), y, n);
}

static void encode_piece(void *arg, int64_t row, int64_t col, int64_t n) {
  const codec_call *c = arg;
  encode_line(c, row, col, lam_line_at(c->x, row, col), n);
}

static void decode_piece(void *arg, int64_t row, int64_t col, int64_t n) {
  const codec_call *c = arg;
  decode_line(c, row, col, lam_line_at(c->x, row, col), n);
}

/* -- f16, which the loops do not have: through f32, a tile at a time -- */

static uint16_t *f16_at(const codec_call *c, int64_t row, int64_t col) {
  return (uint16_t *)c->x.data + row * c->x.row_stride + col * c->x.col_stride;
}

static void encode_f16_piece(void *arg, int64_t row, int64_t col, int64_t n) {
  const codec_call *c = arg;
  float tile[LAM_CODEC_TILE];
  for (int64_t at = 0; at < n; at += LAM_CODEC_TILE) {
    const int64_t w = lam_least(n - at, LAM_CODEC_TILE);
    for (int64_t i = 0; i < w; i++) tile[i] = lam_f32_of_f16(*f16_at(c, row, col + at + i));
    encode_line(c, row, col + at, (lam_line){tile, 1, LAM_F32}, w);
  }
}

static void decode_f16_piece(void *arg, int64_t row, int64_t col, int64_t n) {
  const codec_call *c = arg;
  float tile[LAM_CODEC_TILE];
  for (int64_t at = 0; at < n; at += LAM_CODEC_TILE) {
    const int64_t w = lam_least(n - at, LAM_CODEC_TILE);
    decode_line(c, row, col + at, (lam_line){tile, 1, LAM_F32}, w);
    for (int64_t i = 0; i < w; i++) *f16_at(c, row, col + at + i) = lam_f16_of_f32(tile[i]);
  }
}

static lam_status check(const char *who, int codec, lam_dtype t) {
  if (!lam_codec_find(codec))
    return lam_fail(LAM_INVALID_ARGUMENT, "cpu %s: codec is %d, expected 1 to %d", who, codec,
                    LAM_N_CODECS - 1);
  if (!lam_is_float(t) && t != LAM_F16)
    return lam_fail(LAM_UNIMPLEMENTED, "cpu %s: x is %s, the CPU has f32, bf16 and f16", who,
                    lam_dtype_name(t));
  return LAM_OK;
}

lam_status lam_encode_run(const lam_workers *w, int codec, lam_matrix x, void *coded,
                          void *stream) {
  LAM_TRY(check("codec_pack", codec, x.dtype));
  const bool f16 = x.dtype == LAM_F16;
  if (codec == LAM_CODEC_BF16 && !f16) return lam_copy_run(w, x, as_bf16(x, coded), stream);
  codec_call c = call_of(codec, x, coded);
  lam_cpu_each_piece(w, x.rows, x.cols, f16 ? encode_f16_piece : encode_piece, &c);
  return LAM_OK;
}

lam_status lam_decode_run(const lam_workers *w, int codec, const void *coded, lam_matrix y,
                          void *stream) {
  LAM_TRY(check("codec_unpack", codec, y.dtype));
  const bool f16 = y.dtype == LAM_F16;
  if (codec == LAM_CODEC_BF16 && !f16) return lam_copy_run(w, as_bf16(y, (void *)coded), y, stream);
  codec_call c = call_of(codec, y, (void *)coded);
  lam_cpu_each_piece(w, y.rows, y.cols, f16 ? decode_f16_piece : decode_piece, &c);
  return LAM_OK;
}
