/* sum.c: sums of partial products that lie in the ranks' arenas, where their gemms wrote them: no copy in.
 *
 * A chunk goes through four sum slots in turn. start raises `summed`; finish waits for the peers' and sums in one pass with
 * bias, residual and rounding. Forms (which one by size, measured in the table at the end of the file's forms):
 *   one-shot  every rank sums all rows it receives; always when rows are scattered
 *   two-shot  rank r sums its share of the rows, lays the rounded result where its own partial rows were, raises `reduced`, and
 *             takes the others' shares
 * Invariant: `read` counts the chunks whose peers' memory a rank will not read again; slot c % 4 is given out when all peers'
 * `read` is past chunk c - 4. Rows are summed in rank order, so all ranks hold the same bits.
 * Leaves arithmetic and threads to the device's sum and copy, the announcement to steps.c. */
#include "kernels/device.h"
#include "plugin/comm/shm/shm.h"

#define GRAIN (64u << 10) /* slots grow in these */

static shm_board *board(const shm_group *s) { return s->boards[s->g->rank]; }

/* ---- Slots ----------------------------------------------------------------------------------------------------------- */

static uint64_t slot_key(const shm_group *s, int slot, uint32_t generation, int owner) {
  return shm_key(s, SHM_KEY_SUM, (uint64_t)slot << 32 | generation, owner, owner);
}

static void leave_slot(shm_group *s, int slot) {
  shm_sum_slot *sum = &s->sums.slots[slot];
  if (sum->generation == 0) return;
  for (int r = 0; r < s->g->size; r++) {
    if (r == s->g->rank) continue;
    shm_head *theirs = sum->heads[r];
    if (!theirs) theirs = lam_shm_region_find(s->world, s->world_rank[r], slot_key(s, slot, sum->generation, r));
    if (theirs) shm_region_leave_peer(theirs);
    sum->heads[r] = NULL;
  }
  lam_shm_region_leave(s->world, sum->heads[s->g->rank]);
  sum->heads[s->g->rank] = NULL;
}

void lam_shm_sums_leave(shm_group *s) {
  for (int i = 0; i < SHM_SUMS; i++) leave_slot(s, i);
}

/* All ranks ask for the same sizes in the same order, so they grow alike. */
static lam_status grow_slot(shm_group *s, int slot, uint64_t bytes) {
  shm_sum_slot *sum = &s->sums.slots[slot];
  if (sum->generation > 0 && bytes <= sum->capacity) return LAM_OK; /* no rows: a region all the same */
  leave_slot(s, slot);
  sum->capacity = 0;
  sum->generation++;
  const uint64_t capacity = (bytes + GRAIN - 1) / GRAIN * GRAIN;
  shm_head *head = NULL;
  LAM_TRY(lam_shm_region_create(s->world, slot_key(s, slot, sum->generation, s->g->rank), sizeof *head + capacity,
                                sizeof *head, (uint32_t)s->g->size - 1, &head));
  sum->heads[s->g->rank] = head;
  sum->capacity = capacity;
  return lam_shm_region_publish(s->world, head);
}

static lam_status find_peers(shm_group *s, int slot) {
  shm_sum_slot *sum = &s->sums.slots[slot];
  for (int r = 0; r < s->g->size; r++) {
    const shm_wait w = {.peer = r, .deadline_ms = s->deadline_ms};
    if (!sum->heads[r]) LAM_TRY(lam_shm_region_await(s, &w, slot_key(s, slot, sum->generation, r), &sum->heads[r]));
  }
  return LAM_OK;
}

static lam_status wait_flags(shm_group *s, size_t flag, uint32_t value) {
  for (int r = 0; r < s->g->size; r++) {
    if (r == s->g->rank) continue;
    const shm_wait w = {.flag = (shm_flag *)((char *)s->boards[r] + flag), .value = value, .peer = r,
                        .deadline_ms = s->deadline_ms};
    LAM_TRY(shm_wait_for(s, &w));
  }
  return LAM_OK;
}

lam_status lam_shm_partial(lam_group *g, int64_t rows, int64_t cols, lam_sum *sum) {
  shm_group *s = shm_group_of(g);
  if (s->sums.taken - s->sums.finished >= SHM_SUMS)
    return lam_fail(LAM_FAILED_PRECONDITION, "partial sums: %d chunks are under way, finish one first", SHM_SUMS);
  sum->slot = (int)(s->sums.taken % SHM_SUMS);
  LAM_TRY(wait_flags(s, offsetof(shm_board, read), s->sums.taken + 1 - SHM_SUMS));
  LAM_TRY(grow_slot(s, sum->slot, (uint64_t)(rows * cols) * sizeof(float)));
  sum->part = (lam_matrix){.data = s->sums.slots[sum->slot].heads[g->rank] + 1, .rows = rows, .cols = cols,
                           .row_stride = cols, .col_stride = 1, .dtype = LAM_F32};
  s->sums.taken++;
  return LAM_OK;
}

lam_status lam_shm_sum_start(lam_group *g, lam_sum *sum) {
  shm_group *s = shm_group_of(g);
  (void)sum;
  if (s->announced) {
    s->sums.step = s->step;
    s->sums.unchecked = true;
    lam_shm_step_publish(s);
  }
  shm_flag_raise(&board(s)->summed, ++s->sums.started);
  return LAM_OK;
}

/* ---- Sums ------------------------------------------------------------------------------------------------------------ */

static lam_matrix part_of(const shm_group *s, const lam_sum *sum, int rank) {
  lam_matrix part = sum->part;
  part.data = s->sums.slots[sum->slot].heads[rank] + 1;
  return part;
}

/* Rows first .. first + n - 1 of the chunk, summed into rows of y from y_row on. */
static lam_status sum_rows(const shm_group *s, const lam_sum *sum, int64_t first, int64_t n, int64_t y_row) {
  lam_matrix parts[SHM_RANKS], residual = sum->residual;
  for (int r = 0; r < s->g->size; r++) parts[r] = lam_matrix_rows(part_of(s, sum, r), first, n);
  if (lam_matrix_here(residual)) residual = lam_matrix_rows(residual, y_row, n);
  return lam_device_sum(&lam_device_cpu, lam_context_workers(s->g->ctx), parts, s->g->size, sum->bias, residual,
                        lam_matrix_rows(sum->y, y_row, n), NULL);
}

static int64_t share_begin(const shm_group *s, int64_t rows, int rank) { return rows * rank / s->g->size; }

/* Where rank r lays its share of the result: over its own partial rows, which nobody else reads. */
static lam_matrix result_of(const shm_group *s, const lam_sum *sum, int rank) {
  const int64_t first = share_begin(s, sum->part.rows, rank), n = share_begin(s, sum->part.rows, rank + 1) - first;
  lam_matrix m = part_of(s, sum, rank);
  m.data = (float *)m.data + first * m.row_stride;
  m.rows = n;
  m.dtype = sum->y.dtype;
  return m;
}

static lam_status sum_two_shot(shm_group *s, const lam_sum *sum) {
  const lam_workers *workers = lam_context_workers(s->g->ctx);
  const int me = s->g->rank;
  for (int i = 0; i < s->g->size; i++) {
    const int r = (me + i) % s->g->size; /* the own share first */
    const lam_matrix result = result_of(s, sum, r);
    const int64_t first = share_begin(s, sum->part.rows, r);
    const lam_matrix y = lam_matrix_rows(sum->y, first, result.rows);
    if (i == 1) LAM_TRY(wait_flags(s, offsetof(shm_board, reduced), s->sums.finished + 1));
    if (i > 0) {
      LAM_TRY(lam_device_copy(&lam_device_cpu, workers, result, y, NULL));
      continue;
    }
    LAM_TRY(sum_rows(s, sum, first, result.rows, first));
    LAM_TRY(lam_device_copy(&lam_device_cpu, workers, y, result, NULL));
    shm_flag_raise(&board(s)->reduced, s->sums.finished + 1);
  }
  return LAM_OK;
}

static bool takes_two_shots(const shm_group *s, const lam_sum *sum) {
  const int64_t bytes = sum->part.rows * sum->part.cols * (int64_t)sizeof(float);
  return !sum->scatter && bytes >= SHM_TWO_SHOT_SUM && sum->part.rows >= s->g->size && sum->y.rows == sum->part.rows;
}

static lam_status finish(shm_group *s, const lam_sum *sum) {
  if (s->sums.unchecked) LAM_TRY(lam_shm_compare(s, s->sums.step));
  s->sums.unchecked = false;
  LAM_TRY(wait_flags(s, offsetof(shm_board, summed), s->sums.finished + 1));
  LAM_TRY(find_peers(s, sum->slot));
  return takes_two_shots(s, sum) ? sum_two_shot(s, sum) : sum_rows(s, sum, sum->y_first, sum->y.rows, 0);
}

lam_status lam_shm_sum_finish(lam_group *g, lam_sum *sum) {
  shm_group *s = shm_group_of(g);
  LAM_TRY(finish(s, sum));
  s->sums.finished++;
  shm_flag_raise(&board(s)->read, s->sums.finished);
  return LAM_OK;
}
