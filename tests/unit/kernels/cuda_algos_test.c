/* cuda_algos_test.c: when algorithms are timed, and the file that keeps them, on the stand-in.
 *
 * Each test runs processes of its own, as a file is for those that come after. */
#include <dirent.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "tests/unit/kernels/far.h"

enum { BYTES = 1 << 14 };

typedef struct folder {
  char path[1024], file[2048];
} folder;

static folder folder_new(void) {
  folder f;
  const char *tmp = getenv("TEST_TMPDIR");
  snprintf(f.path, sizeof f.path, "%s/lamella-algos-XXXXXX", tmp ? tmp : "/tmp");
  if (!mkdtemp(f.path)) abort();
  f.file[0] = 0;
  return f;
}

/* How many files are in it; the last one's path. */
static int look(folder *f) {
  int n = 0;
  DIR *d = opendir(f->path);
  for (struct dirent *e; d && (e = readdir(d)) != NULL;)
    if (e->d_name[0] != '.') {
      snprintf(f->file, sizeof f->file, "%s/%s", f->path, e->d_name);
      n++;
    }
  if (d) closedir(d);
  return n;
}

static void folder_free(folder *f) {
  while (look(f) > 0) unlink(f->file);
  rmdir(f->path);
}

static size_t read_file(const char *path, char text[BYTES]) {
  FILE *f = fopen(path, "r");
  const size_t n = f ? fread(text, 1, BYTES - 1, f) : 0;
  text[n] = 0;
  if (f) fclose(f);
  return n;
}

static void write_file(const char *path, const char *text) {
  FILE *f = fopen(path, "w");
  if (!f || fputs(text, f) < 0 || fclose(f) != 0) abort();
}

static int lines_in(const char *text) {
  int n = 0;
  for (; *text; text++) n += *text == '\n';
  return n;
}

/* Multiplies [m, 48] by [64, 48]^T; gives how often cuBLASLt was asked to name algorithms. */
static int64_t multiply(int64_t m, void *stream) {
  rng r = {seed()};
  const int64_t before = standin_count().heuristics;
  box x = box_random(&r, m, 48, LAM_BF16, BY_ROWS), w = box_random(&r, 64, 48, LAM_BF16, BY_ROWS),
      y = box_new(m, 64, LAM_BF16, BY_ROWS);
  far a = far_of(x, 0, stream), b = far_of(w, 0, stream), d = far_of(y, 0, stream);
  const lam_gemm near = {.a = x.m, .b = w.m, .d = y.m}, g = {.a = a.m, .b = b.m, .d = d.m};
  double *want = calloc((size_t)(m * 64), sizeof *want);
  if (!want) abort();
  product_of(&near, NULL, want, NULL);
  CHECK_OK(lam_device_gemm(CUDA, workers(ALONE), &g, stream));
  far_fetch(&d, stream);
  check_matrix(y.m, want, 0x1p-8, 1e-5);
  far_free(&a), far_free(&b), far_free(&d);
  box_free(&x), box_free(&w), box_free(&y);
  free(want);
  return standin_count().heuristics - before;
}

typedef struct order_of {
  const char *folder;
  int64_t asks, asks_again; /* expected: for 40 rows, and for 56 */
} order_of;

static void multiply_twice(int rank, int size, void *arg) {
  const order_of *o = arg;
  (void)rank, (void)size;
  setenv("LAMELLA_ALGORITHMS", o->folder, 1);
  void *stream = stream_new();
  CHECK_EQ(multiply(40, stream), o->asks);
  CHECK_EQ(multiply(40, stream), 0);
  CHECK_EQ(multiply(56, stream), o->asks_again);
  stream_drop(stream);
}

TEST(cuda_algos, a_second_process_starts_with_what_the_first_has_timed) {
  folder f = folder_new();
  char first[BYTES], second[BYTES];
  run_processes(1, multiply_twice, &(order_of){f.path, 1, 1});
  CHECK_EQ(look(&f), 1);
  read_file(f.file, first);
  CHECK_CONTAINS(first, "lamella algorithms 1, cuBLASLt ");
  CHECK_EQ(lines_in(first), 3);
  run_processes(1, multiply_twice, &(order_of){f.path, 0, 0});
  CHECK_EQ(look(&f), 1);
  read_file(f.file, second);
  CHECK_STR(second, first);
  folder_free(&f);
}

TEST(cuda_algos, lines_that_are_damaged_are_passed_over_and_made_again) {
  folder f = folder_new();
  char text[BYTES];
  run_processes(1, multiply_twice, &(order_of){f.path, 1, 1});
  CHECK_EQ(look(&f), 1);
  const size_t n = read_file(f.file, text);
  rng r = {seed()};
  char *line = strchr(text, '\n') + 1;
  for (char *c = line; *c != '\n'; c++) /* one digit of the first line */
    if (*c != ' ' && rng_int(&r, 0, 20) == 0) {
      *c = *c == '7' ? '3' : '7';
      break;
    } else if (c[1] == '\n') {
      c = line - 1;
    }
  CHECK(n > 0);
  write_file(f.file, text);
  run_processes(1, multiply_twice, &(order_of){f.path, 1, 0});
  folder_free(&f);
}

TEST(cuda_algos, a_file_of_another_library_or_card_is_not_used) {
  static const char *const texts[] = {"", "no such thing\n",
                                      "lamella algorithms 1, cuBLASLt 1, X, sm_9\n",
                                      "lamella algorithms 1, cuBLASLt "};
  for (size_t i = 0; i < sizeof texts / sizeof *texts; i++) {
    folder f = folder_new();
    run_processes(1, multiply_twice, &(order_of){f.path, 1, 1});
    CHECK_EQ(look(&f), 1);
    write_file(f.file, texts[i]);
    run_processes(1, multiply_twice, &(order_of){f.path, 1, 1});
    run_processes(1, multiply_twice, &(order_of){f.path, 0, 0});
    folder_free(&f);
  }
}

typedef struct product {
  far a, b, d;
  lam_gemm g;
} product;

static product product_new(int64_t m, void *stream) {
  rng r = {seed()};
  product p = {.a = far_of(box_random(&r, m, 48, LAM_BF16, BY_ROWS), 0, stream),
               .b = far_of(box_random(&r, 64, 48, LAM_BF16, BY_ROWS), 0, stream),
               .d = far_of(box_new(m, 64, LAM_BF16, BY_ROWS), 0, stream)};
  p.g = (lam_gemm){.a = p.a.m, .b = p.b.m, .d = p.d.m};
  return p;
}

static void product_free(product *p) {
  far *const fars[] = {&p->a, &p->b, &p->d};
  for (int i = 0; i < 3; i++) far_free(fars[i]), box_free(&fars[i]->near);
}

static lam_status run(const product *p, void *stream) {
  return lam_device_gemm(CUDA, workers(ALONE), &p->g, stream);
}

static void multiply_sparing(int rank, int size, void *arg) {
  static const int32_t spares[] = {0, 20, 20, 0, 16, 1000, -3};
  int n_sms = 0;
  (void)rank, (void)size;
  setenv("LAMELLA_ALGORITHMS", arg, 1);
  CHECK(cudaDeviceGetAttribute(&n_sms, cudaDevAttrMultiProcessorCount, 0) == cudaSuccess);
  void *stream = stream_new();
  product p = product_new(40, stream);
  for (int i = 0; i < 7; i++) {
    const bool is_new = i < 2 || i == 4, none = spares[i] <= 0 || spares[i] >= n_sms;
    const lam_gemm_more more = {.spares = spares[i]};
    const int64_t before = standin_count().heuristics;
    p.g.more = &more;
    NOTE("%d to spare", spares[i]);
    CHECK_OK(run(&p, stream));
    CHECK_EQ(standin_count().heuristics - before, is_new);
    CHECK_EQ(standin_count().sm_target, none ? 0 : n_sms - spares[i]);
  }
  CHECK_OK(CUDA->order->finish(stream));
  product_free(&p);
  stream_drop(stream);
}

/* Each number of multiprocessors has algorithms of its own, timed once. */
TEST(cuda_algos, a_product_leaves_multiprocessors_to_what_runs_beside_it) {
  folder f = folder_new();
  char text[BYTES];
  run_processes(1, multiply_sparing, f.path);
  CHECK_EQ(look(&f), 1);
  read_file(f.file, text);
  CHECK_EQ(lines_in(text), 4);
  folder_free(&f);
}

TEST(cuda_algos, without_a_place_for_the_file_products_run) {
  run_processes(1, multiply_twice, &(order_of){"/proc/no/such/folder", 1, 1});
}

static void multiply_untimed(int rank, int size, void *arg) {
  (void)rank, (void)size, (void)arg;
  setenv("LAMELLA_ALGORITHMS", "off", 1);
  void *stream = stream_new();
  const int64_t before = standin_count().matmuls;
  CHECK_EQ(multiply(40, stream), 1);
  CHECK_EQ(multiply(40, stream), 0);
  CHECK_EQ(standin_count().matmuls, before + 2);
  stream_drop(stream);
}

TEST(cuda_algos, off_takes_the_first_that_is_named_and_times_nothing) {
  run_processes(1, multiply_untimed, NULL);
}

/* -- capture -- */

/* New operands; then what d should be and is. */
static void replay_and_check(product *p, cudaGraphExec_t exec, void *stream) {
  rng r = {seed() + 1};
  double want[64 * 64];
  for (int64_t i = 0; i < p->a.near.m.rows; i++)
    for (int64_t k = 0; k < 48; k++) set(p->a.near.m, i, k, rng_float(&r));
  far_write(&p->a, stream);
  CHECK(cudaGraphLaunch(exec, stream) == cudaSuccess);
  far_fetch(&p->d, stream);
  const lam_gemm near = {.a = p->a.near.m, .b = p->b.near.m, .d = p->d.near.m};
  product_of(&near, NULL, want, NULL);
  check_matrix(p->d.near.m, want, 0x1p-8, 1e-5);
}

static cudaGraphExec_t capture(const product *p, void *stream) {
  cudaGraph_t graph = NULL;
  cudaGraphExec_t exec = NULL;
  CHECK(cudaStreamBeginCapture(stream, cudaStreamCaptureModeGlobal) == cudaSuccess);
  CHECK_OK(run(p, stream));
  CHECK(cudaStreamEndCapture(stream, &graph) == cudaSuccess);
  CHECK(cudaGraphInstantiate(&exec, graph, 0) == cudaSuccess);
  CHECK(cudaGraphDestroy(graph) == cudaSuccess);
  return exec;
}

static void capture_unknown(int rank, int size, void *arg) {
  (void)rank, (void)size;
  setenv("LAMELLA_ALGORITHMS", arg, 1);
  void *stream = stream_new();
  product warm = product_new(16, stream), p = product_new(40, stream);
  CHECK_OK(run(&warm, stream)); /* the card is known; this kind of product is not */
  CHECK_OK(CUDA->order->finish(stream));
  const standin_counts before = standin_count();
  cudaGraphExec_t exec = capture(&p, stream);
  CHECK_EQ(standin_count().syncs, before.syncs);
  CHECK_EQ(standin_count().allocs, before.allocs);
  replay_and_check(&p, exec, stream);
  const int64_t asked = standin_count().heuristics;
  CHECK_OK(run(&p, stream)); /* now it is timed */
  CHECK(standin_count().heuristics > asked);
  replay_and_check(&p, exec, stream);
  CHECK(cudaGraphExecDestroy(exec) == cudaSuccess);
  product_free(&warm), product_free(&p);
  stream_drop(stream);
}

TEST(cuda_algos, nothing_is_timed_while_a_stream_is_captured_and_the_graph_replays) {
  folder f = folder_new();
  run_processes(1, capture_unknown, f.path);
  folder_free(&f);
}

static void capture_first(int rank, int size, void *arg) {
  cudaGraph_t graph = NULL;
  (void)rank, (void)size, (void)arg;
  void *stream = stream_new();
  product p = product_new(40, stream);
  CHECK(cudaStreamBeginCapture(stream, cudaStreamCaptureModeGlobal) == cudaSuccess);
  CHECK_STATUS(run(&p, stream), LAM_FAILED_PRECONDITION);
  CHECK_CONTAINS(lam_last_error(), "call once before the capture");
  CHECK(cudaStreamEndCapture(stream, &graph) == cudaSuccess);
  CHECK(cudaGraphDestroy(graph) == cudaSuccess);
  CHECK_OK(run(&p, stream));
  CHECK_OK(CUDA->order->finish(stream));
  product_free(&p);
  stream_drop(stream);
}

TEST(cuda_algos, the_first_product_of_all_is_not_captured_and_the_capture_lives) {
  run_processes(1, capture_first, NULL);
}
