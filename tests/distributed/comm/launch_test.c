/* launch_test.c: groups from what launchers leave in the environment, and every contradiction
 * refused. */
#include <stdio.h>

#include "tests/distributed/comm/ranks.h"

static const char *const all[] = {"LAMELLA_RANK",
                                  "LAMELLA_SIZE",
                                  "LAMELLA_ID",
                                  "RANK",
                                  "WORLD_SIZE",
                                  "LOCAL_WORLD_SIZE",
                                  "MASTER_ADDR",
                                  "MASTER_PORT",
                                  "TORCHELASTIC_RUN_ID",
                                  "TORCHELASTIC_RESTART_COUNT",
                                  "OMPI_COMM_WORLD_RANK",
                                  "OMPI_COMM_WORLD_SIZE",
                                  "OMPI_COMM_WORLD_LOCAL_SIZE",
                                  "PMIX_NAMESPACE",
                                  "PMI_RANK",
                                  "PMI_SIZE",
                                  "MPI_LOCALNRANKS",
                                  "SLURM_PROCID",
                                  "SLURM_NTASKS",
                                  "SLURM_JOB_ID",
                                  "SLURM_STEP_ID"};

/* Starts at the same time, on this machine, must differ: an @ becomes 8 digits of this one's. */
static pid_t start_number;
static void name_start(const char *settings, char *text, size_t room) {
  size_t n = 0;
  for (const char *c = settings; *c && n + 9 < room; c++)
    n += (size_t)snprintf(text + n, room - n, *c == '@' ? "%08x" : "%c",
                          *c == '@' ? (unsigned)start_number : (unsigned)*c);
  text[n] = 0;
}

/* "A=1 B=2": these and no other launcher's. A %d is the rank. */
static void environment(const char *settings, int rank) {
  char text[600], *rest = text;
  for (size_t i = 0; i < sizeof all / sizeof *all; i++) unsetenv(all[i]);
  name_start(settings, text, sizeof text);
  for (char *one; (one = strtok_r(rest, " ", &rest));) {
    char number[20], *value = strchr(one, '=');
    *value++ = 0;
    snprintf(number, sizeof number, "%d", rank);
    setenv(one, strcmp(value, "%d") == 0 ? number : value, 1);
  }
}

static void refused(const char *settings, lam_status status, const char *text) {
  lam_group *g = NULL;
  environment(settings, 0);
  NOTE("%s", settings);
  CHECK_STATUS(lam_group_create_from_env(NULL, NULL, &g), status);
  CHECK_CONTAINS(lam_last_error(), text);
  CHECK(g == NULL);
  lam_group_destroy(g);
  environment("", 0);
}

TEST(launch, contradictions_are_refused) {
  refused("", LAM_FAILED_PRECONDITION, "no launcher");
  refused("RANK=0", LAM_INVALID_ARGUMENT, "RANK is set, WORLD_SIZE is not");
  refused("SLURM_NTASKS=2", LAM_INVALID_ARGUMENT, "SLURM_NTASKS is set, SLURM_PROCID is not");
  refused("RANK=2 WORLD_SIZE=2", LAM_INVALID_ARGUMENT,
          "RANK is 2, expected less than WORLD_SIZE, which is 2");
  refused("RANK=-1 WORLD_SIZE=2", LAM_INVALID_ARGUMENT, "RANK is \"-1\", expected a number");
  refused("RANK=0x WORLD_SIZE=2", LAM_INVALID_ARGUMENT, "RANK is \"0x\", expected a number");
  refused("RANK=99999999999 WORLD_SIZE=2", LAM_INVALID_ARGUMENT, "expected a number");
  refused("RANK=0 WORLD_SIZE=2 OMPI_COMM_WORLD_RANK=1 OMPI_COMM_WORLD_SIZE=2", LAM_INVALID_ARGUMENT,
          "contradict each other");
  refused("LAMELLA_RANK=0 LAMELLA_SIZE=4 PMI_RANK=0 PMI_SIZE=2", LAM_INVALID_ARGUMENT,
          "contradict each other");
  refused("RANK=0 WORLD_SIZE=8 LOCAL_WORLD_SIZE=4", LAM_UNIMPLEMENTED,
          "LOCAL_WORLD_SIZE is 4 of 8 ranks");
  refused("LAMELLA_RANK=0 LAMELLA_SIZE=2", LAM_INVALID_ARGUMENT, "LAMELLA_ID is not 64 hex digits");
  refused("LAMELLA_RANK=0 LAMELLA_SIZE=2 LAMELLA_ID=abcd", LAM_INVALID_ARGUMENT,
          "LAMELLA_ID is not 64 hex digits");
}

TEST(launch, a_lone_process_needs_nobody) {
  lam_group *g = NULL;
  environment("SLURM_PROCID=0 SLURM_NTASKS=1", 0);
  REQUIRE_OK(lam_group_create_from_env(NULL, NULL, &g));
  CHECK_OK(sum_ones(g));
  CHECK_STR(lam_group_path(g, LAM_OP_all_reduce, 4), "local");
  lam_group_destroy(g);
  environment("", 0);
}

/* ---- Real starts ----------------------------------------------------------------------------- */

static void started(int rank, int size, void *arg) {
  lam_group *g = NULL;
  lam_group_desc d = LAM_GROUP_DESC_INIT;
  environment(arg, rank);
  d.deadline_ms = d.first_deadline_ms = 20000; /* rank and size stay the launcher's */
  NOTE("%s", (const char *)arg);
  REQUIRE_OK(lam_group_create_from_env(NULL, &d, &g));
  CHECK_EQ(g->rank, rank);
  CHECK_EQ(g->size, size);
  CHECK_OK(sum_ones(g));
  lam_group_destroy(g);
}

TEST(launch, every_launchers_variables_make_a_group) {
  static char *const starts[] = {
      "LAMELLA_RANK=%d LAMELLA_SIZE=3 "
      "LAMELLA_ID=@445566778899AABBCCDDEEFF00112233445566778899aabbccddeeff",
      "RANK=%d WORLD_SIZE=3 LOCAL_WORLD_SIZE=3 MASTER_ADDR=127.0.0.1 MASTER_PORT=29500 "
      "TORCHELASTIC_RUN_ID=@",
      "OMPI_COMM_WORLD_RANK=%d OMPI_COMM_WORLD_SIZE=3 OMPI_COMM_WORLD_LOCAL_SIZE=3 "
      "PMIX_NAMESPACE=@",
      "PMI_RANK=%d PMI_SIZE=3 MPI_LOCALNRANKS=3",
      "SLURM_PROCID=%d SLURM_NTASKS=3 SLURM_JOB_ID=@ SLURM_STEP_ID=1",
      /* torchrun in a shell of srun's */
      "RANK=%d WORLD_SIZE=3 SLURM_PROCID=0 SLURM_NTASKS=1 TORCHELASTIC_RUN_ID=@",
      /* two that agree */
      "RANK=%d WORLD_SIZE=3 SLURM_PROCID=%d SLURM_NTASKS=3 TORCHELASTIC_RUN_ID=@",
  };
  start_number = getpid();
  for (size_t i = 0; i < sizeof starts / sizeof *starts; i++) run_processes(3, started, starts[i]);
}

/* Rank and size given win over a launcher's; the id is still the launcher's. */
static void given(int rank, int size, void *arg) {
  lam_group *g = NULL;
  lam_group_desc d = LAM_GROUP_DESC_INIT;
  (void)arg;
  environment(
      "RANK=%d WORLD_SIZE=7 OMPI_COMM_WORLD_RANK=0 OMPI_COMM_WORLD_SIZE=2 TORCHELASTIC_RUN_ID=@",
      rank);
  d.rank = rank;
  d.size = size;
  d.deadline_ms = d.first_deadline_ms = 20000;
  REQUIRE_OK(lam_group_create_from_env(NULL, &d, &g));
  CHECK_EQ(g->size, size);
  CHECK_OK(sum_ones(g));
  lam_group_destroy(g);
}

TEST(launch, rank_and_size_given_win) {
  start_number = getpid();
  run_processes(2, given, NULL);
}
