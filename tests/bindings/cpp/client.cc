/* client.cc: a C++17 host, compiled by cpp.sh with and without exceptions: an operator, absent and
 * strided tensors, refusals, handles that move, a pipeline of one rank. */
#include "client.h"
#include "hooks.h"
#include "stages.h"

#include <type_traits>

static bool runs_an_operator() {
  const float x[] = {1, -2, 3, -4}, w[] = {1, 0, 9, 9, 0, 1, 9, 9, 1, 1, 9, 9};
  float y[6] = {}, bias[] = {1, 1, 1};
  /* w is the first two columns of what lies there */
  const tensor part(w, {3, 2}, {4, 1});
  ending e = end_of([&] {
    return ops::linear(tensor(x, {2, 2}), part, tensor(bias, {3}))
        .out(tensor(y, {2, 3}))
        .set("act", "relu")
        .run();
  });
  const float with_bias[] = {2, 0, 0, 4, 0, 0};
  EXPECT(e.code == LAM_OK);
  for (int i = 0; i < 6; i++) EXPECT(y[i] == with_bias[i]);

  e = end_of([&] {
    return ops::linear(tensor(x, {2, 2}), part, tensor()).out(tensor(y, {2, 3})).run();
  });
  const float without[] = {1, -2, -1, 3, -4, -1};
  EXPECT(e.code == LAM_OK);
  for (int i = 0; i < 6; i++) EXPECT(y[i] == without[i]);
  return true;
}

static bool infers_shapes() {
  float none[1] = {};
  lam_shape shapes[2];
  lam_inferred found = LAM_INFERRED_INIT;
  found.outputs = shapes, found.n_outputs = 2;
  const ending e = end_of([&] {
    return ops::linear(tensor(none, {3, 2}), tensor(none, {5, 2})).set("save", 1).infer(found);
  });
  EXPECT(e.code == LAM_OK && shapes[0].dims[1] == 5 && shapes[1].ndim == 2);
  return true;
}

static bool refuses_with_words() {
  float x[2] = {}, y[2] = {};
  ending e = end_of([&] { return ops::all_reduce(tensor(x, {2})).out(tensor(y, {3})).run(); });
  EXPECT(e.code == LAM_INVALID_ARGUMENT);
  EXPECT(e.message == "all_reduce: y: found [3] f32, expected [2] f32");
  e = end_of([&] { return ops::all_reduce(tensor(x, {2})).set("nosuch", 1).run(); });
  EXPECT(e.code == LAM_INVALID_ARGUMENT);
  EXPECT(e.message == "all_reduce: nosuch: no attribute has this name; it has group:i");
  e = end_of([&] { return ops::all_reduce(tensor(x, {2, 2}, {1})).out(tensor(y, {2})).run(); });
  EXPECT(e.code == LAM_INVALID_ARGUMENT && e.message.find("all_reduce: x") == 0);
  return true;
}

static bool owns_its_handles() {
  static_assert(!std::is_copy_constructible_v<group> && std::is_nothrow_move_assignable_v<group>,
                "a handle has one owner");
  context ctx;
  EXPECT(end_of([&] { return context::create(context_desc(), ctx); }).code == LAM_OK);
  lam_group_desc desc = group_desc();
  desc.size = 1;
  EXPECT(lam_group_id_create(&desc.id) == LAM_OK);
  group alone, moved;
  EXPECT(end_of([&] { return group::create(ctx, desc, alone); }).code == LAM_OK);
  moved = std::move(alone);
  EXPECT(moved && !alone);
  float x[] = {3}, y[1] = {};
  const ending e = end_of([&] {
    return ops::all_reduce(tensor(x, {1})).out(tensor(y, {1})).set("group", moved).run(ctx);
  });
  EXPECT(e.code == LAM_OK && y[0] == 3);
  desc.rank = 5; /* what fails leaves the handle as it was */
  EXPECT(end_of([&] { return group::create(ctx, desc, moved); }).code == LAM_INVALID_ARGUMENT);
  EXPECT(moved);
  return true;
}

/* Shapes from elsewhere, dimensions from the end, another dtype, the numbers of a DLTensor. */
static bool views_any_memory() {
  const int64_t shape[] = {2, 3}, turned[] = {1, 2};
  float data[7] = {};
  const tensor columns(data, f32, 2, shape, turned);
  EXPECT(columns.dim(-1) == 3 && columns.ndim() == 2 && columns.data<float>() == data);
  int64_t dims[] = {3}, strides[] = {2};
  const DLTensor given = {data, {kDLCUDA, 1}, 1, {kDLBfloat, 16, 1}, dims, strides, 4};
  tensor taken(given);
  EXPECT(taken.data<float>() == data + 1 && taken.dim(0) == 3);
  const DLTensor again = taken.view();
  EXPECT(again.device.device_type == kDLCUDA && again.device.device_id == 1);
  EXPECT(again.dtype.code == kDLBfloat && again.strides[0] == 2 && again.byte_offset == 0);
  EXPECT(tensor().absent() && tensor(data, {}).ndim() == 0);
  static_assert(dtype_of<int32_t>().code == kDLInt && dtype_of<uint8_t>().bits == 8 &&
                    dtype_of<double>().bits == 64,
                "dtypes come from types");
  return true;
}

/* ops::ffn(x, w1, b1, w2, b2): the sizes of tables of calls come from the list of operators. */
static bool takes_the_longest_row() {
  float x[2] = {1, 2}, w1[2] = {1, 1}, w2[2] = {1, -1}, y[2] = {}, aux[1] = {};
  const ending e = end_of([&] {
    return ops::ffn(tensor(x, {1, 2}), tensor(w1, {1, 2}), tensor(), tensor(w2, {2, 1}), tensor(),
                    tensor(), tensor(), tensor())
        .out(tensor(y, {1, 2}))
        .out(tensor(aux, {1, 1}))
        .set("act", "relu")
        .set("save", 1)
        .run();
  });
  EXPECT(e.code == LAM_OK && y[0] == 3 && y[1] == -3 && aux[0] == 3);
  return true;
}

int main() {
  const bool well = runs_an_operator() && infers_shapes() && refuses_with_words() &&
                    owns_its_handles() && views_any_memory() && takes_the_longest_row() &&
                    takes_callables_as_hooks() && takes_callables_as_stages();
  return well ? 0 : 1;
}
