/* inside.h: what the stand-in's files share.
 *
 * Invariant: all state is guarded by one lock, which every call of CUDA takes in si_enter and gives
 * back in si_leave; functions named si_ are called with it held. Device memory is open to the CPU
 * only inside si_memory_open or si_memory_reach .. si_leave.
 * Who does what: control.c the lock, chance, faults and reports; handle.c handles; memory.c
 * allocations and traps; queue.c work and its order; trace.c what is kept of it; stream.c, graph.c, copy.c, device.c calls of
 * the runtime; ipc.c other processes; fiber.c, block.c, kernel.c kernels; lt.c, lt_rules.c, lt_run.c
 * cuBLASLt; nccl.c, nccl_run.c NCCL. */
#ifndef LAMELLA_TESTS_STANDIN_INSIDE_H
#define LAMELLA_TESTS_STANDIN_INSIDE_H

#include <cuda_runtime_api.h>

#include "tests/standin/standin.h"

#pragma GCC visibility push(hidden)

enum { SI_MAX_DEVICES = 8 };

/* -- control.c -- */

typedef struct si_machine {
  int n_devices, sm, driver, patience_ms;
  uint64_t memory;
  bool cards_apart, may_not_show, may_not_open;
} si_machine;
extern si_machine si_machine_is;
extern standin_counts si_counted;
extern _Thread_local int si_device; /* the thread's current device */

void si_enter(void);
/* Keeps e as the thread's last error; where the device is lost, its error comes in place of
 * success. */
cudaError_t si_leave(cudaError_t e);
/* For calls that answer also when the device is lost. */
cudaError_t si_leave_as_is(cudaError_t e);
/* Gives the lock to other threads until something was queued, for a millisecond at most. */
void si_wait_for_others(void);
void si_tell_others(void);
void si_report(const char *fmt, ...) __attribute__((format(printf, 1, 2)));
/* A report; gives e. */
cudaError_t si_misuse(cudaError_t e, const char *fmt, ...) __attribute__((format(printf, 2, 3)));
bool si_fails_now(standin_fault what);
uint64_t si_chance(uint64_t n); /* in [0, n) */
uint64_t si_now_ns(void);
void *si_new(size_t bytes); /* zeroed */
void *si_grown(void *p, size_t bytes);
/* The device is lost to every later call. */
void si_lose(int device, cudaError_t e);
cudaError_t si_lost(int device);

/* -- handle.c: a handle is a number that is never used again -- */

typedef enum si_kind { SI_STREAM, SI_EVENT, SI_GRAPH, SI_EXEC, SI_LT, SI_NCCL, SI_N_KINDS } si_kind;
void *si_handle_new(si_kind kind, void *object);
void *si_handle_find(si_kind kind, const void *handle, const char *who); /* NULL, with a report */
void si_handle_drop(si_kind kind, const void *handle);
int64_t si_handles_alive(si_kind kind);
/* i = 0, 1, ...: those that are alive, others NULL; false past the last. */
bool si_handle_at(si_kind kind, int64_t i, void **out_object);
void si_handles_forget(void);

/* -- reach.c -- */

bool si_peers(int device, int peer);
bool si_peers_enable(int device, int peer); /* false: it does not reach it */
void si_peers_forget(void);

/* -- memory.c -- */

enum { SI_PINNED = -1, SI_PAGEABLE = -2 };
int si_memory_place(const void *p); /* a device, SI_PINNED or SI_PAGEABLE */
cudaError_t si_memory_new(int place, uint64_t bytes, void **out);
cudaError_t si_memory_free(void *p, bool pinned, const char *who);
/* Are all bytes inside one allocation that work on `device` reaches? A report where not. */
cudaError_t si_memory_check(const void *p, uint64_t bytes, int device, const char *who,
                            const char *what);
/* Is any word of these bytes an address that work on `device` cannot reach? */
cudaError_t si_memory_check_words(const void *bytes, size_t n, int device, const char *who);
void si_memory_open(int place);   /* a device's; what is no device's is always open */
void si_memory_reach(int device); /* all that work on it may touch */
void si_memory_open_all(void);
void si_memory_close(void);
void si_memory_fill(char *at, int value, uint64_t bytes); /* open; within one allocation */
void si_memory_audit(void); /* reports writes beside allocations */
int64_t si_memory_alive(void);
void si_memory_forget(void);
extern _Thread_local const char *si_running; /* the work that this thread runs; NULL: none */
uint64_t si_memory_used(int device);

/* What a process tells another of memory that it shows: fits a cudaIpcMemHandle_t. */
typedef struct standin_handle {
  uint64_t process, number; /* which allocation, of all there ever were */
  int32_t pid, fd, device, reserved;
  uint64_t span, bytes, first; /* of its pages; of it; from the first to the second */
} standin_handle;
void si_memory_mark_pooled(const void *p);
cudaError_t si_memory_show(const void *p, const char *who, standin_handle *out);
cudaError_t si_memory_map(const standin_handle *h, int fd, void **out); /* fd becomes its own */
cudaError_t si_memory_unmap(const void *p, const char *who);
cudaError_t si_memory_register(void *p, uint64_t bytes);
cudaError_t si_memory_unregister(void *p, const char *who);

/* -- ipc.c -- */

uint64_t si_ipc_process(void); /* this one; a forked child is another */
bool si_ipc_is_open(const char *page); /* in a process that is alive */
void si_ipc_note_open(char *page, bool open);

/* -- queue.c -- */

typedef enum si_went {
  SI_ENDED,
  SI_MOVED, /* not ended, but it did something */
  SI_WAITS  /* for others */
} si_went;

/* Something to do on a device, any number of times. First member of what it needs. */
typedef struct si_work si_work;
struct si_work {
  int refs, device;
  const char *name;
  si_went (*run)(si_work *w, void **state); /* *state: of this time; NULL at first */
  void (*abandon)(si_work *w, void *state);
  void (*free)(si_work *w); /* what it holds, not w itself; may be NULL */
};
si_work *si_work_new(size_t bytes, int device, const char *name,
                     si_went (*run)(si_work *, void **));
si_work *si_work_nothing(int device);
void si_work_unref(si_work *w);

/* A piece of work in line, this time. */
typedef struct si_node si_node;
struct si_node {
  int refs, n_before; /* how many it waits for */
  bool done;
  uint64_t began_ns, ended_ns;
  unsigned long long stream; /* 0: a graph's */
  si_work *work;
  void *state;
  si_node **after;
  int n_after, cap_after;
};
/* Takes the work; `before` may hold NULLs. One reference is the caller's. */
si_node *si_queue_add(si_work *w, si_node *const *before, int n);
void si_node_unref(si_node *n);
void si_queue_some(void);             /* a few steps, or none */
void si_queue_poll(void);             /* at least one */
void si_queue_finish(si_node *until); /* all that it needs; NULL: nothing */
void si_queue_drain(int device);       /* all there is on it; -1: on any */
void si_queue_go_on(void);            /* a while; or waits, where nothing can move */
void si_queue_forget(void);
extern const char *const si_mark; /* the name of work that does nothing */

/* -- trace.c -- */

void si_trace(const si_node *n); /* it has just ended */

/* -- stream.c -- */

typedef struct si_capture si_capture;
typedef struct si_stream {
  cudaStream_t handle;
  int device, priority;
  unsigned flags;
  bool legacy;
  si_node *last;
  si_capture *capture; /* NULL: it is not captured */
  int *heads, n_heads; /* nodes of the capture's graph that the next one follows */
} si_stream;
si_stream *si_stream_find(cudaStream_t handle, const char *who); /* NULL, with a report */
/* Queues or captures; takes the work. */
cudaError_t si_stream_add(si_stream *s, si_work *w, const char *who);
/* The nodes that the stream's next one follows: at most SI_MAX_BEFORE. */
enum { SI_MAX_BEFORE = 4096 };
int si_stream_before(si_stream *s, si_node **before);
void si_stream_set_last(si_stream *s, si_node *last); /* takes the reference */
void si_each_stream(void (*fn)(si_stream *s, void *arg), void *arg);
int64_t si_streams_own(void); /* threads' own: nobody made them, nobody destroys them */
void si_streams_forget(void);

/* -- graph.c -- */

struct si_capture {
  int refs;
  unsigned long long id;
  enum cudaStreamCaptureMode mode;
  uint64_t thread;
  bool dead, ended;
  si_stream *origin;
  struct si_graph *graph;
};
cudaError_t si_capture_add(si_stream *s, si_work *w);
/* What capture forbids: to wait or allocate while some capture is under way that says so. */
cudaError_t si_capture_forbids(const char *who);
cudaError_t si_capture_break(si_capture *c, cudaError_t e, const char *who);
bool si_capture_of_blocking(int device, si_capture **out);
void si_capture_unref(si_capture *c);
void si_captures_forget(void);

/* -- device.c -- */

int si_n_sms(void);

/* -- kernel.c -- */

typedef struct si_launch {
  const char *name;
  dim3 grid, block;
  size_t shared;
  void (*run)(const void *args);
  void *args;
  char *section, *section_stop;
} si_launch;

/* -- block.c: one block of a kernel -- */

typedef struct si_block si_block;
si_block *si_block_new(const si_launch *l, uint3 at);
void si_block_free(si_block *b);
/* SI_ENDED with *error where threads did not all meet. */
si_went si_block_run(si_block *b, bool *out_broken);

/* -- fiber.c -- */

typedef struct si_fiber si_fiber;
si_fiber *si_fiber_new(void (*fn)(void *arg), void *arg);
bool si_fiber_resume(si_fiber *f); /* until it parks (true) or ends (false: f is gone) */
void si_fiber_park(void);
void si_fiber_free(si_fiber *f); /* of one that parks */

#pragma GCC visibility pop

#endif
