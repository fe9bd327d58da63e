/* lanes_avx2.c: the loops for processors with AVX2 and FMA.
 * Invariant: as lanes.h. Leaves the choice to backends.c. */
#include <immintrin.h>
#include <stdbool.h>

#define LANES_TABLE lam_lanes_avx2
#define LANES_NAME "avx2"
#define LANES_TARGET __attribute__((target("avx2,fma")))
#define LANES_WIDTH 8
#define LANES_REGISTERS 16
#define LANES_FMA(a, b, c) ((vec)_mm256_fmadd_ps((a), (b), (c)))
#define LANES_SUM(v) sum_lanes(v)
#define LANES_HAS_PAIRS 0
#define LANES_PAIRS_FMA(a, b, c) LANES_FMA(a, b, c) /* not used */
#define LANES_TILE_ROWS 6
#define LANES_TILE_VECTORS 2
#define LAM_FMA(a, b, c) __builtin_fmaf((a), (b), (c))

static bool is_here(void) {
  return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
}

LANES_TARGET static inline float sum_lanes(__m256 v) {
  const __m128 four = _mm_add_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps(v, 1));
  const __m128 two = _mm_add_ps(four, _mm_movehl_ps(four, four));
  return _mm_cvtss_f32(_mm_add_ss(two, _mm_movehdup_ps(two)));
}

#include "kernels/cpu/lanes_body.h"
