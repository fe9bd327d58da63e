/* reach.c: which device reads whose memory: its own, and that of those it was let.
 * Invariant: where a test keeps the cards apart, none is let.
 * Leaves what that opens and forbids to memory.c. */
#include <string.h>

#include "tests/standin/inside.h"

static bool peers[SI_MAX_DEVICES][SI_MAX_DEVICES];

bool si_peers(int device, int peer) { return device == peer || peers[device][peer]; }

bool si_peers_enable(int device, int peer) {
  if (device != peer && si_machine_is.cards_apart) return false;
  peers[device][peer] = true;
  return true;
}

cudaError_t CUDARTAPI cudaDeviceEnablePeerAccess(int peer, unsigned int flags) {
  si_enter();
  if (flags != 0) return si_leave(cudaErrorInvalidValue);
  if (peer < 0 || peer >= si_machine_is.n_devices || peer == si_device)
    return si_leave(cudaErrorInvalidDevice);
  if (peers[si_device][peer]) return si_leave(cudaErrorPeerAccessAlreadyEnabled);
  return si_leave(si_peers_enable(si_device, peer) ? cudaSuccess
                                                   : cudaErrorPeerAccessUnsupported);
}

void si_peers_forget(void) { memset(peers, 0, sizeof peers); }
