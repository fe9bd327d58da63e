/* cuda_support.h: boxes in the memory of the stand-in's card, and the CUDA kernels as a device.
 *
 * Invariant: a box goes to the card with the pattern around its elements, and at an address that is
 * as aligned as its own; so a write beside them is found when it comes back.
 * Leaves what the kernels do to the tests. What passes here is emulated: it never ran on a GPU. */
#ifndef LAMELLA_TESTS_UNIT_KERNELS_CUDA_SUPPORT_H
#define LAMELLA_TESTS_UNIT_KERNELS_CUDA_SUPPORT_H

#include "tests/unit/kernels/support.h"

extern const lam_device card; /* vectors, vocabulary and norms, no more */
extern void *stream;

void card_begin(void); /* a fresh card and stream */
void card_end(void);   /* nothing was found wrong, nothing that was borrowed is still out */

void *bytes_to_card(const void *bytes, uint64_t n);
void bytes_from_card(void *bytes, const void *on_card, uint64_t n); /* once all queued work ran */
lam_matrix to_card(const box *b);
void from_card(box *b, lam_matrix on_card);

static const int floats[] = {LAM_F32, LAM_BF16, LAM_F16, LAM_F8E4M3, LAM_F8E5M2};
lam_dtype any_float(rng *r); /* f32, bf16 or f16 */
form any_form(rng *r);

#endif
