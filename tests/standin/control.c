/* control.c: the one lock, chance, faults, and what was found wrong.
 *
 * Invariant: with the same seed and the same calls in the same order, chance falls the same way.
 * Leaves what is right and wrong to the files that find it. */
#include <pthread.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "tests/standin/inside.h"

static const si_machine as_usual = {
    .n_devices = 2, .sm = 90, .driver = 13000, .patience_ms = 20000, .memory = (uint64_t)4 << 30};
si_machine si_machine_is = {
    .n_devices = 2, .sm = 90, .driver = 13000, .patience_ms = 20000, .memory = (uint64_t)4 << 30};
standin_counts si_counted;
_Thread_local int si_device;

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static pthread_cond_t queued = PTHREAD_COND_INITIALIZER;
static _Thread_local cudaError_t last_error;
static cudaError_t lost[SI_MAX_DEVICES];
static int64_t until_failure[STANDIN_N_FAULTS];
static uint64_t state = 1;
static char *reports;
static size_t report_bytes;
static int n_reports;

/* -- the lock -- */

/* In a program of tests/check.h, its seed; see standin_seed. */
extern uint64_t seed(void) __attribute__((weak));

void si_enter(void) {
  static bool seeded;
  pthread_mutex_lock(&lock);
  si_counted.calls++;
  if (!seeded && seed) state ^= seed();
  seeded = true;
}

cudaError_t si_leave_as_is(cudaError_t e) {
  si_memory_close();
  if (e != cudaSuccess) last_error = e;
  pthread_mutex_unlock(&lock);
  return e;
}

cudaError_t si_leave(cudaError_t e) {
  if (e == cudaSuccess) e = si_lost(si_device);
  return si_leave_as_is(e);
}

void si_wait_for_others(void) {
  struct timespec t;
  si_memory_close();
  clock_gettime(CLOCK_REALTIME, &t);
  t.tv_nsec += 1000000;
  if (t.tv_nsec >= 1000000000) t.tv_nsec -= 1000000000, t.tv_sec++;
  pthread_cond_timedwait(&queued, &lock, &t);
}

void si_tell_others(void) { pthread_cond_broadcast(&queued); }

cudaError_t CUDARTAPI cudaGetLastError(void) {
  const cudaError_t e = last_error;
  last_error = cudaSuccess;
  return e;
}

cudaError_t CUDARTAPI cudaPeekAtLastError(void) { return last_error; }

/* -- chance and time -- */

static uint64_t next(void) { /* splitmix64 */
  uint64_t z = state += 0x9e3779b97f4a7c15u;
  z = (z ^ z >> 30) * 0xbf58476d1ce4e5b9u;
  z = (z ^ z >> 27) * 0x94d049bb133111ebu;
  return z ^ z >> 31;
}

uint64_t si_chance(uint64_t n) { return n ? next() % n : 0; }

void standin_seed(uint64_t chance) {
  si_enter();
  state = chance;
  si_leave_as_is(cudaSuccess);
}

uint64_t si_now_ns(void) {
  struct timespec t;
  clock_gettime(CLOCK_MONOTONIC, &t);
  return (uint64_t)t.tv_sec * 1000000000u + (uint64_t)t.tv_nsec;
}

void *si_new(size_t bytes) {
  void *p = calloc(1, bytes ? bytes : 1);
  if (!p) abort();
  return p;
}

void *si_grown(void *p, size_t bytes) {
  p = realloc(p, bytes);
  if (!p) abort();
  return p;
}

/* -- faults -- */

bool si_fails_now(standin_fault what) {
  return until_failure[what] > 0 && --until_failure[what] == 0;
}

void standin_fail_nth(standin_fault what, int64_t n) {
  si_enter();
  until_failure[what] = n;
  si_leave_as_is(cudaSuccess);
}

void si_lose(int device, cudaError_t e) {
  if (lost[device] == cudaSuccess) lost[device] = e;
}

cudaError_t si_lost(int device) {
  if (si_machine_is.driver < CUDART_VERSION / 1000 * 1000) return cudaErrorInsufficientDriver;
  if (si_machine_is.n_devices == 0) return cudaErrorNoDevice;
  return lost[device];
}

void standin_lose_device(int device) {
  si_enter();
  si_lose(device, cudaErrorDevicesUnavailable);
  si_leave_as_is(cudaSuccess);
}

/* -- reports -- */

static void print_unread(void) {
  if (n_reports == 0) return;
  fprintf(stderr, "%d reports of the stand-in that no test has read:\n%s", n_reports, reports);
  fflush(NULL);
  _exit(1);
}

static void add_line(const char *fmt, va_list args) {
  char line[512];
  static bool registered;
  if (!registered) registered = atexit(print_unread) == 0;
  const int n = vsnprintf(line, sizeof line - 1, fmt, args);
  const size_t bytes = (size_t)n < sizeof line - 2 ? (size_t)n : sizeof line - 2;
  line[bytes] = '\n', line[bytes + 1] = 0;
  reports = si_grown(reports, report_bytes + bytes + 2);
  memcpy(reports + report_bytes, line, bytes + 2);
  report_bytes += bytes + 1;
  n_reports++;
}

void si_report(const char *fmt, ...) {
  va_list args;
  va_start(args, fmt);
  add_line(fmt, args);
  va_end(args);
}

cudaError_t si_misuse(cudaError_t e, const char *fmt, ...) {
  va_list args;
  va_start(args, fmt);
  add_line(fmt, args);
  va_end(args);
  return e;
}

int standin_n_reports(void) {
  si_enter();
  const int n = n_reports;
  si_leave_as_is(cudaSuccess);
  return n;
}

const char *standin_reports(void) { return reports ? reports : ""; }

static void forget_reports(void) {
  free(reports);
  reports = NULL;
  report_bytes = 0;
  n_reports = 0;
}

void standin_forget_reports(void) {
  si_enter();
  forget_reports();
  si_leave_as_is(cudaSuccess);
}

standin_counts standin_count(void) {
  si_enter();
  si_counted.calls--; /* this is none */
  const standin_counts c = si_counted;
  si_leave_as_is(cudaSuccess);
  return c;
}

int64_t standin_leaks(void) {
  si_enter();
  int64_t n = si_memory_alive() - si_streams_own();
  for (int kind = 0; kind < SI_N_KINDS; kind++) n += si_handles_alive((si_kind)kind);
  si_leave_as_is(cudaSuccess);
  return n;
}

/* -- the machine -- */

void standin_devices(int n) { si_machine_is.n_devices = n < SI_MAX_DEVICES ? n : SI_MAX_DEVICES; }
void standin_set_sm(int version) { si_machine_is.sm = version; }
void standin_set_driver(int version) { si_machine_is.driver = version; }
void standin_set_memory(uint64_t bytes) { si_machine_is.memory = bytes; }
void standin_set_apart(bool apart) { si_machine_is.cards_apart = apart; }
void standin_set_ipc(bool show, bool open) {
  si_machine_is.may_not_show = !show;
  si_machine_is.may_not_open = !open;
}
void standin_set_patience(int ms) { si_machine_is.patience_ms = ms; }

void standin_reset(void) {
  si_enter();
  si_queue_forget();
  si_captures_forget();
  si_streams_forget();
  si_handles_forget();
  si_memory_forget();
  si_peers_forget();
  forget_reports();
  memset(lost, 0, sizeof lost);
  memset(until_failure, 0, sizeof until_failure);
  memset(&si_counted, 0, sizeof si_counted);
  si_machine_is.patience_ms = as_usual.patience_ms;
  last_error = cudaSuccess;
  si_device = 0;
  si_leave_as_is(cudaSuccess);
}
