/* refusal_test.c: what only an operator can find wrong with its arguments: each with its own words,
 * and nothing written. What a row alone can tell is tested with dispatch. */
#include <string.h>

#include "tests/distributed/ops/member.h"

#define I lam_attr_i
#define S lam_attr_s

static float data[16][64];
static float out[256];

static member alone(void) {
  lam_group_id id;
  member m = {0};
  CHECK_OK(lam_group_id_create(&id));
  CHECK_OK(member_join(&m, &id, 0, 1));
  return m;
}

static void check_nothing_written(void) {
  for (size_t i = 0; i < sizeof out / sizeof *out; i++)
    if (!CHECK(out[i] == 0)) return;
}

#define CHECK_REFUSED(expr, words)        \
  do {                                    \
    CHECK_EQ(expr, LAM_INVALID_ARGUMENT); \
    CHECK_STR(lam_last_error(), words);   \
    check_nothing_written();              \
  } while (0)

TEST(refusal, of_linear_layers_names_the_sizes_that_differ) {
  member m = alone();
  tensor x, w, b, y, long_b;
  TENSOR(&x, data[0], f32, 3, 5);
  TENSOR(&w, data[1], f32, 4, 6);
  TENSOR(&b, data[2], f32, 4);
  TENSOR(&y, out, f32, 3, 4);
  CHECK_REFUSED(RUN(&m, linear_col, LIST(&x.dl, &w.dl, &b.dl), LIST(&y.dl), LIST({0})),
                "linear_col: x's last dimension is 5, expected 6: w's in features");
  TENSOR(&x, data[0], f32, 3, 6);
  TENSOR(&long_b, data[2], f32, 5);
  CHECK_REFUSED(RUN(&m, linear_col, LIST(&x.dl, &w.dl, &long_b.dl), LIST(&y.dl), LIST({0})),
                "linear_col: b's length is 5, expected 4: w's rows");
  CHECK_REFUSED(RUN(&m, linear_row, LIST(&x.dl, &w.dl, &long_b.dl), LIST(&y.dl), LIST(I(1))),
                "linear_row: b's length is 5, expected 4: w's rows");
  member_leave(&m);
}

TEST(refusal, of_gradients_names_the_rows_that_differ) {
  member m = alone();
  tensor dy, x, dw, w, dx;
  TENSOR(&dy, data[0], f32, 3, 4);
  TENSOR(&x, data[1], f32, 2, 6);
  TENSOR(&dw, out, f32, 4, 6);
  CHECK_REFUSED(RUN(&m, linear_col_wgrad, LIST(&dy.dl, &x.dl), LIST(&dw.dl), LIST({0})),
                "linear_col_wgrad: the number of rows of dy is 3, expected 2: that of x");
  CHECK_REFUSED(RUN(&m, linear_row_wgrad, LIST(&dy.dl, &x.dl), LIST(&dw.dl), LIST(I(1))),
                "linear_row_wgrad: the number of rows of x is 2, expected 3: that of dy");
  TENSOR(&w, data[2], f32, 5, 6);
  TENSOR(&dx, out, f32, 3, 6);
  CHECK_REFUSED(RUN(&m, linear_col_dgrad, LIST(&dy.dl, &w.dl), LIST(&dx.dl), LIST({0})),
                "linear_col_dgrad: dy's last dimension is 4, expected 5: w's rows");
  CHECK_REFUSED(RUN(&m, linear_row_dgrad, LIST(&dy.dl, &w.dl), LIST(&dx.dl), LIST(I(1))),
                "linear_row_dgrad: dy's last dimension is 4, expected 5: w's rows");
  member_leave(&m);
}

TEST(refusal, of_act_bwd_names_the_sizes_that_differ) {
  member m = alone();
  tensor dy, aux, dz;
  TENSOR(&dy, data[0], f32, 3, 4);
  TENSOR(&aux, data[1], f32, 3, 5);
  TENSOR(&dz, out, f32, 3, 5);
  const DLTensor *in[] = {&dy.dl, &aux.dl};
  DLTensor *outputs[] = {&dz.dl};
  const lam_attr act = S("relu");
  lam_call call = LAM_CALL_INIT;
  call.op = LAM_OP_act_bwd;
  call.inputs = in, call.outputs = outputs, call.attrs = &act;
  call.n_inputs = 2, call.n_outputs = 1, call.n_attrs = 1;
  CHECK_REFUSED(lam_run(m.ctx, &call), "act_bwd: aux's last dimension is 5, expected 4: dy's");
  member_leave(&m);
}

TEST(refusal, of_shares_names_total_and_unit) {
  member m = alone();
  tensor x, w, y;
  TENSOR(&x, data[0], f32, 3, 6);
  TENSOR(&w, data[1], f32, 4, 6);
  TENSOR(&y, out, f32, 3, 4);
  CHECK_REFUSED(RUN(&m, linear_col, LIST(&x.dl, &w.dl), LIST(&y.dl),
                    LIST(S(""), I(0), I(0), I(0), I(8), I(0))),
                "linear_col: w's rows is 4, expected 8: this rank's share of total by unit");
  CHECK_REFUSED(RUN(&m, linear_row, LIST(&x.dl, &w.dl), LIST(&y.dl), LIST(I(0), I(0), I(12), I(0))),
                "linear_row: x's last dimension is 6, expected 12: attribute total");
  CHECK_REFUSED(RUN(&m, linear_row, LIST(&x.dl, &w.dl), LIST(&y.dl), LIST(I(1), I(0), I(6), I(4))),
                "linear_row: x's last dimension: total 6 in units of 4 does not come out even");
  member_leave(&m);
}

TEST(refusal, of_sequence_splits_names_the_first_dimension) {
  member m = alone();
  tensor x, w, y, vector;
  TENSOR(&x, data[0], f32, 3, 6);
  TENSOR(&w, data[1], f32, 4, 6);
  TENSOR(&y, out, f32, 5, 4);
  CHECK_REFUSED(RUN(&m, linear_col, LIST(&x.dl, &w.dl), LIST(&y.dl), LIST(S(""), I(0), I(0), I(5))),
                "linear_col: x's first dimension is 3, expected 5: this rank's share of seq");
  CHECK_REFUSED(RUN(&m, linear_row, LIST(&x.dl, &w.dl), LIST(&y.dl), LIST(I(1), I(5))),
                "linear_row: x's first dimension is 3, expected 5: attribute seq");
  TENSOR(&vector, data[0], f32, 6);
  TENSOR(&y, data[1], f32, 5, 4);
  TENSOR(&w, out, f32, 4, 6);
  CHECK_REFUSED(RUN(&m, linear_col_wgrad, LIST(&y.dl, &vector.dl), LIST(&w.dl), LIST(I(5))),
                "linear_col_wgrad: x has 1 dimensions, expected at least 2: seq splits the first, "
                "features are the last");
  member_leave(&m);
}

TEST(refusal, of_ffn_names_the_weights_that_do_not_fit) {
  member m = alone();
  tensor x, w1, b1, w2, y, dz, aux;
  TENSOR(&x, data[0], f32, 3, 6);
  TENSOR(&w1, data[1], f32, 8, 6);
  TENSOR(&w2, data[2], f32, 5, 8);
  TENSOR(&b1, data[3], f32, 7);
  TENSOR(&y, out, f32, 3, 5);
  CHECK_REFUSED(RUN(&m, ffn, LIST(&x.dl, &w1.dl, NULL, &w2.dl), LIST(&y.dl), LIST(S(""), I(1))),
                "ffn: the number of w1's rows is 8, expected 16: twice w2's in features (gated)");
  CHECK_REFUSED(RUN(&m, ffn, LIST(&x.dl, &w1.dl, &b1.dl, &w2.dl), LIST(&y.dl), LIST(S(""))),
                "ffn: b1's length is 7, expected 8: w1's rows");
  TENSOR(&aux, data[4], f32, 3, 7);
  TENSOR(&dz, out + 128, f32, 3, 7);
  TENSOR(&y, data[5], f32, 3, 5);
  tensor dx;
  TENSOR(&dx, out, f32, 3, 6);
  CHECK_REFUSED(RUN(&m, ffn_dgrad, LIST(&y.dl, &aux.dl, &w1.dl, &w2.dl), LIST(&dx.dl, &dz.dl),
                    LIST(S("relu"))),
                "ffn_dgrad: aux's last dimension is 7, expected 8: w1's rows");
  member_leave(&m);
}

TEST(refusal, of_collectives_names_dim_and_root) {
  member m = alone();
  tensor x, y;
  TENSOR(&x, data[0], f32, 3, 6);
  TENSOR(&y, out, f32, 3, 6);
  CHECK_REFUSED(RUN(&m, broadcast, LIST(&x.dl), LIST(&y.dl), LIST(I(1))),
                "broadcast: root is 1, expected 0 to 0");
  CHECK_REFUSED(RUN(&m, reduce, LIST(&x.dl), LIST(&y.dl), LIST(I(5))),
                "reduce: root is 5, expected 0 to 0");
  CHECK_REFUSED(RUN(&m, scatter_to_group, LIST(&x.dl), LIST(&y.dl), LIST(I(7))),
                "scatter_to_group: x's last dimension is 6, expected 7: attribute total");
  member_leave(&m);
}

TEST(refusal, of_pack_weight_names_side_and_cols) {
  tensor w, packed;
  int64_t cols = 0;
  const DLDataType u8 = {kDLUInt, 8, 1};
  TENSOR(&w, data[0], f32, 4, 6);
  REQUIRE_OK(lam_packed_size(NULL, f32, 4, 6, 0, &cols));
  TENSOR(&packed, out, u8, 4, 3);
  const DLTensor *in[] = {&w.dl};
  DLTensor *outputs[] = {&packed.dl};
  const lam_attr attrs[] = {I(0), I(3)};
  lam_call call = LAM_CALL_INIT;
  call.op = LAM_OP_pack_weight;
  call.inputs = in, call.outputs = outputs, call.attrs = attrs;
  call.n_inputs = 1, call.n_outputs = 1, call.n_attrs = 2;
  CHECK_EQ(lam_run(NULL, &call), LAM_INVALID_ARGUMENT);
  CHECK_CONTAINS(lam_last_error(), "pack_weight: cols is 3, expected ");
  check_nothing_written();
}

/* lam_infer holds seq against nothing: it must survive any number. */
static void infer_any_seq(int rank, int size, void *arg) {
  member m;
  tensor dy, x;
  TENSOR(&dy, data[0], f32, 3, 2, 6);
  TENSOR(&x, data[1], f32, 3, 2, 5);
  REQUIRE_OK(member_join(&m, arg, rank, size));
  const DLTensor *in[] = {&dy.dl, &x.dl};
  const lam_attr attrs[] = {I(lam_group_handle(m.g)), I(1), I(INT64_MAX / 4)};
  lam_inferred told = LAM_INFERRED_INIT;
  lam_call call = LAM_CALL_INIT;
  call.op = LAM_OP_linear_row_wgrad;
  call.inputs = in, call.attrs = attrs;
  call.n_inputs = 2, call.n_attrs = 3;
  CHECK_OK(lam_infer(m.ctx, &call, &told));
  CHECK(told.scratch_bytes > 0);
  member_leave(&m);
}

TEST(refusal, is_no_business_of_infer_with_any_seq) {
  lam_group_id id;
  REQUIRE_OK(lam_group_id_create(&id));
  run_threads(2, infer_any_seq, &id);
}
