/* packet.c: all_reduce of at most 1 KiB: the announcement and the operand in cache lines that
 * each carry their step.
 *
 * With a flag of its own a rank fetches the flag first, then what it guards: two trips between
 * caches. Here one look at all lines of a peer tells whether they have come, and they are here
 * already: one trip (64 bytes between far caches: 0.78 us before). The step is published too,
 * for a peer that sleeps or is in another operation.
 * Invariant: a line's step is stored after its bytes; lines are zero when a board is made, and
 * step numbers start at 1.
 * Leaves longer waits to wait.c, disagreements to steps.c. */
#include "plugin/comm/shm/shm.h"

typedef struct packet {
  lam_comm_op op;
  unsigned char data[SHM_LINES * SHM_LINE_BYTES - sizeof(lam_comm_op)];
} packet;

static int lines_for(int64_t bytes) {
  return (int)(((int64_t)sizeof(lam_comm_op) + bytes + SHM_LINE_BYTES - 1) / SHM_LINE_BYTES);
}

static shm_line *lines_of(const shm_group *s, int rank, uint32_t step) {
  return s->boards[rank]->packets[step % SHM_SLOTS];
}

static void write_lines(shm_line *lines, const packet *p, int n, uint32_t mark) {
  for (int i = 0; i < n; i++) {
    memcpy(lines[i].data, (const unsigned char *)p + i * SHM_LINE_BYTES, SHM_LINE_BYTES);
    atomic_store_explicit(&lines[i].mark, mark, memory_order_release);
  }
}

static void read_lines(const shm_line *lines, packet *p, int n) {
  for (int i = 0; i < n; i++)
    memcpy((unsigned char *)p + i * SHM_LINE_BYTES, lines[i].data, SHM_LINE_BYTES);
}

/* All are asked before any answer is used, so that they are fetched together. */
static bool lines_here(const shm_line *lines, int n, uint32_t mark) {
  uint32_t differ = 0;
  for (int i = 0; i < n; i++)
    differ |= atomic_load_explicit(&lines[i].mark, memory_order_acquire) ^ mark;
  return differ == 0;
}

static lam_status await_lines(shm_group *s, int peer, const shm_line *lines, int n, uint32_t step) {
  const shm_wait w = {.flag = &s->boards[peer]->step,
                      .value = step + 1,
                      .peer = peer,
                      .deadline_ms = s->deadline_ms};
  for (int i = 0; i <= s->world->spins; i++) {
    if (lines_here(lines, n, step + 1)) return LAM_OK;
    shm_pause();
  }
  LAM_TRY(shm_wait_for(s, &w));
  if (lines_here(lines, n, step + 1)) return LAM_OK;
  LAM_TRY(lam_shm_compare(s, step)); /* the peer does something else */
  return lam_fail(LAM_INTERNAL, "rank %d announced the same, but sent nothing", peer);
}

/* Compares in clear text only where something differs. */
static lam_status check_op(shm_group *s, const packet *mine, const packet *theirs, uint32_t step) {
  return memcmp(&mine->op, &theirs->op, sizeof mine->op) == 0 ? LAM_OK : lam_shm_compare(s, step);
}

lam_status lam_shm_packet_sum(shm_group *s, const void *x, void *y, int64_t n, lam_dtype t) {
  packet packets[SHM_PACKET_RANKS];
  const void *parts[SHM_PACKET_RANKS];
  const uint32_t step = s->step;
  const int me = s->g->rank;
  const int64_t bytes = n * lam_dtype_bytes(t);
  const int lines = lines_for(bytes);

  packets[me].op = *lam_shm_announced(s);
  shm_copy(packets[me].data, x, bytes);
  write_lines(lines_of(s, me, step), &packets[me], lines, step + 1);
  lam_shm_step_publish(s);
  for (int r = 0; r < s->g->size; r++) {
    parts[r] = packets[r].data;
    if (r == me) continue;
    LAM_TRY(await_lines(s, r, lines_of(s, r, step), lines, step));
    read_lines(lines_of(s, r, step), &packets[r], lines);
    LAM_TRY(check_op(s, &packets[me], &packets[r], step));
  }
  lam_add(t, parts, s->g->size, n, y);
  return LAM_OK;
}
