/* arena.c: a rank's shared memory: one memfd, mapped by all its peers, cut into regions that
 * peers find by key.
 *
 * Invariant: a region's memory is used again only when its owner and all its users have left it;
 * until then its entry stays in the directory, so that what a rank sent before it left can still
 * be received. The fd is sealed against shrinking, so a peer cannot make an access fail; nothing
 * has a name, so nothing is left behind.
 * Leaves passing fds to rendezvous.c, and what lies in a region to its users. */
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include "plugin/comm/shm/shm.h"

#define PAGE 4096ull
#define SEALS (F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_SEAL)

static uint64_t round_up(uint64_t n, uint64_t to) { return (n + to - 1) / to * to; }

/* ---- Mappings -------------------------------------------------------------------------------- */

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static pthread_once_t once = PTHREAD_ONCE_INIT;
static shm_arena *arenas;    /* of this process, under `lock` */
static uint64_t last_serial; /* under `lock` */

/* A child that is forked finds the list whole and free, whatever other threads were at. */
static void hold(void) { pthread_mutex_lock(&lock); }
static void let_go(void) { pthread_mutex_unlock(&lock); }
static void watch_forks(void) { pthread_atfork(hold, let_go, let_go); }

/* Maps fd and lists the arena; keep_fd: it becomes the arena's. */
static lam_status arena_add(int fd, bool own, shm_arena **out) {
  shm_arena *a = calloc(1, sizeof *a);
  if (!a) return lam_fail(LAM_RESOURCE_EXHAUSTED, "arena: no memory");
  a->base = mmap(NULL, SHM_ARENA_BYTES, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_NORESERVE, fd, 0);
  if (a->base == MAP_FAILED) {
    free(a);
    return lam_fail(LAM_RESOURCE_EXHAUSTED, "arena: mapping %llu MiB of address space failed: %s",
                    SHM_ARENA_BYTES >> 20, strerror(errno));
  }
  a->own = own;
  a->fd = own ? fd : -1;
  a->refs = 1;
  pthread_once(&once, watch_forks);
  pthread_mutex_lock(&lock);
  a->serial = ++last_serial;
  a->next = arenas;
  arenas = a;
  pthread_mutex_unlock(&lock);
  *out = a;
  return LAM_OK;
}

lam_status lam_shm_arena_create(shm_arena **out) {
  const int fd = memfd_create("lamella", MFD_CLOEXEC | MFD_ALLOW_SEALING);
  if (fd < 0)
    return lam_fail(LAM_RESOURCE_EXHAUSTED, "arena: memfd_create failed: %s", strerror(errno));
  lam_status status = LAM_OK;
  if (ftruncate(fd, (off_t)SHM_ARENA_BYTES) != 0 || fcntl(fd, F_ADD_SEALS, SEALS) != 0)
    status = lam_fail(LAM_RESOURCE_EXHAUSTED, "arena: %s", strerror(errno));
  else
    status = arena_add(fd, true, out);
  if (status != LAM_OK) close(fd);
  return status;
}

lam_status lam_shm_arena_map(int fd, shm_arena **out) {
  struct stat st;
  const int seals = fcntl(fd, F_GET_SEALS);
  if (seals < 0 || (seals & SEALS) != SEALS || fstat(fd, &st) != 0 ||
      (uint64_t)st.st_size != SHM_ARENA_BYTES)
    return lam_fail(
        LAM_INTERNAL,
        "arena: a peer's memory is not sealed or of another size: other versions of Lamella?");
  return arena_add(fd, false, out);
}

lam_status lam_shm_arena_find(uint64_t serial, shm_arena **out) {
  pthread_mutex_lock(&lock);
  shm_arena *a = arenas;
  while (a && !(a->own && a->serial == serial)) a = a->next;
  if (a) a->refs++;
  pthread_mutex_unlock(&lock);
  *out = a;
  return a ? LAM_OK
           : lam_fail(LAM_PEER_DEAD, "arena: a peer thread has left before the group was made");
}

void lam_shm_arena_release(shm_arena *a) {
  if (!a) return;
  pthread_mutex_lock(&lock);
  const bool last = --a->refs == 0;
  if (last) {
    shm_arena **at = &arenas;
    while (*at != a) at = &(*at)->next;
    *at = a->next;
  }
  pthread_mutex_unlock(&lock);
  if (!last) return;
  munmap(a->base, SHM_ARENA_BYTES);
  if (a->fd >= 0) close(a->fd);
  free(a);
}

/* ---- Which blocks are in use ----------------------------------------------------------------- */

static lam_status blocks_insert(shm_blocks *b, int at, shm_block block) {
  if (b->n == b->room) {
    const int room = b->room ? 2 * b->room : 16;
    shm_block *list = realloc(b->list, (size_t)room * sizeof *list);
    if (!list) return lam_fail(LAM_RESOURCE_EXHAUSTED, "arena: no memory");
    b->list = list;
    b->room = room;
  }
  memmove(b->list + at + 1, b->list + at, (size_t)(b->n - at) * sizeof *b->list);
  b->list[at] = block;
  b->n++;
  return LAM_OK;
}

static void blocks_remove(shm_blocks *b, int at) {
  b->n--;
  memmove(b->list + at, b->list + at + 1, (size_t)(b->n - at) * sizeof *b->list);
}

/* Joins the block with free neighbours. Where there is no memory to note it, it is lost until
 * the world ends. */
static void heap_give(shm_heap *h, shm_block block) {
  shm_blocks *b = &h->free;
  int at = 0;
  while (at < b->n && b->list[at].offset < block.offset) at++;
  if (at > 0 && b->list[at - 1].offset + b->list[at - 1].bytes == block.offset) {
    block =
        (shm_block){.offset = b->list[at - 1].offset, .bytes = b->list[at - 1].bytes + block.bytes};
    blocks_remove(b, --at);
  }
  if (at < b->n && block.offset + block.bytes == b->list[at].offset) {
    block.bytes += b->list[at].bytes;
    blocks_remove(b, at);
  }
  if (block.offset + block.bytes == h->top)
    h->top = block.offset;
  else
    (void)blocks_insert(b, at, block);
}

static lam_status heap_take(shm_heap *h, uint64_t bytes, uint64_t *out_offset) {
  shm_blocks *b = &h->free;
  int best = -1;
  for (int i = 0; i < b->n; i++)
    if (b->list[i].bytes >= bytes && (best < 0 || b->list[i].bytes < b->list[best].bytes)) best = i;
  if (best >= 0) {
    *out_offset = b->list[best].offset;
    b->list[best].offset += bytes;
    b->list[best].bytes -= bytes;
    if (b->list[best].bytes == 0) blocks_remove(b, best);
    return LAM_OK;
  }
  if (bytes > SHM_ARENA_BYTES - h->top)
    return lam_fail(LAM_RESOURCE_EXHAUSTED, "arena: %llu bytes asked for, %llu of %llu are left",
                    (unsigned long long)bytes, SHM_ARENA_BYTES - h->top, SHM_ARENA_BYTES);
  *out_offset = h->top;
  h->top += bytes;
  return LAM_OK;
}

/* ---- Regions --------------------------------------------------------------------------------- */

static const shm_arena *own_arena(const lam_world *w) { return w->peers[w->rank].arena; }

static lam_status directory_add(shm_control *c, uint64_t key, uint64_t offset) {
  for (uint32_t i = 0; i < SHM_DIRECTORY; i++) {
    shm_entry *e = &c->directory[i];
    if (atomic_load_explicit(&e->key, memory_order_relaxed)) continue;
    atomic_store_explicit(&e->offset, offset, memory_order_relaxed);
    atomic_store_explicit(&e->key, key, memory_order_release);
    if (i >= atomic_load_explicit(&c->directory_used, memory_order_relaxed))
      atomic_store_explicit(&c->directory_used, i + 1, memory_order_release);
    shm_flag_raise(&c->changes, atomic_load_explicit(&c->changes.value, memory_order_relaxed) + 1);
    return LAM_OK;
  }
  return lam_fail(LAM_RESOURCE_EXHAUSTED, "arena: all %d regions are in use", SHM_DIRECTORY);
}

static void directory_remove(shm_control *c, uint64_t key) {
  for (uint32_t i = 0; i < SHM_DIRECTORY; i++)
    if (atomic_load_explicit(&c->directory[i].key, memory_order_relaxed) == key)
      atomic_store_explicit(&c->directory[i].key, 0, memory_order_release);
}

shm_head *lam_shm_region_find(const lam_world *w, int rank, uint64_t key) {
  const shm_arena *a = w->peers[rank].arena;
  const shm_control *c = shm_arena_control(a);
  const uint32_t used = atomic_load_explicit(&c->directory_used, memory_order_acquire);
  for (uint32_t i = 0; i < used && i < SHM_DIRECTORY; i++) {
    if (atomic_load_explicit(&c->directory[i].key, memory_order_acquire) != key) continue;
    const uint64_t offset = atomic_load_explicit(&c->directory[i].offset, memory_order_relaxed);
    if (offset <= SHM_ARENA_BYTES - sizeof(shm_head)) return (shm_head *)(a->base + offset);
  }
  return NULL;
}

/* Regions that all have left become free; big ones give their memory back to the system. Last
 * in, first looked at: where `until` has been left by all, so is it for those that wait for it,
 * which came before it. */
static void sweep(lam_world *w) {
  shm_blocks *b = &w->heap.leaving;
  for (int i = b->n - 1; i >= 0; i--) {
    const shm_block block = b->list[i];
    const shm_head *head = (const shm_head *)(own_arena(w)->base + block.offset);
    const shm_head *until = (const shm_head *)(own_arena(w)->base + block.until);
    if (atomic_load_explicit(&until->users_left, memory_order_acquire) < until->users) continue;
    if (head->key) directory_remove(shm_arena_control(own_arena(w)), head->key);
    blocks_remove(b, i);
    if (block.bytes > SHM_KEPT_BYTES)
      (void)fallocate(own_arena(w)->fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE,
                      (off_t)block.offset, (off_t)block.bytes);
    heap_give(&w->heap, block);
    lam_context_count_arena(w->ctx, -(int64_t)block.bytes);
  }
}

lam_status lam_shm_region_create(lam_world *w, uint64_t key, uint64_t bytes, uint64_t zeroed,
                                 uint32_t users, shm_head **out) {
  uint64_t offset = 0;
  if (w->heap.top == 0) w->heap.top = round_up(sizeof(shm_control), PAGE);
  bytes = round_up(bytes, PAGE);
  sweep(w);
  LAM_TRY(heap_take(&w->heap, bytes, &offset));
  /* Taken now: later a lack of memory would be a signal, not a status. */
  if (fallocate(own_arena(w)->fd, 0, (off_t)offset, (off_t)bytes) != 0 && errno != EOPNOTSUPP) {
    heap_give(&w->heap, (shm_block){.offset = offset, .bytes = bytes});
    return lam_fail(LAM_RESOURCE_EXHAUSTED, "arena: %llu bytes of shared memory: %s",
                    (unsigned long long)bytes, strerror(errno));
  }
  shm_head *head = (shm_head *)(own_arena(w)->base + offset);
  memset(head, 0, zeroed);
  head->key = key;
  head->bytes = bytes;
  head->users = users;
  lam_context_count_arena(w->ctx, (int64_t)bytes);
  *out = head;
  return LAM_OK;
}

lam_status lam_shm_region_publish(lam_world *w, const shm_head *own) {
  return directory_add(shm_arena_control(own_arena(w)), own->key,
                       (uint64_t)((const unsigned char *)own - own_arena(w)->base));
}

static uint64_t place_of(const lam_world *w, const shm_head *own) {
  return (uint64_t)((const unsigned char *)own - own_arena(w)->base);
}

void lam_shm_region_leave_with(lam_world *w, shm_head *own, const shm_head *until) {
  if (!own) return;
  const shm_block block = {place_of(w, own), own->bytes, place_of(w, until)};
  atomic_store_explicit(&own->owner_left, 1, memory_order_release);
  (void)blocks_insert(&w->heap.leaving, w->heap.leaving.n,
                      block); /* without memory for it: lost until the world ends */
}

void lam_shm_region_leave(lam_world *w, shm_head *own) {
  lam_shm_region_leave_with(w, own, own);
  sweep(w);
}

void lam_shm_heap_finish(lam_world *w) {
  uint64_t used = w->heap.top ? w->heap.top - round_up(sizeof(shm_control), PAGE) : 0;
  for (int i = 0; i < w->heap.free.n; i++) used -= w->heap.free.list[i].bytes;
  lam_context_count_arena(w->ctx, -(int64_t)used);
  free(w->heap.free.list);
  free(w->heap.leaving.list);
}
