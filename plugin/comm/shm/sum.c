/* sum.c: sums of partial products that the ranks' gemms wrote where their peers can read them.
 *
 * A chunk goes through four slots in turn. start raises `summed`; finish waits for the peers'
 * and sums in one pass with bias, residual and rounding. Forms:
 *   one-shot  every rank sums all rows it receives: where rows are scattered, or there are few
 *   two-shot  rank r sums its share of the rows, lays the rounded result where its own partial
 *             rows were, raises `reduced`, and
 *             takes the others' shares
 * Where the parts are written, by size and distance (two CPUs, 4096 columns to bf16, us with the
 * writing; fill.c says what far is):
 *                       near: in the arena  copied in    far: in the arena  copied in
 *     64 KiB                     10             12                31            10
 *     1 MiB                      78            110               378           112
 *     4 MiB                     629            906               662           707
 * Invariant: `read` counts the chunks whose peers' memory a rank will not read again; slot c % 4
 * is given out when all peers' `read` is past chunk c - 4. Rows are summed in rank order, so all
 * ranks hold the same bits.
 * Leaves arithmetic and threads to the device's sum and copy, the announcement to steps.c. */
#include "kernels/device.h"
#include "plugin/comm/shm/shm.h"

#define GRAIN (64 << 10)       /* slots grow in these; parts up to it are always copied in */
#define COPIED_UP_TO (2 << 20) /* and up to this while peers are far */
#define TWO_SHOT_FROM (32 << 10)

static shm_board *board(const shm_group *s) { return s->boards[s->g->rank]; }
static int64_t part_bytes(const lam_sum *sum) {
  return sum->part.rows * sum->part.cols * (int64_t)sizeof(float);
}

/* ---- Slots ----------------------------------------------------------------------------------- */

static uint64_t slot_key(const shm_group *s, int slot, uint32_t generation, int owner) {
  return shm_key(s, SHM_KEY_SUM, (uint64_t)slot << 32 | generation, owner, owner);
}

static void leave_slot(shm_group *s, int slot) {
  shm_sum_slot *sum = &s->sums.slots[slot];
  if (sum->generation == 0) return;
  for (int r = 0; r < s->g->size; r++) {
    if (r == s->g->rank) continue;
    shm_head *theirs = sum->heads[r];
    if (!theirs)
      theirs =
          lam_shm_region_find(s->world, s->world_rank[r], slot_key(s, slot, sum->generation, r));
    if (theirs) shm_region_leave_peer(theirs);
    sum->heads[r] = NULL;
  }
  lam_shm_region_leave(s->world, sum->heads[s->g->rank]);
  lam_context_free(s->g->ctx, sum->own, sum->capacity);
  sum->heads[s->g->rank] = NULL;
  sum->own = NULL;
  sum->capacity = 0;
}

void lam_shm_sums_leave(shm_group *s) {
  for (int i = 0; i < SHM_SUMS; i++) leave_slot(s, i);
}

/* All ranks ask for the same sizes in the same order, so they grow alike. */
static lam_status grow_slot(shm_group *s, int slot, uint64_t bytes) {
  shm_sum_slot *sum = &s->sums.slots[slot];
  shm_head *head = NULL;
  if (bytes <= sum->capacity) return LAM_OK;
  leave_slot(s, slot);
  sum->generation++;
  const uint64_t capacity = (bytes + GRAIN - 1) / GRAIN * GRAIN;
  LAM_TRY(lam_shm_region_create(s->world, slot_key(s, slot, sum->generation, s->g->rank),
                                sizeof *head + capacity, sizeof *head, (uint32_t)s->g->size - 1,
                                &head));
  sum->heads[s->g->rank] = head;
  sum->capacity = capacity;
  if (capacity <= COPIED_UP_TO)
    sum->own = lam_context_alloc(s->g->ctx, capacity); /* NULL: parts are never copied in */
  return lam_shm_region_publish(s->world, head);
}

static lam_status find_peers(shm_group *s, int slot) {
  shm_sum_slot *sum = &s->sums.slots[slot];
  for (int r = 0; r < s->g->size; r++) {
    const shm_wait w = {.peer = r, .deadline_ms = s->deadline_ms};
    if (!sum->heads[r])
      LAM_TRY(lam_shm_region_await(s, &w, slot_key(s, slot, sum->generation, r), &sum->heads[r]));
  }
  return LAM_OK;
}

static lam_status wait_flags(shm_group *s, size_t flag, uint32_t value) {
  for (int r = 0; r < s->g->size; r++) {
    if (r == s->g->rank) continue;
    const shm_wait w = {.flag = (shm_flag *)((char *)s->boards[r] + flag),
                        .value = value,
                        .peer = r,
                        .deadline_ms = s->deadline_ms};
    LAM_TRY(shm_wait_for(s, &w));
  }
  return LAM_OK;
}

/* A slot's memory in rank's arena, where its peers read. */
static void *shared(const shm_group *s, int slot, int rank) {
  return s->sums.slots[slot].heads[rank] + 1;
}

lam_status lam_shm_partial(lam_group *g, int64_t rows, int64_t cols, lam_sum *sum) {
  shm_group *s = shm_group_of(g);
  const uint64_t bytes = (uint64_t)(rows * cols) * sizeof(float);
  if (s->sums.taken - s->sums.finished >= SHM_SUMS)
    return lam_fail(LAM_FAILED_PRECONDITION,
                    "partial sums: %d chunks are under way, finish one first", SHM_SUMS);
  sum->slot = (int)(s->sums.taken % SHM_SUMS);
  LAM_TRY(wait_flags(s, offsetof(shm_board, read), s->sums.taken + 1 - SHM_SUMS));
  LAM_TRY(grow_slot(s, sum->slot, bytes ? bytes : 1)); /* no rows: peers look for it all the same */
  const bool copied = bytes <= GRAIN || (bytes <= COPIED_UP_TO && shm_peers_are_far(s->world));
  void *own = copied ? s->sums.slots[sum->slot].own : NULL;
  sum->part = (lam_matrix){.data = own ? own : shared(s, sum->slot, g->rank),
                           .rows = rows,
                           .cols = cols,
                           .row_stride = cols,
                           .col_stride = 1,
                           .dtype = LAM_F32};
  s->sums.taken++;
  return LAM_OK;
}

/* ---- Start ----------------------------------------------------------------------------------- */

static bool takes_two_shots(const shm_group *s, const lam_sum *sum) {
  return !sum->scatter && part_bytes(sum) >= TWO_SHOT_FROM && sum->part.rows >= s->g->size;
}

static int64_t share_begin(const shm_group *s, int64_t rows, int rank) {
  return rows * rank / s->g->size;
}

/* What the peers will read: of two shots, all but the own share. */
static void copy_in(const shm_group *s, const lam_sum *sum) {
  const bool two_shots = takes_two_shots(s, sum);
  const int64_t row = sum->part.cols * (int64_t)sizeof(float), rows = sum->part.rows;
  const int64_t skip = two_shots ? share_begin(s, rows, s->g->rank) : rows;
  const int64_t next = two_shots ? share_begin(s, rows, s->g->rank + 1) : rows;
  char *to = shared(s, sum->slot, s->g->rank);
  const char *from = sum->part.data;
  if (to == from) return;
  lam_shm_fill(s->world, to, from, skip * row);
  lam_shm_fill(s->world, to + next * row, from + next * row, (rows - next) * row);
}

lam_status lam_shm_sum_start(lam_group *g, lam_sum *sum) {
  shm_group *s = shm_group_of(g);
  if (s->announced) {
    s->sums.step = s->step;
    s->sums.unchecked = true;
    lam_shm_step_publish(s);
  }
  copy_in(s, sum);
  shm_flag_raise(&board(s)->summed, ++s->sums.started);
  return LAM_OK;
}

/* ---- Finish ---------------------------------------------------------------------------------- */

/* Rows first .. first + n - 1 of the chunk, summed into rows of y from y_row on. */
static lam_status sum_rows(const shm_group *s, const lam_sum *sum, int64_t first, int64_t n,
                           int64_t y_row) {
  lam_matrix parts[SHM_RANKS], residual = sum->residual;
  for (int r = 0; r < s->g->size; r++) {
    parts[r] = sum->part;
    if (r != s->g->rank) parts[r].data = shared(s, sum->slot, r);
    parts[r] = lam_matrix_rows(parts[r], first, n);
  }
  if (lam_matrix_here(residual)) residual = lam_matrix_rows(residual, y_row, n);
  return lam_device_sum(&lam_device_cpu, lam_context_workers(s->g->ctx), parts, s->g->size,
                        sum->bias, residual, lam_matrix_rows(sum->y, y_row, n), NULL);
}

/* Where rank lays its share of the result: over its own partial rows, which nobody else reads. */
static lam_matrix result_of(const shm_group *s, const lam_sum *sum, int rank) {
  const int64_t first = share_begin(s, sum->part.rows, rank),
                n = share_begin(s, sum->part.rows, rank + 1) - first;
  lam_matrix m = sum->part;
  m.data = (float *)shared(s, sum->slot, rank) + first * m.row_stride;
  m.rows = n;
  m.dtype = sum->y.dtype;
  return m;
}

static lam_status lay_result(shm_group *s, lam_matrix y, lam_matrix result) {
  if (y.row_stride != y.cols || y.col_stride != 1)
    return lam_device_copy(&lam_device_cpu, lam_context_workers(s->g->ctx), y, result, NULL);
  lam_shm_fill(s->world, result.data, y.data, y.rows * y.cols * lam_dtype_bytes(y.dtype));
  return LAM_OK;
}

static lam_status sum_two_shot(shm_group *s, const lam_sum *sum) {
  const int me = s->g->rank;
  const int64_t first = share_begin(s, sum->part.rows, me);
  const lam_matrix mine = result_of(s, sum, me);
  LAM_TRY(sum_rows(s, sum, first, mine.rows, first));
  LAM_TRY(lay_result(s, lam_matrix_rows(sum->y, first, mine.rows), mine));
  shm_flag_raise(&board(s)->reduced, s->sums.finished + 1);
  LAM_TRY(wait_flags(s, offsetof(shm_board, reduced), s->sums.finished + 1));
  for (int r = 0; r < s->g->size; r++) {
    const lam_matrix theirs = result_of(s, sum, r),
                     y = lam_matrix_rows(sum->y, share_begin(s, sum->part.rows, r), theirs.rows);
    if (r != me)
      LAM_TRY(lam_device_copy(&lam_device_cpu, lam_context_workers(s->g->ctx), theirs, y, NULL));
  }
  return LAM_OK;
}

static lam_status finish(shm_group *s, const lam_sum *sum) {
  if (s->sums.unchecked) LAM_TRY(lam_shm_compare(s, s->sums.step));
  s->sums.unchecked = false;
  LAM_TRY(wait_flags(s, offsetof(shm_board, summed), s->sums.finished + 1));
  LAM_TRY(find_peers(s, sum->slot));
  return takes_two_shots(s, sum) ? sum_two_shot(s, sum)
                                 : sum_rows(s, sum, sum->y_first, sum->y.rows, 0);
}

lam_status lam_shm_sum_finish(lam_group *g, lam_sum *sum) {
  shm_group *s = shm_group_of(g);
  LAM_TRY(finish(s, sum));
  s->sums.finished++;
  shm_flag_raise(&board(s)->read, s->sums.finished);
  return LAM_OK;
}
