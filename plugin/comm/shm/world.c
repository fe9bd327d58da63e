/* world.c: the ranks that met once: their arenas, whether each still lives, and the poison that
 * ends the world for all.
 *
 * Invariant: a world is poisoned at most once per rank and never healed; the message is complete
 * before the word that says so. A rank's death is seen through its pidfd, which works across pid
 * namespaces and is not kept alive by children it forked.
 * Leaves who must be told what to wait.c (on the way down) and group.c (on the way up). */
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <pthread.h>
#include <sched.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/random.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "plugin/comm/shm/shm.h"

/* What a rank shows the others, with its arena's fd and its pidfd. */
typedef struct shm_card {
  uint64_t process; /* this process, whatever its pid is elsewhere */
  uint64_t serial;  /* of the arena, for threads of one process */
  uint64_t pid_namespace;
  int32_t pid;
  uint32_t quota;    /* CPUs the control group grants; 0 = no limit */
  uint64_t cpus[16]; /* CPUs it may run on */
} shm_card;
_Static_assert(sizeof(shm_card) <= LAM_CARD_BYTES, "a card holds it");
enum { ARENA_FD, LIFE_FD };

/* ---- This process ---------------------------------------------------------------------------- */

static _Atomic uint32_t forks;
static _Atomic uint64_t process_nonce;
static pthread_once_t once = PTHREAD_ONCE_INIT;

static void in_forked_child(void) {
  atomic_fetch_add(&forks, 1);
  atomic_store(&process_nonce, 0);
}
static void watch_forks(void) { pthread_atfork(NULL, NULL, in_forked_child); }

static uint64_t this_process(void) {
  uint64_t fresh = 0, none = 0;
  if (atomic_load(&process_nonce)) return atomic_load(&process_nonce);
  if (getrandom(&fresh, sizeof fresh, 0) != (ssize_t)sizeof fresh)
    fresh = (uint64_t)lam_clock_ns() << 20 | (uint64_t)getpid();
  atomic_compare_exchange_strong(&process_nonce, &none, fresh | 1);
  return atomic_load(&process_nonce);
}

static bool read_line(const char *path, char *line, int room) {
  FILE *f = fopen(path, "re");
  const bool got = f && fgets(line, room, f);
  if (f) fclose(f);
  return got;
}

/* cpu.max is "max 100000" or "150000 100000": 1.5 CPUs, of which 2 can run at a time. */
static uint32_t quota_cpus(void) {
  char line[512], path[600] = "/sys/fs/cgroup/cpu.max";
  long long quota = 0, period = 0;
  if (read_line("/proc/self/cgroup", line, sizeof line) && strncmp(line, "0::/", 4) == 0) {
    line[strcspn(line, "\n")] = 0;
    snprintf(path, sizeof path, "/sys/fs/cgroup%s/cpu.max", line + 3);
  }
  if (!read_line(path, line, sizeof line) &&
      !read_line("/sys/fs/cgroup/cpu.max", line, sizeof line))
    return 0;
  if (sscanf(line, "%lld %lld", &quota, &period) != 2 || period <= 0) return 0;
  return (uint32_t)((quota + period - 1) / period);
}

static void fill_card(const shm_arena *arena, shm_card *card) {
  cpu_set_t set;
  struct stat st;
  *card = (shm_card){
      .process = this_process(), .serial = arena->serial, .pid = getpid(), .quota = quota_cpus()};
  if (stat("/proc/self/ns/pid", &st) == 0) card->pid_namespace = (uint64_t)st.st_ino;
  if (sched_getaffinity(0, sizeof set, &set) != 0)
    memset(&set, 0xff, sizeof set); /* more than 1024 CPUs: plenty */
  memcpy(card->cpus, &set, sizeof card->cpus < sizeof set ? sizeof card->cpus : sizeof set);
}

/* ---- Meeting --------------------------------------------------------------------------------- */

/* Where there are no pidfds, a pipe that closes with the process tells the same (unless a forked
 * child keeps it open). */
static lam_status life_create(lam_world *w, int *out_fd) {
  int ends[2];
  *out_fd = (int)syscall(SYS_pidfd_open, getpid(), 0);
  if (*out_fd >= 0) return LAM_OK;
  if (pipe2(ends, O_CLOEXEC) != 0)
    return lam_fail(LAM_RESOURCE_EXHAUSTED, "world: no pidfd and no pipe: %s", strerror(errno));
  *out_fd = ends[0];
  w->life_write = ends[1];
  return LAM_OK;
}

static lam_status adopt_peer(lam_world *w, const shm_card *mine, lam_card *card, int rank) {
  shm_card theirs;
  shm_peer *peer = &w->peers[rank];
  memcpy(&theirs, card->data, sizeof theirs);
  if (theirs.process == mine->process) return lam_shm_arena_find(theirs.serial, &peer->arena);
  peer->pid = theirs.pid_namespace == mine->pid_namespace ? theirs.pid : 0;
  peer->life = card->fds[LIFE_FD];
  card->fds[LIFE_FD] = -1; /* now the peer's */
  if (peer->life < 0 || card->fds[ARENA_FD] < 0)
    return lam_fail(LAM_INTERNAL, "world: rank %d came without its memory: too many open files?",
                    rank);
  return lam_shm_arena_map(card->fds[ARENA_FD], &peer->arena);
}

static bool cpus_for_all(const lam_card *cards, int size) {
  uint64_t cpus[16] = {0};
  uint32_t quota = 0;
  int n = 0;
  for (int r = 0; r < size; r++) {
    shm_card card;
    memcpy(&card, cards[r].data, sizeof card);
    for (int i = 0; i < 16; i++) cpus[i] |= card.cpus[i];
    if (card.quota && (!quota || card.quota < quota)) quota = card.quota;
  }
  for (int i = 0; i < 16; i++) n += __builtin_popcountll(cpus[i]);
  return n >= size && (!quota || (int)quota >= size);
}

static void close_cards(lam_card *cards, int size, int own) {
  for (int r = 0; r < size; r++)
    for (int i = 0; r != own && i < LAM_CARD_FDS; i++)
      if (cards[r].fds[i] >= 0) close(cards[r].fds[i]);
}

static lam_status meet(lam_world *w, const lam_group_desc *desc, lam_card *cards) {
  lam_status status = LAM_OK;
  shm_card mine;
  int life = -1;
  for (int r = 0; r < desc->size; r++) cards[r] = (lam_card){.fds = {-1, -1}};
  LAM_TRY(lam_shm_arena_create(&w->peers[w->rank].arena));
  LAM_TRY(life_create(w, &life));
  fill_card(w->peers[w->rank].arena, &mine);
  memcpy(cards[w->rank].data, &mine, sizeof mine);
  cards[w->rank].fds[ARENA_FD] = w->peers[w->rank].arena->fd;
  cards[w->rank].fds[LIFE_FD] = life;
  status = lam_rendezvous(w->ctx, desc, cards, &w->tag);
  for (int r = 0; r < desc->size && status == LAM_OK; r++)
    if (r != w->rank) status = adopt_peer(w, &mine, &cards[r], r);
  if (status == LAM_OK && cpus_for_all(cards, desc->size)) w->spins = lam_shm_spins_measure();
  close_cards(cards, desc->size, w->rank);
  close(life);
  return status;
}

lam_status lam_shm_world_create(lam_context *ctx, const lam_group_desc *desc, lam_world **out) {
  lam_world *w = calloc(1, sizeof *w);
  lam_card *cards = calloc((size_t)desc->size, sizeof *cards);
  lam_status status = LAM_OK;
  if (!w || !cards) {
    status = lam_fail(LAM_RESOURCE_EXHAUSTED, "world: no memory");
    goto fail;
  }
  pthread_once(&once, watch_forks);
  *w = (lam_world){.ctx = ctx,
                   .rank = desc->rank,
                   .size = desc->size,
                   .groups = 1,
                   .refs = 1,
                   .life_write = -1};
  w->forks = atomic_load(&forks);
  for (int r = 0; r < SHM_RANKS; r++) w->peers[r].life = -1;
  status = meet(w, desc, cards);
  if (status != LAM_OK) goto fail;
  free(cards);
  *out = w;
  return LAM_OK;
fail:
  free(cards);
  lam_shm_world_release(w);
  return status;
}

void lam_shm_world_join(lam_world *w) {
  atomic_fetch_add(&w->groups, 1);
  atomic_fetch_add(&w->refs, 1);
}

/* The context counts arenas as long as there are groups; holds may outlive it. */
void lam_shm_world_release(lam_world *w) {
  if (!w) return;
  if (atomic_fetch_sub(&w->groups, 1) == 1) lam_shm_heap_finish(w);
  lam_shm_world_drop(w);
}

void lam_shm_world_drop(lam_world *w) {
  if (atomic_fetch_sub(&w->refs, 1) > 1) return;
  for (int r = 0; r < w->size; r++) {
    if (w->peers[r].life >= 0) close(w->peers[r].life);
    lam_shm_arena_release(w->peers[r].arena);
  }
  if (w->life_write >= 0) close(w->life_write);
  free(w);
}

/* ---- Life and poison ------------------------------------------------------------------------- */

bool lam_shm_world_is_ours(const lam_world *w) {
  return atomic_load_explicit(&forks, memory_order_relaxed) == w->forks;
}

lam_status lam_shm_world_use(const lam_world *w) {
  return lam_shm_world_is_ours(w)
             ? LAM_OK
             : lam_fail(LAM_FAILED_PRECONDITION,
                        "group: it belongs to the process that forked this one: make groups after "
                        "the fork");
}

bool lam_shm_peer_died(const lam_world *w, int rank) {
  struct pollfd life = {.fd = w->peers[rank].life, .events = POLLIN};
  return life.fd >= 0 && poll(&life, 1, 0) > 0;
}

/* The letter after the program's name in /proc/PID/stat, in words. */
const char *lam_shm_peer_state(const lam_world *w, int rank) {
  static const struct {
    char letter;
    const char *word;
  } states[] = {{'R', "running"},
                {'S', "sleeping"},
                {'D', "waiting for a device"},
                {'T', "stopped"},
                {'t', "stopped by a debugger"},
                {'Z', "ended"},
                {'X', "ended"}};
  char path[40], line[256];
  snprintf(path, sizeof path, "/proc/%d/stat", w->peers[rank].pid);
  if (!read_line(path, line, sizeof line)) return "gone";
  const char *name_end = strrchr(line, ')');
  for (size_t i = 0; name_end && name_end[1] && i < sizeof states / sizeof *states; i++)
    if (states[i].letter == name_end[2]) return states[i].word;
  return "in an unknown state";
}

lam_status lam_shm_world_check(const lam_world *w) {
  for (int r = 0; r < w->size; r++) {
    const shm_control *c = shm_arena_control(w->peers[r].arena);
    const lam_status poison = atomic_load_explicit(&c->poison, memory_order_acquire);
    if (poison != LAM_OK) return lam_fail(poison, "%.*s", LAM_MESSAGE_BYTES - 1, c->message);
  }
  return LAM_OK;
}

void lam_shm_world_poison(lam_world *w, lam_status why, const char *message) {
  shm_control *c = shm_arena_control(w->peers[w->rank].arena);
  if (atomic_exchange(&c->poison_claim, 1)) return;
  snprintf(c->message, sizeof c->message, "%s", message);
  atomic_store_explicit(&c->poison, why, memory_order_release);
}
