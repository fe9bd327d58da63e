/* cuda_mark_test.c: NaN for indices that are outside, by the CUDA kernels on the stand-in: in their
 * rows, in their values, and nowhere else. */
#include <math.h>

#include "tests/unit/kernels/cuda_support.h"

enum { TOTAL = 50 };

enum { MOST = 800 };
typedef struct indices {
  int32_t narrow[MOST];
  int64_t wide[MOST];
  lam_matrix m; /* its data here, at the wide or the narrow ones */
} indices;

/* -7 stands for what is ignored, where anything is. */
static void random_indices(rng *r, indices *ids, lam_dtype t, bool ignores, bool *outside) {
  static const int64_t wrong[] = {-1, TOTAL, TOTAL + 1, INT32_MAX, INT32_MIN};
  for (int64_t i = 0; i < ids->m.rows * ids->m.cols; i++) {
    const int64_t at = i / ids->m.cols * ids->m.row_stride + i % ids->m.cols;
    const int64_t kind = rng_int(r, 0, 3), any = rng_int(r, 0, TOTAL - 1);
    outside[i] = kind == 0 || (kind == 1 && !ignores);
    ids->wide[at] = kind == 0 ? wrong[rng_int(r, 0, 4)] : kind == 1 ? -7 : any;
    ids->narrow[at] = (int32_t)ids->wide[at];
  }
  ids->m.dtype = t;
  ids->m.data = t == LAM_I32 ? (void *)ids->narrow : (void *)ids->wide;
}

static void check(rng *r, lam_dtype index, lam_dtype t, int64_t rows, int64_t cols, int64_t width) {
  static bool outside[MOST];
  static indices ids;
  ids.m = (lam_matrix){.rows = rows, .cols = cols, .row_stride = cols + rng_int(r, 0, 2)};
  ids.m.col_stride = 1;
  const bool ignores = rng_int(r, 0, 1);
  const int64_t ignored = -7;
  random_indices(r, &ids, index, ignores, outside);
  box y = width ? box_random(r, rows * cols, width, t, any_form(r))
                : box_random(r, rows, cols, LAM_F32, any_form(r)); /* a value per token */
  box before = box_copy(&y);
  card_begin();
  const lam_matrix to = to_card(&y);
  lam_matrix on_card = ids.m;
  on_card.data = bytes_to_card(ids.m.data, sizeof ids.wide / (index == LAM_I32 ? 2 : 1));
  CHECK_OK(
      lam_device_mark_outside(&card, NULL, on_card, TOTAL, ignores ? &ignored : NULL, to, stream));
  from_card(&y, to);
  card_end();
  NOTE("%s, ids %lld x %lld, width %lld, ignores %d", lam_dtype_name(y.m.dtype), (long long)rows,
       (long long)cols, (long long)width, ignores);
  for (int64_t i = 0; i < y.m.rows * y.m.cols; i++) {
    const int64_t row = i / y.m.cols, col = i % y.m.cols, token = width ? row : i;
    const double now = get(y.m, row, col);
    if (!CHECK(outside[token] ? isnan(now) : now == get(before.m, row, col))) break;
  }
  check_around(&y, "y");
  box_free(&y), box_free(&before);
}

TEST(cuda_mark, rows_and_values_outside_are_nan_and_no_others) {
  rng r = {seed()};
  FOR_EACH(index, LAM_I32, LAM_I64) FOR_EACH(t, LAM_F32, LAM_BF16, LAM_F16) {
    check(&r, (lam_dtype)index, (lam_dtype)t, 1, 1, 1);
    check(&r, (lam_dtype)index, (lam_dtype)t, 3, 7, 33);
    check(&r, (lam_dtype)index, (lam_dtype)t, 1, 19, 100);
    check(&r, (lam_dtype)index, (lam_dtype)t, 5, 61, 0);
    check(&r, (lam_dtype)index, (lam_dtype)t, 1, 83, 0);
  }
}

TEST(cuda_mark, nothing_is_to_be_marked_of_no_tokens) {
  rng r = {seed()};
  check(&r, LAM_I32, LAM_F32, 0, 3, 8);
}
