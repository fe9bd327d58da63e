/* cuda.h: the little that a handler must ask of the CUDA driver itself.
 * Invariant: the driver is the one that XLA has loaded; none is ever loaded here.
 * Leaves streams to XLA, work on tensors to the library. */
#ifndef LAMELLA_BINDINGS_XLA_CUDA_H
#define LAMELLA_BINDINGS_XLA_CUDA_H

#include <stdbool.h>
#include <stdint.h>

/* The number of the device that holds this memory: XLA's stable slots do not tell. 0 where the
 * driver does not say. */
int32_t xla_cuda_device_of(const void *memory);
/* Writes one f32 0 there, on the stream; false where there is no driver, or it fails. */
bool xla_cuda_clear(void *word, void *stream);

#endif
