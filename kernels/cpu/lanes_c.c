/* lanes_c.c: the loops for any processor, with what the compiler makes of them.
 * Invariant: as lanes.h; needs nothing that C does not have. Leaves the choice to backends.c. */
#include <stdbool.h>

#define LANES_TABLE lam_lanes_c
#define LANES_NAME "C"
#define LANES_TARGET
#define LANES_WIDTH 4
#define LANES_REGISTERS 16
#define LANES_FMA(a, b, c) ((a) * (b) + (c))
#define LANES_SUM(v) (((v)[0] + (v)[2]) + ((v)[1] + (v)[3]))
#define LANES_HAS_PAIRS 0
#define LANES_PAIRS_FMA(a, b, c) LANES_FMA(a, b, c) /* not used */
#define LANES_TILE_ROWS 4
#define LANES_TILE_VECTORS 2

static bool is_here(void) { return true; }

#include "kernels/cpu/lanes_body.h"
