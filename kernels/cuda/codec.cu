/* codec.cu: coding and decoding activations for the wire, byte for byte as the CPU does.
 *
 * Sixteen threads take a tile of 128 elements, eight each; its largest magnitude goes round by
 * shuffles. Floors: bf16 to and from codes with tiles 3.03 bytes an element, to and from bf16 4: of
 * [8192, 8192] at 3.0 TB/s on an H100 68 and 90 us (predicted, not measured; the goal is 0.85 of
 * that rate). From sm_89 on the card has fp8's conversions; sm_80 takes math.h's, some 20
 * instructions an element, and is bound by them.
 * Invariant: the same bytes as kernels/cpu/codec.c: one multiplication, never contracted, and the
 * same rounding. Where a line begins is not aligned; bytes go out as wide as their address allows.
 * Leaves the formats to codec.h, elements in memory to vec.cuh. */
#include "kernels/cuda/kernel.cuh"

enum { TILE_THREADS = LAM_CODEC_TILE / LAM_VEC };

typedef struct codec_call {
  lam_view x;
  int64_t rows, cols;
  unsigned char *coded;
  int64_t line, scales; /* bytes of a coded line, of its scales */
  int32_t codec;
} codec_call;

/* lam_codec_line_bytes for codecs with tiles */
static int64_t scale_bytes(int64_t n) {
  return lam_cuda_cuts(n, LAM_CODEC_TILE) * (int64_t)sizeof(float);
}

/* -- bytes at any address -- */

LAM_DEVICE void put_codes(unsigned char *p, uint4 codes, int n) {
  const uintptr_t at = (uintptr_t)p;
  if (n == LAM_VEC && at % 8 == 0) {
    *(uint2 *)p = {codes.x, codes.y};
  } else if (n == LAM_VEC && at % 4 == 0) {
    ((uint32_t *)p)[0] = codes.x, ((uint32_t *)p)[1] = codes.y;
  } else {
    LAM_UNROLLED
    for (int i = 0; i < LAM_VEC; i++)
      if (i < n) p[i] = (unsigned char)((i < 4 ? codes.x : codes.y) >> 8 * (i % 4));
  }
}

LAM_DEVICE uint4 get_codes(const unsigned char *p, int n) {
  const uintptr_t at = (uintptr_t)p;
  uint32_t codes[2] = {0, 0};
  if (n == LAM_VEC && at % 8 == 0) {
    const uint2 both = *(const uint2 *)p;
    codes[0] = both.x, codes[1] = both.y;
  } else if (n == LAM_VEC && at % 4 == 0) {
    codes[0] = ((const uint32_t *)p)[0], codes[1] = ((const uint32_t *)p)[1];
  } else {
    LAM_UNROLLED
    for (int i = 0; i < LAM_VEC; i++)
      if (i < n) codes[i / 4] |= (uint32_t)p[i] << 8 * (i % 4);
  }
  const uint4 all = {codes[0], codes[1], 0, 0};
  return all;
}

LAM_DEVICE void put_scale(unsigned char *p, float scale) {
  const uint32_t bits = lam_bits_of_f32(scale);
  if ((uintptr_t)p % 4 == 0)
    *(uint32_t *)p = bits;
  else
    for (int i = 0; i < 4; i++) p[i] = (unsigned char)(bits >> 8 * i);
}

LAM_DEVICE float get_scale(const unsigned char *p) {
  if ((uintptr_t)p % 4 == 0) return *(const float *)p;
  uint32_t bits = 0;
  for (int i = 0; i < 4; i++) bits |= (uint32_t)p[i] << 8 * i;
  return lam_f32_of_bits(bits);
}

/* -- encode -- */

LAM_DEVICE float most_of(int codec) {
  return codec == LAM_CODEC_F8E4M3 ? 448.0f : codec == LAM_CODEC_F8E5M2 ? 57344.0f : 127.0f;
}

LAM_DEVICE uint32_t to_i8_pair(float low, float high) {
  return lam_i8_of_f32(low) | (uint32_t)lam_i8_of_f32(high) << 8;
}

LAM_DEVICE uint4 codes_of(int codec, const lam_vec &v) {
  switch (codec) {
    case LAM_CODEC_F8E4M3: return lam_codes_of<lam_to_e4m3_pair>(v);
    case LAM_CODEC_F8E5M2: return lam_codes_of<lam_to_e5m2_pair>(v);
    default: return lam_codes_of<to_i8_pair>(v);
  }
}

/* The largest magnitude of the tile, as bits: they are in the same order, and NaN is beyond
 * infinity. */
LAM_DEVICE uint32_t largest_of(const lam_vec &v) {
  uint32_t largest = 0;
  for (int i = 0; i < LAM_VEC; i++) {
    const uint32_t bits = lam_bits_of_f32(v.at[i]) & 0x7fffffffu;
    largest = bits > largest ? bits : largest;
  }
  for (int lane = TILE_THREADS / 2; lane > 0; lane /= 2) {
    const uint32_t other = __shfl_xor_sync(0xffffffffu, largest, lane);
    largest = other > largest ? other : largest;
  }
  return largest;
}

/* A tile's scale; what its elements are multiplied by: 0 where it is not finite, and its scale NaN,
 * or where all come back as 0. */
LAM_DEVICE float scale_of(uint32_t largest, float most, float *out_factor) {
  const float x = lam_f32_of_bits(largest);
  *out_factor = 0.0f;
  if (largest >= 0x7f800000u) return lam_f32_of_bits(0x7fc00000u);
  if (x < LAM_CODEC_LEAST) return 0.0f;
  *out_factor = __fdiv_rn(most, x);
  return __fdiv_rn(x, most);
}

LAM_DEVICE void encode_tile(const codec_call &c, int64_t row, int64_t col, int n) {
  const lam_vec v = n > 0 ? lam_vec_load(c.x, row, col, n) : lam_vec{{0}};
  float factor;
  const float scale = scale_of(largest_of(v), most_of(c.codec), &factor);
  lam_vec scaled;
  for (int i = 0; i < LAM_VEC; i++)
    scaled.at[i] = factor == 0.0f ? 0.0f : __fmul_rn(v.at[i], factor);
  if (n == 0) return;
  unsigned char *const line = c.coded + row * c.line;
  put_codes(line + c.scales + col, codes_of(c.codec, scaled), n);
  if (threadIdx.x % TILE_THREADS == 0)
    put_scale(line + col / LAM_CODEC_TILE * (int64_t)sizeof(float), scale);
}

/* No thread leaves early: a warp's lanes meet in the shuffles. */
static __global__ void __launch_bounds__(256) encode(codec_call c) {
  const int64_t col = ((int64_t)blockIdx.x * blockDim.x + threadIdx.x) * LAM_VEC;
  const int wide = col >= c.cols ? 0 : c.cols - col < LAM_VEC ? (int)(c.cols - col) : LAM_VEC;
  const int64_t step = (int64_t)gridDim.y * blockDim.y;
  for (int64_t first = (int64_t)blockIdx.y * blockDim.y; first < c.rows; first += step) {
    const int64_t row = first + threadIdx.y;
    encode_tile(c, row, col, row < c.rows ? wide : 0);
  }
}

/* -- decode -- */

LAM_DEVICE lam_vec values_of(int codec, uint4 codes) {
  const lam_raw raw = {codes, {0, 0, 0, 0}};
  if (codec == LAM_CODEC_F8E4M3) return lam_vec_of(raw, LAM_F8E4M3);
  if (codec == LAM_CODEC_F8E5M2) return lam_vec_of(raw, LAM_F8E5M2);
  lam_vec v;
  for (int i = 0; i < LAM_VEC; i++)
    v.at[i] = lam_f32_of_i8((uint8_t)((i < 4 ? codes.x : codes.y) >> 8 * (i % 4)));
  return v;
}

struct decode_piece {
  enum { BLOCKS = 6 };
  codec_call c;

  __device__ void operator()(int64_t row, int64_t col, int n) const {
    const unsigned char *const line = c.coded + row * c.line;
    const float scale = get_scale(line + col / LAM_CODEC_TILE * (int64_t)sizeof(float));
    lam_vec v = values_of(c.codec, get_codes(line + c.scales + col, n));
    for (int i = 0; i < LAM_VEC; i++) v.at[i] = __fmul_rn(v.at[i], scale);
    lam_vec_store(c.x, row, col, n, v);
  }
};

/* -- the slots -- */

static codec_call call_of(int codec, lam_matrix x, void *coded) {
  const int64_t scales = scale_bytes(x.cols);
  const codec_call c = {lam_view_of(x),  x.rows, x.cols, (unsigned char *)coded,
                        scales + x.cols, scales, codec};
  return c;
}

static lam_matrix as_bf16(lam_matrix x, void *coded) {
  const lam_matrix m = {coded, x.rows, x.cols, x.cols, 1, LAM_BF16, false};
  return m;
}

static lam_status check(const char *who, int codec, lam_dtype t) {
  if (codec <= LAM_CODEC_NONE || codec >= LAM_N_CODECS)
    return lam_fail(LAM_INVALID_ARGUMENT, "cuda %s: codec is %d, expected 1 to %d", who, codec,
                    LAM_N_CODECS - 1);
  if (!lam_cuda_is_float(t))
    return lam_fail(LAM_UNIMPLEMENTED, "cuda %s: x is of dtype number %d, no float", who, (int)t);
  return LAM_OK;
}

extern "C" lam_status lam_cuda_encode_run(const lam_workers *w, int codec, lam_matrix x,
                                          void *coded, void *stream) {
  LAM_TRY(check("codec_pack", codec, x.dtype));
  if (codec == LAM_CODEC_BF16) return lam_cuda_copy_run(w, x, as_bf16(x, coded), stream);
  if (x.rows <= 0 || x.cols <= 0) return LAM_OK;
  const int64_t pieces = lam_cuda_cuts(x.cols, LAM_CODEC_TILE) * TILE_THREADS;
  const dim3 block = lam_cuda_block(pieces);
  const dim3 grid((unsigned)lam_cuda_cuts(pieces, block.x),
                  (unsigned)lam_cuda_least(lam_cuda_cuts(x.rows, block.y), LAM_GRID_Y));
  return lam_cuda_launch(encode, grid, block, 0, stream, call_of(codec, x, coded), "codec_pack");
}

extern "C" lam_status lam_cuda_decode_run(const lam_workers *w, int codec, const void *coded,
                                          lam_matrix y, void *stream) {
  LAM_TRY(check("codec_unpack", codec, y.dtype));
  if (codec == LAM_CODEC_BF16) return lam_cuda_copy_run(w, as_bf16(y, (void *)coded), y, stream);
  const decode_piece piece = {call_of(codec, y, (void *)coded)};
  return lam_cuda_each_piece(y.rows, y.cols, piece, stream, "codec_unpack");
}
