/* block.c: the threads of one block, as fibers that run up to where they meet.
 *
 * Invariant: a thread goes on from a barrier once all threads of the block came to that line, and
 * from a shuffle or vote once all lanes of its mask did; where that cannot come to pass, the block
 * is broken, with one line that says who waits where.
 * Stricter than a real card: a thread that has returned does not count as having come to a barrier.
 * Leaves which blocks run to kernel.c. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "tests/standin/inside.h"

typedef struct place { /* as kernel_shim.h has it */
  uint3 thread, block;
  dim3 block_dim, grid_dim;
} place;

typedef enum vote { SHFL, BALLOT, SYNCWARP } vote; /* as there */

typedef enum at { RUNNABLE, AT_BARRIER, AT_MEETING, WAITS, RETURNED } at;

typedef struct thread {
  place here;
  si_block *block;
  si_fiber *fiber; /* NULL: not started, or returned */
  at at;
  const char *file;
  int line;
  uint64_t got; /* what it takes from the meeting */
} thread;

/* Lanes of a warp that come to one place; free where here is 0. */
typedef struct meeting {
  uint32_t mask, here;
  int kind, line;
  const char *file;
  uint64_t brought[32];
  int from[32];
} meeting;

enum { MEETINGS = 8, BYTES_BEHIND = 64, POISON = 0xff };

struct si_block {
  si_launch launch;
  int n, n_returned, n_at_barrier;
  int64_t n_moves; /* threads that got further than waiting */
  bool broken;
  char *dynamic, *saved; /* shared memory; saved: the static arrays, while other blocks run */
  bool has_saved;
  thread *threads;
  meeting *meetings; /* MEETINGS for each warp */
};

const place *standin_here;
static thread *current;
static si_block *owner; /* of the static shared arrays' bytes, where they lie */
static si_block *spare; /* the last one that ended, to be used again */

/* -- shared memory -- */

static size_t section_bytes(const si_block *b) {
  return b->launch.section ? (size_t)(b->launch.section_stop - b->launch.section) : 0;
}

static void take_section(si_block *b) {
  const size_t bytes = section_bytes(b);
  if (owner == b || bytes == 0) return;
  if (owner) {
    memcpy(owner->saved, owner->launch.section, section_bytes(owner));
    owner->has_saved = true;
  }
  if (b->has_saved)
    memcpy(b->launch.section, b->saved, bytes);
  else
    memset(b->launch.section, POISON, bytes);
  owner = b;
}

static void check_dynamic(const si_block *b) {
  for (size_t i = b->launch.shared; i < b->launch.shared + BYTES_BEHIND; i++)
    if ((unsigned char)b->dynamic[i] != POISON) {
      si_report("kernel %s: wrote past its %zu bytes of dynamic shared memory", b->launch.name,
                b->launch.shared);
      return;
    }
}

void *standin_shared(void) { return current->block->dynamic; }

/* -- blocks -- */

static int n_threads(const si_launch *l) { return (int)(l->block.x * l->block.y * l->block.z); }

static si_block *make(const si_launch *l) {
  const int n = n_threads(l);
  si_block *b = si_new(sizeof *b);
  b->n = n;
  b->threads = si_new((size_t)n * sizeof(thread));
  b->meetings = si_new((size_t)((n + 31) / 32) * MEETINGS * sizeof(meeting));
  return b;
}

static void unmake(si_block *b) {
  if (!b) return;
  free(b->dynamic);
  free(b->saved);
  free(b->threads);
  free(b->meetings);
  free(b);
}

static void set_shared(si_block *b) {
  b->dynamic = aligned_alloc(1024, (b->launch.shared + BYTES_BEHIND + 1023) / 1024 * 1024);
  if (!b->dynamic) abort();
  memset(b->dynamic, POISON, b->launch.shared + BYTES_BEHIND);
  if (section_bytes(b)) b->saved = si_new(section_bytes(b));
}

si_block *si_block_new(const si_launch *l, uint3 at) {
  si_block *b = spare && spare->n == n_threads(l) ? spare : make(l);
  if (b == spare) spare = NULL;
  free(b->dynamic);
  free(b->saved);
  *b = (si_block){.launch = *l, .n = b->n, .threads = b->threads, .meetings = b->meetings};
  set_shared(b);
  for (int i = 0; i < (b->n + 31) / 32 * MEETINGS; i++) b->meetings[i].here = 0;
  for (int i = 0; i < b->n; i++) {
    const unsigned u = (unsigned)i, x = l->block.x, y = l->block.y;
    const uint3 t = {u % x, u / x % y, u / x / y};
    b->threads[i] = (thread){.here = {t, at, l->block, l->grid}, .block = b};
  }
  return b;
}

void si_block_free(si_block *b) {
  for (int i = 0; i < b->n; i++)
    if (b->threads[i].fiber) si_fiber_free(b->threads[i].fiber);
  if (owner == b) owner = NULL;
  unmake(spare);
  spare = b;
}

/* -- threads -- */

static void run_thread(void *arg) {
  const thread *t = arg;
  t->block->launch.run(t->block->launch.args);
}

static void resume(thread *t) {
  if (!t->fiber) {
    t->fiber = si_fiber_new(run_thread, t);
    t->block->n_moves++;
  }
  current = t;
  standin_here = &t->here;
  if (si_fiber_resume(t->fiber)) return;
  t->fiber = NULL;
  t->at = RETURNED;
  t->block->n_returned++;
  t->block->n_moves++;
}

static void park(thread *t, at at, const char *file, int line) {
  t->at = at;
  t->file = file;
  t->line = line;
  si_fiber_park();
}

static const char *base_name(const char *file) {
  const char *slash = strrchr(file, '/');
  return slash ? slash + 1 : file;
}

/* The thread does not come back. */
static void break_here(thread *t, const char *what, const char *file, int line) {
  const uint3 i = t->here.thread, at = t->here.block;
  si_report("kernel %s: %s: %s:%d, thread (%u, %u, %u) of block (%u, %u, %u)",
            t->block->launch.name, what, base_name(file), line, i.x, i.y, i.z, at.x, at.y, at.z);
  t->block->broken = true;
  for (;;) park(t, WAITS, file, line);
}

/* -- where threads meet -- */

static bool is_place(const char *file, int line, const char *other, int other_line) {
  return line == other_line && (file == other || strcmp(file, other) == 0);
}

static void release_barrier(si_block *b) {
  for (int i = 0; i < b->n; i++)
    if (b->threads[i].at == AT_BARRIER) b->threads[i].at = RUNNABLE;
  b->n_at_barrier = 0;
  b->n_moves++;
}

void standin_barrier(const char *file, int line) {
  thread *t = current;
  si_block *b = t->block;
  for (int i = 0; i < b->n && b->n_at_barrier > 0; i++) {
    const thread *o = &b->threads[i];
    if (o->at != AT_BARRIER) continue;
    if (!is_place(file, line, o->file, o->line))
      break_here(t, "__syncthreads, while other threads are at another one", file, line);
    break;
  }
  if (++b->n_at_barrier < b->n)
    park(t, AT_BARRIER, file, line);
  else
    release_barrier(b);
}

static meeting *meeting_of(thread *t, meeting *of_warp, uint32_t mask, int kind, const char *file,
                           int line) {
  meeting *unused = NULL;
  for (int i = 0; i < MEETINGS; i++) {
    meeting *m = &of_warp[i];
    if (m->here == 0) {
      if (!unused) unused = m;
    } else if (m->mask & mask) {
      if (m->mask == mask && m->kind == kind && is_place(file, line, m->file, m->line)) return m;
      break_here(t, "lanes of one mask are at different shuffles or votes", file, line);
    }
  }
  if (!unused) break_here(t, "too many masks at once", file, line);
  *unused = (meeting){.mask = mask, .kind = kind, .file = file, .line = line};
  return unused;
}

/* The threads of a warp; fewer than 32 in a block's last one. */
static int warp_of(const thread *t, int *out_first) {
  const int i = (int)(t - t->block->threads);
  *out_first = i / 32 * 32;
  return t->block->n - *out_first < 32 ? t->block->n - *out_first : 32;
}

static void give_results(thread *t, const meeting *m) {
  int first;
  const int n = warp_of(t, &first);
  uint64_t ballot = 0;
  for (int lane = 0; lane < n; lane++)
    if (m->here >> lane & 1 && m->brought[lane]) ballot |= (uint64_t)1 << lane;
  for (int lane = 0; lane < n; lane++) {
    thread *o = &t->block->threads[first + lane];
    if (!(m->here >> lane & 1)) continue;
    o->got = m->kind == BALLOT ? ballot : m->brought[m->from[lane]];
    o->at = RUNNABLE;
  }
}

uint64_t standin_meet(int kind, uint32_t mask, uint64_t brought, int from, int width,
                      const char *file, int line) {
  thread *t = current;
  int first;
  const int n = warp_of(t, &first), lane = (int)(t - t->block->threads) - first;
  if (!(mask >> lane & 1)) break_here(t, "the lane is not in its own mask", file, line);
  if (n < 32 && mask >> n) break_here(t, "the mask names lanes that the block lacks", file, line);
  if (width < 1 || width > 32 || width & (width - 1))
    break_here(t, "the width of a shuffle is not a power of two up to 32", file, line);
  if (from < 0 || from > 31 || (kind == SHFL && !(mask >> from & 1)))
    break_here(t, "a shuffle reads a lane that is not in its mask", file, line);
  meeting *m = meeting_of(t, t->block->meetings + first / 32 * MEETINGS, mask, kind, file, line);
  m->brought[lane] = brought;
  m->from[lane] = from;
  m->here |= 1u << lane;
  if (m->here != mask) {
    park(t, AT_MEETING, file, line);
    return t->got;
  }
  give_results(t, m);
  m->here = 0;
  t->block->n_moves++;
  return t->got;
}

void standin_yield(void) { park(current, WAITS, "", 0); }

uint64_t standin_now_ns(void) { return si_now_ns(); }

/* -- running -- */

/* All threads that can, in an order by chance, until they stop; did any run? */
static bool run_all(si_block *b) {
  bool ran = false;
  const int start = (int)si_chance((uint64_t)b->n), up = si_chance(2) ? 1 : b->n - 1;
  for (int k = 0, i = start; k < b->n && !b->broken; k++, i = (i + up) % b->n)
    if (b->threads[i].at == RUNNABLE) {
      ran = true;
      resume(&b->threads[i]);
    }
  return ran;
}

static int wake_waiting(si_block *b) {
  int n = 0;
  for (int i = 0; i < b->n; i++)
    if (b->threads[i].at == WAITS) b->threads[i].at = RUNNABLE, n++;
  return n;
}

static void report_stuck(si_block *b) {
  const thread *waits = NULL;
  int n = 0;
  for (int i = 0; i < b->n; i++) {
    if (b->threads[i].at != AT_BARRIER && b->threads[i].at != AT_MEETING) continue;
    if (!waits) waits = &b->threads[i];
    n++;
  }
  si_report(
      "kernel %s: %d of %d threads wait at %s, %s:%d, to which not all come; %d have returned",
      b->launch.name, n, b->n, waits->at == AT_BARRIER ? "__syncthreads" : "a shuffle or vote",
      base_name(waits->file), waits->line, b->n_returned);
  b->broken = true;
}

si_went si_block_run(si_block *b, bool *out_broken) {
  const int64_t moves = b->n_moves;
  take_section(b);
  while (run_all(b) && !b->broken) {
  }
  const bool ended = b->n_returned == b->n;
  if (!b->broken && !ended && wake_waiting(b) == 0) report_stuck(b);
  if (ended) check_dynamic(b);
  *out_broken = b->broken;
  if (b->broken || ended) return SI_ENDED;
  return b->n_moves > moves ? SI_MOVED : SI_WAITS;
}
