/* cuda_quantize_test.c: fp8 with a scale that the CUDA kernels find, on the stand-in: the codes that
 * math.h gives for the scale that the largest magnitude gives. */
#include <math.h>

#include "kernels/math.h"
#include "tests/unit/kernels/cuda_support.h"

static const int64_t shapes[][2] = {{1, 1}, {3, 7}, {2, 64}, {9, 33}, {1030, 9}, {3, 4099}};
enum { N_SHAPES = sizeof shapes / sizeof *shapes };

static float largest_of(lam_matrix x) {
  double most = 0;
  for (int64_t i = 0; i < x.rows * x.cols; i++)
    most = fmax(most, fabs(get(x, i / x.cols, i % x.cols)));
  return (float)most;
}

static float coded(float v, lam_dtype t) {
  return t == LAM_F8E4M3 ? lam_f32_of_f8e4m3(lam_f8e4m3_of_f32(v))
                         : lam_f32_of_f8e5m2(lam_f8e5m2_of_f32(v));
}

static void quantize(box *x, box *y, box *scale) {
  card_begin();
  const lam_matrix on_card = to_card(y), to = to_card(scale);
  CHECK_OK(lam_device_quantize(&card, NULL, to_card(x), on_card, to, stream));
  from_card(y, on_card), from_card(scale, to);
  card_end();
}

static void check(rng *r, lam_dtype from, lam_dtype to, int64_t rows, int64_t cols) {
  box x = box_random(r, rows, cols, from, any_form(r)), y = box_new(rows, cols, to, any_form(r)),
      scale = box_new(1, 1, LAM_F32, BY_ROWS);
  const float by = largest_of(x.m) / (to == LAM_F8E4M3 ? 448.0f : 57344.0f);
  quantize(&x, &y, &scale);
  NOTE("%s to %s, %lld x %lld", lam_dtype_name(from), lam_dtype_name(to), (long long)rows,
       (long long)cols);
  CHECK_EQ(get(scale.m, 0, 0) == by, 1);
  for (int64_t i = 0; i < rows * cols; i++) {
    const float want = coded((float)get(x.m, i / cols, i % cols) / by, to);
    if (!CHECK(get(y.m, i / cols, i % cols) == want)) break;
  }
  check_around(&y, "y"), check_around(&scale, "scale");
  box_free(&x), box_free(&y), box_free(&scale);
}

TEST(cuda_quantize, uses_all_of_fp8s_range_with_the_scale_of_the_largest) {
  rng r = {seed()};
  FOR_EACH(to, LAM_F8E4M3, LAM_F8E5M2)
  FOR_EACH(from, LAM_F32, LAM_BF16, LAM_F16) for (int s = 0; s < N_SHAPES; s++)
      check(&r, (lam_dtype)from, (lam_dtype)to, shapes[s][0], shapes[s][1]);
}

TEST(cuda_quantize, gives_zeros_and_nothing_a_scale_of_1) {
  FOR_EACH(cols, 0, 5) {
    box x = box_new(3, cols, LAM_BF16, BY_ROWS), y = box_new(3, cols, LAM_F8E4M3, BY_ROWS),
        scale = box_new(1, 1, LAM_F32, BY_ROWS);
    quantize(&x, &y, &scale);
    CHECK_EQ(get(scale.m, 0, 0) == 1, 1);
    for (int i = 0; i < 3 * cols; i++) CHECK(get(y.m, i / cols, i % cols) == 0);
    box_free(&x), box_free(&y), box_free(&scale);
  }
}
