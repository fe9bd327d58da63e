/* memory.c: device and pinned memory: where it lies, who may touch it and when.
 *
 * Each device has its own addresses. Beside an allocation nothing can be touched, and an address is
 * not used again for a while: a kernel that goes too far or comes too late traps. What lies between
 * an allocation's end and its page's end is looked at later (audit).
 * Invariant: fresh memory holds bytes 0xff: NaN in every float type, -1 in integers. Between calls
 * of the runtime the host cannot touch device memory.
 * Leaves order in time to queue.c: a range that is valid when work is queued is checked again when
 * it runs; and what processes say to each other to ipc.c. */
#include <dlfcn.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "tests/standin/inside.h"

enum {
  PAGE = 4096,
  ALIGN = 256,
  POISON = 0xff,
  SMALL = 1 << 20,
  GUARD_INSTALL = 102 /* Linux 6.13 */
};
static const uint64_t arena_bytes = (uint64_t)1 << 36, poison_bytes = (uint64_t)8 << 20;

typedef struct shown shown;

typedef struct allocation {
  char *map, *at; /* pages, and what the caller got */
  uint64_t span, bytes;
  int place;
  bool freed, spoilt;
  bool pooled;     /* of the stream-ordered pool, which is not shown to others */
  bool registered; /* the host's own, which it pinned */
  shown *shown;    /* to other processes, or by one of them */
} allocation;

/* Addresses, taken one after another up to `round`, then from the start again where they are free: so
 * what was freed stays so for a while. Small pieces have a range of their own, see map_small. */
typedef struct range {
  char *start;
  uint64_t bytes, round, next, used; /* used: no address beyond was ever taken */
} range;

static char *arenas[SI_MAX_DEVICES];
static range ranges[SI_MAX_DEVICES][2]; /* for small pieces, for large ones */
static uint64_t used_bytes[SI_MAX_DEVICES];
static allocation *allocations;
static int64_t n_allocations;
static int nothing_fd = -1, poison_fd = -1;
static bool is_open[SI_MAX_DEVICES];
_Thread_local const char *si_running;

/* -- traps -- */

static const int trapped[] = {SIGSEGV, SIGBUS, SIGILL};
static struct sigaction before[3];

static const allocation *around(const void *p, uint64_t slack) {
  for (int64_t i = n_allocations - 1; i >= 0; i--) {
    const allocation *a = &allocations[i];
    if ((const char *)p >= a->map && (const char *)p < a->map + a->span + slack) return a;
  }
  return NULL;
}

static int arena_of(const void *p) {
  for (int d = 0; d < SI_MAX_DEVICES; d++)
    if (arenas[d] && (const char *)p >= arenas[d] && (const char *)p < arenas[d] + arena_bytes)
      return d;
  return -1;
}

static const char *trouble(const void *p) {
  const allocation *a = around(p, PAGE);
  if (!a) return "where nothing is allocated";
  if (a->freed) return "which was freed";
  if ((const char *)p >= a->at + a->bytes) return "past the end of an allocation";
  return si_running ? "which its device does not reach" : "which only queued work may touch";
}

/* The compiler's own check, or the processor's, which does not say where. */
static bool is_askew(int sig, const siginfo_t *info) {
  return sig == SIGILL || (sig == SIGSEGV && info->si_code == SI_KERNEL);
}

static int describe(char *line, size_t bytes, int sig, const siginfo_t *info) {
  const void *at = info->si_addr;
  const char *who = si_running ? si_running : "the host";
  if (is_askew(sig, info) && si_running)
    return snprintf(line, bytes, "standin: %s made an access that is not aligned\n", who);
  if (arena_of(at) < 0) return 0;
  return snprintf(line, bytes, "standin: %s touched %p of device %d, %s\n", who, at, arena_of(at),
                  trouble(at));
}

/* Says what was touched, then lets the signal do what it did before. */
static void on_trap(int sig, siginfo_t *info, void *context) {
  char line[256];
  (void)context;
  const int n = describe(line, sizeof line, sig, info);
  if (n > 0 && write(2, line, (size_t)n) < 0) _exit(2);
  for (int i = 0; i < 3; i++)
    if (trapped[i] == sig) sigaction(sig, &before[i], NULL);
}

static void set_traps(void) {
  static bool done;
  if (done) return;
  done = true;
  struct sigaction a = {.sa_sigaction = on_trap, .sa_flags = SA_SIGINFO};
  for (int i = 0; i < 3; i++) sigaction(trapped[i], &a, &before[i]);
}

/* -- pages -- */

static void *must_map(void *at, uint64_t bytes, int prot, int flags, int fd) {
  void *p = mmap(at, bytes, prot, flags, fd, 0);
  if (p == MAP_FAILED) perror("standin: mmap"), abort();
  return p;
}

static void make_files(void) {
  if (poison_fd >= 0) return;
  nothing_fd = memfd_create("standin nothing", MFD_CLOEXEC);
  poison_fd = memfd_create("standin poison", MFD_CLOEXEC);
  if (nothing_fd < 0 || poison_fd < 0 || ftruncate(poison_fd, (off_t)poison_bytes)) abort();
  void *p = must_map(NULL, poison_bytes, PROT_READ | PROT_WRITE, MAP_SHARED, poison_fd);
  memset(p, POISON, poison_bytes);
  munmap(p, poison_bytes);
}

static int prot_now(int device) { return is_open[device] ? PROT_READ | PROT_WRITE : PROT_NONE; }

static void protect(const char *at, uint64_t bytes, int prot) {
  if (mprotect((void *)at, bytes, prot)) abort();
}

static void set_open(int device, bool open) {
  if (is_open[device] == open) return;
  is_open[device] = open;
  for (const range *r = ranges[device]; r < ranges[device] + 2; r++)
    if (r->used > PAGE) protect(r->start, r->used, prot_now(device));
}

void si_memory_open(int place) {
  if (place >= 0) set_open(place, true);
}

void si_memory_open_all(void) {
  for (int d = 0; d < SI_MAX_DEVICES; d++) set_open(d, true);
}

void si_memory_reach(int device) {
  for (int d = 0; d < SI_MAX_DEVICES; d++)
    if (si_peers(device, d)) set_open(d, true);
}

void si_memory_close(void) {
  for (int d = 0; d < SI_MAX_DEVICES; d++) set_open(d, false);
}

/* A file with nothing in it: to touch it traps, even where writing is allowed. Offsets follow
 * addresses, so that the system sees one mapping in what was freed side by side. */
static void map_nothing(int device, char *at, uint64_t bytes) {
  const int flags = MAP_SHARED | MAP_FIXED | MAP_NORESERVE, prot = prot_now(device);
  if (mmap(at, bytes, prot, flags, nothing_fd, at - arenas[device]) == MAP_FAILED) abort();
}

/* Pages inside small pieces' mapping, or of their own. */
static void forbid(int device, char *at, uint64_t bytes) {
  if (bytes > SMALL || madvise(at, bytes, GUARD_INSTALL)) map_nothing(device, at, bytes);
}

/* Many small pieces stay one mapping for the system, which makes opening and closing cheap: they are
 * of the same kind, and what lies between them is marked inside the mapping where it can do that. */
static void map_small(int device, char *at, uint64_t span) {
  const int flags = MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED | MAP_NORESERVE;
  if (mmap(at, span + PAGE, PROT_READ | PROT_WRITE, flags, -1, 0) == MAP_FAILED) abort();
  memset(at, POISON, span);
  protect(at, span + PAGE, prot_now(device));
  forbid(device, at + span, PAGE);
}

static void map_poison(char *at, uint64_t bytes, int prot) {
  for (uint64_t i = 0; i < bytes; i += poison_bytes) {
    const uint64_t n = bytes - i < poison_bytes ? bytes - i : poison_bytes;
    must_map(at + i, n, prot, MAP_PRIVATE | MAP_FIXED | MAP_NORESERVE, poison_fd);
  }
}

/* To zero a large piece is to give it fresh pages: only those that are touched later cost anything. */
void si_memory_fill(char *at, int value, uint64_t bytes) {
  const uintptr_t mask = ~(uintptr_t)(PAGE - 1), start = (uintptr_t)at;
  char *const first = (char *)((start + PAGE - 1) & mask);
  char *const end = (char *)((start + bytes) & mask);
  if (value != 0 || bytes <= SMALL || arena_of(at) < 0) {
    memset(at, value, bytes);
    return;
  }
  const int flags = MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED | MAP_NORESERVE;
  must_map(first, (uint64_t)(end - first), PROT_READ | PROT_WRITE, flags, -1);
  memset(at, 0, (size_t)(first - at));
  memset(end, 0, (size_t)(at + bytes - end));
}

static void make_arena(int device) {
  make_files();
  set_traps();
  char *all = must_map(NULL, arena_bytes, PROT_NONE, MAP_SHARED | MAP_NORESERVE, nothing_fd);
  const uint64_t half = arena_bytes / 2;
  arenas[device] = all;
  ranges[device][0] = (range){all, half, 1024 * PAGE, PAGE, PAGE};
  ranges[device][1] = (range){all + half, half, half / 128, PAGE, PAGE};
}

/* -- allocations -- */

static allocation *find(const void *p) {
  const allocation *a = around(p, 0);
  return (allocation *)a;
}

int si_memory_place(const void *p) {
  const int d = arena_of(p);
  if (d >= 0) return d;
  const allocation *a = find(p);
  return a && !a->freed ? SI_PINNED : SI_PAGEABLE;
}

/* As near to the end of its pages as alignment lets it. */
static char *placed(char *map, uint64_t span, uint64_t bytes) {
  return map + ((span - bytes) & ~(uint64_t)(ALIGN - 1));
}

/* What is alive and would overlap the bytes from `at` on; NULL: nothing. */
static const allocation *in_the_way(const char *at, uint64_t bytes) {
  for (int64_t i = 0; i < n_allocations; i++) {
    const allocation *a = &allocations[i];
    if (!a->freed && at < a->map + a->span + PAGE && a->map < at + bytes) return a;
  }
  return NULL;
}

static char *take(range *r, uint64_t bytes) {
  const allocation *a;
  bool again = false;
  for (;;) {
    while ((a = in_the_way(r->start + r->next, bytes)))
      r->next = (uint64_t)(a->map - r->start) + a->span + PAGE;
    if (r->next + bytes <= r->round) break;
    if (again) r->round *= 2; /* no hole is large enough */
    if (r->round > r->bytes) return NULL;
    again = true;
    r->next = PAGE;
  }
  char *at = r->start + r->next;
  r->next += bytes;
  if (r->next > r->used) r->used = r->next;
  return at;
}

static char *pages(int place, uint64_t span) {
  if (place == SI_PINNED) {
    make_files();
    char *map = must_map(NULL, span + PAGE, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1);
    map_poison(map, span, PROT_READ | PROT_WRITE);
    return map;
  }
  if (!arenas[place]) make_arena(place);
  char *map = take(&ranges[place][span > SMALL], span + PAGE);
  if (!map) return NULL;
  if (span <= SMALL) {
    map_small(place, map, span);
  } else {
    map_nothing(place, map + span, PAGE);
    map_poison(map, span, prot_now(place));
  }
  return map;
}

/* Those freed long ago are forgotten: a touch still traps, but no longer says why. */
static void forget_freed(void) {
  int64_t kept = 0;
  for (int64_t i = 0; i < n_allocations; i++)
    if (!allocations[i].freed) allocations[kept++] = allocations[i];
  n_allocations = kept;
}

cudaError_t si_memory_new(int place, uint64_t bytes, void **out) {
  *out = NULL;
  if (bytes == 0) return cudaSuccess;
  if (si_fails_now(STANDIN_ALLOC)) return cudaErrorMemoryAllocation;
  const uint64_t span = (bytes + PAGE - 1) & ~(uint64_t)(PAGE - 1);
  if (place >= 0 &&
      (bytes > si_machine_is.memory || used_bytes[place] > si_machine_is.memory - bytes))
    return cudaErrorMemoryAllocation;
  char *map = pages(place, span);
  if (!map) return cudaErrorMemoryAllocation;
  if (n_allocations % 1024 == 1023) forget_freed();
  allocations = si_grown(allocations, ((size_t)n_allocations + 1) * sizeof *allocations);
  allocations[n_allocations++] =
      (allocation){.map = map,
                   .at = placed(map, span, bytes),
                   .span = span,
                   .bytes = bytes,
                   .place = place};
  if (place >= 0) used_bytes[place] += bytes, si_counted.live_bytes += bytes;
  si_counted.allocs++;
  *out = placed(map, span, bytes);
  return cudaSuccess;
}

/* Less than a page. */
static bool untouched(const char *p, const char *end) {
  static char poison[PAGE];
  if ((unsigned char)poison[0] != POISON) memset(poison, POISON, sizeof poison);
  return memcmp(p, poison, (size_t)(end - p)) == 0;
}

static void audit(allocation *a) {
  if (a->freed || a->spoilt || a->place < 0) return;
  if (!is_open[a->place]) protect(a->map, a->span, PROT_READ);
  a->spoilt = !untouched(a->map, a->at) || !untouched(a->at + a->bytes, a->map + a->span);
  if (a->spoilt)
    si_report("something wrote beside %p, an allocation of %llu bytes on device %d", (void *)a->at,
              (unsigned long long)a->bytes, a->place);
  if (!is_open[a->place]) protect(a->map, a->span, PROT_NONE);
}

void si_memory_audit(void) {
  for (int64_t i = 0; i < n_allocations; i++) audit(&allocations[i]);
}

/* -- memory that other processes see -- */

struct shown {
  int fd;       /* its pages, and one more */
  char *page;   /* that one, mapped apart: who has it open */
  bool own;     /* made here */
  int64_t refs; /* opened so often */
  standin_handle handle;
};

static void map_shared(char *at, uint64_t bytes, int prot, int fd, uint64_t first) {
  if (mmap(at, bytes, prot, MAP_SHARED | MAP_FIXED, fd, (off_t)first) == MAP_FAILED)
    perror("standin: mmap"), abort();
}

static shown *shown_new(int fd, bool own, const standin_handle *h) {
  shown *s = si_new(sizeof *s);
  char *page = mmap(NULL, PAGE, PROT_READ | PROT_WRITE, MAP_SHARED, fd, (off_t)h->span);
  if (page == MAP_FAILED) perror("standin: mmap"), abort();
  *s = (shown){.fd = fd, .page = page, .own = own, .refs = 1, .handle = *h};
  s->handle.fd = fd;
  return s;
}

/* Its pages are nobody's again; the file stays as long as another process has it. */
static void unshow(allocation *a) {
  if (a->shown->own) {
    audit(a);
    used_bytes[a->place] -= a->bytes, si_counted.live_bytes -= a->bytes;
  } else {
    si_ipc_note_open(a->shown->page, false);
  }
  map_nothing(a->place, a->map, a->span);
  munmap(a->shown->page, PAGE);
  close(a->shown->fd);
  free(a->shown);
  a->shown = NULL;
}

static void release(allocation *a) {
  if (a->shown) {
    unshow(a);
  } else if (a->place >= 0) {
    audit(a);
    forbid(a->place, a->map, a->span);
    used_bytes[a->place] -= a->bytes, si_counted.live_bytes -= a->bytes;
  } else if (!a->registered) {
    munmap(a->map, a->span + PAGE);
  }
  a->freed = true;
}

/* Pinned memory that was freed: the system may put something else there. */
static void drop_pinned(allocation *a) {
  if (a->place >= 0) return;
  const int64_t after = --n_allocations - (a - allocations);
  memmove(a, a + 1, (size_t)after * sizeof *a); /* the order stays: the latest is found first */
}

cudaError_t si_memory_free(void *p, bool pinned, const char *who) {
  allocation *a = find(p);
  if (!a || a->at != (char *)p)
    return si_misuse(cudaErrorInvalidValue, "%s: %p is not the start of an allocation", who, p);
  if (a->freed) return si_misuse(cudaErrorInvalidValue, "%s: %p was freed before", who, p);
  if (a->registered || (a->shown && !a->shown->own))
    return si_misuse(cudaErrorInvalidValue, "%s: %p was not allocated here", who, p);
  if (a->shown && si_ipc_is_open(a->shown->page))
    si_report("%s: %p is open in another process", who, p);
  if (pinned != (a->place == SI_PINNED))
    return si_misuse(cudaErrorInvalidValue, "%s: %p is %s memory", who, p,
                     pinned ? "device" : "pinned");
  release(a);
  drop_pinned(a);
  si_counted.frees++;
  return cudaSuccess;
}

void si_memory_mark_pooled(const void *p) {
  if (p) find(p)->pooled = true;
}

/* From here on its pages are those of a file, which holds what they held. */
static void move_to_file(allocation *a) {
  static uint64_t numbers;
  const int fd = memfd_create("standin shown", MFD_CLOEXEC);
  if (fd < 0 || ftruncate(fd, (off_t)(a->span + PAGE))) perror("standin: memfd"), abort();
  si_memory_open(a->place);
  for (uint64_t done = 0; done < a->span;) {
    const ssize_t n = pwrite(fd, a->map + done, a->span - done, (off_t)done);
    if (n <= 0) perror("standin: pwrite"), abort();
    done += (uint64_t)n;
  }
  map_shared(a->map, a->span, PROT_READ | PROT_WRITE, fd, 0);
  const standin_handle h = {.process = si_ipc_process(),
                            .number = ++numbers,
                            .pid = getpid(),
                            .device = a->place,
                            .span = a->span,
                            .bytes = a->bytes,
                            .first = (uint64_t)(a->at - a->map)};
  a->shown = shown_new(fd, true, &h);
}

cudaError_t si_memory_show(const void *p, const char *who, standin_handle *out) {
  allocation *a = find(p);
  if (!a || a->freed || a->place < 0 || a->at != (const char *)p)
    return si_misuse(cudaErrorInvalidValue, "%s: %p is not the start of device memory", who, p);
  if (a->pooled || (a->shown && !a->shown->own)) return cudaErrorInvalidValue;
  if (!a->shown) move_to_file(a);
  *out = a->shown->handle;
  return cudaSuccess;
}

static allocation *opened_before(const standin_handle *h) {
  for (int64_t i = 0; i < n_allocations; i++) {
    allocation *a = &allocations[i];
    if (!a->freed && a->shown && !a->shown->own && a->shown->handle.process == h->process &&
        a->shown->handle.number == h->number)
      return a;
  }
  return NULL;
}

cudaError_t si_memory_map(const standin_handle *h, int fd, void **out) {
  allocation *a = opened_before(h);
  if (a) {
    close(fd);
    a->shown->refs++;
    *out = a->at;
    return cudaSuccess;
  }
  if (!arenas[h->device]) make_arena(h->device);
  char *map = take(&ranges[h->device][h->span > SMALL], h->span + PAGE);
  if (!map) return cudaErrorMemoryAllocation;
  map_shared(map, h->span, prot_now(h->device), fd, 0);
  map_nothing(h->device, map + h->span, PAGE);
  shown *s = shown_new(fd, false, h);
  *out = map + h->first;
  allocations = si_grown(allocations, ((size_t)n_allocations + 1) * sizeof *allocations);
  allocations[n_allocations++] = (allocation){.map = map,
                                              .at = *out,
                                              .span = h->span,
                                              .bytes = h->bytes,
                                              .place = h->device,
                                              .spoilt = true, /* its owner looks beside it */
                                              .shown = s};
  si_ipc_note_open(s->page, true);
  return cudaSuccess;
}

cudaError_t si_memory_unmap(const void *p, const char *who) {
  allocation *a = find(p);
  if (!a || a->freed || !a->shown || a->shown->own || a->at != (const char *)p)
    return si_misuse(cudaErrorInvalidValue, "%s: %p was not opened", who, p);
  if (--a->shown->refs == 0) release(a);
  return cudaSuccess;
}

/* -- the host's own memory, pinned -- */

cudaError_t si_memory_register(void *p, uint64_t bytes) {
  if ((uintptr_t)p % PAGE || bytes == 0 || bytes % PAGE) return cudaErrorInvalidValue;
  for (const char *at = p; at < (const char *)p + bytes; at += PAGE)
    if (around(at, 0)) return cudaErrorHostMemoryAlreadyRegistered;
  allocations = si_grown(allocations, ((size_t)n_allocations + 1) * sizeof *allocations);
  allocations[n_allocations++] = (allocation){
      .map = p, .at = p, .span = bytes, .bytes = bytes, .place = SI_PINNED, .registered = true};
  return cudaSuccess;
}

cudaError_t si_memory_unregister(void *p, const char *who) {
  allocation *a = find(p);
  if (!a || !a->registered || a->at != (char *)p)
    return si_misuse(cudaErrorHostMemoryNotRegistered, "%s: %p was not registered", who, p);
  drop_pinned(a);
  return cudaSuccess;
}

int64_t si_memory_alive(void) {
  int64_t n = 0;
  for (int64_t i = 0; i < n_allocations; i++) n += !allocations[i].freed;
  return n;
}

uint64_t si_memory_used(int device) { return used_bytes[device]; }

void si_memory_forget(void) {
  for (int64_t i = n_allocations - 1; i >= 0; i--)
    if (!allocations[i].freed) allocations[i].spoilt = true, release(&allocations[i]);
  free(allocations);
  allocations = NULL;
  n_allocations = 0;
}

/* -- checks -- */

cudaError_t si_memory_check(const void *p, uint64_t bytes, int device, const char *who,
                            const char *what) {
  const allocation *a = find(p);
  const cudaError_t e = cudaErrorInvalidValue;
  if (!a) return si_misuse(e, "%s: %s, %p, is neither device nor pinned memory", who, what, p);
  if (a->freed) return si_misuse(e, "%s: %s, %p, was freed", who, what, p);
  if (a->place >= 0 && !si_peers(device, a->place))
    return si_misuse(e, "%s: %s, %p, is memory of device %d, which device %d does not reach", who,
                     what, p, a->place, device);
  const char *first = p;
  if (first < a->at || bytes > a->bytes || first - a->at > (int64_t)(a->bytes - bytes))
    return si_misuse(e, "%s: %s, %llu bytes from %p, leaves its allocation of %llu bytes at %p",
                     who, what, (unsigned long long)bytes, p, (unsigned long long)a->bytes,
                     (void *)a->at);
  return cudaSuccess;
}

/* A stack, a heap, a file: something that is mapped, but neither ours nor a program's own text or
 * data. Two small numbers side by side look like a low address, where sanitizers map much. */
static bool is_hosts(const void *p) {
  Dl_info info;
  const uintptr_t at = (uintptr_t)p;
  if (at >> 45 == 0 || at >> 47) return false;
  if (msync((void *)(at & ~(uintptr_t)(PAGE - 1)), 1, MS_ASYNC)) return false;
  return !dladdr(p, &info);
}

cudaError_t si_memory_check_words(const void *bytes, size_t n, int device, const char *who) {
  for (size_t i = 0; i + sizeof(void *) <= n; i += sizeof(void *)) {
    const void *p;
    memcpy(&p, (const char *)bytes + i, sizeof p);
    const allocation *a = find(p);
    if (a && a->freed)
      return si_misuse(cudaErrorIllegalAddress, "%s: its argument %p was freed", who, p);
    if (a && a->place >= 0 && !si_peers(device, a->place))
      return si_misuse(cudaErrorIllegalAddress,
                       "%s: its argument %p is memory of device %d, which device %d does not reach",
                       who, p, a->place, device);
    if (!a && arena_of(p) < 0 && is_hosts(p))
      return si_misuse(cudaErrorIllegalAddress,
                       "%s: its argument %p is host memory that is not pinned", who, p);
  }
  return cudaSuccess;
}

/* -- what a test sees of it -- */

void standin_peek(const void *device, void *host, size_t bytes) {
  si_enter();
  si_memory_open(si_memory_place(device));
  memcpy(host, device, bytes);
  si_leave_as_is(cudaSuccess);
}

void standin_poke(void *device, const void *host, size_t bytes) {
  si_enter();
  si_memory_open(si_memory_place(device));
  memcpy(device, host, bytes);
  si_leave_as_is(cudaSuccess);
}
