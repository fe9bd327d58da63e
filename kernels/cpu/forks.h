/* forks.h: calls into other libraries that no fork may come between.
 *
 * A child that is forked while another thread opens a library, or while oneDNN makes a product,
 * finds their locks held for ever and their lists half written. So forks wait for these calls.
 * Invariant: calls do not nest, and never fork. */
#ifndef LAMELLA_KERNELS_CPU_FORKS_H
#define LAMELLA_KERNELS_CPU_FORKS_H

void lam_forks_wait(void); /* any number of threads at once */
void lam_forks_go_on(void);

#endif
