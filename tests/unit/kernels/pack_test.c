/* pack_test.c: packed weights: products with them, and everything that is refused, with its reason.
 * */
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#include "kernels/cpu/cpu.h"
#include "tests/unit/kernels/support.h"

typedef struct pack {
  lam_matrix m; /* as a product's b */
  int64_t cols;
  uint64_t bytes;
} pack;

static pack make_pack(lam_matrix weight, int side) {
  pack p = {.m = side ? lam_matrix_transposed(weight) : weight};
  CHECK_OK(lam_device_packed_cols(&lam_device_cpu, weight.dtype, weight.rows, weight.cols, side,
                                  &p.cols));
  p.bytes = (uint64_t)(p.m.rows * p.cols);
  p.m.packed = true;
  p.m.data = aligned_alloc(64, (p.bytes + 127) / 64 * 64);
  if (!p.m.data) abort();
  memset((char *)p.m.data + p.bytes, 0x77, 1);
  CHECK_OK(
      lam_device_pack(&lam_device_cpu, workers(TWO_OPENMP), weight, side, p.m.data, p.cols, NULL));
  CHECK_EQ(((char *)p.m.data)[p.bytes], 0x77);
  return p;
}

static void check_product(rng *r, lam_matrix weight, int side, int64_t m, lam_dtype d_dtype,
                          bool aux, form d_form, crew c) {
  pack p = make_pack(weight, side);
  box a = box_random(r, m, p.m.cols, weight.dtype, ROWS_WITH_GAPS),
      d = box_new(m, p.m.rows, d_dtype, d_form);
  box z = box_new(aux ? m : 0, aux ? p.m.rows : 0, d_dtype, ROWS_WITH_GAPS);
  box bias = box_random(r, 1, p.m.rows, LAM_F32, BY_ROWS);
  lam_gemm g = {.a = a.m,
                .b = side ? lam_matrix_transposed(weight) : weight,
                .bias = bias.m,
                .d = d.m,
                .act = aux ? LAM_ACT_SILU : LAM_ACT_NONE};
  double *want = calloc((size_t)(m * p.m.rows) + 1, sizeof *want),
         *pre = calloc((size_t)(m * p.m.rows) + 1, sizeof *pre);
  if (!want || !pre) abort();
  product_of(&g, NULL, want, pre);
  g.b = p.m;
  if (aux) g.aux = z.m;
  CHECK_OK(lam_device_gemm(&lam_device_cpu, workers(c), &g, NULL));
  const double u = rounding_of(d_dtype);
  check_matrix(d.m, want, (aux ? 4 : 1) * 1.01 * u, product_tolerance(&g) + (aux ? u : 0));
  check_around(&d, "d");
  if (aux) check_matrix(z.m, pre, 1.01 * u, product_tolerance(&g));
  free(want), free(pre), free(p.m.data);
  box_free(&a), box_free(&d), box_free(&z), box_free(&bias);
}

TEST(pack, products_of_both_sides_by_every_crew) {
  static const int64_t sizes[][2] = {{1, 1}, {17, 33}, {64, 64}, {65, 129}, {200, 48}, {500, 130}};
  rng r = {seed()};
  for (size_t s = 0; s < sizeof sizes / sizeof *sizes; s++)
    FOR_EACH(side, 0, 1)
    FOR_EACH(dtype, LAM_F32, LAM_BF16) FOR_EACH(m, 1, 9, 40) for (int c = 0; c < N_CREWS; c++) {
      box w = box_random(&r, sizes[s][0], sizes[s][1], (lam_dtype)dtype, (form)rng_int(&r, 0, 3));
      NOTE("[%lld, %lld] %s side %d m=%d crew %d", (long long)sizes[s][0], (long long)sizes[s][1],
           lam_dtype_name((lam_dtype)dtype), side, m, c);
      check_product(&r, w.m, side, m, (lam_dtype)dtype, m == 40,
                    c == ALONE ? ROWS_WITH_GAPS : BY_ROWS, (crew)c);
      check_product(&r, w.m, side, m, LAM_F32, false, BY_COLS, (crew)c);
      box_free(&w);
    }
}

/* A weight may be mapped read-only from a file; its padding must not be zeroed again. */
TEST(pack, packed_weights_are_only_read) {
  rng r = {seed()};
  FOR_EACH(dtype, LAM_F32, LAM_BF16) {
    box w = box_random(&r, 70, 90, (lam_dtype)dtype, BY_ROWS),
        a = box_random(&r, 40, 90, (lam_dtype)dtype, BY_ROWS);
    box d = box_new(40, 70, (lam_dtype)dtype, BY_ROWS), want = box_copy(&d);
    pack p = make_pack(w.m, 0);
    lam_gemm g = {.a = a.m, .b = p.m, .d = want.m};
    CHECK_OK(lam_device_gemm(&lam_device_cpu, workers(ALONE), &g, NULL));
    void *map = mmap(NULL, p.bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    REQUIRE(map != MAP_FAILED);
    memcpy(map, p.m.data, p.bytes);
    mprotect(map, p.bytes, PROT_READ);
    g.b.data = map;
    g.d = d.m;
    CHECK_OK(lam_device_gemm(&lam_device_cpu, workers(ALONE), &g, NULL));
    check_same(d.m, want.m);
    munmap(map, p.bytes);
    free(p.m.data), box_free(&w), box_free(&a), box_free(&d), box_free(&want);
  }
}

TEST(pack, header_says_what_is_inside) {
  rng r = {seed()};
  FOR_EACH(side, 0, 1) FOR_EACH(dtype, LAM_F32, LAM_BF16) {
    box w = box_random(&r, 70, 90, (lam_dtype)dtype, BY_ROWS);
    pack p = make_pack(w.m, side);
    int got_side = -1;
    lam_dtype got_dtype = LAM_U8;
    int64_t n = 0, k = 0;
    CHECK_OK(
        lam_device_packed_open(&lam_device_cpu, p.m.data, p.bytes, &got_side, &got_dtype, &n, &k));
    CHECK_EQ(got_side, side);
    CHECK_EQ(got_dtype, dtype);
    CHECK_EQ(n, 70);
    CHECK_EQ(k, 90);
    free(p.m.data), box_free(&w);
  }
}

TEST(pack, equal_weights_give_equal_bytes) {
  rng r = {seed()};
  box w = box_random(&r, 33, 65, LAM_BF16, BY_ROWS),
      gaps = box_new(33, 65, LAM_BF16, COLS_WITH_GAPS);
  CHECK_OK(lam_device_copy(&lam_device_cpu, workers(ALONE), w.m, gaps.m, NULL));
  pack a = make_pack(w.m, 0), b = make_pack(gaps.m, 0);
  CHECK_SAME_BITS(a.m.data, b.m.data, a.bytes);
  free(a.m.data), free(b.m.data), box_free(&w), box_free(&gaps);
}

static lam_status open_pack(const void *data, uint64_t bytes) {
  int side;
  lam_dtype dtype;
  int64_t n, k;
  return lam_device_packed_open(&lam_device_cpu, data, bytes, &side, &dtype, &n, &k);
}

/* A field of the header at `offset` overwritten by `value`: refused, and why. */
static void check_refused(const pack *p, size_t offset, const void *value, size_t bytes,
                          const char *reason) {
  unsigned char before[16];
  memcpy(before, (char *)p->m.data + offset, bytes);
  memcpy((char *)p->m.data + offset, value, bytes);
  NOTE("offset %zu", offset);
  CHECK_STATUS(open_pack(p->m.data, p->bytes), LAM_INVALID_ARGUMENT);
  CHECK_CONTAINS(lam_last_error(), reason);
  memcpy((char *)p->m.data + offset, before, bytes);
}

TEST(pack, damaged_or_foreign_data_is_refused_with_its_reason) {
  rng r = {seed()};
  box w = box_random(&r, 70, 90, LAM_BF16, BY_ROWS);
  pack p = make_pack(w.m, 0);
  const uint32_t two = 2, many = 1000000;
  const int64_t negative = -1, large = INT64_C(1) << 40, larger_n = 1000;
  CHECK_STATUS(open_pack(p.m.data, 100), LAM_INVALID_ARGUMENT);
  CHECK_CONTAINS(lam_last_error(), "100 bytes, the header alone has 128");
  CHECK_STATUS(open_pack((char *)p.m.data + 8, p.bytes - 8), LAM_INVALID_ARGUMENT);
  CHECK_CONTAINS(lam_last_error(), "multiple of 64");
  CHECK_STATUS(open_pack(p.m.data, 1000), LAM_INVALID_ARGUMENT);
  CHECK_CONTAINS(lam_last_error(), "1000 bytes, a [70, 90] weight needs");
  check_refused(&p, 0, "NOTAPACK", 8, "does not begin");
  check_refused(&p, 8, &many, 4, "format version 1000000, expected 1");
  check_refused(&p, 12, &two, 4, "damaged");
  check_refused(&p, 16, &many, 4, "damaged");
  check_refused(&p, 20, &many, 4, "damaged");
  check_refused(&p, 24, &negative, 8, "damaged");
  check_refused(&p, 32, &large, 8, "damaged");
  check_refused(&p, 24, &larger_n, 8, "a [1000, 90] weight needs");
  if (lam_gemm_library_here()) check_refused(&p, 40, &many, 4, "pack it again on this machine");
  CHECK_OK(open_pack(p.m.data, p.bytes));
  free(p.m.data), box_free(&w);
}

TEST(pack, refuses_what_cannot_be_packed) {
  rng r = {seed()};
  int64_t cols = 7;
  CHECK_STATUS(lam_device_packed_cols(&lam_device_cpu, LAM_F16, 4, 4, 0, &cols), LAM_UNIMPLEMENTED);
  CHECK_CONTAINS(lam_last_error(), "w is f16");
  CHECK_EQ(cols, 0);
  CHECK_STATUS(lam_device_packed_cols(&lam_device_cpu, LAM_F32, 0, 4, 0, &cols),
               LAM_INVALID_ARGUMENT);
  CHECK_CONTAINS(lam_last_error(), "w is [0, 4]");
  CHECK_STATUS(lam_device_packed_cols(&lam_device_cpu, LAM_F32, 4, 4, 2, &cols),
               LAM_INVALID_ARGUMENT);
  CHECK_CONTAINS(lam_last_error(), "side is 2");
  box w = box_random(&r, 8, 8, LAM_F32, BY_ROWS), to = box_new(8, 4096, LAM_F32, BY_ROWS);
  CHECK_STATUS(lam_device_pack(&lam_device_cpu, workers(ALONE), w.m, 0, to.m.data, 3, NULL),
               LAM_INVALID_ARGUMENT);
  CHECK_CONTAINS(lam_last_error(), "packed has 3 columns, expected");
  box_free(&w), box_free(&to);
}
