/* lanes_avx512_bf16.c: the loops for processors with AVX-512 that also multiply pairs of bf16.
 * Invariant: as lanes.h; only the dot product of bf16 differs from lanes_avx512.c. Leaves the
 * choice to backends.c. */
#include <immintrin.h>
#include <stdbool.h>

#define LANES_TABLE lam_lanes_avx512_bf16
#define LANES_NAME "avx512_bf16"
#define LANES_TARGET \
  __attribute__((target("avx512f,avx512bw,avx512vl,avx512dq,avx512bf16,avx2,fma")))
#define LANES_WIDTH 16
#define LANES_REGISTERS 32
#define LANES_FMA(a, b, c) ((vec)_mm512_fmadd_ps((a), (b), (c)))
#define LANES_SUM(v) _mm512_reduce_add_ps(v)
#define LANES_HAS_PAIRS 1
#define LANES_PAIRS_FMA(a, b, c) ((vec)_mm512_dpbf16_ps((c), (__m512bh)(a), (__m512bh)(b)))
#define LANES_TILE_ROWS 12
#define LANES_TILE_VECTORS 2
#define LAM_FMA(a, b, c) __builtin_fmaf((a), (b), (c))

static bool is_here(void) {
  return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
         __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq") &&
         __builtin_cpu_supports("avx512bf16") && __builtin_cpu_supports("fma");
}

#include "kernels/cpu/lanes_body.h"
