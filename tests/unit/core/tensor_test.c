/* tensor_test.c: every malformed tensor has its own refusal, every usable view is accepted as what
 * it is. */
#include "plugin/core/tensor.h"

#include "plugin/core/dlpack1.h"
#include "tests/unit/core/host.h"

static const lam_who who = {"linear", "x"};
static float memory[64];

static lam_reach reach; /* of the last view */

static lam_status view(const host_tensor *h, lam_matrix *m) {
  return lam_tensor_matrix(who, &h->t, true, false, m, &reach);
}
static lam_status refused(const host_tensor *h) {
  lam_matrix m;
  return view(h, &m);
}

/* -- what must be refused -- */

TEST(tensor, a_wrong_number_of_dimensions_is_refused) {
  host_tensor h;
  HOST(&h, memory, F32, 2, 3);
  h.t.ndim = -1;
  CHECK_REFUSED(refused(&h), "linear: x: ndim is -1, expected 0 to 8");
  h.t.ndim = 9;
  CHECK_REFUSED(refused(&h), "linear: x: ndim is 9, expected 0 to 8");
}

TEST(tensor, a_missing_shape_is_refused) {
  host_tensor h;
  HOST(&h, memory, F32, 2, 3);
  h.t.shape = NULL;
  CHECK_REFUSED(refused(&h), "linear: x: shape is NULL, ndim is 2");
}

TEST(tensor, a_negative_dimension_is_refused) {
  host_tensor h;
  HOST(&h, memory, F32, 2, 3);
  h.shape[1] = -3;
  CHECK_REFUSED(refused(&h), "linear: x: dimension 1 is -3, expected at least 0");
}

TEST(tensor, sizes_that_overflow_are_refused) {
  host_tensor h;
  HOST(&h, memory, F32, 2, 3, 4);
  h.shape[0] = h.shape[1] = INT64_MAX / 2;
  CHECK_REFUSED(refused(&h), "linear: x: the product of its dimensions overflows at dimension 1");
  h.shape[0] = 0; /* empty, but the others must fit all the same */
  h.shape[2] = 1;
  CHECK_REFUSED(refused(&h), "linear: x: its size in bits overflows");
  HOST(&h, memory, F32, 2, 3);
  h.shape[0] = INT64_MAX / 3;
  CHECK_REFUSED(refused(&h), "linear: x: its size in bits overflows");
  HOST(&h, memory, F32, 2, 3);
  h.strides[0] = INT64_MAX;
  CHECK_REFUSED(refused(&h), "linear: x: the sum of dimensions x strides overflows at dimension 0");
  h.strides[0] = INT64_MAX / 3;
  CHECK_REFUSED(refused(&h), "linear: x: the bytes its strides reach overflow");
}

TEST(tensor, a_dtype_that_is_not_known_is_refused) {
  host_tensor h;
  HOST(&h, memory, F32, 2, 3);
  h.t.dtype.lanes = 4;
  CHECK_REFUSED(refused(&h), "linear: x: dtype has 4 lanes, expected 1");
  h.t.dtype = (DLDataType){2, 8, 1};
  CHECK_REFUSED(refused(&h), "linear: x: dtype code 2 with 8 bits is not supported");
  h.t.dtype = (DLDataType){6, 8, 1}; /* bool */
  CHECK_REFUSED(refused(&h), "linear: x: dtype code 6 is not supported (8 bits)");
  h.t.dtype = (DLDataType){17, 4, 1}; /* fp4 */
  CHECK_REFUSED(refused(&h), "linear: x: dtype code 17 is not supported (4 bits)");
}

TEST(tensor, a_wrong_byte_offset_is_refused_for_size_before_it_is_for_remainder) {
  host_tensor h;
  HOST(&h, memory, F32, 2, 3);
  h.t.byte_offset = 1ull << 63 | 1;
  CHECK_REFUSED(refused(&h),
                "linear: x: byte_offset is 9223372036854775809, more than memory can hold");
  h.t.byte_offset = 6;
  CHECK_REFUSED(refused(&h),
                "linear: x: byte_offset is 6, expected a multiple of the element's 4 bytes");
  h.t.byte_offset = 1ull << 62;
  h.t.data = (void *)(UINTPTR_MAX - 7);
  CHECK_REFUSED(refused(&h),
                "linear: x: data, byte_offset and size together pass the end of memory");
}

TEST(tensor, missing_and_misaligned_data_are_refused) {
  host_tensor h;
  HOST(&h, NULL, F32, 2, 3);
  CHECK_REFUSED(refused(&h), "linear: x: data is NULL, but it has elements");
  h.t.data = (char *)memory + 2;
  CHECK_REFUSED(refused(&h),
                "linear: x: its first element is not aligned to the element's 4 bytes");
}

TEST(tensor, strides_that_an_operator_cannot_follow_are_refused) {
  host_tensor h;
  HOST(&h, memory, F32, 2, 3);
  h.strides[0] = -3;
  CHECK_REFUSED(refused(&h), "linear: x: stride 0 is -3, negative strides are not supported");
  h.strides[0] = 0;
  CHECK_REFUSED(refused(&h),
                "linear: x: stride 0 is 0: its 2 elements are one in memory; make it contiguous");
  h.strides[0] = 2;
  CHECK_REFUSED(refused(&h),
                "linear: x: stride 0 is 2: rows of 3 elements overlap; make it contiguous");
  h.strides[0] = 8, h.strides[1] = 2;
  CHECK_REFUSED(refused(&h), "linear: x: stride 1 is 2, expected 1: make it contiguous");
  HOST(&h, memory, F32, 2, 3, 4);
  h.strides[0] = 16;
  CHECK_REFUSED(refused(&h),
                "linear: x: its leading dimensions have no one stride: make it contiguous");
}

TEST(tensor, a_weight_needs_one_of_two_strides_to_be_1) {
  host_tensor h;
  lam_matrix m;
  HOST(&h, memory, F32, 3, 4);
  h.strides[0] = 8, h.strides[1] = 2;
  CHECK_REFUSED(lam_tensor_matrix(who, &h.t, true, true, &m, &reach),
                "linear: x: stride 1 is 2, expected 1 here or in the dimension before");
  h.strides[0] = 1, h.strides[1] = 2;
  CHECK_REFUSED(lam_tensor_matrix(who, &h.t, true, true, &m, &reach),
                "linear: x: stride 1 is 2: rows of 3 elements overlap; make it contiguous");
}

/* -- what must be accepted -- */

static void check_matrix(lam_matrix m, const void *data, int64_t rows, int64_t cols,
                         int64_t row_stride, int64_t col_stride) {
  CHECK(m.data == data);
  CHECK_EQ(m.rows, rows);
  CHECK_EQ(m.cols, cols);
  CHECK_EQ(m.row_stride, row_stride);
  CHECK_EQ(m.col_stride, col_stride);
  CHECK(!m.packed);
}

TEST(tensor, vectors_scalars_and_many_dimensions_become_matrices) {
  host_tensor h;
  lam_matrix m;
  HOST(&h, memory, F32, 5);
  CHECK_OK(view(&h, &m));
  check_matrix(m, memory, 1, 5, 5, 1);
  HOST(&h, memory, F32, 2, 1, 3, 1, 4);
  CHECK_OK(view(&h, &m));
  check_matrix(m, memory, 6, 4, 4, 1);
  h.t.ndim = 0, h.t.shape = NULL, h.t.strides = NULL;
  CHECK_OK(view(&h, &m));
  check_matrix(m, memory, 1, 1, 1, 1);
}

TEST(tensor, no_strides_mean_contiguous_rows) {
  host_tensor h;
  lam_matrix m;
  HOST(&h, memory, F32, 2, 3, 4);
  h.t.strides = NULL;
  CHECK_OK(view(&h, &m));
  check_matrix(m, memory, 6, 4, 4, 1);
  HOST(&h, memory, F32, 6, 4);
  h.t.strides = NULL;
  CHECK_OK(view(&h, &m));
  check_matrix(m, memory, 6, 4, 4, 1);
}

TEST(tensor, views_into_a_larger_tensor_are_taken_as_they_are) {
  host_tensor h;
  lam_matrix m;
  HOST(&h, memory, F32, 3, 4); /* columns 2..5 of a [3, 10] */
  h.strides[0] = 10, h.t.byte_offset = 8;
  CHECK_OK(view(&h, &m));
  check_matrix(m, memory + 2, 3, 4, 10, 1);
  HOST(&h, memory, F32, 2, 3, 4); /* the same of a [2, 3, 10] */
  h.strides[0] = 30, h.strides[1] = 10;
  CHECK_OK(view(&h, &m));
  check_matrix(m, memory, 6, 4, 10, 1);
}

TEST(tensor, strides_of_dimensions_of_1_mean_nothing) {
  host_tensor h;
  lam_matrix m;
  HOST(&h, memory, F32, 1, 3, 1, 4);
  h.strides[0] = -7, h.strides[2] = 1000, h.strides[1] = 6;
  CHECK_OK(view(&h, &m));
  check_matrix(m, memory, 3, 4, 6, 1);
  HOST(&h, memory, F32, 4, 1);
  h.strides[0] = 5, h.strides[1] = 77;
  CHECK_OK(view(&h, &m));
  check_matrix(m, memory, 4, 1, 5, 1);
}

TEST(tensor, empty_tensors_need_no_data) {
  host_tensor h;
  lam_matrix m;
  HOST(&h, NULL, F32, 0, 4);
  CHECK_OK(view(&h, &m));
  CHECK_EQ(m.rows, 0);
  CHECK_EQ(m.cols, 4);
  CHECK(lam_matrix_here(m));
  HOST(&h, NULL, F32, 2, 3, 0);
  CHECK_OK(view(&h, &m));
  CHECK_EQ(m.rows, 6);
  CHECK_EQ(m.cols, 0);
}

TEST(tensor, weights_may_be_transposed) {
  host_tensor h;
  lam_matrix m;
  HOST(&h, memory, F32, 3, 4);
  h.strides[0] = 1, h.strides[1] = 5;
  CHECK_OK(lam_tensor_matrix(who, &h.t, true, true, &m, &reach));
  check_matrix(m, memory, 3, 4, 1, 5);
  HOST(&h, memory, F32, 1, 4); /* one column of the other */
  h.strides[0] = 1, h.strides[1] = 5;
  CHECK_OK(lam_tensor_matrix(who, &h.t, true, true, &m, &reach));
  check_matrix(m, memory, 1, 4, 1, 5);
}

TEST(tensor, inference_looks_at_no_pointer) {
  host_tensor h;
  lam_matrix m;
  HOST(&h, (void *)3, F32, 2, 3);
  h.t.byte_offset = UINT64_MAX;
  CHECK_OK(lam_tensor_matrix(who, &h.t, false, false, &m, &reach));
  CHECK(m.data == NULL);
  CHECK_EQ(m.rows, 2);
}

/* The quick way through lam_tensor_matrix and the careful one agree: an offset of 0 and one of a
 * whole row do. */
TEST(tensor, the_quick_way_gives_what_the_careful_way_gives) {
  rng r = {seed()};
  for (int i = 0; i < 2000; i++) {
    host_tensor h;
    lam_matrix quick, careful;
    const int64_t rows = rng_int(&r, 1, 4), cols = rng_int(&r, 1, 4), step = rng_int(&r, 0, 8);
    HOST(&h, memory + 4, F32, rows, cols);
    h.strides[0] = step;
    NOTE("rows %d cols %d step %d", (int)rows, (int)cols, (int)step);
    const lam_status a = view(&h, &quick);
    const lam_reach quick_reach = reach;
    h.t.data = memory;
    h.t.byte_offset = 16;
    const lam_status b = view(&h, &careful);
    CHECK_EQ(a, b);
    if (a == LAM_OK && b == LAM_OK)
      check_matrix(quick, careful.data, careful.rows, careful.cols, careful.row_stride,
                   careful.col_stride);
    if (a == LAM_OK) CHECK(quick_reach.begin == reach.begin && quick_reach.end == reach.end);
  }
}

/* -- memory -- */

static lam_matrix view_of(const float *data, int64_t rows, int64_t cols, int64_t row_stride) {
  return (lam_matrix){(void *)(uintptr_t)data, rows, cols, row_stride, 1, LAM_F32, false};
}

static bool meets(lam_matrix a, lam_matrix b) {
  const bool one = lam_matrices_meet(&a, &b);
  CHECK_EQ(one, lam_matrices_meet(&b, &a));
  return one;
}

TEST(tensor, memory_meets_where_one_byte_is_shared) {
  CHECK(meets(view_of(memory, 2, 3, 3), view_of(memory + 5, 1, 1, 1)));
  CHECK(!meets(view_of(memory, 2, 3, 3), view_of(memory + 6, 1, 1, 1)));
  CHECK(!meets(view_of(memory, 3, 2, 6),
               view_of(memory + 2, 3, 2, 6))); /* column blocks of one matrix */
  CHECK(meets(view_of(memory, 3, 3, 6), view_of(memory + 2, 3, 2, 6)));
  CHECK(!meets(view_of(memory, 3, 2, 6), view_of(memory + 9, 1, 3, 3))); /* between two rows */
  CHECK(meets(view_of(memory, 3, 2, 6), view_of(memory + 9, 1, 4, 4)));
  CHECK(!meets(view_of(memory, 0, 3, 3), view_of(memory, 2, 3, 3))); /* nothing meets nothing */
}

TEST(tensor, memory_never_meets_unseen) {
  rng r = {seed()};
  for (int i = 0; i < 20000; i++) {
    unsigned char used[64] = {0};
    bool shared = false;
    lam_matrix s[2];
    for (int k = 0; k < 2; k++) {
      const int64_t rows = rng_int(&r, 1, 3), cols = rng_int(&r, 1, 3), step = rng_int(&r, cols, 8),
                    at = rng_int(&r, 0, 20);
      s[k] = view_of(memory + at, rows, cols, step);
      for (int64_t y = 0; y < rows; y++)
        for (int64_t x = 0; x < cols; x++) shared |= used[at + y * step + x]++ == 1 && k == 1;
    }
    if (shared) CHECK(meets(s[0], s[1]));
    if (!shared && s[0].row_stride == s[1].row_stride) CHECK(!meets(s[0], s[1]));
  }
}

/* -- tensors as producers hand them over -- */

static int n_deleted;
static void deleter(struct DLManagedTensorVersioned *self) {
  (void)self;
  n_deleted++;
}

static lam_dlpack_versioned managed(void) {
  static host_tensor h;
  HOST(&h, memory, F32, 2, 3);
  return (lam_dlpack_versioned){.version = {1, 3}, .deleter = deleter, .dl_tensor = h.t};
}

static lam_status taken(lam_dlpack_versioned *t, uint32_t role, const DLTensor **out) {
  return lam_tensor_view((struct DLManagedTensorVersioned *)t, role, out);
}

TEST(view, a_tensor_of_version_1_is_borrowed) {
  lam_dlpack_versioned t = managed();
  const DLTensor *out = NULL;
  n_deleted = 0;
  CHECK_OK(taken(&t, 1, &out));
  CHECK(out == &t.dl_tensor);
  t.flags = LAM_DLPACK_READ_ONLY | 1u << 9; /* to read from, what a newer producer says is fine */
  CHECK_OK(taken(&t, 0, &out));
  CHECK_EQ(n_deleted, 0);
}

TEST(view, another_major_version_is_released_unread) {
  lam_dlpack_versioned t = managed();
  const DLTensor *out = &t.dl_tensor;
  n_deleted = 0;
  t.version.major = 2;
  CHECK_REFUSED(taken(&t, 0, &out),
                "lam_tensor_view: DLPack major version is 2, expected 1; the tensor was released");
  CHECK(out == NULL);
  CHECK_EQ(n_deleted, 1);
  t.deleter = NULL;
  CHECK_EQ(taken(&t, 0, &out), LAM_INVALID_ARGUMENT);
}

TEST(view, what_may_not_be_written_is_no_output) {
  lam_dlpack_versioned t = managed();
  const DLTensor *out;
  t.flags = LAM_DLPACK_READ_ONLY;
  CHECK_REFUSED(taken(&t, 1, &out),
                "lam_tensor_view: found a read-only tensor, expected one to write to");
  t.flags = 1u << 9;
  CHECK_REFUSED(taken(&t, 1, &out),
                "lam_tensor_view: flags 0x200 are not known, as an output it may not have them");
  t.flags = LAM_DLPACK_SUBBYTE_PADDED;
  CHECK_REFUSED(taken(&t, 0, &out), "lam_tensor_view: padded sub-byte elements are not supported");
}

TEST(view, wrong_arguments_are_refused) {
  lam_dlpack_versioned t = managed();
  const DLTensor *out;
  CHECK_REFUSED(taken(NULL, 0, &out), "lam_tensor_view: t is NULL");
  CHECK_REFUSED(taken(&t, 0, NULL), "lam_tensor_view: out is NULL");
  CHECK_REFUSED(taken(&t, 2, &out), "lam_tensor_view: role is 2, expected 0 (input) or 1 (output)");
}

TEST(view, the_older_form_is_taken_at_its_word) {
  host_tensor h;
  const DLTensor *out = NULL;
  HOST(&h, memory, F32, 2, 3);
  DLManagedTensor t = {.dl_tensor = h.t};
  CHECK_OK(lam_tensor_view_legacy(&t, 1, &out));
  CHECK(out == &t.dl_tensor);
  CHECK_REFUSED(lam_tensor_view_legacy(NULL, 0, &out), "lam_tensor_view_legacy: t is NULL");
}
