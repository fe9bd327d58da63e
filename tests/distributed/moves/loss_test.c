/* loss_test.c: processes that read each other's device memory by CUDA IPC, or go through the host: one of
 * them is lost in each operation, and in a pipeline's step.
 * Leaves NCCL's to tests/gpu/nccl_test.c. */
#include <signal.h>

#include "abi/status.h"
#include "tests/distributed/moves/losses.h"
#include "tests/place.h"

enum { RANKS = 3 };

/* Half of the operations for an odd seed, half for an even one. */
TEST(loss, a_killed_process_ends_every_operation_of_the_others) {
  const loss killed = {.signal = SIGKILL, .expected = LAM_PEER_DEAD, .deadline_ms = 60000};
  if (!place_is_named()) SKIP("no CUDA device was asked for");
  lose_in_moves(&killed, RANKS, (int)(seed() % 2), 2);
}

TEST(loss, a_stopped_process_ends_every_operation_of_the_others_at_the_deadline) {
  const loss stopped = {.signal = SIGSTOP, .expected = LAM_PEER_STALLED, .deadline_ms = 1000};
  if (!place_is_named()) SKIP("no CUDA device was asked for");
  lose_in_moves(&stopped, RANKS, (int)(seed() % 2), 2);
}
