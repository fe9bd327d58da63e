/* demo_test.c: the demo on a GPU, its workers processes on one card: its losses are those of one
 * worker on the CPU, however it is split; its weights and gradients, too; its picture says by what
 * the activations came.
 * CUDA is used in children only. On the stand-in all this is emulated. */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "bindings/cli/demo/demo.h"
#include "tests/check.h"

enum { STEPS = 3 };

typedef struct run {
  const char *device, *dtype, *schedule, *draw, *gradients; /* gradients: "" or an option */
  int pp, tp;
  char folder[64], id[65]; /* what the launcher gives all workers */
} run;

static char *path_of(const run *r, const char *name, char *room) {
  snprintf(room, 160, "%s/%s", r->folder, name);
  return room;
}

/* 3 heads: two workers have 2 and 1. */
static lam_status read_options(const run *r, options *o) {
  static char out[160], text[160], pp[4], tp[4], gradients[160];
  snprintf(pp, sizeof pp, "%d", r->pp), snprintf(tp, sizeof tp, "%d", r->tp);
  path_of(r, "text", text), path_of(r, "", out), path_of(r, "gradients", gradients);
  const char *list[] = {"demo", "--layers", "2", "--hidden", "96", "--sequence", "32",
                        "--sequences", "1", "--micro-batches", "2", "--steps", "3",
                        "--text", text, "--out", out, "--pp", pp, "--tp", tp,
                        "--draw", r->draw, "--device", r->device, "--dtype", r->dtype,
                        "--schedule", r->schedule, r->gradients, gradients};
  const int n = (int)(sizeof list / sizeof *list) - (*r->gradients ? 0 : 2);
  return options_parse(n, (char **)(uintptr_t)list, o);
}

static lam_status work(const run *r) {
  options o;
  worker w;
  TRY(read_options(r, &o));
  lam_status status = worker_open(&o, &w);
  if (status == LAM_OK) status = train(&w);
  worker_close(&w);
  return status;
}

/* As the program itself, but for a file in the place of what it prints. */
static void worker_of(int rank, int size, void *arg) {
  const run *r = arg;
  const int printed = dup(1);
  char number[16], name[160];
  check_error_text = error_text;
  snprintf(number, sizeof number, "%d", rank), setenv("LAMELLA_RANK", number, 1);
  snprintf(number, sizeof number, "%d", size), setenv("LAMELLA_SIZE", number, 1);
  setenv("LAMELLA_ID", r->id, 1);
  snprintf(number, sizeof number, "told.%d", rank);
  if (!CHECK(freopen(path_of(r, number, name), "w", stdout) != NULL)) return;
  const lam_status status = work(r);
  fflush(stdout);
  dup2(printed, 1);
  CHECK_OK(status);
}

static char *read_file(const run *r, const char *name) {
  char path[160], *text = calloc(1, 1 << 20);
  FILE *f = fopen(path_of(r, name, path), "r");
  if (CHECK(f != NULL)) text[fread(text, 1, (1 << 20) - 1, f)] = 0, fclose(f);
  return text;
}

/* Every line of rank 0 that tells a loss. */
static void read_losses(const run *r, double *losses) {
  char *told = read_file(r, "told.0"), *at = told;
  int n = 0;
  for (; n < STEPS && (at = strstr(at, "\"loss\": ")); n++) losses[n] = strtod(at += 8, NULL);
  CHECK_EQ(n, STEPS);
  free(told);
}

static void train_as(run *r, double *losses) {
  lam_group_id random;
  REQUIRE_OK(lam_group_id_create(&random));
  for (int i = 0; i < 32; i++) snprintf(r->id + 2 * i, 3, "%02x", random.bytes[32 + i]);
  NOTE("%s %s %s pp=%d tp=%d", r->device, r->dtype, r->schedule, r->pp, r->tp);
  run_processes(r->pp * r->tp, worker_of, r);
  read_losses(r, losses);
}

static void make_folder(run *r) {
  char path[160];
  strcpy(r->folder, "/tmp/lamella-demo-XXXXXX");
  CHECK(mkdtemp(r->folder) != NULL);
  FILE *f = fopen(path_of(r, "text", path), "w");
  if (!CHECK(f != NULL)) return;
  for (int i = 0; i < 40; i++) fputs("the quick brown fox jumps over the lazy dog\n", f);
  fclose(f);
}

static void remove_folder(const run *r) {
  static const char *const names[] = {"text",   "told.0", "told.1",    "told.2",
                                      "told.3", "1f1b.svg", "1f1b.json", "gradients"};
  char path[160];
  for (size_t i = 0; i < sizeof names / sizeof *names; i++) remove(path_of(r, names[i], path));
  CHECK_EQ(rmdir(r->folder), 0);
}

static bool has_no_gpu(void) {
  const char *device = getenv("LAMELLA_TEST_DEVICE");
  return !device || strcmp(device, "cuda") != 0;
}

static void compare(const double *got, const double *want, double allowed) {
  for (int i = 0; i < STEPS; i++) CHECK(fabs(got[i] - want[i]) <= allowed);
  CHECK(want[STEPS - 1] < want[0]);
}

TEST(demo, losses_on_a_gpu_are_those_of_one_worker_on_the_cpu) {
  static const struct {
    const char *dtype, *schedule;
    double allowed; /* as ./lamella demo allows */
    int pp, tp;
  } cases[] = {{"f32", "1f1b", 1e-4, 1, 1},
               {"f32", "1f1b", 1e-4, 1, 2},
               {"f32", "zb-h1", 1e-4, 2, 1},
               {"bf16", "1f1b", 5e-3, 2, 2}};
  if (has_no_gpu()) SKIP("no CUDA device was asked for");
  run r = {.draw = "", .gradients = ""};
  make_folder(&r);
  for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
    double want[STEPS], got[STEPS];
    r.dtype = cases[i].dtype, r.schedule = "1f1b", r.device = "cpu", r.pp = r.tp = 1;
    train_as(&r, want);
    r.schedule = cases[i].schedule, r.device = "cuda", r.pp = cases[i].pp, r.tp = cases[i].tp;
    train_as(&r, got);
    compare(got, want, cases[i].allowed);
  }
  remove_folder(&r);
}

/* Of every weight, by the worker's own comparison. */
static void check_gradients_of(const run *r) {
  FOR_EACH(rank, 0, 1) {
    char name[16];
    snprintf(name, sizeof name, "told.%d", rank);
    char *told = read_file(r, name), *at = strstr(told, "\"difference\": ");
    if (CHECK(at != NULL)) CHECK(strtod(at + 14, NULL) < 1e-5);
    free(told);
  }
}

TEST(demo, gradients_on_a_gpu_are_those_of_the_cpu) {
  if (has_no_gpu()) SKIP("no CUDA device was asked for");
  double losses[STEPS];
  run r = {.draw = "", .dtype = "f32", .schedule = "1f1b", .pp = 1, .tp = 1};
  make_folder(&r);
  r.gradients = "--save-gradients", r.device = "cpu";
  train_as(&r, losses);
  r.gradients = "--check-gradients", r.device = "cuda";
  FOR_EACH(pp, 1, 2) { /* matrices in two parts; backwards in two */
    r.pp = pp, r.tp = 3 - pp, r.schedule = pp == 1 ? "1f1b" : "zb-h1";
    train_as(&r, losses);
    check_gradients_of(&r);
  }
  remove_folder(&r);
}

TEST(demo, its_picture_says_what_carried_activations_between_gpus) {
  if (has_no_gpu()) SKIP("no CUDA device was asked for");
  double losses[STEPS];
  run r = {.draw = "1f1b", .dtype = "f32", .schedule = "1f1b", .gradients = "", .device = "cuda"};
  r.pp = 2, r.tp = 1;
  make_folder(&r);
  train_as(&r, losses);
  char *picture = read_file(&r, "1f1b.svg");
  const bool ipc = strstr(picture, "lines: messages, by ipc<") != NULL;
  CHECK(ipc || strstr(picture, "lines: messages, by host<") != NULL);
  NOTE("by %s", ipc ? "ipc" : "host");
  free(picture);
  remove_folder(&r);
}
