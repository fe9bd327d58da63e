/* algos_file.c: the algorithms that were timed, kept for this process and the next ones.
 *
 * One file for each kind of card and version of cuBLASLt, in $LAMELLA_ALGORITHMS (a folder; "off":
 * nothing is timed or kept), or in $XDG_CACHE_HOME/lamella, or in ~/.cache/lamella:
 *
 *   lamella algorithms 1, cuBLASLt 130101, NVIDIA H100, sm_90
 *   KEY... ALGORITHM... CHECK                       18 words and their sum, in hexadecimal
 *
 * Invariant: a file is whole or not there: it is written beside its place and renamed. What is not
 * of this form, card and version is passed over; and cuBLASLt checks an algorithm before it runs. A
 * file that cannot be read or written is no error.
 * Leaves choosing to algos.c. */
#include <inttypes.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "kernels/cuda/host.h"

enum {
  KEY_WORDS = sizeof(lam_algo_key) / 8,
  ALGO_WORDS = sizeof(cublasLtMatmulAlgo_t) / 8,
  WORDS = KEY_WORDS + ALGO_WORDS,
  MOST = 1 << 16, /* lines of a file */
  PATH = 4096
};

typedef struct line {
  uint64_t words[WORDS];
} line;

typedef struct list { /* of one card */
  line *lines;
  size_t n, room;
  bool is_read;
} list;

static list lists[LAM_CUDA_CARDS];
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;

bool lam_algos_are_off(void) {
  const char *set = getenv("LAMELLA_ALGORITHMS");
  return set && strcmp(set, "off") == 0;
}

/* -- lines -- */

static line *find(const list *l, const uint64_t *key) {
  for (size_t i = 0; i < l->n; i++)
    if (memcmp(l->lines[i].words, key, KEY_WORDS * sizeof *key) == 0) return &l->lines[i];
  return NULL;
}

/* The first one for a key stays. */
static void add(list *l, const line *new_line) {
  if (l->n == MOST || find(l, new_line->words)) return;
  if (l->n == l->room) {
    const size_t room = l->room ? 2 * l->room : 64;
    line *more = realloc(l->lines, room * sizeof *more);
    if (!more) return;
    l->lines = more;
    l->room = room;
  }
  l->lines[l->n++] = *new_line;
}

static uint64_t check_of(const line *l) {
  uint64_t h = 0xcbf29ce484222325u;
  for (int i = 0; i < WORDS; i++) h = (h ^ l->words[i]) * 0x100000001b3u;
  return h;
}

static bool parse(const char *text, line *out) {
  uint64_t words[WORDS + 1];
  for (int i = 0; i <= WORDS; i++) {
    char *end;
    words[i] = strtoull(text, &end, 16);
    if (end == text || (*end != (i < WORDS ? ' ' : '\n'))) return false;
    text = end;
  }
  memcpy(out->words, words, sizeof out->words);
  return words[WORDS] == check_of(out);
}

static void print(FILE *f, const line *l) {
  for (int i = 0; i < WORDS; i++) fprintf(f, "%" PRIx64 " ", l->words[i]);
  fprintf(f, "%" PRIx64 "\n", check_of(l));
}

/* -- the file -- */

static void make_head(const lam_cuda_card *card, char head[160]) {
  snprintf(head, 160, "lamella algorithms 1, cuBLASLt %zu, %s, sm_%d\n",
           lam_cublaslt_here()->cublasLtGetVersion(), card->name, card->sm);
}

/* The folder; false: nothing is kept. */
static bool find_folder(char folder[PATH]) {
  const char *own = getenv("LAMELLA_ALGORITHMS"), *cache = getenv("XDG_CACHE_HOME"),
             *home = getenv("HOME");
  int n = -1;
  if (lam_algos_are_off()) return false;
  if (own && *own)
    n = snprintf(folder, PATH, "%s", own);
  else if (cache && *cache == '/')
    n = snprintf(folder, PATH, "%s/lamella", cache);
  else if (home && *home == '/')
    n = snprintf(folder, PATH, "%s/.cache/lamella", home);
  return n > 0 && n < PATH;
}

/* "algorithms-130101-NVIDIA-H100-sm_90.txt" */
static bool find_path(const lam_cuda_card *card, char path[PATH]) {
  char folder[PATH], name[128];
  if (!find_folder(folder)) return false;
  snprintf(name, sizeof name, "algorithms-%zu-%s-sm_%d.txt",
           lam_cublaslt_here()->cublasLtGetVersion(), card->name, card->sm);
  for (char *c = name; *c; c++)
    if (*c == ' ' || *c == '/') *c = '-';
  return (size_t)snprintf(path, PATH, "%s/%s", folder, name) < PATH;
}

static void read_file(const lam_cuda_card *card, list *l) {
  char path[PATH], head[160], text[32 * WORDS];
  line next;
  FILE *f = find_path(card, path) ? fopen(path, "re") : NULL;
  if (!f) return;
  make_head(card, head);
  if (fgets(text, sizeof text, f) && strcmp(text, head) == 0)
    for (int i = 0; i < MOST && fgets(text, sizeof text, f); i++)
      if (parse(text, &next)) add(l, &next);
  fclose(f);
}

/* Every folder on the way to path's file, private as caches are. */
static void make_folders(const char *path) {
  char folder[PATH];
  snprintf(folder, sizeof folder, "%s", path);
  for (char *slash = strchr(folder + 1, '/'); slash; slash = strchr(slash + 1, '/')) {
    *slash = 0;
    (void)mkdir(folder, 0700);
    *slash = '/';
  }
}

static bool write_lines(FILE *f, const lam_cuda_card *card, const list *l) {
  char head[160];
  make_head(card, head);
  fputs(head, f);
  for (size_t i = 0; i < l->n; i++) print(f, &l->lines[i]);
  const bool written = !ferror(f);
  return fclose(f) == 0 && written;
}

static void write_file(const lam_cuda_card *card, const list *l) {
  char path[PATH], beside[PATH + 8];
  if (!find_path(card, path)) return;
  make_folders(path);
  snprintf(beside, sizeof beside, "%s.XXXXXX", path);
  const int fd = mkstemp(beside);
  FILE *f = fd < 0 ? NULL : fdopen(fd, "w");
  if (!f) {
    if (fd >= 0) close(fd);
    return;
  }
  if (!write_lines(f, card, l) || rename(beside, path) != 0) (void)unlink(beside);
}

/* -- what others call -- */

static list *list_of(const lam_cuda_card *card) {
  list *l = &lists[card->id];
  if (!l->is_read) read_file(card, l);
  l->is_read = true;
  return l;
}

bool lam_algos_find(const lam_cuda_card *card, const lam_algo_key *key, cublasLtMatmulAlgo_t *out) {
  pthread_mutex_lock(&lock);
  const line *l = lam_algos_are_off() ? NULL : find(list_of(card), key->words);
  if (l) memcpy(out, l->words + KEY_WORDS, sizeof *out);
  pthread_mutex_unlock(&lock);
  return l != NULL;
}

/* With what other processes kept meanwhile. */
void lam_algos_keep(const lam_cuda_card *card, const lam_algo_key *key,
                    const cublasLtMatmulAlgo_t *algo) {
  line new_line;
  memcpy(new_line.words, key->words, sizeof *key);
  memcpy(new_line.words + KEY_WORDS, algo, sizeof *algo);
  pthread_mutex_lock(&lock);
  list *l = list_of(card);
  add(l, &new_line);
  read_file(card, l);
  write_file(card, l);
  pthread_mutex_unlock(&lock);
}
