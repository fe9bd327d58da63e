/* launch.c: a group from what a launcher left in the environment.
 *
 * Launchers are rows of one table, asked in order: ./lamella run, torchrun, Open MPI, MPICH,
 * srun. Rank and size in desc win over all of them. Two launchers that disagree are an error,
 * never a guess; one that started a single process counts only where there is no other (a shell
 * under srun, from which the ranks were started).
 * Invariant: the id is equal on all ranks of one start and differs between starts, as far as the
 * launcher's variables do.
 * Leaves the meeting to rendezvous.c. A launcher's variables are no secret: other users are kept
 * out by their user id. */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "plugin/comm/comm.h"
#include "plugin/core/struct.h"

typedef struct launcher {
  const char *name, *rank, *size, *local_size; /* local_size NULL: says nothing about machines */
  const char *id[4]; /* variables that name the start, with the user's id */
  bool by_parent;    /* and the process that started all ranks */
} launcher;

static const launcher launchers[] = {
    {"lamella run", "LAMELLA_RANK", "LAMELLA_SIZE", NULL, {"LAMELLA_ID"}, false},
    {"torchrun",
     "RANK",
     "WORLD_SIZE",
     "LOCAL_WORLD_SIZE",
     {"MASTER_ADDR", "MASTER_PORT", "TORCHELASTIC_RUN_ID", "TORCHELASTIC_RESTART_COUNT"},
     false},
    {"Open MPI",
     "OMPI_COMM_WORLD_RANK",
     "OMPI_COMM_WORLD_SIZE",
     "OMPI_COMM_WORLD_LOCAL_SIZE",
     {"PMIX_NAMESPACE"},
     false},
    {"MPICH", "PMI_RANK", "PMI_SIZE", "MPI_LOCALNRANKS", {NULL}, true},
    {"srun", "SLURM_PROCID", "SLURM_NTASKS", NULL, {"SLURM_JOB_ID", "SLURM_STEP_ID"}, false},
};
enum { N_LAUNCHERS = sizeof launchers / sizeof *launchers };

static lam_status read_int(const char *name, int32_t *out) {
  char *end = NULL;
  const char *text = getenv(name);
  errno = 0;
  const long n = text ? strtol(text, &end, 10) : 0;
  if (!text || !*text || *end || errno || n < 0 || n > INT32_MAX)
    return lam_fail(LAM_INVALID_ARGUMENT, "environment: %s is \"%s\", expected a number", name,
                    text ? text : "");
  *out = (int32_t)n;
  return LAM_OK;
}

/* size 0: this launcher did not start us. */
static lam_status ask(const launcher *l, int32_t *rank, int32_t *size) {
  const char *one = getenv(l->rank), *other = getenv(l->size);
  *rank = *size = 0;
  if (!one && !other) return LAM_OK;
  if (!one || !other)
    return lam_fail(LAM_INVALID_ARGUMENT, "environment: %s is set, %s is not",
                    one ? l->rank : l->size, one ? l->size : l->rank);
  LAM_TRY(read_int(l->rank, rank));
  LAM_TRY(read_int(l->size, size));
  if (*rank < *size) return LAM_OK;
  return lam_fail(LAM_INVALID_ARGUMENT, "environment: %s is %d, expected less than %s, which is %d",
                  l->rank, *rank, l->size, *size);
}

static lam_status disagree(const launcher *a, int rank_a, int size_a, const launcher *b, int rank_b,
                           int size_b) {
  return lam_fail(LAM_INVALID_ARGUMENT,
                  "environment: %s=%d %s=%d (%s) and %s=%d %s=%d (%s) contradict each other: unset "
                  "one pair, or give rank and size",
                  a->rank, rank_a, a->size, size_a, a->name, b->rank, rank_b, b->size, size_b,
                  b->name);
}

/* The first launcher in the table's order that speaks; NULL: none does. */
static lam_status find_launcher(const launcher **out, int32_t *out_rank, int32_t *out_size) {
  *out = NULL;
  *out_rank = *out_size = 0;
  for (int i = 0; i < N_LAUNCHERS; i++) {
    int32_t rank = 0, size = 0;
    LAM_TRY(ask(&launchers[i], &rank, &size));
    if (size == 0 || (*out && size == 1)) continue;
    if (*out && *out_size > 1 && (rank != *out_rank || size != *out_size))
      return disagree(*out, *out_rank, *out_size, &launchers[i], rank, size);
    if (*out && *out_size > 1) continue;
    *out = &launchers[i];
    *out_rank = rank;
    *out_size = size;
  }
  return LAM_OK;
}

static lam_status check_one_machine(const launcher *l, int size) {
  int32_t local = size;
  if (l->local_size && getenv(l->local_size)) LAM_TRY(read_int(l->local_size, &local));
  if (local == size) return LAM_OK;
  return lam_fail(
      LAM_UNIMPLEMENTED,
      "environment: %s is %d of %d ranks: the engine shm joins ranks of one machine only",
      l->local_size, local, size);
}

static int hex_digit(char c) {
  const char *digits = "0123456789abcdef",
             *at = c ? strchr(digits, c >= 'A' && c <= 'F' ? c + 32 : c) : NULL;
  return at ? (int)(at - digits) : -1;
}

static lam_status id_from_hex(const char *text, lam_group_id *out) {
  uint8_t secret[32];
  if (!text || strlen(text) != 64)
    return lam_fail(LAM_INVALID_ARGUMENT, "environment: LAMELLA_ID is not 64 hex digits");
  for (int i = 0; i < 32; i++) {
    const int high = hex_digit(text[2 * i]), low = hex_digit(text[2 * i + 1]);
    if (high < 0 || low < 0)
      return lam_fail(LAM_INVALID_ARGUMENT, "environment: LAMELLA_ID is not 64 hex digits");
    secret[i] = (uint8_t)(high << 4 | low);
  }
  lam_group_id_derive(secret, out);
  return LAM_OK;
}

static uint64_t mix_text(uint64_t sum, const char *text) {
  while (text && *text) sum = lam_mix(sum, (unsigned char)*text++);
  return lam_mix(sum, 256);
}

static lam_status id_from(const launcher *l, lam_group_id *out) {
  uint64_t words[4], sum = mix_text(geteuid(), l->name);
  if (l == &launchers[0]) return id_from_hex(getenv("LAMELLA_ID"), out);
  for (size_t i = 0; i < sizeof l->id / sizeof *l->id; i++)
    sum = mix_text(sum, l->id[i] ? getenv(l->id[i]) : NULL);
  if (l->by_parent) sum = lam_mix(sum, (uint64_t)getppid());
  for (uint64_t i = 0; i < 4; i++) words[i] = lam_mix(sum, i);
  lam_group_id_derive((const uint8_t *)words, out);
  return LAM_OK;
}

static bool has_id(const lam_group_desc *d) {
  static const lam_group_id none;
  return memcmp(&d->id, &none, sizeof none) != 0;
}

static lam_status fill_desc(lam_group_desc *d) {
  const launcher *l = NULL;
  int32_t rank = 0, size = 0;
  const bool given = d->size > 0; /* then another launcher's numbers do not matter */
  const lam_status found = find_launcher(&l, &rank, &size);
  if (!given) LAM_TRY(found);
  if (!l && !(given && (has_id(d) || d->size == 1)))
    return lam_fail(LAM_FAILED_PRECONDITION,
                    "environment: no launcher's variables (LAMELLA_RANK, RANK, "
                    "OMPI_COMM_WORLD_RANK, PMI_RANK, SLURM_PROCID)");
  if (!given) d->rank = rank, d->size = size;
  if (has_id(d) || d->size == 1) return LAM_OK;
  LAM_TRY(check_one_machine(l, d->size));
  return id_from(l, &d->id);
}

lam_status lam_group_create_from_env(lam_context *ctx, const lam_group_desc *desc,
                                     lam_group **out_group) {
  lam_group_desc d = LAM_GROUP_DESC_INIT;
  if (!out_group)
    return lam_fail(LAM_INVALID_ARGUMENT, "lam_group_create_from_env: out_group is NULL");
  *out_group = NULL;
  if (desc) {
    LAM_TRY(lam_struct_check("lam_group_create_from_env", "lam_group_desc", desc, sizeof *desc));
    d = *desc;
  }
  LAM_TRY(fill_desc(&d));
  return lam_group_create(ctx, &d, out_group);
}
