/* fiber.c: functions that stop half-way and go on later, each on a stack of its own.
 *
 * Invariant: one fiber runs at a time, under the stand-in's lock, so that the thread that resumes
 * one need not be the one that started it. A stack whose lowest bytes were written is a report. The
 * switch keeps the registers that a function must keep; elsewhere than on x86-64 the C library
 * switches (slower: it asks the system for the signal mask each time). Leaves whom to resume to
 * block.c. */
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#include "tests/standin/inside.h"

#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/asan_interface.h>
#include <sanitizer/common_interface_defs.h>
enum { STACK = 256 << 10 };
#elif defined(__SANITIZE_THREAD__)
#include <sanitizer/tsan_interface.h>
enum { STACK = 256 << 10 };
#else
enum { STACK = 64 << 10 };
#endif

static const char pad[16] = "below the stack";

/* Stacks lie a power of two apart: without this their hot ends would share a few lines of cache. */
static size_t skew(const char *stack) { return (uintptr_t)stack / STACK % 61 * 64; }

#if defined(__x86_64__)
typedef void *context;

/* Keeps this place in *from and goes on at `to`. */
__attribute__((naked, noinline)) static void switch_to(__attribute__((unused)) context *from,
                                                       __attribute__((unused)) context to) {
  __asm__(
      "push %rbp\n push %rbx\n push %r12\n push %r13\n push %r14\n push %r15\n"
      "mov %rsp, (%rdi)\n mov %rsi, %rsp\n"
      "pop %r15\n pop %r14\n pop %r13\n pop %r12\n pop %rbx\n pop %rbp\n ret\n");
}

static void prepare(context *c, char *stack, void (*entry)(void)) {
  void **top = (void **)(stack + STACK - skew(stack));
  top[-2] = (void *)(uintptr_t)entry; /* where switch_to's ret goes; below it, six registers */
  *c = top - 8;
}
#define SWITCH(from, to) switch_to(&(from), (to))
#else
#include <ucontext.h>
typedef ucontext_t context;

static void prepare(context *c, char *stack, void (*entry)(void)) {
  getcontext(c);
  c->uc_stack.ss_sp = stack;
  c->uc_stack.ss_size = STACK;
  makecontext(c, entry, 0);
}
#define SWITCH(from, to) swapcontext(&(from), &(to))
#endif

struct si_fiber {
  context at;
  char *stack;
  void (*fn)(void *arg);
  void *arg;
  bool ended;
  void *kept; /* by a sanitizer */
  si_fiber *next_free;
};

static si_fiber *unused, *current;
static context resumer;

/* Functions that begin on one stack and end on another, which would confuse the thread sanitizer. */
#define UNCOUNTED __attribute__((no_sanitize_thread))

/* -- what sanitizers must know: which stack comes next, and that it has come -- */

#if defined(__SANITIZE_ADDRESS__)
static const void *resumers_stack;
static size_t resumers_bytes;
static void to_fiber(si_fiber *f, void **kept) {
  __sanitizer_start_switch_fiber(kept, f->stack, STACK);
}
static void in_fiber(si_fiber *f) {
  __sanitizer_finish_switch_fiber(f->kept, &resumers_stack, &resumers_bytes);
}
static void to_resumer(si_fiber *f) {
  __sanitizer_start_switch_fiber(f->ended ? NULL : &f->kept, resumers_stack, resumers_bytes);
}
static void in_resumer(void *kept) { __sanitizer_finish_switch_fiber(kept, NULL, NULL); }
static void forget_frames(si_fiber *f) {
  __asan_unpoison_memory_region(f->stack, STACK);
  f->kept = NULL;
}
#elif defined(__SANITIZE_THREAD__)
static void *resumers;
UNCOUNTED static void to_fiber(si_fiber *f, void **kept) {
  (void)kept;
  if (!f->kept) f->kept = __tsan_create_fiber(0);
  resumers = __tsan_get_current_fiber();
  __tsan_switch_to_fiber(f->kept, 0);
}
static void in_fiber(si_fiber *f) { (void)f; }
UNCOUNTED static void to_resumer(si_fiber *f) {
  (void)f;
  __tsan_switch_to_fiber(resumers, 0);
}
static void in_resumer(void *kept) { (void)kept; }
static void forget_frames(si_fiber *f) { /* to make one takes long: those that ended keep theirs */
  if (f->ended) return;
  __tsan_destroy_fiber(f->kept);
  f->kept = NULL;
}
#else
static void to_fiber(si_fiber *f, void **kept) { (void)f, (void)kept; }
static void in_fiber(si_fiber *f) { (void)f; }
static void to_resumer(si_fiber *f) { (void)f; }
static void in_resumer(void *kept) { (void)kept; }
static void forget_frames(si_fiber *f) { (void)f; }
#endif

/* -- fibers -- */

UNCOUNTED static void entry(void) {
  si_fiber *f = current;
  in_fiber(f);
  f->fn(f->arg);
  f->ended = true;
  to_resumer(f);
  SWITCH(f->at, resumer);
}

static si_fiber *make(void) {
  si_fiber *f = si_new(sizeof *f);
  f->stack = mmap(NULL, STACK, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (f->stack == MAP_FAILED) abort();
  memcpy(f->stack, pad, sizeof pad);
  return f;
}

si_fiber *si_fiber_new(void (*fn)(void *arg), void *arg) {
  si_fiber *f = unused;
  if (f)
    unused = f->next_free;
  else
    f = make();
  f->fn = fn;
  f->arg = arg;
  f->ended = false;
  prepare(&f->at, f->stack, entry);
  return f;
}

UNCOUNTED bool si_fiber_resume(si_fiber *f) {
  void *kept = NULL;
  current = f;
  to_fiber(f, &kept);
  SWITCH(resumer, f->at);
  in_resumer(kept);
  current = NULL;
  if (f->ended) si_fiber_free(f);
  return !f->ended;
}

UNCOUNTED void si_fiber_park(void) {
  si_fiber *f = current;
  to_resumer(f);
  SWITCH(f->at, resumer);
  in_fiber(f);
}

/* One in so many times: what was written there stays, and to look costs a cache line. */
static void check_depth(si_fiber *f) {
  static unsigned n_freed;
  if (n_freed++ % 16 != 0 || memcmp(f->stack, pad, sizeof pad) == 0) return;
  si_report("a kernel's thread used more than %d bytes of stack", STACK);
  memcpy(f->stack, pad, sizeof pad);
}

void si_fiber_free(si_fiber *f) {
  forget_frames(f);
  check_depth(f);
  f->next_free = unused;
  unused = f;
}
