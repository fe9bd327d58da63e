/* device_test.c: the way into a device, its workers, and what happens to both over a fork. */
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#include "kernels/cpu/cpu.h"
#include "kernels/cpu/parallel.h"
#include "tests/unit/kernels/support.h"

TEST(device, is_found_by_its_dlpack_type) {
  CHECK(lam_device_find(1) == &lam_device_cpu);
  CHECK(lam_device_find(99) == NULL);
  const lam_device *d;
  CHECK_OK(lam_device_open(1, &d));
  CHECK(d == &lam_device_cpu);
  CHECK_OK(lam_device_open(99, &d));
  CHECK(d == NULL);
  CHECK_STR(lam_device_cpu.name, "cpu");
  CHECK_CONTAINS(lam_device_cpu.describe(), "own loops: ");
  CHECK_CONTAINS(lam_device_cpu.describe(), lam_gemm_library_here() ? "oneDNN " : "plain C");
}

static void open_cuda(int rank, int size, void *arg) {
  const lam_device *d;
  (void)rank, (void)size, (void)arg;
  CHECK_STATUS(lam_device_open(2, &d), LAM_UNAVAILABLE);
  CHECK(d == NULL);
  CHECK_CONTAINS(lam_last_error(), "liblamella_cuda.so.0 could not be opened: ");
}

/* It is not beside this test. */
TEST(device, one_whose_object_is_missing_says_so_to_every_thread) {
  run_threads(4, open_cuda, NULL);
}

TEST(device, missing_slots_are_named) {
  const lam_device empty = {.name = "stone"};
  const lam_matrix none = {0};
  CHECK_STATUS(lam_device_gemm(&empty, workers(ALONE), &(lam_gemm){.act = LAM_ACT_NONE}, NULL),
               LAM_UNIMPLEMENTED);
  CHECK_STR(lam_last_error(), "stone has no gemm");
  CHECK_STATUS(lam_device_act(&empty, workers(ALONE), LAM_ACT_GELU, false, none, none, NULL),
               LAM_UNIMPLEMENTED);
  CHECK_STR(lam_last_error(), "stone has no act");
}

TEST(device, operands_that_do_not_fit_are_an_error_of_ours_that_a_host_survives) {
  rng r = {seed()};
  box a = box_random(&r, 3, 5, LAM_F32, BY_ROWS), b = box_random(&r, 4, 6, LAM_F32, BY_ROWS);
  const lam_gemm g = {.a = a.m, .b = b.m, .d = a.m};
  CHECK_STATUS(lam_device_gemm(&lam_device_cpu, workers(ALONE), &g, NULL), LAM_INTERNAL);
  CHECK_STR(lam_last_error(), "cpu gemm: its operands do not fit together");
  box_free(&a), box_free(&b);
}

TEST(device, only_what_a_table_fuses_may_be_asked_of_a_product) {
  rng r = {seed()};
  box a = box_random(&r, 3, 5, LAM_F32, BY_ROWS), b = box_random(&r, 4, 5, LAM_F32, BY_ROWS),
      d = box_new(3, 4, LAM_F32, BY_ROWS), z = box_random(&r, 3, 4, LAM_F32, BY_ROWS),
      sum = box_new(1, 4, LAM_F32, BY_ROWS);
  const lam_gemm_more derivative = {.z = z.m, .z_act = LAM_ACT_GELU}, sums = {.column_sum = sum.m},
                      rounded = {.tf32 = true};
  lam_gemm g = {.a = a.m, .b = b.m, .d = d.m, .more = &derivative};
  CHECK(!lam_device_fuses(&lam_device_cpu, &g));
  CHECK_STATUS(lam_device_gemm(&lam_device_cpu, workers(ALONE), &g, NULL), LAM_INTERNAL);
  g.more = &sums;
  CHECK_STATUS(lam_device_gemm(&lam_device_cpu, workers(ALONE), &g, NULL), LAM_INTERNAL);
  g.more = &rounded; /* a permission, which the CPU has no use for */
  CHECK_OK(lam_device_gemm(&lam_device_cpu, workers(ALONE), &g, NULL));
  box_free(&a), box_free(&b), box_free(&d), box_free(&z), box_free(&sum);
}

TEST(device, what_queues_nothing_copies_at_once_and_has_nothing_to_finish) {
  const char from[4] = "abc";
  char there[4] = "", back[4] = "";
  int32_t was = 7;
  bool captured = true;
  void *p = &was;
  CHECK_OK(lam_device_enter(&lam_device_cpu, 0, &was));
  CHECK_OK(lam_device_write(&lam_device_cpu, from, there, sizeof from, NULL));
  CHECK_OK(lam_device_read(&lam_device_cpu, there, back, sizeof back, NULL));
  CHECK_STR(back, "abc");
  CHECK_OK(lam_device_capturing(&lam_device_cpu, NULL, &captured));
  CHECK(!captured);
  CHECK_OK(lam_device_finish(&lam_device_cpu, NULL));
  lam_device_leave(&lam_device_cpu, was);
  CHECK_STATUS(lam_device_borrow(&lam_device_cpu, 64, NULL, &p), LAM_UNIMPLEMENTED);
  CHECK(p == NULL);
}

TEST(device, computes_what_its_mask_says) {
  for (int t = 0; t < LAM_N_DTYPES; t++)
    CHECK_EQ(lam_device_computes(&lam_device_cpu, (lam_dtype)t), t == LAM_F32 || t == LAM_BF16);
}

static int n_calls;
static char last_slot[32];
static lam_status fail_sums(const lam_device *d, const char *slot) {
  n_calls++;
  strncpy(last_slot, slot, sizeof last_slot - 1);
  return strcmp(slot, "sum") == 0 ? lam_fail(LAM_INTERNAL, "%s: injected", d->name) : LAM_OK;
}

TEST(device, every_call_passes_the_hook_which_may_fail_it) {
  float data[4] = {1, 2, 3, 4}, out[4] = {0};
  const lam_matrix x = {data, 2, 2, 2, 1, LAM_F32, false}, y = {out, 2, 2, 2, 1, LAM_F32, false},
                   none = {0};
  lam_device_on_call = fail_sums;
  n_calls = 0;
  CHECK_OK(lam_device_copy(&lam_device_cpu, workers(ALONE), x, y, NULL));
  CHECK_STR(last_slot, "copy");
  out[0] = 9;
  CHECK_STATUS(lam_device_sum(&lam_device_cpu, workers(ALONE), &x, 1, none, none, y, NULL),
               LAM_INTERNAL);
  CHECK_STR(lam_last_error(), "cpu: injected");
  CHECK(out[0] == 9);
  CHECK_EQ(n_calls, 2);
  lam_device_on_call = NULL;
}

TEST(device, dtypes_have_names_and_sizes) {
  static const struct {
    lam_dtype dtype;
    const char *name;
    int bytes;
  } known[] = {{LAM_F32, "f32", 4},       {LAM_BF16, "bf16", 2},     {LAM_F16, "f16", 2},
               {LAM_F8E4M3, "f8e4m3", 1}, {LAM_F8E5M2, "f8e5m2", 1}, {LAM_F64, "f64", 8},
               {LAM_I32, "i32", 4},       {LAM_I64, "i64", 8},       {LAM_U8, "u8", 1}};
  for (size_t i = 0; i < sizeof known / sizeof *known; i++) {
    CHECK_STR(lam_dtype_name(known[i].dtype), known[i].name);
    CHECK_EQ(lam_dtype_bytes(known[i].dtype), known[i].bytes);
  }
  CHECK_EQ(sizeof known / sizeof *known, LAM_N_DTYPES);
}

TEST(device, slices_keep_strides) {
  float data[12];
  const lam_matrix m = {data, 3, 4, 4, 1, LAM_F32, false};
  const lam_matrix rows = lam_matrix_rows(m, 1, 2),
                   cols = lam_matrix_cols(lam_matrix_transposed(m), 1, 2);
  CHECK(rows.data == data + 4 && rows.rows == 2 && rows.cols == 4 && rows.row_stride == 4);
  CHECK(cols.data == data + 4 && cols.rows == 4 && cols.cols == 2 && cols.row_stride == 1 &&
        cols.col_stride == 4);
}

/* -- workers -- */

static void mark_index(void *arg, int64_t i) { atomic_fetch_add((_Atomic int *)arg + i, 1); }

TEST(parallel, runs_every_index_once) {
  static _Atomic int seen[1000];
  FOR_EACH(threads, 1, 2, 3, 8) FOR_EACH(n, 0, 1, 2, 999) {
    memset((void *)seen, 0, sizeof seen);
    lam_cpu_parallel_for(threads, n, mark_index, (void *)seen);
    for (int i = 0; i < 1000; i++)
      if (seen[i] != (i < n))
        check_fail(CHECK_AT, "index %d ran %d times, not %d", i, (int)seen[i], i < n);
  }
}

TEST(parallel, leaves_the_hosts_team_as_it_was) {
  const int before = lam_cpu_host_threads();
  CHECK(before >= 1);
  rng r = {seed()};
  box a = box_random(&r, 64, 64, LAM_F32, BY_ROWS), d = box_new(64, 64, LAM_F32, BY_ROWS);
  CHECK_OK(lam_device_gemm(&lam_device_cpu, workers(ALONE),
                           &(lam_gemm){.a = a.m, .b = a.m, .d = d.m}, NULL));
  CHECK_EQ(lam_cpu_host_threads(), before);
  box_free(&a), box_free(&d);
}

static void multiply_in_child(int rank, int size, void *arg) {
  lam_gemm *g = arg;
  (void)rank, (void)size;
  for (int i = 0; i < 3; i++)
    CHECK_OK(lam_device_gemm(&lam_device_cpu, workers(TWO_OPENMP), g, NULL));
}

/* OpenMP's threads stay behind when a process forks; a child that waited for them would wait for
 * ever. */
TEST(parallel, a_forked_child_makes_a_team_of_its_own) {
  rng r = {seed()};
  box a = box_random(&r, 256, 256, LAM_F32, BY_ROWS), d = box_new(256, 256, LAM_F32, BY_ROWS);
  lam_gemm g = {.a = a.m, .b = a.m, .d = d.m};
  multiply_in_child(0, 1, &g);
  run_processes(2, multiply_in_child, &g);
  multiply_in_child(0, 1, &g);
  box_free(&a), box_free(&d);
}

TEST(scratch, more_than_there_is_fails_with_a_message) {
  CHECK(lam_cpu_borrow(workers(ALONE), UINT64_C(1) << 60) == NULL);
  CHECK_CONTAINS(lam_last_error(), "scratch memory");
}
