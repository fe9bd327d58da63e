/* surface.c: the exported functions with nothing behind them. The ABI baseline is made from
 * this, so that it holds what lamella.h says and no type of ours; the real library is compared
 * with it.
 * Invariant: one empty function for each row of lamella_api.def. Leaves meaning to the library. */
#include "abi/lamella.h"

#pragma GCC diagnostic ignored "-Wunused-parameter"
#pragma GCC diagnostic ignored "-Wpedantic" /* a void function that returns (void)0 */

#ifdef __clang__
#define APART
#else
#define APART __attribute__((no_icf)) /* equal functions would become one, and lose their types */
#endif

#define LAM_FUNCTION(result, name, arguments) \
  APART result lam_##name arguments { return (result)0; }
#include "abi/lamella_api.def"
#undef LAM_FUNCTION

const lam_api *lam_get_api(uint32_t major) { return 0; }
